//! What a process remembers of the logs of a store, to make fewer requests.
//!
//! The default methods remember nothing: a disk lists a directory and reads footers faster than a cache could be checked.

use std::fmt::Debug;

use super::footer::DataFile;
use super::revision::Revision;
use super::{Error, Log};

/// A cache of file lists and footers.
pub trait LogCache: Debug + Send + Sync {
    /// The live files, if the cache can tell them without a list of all files.
    ///
    /// # Errors
    /// If files are missing or unreadable.
    fn live_files(&self, _log: &Log) -> Result<Option<Vec<DataFile>>, Error> {
        Ok(None)
    }

    /// All files whose records have not expired, including replaced ones; `None` if the log itself lists them.
    ///
    /// # Errors
    /// If files are missing or unreadable.
    fn all_files(&self, _log: &Log) -> Result<Option<Vec<DataFile>>, Error> {
        Ok(None)
    }

    /// Whether the log certainly ends here. `false` means unknown.
    ///
    /// # Errors
    /// If the end of the log cannot be listed.
    fn ends_at(&self, _log: &Log, _start: i64) -> Result<bool, Error> {
        Ok(false)
    }

    /// Whether a new file that starts here is certainly live. `false` means unknown.
    ///
    /// # Errors
    /// If the end of the log cannot be listed.
    fn is_live(&self, _log: &Log, _start: i64) -> Result<bool, Error> {
        Ok(false)
    }

    /// Caches a file that this process wrote.
    fn remember(&self, _log: &Log, _file: &DataFile, _revision: &Revision) {}

    /// Forces a full list on the next request.
    fn list_anew(&self, _log: &Log) {}

    /// Whether the index of the footers is outdated.
    fn index_is_old(&self, _log: &Log) -> bool {
        false
    }

    /// Writes the index of the footers.
    ///
    /// # Errors
    /// If the backend refuses.
    fn write_index(&self, _log: &Log) -> Result<(), Error> {
        Ok(())
    }
}

/// Remembers nothing.
#[derive(Debug)]
pub(super) struct NoCache;

impl LogCache for NoCache {}
