-- Reads records and products. Gives products and `_slice`, the smallest of the slices 1, 2, 3 that holds the row.
--
-- Records are in stream order: by `_timestamp` (a missing one first), `_partition`, `_offset`. Of n records slice i
-- holds the first min(n, i * ceil(n / 3)), those that could not be read counted: a slice is a share of the stream, not
-- of what cleaning left of it.

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
