//! Slices to models.
//!
//! Input: one fixed list of the store's files and the SQL files. Output: for each segmentation and each third of the
//! stream a model on the registry, or a recorded reason why there is none.

mod cluster_ids;
mod dataset;
#[cfg(feature = "distributed")]
mod distributed;
#[cfg(feature = "distributed")]
mod distributed_sql;
mod refusal;
mod request_fit;
pub mod verify;
pub mod worker;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use cluster_ids::{by_features, renumbered};
use cluster_ids::{newcomers, numbers};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMillisecondType};
use datafusion::prelude::SessionContext;
use dataset::{Prefix, Rows, Sample, rows};
use refusal::Refusal;
pub use request_fit::{RequestFit, RequestFitError, fit_for_request};
use serde::{Deserialize, Serialize};
/// What the starts are drawn with.
pub use tercile_kmeans::SEED;
use tercile_kmeans::column_buffer::{self, Space};
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Fit, Limits, Settings, Step};
use tercile_store::{self as store, Held, Snapshot, Store};
use tokio::task::JoinSet;

use crate::engine::{self, cluster::Engine};
use crate::fit::Sampled;
use crate::model::describe::{Before, Shortage, describe, short_of_words, words_changed};
use crate::model::parts::Shapes;
use crate::model::{
    Cut, METHOD, Model, ModelRegistry, Predecessor, PromotedBy, Receipt, SLICES, Trained, clusters, imputed,
    registry::all_slices,
};
use crate::sql::{Files, Segmentation};

/// Until assignments stop changing; that many passes are more than that ever took.
const LIMITS: Limits = Limits { iterations: 10_000, tolerance: 0.0 };
/// The least memory that a training may be given.
const LEAST_MEMORY: usize = 256_000_000;
/// What the program and the reading of the store's files take of it.
const READING: usize = 160 << 20;
/// Bytes that a sort takes for a record, or fewer.
const SORTED: u64 = 128;

/// What stopped a training as a whole. What stops one model alone is recorded as its refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("the training was cut off: {0}")]
    Cut(String),
}

/// What became of one slice of one segmentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub segmentation: String,
    pub slice: u8,
    /// The model that serves now, old or new.
    pub model: Option<Model>,
    /// Whether this training made it.
    pub fresh: bool,
    /// Why this training made none.
    pub refused: Option<String>,
    pub seconds: Seconds,
}

/// Where the time went.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading, cleaning and ordering, which all slices of a segmentation share.
    pub sql: f64,
    /// All of this slice's own.
    pub train: f64,
}

/// What a training is up to.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// So many rows have come out of the SQL.
    Rows {
        segmentation: &'a str,
        rows: usize,
    },
    Pass {
        segmentation: &'a str,
        slice: u8,
        step: Step,
    },
}

/// How to train; nothing of it changes a model.
#[derive(Clone)]
pub struct Options {
    /// Bytes of memory to keep within: what does not fit waits in files.
    pub memory: usize,
    /// What runs the SQL, and the passes over its rows.
    pub engine: Engine,
    /// Who is told how it goes.
    pub tell: Arc<dyn Fn(Progress<'_>) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: column_buffer::half_of_memory(), engine: Engine::Local, tell: Arc::new(|_| {}) }
    }
}

/// The stream as this training sees it.
struct Stream {
    topic: String,
    next_offsets: std::collections::BTreeMap<String, i64>,
    n: u64,
    cuts: [Option<Cut>; SLICES as usize],
}

/// A training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Training {
    /// Records in the stream as the training saw it.
    pub n: u64,
    /// By segmentation, then by slice.
    pub outcomes: Vec<Outcome>,
}

impl Options {
    /// A third of what is left is for what the SQL sorts: then its merge needs some too, and chunks are on their way.
    fn share(&self) -> usize {
        self.memory.max(LEAST_MEMORY).saturating_sub(READING) / 3
    }

    /// For the SQL over so many records.
    fn limits(&self, records: u64) -> engine::Limits {
        // Sorts that spill side by side take the memory from each other's merges, and then fail.
        let serial = records.saturating_mul(SORTED) > self.share() as u64;
        engine::Limits { memory: Some(self.share()), serial, engine: self.engine.clone(), ..Default::default() }
    }

    /// Where the rows are that come out of it.
    fn space(&self, store: &Store) -> Space {
        Space::new(self.share(), store.tmp())
    }
}

