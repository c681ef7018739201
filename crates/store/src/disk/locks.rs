//! Locks of files and directories, by the system: they end with the process.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

use super::directories::make_dirs;
use crate::Error;
use crate::backend::{Held, Lock};

/// A file lock of the system.
impl Lock for File {
    fn holds(&self) -> bool {
        true
    }
}

pub(super) fn try_lock(path: &Path) -> Result<Option<Held>, Error> {
    locked(File::create(path).map_err(Error::io("write", path))?, path)
}

pub(super) fn lock(path: &Path, waits: &dyn Fn()) -> Result<Held, Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    make_dirs(dir).map_err(Error::io("make", dir))?;
    if path.is_dir() {
        let why = io::Error::other("it is a directory; remove it, and tercile makes a file of this name");
        return Err(Error::io("lock", path)(why));
    }
    let file = File::create(path).map_err(Error::io("write", path))?;
    match file.try_lock() {
        Ok(()) => return Ok(Held::new(file)),
        Err(TryLockError::WouldBlock) => waits(),
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
    }
    file.lock().map_err(Error::io("lock", path))?;
    Ok(Held::new(file))
}

pub(super) fn try_lock_dir(dir: &Path) -> Result<Option<Held>, Error> {
    match File::open(dir) {
        Ok(file) => locked(file, dir),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("open", dir)(e)),
    }
}

pub(super) fn lock_dir(dir: &Path) -> Result<Option<Held>, Error> {
    make_dirs(dir).map_err(Error::io("make", dir))?;
    let file = File::open(dir).map_err(Error::io("open", dir))?;
    file.lock().map_err(Error::io("lock", dir))?;
    Ok(Some(Held::new(file)))
}

/// Takes the lock of an open file; `None` if it is held.
fn locked(file: File, path: &Path) -> Result<Option<Held>, Error> {
    match file.try_lock() {
        Ok(()) => Ok(Some(Held::new(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", path)(e)),
    }
}
