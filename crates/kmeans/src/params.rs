//! Hyperparameters of [`KMeans`](crate::KMeans), in the conventions of linfa: a builder, and its checked form.
//!
//! Names and defaults follow linfa-clustering's `KMeansParams`. Differences: `tolerance` is relative and may be 0; a seed
//! replaces the random number generator; `standardise` and `n_threads` are additional.

use linfa::ParamGuard;
use ndarray::Array2;

use crate::parallel::processors;
use crate::{Limits, MAX_CLUSTERS, SEED, Settings};

/// Initial centroids.
#[derive(Debug, Clone, PartialEq)]
pub enum KMeansInit {
    /// Greedy k-means++ with restarts and a genetic search; for one feature the exact optimum.
    KMeansPlusPlus,
    /// These centroids, `(n_clusters, n_features)` in original units. One descent; `n_runs` has no effect.
    Precomputed(Array2<f64>),
}

/// An invalid hyperparameter. Messages begin with the name of the parameter.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KMeansParamsError {
    /// `n_clusters` is out of range.
    #[error("n_clusters must be from 1 to {MAX_CLUSTERS}, and is {0}")]
    NClusters(usize),
    /// `n_runs` is 0.
    #[error("n_runs must be 1 or more, and is 0")]
    NRuns,
    /// `tolerance` is negative, infinite or NaN.
    #[error("tolerance must be 0 or a positive finite number, and is {0}")]
    Tolerance(f64),
    /// `max_n_iterations` is 0.
    #[error("max_n_iterations must be 1 or more, and is 0")]
    MaxIterations,
    /// `n_threads` is 0.
    #[error("n_threads must be 1 or more, and is 0")]
    NThreads,
    /// The number of precomputed centroids is not `n_clusters`.
    #[error("init_method must have n_clusters = {n_clusters} centroids, and has {centroids}")]
    InitClusters {
        /// Requested number of clusters.
        n_clusters: usize,
        /// Number of precomputed centroids.
        centroids: usize,
    },
    /// A precomputed centroid is infinite or NaN.
    #[error("init_method must have finite centroids, and has one at {0}")]
    InitNotFinite(f64),
}

/// Checked hyperparameters of [`KMeans`](crate::KMeans), from [`KMeansParams`].
#[derive(Debug, Clone, PartialEq)]
pub struct KMeansValidParams {
    n_clusters: usize,
    n_runs: usize,
    tolerance: f64,
    max_n_iterations: u64,
    seed: u64,
    init: KMeansInit,
    standardise: bool,
    n_threads: usize,
}

/// Builder of the hyperparameters of [`KMeans`](crate::KMeans), from [`KMeans::params`](crate::KMeans::params).
///
/// `fit` of [`linfa::traits::Fit`] and [`Self::fit_columns`] check the parameters first.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeansParams(KMeansValidParams);

impl KMeansParams {
    /// Defaults for `n_clusters` clusters: `n_runs` 10, `tolerance` 0, `max_n_iterations` 300, `seed` [`SEED`],
    /// `init_method` [`KMeansInit::KMeansPlusPlus`], `standardise` false, `n_threads` the number of processors.
    pub fn new(n_clusters: usize) -> Self {
        Self(KMeansValidParams {
            n_clusters,
            n_runs: 10,
            tolerance: 0.0,
            max_n_iterations: 300,
            seed: SEED,
            init: KMeansInit::KMeansPlusPlus,
            standardise: false,
            n_threads: processors(),
        })
    }

    /// Number of k-means++ restarts, 1 or more.
    pub fn n_runs(mut self, n_runs: usize) -> Self {
        self.0.n_runs = n_runs;
        self
    }

    /// A descent stops when the sum of the squared shifts of all centroids is at most this fraction of the mean variance of
    /// the features, as in scikit-learn. 0: when assignments stop changing.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.0.tolerance = tolerance;
        self
    }

    /// Maximum number of passes of a descent over all rows, 1 or more.
    pub fn max_n_iterations(mut self, max_n_iterations: u64) -> Self {
        self.0.max_n_iterations = max_n_iterations;
        self
    }

    /// Seed of the random number generators. Together with the other parameters and the rows it determines the result,
    /// whatever the number of threads and the instruction set.
    pub fn seed(mut self, seed: u64) -> Self {
        self.0.seed = seed;
        self
    }

    /// Initial centroids.
    pub fn init_method(mut self, init: KMeansInit) -> Self {
        self.0.init = init;
        self
    }

    /// Whether each feature is divided by its population standard deviation, so that all have the same influence. Otherwise
    /// distances are in the units of the columns, as in linfa-clustering.
    pub fn standardise(mut self, standardise: bool) -> Self {
        self.0.standardise = standardise;
        self
    }

    /// Number of threads, 1 or more. The result does not depend on it.
    pub fn n_threads(mut self, n_threads: usize) -> Self {
        self.0.n_threads = n_threads;
        self
    }
}

impl ParamGuard for KMeansParams {
    type Checked = KMeansValidParams;
    type Error = KMeansParamsError;

    fn check_ref(&self) -> Result<&KMeansValidParams, KMeansParamsError> {
        let Self(params) = self;
        if !(1..=MAX_CLUSTERS).contains(&params.n_clusters) {
            return Err(KMeansParamsError::NClusters(params.n_clusters));
        }
        if params.n_runs == 0 {
            return Err(KMeansParamsError::NRuns);
        }
        if !(params.tolerance >= 0.0 && params.tolerance.is_finite()) {
            return Err(KMeansParamsError::Tolerance(params.tolerance));
        }
        if params.max_n_iterations == 0 {
            return Err(KMeansParamsError::MaxIterations);
        }
        if params.n_threads == 0 {
            return Err(KMeansParamsError::NThreads);
        }
        if let KMeansInit::Precomputed(centroids) = &params.init {
            if centroids.nrows() != params.n_clusters {
                let (n_clusters, centroids) = (params.n_clusters, centroids.nrows());
                return Err(KMeansParamsError::InitClusters { n_clusters, centroids });
            }
            if let Some(value) = centroids.iter().find(|value| !value.is_finite()) {
                return Err(KMeansParamsError::InitNotFinite(*value));
            }
        }
        Ok(params)
    }

    fn check(self) -> Result<KMeansValidParams, KMeansParamsError> {
        self.check_ref()?;
        Ok(self.0)
    }
}

impl KMeansValidParams {
    /// Number of clusters.
    pub fn n_clusters(&self) -> usize {
        self.n_clusters
    }

    /// Number of k-means++ restarts.
    pub fn n_runs(&self) -> usize {
        self.n_runs
    }

    /// Relative tolerance: see [`KMeansParams::tolerance`].
    pub fn tolerance(&self) -> f64 {
        self.tolerance
    }

    /// Maximum number of passes of a descent.
    pub fn max_n_iterations(&self) -> u64 {
        self.max_n_iterations
    }

    /// Seed of the random number generators.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Initial centroids.
    pub fn init_method(&self) -> &KMeansInit {
        &self.init
    }

    /// Whether features are standardised.
    pub fn standardise(&self) -> bool {
        self.standardise
    }

    /// Number of threads.
    pub fn n_threads(&self) -> usize {
        self.n_threads
    }

    /// The engine's parameters.
    pub(crate) fn settings(&self) -> Settings {
        let iterations = usize::try_from(self.max_n_iterations).unwrap_or(usize::MAX);
        let limits = Limits { iterations, tolerance: self.tolerance };
        Settings { k: self.n_clusters, seed: self.seed, starts: self.n_runs, limits, threads: self.n_threads }
    }
}
