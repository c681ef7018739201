//! Baseline of a model: the distribution of the rows that it was trained on, with which later rows are compared.
//!
//! Input: the features of at most [`MOST`] evenly spaced rows of the training, and the model's predictor. Output: counts in bins of
//! each feature, and quantiles of the distances to the centroids. Up to 32 distinct values each have a bin, and one more bin
//! takes values that the training has not seen; otherwise the bins end at quantiles, with an open bin at each end. Missing values are
//! counted apart. In clusters and distances a missing value counts as the mean, as in the training.

use datafusion::arrow::array::{Array as _, Float64Array};
use poem_openapi::Object;
use serde::{Deserialize, Serialize};

use super::{Predictor, exact};

/// Maximum number of rows that a baseline describes, and that are compared with it.
pub const MOST: usize = 100_000;
/// Distinct values up to which each value has a bin.
const VALUES: usize = 32;
/// Number of bins by quantiles.
const BINS: usize = 32;
/// The quantiles of distances. The last one separates rows that are unlike the training's.
const QUANTILES: [f64; 4] = [0.5, 0.95, 0.99, 0.999];

/// The distribution of the rows that a model was trained on: all of them, or 100,000 evenly spaced ones of more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
pub struct Baseline {
    /// Rows that are described.
    pub rows: u64,
    /// In the order of the model's features.
    pub features: Vec<FeatureBaseline>,
    /// Rows in each cluster.
    pub clusters: Vec<u64>,
    /// Of each cluster the quantiles 0.5, 0.95, 0.99 and 0.999 of the distances of its rows to its centroid, in standardised units,
    /// interpolated linearly; an empty list for a cluster without rows.
    #[serde(deserialize_with = "exact::lists")]
    pub distances: Vec<Vec<f64>>,
    /// Rows beyond the last of these quantiles of their clusters.
    pub unlike: u64,
}

/// The distribution of one feature in bins. There are either `values` or `edges`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
pub struct FeatureBaseline {
    pub name: String,
    /// The distinct values, ascending, each of which has a bin; a further, empty bin is for other values.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact::maybe_list")]
    #[oai(skip_serializing_if_is_none)]
    pub values: Option<Vec<f64>>,
    /// The edges between bins, ascending: a bin contains its upper edge and not its lower one. The first and the last bin are open.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "exact::maybe_list")]
    #[oai(skip_serializing_if_is_none)]
    pub edges: Option<Vec<f64>>,
    /// Rows in each bin: one more than there are values or edges.
    pub counts: Vec<u64>,
    /// Rows in which the feature is missing.
    pub missing: u64,
}

impl FeatureBaseline {
    fn of(name: &str, column: &Float64Array) -> Self {
        let mut sorted: Vec<f64> = column.iter().flatten().map(|value| value + 0.0).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let mut distinct = sorted.clone();
        distinct.dedup();
        let (values, edges) = if distinct.len() <= VALUES {
            (Some(distinct), None)
        } else {
            let mut edges: Vec<f64> = (1..BINS).map(|bin| quantile(&sorted, bin as f64 / BINS as f64)).collect();
            edges.dedup();
            (None, Some(edges))
        };
        let bins = values.as_ref().or(edges.as_ref()).map_or(0, Vec::len) + 1;
        let mut empty = Self { name: name.to_owned(), values, edges, counts: vec![0; bins], missing: 0 };
        (empty.counts, empty.missing) = empty.count(column);
        empty
    }

    /// The number of values in each bin, and of missing ones.
    pub fn count(&self, column: &Float64Array) -> (Vec<u64>, u64) {
        let mut counts = vec![0; self.counts.len()];
        column.iter().flatten().for_each(|value| counts[self.bin(value)] += 1);
        (counts, column.null_count() as u64)
    }

    /// The bin of a value.
    pub fn bin(&self, value: f64) -> usize {
        match (&self.values, &self.edges) {
            (Some(values), _) => {
                let at = values.partition_point(|known| *known < value);
                if values.get(at) == Some(&value) { at } else { values.len() }
            }
            (None, Some(edges)) => edges.partition_point(|edge| *edge < value),
            (None, None) => 0,
        }
    }

