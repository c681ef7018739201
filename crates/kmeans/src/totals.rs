//! Sums of one pass.

/// Result of one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Totals {
    /// Sum of each feature's differences from its origin for each cluster: k × features, row-major, not standardised.
    pub sums: Vec<f64>,
    /// Weight of each cluster; its number of rows if rows have no weights.
    pub weights: Vec<f64>,
    /// Weighted sum of squared distances to the nearest centroid, in standardised units.
    pub inertia: f64,
}

impl Totals {
    /// Sum of squared distances to the origin minus sum of squared distances to these centroids (standardised), with the
    /// assignment of these totals.
    pub(super) fn saved(&self, centroids: &[f64], inverse: &[f64]) -> f64 {
        let features = inverse.len();
        let mut saved = 0.0;
        for (cluster, centroid) in centroids.chunks(features).enumerate() {
            for (feature, place) in centroid.iter().enumerate() {
                let sum = self.sums[cluster * features + feature] * inverse[feature];
                saved += place * (2.0 * sum - self.weights[cluster] * place);
            }
        }
        saved
    }
}
