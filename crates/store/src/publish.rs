//! Atomic publishing: a file appears under its name whole or not at all, and a free name is taken only once.

use std::fs;
use std::io;
use std::path::Path;

use super::backend::Access;
use super::revision::Revision;
use super::scratch::unique;
use super::{Error, Store};

impl Store {
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
}
