//! The storage backend of a store: what a directory and an object store have in common.
//!
//! Input: paths below the store's root. Output: bytes, lists, locks, and names that can be taken only once. On an object store a
//! path is the URL held as a path, so that callers can show and join it like any path. disk.rs implements [`Backend`] for
//! directories, objects/ for object stores; place.rs selects one. backend/contract.rs tests all of them alike.

#[cfg(test)]
pub(super) mod contract;
mod handles;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
pub use handles::{Held, Input, Lock, RangeReader, Staged, StagedFile};

use super::log_cache::LogCache;
use super::revision::Revision;
use super::write::Span;
use super::{Error, SmallFiles};

/// A file in a list.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// File name without the directory.
    pub name: String,
    /// Modification time, if the list has it.
    pub modified: Option<SystemTime>,
    /// ETag or version, if the list has it.
    pub tag: Option<String>,
}

/// Who may read a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// All that the umask allows.
    Shared,
    /// The owner only.
    Owner,
}

/// Files, names and locks of a store. Calls block until they have an effect or fail.
pub trait Backend: Debug + Send + Sync {
    /// Whether the backend is a directory.
    fn is_disk(&self) -> bool;

    /// Polling interval for changes: `on_disk` for a disk, at least a second for an object store, where requests cost money.
    fn patience(&self, on_disk: Duration) -> Duration {
        if self.is_disk() { on_disk } else { on_disk.max(Duration::from_secs(1)) }
    }

    /// The files of a directory, unordered; empty if it does not exist. A list of an object store may lag.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;

    /// The names of a directory's subdirectories.
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Reads a whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Reads a mutable file and its revision; `None` and an empty revision if it does not exist.
    fn read_revision(&self, path: &Path) -> io::Result<(Option<Vec<u8>>, Revision)>;

    /// Opens a file for range reads.
    fn open(&self, path: &Path) -> io::Result<Input>;

    /// Opens a file that is known to exist with this size, and never changes.
    fn open_known(&self, path: &Path, _size: u64) -> io::Result<Input> {
        self.open(path)
    }

    /// Deletes a file.
    fn delete(&self, path: &Path) -> io::Result<()>;

    /// Modification time of a file.
    fn modified(&self, path: &Path) -> io::Result<SystemTime>;

    /// Bytes that change whenever a small file does.
    fn stamp(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// Replaces a small file on an object store, whatever it contains; no effect on a disk.
    fn note(&self, bytes: &[u8], path: &Path) -> io::Result<()>;

    /// Moves a file to a unique name.
    fn set_aside(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates a directory; no effect on an object store.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Checks that files can be written and that a name can be taken only once, and deletes the test file.
    fn probe(&self, path: &Path) -> io::Result<()>;

    /// The directory of temporary files; for an object store on this machine.
    fn tmp(&self) -> PathBuf;

    /// Creates the directory of temporary files.
    fn make_tmp(&self) -> Result<(), Error>;

    /// Writes records without a name. `path` is the future name.
    fn stage(&self, records: &RecordBatch, span: Span, path: &Path) -> Result<Staged, Error>;

    /// Puts bytes under a name that must be free. `None` if it was taken; then nothing changed.
    fn publish(&self, bytes: &[u8], path: &Path) -> Result<Option<Revision>, Error>;

    /// Puts a synced temporary file under a name that must be free; keeps the temporary file. `None` if the name was taken.
    fn publish_file(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error>;

    /// Replaces a file if it still has the revision that was read; `false` if another process changed it. A disk has no
    /// revisions, so the caller's lock must exclude others.
    fn replace(&self, bytes: &[u8], path: &Path, read: &Revision, access: Access) -> Result<bool, Error>;

    /// Takes a lock file for the life of the process; `None` if another process holds it.
    fn try_lock(&self, path: &Path) -> Result<Option<Held>, Error>;

    /// Whether a lock of [`Backend::try_lock`] was held and may be lost.
    fn lost_lock(&self) -> bool {
        false
    }

    /// Waits for a lock file. Calls `waits` if another process holds it.
    fn lock(&self, path: &Path, waits: &dyn Fn()) -> Result<Held, Error>;

    /// Takes the lock of a directory's files; `None` if another process holds it, or a disk has no such directory. `waits`: whether
    /// to watch a held lease until it is clear whether its holder lives; the kernel releases file locks at once.
    fn try_lock_dir(&self, dir: &Path, waits: bool) -> Result<Option<Held>, Error>;

    /// Waits for the lock of a directory on a disk, and creates the directory. `None` on an object store, where
    /// [`Backend::replace`] needs no lock.
    fn lock_dir(&self, dir: &Path) -> Result<Option<Held>, Error>;

    /// A new cache of file lists and footers.
    fn log_cache(&self) -> Arc<dyn LogCache>;

    /// The client for a query engine; `None` for a disk.
    fn client(&self) -> Option<Arc<dyn object_store::ObjectStore>> {
        None
    }

    /// The cache of small files for the same queries; `None` for a disk.
    fn small_files(&self) -> Option<Arc<SmallFiles>> {
        None
    }
}
