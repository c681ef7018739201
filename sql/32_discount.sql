-- k: 3
-- label.discount_percentage.en: Low Discount | Medium Discount | High Discount
-- label.discount_percentage.id: Diskon Rendah | Diskon Sedang | Diskon Tinggi

-- Reads slices. Gives the one feature of the segmentation by discount. A discount outside 0 to 100 percent is none, and
-- its row is left out; a missing one stays, and takes the mean.

SELECT _partition, _offset, _timestamp, _slice, discount_percentage
FROM slices
WHERE discount_percentage IS NULL OR discount_percentage BETWEEN 0 AND 100
