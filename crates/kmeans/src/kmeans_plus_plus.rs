//! Greedy k-means++ on weighted points: initial centroids.
//!
//! Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding" (SODA 2007), with the greedy choice among
//! several candidates proposed in their conclusion and used by scikit-learn.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::RngCore;

use super::distances::draw_nearer;
use super::kernel::Lanes;
use super::points::Points;
use crate::features::moments::LANES;

/// Default seed.
pub const SEED: u64 = 42;

/// Standardised points to draw from, padded to a multiple of eight rows with rows of weight 0.
pub(super) struct Urn<'a> {
    points: &'a Points<'a>,
    columns: Vec<Vec<Lanes>>,
    weights: Vec<Lanes>,
}

impl<'a> Urn<'a> {
    pub fn new(points: &'a Points<'a>) -> Self {
        let groups = points.rows().div_ceil(LANES);
        let fill = |value: &dyn Fn(usize) -> f64| {
            let mut lanes = vec![[0.0; LANES]; groups];
            lanes.as_flattened_mut().iter_mut().zip(0..points.rows()).for_each(|(to, row)| *to = value(row));
            lanes
        };
        let column = |feature| fill(&|row| points.standardise(feature, points.value(feature, row)));
        let columns = (0..points.features()).map(column).collect();
        Self { points, columns, weights: fill(&|row| points.weight(row)) }
    }

    /// Draws k points, returned in original units in row-major order. Each candidate is drawn with a probability
    /// proportional to its weighted squared distance to the nearest centroid drawn before; of a few candidates the one that
    /// leaves the smallest inertia is taken. Requires at least k distinct points.
    pub fn draw(&self, k: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<f64> {
        self.complete(Vec::new(), k, trials(k), rng)
    }

    /// Extends given centroids (original units, row-major) to k, each the best of `trials` candidates.
    pub fn complete(&self, mut centroids: Vec<f64>, k: usize, trials: usize, rng: &mut Xoshiro256PlusPlus) -> Vec<f64> {
        let features = self.points.features();
        let columns: Vec<&[Lanes]> = self.columns.iter().map(Vec::as_slice).collect();
        let at = |row: usize| -> Vec<f64> { columns.iter().map(|column| column.as_flattened()[row]).collect() };
        let level = self.points.level();
        let nearer = |at: &[f64], closest: &[Lanes], out: &mut [Lanes]| {
            draw_nearer(level, &columns, &self.weights, at, closest, out)
        };
        let everywhere = vec![[f64::INFINITY; LANES]; self.weights.len()];
        let (mut closest, mut candidate, mut best) = (everywhere.clone(), everywhere.clone(), everywhere);
        let mut cumulative = vec![0.0; self.points.rows()];
        let value = |row: usize, feature| self.points.original(feature, self.points.value(feature, row));
        let add = |centroids: &mut Vec<f64>, row| centroids.extend((0..features).map(|feature| value(row, feature)));
        for centroid in self.points.standardised(&centroids).chunks_exact(features) {
            nearer(centroid, &closest, &mut best);
            std::mem::swap(&mut closest, &mut best);
        }
        if centroids.is_empty() {
            accumulate(&mut cumulative, self.weights.as_flattened().iter().copied());
            let first = pick(&cumulative, rng);
            nearer(&at(first), &best, &mut closest);
            add(&mut centroids, first);
        }
        while centroids.len() < k * features {
            let weights = self.weights.as_flattened().iter().zip(closest.as_flattened());
            accumulate(&mut cumulative, weights.map(|(weight, squared)| weight * squared));
            let mut least = f64::INFINITY;
            let mut winner = 0;
            for _ in 0..trials {
                let row = pick(&cumulative, rng);
                let potential = nearer(&at(row), &closest, &mut candidate);
                if potential < least {
                    (least, winner) = (potential, row);
                    std::mem::swap(&mut best, &mut candidate);
                }
            }
            std::mem::swap(&mut closest, &mut best);
            add(&mut centroids, winner);
        }
        centroids
    }
}

/// Seed of restart number `start` of a fit with seed `seed`. The generator that takes it must decorrelate adjacent seeds.
/// Each fit seed has its own sequence: otherwise adjacent fit seeds would share restarts. The sequence of [`SEED`] begins
/// with itself.
pub fn further(seed: u64, start: u64) -> u64 {
    // Multiplication by 2^64 / golden ratio moves adjacent seeds far apart.
    let stream = (seed ^ SEED).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ SEED;
    stream.wrapping_add(start)
}

/// Candidates per centroid, 2 + ⌊ln k⌋ as in scikit-learn.
pub(super) fn trials(k: usize) -> usize {
    2 + (k as f64).ln() as usize
}

fn accumulate(cumulative: &mut [f64], values: impl Iterator<Item = f64>) {
    let mut sum = 0.0;
    for (slot, value) in cumulative.iter_mut().zip(values) {
        sum += value;
        *slot = sum;
    }
}

/// Draws an index with a probability proportional to its increment of the cumulative sums.
fn pick(cumulative: &[f64], rng: &mut Xoshiro256PlusPlus) -> usize {
    let drawn = unit(rng) * cumulative.last().copied().unwrap_or(0.0);
    cumulative.partition_point(|&sum| sum <= drawn).min(cumulative.len() - 1)
}

/// A uniform number in [0, 1).
pub(super) fn unit(rng: &mut Xoshiro256PlusPlus) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}
