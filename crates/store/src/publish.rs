//! Atomic publishing: a file appears under its name whole or not at all, and a free name is taken only once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::backend::Access;
use super::revision::Revision;
use super::scratch::{scratch_in, unique};
use super::{Error, Store};

/// Age after which files left by killed processes are deleted; a live writer touches its file more often.
pub const LEFTOVER: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// The directory of temporary files; for an object store on this machine.
    pub fn tmp(&self) -> PathBuf {
        self.place.tmp()
    }

    /// Creates the directory above.
    pub(super) fn make_tmp(&self) -> Result<(), Error> {
        self.place.make_tmp()
    }

    /// A unique path in `tmp/`, across processes, machines and time. The file is deleted at the end of the process.
    pub fn scratch(&self) -> PathBuf {
        scratch_in(&self.tmp())
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
        Ok(self.place.publish(bytes, path)?.is_some())
    }

    /// Reads a mutable file and its revision.
    pub fn read_revision(&self, path: &Path) -> Result<(Option<Vec<u8>>, Revision), Error> {
        self.place.read_revision(path).map_err(Error::io("read", path))
    }

    /// Replaces a file if it still has the revision that was read: readers see the old or the new content, never a part.
    /// `false` if another process changed it; then nothing changed. On a disk the caller's lock excludes others, and the result
    /// is always `true`.
    pub fn replace_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.place.replace(bytes, path, read, Access::Shared)
    }

    /// [`Store::replace_if`] for a file that only the owner may read.
    pub fn replace_secret_if(&self, bytes: &[u8], path: &Path, read: &Revision) -> Result<bool, Error> {
        self.place.replace(bytes, path, read, Access::Owner)
    }

    /// Publishes a synced file durably under a name that must be free, and deletes the scratch name. `None` if the name was
    /// taken.
    pub fn link(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error> {
        let taken = self.place.publish_file(scratch, path);
        let _ = fs::remove_file(scratch);
        taken
    }

    /// Checks that files can be written, and deletes the test file.
    ///
    /// # Errors
    /// If the backend refuses.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.root.join(format!(".probe-{}", unique()));
        self.place.probe(&path)
    }

    /// A new store must not be created on a backend where names can be taken twice.
    pub(super) fn check_place(&self) -> Result<(), Error> {
        if self.place.is_disk() { Ok(()) } else { self.probe().map_err(Error::io("begin a store at", &self.root)) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
