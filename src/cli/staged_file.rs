//! Files that get their name only when they are complete.
//!
//! Input: a directory and bytes. Output: a named file in that directory, or nothing. On Linux a staged file has no
//! name (`O_TMPFILE`), so it disappears however the process ends, even by SIGKILL. If the filesystem does not support
//! this (NFS, for example), the file has a hidden name, which is removed when the value is dropped and when the
//! process exits; only a signal that kills the process at once leaves it behind.

#![allow(unsafe_code, reason = "links an unnamed file to a name, which the standard library cannot do")]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tercile_store::cleanup::{self, Registered};
use tercile_store::unique;

/// Prefix of hidden names.
const PREFIX: &str = ".tercile-";

/// A file without its final name.
pub struct StagedFile {
    file: File,
    dir: PathBuf,
    /// The hidden name, if any, registered for removal when the process ends.
    name: Option<(PathBuf, Registered)>,
    /// Whether it has its final name, which may not be durable yet.
    in_place: bool,
}

impl StagedFile {
    /// Creates an empty file in a directory, with permissions according to the umask.
    pub fn create_in(dir: &Path) -> io::Result<Self> {
        match unnamed(dir) {
            Some(file) => Ok(Self { file, dir: dir.to_owned(), name: None, in_place: false }),
            None => Self::named(dir),
        }
    }

    /// Creates a file with a hidden name.
    fn named(dir: &Path) -> io::Result<Self> {
        let name = hidden_name(dir);
        let file = File::options().read(true).write(true).create_new(true).open(&name)?;
        let registered = cleanup::file(&name);
        Ok(Self { file, dir: dir.to_owned(), name: Some((name, registered)), in_place: false })
    }

    /// Takes over a complete file that another writer created under a hidden name.
    pub fn adopt(name: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(name)?;
        let dir = name.parent().unwrap_or(Path::new(".")).to_owned();
        Ok(Self { file, dir, name: Some((name.to_owned(), cleanup::file(name))), in_place: false })
    }

    /// An unused hidden name in the same directory.
    pub fn hidden_name(&self) -> PathBuf {
        hidden_name(&self.dir)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Renames the file to `target` in the same directory and replaces an existing file. The result is durable. The
    /// call can be repeated after an error, but not after a success.
    pub fn replace(&mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        if self.name.is_none() && !self.in_place {
            let name = self.hidden_name();
            link_unnamed(&self.file, &name)?;
            let registered = cleanup::file(&name);
            self.name = Some((name, registered));
        }
        if let Some((name, _)) = &self.name {
            fs::rename(name, target)?;
            (self.name, self.in_place) = (None, true);
        }
        sync_dir(&self.dir)
    }

    /// Whether [`StagedFile::replace`] gave the file its name, be it durable or not.
    pub fn is_in_place(&self) -> bool {
        self.in_place
    }

    /// Gives the file the name `target` in the same directory. The name must be unused.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken.
    pub fn publish_new(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        match &self.name {
            None => link_unnamed(&self.file, target)?,
            Some((name, _)) => fs::hard_link(name, target)?,
        }
        sync_dir(&self.dir)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if let Some((name, _)) = &self.name {
            let _ = fs::remove_file(name);
        }
    }
}

fn hidden_name(dir: &Path) -> PathBuf {
    dir.join(format!("{PREFIX}{}", unique()))
}

/// A file without a name; `None` if the filesystem does not support it.
#[cfg(target_os = "linux")]
fn unnamed(dir: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    // Without /proc the file could not get a name later.
    if !Path::new("/proc/self/fd").is_dir() {
        return None;
    }
    File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(dir).ok()
}

#[cfg(not(target_os = "linux"))]
fn unnamed(_: &Path) -> Option<File> {
    None
}

/// Gives an unnamed file an unused name.
#[cfg(target_os = "linux")]
fn link_unnamed(file: &File, name: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::ffi::OsStrExt as _;

    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: both strings end with a zero byte and outlive the call.
    let linked =
        unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    if linked == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn link_unnamed(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// A new name is durable only after its directory is synced. Some filesystems cannot sync a directory and do not need
/// it.
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => Ok(()),
        // A directory may be writable without being readable.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn both(dir: &Path) -> [StagedFile; 2] {
        [StagedFile::create_in(dir).unwrap(), StagedFile::named(dir).unwrap()]
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        for (i, mut staged) in both(dir.path()).into_iter().enumerate() {
            fs::write(&target, "old").unwrap();
            write!(staged.file(), "new {i}").unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), "old");
            staged.replace(&target).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), format!("new {i}"));
        }
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_name_that_is_taken_stays_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("x");
        for staged in both(dir.path()) {
            fs::write(&target, "old").unwrap();
            assert_eq!(staged.publish_new(&target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        }
        for staged in both(dir.path()) {
            fs::remove_file(&target).unwrap();
            staged.publish_new(&target).unwrap();
        }
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn what_is_dropped_or_cannot_be_moved_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("taken")).unwrap();
        for staged in both(dir.path()) {
            staged.file().write_all(b"half").unwrap();
            drop(staged);
        }
        for mut staged in both(dir.path()) {
            assert!(staged.replace(&dir.path().join("taken")).is_err(), "a directory is not replaced");
        }
        assert_eq!(names(dir.path()), ["taken"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn on_a_disk_of_linux_it_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let Some(file) = unnamed(dir.path()) else {
            eprintln!("skipped: the filesystem of {} has no unnamed files", dir.path().display());
            return;
        };
        assert_eq!(names(dir.path()), Vec::<String>::new());
        drop(file);
        assert!(StagedFile::create_in(&dir.path().join("nowhere")).is_err());
    }
}
