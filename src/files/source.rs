//! Where the bytes of a file come from.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tercile_sample as generate;

use super::{Error, Fault};
use crate::file_format;
use crate::printable::printable;
use crate::spool::spooled;

/// The source of the rows.
#[derive(Debug, Clone)]
pub enum Source {
    /// A regular file, or anything else that can be opened by its path.
    File(PathBuf),
    /// The files of a directory or of a glob pattern, in order of their names.
    Many {
        given: PathBuf,
        paths: Vec<PathBuf>,
    },
    Stdin,
    /// The built-in sample, identical to `generate 1465 --seed 42`.
    Sample,
    /// A copy of a pipe, which can be read more than once.
    Copied {
        name: PathBuf,
        file: Arc<File>,
    },
}

/// Characters of a glob pattern.
const PATTERN: [char; 3] = ['*', '?', '['];

impl Source {
    /// The source that an argument names: `-` is stdin, a directory stands for its files, and a name that does not exist and
    /// contains `*`, `?` or `[` is a glob pattern.
    ///
    /// # Errors
    /// If a directory has no file of a known format, or if a pattern is invalid or matches nothing.
    pub fn named(path: &Path) -> Result<Self, Error> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdin);
        }
        let fault = |what: String| Fault::whole(what).at(path);
        let mut paths = if path.is_dir() {
            let entries = path.read_dir().map_err(|error| Fault::Io(error).at(path))?;
            let (files, others): (Vec<_>, Vec<_>) =
                entries.flatten().map(|entry| entry.path()).partition(|path| path.is_file() && is_input(path));
            tell_skipped(path, &files, others);
            files
        } else if let Some(pattern) = path.to_str().filter(|text| text.contains(PATTERN) && !path.exists()) {
            let hidden = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
            let found =
                glob::glob_with(pattern, hidden).map_err(|error| fault(format!("the pattern is invalid: {error}")))?;
            found.flatten().filter(|path| path.is_file()).collect()
        } else {
            return Ok(Self::File(path.to_owned()));
        };
        paths.sort();
        if paths.is_empty() {
            return Err(fault(match path.is_dir() {
                true => "the directory has no file whose name ends in .csv, .tsv, .ndjson, .jsonl, .json, .parquet or \
                         .arrow, plain or with .gz or .zst"
                    .to_owned(),
                false => "no file matches this pattern".to_owned(),
            }));
        }
        Ok(Self::Many { given: path.to_owned(), paths })
    }

    /// The name used in errors and messages.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::File(path) | Self::Many { given: path, .. } | Self::Copied { name: path, .. } => path.clone(),
            Self::Stdin => PathBuf::from("stdin"),
            Self::Sample => PathBuf::from("the shipped sample"),
        }
    }

    /// Total size in bytes, if known.
    pub fn size(&self) -> Option<u64> {
        let size = |path: &Path| path.metadata().ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
        match self {
            Self::File(path) => size(path),
            Self::Many { paths, .. } => paths.iter().map(|path| size(path)).sum(),
            Self::Copied { file, .. } => file.metadata().ok().map(|file| file.len()),
            Self::Stdin | Self::Sample => None,
        }
    }

    /// Whether the bytes can be read only once and may arrive slowly: stdin, a FIFO, a process substitution.
    pub fn is_pipe(&self) -> bool {
        match self {
            Self::Stdin => true,
            Self::File(path) => path.metadata().is_ok_and(|file| !file.is_file() && !file.is_dir()),
            Self::Many { .. } | Self::Sample | Self::Copied { .. } => false,
        }
    }

    /// A source that can be read more than once: a pipe is copied to an unnamed temporary file.
    ///
    /// # Errors
    /// If the pipe cannot be read or the copy cannot be written.
    pub fn rereadable(self) -> Result<Self, Error> {
        if !self.is_pipe() {
            return Ok(self);
        }
        let name = self.name();
        let file = self.bytes().and_then(spooled).map_err(|error| Fault::Io(error).at(&name))?;
        Ok(Self::Copied { name, file: Arc::new(file) })
    }

    /// The bytes from the first. For [`Source::Many`], those of the first file.
    pub(super) fn bytes(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => Box::new(File::open(path)?),
            Self::Many { paths, .. } => match paths.first() {
                Some(path) => Box::new(File::open(path)?),
                None => Box::new(io::empty()),
            },
            Self::Stdin => Box::new(io::stdin()),
            Self::Sample => Box::new(io::Cursor::new(generate::sample())),
            Self::Copied { file, .. } => Box::new(At { file: Arc::clone(file), position: 0 }),
        })
    }
}

/// Names in the line about skipped files.
const SKIPPED: usize = 5;

/// Reports the entries of a directory that are skipped, once per process: files with other extensions, and subdirectories.
fn tell_skipped(dir: &Path, read: &[PathBuf], mut others: Vec<PathBuf>) {
    static TOLD: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    others.sort();
    if others.is_empty()
        || read.is_empty()
        || !TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(dir.to_owned())
    {
        return;
    }
    let name = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let slash = if path.is_dir() { "/" } else { "" };
        format!("{}{slash}", printable(&name))
    };
    let names: Vec<String> = others.iter().take(SKIPPED).map(name).collect();
    let more = if others.len() > SKIPPED { ", …" } else { "" };
    tracing::warn!(
        "{}: {} read, {} skipped: {}{more}",
        dir.display(),
        files(read.len()),
        files(others.len()),
        names.join(", ")
    );
}

fn files(n: usize) -> String {
    if n == 1 { "1 file".to_owned() } else { format!("{n} files") }
}

/// Whether a file of a directory is read, by the ending of its name.
fn is_input(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(['.', '_']));
    let inner = match file_format::name_of(path) {
        Some("gzip" | "zstd") => file_format::name_of(&path.with_extension("")),
        name => name,
    };
    !hidden && matches!(inner, Some("csv" | "tsv" | "json" | "ndjson" | "parquet" | "arrow" | "feather"))
}

/// Reads a shared file at a position of its own.
struct At {
    file: Arc<File>,
    position: u64,
}

impl Read for At {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
