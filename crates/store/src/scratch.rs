//! Temporary files: their names, and their deletion at the end of the process and after a kill.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use crate::{Error, Store, cleanup};

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

    /// Deletes what killed processes left in `tmp/` and did not write to for `idle`.
    ///
    /// # Errors
    /// The first error; what can be deleted is deleted anyway.
    pub fn sweep(&self, idle: Duration) -> Result<(), Error> {
        let dir = self.tmp();
        let mut failed = None;
        for entry in fs::read_dir(&dir).map_err(Error::io("list", &dir))?.flatten() {
            let path = entry.path();
            // Another process may delete it concurrently.
            if idle_for(&path).is_some_and(|time| time > idle) {
                match remove(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        failed.get_or_insert(Error::io("delete", &path)(e));
                    }
                    _ => {}
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A unique path in a directory of temporary files. The file is deleted at the end of the process.
pub(super) fn scratch_in(tmp: &Path) -> PathBuf {
    delete_own_at_exit(tmp);
    tmp.join(unique())
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

/// Deletes a file, or a directory of [`Store::shared_scratch`].
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

/// Time since the last modification of a file, or of a directory and its files; `None` if it no longer exists.
fn idle_for(path: &Path) -> Option<Duration> {
    let files = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let written = |path: &Path| fs::symlink_metadata(path).ok()?.modified().ok();
    let last = files.filter_map(|file| written(&file)).chain(written(path)).max()?;
    last.elapsed().ok()
}

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
                let _ = remove(&entry.path());
            }
        }
    };
    cleanup::register(delete).keep();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn leftovers_of_killed_processes_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let [old, new] = [store.scratch(), store.scratch()];
        let [old_shared, new_shared] = [(); 2].map(|()| store.shared_scratch().unwrap());
        for path in [&old, &new, &old_shared, &new_shared] {
            fs::write(path, "half a file").unwrap();
        }
        let then = SystemTime::now() - Duration::from_secs(7200);
        // The age of a directory is that of its newest file.
        for path in [&old, &old_shared, old_shared.parent().unwrap(), new_shared.parent().unwrap()] {
            File::open(path).unwrap().set_modified(then).unwrap();
        }
        store.sweep(Duration::from_secs(3600)).unwrap();
        assert_eq!([&old, &new, &old_shared, &new_shared].map(|path| path.exists()), [false, true, false, true]);
        assert!(!old_shared.parent().unwrap().exists());
    }
}
