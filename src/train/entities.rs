//! The rows of a segmentation of entities: one row per entity, from the records of each slice.
//!
//! Input: the view, evaluated once per slice in a session that has the records of slices 1 to i only. Output: the operations
//! of a training ([`Rows`]). Rows are sorted by their keys, which are kept in memory; features may be out of core. The SQL
//! always runs in this process.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{cast, concat, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use ndarray::Array2;
use sha2::{Digest as _, Sha256};
use tercile_kmeans::column_buffer::{self, Growing, Space};
use tercile_kmeans::parallel::{CHUNK, by_chunk, processors};
use tercile_kmeans::{self as kmeans, Points};
use tercile_store::Store;

use super::comparison::{Counts, Versus};
use super::dataset::{Digested, Input, Keys, LocalSlice, Moved, Placed, Prefix, Rows, hash_of};
use super::view_query::{advised, named};
use super::{Options, Progress, Refusal};
use crate::engine::cluster::Engine;
use crate::engine::{self, UpTo};
use crate::missing::shortened;
use crate::model::members::{Order, clusters as clusters_of};
use crate::model::{Model, ModelRegistry, MovedBy, Predictor};
use crate::slices::all_slices;
use crate::sql::{Segmentation, quote};

/// Common entities whose features are compared at once.
const PIECE: usize = 16 * CHUNK;

/// The entities of all slices.
pub(super) struct Entities {
    /// By slice; the reason why the view could not be evaluated.
    slices: Vec<Result<Slice, String>>,
    took: Duration,
}

/// The entities of one slice, sorted by key.
pub(super) struct Slice {
    /// Key columns in the order of the header.
    pub keys: Vec<ArrayRef>,
    pub features: Vec<Float64Array>,
    /// Rows of the view without a key, which are left out.
    pub without_key: u64,
    /// One digest per chunk.
    pieces: Vec<Digested>,
    twice: Option<Twice>,
}

/// An entity that occurs more than once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Twice {
    key: String,
    count: u64,
    /// The number of further entities that do.
    others: u64,
}

/// Evaluates the view once per slice.
pub(super) async fn rows(
    input: &Input,
    segmentation: &Segmentation,
    (options, store): (&Options, &Store),
) -> Result<Entities, engine::Error> {
    let began = Instant::now();
    let mut slices = Vec::new();
    for slice in all_slices() {
        let evaluate = async |serial| {
            let limits = engine::Limits {
                up_to: Some(UpTo { cuts: input.cuts.clone(), slice }),
                engine: Engine::Local,
                damage: engine::damage(&input.ctx),
                serial,
                ..options.limits(input.snapshot.rows())
            };
            let ctx = engine::open_within(&input.snapshot, &input.files, limits).await?;
            read(&ctx, segmentation, (options, &options.space(store))).await
        };
        let mut read = evaluate(false).await;
        if read.as_ref().is_err_and(is_out_of_memory) {
            // Operators that spill side by side take memory from each other, and one of them may get too little.
            tracing::debug!("{} is evaluated again, without parallelism: too little memory", segmentation.name);
            read = evaluate(true).await;
        }
        slices.push(read.map_err(|error| named(segmentation, error).to_string()));
    }
    Ok(Entities { slices, took: began.elapsed() })
}

fn is_out_of_memory(error: &engine::Error) -> bool {
    error.to_string().contains("Resources exhausted")
}

async fn read(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    (options, space): (&Options, &Space),
) -> Result<Slice, engine::Error> {
    let view = |why: String| engine::Error::View { file: segmentation.file.clone(), why };
    let kept = |error: io::Error| view(format!("cannot keep its rows: {error}"));
    let mut growing = Columns::new(segmentation);
    let mut batches = engine::stream(ctx, &query(ctx, segmentation).await?).await?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| view(advised(engine::explain(&e))))?;
        growing.append(&batch).map_err(kept)?;
        if !space.holds(growing.held()) {
            growing.spill(space).map_err(kept)?;
        }
        (options.tell)(Progress::Rows { segmentation: &segmentation.name, rows: growing.rows });
    }
    let entity = segmentation.entity.clone();
    let finished = tokio::task::spawn_blocking(move || growing.finish(&entity));
    finished.await.map_err(|e| view(e.to_string()))?.map_err(kept)
}

