//! The rows of a segmentation, shared by all its slices.
//!
//! Input: the segmentation's view. Output: the operations of a training on its rows, per slice ([`Rows`], [`Prefix`]). In this
//! process the rows are columns in slice order, in memory or out of core in a column buffer, with the end of each slice and
//! hashes of pieces. A slice is a prefix, so no slice is copied. On a cluster the rows are a file (distributed.rs).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use ndarray::Array2;
use sha2::{Digest, Sha256};
use tercile_kmeans::column_buffer::{self, Growing, Space, done_with};
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::{CHUNK, by_chunk, processors};
use tercile_kmeans::{self as kmeans, Chosen, Fit, Init, Points, Profile, Settings, Step};
use tercile_store::{Snapshot, Store};

use super::order::{Order, keys};
use super::promotion::{Counts, Versus};
use super::view_query::query;
use super::{Options, Progress, Refusal, entities};
use crate::engine;
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

/// Runs a segmentation's SQL on the engine that runs the queries.
pub(super) async fn rows(
    input: &Input,
    segmentation: &Segmentation,
    (options, store): (&Options, &Store),
) -> Result<Box<dyn Rows>, engine::Error> {
    if !segmentation.entity.is_empty() {
        return Ok(Box::new(entities::rows(input, segmentation, (options, store)).await?));
    }
    let (ctx, most) = (&input.ctx, input.snapshot.rows() as usize);
    #[cfg(feature = "distributed")]
    if options.engine != engine::cluster::Engine::Local {
        return Ok(Box::new(super::distributed::rows(ctx, segmentation, (options, store)).await?));
    }
    Ok(Box::new(here(ctx, segmentation, (most, options, &options.space(store))).await?))
}

/// Rows in this process.
pub(super) struct Here {
    partitions: Int32Array,
    offsets: Int64Array,
    timestamps: Int64Array,
    features: Vec<Float64Array>,
    order: Order,
    /// One digest per whole chunk.
    pieces: Vec<Digested>,
    took: Duration,
}

async fn here(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    (most, options, space): (usize, &Options, &Space),
) -> Result<Here, engine::Error> {
    let began = Instant::now();
    let view = |why: String| engine::Error::View { file: segmentation.file.clone(), why };
    let spooled = |error: io::Error| view(format!("cannot keep its rows: {error}"));
    let mut growing = Columns::new(segmentation.features.len(), most);
    let mut batches = engine::stream(ctx, &query(segmentation)).await.map_err(|error| named(segmentation, error))?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| view(advised(engine::explain(&e))))?;
        growing.append(&batch).map_err(spooled)?;
        if !space.holds(growing.held()) {
            growing.spill(space).map_err(spooled)?;
        }
        (options.tell)(Progress::Rows { segmentation: &segmentation.name, rows: growing.order.rows() });
    }
    growing.order.look_everywhere(ctx, segmentation).await?;
    let finished = tokio::task::spawn_blocking(move || growing.finish());
    let mut rows = finished.await.map_err(|e| view(e.to_string()))?.map_err(spooled)?;
    rows.took = began.elapsed();
    Ok(rows)
}

/// Adds advice if a CAST failed on text: CAST fails the view, TRY_CAST returns NULL.
pub(super) fn advised(why: String) -> String {
    match why.contains("Cannot cast string") {
        true => format!("{why}; with TRY_CAST such a text is NULL, which takes the mean and is counted"),
        false => why,
    }
}

pub(super) fn named(segmentation: &Segmentation, error: engine::Error) -> engine::Error {
    match error {
        engine::Error::Query(why) => engine::Error::View { file: segmentation.file.clone(), why },
        other => other,
    }
}

/// Column builders for the rows of the SQL.
struct Columns {
    partitions: Growing<Int32Type>,
    offsets: Growing<Int64Type>,
    timestamps: Growing<Int64Type>,
    features: Vec<Growing<Float64Type>>,
    order: Order,
}

impl Columns {
    fn new(features: usize, most: usize) -> Self {
        Self {
            partitions: Growing::new(most),
            offsets: Growing::new(most),
            timestamps: Growing::new(most),
            features: (0..features).map(|_| Growing::new(most)).collect(),
            order: Order::default(),
        }
    }

    fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        self.order.see(batch);
        let (_, partitions, offsets, timestamps) = keys(batch);
        self.partitions.append(partitions)?;
        self.offsets.append(offsets)?;
        self.timestamps.append(timestamps)?;
        let features = batch.columns()[4..].iter();
        self.features.iter_mut().zip(features).try_for_each(|(to, from)| to.append(from.as_primitive()))
    }

    fn held(&self) -> usize {
        let keys = self.partitions.held() + self.offsets.held() + self.timestamps.held();
        keys + self.features.iter().map(Growing::held).sum::<usize>()
    }

    fn spill(&mut self, space: &Space) -> io::Result<()> {
        self.partitions.spill(space)?;
        self.offsets.spill(space)?;
        self.timestamps.spill(space)?;
        self.features.iter_mut().try_for_each(|column| column.spill(space))
    }

    fn finish(self) -> io::Result<Here> {
        let mut rows = Here {
            partitions: self.partitions.finish()?,
            offsets: self.offsets.finish()?,
            timestamps: self.timestamps.finish()?,
            features: self.features.into_iter().map(Growing::finish).collect::<io::Result<_>>()?,
            order: self.order,
            pieces: Vec::new(),
            took: Duration::ZERO,
        };
        let whole = rows.offsets.len() / CHUNK * CHUNK;
        rows.pieces = by_chunk(whole, processors(), |range| rows.digest(range));
        Ok(rows)
    }
}