    /// The share of the training's values below a value, with half of the values that are equal to it or in the same bin.
    pub fn rank(&self, value: f64) -> f64 {
        let present: u64 = self.counts.iter().sum();
        let ordered = self.values.as_ref().map_or(self.counts.len(), Vec::len);
        let at = match &self.values {
            Some(values) => values.partition_point(|known| *known < value),
            None => self.bin(value),
        };
        let below: u64 = self.counts[..at.min(ordered)].iter().sum();
        let same = if at < ordered && self.bin(value) == at { self.counts[at] } else { 0 };
        (below as f64 + same as f64 / 2.0) / (present.max(1) as f64)
    }
}

impl Baseline {
    /// The baseline of rows in original units, in which missing features are null. Each column has the same length.
    pub fn of(names: &[String], columns: &[Float64Array], predictor: &Predictor) -> Self {
        let (labels, distances) = nearest(predictor, columns);
        let k = predictor.centroids().nrows();
        let mut of: Vec<Vec<f64>> = vec![Vec::new(); k];
        labels.iter().zip(&distances).for_each(|(label, distance)| of[*label as usize].push(*distance));
        let quantiles = |rows: &mut Vec<f64>| -> Vec<f64> {
            rows.sort_unstable_by(f64::total_cmp);
            if rows.is_empty() { Vec::new() } else { QUANTILES.map(|share| quantile(rows, share)).to_vec() }
        };
        let mut baseline = Self {
            rows: labels.len() as u64,
            features: names.iter().zip(columns).map(|(name, column)| FeatureBaseline::of(name, column)).collect(),
            clusters: of.iter().map(|rows| rows.len() as u64).collect(),
            distances: of.iter_mut().map(quantiles).collect(),
            unlike: 0,
        };
        let unlike = labels.iter().zip(&distances).filter(|(label, distance)| baseline.is_unlike(**label, **distance));
        baseline.unlike = unlike.count() as u64;
        baseline
    }

    /// Of each cluster the distance beyond which a row is unlike those of the training; -∞ if the training had none.
    pub fn limits(&self) -> Vec<f64> {
        self.distances.iter().map(|quantiles| quantiles.last().copied().unwrap_or(f64::NEG_INFINITY)).collect()
    }

    /// Whether a row is farther from its centroid than 999 of 1,000 rows of the training in its cluster.
    pub fn is_unlike(&self, cluster: u32, distance: f64) -> bool {
        let last = self.distances.get(cluster as usize).and_then(|quantiles| quantiles.last());
        last.is_none_or(|last| distance > *last)
    }

    /// Checks the invariants that users of a baseline rely on.
    pub(super) fn is_sound(&self, features: &[String], k: usize) -> bool {
        let counted = |feature: &FeatureBaseline| {
            let bins = match (&feature.values, &feature.edges) {
                (Some(bins), None) | (None, Some(bins)) => bins,
                _ => return false,
            };
            let all = feature.counts.iter().try_fold(feature.missing, |sum, count| sum.checked_add(*count));
            bins.is_sorted() && feature.counts.len() == bins.len() + 1 && all == Some(self.rows)
        };
        let quantiles = |list: &Vec<f64>| list.is_empty() || (list.len() == QUANTILES.len() && list.is_sorted());
        self.features.len() == features.len()
            && self.features.iter().zip(features).all(|(feature, name)| feature.name == *name && counted(feature))
            && self.clusters.len() == k
            && self.clusters.iter().try_fold(0_u64, |sum, rows| sum.checked_add(*rows)) == Some(self.rows)
            && self.distances.len() == k
            && self.distances.iter().all(quantiles)
            && self.unlike <= self.rows
    }
}

