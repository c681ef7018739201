//! Slices to models.
//!
//! Input: one fixed list of the store's files and the SQL files. Output: for each segmentation and each third of the
//! stream a model on the shelf, or a recorded reason why there is none.

mod numbers;
pub mod verify;

use std::fs::File;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{cast, filter, take};
use datafusion::arrow::datatypes::{
    DataType, Field, Float64Type, Int32Type, Int64Type, Schema, TimestampMillisecondType,
};
use datafusion::arrow::error::ArrowError;
use datafusion::prelude::SessionContext;
use ndarray::Array2;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::engine::{self, quote};
use crate::features::chunks::processors;
use crate::features::{self, Scale};
use crate::kmeans::{self, Fit, Init, Limits, Points, Settings};
use crate::model::describe::describe;
use crate::model::{
    By, Cluster, Cut, Model, Predecessor, Predictor, Receipt, SLICES, Shelf, Slices, Trained, shelf::all_slices,
};
use crate::rows::hex;
use crate::sql::{Files, Segmentation};
use crate::store::{self, Snapshot, Store};
use numbers::{newcomers, numbers};

pub use numbers::{by_features, renumbered};

/// What the starts are drawn with.
pub const SEED: u64 = 42;
/// Until assignments stop changing; that many passes are more than that ever took.
const LIMITS: Limits = Limits { iterations: 10_000, tolerance: 0.0 };
/// Rows of a model's sample.
const SAMPLE_ROWS: usize = 5_000;
const HASHED_AT_ONCE: usize = 1 << 16;

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

/// Why one slice of one segmentation has no new model.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no rows to train on")]
    NoRows,
    #[error(
        "the record at offset {offset} of partition {partition} comes twice; a segmentation gives each record once"
    )]
    Twice { partition: i32, offset: i64 },
    #[error(transparent)]
    Features(#[from] features::Error),
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
    #[error("{0}")]
    Arrow(#[from] ArrowError),
}

/// What became of one slice of one segmentation.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub segmentation: String,
    pub slice: u8,
    /// The model that serves now, old or new.
    pub model: Option<Model>,
    /// Whether this training made it.
    pub fresh: bool,
    /// Why this training made none.
    pub refused: Option<String>,
}

/// The stream as this training sees it.
struct Stream {
    topic: String,
    next_offsets: std::collections::BTreeMap<String, i64>,
    n: u64,
    cuts: [Option<Cut>; SLICES as usize],
}

/// A training.
#[derive(Debug, Clone)]
pub struct Training {
    /// Records in the stream as the training saw it.
    pub n: u64,
    /// By segmentation, then by slice.
    pub outcomes: Vec<Outcome>,
}

/// Trains every segmentation on every slice, one training at a time.
pub async fn train(store: &Store, files: &Files) -> Result<Training, Error> {
    let _one_at_a_time = lock(store).await?;
    let snapshot = store.snapshot()?;
    let ctx = engine::open(&snapshot, files).await?;
    let segmentations = engine::segmentations(&ctx, files).await?;
    let stream = Arc::new(stream(&ctx, &snapshot).await?);
    let mut outcomes = Vec::new();
    for segmentation in segmentations {
        let rows = rows(&ctx, &segmentation).await;
        let (store, stream) = (store.clone(), Arc::clone(&stream));
        let work = move || train_segmentation(&store, &segmentation, rows, &stream);
        let trained = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Cut(e.to_string()))?;
        outcomes.extend(trained?);
    }
    Ok(Training { n: stream.n, outcomes })
}

