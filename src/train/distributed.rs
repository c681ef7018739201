//! The rows of a segmentation on a cluster.
//!
//! Input: the segmentation's view. Output: the operations of a training on its rows. Cleaning, slicing and features run on the
//! executors, which write one Parquet file in slice order to the store's `tmp/`. The file is deleted after the training. This
//! process reads the file once in order, for the results that depend on the order: the hashes, the sample, and a uniform sample
//! for the first guide, together with mean and standard deviation. It reads the file again if the sample lacks rows of rare
//! clusters. All other results are queries over the file (`tercile_cluster::solver`): one per coreset, and a GROUP BY per pass. If
//! there are few rows, the uniform sample contains all of them, and this process clusters them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::compute::{concat, concat_batches};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use ndarray::Array2;
use tercile_kmeans::features::moments::{Extent, Part};
use tercile_kmeans::features::{self, Scale};
use tercile_kmeans::parallel::{CHUNK, processors};
use tercile_kmeans::{self as kmeans, Chosen, Fit, Init, Points, Profile, Settings, Solver as _, Step, column_buffer};
use tercile_store::{self as store, Store};
use tokio::runtime::Handle;

use super::dataset::{Digested, Moved, Order, Placed, Prefix, Rows, Sample, digest, hash_of, keys, named, query};
use super::{Options, Progress, Refusal, SEED};
use crate::engine::cluster::solver::{self, Queries};
use crate::engine::{self, cluster};
use crate::model::{SolverKind, baseline};
use crate::slices::SLICES;
use crate::sql::{Segmentation, quote};

impl From<solver::Error> for Refusal {
    fn from(error: solver::Error) -> Self {
        match error {
            solver::Error::KMeans(error) => error.into(),
            solver::Error::Query(error) => engine::Error::Query(engine::explain(&error)).into(),
        }
    }
}

/// Rows on a cluster.
pub(super) struct Far {
    ctx: SessionContext,
    runtime: Handle,
    features: usize,
    slices: Vec<Known>,
    order: Order,
    took: Duration,
    scratch: Scratch,
}

/// The results for one slice that are kept in this process.
struct Known {
    /// The rows in queries, as the text after FROM.
    from: String,
    hash: String,
    /// The part of the sample that does not depend on the clusters.
    sample: Base,
    /// Evenly spaced rows for the baseline.
    evenly: Vec<Float64Array>,
    /// A uniform sample for the first guide; all rows if there are few.
    starts: Vec<Float64Array>,
    /// Per feature: range, sum, and sum of squared deviations from the mean.
    moments: Vec<(Extent, f64)>,
    /// Per feature: true if it is missing in some rows.
    missing: Vec<bool>,
    /// Per feature: the first row with a value that is not finite.
    odd: Vec<Option<(usize, f64)>>,
}

/// Rows at `kmeans::sample_rows`.
struct Base {
    partitions: Int32Array,
    offsets: Int64Array,
    features: Vec<Float64Array>,
}

/// One row of a sample.
#[derive(Clone)]
struct SampleRow {
    /// Index among all rows of the slice.
    place: u32,
    partition: i32,
    offset: i64,
    /// By feature; `None` if missing.
    values: Vec<Option<f64>>,
    label: u8,
}

/// A temporary file in a place that executors can access, deleted on drop.
struct Scratch {
    store: Store,
    file: PathBuf,
}

impl Scratch {
    fn new(store: &Store) -> Result<Self, store::Error> {
        let (store, file) = (store.clone(), store.shared_scratch()?);
        Ok(Self { store, file })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If the deletion fails, the file is removed with the store's other leftovers.
        let _ = self.store.forget_shared(&self.file);
    }
}

