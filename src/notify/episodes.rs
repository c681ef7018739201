//! Open episodes: what has begun and has not ended, so that neither a restart nor a second process tells it again.
//!
//! An episode is a file, which exists from its begin to its end and contains the message. The file is written before the message
//! is queued, and says afterwards that it is: a process that finds one that was interrupted queues the same message again, with
//! the same id.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tercile_store::{Error, Held, Revision, Store};

use super::event::{Event, Kind};
use super::queue;

/// An episode, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// Its begin, or its end if that is being queued.
    pub event: Event,
    /// When the message was made, in milliseconds since 1970.
    pub made: i64,
    /// Whether the message is in the queues.
    pub queued: bool,
}

/// The open episodes of a store.
#[derive(Debug, Clone)]
pub struct Episodes {
    store: Store,
    dir: PathBuf,
}

impl Episodes {
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone(), dir: queue::root(store).join("episodes") }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    /// Excludes other processes on a disk, which has no revisions of files.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn lock(&self) -> Result<Option<Held>, Error> {
        self.store.place().lock_dir(&self.dir)
    }

    /// An episode and its revision; `None` if there is none.
    ///
    /// # Errors
    /// If the file cannot be read. A damaged one is set aside, and counts as none.
    pub fn read(&self, key: &str) -> Result<(Option<Episode>, Revision), Error> {
        let path = self.file(key);
        let (bytes, revision) = self.store.read_revision(&path)?;
        let Some(bytes) = bytes else { return Ok((None, revision)) };
        match serde_json::from_slice(&bytes) {
            Ok(episode) => Ok((Some(episode), revision)),
            Err(error) => {
                let moved = self.store.set_aside(&path)?;
                tracing::error!(
                    "{} is damaged ({error}) and was moved to {}; what it was about is told again if it lasts",
                    path.display(),
                    moved.display()
                );
                Ok((None, self.store.read_revision(&path)?.1))
            }
        }
    }

    /// Writes an episode that was read. `false` if another process changed it.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn write(&self, key: &str, episode: &Episode, read: &Revision) -> Result<bool, Error> {
        let path = self.file(key);
        self.store.place().make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        let mut text = serde_json::to_vec_pretty(episode).map_err(|e| Error::io("write", &path)(e.into()))?;
        text.push(b'\n');
        self.store.replace_if(&text, &path, read)
    }

    /// Removes an episode.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let path = self.file(key);
        match self.store.place().delete(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("delete", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The keys of all episodes of a kind, or of all kinds.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn keys(&self, kind: Option<Kind>) -> Result<Vec<String>, Error> {
        let entries = self.store.place().list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let of_kind = |key: &str| {
            let rest = kind.map_or(Some(""), |kind| key.strip_prefix(kind.name()));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let keys = entries.iter().filter_map(|entry| entry.name.strip_suffix(".json"));
        let mut keys: Vec<String> = keys.filter(|key| of_kind(key)).map(str::to_owned).collect();
        keys.sort();
        Ok(keys)
    }
}
