//! KMeans over Arrow columns: exact for one feature, a genetic search over k-means++ restarts for several, and passes over
//! columns that may be larger than memory.
//!
//! # Example
//!
//! [`KMeans`] follows the conventions of linfa. It fits Arrow columns without copying them:
//!
//! ```
//! use arrow_array::Float64Array;
//! use ndarray::array;
//! use tercile_kmeans::KMeans;
//!
//! let age = Float64Array::from(vec![20.0, 22.0, 41.0, 43.0]);
//! let spent = Float64Array::from(vec![Some(100.0), Some(110.0), None, Some(890.0)]);
//! let model = KMeans::params(2).n_runs(20).standardise(true).seed(7).fit_columns(&[age, spent])?;
//! assert_eq!(model.cluster_count(), array![2.0, 2.0]);
//!
//! let clusters = model.predict_columns(&[array![21.0, 44.0].view(), array![105.0, 900.0].view()])?;
//! assert_ne!(clusters[0], clusters[1]);
//! # Ok::<_, tercile_kmeans::KMeansError>(())
//! ```
//!
//! With linfa's traits it replaces the KMeans of linfa-clustering for matrices of f64:
//!
//! ```
//! use linfa::DatasetBase;
//! use linfa::traits::{Fit, Predict};
//! use ndarray::array;
//! use tercile_kmeans::KMeans;
//!
//! let rows = array![[0.0, 1.0], [0.0, 3.0], [9.0, 1.0], [9.0, 3.0]];
//! let model = KMeans::params(2).tolerance(1e-4).max_n_iterations(100).fit(&DatasetBase::from(rows))?;
//! assert_eq!(model.centroids().dim(), (2, 2));
//! assert_eq!(model.inertia(), 1.0);
//!
//! let cluster = model.predict(&array![8.0, 2.0]);
//! assert_eq!(model.centroids().row(cluster), array![9.0, 2.0]);
//! # Ok::<_, tercile_kmeans::KMeansError>(())
//! ```
//!
//! # Shapes and units
//!
//! | value | shape | unit |
//! |---|---|---|
//! | columns | one per feature, at most [`MAX_FEATURES`], each `(n_rows,)`, at most [`MAX_ROWS`] | original: any, one per feature |
//! | matrix of records | `(n_rows, n_features)`; column-major is borrowed, row-major is copied | original |
//! | centroids | `(n_clusters, n_features)`, at most [`MAX_CLUSTERS`] | original |
//! | clusters | `(n_rows,)`, from 0 to `n_clusters` - 1 | |
//! | [`KMeans::inertia`] | mean squared distance | original², or none with [`KMeansParams::standardise`] |
//! | [`Fit::inertia`] | sum of squared distances | none: always standardised |
//!
//! Standardised values are (x - origin) / standard deviation ([`features::Scale`]). Nulls count as the mean of their
//! column; NaN and infinite values are an error. Arrow becomes ndarray in [`column_view`]: an [`ArrayView1`] of the
//! column's own buffer.
//!
//! The result depends on the rows and the parameters alone, to the bit: not on the number of threads and not on the
//! instruction set.
//!
//! # Engine
//!
//! [`Points`] are columns with a scale; [`fit`] returns k centroids, their sizes and the inertia. [`KMeans`] calls it.
//!
//! - One feature: dynamic programming finds the optimum (exact_1d.rs; Wang and Song 2011, Grønlund et al. 2017).
//! - Several features: up to 65,536 rows are grouped into distinct weighted points; more are represented by a coreset that keeps
//!   rare rows (coreset.rs; Feldman and Langberg 2011). Greedy k-means++ (kmeans_plus_plus.rs; Arthur and Vassilvitskii 2007) and
//!   a genetic search (search.rs; Gribel and Vidal 2019) with Hungarian matching (hungarian.rs; Kuhn 1955, Munkres 1957) find
//!   candidates (restarts.rs).
//! - Passes over all rows evaluate the candidates and polish the best until assignments stop changing (lloyd.rs; Lloyd 1982), with
//!   vectorised kernels (points.rs, kernel.rs) that skip rows by bounds (hamerly.rs; Hamerly 2010).
//! - Quality: [`silhouette`] (Rousseeuw 1987), [`davies_bouldin`] (1979) and [`calinski_harabasz`] (1974).
//!
//! Full references are in the documentation of the modules and functions.

