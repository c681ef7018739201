//! Choice of the number of clusters k by three criteria.
//!
//! Input: columns of numbers, optionally with weights, and the range of k. Output: for each k the inertia of the best
//! clustering, its silhouette and its stability; the k that each criterion picks; and a recommendation with the number of
//! criteria that agree.
//!
//! - Elbow: the k whose inertia lies farthest below the straight line from the first to the last point of inertia over k
//!   (Satopää and others, "Finding a kneedle in a haystack", 2011).
//! - Silhouette: the k with the greatest silhouette (`tercile_kmeans::silhouette`).
//! - Stability: each of several seeds clusters a random half of the sample and assigns all sampled rows to those clusters;
//!   stability is the mean adjusted Rand index over all pairs of seeds (Ben-Hur, Elisseeff and Guyon, "A stability based method
//!   for discovering structure in clustered data", 2002; Hubert and Arabie, "Comparing partitions", 1985). The criterion picks
//!   the greatest k that is nearly as stable as the most stable one.

mod structure;

use std::ops::RangeInclusive;

use datafusion::arrow::array::Float64Array;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use serde::Serialize;
pub use structure::{Structure, structure, tiny};
use tercile_kmeans::column_buffer;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{self as kmeans, Init, Points, Settings};

use crate::fit::{Error, Sampled, weighted};

/// Seeds compared for stability.
const SEEDS: u64 = 8;
/// Restarts of each seed on its half of the sample.
const STARTS: usize = 5;
/// Tolerance below the greatest stability within which a k still counts as stable.
const NEARLY: f64 = 0.05;

/// Measurements for one k.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Candidate {
    pub k: usize,
    /// Inertia of the best clustering, in standardised units.
    pub inertia: f64,
    /// Computed on a sample if `sample_rows` is less than the number of rows.
    pub silhouette: Option<f64>,
    /// Rows that silhouette and stability were computed on: all, or a weighted sample that includes rare clusters.
    pub sample_rows: u64,
    /// Mean adjusted Rand index: about 0 for chance agreement, 1 if all seeds find the same clusters.
    pub stability: f64,
}

/// The k that each criterion picks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Suggestion {
    pub elbow: usize,
    pub silhouette: usize,
    pub stability: usize,
    /// The k that at least two criteria pick, else the silhouette's.
    pub recommended: usize,
    /// Number of criteria that pick the recommended k.
    pub agree: usize,
}

/// Rows to cluster.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub scale: &'a Scale,
    /// One column per feature, all of the same length.
    pub columns: &'a [Float64Array],
    /// Number of rows that each row represents; 1 if absent.
    pub weights: Option<&'a [f64]>,
}

/// Measures each k of the non-empty range; `told` is called for each finished candidate.
///
/// # Errors
/// If the first k exceeds the number of distinct rows, or if a fit fails.
pub fn candidates(
    rows: Rows<'_>,
    ks: RangeInclusive<usize>,
    settings: &Settings,
    told: &mut dyn FnMut(&Candidate),
) -> Result<Vec<Candidate>, Error> {
    let Rows { scale, columns, weights } = rows;
    let points = weighted(Points::new(scale, columns), weights);
    let mut candidates: Vec<Candidate> = Vec::new();
    for k in ks {
        let settings = Settings { k, ..settings.clone() };
        let fit = match kmeans::fit(&points, &settings, Init::Drawn(None), &|_| {}) {
            Ok(fit) => fit,
            // More clusters than distinct rows: the smaller k remain valid.
            Err(kmeans::Error::TooFew { .. }) if !candidates.is_empty() => break,
            Err(error) => return Err(error.into()),
        };
        let sample = Sampled::new(scale, columns, weights, &fit, settings.threads);
        let candidate = Candidate {
            k,
            inertia: fit.inertia,
            silhouette: sample.silhouette(scale, k, settings.threads),
            sample_rows: sample.chosen.rows.len() as u64,
            stability: stability(scale, &sample, &settings)?,
        };
        told(&candidate);
        candidates.push(candidate);
    }
    Ok(candidates)
}

/// Applies the criteria to the candidates, which are ordered by k.
///
/// # Panics
/// If there are no candidates.
pub fn suggest(candidates: &[Candidate]) -> Suggestion {
    let k_of = |best: Option<&Candidate>| best.map_or(1, |candidate| candidate.k);
    let (first, last) = (&candidates[0], &candidates[candidates.len() - 1]);
    let below = |candidate: &Candidate| {
        let along = (candidate.k - first.k) as f64 / (last.k - first.k).max(1) as f64;
        first.inertia + (last.inertia - first.inertia) * along - candidate.inertia
    };
    // On ties, the smallest k.
    let greatest =
        |value: &dyn Fn(&Candidate) -> f64| k_of(candidates.iter().rev().max_by(|a, b| value(a).total_cmp(&value(b))));
    let elbow = greatest(&below);
    let silhouette = greatest(&|candidate| candidate.silhouette.unwrap_or(-1.0));
    let most = candidates.iter().map(|candidate| candidate.stability).fold(f64::NEG_INFINITY, f64::max);
    let stability = k_of(candidates.iter().rev().find(|candidate| candidate.stability >= most - NEARLY));
    let picks = [elbow, silhouette, stability];
    let votes = |k: usize| picks.iter().filter(|&&pick| pick == k).count();
    let recommended = picks.into_iter().find(|&k| votes(k) > 1).unwrap_or(silhouette);
    Suggestion { elbow, silhouette, stability, recommended, agree: votes(recommended) }
}

