//! Promotion history: which version of a model served when.
//!
//! `slices.json` contains the serving versions with the time and cause of their promotion. It is replaced atomically.
//! `served.ndjson` keeps earlier states of `slices.json`, one line per change. Lines are only added; the file is replaced, because an
//! object store cannot append. If a process dies between the two writes, the next change adds the missing line.

use serde::{Deserialize, Serialize};
use tercile_store::{Error, Reason, Revision};

use super::{Kind, Model, ModelRegistry, Slices};

/// The cause of a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromotedBy {
    Training,
    Rollback,
    /// An operator promoted a candidate.
    Operator,
}

/// What happened to a version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It began to serve.
    #[default]
    Promoted,
    /// It became a candidate.
    HeldBack,
    /// It was a candidate, and was rejected.
    Rejected,
}

/// A change of a slice: usually the promotion of a version, which serves until the slice's next promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promotion {
    /// Time of the change, RFC 3339, UTC.
    pub at: String,
    pub slice: u8,
    pub version: u64,
    pub by: PromotedBy,
    /// Not given for a promotion.
    #[serde(default, skip_serializing_if = "is_promoted")]
    pub change: Change,
}

fn is_promoted(change: &Change) -> bool {
    *change == Change::Promoted
}

impl Promotion {
    /// Whether the version serves from then on.
    pub fn serves(&self) -> bool {
        is_promoted(&self.change)
    }
}

/// A period during which a version served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Period {
    pub from: String,
    /// `None` if it still serves.
    pub to: Option<String>,
    pub by: PromotedBy,
}

/// The periods of a version in chronological order.
pub fn periods(history: &[Promotion], version: u64) -> Vec<Period> {
    let mut periods = Vec::new();
    for (i, began) in history.iter().enumerate().filter(|(_, began)| began.version == version) {
        let next = history[i + 1..].iter().find(|next| next.slice == began.slice);
        periods.push(Period { from: began.at.clone(), to: next.map(|next| next.at.clone()), by: began.by });
    }
    periods
}

/// The contents of `served.ndjson`.
struct Kept {
    lines: Vec<Promotion>,
    revision: Revision,
    /// True if a damaged file was just moved away.
    set_aside: bool,
}

impl ModelRegistry {
    /// The promotions in chronological order, including the current ones.
    ///
    /// # Errors
    /// [`Error::File`] if one of the two files cannot be used.
    pub fn history(&self) -> Result<Vec<Promotion>, Error> {
        Ok(self.changes()?.into_iter().filter(Promotion::serves).collect())
    }

    /// The promotions, candidates and rejections in chronological order, including the current ones.
    ///
    /// # Errors
    /// [`Error::File`] if one of the two files cannot be used.
    pub fn changes(&self) -> Result<Vec<Promotion>, Error> {
        let (kept, _) = self.kept()?;
        Ok(self.with_now(kept, &self.slices()?))
    }

    /// Promotes these versions in all slices at once, replacing the state that was read; this method fills in time and cause.
    /// The caller holds the training lock. A lock on an object store can be lost: then a conditional put fails if another
    /// process changed the serving versions.
    pub fn serve(&self, slices: &Slices, read: &Revision, by: PromotedBy) -> Result<(), Error> {
        let before = self.slices_before()?;
        self.serve_after(&before, (slices, read), by)
    }

    /// As [`Self::serve`], for a caller that knows the state which it replaces.
    pub fn serve_after(
        &self,
        before: &Slices,
        (slices, read): (&Slices, &Revision),
        by: PromotedBy,
    ) -> Result<(), Error> {
        let Kept { lines, mut revision, set_aside } = self.kept_or_new()?;
        let mut known = lines.len();
        let mut history = self.with_now(lines, before);
        if history.len() > known && !set_aside && before.values().any(|standing| standing.since.is_some()) {
            let (kind, path) = (Kind::History.name(), self.history_file());
            tracing::warn!("{kind} {} did not name what serves, which was added", path.display());
        }
        let now = tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let mut slices = slices.clone();
        for (slice, standing) in &mut slices {
            let was = before.get(slice);
            if standing.version != was.and_then(|was| was.version) {
                (standing.since, standing.by) = (Some(now.clone()), Some(by));
            } else if let Some(was) = was {
                (standing.since, standing.by) = (was.since.clone(), was.by);
            }
        }
        if slices != *before {
            self.replace_slices(&slices, read)?;
        }
        loop {
            history = self.with_now(history, &slices);
            if history.len() == known || self.keep(&history, &revision)? {
                return Ok(());
            }
            // Another process appended lines in the meantime: the new lines follow them.
            (history, revision) = self.kept()?;
            known = history.len();
        }
    }

