//! What a pass may take over from the passes before it.
//!
//! A row whose nearest centroid is nearer than the second by some distance keeps its cluster until the centroids have
//! travelled half of that, whatever way they go (Hamerly, "Making k-means even faster", SDM 2010). So each pass adds up twice
//! what the centroid that moved most has moved, eight rows remember up to which sum their clusters stand, and a later pass
//! looks only for the nearest of those rows whose sum is reached. Their distances are computed all the same, so sums, counts
//! and inertia are those of a plain pass, to the bit.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::kernel::{self, Kept};
use crate::features::chunks::CHUNK;
use crate::features::moments::LANES;

/// Rows that are remembered, at a byte and a half each; those beyond are looked at in each pass.
const ROWS: usize = 32 << 20;

/// What the passes from one set of centroids to the next remember.
pub(super) struct Bounds {
    chunks: Vec<Mutex<Chunk>>,
    /// Of the pass before, standardised.
    centroids: Vec<f64>,
    travelled: f64,
}

/// One chunk of rows.
pub(super) struct Chunk {
    labels: Vec<[u8; LANES]>,
    until: Vec<f32>,
}

impl Bounds {
    /// For so many rows; `None` where a plain pass is as fast.
    pub fn new(rows: usize, features: usize, k: usize) -> Option<Self> {
        let chunks = rows.min(ROWS).div_ceil(CHUNK);
        let chunk = |_| {
            let groups = CHUNK.min(rows) / LANES + 1;
            Mutex::new(Chunk { labels: vec![[0; LANES]; groups], until: vec![f32::NEG_INFINITY; groups] })
        };
        let chunks = (0..chunks).map(chunk).collect();
        kernel::keeps(features, k).then(|| Self { chunks, centroids: Vec::new(), travelled: 0.0 })
    }

    /// The next pass is with these centroids, standardised, one after the other.
    pub fn travel(&mut self, centroids: &[f64], features: usize) {
        let pairs = self.centroids.chunks(features).zip(centroids.chunks(features));
        let squared = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        // What is not a number, where distances leave the range of a double, stays, and then nothing is taken over.
        let farthest = pairs.map(squared).fold(0.0, |a, b| if b <= a { a } else { b }).sqrt();
        // A little more, for what rounding made of it.
        self.travelled += 2.0 * farthest * (1.0 + 1e-9);
        self.centroids = centroids.to_vec();
    }

    /// What is remembered of the chunk that starts at this row, if it is one of those that are.
    pub fn chunk(&self, row: usize) -> Option<MutexGuard<'_, Chunk>> {
        let chunk = self.chunks.get(row / CHUNK)?;
        Some(chunk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn travelled(&self) -> f64 {
        self.travelled
    }
}

impl Chunk {
    /// Of a tile, whose rows are counted from the chunk's first.
    pub fn tile(&mut self, rows: Range<usize>, travelled: f64) -> Kept<'_> {
        let groups = rows.start / LANES..rows.end.div_ceil(LANES);
        Kept { labels: &mut self.labels[groups.clone()], until: &mut self.until[groups], travelled }
    }
}
