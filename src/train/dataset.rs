//! The rows of a segmentation, shared by all its slices.
//!
//! Input: the segmentation's view. Output: the operations of a training on its rows, per slice ([`Rows`], [`Prefix`]). In this
//! process the rows are columns, in memory or out of core in a column buffer: of records in slice order, so that a slice is a
//! prefix and is not copied (record_rows.rs); of entities per slice (entities.rs). On a cluster the rows are a file
//! (distributed.rs).

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Array as _, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::prelude::SessionContext;
use ndarray::Array2;
use sha2::{Digest as _, Sha256};
use tercile_kmeans::column_buffer;
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Chosen, Fit, Init, Points, Profile, Settings, Step};
use tercile_store::Snapshot;

use super::Refusal;
use super::comparison::{Counts, Versus};
use crate::fit::solver_of;
use crate::model::{MovedBy, SolverKind, baseline};
use crate::printable::hex;
use crate::slices::Cut;
use crate::sql::{Files, Segmentation};

pub(super) type Digested = [u8; 32];

/// All rows of a segmentation, ordered by slice and then in stream order.
pub(super) trait Rows: Send {
    /// Rows of slices 1 to `slice`. Fails if a record occurs twice.
    fn up_to(&self, slice: u8) -> Result<Box<dyn Prefix + '_>, Refusal>;
    /// The rows that slices `slice - 1` and `slice` have in common, by their cluster in the former's model and in the latter's.
    fn moved(&self, slice: u8, old: Placed<'_>, new: Placed<'_>) -> Result<Option<Moved>, Refusal>;
    /// Duration of the SQL.
    fn took(&self) -> Duration;
}

/// Rows by their cluster in an older model (outer) and in a newer one (inner).
pub(super) struct Moved {
    pub all: Vec<Vec<u64>>,
    /// Of entities: the two steps.
    pub by: Option<MovedBy>,
}

/// The rows of one slice.
pub(super) trait Prefix {
    fn rows(&self) -> usize;
    /// Of entities: the number of rows of the view without a key, which are left out.
    fn without_key(&self) -> Option<u64> {
        None
    }
    /// The number of rows in which each feature is missing.
    fn missing(&self) -> Vec<u64>;
    /// SHA-256, in hex, of the SHA-256s of pieces of 65,536 rows.
    fn hash(&self) -> String;
    fn scale(&self, of: &Segmentation) -> Result<Scale, Refusal>;
    fn fit(
        &self,
        scale: &Scale,
        by: (&Settings, SolverKind),
        warm: Option<&Array2<f64>>,
        watch: &(dyn Fn(Step) + Sync),
    ) -> Result<Fit, Refusal>;
    /// Spread and quartiles of the rows nearest to each centroid (k by features, in original units).
    fn profile(&self, scale: &Scale, centroids: &Array2<f64>) -> Result<Profile, Refusal>;
    /// The number of rows in each pair of clusters of one model (outer) and another (inner).
    fn cross(&self, old: Placed<'_>, new: Placed<'_>) -> Result<Vec<Vec<u64>>, Refusal>;
    /// Of entities: keys, features, cluster and distance. `placed` are the model's centroids.
    fn members(&self, _: &Segmentation, _placed: Placed<'_>) -> Result<Option<RecordBatch>, Refusal> {
        Ok(None)
    }
    /// Counts the rows that a serving model knows, and those that are unlike its rows.
    fn compare(&self, versus: &Versus<'_>) -> Result<Counts, Refusal>;
    /// The features of at most [`baseline::MOST`] evenly spaced rows; all rows if there are no more.
    fn evenly(&self) -> Vec<Float64Array>;
    /// The sample stored with the model, after clustering (kmeans/sample.rs).
    fn sample(&self, scale: &Scale, fit: &Fit) -> Result<Sample, Refusal>;
}

/// Centroids in original units, and the scale that standardises rows for them.
pub(super) type Placed<'a> = (&'a Scale, &'a Array2<f64>);

/// A sample of the rows.
pub(super) struct Sample {
    /// Partitions and offsets of the records; `None` for entities.
    pub places: Option<(Int32Array, Int64Array)>,
    pub features: Vec<Float64Array>,
    /// The chosen rows, their clusters, and the number of rows that each represents.
    pub chosen: Chosen,
}

/// What a training reads: a session on the whole stream, and what a session on one slice needs.
#[derive(Clone)]
pub(super) struct Input {
    pub ctx: SessionContext,
    pub snapshot: Snapshot,
    pub files: Files,
    pub cuts: Arc<Vec<Cut>>,
}

/// The hash of all rows, computed from the digests of pieces.
pub(super) fn hash_of<'a>(pieces: impl IntoIterator<Item = &'a Digested>) -> String {
    let mut hasher = Sha256::new();
    pieces.into_iter().for_each(|piece| hasher.update(piece));
    hex(&hasher.finalize())
}

