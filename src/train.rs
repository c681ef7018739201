//! Training: from slices to models.
//!
//! Input: a fixed list of the store's files, and the SQL files. Output: for each segmentation and slice a model in the
//! registry, or the recorded reason why there is none.

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

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMillisecondType};
use datafusion::prelude::SessionContext;
use dataset::{Prefix, Rows, Sample, rows};
use refusal::Refusal;
pub use request_fit::{RequestFit, RequestFitError, fit_for_request};
use serde::{Deserialize, Serialize};
/// The seed of the restarts.
pub use tercile_kmeans::SEED;
use tercile_kmeans::column_buffer::{self, Space};
use tercile_kmeans::features::Scale;
use tercile_kmeans::parallel::processors;
use tercile_kmeans::{self as kmeans, Fit, Limits, Settings, Step};
use tercile_store::{self as store, Held, Snapshot, Store};
use tokio::task::JoinSet;

use crate::engine::{self, cluster::Engine};
use crate::fit::Sampled;
use crate::model::cluster_ids::{newcomers, numbers, renumbered};
use crate::model::describe::{Before, Shortage, describe, short_of_words, words_changed};
use crate::model::parts::Shapes;
use crate::model::{Cut, METHOD, Model, ModelRegistry, Predecessor, PromotedBy, Receipt, Trained, clusters, imputed};
use crate::slices::{SLICES, Slicing as _, Thirds, all_slices};
use crate::sql::{Files, Segmentation};

/// Runs until assignments are stable. The iteration limit has never been reached.
const LIMITS: Limits = Limits { iterations: 10_000, tolerance: 0.0 };
/// Minimum memory of a training in bytes.
const LEAST_MEMORY: usize = 256_000_000;
/// The part of it for the program and for reading the store's files, in bytes.
const READING: usize = 160 << 20;
/// Upper bound of a sort's memory per record in bytes.
const SORTED: u64 = 128;

/// An error that stops a whole training. An error of one model is recorded as its refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("the training was cut off: {0}")]
    Cut(String),
}

/// The result for one slice of one segmentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub segmentation: String,
    pub slice: u8,
    /// The model that serves now, old or new.
    pub model: Option<Model>,
    /// True if this training produced the model.
    pub fresh: bool,
    /// The reason why this training produced no model.
    pub refused: Option<String>,
    pub seconds: Seconds,
}

/// Durations in seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading, cleaning and ordering, shared by all slices of a segmentation.
    pub sql: f64,
    /// All work for this slice alone.
    pub train: f64,
}

/// Progress of a training.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// Number of rows that the SQL has returned so far.
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

/// Options of a training. They do not influence the model.
#[derive(Clone)]
pub struct Options {
    /// Memory limit in bytes. Larger data is trained out of core, in files.
    pub memory: usize,
    /// The engine that runs the SQL and the passes over its rows.
    pub engine: Engine,
    /// Callback for progress.
    pub tell: Arc<dyn Fn(Progress<'_>) + Send + Sync>,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: column_buffer::half_of_memory(), engine: Engine::Local, tell: Arc::new(|_| {}) }
    }
}

/// The stream at the start of this training.
struct Stream {
    topic: String,
    next_offsets: std::collections::BTreeMap<String, i64>,
    n: u64,
    cuts: [Option<Cut>; SLICES as usize],
}

/// The result of a training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Training {
    /// Number of records in the stream at the start of this training.
    pub n: u64,
    /// By segmentation, then by slice.
    pub outcomes: Vec<Outcome>,
}

impl Options {
    /// A third of the remaining memory is for SQL sorts; their merges and the batches in transit need memory too.
    fn share(&self) -> usize {
        self.memory.max(LEAST_MEMORY).saturating_sub(READING) / 3
    }

    /// Limits for the SQL over this number of records.
    fn limits(&self, records: u64) -> engine::Limits {
        // Parallel sorts that spill take memory from each other's merges and then fail.
        let serial = records.saturating_mul(SORTED) > self.share() as u64;
        engine::Limits { memory: Some(self.share()), serial, engine: self.engine.clone(), ..Default::default() }
    }

    /// The memory and temporary directory for the rows that the SQL returns.
    fn space(&self, store: &Store) -> Space {
        Space::new(self.share(), store.tmp())
    }
}

