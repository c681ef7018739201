//! Lloyd's algorithm: descends from initial centroids to a local minimum.
//!
//! Input: points and initial centroids. Output: centroids, each the mean of the rows nearest to it, and the inertia. Lloyd,
//! "Least squares quantization in PCM" (IEEE Trans. Inf. Theory 28, 1982). Centroids are kept in original units and
//! standardised before each pass, as in prediction, so the cluster of each row is the one that the model predicts for it.

use super::hamerly::Bounds;
use super::points::Points;
use super::totals::Totals;
use crate::parallel::by_chunk;

/// Stopping criteria.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Maximum number of passes.
    pub iterations: usize,
    /// A fit stops when the sum of the squared shifts of all centroids (standardised units) is at most this fraction of the
    /// mean variance of the features, as in scikit-learn. 0: when assignments stop changing.
    pub tolerance: f64,
}

/// Progress after one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Number of the pass, from 1.
    pub iteration: usize,
    /// Inertia before the centroids move, in standardised units. If the pass skipped rows, it is computed from sums, to
    /// about ten digits.
    pub inertia: f64,
    /// Sum of the squared shifts of all centroids, in standardised units.
    pub shift: f64,
}

/// Result of a descent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    /// In original units, row-major.
    pub centroids: Vec<f64>,
    /// Weight of each cluster's rows.
    pub weights: Vec<f64>,
    /// Weighted sum of squared distances to the nearest centroid.
    pub inertia: f64,
    pub iterations: usize,
}

/// Descends from these centroids (original units, row-major).
pub(super) fn run(
    points: &Points<'_>,
    mut centroids: Vec<f64>,
    limits: Limits,
    threads: usize,
    watch: &(dyn Fn(Step) + Sync),
) -> Outcome {
    let varied = (0..points.features()).filter(|&feature| points.varies(feature)).count();
    let enough = limits.tolerance * varied as f64 / points.features() as f64;
    let mut bounds = Some(Bounds::new(points.rows(), points.features(), centroids.len() / points.features()));
    for iteration in 1.. {
        let totals = match &mut bounds {
            Some(bounds) => points.pass_after(&centroids, threads, bounds),
            None => points.pass(&centroids, threads),
        };
        let kept = bounds.as_ref().is_some_and(Bounds::kept);
        let mut next = moved(points, &totals, &centroids, threads);
        let shift = squared(&points.standardised(&centroids), &points.standardised(&next));
        watch(Step { iteration, inertia: totals.inertia, shift });
        // Sums depend on the assignment alone: if it did not change, the centroids will not change any more.
        let settled = next == centroids;
        if settled && !kept {
            let Totals { weights, inertia, .. } = totals;
            return Outcome { centroids, weights, inertia, iterations: iteration };
        }
        if settled || iteration >= limits.iterations || shift <= enough {
            if kept {
                next = moved(points, &points.pass(&centroids, threads), &centroids, threads);
            }
            let totals = points.pass(&next, threads);
            if !settled || moved(points, &totals, &next, threads) == next {
                let Totals { weights, inertia, .. } = totals;
                return Outcome { centroids: next, weights, inertia, iterations: iteration };
            }
            // Rounding errors of the kept sums had hidden that a row still changes its cluster.
            bounds = None;
        }
        centroids = next;
    }
    unreachable!("one of the passes is the last")
}

/// The centroids after a pass.
fn moved(points: &Points<'_>, totals: &Totals, centroids: &[f64], threads: usize) -> Vec<f64> {
    let mut next = points.means(totals, centroids);
    relocate(points, totals, centroids, &mut next, threads);
    next
}

