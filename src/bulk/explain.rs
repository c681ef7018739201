//! Explanation of a prediction: the distances to all clusters, each feature's share of the distance, and the predictions of the
//! other slices.
//!
//! Input: a row and the models of all slices. Output: JSON; api/rows.rs documents its fields.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use crate::model::{Model, Predictor};

/// Writes explanations for the predictions of one model.
pub struct Explainer {
    features: Vec<String>,
    predictor: Predictor,
    opinions: Vec<Opinion>,
}

/// Prediction source of one slice.
pub struct Opinion {
    slice: u8,
    /// Version, predictor and descriptions of the slice's model, or the reason why there is none.
    model: Result<(u64, Predictor, Vec<String>), String>,
}

impl Opinion {
    pub fn of(model: &Model, language: &str) -> Self {
        let words = model.descriptions(language).into_iter().map(str::to_owned).collect();
        Self { slice: model.slice, model: Ok((model.version, model.predictor(), words)) }
    }

    pub fn missing(slice: u8, why: String) -> Self {
        Self { slice, model: Err(why) }
    }
}

/// A row has no nearest cluster.
#[derive(Debug, Clone, Copy)]
pub struct TooFar {
    /// The feature in which it is farthest from the clusters, or that has no logarithm.
    pub feature: usize,
    pub why: &'static str,
}

impl TooFar {
    pub fn of(predictor: &Predictor, values: &[f64]) -> Self {
        let feature = predictor.farthest(values);
        let why = match predictor.has_place(feature, values[feature]) {
            // At 2^52 standard deviations and beyond, doubles cannot distinguish the distances.
            true => "is too far from every cluster to tell them apart",
            false => "is on a logarithmic scale and must be above -1",
        };
        Self { feature, why }
    }
}

#[derive(Serialize)]
struct Explanation<'a> {
    distances: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runner_up: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f64>,
    shares: Shares<'a>,
    slices: Vec<Said<'a>>,
}

#[derive(Serialize)]
struct Said<'a> {
    slice: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    distance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<&'a str>,
}

/// Share of each feature in the squared distance.
struct Shares<'a> {
    features: &'a [String],
    squares: Vec<f64>,
}

impl Serialize for Shares<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sum: f64 = self.squares.iter().sum();
        let mut map = serializer.serialize_map(Some(self.features.len()))?;
        for (feature, square) in self.features.iter().zip(&self.squares) {
            // At the centroid all squares are 0, and so are the shares.
            map.serialize_entry(feature, &if sum > 0.0 { square / sum } else { 0.0 })?;
        }
        map.end()
    }
}

impl Explainer {
    pub fn new(features: &[String], predictor: &Predictor, opinions: Vec<Opinion>) -> Self {
        Self { features: features.to_vec(), predictor: predictor.clone(), opinions }
    }

    /// Appends the explanation of a row that was assigned to `cluster`.
    ///
    /// # Errors
    /// If a distance is not finite.
    pub fn push(&self, out: &mut Vec<u8>, values: &[f64], cluster: usize) -> Result<(), TooFar> {
        let squares = self.predictor.squares(values);
        let distances: Vec<f64> = squares.rows().into_iter().map(|row| row.iter().sum::<f64>().sqrt()).collect();
        if distances.iter().any(|&distance| !self.predictor.tells(distance)) {
            return Err(TooFar::of(&self.predictor, values));
        }
        let others = (0..distances.len()).filter(|&other| other != cluster);
        let runner_up = others.min_by(|&a, &b| distances[a].total_cmp(&distances[b]));
        let explanation = Explanation {
            runner_up,
            margin: runner_up.map(|other| distances[other] - distances[cluster]),
            shares: Shares { features: &self.features, squares: squares.row(cluster).to_vec() },
            slices: self.opinions.iter().map(|opinion| opinion.of_row(values)).collect::<Result<_, _>>()?,
            distances,
        };
        // Serialising finite numbers to memory cannot fail.
        let _ = serde_json::to_writer(out, &explanation);
        Ok(())
    }
}

impl Opinion {
    fn of_row(&self, values: &[f64]) -> Result<Said<'_>, TooFar> {
        let none =
            Said { slice: self.slice, version: None, cluster: None, description: None, distance: None, missing: None };
        match &self.model {
            Err(why) => Ok(Said { missing: Some(why), ..none }),
            Ok((version, predictor, words)) => {
                let (cluster, distance) = predictor.predict(&mut values.to_vec());
                if !predictor.tells(distance) {
                    return Err(TooFar::of(predictor, values));
                }
                let description = words.get(cluster).map(String::as_str);
                let (version, cluster, distance) = (Some(*version), Some(cluster), Some(distance));
                Ok(Said { version, cluster, description, distance, ..none })
            }
        }
    }
}
