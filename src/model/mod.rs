//! Models: immutable JSON files, each with a receipt of its training data.
//!
//! Input: the results of a training. Output: files under `models/`, and predictions.

pub mod baseline;
pub mod candidate;
pub mod check;
pub mod cluster_ids;
mod clusters;
pub mod describe;
pub mod diff;
mod exact;
pub mod fitted;
pub mod history;
pub mod imputed;
mod language;
pub mod members;
pub mod model_ref;
pub mod parts;
pub mod plain_sql;
mod predictor;
pub mod published;
mod receipt;
pub mod registry;
pub mod scaling;
mod soundness;
mod tiny;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

pub use baseline::Baseline;
pub use candidate::{Candidate, Promote, Violation};
pub use check::Kind;
pub use clusters::clusters;
use datafusion::arrow::array::RecordBatch;
use describe::{WordChange, Words};
pub use history::{PromotedBy, Until};
pub use language::NoLanguage;
use ndarray::Array2;
use poem_openapi::Object;
pub use predictor::Predictor;
pub use receipt::{Cut, METHOD, Predecessor, Receipt, SolverKind};
pub use registry::{ModelRegistry, ServingState, Slices, Versions};
use scaling::FeatureScale;
use serde::{Deserialize, Serialize};
use tercile_kmeans::features::Scale;
use tercile_store as store;
pub use tiny::Tiny;

use crate::sql::Segmentation;

/// A trained segmentation of one slice. The file and the API agree on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
pub struct Model {
    pub segmentation: String,
    /// 1, 2 or 3: the first third of the stream, the first two, all of it.
    pub slice: u8,
    /// Counted through all slices of a segmentation, from 1.
    pub version: u64,
    /// Rows that were clustered: the sum of the clusters' sizes.
    pub rows: u64,
    /// Records of the slice that were not: unreadable, or left out by the SQL file.
    pub rows_left_out: u64,
    /// Feature to the number of rows whose value was missing and took the mean. Not given by models that were made before
    /// this was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub imputed: Option<BTreeMap<String, u64>>,
    /// The key columns of its entities; its rows are entities then. Not given for a segmentation of records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[oai(default, skip_serializing_if = "Vec::is_empty")]
    pub entity: Vec<String>,
    /// The features' names; all lists by feature are in this order.
    pub features: Vec<String>,
    /// Mean of each feature, in its own units.
    #[serde(deserialize_with = "exact::list")]
    pub mean: Vec<f64>,
    /// Population standard deviation of each feature, in its own units; 0 for a constant one.
    #[serde(deserialize_with = "exact::list")]
    pub std: Vec<f64>,
    /// How each feature is scaled: the scaled value of x is weight · (t(x) - center) / spread, where t is log(1 + x) on a logarithmic
    /// scale and otherwise x. Not given where all are scaled by mean and std.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub scaling: Option<Vec<FeatureScale>>,
    /// The number of clusters.
    pub k: u32,
    pub seed: u64,
    /// Sum of squared distances of the rows to their centroids, in standardised units.
    #[serde(deserialize_with = "exact::one")]
    pub inertia: f64,
    /// Mean silhouette, from -1 to 1; null where there is only one cluster. Of more than 5,000 rows, that of a weighted sample
    /// which includes rare clusters.
    #[serde(deserialize_with = "exact::maybe")]
    pub silhouette: Option<f64>,
    /// Passes over the rows, of the best start and of the last refinement.
    pub iterations: u64,
    /// Rows that form tiny clusters of their own. Not given where there are none, and by models of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub tiny: Option<Tiny>,
    /// When it was trained, RFC 3339, UTC.
    pub trained_at: String,
    /// From slice 2 on: rows of the previous slice, by their cluster there (outer) and here (inner). Of entities: those that
    /// both slices have.
    pub moved: Option<Vec<Vec<u64>>>,
    /// Of entities: why they moved. Not given for a segmentation of records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub moved_by: Option<MovedBy>,
    pub clusters: Vec<Cluster>,
    /// Words that differ from the predecessor's for a cluster that continues; empty in models of earlier versions.
    #[serde(default)]
    #[oai(default)]
    pub words_changed: Vec<WordChange>,
    /// The distribution of its rows, with which later rows are compared. Not given by models of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub baseline: Option<Baseline>,
    pub receipt: Receipt,
}

