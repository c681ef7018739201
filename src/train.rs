//! Slices to models.
//!
//! Input: one fixed list of the store's files and the SQL files. Output: for each segmentation and each third of the
//! stream a model on the shelf, or a recorded reason why there is none.

use std::fs::File;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{cast, filter, take};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMillisecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::prelude::SessionContext;
use ndarray::{Array2, ArrayView2};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::engine::{self, quote};
use crate::features::{self, Matrix, Scale, compensated_sum};
use crate::kmeans;
use crate::model::describe::describe;
use crate::model::{
    Cluster, Cut, Model, Predecessor, Predictor, Receipt, SLICES, Shelf, Slices, Trained, shelf::all_slices,
};
use crate::rows::hex;
use crate::sql::{Files, Segmentation};
use crate::store::{self, Snapshot, Store};

/// What the starts are drawn with.
pub const SEED: u64 = 42;
/// Rows of a model's sample.
const SAMPLE_ROWS: usize = 5_000;

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
    let models = store.models();
    let path = models.join("train.lock");
    let locked = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&models).map_err(store::Error::io("make", &models))?;
        let file = File::create(&path).map_err(store::Error::io("write", &path))?;
        file.lock().map_err(store::Error::io("lock", &path))?;
        Ok::<_, store::Error>(file)
    });
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
        for row in 0..self.len() {
            hasher.update(partitions.value(row).to_le_bytes());
            hasher.update(offsets.value(row).to_le_bytes());
            hasher.update([u8::from(timestamps.is_null(row))]);
            hasher.update(timestamps.value(row).to_le_bytes());
            for feature in &self.features {
                hasher.update([u8::from(feature.is_null(row))]);
                hasher.update(feature.value(row).to_le_bytes());
            }
        }
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
    for slice in all_slices() {
        let standing = standings.entry(slice).or_default();
        let earlier = standing.version.map(|version| shelf.model(version)).transpose()?;
        let fits = |model: &&Model| model.features == segmentation.features && model.k as usize == segmentation.k;
        let predecessor = earlier.as_ref().filter(fits).or(before.as_ref().filter(fits));
        let job = Job { segmentation, slice, stream, predecessor, before: before.as_ref(), earlier: earlier.as_ref() };
        let trained = match &rows {
            Ok(rows) => job.run(rows).map_err(|refusal| refusal.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let (model, fresh, refused) = match trained {
            Ok(Some(mut trained)) => {
                standing.version = Some(shelf.put(&mut trained)?);
                (Some(trained.model), true, None)
            }
            Ok(None) => (earlier, false, None),
            Err(why) => (earlier, false, Some(format!("{} of slice {slice}: {why}", segmentation.name))),
        };
        standing.refused.clone_from(&refused);
        before.clone_from(&model);
        outcomes.push(Outcome { segmentation: segmentation.name.clone(), slice, model, fresh, refused });
    }
    shelf.serve(&standings)?;
    Ok(outcomes)
}

/// One slice of one segmentation.
struct Job<'a> {
    segmentation: &'a Segmentation,
    slice: u8,
    stream: &'a Stream,
    /// Whose cluster numbers are kept.
    predecessor: Option<&'a Model>,
    /// The model that serves the slice before.
    before: Option<&'a Model>,
    /// The model that serves this slice.
    earlier: Option<&'a Model>,
}

