-- Reads records. Gives one typed row per readable order or return. A returned amount is negative.
--
-- Customer ids come in capitals and without blanks, amounts without signs and commas; a text that is no number is NULL. Times come in
-- ISO 8601 or with the day first (07/03/2025 10:15).

SELECT
  _partition, _offset, _timestamp,
  order_id,
  upper(btrim(customer_id)) AS customer_id,
  product_id,
  TRY_CAST(quantity AS BIGINT) AS quantity,
  status,
  TRY_CAST(replace(replace(amount, '₹', ''), ',', '') AS DOUBLE)
    * CASE status WHEN 'returned' THEN -1 ELSE 1 END AS amount,
  TRY_CAST(
    CASE WHEN ordered_at LIKE '__/__/____ __:__'
      THEN concat(substr(ordered_at, 7, 4), '-', substr(ordered_at, 4, 2), '-', left(ordered_at, 2), 'T', right(ordered_at, 5), ':00Z')
      ELSE ordered_at
    END AS TIMESTAMP) AS ordered_at
FROM records
WHERE _error IS NULL
