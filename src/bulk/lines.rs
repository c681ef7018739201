//! Serialises predictions as the JSON of the API; the types of api/rows.rs document its fields.

use tercile_store::json_text::push_json_string;

use super::explain::{Explainer, TooFar};
use crate::model::Model;

/// Serialiser for one model. The parts that are equal for all rows are prepared once.
pub struct Lines {
    /// By cluster: the text up to the name of the first feature.
    heads: Vec<String>,
    /// Feature names as JSON, each with its colon and, except for the first, a comma before it.
    names: Vec<String>,
    /// By cluster: the text from the last feature's value to the distance.
    middles: Vec<String>,
    /// The text after the distance, of a row like those of the training and of one unlike them.
    tails: [String; 2],
    /// By cluster: the distance beyond which a row is unlike those of the training. Empty without a baseline.
    limits: Vec<f64>,
}

impl Lines {
    /// Predictions of a model, with descriptions in a language.
    pub fn of(model: &Model, language: &str) -> Self {
        Self::with(&model.features, &model.descriptions(language), Some(model), true)
    }

    /// Predictions of records, whose features do not contain `prediction`, the cluster's number.
    pub fn of_records(model: &Model, language: &str) -> Self {
        Self::with(&model.features, &model.descriptions(language), Some(model), false)
    }

    /// Clusters of the request's own rows.
    pub fn of_request(features: &[String], descriptions: &[impl AsRef<str>]) -> Self {
        Self::with(features, descriptions, None, true)
    }

    fn with(features: &[String], descriptions: &[impl AsRef<str>], model: Option<&Model>, prediction: bool) -> Self {
        let head = |(cluster, description): (usize, &_)| {
            let mut head = format!("{{\"cluster\":{cluster},\"description\":");
            push_json_string(&mut head, AsRef::as_ref(description));
            head + ",\"features\":{"
        };
        let name = |(i, name): (usize, &String)| {
            let mut text = if i == 0 { String::new() } else { ",".to_owned() };
            push_json_string(&mut text, name);
            text + ":"
        };
        let middle = |cluster: usize| match prediction {
            true => format!(",\"prediction\":{cluster}}},\"distance\":"),
            false => "},\"distance\":".to_owned(),
        };
        Self {
            heads: descriptions.iter().enumerate().map(head).collect(),
            names: features.iter().enumerate().map(name).collect(),
            middles: (0..descriptions.len()).map(middle).collect(),
            tails: [false, true].map(|unlike| {
                let Some(Model { slice, version, baseline, .. }) = model else { return String::new() };
                let unlike = baseline.as_ref().map_or_else(String::new, |_| format!(",\"unlike\":{unlike}"));
                format!("{unlike},\"model\":{slice},\"version\":{version}")
            }),
            limits: model.and_then(|model| Some(model.baseline.as_ref()?.limits())).unwrap_or_default(),
        }
    }

    /// Appends the prediction of a row. `other` is a JSON object, or empty for none; `None` leaves the field out.
    ///
    /// # Errors
    /// If the explanation fails because a distance is not finite.
    pub fn push(
        &self,
        out: &mut Vec<u8>,
        values: &[f64],
        (cluster, distance): (usize, f64),
        other: Option<&str>,
        explainer: Option<&Explainer>,
    ) -> Result<(), TooFar> {
        out.extend_from_slice(self.heads[cluster].as_bytes());
        for (name, value) in self.names.iter().zip(values) {
            out.extend_from_slice(name.as_bytes());
            push_number(out, *value);
        }
        out.extend_from_slice(self.middles[cluster].as_bytes());
        push_number(out, distance);
        let unlike = self.limits.get(cluster).is_some_and(|limit| distance > *limit);
        out.extend_from_slice(self.tails[usize::from(unlike)].as_bytes());
        if let Some(other) = other {
            out.extend_from_slice(b",\"other\":");
            out.extend_from_slice(if other.is_empty() { b"{}" } else { other.as_bytes() });
        }
        if let Some(explainer) = explainer {
            out.extend_from_slice(b",\"explanation\":");
            explainer.push(out, values, cluster)?;
        }
        out.push(b'}');
        Ok(())
    }
}

/// Appends a finite number in its shortest representation that round-trips.
pub(super) fn push_number(out: &mut Vec<u8>, value: f64) {
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(out, &value);
}
