//! A pass that skips rows whose bounds say that their cluster is the same (hamerly.rs).

use std::ops::Range;

use super::tile::{Scratch, strides, tiles};
use super::{Points, totals};
use crate::features::moments::LANES;
use crate::hamerly::{Bounds, Chunk};
use crate::hamerly_kernel::{self, Groups};
use crate::kernel::{self, Frame, Nearest, TILE};
use crate::parallel::by_chunk;
use crate::totals::Totals;

/// Number of tiles that are prefetched together.
const AT_ONCE: usize = 8;

impl Points<'_> {
    /// One of several passes that share bounds.
    pub(crate) fn pass_after(&self, centroids: &[f64], threads: usize, bounds: &mut Bounds) -> Totals {
        let (features, k) = (self.features(), centroids.len() / self.features());
        let centroids = self.standardised(centroids);
        bounds.travel(&centroids, features);
        let frame = Frame { origin: &self.origin, inverse: &self.inverse, centroids: &centroids, k };
        let chunks = by_chunk(self.rows, threads, |rows| match bounds.chunk(rows.start) {
            None => self.add_up(rows, &frame),
            Some(mut chunk) if chunk.sums.is_empty() => {
                self.add_up_and_keep(rows, &frame, &mut chunk, bounds.travelled())
            }
            Some(mut chunk) => {
                bounds.looked(self.look_again(rows, &frame, &mut chunk, bounds.travelled()));
                // Distances were not computed.
                chunk.sums.iter().copied().chain([0.0]).collect()
            }
        });
        let mut totals = totals(features, k, chunks);
        bounds.complete(&mut totals, &self.inverse);
        totals
    }

    /// Sums over a chunk, and its bounds.
    fn add_up_and_keep(&self, rows: Range<usize>, frame: &Frame<'_>, chunk: &mut Chunk, travelled: f64) -> Vec<f64> {
        chunk.begin(rows.len());
        let mut sums = kernel::Sums::new(self.level, frame.k, self.features());
        let (mut nearest, mut scratch) = (Nearest::new(), Scratch::default());
        for tile in tiles(rows.clone()) {
            let (mut kept, _) = chunk.tile(tile.start - rows.start..tile.end - rows.start, travelled);
            self.tile(tile, &mut scratch, |tile| {
                hamerly_kernel::sweep_and_keep(self.level, tile, frame, &mut kept, &mut nearest, &mut sums);
            });
        }
        self.done_with(rows);
        let sums = sums.fold();
        chunk.sums = sums[..sums.len() - 1].to_vec();
        sums
    }

    /// Updates the sums of a chunk; returns the number of groups of eight rows that were read.
    fn look_again(&self, rows: Range<usize>, frame: &Frame<'_>, chunk: &mut Chunk, travelled: f64) -> usize {
        let (mut nearest, mut scratch) = (None, Scratch::default());
        let mut looked = 0;
        for few in strides(rows.clone(), AT_ONCE * TILE) {
            let due: Vec<Groups> = tiles(few.clone())
                .map(|tile| chunk.tile(tile.start - rows.start..tile.end - rows.start, travelled).0.due())
                .collect();
            self.fetch(tiles(few.clone()).zip(&due));
            for (tile, due) in tiles(few).zip(&due).filter(|(_, due)| due.len() > 0) {
                looked += due.len();
                let nearest = nearest.get_or_insert_with(Nearest::new);
                let (mut kept, sums) = chunk.tile(tile.start - rows.start..tile.end - rows.start, travelled);
                self.tile(tile, &mut scratch, |tile| {
                    hamerly_kernel::look_again(self.level, tile, frame, due, &mut kept, nearest, sums);
                });
            }
        }
        if looked > 0 {
            self.done_with(rows);
        }
        looked
    }

    /// Prefetch: touches the groups to be read, which are scattered, so that their cache misses overlap.
    fn fetch<'g>(&self, tiles: impl Iterator<Item = (Range<usize>, &'g Groups)>) {
        let mut touched = 0;
        for (tile, due) in tiles {
            for row in due.iter().map(|group| tile.start + group * LANES) {
                for column in &self.columns {
                    touched ^= column.values[row].to_bits();
                }
            }
        }
        std::hint::black_box(touched);
    }
}