impl Job<'_> {
    /// A new model, or none where the one that serves was trained on just the same.
    fn run(&self, all: &Rows) -> Result<Option<Trained>, Refusal> {
        let rows = all.up_to(self.slice)?;
        if rows.len() == 0 {
            return Err(Refusal::NoRows);
        }
        rows.check_distinct()?;
        let starts = kmeans::starts_for(rows.len());
        let receipt = Receipt {
            topic: self.stream.topic.clone(),
            next_offsets: self.stream.next_offsets.clone(),
            n: self.stream.n,
            cut: self.stream.cuts[usize::from(self.slice) - 1].clone(),
            rows_hash: rows.hash(),
            sql_hash: self.segmentation.sql_hash.clone(),
            starts: starts as u64,
            predecessor: self.predecessor.map(|m| Predecessor { slice: m.slice, version: m.version }),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if self.earlier.is_some_and(|model| model.receipt.same_but_predecessor(&receipt)) {
            return Ok(None);
        }
        let Segmentation { features, k, labels, .. } = self.segmentation;
        let scale = Scale::measure(features, &rows.features)?;
        let matrix = Matrix::build(&scale, &rows.features)?;
        let fit = kmeans::fit(matrix.view(), *k, SEED, starts)?;
        let found = Settled::from(&scale, &rows.features, matrix.view(), &fit.labels, *k);
        let number = numbers(&found, self.predecessor);
        let found = found.renumbered(&number);

        let descriptions = describe(found.centroids.view(), features, labels);
        let clusters = descriptions
            .into_iter()
            .enumerate()
            .map(|(cluster, descriptions)| Cluster {
                cluster: cluster as u32,
                description: descriptions.get("en").cloned().unwrap_or_default(),
                descriptions,
                size: found.sizes[cluster],
                centroid: features.iter().cloned().zip(found.centroids.row(cluster).iter().copied()).collect(),
            })
            .collect();
        let sample = sample_rows(rows.len());
        let silhouette = self.silhouette(&matrix, &found.labels, &sample);
        let moved = self.moved(all, &found)?;
        let sample = sample_batch(&rows, features, &scale, &found.labels, sample)?;
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
            inertia: found.inertia,
            silhouette,
            iterations: fit.iterations as u64,
            trained_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            moved,
            clusters,
            receipt,
        };
        Ok(Some(Trained { model, sample }))
    }

    fn silhouette(&self, matrix: &Matrix, labels: &[u32], sample: &[u32]) -> Option<f64> {
        let view = matrix.view();
        let rows = Array2::from_shape_fn((sample.len(), view.ncols()), |(i, f)| view[[sample[i] as usize, f]]);
        let labels: Vec<u32> = sample.iter().map(|&row| labels[row as usize]).collect();
        kmeans::silhouette(rows.view(), &labels, self.segmentation.k)
    }

    /// The previous slice's rows, by their cluster in its model and in this one.
    fn moved(&self, all: &Rows, found: &Settled) -> Result<Option<Vec<Vec<u64>>>, ArrowError> {
        let Some(before) = self.before.filter(|model| model.features == self.segmentation.features) else {
            return Ok(None);
        };
        let rows = all.up_to(self.slice - 1)?;
        let from = before.predictor().assign(&rows.features);
        let to = found.predictor.assign(&rows.features);
        let mut moved = vec![vec![0; self.segmentation.k]; before.k as usize];
        for (from, to) in from.into_iter().zip(to) {
            moved[from as usize][to as usize] += 1;
        }
        Ok(Some(moved))
    }
}

/// Clusters in original units, such that each row's label is what the model itself would predict.
struct Settled {
    predictor: Predictor,
    /// k by features, in original units.
    centroids: Array2<f64>,
    labels: Vec<u32>,
    sizes: Vec<u64>,
    inertia: f64,
    scale: Scale,
}

impl Settled {
    fn from(scale: &Scale, columns: &[Float64Array], rows: ArrayView2<'_, f64>, labels: &[u32], k: usize) -> Self {
        let mut labels = labels.to_vec();
        // Standardising the means in original units rounds otherwise than averaging standardised rows did, so a row
        // that stands on a border may still change sides; it hardly ever takes a second round.
        for _ in 0..20 {
            let centroids = original_means(scale, columns, &labels, k);
            let next = Predictor::new(scale.clone(), &centroids).assign(columns);
            if next == labels {
                break;
            }
            labels = next;
        }
        let centroids = original_means(scale, columns, &labels, k);
        Self::at(scale, centroids, rows, labels)
    }

    fn at(scale: &Scale, centroids: Array2<f64>, rows: ArrayView2<'_, f64>, labels: Vec<u32>) -> Self {
        let predictor = Predictor::new(scale.clone(), &centroids);
        let mut sizes = vec![0; centroids.nrows()];
        labels.iter().for_each(|&label| sizes[label as usize] += 1);
        let inertia = kmeans::inertia(rows, &labels, predictor.centroids());
        Self { predictor, centroids, labels, sizes, inertia, scale: scale.clone() }
    }

    /// `number[cluster]` is the number that a cluster gets.
    fn renumbered(self, number: &[usize]) -> Self {
        let mut centroids = self.centroids.clone();
        let mut sizes = self.sizes.clone();
        for (cluster, &new) in number.iter().enumerate() {
            centroids.row_mut(new).assign(&self.centroids.row(cluster));
            sizes[new] = self.sizes[cluster];
        }
        let labels = self.labels.iter().map(|&label| number[label as usize] as u32).collect();
        let predictor = Predictor::new(self.scale.clone(), &centroids);
        Self { predictor, centroids, labels, sizes, ..self }
    }
}

