//! Quality metrics of a clustering: silhouette, Davies-Bouldin and Caliński-Harabasz.
//!
//! All distances are in standardised units.

use ndarray::Array2;

use super::distances;
use super::flat;
use super::kernel::{self, Lanes};
use super::points::Points;
use crate::features::moments::{Compensated, LANES};
use crate::parallel::{by_chunk, in_parallel};

/// Rows per job of the silhouette.
const SHARE: usize = 256;

/// Mean silhouette, from -1 to 1; higher is better. The silhouette of a row is (b - a) / max(a, b), with a the mean
/// distance to the other rows of its cluster and b the smallest mean distance to the rows of another cluster; 0 for a row
/// alone in its cluster. Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis"
/// (J. Comput. Appl. Math. 20, 1987).
///
/// `labels` has one cluster below `k` per row. Weights count as numbers of rows, in the mean and in the distances; a row's
/// own weight is not counted in a. O(rows²): intended for samples. `None` with fewer than two clusters among the labels.
pub fn silhouette(points: &Points<'_>, labels: &[u8], k: usize, threads: usize) -> Option<f64> {
    let mut sizes = vec![0_usize; k];
    labels.iter().for_each(|&label| sizes[usize::from(label)] += 1);
    if sizes.iter().filter(|&&size| size > 0).count() < 2 {
        return None;
    }
    // Rows sorted by cluster, so that the distances to each cluster are contiguous.
    let mut order: Vec<usize> = (0..points.rows()).collect();
    order.sort_by_key(|&row| labels[row]);
    let n = order.len();
    let column = |f| order.iter().map(|&row| points.standardise(f, points.value(f, row))).collect();
    let columns: Vec<Vec<f64>> = (0..points.features()).map(column).collect();
    let weights: Vec<f64> = order.iter().map(|&row| points.weight(row)).collect();
    // Weight of each cluster.
    let mut totals = vec![0.0; k];
    order.iter().zip(&weights).for_each(|(&row, weight)| totals[usize::from(labels[row])] += weight);
    let shares = in_parallel(n.div_ceil(SHARE), threads, |share| {
        let mut apart = vec![0.0_f64; n];
        let mut sums = vec![0.0; k];
        let mut total = 0.0;
        for i in share * SHARE..n.min((share + 1) * SHARE) {
            distances::distances(points.level(), &columns, i, &mut apart);
            if points.weighs() {
                apart.iter_mut().zip(&weights).for_each(|(distance, weight)| *distance *= weight);
            }
            let mut rest = &apart[..];
            for (sum, &size) in sums.iter_mut().zip(&sizes) {
                let (cluster, others) = rest.split_at(size);
                *sum = in_lanes(cluster);
                rest = others;
            }
            let own = usize::from(labels[order[i]]);
            if sizes[own] > 1 {
                total += of_one(own, weights[i], &sums, &totals) * weights[i];
            }
        }
        total
    });
    Some(shares.iter().sum::<f64>() / totals.iter().sum::<f64>())
}

/// The sum of numbers, in eight lanes.
fn in_lanes(numbers: &[f64]) -> f64 {
    let (eights, rest) = numbers.as_chunks::<LANES>();
    let mut lanes: Lanes = [0.0; LANES];
    for eight in eights {
        lanes.iter_mut().zip(eight).for_each(|(lane, number)| *lane += number);
    }
    kernel::fold(&lanes) + rest.iter().sum::<f64>()
}

/// Silhouette of a row that is not alone in its cluster, from the weighted sums of its distances to the rows of each
/// cluster (`sums`) and the weights of the clusters (`totals`).
fn of_one(own: usize, weight: f64, sums: &[f64], totals: &[f64]) -> f64 {
    let within = sums[own] / (totals[own] - weight);
    let others = (0..totals.len()).filter(|&cluster| cluster != own && totals[cluster] > 0.0);
    let next = others.map(|cluster| sums[cluster] / totals[cluster]).fold(f64::INFINITY, f64::min);
    let larger = within.max(next);
    if larger > 0.0 { (next - within) / larger } else { 0.0 }
}

