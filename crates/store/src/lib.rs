//! The store of records and models: atomically published Parquet files, whose directory is the log.
//!
//! Input: record batches with the positions they cover. Output: files, and the list of live files. All other crates access a
//! store through this one:
//!
//! ```text
//! store/
//!   source.json       the topic that feeds this store (source.rs)
//!   records/          log.rs: the files; file_name.rs: their names; live_files.rs: the live ones; retention.rs, age.rs: expiry
//!   marks/            marks.rs: a copy of source.json, and the end of each partition, to detect missing files
//!   models/           written by the model registry; models/train.lock excludes other trainings
//!   notifications/    messages for webhooks, and open episodes, written by the notifier
//!   keys.json         hashes of the API's keys, readable by the owner only; keys.lock
//!   up.lock           one process feeds the store
//!   changes           changes.rs: on an object store, tells servers that models or keys have changed
//!   tmp/              temporary files; of an object store: on this machine
//!   aside/            damaged files that were replaced by reading their range again
//! ```
//!
//! location.rs parses the root of a store, and place.rs selects its backend (backend.rs): a disk (disk.rs) or an object store
//! (objects.rs; its catalog.rs and index.rs reduce the requests). publish.rs writes files atomically; scratch.rs has temporary files, lock.rs the locks.

#![warn(missing_docs)]

mod age;
mod aside;
mod backend;
pub mod batch;
mod changes;
mod checksums;
pub mod cleanup;
mod compact;
mod dead_letters;
mod disk;
mod error;
pub mod event_time;
mod examine;
mod file_fault;
mod file_name;
mod footer;
pub mod json_text;
mod live_files;
pub mod location;
mod lock;
mod log;
mod log_cache;
mod marks;
#[cfg(not(feature = "object-stores"))]
#[path = "no_objects.rs"]
mod objects;
#[cfg(feature = "object-stores")]
mod objects;
pub mod parallel;
mod place;
mod policy;
mod publish;
pub mod record;
mod replayed;
mod retention;
mod revision;
pub mod row_set;
mod scratch;
mod small_files;
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
pub use backend::{Access, Backend, Entry, Held, Input};
pub use checksums::Checksums;
pub use compact::Rolled;
pub use dead_letters::Reprocessed;
pub use error::Error;
pub use examine::Examined;
pub use file_fault::{FileFault, Reason};
pub use footer::{Bounds, DataFile, check as check_file};
pub use location::scheme;
pub use log::{Changed, Log, Prepared, Published};
pub use objects::client_of as client;
#[cfg(feature = "object-stores")]
pub use objects::flaky;
pub use place::Place;
pub use policy::{Policy, RetentionPolicy};
pub use replayed::{FILE_HEADER, ROW_HEADER, row_of};
pub use revision::Revision;
pub use scratch::{LEFTOVER, unique};
pub use small_files::SmallFiles;
pub use snapshot_at::SnapshotAt;
pub use source::{EMBEDDED, Replayed, Source};
pub use unreadable::Unreadable;
pub use write::write_with_checksums;

/// Partitions of an object store whose files are listed concurrently.
const LOGS_AT_ONCE: usize = 16;

/// A store: a directory, or a prefix of an object store.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    place: Place,
    marks: std::sync::Arc<marks::Cache>,
    changes: std::sync::Arc<changes::Changes>,
    source: std::sync::Arc<source::SourceCache>,
    log_cache: std::sync::Arc<dyn log_cache::LogCache>,
}

/// The live files at one moment. Files never change, so a snapshot is a consistent state of the stream.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Topic name.
    pub topic: String,
    /// Sorted by partition, then by start.
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
    /// Opens a store and creates missing directories.
    ///
    /// # Errors
    /// If the root cannot be parsed, or a directory cannot be created.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let store = Self::at(root)?;
        for sub in ["records", "models"] {
            let path = root.join(sub);
            store.place.make_dir(&path).map_err(Error::io("make the store's directory", &path))?;
        }
        store.make_tmp()?;
        Ok(store)
    }

    /// Opens a store without creating it.
    ///
    /// # Errors
    /// If the root cannot be parsed, or its backend is not compiled in.
    pub fn at(root: &Path) -> Result<Self, Error> {
        let store = Self::of(root.to_owned(), Place::of(root)?);
        if !store.place.is_disk() {
            // The temporary directory of an object store is not part of the store.
            store.make_tmp()?;
        }
        Ok(store)
    }

    fn of(root: PathBuf, place: Place) -> Self {
        let log_cache = place.log_cache();
        Self {
            root,
            place,
            marks: std::sync::Arc::default(),
            changes: std::sync::Arc::default(),
            source: std::sync::Arc::default(),
            log_cache,
        }
    }

    /// Whether the store exists. On an object store one without records exists if it has keys.
    pub fn exists(&self) -> Result<bool, Error> {
        if self.place.is_disk() {
            return Ok(self.root.is_dir());
        }
        Ok(self.recent_source()?.is_some() || self.is_marked_for_keys()?)
    }

    /// The backend.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The root: a directory, or the URL of a prefix.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of the models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Names of the segmentations that have models.
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
        match self.recent_source()? {
            Some(source) => self.logs_of(&source),
            None => Ok(Vec::new()),
        }
    }

    fn logs_of(&self, source: &Source) -> Result<Vec<Log>, Error> {
        let dir = self.root.join("records").join(&source.topic);
        let dirs = self.place.dirs(&dir).map_err(Error::io("list", &dir))?;
        let mut partitions: Vec<i32> = dirs.iter().filter_map(|name| name.parse().ok()).collect();
        if self.place.is_disk() {
            // A directory may be missing.
            partitions.extend(self.marked_partitions()?);
            partitions.sort_unstable();
            partitions.dedup();
            return Ok(partitions.into_iter().map(|partition| self.log(&source.topic, partition)).collect());
        }
        // A list may lag.
        let others = partitions.into_iter().filter(|partition| !(0..source.partitions).contains(partition));
        Ok(self.recorded_logs(source).into_iter().chain(others.map(|other| self.log(&source.topic, other))).collect())
    }

    /// The logs of the partitions that `source.json` records, which are all unless it was damaged.
    fn recorded_logs(&self, source: &Source) -> Vec<Log> {
        (0..source.partitions).map(|partition| self.log(&source.topic, partition)).collect()
    }

    /// Applies a function to each log, on an object store to several at once.
    fn of_each<T: Send>(&self, logs: &[Log], work: impl Fn(&Log) -> Result<T, Error> + Sync) -> Result<Vec<T>, Error> {
        parallel::each(logs, if self.place.is_disk() { 1 } else { LOGS_AT_ONCE }, work)
    }

    /// Per partition a value that changes whenever files were added or deleted.
    pub fn changed(&self) -> Result<Vec<Changed>, Error> {
        let Some(source) = self.recent_source()? else { return Ok(Vec::new()) };
        let logs = if self.place.is_disk() { self.logs_of(&source)? } else { self.recorded_logs(&source) };
        self.of_each(&logs, Log::changed)
    }

    /// The live files of all partitions of the topic that feeds this store.
    ///
    /// # Errors
    /// If files are missing or unreadable.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let Some(source) = self.recent_source()? else { return Ok(Snapshot::default()) };
        let chains = self.of_each(&self.logs_of(&source)?, |log| {
            let mark = log.mark()?;
            let chain = log.files()?;
            log.check_whole(&chain, mark)?;
            Ok(chain)
        })?;
        Ok(Snapshot { topic: source.topic, files: chains.into_iter().flatten().collect() })
    }

    /// Reads a whole file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.place.read(path)
    }
}
