//! The inner loops of passes with Hamerly bounds ([`super::hamerly`]).
//!
//! Input: a tile of rows and its state from earlier passes. Output: the groups of eight rows that have to be read, their
//! clusters, and sums updated for the rows that changed their cluster. Results are bit-identical on every instruction set,
//! as in kernel.rs.

#![allow(clippy::needless_range_loop, reason = "several arrays go by the same feature or cluster")]

use fearless_simd::{Level, Select, Simd, SimdBase, dispatch};

use super::kernel::{Frame, GROUPS, Lanes, Nearest, Sums, Tile, add_up, in_registers, sweep, whole};
use crate::MAX_FEATURES;
use crate::features::moments::LANES;

/// State of a tile's rows from earlier passes.
pub(super) struct Kept<'a> {
    /// The cluster of each row.
    pub labels: &'a mut [[u8; LANES]],
    /// For each group of eight rows the value of `travelled` up to which no cluster of the group can change.
    pub until: &'a mut [f32],
    /// Sum over the passes of twice the largest movement of a centroid, standardised.
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
        // Rounding reduces it by less than the margin subtracted from `until`.
        let travelled = self.travelled as f32;
        let (mut which, mut many) = ([0; GROUPS], 0);
        for (group, &until) in self.until.iter().enumerate() {
            which[many] = group as u8;
            // NaN is no bound.
            many += usize::from(!matches!(until.partial_cmp(&travelled), Some(std::cmp::Ordering::Greater)));
        }
        Groups { which, many }
    }
}

/// Adds a tile to the sums as [`sweep`] does, and stores the cluster of each row and the bound of each group.
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
        // Faster, although it finds the nearest centroids a second time; bit-identical.
        return sweep(level, tile, frame, &mut None, sums);
    }
    add_up(level, tile, frame, nearest, sums);
}

/// Reads the groups `due` again and moves the values of rows that changed their cluster from one sum to the other. `sums`
/// are the sums of each feature for each cluster, then the weight of each cluster.
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

/// Finds the nearest centroid of each row of these groups and the margin to the second nearest. `D` is the number of
/// features, or 0 for any number up to `MOST`.
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
    // First the squared gaps of all groups, then the bounds: each step depends on the one before it, so the steps of many
    // groups are interleaved.
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
            // Lower bound of the difference of the distances: b - a ≥ (b² - a²) / 2b, nearly equal where a and b are close.
            // Its square is stored, without the factor 1/2. The factor 1 - 2e-9 covers the rounding of the squares.
            let apart = second * S::f64s::splat(simd, 1.0 - 2e-9) - least;
            let squared = apart * apart / second;
            // NaN, which occurs where distances overflow, is no bound.
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
        // Slightly less, so that rounding to f32 is on the safe side.
        until[i] = ((kept.travelled + apart) * (1.0 - 1e-6)) as f32;
    }
}
