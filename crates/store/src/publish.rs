//! Atomic publishing: a file appears under its name whole or not at all, and a free name is taken only once.
//!
//! On a disk a file is written under a unique name in `tmp/`, synced, and then linked or renamed. On an object store a put does
//! all of that.

#![allow(unsafe_code, reason = "reads the user of the process")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

#[cfg(feature = "object-stores")]
use bytes::Bytes;

#[cfg(feature = "object-stores")]
use super::objects::Objects;
use super::place::{Place, Revision};
use super::{Error, Store};
use crate::cleanup;

/// Mode of a new file: readable by all that the umask allows, or by the owner only.
const SHARED: u32 = 0o666;
const SECRET: u32 = 0o600;

/// Age after which files left by killed processes are deleted; a live writer touches its file more often.
pub const LEFTOVER: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// The directory of temporary files; for an object store on this machine.
    pub fn tmp(&self) -> PathBuf {
        match &self.place {
            Place::Disk => self.root.join("tmp"),
            #[cfg(feature = "object-stores")]
            Place::Objects(_) => std::env::temp_dir().join(format!("tercile-{}", user())),
        }
    }

    /// Creates the directory above.
    pub(super) fn make_tmp(&self) -> Result<(), Error> {
        let tmp = self.tmp();
        #[cfg(feature = "object-stores")]
        if !self.place.is_disk() {
            return make_own(&tmp).map_err(Error::io("make the directory of files on their way", &tmp));
        }
        fs::create_dir_all(&tmp).map_err(Error::io("make the store's directory", &tmp))
    }

    /// A unique path in `tmp/`, across processes, machines and time. The file is deleted at the end of the process.
    pub fn scratch(&self) -> PathBuf {
        let tmp = self.tmp();
        delete_own_at_exit(&tmp);
        tmp.join(unique())
    }

    /// A path for a temporary Parquet file that other machines write and read. On a disk it has a directory of its own, because
    /// a process that dies while writing leaves a file of another name. On an object store, old leftovers are deleted.
    pub fn shared_scratch(&self) -> Result<PathBuf, Error> {
        if self.place.is_disk() {
            let dir = self.scratch();
            fs::create_dir(&dir).map_err(Error::io("make", &dir))?;
            return Ok(dir.join("rows.parquet"));
        }
        let dir = self.root.join("tmp");
        for entry in self.place.list(&dir).map_err(Error::io("list", &dir))? {
            let age = entry.modified.and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > LEFTOVER) {
                let path = dir.join(entry.name);
                match self.place.delete(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", &path)(e)),
                    _ => {}
                }
            }
        }
        Ok(dir.join(unique()).with_extension("parquet"))
    }

    /// Deletes a path of [`Store::shared_scratch`].
    pub fn forget_shared(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(dir) if self.place.is_disk() => fs::remove_dir_all(dir),
            _ => self.place.delete(path),
        }
    }

    /// Deletes files in `tmp/` that were left by killed processes and not written to for `idle`.
    pub fn sweep(&self, idle: Duration) -> Result<(), Error> {
        let dir = self.tmp();
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            // Another process may delete it concurrently.
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

    /// Puts bytes under a name that must be free. `false` if it was taken; then nothing changed.
    pub fn publish_bytes(&self, bytes: &[u8], path: &Path) -> Result<bool, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place {
            let created = objects.replace_if(bytes.to_vec(), path, None).map_err(Error::io("publish", path));
            return Ok(created?.is_some());
        }
        let scratch = self.write_scratch(bytes, SHARED)?;
        Ok(self.link(&scratch, path)?.is_some())
    }

    /// Reads a mutable file and its revision.
    pub fn read_revision(&self, path: &Path) -> Result<(Option<Vec<u8>>, Revision), Error> {
        self.place.read_revision(path).map_err(Error::io("read", path))
    }

    /// Replaces a file if it still has the revision that was read: readers see the old or the new content, never a part.
    /// `false` if another process changed it; then nothing changed. On a disk the caller's lock excludes others, and the result
    /// is always `true`.
    pub fn replace_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.swap(bytes, SHARED, path, read)
    }

    /// [`Store::replace_if`] for a file that only the owner may read.
    pub fn replace_secret_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.swap(bytes, SECRET, path, read)
    }

    #[cfg_attr(not(feature = "object-stores"), allow(unused_variables, reason = "a disk has no revisions"))]
    fn swap(&self, bytes: &[u8], mode: u32, path: &Path, read: &Revision) -> Result<bool, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place {
            let replaced = objects.replace_if(bytes.to_vec(), path, read.of_object.clone());
            return Ok(replaced.map_err(Error::io("replace", path))?.is_some());
        }
        let scratch = self.write_scratch(bytes, mode)?;
        fs::rename(&scratch, path).map_err(Error::io("replace", path))?;
        sync_parent(path).map(|()| true)
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

    /// Publishes a synced file durably under a name that must be free, and deletes the scratch name. `None` if the name was
    /// taken.
    pub fn link(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place {
            let bytes = fs::read(scratch).map_err(Error::io("read", scratch));
            let _ = fs::remove_file(scratch);
            return put(objects, bytes?.into(), path);
        }
        let taken = self.take_name(scratch, path);
        let _ = fs::remove_file(scratch);
        taken
    }

    /// Links a synced file on a disk durably to a name that must be free; keeps the scratch name. `None` if the name was taken.
    pub(super) fn take_name(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error> {
        match fs::hard_link(scratch, path) {
            Ok(()) => sync_parent(path).map(|()| Some(Revision::default())),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(Error::io("publish", path)(e)),
        }
    }

    /// Checks that files can be written, and deletes the test file.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.root.join(format!(".probe-{}", unique()));
        match &self.place {
            Place::Disk => fs::write(&path, b"").and_then(|()| fs::remove_file(&path)),
            #[cfg(feature = "object-stores")]
            Place::Objects(objects) => objects.probe(&path),
        }
    }

    /// A new store must not be created on a backend where names can be taken twice.
    pub(super) fn check_place(&self) -> Result<(), Error> {
        if self.place.is_disk() { Ok(()) } else { self.probe().map_err(Error::io("begin a store at", &self.root)) }
    }
}

