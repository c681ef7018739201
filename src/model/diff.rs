//! Compares two models: sizes, centroids, and the records that changed their segment.
//!
//! Input: two models and, if the training did not count the changed records, a sample of the second model's records. Output:
//! data for a table or for programs.

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};
use serde::Serialize;

use super::scaling::FeatureScale;
use super::{Cluster, Model};

/// The comparison of two models.
#[derive(Debug, Clone, Serialize)]
pub struct Diff {
    pub a: Side,
    pub b: Side,
    /// By number, including numbers that only one of the models has.
    pub clusters: Vec<Pair>,
    /// `None` if the features differ or no sample exists.
    pub moved: Option<Moved>,
}

/// One of the two models.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    pub segmentation: String,
    pub slice: u8,
    pub version: u64,
    pub rows: u64,
    /// As in the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Vec<FeatureScale>>,
    pub inertia: f64,
    pub silhouette: Option<f64>,
    pub trained_at: String,
}

/// The clusters with one number.
#[derive(Debug, Clone, Serialize)]
pub struct Pair {
    pub cluster: u32,
    pub a: Option<Cluster>,
    pub b: Option<Cluster>,
    /// Distance between the centroids in the second model's standardised units; `None` if one of them does not exist.
    pub shift: Option<f64>,
}

/// Records by their segments in the first and in the second model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// The counted set of records.
    pub of: Counted,
    pub records: u64,
    /// Records whose segment number changed.
    pub changed: u64,
    /// The first model's clusters (outer) by the second model's clusters.
    pub matrix: Vec<Vec<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counted {
    /// All records of the first model's slice, at the time of the second training; of entities, those that both slices have.
    Training,
    /// The second model's sample, counted now.
    Sample,
}

/// Compares two models. `sample` is called only if the training did not count.
pub fn diff(a: &Model, b: &Model, sample: impl FnOnce() -> Option<RecordBatch>) -> Diff {
    let same_features = a.features == b.features;
    let (from, to) = (a.centroids(), b.centroids());
    let scale = b.scale();
    let shift = |cluster: usize| {
        let both = same_features && cluster < a.clusters.len() && cluster < b.clusters.len();
        let squared =
            |f: usize| (scale.standardise(f, from[[cluster, f]]) - scale.standardise(f, to[[cluster, f]])).powi(2);
        both.then(|| (0..b.features.len()).map(squared).sum::<f64>().sqrt())
    };
    let clusters = (0..a.clusters.len().max(b.clusters.len())).map(|cluster| Pair {
        cluster: cluster as u32,
        a: a.clusters.get(cluster).cloned(),
        b: b.clusters.get(cluster).cloned(),
        shift: shift(cluster),
    });
    let moved = match counted_at_training(a, b) {
        Some(moved) => Some(moved),
        None if same_features => sample().and_then(|sample| counted_now(a, b, &sample)),
        None => None,
    };
    Diff { a: side(a), b: side(b), clusters: clusters.collect(), moved }
}

fn side(model: &Model) -> Side {
    Side {
        segmentation: model.segmentation.clone(),
        slice: model.slice,
        version: model.version,
        rows: model.rows,
        scaling: model.scaling.clone(),
        inertia: model.inertia,
        silhouette: model.silhouette,
        trained_at: model.trained_at.clone(),
    }
}

/// The matrix stored in the second model, if it refers to the first: the previous slice of the same training.
fn counted_at_training(a: &Model, b: &Model) -> Option<Moved> {
    let follows = a.segmentation == b.segmentation && a.slice + 1 == b.slice && a.receipt.same_stream(&b.receipt);
    let matrix = b.moved.as_ref().filter(|_| follows)?;
    // The rows of the matrix are the first model's clusters.
    let sizes: Vec<u64> = matrix.iter().map(|row| row.iter().sum()).collect();
    // Of entities only those are counted that both slices have.
    let fits = |(cluster, counted): (&Cluster, &u64)| match a.entity.is_empty() {
        true => cluster.size == *counted,
        false => cluster.size >= *counted,
    };
    let is = a.clusters.len() == sizes.len() && a.clusters.iter().zip(&sizes).all(fits);
    is.then(|| moved(Counted::Training, matrix.clone()))
}

/// The second model's sample, by the first model's clusters and by its own.
fn counted_now(a: &Model, b: &Model, sample: &RecordBatch) -> Option<Moved> {
    let columns: Option<Vec<_>> =
        b.features.iter().map(|f| sample.column_by_name(f)?.as_primitive_opt::<Float64Type>()).collect();
    let (columns, clusters) = (columns?, sample.column_by_name("cluster")?.as_primitive_opt::<UInt32Type>()?);
    let predictor = a.predictor();
    let mut matrix = vec![vec![0; b.clusters.len()]; a.clusters.len()];
    let mut row = vec![0.0; columns.len()];
    for i in 0..sample.num_rows() {
        row.iter_mut().zip(&columns).for_each(|(value, column)| *value = column.value(i));
        *matrix.get_mut(predictor.predict(&mut row).0)?.get_mut(clusters.value(i) as usize)? += 1;
    }
    Some(moved(Counted::Sample, matrix))
}

/// Records by their segments, counted over all records that both models are about.
pub fn moved_of(matrix: Vec<Vec<u64>>) -> Moved {
    moved(Counted::Training, matrix)
}

fn moved(of: Counted, matrix: Vec<Vec<u64>>) -> Moved {
    let records = matrix.iter().flatten().sum();
    let same: u64 = matrix.iter().enumerate().filter_map(|(i, row)| row.get(i)).sum();
    Moved { of, records, changed: records - same, matrix }
}
