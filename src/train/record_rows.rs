//! The rows of a segmentation of records, in this process.
//!
//! Input: the segmentation's view. Output: columns in slice order, in memory or out of core in a column buffer, with the end of
//! each slice and hashes of pieces. A slice is a prefix, so no slice is copied.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array as _, AsArray as _, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tercile_kmeans::column_buffer::{self, Growing, Space, done_with};
use tercile_kmeans::parallel::{CHUNK, by_chunk, processors};

use super::comparison::{Counts, Versus};
use super::dataset::{Digested, Keys, LocalSlice, Moved, Placed, Prefix, Rows, hash_of};
use super::order::{Order, keys};
use super::view_query::{advised, named, query};
use super::{Options, Progress, Refusal};
use crate::engine;
use crate::sql::Segmentation;

/// The rows of all slices as columns in slice order.
pub(super) struct RecordRows {
    partitions: Int32Array,
    offsets: Int64Array,
    timestamps: Int64Array,
    features: Vec<Float64Array>,
    order: Order,
    /// One digest per whole chunk.
    pieces: Vec<Digested>,
    took: Duration,
}

/// Runs the SQL of a segmentation of records. `most` is the number of records in the store.
pub(super) async fn rows(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    (most, options, space): (usize, &Options, &Space),
) -> Result<RecordRows, engine::Error> {
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

    fn finish(self) -> io::Result<RecordRows> {
        let mut rows = RecordRows {
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

impl RecordRows {
    fn digest(&self, rows: Range<usize>) -> Digested {
        let Self { partitions, offsets, timestamps, features, .. } = self;
        let digested = digest(partitions, (offsets, timestamps), features, rows.clone());
        self.done_with(rows);
        digested
    }

    /// Gives back the memory of rows that are in files.
    fn done_with(&self, rows: Range<usize>) {
        done_with(&self.partitions.values()[rows.clone()]);
        done_with(&self.offsets.values()[rows.clone()]);
        done_with(&self.timestamps.values()[rows.clone()]);
        self.features.iter().for_each(|feature| done_with(&feature.values()[rows.clone()]));
    }

    fn slice(&self, rows: usize) -> Box<dyn Prefix + '_> {
        let features = self.features.iter().map(|column| column.slice(0, rows)).collect();
        Box::new(LocalSlice { keys: self, features, rows })
    }
}

impl Rows for RecordRows {
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

impl Keys for RecordRows {
    fn hash(&self, rows: usize) -> String {
        // Whole chunks are hashed once for all slices.
        let whole = rows / CHUNK;
        let rest = (whole * CHUNK < rows).then(|| self.digest(whole * CHUNK..rows));
        hash_of(self.pieces[..whole].iter().chain(&rest))
    }

    fn compare(&self, features: &[Float64Array], versus: &Versus<'_>) -> Result<Counts, Refusal> {
        let chunk = |rows: Range<usize>| {
            let features: Vec<_> = features.iter().map(|column| column.slice(rows.start, rows.len())).collect();
            let counts = versus.count(&features, |row, label| {
                let row = rows.start + row;
                let timestamp = self.timestamps.is_valid(row).then(|| self.timestamps.value(row));
                versus.knows(timestamp, self.partitions.value(row), self.offsets.value(row)).then_some(label)
            });
            self.done_with(rows);
            counts
        };
        let rows = features.first().map_or(0, Float64Array::len);
        Ok(by_chunk(rows, processors(), chunk).into_iter().collect())
    }

    fn places(&self, rows: &[u32]) -> Option<(Int32Array, Int64Array)> {
        Some((column_buffer::take(&self.partitions, rows), column_buffer::take(&self.offsets, rows)))
    }
}

/// SHA-256 of rows. Per row: partition, offset, a byte that is 1 if the timestamp is missing, and the timestamp or 0; then per
/// feature a byte that is 1 if the value is missing, and the double or 0. All values are little endian.
pub(super) fn digest(
    partitions: &Int32Array,
    (offsets, timestamps): (&Int64Array, &Int64Array),
    features: &[Float64Array],
    rows: Range<usize>,
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
