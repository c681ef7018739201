//! The locks of a store: file locks of the system on a disk, leases on an object store.

use super::backend::Held;
use super::{Error, Log, Store};

impl Store {
    /// Takes the lock that excludes a second `up`. Released when the result is dropped or the process ends.
    ///
    /// # Errors
    /// If another process holds the lock, or the backend fails.
    pub fn lock(&self) -> Result<Held, Error> {
        let held = self.place.try_lock(&self.root.join("up.lock"))?;
        held.ok_or_else(|| Error::Busy { path: self.root.clone() })
    }

    /// Fails if this process held the feeding lock and may have lost it: records of two embedded brokers must never mix.
    pub(super) fn check_fed_by_us(&self) -> Result<(), Error> {
        if self.place.lost_lock() { Err(Error::Busy { path: self.root.clone() }) } else { Ok(()) }
    }

    /// Waits until no other process changes `source.json` on a disk. On an object store, conditional puts replace this lock.
    pub(super) fn lock_source(&self) -> Result<Option<Held>, Error> {
        self.place.lock_dir(&self.marks_dir())
    }

    /// Waits for the lock of the model registry, held while a training or promotion changes it; released on drop.
    pub fn lock_models(&self) -> Result<Held, Error> {
        self.place.lock(&self.models().join("train.lock"), &|| {
            tracing::info!("a training of this store runs; waiting for its end");
        })
    }

    /// Waits for the lock of the API's keys.
    pub fn lock_keys(&self) -> Result<Held, Error> {
        self.place.lock(&self.root.join("keys.lock"), &|| {})
    }
}

impl Log {
    /// Takes the lock for replacing files of this partition: two concurrent compactions would partly cover each other's files.
    /// `None` if it is held. Released when the process ends. On an object store a caller that `waits` watches a held lease until
    /// it is clear whether its holder lives; any other caller takes over the lease of a dead holder at a later call.
    pub(super) fn alone(&self, waits: bool) -> Result<Option<Held>, Error> {
        self.store.place.try_lock_dir(&self.dir, waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_a_directory_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        std::fs::create_dir_all(store.models().join("train.lock")).unwrap();
        let error = store.lock_models().err().unwrap().to_string();
        assert!(error.contains("train.lock") && error.contains("it is a directory; remove it"), "{error}");
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
}
