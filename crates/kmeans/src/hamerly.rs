//! What a pass may take over from the passes before it.
//!
//! A row whose nearest centroid is nearer than the second by some distance keeps its cluster until the centroids have
//! travelled half of that, whatever way they go (Hamerly, "Making k-means even faster", SDM 2010). So each pass adds up twice
//! what the centroid that moved most has moved, eight rows remember up to which sum their clusters stand, and a later pass
//! reads only those rows whose sum is reached; of the others not even the columns. Each chunk keeps its sums, and a row that
//! goes to another cluster takes its values along. Those sums carry the rounding of each such change, so lloyd.rs ends with
//! passes that read all rows.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hamerly_kernel::Kept;
use super::kernel;
use super::points::Totals;
use crate::features::moments::LANES;
use crate::parallel::CHUNK;

/// Rows that are remembered, at a byte and a half each; those beyond are read in each pass.
const ROWS: usize = 24 << 20;
/// Where a plain pass is cheap, fewer rows than that are not worth remembering, and nothing is before the centroids' steps are
/// shorter than that (in standardised units).
const FEW: usize = 1 << 14;
const SHORT: f64 = 0.06;

/// What the passes from one set of centroids to the next remember.
pub(super) struct Bounds {
    rows: usize,
    /// Empty as long as nothing is remembered.
    chunks: Vec<Mutex<Chunk>>,
    /// Of the pass before, standardised.
    centroids: Vec<f64>,
    travelled: f64,
    /// Remembering begins once no centroid moves farther.
    begin: f64,
    /// Whether a plain pass is cheap.
    cheap: bool,
    /// Whether that was most of them.
    much: bool,
    /// Whether the sums of the last pass are those of one before it, and what has changed since.
    kept: bool,
    /// The weighted sum of squared distances of all rows from the origin, once something is remembered.
    spread: f64,
    /// Groups of eight rows that the last pass had to look at.
    looked: AtomicUsize,
}

/// One chunk of rows.
#[derive(Default)]
pub(super) struct Chunk {
    labels: Vec<[u8; LANES]>,
    until: Vec<f32>,
    /// For each cluster the sum of each feature, then the weight of each cluster; empty before the first pass.
    pub sums: Vec<f64>,
}

impl Bounds {
    pub fn new(rows: usize, features: usize, k: usize) -> Self {
        let cheap = kernel::in_registers(features, k);
        let begin = match cheap {
            true if rows < FEW => f64::NEG_INFINITY,
            true => SHORT,
            false => f64::INFINITY,
        };
        Self {
            rows,
            chunks: Vec::new(),
            centroids: Vec::new(),
            travelled: 0.0,
            begin,
            cheap,
            kept: false,
            much: false,
            spread: 0.0,
            looked: AtomicUsize::new(0),
        }
    }

    /// The next pass is with these centroids, standardised, one after the other.
    pub fn travel(&mut self, centroids: &[f64], features: usize) {
        let pairs = self.centroids.chunks(features).zip(centroids.chunks(features));
        let squared = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        // What is not a number, where distances leave the range of a double, stays, and then nothing is taken over.
        let farthest = pairs.map(squared).fold(0.0, |a, b| if b <= a { a } else { b }).sqrt();
        // Where most rows have to be looked at time and again, plain passes are quicker.
        let much = std::mem::take(self.looked.get_mut()) > self.rows.div_ceil(LANES) / 2;
        if self.cheap && much && self.much {
            self.begin /= 4.0;
            self.chunks.clear();
        }
        self.much = much;
        let begins = self.begin == f64::INFINITY || (!self.centroids.is_empty() && farthest <= self.begin);
        self.kept = !self.chunks.is_empty();
        if self.kept {
            // A little more, for what rounding made of it.
            self.travelled += 2.0 * farthest * (1.0 + 1e-9);
        } else if begins {
            self.chunks.resize_with(self.rows.min(ROWS).div_ceil(CHUNK), Mutex::default);
            self.travelled = 0.0;
        }
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

    pub fn looked(&self, groups: usize) {
        self.looked.fetch_add(groups, Ordering::Relaxed);
    }

    /// Whether the last pass left out rows, so that its sums carry the rounding of what has changed.
    pub fn kept(&self) -> bool {
        self.kept
    }

    /// Completes what a pass found: rows that it did not read have no distances, whose sum follows from the others.
    pub fn complete(&mut self, totals: &mut Totals, inverse: &[f64]) {
        if self.chunks.is_empty() {
            return;
        }
        let saved = totals.saved(&self.centroids, inverse);
        match self.kept {
            true => totals.inertia = (self.spread - saved).max(0.0),
            false => self.spread = totals.inertia + saved,
        }
    }
}

impl Chunk {
    /// Makes room for so many rows.
    pub fn begin(&mut self, rows: usize) {
        let groups = rows.div_ceil(LANES);
        self.labels = vec![[0; LANES]; groups];
        self.until = vec![f32::NEG_INFINITY; groups];
    }

    /// What is kept of a tile, whose rows are counted from the chunk's first; and the chunk's sums.
    pub fn tile(&mut self, rows: Range<usize>, travelled: f64) -> (Kept<'_>, &mut [f64]) {
        let groups = rows.start / LANES..rows.end.div_ceil(LANES);
        let kept = Kept { labels: &mut self.labels[groups.clone()], until: &mut self.until[groups], travelled };
        (kept, &mut self.sums)
    }
}
