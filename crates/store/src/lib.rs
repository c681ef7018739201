//! The store: Parquet files that are there whole or not at all, and the directory is the log.
//!
//! Input: record batches with the positions they cover. Output: files, and the list of those that count. What the rest
//! of the program knows of a store goes through here:
//!
//! ```text
//! store/
//!   source.json       what feeds this store (source.rs)
//!   records/          log.rs: the files; name.rs: their names; rule.rs: the reader's rule; expire.rs: retention, age.rs: what is old
//!   marks/            marks.rs: a copy of source.json, and how far each partition came, so that lost files are noticed
//!   models/           written by the model room
//!   keys.json         hashes of the API's keys, for the owner alone
//!   tmp/              files on their way; nothing in it counts (of an object store: in this machine's own)
//!   aside/            damaged files that were replaced by reading their range again
//! ```
//!
//! location.rs reads what users call a store; place.rs is a disk or an object store (objects.rs; catalog.rs and index.rs spare it questions); publish.rs is how bytes come
//! to be under a name there, lock.rs who may do alone what only one may do at a time.

mod age;
pub mod batch;
#[cfg(feature = "object-stores")]
mod catalog;
mod checksums;
pub mod cleanup;
mod compact;
mod dead_letters;
mod examine;
mod file_fault;
mod file_name;
mod footer;
#[cfg(feature = "object-stores")]
mod index;
mod live_files;
pub mod location;
mod lock;
mod log;
mod marks;
#[cfg(feature = "object-stores")]
mod objects;
mod parallel;
mod place;
mod publish;
pub mod record;
mod replayed;
mod retention;
pub mod row_set;
mod snapshot_at;
mod source;
#[cfg(test)]
mod tests;
pub mod times;
mod unreadable;
mod verify;
mod write;

use std::io;
use std::path::{Path, PathBuf};

pub use age::{Timestamps, implausible};
pub use checksums::Checksums;
pub use compact::{Policy, Rolled};
pub use dead_letters::Reprocessed;
pub use examine::Examined;
pub use file_fault::{FileFault, Reason};
pub use footer::{Bounds, DataFile};
pub use location::scheme;
pub use lock::Held;
pub use log::{Changed, Log, Prepared, Published};
#[cfg(feature = "object-stores")]
pub use objects::client_of as client;
#[cfg(feature = "object-stores")]
#[doc(hidden)]
pub use objects::flaky;
pub use place::{Input, Place, Revision};
pub use publish::{LEFTOVER, unique};
pub use replayed::{FILE_HEADER, ROW_HEADER, row_of};
pub use retention::RetentionPolicy;
pub use snapshot_at::SnapshotAt;
pub use source::{EMBEDDED, Replayed, Source};
pub use unreadable::Unreadable;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{url}: {why}", url = url.display())]
    Url { url: PathBuf, why: String },
    #[error("cannot write {path}: {source}", path = path.display())]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("{path} is damaged: {why}; the next ingest reads it again if it is the newest, else bring it back from a copy", path = path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{path} can't be read: {why}; bring it back from a copy", path = path.display())]
    Spoiled { path: PathBuf, why: String },
    #[error(transparent)]
    File(Box<FileFault>),
    #[error("{path} cannot be read: {why}; {fix}", path = path.display())]
    Unusable { path: PathBuf, why: String, fix: String },
    #[error("{path} is missing, but the store holds records: {fix}", path = path.display())]
    NoSource { path: PathBuf, fix: String },
    #[error("files of {dir} are missing: {what}; bring them back from a copy{or}", dir = dir.display())]
    Lost { dir: PathBuf, what: String, or: String },
    #[error("the store {store} is fed from {had}, not from {asked}; choose another --store, or the topic it was fed from", store = store.display())]
    OtherTopic { store: PathBuf, had: String, asked: String },
    #[error(
        "the store {store} is ahead of its topic: it holds partition {partition} of {topic} up to offset {next}, and the \
         topic ends at {end}; it was cut, or restored from a backup. Restore what it lost, or read it into another --store"
    , store = store.display())]
    AheadOfTopic { store: PathBuf, topic: String, partition: i32, next: i64, end: i64 },
    #[error("somebody else has been rolling files of this partition; try again later")]
    Rolling,
    #[error("another tercile feeds the store {path} (it holds {path}/up.lock); stop it first, or choose another --store", path = path.display())]
    Busy { path: PathBuf },
    #[error("somebody else changed {path} meanwhile; nothing was changed, try again", path = path.display())]
    Changed { path: PathBuf },
}

