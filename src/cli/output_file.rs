//! Atomic replacement of output files named by the user: a file is complete or unchanged.
//!
//! Input: the path given to an output flag. Output: a writer. Data is written to a staged file in the same directory,
//! which is renamed on [`Output::commit`]. Therefore a file that is both input and output is read completely before
//! it is replaced, and a command that fails, is cancelled or fills the disk leaves it unchanged.
//!
//! - An existing file keeps its permissions and, if the process may set it, its owner. Access control lists and
//!   extended attributes are not kept, and other hard links keep the old content.
//! - A symbolic link is kept, and its target is replaced.
//! - A path that is not a regular file (`/dev/null`, a FIFO, a process substitution, `/dev/stdout` even if it leads
//!   to a file) is written directly. `-` is stdout.

#![allow(unsafe_code, reason = "duplicates a descriptor that belongs to the parent process")]

use std::fs::{self, File, Metadata};
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{anyhow, bail};
use clap::ValueEnum;
use clap::builder::{PathBufValueParser, TypedValueParser as _, ValueParser, ValueParserFactory};

use super::Usage;
use super::staged_file::StagedFile;
use crate::file_format;

/// Maximum length of a chain of symbolic links, the same as in Linux.
const LINKS: usize = 40;

/// The value of a flag that names an output file. Every such flag has this type, and a test finds the flags by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFile(PathBuf);

impl ValueParserFactory for OutputFile {
    type Parser = ValueParser;

    fn value_parser() -> ValueParser {
        PathBufValueParser::new().map(OutputFile).into()
    }
}

impl OutputFile {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the output is this existing file, by whatever path.
    pub fn is_same(&self, file: &Path) -> bool {
        fs::canonicalize(&self.0).is_ok_and(|output| fs::canonicalize(file).is_ok_and(|file| file == output))
    }

    /// The format to write: `given`, otherwise the format of the file's extension, otherwise `None`.
    ///
    /// # Errors
    /// Usage error if the extension contradicts `given` or is not one of the formats `F`.
    pub fn format<F: ValueEnum>(&self, given: Option<F>) -> Result<Option<F>, Usage> {
        file_format::for_output(&self.0, given).map_err(Usage)
    }

    /// Checks that the file's extension does not contradict the only format that a command writes.
    pub fn check_format(&self, format: &str) -> Result<(), Usage> {
        file_format::check_output(&self.0, format).map_err(Usage)
    }

    /// Opens the output. Commands call it before they do any work, so that an unwritable file is reported at once.
    pub fn open(&self) -> anyhow::Result<Output> {
        let shown = self.0.display();
        if self.0.as_os_str() == "-" {
            return Output::stdout();
        }
        let target = follow(&self.0).map_err(|e| anyhow!("cannot write {shown}: {e}"))?;
        if let Some(number) = own_descriptor(&target) {
            let file = duplicate(number).map_err(|e| anyhow!("cannot write {shown}: {e}"))?;
            return Ok(Output::direct(Some(self.clone()), file.into()));
        }
        let existing = match fs::metadata(&target) {
            Ok(metadata) => Some(metadata),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => bail!("cannot write {shown}: {e}"),
        };
        let directory = target.as_os_str().as_encoded_bytes().ends_with(b"/");
        if directory || existing.as_ref().is_some_and(Metadata::is_dir) {
            bail!("cannot write {shown}: it is a directory; name a file in it");
        }
        if existing.is_some() {
            // Neither creates nor truncates the file: a read-only file must not be replaced either.
            let file = File::options().write(true).open(&target).map_err(|e| anyhow!("cannot write {shown}: {e}"))?;
            if existing.as_ref().is_some_and(|metadata| !metadata.is_file()) {
                return Ok(Output::direct(Some(self.clone()), file));
            }
        }
        let dir = parent(&target);
        if !dir.is_dir() {
            bail!("cannot write {shown}: there is no directory {}; make it first", dir.display());
        }
        let staged = StagedFile::create_in(dir).map_err(|e| {
            anyhow!("cannot write {shown}: no file can be made in {}: {e}; choose another directory", dir.display())
        })?;
        if let Some(existing) = &existing {
            keep_permissions(staged.file(), existing).map_err(|e| anyhow!("cannot write {shown}: {e}"))?;
        }
        let to = To::Staged { file: staged, target };
        Ok(Output { named: Some(self.clone()), to, published: false, failure: Mutex::default() })
    }
}

/// An output of a command. Writing takes a shared reference, as with [`File`]. A buffering caller must flush and
/// check the error.
pub struct Output {
    /// `None` is stdout.
    named: Option<OutputFile>,
    to: To,
    /// True if the staged file has been renamed, so that nothing may be written to it any more.
    published: bool,
    /// The first failed write. Format writers may drop a buffer without reporting that it could not be written.
    failure: Mutex<Option<(io::ErrorKind, String)>>,
}

enum To {
    Staged { file: StagedFile, target: PathBuf },
    Direct(File),
}

