//! Tiles: rows that a kernel reads at once, as slices of the columns. Only a tile with nulls, with logarithms to take, and the last one
//! are assembled in a buffer.

use std::ops::Range;

use arrow_buffer::NullBuffer;
use arrow_buffer::bit_chunk_iterator::UnalignedBitChunk;

use super::{Log, Points};
use crate::MAX_FEATURES;
use crate::features::moments::LANES;
use crate::features::scaling;
use crate::kernel::{Lanes, TILE, Tile};

/// Buffers of assembled tiles.
#[derive(Default)]
pub(super) struct Scratch {
    columns: Vec<Vec<Lanes>>,
    weights: Vec<Lanes>,
}

impl Points<'_> {
    /// Calls `show` with a tile of rows that start at a multiple of eight.
    pub(super) fn tile(&self, rows: Range<usize>, scratch: &mut Scratch, show: impl FnOnce(&Tile<'_>)) {
        let ragged = !rows.len().is_multiple_of(LANES);
        scratch.columns.resize(self.columns.len(), Vec::new());
        let mut copied = [false; MAX_FEATURES];
        for ((column, copy), copied) in self.columns.iter().zip(&mut scratch.columns).zip(&mut copied) {
            let log = column.log == Log::Taken;
            *copied = ragged || log || column.valid.is_some_and(|valid| misses(valid, &rows));
            if *copied {
                copy.clear();
                copy.resize(TILE / LANES, [column.fill; LANES]);
                copy.as_flattened_mut()[..rows.len()].copy_from_slice(&column.values[rows.clone()]);
                if log {
                    copy.as_flattened_mut()[..rows.len()].iter_mut().for_each(|value| *value = scaling::log(*value));
                }
                if let Some(valid) = column.valid {
                    let gaps = rows.clone().zip(copy.as_flattened_mut()).filter(|(row, _)| valid.is_null(*row));
                    gaps.for_each(|(_, value)| *value = column.fill);
                }
            }
        }
        if ragged {
            scratch.weights.clear();
            scratch.weights.resize(TILE / LANES, [0.0; LANES]);
            let weights = scratch.weights.as_flattened_mut().iter_mut();
            weights.zip(rows.clone()).for_each(|(weight, row)| *weight = self.weight(row));
        }
        let groups = rows.len().div_ceil(LANES);
        let mut columns: [&[Lanes]; MAX_FEATURES] = [&[]; MAX_FEATURES];
        for (f, column) in self.columns.iter().enumerate() {
            columns[f] = match copied[f] {
                true => &scratch.columns[f][..groups],
                false => column.values[rows.clone()].as_chunks().0,
            };
        }
        let weights = match &self.weights {
            _ if ragged => Some(&scratch.weights[..groups]),
            Some(weights) => Some(weights[rows].as_chunks().0),
            None => None,
        };
        show(&Tile { columns: &columns[..self.columns.len()], weights });
    }
}

/// Whether any of the rows is null.
fn misses(valid: &NullBuffer, rows: &Range<usize>) -> bool {
    // Not `slice`, which updates a reference count that all threads share.
    UnalignedBitChunk::new(valid.validity(), valid.offset() + rows.start, rows.len()).count_ones() < rows.len()
}

pub(super) fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    strides(rows, TILE)
}

pub(super) fn strides(rows: Range<usize>, many: usize) -> impl Iterator<Item = Range<usize>> {
    let end = rows.end;
    rows.step_by(many).map(move |start| start..end.min(start + many))
}