#![warn(missing_docs)]

mod assignment;
mod column;
pub mod column_buffer;
mod coreset;
mod distances;
mod distributed;
mod exact_1d;
mod exact_1d_costs;
pub mod features;
mod hamerly;
mod hamerly_kernel;
mod hungarian;
mod kernel;
mod kmeans_plus_plus;
pub mod linfa_solver;
mod lloyd;
mod metrics;
mod model;
pub mod parallel;
mod params;
mod points;
mod profile;
mod quartile;
mod restarts;
mod sample;
mod search;
mod solver;
mod totals;

use arrow_array::Float64Array;
pub use assignment::{assign, cross, measure, nearest};
pub use column::Column;
pub use coreset::Rates;
pub use distributed::{Coreset, Elsewhere, SURELY, Worst, fit_elsewhere, start_rows};
pub use hungarian::match_rows;
pub use kmeans_plus_plus::{SEED, further};
pub use lloyd::{Limits, Step};
pub use metrics::{calinski_harabasz, davies_bouldin, silhouette};
pub use model::{KMeans, KMeansError};
use ndarray::{Array2, ArrayView1};
pub use params::{KMeansInit, KMeansParams, KMeansParamsError, KMeansValidParams};
pub use points::Points;
pub use profile::{Profile, profile, spread};
pub use sample::{Chosen, sample, sample_rows};
pub use sample::{of_cluster, rare};
pub use solver::{Linfa, Passes, Solver};
pub use totals::Totals;

/// Error of a fit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fewer distinct rows than clusters.
    #[error("{k} clusters need at least {k} different rows, there are {distinct}")]
    TooFew {
        /// Requested number of clusters.
        k: usize,
        /// Distinct rows.
        distinct: usize,
    },
    /// More rows than [`MAX_ROWS`].
    #[error("{rows} rows are more than the {MAX_ROWS} that can be told apart here; let the SQL keep a part of them")]
    TooMany {
        /// Rows of the input.
        rows: usize,
    },
    /// linfa-clustering rejected the parameters ([`linfa_solver`]).
    #[error("linfa refused the parameters: {0}")]
    Linfa(#[from] linfa_clustering::KMeansParamsError),
    /// linfa-clustering found no clusters ([`linfa_solver`]).
    #[error("linfa gave up: {0}")]
    LinfaGaveUp(String),
    /// The matrix that linfa-clustering needs cannot be built.
    #[error(transparent)]
    Matrix(#[from] features::Error),
}

/// Maximum number of features: kernels and masks of missing values have this size.
pub const MAX_FEATURES: usize = 32;
// A mask of missing values has one bit per feature.
const _: () = assert!(MAX_FEATURES <= u32::BITS as usize);

/// Maximum number of rows: samples and restarts index rows with 32 bits.
pub const MAX_ROWS: usize = u32::MAX as usize;

/// Maximum number of clusters: labels have 8 bits.
pub const MAX_CLUSTERS: usize = 256;

/// The values of an Arrow column as an ndarray view of the same buffer, `(n_rows,)`, without a copy. Values of nulls are
/// arbitrary.
pub fn column_view(column: &Float64Array) -> ArrayView1<'_, f64> {
    ArrayView1::from(&column.values()[..])
}

/// Checks a number of rows.
///
/// # Errors
/// [`Error::TooMany`] above [`MAX_ROWS`].
pub fn check_rows(rows: usize) -> Result<(), Error> {
    if rows <= MAX_ROWS { Ok(()) } else { Err(Error::TooMany { rows }) }
}

/// Number of solutions that are polished on all rows: `POLISHED_ROWS` / rows, from 1 to `MOST_POLISHED`.
const POLISHED_ROWS: usize = 4_000_000;
const MOST_POLISHED: usize = 8;

/// Parameters of a fit. Together with the rows they determine the result.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Number of clusters, from 1 to [`MAX_CLUSTERS`].
    pub k: usize,
    /// Seed of the random number generators.
    pub seed: u64,
    /// Number of k-means++ restarts.
    pub starts: usize,
    /// Stopping criteria.
    pub limits: Limits,
    /// Number of threads. The result does not depend on it.
    pub threads: usize,
}

