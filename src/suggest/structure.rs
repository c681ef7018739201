//! Whether rows have clusters at all, and whether a few of them decide the clusters of all.
//!
//! Input: rows, and what was measured on them. Output:
//!
//! - The silhouettes of reference rows without clusters: spread evenly, with the covariances of the rows (Tibshirani, Walther and Hastie,
//!   "Estimating the number of clusters in a data set via the gap statistic", 2001, compare with such rows). KMeans divides any cloud; its
//!   clusters mean something only if they are farther apart than those of the reference.
//! - The rows of tiny clusters, and the number of clusters that the silhouette prefers without them.

use std::ops::RangeInclusive;

use datafusion::arrow::array::{Array as _, BooleanArray, Float64Array};
use datafusion::arrow::compute::filter;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use serde::Serialize;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{self as kmeans, Fit, Init, Points, Settings};

use super::{Candidate, Rows};
use crate::fit::{Error, Sampled, weighted};
use crate::model::Tiny;

/// Maximum number of reference rows, and the number of references.
const ROWS: usize = 2_000;
const REFERENCES: u64 = 3;
/// Restarts on reference rows.
const STARTS: usize = 5;
/// By how much the silhouette of clusters exceeds that of a reference, besides the sampling error.
const MARGIN: f64 = 0.03;
/// A cluster with at most this share of the rows is tiny, if there are enough rows to tell.
const TINY: f64 = 0.002;
const ENOUGH: u64 = 100;
/// Maximum number of rows that are clustered again without those of tiny clusters.
const AGAIN: usize = 20_000;

/// The comparison with rows without clusters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Structure {
    /// Whether the clusters of some k are farther apart than those of rows that are spread evenly.
    pub found: bool,
    /// For each k the greatest silhouette of such rows.
    pub reference: Vec<f64>,
}

/// Compares the candidates' silhouettes with those of rows that are spread evenly.
///
/// # Errors
/// If a reference cannot be clustered.
pub fn structure(rows: Rows<'_>, candidates: &[Candidate], settings: &Settings) -> Result<Structure, Error> {
    let Rows { scale, columns, .. } = rows;
    let all = columns.first().map_or(0, |column| column.len());
    let factor = cholesky(&covariance(scale, columns));
    let n = all.clamp(2, ROWS);
    let mut reference = vec![f64::NEG_INFINITY; candidates.len()];
    for number in 0..REFERENCES {
        let seed = kmeans::further(settings.seed, 1000 + number);
        let made = even(&factor, n, seed);
        let plain = Scale::new(vec![0.0; made.len()], vec![1.0; made.len()]);
        let points = Points::new(&plain, &made);
        for (candidate, greatest) in candidates.iter().zip(&mut reference) {
            let settings = Settings { k: candidate.k, seed, starts: STARTS, ..settings.clone() };
            let fit = match kmeans::fit(&points, &settings, Init::Drawn(None), &|_| {}) {
                Ok(fit) => fit,
                Err(kmeans::Error::TooFew { .. }) => continue,
                Err(error) => return Err(error.into()),
            };
            let sampled = Sampled::new(&plain, &made, None, &fit, settings.threads);
            *greatest = greatest.max(sampled.silhouette(&plain, candidate.k, settings.threads).unwrap_or(-1.0));
        }
    }
    let margin = MARGIN + 0.7 / (all.max(1) as f64).sqrt();
    let farther = |(candidate, reference): (&Candidate, &f64)| {
        candidate.silhouette.is_some_and(|silhouette| silhouette > reference + margin)
    };
    let found = candidates.iter().zip(&reference).any(farther);
    Ok(Structure { found, reference })
}

/// The covariances of the standardised rows. A missing value stands at the mean.
fn covariance(scale: &Scale, columns: &[Float64Array]) -> Vec<Vec<f64>> {
    let rows = columns.first().map_or(0, |column| column.len());
    let value = |feature: usize, row: usize| {
        let column = &columns[feature];
        if column.is_valid(row) { scale.standardise(feature, column.value(row)) } else { 0.0 }
    };
    let step = (rows / 100_000).max(1);
    let used: Vec<usize> = (0..rows).step_by(step).collect();
    let n = used.len().max(1) as f64;
    let mean: Vec<f64> = (0..columns.len()).map(|f| used.iter().map(|&row| value(f, row)).sum::<f64>() / n).collect();
    let entry = |a: usize, b: usize| {
        used.iter().map(|&row| (value(a, row) - mean[a]) * (value(b, row) - mean[b])).sum::<f64>() / n
    };
    (0..columns.len()).map(|a| (0..columns.len()).map(|b| entry(a, b)).collect()).collect()
}

