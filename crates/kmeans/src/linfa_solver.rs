//! The same job through linfa-clustering, as a reference.
//!
//! Input: one fixed-size-list column without nulls, seen as a matrix. Output: linfa's centroids, standardised. linfa counts
//! each old centroid as one more row, so it creeps towards the means; whoever calls polishes what comes out.

use linfa::DatasetBase;
use linfa::traits::Fit as _;
use linfa_clustering::{KMeans, KMeansError, KMeansInit};
use ndarray::{Array2, ArrayView2};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::{Error, Settings};

/// Borrows the rows as they are. From given centroids, or from `settings.starts` of linfa's own k-means++.
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
