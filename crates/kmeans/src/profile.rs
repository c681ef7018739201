//! Profiles of clusters: standard deviations and quartiles.
//!
//! Input: points and centroids. Output: for each cluster and feature the standard deviation and the quartiles of the
//! cluster's rows, in original units. A missing value counts as the mean, as in the fit. Results do not depend on the
//! number of threads: chunks have a fixed size, and their sums are added in order.

use ndarray::Array2;

use super::flat;
use super::kernel;
use super::points::Points;
use crate::features::moments::Compensated;
use crate::parallel::{by_chunk, in_parallel};
use crate::quartile::interpolated;

/// Number of rows up to which quartiles are exact.
const EXACT_ROWS: usize = 1_000_000;
/// Minimum number of rows of a cluster in the sample, if it has as many.
const LEAST_ROWS: u64 = 10_000;

/// Distribution of each cluster's rows, in original units.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Population standard deviation about the cluster's mean, k × features; 0 for an empty cluster.
    pub spread: Array2<f64>,
    /// The same in the unit of [`crate::features::Scale::linear`]: of logarithms for a feature on a logarithmic scale.
    pub linear_spread: Array2<f64>,
    /// First quartile, median and third quartile of each feature, by cluster; `None` for an empty cluster.
    pub quartiles: Vec<Option<Vec<[f64; 3]>>>,
}

/// Standard deviations and quartiles of the rows nearest to each centroid (k × features, in original units).
///
/// Quartiles interpolate linearly between neighbouring order statistics (type 7 of Hyndman and Fan, "Sample quantiles in
/// statistical packages", The American Statistician 50, 1996; the default of numpy and pandas). With more than a million
/// rows they are computed from evenly spaced rows of each cluster, about a million in total and at least 10,000 per cluster
/// that has as many.
pub fn profile(points: &Points<'_>, centroids: &Array2<f64>, threads: usize) -> Profile {
    let at = points.standardised(&flat(centroids));
    let chunks = sums(points, &at, threads);
    let drawn = draw(points, &at, &chunks, threads);
    let features = points.features();
    let mut quartiles: Vec<Option<Vec<[f64; 3]>>> =
        drawn.of.iter().map(|rows| (!rows.is_empty()).then(|| Vec::with_capacity(features))).collect();
    for feature in 0..features {
        let found = in_parallel(drawn.of.len(), threads, |cluster| {
            let rows = &drawn.of[cluster];
            let values = points.original_values(feature, rows);
            (!rows.is_empty()).then(|| quartiles_of(values, rows.iter().map(|&row| points.weight(row as usize))))
        });
        for (all, one) in quartiles.iter_mut().zip(found) {
            if let (Some(all), Some(one)) = (all, one) {
                all.push(one);
            }
        }
    }
    let (k, original) = (centroids.nrows(), |sums: &Sums| sums.original.is_empty());
    let linear_spread = deviations(points, k, &chunks);
    let spread = match chunks.iter().all(original) {
        true => linear_spread.clone(),
        false => original_deviations(&linear_spread, &chunks, points),
    };
    Profile { spread, linear_spread, quartiles }
}

/// The standard deviations in original units, where those of features on a logarithmic scale are of logarithms.
fn original_deviations(linear: &Array2<f64>, chunks: &[Sums], points: &Points<'_>) -> Array2<f64> {
    let features = points.features();
    let mut spread = linear.clone();
    for ((cluster, feature), deviation) in spread.indexed_iter_mut() {
        let (mut off, mut squared, mut weight) = <[Compensated; 3]>::default().into();
        for chunk in chunks {
            let [by, square] = chunk.original[cluster * features + feature];
            off.add(by);
            squared.add(square);
            weight.add(chunk.weight[cluster]);
        }
        // Equal values have no deviation.
        if points.is_log(feature) && *deviation > 0.0 {
            let (off, weight) = (off.total(), weight.total());
            *deviation = ((squared.total() - off * off / weight).max(0.0) / weight).sqrt() * points.size(feature);
        }
    }
    spread
}

/// Only the population standard deviations, k × features, in the unit of [`crate::features::Scale::linear`].
pub fn spread(points: &Points<'_>, centroids: &Array2<f64>, threads: usize) -> Array2<f64> {
    let at = points.standardised(&flat(centroids));
    deviations(points, centroids.nrows(), &sums(points, &at, threads))
}

/// Sums over a chunk by cluster; those by feature are k × features, row-major.
struct Sums {
    rows: Vec<u64>,
    weight: Vec<f64>,
    /// Standardised differences from the centroid, and their squares.
    off: Vec<f64>,
    squared: Vec<f64>,
    least: Vec<f64>,
    greatest: Vec<f64>,
    /// Differences from the centroid in `Points::size`, and their squares; empty unless a feature is on a logarithmic scale.
    original: Vec<[f64; 2]>,
}

