//! The rows of a segmentation on a cluster.
//!
//! Input: the segmentation's view. Output: the operations of a training on its rows. Cleaning, slicing and features run on the
//! executors, which write one Parquet file in slice order to the store's `tmp/`. The file is deleted after the training. This
//! process reads the file once in order, for the results that depend on the order: the hashes, the sample, and a uniform sample
//! for the first guide, together with mean and standard deviation. It reads the file again if the sample lacks rows of rare
//! clusters. All other results are queries over the file (`tercile_cluster::solver`): one per coreset, and a GROUP BY per pass. If
//! there are few rows, the uniform sample contains all of them, and this process clusters them.

mod reader;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use ndarray::Array2;
use tercile_kmeans::features::moments::Extent;
use tercile_kmeans::features::scaling::{Measured, Method, Scaling};
use tercile_kmeans::features::{self, Scale};
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Chosen, Fit, Init, Points, Profile, Settings, Solver as _, Step};
use tercile_store::{self as store, Store};
use tokio::runtime::Handle;

use self::reader::Reader;
use super::comparison::{Counts, Versus};
use super::dataset::{Moved, Placed, Prefix, Rows, Sample};
use super::order::{Order, keys};
use super::view_query::{named, query};
use super::{Options, Progress, Refusal};
use crate::engine::cluster::solver::{self, Queries};
use crate::engine::{self, cluster};
use crate::model::SolverKind;
use crate::scaling::ScaleMethod;
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
    check_scaling(segmentation)?;
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

/// Queries have no logarithms that are the same on every machine, and no exact quartiles.
fn check_scaling(segmentation: &Segmentation) -> Result<(), engine::Error> {
    let needs_rows = |scaling: &Scaling| matches!(scaling.method(), Method::Log | Method::Robust);
    let Some(i) = segmentation.scaling.iter().position(needs_rows) else { return Ok(()) };
    let (method, feature) = (ScaleMethod::from(segmentation.scaling[i].method()), &segmentation.features[i]);
    let line = segmentation.scaling_lines[i].map_or_else(String::new, |line| format!("line {line}: "));
    let why = format!("{line}the scale {method} of {feature} needs a training in one process; train without --engine");
    Err(engine::Error::View { file: segmentation.file.clone(), why })
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

    /// Reads the rows in order. `see` gets each batch with its features and the index of its first row.
    async fn each(&self, mut see: impl FnMut(&RecordBatch, &[Float64Array], usize)) -> Result<(), engine::Error> {
        let file = &self.all.scratch.file;
        let mut batches = cluster::read_in_order(&self.all.ctx, file).await?;
        let mut place = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|e| engine::Error::Table { path: file.clone(), why: engine::explain(&e) })?;
            let batch = batch.slice(0, batch.num_rows().min(self.rows() - place));
            let columns = batch.columns()[4..].iter().map(|column| column.as_primitive::<Float64Type>().clone());
            see(&batch, &columns.collect::<Vec<_>>(), place);
            place += batch.num_rows();
            if place == self.rows() {
                break;
            }
        }
        Ok(())
    }

    /// The rows of these clusters, in order within each cluster.
    async fn rows_of(&self, rare: &[usize], scale: &Scale, fit: &Fit) -> Result<Vec<Vec<SampleRow>>, engine::Error> {
        let mut found: Vec<Vec<SampleRow>> = vec![Vec::new(); rare.len()];
        let see = |batch: &RecordBatch, columns: &[Float64Array], place: usize| {
            let (_, partitions, offsets, _) = keys(batch);
            let labels = kmeans::assign(&Points::new(scale, columns), &fit.centroids, processors());
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
        };
        self.each(see).await?;
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

    fn scale(&self, of: &Segmentation) -> Result<Scale, Refusal> {
        let names = &of.features;
        if self.few() {
            return Ok(Scale::measure_as(names, &self.known.starts, &of.scaling, processors())?);
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
        let one = |(f, &scaling): (usize, &Scaling)| match scaling.method() {
            Method::None => Measured { scaling, center: 0.0, spread: 1.0 },
            _ => Measured { scaling, center: mean[f], spread: std[f] },
        };
        let measured = of.scaling.iter().enumerate().map(one).collect();
        Ok(Scale::scaled(mean, std, measured))
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
        profile.linear_spread = profile.spread.clone();
        Ok(profile)
    }

    fn cross(&self, (old, from): Placed<'_>, (new, to): Placed<'_>) -> Result<Vec<Vec<u64>>, Refusal> {
        if !self.few() && (0..self.all.features).any(|feature| old.is_log(feature)) {
            let why = "the model of the slice before has a logarithmic scale, and queries cannot compare with it; train without --engine";
            return Err(Refusal::View(why.to_owned()));
        }
        if self.few() {
            let (old, new) = (Points::new(old, &self.known.starts), Points::new(new, &self.known.starts));
            return Ok(kmeans::cross((&old, from), (&new, to), processors()));
        }
        Ok(self.queries().cross((old, from), (new, to))?)
    }

    fn compare(&self, versus: &Versus<'_>) -> Result<Counts, Refusal> {
        let mut counts = Counts::default();
        let see = |batch: &RecordBatch, columns: &[Float64Array], _| {
            let (_, partitions, offsets, timestamps) = keys(batch);
            counts += versus.count(columns, |row, label| {
                let timestamp = timestamps.is_valid(row).then(|| timestamps.value(row));
                versus.knows(timestamp, partitions.value(row), offsets.value(row)).then_some(label)
            });
        };
        self.all.runtime.block_on(self.each(see))?;
        Ok(counts)
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
