//! What the API answers for one row, as JSON. What it looks like from outside is documented by the types of api/rows.rs.

use tercile_store::record::push_json_string;

use super::explain::{Explainer, TooFar};

/// Writes answers of one model: all that is the same from row to row is written once.
pub struct Lines {
    /// By cluster: all up to the first feature's name.
    heads: Vec<String>,
    /// The features' names, as JSON, each with its colon.
    names: Vec<String>,
    /// By cluster: from the last feature's value to the distance.
    middles: Vec<String>,
    /// After the distance.
    tail: String,
}

impl Lines {
    /// `model` is a slice and a version, or none where the rows themselves were clustered.
    pub fn new(features: &[String], descriptions: &[impl AsRef<str>], model: Option<(u8, u64)>) -> Self {
        let head = |(cluster, description): (usize, &_)| {
            let mut head = format!("{{\"cluster\":{cluster},\"description\":");
            push_json_string(&mut head, AsRef::as_ref(description));
            head + ",\"features\":{"
        };
        let name = |name: &String| {
            let mut text = String::new();
            push_json_string(&mut text, name);
            text + ":"
        };
        let middle = |cluster: usize| format!("\"prediction\":{cluster}}},\"distance\":");
        Self {
            heads: descriptions.iter().enumerate().map(head).collect(),
            names: features.iter().map(name).collect(),
            middles: (0..descriptions.len()).map(middle).collect(),
            tail: model
                .map_or_else(String::new, |(slice, version)| format!(",\"model\":{slice},\"version\":{version}")),
        }
    }

    /// Appends the answer for a row. `other` is an object, or empty where there is nothing else; `None` leaves it out.
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
            out.push(b',');
        }
        out.extend_from_slice(self.middles[cluster].as_bytes());
        push_number(out, distance);
        out.extend_from_slice(self.tail.as_bytes());
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

/// A finite number, in the fewest digits that give it back.
pub(super) fn push_number(out: &mut Vec<u8>, value: f64) {
    // Writing to memory can't fail.
    let _ = serde_json::to_writer(out, &value);
}
