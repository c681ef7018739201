-- k: 3
-- entity: product_id
-- label.turnover.en: Low Turnover | Mid Turnover | High Turnover
-- label.pieces.en: Few Pieces | Some Pieces | Many Pieces

-- Reads orders. Gives turnover and pieces sold of each product, returns taken off, as logarithms to base 10.

SELECT
  product_id,
  log10(1 + greatest(coalesce(sum(amount), 0), 0)) AS turnover,
  log10(1 + greatest(sum(quantity * CASE status WHEN 'returned' THEN -1 ELSE 1 END), 0)) AS pieces
FROM orders
GROUP BY product_id