async fn lock(store: &Store) -> Result<File, Error> {
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

/// All rows of a segmentation, in stream order.
struct Rows {
    partitions: ArrayRef,
    offsets: ArrayRef,
    timestamps: ArrayRef,
    slices: ArrayRef,
    features: Vec<Float64Array>,
}

async fn rows(ctx: &SessionContext, segmentation: &Segmentation) -> Result<Rows, engine::Error> {
    let names: Vec<String> = (0..segmentation.features.len()).map(|i| format!("feature_{i}")).collect();
    let names = names.join(", ");
    let features: Vec<String> = segmentation
        .features
        .iter()
        .enumerate()
        .map(|(i, feature)| format!("CAST({} AS DOUBLE) AS feature_{i}", quote(feature)))
        .collect();
    let sql = format!(
        "SELECT _partition, _offset, CAST(_timestamp AS BIGINT) AS milliseconds, _slice, {names}
         FROM (SELECT CAST(_partition AS INT) AS _partition, CAST(_offset AS BIGINT) AS _offset,
                 arrow_cast(_timestamp, 'Timestamp(Millisecond, None)') AS _timestamp,
                 CAST(_slice AS BIGINT) AS _slice, {} FROM {})
         ORDER BY _timestamp NULLS FIRST, _partition, _offset",
        features.join(", "),
        quote(&segmentation.name)
    );
    let named = |e| match e {
        engine::Error::Query(why) => engine::Error::View { file: segmentation.file.clone(), why },
        other => other,
    };
    let batch = engine::collect(ctx, &sql).await.map_err(named)?;
    let column = |i: usize| Arc::clone(batch.column(i));
    Ok(Rows {
        partitions: column(0),
        offsets: column(1),
        timestamps: column(2),
        slices: column(3),
        features: (4..batch.num_columns()).map(|i| batch.column(i).as_primitive().clone()).collect(),
    })
}

impl Rows {
    /// The rows of the first `slice` slices.
    fn up_to(&self, slice: u8) -> Result<Self, ArrowError> {
        let slices = self.slices.as_primitive::<Int64Type>();
        // As the shipped files cut slices, they are prefixes of the stream, which need no copy.
        if slices.null_count() == 0 && slices.values().is_sorted() {
            let end = slices.values().partition_point(|&s| s <= i64::from(slice));
            return Ok(Self {
                partitions: self.partitions.slice(0, end),
                offsets: self.offsets.slice(0, end),
                timestamps: self.timestamps.slice(0, end),
                slices: self.slices.slice(0, end),
                features: self.features.iter().map(|column| column.slice(0, end)).collect(),
            });
        }
        let mask: BooleanArray = slices.iter().map(|s| Some(s.is_some_and(|s| s <= i64::from(slice)))).collect();
        let kept = |column: &ArrayRef| filter(column, &mask);
        let features: Result<_, ArrowError> =
            self.features.iter().map(|column| Ok(filter(column, &mask)?.as_primitive().clone())).collect();
        Ok(Self {
            partitions: kept(&self.partitions)?,
            offsets: kept(&self.offsets)?,
            timestamps: kept(&self.timestamps)?,
            slices: kept(&self.slices)?,
            features: features?,
        })
    }

    fn len(&self) -> usize {
        self.offsets.len()
    }

    /// In stream order a record that comes twice stands beside itself.
    fn check_distinct(&self) -> Result<(), Refusal> {
        let offsets = self.offsets.as_primitive::<Int64Type>().values();
        let partitions = self.partitions.as_primitive::<Int32Type>().values();
        let twice = (1..self.len()).find(|&i| (partitions[i], offsets[i]) == (partitions[i - 1], offsets[i - 1]));
        twice.map_or(Ok(()), |i| Err(Refusal::Twice { partition: partitions[i], offset: offsets[i] }))
    }

    fn hash(&self) -> String {
        let mut hasher = Sha256::new();
        let offsets = self.offsets.as_primitive::<Int64Type>();
        let partitions = self.partitions.as_primitive::<Int32Type>();
        let timestamps = self.timestamps.as_primitive::<Int64Type>();
        // The hasher likes long pieces.
        let mut bytes = Vec::with_capacity(HASHED_AT_ONCE);
        for row in 0..self.len() {
            bytes.extend(partitions.value(row).to_le_bytes());
            bytes.extend(offsets.value(row).to_le_bytes());
            bytes.push(u8::from(timestamps.is_null(row)));
            bytes.extend(timestamps.value(row).to_le_bytes());
            for feature in &self.features {
                bytes.push(u8::from(feature.is_null(row)));
                bytes.extend(feature.value(row).to_le_bytes());
            }
            if bytes.len() > HASHED_AT_ONCE - 1024 {
                hasher.update(&bytes);
                bytes.clear();
            }
        }
        hasher.update(&bytes);
        hex(&hasher.finalize())
    }
}

fn train_segmentation(
    store: &Store,
    segmentation: &Segmentation,
    rows: Result<Rows, engine::Error>,
    stream: &Stream,
) -> Result<Vec<Outcome>, Error> {
    let shelf = Shelf::new(store, &segmentation.name);
    let mut standings: Slices = shelf.slices()?;
    let mut outcomes = Vec::new();
    let mut before: Option<Model> = None;
    let mut warm = false;
    for slice in all_slices() {
        let standing = standings.entry(slice).or_default();
        let earlier = standing.version.map(|version| shelf.model(version)).transpose()?;
        let newest = shelf.newest(slice, standing.version)?;
        let fits = |model: &&Model| model.features == segmentation.features && model.k as usize == segmentation.k;
        let predecessor = earlier.as_ref().filter(fits).or(before.as_ref().filter(fits));
        let job = Job {
            segmentation,
            slice,
            stream,
            predecessor,
            before: before.as_ref(),
            earlier: earlier.as_ref(),
            newest: newest.as_ref(),
            warm: before.as_ref().filter(|model| warm && fits(model)),
        };
        let trained = match &rows {
            Ok(rows) => job.run(rows).map_err(|refusal| refusal.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // `trained` is the model of these records, which may not be the one that serves.
        let (model, trained, fresh, refused) = match trained {
            Ok(Ran::New(mut new)) => {
                standing.version = Some(shelf.put(&mut new)?);
                (Some(new.model.clone()), Some(new.model), true, None)
            }
            // A rollback holds until there is something new to learn from.
            Ok(Ran::Known(known)) if standing.by == Some(By::Rollback) => (earlier, Some(*known), false, None),
            Ok(Ran::Known(known)) => {
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
        outcomes.push(Outcome { segmentation: segmentation.name.clone(), slice, model, fresh, refused });
    }
    shelf.serve(&standings, By::Training)?;
    Ok(outcomes)
}

/// One slice of one segmentation.
struct Job<'a> {
    segmentation: &'a Segmentation,
    slice: u8,
    stream: &'a Stream,
    /// Whose cluster numbers are kept.
    predecessor: Option<&'a Model>,
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
enum Ran {
    New(Box<Trained>),
    Known(Box<Model>),
}

impl Job<'_> {
    /// A new model, unless one was trained on just the same.
    fn run(&self, all: &Rows) -> Result<Ran, Refusal> {
        let rows = self.rows(all)?;
        let receipt = self.receipt(&rows);
        let known = [self.earlier, self.newest].into_iter().flatten();
        if let Some(known) = known.into_iter().find(|model| model.receipt.same_but_predecessor(&receipt)) {
            return Ok(Ran::Known(Box::new(known.clone())));
        }
        Ok(Ran::New(Box::new(self.fit(all, &rows, receipt)?)))
    }

    fn rows(&self, all: &Rows) -> Result<Rows, Refusal> {
        let rows = all.up_to(self.slice)?;
        if rows.len() == 0 {
            return Err(Refusal::NoRows);
        }
        rows.check_distinct()?;
        Ok(rows)
    }

    /// What a model of these rows follows from.
    fn receipt(&self, rows: &Rows) -> Receipt {
        Receipt {
            topic: self.stream.topic.clone(),
            next_offsets: self.stream.next_offsets.clone(),
            n: self.stream.n,
            cut: self.stream.cuts[usize::from(self.slice) - 1].clone(),
            rows_hash: rows.hash(),
            sql_hash: self.segmentation.sql_hash.clone(),
            starts: kmeans::starts_for(rows.len()) as u64,
            predecessor: self.predecessor.map(|m| Predecessor { slice: m.slice, version: m.version }),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The model.
    fn fit(&self, all: &Rows, rows: &Rows, receipt: Receipt) -> Result<Trained, Refusal> {
        let Segmentation { features, k, labels, .. } = self.segmentation;
        let scale = Scale::measure(features, &rows.features, processors())?;
        let points = Points::new(&scale, &rows.features);
        let warm = self.warm.map(Model::centroids);
        let fit = kmeans::fit(&points, &settings(*k, receipt.starts as usize), Init::Drawn(warm.as_ref()), &|_| {})?;
        let number = numbers(&scale, &fit.centroids, self.predecessor);
        let fit = renumbered(fit, &number);
        let new = newcomers(&scale, &fit.centroids, self.predecessor);

        let descriptions = describe(fit.centroids.view(), features, labels);
        let clusters = descriptions
            .into_iter()
            .enumerate()
            .map(|(cluster, descriptions)| Cluster {
                cluster: cluster as u32,
                description: descriptions.get("en").cloned().unwrap_or_default(),
                descriptions,
                size: fit.sizes[cluster],
                new: new[cluster],
                centroid: features.iter().cloned().zip(fit.centroids.row(cluster).iter().copied()).collect(),
            })
            .collect();
        let moved = self.moved(all, (&scale, &fit))?;
        let (sample, silhouette) = sample(rows, features, (&scale, &fit))?;
        let model = Model {
            segmentation: self.segmentation.name.clone(),
            slice: self.slice,
            version: 0,
            rows: rows.len() as u64,
            rows_left_out: slice_end(self.stream.n, self.slice).saturating_sub(rows.len() as u64),
            features: features.clone(),
            mean: scale.mean,
            std: scale.std,
            k: *k as u32,
            seed: SEED,
            inertia: fit.inertia,
            silhouette,
            iterations: fit.iterations as u64,
            trained_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            moved,
            clusters,
            receipt,
        };
        Ok(Trained { model, sample })
    }

    /// The previous slice's rows, by their cluster in its model and in this one.
    fn moved(&self, all: &Rows, (scale, fit): (&Scale, &Fit)) -> Result<Option<Vec<Vec<u64>>>, ArrowError> {
        let Some(before) = self.before.filter(|model| model.features == self.segmentation.features) else {
            return Ok(None);
        };
        let rows = all.up_to(self.slice - 1)?;
        let (old, new) = (before.scale(), Points::new(scale, &rows.features));
        let from = (&Points::new(&old, &rows.features), &before.centroids());
        Ok(Some(kmeans::cross(from, (&new, &fit.centroids), processors())))
    }
}

fn settings(k: usize, starts: usize) -> Settings {
    Settings { k, seed: SEED, starts, limits: LIMITS, threads: processors() }
}

/// Rows ⌊j·n/m⌋ for m = min(n, 5,000).
fn sample_rows(n: usize) -> Vec<u32> {
    let m = n.min(SAMPLE_ROWS);
    (0..m).map(|j| (j as u128 * n as u128 / m as u128) as u32).collect()
}

/// Some of the rows with their clusters, and how well those are set apart.
fn sample(
    rows: &Rows,
    features: &[String],
    (scale, fit): (&Scale, &Fit),
) -> Result<(RecordBatch, Option<f64>), ArrowError> {
    let places = UInt32Array::from(sample_rows(rows.len()));
    let mut fields =
        vec![Field::new("_partition", DataType::Int32, true), Field::new("_offset", DataType::Int64, true)];
    let mut columns = vec![take(&rows.partitions, &places, None)?, take(&rows.offsets, &places, None)?];
    let mut values: Vec<Float64Array> = Vec::with_capacity(features.len());
    for ((name, column), mean) in features.iter().zip(&rows.features).zip(&scale.mean) {
        fields.push(Field::new(name, DataType::Float64, false));
        let taken = take(column, &places, None)?;
        let imputed: Float64Array = taken.as_primitive::<Float64Type>().iter().map(|v| v.or(Some(*mean))).collect();
        columns.push(Arc::new(imputed.clone()));
        values.push(imputed);
    }
    let points = Points::new(scale, &values);
    let labels = kmeans::assign(&points, &fit.centroids, 1);
    let silhouette = kmeans::silhouette(&points, &labels, fit.sizes.len(), processors());
    fields.push(Field::new("cluster", DataType::UInt32, false));
    columns.push(Arc::new(labels.into_iter().map(|label| Some(u32::from(label))).collect::<UInt32Array>()));
    Ok((RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?, silhouette))
}

/// Clusters of rows that came with a request: no store, no version, numbered by the first feature.
pub struct Adhoc {
    pub predictor: Predictor,
    /// k by features, in original units.
    pub centroids: Array2<f64>,
    pub labels: Vec<u32>,
}

/// Clusters columns of the same length in `k` clusters, or in as many as there are different rows.
pub fn fit_adhoc(names: &[String], columns: &[Float64Array], k: usize) -> Result<Adhoc, AdhocError> {
    let scale = Scale::measure(names, columns, processors())?;
    let points = Points::new(&scale, columns);
    let starts = kmeans::starts_for(points.rows());
    let mut k = k;
    let fit = loop {
        match kmeans::fit(&points, &settings(k, starts), Init::Drawn(None), &|_| {}) {
            Err(kmeans::Error::TooFew { distinct, .. }) if distinct > 0 => k = distinct,
            other => break other?,
        }
    };
    let number = by_features(&fit.centroids);
    let Fit { centroids, .. } = renumbered(fit, &number);
    let labels = kmeans::assign(&points, &centroids, processors()).into_iter().map(u32::from).collect();
    Ok(Adhoc { predictor: Predictor::new(scale, &centroids), centroids, labels })
}

/// Why rows of a request could not be clustered.
#[derive(Debug, thiserror::Error)]
pub enum AdhocError {
    #[error(transparent)]
    Features(#[from] features::Error),
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
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

    #[test]
    fn samples_are_spread_evenly() {
        assert_eq!(sample_rows(3), [0, 1, 2]);
        let sample = sample_rows(12_500);
        assert_eq!((sample.len(), &sample[..5]), (5000, &[0, 2, 5, 7, 10][..]));
    }

    #[test]
    fn the_examples_of_a_request_get_their_own_clusters() {
        let names = ["price".to_owned(), "rating".to_owned()];
        let columns = [Float64Array::from(vec![300.0, 1200.0, 700.0]), Float64Array::from(vec![4.5, 3.5, 4.0])];
        let found = fit_adhoc(&names, &columns, 3).unwrap();
        assert_eq!(found.labels, [0, 2, 1]);
        let two = [Float64Array::from(vec![60.0, 25.0, 60.0])];
        assert_eq!(fit_adhoc(&names[..1], &two, 3).unwrap().labels, [1, 0, 1]);
    }
}