/// Keys, then features, sorted by the keys. Text has one type, so that keys of two slices compare.
async fn query(ctx: &SessionContext, segmentation: &Segmentation) -> Result<String, engine::Error> {
    let table = engine::plan(ctx, &format!("SELECT * FROM {}", quote(&segmentation.name))).await?;
    let mut columns = Vec::new();
    for (i, name) in segmentation.entity.iter().enumerate() {
        let is_text = table.schema().fields().iter().any(|field| field.name() == name && field.data_type().is_string());
        let column = quote(name);
        let key = if is_text { format!("arrow_cast({column}, 'Utf8View')") } else { column };
        columns.push(format!("{key} AS key_{i}"));
    }
    for (i, name) in segmentation.features.iter().enumerate() {
        columns.push(format!("CAST({} AS DOUBLE) AS feature_{i}", quote(name)));
    }
    let keys: Vec<String> = (0..segmentation.entity.len()).map(|i| format!("key_{i}")).collect();
    Ok(format!("SELECT {} FROM {} ORDER BY {}", columns.join(", "), quote(&segmentation.name), keys.join(", ")))
}

/// Column builders for the rows of [`query`].
struct Columns {
    /// Per batch.
    keys: Vec<Vec<ArrayRef>>,
    key_bytes: usize,
    key_columns: usize,
    features: Vec<Growing<Float64Type>>,
    rows: usize,
    without_key: u64,
}

impl Columns {
    fn new(segmentation: &Segmentation) -> Self {
        Self {
            keys: Vec::new(),
            key_bytes: 0,
            key_columns: segmentation.entity.len(),
            features: segmentation.features.iter().map(|_| Growing::new(0)).collect(),
            rows: 0,
            without_key: 0,
        }
    }

    fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let has_key = |row| batch.columns()[..self.key_columns].iter().all(|key| key.is_valid(row));
        let keyed: BooleanArray = (0..batch.num_rows()).map(|row| Some(has_key(row))).collect();
        self.without_key += (keyed.len() - keyed.true_count()) as u64;
        let batch = filter_record_batch(batch, &keyed).map_err(io::Error::other)?;
        self.rows += batch.num_rows();
        // A view of text would keep the buffers of the rows that it was taken from.
        let compact = |key: &ArrayRef| match key.as_string_view_opt() {
            Some(text) => Arc::new(text.gc()) as ArrayRef,
            None => key.clone(),
        };
        let keys: Vec<ArrayRef> = batch.columns()[..self.key_columns].iter().map(compact).collect();
        self.key_bytes += keys.iter().map(|key| key.get_array_memory_size()).sum::<usize>();
        self.keys.push(keys);
        for (to, from) in self.features.iter_mut().zip(&batch.columns()[self.key_columns..]) {
            // Minus zero depends on the order of additions; it becomes zero.
            to.append(&from.as_primitive::<Float64Type>().unary(|value| value + 0.0))?;
        }
        Ok(())
    }

    fn held(&self) -> usize {
        self.key_bytes + self.features.iter().map(Growing::held).sum::<usize>()
    }

    fn spill(&mut self, space: &Space) -> io::Result<()> {
        self.features.iter_mut().try_for_each(|column| column.spill(space))
    }

    fn finish(self, entity: &[String]) -> io::Result<Slice> {
        let mut keys = Vec::with_capacity(self.key_columns);
        for column in 0..self.key_columns {
            let parts: Vec<&dyn Array> = self.keys.iter().map(|keys| keys[column].as_ref()).collect();
            // A query without rows has no batches: the column is empty, and its type does not matter.
            let whole = if parts.is_empty() {
                Ok(datafusion::arrow::array::new_empty_array(&DataType::Int64))
            } else {
                concat(&parts)
            };
            keys.push(whole.map_err(io::Error::other)?);
        }
        let features = self.features.into_iter().map(Growing::finish).collect::<io::Result<_>>()?;
        let mut slice = Slice { keys, features, without_key: self.without_key, pieces: Vec::new(), twice: None };
        slice.twice = slice.find_twice(entity).map_err(io::Error::other)?;
        let digests = by_chunk(slice.rows(), processors(), |rows| slice.digest(rows));
        slice.pieces = digests.into_iter().collect::<Result<_, _>>().map_err(io::Error::other)?;
        Ok(slice)
    }
}

