//! Predictions of a model: the nearest centroid of a row, in scaled units.
//!
//! Input: scale and centroids. Output: clusters and distances.

use ndarray::Array2;
use tercile_kmeans as kmeans;
use tercile_kmeans::features::Scale;

/// Rows per tile in batch prediction.
const TILE: usize = 256;

/// Above this value doubles are at least one apart, so that centroids within one standard deviation of each other cannot be
/// distinguished.
const FAR: f64 = (1_u64 << 52) as f64;

/// A model prepared for prediction: centroids in standardised units.
#[derive(Debug, Clone)]
pub struct Predictor {
    scale: Scale,
    centroids: Array2<f64>,
    /// Distance from which on the nearest cluster cannot be determined.
    far: f64,
}

impl Predictor {
    /// `centroids` are k by features, in original units.
    pub fn new(scale: Scale, centroids: &Array2<f64>) -> Self {
        let mut standardised = centroids.clone();
        for ((_, feature), value) in standardised.indexed_iter_mut() {
            *value = scale.standardise(feature, *value);
        }
        let far = FAR * scale.reach();
        Self { scale, centroids: standardised, far }
    }

    /// True if a distance in scaled units is small enough to determine the nearest cluster. False for a value that has no logarithm
    /// on a logarithmic scale.
    pub fn tells(&self, distance: f64) -> bool {
        distance < self.far
    }

    /// Distances from this one on do not determine the nearest cluster.
    pub fn far(&self) -> f64 {
        self.far
    }

    /// The cluster of a row in original units, and its distance to the centroid in standardised units. `row` is overwritten.
    pub fn predict(&self, row: &mut [f64]) -> (usize, f64) {
        for (feature, value) in row.iter_mut().enumerate() {
            *value = self.scale.standardise(feature, *value);
        }
        let (cluster, squared) = kmeans::nearest(row, &self.centroids);
        (cluster, squared.sqrt())
    }

    /// Clusters and distances of rows given as columns, bit-identical to [`Predictor::predict`] for each row.
    pub fn predict_columns(&self, columns: &[&[f64]]) -> (Vec<u32>, Vec<f64>) {
        let rows = columns.first().map_or(0, |column| column.len());
        let (mut clusters, mut distances) = (vec![0_u32; rows], vec![0.0_f64; rows]);
        // The tile size keeps all scratch buffers in the L1 cache.
        let mut standardised = vec![[0.0_f64; TILE]; columns.len()];
        let (mut best, mut of, mut squared) = ([0.0_f64; TILE], [0_u32; TILE], [0.0_f64; TILE]);
        for start in (0..rows).step_by(TILE) {
            let n = TILE.min(rows - start);
            for (feature, (tile, column)) in standardised.iter_mut().zip(columns).enumerate() {
                self.scale.standardise_all(feature, &column[start..start + n], &mut tile[..n]);
            }
            best.fill(f64::INFINITY);
            of.fill(0);
            for (cluster, centroid) in self.centroids.rows().into_iter().enumerate() {
                squared.fill(0.0);
                for (tile, &at) in standardised.iter().zip(centroid) {
                    for (sum, &place) in squared.iter_mut().zip(tile) {
                        *sum += (place - at) * (place - at);
                    }
                }
                for ((best, of), &squared) in best.iter_mut().zip(&mut of).zip(&squared) {
                    let nearer = squared < *best;
                    *best = if nearer { squared } else { *best };
                    *of = if nearer { cluster as u32 } else { *of };
                }
            }
            clusters[start..start + n].copy_from_slice(&of[..n]);
            for (distance, best) in distances[start..start + n].iter_mut().zip(&best) {
                *distance = best.sqrt();
            }
        }
        (clusters, distances)
    }

    /// The squared terms of a row's distance to each cluster: by cluster, then by feature.
    pub fn squares(&self, values: &[f64]) -> Array2<f64> {
        let place = |feature: usize| self.scale.standardise(feature, values[feature]);
        Array2::from_shape_fn(self.centroids.dim(), |(cluster, feature)| {
            let apart = place(feature) - self.centroids[(cluster, feature)];
            apart * apart
        })
    }

    /// The feature with the greatest scaled deviation, or one without a logarithm.
    pub fn farthest(&self, values: &[f64]) -> usize {
        let out = |feature: usize| self.scale.standardise(feature, values[feature]).abs();
        (0..values.len()).max_by(|&a, &b| out(a).total_cmp(&out(b))).unwrap_or(0)
    }

    /// False for a value that has no logarithm, of a feature on a logarithmic scale.
    pub fn has_place(&self, feature: usize, value: f64) -> bool {
        !self.scale.is_log(feature) || value > -1.0
    }

    /// Mean of a feature in the training, in its own units.
    pub fn mean(&self, feature: usize) -> f64 {
        self.scale.mean[feature]
    }

    /// k by features, standardised.
    pub fn centroids(&self) -> &Array2<f64> {
        &self.centroids
    }
}