impl Sums {
    fn new(points: &Points<'_>, k: usize) -> Self {
        let features = points.features();
        let all = |value| vec![value; k * features];
        let log = (0..features).any(|feature| points.is_log(feature));
        Self {
            original: if log { vec![[0.0; 2]; k * features] } else { Vec::new() },
            rows: vec![0; k],
            weight: vec![0.0; k],
            off: all(0.0),
            squared: all(0.0),
            least: all(f64::INFINITY),
            greatest: all(f64::NEG_INFINITY),
        }
    }
}

fn sums(points: &Points<'_>, at: &[f64], threads: usize) -> Vec<Sums> {
    let features = points.features();
    let k = at.len() / features;
    let logs: Vec<usize> = (0..features).filter(|&feature| points.is_log(feature)).collect();
    let centroids: Vec<f64> = at.iter().enumerate().map(|(i, &at)| points.restore(i % features, at)).collect();
    by_chunk(points.rows(), threads, |rows| {
        let mut sums = Sums::new(points, k);
        points.each_nearest(rows, at, |first, labels, _| {
            for (row, &label) in (first..).zip(labels) {
                let cluster = usize::from(kernel::whole(label));
                let weight = points.weight(row);
                sums.rows[cluster] += 1;
                sums.weight[cluster] += weight;
                for feature in 0..features {
                    let (value, i) = (points.value(feature, row), cluster * features + feature);
                    let off = points.standardise(feature, value) - at[i];
                    sums.off[i] += weight * off;
                    sums.squared[i] += weight * off * off;
                    sums.least[i] = sums.least[i].min(value);
                    sums.greatest[i] = sums.greatest[i].max(value);
                }
                for &feature in &logs {
                    let i = cluster * features + feature;
                    let off = (points.original_value(feature, row) - centroids[i]) / points.size(feature);
                    sums.original[i][0] += weight * off;
                    sums.original[i][1] += weight * off * off;
                }
            }
        });
        sums
    })
}

fn deviations(points: &Points<'_>, k: usize, chunks: &[Sums]) -> Array2<f64> {
    let total = |of: &dyn Fn(&Sums) -> f64| {
        let mut sum = Compensated::default();
        chunks.iter().for_each(|chunk| sum.add(of(chunk)));
        sum.total()
    };
    Array2::from_shape_fn((k, points.features()), |(cluster, feature)| {
        let i = cluster * points.features() + feature;
        let least = chunks.iter().map(|chunk| chunk.least[i]).fold(f64::INFINITY, f64::min);
        let greatest = chunks.iter().map(|chunk| chunk.greatest[i]).fold(f64::NEG_INFINITY, f64::max);
        let weight = total(&|chunk| chunk.weight[cluster]);
        // Equal values have a deviation of 0; a rounding error of the centroid would give another result.
        if least >= greatest || weight <= 0.0 {
            return 0.0;
        }
        let off = total(&|chunk| chunk.off[i]);
        // About the mean of the rows, which differs from the centroid by rounding, or more if passes ended early.
        let squares = (total(&|chunk| chunk.squared[i]) - off * off / weight).max(0.0);
        points.length(feature, (squares / weight).sqrt())
    })
}

/// Rows from which quartiles are computed.
struct Drawn {
    /// Rows of each cluster, ascending.
    of: Vec<Vec<u32>>,
}

fn draw(points: &Points<'_>, at: &[f64], chunks: &[Sums], threads: usize) -> Drawn {
    let k = at.len() / points.features();
    let sizes: Vec<u64> = (0..k).map(|cluster| chunks.iter().map(|chunk| chunk.rows[cluster]).sum()).collect();
    let (rows, most) = (points.rows() as u64, EXACT_ROWS as u64);
    let keep = |&size: &u64| if rows <= most { size } else { (most * size / rows).max(size.min(LEAST_ROWS)) };
    let keep: Vec<u64> = sizes.iter().map(keep).collect();
    // Number of rows of each cluster in the chunks before.
    let mut before = vec![vec![0; k]];
    for chunk in chunks {
        let last = &before[before.len() - 1];
        before.push(last.iter().zip(&chunk.rows).map(|(a, b)| a + b).collect());
    }
    let drawn = by_chunk(points.rows(), threads, |rows| {
        let mut rank = before[rows.start / crate::parallel::CHUNK].clone();
        let mut drawn = vec![Vec::new(); k];
        points.each_nearest(rows, at, |first, labels, _| {
            for (row, &label) in (first..).zip(labels) {
                let cluster = usize::from(kernel::whole(label));
                if is_drawn(rank[cluster], keep[cluster], sizes[cluster]) {
                    drawn[cluster].push(row as u32);
                }
                rank[cluster] += 1;
            }
        });
        drawn
    });
    let mut of = vec![Vec::new(); k];
    for chunk in drawn {
        of.iter_mut().zip(chunk).for_each(|(all, some)| all.extend(some));
    }
    Drawn { of }
}

