//! KMeans: centroids that make the sum of squared distances small.
//!
//! Input: rows by features, standardised. Output: k centroids, who belongs to which, and how good that is. The many
//! starts run on distinct weighted points (seed.rs, lloyd.rs); linfa-clustering refines the best of them on all rows,
//! and a last plain pass makes sure that no assignment changes any more. The answer depends on the rows and the seed
//! alone, not on threads.

mod assignment;
mod lloyd;
mod points;
mod score;
mod seed;

use std::num::NonZero;
use std::thread;

use linfa::DatasetBase;
use linfa::traits::Fit as _;
use linfa_clustering::{KMeans, KMeansInit, KMeansParamsError};
use ndarray::{Array2, ArrayView2};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

pub use assignment::match_rows;
pub use score::silhouette;

/// Passes that a start or the polish may take; Lloyd's algorithm ends by itself long before.
const MAX_ITERATIONS: usize = 300;
/// Distinct points that the starts look at; of more, an even sample.
const START_POINTS: usize = 100_000;

/// Why there are no clusters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{k} clusters need at least {k} different rows, there are {distinct}")]
    TooFew { k: usize, distinct: usize },
    #[error("linfa refused the parameters: {0}")]
    Linfa(#[from] KMeansParamsError),
}

/// What was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// k by features, standardised.
    pub centroids: Array2<f64>,
    /// The cluster of each row.
    pub labels: Vec<u32>,
    /// Sum of squared distances of the rows to their centroids.
    pub inertia: f64,
    /// Passes of the best start and of the polish.
    pub iterations: usize,
}

/// How many starts rows deserve: small data has many local minima and costs little.
pub fn starts_for(rows: usize) -> usize {
    (2_000_000 / rows.max(1)).clamp(10, 1000)
}

/// The best of many starts. `rows` is n by features with n at least 1; k at least 1.
pub fn fit(rows: ArrayView2<'_, f64>, k: usize, seed: u64, starts: usize) -> Result<Fit, Error> {
    let (best, iterations) = match rows.ncols() {
        1 => best_start::<1>(rows, k, seed, starts)?,
        2 => best_start::<2>(rows, k, seed, starts)?,
        3 => best_start::<3>(rows, k, seed, starts)?,
        4 => best_start::<4>(rows, k, seed, starts)?,
        5..=8 => best_start::<8>(rows, k, seed, starts)?,
        9..=16 => best_start::<16>(rows, k, seed, starts)?,
        _ => best_start::<32>(rows, k, seed, starts)?,
    };
    let refined = refine(rows, best)?;
    Ok(polish(rows, refined, iterations))
}

/// Runs all starts, on as many threads as there are, and gives the centroids of the best: of equals the earliest.
fn best_start<const D: usize>(
    rows: ArrayView2<'_, f64>,
    k: usize,
    seed: u64,
    starts: usize,
) -> Result<(Array2<f64>, usize), Error> {
    let all = points::distinct::<D>(rows);
    if all.len() < k {
        return Err(Error::TooFew { k, distinct: all.len() });
    }
    let points = points::sample(all, START_POINTS);
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(starts);
    let run = |thread: usize| {
        let mut best: Option<(lloyd::Outcome<D>, usize)> = None;
        for start in (thread..starts).step_by(threads) {
            // SplitMix64 inside `seed_from_u64` makes neighbouring seeds strangers.
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(start as u64));
            let outcome = lloyd::run(&points, seed::plus_plus(&points, k, &mut rng), MAX_ITERATIONS);
            if best.as_ref().is_none_or(|(best, _)| outcome.inertia < best.inertia) {
                best = Some((outcome, start));
            }
        }
        best
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let mut outcomes = vec![run(0)];
        for worker in workers {
            match worker.join() {
                Ok(outcome) => outcomes.push(outcome),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        outcomes
    });
    let best = outcomes.into_iter().flatten().min_by(|(a, i), (b, j)| a.inertia.total_cmp(&b.inertia).then(i.cmp(j)));
    let (best, _) = best.unwrap_or_else(|| unreachable!("there is at least one start"));
    let features = rows.ncols();
    let centroids = Array2::from_shape_fn((k, features), |(cluster, feature)| best.centroids[cluster][feature]);
    Ok((centroids, best.iterations))
}

/// linfa-clustering from given centroids, on all rows, which it borrows as they are.
fn refine(rows: ArrayView2<'_, f64>, centroids: Array2<f64>) -> Result<Array2<f64>, Error> {
    let k = centroids.nrows();
    let model = KMeans::params_with_rng(k, Xoshiro256PlusPlus::seed_from_u64(0))
        .init_method(KMeansInit::Precomputed(centroids.clone()))
        .n_runs(1)
        .max_n_iterations(20)
        .tolerance(1e-6)
        .fit(&DatasetBase::from(rows));
    match model {
        Ok(model) => Ok(model.centroids().clone()),
        Err(linfa_clustering::KMeansError::InvalidParams(error)) => Err(error.into()),
        // It ran out of passes or of a finite inertia: what it started from still stands.
        Err(_) => Ok(centroids),
    }
}