/// Mean agreement of the clusterings that several seeds find in halves of the sample.
fn stability(scale: &Scale, sample: &Sampled, settings: &Settings) -> Result<f64, Error> {
    let (columns, weights) = (&sample.columns, &sample.chosen.weights);
    let all = Points::new(scale, columns);
    let mut partitions: Vec<Vec<u8>> = Vec::new();
    for seed in 0..SEEDS {
        let seed = kmeans::further(settings.seed, seed);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let half: Vec<u32> = (0..all.rows() as u32).filter(|_| rng.next_u32() % 2 == 0).collect();
        let of_half: Vec<f64> = half.iter().map(|&row| weights[row as usize]).collect();
        let half: Vec<Float64Array> = columns.iter().map(|column| column_buffer::take(column, &half)).collect();
        let settings = Settings { seed, starts: STARTS, ..settings.clone() };
        match kmeans::fit(&weighted(Points::new(scale, &half), Some(&of_half)), &settings, Init::Drawn(None), &|_| {}) {
            Ok(fit) => partitions.push(kmeans::assign(&all, &fit.centroids, 1)),
            // Half of the rows may have too few distinct ones.
            Err(kmeans::Error::TooFew { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let pairs = partitions.iter().enumerate().flat_map(|(i, a)| partitions[..i].iter().map(move |b| (a, b)));
    let alike: Vec<f64> = pairs.map(|(a, b)| adjusted_rand(a, b, settings.k)).collect();
    Ok(if alike.is_empty() { 0.0 } else { alike.iter().sum::<f64>() / alike.len() as f64 })
}

/// Adjusted Rand index of two partitions of the same rows.
fn adjusted_rand(a: &[u8], b: &[u8], k: usize) -> f64 {
    let pairs = |n: u64| n as f64 * (n as f64 - 1.0) / 2.0;
    let mut both = vec![0_u64; k * k];
    a.iter().zip(b).for_each(|(&a, &b)| both[usize::from(a) * k + usize::from(b)] += 1);
    let of_a = |row: usize| both[row * k..(row + 1) * k].iter().sum::<u64>();
    let of_b = |column: usize| both.iter().skip(column).step_by(k).sum::<u64>();
    let together: f64 = both.iter().map(|&n| pairs(n)).sum();
    let (a_pairs, b_pairs) = ((0..k).map(|i| pairs(of_a(i))).sum::<f64>(), (0..k).map(|i| pairs(of_b(i))).sum::<f64>());
    let by_chance = a_pairs * b_pairs / pairs(a.len() as u64).max(1.0);
    let most = (a_pairs + b_pairs) / 2.0;
    if most == by_chance { 1.0 } else { (together - by_chance) / (most - by_chance) }
}

#[cfg(test)]
mod tests {
    use tercile_kmeans::Limits;

    use super::*;

    #[test]
    fn adjusted_rand_by_hand() {
        assert_eq!(adjusted_rand(&[0, 0, 1, 1], &[1, 1, 0, 0], 2), 1.0);
        // Formula of Hubert and Arabie: (0 - 2·2/6) / (2 - 2·2/6).
        assert!((adjusted_rand(&[0, 0, 1, 1], &[0, 1, 0, 1], 2) + 0.5).abs() < 1e-15);
    }

    #[test]
    fn four_blobs_are_four_clusters_to_all_three() {
        let blob =
            |i: u32, f: u32| f64::from(((i % 4) >> f) % 2 * 10) + f64::from(i * 7919 % 1009) / 500.0 * f64::from(f + 1);
        let columns: Vec<Float64Array> = (0..2).map(|f| (0..2000).map(|i| Some(blob(i, f))).collect()).collect();
        let limits = Limits { iterations: 300, tolerance: 0.0 };
        let settings = Settings { k: 0, seed: 42, starts: 10, limits, threads: 2 };
        let scale = Scale::measure(&["a".to_owned(), "b".to_owned()], &columns, 2).unwrap();
        let rows = Rows { scale: &scale, columns: &columns, weights: None };
        let found = candidates(rows, 2..=7, &settings, &mut |_| {}).unwrap();
        assert!(found.windows(2).all(|pair| pair[1].inertia < pair[0].inertia));
        let suggestion = suggest(&found);
        assert_eq!((suggestion.elbow, suggestion.silhouette, suggestion.stability), (4, 4, 4), "{found:?}");
        assert_eq!((suggestion.recommended, suggestion.agree), (4, 3));
    }

    #[test]
    fn disagreement_is_told() {
        let candidate = |k, inertia, silhouette, stability| Candidate {
            k,
            inertia,
            silhouette: Some(silhouette),
            sample_rows: 9,
            stability,
        };
        let all = [candidate(2, 100.0, 0.7, 0.5), candidate(3, 40.0, 0.5, 0.5), candidate(4, 35.0, 0.4, 0.9)];
        let expected = Suggestion { elbow: 3, silhouette: 2, stability: 4, recommended: 2, agree: 1 };
        assert_eq!(suggest(&all), expected);
    }
}