/// The lower triangular L with L·Lᵀ = the matrix, which is positive semidefinite.
fn cholesky(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = matrix.len();
    let mut factor = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let known: f64 = (0..j).map(|k| factor[i][k] * factor[j][k]).sum();
            let rest = matrix[i][j] - known;
            factor[i][j] = if i == j {
                rest.max(0.0).sqrt()
            } else if factor[j][j] > 1e-9 {
                rest / factor[j][j]
            } else {
                0.0
            };
        }
    }
    factor
}

/// Rows L·u, where each u is uniform with mean 0 and variance 1.
fn even(factor: &[Vec<f64>], rows: usize, seed: u64) -> Vec<Float64Array> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    // 53 random bits are a double from 0 to 1.
    let mut uniform = || ((rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0) * 3.0_f64.sqrt();
    let made: Vec<Vec<f64>> = (0..rows).map(|_| factor.iter().map(|_| uniform()).collect()).collect();
    let value = |of: &[f64], feature: usize| factor[feature].iter().zip(of).map(|(l, u)| l * u).sum::<f64>();
    (0..factor.len()).map(|feature| made.iter().map(|of| Some(value(of, feature))).collect()).collect()
}

/// The tiny clusters of a fit, if it has any, and the k in `ks` that the silhouette prefers without their rows.
///
/// # Errors
/// If the other rows cannot be clustered.
pub fn tiny(rows: Rows<'_>, fit: &Fit, ks: RangeInclusive<usize>, settings: &Settings) -> Result<Option<Tiny>, Error> {
    let Rows { scale, columns, weights } = rows;
    let points = weighted(Points::new(scale, columns), weights);
    let all: u64 = fit.sizes.iter().sum();
    let clusters: Vec<u32> = (0..).zip(&fit.sizes).filter(|(_, size)| is_tiny(**size, all)).map(|(c, _)| c).collect();
    if clusters.is_empty() {
        return Ok(None);
    }
    let of = |cluster: &u32| fit.sizes[*cluster as usize];
    let found = Tiny { rows: clusters.iter().map(of).sum(), clusters, preferred: None };
    if points.rows() > AGAIN {
        return Ok(Some(found));
    }
    let labels = kmeans::assign(&points, &fit.centroids, settings.threads);
    let kept: BooleanArray = labels.iter().map(|label| Some(!found.clusters.contains(&u32::from(*label)))).collect();
    let others: Vec<Float64Array> = columns
        .iter()
        .map(|column| filter(column, &kept).map(|kept| Float64Array::from(kept.to_data())))
        .collect::<Result<_, _>>()
        .map_err(|e| Error::Rows(e.to_string()))?;
    let weights: Option<Vec<f64>> = weights.map(|weights| {
        weights.iter().zip(kept.values()).filter(|(_, kept)| *kept).map(|(&weight, _)| weight).collect()
    });
    let weights = weights.as_deref();
    let names: Vec<String> = (0..others.len()).map(|i| i.to_string()).collect();
    let scale = Scale::measure_as(&names, &others, &scale.scalings(), settings.threads)?;
    let mut best: Option<(f64, usize)> = None;
    for k in ks {
        let settings = Settings { k, ..settings.clone() };
        let points = weighted(Points::new(&scale, &others), weights);
        let fit = match kmeans::fit(&points, &settings, Init::Drawn(None), &|_| {}) {
            Ok(fit) => fit,
            Err(kmeans::Error::TooFew { .. }) => break,
            Err(error) => return Err(error.into()),
        };
        let silhouette =
            Sampled::new(&scale, &others, weights, &fit, settings.threads).silhouette(&scale, k, settings.threads);
        if let Some(silhouette) = silhouette.filter(|silhouette| best.is_none_or(|(most, _)| *silhouette > most)) {
            best = Some((silhouette, k));
        }
    }
    Ok(Some(Tiny { preferred: best.map(|(_, k)| k as u32), ..found }))
}

