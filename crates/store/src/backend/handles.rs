//! Handles of a backend: unnamed files, open files, locks.

use std::fmt::Debug;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use parquet::errors::Result as ParquetResult;
use parquet::file::reader::{ChunkReader, Length};

use crate::Error;
use crate::checksums::Checksums;
use crate::revision::Revision;

/// A written file without a name.
#[derive(Debug)]
pub struct Staged {
    /// The file.
    pub file: Box<dyn StagedFile>,
    /// Bytes.
    pub size: u64,
    /// Checksums of its parts.
    pub checksums: Checksums,
}

/// A written file without a name.
pub trait StagedFile: Debug + Send + Sync {
    /// Publishes the file if its name is free. `None` if it was taken. Can be retried after an error.
    fn publish(&self, path: &Path) -> Result<Option<Revision>, Error>;

    /// Whether the file has this name already: an earlier attempt failed after it took the name. An object store asks when it publishes.
    fn is_at(&self, _path: &Path) -> bool {
        false
    }
}

/// A held lock, released when dropped or when the process ends.
#[derive(Debug)]
pub struct Held(Box<dyn Lock>);

/// A lock of a backend, released on drop.
pub trait Lock: Debug + Send + Sync {
    /// Whether the lock is certainly still held.
    fn holds(&self) -> bool;
}

impl Held {
    pub(crate) fn new(lock: impl Lock + 'static) -> Self {
        Self(Box::new(lock))
    }

    /// Whether the lock is certainly still held.
    pub fn holds(&self) -> bool {
        self.0.holds()
    }
}

/// A file, open for range reads.
#[derive(Debug)]
pub struct Input(Box<dyn RangeReader>);

/// Range reads of a file.
pub trait RangeReader: Debug + Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// A sequential reader from this position.
    fn reader(&self, start: u64) -> ParquetResult<Box<dyn Read>>;

    /// Reads `length` bytes from `start` on.
    fn bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes>;
}

impl Input {
    pub(crate) fn new(file: impl RangeReader + 'static) -> Self {
        Self(Box::new(file))
    }
}

impl Length for Input {
    fn len(&self) -> u64 {
        self.0.size()
    }
}

impl ChunkReader for Input {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.0.reader(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.0.bytes(start, length)
    }
}
