//! The rows of a segmentation, as all its slices share them.
//!
//! Input: the segmentation's view. Output: its columns in slice order, in memory or, where that is not enough, in a spool;
//! where each slice ends; and hashes of pieces of them. A slice is a prefix, so none is a copy.

use std::io;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type};
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use sha2::{Digest, Sha256};

use super::{How, Progress, Refusal};
use crate::engine::{self, quote};
use crate::features::chunks::{CHUNK, by_chunk, processors};
use crate::model::SLICES;
use crate::rows::hex;
use crate::spool::{Growing, Space, done_with};
use crate::sql::Segmentation;

type Digested = [u8; 32];

/// All rows of a segmentation, by slice, and within a slice in stream order.
pub(super) struct Rows {
    pub partitions: Int32Array,
    pub offsets: Int64Array,
    timestamps: Int64Array,
    pub features: Vec<Float64Array>,
    /// Rows of the first slice, of the first two, of all.
    ends: [usize; SLICES as usize],
    /// The first record that was there before it.
    twin: Option<Twin>,
    /// Of each whole chunk.
    pieces: Vec<Digested>,
    /// What the SQL took.
    pub took: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Twin {
    row: usize,
    partition: i32,
    offset: i64,
}

/// Runs a segmentation's SQL.
pub(super) async fn rows(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    (most, how, space): (usize, &How, &Space),
) -> Result<Rows, engine::Error> {
    let began = Instant::now();
    let view = |why: String| engine::Error::View { file: segmentation.file.clone(), why };
    let spooled = |error: io::Error| view(format!("cannot keep its rows: {error}"));
    let mut growing = Columns::new(segmentation.features.len(), most);
    let mut batches = engine::stream(ctx, &query(segmentation)).await.map_err(|error| named(segmentation, error))?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| view(engine::explain(&e)))?;
        growing.append(&batch).map_err(spooled)?;
        if !space.holds(growing.held()) {
            growing.spill(space).map_err(spooled)?;
        }
        (how.tell)(Progress::Rows { segmentation: &segmentation.name, rows: growing.ends[SLICES as usize - 1] });
    }
    // Whether slices that don't follow each other share a record is not to be seen from neighbours.
    if growing.twin.is_none() && growing.astray {
        growing.twin = twin_anywhere(ctx, segmentation, growing.ends[0]).await?;
    }
    let finished = tokio::task::spawn_blocking(move || growing.finish());
    let mut rows = finished.await.map_err(|e| view(e.to_string()))?.map_err(spooled)?;
    rows.took = began.elapsed();
    Ok(rows)
}

fn named(segmentation: &Segmentation, error: engine::Error) -> engine::Error {
    match error {
        engine::Error::Query(why) => engine::Error::View { file: segmentation.file.clone(), why },
        other => other,
    }
}

fn query(segmentation: &Segmentation) -> String {
    let names: Vec<String> = (0..segmentation.features.len()).map(|i| format!("feature_{i}")).collect();
    let feature = |(i, name): (usize, &String)| format!("CAST({} AS DOUBLE) AS feature_{i}", quote(name));
    let features: Vec<String> = segmentation.features.iter().enumerate().map(feature).collect();
    format!(
        "SELECT _slice, _partition, _offset, CAST(_timestamp AS BIGINT) AS milliseconds, {}
         FROM (SELECT CAST(_partition AS INT) AS _partition, CAST(_offset AS BIGINT) AS _offset,
                 arrow_cast(_timestamp, 'Timestamp(Millisecond, None)') AS _timestamp,
                 CAST(_slice AS BIGINT) AS _slice, {} FROM {})
         WHERE _slice <= {SLICES}
         ORDER BY _slice, _timestamp NULLS FIRST, _partition, _offset",
        names.join(", "),
        features.join(", "),
        quote(&segmentation.name)
    )
}

async fn twin_anywhere(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    row: usize,
) -> Result<Option<Twin>, engine::Error> {
    let sql = format!(
        "SELECT CAST(_partition AS INT), CAST(_offset AS BIGINT) FROM {} WHERE _slice <= {SLICES}
         GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 1, 2 LIMIT 1",
        quote(&segmentation.name)
    );
    let found = engine::collect(ctx, &sql).await.map_err(|error| named(segmentation, error))?;
    Ok((found.num_rows() > 0).then(|| Twin {
        row,
        partition: found.column(0).as_primitive::<Int32Type>().value(0),
        offset: found.column(1).as_primitive::<Int64Type>().value(0),
    }))
}

