//! The inner loops: the nearest centroid of each row of a tile, and the sums by cluster.
//!
//! Input: a tile of rows, one slice per feature, in groups of eight rows. Output: sums, weights and squared distances by
//! cluster, in eight lanes. Row i of a tile is added to lane i modulo 8, for every vector width. No operations are fused or
//! reordered, so results are bit-identical on every instruction set. Machines with narrower vectors process the lanes in
//! turn; a tile is small enough to stay in the L1 cache meanwhile.

#![allow(clippy::needless_range_loop, reason = "several arrays go by the same feature or cluster")]

use fearless_simd::{Level, Select, Simd, SimdBase, dispatch};

use crate::features::moments::LANES;

/// Values of eight rows, one per lane.
pub(super) type Lanes = [f64; LANES];
/// Groups of eight rows in a tile.
pub(super) const GROUPS: usize = 128;
/// Rows of a tile.
pub(super) const TILE: usize = GROUPS * LANES;

/// A tile of rows, column by column.
pub(super) struct Tile<'a> {
    /// All of the same length.
    pub columns: &'a [&'a [Lanes]],
    /// `None`: 1 for each row.
    pub weights: Option<&'a [Lanes]>,
}

/// Centroids, and the standardisation of rows.
pub(super) struct Frame<'a> {
    pub origin: &'a [f64],
    pub inverse: &'a [f64],
    /// Standardised, row-major.
    pub centroids: &'a [f64],
    pub k: usize,
}

/// The nearest centroid of each row and its squared distance.
pub(super) struct Nearest {
    /// Cluster numbers as f64, the type of the vectors that select them.
    pub labels: Vec<Lanes>,
    pub squared: Vec<Lanes>,
    standardised: Vec<Lanes>,
    /// Used by hamerly_kernel.rs only.
    pub gaps: Vec<Lanes>,
}

impl Nearest {
    pub fn new() -> Self {
        let lanes = || vec![[0.0; LANES]; GROUPS];
        Self { labels: lanes(), squared: lanes(), standardised: Vec::new(), gaps: Vec::new() }
    }
}

/// Sums of a pass.
pub(super) struct Sums {
    features: usize,
    /// The sum of each feature (differences from its origin) for each cluster, then the weight of each cluster, then the
    /// sum of squared distances.
    lanes: Vec<Lanes>,
    /// The sums of features where eight features of a row are added at once, by cluster, block of eight features, and lane.
    /// Empty otherwise.
    by_row: Vec<Row>,
}

/// Eight features of a row, aligned to a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Row([f64; LANES]);

impl Sums {
    pub fn new(level: Level, k: usize, features: usize) -> Self {
        let at_once = dispatch!(level, simd => width(simd)) == LANES && features > 4;
        let by_row = if at_once { k * features.div_ceil(LANES) * LANES } else { 0 };
        Self { features, lanes: vec![[0.0; LANES]; k * features + k + 1], by_row: vec![Row([0.0; LANES]); by_row] }
    }

    /// The sum over the lanes of each element of `lanes`.
    pub fn fold(mut self) -> Vec<f64> {
        let blocks = self.features.div_ceil(LANES);
        for (i, rows) in self.by_row.chunks_exact(LANES).enumerate() {
            let (cluster, block) = (i / blocks, i % blocks);
            for f in block * LANES..self.features.min((block + 1) * LANES) {
                let to = &mut self.lanes[cluster * self.features + f];
                to.iter_mut().zip(rows).for_each(|(to, row)| *to = row.0[f - block * LANES]);
            }
        }
        self.lanes.iter().map(fold).collect()
    }
}

#[inline(always)]
fn width<S: Simd>(_: S) -> usize {
    S::f64s::LEN
}

/// Whether a pass with these numbers of features and clusters keeps all its sums in registers.
pub(super) fn in_registers(features: usize, k: usize) -> bool {
    (1..=4).contains(&features) && (2..=8).contains(&k)
}

