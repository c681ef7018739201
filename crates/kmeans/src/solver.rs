//! One interface for implementations of KMeans.
//!
//! A solver has its rows and finds clusters of them: [`Passes`] with the passes of this crate, [`Linfa`] with linfa-clustering, and
//! the crate `cluster` with queries over rows on other machines.

use arrow_array::Float64Array;
use ndarray::Array2;

use super::features::{Matrix, Scale};
use super::{Error, Fit, Init, Points, Settings, Step, distinct, fit, linfa_solver, measure};

/// Finds k clusters of rows that it has.
pub trait Solver {
    /// Error of a fit.
    type Error;

    /// Fits clusters. May call `watch` after each pass over all rows.
    ///
    /// # Errors
    /// If the rows have no such clusters, or cannot be read.
    fn fit(&self, settings: &Settings, init: Init<'_>, watch: &(dyn Fn(Step) + Sync)) -> Result<Fit, Self::Error>;
}

/// The passes of this crate over rows in this process.
pub struct Passes<'a>(pub Points<'a>);

impl Solver for Passes<'_> {
    type Error = Error;

    fn fit(&self, settings: &Settings, init: Init<'_>, watch: &(dyn Fn(Step) + Sync)) -> Result<Fit, Error> {
        fit(&self.0, settings, init, watch)
    }
}

/// linfa-clustering, unmodified, over rows in this process, which it needs as a matrix. Sizes and inertia are measured with its
/// centroids. It takes no warm start, and reports no passes.
pub struct Linfa<'a> {
    /// Scale of the columns.
    pub scale: &'a Scale,
    /// One column per feature.
    pub columns: &'a [Float64Array],
}

impl Solver for Linfa<'_> {
    type Error = Error;

    /// # Errors
    /// As [`linfa_solver::fit`], and if linfa leaves a cluster without rows.
    fn fit(&self, settings: &Settings, init: Init<'_>, _: &(dyn Fn(Step) + Sync)) -> Result<Fit, Error> {
        let points = Points::new(self.scale, self.columns);
        let (k, distinct) = (settings.k, distinct(&points, settings.k));
        if distinct < k {
            return Err(Error::TooFew { k, distinct });
        }
        let matrix = Matrix::build(self.scale, self.columns)?;
        let init = match init {
            Init::Drawn(_) => None,
            Init::Given(init) => {
                Some(Array2::from_shape_fn(init.dim(), |(c, f)| self.scale.standardise(f, init[[c, f]])))
            }
        };
        let found = linfa_solver::fit(matrix.view(), init, settings)?;
        let original = Array2::from_shape_fn(found.dim(), |(c, f)| points.restore(f, found[[c, f]]));
        let fit = measure(&points, original, settings.threads);
        match fit.sizes.iter().position(|&size| size == 0) {
            None => Ok(fit),
            Some(cluster) => Err(Error::LinfaGaveUp(format!("its cluster {cluster} has no rows"))),
        }
    }
}
