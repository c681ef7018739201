//! The model files: `models/<segmentation>/<version>.json`, never changed once written, and `slices.json`, which says
//! which of them serve. When each of them did, history.rs keeps.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use datafusion::arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use super::{By, Model, SLICES, Trained};
use crate::store::{Error, Revision, Store};

/// What stands behind one slice of a segmentation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The version that serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Since when it serves, RFC 3339, UTC; stores from before this was kept don't say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// What made it serve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<By>,
    /// Whether the version goes on serving, whatever trainings find.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Why the last training gave none; an older version may serve all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// The content of `slices.json`, by slice.
pub type Slices = BTreeMap<u8, Standing>;

/// The models of one segmentation.
pub struct Shelf {
    store: Store,
    dir: PathBuf,
}

impl Shelf {
    /// The name comes from a SQL file's name: a-z, 0-9 and `_`.
    pub fn new(store: &Store, segmentation: &str) -> Self {
        Self { store: store.clone(), dir: store.models().join(segmentation) }
    }

    /// What serves now; empty before the first training.
    pub fn slices(&self) -> Result<Slices, Error> {
        Ok(self.slices_as_read()?.0)
    }

    /// The same, for whoever will replace it.
    pub fn slices_as_read(&self) -> Result<(Slices, Revision), Error> {
        let path = self.dir.join("slices.json");
        let (bytes, revision) = self.store.read_revision(&path)?;
        let slices = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        Ok((slices.map_err(|e| Error::Damaged { path, why: e.to_string() })?.unwrap_or_default(), revision))
    }

    /// Bytes that change whenever other models serve; `None` before the first training.
    pub fn stamp(&self) -> Option<Vec<u8>> {
        self.store.place().stamp(&self.dir.join("slices.json")).ok()
    }

    /// Replaces what was read, or says that somebody else did.
    pub(super) fn replace_slices(&self, slices: &Slices, read: &Revision) -> Result<(), Error> {
        let path = self.dir.join("slices.json");
        let mut json = serde_json::to_string_pretty(slices)
            .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
        json.push('\n');
        let replaced = self.replace_if(json.as_bytes(), &path, read)?;
        if replaced { Ok(()) } else { Err(Error::Changed { path }) }
    }

    pub(super) fn history_file(&self) -> PathBuf {
        self.dir.join("served.ndjson")
    }

    pub(super) fn read_revision(&self, path: &Path) -> Result<(Option<Vec<u8>>, Revision), Error> {
        self.store.read_revision(path)
    }

    pub(super) fn replace_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.store.place().make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        self.store.replace_if(bytes, path, read)
    }

    pub fn model(&self, version: u64) -> Result<Model, Error> {
        let path = self.dir.join(format!("{version}.json"));
        let bytes = self.store.read(&path).map_err(Error::io("read", &path))?;
        Model::parse(&bytes).map_err(|why| Error::Damaged { path, why })
    }

    /// A version, if there is one of this number.
    pub fn version(&self, version: u64) -> Result<Option<Model>, Error> {
        match self.model(version) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// The model that serves a slice.
    pub fn serving(&self, slice: u8) -> Result<Option<Model>, Error> {
        match self.slices()?.get(&slice).and_then(|standing| standing.version) {
            Some(version) => self.model(version).map(Some),
            None => Ok(None),
        }
    }

    /// Up to 5,000 of a model's rows with their clusters.
    pub fn sample(&self, version: u64) -> Result<RecordBatch, Error> {
        let path = self.dir.join(format!("{version}.sample.parquet"));
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let file = self.store.place().open(&path).map_err(Error::io("read", &path))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(e.to_string()))?;
        let schema = reader.schema().clone();
        let batches: Result<Vec<_>, _> = reader.build().map_err(|e| damaged(e.to_string()))?.collect();
        let batches = batches.map_err(|e| damaged(e.to_string()))?;
        datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| damaged(e.to_string()))
    }

    /// Writes a model under the next free version, its sample first, so that whoever sees the one finds the other.
    pub fn put(&self, trained: &mut Trained) -> Result<u64, Error> {
        self.store.place().make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        let mut version = self.last_version()? + 1;
        loop {
            trained.model.version = version;
            let path = self.dir.join(format!("{version}.json"));
            let mut json = serde_json::to_string_pretty(&trained.model)
                .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
            json.push('\n');
            let sample = self.dir.join(format!("{version}.sample.parquet"));
            if self.put_sample(&trained.sample, &sample)? && self.store.publish_bytes(json.as_bytes(), &path)? {
                return Ok(version);
            }
            // Another trainer took it, or died between the two.
            version += 1;
        }
    }

    fn put_sample(&self, sample: &RecordBatch, path: &Path) -> Result<bool, Error> {
        let scratch = self.store.scratch();
        let write = || -> Result<(), parquet::errors::ParquetError> {
            let mut writer = ArrowWriter::try_new(File::create(&scratch)?, sample.schema(), None)?;
            writer.write(sample)?;
            writer.into_inner()?.sync_all()?;
            Ok(())
        };
        write().map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
        Ok(self.store.link(&scratch, path)?.is_some())
    }

    /// The newest version of a slice, if it is newer than this one.
    pub fn newest(&self, slice: u8, than: Option<u64>) -> Result<Option<Model>, Error> {
        for version in (than.unwrap_or(0) + 1..=self.last_version()?).rev() {
            if let Some(model) = self.version(version)?.filter(|model| model.slice == slice) {
                return Ok(Some(model));
            }
        }
        Ok(None)
    }

    /// All versions there are, in order.
    pub fn versions(&self) -> Result<Vec<Model>, Error> {
        let all = (1..=self.last_version()?).map(|version| self.version(version));
        all.filter_map(Result::transpose).collect()
    }

    /// The highest version there is, 0 if there is none.
    pub fn last_version(&self) -> Result<u64, Error> {
        let entries = self.store.place().list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let versions = entries.iter().filter_map(|entry| {
            let stem = entry.name.strip_suffix(".json").or(entry.name.strip_suffix(".sample.parquet"))?;
            stem.parse::<u64>().ok()
        });
        Ok(versions.max().unwrap_or(0))
    }
}

/// All slices' numbers.
pub fn all_slices() -> std::ops::RangeInclusive<u8> {
    1..=SLICES
}