/// Clusters and distances of rows; a missing value counts as the mean.
pub fn nearest(predictor: &Predictor, columns: &[Float64Array]) -> (Vec<u32>, Vec<f64>) {
    let filled: Vec<Vec<f64>> = columns
        .iter()
        .enumerate()
        .map(|(feature, column)| column.iter().map(|value| value.unwrap_or(predictor.mean(feature))).collect())
        .collect();
    predictor.predict_columns(&filled.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// A quantile of sorted values, interpolated linearly between neighbours (type 7 of Hyndman and Fan, the default of NumPy).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let at = place as usize;
    let (low, high) = (sorted[at], sorted[(at + 1).min(sorted.len() - 1)]);
    let part = place - at as f64;
    // Two finite values may be farther apart than the greatest double.
    if (high - low).is_finite() { low + (high - low) * part } else { low * (1.0 - part) + high * part }
}

#[cfg(test)]
mod tests {
    use ndarray::array;
    use tercile_kmeans::features::Scale;

    use super::*;

    fn of(column: Vec<Option<f64>>) -> FeatureBaseline {
        FeatureBaseline::of("a", &Float64Array::from(column))
    }

    #[test]
    fn few_values_have_a_bin_each_and_others_share_one() {
        let base = of(vec![Some(2.0), Some(1.0), None, Some(2.0), Some(-0.0), Some(0.0)]);
        assert_eq!(base.values.as_deref(), Some(&[0.0, 1.0, 2.0][..]));
        assert_eq!((&base.counts[..], base.missing), (&[2, 1, 2, 0][..], 1));
        assert_eq!([base.bin(0.0), base.bin(-0.0), base.bin(1.5), base.bin(9.0)], [0, 0, 3, 3]);
        assert_eq!(
            [base.rank(-1.0), base.rank(0.0), base.rank(1.5), base.rank(2.0), base.rank(9.0)],
            [0.0, 0.2, 0.6, 0.8, 1.0]
        );
        let nothing = of(vec![None, None]);
        assert_eq!((&nothing.counts[..], nothing.missing, nothing.bin(1.0)), (&[0][..], 2, 0));
    }

    #[test]
    fn many_values_are_divided_at_the_quantiles_of_numpy() {
        let base = of((0..1_000).map(|i| Some(f64::from(i))).collect());
        let edges = base.edges.clone().unwrap();
        // numpy.quantile(numpy.arange(1000), numpy.arange(1, 32) / 32)
        assert_eq!((edges.len(), edges[0], edges[15], edges[30]), (31, 31.21875, 499.5, 967.78125));
        assert_eq!((base.bin(31.21875), base.bin(31.3), base.bin(-1e9), base.bin(1e9)), (0, 1, 0, 31));
        assert_eq!((base.counts.len(), base.counts.iter().sum::<u64>()), (32, 1_000));
        // Equal edges are merged: half of the values are zero.
        let skewed = of((0..1_000).map(|i| Some(f64::from((i - 500).max(0)))).collect());
        let edges = skewed.edges.unwrap();
        assert!(edges.windows(2).all(|pair| pair[0] < pair[1]) && edges[0] == 0.0);
        assert_eq!(skewed.counts.len(), edges.len() + 1);
    }

    #[test]
    fn distances_are_those_of_the_own_cluster_and_missing_values_are_the_mean() {
        let predictor = Predictor::new(Scale::new(vec![5.0], vec![1.0]), &array![[0.0], [10.0]]);
        let column: Vec<Option<f64>> =
            (0..1_001).map(|i| Some(f64::from(i) / 1_000.0)).chain([Some(10.0), Some(12.0), None]).collect();
        let base = Baseline::of(&["a".to_owned()], &[Float64Array::from(column)], &predictor);
        // The missing value is 5, equally far from both; the first of them takes it.
        assert_eq!((&base.clusters[..], base.rows), (&[1_002, 2][..], 1_004));
        assert_eq!(base.distances[1], [1.0, 1.9, 1.98, 1.998]);
        assert!((base.distances[0][0] - 0.5005).abs() < 1e-9, "{:?}", base.distances[0]);
        // The largest value of each cluster, and the missing one.
        assert_eq!(base.unlike, 3);
        assert!(base.is_unlike(1, 2.0) && !base.is_unlike(1, 1.998) && base.is_unlike(7, 0.0));
        assert!(base.is_sound(&["a".to_owned()], 2) && !base.is_sound(&["b".to_owned()], 2));
    }
}
