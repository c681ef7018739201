//! KMeans in the conventions of linfa: a fitted model, and the traits for fitting and prediction.
//!
//! All work is done by the engine ([`crate::fit`], [`crate::assign`]).

use linfa::traits::{Fit, PredictInplace, Transformer};
use linfa::{DatasetBase, ParamGuard as _};
use ndarray::{Array1, Array2, ArrayBase, Axis, Data, Ix1, Ix2};

use crate::column::Column;
use crate::features::{self, Scale};
use crate::parallel::{by_chunk, processors};
use crate::params::{KMeansInit, KMeansParams, KMeansParamsError, KMeansValidParams};
use crate::{Error, Init, MAX_FEATURES, Points, assign, check_rows, flat};

/// Error of fitting or applying a [`KMeans`] model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KMeansError {
    /// A hyperparameter is invalid.
    #[error("invalid hyperparameter: {0}")]
    InvalidParams(#[from] KMeansParamsError),
    /// There are no rows or no columns.
    #[error("there are no rows")]
    NoRows,
    /// More columns than [`MAX_FEATURES`].
    #[error("{0} features are more than {MAX_FEATURES}")]
    TooManyFeatures(usize),
    /// Columns have different lengths.
    #[error("column {column} has {found} rows, and the first has {rows}")]
    Lengths {
        /// Index of the column.
        column: usize,
        /// Its number of rows.
        found: usize,
        /// Number of rows of the first column.
        rows: usize,
    },
    /// Precomputed centroids, or the model, have another number of features than the columns.
    #[error("the centroids have {centroids} features, and the rows have {rows}")]
    Features {
        /// Features of the centroids.
        centroids: usize,
        /// Features of the rows.
        rows: usize,
    },
    /// A column cannot be measured. Columns are named by their indices, from 0.
    #[error(transparent)]
    Columns(#[from] features::Error),
    /// The engine found no clusters.
    #[error(transparent)]
    Fit(#[from] Error),
    /// Required by [`linfa::traits::Fit`].
    #[error(transparent)]
    Linfa(#[from] linfa::Error),
}

/// A fitted KMeans model over f64 features.
///
/// Rows are assigned to the nearest centroid by Euclidean distance, in the units of the columns or, with
/// [`KMeansParams::standardise`], in standard deviations of each feature.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeans {
    centroids: Array2<f64>,
    cluster_count: Array1<f64>,
    inertia: f64,
    iterations: usize,
    scale: Scale,
    standardised: bool,
}

impl KMeans {
    /// Hyperparameters for `n_clusters` clusters, from 1 to [`MAX_CLUSTERS`](crate::MAX_CLUSTERS).
    pub fn params(n_clusters: usize) -> KMeansParams {
        KMeansParams::new(n_clusters)
    }

    /// Centroids, `(n_clusters, n_features)`, in the units of the columns.
    pub fn centroids(&self) -> &Array2<f64> {
        &self.centroids
    }

    /// Number of rows of each cluster in the fit, `(n_clusters,)`.
    pub fn cluster_count(&self) -> &Array1<f64> {
        &self.cluster_count
    }

    /// Mean over the rows of the squared distance to the nearest centroid, as in linfa-clustering. In squared units of the
    /// columns; with [`KMeansParams::standardise`] without a unit.
    pub fn inertia(&self) -> f64 {
        self.inertia
    }

    /// Passes of the best descent.
    pub fn n_iterations(&self) -> usize {
        self.iterations
    }

    /// The scale of the fit: it standardises rows and replaces nulls.
    pub fn scale(&self) -> &Scale {
        &self.scale
    }

    pub(crate) fn fit(params: &KMeansValidParams, columns: Vec<Column<'_>>) -> Result<Self, KMeansError> {
        let rows = check_columns(&columns)?;
        if rows == 0 {
            return Err(KMeansError::NoRows);
        }
        let init = match params.init_method() {
            KMeansInit::KMeansPlusPlus => Init::Drawn(None),
            KMeansInit::Precomputed(centroids) if centroids.ncols() == columns.len() => Init::Given(centroids),
            KMeansInit::Precomputed(centroids) => {
                return Err(KMeansError::Features { centroids: centroids.ncols(), rows: columns.len() });
            }
        };
        check_rows(rows)?;
        let mut settings = params.settings();
        let names: Vec<String> = (0..columns.len()).map(|feature| feature.to_string()).collect();
        let mut scale = Scale::measure_columns(&names, &columns, settings.threads)?;
        let standardised = params.standardise();
        if !standardised {
            scale = scale.isotropic();
            settings.limits.tolerance *= scale.mean_variance();
        }
        let fit = crate::fit(&Points::of(&scale, columns), &settings, init, &|_| {})?;
        let cluster_count = fit.sizes.iter().map(|&size| size as f64).collect();
        let mut model = Self {
            centroids: fit.centroids,
            cluster_count,
            inertia: 0.0,
            iterations: fit.iterations,
            scale,
            standardised,
        };
        model.inertia = model.squared_distance(fit.inertia / rows as f64);
        Ok(model)
    }

    /// Clusters of rows in columns of the same length, `(n_rows,)`. Contiguous columns are not copied. Nulls count as the
    /// mean of the fit, NaN as nearest to cluster 0.
    ///
    /// # Errors
    /// [`KMeansError::Lengths`] and [`KMeansError::Features`].
    pub fn predict_columns<'a, C>(&self, columns: &'a [C]) -> Result<Array1<usize>, KMeansError>
    where
        Column<'a>: From<&'a C>,
    {
        let columns: Vec<Column<'a>> = columns.iter().map(Column::from).collect();
        check_columns(&columns)?;
        if columns.len() != self.centroids.ncols() {
            return Err(KMeansError::Features { centroids: self.centroids.ncols(), rows: columns.len() });
        }
        Ok(self.labels(columns).into_iter().map(usize::from).collect())
    }

    fn labels(&self, columns: Vec<Column<'_>>) -> Vec<u8> {
        assign(&Points::of(&self.scale, columns), &self.centroids, processors())
    }

    /// Converts a squared distance of the engine to the units of the columns, unless features are standardised.
    fn squared_distance(&self, squared: f64) -> f64 {
        match self.scale.inverse.first() {
            Some(inverse) if !self.standardised => squared / inverse / inverse,
            _ => squared,
        }
    }

    /// # Panics
    /// If the matrix has another number of columns than the centroids.
    fn columns<'a, D: Data<Elem = f64>>(&self, records: &'a ArrayBase<D, Ix2>) -> Vec<Column<'a>> {
        assert_eq!(records.ncols(), self.centroids.ncols(), "rows and centroids must have the same number of features");
        columns(records)
    }
}

