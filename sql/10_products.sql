-- Reads records. Gives one typed row per record that could be read.
--
-- A number is NULL where its text is no finite number, and every finite number is kept. Rupee and percent signs go.
-- Commas go where they group digits, the western way (139,900) or the Indian way (1,39,900): elsewhere they may mean
-- anything, and the number is NULL.

WITH bare AS (
  SELECT
    _partition, _offset, _timestamp, product_id, product_name, category,
    btrim(replace(discounted_price, '₹', '')) AS discounted_price,
    btrim(replace(actual_price, '₹', '')) AS actual_price,
    btrim(rtrim(btrim(discount_percentage), '%')) AS discount_percentage,
    btrim(rating) AS rating,
    btrim(rating_count) AS rating_count
  FROM records
  WHERE _error IS NULL
),
ungrouped AS (
  SELECT
    _partition, _offset, _timestamp, product_id, product_name, category, discount_percentage, rating,
    CASE
      WHEN discounted_price NOT LIKE '%,%' THEN discounted_price
      WHEN discounted_price ~ '^[-+]?[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}([.][0-9]*)?$' THEN replace(discounted_price, ',', '')
    END AS discounted_price,
    CASE
      WHEN actual_price NOT LIKE '%,%' THEN actual_price
      WHEN actual_price ~ '^[-+]?[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}([.][0-9]*)?$' THEN replace(actual_price, ',', '')
    END AS actual_price,
    CASE
      WHEN rating_count NOT LIKE '%,%' THEN rating_count
      WHEN rating_count ~ '^[-+]?[0-9]{1,3}(,[0-9]{2,3})*,[0-9]{3}([.][0-9]*)?$' THEN replace(rating_count, ',', '')
    END AS rating_count
  FROM bare
),
numbers AS (
  SELECT
    _partition, _offset, _timestamp, product_id, product_name, category,
    TRY_CAST(discounted_price AS DOUBLE) AS discounted_price,
    TRY_CAST(actual_price AS DOUBLE) AS actual_price,
    TRY_CAST(discount_percentage AS DOUBLE) AS discount_percentage,
    TRY_CAST(rating AS DOUBLE) AS rating,
    TRY_CAST(rating_count AS DOUBLE) AS rating_count
  FROM ungrouped
)
-- Too large for a DOUBLE reads as infinity, and NaN is above that: neither is less.
SELECT
  _partition, _offset, _timestamp, product_id, product_name, category,
  CASE WHEN abs(discounted_price) < CAST('Infinity' AS DOUBLE) THEN discounted_price END AS discounted_price,
  CASE WHEN abs(actual_price) < CAST('Infinity' AS DOUBLE) THEN actual_price END AS actual_price,
  CASE WHEN abs(discount_percentage) < CAST('Infinity' AS DOUBLE) THEN discount_percentage END AS discount_percentage,
  CASE WHEN abs(rating) < CAST('Infinity' AS DOUBLE) THEN rating END AS rating,
  CASE WHEN abs(rating_count) < CAST('Infinity' AS DOUBLE) THEN rating_count END AS rating_count
FROM numbers
