//! The store: Parquet files that are there whole or not at all, and the directory is the log.
//!
//! Input: record batches with the positions they cover. Output: files, and the list of those that count. What the rest
//! of the program knows of a store directory goes through here:
//!
//! ```text
//! store/
//!   source.json       what feeds this store
//!   records/          log.rs: the files, their names, the reader's rule
//!   models/           written by the model room
//!   keys.json         hashes of the API's keys, for the owner alone
//!   tmp/              files on their way; nothing in it counts
//!   aside/            damaged files that were replaced by reading their range again
//! ```

mod compact;
pub mod log;
mod mend;
mod prefix;
mod unreadable;
mod verify;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use compact::{Policy, Rolled};
pub use log::{DataFile, Log, Published};
pub use mend::Mended;
pub use prefix::Prefix;
pub use unreadable::Unreadable;

/// The `id` of a store that the embedded broker feeds: it makes its topic anew at each start.
pub const EMBEDDED: &str = "embedded";

/// Who may read a new file: everybody that the umask lets, or the owner alone.
const SHARED: u32 = 0o666;
const SECRET: u32 = 0o600;

/// What went wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}", path = path.display())]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("{path} is damaged: {why}; the next ingest reads it again if it is the newest, else bring it back from a copy", path = path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("the store {store} is fed from {had}, not from {asked}; choose another --store, or the topic it was fed from", store = store.display())]
    OtherTopic { store: PathBuf, had: String, asked: String },
    #[error("somebody has been rolling files of this partition for a minute; try again later")]
    Rolling,
    #[error("another tercile feeds the store {path} (it holds {path}/up.lock); stop it first, or choose another --store", path = path.display())]
    Busy { path: PathBuf },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// What feeds a store; the content of `source.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub topic: String,
    /// The topic's id as Kafka gave it, [`EMBEDDED`], or empty where the broker is too old to tell.
    pub id: String,
    pub partitions: i32,
    /// The files that `up` replayed into it, in order.
    #[serde(default)]
    pub files: Vec<Replayed>,
}

/// A file that `up` replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    pub name: String,
    /// SHA-256 of its bytes, in hex.
    pub hash: String,
}

impl Source {
    fn describe(&self) -> String {
        match self.id.as_str() {
            EMBEDDED => format!("topic {} of the embedded broker", self.topic),
            "" => format!("topic {}", self.topic),
            id => format!("topic {} (id {id})", self.topic),
        }
    }
}