/// Trains every segmentation on every slice, one training at a time.
pub async fn train(store: &Store, files: &Files, options: &Options) -> Result<Training, Error> {
    let _one_at_a_time = lock(store).await?;
    let snapshot = store.snapshot()?;
    let ctx = engine::open_within(&snapshot, files, options.limits(snapshot.rows())).await?;
    let segmentations = engine::segmentations(&ctx, files).await?;
    let stream = Arc::new(stream(&ctx, &snapshot).await?);
    let mut preparing = JoinSet::new();
    let outcomes = train_all((ctx, store), segmentations, (&stream, options), &mut preparing).await;
    // What was being prepared when a training failed takes its files away.
    preparing.shutdown().await;
    Ok(Training { n: stream.n, outcomes: outcomes? })
}

type Prepared = (Segmentation, Result<Box<dyn Rows>, engine::Error>);

async fn train_all(
    (ctx, store): (SessionContext, &Store),
    segmentations: Vec<Segmentation>,
    (stream, options): (&Arc<Stream>, &Options),
    preparing: &mut JoinSet<Prepared>,
) -> Result<Vec<Outcome>, Error> {
    let most = stream.n as usize;
    let mut coming = segmentations.into_iter().map(|segmentation| {
        let (ctx, store, options) = (ctx.clone(), store.clone(), options.clone());
        async move {
            let rows = rows(&ctx, &segmentation, (most, &options, &store)).await;
            (segmentation, rows)
        }
    });
    // One prepares while another trains, where that takes none of this machine's memory, and neither keeps all cores busy.
    let ahead = usize::from(options.engine != Engine::Local);
    let mut outcomes = Vec::new();
    coming.by_ref().take(1).for_each(|first| drop(preparing.spawn(first)));
    while let Some(prepared) = preparing.join_next().await {
        let (segmentation, rows) = prepared.map_err(|e| Error::Cut(e.to_string()))?;
        // What a cluster does not do says nothing about the rows.
        let rows = if options.engine == Engine::Local { rows } else { Ok(rows?) };
        coming.by_ref().take(ahead).for_each(|next| drop(preparing.spawn(next)));
        let (store, stream, options) = (store.clone(), Arc::clone(stream), options.clone());
        let work = move || match train_segmentation(&store, &segmentation, rows, (&stream, &options)) {
            // A file that cannot be used concerns this segmentation alone.
            Err(Error::Store(store::Error::File(fault))) => Ok(refused(&segmentation.name, &fault)),
            trained => trained,
        };
        let trained = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Cut(e.to_string()))?;
        outcomes.extend(trained?);
        coming.by_ref().take(1 - ahead).for_each(|next| drop(preparing.spawn(next)));
    }
    Ok(outcomes)
}

async fn lock(store: &Store) -> Result<Held, Error> {
    let store = store.clone();
    let locked = tokio::task::spawn_blocking(move || store.lock_models());
    Ok(locked.await.map_err(|e| Error::Cut(e.to_string()))??)
}

/// Records in the first `slice` thirds of `n`.
fn slice_end(n: u64, slice: u8) -> u64 {
    n.min(u64::from(slice) * n.div_ceil(u64::from(SLICES)))
}

async fn stream(ctx: &SessionContext, snapshot: &Snapshot) -> Result<Stream, Error> {
    let n = snapshot.rows();
    let cuts = "SELECT _timestamp, _partition, _offset, place FROM slice_cuts()";
    let batch = engine::collect(ctx, cuts).await?;
    let (times, partitions, offsets) = (
        batch.column(0).as_primitive::<TimestampMillisecondType>(),
        batch.column(1).as_primitive::<Int32Type>(),
        batch.column(2).as_primitive::<Int64Type>(),
    );
    let found = cast(batch.column(3), &DataType::Int64).map_err(|e| engine::Error::Query(e.to_string()))?;
    let found = found.as_primitive::<Int64Type>();
    let cut = |slice: u8| {
        let place = slice_end(n, slice) as i64;
        let row = found.values().iter().position(|&p| p == place)?;
        let timestamp = (!times.is_null(row)).then(|| times.value(row));
        Some(Cut { timestamp, partition: partitions.value(row), offset: offsets.value(row) })
    };
    Ok(Stream {
        topic: snapshot.topic.clone(),
        next_offsets: snapshot.next_offsets().into_iter().map(|(p, next)| (p.to_string(), next)).collect(),
        n,
        cuts: [cut(1), cut(2), cut(3)],
    })
}

