-- k: 4
-- entity: customer_id
-- label.spent.en: Small Spender | Modest Spender | Good Spender | Big Spender
-- label.orders.en: Rare | Occasional | Regular | Frequent
-- label.days_since_last.en: Active | Recent | Cooling | Lost

-- Reads orders. Gives recency, frequency and monetary value of each customer, as known at the slice: what was spent, returns taken
-- off, and the number of orders, both as logarithms to base 10 because few customers have most of them; and the days from the
-- customer's last order to the last order of all.

WITH latest AS (SELECT max(ordered_at) AS at FROM orders)
SELECT
  customer_id,
  log10(1 + greatest(coalesce(sum(amount), 0), 0)) AS spent,
  log10(count(DISTINCT order_id)) AS orders,
  (CAST(max(latest.at) AS BIGINT) - CAST(max(ordered_at) AS BIGINT)) / 86400000000000.0 AS days_since_last
FROM orders CROSS JOIN latest
WHERE status = 'ordered' OR amount < 0
GROUP BY customer_id