/// A store directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
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
        for sub in ["records", "models", "tmp"] {
            let path = root.join(sub);
            fs::create_dir_all(&path).map_err(Error::io("make the store's directory", &path))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// A store as it is, or is not.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
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
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &dir)(e)),
        };
        let dirs = entries.flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> = dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// What feeds the store; `None` if nothing did yet.
    pub fn source(&self) -> Result<Option<Source>, Error> {
        let path = self.root.join("source.json");
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|e| Error::Damaged { path, why: e.to_string() })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Binds the store to a topic, or checks that it is bound to this one. More partitions than before are taken over.
    pub fn claim(&self, topic: &str, id: &str, partitions: i32) -> Result<Source, Error> {
        let asked = Source { topic: topic.to_owned(), id: id.to_owned(), partitions, files: Vec::new() };
        let Some(had) = self.source()? else {
            // Two workers may come at once: the first one's word stands, and the second is held against it.
            let bytes = json_bytes(&asked);
            self.publish_bytes(&bytes, &self.root.join("source.json"))?;
            return self.claim(topic, id, partitions);
        };
        let same_id = had.id == asked.id || (had.id.is_empty() && asked.id != EMBEDDED);
        if had.topic != asked.topic || !same_id {
            let other = Error::OtherTopic { store: self.root.clone(), had: had.describe(), asked: asked.describe() };
            return Err(other);
        }
        let now = Source { id: asked.id, partitions: partitions.max(had.partitions), ..had.clone() };
        if now != had {
            self.write_source(&now)?;
        }
        Ok(now)
    }

    /// Replaces `source.json`.
    pub fn write_source(&self, source: &Source) -> Result<(), Error> {
        self.replace(&json_bytes(source), &self.root.join("source.json"))
    }

    /// The log of one partition.
    pub fn log(&self, topic: &str, partition: i32) -> Log {
        Log::new(self.clone(), topic, partition)
    }

    /// The logs of all partitions that have one.
    pub fn logs(&self) -> Result<Vec<Log>, Error> {
        let Some(source) = self.source()? else { return Ok(Vec::new()) };
        let dir = self.root.join("records").join(&source.topic);
        let mut partitions: Vec<i32> = match fs::read_dir(&dir) {
            Ok(entries) => entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(Error::io("list", &dir)(e)),
        };
        partitions.sort_unstable();
        Ok(partitions.into_iter().map(|partition| self.log(&source.topic, partition)).collect())
    }

    /// When files last came to each partition, or went; equal as long as they don't.
    pub fn changed(&self) -> Result<Vec<SystemTime>, Error> {
        let changed =
            |log: Log| fs::metadata(&log.dir).and_then(|of| of.modified()).map_err(Error::io("read", &log.dir));
        self.logs()?.into_iter().map(changed).collect()
    }

    /// The files that count now, all partitions of the topic this store is fed from.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let Some(source) = self.source()? else { return Ok(Snapshot::default()) };
        let mut files = Vec::new();
        for log in self.logs()? {
            let chain = log.files()?;
            if let Some(hole) = chain.windows(2).find(|pair| pair[0].next != pair[1].start) {
                let why = format!("it starts at {}, and nothing covers {} on", hole[1].start, hole[0].next);
                return Err(Error::Damaged { path: hole[1].path.clone(), why });
            }
            files.extend(chain);
        }
        Ok(Snapshot { topic: source.topic, files })
    }

    /// Keeps a second `up` away. The lock lives as long as the file that is returned, and dies with the process.
    pub fn lock(&self) -> Result<File, Error> {
        let path = self.root.join("up.lock");
        let file = File::create(&path).map_err(Error::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: self.root.clone() }),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
        }
    }

    /// Waits until nobody else changes what serves, and keeps others from it as long as the file lives.
    pub fn lock_models(&self) -> Result<File, Error> {
        let models = self.models();
        fs::create_dir_all(&models).map_err(Error::io("make", &models))?;
        let path = models.join("train.lock");
        let file = File::create(&path).map_err(Error::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tracing::info!("a training of this store runs; waiting for its end"),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(file)
    }

    /// Where files on their way are.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A path in `tmp/` that no other process or thread uses, on this machine or another, now or later: in containers
    /// every process has the same number.
    pub(crate) fn scratch(&self) -> PathBuf {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{:016x}-{unique}", std::process::id(), *PROCESS))
    }

    /// Deletes what processes that were killed left in `tmp/`, once nothing has been written to it for so long.
    pub(crate) fn sweep(&self, idle: Duration) -> Result<(), Error> {
        let dir = self.root.join("tmp");
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            // Whoever else sweeps may have been faster.
            let old = entry.metadata().ok().and_then(|meta| meta.modified().ok()).and_then(|at| at.elapsed().ok());
            if old.is_some_and(|old| old > idle) {
                match fs::remove_file(entry.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", &entry.path())(e)),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Puts bytes under a name that must be free. `false`: it was taken, and nothing changed.
    pub(crate) fn publish_bytes(&self, bytes: &[u8], path: &Path) -> Result<bool, Error> {
        let scratch = self.write_scratch(bytes, SHARED)?;
        self.link(&scratch, path)
    }

    /// Puts bytes under a name, whatever was there: readers see the old or the new, never a part.
    pub(crate) fn replace(&self, bytes: &[u8], path: &Path) -> Result<(), Error> {
        self.swap(bytes, SHARED, path)
    }

    /// The same for what only the owner may read.
    pub(crate) fn replace_secret(&self, bytes: &[u8], path: &Path) -> Result<(), Error> {
        self.swap(bytes, SECRET, path)
    }

    fn swap(&self, bytes: &[u8], mode: u32, path: &Path) -> Result<(), Error> {
        let scratch = self.write_scratch(bytes, mode)?;
        fs::rename(&scratch, path).map_err(Error::io("replace", path))?;
        sync_parent(path)
    }

    fn write_scratch(&self, bytes: &[u8], mode: u32) -> Result<PathBuf, Error> {
        let scratch = self.scratch();
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&scratch)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&scratch);
            Error::io("write", &scratch)(e)
        })?;
        Ok(scratch)
    }

    /// Links a synced file in under a name that must be free, syncs the directory, and forgets the scratch name.
    pub(crate) fn link(&self, scratch: &Path, path: &Path) -> Result<bool, Error> {
        let linked = fs::hard_link(scratch, path);
        let _ = fs::remove_file(scratch);
        match linked {
            Ok(()) => sync_parent(path).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(Error::io("publish", path)(e)),
        }
    }
}