/// The length of an output at one moment, used to roll back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(Option<u64>);

impl Output {
    /// Opens the file of a flag, or stdout without the flag.
    pub fn open(flag: Option<&OutputFile>) -> anyhow::Result<Self> {
        flag.map_or_else(Self::stdout, OutputFile::open)
    }

    fn stdout() -> anyhow::Result<Self> {
        let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|e| anyhow!("cannot write to stdout: {e}"))?;
        Ok(Self::direct(None, stdout.into()))
    }

    fn direct(named: Option<OutputFile>, file: File) -> Self {
        Self { named, to: To::Direct(file), published: false, failure: Mutex::default() }
    }

    /// The file as named by the user; `None` is stdout.
    pub fn named(&self) -> Option<&OutputFile> {
        self.named.as_ref()
    }

    /// True for a file to which nothing was written, so that without [`Output::commit`] it stays unchanged.
    pub fn is_untouched(&self) -> bool {
        matches!(self.mark(), Ok(Mark(Some(0))))
    }

    /// Replaces the target by the written data, durably. Without a commit the target stays unchanged.
    ///
    /// # Errors
    /// If an earlier write failed or the rename fails: the target is unchanged then. Or if the directory cannot be synced.
    pub fn commit(mut self) -> io::Result<()> {
        self.publish()
    }

    /// Replaces the target by the data written so far, durably. Call [`Output::begin`] before writing more.
    ///
    /// # Errors
    /// Same as [`Output::commit`].
    pub fn publish(&mut self) -> io::Result<()> {
        if let Some((kind, why)) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(io::Error::new(kind, why));
        }
        if let To::Staged { file, target } = &mut self.to
            && !self.published
        {
            if let Err(error) = file.replace(target) {
                return Err(failed(self.named.as_ref(), !file.is_in_place(), &error));
            }
            self.published = true;
        }
        Ok(())
    }

    /// A hidden path in the same directory and with the same extension, for a writer other than this type; `None` if
    /// the output is not a regular file.
    pub fn hidden_path(&self) -> Option<PathBuf> {
        let To::Staged { file, target } = &self.to else { return None };
        let mut name = file.hidden_name().into_os_string();
        if let Some(ending) = target.extension() {
            name.push(".");
            name.push(ending);
        }
        Some(name.into())
    }

    /// Replaces the data written so far by a file that another writer wrote to the path of [`Output::hidden_path`].
    pub fn adopt(&mut self, path: &Path) -> io::Result<()> {
        if let To::Staged { file, .. } = &mut self.to {
            let adopted = StagedFile::adopt(path).map_err(|e| failed(self.named.as_ref(), true, &e))?;
            keep_permissions(adopted.file(), &file.file().metadata()?)?;
            *file = adopted;
        }
        Ok(())
    }

    /// Starts writing, after the data published before, if any. Returns a mark to roll back to.
    pub fn begin(&mut self) -> io::Result<Mark> {
        if let To::Staged { file, target } = &mut self.to
            && self.published
        {
            let cannot = |e: io::Error| failed(self.named.as_ref(), true, &e);
            let staged = StagedFile::create_in(parent(target)).map_err(cannot)?;
            keep_permissions(staged.file(), &file.file().metadata()?)?;
            file.file().rewind()?;
            io::copy(&mut file.file(), &mut staged.file()).map_err(cannot)?;
            *file = staged;
            self.published = false;
        }
        self.mark()
    }

    /// The current position. All buffers must have been flushed.
    pub fn mark(&self) -> io::Result<Mark> {
        match &self.to {
            To::Staged { file, .. } => Ok(Mark(Some(file.file().stream_position()?))),
            To::Direct(_) => Ok(Mark(None)),
        }
    }

    /// Removes the data written since the mark, if possible, and clears recorded failures.
    pub fn back_to(&self, mark: Mark) -> io::Result<()> {
        if let (To::Staged { file, .. }, Mark(Some(length))) = (&self.to, mark) {
            file.file().set_len(length)?;
            file.file().seek(SeekFrom::Start(length))?;
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    fn file(&self) -> io::Result<&File> {
        match &self.to {
            To::Staged { .. } if self.published => Err(io::Error::other("it is complete")),
            To::Staged { file, .. } => Ok(file.file()),
            To::Direct(file) => Ok(file),
        }
    }
}

impl Write for &Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().and_then(|mut file| file.write(bytes)).map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            let error = failed(self.named.as_ref(), matches!(self.to, To::Staged { .. }), &error);
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| (error.kind(), error.to_string()));
            error
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A write error with the file's name and the outcome. The kind is kept, because a closed pipe is not a failure.
fn failed(named: Option<&OutputFile>, staged: bool, error: &io::Error) -> io::Error {
    let shown = named.map_or_else(|| "to stdout".to_owned(), |file| file.0.display().to_string());
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free some space or write elsewhere",
        _ => "",
    };
    let unchanged = if staged { "; nothing was changed" } else { "" };
    io::Error::new(error.kind(), format!("cannot write {shown}: {error}{unchanged}{advice}"))
}