/// Davies-Bouldin index; lower is better, 0 is best. The mean over the clusters i of the maximum over j ≠ i of (s_i + s_j)
/// / d_ij, with s the mean distance of a cluster's rows to its centroid and d the distance of the centroids. Davies and
/// Bouldin, "A cluster separation measure" (IEEE PAMI 1, 1979).
///
/// Centroids are k × features, in original units; `sizes` are the clusters' numbers of rows, or weights. `None` with fewer
/// than two non-empty clusters.
pub fn davies_bouldin(points: &Points<'_>, centroids: &Array2<f64>, sizes: &[u64], threads: usize) -> Option<f64> {
    let used: Vec<usize> = (0..sizes.len()).filter(|&cluster| sizes[cluster] > 0).collect();
    if used.len() < 2 {
        return None;
    }
    let at = points.standardised(&flat(centroids));
    let chunks = by_chunk(points.rows(), threads, |rows| {
        let mut sums = vec![Compensated::default(); sizes.len()];
        points.each_nearest(rows, &at, |first, labels, squared| {
            let mut lanes: Vec<Lanes> = vec![[0.0; LANES]; sizes.len()];
            for (i, (&label, squared)) in labels.iter().zip(squared).enumerate() {
                lanes[usize::from(kernel::whole(label))][i % LANES] += squared.sqrt() * points.weight(first + i);
            }
            sums.iter_mut().zip(&lanes).for_each(|(sum, lanes)| sum.add(kernel::fold(lanes)));
        });
        sums
    });
    let mean_distance = |cluster: usize| {
        let mut sum = Compensated::default();
        chunks.iter().for_each(|sums| sum.add(sums[cluster].total()));
        sum.total() / sizes[cluster] as f64
    };
    let spread: Vec<f64> = (0..sizes.len()).map(mean_distance).collect();
    let centroid = |cluster: usize| &at[cluster * points.features()..][..points.features()];
    let overlap = |&a: &usize| {
        let others = used.iter().filter(|&&b| b != a);
        let overlaps = others.map(|&b| (spread[a] + spread[b]) / squared(centroid(a), centroid(b)).sqrt());
        overlaps.fold(0.0, f64::max)
    };
    Some(used.iter().map(overlap).sum::<f64>() / used.len() as f64)
}