/// Initial centroids.
#[derive(Debug, Clone, Copy)]
pub enum Init<'a> {
    /// k-means++ restarts, and optionally one warm start from these centroids (k × features, original units).
    Drawn(Option<&'a Array2<f64>>),
    /// These centroids only (k × features, original units).
    Given(&'a Array2<f64>),
}

/// Result of a fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// k × features, in original units: the mean of each cluster's rows.
    pub centroids: Array2<f64>,
    /// Number of rows of each cluster; total weight where rows have weights.
    pub sizes: Vec<u64>,
    /// Sum of squared distances of the rows to their centroids, in standardised units.
    pub inertia: f64,
    /// Passes of the best restart and of the polish.
    pub iterations: usize,
}

/// Default number of restarts for a number of rows, from 10 to 1,000: small data has many local minima and costs little.
pub fn starts_for(rows: usize) -> usize {
    (2_000_000 / rows.max(1)).clamp(10, 1000)
}

/// Fits k clusters. Requires at least one row, one feature and k ≥ 1. Calls `watch` after each pass over all rows.
///
/// # Errors
/// [`Error::TooFew`] and [`Error::TooMany`].
pub fn fit(
    points: &Points<'_>,
    settings: &Settings,
    init: Init<'_>,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Fit, Error> {
    let Settings { k, seed, starts, limits, threads } = *settings;
    check_rows(points.rows())?;
    let distinct = distinct(points, k);
    if distinct < k {
        return Err(Error::TooFew { k, distinct });
    }
    let until_settled = Limits { tolerance: 0.0, ..limits };
    let begin: Vec<(Vec<f64>, usize)> = match init {
        Init::Given(centroids) => vec![(flat(centroids), 0)],
        Init::Drawn(_) if points.features() == 1 => vec![(exact_1d::best(points, k, threads), 0)],
        Init::Drawn(warm) => {
            let warm = warm.map(flat);
            let job = restarts::Restarts { k, seed, starts, warm: warm.as_deref() };
            let best = restarts::best(points, &job, until_settled, threads);
            best.into_iter().map(|outcome| (outcome.centroids, outcome.iterations)).collect()
        }
    };
    let (best, before) = polished(points, begin, limits, threads, watch);
    let features = points.features();
    Ok(Fit {
        centroids: Array2::from_shape_fn((k, features), |(cluster, feature)| {
            best.centroids[cluster * features + feature]
        }),
        sizes: best.weights.iter().map(|&weight| weight.round() as u64).collect(),
        inertia: best.inertia,
        iterations: before + best.iterations,
    })
}

/// Polishes candidate solutions by Lloyd passes over all rows and returns the best one, with the passes that its candidate
/// took before. A candidate is centroids and a number of passes. One pass evaluates each candidate on all rows; the best
/// candidates are polished, more of them where there are fewer rows.
fn polished(
    points: &Points<'_>,
    begin: Vec<(Vec<f64>, usize)>,
    limits: Limits,
    threads: usize,
    watch: &(dyn Fn(Step) + Sync),
) -> (lloyd::Outcome, usize) {
    let several = begin.len() > 1;
    let cost = |centroids: &[f64]| if several { points.pass(centroids, threads).inertia } else { 0.0 };
    let mut begin: Vec<_> =
        begin.into_iter().map(|(centroids, before)| (cost(&centroids), centroids, before)).collect();
    begin.sort_by(|a, b| a.0.total_cmp(&b.0));
    begin.truncate((POLISHED_ROWS / points.rows()).clamp(1, MOST_POLISHED));
    let ends =
        begin.into_iter().map(|(_, centroids, before)| (lloyd::run(points, centroids, limits, threads, watch), before));
    let best = ends.min_by(|a, b| a.0.inertia.total_cmp(&b.0.inertia));
    best.unwrap_or_else(|| unreachable!("there is one or more"))
}

/// Centroids in row-major order.
fn flat(centroids: &Array2<f64>) -> Vec<f64> {
    centroids.iter().copied().collect()
}

/// Number of distinct rows, counted up to k.
fn distinct(points: &Points<'_>, k: usize) -> usize {
    let mut found: Vec<usize> = Vec::with_capacity(k);
    for row in 0..points.rows() {
        let same = |other: &usize| (0..points.features()).all(|f| points.value(f, *other) == points.value(f, row));
        if !found.iter().rev().any(same) {
            found.push(row);
            if found.len() == k {
                break;
            }
        }
    }
    found.len()
}

#[cfg(test)]
mod tests;
