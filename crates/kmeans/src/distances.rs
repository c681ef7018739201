//! Distances from one point to all rows: the inner loops of k-means++ and of the silhouette.
//!
//! Results are bit-identical on every instruction set, as in kernel.rs.

#![allow(clippy::needless_range_loop, reason = "several arrays go by the same feature")]

use fearless_simd::{Level, Select, Simd, SimdBase, SimdFloat, dispatch};

use super::kernel::{Lanes, fold};
use crate::features::moments::LANES;

/// Stores in `out` the smaller of `closest` and the squared distance to `chosen` for each point; returns their weighted
/// sum. `columns` are standardised.
pub(super) fn draw_nearer(
    level: Level,
    columns: &[&[Lanes]],
    weights: &[Lanes],
    chosen: &[f64],
    closest: &[Lanes],
    out: &mut [Lanes],
) -> f64 {
    dispatch!(level, simd => nearer(simd, columns, weights, chosen, closest, out))
}

#[inline(always)]
fn nearer<S: Simd>(
    simd: S,
    columns: &[&[Lanes]],
    weights: &[Lanes],
    chosen: &[f64],
    closest: &[Lanes],
    out: &mut [Lanes],
) -> f64 {
    let width = S::f64s::LEN;
    let mut sums = [0.0; LANES];
    for first in (0..LANES).step_by(width) {
        let at = first..first + width;
        let mut sum = S::f64s::splat(simd, 0.0);
        for i in 0..weights.len() {
            let mut squared = S::f64s::splat(simd, 0.0);
            for f in 0..columns.len() {
                let apart = S::f64s::from_slice(simd, &columns[f][i][at.clone()]) - S::f64s::splat(simd, chosen[f]);
                squared += apart * apart;
            }
            let before = S::f64s::from_slice(simd, &closest[i][at.clone()]);
            let least = squared.simd_lt(before).select(squared, before);
            least.store_slice(&mut out[i][at.clone()]);
            sum += least * S::f64s::from_slice(simd, &weights[i][at.clone()]);
        }
        sum.store_slice(&mut sums[at]);
    }
    fold(&sums)
}

/// Stores in `out` the distance of each row from row `from`; columns are standardised.
pub(super) fn distances(level: Level, columns: &[Vec<f64>], from: usize, out: &mut [f64]) {
    dispatch!(level, simd => distances_from(simd, columns, from, out));
}

#[inline(always)]
fn distances_from<S: Simd>(simd: S, columns: &[Vec<f64>], from: usize, out: &mut [f64]) {
    let width = S::f64s::LEN;
    let whole = out.len() / width * width;
    for at in (0..whole).step_by(width) {
        let mut squared = S::f64s::splat(simd, 0.0);
        for column in columns {
            let apart = S::f64s::splat(simd, column[from]) - S::f64s::from_slice(simd, &column[at..at + width]);
            squared += apart * apart;
        }
        squared.sqrt().store_slice(&mut out[at..at + width]);
    }
    for row in whole..out.len() {
        let squared = columns.iter().fold(0.0, |sum, column| {
            let apart = column[from] - column[row];
            sum + apart * apart
        });
        out[row] = squared.sqrt();
    }
}