/// No model of any slice, for one file that cannot be used.
fn refused(segmentation: &str, fault: &store::FileFault) -> Vec<Outcome> {
    let outcome = |slice| Outcome {
        segmentation: segmentation.to_owned(),
        slice,
        model: None,
        fresh: false,
        refused: Some(format!("{segmentation}: {fault}")),
        seconds: Seconds { sql: 0.0, train: 0.0 },
    };
    all_slices().map(outcome).collect()
}

/// The model that serves a slice, if its file can be used, and the newest other one that counts.
struct ServingModels {
    earlier: Option<Model>,
    newest: Option<Model>,
    /// A version serves, and its file cannot be used.
    lost: bool,
}

impl ServingModels {
    /// Reads both. Each file that cannot be used is reported once in a training, and passed over: a new version takes a number
    /// of its own, so nothing is overwritten.
    fn read(
        registry: &ModelRegistry,
        slice: u8,
        version: Option<u64>,
        reported: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, store::Error> {
        let mut report = |fault: store::FileFault| {
            if reported.insert(fault.path.clone()) {
                tracing::warn!(
                    "{}; the training goes on without it, and its number is not used again; if that version is needed, bring the file back from a copy",
                    fault.found()
                );
            }
        };
        let earlier = match version.map(|version| registry.model_of(version, slice)).transpose() {
            Err(store::Error::File(fault)) => {
                report(*fault);
                None
            }
            read => read?,
        };
        let lost = version.is_some() && earlier.is_none();
        let newest = registry.newest(slice, version.filter(|_| !lost), &mut report)?;
        Ok(Self { earlier, newest, lost })
    }
}

/// The model, if it has its sample; without one it is trained again, and the new version has one. On an object store each look
/// costs a request, and there the sample is not looked at.
fn with_sample<'m>(
    store: &Store,
    registry: &ModelRegistry,
    model: Option<&'m Model>,
    reported: &mut BTreeSet<PathBuf>,
) -> Option<&'m Model> {
    let model = model?;
    if !store.place().is_disk() {
        return Some(model);
    }
    match registry.sample_of(model) {
        Err(store::Error::File(fault)) if fault.reason != store::Reason::Unreadable => {
            if reported.insert(fault.path.clone()) {
                tracing::warn!("{}; a new version is made, with a sample of its own", fault.found());
            }
            None
        }
        _ => Some(model),
    }
}

fn train_segmentation(
    store: &Store,
    segmentation: &Segmentation,
    rows: Result<Box<dyn Rows>, engine::Error>,
    (stream, options): (&Stream, &Options),
) -> Result<Vec<Outcome>, Error> {
    let registry = ModelRegistry::new(store, &segmentation.name);
    let (mut standings, read) = registry.slices_or_again()?;
    let mut reported = BTreeSet::new();
    let mut outcomes = Vec::new();
    let mut before: Option<Model> = None;
    let mut warm = false;
    for slice in all_slices() {
        let began = Instant::now();
        let standing = standings.entry(slice).or_default();
        let ServingModels { earlier, newest, lost } =
            ServingModels::read(&registry, slice, standing.version, &mut reported)?;
        // A pin holds as long as its model can answer rows as the SQL gives them now. That of a file that cannot be used
        // holds too: somebody may bring it back.
        standing.pinned &= lost || earlier.as_ref().is_some_and(|model| model.features == segmentation.features);
        if let (true, true, Some(version)) = (lost, standing.pinned, standing.version) {
            let name = &segmentation.name;
            tracing::warn!(
                "version {version} of {name} is pinned to slice {slice} and cannot serve; tercile models unpin {name} {version} lets the newest one serve"
            );
        }
        let fits = |model: &&Model| model.features == segmentation.features && model.k as usize == segmentation.k;
        let same_slice = if lost { newest.as_ref() } else { earlier.as_ref() };
        let predecessor = same_slice.filter(fits).or(before.as_ref().filter(fits));
        let job = Job {
            segmentation,
            slice,
            stream,
            options,
            predecessor,
            replaced: earlier.as_ref().filter(|model| !fits(model)).map(Predecessor::of),
            before: before.as_ref(),
            earlier: with_sample(store, &registry, earlier.as_ref(), &mut reported),
            newest: with_sample(store, &registry, newest.as_ref(), &mut reported),
            warm: before.as_ref().filter(|model| warm && fits(model)),
        };
        let trained = match &rows {
            Ok(rows) => match job.run(rows.as_ref()) {
                Err(Refusal::Engine(error)) => return Err(error.into()),
                ran => ran.map_err(|refusal| refusal.to_string()),
            },
            Err(error) => Err(error.to_string()),
        };
        // `trained` is the model of these records, which may not be the one that serves.
        let (model, trained, fresh, refused) = match trained {
            Ok(JobOutcome::New(mut new)) => {
                let version = registry.put(&mut new)?;
                if !standing.pinned {
                    standing.version = Some(version);
                }
                (Some(new.model.clone()), Some(new.model), true, None)
            }
            // A rollback holds until there is something new to learn from, a pin until it is taken away.
            Ok(JobOutcome::Known(known)) if standing.pinned || (standing.by == Some(PromotedBy::Rollback) && !lost) => {
                (earlier, Some(*known), false, None)
            }
            Ok(JobOutcome::Known(known)) => {
                standing.version = Some(known.version);
                (Some((*known).clone()), Some(*known), false, None)
            }
            Err(why) => {
                (earlier.clone(), earlier, false, Some(format!("{} of slice {slice}: {why}", segmentation.name)))
            }
        };
        // What an older training left behind must not decide what this one finds.
        warm = refused.is_none();
        standing.refused.clone_from(&refused);
        before = trained;
        let sql = rows.as_ref().map_or(0.0, |rows| rows.took().as_secs_f64());
        let seconds = Seconds { sql, train: began.elapsed().as_secs_f64() };
        outcomes.push(Outcome { segmentation: segmentation.name.clone(), slice, model, fresh, refused, seconds });
    }
    registry.serve(&standings, &read, PromotedBy::Training)?;
    Ok(outcomes)
}