fn columns<D: Data<Elem = f64>>(records: &ArrayBase<D, Ix2>) -> Vec<Column<'_>> {
    records.columns().into_iter().map(Column::from).collect()
}

/// The number of rows.
fn check_columns(columns: &[Column<'_>]) -> Result<usize, KMeansError> {
    if columns.len() > MAX_FEATURES {
        return Err(KMeansError::TooManyFeatures(columns.len()));
    }
    let rows = columns.first().map_or(0, Column::len);
    match columns.iter().position(|column| column.len() != rows) {
        Some(column) => Err(KMeansError::Lengths { column, found: columns[column].len(), rows }),
        None => Ok(rows),
    }
}

impl KMeansParams {
    /// Checks the parameters and fits columns: see [`KMeansValidParams::fit_columns`].
    ///
    /// # Errors
    /// [`KMeansError`].
    pub fn fit_columns<'a, C>(&self, columns: &'a [C]) -> Result<KMeans, KMeansError>
    where
        Column<'a>: From<&'a C>,
    {
        self.check_ref()?.fit_columns(columns)
    }
}

impl KMeansValidParams {
    /// Fits columns of the same length, one per feature: Arrow's [`Float64Array`](arrow_array::Float64Array) or ndarray's
    /// [`ndarray::ArrayView1`]. Contiguous columns are not copied. Nulls count as the mean of their column.
    ///
    /// # Errors
    /// [`KMeansError`], except [`KMeansError::InvalidParams`].
    pub fn fit_columns<'a, C>(&self, columns: &'a [C]) -> Result<KMeans, KMeansError>
    where
        Column<'a>: From<&'a C>,
    {
        KMeans::fit(self, columns.iter().map(Column::from).collect())
    }
}

impl<D: Data<Elem = f64>, T> Fit<ArrayBase<D, Ix2>, T, KMeansError> for KMeansValidParams {
    type Object = KMeans;

    /// Fits the records, `(n_rows, n_features)`. The columns of a column-major matrix are borrowed, those of a row-major
    /// matrix copied. Targets and weights of the dataset have no effect, as in linfa-clustering.
    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<KMeans, KMeansError> {
        KMeans::fit(self, columns(dataset.records()))
    }
}

impl<D: Data<Elem = f64>> PredictInplace<ArrayBase<D, Ix2>, Array1<usize>> for KMeans {
    /// Stores the cluster of each row of `records`, `(n_rows, n_features)`, in `clusters`, `(n_rows,)`.
    ///
    /// # Panics
    /// If the numbers of rows or of features differ.
    fn predict_inplace(&self, records: &ArrayBase<D, Ix2>, clusters: &mut Array1<usize>) {
        assert_eq!(records.nrows(), clusters.len(), "there must be one cluster for each row");
        let labels = self.labels(self.columns(records));
        clusters.iter_mut().zip(labels).for_each(|(cluster, label)| *cluster = usize::from(label));
    }

    fn default_target(&self, records: &ArrayBase<D, Ix2>) -> Array1<usize> {
        Array1::zeros(records.nrows())
    }
}

impl<D: Data<Elem = f64>> PredictInplace<ArrayBase<D, Ix1>, usize> for KMeans {
    /// Stores the cluster of one row, `(n_features,)`.
    ///
    /// # Panics
    /// If the number of features differs.
    fn predict_inplace(&self, row: &ArrayBase<D, Ix1>, cluster: &mut usize) {
        let row = row.view().insert_axis(Axis(0));
        let labels = self.labels(self.columns(&row));
        *cluster = labels.first().copied().map_or(0, usize::from);
    }

    fn default_target(&self, _: &ArrayBase<D, Ix1>) -> usize {
        0
    }
}

impl<D: Data<Elem = f64>> Transformer<&ArrayBase<D, Ix2>, Array1<f64>> for KMeans {
    /// Squared distance of each row of `records`, `(n_rows, n_features)`, to its centroid, `(n_rows,)`, in the units of
    /// [`KMeans::inertia`].
    ///
    /// # Panics
    /// If the number of features differs.
    fn transform(&self, records: &ArrayBase<D, Ix2>) -> Array1<f64> {
        let points = Points::of(&self.scale, self.columns(records));
        let centroids = points.standardised(&flat(&self.centroids));
        let chunks = by_chunk(points.rows(), processors(), |rows| {
            let mut distances = Vec::with_capacity(rows.len());
            points.each_nearest(rows, &centroids, |_, _, squared| {
                distances.extend(squared.iter().map(|&squared| self.squared_distance(squared)));
            });
            distances
        });
        chunks.concat().into()
    }
}

#[cfg(test)]
mod tests;
