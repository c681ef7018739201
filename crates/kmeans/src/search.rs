//! Genetic search for the best local minimum.
//!
//! Input: points, few enough for many passes. Output: local minima, the best first. Greedy k-means++ restarts form a
//! population. Then pairs of its members are crossed: their centroids are matched, one centroid of each pair is chosen, one
//! of the chosen is removed and drawn again by k-means++, and Lloyd's algorithm continues from there. The search ends when
//! several consecutive batches of crossings find nothing better (Gribel and Vidal, "HG-means: a scalable hybrid genetic
//! algorithm for minimum sum-of-squares clustering", Pattern Recognition 88, 2019). With restarts alone, the probability of
//! finding the best of many local minima decreases fast with k.

use ndarray::Array2;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

use super::hungarian::match_rows;
use super::kmeans_plus_plus::{Urn, further, trials};
use super::lloyd::{self, Limits, Outcome};
use super::points::Points;
use crate::parallel::in_parallel;

/// Size of the population.
const POPULATION: usize = 12;
/// Crossings per batch; they are independent of each other.
const BATCH: usize = 8;
/// Budget of passes per crossing: if fewer are needed, more crossings are tried.
const PASSES: usize = 24;
/// Maximum inertia on all points, relative to the best, of a solution that is improved there.
const PROMISING: f64 = 1.005;
/// Limits of the approximate descent on the fewer points, and on all points.
const ON_FEWER: Limits = Limits { iterations: 60, tolerance: 1e-5 };
const ON_ALL: Limits = Limits { iterations: 10, tolerance: 1e-5 };
/// Relative difference in inertia below which two solutions count as equal: local minima, and approximate local minima.
const SAME: f64 = 1e-9;
const NEARLY_SAME: f64 = 1e-4;

/// Parameters of a search.
#[derive(Clone, Copy)]
pub(super) struct Search<'a> {
    /// Points on which solutions are evaluated.
    pub points: &'a Points<'a>,
    /// A smaller weighted sample of the points, on which most passes run.
    pub fewer: Option<&'a Points<'a>>,
    pub k: usize,
    pub seed: u64,
    /// Restarts.
    pub starts: usize,
    /// Number of consecutive batches of crossings without improvement after which the search ends.
    pub patience: usize,
    /// Centroids of a warm start, in original units, row-major.
    pub warm: Option<&'a [f64]>,
    pub limits: Limits,
    pub threads: usize,
}

impl Search<'_> {
    /// Distinct local minima, the best first.
    pub fn run(&self) -> Vec<Outcome> {
        let Self { points, fewer, k, seed, starts, patience, threads, .. } = *self;
        let urn = Urn::new(fewer.unwrap_or(points));
        let from = |start: usize| match self.warm {
            Some(warm) if start == starts => in_order(warm, points.features()),
            _ => urn.draw(k, &mut Xoshiro256PlusPlus::seed_from_u64(further(seed, start as u64))),
        };
        let all = starts + usize::from(self.warm.is_some());
        let same = if fewer.is_some() { NEARLY_SAME } else { SAME };
        let mut found = in_parallel(all, threads, |start| self.descend(from(start), f64::INFINITY));
        rank(&mut found, same);
        let (mut waited, mut passes) = (0, 0);
        let mut crossed = 0_u64;
        let enough = |waited, passes| waited >= patience && passes >= patience * BATCH * PASSES;
        while k > 1 && !enough(waited, passes) && found[0].inertia > 0.0 {
            let best = found[0].inertia;
            let children = in_parallel(BATCH, threads, |child| {
                let mut rng = Xoshiro256PlusPlus::seed_from_u64(further(!seed, crossed + child as u64));
                // Where a few points dominate the inertia, the best of several candidates is nearly always the same one.
                let trials = if child % 2 == 0 { trials(k) } else { 1 };
                self.descend(cross(points, (&urn, trials), &found, &mut rng), best * PROMISING)
            });
            crossed += BATCH as u64;
            (waited, passes) = (waited + 1, passes + children.iter().map(|child| child.iterations).sum::<usize>());
            found.extend(children);
            rank(&mut found, same);
            if found[0].inertia < best * (1.0 - same) {
                (waited, passes) = (0, 0);
            }
        }
        if fewer.is_some() {
            found = in_parallel(found.len(), threads, |i| after(&found[i], points, self.limits));
            rank(&mut found, SAME);
        }
        found
    }

    /// Descends to a local minimum. With `fewer`, descends to an approximate one, and stops early if its inertia after one
    /// pass over all points exceeds `promising`.
    fn descend(&self, from: Vec<f64>, promising: f64) -> Outcome {
        let Self { points, fewer, limits, .. } = *self;
        let Some(fewer) = fewer else { return lloyd::run(points, from, limits, 1, &|_| {}) };
        let found = lloyd::run(fewer, from, ON_FEWER, 1, &|_| {});
        let found = after(&found, points, Limits { iterations: 1, ..ON_ALL });
        if found.inertia > promising { found } else { after(&found, points, ON_ALL) }
    }
}