fn is_tiny(size: u64, rows: u64) -> bool {
    size > 0 && rows >= ENOUGH && size as f64 <= (rows as f64 * TINY).max(2.0)
}

#[cfg(test)]
mod tests {
    use tercile_kmeans::Limits;

    use super::*;
    use crate::suggest::candidates;

    fn settings() -> Settings {
        Settings { k: 2, seed: 42, starts: 10, limits: Limits { iterations: 300, tolerance: 0.0 }, threads: 2 }
    }

    fn has_structure(columns: Vec<Vec<f64>>) -> bool {
        let columns: Vec<Float64Array> = columns.into_iter().map(Float64Array::from).collect();
        let names: Vec<String> = (0..columns.len()).map(|i| i.to_string()).collect();
        let scale = Scale::measure(&names, &columns, 2).unwrap();
        let rows = Rows { scale: &scale, columns: &columns, weights: None };
        let found = candidates(rows, 2..=5, &settings(), &mut |_| {}).unwrap();
        structure(rows, &found, &settings()).unwrap().found
    }

    /// Sums of uniform numbers: about normal.
    fn normal(rng: &mut Xoshiro256PlusPlus) -> f64 {
        (0..12).map(|_| (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64).sum::<f64>() - 6.0
    }

    #[test]
    fn one_cloud_has_no_structure_and_blobs_do() {
        for seed in 0..4 {
            let rng = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
            let n = 600;
            let cloud: Vec<(f64, f64)> = (0..n).map(|_| (normal(rng), normal(rng))).collect();
            let of = |f: &dyn Fn(&(f64, f64)) -> f64| cloud.iter().map(f).collect::<Vec<f64>>();
            assert!(!has_structure(vec![of(&|p| p.0), of(&|p| p.1)]), "a round cloud");
            assert!(!has_structure(vec![of(&|p| p.0), of(&|p| p.0 + 0.2 * p.1)]), "a long one");
            assert!(!has_structure(vec![of(&|p| p.0)]), "one feature");
            let even: Vec<f64> = (0..n).map(|_| (rng.next_u32() % 10_000) as f64).collect();
            let other: Vec<f64> = (0..n).map(|_| (rng.next_u32() % 10_000) as f64).collect();
            assert!(!has_structure(vec![even.clone(), other]), "a square");
            assert!(!has_structure(vec![even]), "a line");
            let blob = |i: usize, p: &(f64, f64)| (p.0 + (i % 3) as f64 * 8.0, p.1 + (i % 2) as f64 * 8.0);
            let blobs: Vec<(f64, f64)> = cloud.iter().enumerate().map(|(i, p)| blob(i, p)).collect();
            assert!(has_structure(vec![blobs.iter().map(|p| p.0).collect(), blobs.iter().map(|p| p.1).collect()]));
        }
    }

    #[test]
    fn a_few_rows_that_decide_are_named() {
        let rng = &mut Xoshiro256PlusPlus::seed_from_u64(7);
        let mut values: Vec<f64> = (0..4000).map(|i| normal(rng) + (i % 3) as f64 * 20.0).collect();
        (values[5], values[1999]) = (1e6, 1.01e6);
        let columns = [Float64Array::from(values)];
        let scale = Scale::measure(&["a".to_owned()], &columns, 2).unwrap();
        let rows = Rows { scale: &scale, columns: &columns, weights: None };
        let fit = kmeans::fit(&Points::new(&scale, &columns), &settings(), Init::Drawn(None), &|_| {}).unwrap();
        let found = tiny(rows, &fit, 2..=6, &settings()).unwrap().unwrap();
        assert_eq!((found.rows, found.preferred), (2, Some(3)));
        let text = found.sentence("4,000", "2");
        assert_eq!(text, "2 of 4,000 rows form a cluster of their own (1); without them the silhouette prefers 3");
        let three = Settings { k: 3, ..settings() };
        let columns = [Float64Array::from((0..90).map(|i| f64::from(i % 3)).collect::<Vec<f64>>())];
        let scale = Scale::measure(&["a".to_owned()], &columns, 2).unwrap();
        let rows = Rows { scale: &scale, columns: &columns, weights: None };
        let fit = kmeans::fit(&Points::new(&scale, &columns), &three, Init::Drawn(None), &|_| {}).unwrap();
        assert_eq!(tiny(rows, &fit, 2..=4, &three).unwrap(), None);
    }
}
