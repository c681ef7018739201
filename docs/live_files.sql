-- The files of a store that count, as the DuckDB variable live_files. Run it where the directory store is (or change the
-- paths), and read the list as the snapshot that it is:
--
--   .read docs/live_files.sql
--   SELECT count(*) FROM read_parquet(getvariable('live_files'));
--
-- A file is named by the offset where it starts; a larger one that replaces small ones also names the offset after its end.
-- In each partition the larger files are walked by start: the next is the one that starts at or after the end of the last,
-- and reaches furthest of those with the same start. A file inside the range of such a file was replaced by it, and is
-- deleted some time later. Files before the last offset in _expired hold records that retention let go.

SET VARIABLE live_files = (
  WITH RECURSIVE expired AS (
    SELECT parse_dirpath(filename) AS partition, regexp_extract(content, '([0-9]+) [0-9]+\s*$', 1)::BIGINT AS before
    FROM read_text('store/records/*/*/_*') WHERE parse_filename(filename) = '_expired'
  ), files AS (
    SELECT file, parse_dirpath(file) AS partition,
           regexp_extract(file, '([0-9]{20})(-[0-9]{20})?\.parquet$', 1)::BIGINT AS start,
           nullif(regexp_extract(file, '[0-9]{20}-([0-9]{20})\.parquet$', 1), '')::BIGINT AS next
    FROM glob('store/records/*/*/*.parquet')
  ), large AS (
    SELECT partition, start, max(next) AS next FROM files WHERE next IS NOT NULL GROUP BY ALL
  ), walk AS (
    SELECT partition, min(start) AS start, arg_min(next, start) AS next FROM large GROUP BY ALL
    UNION ALL
    SELECT walk.partition, min(large.start), arg_min(large.next, large.start)
    FROM walk JOIN large ON large.partition = walk.partition AND large.start >= walk.next
    GROUP BY ALL
  )
  SELECT list(file ORDER BY file) FROM files LEFT JOIN expired USING (partition)
  WHERE files.start >= coalesce(expired.before, files.start) AND NOT EXISTS (
    FROM walk WHERE walk.partition = files.partition
    AND files.start >= walk.start AND files.start < walk.next
    AND (files.start, files.next) IS DISTINCT FROM (walk.start, walk.next))
);
