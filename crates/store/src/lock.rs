//! Locks: file locks of the system on a disk, leases on an object store.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
#[cfg(feature = "object-stores")]
use std::time::Duration;

use super::{Error, Log, Store};
#[cfg(feature = "object-stores")]
use super::{Place, objects::Lease};

/// A held lock, released when dropped or when the process ends.
#[derive(Debug)]
pub enum Held {
    /// A file lock of the system.
    File(#[allow(dead_code, reason = "its lock is what counts")] File),
    /// A lease on an object store.
    #[cfg(feature = "object-stores")]
    Lease(Lease),
}

impl Held {
    /// Whether the lock is certainly still held.
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::File(_) => true,
            #[cfg(feature = "object-stores")]
            Self::Lease(lease) => lease.holds(),
        }
    }
}

impl Store {
    /// Takes the lock that excludes a second `up`. Released when the result is dropped or the process ends.
    ///
    /// # Errors
    /// If another process holds the lock, or the backend fails.
    pub fn lock(&self) -> Result<Held, Error> {
        let path = self.root.join("up.lock");
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place {
            let take = |patience| Lease::take(objects, &path, patience).map_err(Error::io("lock", &path));
            let lease = match take(Duration::ZERO)? {
                Some(lease) => lease,
                None => {
                    tracing::info!("somebody holds {}; looking whether they live", path.display());
                    take(Lease::TELLS)?.ok_or_else(|| Error::Busy { path: self.root.clone() })?
                }
            };
            objects.feeds(&lease);
            return Ok(Held::Lease(lease));
        }
        let file = File::create(&path).map_err(Error::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Held::File(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Busy { path: self.root.clone() }),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
        }
    }

    /// Fails if this process held the feeding lock and may have lost it: records of two embedded brokers must never mix.
    pub(super) fn check_fed_by_us(&self) -> Result<(), Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place
            && objects.lost()
        {
            return Err(Error::Busy { path: self.root.clone() });
        }
        Ok(())
    }

    /// Waits until no other process changes `source.json` on a disk. On an object store, conditional puts replace this lock.
    pub(super) fn lock_source(&self) -> Result<Option<File>, Error> {
        if !self.place.is_disk() {
            return Ok(None);
        }
        let dir = self.marks_dir();
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let file = File::open(&dir).map_err(Error::io("open", &dir))?;
        file.lock().map_err(Error::io("lock", &dir))?;
        Ok(Some(file))
    }

    /// Waits for the lock of the model registry, held while a training or promotion changes it; released on drop.
    pub fn lock_models(&self) -> Result<Held, Error> {
        self.wait_for(&self.models().join("train.lock"), || {
            tracing::info!("a training of this store runs; waiting for its end");
        })
    }

    /// Waits for the lock of the API's keys.
    pub fn lock_keys(&self) -> Result<Held, Error> {
        self.wait_for(&self.root.join("keys.lock"), || {})
    }

    fn wait_for(&self, path: &Path, waits: impl FnOnce()) -> Result<Held, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.place {
            let take = |patience| Lease::take(objects, path, patience).map_err(Error::io("lock", path));
            if let Some(lease) = take(Duration::ZERO)? {
                return Ok(Held::Lease(lease));
            }
            waits();
            loop {
                if let Some(lease) = take(Duration::MAX)? {
                    return Ok(Held::Lease(lease));
                }
            }
        }
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
        let file = File::create(path).map_err(Error::io("write", path))?;
        match file.try_lock() {
            Ok(()) => return Ok(Held::File(file)),
            Err(TryLockError::WouldBlock) => waits(),
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
        }
        file.lock().map_err(Error::io("lock", path))?;
        Ok(Held::File(file))
    }
}

impl Log {
    /// Takes the lock for replacing files of this partition: two concurrent compactions would partly cover each other's files.
    /// `None` if it is held. Released when the process ends. On an object store a caller that `waits` watches a held lease up to
    /// [`Lease::TELLS`]; any other caller takes over the lease of a dead holder at a later call.
    #[cfg_attr(
        not(feature = "object-stores"),
        expect(unused_variables, reason = "the kernel releases file locks at once")
    )]
    pub(super) fn alone(&self, waits: bool) -> Result<Option<Held>, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.store.place {
            let path = self.dir.join("_rolling");
            let patience = if waits { Lease::TELLS } else { Duration::ZERO };
            let lease = Lease::take(objects, &path, patience).map_err(Error::io("lock", &path))?;
            return Ok(lease.map(Held::Lease));
        }
        let dir = match File::open(&self.dir) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &self.dir)(e)),
        };
        match dir.try_lock() {
            Ok(()) => Ok(Some(Held::File(dir))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &self.dir)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