/// Adds a tile to the sums. `nearest` is created by the first tile that needs it.
pub(super) fn sweep(level: Level, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &mut Option<Nearest>, sums: &mut Sums) {
    let lanes = &mut sums.lanes;
    macro_rules! in_registers {
        ($($features:literal: $($k:literal)*;)*) => {
            match (tile.columns.len(), frame.k) {
                $($(($features, $k) => match tile.weights {
                    None => dispatch!(level, simd => fused::<_, $features, $k, false>(simd, tile, frame, lanes)),
                    Some(_) => dispatch!(level, simd => fused::<_, $features, $k, true>(simd, tile, frame, lanes)),
                },)*)*
                _ => in_two_steps(level, tile, frame, nearest.get_or_insert_with(Nearest::new), sums),
            }
        };
    }
    in_registers! {
        1: 2 3 4 5 6 7 8;
        2: 2 3 4 5 6 7 8;
        3: 2 3 4 5 6 7 8;
        4: 2 3 4 5 6 7 8;
    }
}

/// Kernel for few features and clusters: all sums stay in registers.
#[inline(always)]
fn fused<S: Simd, const D: usize, const K: usize, const WEIGHTED: bool>(
    simd: S,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    lanes: &mut [Lanes],
) {
    // No closures: one that is not inlined would be compiled without the instruction set.
    let width = S::f64s::LEN;
    let groups = tile.columns[0].len();
    let zero = S::f64s::splat(simd, 0.0);
    let one = S::f64s::splat(simd, 1.0);
    let mut columns: [&[Lanes]; D] = [&[]; D];
    let mut origin = [zero; D];
    let mut inverse = [zero; D];
    for f in 0..D {
        columns[f] = &tile.columns[f][..groups];
        origin[f] = S::f64s::splat(simd, frame.origin[f]);
        inverse[f] = S::f64s::splat(simd, frame.inverse[f]);
    }
    let mut centroids = [[zero; D]; K];
    let mut names = [zero; K];
    for c in 0..K {
        names[c] = S::f64s::splat(simd, c as f64);
        for f in 0..D {
            centroids[c][f] = S::f64s::splat(simd, frame.centroids[c * D + f]);
        }
    }
    let weights = match tile.weights {
        Some(weights) if WEIGHTED => &weights[..groups],
        _ => &[],
    };
    let lanes = &mut lanes[..K * D + K + 1];
    for first in (0..LANES).step_by(width) {
        let at = first..first + width;
        let mut sums = [[zero; D]; K];
        let mut counts = [zero; K];
        for c in 0..K {
            for f in 0..D {
                sums[c][f] = S::f64s::from_slice(simd, &lanes[c * D + f][at.clone()]);
            }
            counts[c] = S::f64s::from_slice(simd, &lanes[K * D + c][at.clone()]);
        }
        let mut inertia = S::f64s::from_slice(simd, &lanes[K * D + K][at.clone()]);
        for i in 0..groups {
            let mut off = [zero; D];
            let mut standardised = [zero; D];
            for f in 0..D {
                off[f] = S::f64s::from_slice(simd, &columns[f][i][at.clone()]) - origin[f];
                standardised[f] = off[f] * inverse[f];
            }
            let mut least = zero;
            let mut label = zero;
            for c in 0..K {
                let mut squared = zero;
                for f in 0..D {
                    let apart = standardised[f] - centroids[c][f];
                    squared = if f == 0 { apart * apart } else { squared + apart * apart };
                }
                if c == 0 {
                    (least, label) = (squared, names[0]);
                } else {
                    let nearer = squared.simd_lt(least);
                    least = nearer.select(squared, least);
                    label = nearer.select(names[c], label);
                }
            }
            let mut weight = one;
            if WEIGHTED {
                weight = S::f64s::from_slice(simd, &weights[i][at.clone()]);
                least *= weight;
                for off in &mut off {
                    *off *= weight;
                }
            }
            for c in 0..K {
                let here = label.simd_eq(names[c]);
                // One sum in two forms, for instruction sets with and without masked operations.
                if width == LANES {
                    for f in 0..D {
                        sums[c][f] = here.select(sums[c][f] + off[f], sums[c][f]);
                    }
                    counts[c] = here.select(counts[c] + weight, counts[c]);
                } else {
                    for f in 0..D {
                        sums[c][f] += here.select(off[f], zero);
                    }
                    counts[c] += here.select(weight, zero);
                }
            }
            inertia += least;
        }
        for c in 0..K {
            for f in 0..D {
                sums[c][f].store_slice(&mut lanes[c * D + f][at.clone()]);
            }
            counts[c].store_slice(&mut lanes[K * D + c][at.clone()]);
        }
        inertia.store_slice(&mut lanes[K * D + K][at.clone()]);
    }
}