/// One slice of one segmentation.
struct Job<'a> {
    segmentation: &'a Segmentation,
    slice: u8,
    stream: &'a Stream,
    options: &'a Options,
    /// Whose cluster numbers are kept.
    predecessor: Option<&'a Model>,
    /// The model that serves this slice, if its features or k are others.
    replaced: Option<Predecessor>,
    /// The slice before's model of these records; where that slice was refused, the one that serves.
    before: Option<&'a Model>,
    /// The model that serves this slice.
    earlier: Option<&'a Model>,
    /// A newer one of this slice, which does not serve: after a rollback, or when a training was cut off.
    newest: Option<&'a Model>,
    /// The slice before's model as these same records give it: where one more start begins.
    warm: Option<&'a Model>,
}

/// What came of it.
enum JobOutcome {
    New(Box<Trained>),
    Known(Box<Model>),
}

impl Job<'_> {
    /// A new model, unless one was trained on just the same.
    fn run(&self, all: &dyn Rows) -> Result<JobOutcome, Refusal> {
        let rows = all.up_to(self.slice)?;
        let rows = rows.as_ref();
        let receipt = self.receipt(rows);
        let known = [self.earlier, self.newest].into_iter().flatten();
        if let Some(known) = known.into_iter().find(|model| model.receipt.same_but_predecessor(&receipt)) {
            return Ok(JobOutcome::Known(Box::new(known.clone())));
        }
        Ok(JobOutcome::New(Box::new(self.fit(all, rows, receipt)?)))
    }

    /// What a model of these rows follows from.
    fn receipt(&self, rows: &dyn Prefix) -> Receipt {
        Receipt {
            topic: self.stream.topic.clone(),
            next_offsets: self.stream.next_offsets.clone(),
            n: self.stream.n,
            cut: self.stream.cuts[usize::from(self.slice) - 1].clone(),
            rows_hash: rows.hash(),
            sql_hash: self.segmentation.sql_hash.clone(),
            starts: kmeans::starts_for(rows.rows()) as u64,
            predecessor: self.predecessor.map(Predecessor::of),
            replaced: self.replaced.clone(),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
            method: METHOD,
        }
    }

    /// The model.
    fn fit(&self, all: &dyn Rows, rows: &dyn Prefix, receipt: Receipt) -> Result<Trained, Refusal> {
        let Segmentation { features, k, labels, .. } = self.segmentation;
        let scale = rows.scale(features)?;
        let warm = self.warm.map(Model::centroids);
        let tell = |step| {
            (self.options.tell)(Progress::Pass { segmentation: &self.segmentation.name, slice: self.slice, step });
        };
        kmeans::check_rows(rows.rows())?;
        let fit = rows.fit(&scale, &settings(*k, receipt.starts as usize), warm.as_ref(), &tell)?;
        let number = numbers(&scale, &fit.centroids, self.predecessor);
        let fit = renumbered(fit, &number);
        let new = newcomers(&scale, &fit.centroids, self.predecessor);
        let profile = rows.profile(&scale, &fit.centroids)?;
        let before = self.predecessor.map(|model| Before::new(model, &new));
        let shapes = Shapes { centroids: fit.centroids.view(), spread: profile.spread.view(), sizes: &fit.sizes };
        let described = describe(&shapes, features, labels, before.as_ref());
        for Shortage { feature, parts, words } in short_of_words(&described, features, labels) {
            tracing::warn!(
                "{}: slice {} has {parts} levels of {feature} and {words} words for them, so its descriptions count them, as \
                 in \"{feature} 1 of {parts}\"; give it {k} words in the header, or choose a smaller k",
                self.segmentation.file,
                self.slice
            );
        }
        // Where another k or other features served, there is nothing to compare with.
        let before = before.filter(|_| self.replaced.is_none());
        let changed = before.map(|before| words_changed(&described, features, &before)).unwrap_or_default();
        // A cluster may continue one of the slice before, but none of the model that served this slice.
        let new: Vec<bool> = new.into_iter().map(|new| new || self.replaced.is_some()).collect();
        let clusters = clusters(features, &fit, &profile, described, &new);
        let moved = self.moved(all, (&scale, &fit))?;
        let (sample, silhouette) = sample(rows, features, (&scale, &fit))?;
        let model = Model {
            segmentation: self.segmentation.name.clone(),
            slice: self.slice,
            version: 0,
            rows: rows.rows() as u64,
            rows_left_out: slice_end(self.stream.n, self.slice).saturating_sub(rows.rows() as u64),
            imputed: Some(features.iter().cloned().zip(rows.missing()).collect()),
            features: features.clone(),
            mean: scale.mean,
            std: scale.std,
            k: *k as u32,
            seed: SEED,
            inertia: fit.inertia,
            silhouette,
            iterations: fit.iterations as u64,
            trained_at: tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            moved,
            clusters,
            words_changed: changed,
            receipt,
        };
        Ok(Trained { model, sample })
    }

    /// The previous slice's rows, by their cluster in its model and in this one.
    fn moved(&self, all: &dyn Rows, (scale, fit): (&Scale, &Fit)) -> Result<Option<Vec<Vec<u64>>>, Refusal> {
        let Some(before) = self.before.filter(|model| model.features == self.segmentation.features) else {
            return Ok(None);
        };
        let rows = all.first(self.slice - 1);
        rows.cross((&before.scale(), &before.centroids()), (scale, &fit.centroids)).map(Some)
    }
}