    /// The lines of `served.ndjson`.
    pub(super) fn kept(&self) -> Result<(Vec<Promotion>, Revision), Error> {
        let path = self.history_file();
        let (bytes, revision) = self.store.place().read_revision(&path).map_err(Kind::History.unread(&path))?;
        let damaged = |why: String| Kind::History.fault(&path, Reason::Damaged, why);
        let text = String::from_utf8(bytes.unwrap_or_default()).map_err(|e| damaged(e.to_string()))?;
        let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        Ok((lines.map_err(|e| damaged(e.to_string()))?, revision))
    }

    /// The same for appending: a damaged file is set aside, and a new file is started.
    fn kept_or_new(&self) -> Result<Kept, Error> {
        match self.kept() {
            Err(Error::File(fault)) if fault.reason == Reason::Damaged => {
                let moved = self.set_aside(&fault)?;
                let (path, kind, why) = (fault.path.display(), fault.kind, &fault.why);
                tracing::warn!(
                    "{kind} {path} is damaged ({why}): it was moved to {}, and begins anew",
                    moved.display()
                );
                let (lines, revision) = self.kept()?;
                Ok(Kept { lines, revision, set_aside: true })
            }
            kept => kept.map(|(lines, revision)| Kept { lines, revision, set_aside: false }),
        }
    }

    /// The state before the change. A missing `slices.json` counts as empty.
    fn slices_before(&self) -> Result<Slices, Error> {
        match self.slices() {
            Err(Error::File(fault)) if fault.reason == Reason::Missing => Ok(Slices::new()),
            read => read,
        }
    }

    fn keep(&self, history: &[Promotion], read: &Revision) -> Result<bool, Error> {
        let path = self.history_file();
        let mut text = String::new();
        for began in history {
            text +=
                &serde_json::to_string(began).map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
            text.push('\n');
        }
        self.replace_if(text.as_bytes(), &path, read)
    }

    /// Appends the current state of each slice if it differs from the slice's last lines. For a store without history, a model
    /// counts as serving since it was trained.
    fn with_now(&self, mut history: Vec<Promotion>, slices: &Slices) -> Vec<Promotion> {
        for (&slice, standing) in slices {
            let last = |history: &[Promotion], change| {
                let of = |one: &&Promotion| one.slice == slice && one.change == change;
                history.iter().rfind(of).map(|one| one.version)
            };
            if let Some(version) = standing.version.filter(|now| last(&history, Change::Promoted) != Some(*now)) {
                let at = match &standing.since {
                    Some(since) => since.clone(),
                    // An unreadable file provides no time.
                    None => self.model(version).map(|model| model.trained_at).unwrap_or_default(),
                };
                let by = standing.by.unwrap_or(PromotedBy::Training);
                history.push(Promotion { at, slice, version, by, change: Change::Promoted });
            }
            if let Some(held) = standing.candidate.as_ref()
                && last(&history, Change::HeldBack) != Some(held.version)
            {
                let (at, version, by) = (held.at.clone(), held.version, PromotedBy::Training);
                history.push(Promotion { at, slice, version, by, change: Change::HeldBack });
            }
            if let Some(rejected) = standing.rejected.as_ref()
                && last(&history, Change::Rejected) != Some(rejected.version)
            {
                let (at, version, by) = (rejected.at.clone(), rejected.version, PromotedBy::Operator);
                history.push(Promotion { at, slice, version, by, change: Change::Rejected });
            }
        }
        history
    }
}

/// The result of a rollback, a pin or an unpin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RolledBack {
    /// The model that serves now.
    pub model: Model,
    /// The version that served before; the same version if nothing changed.
    pub before: Option<u64>,
    /// True if trainings do not replace the version.
    pub pinned: bool,
}

/// The duration of a rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Until a training finds other records or SQL.
    NewModel,
    /// Until it is unpinned, independent of trainings.
    Unpinned,
}

/// The reason why an older version cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("{segmentation} has no version {version}; tercile models {segmentation} lists those it has")]
    NoVersion { segmentation: String, version: u64 },
    #[error("version {version} is by {had}, and what serves is by {now}; rows that are sent now don't fit it")]
    OtherFeatures { version: u64, had: String, now: String },
    #[error("version {version} of {segmentation} is not pinned; tercile models tells which are")]
    NotPinned { segmentation: String, version: u64 },
    #[error("slice {slice} of {segmentation} has no candidate; tercile models candidates lists all")]
    NoCandidate { segmentation: String, slice: u8 },
    #[error(
        "version {version} of {segmentation} is pinned to slice {slice}; unpin it first: tercile models unpin {segmentation} {version}"
    )]
    Pinned { segmentation: String, slice: u8, version: u64 },
}

impl ModelRegistry {
    /// Promotes an older version in its slice. The caller holds the training lock.
    pub fn roll_back(&self, segmentation: &str, version: u64, until: Until) -> Result<RolledBack, RollbackError> {
        let model = self.version(version)?;
        let none = || RollbackError::NoVersion { segmentation: segmentation.to_owned(), version };
        let model = model.ok_or_else(none)?;
        self.check_features(&model)?;
        let (mut slices, read) = self.slices_as_read()?;
        let pinned = until == Until::Unpinned;
        let before = slices.entry(model.slice).or_default().roll_back(version, pinned);
        self.serve(&slices, &read, PromotedBy::Rollback)?;
        Ok(RolledBack { model, before, pinned })
    }