/// Kernel for any number of features and clusters: first the nearest centroids, then the sums. Bit-identical to [`fused`].
fn in_two_steps(level: Level, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &mut Nearest, sums: &mut Sums) {
    find_nearest(level, tile, frame, nearest);
    add_up(level, tile, frame, nearest, sums);
}

/// Converts an integer from 0 to 255 in a double to u8, without the range checks of `as`.
#[inline(always)]
pub(super) fn whole(number: f64) -> u8 {
    // In doubles from 2⁵² to 2⁵³ the lowest bits of the mantissa are those of the integer.
    (number + 4_503_599_627_370_496.0).to_bits() as u8
}

/// Adds a tile with known nearest centroids to the sums.
pub(super) fn add_up(level: Level, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &Nearest, sums: &mut Sums) {
    let (features, k) = (tile.columns.len(), frame.k);
    let groups = tile.columns[0].len();
    let Sums { lanes, by_row, .. } = sums;
    let (sums, rest) = lanes.split_at_mut(k * features);
    let (counts, inertia) = rest.split_at_mut(k);
    // Offset of each row's cluster in the sums.
    let mut starts = [[0; LANES]; GROUPS];
    let stride = if by_row.is_empty() { features } else { features.div_ceil(LANES) * LANES };
    let weights = tile.weights.map(|weights| &weights[..groups]);
    for (i, (labels, squared)) in nearest.labels[..groups].iter().zip(&nearest.squared[..groups]).enumerate() {
        let weights = weights.map_or([1.0; LANES], |weights| weights[i]);
        for lane in 0..LANES {
            let cluster = u32::from(whole(labels[lane]));
            counts[cluster as usize][lane] += weights[lane];
            starts[i][lane] = cluster * stride as u32;
        }
        for lane in 0..LANES {
            inertia[0][lane] += squared[lane] * weights[lane];
        }
    }
    if !by_row.is_empty() {
        return dispatch!(level, simd => match tile.weights {
            None => add_rows::<_, false>(simd, tile, frame, &starts, by_row),
            Some(_) => add_rows::<_, true>(simd, tile, frame, &starts, by_row),
        });
    }
    for (f, (column, &origin)) in tile.columns.iter().zip(frame.origin).enumerate() {
        match tile.weights {
            None => {
                for (starts, values) in starts.iter().zip(*column) {
                    for lane in 0..LANES {
                        sums[starts[lane] as usize + f][lane] += values[lane] - origin;
                    }
                }
            }
            Some(weights) => {
                for ((starts, values), weights) in starts.iter().zip(*column).zip(weights) {
                    for lane in 0..LANES {
                        sums[starts[lane] as usize + f][lane] += (values[lane] - origin) * weights[lane];
                    }
                }
            }
        }
    }
}

/// Adds eight features of a row at once, if a vector has eight lanes: transposes columns to rows.
#[inline(always)]
fn add_rows<S: Simd, const WEIGHTED: bool>(
    simd: S,
    tile: &Tile<'_>,
    frame: &Frame<'_>,
    starts: &[[u32; LANES]; GROUPS],
    by_row: &mut [Row],
) {
    if S::f64s::LEN != LANES {
        return;
    }
    let groups = tile.columns[0].len().min(GROUPS);
    let zero = S::f64s::splat(simd, 0.0);
    let weights = match tile.weights {
        Some(weights) if WEIGHTED => &weights[..groups],
        _ => &[],
    };
    for first in (0..tile.columns.len()).step_by(LANES) {
        // Blocks with fewer than eight features are padded with the first feature; its additional sums are not read.
        let mut columns = [&tile.columns[first][..groups]; LANES];
        let mut origin = [S::f64s::splat(simd, frame.origin[first]); LANES];
        for f in first..tile.columns.len().min(first + LANES) {
            columns[f - first] = &tile.columns[f][..groups];
            origin[f - first] = S::f64s::splat(simd, frame.origin[f]);
        }
        for i in 0..groups {
            let mut rows = [zero; LANES];
            for f in 0..LANES {
                rows[f] = S::f64s::from_slice(simd, &columns[f][i]) - origin[f];
                if WEIGHTED {
                    rows[f] *= S::f64s::from_slice(simd, &weights[i]);
                }
            }
            // Three perfect shuffles transpose eight columns into eight rows.
            for _ in 0..3 {
                let [a, b, c, d, e, f, g, h] = rows;
                rows = [
                    a.zip_low(e),
                    a.zip_high(e),
                    b.zip_low(f),
                    b.zip_high(f),
                    c.zip_low(g),
                    c.zip_high(g),
                    d.zip_low(h),
                    d.zip_high(h),
                ];
            }
            for lane in 0..LANES {
                let sum = &mut by_row[starts[i][lane] as usize + first + lane].0;
                (S::f64s::from_slice(simd, sum) + rows[lane]).store_slice(sum);
            }
        }
    }
}

