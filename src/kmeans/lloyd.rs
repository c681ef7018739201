//! Lloyd's algorithm on weighted points: from centroids to a local minimum.
//!
//! Lloyd, "Least squares quantization in PCM" (IEEE Trans. Inf. Theory 28, 1982).

use super::points::Point;

/// Where a start ended.
#[derive(Debug, Clone)]
pub(super) struct Outcome<const D: usize> {
    pub centroids: Vec<[f64; D]>,
    /// Weighted sum of squared distances to the nearest centroid.
    pub inertia: f64,
    pub iterations: usize,
}

/// The square of the distance of two points.
#[inline]
pub(super) fn distance<const D: usize>(a: &[f64; D], b: &[f64; D]) -> f64 {
    let mut sum = 0.0;
    for i in 0..D {
        let off = a[i] - b[i];
        sum += off * off;
    }
    sum
}

/// Runs until no assignment changes, or for so many passes.
pub(super) fn run<const D: usize>(points: &[Point<D>], mut centroids: Vec<[f64; D]>, most: usize) -> Outcome<D> {
    let k = centroids.len();
    let mut labels = vec![u32::MAX; points.len()];
    let mut sums = vec![[0.0; D]; k];
    let mut weights = vec![0.0; k];
    let mut iterations = 0;
    loop {
        iterations += 1;
        sums.fill([0.0; D]);
        weights.fill(0.0);
        let mut inertia = 0.0;
        let mut changed = false;
        for (point, label) in points.iter().zip(&mut labels) {
            let mut nearest = 0;
            let mut least = f64::INFINITY;
            for (cluster, centroid) in centroids.iter().enumerate() {
                let d = distance(&point.at, centroid);
                if d < least {
                    least = d;
                    nearest = cluster;
                }
            }
            changed |= *label != nearest as u32;
            *label = nearest as u32;
            inertia += point.weight * least;
            weights[nearest] += point.weight;
            for (sum, x) in sums[nearest].iter_mut().zip(&point.at) {
                *sum += point.weight * x;
            }
        }
        if !changed || iterations >= most {
            return Outcome { centroids, inertia, iterations };
        }
        for cluster in 0..k {
            if weights[cluster] > 0.0 {
                centroids[cluster] = sums[cluster].map(|sum| sum / weights[cluster]);
            } else {
                // A cluster that lost all its points starts again at the point that is worst off.
                centroids[cluster] = worst(points, &centroids);
            }
        }
    }
}

fn worst<const D: usize>(points: &[Point<D>], centroids: &[[f64; D]]) -> [f64; D] {
    let mut worst = ([0.0; D], -1.0);
    for point in points {
        let least = centroids.iter().map(|c| distance(&point.at, c)).fold(f64::INFINITY, f64::min);
        if point.weight * least > worst.1 {
            worst = (point.at, point.weight * least);
        }
    }
    worst.0
}
