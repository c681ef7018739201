//! Candidates: models that a training made and that do not serve until an operator promotes them.
//!
//! Input: the decisions of trainings (`train/promotion.rs`) and of operators. Output: `slices.json`, in which a slice has at most one
//! candidate, and lines of `served.ndjson`.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};

use super::history::{RollbackError, RolledBack};
use super::{ModelRegistry, PromotedBy, ServingState};
use crate::sql::guard::Rule;

/// Which new models a training lets serve.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Promote {
    /// Every new model serves.
    #[default]
    Auto,
    /// A new model serves if it keeps the guard rules of its segmentation; otherwise it is a candidate.
    Guarded,
    /// A new model is a candidate until tercile models promote.
    Manual,
}

/// A guard rule that a candidate violates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
#[oai(rename = "GuardViolation")]
pub struct Violation {
    pub rule: Rule,
    /// The figure of the candidate, as a share; null where it cannot be determined.
    pub value: Option<f64>,
    /// The limit, as a share.
    pub limit: f64,
    /// Both in a sentence in English.
    pub words: String,
}

/// A model that waits for an operator's decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub version: u64,
    /// When it was held back, RFC 3339, UTC.
    pub at: String,
    /// The rules that it violates.
    pub violated: Vec<Violation>,
    /// Why it does not serve, in a sentence in English.
    pub reason: String,
}

/// A candidate that an operator rejected. A training of the same records and SQL does not make it a candidate again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    pub version: u64,
    /// RFC 3339, UTC.
    pub at: String,
    /// The rules that it violated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violated: Vec<Violation>,
}

/// The rejected candidate of a slice, and what serves instead.
#[derive(Debug, Clone, PartialEq, Serialize, Object)]
#[oai(rename = "RejectedCandidate")]
pub struct Rejected {
    pub segmentation: String,
    pub slice: u8,
    /// The version that was rejected.
    pub rejected: u64,
    /// The version that serves; null if there is none.
    pub version: Option<u64>,
    /// Whether it serves whatever trainings find, until it is unpinned.
    pub pinned: bool,
}

impl ServingState {
    /// Lets a version serve: the slice has no candidate then.
    pub fn promote(&mut self, version: u64) {
        self.version = Some(version);
        self.candidate = None;
        self.rejected = None;
    }

    /// Lets an older version serve, and returns the one that served. Another candidate goes on waiting.
    pub fn roll_back(&mut self, version: u64, pinned: bool) -> Option<u64> {
        self.pinned = pinned;
        self.candidate.take_if(|candidate| candidate.version == version);
        self.rejected.take_if(|rejected| rejected.version == version);
        self.version.replace(version)
    }

    /// Lets a version wait. A version that waits already keeps the time since when it does.
    pub fn hold_back(&mut self, version: u64, violated: Vec<Violation>, reason: String) {
        let known = self.candidate.take().filter(|known| known.version == version);
        let at = known.map_or_else(now, |known| known.at);
        self.candidate = Some(Candidate { version, at, violated, reason });
    }
}

fn now() -> String {
    tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

impl ModelRegistry {
    /// Promotes the candidate of a slice. The caller holds the training lock.
    ///
    /// # Errors
    /// If there is no candidate, if its file cannot be used, if it has other features than what serves, or if the slice is pinned.
    pub fn promote(&self, segmentation: &str, slice: u8) -> Result<RolledBack, RollbackError> {
        let (mut slices, read) = self.slices_as_read()?;
        let none = || RollbackError::NoCandidate { segmentation: segmentation.to_owned(), slice };
        let standing = slices.get_mut(&slice).ok_or_else(none)?;
        let version = standing.candidate.as_ref().ok_or_else(none)?.version;
        if let (true, Some(pinned)) = (standing.pinned, standing.version) {
            return Err(RollbackError::Pinned { segmentation: segmentation.to_owned(), slice, version: pinned });
        }
        let model = self.model_of(version, slice)?;
        self.check_features(&model)?;
        let before = standing.version;
        standing.promote(version);
        self.serve(&slices, &read, PromotedBy::Operator)?;
        Ok(RolledBack { model, before, pinned: false })
    }

    /// Rejects the candidate of a slice; the version that serves keeps serving. The model's file is kept. The caller holds the training lock.
    ///
    /// # Errors
    /// If there is no candidate.
    pub fn reject(&self, segmentation: &str, slice: u8) -> Result<Rejected, RollbackError> {
        let (mut slices, read) = self.slices_as_read()?;
        let none = || RollbackError::NoCandidate { segmentation: segmentation.to_owned(), slice };
        let standing = slices.get_mut(&slice).ok_or_else(none)?;
        let candidate = standing.candidate.take().ok_or_else(none)?;
        let rejected = candidate.version;
        standing.rejected = Some(Rejection { version: rejected, at: now(), violated: candidate.violated });
        let (version, pinned) = (standing.version, standing.pinned);
        self.serve(&slices, &read, PromotedBy::Operator)?;
        let segmentation = segmentation.to_owned();
        Ok(Rejected { segmentation, slice, rejected, version, pinned })
    }
}

#[cfg(test)]
mod tests {
    use tercile_store::{Revision, Store};

    use super::super::Slices;
    use super::super::history::Change;
    use super::*;

    #[test]
    fn candidates_and_rejections_are_in_the_history_and_serve_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let registry = ModelRegistry::new(&Store::open(dir.path()).unwrap(), "a");
        let mut standing = ServingState::default();
        standing.promote(1);
        let serve = |standing: &ServingState| {
            let read = registry.slices_as_read().map_or_else(|_| Revision::default(), |(_, read)| read);
            registry.serve(&Slices::from([(3, standing.clone())]), &read, PromotedBy::Training).unwrap();
            registry.slices().unwrap()[&3].clone()
        };
        standing = serve(&standing);
        standing.hold_back(2, Vec::new(), "by hand".to_owned());
        standing = serve(&standing);
        let at = standing.candidate.clone().unwrap().at;
        // The same candidate again is not another change.
        standing.hold_back(2, Vec::new(), "by hand".to_owned());
        assert_eq!(serve(&standing).candidate.unwrap().at, at);
        let rejected = registry.reject("a", 3).unwrap();
        assert_eq!((rejected.rejected, rejected.version), (2, Some(1)));
        assert!(matches!(registry.reject("a", 3), Err(RollbackError::NoCandidate { slice: 3, .. })));
        assert!(matches!(registry.promote("a", 2), Err(RollbackError::NoCandidate { slice: 2, .. })));
        let changes: Vec<_> = registry.changes().unwrap().iter().map(|one| (one.version, one.change)).collect();
        assert_eq!(changes, [(1, Change::Promoted), (2, Change::HeldBack), (2, Change::Rejected)]);
        let promotions: Vec<_> = registry.history().unwrap().iter().map(|one| one.version).collect();
        assert_eq!(promotions, [1]);
        // A version that waited keeps its number.
        assert_eq!(registry.last_version().unwrap(), 2);
    }

    #[test]
    fn a_rollback_to_the_candidate_ends_its_waiting_and_no_others() {
        let mut standing = ServingState::default();
        standing.promote(1);
        standing.hold_back(3, Vec::new(), "by hand".to_owned());
        assert_eq!(standing.roll_back(2, true), Some(1));
        assert_eq!(standing.candidate.as_ref().map(|candidate| candidate.version), Some(3));
        assert_eq!(standing.roll_back(3, false), Some(2));
        assert_eq!((standing.version, standing.pinned, standing.candidate), (Some(3), false, None));
    }
}