/// Trains every segmentation on every slice. A lock allows one training at a time.
pub async fn train(store: &Store, files: &Files, options: &Options) -> Result<Training, Error> {
    let _one_at_a_time = lock(store).await?;
    let snapshot = store.snapshot()?;
    let ctx = engine::open_within(&snapshot, files, options.limits(snapshot.rows())).await?;
    let segmentations = engine::segmentations(&ctx, files).await?;
    let stream = Arc::new(stream(&ctx, &snapshot).await?);
    let mut preparing = JoinSet::new();
    let outcomes = train_all((ctx, store), segmentations, (&stream, options), &mut preparing).await;
    // Cancelling the preparation of further segmentations deletes their temporary files.
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
    // On a cluster the next segmentation is prepared during the training of the current one, because that uses no local memory
    // and neither step uses all cores.
    let ahead = usize::from(options.engine != Engine::Local);
    let mut outcomes = Vec::new();
    coming.by_ref().take(1).for_each(|first| drop(preparing.spawn(first)));
    while let Some(prepared) = preparing.join_next().await {
        let (segmentation, rows) = prepared.map_err(|e| Error::Cut(e.to_string()))?;
        // A failure of the cluster is not a property of the rows.
        let rows = if options.engine == Engine::Local { rows } else { Ok(rows?) };
        coming.by_ref().take(ahead).for_each(|next| drop(preparing.spawn(next)));
        let (store, stream, options) = (store.clone(), Arc::clone(stream), options.clone());
        let work = move || match train_segmentation(&store, &segmentation, rows, (&stream, &options)) {
            // An unusable file concerns only this segmentation.
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
        let place = Thirds.end(n, slice) as i64;
        let row = found.values().iter().position(|&p| p == place)?;
        let timestamp = (!times.is_null(row)).then(|| times.value(row));
        Some(Cut { timestamp, partition: partitions.value(row), offset: offsets.value(row) })
    };
    Ok(Stream {
        topic: snapshot.topic.clone(),
        next_offsets: snapshot.next_offsets().into_iter().map(|(p, next)| (p.to_string(), next)).collect(),
        n,
        cuts: std::array::from_fn(|i| cut(i as u8 + 1)),
    })
}

/// The outcome of all slices for one unusable file: no models.
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

/// The model that serves a slice, if its file is usable, and the newest other model that may replace it.
struct ServingModels {
    earlier: Option<Model>,
    newest: Option<Model>,
    /// True if a version serves and its file is unusable.
    lost: bool,
}

impl ServingModels {
    /// Reads both. Each unusable file is reported once per training and skipped: new versions have new numbers, so nothing is
    /// overwritten.
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

/// The model, if its sample exists. Without a sample the model is trained again as a new version with a sample. On an object
/// store each check costs a request, so the check is skipped.
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
        // A pin remains valid while its model has the features of the current SQL. The pin of an unusable file remains valid
        // too, because the file may be restored.
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
        // `trained` is the model of these records, which may not be the serving model.
        let (model, trained, fresh, refused) = match trained {
            Ok(JobOutcome::New(mut new)) => {
                let version = registry.put(&mut new)?;
                if !standing.pinned {
                    standing.version = Some(version);
                }
                (Some(new.model.clone()), Some(new.model), true, None)
            }
            // A rollback ends when there are new records or SQL; a pin ends only when it is removed.
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
        // The result of an older training must not influence this one.
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

/// The training of one slice of one segmentation.
struct Job<'a> {
    segmentation: &'a Segmentation,
    slice: u8,
    stream: &'a Stream,
    options: &'a Options,
    /// The model whose cluster numbers are kept.
    predecessor: Option<&'a Model>,
    /// The model that serves this slice, if its features or k differ.
    replaced: Option<Predecessor>,
    /// The previous slice's model of these records; if that slice was refused, its serving model.
    before: Option<&'a Model>,
    /// The model that serves this slice.
    earlier: Option<&'a Model>,
    /// A newer model of this slice that does not serve: after a rollback, or after an interrupted training.
    newest: Option<&'a Model>,
    /// The previous slice's model trained on these same records; it seeds one additional restart.
    warm: Option<&'a Model>,
}

/// The result of a job.
enum JobOutcome {
    New(Box<Trained>),
    Known(Box<Model>),
}

impl Job<'_> {
    /// Trains a model, unless one with the same receipt exists.
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

    /// The inputs that determine a model of these rows.
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

    /// Trains the model.
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
        // After a model with another k or other features there is nothing to compare.
        let before = before.filter(|_| self.replaced.is_none());
        let changed = before.map(|before| words_changed(&described, features, &before)).unwrap_or_default();
        // A cluster may continue one of the previous slice but none of the model that served this slice.
        let new: Vec<bool> = new.into_iter().map(|new| new || self.replaced.is_some()).collect();
        let clusters = clusters(features, &fit, &profile, described, &new);
        let moved = self.moved(all, (&scale, &fit))?;
        let (sample, silhouette) = sample(rows, features, (&scale, &fit))?;
        let model = Model {
            segmentation: self.segmentation.name.clone(),
            slice: self.slice,
            version: 0,
            rows: rows.rows() as u64,
            rows_left_out: Thirds.end(self.stream.n, self.slice).saturating_sub(rows.rows() as u64),
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

    /// The previous slice's rows, by their cluster in its model and in this model.
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

/// A sample of the rows with their clusters, and its silhouette.
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
