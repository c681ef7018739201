//! The object store backend: [`Objects`] behind the trait [`Backend`].
//!
//! A put publishes a whole object under its name, so files need no temporary name; a lease takes the place of a file lock.

#![allow(unsafe_code, reason = "reads the user of the process")]

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use bytes::Bytes;
use object_store::ObjectStore;
use parquet::errors::{ParquetError, Result as ParquetResult};

use super::catalog::Catalog;
use super::{Lease, Object, Objects, Version};
use crate::backend::{Access, Backend, Entry, Held, Input, Lock, RangeReader, Staged, StagedFile};
use crate::log_cache::LogCache;
use crate::place::Place;
use crate::revision::Revision;
use crate::write::{Span, write_to};
use crate::{Error, SmallFiles, Store};

/// A prefix of an object store.
#[derive(Debug)]
pub struct ObjectBackend(Arc<Objects>);

impl Store {
    /// A store on any object store. `root` is the URL of its prefix.
    ///
    /// # Errors
    /// [`Error::Url`] if the URL cannot be parsed, [`Error::Io`] if no directory for temporary files can be created.
    pub fn over(root: &str, objects: Arc<dyn ObjectStore>) -> Result<Self, Error> {
        let store = Self::of(PathBuf::from(root), Place::new(ObjectBackend::over(root, objects)?));
        store.make_tmp()?;
        Ok(store)
    }
}

impl ObjectBackend {
    /// The backend for a URL; see [`Objects::open`].
    pub fn open(root: &Path) -> Result<Self, Error> {
        Ok(Self(Arc::new(Objects::open(root)?)))
    }

    /// The backend for a prefix of any object store.
    pub fn over(root: &str, objects: Arc<dyn ObjectStore>) -> Result<Self, Error> {
        Ok(Self(Arc::new(Objects::over(root, objects)?)))
    }

    fn take(&self, path: &Path, patience: Duration) -> Result<Option<Lease>, Error> {
        Lease::take(&self.0, path, patience).map_err(Error::io("lock", path))
    }
}

impl Backend for ObjectBackend {
    fn is_disk(&self) -> bool {
        false
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.0.list(dir)
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.dirs(dir)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path)
    }

    fn read_revision(&self, path: &Path) -> io::Result<(Option<Vec<u8>>, Revision)> {
        Ok(match self.0.read_version(path)? {
            Some((bytes, version)) => (Some(bytes), version.into()),
            None => (None, Revision::None),
        })
    }

    fn open(&self, path: &Path) -> io::Result<Input> {
        self.0.open_object(path).map(Input::new)
    }

    fn open_known(&self, path: &Path, size: u64) -> io::Result<Input> {
        match self.0.cached_object(path, size) {
            Some(cached) => Ok(Input::new(cached)),
            None => self.open(path),
        }
    }

    fn delete(&self, path: &Path) -> io::Result<()> {
        self.0.delete(path)
    }

    fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        self.0.modified(path)
    }

    fn stamp(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.stamp(path)
    }

    fn note(&self, bytes: &[u8], path: &Path) -> io::Result<()> {
        self.0.put(bytes, path)
    }

    fn set_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.set_aside(from, to)
    }

    fn make_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn probe(&self, path: &Path) -> io::Result<()> {
        self.0.probe(path)
    }

    fn tmp(&self) -> PathBuf {
        std::env::temp_dir().join(format!("tercile-{}", user()))
    }

    fn make_tmp(&self) -> Result<(), Error> {
        let tmp = self.tmp();
        make_own(&tmp).map_err(Error::io("make the directory of files on their way", &tmp))
    }

    fn stage(&self, records: &RecordBatch, span: Span, path: &Path) -> Result<Staged, Error> {
        let written = write_to(Vec::new(), records, &span);
        let written = written.map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
        let size = written.output.len() as u64;
        let file = InMemory { objects: Arc::clone(&self.0), bytes: written.output.into() };
        Ok(Staged { file: Box::new(file), size, checksums: written.checksums })
    }

    fn publish(&self, bytes: &[u8], path: &Path) -> Result<Option<Revision>, Error> {
        put(&self.0, bytes.to_vec().into(), path)
    }

    fn publish_file(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error> {
        put(&self.0, fs::read(scratch).map_err(Error::io("read", scratch))?.into(), path)
    }

    fn replace(&self, bytes: &[u8], path: &Path, read: &Revision, _access: Access) -> Result<bool, Error> {
        let replaced = self.0.replace_if(bytes.to_vec(), path, read.into());
        Ok(replaced.map_err(Error::io("replace", path))?.is_some())
    }

    fn try_lock(&self, path: &Path) -> Result<Option<Held>, Error> {
        let lease = match self.take(path, Duration::ZERO)? {
            Some(lease) => Some(lease),
            None => {
                tracing::info!("somebody holds {}; looking whether they live", path.display());
                self.take(path, Lease::TELLS)?
            }
        };
        Ok(lease.map(|lease| {
            self.0.feeds(&lease);
            Held::new(lease)
        }))
    }

    fn lost_lock(&self) -> bool {
        self.0.lost()
    }

    fn lock(&self, path: &Path, waits: &dyn Fn()) -> Result<Held, Error> {
        if let Some(lease) = self.take(path, Duration::ZERO)? {
            return Ok(Held::new(lease));
        }
        waits();
        loop {
            if let Some(lease) = self.take(path, Duration::MAX)? {
                return Ok(Held::new(lease));
            }
        }
    }

    fn try_lock_dir(&self, dir: &Path, waits: bool) -> Result<Option<Held>, Error> {
        let patience = if waits { Lease::TELLS } else { Duration::ZERO };
        Ok(self.take(&dir.join("_rolling"), patience)?.map(Held::new))
    }

    fn lock_dir(&self, _dir: &Path) -> Result<Option<Held>, Error> {
        Ok(None)
    }

    fn log_cache(&self) -> Arc<dyn LogCache> {
        Arc::new(Catalog::new(&self.0))
    }

    fn client(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(self.0.for_queries())
    }

    fn small_files(&self) -> Option<Arc<SmallFiles>> {
        Some(self.0.small_files())
    }
}