fn json_bytes(source: &Source) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(source).unwrap_or_default();
    text.push('\n');
    text.into_bytes()
}

/// A new name is durable only once its directory is.
fn sync_parent(path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_belongs_to_one_topic() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.source().unwrap(), None);
        store.claim("products", "abc", 1).unwrap();
        assert_eq!(store.claim("products", "abc", 3).unwrap().partitions, 3);
        assert_eq!(store.claim("products", "abc", 1).unwrap().partitions, 3);
        for (topic, id) in [("other", "abc"), ("products", "def"), ("products", EMBEDDED)] {
            let error = store.claim(topic, id, 1).unwrap_err();
            assert!(matches!(error, Error::OtherTopic { .. }), "{error}");
        }
    }

    #[test]
    fn one_up_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let lock = store.lock().unwrap();
        assert!(matches!(store.lock(), Err(Error::Busy { .. })));
        drop(lock);
        store.lock().unwrap();
    }

    #[test]
    fn names_are_published_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = dir.path().join("name");
        assert!(store.publish_bytes(b"first", &path).unwrap());
        assert!(!store.publish_bytes(b"second", &path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        store.replace(b"third", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn what_the_dead_left_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [old, new] = [store.scratch(), store.scratch()];
        for path in [&old, &new] {
            fs::write(path, "half a file").unwrap();
        }
        let then = std::time::SystemTime::now() - Duration::from_secs(7200);
        File::options().write(true).open(&old).unwrap().set_modified(then).unwrap();
        store.sweep(Duration::from_secs(3600)).unwrap();
        assert!(!old.exists() && new.exists());
    }

    /// Workers that read, publish, die, fall asleep and take each other's partition, rolling and deletion in between, in
    /// any order: the store is always a prefix of the topic, each record of it once.
    #[test]
    fn whatever_happens_the_store_is_a_prefix_of_the_topic() {
        use super::log::tests::records_at;
        use rand_xoshiro::rand_core::{RngCore, SeedableRng};

        /// Where a worker stands: the name of its next file, the next record it will read, what it holds.
        struct Worker {
            expected: i64,
            read: usize,
            held: Vec<i64>,
        }

        for seed in 0..60 {
            let mut rng = rand_xoshiro::Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut chance = |below: u64| (rng.next_u64() % below) as usize;
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            store.claim("products", "id", 1).unwrap();
            let log = store.log("products", 0);
            // A topic with gaps in its offsets.
            let mut offset = 5;
            let topic: Vec<i64> = (0..60)
                .map(|_| {
                    offset += 1 + [0, 0, 0, 2][chance(4)];
                    offset
                })
                .collect();
            log.begin(5).unwrap();
            let recovered = || {
                let expected = log.next().unwrap().unwrap();
                Worker { expected, read: topic.partition_point(|&o| o < expected), held: Vec::new() }
            };
            let mut workers: Vec<Worker> = (0..3).map(|_| recovered()).collect();
            for _ in 0..150 {
                let i = chance(3);
                match chance(10) {
                    // It reads on.
                    0..5 => {
                        let worker = &mut workers[i];
                        let more = (1 + chance(6)).min(topic.len() - worker.read);
                        worker.held.extend(&topic[worker.read..worker.read + more]);
                        worker.read += more;
                    }
                    // It publishes what it holds, or finds that it was overtaken and reads again.
                    5..8 => {
                        let held = std::mem::take(&mut workers[i].held);
                        let Some(next) = held.last().map(|last| last + 1) else { continue };
                        match log.publish(&records_at(&held), workers[i].expected, next).unwrap() {
                            Published::File(file) => workers[i].expected = file.next,
                            Published::Taken => workers[i] = recovered(),
                        }
                    }
                    // It dies, and somebody takes over.
                    8 => workers[i] = recovered(),
                    _ => {
                        let (target, grace) = (1 << [10, 13, 20][chance(3)], Duration::ZERO);
                        log.compact(&Policy { target, grace, eager: chance(2) == 0 }).unwrap();
                    }
                }
                let files = log.verify().unwrap();
                let stored: u64 = files.iter().map(|file| file.rows).sum();
                let next = log.next().unwrap().unwrap();
                let prefix = topic.partition_point(|&o| o < next);
                assert_eq!(stored, prefix as u64, "seed {seed}");
            }
        }
    }
}