/// Continues from a solution; the result counts the passes of both.
fn after(before: &Outcome, points: &Points<'_>, limits: Limits) -> Outcome {
    let found = lloyd::run(points, before.centroids.clone(), limits, 1, &|_| {});
    Outcome { iterations: before.iterations + found.iterations, ..found }
}

/// Sorts solutions and removes duplicates and the worst. The sort is stable: the earliest of equals is kept.
fn rank(found: &mut Vec<Outcome>, same: f64) {
    found.sort_by(|a, b| a.inertia.total_cmp(&b.inertia));
    found.dedup_by(|next, before| next.inertia <= before.inertia * (1.0 + same));
    found.truncate(POPULATION);
}

/// Initial centroids of a child of two members, in original units.
fn cross(
    points: &Points<'_>,
    (urn, trials): (&Urn<'_>, usize),
    members: &[Outcome],
    rng: &mut Xoshiro256PlusPlus,
) -> Vec<f64> {
    let features = points.features();
    let mut below = |n: usize| ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize;
    // Binary tournament: members are sorted, so the smaller index is the better one.
    let a = below(members.len()).min(below(members.len()));
    let b = below(members.len()).min(below(members.len()));
    let (a, b) = (&members[a].centroids, &members[b].centroids);
    let k = a.len() / features;
    let (at_a, at_b) = (points.standardised(a), points.standardised(b));
    let apart = |(i, j): (usize, usize)| {
        lloyd::squared(&at_a[i * features..(i + 1) * features], &at_b[j * features..(j + 1) * features])
    };
    let pairs = match_rows(Array2::from_shape_fn((k, k), apart).view());
    let moved = below(k);
    let mut kept = Vec::with_capacity(a.len());
    for (i, j) in pairs.into_iter().enumerate() {
        let (of, from) = if below(2) == 0 { (a, i) } else { (b, j) };
        if i != moved {
            kept.extend_from_slice(&of[from * features..(from + 1) * features]);
        }
    }
    urn.complete(kept, k, trials, rng)
}

/// Sorts centroids by their coordinates, so that their numbering makes no difference.
fn in_order(centroids: &[f64], features: usize) -> Vec<f64> {
    let mut rows: Vec<&[f64]> = centroids.chunks_exact(features).collect();
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    rows.concat()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, random, table};
    use super::*;

    #[test]
    fn crossings_find_what_a_restart_misses() {
        let (scale, columns) = table(random(800, 2));
        let points = Points::new(&scale, &columns);
        let mut missed = 0;
        for seed in 0..3 {
            let (limits, patience) = (limits(0.0), 0);
            let alone = Search {
                points: &points,
                fewer: None,
                k: 16,
                seed,
                starts: 1,
                patience,
                warm: None,
                limits,
                threads: 2,
            };
            let crossed = Search { patience: 12, ..alone }.run();
            let many = Search { starts: 40, ..alone }.run();
            assert!(crossed[0].inertia <= many[0].inertia, "{} {}", crossed[0].inertia, many[0].inertia);
            missed += usize::from(alone.run()[0].inertia > 1.001 * crossed[0].inertia);
            assert!(crossed.windows(2).all(|pair| pair[0].inertia < pair[1].inertia));
            if seed == 0 {
                assert_eq!(crossed, Search { patience: 12, threads: 1, ..alone }.run(), "threads make no difference");
            }
        }
        assert!(missed > 0, "this needs data where a restart misses the best");
    }
}