fn settings(k: usize, starts: usize) -> Settings {
    Settings { k, seed: SEED, starts, limits: LIMITS, threads: processors() }
}

/// Some of the rows with their clusters, and how well those are set apart.
fn sample(
    rows: &dyn Prefix,
    features: &[String],
    (scale, fit): (&Scale, &Fit),
) -> Result<(RecordBatch, Option<f64>), Refusal> {
    let Sample { partitions, offsets, features: columns, chosen } = rows.sample(scale, fit)?;
    let mut fields =
        vec![Field::new("_partition", DataType::Int32, true), Field::new("_offset", DataType::Int64, true)];
    let mut all: Vec<ArrayRef> = vec![Arc::new(partitions), Arc::new(offsets)];
    for ((name, column), mean) in features.iter().zip(&columns).zip(&scale.mean) {
        fields.push(Field::new(name, DataType::Float64, false));
        let imputed: Float64Array = column.iter().map(|v| v.or(Some(*mean))).collect();
        all.push(Arc::new(imputed));
    }
    fields.push(Field::new("cluster", DataType::UInt32, false));
    all.push(Arc::new(chosen.labels.iter().map(|&label| Some(u32::from(label))).collect::<UInt32Array>()));
    fields.push(Field::new(imputed::COLUMN, DataType::UInt32, false));
    all.push(Arc::new(imputed::masks(&columns)));
    let silhouette = Sampled { columns, chosen }.silhouette(scale, fit.sizes.len(), processors());
    Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), all)?, silhouette))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_at_growing_thirds() {
        assert_eq!([1, 2, 3].map(|slice| slice_end(1465, slice)), [489, 978, 1465]);
        assert_eq!([1, 2, 3].map(|slice| slice_end(2, slice)), [1, 2, 2]);
        assert_eq!([1, 2, 3].map(|slice| slice_end(0, slice)), [0, 0, 0]);
    }
}
