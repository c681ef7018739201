//! The result of a training, for each segmentation and slice.

use serde::{Deserialize, Serialize};
use tercile_store::FileFault;

use crate::model::{Candidate, Model};
use crate::slices::all_slices;

/// The result of a training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Training {
    /// Number of records in the stream at the start of this training.
    pub n: u64,
    /// By segmentation, then by slice.
    pub outcomes: Vec<Outcome>,
    /// Why segmentations were refused that an operator has to mend: damaged files of records (one message per column chunk), and SQL
    /// files that are no segmentation.
    #[serde(default)]
    pub incomplete: Vec<String>,
}

/// The result for one slice of one segmentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub segmentation: String,
    pub slice: u8,
    /// The model that serves now, old or new.
    pub model: Option<Model>,
    /// True if this training produced the model.
    pub fresh: bool,
    /// A newer model that waits for an operator's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// The version that served before this training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
    /// The version that serves now; that of `model` unless the slice is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<u64>,
    /// The reason why this training produced no model.
    pub refused: Option<String>,
    /// `refused` without the key of the entity; `None` if it contains no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_without_key: Option<String>,
    pub seconds: Seconds,
}

impl Outcome {
    /// The reason of the refusal for logs and for readers who may not see keys of entities.
    pub fn public_refusal(&self) -> Option<&String> {
        self.refused_without_key.as_ref().or(self.refused.as_ref())
    }
}

/// Durations in seconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading, cleaning and ordering, shared by all slices of a segmentation.
    pub sql: f64,
    /// All work for this slice alone.
    pub train: f64,
}

/// The outcome of all slices for one unusable file: no models.
pub(super) fn refused(segmentation: &str, fault: &FileFault) -> Vec<Outcome> {
    let outcome = |slice| Outcome {
        segmentation: segmentation.to_owned(),
        slice,
        model: None,
        fresh: false,
        candidate: None,
        before: None,
        serving: None,
        refused: Some(format!("{segmentation}: {fault}")),
        refused_without_key: None,
        seconds: Seconds { sql: 0.0, train: 0.0 },
    };
    all_slices().map(outcome).collect()
}