/// Finds the nearest centroid of each row, the first of equals.
pub(super) fn find_nearest(level: Level, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &mut Nearest) {
    macro_rules! by_features {
        ($($features:literal)*) => {
            match tile.columns.len() {
                $($features => dispatch!(level, simd => nearest_of_few::<_, $features>(simd, tile, frame, nearest)),)*
                _ => dispatch!(level, simd => nearest_of_many(simd, tile, frame, nearest)),
            }
        };
    }
    by_features!(1 2 3 4 5 6 7 8);
}

#[inline(always)]
fn nearest_of_few<S: Simd, const D: usize>(simd: S, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &mut Nearest) {
    let width = S::f64s::LEN;
    let groups = tile.columns[0].len();
    let zero = S::f64s::splat(simd, 0.0);
    let mut columns: [&[Lanes]; D] = [&[]; D];
    let mut origin = [zero; D];
    let mut inverse = [zero; D];
    for f in 0..D {
        columns[f] = &tile.columns[f][..groups];
        origin[f] = S::f64s::splat(simd, frame.origin[f]);
        inverse[f] = S::f64s::splat(simd, frame.inverse[f]);
    }
    let (centroids, _) = frame.centroids.as_chunks::<D>();
    let (labels, distances) = (&mut nearest.labels[..groups], &mut nearest.squared[..groups]);
    for i in 0..groups {
        for first in (0..LANES).step_by(width) {
            let at = first..first + width;
            let mut standardised = [zero; D];
            for f in 0..D {
                standardised[f] = (S::f64s::from_slice(simd, &columns[f][i][at.clone()]) - origin[f]) * inverse[f];
            }
            let mut least = S::f64s::splat(simd, f64::INFINITY);
            let mut label = zero;
            for (c, centroid) in centroids.iter().enumerate() {
                let mut squared = zero;
                for f in 0..D {
                    let apart = standardised[f] - S::f64s::splat(simd, centroid[f]);
                    squared = if f == 0 { apart * apart } else { squared + apart * apart };
                }
                let nearer = squared.simd_lt(least);
                least = nearer.select(squared, least);
                label = nearer.select(S::f64s::splat(simd, c as f64), label);
            }
            least.store_slice(&mut distances[i][at.clone()]);
            label.store_slice(&mut labels[i][at]);
        }
    }
}

#[inline(always)]
fn nearest_of_many<S: Simd>(simd: S, tile: &Tile<'_>, frame: &Frame<'_>, nearest: &mut Nearest) {
    let width = S::f64s::LEN;
    let features = tile.columns.len();
    let groups = tile.columns[0].len();
    let zero = S::f64s::splat(simd, 0.0);
    nearest.standardised.resize(features, [0.0; LANES]);
    let Nearest { labels, squared: distances, standardised, .. } = nearest;
    for i in 0..groups {
        for first in (0..LANES).step_by(width) {
            let at = first..first + width;
            for f in 0..features {
                let off =
                    S::f64s::from_slice(simd, &tile.columns[f][i][at.clone()]) - S::f64s::splat(simd, frame.origin[f]);
                (off * S::f64s::splat(simd, frame.inverse[f])).store_slice(&mut standardised[f][at.clone()]);
            }
            let mut least = S::f64s::splat(simd, f64::INFINITY);
            let mut label = zero;
            for (c, centroid) in frame.centroids.chunks_exact(features).enumerate() {
                let mut squared = zero;
                for f in 0..features {
                    let apart =
                        S::f64s::from_slice(simd, &standardised[f][at.clone()]) - S::f64s::splat(simd, centroid[f]);
                    squared += apart * apart;
                }
                let nearer = squared.simd_lt(least);
                least = nearer.select(squared, least);
                label = nearer.select(S::f64s::splat(simd, c as f64), label);
            }
            least.store_slice(&mut distances[i][at.clone()]);
            label.store_slice(&mut labels[i][at]);
        }
    }
}

/// The sum over the lanes, pairwise.
pub(super) fn fold(lanes: &Lanes) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}
