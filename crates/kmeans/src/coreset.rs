//! A coreset: a weighted sample of points that keeps rare ones.
//!
//! Input: points and an approximate solution for them, the guide. Output: some of the points with weights, on which any k
//! centroids have about the same inertia as on all points. A uniform sample does not have this property: it misses a few
//! distant rows, which may contribute most of the inertia.
//!
//! Each point is drawn independently, with a probability that grows with its share of the guide's inertia and with its
//! share of its cluster's weight; its weight is divided by that probability (Feldman and Langberg, "A unified framework for
//! approximating and clustering data", STOC 2011; Bachem, Lucic and Krause, "Practical coreset constructions for machine
//! learning", arXiv:1703.06476, 2017). A point with a sufficient share is kept with certainty. The weights of each cluster
//! of the guide are then scaled to the true weight of the cluster (post-stratification), so a guide with more clusters than
//! requested reduces the error. The draws depend on the points, their indices and the seed alone, not on threads or
//! instruction sets.

use super::lloyd::Outcome;
use super::points::Points;
use crate::parallel::by_chunk;

/// Expected numbers of draws of one point are capped here.
const SURE: f64 = 1e9;
/// Maximum size of a coreset, relative to the requested size.
const MOST: usize = 2;

/// An approximate solution for all points.
#[derive(Debug, Clone)]
pub(super) struct Guide {
    /// In original units, row-major.
    pub centroids: Vec<f64>,
    /// Estimated weight of each cluster.
    pub weights: Vec<f64>,
    /// Estimated weighted sum of squared distances.
    pub inertia: f64,
}

/// A drawn coreset.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Drawn {
    /// Indices of the points, ascending.
    pub rows: Vec<u32>,
    pub weights: Vec<f64>,
}

/// Sampling rates of a coreset. The expected number of draws of a point, per unit of its weight, is the rate of its cluster
/// plus `of_square` times its squared distance to the nearest centroid (standardised units). The point is drawn with that
/// number as probability, at most 1.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Rate of each cluster of the guide.
    pub of_cluster: Vec<f64>,
    /// Rate per squared distance.
    pub of_square: f64,
}

impl Guide {
    pub fn of(outcome: &Outcome) -> Self {
        let Outcome { centroids, weights, inertia, .. } = outcome.clone();
        Self { centroids, weights, inertia }
    }

    /// The rates that draw about `size` points: half of them by squared distance, a quarter uniformly, and a quarter in
    /// equal parts from each cluster, so that rare clusters of the guide are kept.
    pub fn rates(&self, size: usize) -> Rates {
        let quarter = size as f64 / 4.0;
        let total: f64 = self.weights.iter().sum();
        let k = self.weights.len() as f64;
        let of_cluster = |weight: &f64| quarter / total.max(1.0) + quarter / (k * weight.max(1.0));
        Rates {
            of_cluster: self.weights.iter().map(of_cluster).collect(),
            of_square: if self.inertia > 0.0 { (2.0 * quarter / self.inertia).min(f64::MAX) } else { f64::MAX },
        }
    }
}

/// Draws about `size` points, at most twice as many.
pub(super) fn draw(points: &Points<'_>, guide: &Guide, size: usize, seed: u64, threads: usize) -> Drawn {
    let rates = guide.rates(size);
    let centroids = points.standardised(&guide.centroids);
    let k = rates.of_cluster.len();
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut drawn: Vec<Draw> = Vec::new();
        let mut weights = vec![0.0; k];
        points.each_nearest(rows, &centroids, |first, labels, squared| {
            for (row, (&label, &squared)) in (first..).zip(labels.iter().zip(squared)) {
                let (cluster, weight) = (label as usize, points.weight(row));
                let draws = weight * (rates.of_cluster[cluster] + squared * rates.of_square);
                weights[cluster] += weight;
                if uniform(seed, row) < draws {
                    drawn.push(Draw { row: row as u32, cluster: cluster as u8, draws: draws.min(SURE) });
                }
            }
        });
        (drawn, weights)
    });
    let mut weights = vec![0.0; k];
    for (_, chunk) in &chunks {
        weights.iter_mut().zip(chunk).for_each(|(sum, weight)| *sum += weight);
    }
    let mut drawn: Vec<Draw> = chunks.into_iter().flat_map(|(drawn, _)| drawn).collect();
    // If the guide underestimates the inertia, too many points are drawn. Then all rates are halved, which keeps the points
    // whose random numbers are below the new probability.
    let mut share = 1.0;
    while drawn.len() > MOST * size {
        share /= 2.0;
        drawn.retain(|draw| uniform(seed, draw.row as usize) < draw.draws * share);
    }
    let weight = |draw: &Draw| points.weight(draw.row as usize) / (draw.draws * share).min(1.0);
    // Points kept with certainty represent themselves; the others of a cluster share the rest of its weight.
    let mut others = vec![0.0; k];
    for draw in &drawn {
        match draw.draws * share < 1.0 {
            true => others[usize::from(draw.cluster)] += weight(draw),
            false => weights[usize::from(draw.cluster)] -= weight(draw),
        }
    }
    let calibrated = |draw: &Draw| {
        let cluster = usize::from(draw.cluster);
        let certain = draw.draws * share >= 1.0 || weights[cluster] <= 0.0;
        if certain { weight(draw) } else { weight(draw) * weights[cluster] / others[cluster] }
    };
    Drawn { weights: drawn.iter().map(calibrated).collect(), rows: drawn.into_iter().map(|draw| draw.row).collect() }
}

