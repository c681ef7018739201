//! KMeans of linfa-clustering, as a reference solver.
//!
//! Input: a rows × features matrix of standardised values. Output: linfa's centroids, standardised. linfa counts each old
//! centroid as one more row of its cluster, so its centroids only approach the means; the caller polishes them.

use linfa::DatasetBase;
use linfa::traits::Fit as _;
use linfa_clustering::{KMeans, KMeansError, KMeansInit};
use ndarray::{Array2, ArrayView2};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::{Error, Settings};

/// Fits k clusters to `rows` (rows × features, standardised), which are borrowed. Starts from the centroids `init` (k ×
/// features, standardised), or `settings.starts` times from linfa's k-means++. A tolerance below 1e-6 is raised to it.
///
/// # Errors
/// [`Error::Linfa`] for invalid parameters, [`Error::LinfaGaveUp`] if linfa finds no finite inertia.
pub fn fit(rows: ArrayView2<'_, f64>, init: Option<Array2<f64>>, settings: &Settings) -> Result<Array2<f64>, Error> {
    let runs = if init.is_some() { 1 } else { settings.starts };
    let init = init.map_or(KMeansInit::KMeansPlusPlus, KMeansInit::Precomputed);
    let model = KMeans::params_with_rng(settings.k, Xoshiro256PlusPlus::seed_from_u64(settings.seed))
        .init_method(init)
        .n_runs(runs)
        .max_n_iterations(settings.limits.iterations as u64)
        .tolerance(settings.limits.tolerance.max(1e-6))
        .fit(&DatasetBase::from(rows));
    match model {
        Ok(model) => Ok(model.centroids().clone()),
        Err(KMeansError::InvalidParams(error)) => Err(error.into()),
        Err(error) => Err(Error::LinfaGaveUp(error.to_string())),
    }
}
