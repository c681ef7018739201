-- Reads products. A report: the main categories, how many products each has, and what they are like on average.

SELECT
  split_part(category, '|', 1) AS main_category,
  count(*) AS products,
  round(avg(discounted_price), 2) AS mean_price,
  round(avg(discount_percentage), 1) AS mean_discount,
  round(avg(rating), 2) AS mean_rating,
  round(avg(rating_count), 0) AS mean_reviews
FROM products
GROUP BY main_category
ORDER BY products DESC, main_category
