-- k: 3
-- label.rating.en: Low Rating | Mid Rating | High Rating
-- label.rating.id: Rating Rendah | Rating Sedang | Rating Tinggi
-- label.rating_count.en: Low Reviews | Mid Reviews | High Reviews
-- label.rating_count.id: Sedikit Ulasan | Jumlah Ulasan Sedang | Banyak Ulasan

-- Reads slices. Gives the two features of the segmentation by rating and number of reviews.

SELECT _partition, _offset, _timestamp, _slice, rating, rating_count
FROM slices