impl Slice {
    pub fn rows(&self) -> usize {
        self.keys.first().map_or(0, |key| key.len())
    }

    /// SHA-256 of rows. Per row and key column: of text its length as 8 bytes and its bytes, of other types 8 bytes of the
    /// integer, the number of days or milliseconds, or the boolean as 0 or 1. Features as in a segmentation of records.
    fn digest(&self, rows: std::ops::Range<usize>) -> Result<Digested, ArrowError> {
        let part = |key: &ArrayRef| -> Result<ArrayRef, ArrowError> {
            let part = key.slice(rows.start, rows.len());
            match key.data_type() {
                DataType::Utf8View => Ok(part),
                // The same eight bytes.
                DataType::UInt64 => Ok(part),
                DataType::Date32 => cast(&cast(&part, &DataType::Int32)?, &DataType::Int64),
                _ => cast(&part, &DataType::Int64),
            }
        };
        let keys = self.keys.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let mut bytes = Vec::with_capacity(rows.len() * (24 * keys.len() + 9 * self.features.len()));
        for row in rows.clone() {
            for key in &keys {
                let row = row - rows.start;
                if let Some(text) = key.as_string_view_opt() {
                    let text = text.value(row).as_bytes();
                    bytes.extend((text.len() as u64).to_le_bytes());
                    bytes.extend(text);
                } else if let Some(number) = key.as_primitive_opt::<Int64Type>() {
                    bytes.extend(number.value(row).to_le_bytes());
                } else {
                    let number = key.as_primitive::<datafusion::arrow::datatypes::UInt64Type>();
                    bytes.extend(number.value(row).to_le_bytes());
                }
            }
            for feature in &self.features {
                let missing = feature.is_null(row);
                bytes.push(u8::from(missing));
                bytes.extend(if missing { 0.0 } else { feature.value(row) }.to_le_bytes());
            }
        }
        self.features.iter().for_each(|feature| column_buffer::done_with(&feature.values()[rows.clone()]));
        Ok(Sha256::digest(&bytes).into())
    }

    /// The first key that occurs more than once. Rows are sorted, so equal keys are neighbours.
    fn find_twice(&self, entity: &[String]) -> Result<Option<Twice>, ArrowError> {
        let order = Order::of(&self.keys, &self.keys)?;
        let (mut first, mut count, mut others, mut before) = (None, 0, 0, false);
        for row in 1..self.rows() {
            let same = order.compare(row - 1, row) == Ordering::Equal;
            match (same, first) {
                (true, None) => (first, count) = (Some(row - 1), 2),
                // The keys that equal the first one follow it.
                (true, Some(at)) if row == at + count => count += 1,
                (true, Some(_)) if !before => others += 1,
                _ => {}
            }
            before = same;
        }
        let Some(row) = first else { return Ok(None) };
        Ok(Some(Twice { key: self.key(row, entity)?, count: count as u64, others }))
    }

    /// A key for a message: `customer_id C0042`.
    fn key(&self, row: usize, entity: &[String]) -> Result<String, ArrowError> {
        let mut text = String::new();
        for (name, key) in entity.iter().zip(&self.keys) {
            let value = ArrayFormatter::try_new(key, &FormatOptions::default())?.value(row).try_to_string()?;
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{comma}{name} {:?}", shortened(&value));
        }
        Ok(text)
    }