/// Plain passes over all rows until no assignment changes, and the figures of that end.
fn polish(rows: ArrayView2<'_, f64>, mut centroids: Array2<f64>, mut iterations: usize) -> Fit {
    let mut labels = assign(rows, &centroids);
    for _ in 0..MAX_ITERATIONS {
        iterations += 1;
        centroids = means(rows, &labels, &centroids);
        let next = assign(rows, &centroids);
        let settled = next == labels;
        labels = next;
        if settled {
            break;
        }
    }
    let inertia = inertia(rows, &labels, &centroids);
    Fit { centroids, labels, inertia, iterations }
}

/// The nearest centroid of each row; of equals the first.
pub fn assign(rows: ArrayView2<'_, f64>, centroids: &Array2<f64>) -> Vec<u32> {
    rows.rows()
        .into_iter()
        .map(|row| match row.as_slice() {
            Some(row) => nearest(row, centroids).0 as u32,
            None => nearest(&row.to_vec(), centroids).0 as u32,
        })
        .collect()
}

/// The nearest centroid of one row and the square of its distance; of equals the first.
pub fn nearest(row: &[f64], centroids: &Array2<f64>) -> (usize, f64) {
    let mut best = (0, f64::INFINITY);
    for (cluster, centroid) in centroids.rows().into_iter().enumerate() {
        let distance: f64 = row.iter().zip(centroid).map(|(x, c)| (x - c) * (x - c)).sum();
        if distance < best.1 {
            best = (cluster, distance);
        }
    }
    best
}

/// The mean of each cluster's rows; a cluster without rows keeps its centroid.
fn means(rows: ArrayView2<'_, f64>, labels: &[u32], old: &Array2<f64>) -> Array2<f64> {
    let mut sums = Array2::zeros(old.raw_dim());
    let mut counts = vec![0_u64; old.nrows()];
    for (row, &label) in rows.rows().into_iter().zip(labels) {
        let mut sum = sums.row_mut(label as usize);
        sum += &row;
        counts[label as usize] += 1;
    }
    for (cluster, &count) in counts.iter().enumerate() {
        let mut centroid = sums.row_mut(cluster);
        if count == 0 {
            centroid.assign(&old.row(cluster));
        } else {
            centroid /= count as f64;
        }
    }
    sums
}

/// Sum of squared distances of the rows to their centroids.
pub fn inertia(rows: ArrayView2<'_, f64>, labels: &[u32], centroids: &Array2<f64>) -> f64 {
    crate::features::compensated_sum(rows.rows().into_iter().zip(labels).map(|(row, &label)| {
        row.iter().zip(centroids.row(label as usize)).map(|(x, c)| (x - c) * (x - c)).sum::<f64>()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_xoshiro::rand_core::RngCore;

    fn blobs(n: usize, features: usize) -> Array2<f64> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(7);
        Array2::from_shape_fn((n, features), |(row, _)| {
            (row % 3) as f64 * 10.0 + (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
        })
    }

    #[test]
    fn blobs_are_found_whatever_the_number_of_features() {
        for features in [1, 2, 3, 4, 5, 9, 17, 32] {
            let rows = blobs(300, features);
            let fit = fit(rows.view(), 3, 42, 10).unwrap();
            let mut sizes = [0; 3];
            fit.labels.iter().for_each(|&label| sizes[label as usize] += 1);
            assert_eq!(sizes, [100; 3], "{features} features");
            assert!((0..300).all(|row| fit.labels[row] == fit.labels[row % 3]));
        }
    }

    #[test]
    fn the_end_is_a_fixed_point() {
        let rows = blobs(500, 2).mapv(|x| (x * 7.3).sin());
        let fit = fit(rows.view(), 5, 1, 20).unwrap();
        assert_eq!(assign(rows.view(), &fit.centroids), fit.labels);
        assert_eq!(means(rows.view(), &fit.labels, &fit.centroids), fit.centroids);
        assert_eq!(inertia(rows.view(), &fit.labels, &fit.centroids), fit.inertia);
    }

    #[test]
    fn the_same_rows_and_seed_give_the_same_bits() {
        let rows = blobs(1000, 2).mapv(|x| (x * 3.1).cos());
        let first = fit(rows.view(), 4, 42, 50).unwrap();
        for _ in 0..3 {
            assert_eq!(fit(rows.view(), 4, 42, 50).unwrap(), first);
        }
    }

    #[test]
    fn as_many_different_rows_as_clusters_are_enough_and_fewer_are_refused() {
        let rows = Array2::from_shape_vec((6, 1), vec![1.0, 1.0, 5.0, 5.0, 9.0, 9.0]).unwrap();
        assert_eq!(fit(rows.view(), 3, 42, 10).unwrap().inertia, 0.0);
        let error = fit(rows.view(), 4, 42, 10).unwrap_err();
        assert_eq!(error.to_string(), "4 clusters need at least 4 different rows, there are 3");
    }

    #[test]
    fn small_data_gets_many_starts() {
        assert_eq!([1, 1465, 10_000, 10_000_000].map(starts_for), [1000, 1000, 200, 10]);
    }
}