/// Caliński-Harabasz index; higher is better. The variance between the k non-empty clusters divided by the variance within
/// them: (B / (k - 1)) / (inertia / (rows - k)), with B the weighted sum of squared distances of the centroids to their
/// mean; 1 if the inertia is 0. Caliński and Harabasz, "A dendrite method for cluster analysis" (Comm. Stat. 3, 1974).
///
/// Centroids are k × features, in original units; `inertia` is in standardised units, as in [`crate::Fit`]. `None` with
/// fewer than two non-empty clusters, or if there are no more rows than clusters.
pub fn calinski_harabasz(points: &Points<'_>, centroids: &Array2<f64>, sizes: &[u64], inertia: f64) -> Option<f64> {
    let used = sizes.iter().filter(|&&size| size > 0).count();
    let rows: u64 = sizes.iter().sum();
    if used < 2 || rows as usize <= used {
        return None;
    }
    let at = points.standardised(&flat(centroids));
    let features = points.features();
    let weighted = |f: usize| sizes.iter().zip(at.chunks_exact(features)).map(move |(&size, c)| size as f64 * c[f]);
    let middle: Vec<f64> = (0..features).map(|f| weighted(f).sum::<f64>() / rows as f64).collect();
    let between = |(&size, centroid): (&u64, &[f64])| size as f64 * squared(centroid, &middle);
    let between: f64 = sizes.iter().zip(at.chunks_exact(features)).map(between).sum();
    Some(if inertia > 0.0 { between / (used - 1) as f64 / (inertia / (rows as usize - used) as f64) } else { 1.0 })
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::super::tests::{as_it_is, random, table};
    use super::*;

    #[test]
    fn silhouettes_by_hand() {
        // a = 1, b = mean(9, 10) for the first; by symmetry for all four: (9.5 - 1) / 9.5 and (8.5 - 1) / 8.5.
        let (scale, columns) = as_it_is(vec![vec![0.0, 1.0, 9.0, 10.0]]);
        let points = Points::new(&scale, &columns);
        let expected = (8.5 / 9.5 + 7.5 / 8.5) / 2.0;
        let found = silhouette(&points, &[0, 0, 1, 1], 2, 1).unwrap();
        assert!((found - expected).abs() < 1e-15, "{found}");
        assert_eq!(silhouette(&points, &[0, 0, 0, 0], 2, 1), None);
        let (scale, columns) = as_it_is(vec![vec![0.0, 1.0]]);
        assert_eq!(silhouette(&Points::new(&scale, &columns), &[0, 1], 2, 1), Some(0.0));
    }

    #[test]
    fn weights_count_in_the_mean_and_in_the_distances() {
        let values = vec![0.0, 1.0, 1.5, 9.0, 10.0, 14.0];
        let (scale, columns) = as_it_is(vec![values.clone()]);
        let weights = [3, 1, 2, 2, 4, 1];
        let points = Points::new(&scale, &columns).with_weights(weights.map(f64::from).to_vec());
        let found = silhouette(&points, &[0, 0, 0, 1, 1, 2], 3, 1).unwrap();
        // By hand: a row's own weight is not counted among the other rows of its cluster.
        let label = |i: usize| [0, 0, 0, 1, 1, 2][i];
        let (mut sum, mut of) = (0.0, 0.0);
        for i in 0..6 {
            let mean = |c: usize| {
                let rows = (0..6).filter(|&j| label(j) == c && j != i);
                let (d, w) = rows.fold((0.0, 0.0), |(d, w), j| {
                    let weight = f64::from(weights[j]);
                    (d + (values[i] - values[j]).abs() * weight, w + weight)
                });
                d / w
            };
            let (a, b) = (mean(label(i)), (0..3).filter(|&c| c != label(i)).map(mean).fold(f64::INFINITY, f64::min));
            let one = if label(i) == 2 { 0.0 } else { (b - a) / a.max(b) };
            (sum, of) = (sum + one * f64::from(weights[i]), of + f64::from(weights[i]));
        }
        assert!((found - sum / of).abs() < 1e-12, "{found} {}", sum / of);
    }

    #[test]
    fn threads_change_no_score() {
        let (scale, columns) = table(random(1000, 2));
        let points = Points::new(&scale, &columns);
        let labels: Vec<u8> = (0..1000).map(|i| (i % 3) as u8).collect();
        assert_eq!(silhouette(&points, &labels, 3, 1), silhouette(&points, &labels, 3, 4));
    }

    #[test]
    fn the_two_other_scores_by_hand() {
        let (scale, columns) = as_it_is(vec![vec![0.0, 1.0, 9.0, 10.0]]);
        let points = Points::new(&scale, &columns);
        // Both clusters have a mean distance of 0.5 to their centroids, which are 9 apart.
        assert_eq!(davies_bouldin(&points, &array![[0.5], [9.5]], &[2, 2], 1), Some(1.0 / 9.0));
        // Between: 4 · 4.5²; within: 4 · 0.5².
        assert_eq!(
            calinski_harabasz(&points, &array![[0.5], [9.5]], &[2, 2], 1.0),
            Some(4.0 * 4.5 * 4.5 / (1.0 / 2.0))
        );
        assert_eq!(davies_bouldin(&points, &array![[5.0]], &[4], 1), None);
        assert_eq!(calinski_harabasz(&points, &array![[5.0]], &[4], 82.0), None);
    }
}
