//! A model in a file of its own, as `tercile fit --model` and `tercile model show --format json` write it.

use std::path::Path;

use serde::Deserialize;

use super::scaling::{self, FeatureScale};
use super::{Cluster, NoLanguage, Predictor, centroids_of, exact};

/// What a prediction needs of a model. Other fields of the file are not read.
#[derive(Debug, Clone, Deserialize)]
pub struct FittedModel {
    pub features: Vec<String>,
    #[serde(deserialize_with = "exact::list")]
    pub mean: Vec<f64>,
    #[serde(deserialize_with = "exact::list")]
    pub std: Vec<f64>,
    #[serde(default)]
    pub scaling: Option<Vec<FeatureScale>>,
    pub clusters: Vec<Cluster>,
}

impl FittedModel {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is no such file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
        let model: Self = serde_json::from_slice(&text).map_err(|e| {
            format!("{shown} is no model, as tercile fit --model FILE or tercile model show NAME --format json write it: {e}")
        })?;
        let complete = model.mean.len() == model.features.len()
            && model.std.len() == model.features.len()
            && !model.features.is_empty()
            && scaling::is_sound(model.scaling.as_deref(), (&model.mean, &model.std))
            && !model.clusters.is_empty()
            && model.clusters.iter().zip(0..).all(|(cluster, number)| {
                cluster.cluster == number && model.features.iter().all(|name| cluster.centroid.contains_key(name))
            });
        if complete {
            Ok(model)
        } else {
            Err(format!("{shown} is no complete model: a feature or a cluster is missing"))
        }
    }

    /// Checks that all clusters have descriptions in a language.
    pub fn check_language(&self, path: &Path, language: &str) -> Result<(), NoLanguage> {
        if language == "en" || self.clusters.iter().all(|cluster| cluster.descriptions.contains_key(language)) {
            return Ok(());
        }
        let mut has: Vec<String> =
            self.clusters.iter().flat_map(|cluster| cluster.descriptions.keys().cloned()).collect();
        has.sort();
        has.dedup();
        Err(NoLanguage { model: path.display().to_string(), language: language.to_owned(), has: has.join(", ") })
    }

    pub fn predictor(&self) -> Predictor {
        let scale = scaling::scale_of(&self.mean, &self.std, self.scaling.as_deref());
        Predictor::new(scale, &centroids_of(&self.clusters, &self.features, &self.mean))
    }
}