impl Here {
    fn digest(&self, rows: std::ops::Range<usize>) -> Digested {
        let Self { partitions, offsets, timestamps, features, .. } = self;
        let digested = digest(partitions, (offsets, timestamps), features, rows.clone());
        self.done_with(rows);
        digested
    }

    /// Gives back the memory of rows that are in files.
    fn done_with(&self, rows: std::ops::Range<usize>) {
        done_with(&self.partitions.values()[rows.clone()]);
        done_with(&self.offsets.values()[rows.clone()]);
        done_with(&self.timestamps.values()[rows.clone()]);
        self.features.iter().for_each(|feature| done_with(&feature.values()[rows.clone()]));
    }

    fn slice(&self, rows: usize) -> Box<dyn Prefix + '_> {
        let features = self.features.iter().map(|column| column.slice(0, rows)).collect();
        Box::new(HereUpTo { all: Keys::Records(self), features, rows })
    }
}

/// SHA-256 of rows. Per row: partition, offset, a byte that is 1 if the timestamp is missing, and the timestamp or 0; then per
/// feature a byte that is 1 if the value is missing, and the double or 0. All values are little endian.
pub(super) fn digest(
    partitions: &Int32Array,
    (offsets, timestamps): (&Int64Array, &Int64Array),
    features: &[Float64Array],
    rows: std::ops::Range<usize>,
) -> Digested {
    let mut bytes = Vec::with_capacity(rows.len() * (21 + 9 * features.len()));
    for row in rows {
        bytes.extend(partitions.value(row).to_le_bytes());
        bytes.extend(offsets.value(row).to_le_bytes());
        let missing = timestamps.is_null(row);
        bytes.push(u8::from(missing));
        bytes.extend(if missing { 0 } else { timestamps.value(row) }.to_le_bytes());
        for feature in features {
            let missing = feature.is_null(row);
            bytes.push(u8::from(missing));
            bytes.extend(if missing { 0.0 } else { feature.value(row) }.to_le_bytes());
        }
    }
    Sha256::digest(&bytes).into()
}

/// The hash of all rows, computed from the digests of pieces.
pub(super) fn hash_of<'a>(pieces: impl IntoIterator<Item = &'a Digested>) -> String {
    let mut hasher = Sha256::new();
    pieces.into_iter().for_each(|piece| hasher.update(piece));
    hex(&hasher.finalize())
}

impl Rows for Here {
    fn up_to(&self, slice: u8) -> Result<Box<dyn Prefix + '_>, Refusal> {
        Ok(self.slice(self.order.end(slice)?))
    }

    fn moved(&self, slice: u8, old: Placed<'_>, new: Placed<'_>) -> Result<Option<Moved>, Refusal> {
        let all = self.slice(self.order.ends[usize::from(slice) - 2]).cross(old, new)?;
        Ok(Some(Moved { all, by: None }))
    }

    fn took(&self) -> Duration {
        self.took
    }
}

/// The rows of one slice, and where their keys are.
pub(super) struct HereUpTo<'a> {
    pub all: Keys<'a>,
    pub features: Vec<Float64Array>,
    pub rows: usize,
}

/// What identifies the rows of a slice.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    Records(&'a Here),
    Entities(&'a entities::Slice),
}

impl Prefix for HereUpTo<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn missing(&self) -> Vec<u64> {
        self.features.iter().map(|column| column.null_count() as u64).collect()
    }

    fn without_key(&self) -> Option<u64> {
        match self.all {
            Keys::Records(_) => None,
            Keys::Entities(slice) => Some(slice.without_key),
        }
    }

    fn members(&self, segmentation: &Segmentation, placed: Placed<'_>) -> Result<Option<RecordBatch>, Refusal> {
        match self.all {
            Keys::Records(_) => Ok(None),
            Keys::Entities(slice) => Ok(Some(slice.members(segmentation, placed)?)),
        }
    }

    fn hash(&self) -> String {
        let all = match self.all {
            Keys::Records(all) => all,
            Keys::Entities(slice) => return slice.hash(),
        };
        // Whole chunks are hashed once for all slices.
        let whole = self.rows / CHUNK;
        let rest = (whole * CHUNK < self.rows).then(|| all.digest(whole * CHUNK..self.rows));
        hash_of(all.pieces[..whole].iter().chain(&rest))
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
        let all = match self.all {
            Keys::Records(all) => all,
            Keys::Entities(slice) => return slice.compare(versus),
        };
        let chunk = |rows: std::ops::Range<usize>| {
            let features: Vec<_> = self.features.iter().map(|column| column.slice(rows.start, rows.len())).collect();
            let counts = versus.count(&features, |row, label| {
                let row = rows.start + row;
                let timestamp = all.timestamps.is_valid(row).then(|| all.timestamps.value(row));
                versus.knows(timestamp, all.partitions.value(row), all.offsets.value(row)).then_some(label)
            });
            all.done_with(rows);
            counts
        };
        Ok(by_chunk(self.rows, processors(), chunk).into_iter().collect())
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
        let places = match self.all {
            Keys::Entities(_) => None,
            Keys::Records(all) => {
                let partitions = column_buffer::take(&all.partitions, &chosen.rows);
                Some((partitions, column_buffer::take(&all.offsets, &chosen.rows)))
            }
        };
        Ok(Sample {
            places,
            features: self.features.iter().map(|column| column_buffer::take(column, &chosen.rows)).collect(),
            chosen,
        })
    }
}
