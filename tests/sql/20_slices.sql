-- Reads records and products. Gives what the shipped 20_slices.sql gives, by a plain window over all records: it sorts the
-- whole stream, on one core. Whoever wants other slices may put such a window there; a test holds the two to each other.

WITH numbered AS (
  SELECT
    _partition,
    _offset,
    row_number() OVER (ORDER BY _timestamp NULLS FIRST, _partition, _offset) AS place,
    (count(*) OVER () + 2) / 3 AS third
  FROM records
)
SELECT
  products.*,
  CASE
    WHEN place <= third THEN 1
    WHEN place <= 2 * third THEN 2
    ELSE 3
  END AS _slice
FROM products
JOIN numbered USING (_partition, _offset)
