//! The model registry: immutable files `models/<segmentation>/<version>.json`, and `slices.json` with the serving versions.
//! `history.rs` records when each version served.

mod rebuild;
mod samples;
mod versions;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tercile_store::{Error, FileFault, Reason, Revision, Store};
pub use versions::Versions;

use super::candidate::{Candidate, Rejection};
use super::{Kind, Model, PromotedBy, Trained, members};

/// The serving state of one slice of a segmentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServingState {
    /// The serving version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Time of the promotion, RFC 3339, UTC; absent in older stores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Cause of the promotion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PromotedBy>,
    /// True if trainings do not replace the version.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// A newer version that waits for an operator's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// The last candidate that was rejected, until a training or an operator lets a newer version serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejection>,
    /// The reason why the last training produced no model; an older version may still serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The same without the key of an entity; absent if `refused` contains none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_without_key: Option<String>,
}

impl ServingState {
    /// The reason of the refusal for readers who may not see keys of entities.
    pub fn public_refusal(&self) -> Option<&String> {
        self.refused_without_key.as_ref().or(self.refused.as_ref())
    }
}

/// The content of `slices.json`, by slice.
pub type Slices = BTreeMap<u8, ServingState>;

/// The models of one segmentation.
#[derive(Clone)]
pub struct ModelRegistry {
    pub(super) store: Store,
    pub(super) dir: PathBuf,
    name: String,
    /// The version that this registry wrote last; 0 before the first one.
    written: Arc<AtomicU64>,
}

impl ModelRegistry {
    /// The registry of a segmentation. The name is derived from an SQL file name: a-z, 0-9 and `_`.
    pub fn new(store: &Store, segmentation: &str) -> Self {
        Self {
            store: store.clone(),
            dir: store.models().join(segmentation),
            name: segmentation.to_owned(),
            written: Arc::default(),
        }
    }

    /// The serving state of each slice; empty before the first training.
    ///
    /// # Errors
    /// [`Error::File`] if `slices.json` cannot be used.
    pub fn slices(&self) -> Result<Slices, Error> {
        Ok(self.slices_as_read()?.0)
    }

    /// The same with the revision that a later replacement must match.
    pub fn slices_as_read(&self) -> Result<(Slices, Revision), Error> {
        let path = self.slices_file();
        let (bytes, revision) = self.store.place().read_revision(&path).map_err(Kind::Slices.unread(&path))?;
        let Some(bytes) = bytes else {
            // A segmentation that never served has neither file.
            let served = self.store.place().read_revision(&self.history_file());
            if served.is_ok_and(|(served, _)| served.is_some()) {
                return Err(Kind::Slices.fault(&path, Reason::Missing, ""));
            }
            return Ok((Slices::new(), revision));
        };
        let slices = serde_json::from_slice(&bytes);
        Ok((slices.map_err(|e| Kind::Slices.fault(&path, Reason::Damaged, e.to_string()))?, revision))
    }

    /// Moves a damaged file away, so that a new file can take its name.
    ///
    /// # Errors
    /// The fault itself if the file cannot be moved. The fault then concerns only this segmentation.
    pub(super) fn set_aside(&self, fault: &FileFault) -> Result<PathBuf, Error> {
        self.store.set_aside(&fault.path).map_err(|error| {
            let why = format!("{}, and it cannot be moved away: {error}", fault.why);
            Error::File(Box::new(FileFault { why, ..fault.clone() }))
        })
    }

    fn slices_file(&self) -> PathBuf {
        self.dir.join("slices.json")
    }

    /// Bytes that change with each promotion; `None` before the first training.
    pub fn stamp(&self) -> Option<Vec<u8>> {
        self.store.place().stamp(&self.slices_file()).ok()
    }

    /// Replaces the state that was read. Fails if another process replaced it.
    pub(super) fn replace_slices(&self, slices: &Slices, read: &Revision) -> Result<(), Error> {
        let path = self.slices_file();
        let mut json = serde_json::to_string_pretty(slices)
            .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
        json.push('\n');
        let replaced = self.replace_if(json.as_bytes(), &path, read)?;
        if !replaced {
            return Err(Error::Changed { path });
        }
        self.store.note_change();
        Ok(())
    }

    pub(super) fn history_file(&self) -> PathBuf {
        self.dir.join("served.ndjson")
    }

