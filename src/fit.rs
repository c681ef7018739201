//! KMeans on columns that are not in a store (commands `fit` and `suggest-k`).
//!
//! Input: columns of numbers and clustering settings. Output: clusters and metrics, named as in a model file. Each feature is
//! standardised with its mean and population standard deviation, and a missing value is imputed with the mean. KMeans then
//! minimises the sum of squared distances of the rows to the nearest of k centroids, as far as its restarts find the minimum.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, Float64Array};
use ndarray::Array2;
use serde::Serialize;
use sha2::{Digest, Sha256};
use tercile_kmeans::column_buffer;
use tercile_kmeans::features::scaling::Scaling;
use tercile_kmeans::features::{self, Scale};
use tercile_kmeans::parallel::by_chunk;
use tercile_kmeans::{self as kmeans, Chosen, Fit, Init, Linfa, Passes, Points, Settings, Solver, Step};

use crate::model::cluster_ids::{by_features, renumbered};
use crate::model::describe::describe;
use crate::model::fitted::FittedModel;
use crate::model::parts::Shapes;
use crate::model::scaling::{self, FeatureScale};
use crate::model::{Cluster, METHOD, SolverKind, clusters};
use crate::printable::hex;
use crate::sql::language::Labels;

/// The solver of a kind, over columns in this process.
pub fn solver_of<'a>(
    kind: SolverKind,
    scale: &'a Scale,
    columns: &'a [Float64Array],
) -> Box<dyn Solver<Error = kmeans::Error> + 'a> {
    match kind {
        SolverKind::Tercile => Box::new(Passes(Points::new(scale, columns))),
        SolverKind::Linfa => Box::new(Linfa { scale, columns }),
    }
}

/// Clustering request.
#[derive(Debug, Clone)]
pub struct Job {
    pub features: Vec<String>,
    /// How each feature is scaled.
    pub scaling: Vec<Scaling>,
    pub settings: Settings,
    /// Initial centroids, k by features in original units. `None`: drawn by k-means++.
    pub init: Option<Array2<f64>>,
    pub solver: SolverKind,
}

/// Result of a clustering.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Clustered rows: the sum of the cluster sizes.
    pub rows: u64,
    /// Rows of the file that were left out because a feature was not a number (`--missing skip`). Set by the reader of the
    /// file.
    pub rows_left_out: u64,
    /// Number of imputed values by feature.
    pub imputed: BTreeMap<String, u64>,
    pub features: Vec<String>,
    pub mean: Vec<f64>,
    /// Population standard deviation; 0 for a constant feature.
    pub std: Vec<f64>,
    /// As in a model: not given where all features are scaled by mean and std.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Vec<FeatureScale>>,
    pub k: u32,
    pub seed: u64,
    /// Number of restarts; 0 with initial centroids, and for a single feature, which is solved exactly.
    pub starts: u64,
    pub solver: SolverKind,
    /// Sum of squared distances of the rows to their centroids, in standardised units.
    pub inertia: f64,
    /// Mean silhouette, from -1 to 1; null with a single cluster. Computed on a sample if `silhouette_rows` is less than
    /// `rows`.
    pub silhouette: Option<f64>,
    /// Rows that the silhouette was computed on: all, or a weighted sample that includes rare clusters.
    pub silhouette_rows: u64,
    pub davies_bouldin: Option<f64>,
    pub calinski_harabasz: Option<f64>,
    /// Iterations of the best restart and of the final polish; null for linfa, which does not report them.
    pub iterations: Option<u64>,
    /// Time of the training, RFC 3339, UTC.
    pub trained_at: String,
    pub clusters: Vec<Cluster>,
    /// The same clusters, as the solver returned them.
    #[serde(skip)]
    pub found: Fit,
    #[serde(skip)]
    pub scale: Scale,
    #[serde(skip)]
    pub took: Durations,
}

impl Report {
    /// The model, for predictions.
    pub fn model(&self) -> FittedModel {
        let Self { features, mean, std, scaling, clusters, .. } = self.clone();
        FittedModel { features, mean, std, scaling, clusters }
    }
}

/// Inputs that determine a fit: equal receipts and equal k give bit-identical clusters.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// Clustered rows.
    pub n: u64,
    /// Hash of the input, see [`rows_hash`].
    pub rows_hash: String,
    pub seed: u64,
    pub starts: u64,
    pub solver: SolverKind,
    pub max_iter: u64,
    pub tol: f64,
    /// Initial centroids in original units, if they were given.
    pub init: Option<Vec<Vec<f64>>>,
    /// Version of tercile.
    pub tercile: String,
    /// Version of the training method, as in a model's receipt.
    pub method: u32,
}