/// Runs a segmentation's SQL on the cluster.
pub(super) async fn rows(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    (options, store): (&Options, &Store),
) -> Result<Far, engine::Error> {
    let began = Instant::now();
    let features = segmentation.features.len();
    let at =
        |path: &Path, e: &dyn std::fmt::Display| engine::Error::Table { path: path.to_owned(), why: e.to_string() };
    let table = format!("_prepared_{}", segmentation.name);
    let scratch = Scratch::new(store).map_err(|e| at(store.root(), &e))?;
    let file = scratch.file.clone();
    let written = cluster::write(ctx, &query(segmentation), &file).await.map_err(|e| named(segmentation, e))?;
    let mut order = Order::default();
    let mut slices = Vec::new();
    if written > 0 {
        (options.tell)(Progress::Rows { segmentation: &segmentation.name, rows: written as usize });
        engine::add_file(ctx, &table, &file).await?;
        let mut reader = Reader::new(features, ends(ctx, &quote(&table)).await?);
        let mut batches = cluster::read_in_order(ctx, &file).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|e| at(&file, &engine::explain(&e)))?;
            order.see(&batch);
            reader.see(batch).map_err(|e| at(&file, &e))?;
        }
        slices = reader.finish(&quote(&table)).map_err(|e| at(&file, &e))?;
        if order.rows() as u64 != written {
            return Err(at(&file, &format!("it holds {} rows of {written}", order.rows())));
        }
        if order.broken {
            return Err(at(&file, &"its rows are not in order"));
        }
        order.look_everywhere(ctx, segmentation).await?;
    }
    let (ctx, runtime) = (ctx.clone(), Handle::current());
    Ok(Far { ctx, runtime, features, slices, order, took: began.elapsed(), scratch })
}

/// Number of rows of slices 1 to 1, 1 to 2, and 1 to 3.
async fn ends(ctx: &SessionContext, table: &str) -> Result<[usize; SLICES as usize], engine::Error> {
    let found = engine::collect(ctx, &format!("SELECT _slice, count(*) FROM {table} GROUP BY _slice")).await?;
    let integers = |column| solver::integers(&found, column).map_err(|e| engine::Error::Query(engine::explain(&e)));
    let (slices, counts) = (integers(0)?, integers(1)?);
    let mut ends = [0; SLICES as usize];
    for (end, slice) in ends.iter_mut().zip(1..) {
        *end = slices.iter().zip(&counts).filter(|(of, _)| **of <= slice).map(|(_, count)| *count as usize).sum();
    }
    Ok(ends)
}

/// Processes the prepared rows in order, chunk by chunk.
struct Reader {
    ends: [usize; SLICES as usize],
    /// Number of rows in earlier chunks.
    done: usize,
    waiting: Vec<RecordBatch>,
    held: usize,
    pieces: Vec<Piece>,
    slices: Vec<Gathering>,
}

/// The digest and moments of a chunk of rows.
#[derive(Clone)]
struct Piece {
    digest: Digested,
    /// Per feature.
    moments: Vec<Part>,
}

/// The results collected for one slice.
struct Gathering {
    rows: usize,
    sample: Vec<u32>,
    evenly: Vec<u32>,
    /// `None` means all rows.
    starts: Option<Vec<u32>>,
    partitions: Vec<Int32Array>,
    offsets: Vec<Int64Array>,
    sampled: Vec<Vec<Float64Array>>,
    spaced: Vec<Vec<Float64Array>>,
    started: Vec<Vec<Float64Array>>,
    odd: Vec<Option<(usize, f64)>>,
    hash: String,
    moments: Vec<(Extent, f64)>,
}

impl Reader {
    fn new(features: usize, ends: [usize; SLICES as usize]) -> Self {
        let gathering = |&rows: &usize| Gathering {
            rows,
            sample: kmeans::sample_rows(rows),
            evenly: column_buffer::evenly(rows, baseline::MOST),
            starts: kmeans::start_rows(rows, SEED),
            partitions: Vec::new(),
            offsets: Vec::new(),
            sampled: vec![Vec::new(); features],
            spaced: vec![Vec::new(); features],
            started: vec![Vec::new(); features],
            odd: vec![None; features],
            hash: String::new(),
            moments: Vec::new(),
        };
        let slices = ends.iter().map(gathering).collect();
        Self { ends, done: 0, waiting: Vec::new(), held: 0, pieces: Vec::new(), slices }
    }

    fn see(&mut self, mut batch: RecordBatch) -> Result<(), datafusion::arrow::error::ArrowError> {
        while self.held + batch.num_rows() >= CHUNK {
            let first = CHUNK - self.held;
            self.waiting.push(batch.slice(0, first));
            batch = batch.slice(first, batch.num_rows() - first);
            self.chunk()?;
        }
        self.held += batch.num_rows();
        self.waiting.push(batch);
        Ok(())
    }