pub(super) fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// Moves each empty cluster to one of the rows farthest from their centroids, as in scikit-learn. The weight of that row is
/// removed from its previous cluster.
fn relocate(points: &Points<'_>, totals: &Totals, centroids: &[f64], next: &mut [f64], threads: usize) {
    let empty = totals.weights.iter().filter(|&&weight| weight <= 0.0).count();
    if empty == 0 {
        return;
    }
    let worst = worst(points, centroids, empty, threads);
    let rows: Vec<Vec<f64>> = worst
        .iter()
        .map(|(row, _)| (0..points.features()).map(|feature| points.value(feature, *row)).collect())
        .collect();
    let worst = worst.iter().zip(&rows).map(|((row, from), values)| (values.as_slice(), points.weight(*row), *from));
    take_over(points, totals, centroids, next, worst);
}

/// Gives each empty cluster one of the rows `worst`: values in the columns' own units, weight, and previous cluster.
pub(super) fn take_over<'r>(
    points: &Points<'_>,
    totals: &Totals,
    centroids: &[f64],
    next: &mut [f64],
    worst: impl Iterator<Item = (&'r [f64], f64, usize)>,
) {
    let features = points.features();
    let empty: Vec<usize> = (0..totals.weights.len()).filter(|&cluster| totals.weights[cluster] <= 0.0).collect();
    let mut totals = totals.clone();
    for (cluster, (values, weight, from)) in empty.iter().zip(worst) {
        if totals.weights[from] <= weight {
            continue;
        }
        totals.weights[from] -= weight;
        totals.weights[*cluster] = weight;
        for (feature, value) in values.iter().enumerate() {
            let off = (value - points.origin(feature)) * weight;
            totals.sums[from * features + feature] -= off;
            totals.sums[cluster * features + feature] = off;
        }
    }
    next.copy_from_slice(&points.means(&totals, centroids));
}

/// The `many` rows farthest from their centroids and their clusters, without rows at distance 0.
fn worst(points: &Points<'_>, centroids: &[f64], many: usize, threads: usize) -> Vec<(usize, usize)> {
    let centroids = points.standardised(centroids);
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut worst: Vec<(f64, usize, usize)> = Vec::new();
        points.each_nearest(rows, &centroids, |first, labels, squared| {
            for (i, (label, &far)) in labels.iter().zip(squared).enumerate() {
                let least = if worst.len() < many { 0.0 } else { worst[many - 1].0 };
                if far > least && points.weight(first + i) > 0.0 {
                    let place = worst.partition_point(|other| other.0 >= far);
                    worst.insert(place, (far, first + i, *label as usize));
                    worst.truncate(many);
                }
            }
        });
        worst
    });
    let mut worst: Vec<_> = chunks.into_iter().flatten().collect();
    worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    worst.into_iter().take(many).map(|(_, row, label)| (row, label)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{limits, table};
    use super::*;

    #[test]
    fn an_empty_cluster_moves_to_the_farthest_row() {
        let (scale, columns) = table(vec![vec![0.0, 1.0, 2.0, 3.0, 100.0, 101.0]]);
        let points = Points::new(&scale, &columns);
        // No row is near the second and the third centroid.
        let outcome = run(&points, vec![1.5, 1e6, 2e6], limits(0.0), 1, &|_| {});
        let mut centroids = outcome.centroids;
        centroids.sort_by(f64::total_cmp);
        assert_eq!(centroids, [1.5, 100.0, 101.0]);
    }

    #[test]
    fn the_tolerance_stops_early_and_counts_belong_to_the_last_centroids() {
        let values = (0..4000).map(|i| f64::from(i * i % 3989)).collect();
        let (scale, columns) = table(vec![values]);
        let points = Points::new(&scale, &columns);
        let start = vec![0.0, 10.0, 20.0];
        let whole = run(&points, start.clone(), limits(0.0), 1, &|_| {});
        let early = run(&points, start, limits(1e-2), 1, &|_| {});
        assert!(early.iterations < whole.iterations && early.inertia > whole.inertia);
        let again = points.pass(&early.centroids, 1);
        assert_eq!((again.weights, again.inertia), (early.weights, early.inertia));
    }
}
