//! How the features of a model are scaled, as in its file.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};
use tercile_kmeans::features::Scale;
use tercile_kmeans::features::scaling::{Measured, Scaling};

use super::exact;
use crate::scaling::{ScaleMethod, words};

/// How one feature is scaled: the scaled value of x is weight · (t(x) - center) / spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Object)]
#[oai(rename = "FeatureScale")]
pub struct FeatureScale {
    pub scale: ScaleMethod,
    #[serde(deserialize_with = "exact::one")]
    pub weight: f64,
    /// Mean, mean of the logarithms, median, or 0.
    #[serde(deserialize_with = "exact::one")]
    pub center: f64,
    /// Population standard deviation, that of the logarithms, interquartile range, or 1. 0 for a constant feature, which is divided by 1.
    #[serde(deserialize_with = "exact::one")]
    pub spread: f64,
}

impl FeatureScale {
    fn scaling(&self) -> Option<Scaling> {
        Scaling::new(self.scale.into(), self.weight)
    }
}

/// The field of a model with this scale: `None` if all features are scaled by mean and standard deviation.
pub fn of(scale: &Scale) -> Option<Vec<FeatureScale>> {
    let one = |of: &Measured| FeatureScale {
        scale: of.scaling.method().into(),
        weight: of.scaling.weight(),
        center: of.center,
        spread: of.spread,
    };
    scale.is_special().then(|| scale.measured.iter().map(one).collect())
}

/// The scale of a model.
pub fn scale_of(mean: &[f64], std: &[f64], scaling: Option<&[FeatureScale]>) -> Scale {
    let (mean, std) = (mean.to_vec(), std.to_vec());
    let Some(scaling) = scaling else { return Scale::new(mean, std) };
    let one = |of: &FeatureScale| Measured {
        scaling: of.scaling().unwrap_or_default(),
        center: of.center,
        spread: of.spread,
    };
    let measured = scaling.iter().map(one).collect();
    Scale::scaled(mean, std, measured)
}

/// True if the field fits a model with these means and standard deviations.
pub fn is_sound(scaling: Option<&[FeatureScale]>, (mean, std): (&[f64], &[f64])) -> bool {
    let Some(scaling) = scaling else { return true };
    let fits = |of: &FeatureScale| of.scaling().is_some() && of.center.is_finite() && of.spread >= 0.0;
    if scaling.len() != mean.len() || scaling.len() != std.len() || !scaling.iter().all(fits) {
        return false;
    }
    let scale = scale_of(mean, std, Some(scaling));
    scale.inverse.iter().chain(&scale.origin).all(|value| value.is_finite())
        && (0..mean.len()).all(|feature| scale.standardise(feature, mean[feature]).is_finite())
}

/// The features that are not scaled by mean and standard deviation, in words: `rating_count log, weight 2`.
pub fn in_words(features: &[String], scaling: Option<&[FeatureScale]>) -> Option<String> {
    let one = |(feature, of): (&String, &FeatureScale)| Some(format!("{feature} {}", words(of.scaling()?)?));
    let all: Vec<String> = features.iter().zip(scaling?).filter_map(one).collect();
    (!all.is_empty()).then(|| all.join("; "))
}
