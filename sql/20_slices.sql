-- Reads products and slice_cuts(). Gives products and `_slice`, the smallest of the slices 1, 2, 3 that holds the row.
--
-- Records are in stream order: by `_timestamp` (a missing one first), `_partition`, `_offset`. Of n records slice i
-- holds the first min(n, i * ceil(n / 3)), those that could not be read counted: a slice is a share of the stream, not
-- of what cleaning left of it. slice_cuts() gives the last record of each slice, and finds it without sorting.

WITH one AS (SELECT * FROM slice_cuts() WHERE slice = 1),
     two AS (SELECT * FROM slice_cuts() WHERE slice = 2)
SELECT
  products.*,
  CASE
    WHEN (products._timestamp IS NULL AND one._timestamp IS NOT NULL)
      OR products._timestamp < one._timestamp
      OR ((products._timestamp IS NOT DISTINCT FROM one._timestamp)
        AND (products._partition < one._partition
          OR (products._partition = one._partition AND products._offset <= one._offset)))
      THEN 1
    WHEN (products._timestamp IS NULL AND two._timestamp IS NOT NULL)
      OR products._timestamp < two._timestamp
      OR ((products._timestamp IS NOT DISTINCT FROM two._timestamp)
        AND (products._partition < two._partition
          OR (products._partition = two._partition AND products._offset <= two._offset)))
      THEN 2
    ELSE 3
  END AS _slice
FROM one CROSS JOIN two CROSS JOIN products