    fn chunk(&mut self) -> Result<(), datafusion::arrow::error::ArrowError> {
        let Some(first) = self.waiting.first() else { return Ok(()) };
        let batch = concat_batches(&first.schema(), &self.waiting)?;
        (self.waiting, self.held) = (Vec::new(), 0);
        let (_, partitions, offsets, timestamps) = keys(&batch);
        let columns = batch.columns()[4..].iter().map(|column| column.as_primitive::<Float64Type>().clone());
        let columns: Vec<Float64Array> = columns.collect();
        let (start, end) = (self.done, self.done + batch.num_rows());
        let piece = |rows| Piece {
            digest: digest(partitions, (offsets, timestamps), &columns, 0..rows),
            moments: columns.iter().map(|column| Part::of(&column.slice(0, rows))).collect(),
        };
        let whole = (batch.num_rows() == CHUNK).then(|| piece(CHUNK));
        for slice in &mut self.slices {
            let here = slice.rows.saturating_sub(start).min(batch.num_rows());
            let places = |of: &[u32]| -> Vec<u32> {
                let from = of.partition_point(|&row| (row as usize) < start);
                let to = of.partition_point(|&row| (row as usize) < end);
                of[from..to].iter().map(|&row| row - start as u32).collect()
            };
            let sampled = places(&slice.sample);
            slice.partitions.push(column_buffer::take(partitions, &sampled));
            slice.offsets.push(column_buffer::take(offsets, &sampled));
            let spaced = places(&slice.evenly);
            let started = slice.starts.as_deref().map(places);
            for (feature, column) in columns.iter().enumerate() {
                slice.sampled[feature].push(column_buffer::take(column, &sampled));
                slice.spaced[feature].push(column_buffer::take(column, &spaced));
                slice.started[feature].push(match &started {
                    Some(places) => column_buffer::take(column, places),
                    None => column.slice(0, here),
                });
                let odd =
                    || column.slice(0, here).iter().position(|value| value.is_some_and(|value| !value.is_finite()));
                if slice.odd[feature].is_none() {
                    slice.odd[feature] = odd().map(|row| (start + row, column.value(row)));
                }
            }
            // The slice ends in this chunk: the rows up to its end are its last piece.
            if start < slice.rows && slice.rows <= end {
                let last = if here == CHUNK { whole.clone() } else { Some(piece(here)) };
                let pieces = || self.pieces.iter().chain(&last);
                slice.hash = hash_of(pieces().map(|piece| &piece.digest));
                let moments = |f| Part::join(pieces().map(move |piece: &Piece| &piece.moments[f]));
                slice.moments = (0..columns.len()).map(moments).collect();
            }
        }
        self.pieces.extend(whole);
        self.done = end;
        Ok(())
    }

    fn finish(mut self, table: &str) -> Result<Vec<Known>, datafusion::arrow::error::ArrowError> {
        self.chunk()?;
        debug_assert_eq!(self.done, self.ends[SLICES as usize - 1], "all rows are in one of the slices");
        let known = |(slice, number): (Gathering, usize)| {
            let from = format!("{table} WHERE _slice <= {number}");
            let partitions: Vec<&dyn Array> = slice.partitions.iter().map(|part| part as &dyn Array).collect();
            let offsets: Vec<&dyn Array> = slice.offsets.iter().map(|part| part as &dyn Array).collect();
            let sample = Base {
                partitions: concat(&partitions)?.as_primitive().clone(),
                offsets: concat(&offsets)?.as_primitive().clone(),
                features: joined(&slice.sampled)?,
            };
            let Gathering { rows, hash, moments, odd, .. } = slice;
            let missing = moments.iter().map(|(extent, _)| extent.known < rows).collect();
            let (evenly, starts) = (joined(&slice.spaced)?, joined(&slice.started)?);
            Ok(Known { from, hash, sample, evenly, starts, moments, missing, odd })
        };
        self.slices.into_iter().zip(1..).map(known).collect()
    }
}

fn joined(columns: &[Vec<Float64Array>]) -> Result<Vec<Float64Array>, datafusion::arrow::error::ArrowError> {
    let one = |parts: &Vec<Float64Array>| {
        let parts: Vec<&dyn Array> = parts.iter().map(|part| part as &dyn Array).collect();
        Ok(concat(&parts)?.as_primitive().clone())
    };
    columns.iter().map(one).collect()
}