impl Error {
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether it says that a file is not there.
    fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A store: a directory, or a prefix of an object store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    place: Place,
    marks: std::sync::Arc<marks::Cache>,
    #[cfg(feature = "object-stores")]
    catalog: std::sync::Arc<catalog::Catalog>,
}

/// The files that counted at one moment. Files never change, so whoever reads these sees one state of the stream.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub topic: String,
    /// By partition, then by start.
    pub files: Vec<DataFile>,
}

impl Snapshot {
    /// Records in all files.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.rows).sum()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// The next offset of each partition that holds records.
    pub fn next_offsets(&self) -> std::collections::BTreeMap<i32, i64> {
        self.files.iter().map(|file| (file.partition, file.next)).collect()
    }
}

impl Store {
    /// Opens a store, making its directories where they are missing.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let store = Self::at(root)?;
        for sub in ["records", "models"] {
            let path = root.join(sub);
            store.place.make_dir(&path).map_err(Error::io("make the store's directory", &path))?;
        }
        store.make_tmp()?;
        Ok(store)
    }

    /// A store as it is, or is not.
    pub fn at(root: &Path) -> Result<Self, Error> {
        let store = Self::of(root.to_owned(), Place::of(root)?);
        if !store.place.is_disk() {
            // It is no part of the store.
            store.make_tmp()?;
        }
        Ok(store)
    }

    /// A store in any object store. `root` is the URL of its prefix.
    ///
    /// # Errors
    /// [`Error::Url`] if the URL cannot be parsed, [`Error::Io`] if no directory for temporary files can be made.
    #[cfg(feature = "object-stores")]
    pub fn over(root: &str, objects: std::sync::Arc<dyn object_store::ObjectStore>) -> Result<Self, Error> {
        let objects = objects::Objects::over(root, objects)?;
        let store = Self::of(PathBuf::from(root), Place::Objects(std::sync::Arc::new(objects)));
        store.make_tmp()?;
        Ok(store)
    }

    fn of(root: PathBuf, place: Place) -> Self {
        Self {
            root,
            place,
            marks: std::sync::Arc::default(),
            #[cfg(feature = "object-stores")]
            catalog: std::sync::Arc::default(),
        }
    }

    /// Whether there is one.
    pub fn exists(&self) -> Result<bool, Error> {
        match &self.place {
            Place::Disk => Ok(self.root.is_dir()),
            #[cfg(feature = "object-stores")]
            Place::Objects(_) => Ok(self.source()?.is_some()),
        }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the models live.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The segmentations that were trained, by name.
    pub fn segmentations(&self) -> Result<Vec<String>, Error> {
        let dir = self.models();
        let mut names = self.place.dirs(&dir).map_err(Error::io("list", &dir))?;
        names.sort();
        Ok(names)
    }

    /// The log of one partition.
    pub fn log(&self, topic: &str, partition: i32) -> Log {
        Log::new(self.clone(), topic, partition)
    }

    /// The logs of all partitions that have one.
    pub fn logs(&self) -> Result<Vec<Log>, Error> {
        let Some(source) = self.source()? else { return Ok(Vec::new()) };
        let dir = self.root.join("records").join(&source.topic);
        let dirs = self.place.dirs(&dir).map_err(Error::io("list", &dir))?;
        let mut partitions: Vec<i32> = dirs.iter().filter_map(|name| name.parse().ok()).collect();
        if self.place.is_disk() {
            // A directory may be lost.
            partitions.extend(self.marked_partitions()?);
        } else {
            // A list may lag.
            partitions.extend(0..source.partitions);
        }
        partitions.sort_unstable();
        partitions.dedup();
        Ok(partitions.into_iter().map(|partition| self.log(&source.topic, partition)).collect())
    }

    /// When files last came to each partition, or went; equal as long as they don't.
    pub fn changed(&self) -> Result<Vec<Changed>, Error> {
        self.logs()?.into_iter().map(|log| log.changed()).collect()
    }

    /// The files that count now, all partitions of the topic this store is fed from.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let Some(source) = self.source()? else { return Ok(Snapshot::default()) };
        let mut files = Vec::new();
        for log in self.logs()? {
            let mark = log.mark()?;
            let chain = log.files()?;
            log.check_whole(&chain, mark)?;
            files.extend(chain);
        }
        Ok(Snapshot { topic: source.topic, files })
    }

    /// Moves a file that cannot be used to `aside/`; gives its new path. Where it is gone already, there is nothing to move.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, Error> {
        let below = path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().replace('/', "-");
        let to = self.root.join("aside").join(format!("{below}-{}", publish::unique()));
        match self.place.set_aside(path, &to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("set aside", path)(e)),
            _ => Ok(to),
        }
    }

    /// Reads a whole file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.place.read(path)
    }
}