/// Puts an object under a name that must be free. `None` if it was taken.
#[cfg(feature = "object-stores")]
pub(super) fn put(objects: &Objects, bytes: Bytes, path: &Path) -> Result<Option<Revision>, Error> {
    let created = objects.replace_if(bytes, path, None).map_err(Error::io("publish", path))?;
    Ok(created.map(|version| Revision { of_object: Some(version) }))
}

/// A file name that is unique across processes and machines: the process id is not sufficient, as in containers it is often the
/// same.
pub fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{}{}", *OURS, COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Prefix of this process's names.
static OURS: LazyLock<String> =
    LazyLock::new(|| format!("{}-{:016x}-", std::process::id(), RandomState::new().build_hasher().finish()));

/// Registers deletion of this process's files in a `tmp/` at its end, because interrupted threads leave them there.
fn delete_own_at_exit(tmp: &Path) {
    static KNOWN: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.contains(tmp) {
        return;
    }
    known.insert(tmp.to_owned());
    let tmp = tmp.to_owned();
    let delete = move || {
        for entry in fs::read_dir(&tmp).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(OURS.as_str()) {
                // It may be gone already, and errors can no longer be reported.
                let _ = fs::remove_file(entry.path()).or_else(|_| fs::remove_dir_all(entry.path()));
            }
        }
    };
    cleanup::register(delete).keep();
}

/// Creates a directory in a world-writable place. Old files in it are deleted later, so it must be owned by this user and not
/// be a symbolic link.
#[cfg(feature = "object-stores")]
fn make_own(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};

    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let found = fs::symlink_metadata(dir)?;
    if found.is_dir() && found.uid() == user() {
        return Ok(());
    }
    Err(io::Error::other("somebody else made it; say another TMPDIR"))
}

/// The effective user id of this process.
#[cfg(feature = "object-stores")]
fn user() -> u32 {
    // SAFETY: geteuid has no arguments, no side effects and cannot fail.
    unsafe { libc::geteuid() }
}

/// A new name is durable only once its directory is synced.
fn sync_parent(path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_published_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = dir.path().join("name");
        assert!(store.publish_bytes(b"first", &path).unwrap());
        assert!(!store.publish_bytes(b"second", &path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert!(store.replace_if(b"third", &path, &Revision::default()).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_of_killed_processes_are_deleted() {
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
}