impl Far {
    fn slice(&self, slice: u8) -> FarUpTo<'_> {
        FarUpTo { all: self, slice, known: &self.slices[usize::from(slice) - 1] }
    }
}

impl Rows for Far {
    fn up_to(&self, slice: u8) -> Result<Box<dyn Prefix + '_>, Refusal> {
        self.order.end(slice)?;
        Ok(Box::new(self.slice(slice)))
    }

    fn moved(&self, slice: u8, old: Placed<'_>, new: Placed<'_>) -> Result<Option<Moved>, Refusal> {
        Ok(Some(Moved { all: self.slice(slice - 1).cross(old, new)?, by: None }))
    }

    fn took(&self) -> Duration {
        self.took
    }
}

/// The rows of one slice.
struct FarUpTo<'a> {
    all: &'a Far,
    slice: u8,
    known: &'a Known,
}

impl FarUpTo<'_> {
    /// True if all rows are in this process.
    fn few(&self) -> bool {
        self.known.starts.first().is_some_and(|column| column.len() == self.rows())
    }

    /// The rows as queries see them.
    fn queries(&self) -> solver::Rows<'_> {
        let Far { ctx, runtime, .. } = self.all;
        let Known { from, missing, .. } = self.known;
        solver::Rows { ctx, runtime, from, rows: self.rows(), missing }
    }

    /// The rows of these clusters, in order within each cluster.
    async fn rows_of(&self, rare: &[usize], scale: &Scale, fit: &Fit) -> Result<Vec<Vec<SampleRow>>, engine::Error> {
        let file = &self.all.scratch.file;
        let mut found: Vec<Vec<SampleRow>> = vec![Vec::new(); rare.len()];
        let mut batches = cluster::read_in_order(&self.all.ctx, file).await?;
        let mut place = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|e| engine::Error::Table { path: file.clone(), why: engine::explain(&e) })?;
            let batch = batch.slice(0, batch.num_rows().min(self.rows() - place));
            let (_, partitions, offsets, _) = keys(&batch);
            let columns = batch.columns()[4..].iter().map(|column| column.as_primitive::<Float64Type>().clone());
            let columns: Vec<Float64Array> = columns.collect();
            let labels = kmeans::assign(&Points::new(scale, &columns), &fit.centroids, processors());
            for (row, label) in labels.into_iter().enumerate() {
                if let Some(of) = rare.iter().position(|&cluster| cluster == usize::from(label)) {
                    found[of].push(SampleRow {
                        place: (place + row) as u32,
                        partition: partitions.value(row),
                        offset: offsets.value(row),
                        values: columns.iter().map(|column| column.is_valid(row).then(|| column.value(row))).collect(),
                        label,
                    });
                }
            }
            place += batch.num_rows();
            if place == self.rows() {
                break;
            }
        }
        Ok(found)
    }
}

