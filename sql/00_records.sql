-- The fields of a product record. This file is read, not run: it names what becomes a column of the store, all of it
-- text, exactly as it came. What a record holds beside these fields is kept in `_extra`.

CREATE TABLE records (
  product_id          TEXT,
  product_name        TEXT,
  category            TEXT,
  discounted_price    TEXT,
  actual_price        TEXT,
  discount_percentage TEXT,
  rating              TEXT,
  rating_count        TEXT,
  about_product       TEXT,
  user_id             TEXT,
  user_name           TEXT,
  review_id           TEXT,
  review_title        TEXT,
  review_content      TEXT,
  img_link            TEXT,
  product_link        TEXT
);
