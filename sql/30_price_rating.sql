-- k: 3
-- label.discounted_price.en: Low Price | Mid Price | High Price
-- label.discounted_price.id: Harga Rendah | Harga Sedang | Harga Tinggi
-- label.rating.en: Low Rating | Mid Rating | High Rating
-- label.rating.id: Rating Rendah | Rating Sedang | Rating Tinggi

-- Reads slices. Gives the two features of the segmentation by price and rating.

SELECT _partition, _offset, _timestamp, _slice, discounted_price, rating
FROM slices