impl Prefix for FarUpTo<'_> {
    fn rows(&self) -> usize {
        self.all.order.ends[usize::from(self.slice) - 1]
    }

    fn missing(&self) -> Vec<u64> {
        let rows = self.rows();
        self.known.moments.iter().map(|(extent, _)| (rows - extent.known) as u64).collect()
    }

    fn hash(&self) -> String {
        self.known.hash.clone()
    }

    fn scale(&self, names: &[String]) -> Result<Scale, Refusal> {
        if self.few() {
            return Ok(Scale::measure(names, &self.known.starts, processors())?);
        }
        for (feature, odd) in names.iter().zip(&self.known.odd) {
            if let Some((row, value)) = *odd {
                let (feature, value) = (feature.clone(), value.to_string());
                return Err(features::Error::NotFinite { feature, value, row }.into());
            }
        }
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for (feature, (extent, squares)) in names.iter().zip(&self.known.moments) {
            let Extent { least, greatest, sum, known, .. } = *extent;
            if least > greatest {
                return Err(features::Error::AllMissing { feature: feature.clone() }.into());
            }
            let same = least == greatest;
            let deviation = if same { 0.0 } else { (squares / self.rows() as f64).sqrt() };
            // Squares and their sums must stay within the range of doubles, because columns have no own unit here.
            if !same && !(1e-140..1e140).contains(&deviation) {
                return Err(features::Error::NoDeviation { feature: feature.clone() }.into());
            }
            mean.push(if same { least } else { sum / known as f64 });
            std.push(deviation);
        }
        Ok(Scale::new(mean, std))
    }

    fn fit(
        &self,
        scale: &Scale,
        (settings, _): (&Settings, SolverKind),
        warm: Option<&Array2<f64>>,
        watch: &(dyn Fn(Step) + Sync),
    ) -> Result<Fit, Refusal> {
        if self.few() {
            let points = Points::new(scale, &self.known.starts);
            return Ok(kmeans::fit(&points, settings, Init::Drawn(warm), watch)?);
        }
        if self.all.features == 1 {
            let (columns, weights) = self.queries().counted()?;
            let points = Points::new(scale, &columns).with_weights(weights);
            return Ok(kmeans::fit(&points, settings, Init::Drawn(warm), watch)?);
        }
        let sample = Points::new(scale, &self.known.starts);
        let rows = self.queries();
        Ok(Queries { rows: &rows, scale, sample: &sample }.fit(settings, Init::Drawn(warm), watch)?)
    }

    fn profile(&self, scale: &Scale, centroids: &Array2<f64>) -> Result<Profile, Refusal> {
        if self.few() {
            return Ok(kmeans::profile(&Points::new(scale, &self.known.starts), centroids, processors()));
        }
        if self.all.features == 1 {
            let (columns, weights) = self.queries().counted()?;
            return Ok(kmeans::profile(&Points::new(scale, &columns).with_weights(weights), centroids, processors()));
        }
        // Quartiles are those of the sample. The spread, which determines descriptions, is computed from all rows.
        let sample = Points::new(scale, &self.known.sample.features);
        let mut profile = kmeans::profile(&sample, centroids, processors());
        profile.spread = self.queries().spread(scale, centroids)?;
        Ok(profile)
    }

    fn cross(&self, (old, from): Placed<'_>, (new, to): Placed<'_>) -> Result<Vec<Vec<u64>>, Refusal> {
        if self.few() {
            let (old, new) = (Points::new(old, &self.known.starts), Points::new(new, &self.known.starts));
            return Ok(kmeans::cross((&old, from), (&new, to), processors()));
        }
        Ok(self.queries().cross((old, from), (new, to))?)
    }

    fn evenly(&self) -> Vec<Float64Array> {
        self.known.evenly.clone()
    }

    fn sample(&self, scale: &Scale, fit: &Fit) -> Result<Sample, Refusal> {
        let Base { partitions, offsets, features } = &self.known.sample;
        let labels = kmeans::assign(&Points::new(scale, features), &fit.centroids, processors());
        let rare = if labels.len() < self.rows() { kmeans::rare(&labels, &fit.sizes) } else { Vec::new() };
        let places = kmeans::sample_rows(self.rows());
        let mut rows: Vec<SampleRow> = (0..labels.len())
            .map(|row| SampleRow {
                place: places[row],
                partition: partitions.value(row),
                offset: offsets.value(row),
                values: features.iter().map(|column| column.is_valid(row).then(|| column.value(row))).collect(),
                label: labels[row],
            })
            .collect();
        if !rare.is_empty() {
            for of in self.all.runtime.block_on(self.rows_of(&rare, scale, fit))? {
                let chosen: Vec<usize> = (0..of.len()).collect();
                rows.extend(kmeans::of_cluster(&chosen).map(|row| of[row].clone()));
            }
            rows.sort_by_key(|row| row.place);
            rows.dedup_by_key(|row| row.place);
        }
        let column = |feature: usize| rows.iter().map(|row| row.values[feature]).collect::<Float64Array>();
        let chosen = Chosen::of(
            rows.iter().map(|row| row.place).collect(),
            rows.iter().map(|row| row.label).collect(),
            &fit.sizes,
        );
        Ok(Sample {
            places: Some((
                rows.iter().map(|row| Some(row.partition)).collect(),
                rows.iter().map(|row| Some(row.offset)).collect(),
            )),
            features: (0..features.len()).map(column).collect(),
            chosen,
        })
    }
}