impl Receipt {
    pub fn new(job: &Job, report: &Report, rows_hash: &str) -> Self {
        Self {
            n: report.rows,
            rows_hash: rows_hash.to_owned(),
            seed: report.seed,
            starts: report.starts,
            solver: report.solver,
            max_iter: job.settings.limits.iterations as u64,
            tol: job.settings.limits.tolerance,
            init: job.init.as_ref().map(|init| init.rows().into_iter().map(|row| row.to_vec()).collect()),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
            method: METHOD,
        }
    }
}

/// SHA-256, in hex, of the concatenated SHA-256 digests of chunks of 65,536 rows. The digest of a chunk covers its columns in
/// order: for each row one byte, 1 if the value is missing, then for each row the little-endian double, 0 if missing. The hash
/// is independent of the file format and of the number of threads.
pub fn rows_hash(columns: &[Float64Array], threads: usize) -> String {
    let rows = columns.first().map_or(0, Array::len);
    let pieces = by_chunk(rows, threads, |rows| {
        let mut hasher = Sha256::new();
        let mut bytes = Vec::with_capacity(rows.len() * size_of::<f64>());
        for column in columns {
            bytes.clear();
            bytes.resize(rows.len(), 0);
            if column.null_count() > 0 {
                bytes.iter_mut().zip(rows.clone()).for_each(|(byte, row)| *byte = u8::from(column.is_null(row)));
            }
            hasher.update(&bytes);
            if column.null_count() == 0 && cfg!(target_endian = "little") {
                let size = size_of::<f64>();
                hasher.update(&column.values().inner()[rows.start * size..rows.end * size]);
            } else {
                bytes.clear();
                let value = |row| if column.is_null(row) { 0.0 } else { column.value(row) };
                rows.clone().for_each(|row| bytes.extend_from_slice(&value(row).to_le_bytes()));
                hasher.update(&bytes);
            }
            column_buffer::done_with(&column.values()[rows.clone()]);
        }
        hasher.finalize()
    });
    let mut hasher = Sha256::new();
    pieces.iter().for_each(|piece| hasher.update(piece));
    hex(&hasher.finalize())
}

/// The k with the greatest silhouette, the smallest such k on ties; `None` if no report has a silhouette.
pub fn best_by_silhouette<'r>(reports: impl IntoIterator<Item = &'r Report>) -> Option<u32> {
    let scored = reports.into_iter().filter_map(|report| Some((report.k, report.silhouette?)));
    scored.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(k, _)| k)
}

/// Durations of the phases of a fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Durations {
    /// Standardisation and clustering.
    pub fit: Duration,
    pub score: Duration,
}

/// Error of a fit.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}; ask for fewer")]
    TooFew(kmeans::Error),
    #[error(transparent)]
    KMeans(kmeans::Error),
    #[error(transparent)]
    Features(#[from] features::Error),
    #[error("cannot select rows: {0}")]
    Rows(String),
}

impl From<kmeans::Error> for Error {
    fn from(error: kmeans::Error) -> Self {
        if matches!(error, kmeans::Error::TooFew { .. }) { Self::TooFew(error) } else { Self::KMeans(error) }
    }
}

