//! Hamerly bounds: lets a Lloyd pass skip rows whose cluster cannot have changed.
//!
//! Let `gap` be the difference between a row's distances to its second nearest and its nearest centroid. The row keeps its
//! cluster until the centroids have moved by half of `gap` (Hamerly, "Making k-means even faster", SDM 2010). Each pass
//! adds twice the largest movement of a centroid to a running sum. Each group of eight rows stores the value of this sum up
//! to which its clusters hold. A later pass reads only the groups whose value is reached; the columns of the others are not
//! read. Each chunk keeps its sums; a row that changes its cluster moves its values from one sum to the other. These sums
//! accumulate the rounding errors of the changes, so lloyd.rs ends with passes that read all rows.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hamerly_kernel::Kept;
use super::kernel;
use super::totals::Totals;
use crate::features::moments::LANES;
use crate::parallel::CHUNK;

/// Rows with bounds, at 1.5 bytes each; rows beyond are read in each pass.
const ROWS: usize = 24 << 20;
/// Where a plain pass is cheap, bounds are kept only from `FEW` rows on, and only once no centroid moves farther than
/// `SHORT` (standardised units). Otherwise they are kept from the first pass on.
const FEW: usize = 1 << 14;
const SHORT: f64 = 0.06;

/// State kept from one pass to the next.
pub(super) struct Bounds {
    rows: usize,
    /// Empty as long as no bounds are kept.
    chunks: Vec<Mutex<Chunk>>,
    /// Centroids of the previous pass, standardised.
    centroids: Vec<f64>,
    travelled: f64,
    /// Bounds are kept once no centroid moves farther than this.
    begin: f64,
    /// Whether a plain pass is cheap: its sums fit in registers.
    cheap: bool,
    /// Whether the pass before the last one had to read most groups.
    much: bool,
    /// Whether the last pass updated earlier sums instead of reading all rows.
    kept: bool,
    /// The weighted sum of squared distances of all rows from the origin, once bounds are kept.
    spread: f64,
    /// Groups of eight rows that the last pass read.
    looked: AtomicUsize,
}

/// State of one chunk of rows.
#[derive(Default)]
pub(super) struct Chunk {
    labels: Vec<[u8; LANES]>,
    until: Vec<f32>,
    /// The sum of each feature for each cluster, then the weight of each cluster; empty before the first pass.
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

    /// Prepares the pass with these centroids (standardised, row-major).
    pub fn travel(&mut self, centroids: &[f64], features: usize) {
        let pairs = self.centroids.chunks(features).zip(centroids.chunks(features));
        let squared = |(a, b): (&[f64], &[f64])| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
        // NaN, which occurs where distances overflow, is kept; then no bound holds.
        let farthest = pairs.map(squared).fold(0.0, |a, b| if b <= a { a } else { b }).sqrt();
        // If most groups are read in two consecutive passes, plain passes are faster.
        let much = std::mem::take(self.looked.get_mut()) > self.rows.div_ceil(LANES) / 2;
        if self.cheap && much && self.much {
            self.begin /= 4.0;
            self.chunks.clear();
        }
        self.much = much;
        let begins = self.begin == f64::INFINITY || (!self.centroids.is_empty() && farthest <= self.begin);
        self.kept = !self.chunks.is_empty();
        if self.kept {
            // Slightly more, to cover rounding.
            self.travelled += 2.0 * farthest * (1.0 + 1e-9);
        } else if begins {
            self.chunks.resize_with(self.rows.min(ROWS).div_ceil(CHUNK), Mutex::default);
            self.travelled = 0.0;
        }
        self.centroids = centroids.to_vec();
    }

    /// State of the chunk that starts at this row; `None` if no bounds are kept for it.
    pub fn chunk(&self, row: usize) -> Option<MutexGuard<'_, Chunk>> {
        let chunk = self.chunks.get(row / CHUNK)?;
        Some(chunk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sum over the passes of twice the largest movement of a centroid, standardised.
    pub fn travelled(&self) -> f64 {
        self.travelled
    }

    /// Counts groups that a pass read.
    pub fn looked(&self, groups: usize) {
        self.looked.fetch_add(groups, Ordering::Relaxed);
    }

    /// Whether the last pass skipped rows, so that its sums contain the rounding errors of updates.
    pub fn kept(&self) -> bool {
        self.kept
    }

    /// Completes the totals of a pass: skipped rows have no distances, so the inertia is computed from the sums.
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
    /// Allocates the state of `rows` rows.
    pub fn begin(&mut self, rows: usize) {
        let groups = rows.div_ceil(LANES);
        self.labels = vec![[0; LANES]; groups];
        self.until = vec![f32::NEG_INFINITY; groups];
    }

    /// State of a tile (rows relative to the chunk's first row), and the chunk's sums.
    pub fn tile(&mut self, rows: Range<usize>, travelled: f64) -> (Kept<'_>, &mut [f64]) {
        let groups = rows.start / LANES..rows.end.div_ceil(LANES);
        let kept = Kept { labels: &mut self.labels[groups.clone()], until: &mut self.until[groups], travelled };
        (kept, &mut self.sums)
    }
}
