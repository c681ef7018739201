//! What one pass in order over the prepared rows determines: hashes, samples, moments.

use datafusion::arrow::array::{Array, AsArray as _, Float64Array, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::compute::{concat, concat_batches};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::arrow::error::ArrowError;
use tercile_kmeans::features::moments::{Extent, Part};
use tercile_kmeans::parallel::CHUNK;
use tercile_kmeans::{self as kmeans, column_buffer};

use super::super::SEED;
use super::super::dataset::{Digested, hash_of};
use super::super::order::keys;
use super::super::record_rows::digest;
use super::{Base, Known};
use crate::model::baseline;
use crate::slices::SLICES;

/// Processes the prepared rows in order, chunk by chunk.
pub(super) struct Reader {
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
    pub fn new(features: usize, ends: [usize; SLICES as usize]) -> Self {
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

    pub fn see(&mut self, mut batch: RecordBatch) -> Result<(), ArrowError> {
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

    fn chunk(&mut self) -> Result<(), ArrowError> {
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

    pub fn finish(mut self, table: &str) -> Result<Vec<Known>, ArrowError> {
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

fn joined(columns: &[Vec<Float64Array>]) -> Result<Vec<Float64Array>, ArrowError> {
    let one = |parts: &Vec<Float64Array>| {
        let parts: Vec<&dyn Array> = parts.iter().map(|part| part as &dyn Array).collect();
        Ok(concat(&parts)?.as_primitive().clone())
    };
    columns.iter().map(one).collect()
}
