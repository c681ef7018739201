//! Clusters of rows in given centroids.

use ndarray::Array2;

use crate::parallel::by_chunk;
use crate::{Fit, Points, flat};

/// Sizes and inertia of given centroids (k × features, original units), without moving them.
pub fn measure(points: &Points<'_>, centroids: Array2<f64>, threads: usize) -> Fit {
    let totals = points.pass(&flat(&centroids), threads);
    let sizes = totals.weights.iter().map(|&weight| weight.round() as u64).collect();
    Fit { centroids, sizes, inertia: totals.inertia, iterations: 0 }
}

/// Index of the nearest centroid of each row, the first of equals. Centroids are k × features, in original units.
pub fn assign(points: &Points<'_>, centroids: &Array2<f64>, threads: usize) -> Vec<u8> {
    let centroids = points.standardised(&flat(centroids));
    let chunks = by_chunk(points.rows(), threads, |rows| labels(points, &centroids, rows));
    chunks.concat()
}

/// Contingency table of two models over the same rows: element `[i][j]` counts the rows in cluster i of the first and
/// cluster j of the second. Each model has its own scale, and centroids in original units.
pub fn cross(
    (from, old): (&Points<'_>, &Array2<f64>),
    (to, new): (&Points<'_>, &Array2<f64>),
    threads: usize,
) -> Vec<Vec<u64>> {
    let (old_at, new_at) = (from.standardised(&flat(old)), to.standardised(&flat(new)));
    let chunks = by_chunk(from.rows(), threads, |rows| {
        let mut counts = vec![vec![0; new.nrows()]; old.nrows()];
        let pairs = labels(from, &old_at, rows.clone()).into_iter().zip(labels(to, &new_at, rows));
        pairs.for_each(|(old, new)| counts[usize::from(old)][usize::from(new)] += 1);
        counts
    });
    let mut all = vec![vec![0; new.nrows()]; old.nrows()];
    for chunk in chunks {
        all.iter_mut().flatten().zip(chunk.into_iter().flatten()).for_each(|(sum, count)| *sum += count);
    }
    all
}

pub(crate) fn labels(points: &Points<'_>, standardised: &[f64], rows: std::ops::Range<usize>) -> Vec<u8> {
    let mut labels = Vec::with_capacity(rows.len());
    points.each_nearest(rows, standardised, |_, found, _| labels.extend(found.iter().map(|&label| label as u8)));
    labels
}

/// Index of the nearest centroid of one row, the first of equals, and the squared distance. Row and centroids are
/// standardised.
pub fn nearest(row: &[f64], centroids: &Array2<f64>) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (cluster, centroid) in centroids.rows().into_iter().enumerate() {
        // Terms are added in the order of the passes, so that a row on a border gets the same cluster.
        let squared = row.iter().zip(centroid).fold(0.0, |sum, (x, c)| sum + (x - c) * (x - c));
        if squared < best.1 {
            best = (cluster, squared);
        }
    }
    best
}