/// A drawn point.
struct Draw {
    row: u32,
    /// Cluster of the guide.
    cluster: u8,
    /// Expected number of draws.
    draws: f64,
}

/// A uniform number in [0, 1), determined by the seed and a point's index (SplitMix64: Steele, Lea and Flood, OOPSLA 2014).
fn uniform(seed: u64, row: usize) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let z = seed.wrapping_add((row as u64 + 1).wrapping_mul(STEP));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::super::tests::{as_it_is, random, table};
    use super::*;

    fn guide(points: &Points<'_>, centroids: Vec<f64>) -> Guide {
        let totals = points.pass(&centroids, 1);
        Guide { centroids, weights: totals.weights, inertia: totals.inertia }
    }

    #[test]
    fn any_centroids_cost_on_a_coreset_what_they_cost_on_all_points() {
        let mut columns = random(150_000, 2);
        // Three rows that contribute nearly all of the inertia, and 30 that contribute most of the rest.
        for row in 0..3 {
            columns[0][row * 40_000 + 11] = 1e3 + 9.0 * row as f64;
        }
        for row in 0..30 {
            columns[1][row * 4000 + 7] = 50.0;
        }
        let (scale, columns) = as_it_is(columns);
        let points = Points::new(&scale, &columns);
        let guide = guide(&points, vec![0.5, 0.5, 1e3, 0.5, 0.5, 50.0]);
        let drawn = draw(&points, &guide, 8192, 1, 2);
        assert_eq!(drawn, draw(&points, &guide, 8192, 1, 1), "threads make no difference");
        assert!((6000..10_000).contains(&drawn.rows.len()), "{}", drawn.rows.len());
        let kept = |row: u32| drawn.rows.binary_search(&row).map(|place| drawn.weights[place]);
        assert_eq!([11, 40_011, 80_011].map(kept), [Ok(1.0); 3], "what matters most is kept as it is");
        assert!((drawn.weights.iter().sum::<f64>() / 150_000.0 - 1.0).abs() < 1e-9);
        let columns: Vec<Vec<f64>> = (0..2).map(|f| points.values(f, &drawn.rows)).collect();
        let few = points.weighted(&columns, &drawn.weights);
        for centroids in [vec![0.5, 0.5], vec![0.2, 0.3, 0.8, 0.7, 1e3, 0.5, 0.5, 50.0], vec![1e3, 1.0, 0.0, 0.0]] {
            let (all, some) = (points.pass(&centroids, 1), few.pass(&centroids, 1));
            assert!((some.inertia / all.inertia - 1.0).abs() < 0.03, "{centroids:?}: {} {}", some.inertia, all.inertia);
        }
    }

    #[test]
    fn a_guide_that_missed_much_draws_no_more_than_twice_as_many() {
        let (scale, columns) = table(random(200_000, 2));
        let points = Points::new(&scale, &columns);
        let wrong = Guide { centroids: vec![0.5, 0.5], weights: vec![2e5], inertia: 1e-3 };
        let drawn = draw(&points, &wrong, 1000, 1, 2);
        assert!((500..=2000).contains(&drawn.rows.len()), "{}", drawn.rows.len());
        let weight: f64 = drawn.weights.iter().sum();
        assert!((weight / 2e5 - 1.0).abs() < 0.2, "{weight}");
    }
}
