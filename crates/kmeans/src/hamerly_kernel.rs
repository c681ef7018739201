//! The inner loops that leave rows out: [`super::bounds`] tells why they may.
//!
//! Input: a tile of rows, and what is remembered of them. Output: which groups of eight rows have to be looked at, the clusters of
//! those, and sums that follow the rows that changed. The same bits on every instruction set, as in kernel.rs.

#![allow(clippy::needless_range_loop, reason = "several arrays go by the same feature or cluster")]

use fearless_simd::{Level, Select, Simd, SimdBase, dispatch};

use super::kernel::{Frame, GROUPS, Lanes, Nearest, Sums, Tile, add_up, in_registers, sweep, whole};
use crate::MAX_FEATURES;
use crate::features::moments::LANES;

/// What is known of a tile's rows from the passes before.
pub(super) struct Kept<'a> {
    /// The cluster of each row.
    pub labels: &'a mut [[u8; LANES]],
    /// How far the centroids may have travelled in all before a cluster of these eight rows can change.
    pub until: &'a mut [f32],
    /// How far they have.
    pub travelled: f64,
}

/// Groups of eight rows of a tile.
pub(super) struct Groups {
    which: [u8; GROUPS],
    many: usize,
}

impl Groups {
    pub fn len(&self) -> usize {
        self.many
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.which[..self.many].iter().map(|&group| usize::from(group))
    }
}

impl Kept<'_> {
    /// The groups whose clusters may have changed.
    pub fn due(&self) -> Groups {
        // What rounding takes from it is less than what was taken from `until` to begin with.
        let travelled = self.travelled as f32;
        let (mut which, mut many) = ([0; GROUPS], 0);
        for (group, &until) in self.until.iter().enumerate() {
            which[many] = group as u8;
            // What is not a number is no bound.
            many += usize::from(!matches!(until.partial_cmp(&travelled), Some(std::cmp::Ordering::Greater)));
        }
        Groups { which, many }
    }
}

/// Adds a tile to the sums as [`sweep`] does, and remembers which cluster each row is in, and how surely.
pub(super) fn sweep_and_keep(
    level: Level,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    kept: &mut Kept<'_>,
    nearest: &mut Nearest,
    sums: &mut Sums,
) {
    let all = Groups { which: std::array::from_fn(|group| group as u8), many: tile.columns[0].len() };
    find_and_keep(level, tile, frame, &all, kept, nearest);
    for (kept, found) in kept.labels.iter_mut().zip(&nearest.labels) {
        *kept = found.map(whole);
    }
    if in_registers(tile.columns.len(), frame.k) {
        // Quicker, though it finds the nearest once more; and the same bits.
        return sweep(level, tile, frame, &mut None, sums);
    }
    add_up(level, tile, frame, nearest, sums);
}

/// Looks at these groups again: rows that are in another cluster now take what they add to the sums along. Those are each
/// cluster's features, then the weights.
pub(super) fn look_again(
    level: Level,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    due: &Groups,
    kept: &mut Kept<'_>,
    nearest: &mut Nearest,
    sums: &mut [f64],
) {
    find_and_keep(level, tile, frame, due, kept, nearest);
    let features = tile.columns.len();
    let (sums, counts) = sums.split_at_mut(frame.k * features);
    for group in due.iter() {
        let found = nearest.labels[group].map(whole);
        let before = std::mem::replace(&mut kept.labels[group], found);
        if before == found {
            continue;
        }
        for lane in (0..LANES).filter(|&lane| before[lane] != found[lane]) {
            let (from, to) = (usize::from(before[lane]), usize::from(found[lane]));
            let weight = tile.weights.map_or(1.0, |weights| weights[group][lane]);
            counts[from] -= weight;
            counts[to] += weight;
            for f in 0..features {
                let off = (tile.columns[f][group][lane] - frame.origin[f]) * weight;
                sums[from * features + f] -= off;
                sums[to * features + f] += off;
            }
        }
    }
}