/// Clusters columns of equal length; `watch` is called for each pass over all rows.
///
/// # Errors
/// If there are fewer distinct rows than clusters, or if a column cannot be standardised.
pub fn fit(columns: &[Float64Array], job: &Job, watch: &(dyn Fn(Step) + Sync)) -> Result<Report, Error> {
    let Job { features, settings, .. } = job;
    let began = Instant::now();
    let scale = Scale::measure_as(features, columns, &job.scaling, settings.threads)?;
    let points = Points::new(&scale, columns);
    let init = job.init.as_ref().map_or(Init::Drawn(None), Init::Given);
    let found = solver_of(job.solver, &scale, columns).fit(settings, init, watch)?;
    let found = renumbered(found.clone(), &by_features(&found.centroids));
    let fit = began.elapsed();

    let began = Instant::now();
    let Fit { centroids, sizes, inertia, iterations } = &found;
    let (inertia, iterations) = (*inertia, *iterations);
    let sampled = Sampled::new(&scale, columns, None, &found, settings.threads);
    let silhouette = sampled.silhouette(&scale, settings.k, settings.threads);
    let silhouette_rows = sampled.chosen.rows.len() as u64;
    let profile = kmeans::profile(&points, centroids, settings.threads);
    let linear = scale.linear_centroids(centroids);
    let shapes = Shapes { centroids: linear.view(), spread: profile.linear_spread.view(), sizes };
    let described = describe(&shapes, features, &Labels::new(), None);
    let clusters = clusters(features, &found, &profile, described, &vec![false; settings.k]);
    let drawn = job.init.is_none() && (features.len() > 1 || job.solver == SolverKind::Linfa);
    Ok(Report {
        rows: points.rows() as u64,
        rows_left_out: 0,
        imputed: imputed(features, columns),
        features: features.clone(),
        k: settings.k as u32,
        seed: settings.seed,
        starts: if drawn { settings.starts as u64 } else { 0 },
        solver: job.solver,
        inertia,
        silhouette,
        silhouette_rows,
        davies_bouldin: kmeans::davies_bouldin(&points, centroids, sizes, settings.threads),
        calinski_harabasz: kmeans::calinski_harabasz(&points, centroids, sizes, inertia),
        iterations: (job.solver == SolverKind::Tercile).then_some(iterations as u64),
        trained_at: tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
        clusters,
        mean: scale.mean.clone(),
        std: scale.std.clone(),
        scaling: scaling::of(&scale),
        found,
        scale,
        took: Durations { fit, score: began.elapsed() },
    })
}

/// Number of nulls by feature.
pub fn imputed(features: &[String], columns: &[Float64Array]) -> BTreeMap<String, u64> {
    features.iter().cloned().zip(columns.iter().map(|column| column.null_count() as u64)).collect()
}

/// Sample of a fit's rows that represents all of them.
pub(crate) struct Sampled {
    pub columns: Vec<Float64Array>,
    pub chosen: Chosen,
}

impl Sampled {
    /// Samples the rows on this scale; `weights` are optional row weights.
    pub fn new(scale: &Scale, columns: &[Float64Array], weights: Option<&[f64]>, fit: &Fit, threads: usize) -> Self {
        let points = weighted(Points::new(scale, columns), weights);
        let chosen = kmeans::sample(&points, &fit.centroids, &fit.sizes, threads);
        Self { columns: columns.iter().map(|column| column_buffer::take(column, &chosen.rows)).collect(), chosen }
    }

    /// Estimates the silhouette of all rows from the sample; `None` with one cluster.
    pub fn silhouette(&self, scale: &Scale, k: usize, threads: usize) -> Option<f64> {
        let Chosen { labels, weights, .. } = &self.chosen;
        let points = Points::new(scale, &self.columns);
        // A sample of all rows has unit weights: the result is bit-identical to the unweighted one.
        let points = if weights.iter().all(|&weight| weight == 1.0) { points } else { weighted(points, Some(weights)) };
        kmeans::silhouette(&points, labels, k, threads)
    }
}

/// The points with the optional weights applied.
pub(crate) fn weighted<'a>(points: Points<'a>, weights: Option<&[f64]>) -> Points<'a> {
    match weights {
        Some(weights) => points.with_weights(weights.to_vec()),
        None => points,
    }
}

#[cfg(test)]
mod tests {
    use tercile_kmeans::Limits;

    use super::*;

    fn job(features: usize, k: usize) -> Job {
        let limits = Limits { iterations: 300, tolerance: 0.0 };
        Job {
            features: (0..features).map(|i| format!("f{i}")).collect(),
            scaling: vec![Scaling::default(); features],
            settings: Settings { k, seed: 42, starts: 10, limits, threads: 2 },
            init: None,
            solver: SolverKind::Tercile,
        }
    }

    fn done(columns: Vec<Vec<Option<f64>>>, k: usize) -> Result<Report, Error> {
        let columns: Vec<Float64Array> = columns.into_iter().map(Float64Array::from).collect();
        fit(&columns, &job(columns.len(), k), &|_| {})
    }

    fn refused(columns: Vec<Vec<Option<f64>>>, k: usize) -> String {
        done(columns, k).unwrap_err().to_string()
    }

