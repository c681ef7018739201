//! Greedy k-means++ on weighted points: where to start.
//!
//! Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (SODA 2007), with the greedy choice among
//! several candidates that they propose in their conclusion and scikit-learn uses as well.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;

use super::lloyd::distance;
use super::points::Point;

/// k of the points, each drawn with a chance that grows with its weighted squared distance to those before it, and each
/// the best of a few candidates. There must be k points or more.
pub(super) fn plus_plus<const D: usize>(points: &[Point<D>], k: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<[f64; D]> {
    let trials = 2 + (k as f64).ln() as usize;
    let mut cumulative = vec![0.0; points.len()];
    accumulate(&mut cumulative, points.iter().map(|point| point.weight));
    let first = draw(&cumulative, rng);
    let mut chosen = vec![points[first].at];
    let mut closest: Vec<f64> = points.iter().map(|point| distance(&point.at, &chosen[0])).collect();
    let mut candidate = vec![0.0; points.len()];
    let mut best = vec![0.0; points.len()];
    while chosen.len() < k {
        accumulate(&mut cumulative, points.iter().zip(&closest).map(|(point, d)| point.weight * d));
        let mut best_potential = f64::INFINITY;
        let mut winner = 0;
        for _ in 0..trials {
            let drawn = draw(&cumulative, rng);
            let mut potential = 0.0;
            for ((next, point), &d) in candidate.iter_mut().zip(points).zip(&closest) {
                *next = distance(&point.at, &points[drawn].at).min(d);
                potential += point.weight * *next;
            }
            if potential < best_potential {
                best_potential = potential;
                winner = drawn;
                std::mem::swap(&mut best, &mut candidate);
            }
        }
        std::mem::swap(&mut closest, &mut best);
        chosen.push(points[winner].at);
    }
    chosen
}

fn accumulate(cumulative: &mut [f64], values: impl Iterator<Item = f64>) {
    let mut sum = 0.0;
    for (slot, value) in cumulative.iter_mut().zip(values) {
        sum += value;
        *slot = sum;
    }
}

/// An index, drawn in proportion to the steps of the cumulative sums.
fn draw(cumulative: &[f64], rng: &mut Xoshiro256PlusPlus) -> usize {
    let total = cumulative.last().copied().unwrap_or(0.0);
    let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    cumulative.partition_point(|&sum| sum <= unit * total).min(cumulative.len() - 1)
}
