//! The directory of marks, the copy of `source.json`, and the mark of `keys.json`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::super::{Error, Source, Store};
use super::{DIR, KEYS};

impl Store {
    pub(crate) fn marks_dir(&self) -> PathBuf {
        self.root.join(DIR)
    }

    pub(super) fn make_marks_dir(&self) -> Result<(), Error> {
        let dir = self.marks_dir();
        self.place.make_dir(&dir).map_err(Error::io("make", &dir))
    }

    /// The partitions that have a mark.
    pub(crate) fn marked_partitions(&self) -> Result<Vec<i32>, Error> {
        let dir = self.marks_dir();
        let entries = self.place.list(&dir).map_err(Error::io("list", &dir))?;
        Ok(entries.iter().filter_map(|entry| entry.name.parse().ok()).collect())
    }

    pub(crate) fn source_copy(&self) -> PathBuf {
        self.marks_dir().join("source.json")
    }

    /// The mark of `keys.json`.
    pub fn keys_mark(&self) -> PathBuf {
        self.marks_dir().join(KEYS)
    }

    /// Whether the store has, or has lost, a `keys.json`.
    ///
    /// # Errors
    /// If the mark cannot be read.
    pub fn is_marked_for_keys(&self) -> Result<bool, Error> {
        Ok(self.read_revision(&self.keys_mark())?.0.is_some())
    }

    /// Notes that the store has a `keys.json`, which was written before.
    ///
    /// # Errors
    /// If the mark cannot be written.
    pub fn mark_for_keys(&self) -> Result<(), Error> {
        let path = self.keys_mark();
        let (had, revision) = self.read_revision(&path)?;
        if had.is_none() {
            self.make_marks_dir()?;
            // A concurrent writer wrote the same.
            self.replace_if(b"keys.json\n", &path, &revision)?;
        }
        Ok(())
    }

    /// Updates the copy of `source.json`.
    pub(crate) fn copy_source(&self, source: &Source) -> Result<(), Error> {
        let path = self.source_copy();
        let bytes = source.json();
        loop {
            let (had, revision) = self.read_revision(&path)?;
            let equal = had.as_deref() == Some(bytes.as_slice());
            if !equal {
                self.make_marks_dir()?;
            }
            if equal || self.replace_if(&bytes, &path, &revision)? {
                self.marks.copied.store(true, Ordering::Relaxed);
                return Ok(());
            }
        }
    }
}
