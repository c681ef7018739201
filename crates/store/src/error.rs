//! Errors of the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::FileFault;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A read or write failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// Verb of the attempted action.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The root of the store is invalid or not supported by this build.
    #[error("{url}: {why}", url = url.display())]
    Url {
        /// The root of the store.
        url: PathBuf,
        /// The reason.
        why: String,
    },
    /// A Parquet file cannot be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: parquet::errors::ParquetError,
    },
    /// A file of records is damaged.
    #[error("{path} is damaged: {why}; the next ingest reads it again if it is the newest, else bring it back from a copy", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// Another file of the store cannot be used.
    #[error(transparent)]
    File(Box<FileFault>),
    /// A file of the store's metadata cannot be used.
    #[error("{path} cannot be read: {why}; {fix}", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
        /// Advice for the user.
        fix: String,
    },
    /// `source.json` is missing in a store that holds records.
    #[error("{path} is missing, but the store holds records: {fix}", path = path.display())]
    NoSource {
        /// The file.
        path: PathBuf,
        /// Advice for the user.
        fix: String,
    },
    /// Files of a partition are missing.
    #[error("files of {dir} are missing: {what}; bring them back from a copy{or}", dir = dir.display())]
    Lost {
        /// The partition's directory.
        dir: PathBuf,
        /// The missing range.
        what: String,
        /// Further advice.
        or: String,
    },
    /// Another topic feeds the store.
    #[error("the store {store} is fed from {had}, not from {asked}; choose another --store, or the topic it was fed from", store = store.display())]
    OtherTopic {
        /// Root of the store.
        store: PathBuf,
        /// The topic that feeds the store.
        had: String,
        /// The given topic.
        asked: String,
    },
    /// The topic ends before the store does.
    #[error(
        "the store {store} is ahead of its topic: it holds partition {partition} of {topic} up to offset {next}, and the \
         topic ends at {end}; it was cut, or restored from a backup. Restore what it lost, or read it into another --store"
    , store = store.display())]
    AheadOfTopic {
        /// Root of the store.
        store: PathBuf,
        /// Topic name.
        topic: String,
        /// Partition number.
        partition: i32,
        /// End of the partition in the store.
        next: i64,
        /// End of the partition in the topic.
        end: i64,
    },
    /// Another process is compacting the partition.
    #[error("somebody else has been rolling files of this partition; try again later")]
    Rolling,
    /// Another process feeds the store.
    #[error("another tercile feeds the store {path} (it holds {path}/up.lock); stop it first, or choose another --store", path = path.display())]
    Busy {
        /// Root of the store.
        path: PathBuf,
    },
    /// Another process changed a file concurrently.
    #[error("somebody else changed {path} meanwhile; nothing was changed, try again", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps an I/O error; `action` is a verb for the message.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether a disk or an object store refused: the same may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::Parquet { .. })
    }

    /// Whether the error means that a file does not exist.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