    /// The rows of two slices that have the same keys: ascending rows of this one and of the other.
    fn common(&self, other: &Self) -> Result<(Vec<u32>, Vec<u32>), ArrowError> {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        if self.rows() == 0 || other.rows() == 0 {
            return Ok((here, there));
        }
        let order = Order::of(&self.keys, &other.keys)?;
        let (mut a, mut b) = (0, 0);
        while a < self.rows() && b < other.rows() {
            match order.compare(a, b) {
                Ordering::Less => a += 1,
                Ordering::Greater => b += 1,
                Ordering::Equal => {
                    here.push(a as u32);
                    there.push(b as u32);
                    (a, b) = (a + 1, b + 1);
                }
            }
        }
        Ok((here, there))
    }

    fn take(&self, rows: &[u32]) -> Vec<Float64Array> {
        self.features.iter().map(|column| column_buffer::take(column, rows)).collect()
    }

    /// The distances of rows to the centroids of their clusters, in standardised units. A missing feature takes the mean.
    fn distances(&self, rows: std::ops::Range<usize>, labels: &[u8], (scale, centroids): Placed<'_>) -> Vec<f64> {
        let predictor = Predictor::new(scale.clone(), centroids);
        let filled: Vec<Vec<f64>> = self
            .features
            .iter()
            .zip(&scale.mean)
            .map(|(column, mean)| {
                rows.clone().map(|row| if column.is_valid(row) { column.value(row) } else { *mean }).collect()
            })
            .collect();
        let columns: Vec<&[f64]> = filled.iter().map(Vec::as_slice).collect();
        let (nearest, mut distances) = predictor.predict_columns(&columns);
        for (i, (distance, nearest)) in distances.iter_mut().zip(nearest).enumerate() {
            let label = labels[rows.start + i];
            // On a border the training may have rounded to the other side.
            if nearest != u32::from(label) {
                let values: Vec<f64> = columns.iter().map(|column| column[i]).collect();
                *distance = predictor.squares(&values).row(usize::from(label)).sum().sqrt();
            }
        }
        distances
    }

    fn prefix(&self) -> Box<dyn Prefix + '_> {
        Box::new(LocalSlice { keys: self, features: self.features.clone(), rows: self.rows() })
    }
}

impl Keys for Slice {
    fn without_key(&self) -> Option<u64> {
        Some(self.without_key)
    }

    /// Keys, features, cluster and distance of all rows. Keys and features are shared, not copied.
    fn members(&self, of: &Segmentation, (scale, centroids): Placed<'_>) -> Result<Option<RecordBatch>, Refusal> {
        let labels = kmeans::assign(&Points::new(scale, &self.features), centroids, processors());
        let distances = by_chunk(self.rows(), processors(), |rows| self.distances(rows, &labels, (scale, centroids)));
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (name, key) in of.entity.iter().zip(&self.keys) {
            fields.push(Field::new(name, key.data_type().clone(), false));
            columns.push(key.clone());
        }
        for (name, feature) in of.features.iter().zip(&self.features) {
            fields.push(Field::new(name, DataType::Float64, true));
            columns.push(Arc::new(feature.clone()) as ArrayRef);
        }
        fields.push(Field::new("cluster", DataType::UInt32, false));
        columns.push(Arc::new(labels.iter().map(|&label| Some(u32::from(label))).collect::<UInt32Array>()));
        fields.push(Field::new("distance", DataType::Float64, false));
        columns.push(Arc::new(Float64Array::from(distances.concat())));
        Ok(Some(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?))
    }

    fn hash(&self, _: usize) -> String {
        hash_of(&self.pieces)
    }

