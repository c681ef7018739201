//! Clusters the rows of a request.
//!
//! Input: columns. Output: their clusters. Nothing is stored.

use datafusion::arrow::array::Float64Array;
use ndarray::Array2;
use tercile_kmeans::features::scaling::Scaling;
use tercile_kmeans::features::{self, Scale};
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Fit, Init, Points};

use super::settings;
use crate::model::Predictor;
use crate::model::cluster_ids::{by_features, renumbered};

/// Clusters of the rows of a request: without store and version, numbered by the first feature.
pub struct RequestFit {
    pub predictor: Predictor,
    /// k by features, in original units.
    pub centroids: Array2<f64>,
    /// The same, and the population standard deviation of each cluster's rows, in the unit of `Scale::linear`.
    pub linear: Array2<f64>,
    pub spread: Array2<f64>,
    /// Number of rows of each cluster.
    pub sizes: Vec<u64>,
    /// The cluster of each row.
    pub labels: Vec<u32>,
}

/// Clusters columns of equal length into `k` clusters, or into fewer if there are fewer distinct rows.
///
/// # Errors
/// If the columns or `k` cannot be clustered.
pub fn fit_for_request(
    (names, scalings): (&[String], &[Scaling]),
    columns: &[Float64Array],
    k: usize,
) -> Result<RequestFit, RequestFitError> {
    let scale = Scale::measure_as(names, columns, scalings, processors())?;
    let points = Points::new(&scale, columns);
    let starts = kmeans::starts_for(points.rows());
    let mut k = k;
    let fit = loop {
        match kmeans::fit(&points, &settings(k, starts), Init::Drawn(None), &|_| {}) {
            Err(kmeans::Error::TooFew { distinct, .. }) if distinct > 0 => k = distinct,
            other => break other?,
        }
    };
    let number = by_features(&fit.centroids);
    let Fit { centroids, sizes, .. } = renumbered(fit, &number);
    let spread = kmeans::spread(&points, &centroids, processors());
    let labels = kmeans::assign(&points, &centroids, processors()).into_iter().map(u32::from).collect();
    let linear = scale.linear_centroids(&centroids);
    Ok(RequestFit { predictor: Predictor::new(scale, &centroids), centroids, linear, spread, sizes, labels })
}

/// The reason why rows of a request could not be clustered.
#[derive(Debug, thiserror::Error)]
pub enum RequestFitError {
    #[error(transparent)]
    Features(#[from] features::Error),
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_a_request_get_their_own_clusters() {
        let names = ["price".to_owned(), "rating".to_owned()];
        let columns = [Float64Array::from(vec![300.0, 1200.0, 700.0]), Float64Array::from(vec![4.5, 3.5, 4.0])];
        let standard = [Scaling::default(); 2];
        let found = fit_for_request((&names, &standard), &columns, 3).unwrap();
        assert_eq!(found.labels, [0, 2, 1]);
        let two = [Float64Array::from(vec![60.0, 25.0, 60.0])];
        assert_eq!(fit_for_request((&names[..1], &standard[..1]), &two, 3).unwrap().labels, [1, 0, 1]);
    }
}
