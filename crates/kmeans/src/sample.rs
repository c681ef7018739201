//! A weighted sample of clustered rows, for silhouettes, plots and reports on the number of clusters.
//!
//! Input: rows and their clusters. Output: some of the rows, with weights. The sample of n rows contains the rows ⌊j·n/m⌋
//! for j = 0 … m-1, m = min(n, 5,000). For each cluster of size s with fewer than min(50, s) rows among those, it also
//! contains the cluster's rows ⌊j·s/r⌋ for j = 0 … r-1, r = min(s, 50), counted within the cluster. Rows are in ascending
//! order. So a cluster of three rows in a million is represented. The weight of a row is the weight of its cluster divided
//! by the weight of the cluster's rows in the sample.

use ndarray::Array2;

use super::assignment::labels;
use super::points::Points;
use super::{assign, flat};
use crate::column_buffer;
use crate::parallel::by_chunk;

/// Rows of the sample, without those added for rare clusters.
const ROWS: usize = 5_000;
/// Rows of a cluster that are sufficient.
const ENOUGH: usize = 50;

/// A sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Indices of the rows, ascending.
    pub rows: Vec<u32>,
    /// Cluster of each row.
    pub labels: Vec<u8>,
    /// Number of rows that each row represents; 1 if the sample contains all rows.
    pub weights: Vec<f64>,
}

impl Chosen {
    /// The sample of unweighted rows. `sizes` are the numbers of rows of all clusters.
    pub fn of(rows: Vec<u32>, labels: Vec<u8>, sizes: &[u64]) -> Self {
        let ones = vec![1.0; rows.len()];
        let weights = shared(&labels, &ones, sizes);
        Self { rows, labels, weights }
    }
}

/// The rows of the sample that do not depend on clusters: ⌊j·n/m⌋.
pub fn sample_rows(n: usize) -> Vec<u32> {
    column_buffer::evenly(n, ROWS)
}

/// Clusters that have too few rows in a sample with these labels. `sizes` are the numbers of rows of all clusters.
pub fn rare(labels: &[u8], sizes: &[u64]) -> Vec<usize> {
    let drawn = |cluster: usize| labels.iter().filter(|&&label| usize::from(label) == cluster).count() as u64;
    (0..sizes.len()).filter(|&cluster| drawn(cluster) < sizes[cluster].min(ENOUGH as u64)).collect()
}

/// The rows of a rare cluster that belong to the sample, out of all rows of that cluster.
pub fn of_cluster<T: Copy>(rows: &[T]) -> impl Iterator<Item = T> {
    column_buffer::evenly(rows.len(), ENOUGH).into_iter().map(|place| rows[place as usize])
}

/// Draws the sample. Centroids are k × features, in original units; `sizes` are the clusters' numbers of rows, or weights.
pub fn sample(points: &Points<'_>, centroids: &Array2<f64>, sizes: &[u64], threads: usize) -> Chosen {
    let all = points.rows();
    let mut rows = sample_rows(all);
    let mut found = of_rows(points, centroids, &rows);
    let rare = if rows.len() < all { rare(&found, sizes) } else { Vec::new() };
    if !rare.is_empty() {
        let at = points.standardised(&flat(centroids));
        let chunks = by_chunk(all, threads, |chunk| {
            let mut of = vec![Vec::new(); rare.len()];
            for (row, label) in (chunk.start as u32..).zip(labels(points, &at, chunk)) {
                if let Some(place) = rare.iter().position(|&cluster| cluster == usize::from(label)) {
                    of[place].push(row);
                }
            }
            of
        });
        for place in 0..rare.len() {
            let of: Vec<u32> = chunks.iter().flat_map(|chunk| chunk[place].iter().copied()).collect();
            rows.extend(of_cluster(&of));
        }
        rows.sort_unstable();
        rows.dedup();
        found = of_rows(points, centroids, &rows);
    }
    let weights = weights(points, &rows, &found, sizes);
    Chosen { rows, labels: found, weights }
}

/// Clusters of some rows.
fn of_rows(points: &Points<'_>, centroids: &Array2<f64>, rows: &[u32]) -> Vec<u8> {
    let columns: Vec<Vec<f64>> = (0..points.features()).map(|feature| points.values(feature, rows)).collect();
    let ones = vec![1.0; rows.len()];
    assign(&points.weighted(&columns, &ones), centroids, 1)
}

fn weights(points: &Points<'_>, rows: &[u32], labels: &[u8], sizes: &[u64]) -> Vec<f64> {
    let own: Vec<f64> = rows.iter().map(|&row| points.weight(row as usize)).collect();
    if rows.len() == points.rows() {
        return own;
    }
    shared(labels, &own, sizes)
}

/// Distributes each cluster's size over its rows, in proportion to the rows' own weights.
fn shared(labels: &[u8], own: &[f64], sizes: &[u64]) -> Vec<f64> {
    let mut drawn = vec![0.0; sizes.len()];
    labels.iter().zip(own).for_each(|(&label, weight)| drawn[usize::from(label)] += weight);
    let weight = |(&label, own): (&u8, &f64)| own * sizes[usize::from(label)] as f64 / drawn[usize::from(label)];
    labels.iter().zip(own).map(weight).collect()
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::super::tests::{random, table};
    use super::*;

    #[test]
    fn rare_clusters_have_rows_in_a_sample() {
        let n = 90_000;
        let mut columns = random(n, 2);
        // A cluster of 3 rows and one of 200: the even sample contains none or few of them.
        (0..3).for_each(|i| columns[0][i * 20_001 + 1] = 1e4);
        (0..200).for_each(|i| columns[1][i * 401 + 5] = 1e4);
        let (scale, columns) = table(columns);
        let points = Points::new(&scale, &columns);
        let centroids = array![[0.5, 0.5], [1e4, 0.5], [0.5, 1e4]];
        let sizes = [n as u64 - 203, 3, 200];
        let found = sample(&points, &centroids, &sizes, 2);
        assert_eq!(found, sample(&points, &centroids, &sizes, 1));
        let count = |cluster: u8| found.labels.iter().filter(|&&label| label == cluster).count();
        assert_eq!(count(1), 3);
        assert!((50..65).contains(&count(2)) && found.rows.len() <= 5053, "{} {}", count(2), found.rows.len());
        assert!(found.rows.is_sorted() && sample_rows(n).iter().all(|row| found.rows.binary_search(row).is_ok()));
        for cluster in 0..3_u8 {
            let of = found.labels.iter().zip(&found.weights).filter(|(label, _)| **label == cluster);
            let sum: f64 = of.map(|(_, weight)| weight).sum();
            assert!((sum / sizes[usize::from(cluster)] as f64 - 1.0).abs() < 1e-9, "{sum}");
        }
    }

    #[test]
    fn all_rows_of_few_are_the_sample() {
        let (scale, columns) = table(random(300, 2));
        let points = Points::new(&scale, &columns);
        let found = sample(&points, &array![[0.2, 0.5], [0.8, 0.5]], &[150, 150], 2);
        assert_eq!((found.rows.len(), found.weights), (300, vec![1.0; 300]));
    }
}