    /// # Errors
    /// If the members of the serving model are deleted or cannot be read.
    fn compare(&self, features: &[Float64Array], versus: &Versus<'_>) -> Result<Counts, Refusal> {
        let mut previous = vec![None; self.rows()];
        if !find_previous(versus.registry, versus.serving, &self.keys, &mut previous)? {
            return Err(Refusal::NoMembers(versus.serving.version));
        }
        Ok(versus.count(features, |row, _| previous[row]))
    }
}

/// Fills in the clusters of entities, given by their sorted keys, in an older model; `None` for those that it does not have.
/// `false` if the model's members are deleted.
///
/// # Errors
/// If the members cannot be read.
pub(super) fn find_previous(
    registry: &ModelRegistry,
    model: &Model,
    keys: &[ArrayRef],
    previous: &mut [Option<u32>],
) -> Result<bool, Refusal> {
    let Some(known) = registry.members(model)? else { return Ok(false) };
    // Both are sorted by key.
    let mut row = 0;
    for batch in known.read(0)? {
        let batch = batch?;
        let Some(clusters) = clusters_of(&batch) else { continue };
        let order = Order::of(keys, &batch.columns()[..keys.len()])?;
        for at in 0..batch.num_rows() {
            while row < previous.len() && order.compare(row, at) == Ordering::Less {
                row += 1;
            }
            if row < previous.len() && order.compare(row, at) == Ordering::Equal {
                previous[row] = Some(clusters.value(at));
            }
        }
    }
    Ok(true)
}

impl Entities {
    fn slice(&self, slice: u8) -> Result<&Slice, Refusal> {
        self.slices[usize::from(slice) - 1].as_ref().map_err(|why| Refusal::View(why.clone()))
    }
}

impl Rows for Entities {
    fn up_to(&self, slice: u8) -> Result<Box<dyn Prefix + '_>, Refusal> {
        let slice = self.slice(slice)?;
        if let Some(Twice { key, count, others }) = slice.twice.clone() {
            return Err(Refusal::EntityTwice { key, count, others });
        }
        if slice.rows() == 0 { Err(Refusal::NoRows) } else { Ok(slice.prefix()) }
    }

    fn moved(&self, slice: u8, old: Placed<'_>, new: Placed<'_>) -> Result<Option<Moved>, Refusal> {
        let now = self.slice(slice)?;
        // If the slice before was refused, its model is of older records: there are no rows to compare.
        let Ok(before) = self.slice(slice - 1) else { return Ok(None) };
        if before.twice.is_some() {
            return Ok(None);
        }
        let (was_at, is_at) = before.common(now)?;
        let matrix = |rows: &Array2<f64>, columns: &Array2<f64>| vec![vec![0; columns.nrows()]; rows.nrows()];
        let mut all = matrix(old.1, new.1);
        let mut by = MovedBy { features: matrix(old.1, old.1), model: all.clone() };
        for (was_at, is_at) in was_at.chunks(PIECE).zip(is_at.chunks(PIECE)) {
            let (was, is) = (before.take(was_at), now.take(is_at));
            add(&mut all, cross((old, &was), (new, &is)));
            add(&mut by.features, cross((old, &was), (old, &is)));
            add(&mut by.model, cross((old, &is), (new, &is)));
        }
        Ok(Some(Moved { all, by: Some(by) }))
    }

    fn took(&self) -> Duration {
        self.took
    }
}

type Rowed<'a> = (Placed<'a>, &'a [Float64Array]);

/// Counts rows by the nearest centroid of a model with some features, and of another with others.
fn cross(((from, old), was): Rowed<'_>, ((to, new), is): Rowed<'_>) -> Vec<Vec<u64>> {
    let (was, is) = (Points::new(from, was), Points::new(to, is));
    kmeans::cross((&was, old), (&is, new), processors())
}

fn add(sums: &mut [Vec<u64>], counts: Vec<Vec<u64>>) {
    sums.iter_mut().flatten().zip(counts.into_iter().flatten()).for_each(|(sum, count)| *sum += count);
}
