//! The disk backend: a directory.
//!
//! A file is written under a unique name in `tmp/`, synced, and then linked (which fails if the name is taken) or renamed.

mod directories;
mod locks;
mod range_reader;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;
use directories::{make_dirs, same_file, sync_parent};

use super::Error;
use super::backend::{Access, Backend, Entry, Held, Input, Staged, StagedFile};
use super::log_cache::{LogCache, NoCache};
use super::revision::Revision;
use super::scratch::scratch_in;
use super::write::{Span, write_parquet};

/// A directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    tmp: PathBuf,
}

impl Disk {
    pub fn new(root: &Path) -> Self {
        Self { tmp: root.join("tmp") }
    }

    fn write_scratch(&self, bytes: &[u8], access: Access) -> Result<PathBuf, Error> {
        let scratch = scratch_in(&self.tmp);
        let mode = match access {
            Access::Shared => 0o666,
            Access::Owner => 0o600,
        };
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
}

impl Backend for Disk {
    fn is_disk(&self) -> bool {
        true
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let names = entries(dir)?.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.map(|name| Entry { name, ..Entry::default() }).collect())
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let dirs = entries(dir)?.into_iter().filter(|entry| entry.path().is_dir());
        Ok(dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn read_revision(&self, path: &Path) -> io::Result<(Option<Vec<u8>>, Revision)> {
        match fs::read(path) {
            Ok(bytes) => Ok((Some(bytes), Revision::None)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((None, Revision::None)),
            Err(e) => Err(e),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Input> {
        File::open(path).map(Input::new)
    }

    fn delete(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        fs::metadata(path).and_then(|meta| meta.modified())
    }

    fn stamp(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn note(&self, _bytes: &[u8], _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn set_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        make_dirs(to.parent().unwrap_or(to))?;
        fs::rename(from, to)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        make_dirs(dir)
    }

    fn probe(&self, path: &Path) -> io::Result<()> {
        fs::write(path, b"").and_then(|()| fs::remove_file(path))
    }

    fn tmp(&self) -> PathBuf {
        self.tmp.clone()
    }

    fn make_tmp(&self) -> Result<(), Error> {
        fs::create_dir_all(&self.tmp).map_err(Error::io("make the store's directory", &self.tmp))
    }

    fn stage(&self, records: &RecordBatch, span: Span, _path: &Path) -> Result<Staged, Error> {
        let scratch = Scratch(scratch_in(&self.tmp));
        self.make_tmp()?;
        let (size, checksums) = write_parquet(&scratch.0, records, &span)?;
        let file = OnDisk { disk: self.clone(), scratch, size, records: records.clone(), span };
        Ok(Staged { file: Box::new(file), size, checksums })
    }

    fn publish(&self, bytes: &[u8], path: &Path) -> Result<Option<Revision>, Error> {
        let scratch = Scratch(self.write_scratch(bytes, Access::Shared)?);
        self.publish_file(&scratch.0, path)
    }

    fn publish_file(&self, scratch: &Path, path: &Path) -> Result<Option<Revision>, Error> {
        match fs::hard_link(scratch, path) {
            Ok(()) => {}
            // An attempt before this one may have failed after its link.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && same_file(scratch, path) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(e) => return Err(Error::io("publish", path)(e)),
        }
        sync_parent(path).map(|()| Some(Revision::None))
    }

    fn replace(&self, bytes: &[u8], path: &Path, _read: &Revision, access: Access) -> Result<bool, Error> {
        let scratch = self.write_scratch(bytes, access)?;
        fs::rename(&scratch, path).map_err(Error::io("replace", path))?;
        sync_parent(path).map(|()| true)
    }

    fn try_lock(&self, path: &Path) -> Result<Option<Held>, Error> {
        locks::try_lock(path)
    }

    fn lock(&self, path: &Path, waits: &dyn Fn()) -> Result<Held, Error> {
        locks::lock(path, waits)
    }

    fn try_lock_dir(&self, dir: &Path, _waits: bool) -> Result<Option<Held>, Error> {
        locks::try_lock_dir(dir)
    }

    fn lock_dir(&self, dir: &Path) -> Result<Option<Held>, Error> {
        locks::lock_dir(dir)
    }

    fn log_cache(&self) -> Arc<dyn LogCache> {
        Arc::new(NoCache)
    }
}

/// A file in `tmp/` that is deleted on drop.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A remaining file is deleted by `sweep`.
        let _ = fs::remove_file(&self.0);
    }
}

/// A file in `tmp/`, synced, and its records, from which it can be written again if it is lost.
#[derive(Debug)]
struct OnDisk {
    disk: Disk,
    scratch: Scratch,
    size: u64,
    records: RecordBatch,
    span: Span,
}

impl OnDisk {
    /// Writes the file again if it was lost or cut off before it had its name.
    fn restore(&self) -> Result<(), Error> {
        let scratch = &self.scratch.0;
        if fs::metadata(scratch).is_ok_and(|found| found.len() == self.size) {
            return Ok(());
        }
        tracing::warn!("{} was lost before it was published; it is written anew", scratch.display());
        self.disk.make_tmp()?;
        match fs::remove_file(scratch) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", scratch)(e)),
            _ => {}
        }
        write_parquet(scratch, &self.records, &self.span).map(drop)
    }
}

impl StagedFile for OnDisk {
    fn publish(&self, path: &Path) -> Result<Option<Revision>, Error> {
        self.restore()?;
        let dir = path.parent().unwrap_or(Path::new("."));
        make_dirs(dir).map_err(Error::io("make", dir))?;
        self.disk.publish_file(&self.scratch.0, path)
    }

    fn is_at(&self, path: &Path) -> bool {
        same_file(&self.scratch.0, path)
    }
}

/// The entries of a directory; empty if it does not exist.
fn entries(dir: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::contract::{Two, test_contract};
    use crate::place::Place;

    fn two() -> (Two, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let [one, other] = [(); 2].map(|()| Place::new(Disk::new(&root)));
        (Two { one, other, root }, dir)
    }

    test_contract!(two);
}