    pub(super) fn replace_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.make_dir()?;
        self.store.replace_if(bytes, path, read)
    }

    /// The path of a version's file.
    fn model_file(&self, version: u64) -> PathBuf {
        self.dir.join(format!("{version}.json"))
    }

    /// A version.
    ///
    /// # Errors
    /// [`Error::File`] if its file is missing, damaged, unreadable, or belongs to another version or segmentation.
    pub fn model(&self, version: u64) -> Result<Model, Error> {
        let path = self.model_file(version);
        let bytes = self.store.read(&path).map_err(Kind::Model.unread(&path))?;
        let model = Model::parse(&bytes).map_err(|why| Kind::Model.fault(&path, Reason::Damaged, why))?;
        if (model.segmentation.as_str(), model.version) == (self.name.as_str(), version) {
            return Ok(model);
        }
        let why = format!("it holds version {} of {}", model.version, model.segmentation);
        Err(Kind::Model.fault(&path, Reason::Misnamed, why))
    }

    /// A version that serves a slice. It must belong to that slice.
    ///
    /// # Errors
    /// Same as [`ModelRegistry::model`].
    pub fn model_of(&self, version: u64, slice: u8) -> Result<Model, Error> {
        let model = self.model(version)?;
        if model.slice == slice {
            return Ok(model);
        }
        let why = format!("it holds a model of slice {}, and slices.json lets it serve slice {slice}", model.slice);
        Err(Kind::Model.fault(&self.model_file(version), Reason::Misnamed, why))
    }

    /// A version, if it exists.
    pub fn version(&self, version: u64) -> Result<Option<Model>, Error> {
        match self.model(version) {
            Err(Error::File(fault)) if fault.reason == Reason::Missing => Ok(None),
            read => read.map(Some),
        }
    }

    /// The model that serves a slice.
    pub fn serving(&self, slice: u8) -> Result<Option<Model>, Error> {
        match self.slices()?.get(&slice).and_then(|standing| standing.version) {
            Some(version) => self.model_of(version, slice).map(Some),
            None => Ok(None),
        }
    }

    /// Writes a model under the next free version. Sample and members are written first, so that every visible model has them.
    pub fn put(&self, trained: &mut Trained) -> Result<u64, Error> {
        self.make_dir()?;
        // Another trainer's versions are found by their names, below.
        let mut version = match self.written.load(Ordering::Relaxed) {
            0 => self.last_version()?,
            written => written,
        } + 1;
        loop {
            trained.model.version = version;
            let path = self.model_file(version);
            let mut json = serde_json::to_string_pretty(&trained.model)
                .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
            json.push('\n');
            let sample = self.sample_file(version);
            let with_members = || match &trained.members {
                Some(members) => self.put_members(members, version),
                None => Ok(true),
            };
            if self.put_sample(&trained.sample, &sample)?
                && with_members()?
                && self.store.publish_bytes(json.as_bytes(), &path)?
            {
                self.written.store(version, Ordering::Relaxed);
                return Ok(version);
            }
            // Another trainer took this version, or died between the two writes.
            version += 1;
        }
    }

    fn make_dir(&self) -> Result<(), Error> {
        self.store.place().make_dir(&self.dir).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => {
                Kind::Directory.unread(&self.dir)(error)
            }
            _ => Error::io("make", &self.dir)(error),
        })
    }

    /// All usable versions in ascending order. `skipped` receives unusable files.
    pub fn versions(&self, skipped: &mut dyn FnMut(FileFault)) -> Result<Vec<Model>, Error> {
        let mut all = Vec::new();
        for version in self.listed()? {
            match self.model(version) {
                Ok(model) => all.push(model),
                Err(Error::File(fault)) => skipped(*fault),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// The versions that have a model file, usable or not, in ascending order.
    pub fn listed(&self) -> Result<Vec<u64>, Error> {
        let names = self.names()?;
        let versions = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok());
        let mut versions: Vec<u64> = versions.collect();
        versions.sort_unstable();
        Ok(versions)
    }

    /// The highest version, 0 if there is none. Every file name counts, usable or not, so that no version is used twice.
    pub fn last_version(&self) -> Result<u64, Error> {
        let names = self.names()?;
        let versions = names.iter().filter_map(|name| {
            let endings = [".json", ".sample.parquet", members::ENDING];
            let stem = endings.iter().find_map(|ending| name.strip_suffix(ending))?;
            stem.parse::<u64>().ok()
        });
        // A version that served keeps its number even if its files are gone.
        let served =
            self.kept().map(|(history, _)| history.iter().map(|began| began.version).max()).unwrap_or_default();
        Ok(versions.chain(served).max().unwrap_or(0))
    }

    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        let entries = self.store.place().list(&self.dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied => Kind::Directory.unread(&self.dir)(error),
            _ => Error::io("list", &self.dir)(error),
        })?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }
}
