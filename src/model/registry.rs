//! The model registry: immutable files `models/<segmentation>/<version>.json`, and `slices.json` with the serving versions.
//! `history.rs` records when each version served.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::arrow::array::{AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use tercile_store::{Error, FileFault, Reason, Revision, Store, parallel, write_with_checksums};

use super::candidate::{Candidate, Rejection};
use super::history::Promotion;
use super::{Kind, Model, Predictor, PromotedBy, Trained, members};

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
    /// The last candidate that was rejected, until another version serves.
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

/// The versions of a segmentation, listed once, and those of their files that a training is likely to need.
pub struct Versions {
    registry: ModelRegistry,
    /// In ascending order.
    listed: Vec<u64>,
    /// Usable ones. Files never change.
    read: BTreeMap<u64, Model>,
}

/// Number of the newest versions that are read together with the serving ones.
const NEWEST: usize = 3;
/// Model files that are read concurrently.
const AT_ONCE: usize = 16;

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

    /// True if cluster numbers were kept from one model to the other, through any number of models between them. False if a
    /// model between them is missing.
    pub fn same_lineage(&self, one: &Model, other: &Model) -> Result<bool, Error> {
        let (mut one, mut other) = (one.clone(), other.clone());
        while one.version != other.version {
            if one.version < other.version {
                std::mem::swap(&mut one, &mut other);
            }
            let before = one.receipt.predecessor.as_ref().map(|before| before.version);
            let Some(before) = before.filter(|before| *before < one.version) else { return Ok(false) };
            let Some(before) = self.version(before)? else { return Ok(false) };
            one = before;
        }
        Ok(true)
    }

    fn slices_file(&self) -> PathBuf {
        self.dir.join("slices.json")
    }

    /// The serving state for a training, which may continue without `slices.json`: the state is then rebuilt from the history,
    /// and a damaged file is set aside. A version promoted manually counts as pinned, because it may have been.
    ///
    /// # Errors
    /// If the file exists and this process may not read it.
    pub fn slices_or_again(&self) -> Result<(Slices, Revision), Error> {
        let fault = match self.slices_as_read() {
            Err(Error::File(fault)) if fault.reason != Reason::Unreadable => *fault,
            read => return read,
        };
        let history = match self.kept() {
            Err(Error::File(_)) => Vec::new(),
            kept => kept?.0,
        };
        let mut slices = Slices::new();
        for began in history.into_iter().filter(Promotion::serves) {
            let by = Some(began.by);
            let pinned = began.by == PromotedBy::Rollback;
            let standing = ServingState {
                version: Some(began.version),
                since: Some(began.at),
                by,
                pinned,
                ..ServingState::default()
            };
            slices.insert(began.slice, standing);
        }
        let moved = match fault.reason {
            Reason::Missing => String::new(),
            _ => format!(" it was moved to {};", self.set_aside(&fault)?.display()),
        };
        let chosen: Vec<String> = slices
            .iter()
            .filter_map(|(slice, standing)| {
                Some(format!("{} of slice {slice}", standing.version.filter(|_| standing.pinned)?))
            })
            .collect();
        let chosen = match chosen.is_empty() {
            true => "pins are lost".to_owned(),
            false => format!("version {} counts as pinned, other pins are lost", chosen.join(", ")),
        };
        tracing::warn!(
            "{} {} is {}:{moved} it is made again from served.ndjson and the model files; {chosen}",
            fault.kind,
            fault.path.display(),
            fault.reason
        );
        // A conditional put requires that the file still does not exist.
        let (_, read) = self.store.read_revision(&fault.path)?;
        Ok((slices, read))
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

    /// At most 5,000 of a model's rows with their clusters.
    pub fn sample(&self, version: u64) -> Result<RecordBatch, Error> {
        let path = self.sample_file(version);
        let damaged = |why: String| Kind::Sample.fault(&path, Reason::Damaged, why);
        let file = self.store.place().open(&path).map_err(Kind::Sample.unread(&path))?;
        Kind::Sample.verify(&path, &file)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(e.to_string()))?;
        let schema = reader.schema().clone();
        let batches: Result<Vec<_>, _> = reader.build().map_err(|e| damaged(e.to_string()))?.collect();
        let batches = batches.map_err(|e| damaged(e.to_string()))?;
        datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| damaged(e.to_string()))
    }

    fn sample_file(&self, version: u64) -> PathBuf {
        self.dir.join(format!("{version}.sample.parquet"))
    }

    /// The sample of a model, with all columns checked.
    ///
    /// # Errors
    /// [`Error::File`] if the file is missing, damaged, unreadable, or belongs to another model.
    pub fn sample_of(&self, model: &Model) -> Result<RecordBatch, Error> {
        let sample = self.sample(model.version)?;
        let path = self.sample_file(model.version);
        check_sample(&sample, model).map_err(|(reason, why)| Kind::Sample.fault(&path, reason, why))?;
        Ok(sample)
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

    fn put_sample(&self, sample: &RecordBatch, path: &Path) -> Result<bool, Error> {
        let scratch = self.store.scratch();
        let written = write_with_checksums(&scratch, sample, WriterProperties::default());
        written.map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
        Ok(self.store.link(&scratch, path)?.is_some())
    }

    /// Lists the versions, and reads the serving and the newest ones concurrently.
    ///
    /// # Errors
    /// If the directory cannot be listed. Unusable files are errors of those who ask for them.
    pub fn versions_for(&self, slices: &Slices) -> Result<Versions, Error> {
        let listed = self.listed()?;
        let serving: BTreeSet<u64> = slices.values().filter_map(|standing| standing.version).collect();
        let newest = listed.iter().rev().take(NEWEST).copied();
        let newest = newest.filter(|version| serving.first().is_none_or(|first| first <= version));
        let wanted: Vec<u64> = newest.chain(serving.iter().copied()).collect::<BTreeSet<_>>().into_iter().collect();
        let threads = if self.store.place().is_disk() { 1 } else { AT_ONCE };
        let read = parallel::each(&wanted, threads, |version| Ok::<_, Error>(self.model(*version).ok()))?;
        let read = wanted.into_iter().zip(read).filter_map(|(version, model)| Some((version, model?))).collect();
        Ok(Versions { registry: self.clone(), listed, read })
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

impl Versions {
    /// A version that serves a slice: [`ModelRegistry::model_of`].
    ///
    /// # Errors
    /// Same as [`ModelRegistry::model`].
    pub fn model_of(&self, version: u64, slice: u8) -> Result<Model, Error> {
        match self.read.get(&version).filter(|model| model.slice == slice) {
            Some(model) => Ok(model.clone()),
            None => self.registry.model_of(version, slice),
        }
    }

    /// The newest usable version of a slice, if it is newer than this one. `skipped` receives unusable files.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn newest(
        &self,
        slice: u8,
        than: Option<u64>,
        skipped: &mut dyn FnMut(FileFault),
    ) -> Result<Option<Model>, Error> {
        for &version in self.listed.iter().rev().take_while(|version| Some(**version) > than) {
            let model = match self.read.get(&version) {
                Some(model) if model.slice != slice => continue,
                Some(model) => Ok(Some(model.clone())),
                None => self.registry.version(version),
            };
            match model {
                Ok(Some(model)) if model.slice == slice => return Ok(Some(model)),
                Ok(_) => {}
                Err(Error::File(fault)) => skipped(*fault),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Minimum share of a sample's rows whose stored cluster equals the model's. Rows on a border may be rounded to either side.
const SAMPLE_AGREES: f64 = 0.99;

/// Checks that a sample belongs to a model: its columns, and its clusters against the model's predictions.
fn check_sample(sample: &RecordBatch, model: &Model) -> Result<(), (Reason, String)> {
    let lacks = |name: &str| (Reason::Damaged, format!("it lacks the column {name}"));
    let column = |name: &str| sample.column_by_name(name);
    let key = |name: &str| column(name).ok_or_else(|| lacks(name));
    if model.entity.is_empty() {
        key("_partition")?.as_primitive_opt::<Int32Type>().ok_or_else(|| lacks("_partition"))?;
        key("_offset")?.as_primitive_opt::<Int64Type>().ok_or_else(|| lacks("_offset"))?;
    }
    let clusters = key("cluster")?.as_primitive_opt::<UInt32Type>().ok_or_else(|| lacks("cluster"))?;
    let mut columns = Vec::new();
    for feature in &model.features {
        let column = column(feature).and_then(|column| column.as_primitive_opt::<Float64Type>());
        let foreign = || (Reason::Misnamed, format!("it lacks the feature {feature}, so it is that of another model"));
        columns.push(column.ok_or_else(foreign)?.values().as_ref());
    }
    let predictor: Predictor = model.predictor();
    let (found, _) = predictor.predict_columns(&columns);
    let agree = found.iter().zip(clusters.values()).filter(|(found, stored)| found == stored).count();
    if sample.num_rows() == 0 || sample.num_rows() as u64 > model.rows {
        return Err((Reason::Misnamed, format!("it has {} rows of {}", sample.num_rows(), model.rows)));
    }
    if (agree as f64) < SAMPLE_AGREES * sample.num_rows() as f64 {
        let of = sample.num_rows();
        return Err((Reason::Misnamed, format!("only {agree} of its {of} rows are in this model's clusters")));
    }
    Ok(())
}
