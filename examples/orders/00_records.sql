-- The fields of an order. This file is read, not run.

CREATE TABLE records (
  order_id    TEXT,
  customer_id TEXT,
  product_id  TEXT,
  quantity    TEXT,
  unit_price  TEXT,
  amount      TEXT,
  status      TEXT,
  ordered_at  TEXT
);