impl Lock for Lease {
    fn holds(&self) -> bool {
        Lease::holds(self)
    }
}

impl RangeReader for Object {
    fn size(&self) -> u64 {
        Object::size(self)
    }

    fn reader(&self, start: u64) -> ParquetResult<Box<dyn Read>> {
        Ok(Box::new(Object::reader(self, start)))
    }

    fn bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        Object::bytes(self, start, length).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ParquetError::EOF("it is shorter than it says".to_owned()),
            _ => ParquetError::External(Box::new(e)),
        })
    }
}

impl From<Version> for Revision {
    fn from(Version { e_tag, version }: Version) -> Self {
        Self::Object { e_tag, version }
    }
}

impl From<&Revision> for Option<Version> {
    fn from(revision: &Revision) -> Self {
        match revision.clone() {
            Revision::None => None,
            Revision::Object { e_tag, version } => Some(Version { e_tag, version }),
        }
    }
}

/// A file in memory, because a put needs all of it.
#[derive(Debug)]
struct InMemory {
    objects: Arc<Objects>,
    bytes: Bytes,
}

impl StagedFile for InMemory {
    fn publish(&self, path: &Path) -> Result<Option<Revision>, Error> {
        put(&self.objects, self.bytes.clone(), path)
    }
}

/// Puts an object under a name that must be free. `None` if it was taken.
fn put(objects: &Objects, bytes: Bytes, path: &Path) -> Result<Option<Revision>, Error> {
    Ok(objects.replace_if(bytes, path, None).map_err(Error::io("publish", path))?.map(Revision::from))
}

/// Creates a directory in a world-writable place. Old files in it are deleted later, so it must be owned by this user and not
/// be a symbolic link.
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
fn user() -> u32 {
    // SAFETY: geteuid has no arguments, no side effects and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use super::super::flaky::Flaky;
    use super::*;
    use crate::backend::contract::{Two, test_contract};

    /// The same prefix of a service as seen by two processes.
    fn two(service: impl ObjectStore + Clone) -> (Two, ()) {
        let root = "s3://test/a/store";
        let [one, other] = [(); 2].map(|()| {
            let service = Arc::new(service.clone());
            Place::new(ObjectBackend::over(root, service).unwrap())
        });
        (Two { one, other, root: PathBuf::from(root) }, ())
    }

    /// Requests neither fail nor lag.
    mod in_memory {
        use super::*;

        test_contract!(|| two(Flaky::slow(Duration::ZERO, 1)));
    }

    /// Requests fail before or after they take effect, and lists lag.
    mod with_faults {
        use super::*;

        test_contract!(|| two(Flaky::new(1)));
    }
}
