//! The backend of a store: a directory, or a prefix of an object store.
//!
//! Input: paths below the store's root. Output: bytes, lists, and names that can be taken only once. On an object store a path
//! is the URL held as a path, so that callers can show and join it like any path. On a disk a name is taken by linking a synced
//! file (publish.rs); on an object store by a conditional put (objects.rs).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, SystemTime};

#[cfg(feature = "object-stores")]
use parquet::errors::ParquetError;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

use super::Error;
use super::location::{SCHEMES, scheme};
#[cfg(feature = "object-stores")]
use super::objects::{Object, Objects, Version};

/// The backend of a store.
#[derive(Debug, Clone, Default)]
pub enum Place {
    /// A directory.
    #[default]
    Disk,
    /// A prefix of an object store.
    #[cfg(feature = "object-stores")]
    Objects(std::sync::Arc<Objects>),
}

/// Backends of one kind are equal: the paths, which include the prefix, tell files apart.
impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        self.is_disk() == other.is_disk()
    }
}

impl Eq for Place {}

/// A file in a list.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    /// File name without the directory.
    pub name: String,
    /// Modification time, if the list has it.
    pub modified: Option<SystemTime>,
    /// ETag or version, if the list has it.
    #[cfg_attr(not(feature = "object-stores"), allow(dead_code, reason = "directories tell no such thing"))]
    pub tag: Option<String>,
}

/// The version of a file when it was read, which a conditional put expects to be unchanged.
#[derive(Debug, Clone, Default)]
pub struct Revision {
    /// `None` if the object did not exist.
    #[cfg(feature = "object-stores")]
    pub(super) of_object: Option<Version>,
}

impl Place {
    /// Checks that this build supports the backend of a root.
    ///
    /// # Errors
    /// [`Error::Url`] if it does not.
    pub fn check(root: &Path) -> Result<(), Error> {
        let known = scheme(root).is_none_or(|scheme| SCHEMES.contains(&scheme));
        if known && (cfg!(feature = "object-stores") || scheme(root).is_none()) {
            return Ok(());
        }
        Self::of(root).map(drop)
    }

    /// The backend for a store's root in canonical form ([`super::location::canonical`]).
    ///
    /// # Errors
    /// If the URL is invalid or the backend is not compiled in.
    pub fn of(root: &Path) -> Result<Self, Error> {
        match scheme(root) {
            None => Ok(Self::Disk),
            Some(scheme) if SCHEMES.contains(&scheme) => Self::objects(root),
            Some(_) => Err(Error::Url {
                url: root.to_owned(),
                why: if cfg!(feature = "object-stores") {
                    "expected a directory, s3://bucket/prefix, gs://, az:// or file://".to_owned()
                } else {
                    "expected a directory, or file:///a/directory".to_owned()
                },
            }),
        }
    }

    #[cfg(feature = "object-stores")]
    fn objects(root: &Path) -> Result<Self, Error> {
        Ok(Self::Objects(std::sync::Arc::new(Objects::open(root)?)))
    }

    #[cfg(not(feature = "object-stores"))]
    fn objects(root: &Path) -> Result<Self, Error> {
        Err(Error::Url {
            url: root.to_owned(),
            why: "this tercile was built without object stores; build it with --features object-stores".to_owned(),
        })
    }

    /// Polling interval for changes: `on_disk` for a disk, at least a second for an object store, where requests cost money.
    pub fn patience(&self, on_disk: Duration) -> Duration {
        if self.is_disk() { on_disk } else { on_disk.max(Duration::from_secs(1)) }
    }

    /// Whether the backend is a directory.
    pub fn is_disk(&self) -> bool {
        matches!(self, Self::Disk)
    }

    /// The files of a directory, unordered; empty if it does not exist.
    pub fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        match self {
            Self::Disk => {
                let names = entries(dir)?.into_iter().filter_map(|entry| entry.file_name().into_string().ok());
                Ok(names.map(|name| Entry { name, ..Entry::default() }).collect())
            }
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.list(dir),
        }
    }

    /// The names of a directory's subdirectories.
    pub fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        match self {
            Self::Disk => {
                let dirs = entries(dir)?.into_iter().filter(|entry| entry.path().is_dir());
                Ok(dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect())
            }
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.dirs(dir),
        }
    }

    /// Reads a whole file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::Disk => fs::read(path),
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.read(path),
        }
    }

    /// Reads a mutable file and its revision; `None` and an empty revision if it does not exist.
    pub fn read_revision(&self, path: &Path) -> io::Result<(Option<Vec<u8>>, Revision)> {
        match self {
            Self::Disk => match fs::read(path) {
                Ok(bytes) => Ok((Some(bytes), Revision::default())),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((None, Revision::default())),
                Err(e) => Err(e),
            },
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => Ok(match objects.read_version(path)? {
                Some((bytes, version)) => (Some(bytes), Revision { of_object: Some(version) }),
                None => (None, Revision::default()),
            }),
        }
    }

    /// Opens a file for range reads.
    pub fn open(&self, path: &Path) -> io::Result<Input> {
        match self {
            Self::Disk => File::open(path).map(Input::File),
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.open_object(path).map(Input::Object),
        }
    }

    /// Deletes a file.
    pub fn delete(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Disk => fs::remove_file(path),
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.delete(path),
        }
    }

    /// Modification time of a file.
    pub fn modified(&self, path: &Path) -> io::Result<SystemTime> {
        match self {
            Self::Disk => fs::metadata(path).and_then(|meta| meta.modified()),
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.modified(path),
        }
    }

    /// Bytes that change whenever a small file does.
    pub fn stamp(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self {
            Self::Disk => fs::read(path),
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.stamp(path),
        }
    }

    /// Moves a file to a unique name.
    pub fn set_aside(&self, from: &Path, to: &Path) -> io::Result<()> {
        match self {
            Self::Disk => {
                fs::create_dir_all(to.parent().unwrap_or(to))?;
                fs::rename(from, to)
            }
            #[cfg(feature = "object-stores")]
            Self::Objects(objects) => objects.set_aside(from, to),
        }
    }

    /// Creates a directory; no effect on an object store.
    pub fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match self {
            Self::Disk => fs::create_dir_all(dir),
            #[cfg(feature = "object-stores")]
            Self::Objects(_) => Ok(()),
        }
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

/// A file, open for range reads.
#[derive(Debug)]
pub enum Input {
    /// A file on a disk.
    File(File),
    /// An object.
    #[cfg(feature = "object-stores")]
    Object(Object),
}

impl Length for Input {
    fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.len(),
            #[cfg(feature = "object-stores")]
            Self::Object(object) => object.size(),
        }
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        match self {
            Self::File(file) => Ok(Box::new(file.get_read(start)?)),
            #[cfg(feature = "object-stores")]
            Self::Object(object) => Ok(Box::new(object.reader(start))),
        }
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<bytes::Bytes> {
        match self {
            Self::File(file) => file.get_bytes(start, length),
            #[cfg(feature = "object-stores")]
            Self::Object(object) => object.bytes(start, length).map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => ParquetError::EOF("it is shorter than it says".to_owned()),
                _ => ParquetError::External(Box::new(e)),
            }),
        }
    }
}