/// The mean of each cluster's rows in original units, missing values taken as the feature's mean.
fn original_means(scale: &Scale, columns: &[Float64Array], labels: &[u32], k: usize) -> Array2<f64> {
    let mut means = Array2::zeros((k, columns.len()));
    for (feature, column) in columns.iter().enumerate() {
        let (mean, std) = (scale.mean[feature], scale.std[feature]);
        for cluster in 0..k {
            let values = || {
                let rows = labels.iter().enumerate().filter(|(_, label)| **label as usize == cluster);
                rows.map(|(row, _)| if column.is_null(row) { mean } else { column.value(row) })
            };
            let count = values().count() as f64;
            let direct = compensated_sum(values()) / count;
            means[[cluster, feature]] = if std == 0.0 || count == 0.0 {
                mean
            } else if direct.is_finite() {
                direct
            } else {
                // The sum left the range of a double; the standardised values' does not.
                mean + std * (compensated_sum(values().map(|v| scale.standardise(feature, v))) / count)
            };
        }
    }
    means
}

/// The number of each cluster: its predecessor's, matched by the least sum of squared distances in the new model's
/// units, or else its rank by the first feature (and those after it, where equal).
fn numbers(found: &Settled, predecessor: Option<&Model>) -> Vec<usize> {
    let new = found.predictor.centroids();
    match predecessor {
        Some(model) => {
            let old = Predictor::new(found.scale.clone(), &model.centroids());
            let old = old.centroids();
            let cost = Array2::from_shape_fn((new.nrows(), old.nrows()), |(i, j)| {
                new.row(i).iter().zip(old.row(j)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
            });
            kmeans::match_rows(cost.view())
        }
        None => by_features(&found.centroids),
    }
}

/// The rank of each centroid by its first feature, and by those after it where equal.
pub fn by_features(centroids: &Array2<f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..centroids.nrows()).collect();
    order.sort_by(|&a, &b| {
        let orders = centroids.row(a).into_iter().zip(centroids.row(b)).map(|(x, y)| x.total_cmp(y));
        orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    let mut number = vec![0; order.len()];
    for (rank, &cluster) in order.iter().enumerate() {
        number[cluster] = rank;
    }
    number
}

/// Rows ⌊j·n/m⌋ for m = min(n, 5,000).
fn sample_rows(n: usize) -> Vec<u32> {
    let m = n.min(SAMPLE_ROWS);
    (0..m).map(|j| (j as u128 * n as u128 / m as u128) as u32).collect()
}

fn sample_batch(
    rows: &Rows,
    features: &[String],
    scale: &Scale,
    labels: &[u32],
    sample: Vec<u32>,
) -> Result<RecordBatch, ArrowError> {
    let sample = UInt32Array::from(sample);
    let mut fields =
        vec![Field::new("_partition", DataType::Int32, true), Field::new("_offset", DataType::Int64, true)];
    let mut columns = vec![take(&rows.partitions, &sample, None)?, take(&rows.offsets, &sample, None)?];
    for (feature, (name, column)) in features.iter().zip(&rows.features).enumerate() {
        fields.push(Field::new(name, DataType::Float64, false));
        let mean = scale.mean[feature];
        let imputed: Float64Array = column.iter().map(|value| Some(value.unwrap_or(mean))).collect();
        columns.push(take(&imputed, &sample, None)?);
    }
    fields.push(Field::new("cluster", DataType::UInt32, false));
    columns.push(take(&UInt32Array::from(labels.to_vec()), &sample, None)?);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
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
    let scale = Scale::measure(names, columns)?;
    let matrix = Matrix::build(&scale, columns)?;
    let starts = kmeans::starts_for(matrix.view().nrows());
    let mut k = k;
    let fit = loop {
        match kmeans::fit(matrix.view(), k, SEED, starts) {
            Err(kmeans::Error::TooFew { distinct, .. }) if distinct > 0 => k = distinct,
            other => break other?,
        }
    };
    let found = Settled::from(&scale, columns, matrix.view(), &fit.labels, k);
    let number = by_features(&found.centroids);
    let Settled { predictor, centroids, labels, .. } = found.renumbered(&number);
    Ok(Adhoc { predictor, centroids, labels })
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