    #[test]
    fn odd_tables_have_an_answer_or_a_reason() {
        let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(refused(vec![vec![]], 1), "the feature f0 is missing in every row");
        assert_eq!(refused(vec![some(&[1.0, 2.0]), vec![None, None]], 1), "the feature f1 is missing in every row");
        let error = refused(vec![some(&[1.0, 2.0]), some(&[7.0, 7.0])], 3);
        assert_eq!(error, "3 clusters need at least 3 different rows, there are 2; ask for fewer");
        let constant = done(vec![some(&[7.0, 7.0, 7.0]), some(&[1.0, 2.0, 9.0])], 2).unwrap();
        assert_eq!((constant.std[0], constant.clusters[0].centroid["f0"]), (0.0, 7.0));
        assert_eq!(constant.clusters.iter().map(|c| c.size).collect::<Vec<_>>(), [2, 1]);
        let same = done(vec![some(&[5.0; 4])], 1).unwrap();
        assert_eq!((same.inertia, same.silhouette, same.davies_bouldin), (0.0, None, None));
        let all = done(vec![some(&[1.0, 2.0, 3.0]), some(&[1.0, 5.0, 2.0])], 3).unwrap();
        assert_eq!(all.inertia, 0.0, "as many clusters as rows");
    }

    #[test]
    fn a_rare_cluster_counts_in_a_sampled_silhouette() {
        // One distant row of 20,000, which uniform sampling would miss.
        let mut values: Vec<Option<f64>> = (0..20_000).map(|i| Some(f64::from(i * 7919 % 1009) / 1009.0)).collect();
        values[13] = Some(1e6);
        let found = done(vec![values], 2).unwrap();
        assert_eq!(found.clusters.iter().map(|cluster| cluster.size).collect::<Vec<_>>(), [19_999, 1]);
        assert!(found.silhouette.is_some_and(|score| score > 0.99), "{:?}", found.silhouette);
        // Three blobs, one of which has one row in 500: the sampled score equals that of all rows.
        let blob = |i: u32| if i % 500 == 7 { 50.0 } else { f64::from(i % 2) * 10.0 };
        let values: Vec<f64> = (0..20_000).map(|i| blob(i) + f64::from(i * 7919 % 1009) / 500.0).collect();
        let columns = [Float64Array::from(values)];
        let names = ["f0".to_owned()];
        let scale = Scale::measure(&names, &columns, 2).unwrap();
        let points = Points::new(&scale, &columns);
        let fit = kmeans::fit(&points, &job(1, 3).settings, Init::Drawn(None), &|_| {}).unwrap();
        let sample = Sampled::new(&scale, &columns, None, &fit, 2);
        let (sampled, rows) = (sample.silhouette(&scale, 3, 2), sample.chosen.rows.len());
        let all = kmeans::silhouette(&points, &kmeans::assign(&points, &fit.centroids, 1), 3, 2);
        assert!(
            rows < 5_100 && (sampled.unwrap() - all.unwrap()).abs() < 1e-3,
            "{sampled:?} of {rows}, {all:?} of all"
        );
    }

    #[test]
    fn huge_and_tiny_numbers_are_clustered() {
        for unit in [1e307, 1e-300] {
            let values: Vec<Option<f64>> = [1.0, 1.25, 4.0, 4.25, 8.0].iter().map(|v| Some(v * unit)).collect();
            for columns in [vec![values.clone()], vec![values.clone(), values.iter().rev().copied().collect()]] {
                let report = done(columns, 2).unwrap();
                assert!(report.inertia.is_finite() && report.clusters.iter().all(|c| c.centroid["f0"].is_finite()));
            }
            let report = done(vec![values], 3).unwrap();
            assert!((report.clusters[0].centroid["f0"] / unit - 1.125).abs() < 1e-12);
        }
    }

    #[test]
    fn every_value_counts_in_the_hash() {
        let long = |last: f64| Float64Array::from_iter_values((0..70_000).map(f64::from).chain([last]));
        let hash = |columns: &[Float64Array]| rows_hash(columns, 2);
        assert_eq!(hash(&[long(1.0), long(2.0)]), rows_hash(&[long(1.0), long(2.0)], 1));
        assert_ne!(hash(&[long(1.0), long(2.0)]), hash(&[long(2.0), long(1.0)]));
        let three = |values: [Option<f64>; 3]| hash(&[Float64Array::from(values.to_vec())]);
        let different = [
            three([Some(1.0), Some(2.0), Some(0.0)]),
            three([Some(1.0), Some(2.0), None]),
            three([Some(1.0), None, Some(2.0)]),
            three([Some(2.0), Some(1.0), Some(0.0)]),
        ];
        assert_eq!(different.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn a_missing_value_stands_at_the_mean() {
        let report = done(vec![vec![Some(1.0), Some(9.0), None, None, Some(5.0)]], 3).unwrap();
        assert_eq!((report.imputed["f0"], report.mean[0]), (2, 5.0));
        assert_eq!(report.clusters.iter().map(|c| c.size).collect::<Vec<_>>(), [1, 3, 1]);
    }
}