    /// Checks that a model has the features of the model that serves its slice.
    pub(super) fn check_features(&self, model: &Model) -> Result<(), RollbackError> {
        let now = match self.serving(model.slice) {
            // A rollback is the remedy if the serving version cannot be used.
            Err(Error::File(fault)) if fault.kind == Kind::Model.name() => None,
            now => now?,
        };
        match now.filter(|now| now.features != model.features) {
            Some(now) => {
                let (had, now) = (model.features.join(", "), now.features.join(", "));
                Err(RollbackError::OtherFeatures { version: model.version, had, now })
            }
            None => Ok(()),
        }
    }

    /// Ends a pin: the newest model of the slice is promoted if it has the features of the pinned model, which clients send, and is
    /// neither a candidate nor rejected. The caller holds the training lock.
    pub fn unpin(&self, segmentation: &str, version: u64) -> Result<RolledBack, RollbackError> {
        let (mut slices, read) = self.slices_as_read()?;
        let of = slices.iter_mut().find(|(_, standing)| standing.pinned && standing.version == Some(version));
        let Some((&slice, standing)) = of else {
            let segmentation = segmentation.to_owned();
            return Err(match self.version(version)? {
                None => RollbackError::NoVersion { segmentation, version },
                Some(_) => RollbackError::NotPinned { segmentation, version },
            });
        };
        // An unusable pinned version can be unpinned too, but then it needs a successor.
        let pinned = self.model_of(version, slice);
        let mut skipped = |fault| tracing::warn!("{fault}");
        let held =
            [standing.candidate.as_ref().map(|held| held.version), standing.rejected.as_ref().map(|no| no.version)];
        let newest = self.versions_for(&Slices::new())?.newest(slice, Some(version), &mut skipped)?;
        let newest = newest.filter(|newest| !held.contains(&Some(newest.version)));
        let model = match (pinned, newest) {
            (Ok(pinned), newest) => newest.filter(|newest| newest.features == pinned.features).unwrap_or(pinned),
            (Err(Error::File(_)), Some(newest)) => newest,
            (Err(error), _) => return Err(error.into()),
        };
        standing.pinned = false;
        standing.version = Some(model.version);
        self.serve(&slices, &read, PromotedBy::Training)?;
        Ok(RolledBack { model, before: Some(version), pinned: false })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tercile_store::Store;

    use super::super::ServingState;
    use super::*;

    fn began(at: &str, slice: u8, version: u64) -> Promotion {
        Promotion { at: at.to_owned(), slice, version, by: PromotedBy::Training, change: Change::Promoted }
    }

    #[test]
    fn a_version_serves_until_the_next_one_of_its_slice() {
        let history = [began("1", 1, 1), began("1", 2, 2), began("3", 1, 4), began("5", 1, 1)];
        let spans = |version| -> Vec<(String, Option<String>)> {
            periods(&history, version).into_iter().map(|period| (period.from, period.to)).collect()
        };
        assert_eq!(spans(1), [("1".into(), Some("3".into())), ("5".into(), None)]);
        assert_eq!(spans(2), [("1".into(), None)]);
        assert_eq!(spans(4), [("3".into(), Some("5".into()))]);
    }

    #[test]
    fn every_change_is_kept_and_a_line_that_is_missing_is_added() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let registry = ModelRegistry::new(&store, "a");
        let serve = |version, by| {
            let standing = ServingState { version: Some(version), ..ServingState::default() };
            registry.serve(&Slices::from([(1, standing)]), &Revision::default(), by).unwrap();
        };
        let versions =
            || -> Vec<(u64, PromotedBy)> { registry.history().unwrap().iter().map(|b| (b.version, b.by)).collect() };
        serve(1, PromotedBy::Training);
        serve(1, PromotedBy::Training);
        serve(4, PromotedBy::Training);
        let file = dir.path().join("models/a/served.ndjson");
        let two = fs::read_to_string(&file).unwrap();
        assert_eq!(two.lines().count(), 2);
        serve(1, PromotedBy::Rollback);
        serve(1, PromotedBy::Training);
        let all = [(1, PromotedBy::Training), (4, PromotedBy::Training), (1, PromotedBy::Rollback)];
        assert_eq!(versions(), all);
        let since = registry.slices().unwrap()[&1].since.clone().unwrap();
        // Simulates a process that died between the two writes.
        fs::write(&file, two).unwrap();
        assert_eq!((versions(), registry.history().unwrap()[2].at.clone()), (all.to_vec(), since));
        serve(7, PromotedBy::Training);
        assert_eq!(versions()[2..], [(1, PromotedBy::Rollback), (7, PromotedBy::Training)]);
        assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 4);
    }
}