/// Resolves symbolic links to an existing or missing target. Links in `/proc/self/fd` are not resolved, because they
/// are open files.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if own_descriptor(&path).is_some() {
            return Ok(path);
        }
        match fs::read_link(&path) {
            Ok(to) => path = path.parent().unwrap_or(Path::new("")).join(to),
            // Not a link, or missing.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// The file descriptor of this process that a path denotes, as in `/dev/stdout`, `/dev/fd/3` and process
/// substitution.
fn own_descriptor(path: &Path) -> Option<RawFd> {
    let number = path.file_name()?.to_str()?.parse().ok()?;
    let dir = path.parent()?;
    let own = format!("/proc/{}/fd", std::process::id());
    (dir == Path::new("/dev/fd") || dir.canonicalize().is_ok_and(|dir| dir == Path::new(&own))).then_some(number)
}

/// Duplicates a file descriptor. Opening its path again would start at offset 0 and overwrite other data.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes integers and fails if the descriptor is not open.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this new descriptor has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// The directory that contains a path.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Copies the permissions of the replaced file to the new file, and the owner if this process may set it.
fn keep_permissions(file: &File, existing: &Metadata) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (existing.uid(), existing.gid()) {
        let owner = (new.uid() != existing.uid()).then(|| existing.uid());
        // Only root may change the owner; a member of the group may at least set the group.
        if std::os::unix::fs::fchown(file, owner, Some(existing.gid())).is_err() {
            let _ = std::os::unix::fs::fchown(file, None, Some(existing.gid()));
        }
    }
    file.set_permissions(fs::Permissions::from_mode(existing.mode() & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> anyhow::Result<()> {
        let output = OutputFile::new(path).open()?;
        (&output).write_all(text.as_bytes())?;
        Ok(output.commit()?)
    }

    #[test]
    fn permissions_stay_and_links_lead_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, second) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("second"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        std::os::unix::fs::symlink(&link, &second).unwrap();
        write(&second, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert!(
            fs::symlink_metadata(&link).unwrap().is_symlink() && fs::symlink_metadata(&second).unwrap().is_symlink()
        );
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("not-yet", &dangling).unwrap();
        write(&dangling, "made").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("not-yet")).unwrap(), "made");
        let turning = dir.path().join("turning");
        std::os::unix::fs::symlink("turning", &turning).unwrap();
        assert!(write(&turning, "x").is_err());
    }

    #[test]
    fn what_is_not_committed_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "old").unwrap();
        let output = OutputFile::new(&file).open().unwrap();
        (&output).write_all(b"new").unwrap();
        drop(output);
        assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_taken_back_is_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let output = OutputFile::new(&file).open().unwrap();
        (&output).write_all(b"first\n").unwrap();
        let mark = output.mark().unwrap();
        (&output).write_all(b"half of the sec").unwrap();
        output.back_to(mark).unwrap();
        (&output).write_all(b"third\n").unwrap();
        output.commit().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "first\nthird\n");
    }

    #[test]
    fn what_is_published_grows_by_what_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let read = || fs::read_to_string(&file).unwrap();
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let mut output = OutputFile::new(&file).open().unwrap();
        output.begin().unwrap();
        (&output).write_all(b"first\n").unwrap();
        assert_eq!(read(), "old");
        output.publish().unwrap();
        output.publish().unwrap();
        assert_eq!(read(), "first\n");
        assert!((&output).write_all(b"x").is_err(), "it is complete");
        let mark = output.begin().unwrap();
        (&output).write_all(b"half of the sec").unwrap();
        output.back_to(mark).unwrap();
        output.begin().unwrap();
        (&output).write_all(b"third\n").unwrap();
        assert_eq!(read(), "first\n");
        output.publish().unwrap();
        output.begin().unwrap();
        drop(output);
        assert_eq!(read(), "first\nthird\n");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_stands_in_the_way_is_told_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| OutputFile::new(path).open().map(drop).unwrap_err().to_string();
        assert!(said(dir.path()).contains("it is a directory"), "{}", said(dir.path()));
        assert!(said(&dir.path().join("new/")).contains("it is a directory"));
        let nowhere = said(&dir.path().join("no/where.csv"));
        assert!(nowhere.contains("there is no directory") && nowhere.contains("make it first"), "{nowhere}");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(said(&dir.path().join("file/x.csv")).starts_with("cannot write"));
    }

    #[test]
    fn a_failed_write_is_not_forgotten() {
        let output = OutputFile::new("/dev/full").open().unwrap();
        let mut buffered = io::BufWriter::new(&output);
        buffered.write_all(b"lost").unwrap();
        // Format writers do the same: the error of the last flush is not reported.
        drop(buffered);
        let error = output.commit().unwrap_err();
        assert!(error.kind() == io::ErrorKind::StorageFull && error.to_string().contains("/dev/full"), "{error}");
    }
}