/// The entities that two slices have, in two steps. A missing feature takes the mean of the model in question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
pub struct MovedBy {
    /// By their cluster in the older model: with the features that they had (outer) and with those that they have now (inner).
    pub features: Vec<Vec<u64>>,
    /// With the features that they have now, by their cluster in the older model (outer) and in the newer one (inner).
    pub model: Vec<Vec<u64>>,
}

/// One cluster of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
pub struct Cluster {
    /// Its number, from 0.
    pub cluster: u32,
    /// What its centroid is like, in English.
    pub description: String,
    /// The same by language: `en`, `id`.
    pub descriptions: BTreeMap<String, String>,
    /// Rows in it.
    pub size: u64,
    /// Whether it is unlike the predecessor's cluster of this number: their centroids are not each other's nearest, or k or the
    /// features of the model that served before are others. Not given for a cluster that continues.
    #[serde(default, skip_serializing_if = "is_false")]
    #[oai(default, skip_serializing_if = "is_false")]
    pub new: bool,
    /// Feature to the mean of its rows, in the feature's own units; on a logarithmic scale the mean of the logarithms, converted back.
    #[serde(deserialize_with = "exact::by_name")]
    pub centroid: BTreeMap<String, f64>,
    /// Feature to the quartiles of its rows: a quarter of them is at or below the first, half at or below the second (the
    /// median), three quarters at or below the third. Interpolated linearly between neighbours; missing values count as the
    /// mean, as they were clustered. Exact up to a million rows of the model, otherwise from a fixed sample. Empty for a
    /// cluster without rows and in models of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "exact::lists_by_name")]
    #[oai(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub typical: BTreeMap<String, Vec<f64>>,
    /// Feature to the population standard deviation of its rows, in the feature's own units. Empty as above.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "exact::by_name")]
    #[oai(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub spread: BTreeMap<String, f64>,
    /// The word of each feature by language; a feature that the description leaves out is absent. Empty in models of earlier
    /// versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[oai(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub words: Words,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Model {
    /// Reads a model file with exact numbers.
    pub fn read(path: &Path) -> Result<Self, store::Error> {
        let bytes = fs::read(path).map_err(Kind::Model.unread(path))?;
        Self::parse(&bytes).map_err(|why| Kind::Model.fault(path, store::Reason::Damaged, why))
    }

    /// Parses the content of a model file and checks its consistency.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let model: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        model.sound().map(|()| model).map_err(str::to_owned)
    }

    /// True if a model of this segmentation continues this one: k, features and entity are the same.
    pub fn is_continued_by(&self, segmentation: &Segmentation) -> bool {
        self.is_about(segmentation) && self.k as usize == segmentation.k
    }

    /// True if this model has the features and the entity of a segmentation.
    pub fn is_about(&self, segmentation: &Segmentation) -> bool {
        self.features == segmentation.features && self.entity == segmentation.entity
    }

    /// The scale that standardises rows for this model.
    pub fn scale(&self) -> Scale {
        scaling::scale_of(&self.mean, &self.std, self.scaling.as_deref())
    }

    /// k by features, in original units.
    pub fn centroids(&self) -> Array2<f64> {
        centroids_of(&self.clusters, &self.features, &self.mean)
    }

    /// A predictor for this model.
    pub fn predictor(&self) -> Predictor {
        Predictor::new(self.scale(), &self.centroids())
    }
}

/// k by features, in original units.
fn centroids_of(clusters: &[Cluster], features: &[String], mean: &[f64]) -> Array2<f64> {
    Array2::from_shape_fn((clusters.len(), features.len()), |(cluster, feature)| {
        clusters[cluster].centroid.get(&features[feature]).copied().unwrap_or(mean[feature])
    })
}

/// A model that is ready to be stored in the registry, with its sample.
pub struct Trained {
    pub model: Model,
    /// `_partition`, `_offset` (not of entities), the features in original units, `cluster`, `_imputed` ([`imputed`]). kmeans/sample.rs selects
    /// the rows.
    pub sample: RecordBatch,
    /// Of entities: the rows of the members file.
    pub members: Option<RecordBatch>,
}