/// The keys of the rows of a slice, and the operations that depend on them: records (record_rows.rs) or entities (entities.rs).
pub(super) trait Keys: Sync {
    fn without_key(&self) -> Option<u64> {
        None
    }
    fn members(&self, _: &Segmentation, _placed: Placed<'_>) -> Result<Option<RecordBatch>, Refusal> {
        Ok(None)
    }
    /// As [`Prefix::hash`], of the first `rows` rows.
    fn hash(&self, rows: usize) -> String;
    /// As [`Prefix::compare`]; `features` are the columns of the slice.
    fn compare(&self, features: &[Float64Array], versus: &Versus<'_>) -> Result<Counts, Refusal>;
    /// Partitions and offsets of rows, if they are records.
    fn places(&self, _rows: &[u32]) -> Option<(Int32Array, Int64Array)> {
        None
    }
}

/// The rows of one slice in columns of this process.
pub(super) struct LocalSlice<'a> {
    pub keys: &'a dyn Keys,
    pub features: Vec<Float64Array>,
    pub rows: usize,
}

impl Prefix for LocalSlice<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn missing(&self) -> Vec<u64> {
        self.features.iter().map(|column| column.null_count() as u64).collect()
    }

    fn without_key(&self) -> Option<u64> {
        self.keys.without_key()
    }

    fn members(&self, segmentation: &Segmentation, placed: Placed<'_>) -> Result<Option<RecordBatch>, Refusal> {
        self.keys.members(segmentation, placed)
    }

    fn hash(&self) -> String {
        self.keys.hash(self.rows)
    }

    fn scale(&self, of: &Segmentation) -> Result<Scale, Refusal> {
        Ok(Scale::measure_as(&of.features, &self.features, &of.scaling, processors())?)
    }

    fn fit(
        &self,
        scale: &Scale,
        (settings, solver): (&Settings, SolverKind),
        warm: Option<&Array2<f64>>,
        watch: &(dyn Fn(Step) + Sync),
    ) -> Result<Fit, Refusal> {
        Ok(solver_of(solver, scale, &self.features).fit(settings, Init::Drawn(warm), watch)?)
    }

    fn profile(&self, scale: &Scale, centroids: &Array2<f64>) -> Result<Profile, Refusal> {
        Ok(kmeans::profile(&Points::new(scale, &self.features), centroids, processors()))
    }

    fn cross(&self, (old, from): Placed<'_>, (new, to): Placed<'_>) -> Result<Vec<Vec<u64>>, Refusal> {
        let (old, new) = (Points::new(old, &self.features), Points::new(new, &self.features));
        Ok(kmeans::cross((&old, from), (&new, to), processors()))
    }

    fn compare(&self, versus: &Versus<'_>) -> Result<Counts, Refusal> {
        self.keys.compare(&self.features, versus)
    }

    fn evenly(&self) -> Vec<Float64Array> {
        if self.rows <= baseline::MOST {
            return self.features.clone();
        }
        let rows = column_buffer::evenly(self.rows, baseline::MOST);
        self.features.iter().map(|column| column_buffer::take(column, &rows)).collect()
    }

    fn sample(&self, scale: &Scale, fit: &Fit) -> Result<Sample, Refusal> {
        let points = Points::new(scale, &self.features);
        let chosen = kmeans::sample(&points, &fit.centroids, &fit.sizes, processors());
        Ok(Sample {
            places: self.keys.places(&chosen.rows),
            features: self.features.iter().map(|column| column_buffer::take(column, &chosen.rows)).collect(),
            chosen,
        })
    }
}
