//! The files below `models/`: their kinds, the errors for unusable files, and a check of all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tercile_store::{Error, FileFault, Input, Reason, Store, check_file, parallel};

use super::{Model, ModelRegistry};
use crate::slices::all_slices;

/// A kind of file below `models/<segmentation>/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `<version>.json`
    Model,
    /// `<version>.sample.parquet`
    Sample,
    /// `<version>.members.parquet`
    Members,
    /// `slices.json`
    Slices,
    /// `served.ndjson`
    History,
    /// `published.json`
    Published,
    /// The directory `models/<segmentation>`.
    Directory,
}

impl Kind {
    /// The name used in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "the model file",
            Self::Sample => "the sample",
            Self::Members => "the file of members",
            Self::Slices => "the list of serving versions",
            Self::History => "the list of when versions served",
            Self::Published => "the list of what was sent to topics",
            Self::Directory => "the directory of models",
        }
    }

    /// The remedy for an unusable file.
    fn advice(self, reason: Reason) -> &'static str {
        match (self, reason) {
            (Self::Directory, _) => "move away what is in its place, or let this user read it, and run tercile train",
            (_, Reason::Unreadable) => "let this user read it",
            (Self::Model, Reason::Misnamed) => {
                "move it back to its name or bring the right file back from a copy, or run tercile train, which makes a new version"
            }
            (Self::Model, _) => {
                "bring it back from a copy, or run tercile train, which makes a new version, or let an older one serve: tercile models rollback --help tells how"
            }
            (Self::Sample, _) => {
                "predictions do not need it; bring it back from a copy, or run tercile train, which makes a new version with its own"
            }
            (Self::Members, _) => {
                "predictions do not need it; bring it back from a copy, or run tercile train, which makes a new version with its own"
            }
            (Self::Slices, _) => {
                "bring it back from a copy, or run tercile train, which makes it again from served.ndjson and the model files"
            }
            (Self::History, _) => {
                "predictions do not need it; bring it back from a copy, or run tercile train, which begins a new one"
            }
            (Self::Published, _) => {
                "bring it back from a copy, or move it away: tercile members NAME --to TOPIC then sends all members"
            }
        }
    }

    /// The error for an unusable file of this kind.
    pub fn fault(self, path: &Path, reason: Reason, why: impl Into<String>) -> Error {
        Error::File(Box::new(FileFault {
            path: path.to_owned(),
            kind: self.name(),
            reason,
            why: why.into(),
            advice: self.advice(reason),
        }))
    }

    /// Compares every byte of an open file of this kind with its checksums, if there are any.
    ///
    /// # Errors
    /// [`Error::File`] if the file is damaged or cannot be read.
    pub(super) fn verify(self, path: &Path, file: &Input) -> Result<(), Error> {
        match check_file(path, file) {
            Ok(_) => Ok(()),
            Err(Error::Damaged { why, .. }) => Err(self.fault(path, Reason::Damaged, why)),
            Err(Error::Io { source, .. }) => Err(self.unread(path)(source)),
            Err(error) => Err(error),
        }
    }

    /// The error for a file of this kind that could not be read.
    pub fn unread(self, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |error| self.fault(&path, FileFault::reason_of(&error), error.to_string())
    }
}

/// Segmentations of an object store that are checked concurrently.
const AT_ONCE: usize = 16;

/// The remedy for a file of a version that does not serve.
const NOT_SERVING: &str = "this version does not serve; bring the file back from a copy, for rollback, as_of and verify of this version need it";

/// All faults of a store's model files, sorted by path. `deep` reads every file of members and compares it with its checksums.
///
/// # Errors
/// If the store cannot be listed.
pub fn faults(store: &Store, deep: bool) -> Result<Vec<FileFault>, Error> {
    // On an object store side by side, where each file costs a request.
    let threads = if store.place().is_disk() { 1 } else { AT_ONCE };
    let found = parallel::each(&store.segmentations()?, threads, |segmentation| {
        let mut found = BTreeMap::new();
        check(&ModelRegistry::new(store, segmentation), deep, &mut found).map(|()| found)
    });
    Ok(found?.into_iter().flat_map(BTreeMap::into_values).collect())
}

/// Checks the file of a model's members. Those of a version that neither serves nor was last sent to a topic may have been
/// deleted.
fn members(registry: &ModelRegistry, model: &Model, is_kept: bool) -> Result<(), Error> {
    if model.entity.is_empty() || registry.members(model)?.is_some() || !is_kept {
        return Ok(());
    }
    Err(Kind::Members.fault(&registry.members_file(model.version), Reason::Missing, ""))
}

fn check(registry: &ModelRegistry, deep: bool, found: &mut BTreeMap<PathBuf, FileFault>) -> Result<(), Error> {
    let mut keep = |error: Error| match error {
        Error::File(fault) => {
            found.entry(fault.path.clone()).or_insert(*fault);
            Ok(())
        }
        other => Err(other),
    };
    let listed = match registry.listed() {
        Ok(listed) => listed,
        Err(error) => return keep(error),
    };
    let slices = match registry.slices() {
        Ok(slices) => slices,
        Err(error) => {
            keep(error)?;
            Default::default()
        }
    };
    for slice in all_slices() {
        if let Some(version) = slices.get(&slice).and_then(|standing| standing.version)
            && let Err(error) = registry.model_of(version, slice)
        {
            keep(error)?;
        }
    }
    let served = match registry.kept() {
        Ok((history, _)) => {
            let told = |slice: u8, version: u64| history.iter().any(|one| (one.slice, one.version) == (slice, version));
            // Older stores do not record since when a version serves.
            let dated = slices.iter().filter(|(_, standing)| standing.since.is_some());
            let untold = dated.filter_map(|(slice, standing)| Some((*slice, standing.version?)));
            if let Some((_, version)) = untold.into_iter().find(|&(slice, version)| !told(slice, version)) {
                let path = registry.history_file();
                let reason = if history.is_empty() && !path.exists() { Reason::Missing } else { Reason::Damaged };
                keep(Kind::History.fault(&path, reason, format!("it does not name version {version}, which serves")))?;
            }
            history.iter().map(|began| began.version).collect()
        }
        Err(error) => {
            keep(error)?;
            Vec::new()
        }
    };
    let serving: Vec<u64> = slices.values().filter_map(|standing| standing.version).collect();
    let sent = match registry.published() {
        Ok((published, _)) => published.versions(),
        Err(error) => {
            keep(error)?;
            Vec::new()
        }
    };
    let versions: BTreeSet<u64> = listed.into_iter().chain(served).collect();
    for version in versions {
        let sample = match registry.model(version) {
            Ok(model) => {
                let is_kept = serving.contains(&version) || sent.contains(&version);
                members(registry, &model, is_kept).or_else(&mut keep)?;
                if deep && !model.entity.is_empty() {
                    registry.check_members(&model).or_else(&mut keep)?;
                }
                registry.sample_of(&model).map(drop)
            }
            Err(error) => Err(error),
        };
        let sample = sample.map_err(|error| match error {
            Error::File(fault) if !serving.contains(&version) && fault.reason != Reason::Unreadable => {
                Error::File(Box::new(FileFault { advice: NOT_SERVING, ..*fault }))
            }
            error => error,
        });
        sample.or_else(&mut keep)?;
    }
    Ok(())
}