/// Whether row `rank` of `size` is one of the rows ⌊j·size/keep⌋.
fn is_drawn(rank: u64, keep: u64, size: u64) -> bool {
    if keep == size {
        return true;
    }
    keep > 0 && (rank * keep).div_ceil(size) * size / keep == rank
}

/// Quartiles of values with integer weights.
fn quartiles_of(mut values: Vec<f64>, weights: impl Iterator<Item = f64>) -> [f64; 3] {
    let weights: Vec<u64> = weights.map(|weight| weight as u64).collect();
    if weights.iter().any(|&weight| weight != 1) {
        let mut pairs: Vec<(f64, u64)> = values.into_iter().zip(weights).collect();
        pairs.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let ends = pairs.iter().scan(0, |sum, (_, weight)| {
            *sum += weight;
            Some(*sum)
        });
        let ends: Vec<u64> = ends.collect();
        let nth = |rank: u64| pairs[ends.partition_point(|&end| end <= rank).min(pairs.len() - 1)].0;
        let rows = ends[ends.len() - 1];
        return [1, 2, 3].map(|quarter| interpolated(rows, quarter, |rank| (nth(rank), nth(rank + 1))));
    }
    let rows = values.len() as u64;
    let mut two = |rank: u64| {
        let (_, &mut low, above) = values.select_nth_unstable_by(rank as usize, f64::total_cmp);
        (low, above.iter().copied().min_by(f64::total_cmp).unwrap_or(low))
    };
    [1, 2, 3].map(|quarter| interpolated(rows, quarter, &mut two))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::super::tests::{random, table};
    use super::*;

    #[test]
    fn quartiles_are_those_of_numpy() {
        // numpy.percentile([1, 2, 3, 10], [25, 50, 75]) and of the others.
        let of = |values: &[f64]| quartiles_of(values.to_vec(), values.iter().map(|_| 1.0));
        assert_eq!(of(&[10.0, 1.0, 3.0, 2.0]), [1.75, 2.5, 4.75]);
        assert_eq!(of(&[5.0]), [5.0; 3]);
        assert_eq!(of(&[2.0, 1.0]), [1.25, 1.5, 1.75]);
        assert_eq!(of(&[-1e308, 1e308]), [-5e307, 0.0, 5e307]);
        let weighted = quartiles_of(vec![3.0, 1.0, 2.0, 10.0], [1.0, 2.0, 3.0, 1.0].into_iter());
        assert_eq!(weighted, of(&[1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 10.0]));
    }

    #[test]
    fn a_sample_of_many_rows_is_evenly_spaced() {
        for (size, keep) in [(10, 10), (10, 3), (1000, 7), (12_345, 12_344), (5, 0)] {
            let drawn: Vec<u64> = (0..size).filter(|&rank| is_drawn(rank, keep, size)).collect();
            assert_eq!(drawn, (0..keep).map(|j| j * size / keep).collect::<Vec<_>>(), "{keep} of {size}");
        }
    }

    #[test]
    fn spread_is_about_the_mean_and_missing_values_count() {
        let (scale, columns) = table(vec![vec![1.0, 3.0, 50.0, 50.0], vec![7.0; 4]]);
        let points = Points::new(&scale, &columns);
        // The first centroid is not the mean of its rows, as after too few passes.
        let found = profile(&points, &array![[1.5, 7.0], [50.0, 7.0], [1e9, 7.0]], 1);
        assert!((found.spread[[0, 0]] - 1.0).abs() < 1e-12);
        assert_eq!((found.spread[[0, 1]], found.spread[[1, 0]], found.spread[[2, 0]]), (0.0, 0.0, 0.0));
        assert_eq!(found.quartiles, [Some(vec![[1.5, 2.0, 2.5], [7.0; 3]]), Some(vec![[50.0; 3], [7.0; 3]]), None]);
        let columns = [arrow_array::Float64Array::from(vec![Some(2.0), None, Some(4.0)])];
        let points = Points::new(&crate::features::Scale::new(vec![3.0], vec![1.0]), &columns);
        let found = profile(&points, &array![[3.0]], 1);
        assert_eq!(found.quartiles, [Some(vec![[2.5, 3.0, 3.5]])]);
    }

    #[test]
    fn threads_change_nothing_and_a_rare_cluster_is_sampled_in_full() {
        let mut values = random(1_200_000, 2);
        (values[0][17], values[0][18], values[0][1_100_000]) = (1.5e6, 2e6, 2.5e6);
        let (scale, columns) = table(values);
        let points = Points::new(&scale, &columns);
        let centroids = array![[0.0, 0.0], [0.8, 0.5], [2e6, 0.0]];
        let found = profile(&points, &centroids, 1);
        assert_eq!(profile(&points, &centroids, 5), found);
        assert_eq!(spread(&points, &centroids, 3), found.spread);
        assert_eq!(found.quartiles[2].as_ref().unwrap()[0], [1.75e6, 2e6, 2.25e6]);
        assert!((found.spread[[2, 0]] / (5e11_f64 / 3.0).sqrt() - 1.0).abs() < 1e-9);
    }
}