/// Columns while the SQL runs.
struct Columns {
    partitions: Growing<Int32Type>,
    offsets: Growing<Int64Type>,
    timestamps: Growing<Int64Type>,
    features: Vec<Growing<Float64Type>>,
    ends: [usize; SLICES as usize],
    /// Slice, timestamp, partition and offset of the newest row.
    last: Option<(i64, Option<i64>, i32, i64)>,
    twin: Option<Twin>,
    /// Whether a slice has a row that comes, in stream order, before one of the slice before.
    astray: bool,
}

impl Columns {
    fn new(features: usize, most: usize) -> Self {
        Self {
            partitions: Growing::new(most),
            offsets: Growing::new(most),
            timestamps: Growing::new(most),
            features: (0..features).map(|_| Growing::new(most)).collect(),
            ends: [0; SLICES as usize],
            last: None,
            twin: None,
            astray: false,
        }
    }

    fn append(&mut self, batch: &RecordBatch) -> io::Result<()> {
        let (slices, partitions) =
            (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int32Type>());
        let (offsets, timestamps) =
            (batch.column(2).as_primitive::<Int64Type>(), batch.column(3).as_primitive::<Int64Type>());
        let before = self.ends[SLICES as usize - 1];
        for row in 0..batch.num_rows() {
            let timestamp = timestamps.is_valid(row).then(|| timestamps.value(row));
            let this = (slices.value(row), timestamp, partitions.value(row), offsets.value(row));
            if let Some(last) = self.last {
                let (place, last_place) = ((this.1, this.2, this.3), (last.1, last.2, last.3));
                if place == last_place && self.twin.is_none() {
                    self.twin = Some(Twin { row: before + row, partition: this.2, offset: this.3 });
                }
                self.astray |= place < last_place;
            }
            self.last = Some(this);
        }
        for (end, slice) in self.ends.iter_mut().zip(1..) {
            *end += slices.values().partition_point(|&of| of <= slice);
        }
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

    fn finish(self) -> io::Result<Rows> {
        let mut rows = Rows {
            partitions: self.partitions.finish()?,
            offsets: self.offsets.finish()?,
            timestamps: self.timestamps.finish()?,
            features: self.features.into_iter().map(Growing::finish).collect::<io::Result<_>>()?,
            ends: self.ends,
            twin: self.twin,
            pieces: Vec::new(),
            took: Duration::ZERO,
        };
        let whole = rows.offsets.len() / CHUNK * CHUNK;
        rows.pieces = by_chunk(whole, processors(), |range| rows.digest(range));
        Ok(rows)
    }
}

impl Rows {
    /// The rows of the first `slice` slices.
    pub fn up_to(&self, slice: u8) -> Result<Slice<'_>, Refusal> {
        let rows = self.ends[usize::from(slice) - 1];
        if rows == 0 {
            return Err(Refusal::NoRows);
        }
        match self.twin.filter(|twin| twin.row < rows) {
            Some(Twin { partition, offset, .. }) => Err(Refusal::Twice { partition, offset }),
            None => Ok(self.first(rows)),
        }
    }

    fn first(&self, rows: usize) -> Slice<'_> {
        Slice { all: self, features: self.features.iter().map(|column| column.slice(0, rows)).collect(), rows }
    }

    /// The columns of the first `slice` slices, whatever is in them.
    pub fn features_up_to(&self, slice: u8) -> Vec<Float64Array> {
        self.first(self.ends[usize::from(slice) - 1]).features
    }

    /// SHA-256 of rows: for each its partition, its offset, a byte that is 1 where it has no timestamp, the timestamp or 0;
    /// then for each feature a byte that is 1 where it is missing, and the double or 0. All little endian.
    fn digest(&self, rows: std::ops::Range<usize>) -> Digested {
        let Self { partitions, offsets, timestamps, features, .. } = self;
        let mut bytes = Vec::with_capacity(rows.len() * (21 + 9 * features.len()));
        for row in rows.clone() {
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
        done_with(&partitions.values()[rows.clone()]);
        done_with(&offsets.values()[rows.clone()]);
        done_with(&timestamps.values()[rows.clone()]);
        features.iter().for_each(|feature| done_with(&feature.values()[rows.clone()]));
        Sha256::digest(&bytes).into()
    }
}

/// The rows of one slice.
pub(super) struct Slice<'a> {
    pub all: &'a Rows,
    pub features: Vec<Float64Array>,
    pub rows: usize,
}

impl Slice<'_> {
    /// SHA-256, in hex, of the SHA-256s of pieces of 65,536 rows: what slices share is hashed once.
    pub fn hash(&self) -> String {
        let whole = self.rows / CHUNK;
        let mut hasher = Sha256::new();
        self.all.pieces[..whole].iter().for_each(|piece| hasher.update(piece));
        if whole * CHUNK < self.rows {
            hasher.update(self.all.digest(whole * CHUNK..self.rows));
        }
        hex(&hasher.finalize())
    }
}