fn find_and_keep(
    level: Level,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    which: &Groups,
    kept: &mut Kept<'_>,
    nearest: &mut Nearest,
) {
    macro_rules! by_features {
        ($($features:literal)*) => {
            match tile.columns.len() {
                $($features => dispatch!(level, simd => {
                    nearest_two::<_, $features, $features>(simd, tile, frame, which, kept, nearest)
                }),)*
                _ => dispatch!(level, simd => {
                    nearest_two::<_, 0, MAX_FEATURES>(simd, tile, frame, which, kept, nearest)
                }),
            }
        };
    }
    by_features!(1 2 3 4 5 6 7 8);
}

/// The nearest centroid of each row of these groups, and how much farther the second is. `D` is the number of features, or
/// 0 for any up to `MOST`.
#[inline(always)]
fn nearest_two<S: Simd, const D: usize, const MOST: usize>(
    simd: S,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    which: &Groups,
    kept: &mut Kept<'_>,
    nearest: &mut Nearest,
) {
    let width = S::f64s::LEN;
    let features = if D == 0 { tile.columns.len() } else { D };
    let groups = tile.columns[0].len();
    let zero = S::f64s::splat(simd, 0.0);
    let mut columns: [&[Lanes]; MOST] = [&[]; MOST];
    for f in 0..features {
        columns[f] = &tile.columns[f][..groups];
    }
    let Nearest { labels, squared: distances, gaps, .. } = nearest;
    gaps.resize(GROUPS, [0.0; LANES]);
    let (labels, distances, gaps) = (&mut labels[..groups], &mut distances[..groups], &mut gaps[..GROUPS]);
    let until = &mut kept.until[..groups];
    // First the squares of half the differences of all, then what follows: each step waits for the one before it, and so
    // those of many groups go side by side.
    for (&i, gap) in which.which[..which.many].iter().zip(&mut *gaps) {
        let i = usize::from(i);
        for first in (0..LANES).step_by(width) {
            let at = first..first + width;
            let mut standardised = [zero; MOST];
            for f in 0..features {
                let off = S::f64s::from_slice(simd, &columns[f][i][at.clone()]) - S::f64s::splat(simd, frame.origin[f]);
                standardised[f] = off * S::f64s::splat(simd, frame.inverse[f]);
            }
            let infinity = S::f64s::splat(simd, f64::INFINITY);
            let (mut least, mut second) = (infinity, infinity);
            let mut label = zero;
            for (c, centroid) in frame.centroids.chunks_exact(features).enumerate() {
                let mut squared = zero;
                for f in 0..features {
                    let apart = standardised[f] - S::f64s::splat(simd, centroid[f]);
                    squared = if f == 0 { apart * apart } else { squared + apart * apart };
                }
                let nearer = squared.simd_lt(least);
                let loser = nearer.select(least, squared);
                second = loser.simd_lt(second).select(loser, second);
                least = nearer.select(squared, least);
                label = nearer.select(S::f64s::splat(simd, c as f64), label);
            }
            least.store_slice(&mut distances[i][at.clone()]);
            label.store_slice(&mut labels[i][at.clone()]);
            // For the distances' difference, half of the squares' over the greater one: no greater, and near it where they are
            // near each other. What rounding could make of a square is far less than that share.
            let apart = second * S::f64s::splat(simd, 1.0 - 2e-9) - least;
            let squared = apart * apart / second;
            // Not a number, where distances leave the range of a double, is no bound.
            let bound = apart.simd_ge(zero) & squared.simd_ge(zero);
            bound.select(squared, S::f64s::splat(simd, -1.0)).store_slice(&mut gap[at]);
        }
    }
    for (&i, gap) in which.which[..which.many].iter().zip(&*gaps) {
        let i = usize::from(i);
        let mut least = gap[0];
        for lane in 1..LANES {
            least = if gap[lane] < least { gap[lane] } else { least };
        }
        let apart = if least < 0.0 { f64::NEG_INFINITY } else { 0.5 * least.sqrt() };
        // A little less, so that what the narrower type rounds is on the safe side.
        until[i] = ((kept.travelled + apart) * (1.0 - 1e-6)) as f32;
    }
}
