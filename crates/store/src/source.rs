//! The source that feeds a store: `source.json`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::marks::KEYS;
use super::revision::Revision;
use super::{Error, Store};
use crate::row_set::RowSet;

/// The `id` of a store fed by the embedded broker, which creates its topic at each start.
pub const EMBEDDED: &str = "embedded";

/// The source that feeds a store; the content of `source.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Topic name.
    pub topic: String,
    /// Kafka's topic id, [`EMBEDDED`], or empty if the broker is too old for topic ids.
    pub id: String,
    /// Number of partitions.
    pub partitions: i32,
    /// The files that `up` replayed into the topic, in order.
    #[serde(default)]
    pub files: Vec<Replayed>,
}

/// A file that `up` replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Name of the file.
    pub name: String,
    /// SHA-256 of its bytes, in hex.
    pub hash: String,
    /// Number of its rows; missing in stores of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// SHA-256 of the first row, in hex; missing in stores of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The hash of the file whose rows are the first rows of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<String>,
    /// Stored rows whose records have expired.
    #[serde(default, skip_serializing_if = "RowSet::is_empty")]
    pub expired: RowSet,
}

/// The source of an object store as this process read it last, because each look costs a request.
#[derive(Debug, Default)]
pub(super) struct SourceCache(Mutex<Option<(Instant, Option<Source>)>>);

/// Time for which a source is not read again.
const FRESH: Duration = Duration::from_secs(5);

impl SourceCache {
    fn fresh(&self) -> Option<Option<Source>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(read, _)| read.elapsed() < FRESH).map(|(_, source)| source.clone())
    }

    /// Sets the cached value; `None` clears the cache, after a change.
    fn keep(&self, source: Option<Option<Source>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = source.map(|source| (Instant::now(), source));
    }
}

impl Source {
    fn describe(&self) -> String {
        match self.id.as_str() {
            EMBEDDED => format!("topic {} of the embedded broker", self.topic),
            "" => format!("topic {}", self.topic),
            id => format!("topic {} (id {id})", self.topic),
        }
    }

    pub(super) fn json(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text.into_bytes()
    }
}

impl Store {
    fn source_file(&self) -> PathBuf {
        self.root.join("source.json")
    }

    /// The source that feeds the store; `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::NoSource`] if `source.json` is missing in a store that holds records, [`Error::Unusable`] if it cannot be read:
    /// such a store is damaged, not empty.
    pub fn source(&self) -> Result<Option<Source>, Error> {
        Ok(self.source_as_read()?.0)
    }

    /// The source, which on an object store may be up to five seconds old unless this process changed it. For callers that need only
    /// the topic and the number of partitions.
    pub(crate) fn recent_source(&self) -> Result<Option<Source>, Error> {
        if let Some(known) = self.source.fresh() {
            return Ok(known);
        }
        self.source()
    }

    fn source_as_read(&self) -> Result<(Option<Source>, Revision), Error> {
        let read = self.read_source()?;
        if !self.place.is_disk() {
            self.source.keep(Some(read.0.clone()));
        }
        Ok(read)
    }

    fn read_source(&self) -> Result<(Option<Source>, Revision), Error> {
        let path = self.source_file();
        let (mut bytes, mut revision) = self.read_revision(&path)?;
        let has_records = bytes.is_none() && self.has_records()?;
        if has_records {
            // Another process may have created the store, `source.json` first, between the two requests.
            (bytes, revision) = self.read_revision(&path)?;
        }
        let Some(bytes) = bytes else {
            return match has_records {
                true => Err(Error::NoSource { fix: self.source_fix(), path }),
                false => Ok((None, revision)),
            };
        };
        match serde_json::from_slice(&bytes) {
            Ok(source) => Ok((Some(source), revision)),
            Err(e) => Err(Error::Unusable { fix: self.source_fix(), path, why: e.to_string() }),
        }
    }

    /// The copy of `source.json` in `marks/`; `None` if it is missing or unreadable.
    pub(super) fn copied_source(&self) -> Result<Option<Source>, Error> {
        let path = self.source_copy();
        let (bytes, _) = self.read_revision(&path)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Whether there is evidence of records: a file of a partition, or a mark.
    fn has_records(&self) -> Result<bool, Error> {
        let dir = self.marks_dir();
        if self.place.list(&dir).map_err(Error::io("list", &dir))?.iter().any(|entry| entry.name != KEYS) {
            return Ok(true);
        }
        Ok(!self.topics()?.is_empty())
    }

    /// The topics that have files in `records/`.
    pub(super) fn topics(&self) -> Result<Vec<String>, Error> {
        let records = self.root.join("records");
        let mut topics = Vec::new();
        for topic in self.place.dirs(&records).map_err(Error::io("list", &records))? {
            let dir = records.join(&topic);
            for partition in self.place.dirs(&dir).map_err(Error::io("list", &dir))? {
                let dir = dir.join(partition);
                if !self.place.list(&dir).map_err(Error::io("list", &dir))?.is_empty() {
                    topics.push(topic);
                    break;
                }
            }
        }
        topics.sort();
        Ok(topics)
    }

    /// Advice on how to restore `source.json`.
    fn source_fix(&self) -> String {
        let (copy, path) = (self.source_copy(), self.source_file());
        match self.copied_source() {
            Ok(Some(_)) => format!("copy {} to {}", copy.display(), path.display()),
            _ => "bring it back from a copy of the store".to_owned(),
        }
    }

    /// Binds the store to a topic, or checks that it is bound to this one. A larger number of partitions is recorded. The first
    /// call in a process also compares the copy in `marks/`.
    ///
    /// # Errors
    /// [`Error::OtherTopic`] if another topic feeds the store; those of [`Store::source`]: a store whose `source.json` is lost
    /// is not bound again.
    pub fn claim(&self, topic: &str, id: &str, partitions: i32) -> Result<Source, Error> {
        let asked = Source { topic: topic.to_owned(), id: id.to_owned(), partitions, files: Vec::new() };
        loop {
            let Some(had) = self.source()? else {
                self.check_place()?;
                // Of two concurrent workers the first one wins, and the second is checked against it.
                self.publish_bytes(&asked.json(), &self.source_file())?;
                self.source.keep(None);
                continue;
            };
            self.same_topic(&had, &asked)?;
            let now = Source { id: asked.id.clone(), partitions: partitions.max(had.partitions), ..had.clone() };
            if now == had {
                self.copy_once(&now)?;
                return Ok(now);
            }
            let _alone = self.lock_source()?;
            let (again, revision) = self.source_as_read()?;
            if again.as_ref() != Some(&had) {
                continue;
            }
            let replaced = self.replace_if(&now.json(), &self.source_file(), &revision)?;
            self.source.keep(None);
            if replaced {
                self.copy_source(&now)?;
                return Ok(now);
            }
        }
    }

    /// Compares the copy in `marks/` with `source.json`, once per process, and updates it.
    fn copy_once(&self, source: &Source) -> Result<(), Error> {
        if self.marks.copied() {
            return Ok(());
        }
        if let Some(copy) = self.copied_source()?
            && (copy.topic != source.topic || (copy.id != source.id && !copy.id.is_empty()))
        {
            let (path, copied) = (self.source_file(), self.source_copy());
            let why = format!("it names the {}, and {} the {}", source.describe(), copied.display(), copy.describe());
            let fix = "one of them is from another store: bring the right one back, and delete the other".to_owned();
            return Err(Error::Unusable { path, why, fix });
        }
        self.copy_source(source)
    }

    /// Records a file before any of its rows is replayed; for a recorded file, adds its number of rows.
    pub fn add_file(&self, file: &Replayed) -> Result<(), Error> {
        self.change_source(|source| match source.files.iter_mut().find(|known| known.hash == file.hash) {
            Some(known) if known.rows == file.rows => false,
            Some(known) => {
                known.rows = file.rows;
                true
            }
            None => {
                source.files.push(file.clone());
                true
            }
        })
    }

    /// Checks that a topic is the one that feeds this store, if any does; changes nothing.
    ///
    /// # Errors
    /// [`Error::OtherTopic`] if another topic feeds the store; those of [`Store::source`].
    pub fn check_fed_by(&self, topic: &str, id: &str) -> Result<(), Error> {
        let asked = Source { topic: topic.to_owned(), id: id.to_owned(), ..Source::default() };
        match self.source()? {
            Some(had) => self.same_topic(&had, &asked),
            None => Ok(()),
        }
    }

    fn same_topic(&self, had: &Source, asked: &Source) -> Result<(), Error> {
        let same_id = had.id == asked.id || (had.id.is_empty() && asked.id != EMBEDDED);
        if had.topic == asked.topic && same_id {
            return Ok(());
        }
        Err(Error::OtherTopic { store: self.root.clone(), had: had.describe(), asked: asked.describe() })
    }

    /// Changes `source.json` and its copy durably. Nothing is written if `change` returns false.
    pub(super) fn change_source(&self, change: impl Fn(&mut Source) -> bool) -> Result<(), Error> {
        let _alone = self.lock_source()?;
        loop {
            let (source, revision) = self.source_as_read()?;
            let path = self.source_file();
            let Some(mut source) = source else {
                return Err(Error::NoSource { fix: self.source_fix(), path });
            };
            if !change(&mut source) {
                return Ok(());
            }
            let replaced = self.replace_if(&source.json(), &path, &revision)?;
            self.source.keep(None);
            if replaced {
                return self.copy_source(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_belongs_to_one_topic() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.source().unwrap(), None);
        store.claim("products", "abc", 1).unwrap();
        assert_eq!(store.claim("products", "abc", 3).unwrap().partitions, 3);
        assert_eq!(store.claim("products", "abc", 1).unwrap().partitions, 3);
        for (topic, id) in [("other", "abc"), ("products", "def"), ("products", EMBEDDED)] {
            let error = store.claim(topic, id, 1).unwrap_err();
            assert!(matches!(error, Error::OtherTopic { .. }), "{error}");
        }
    }

    #[test]
    fn files_are_recorded_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", EMBEDDED, 1).unwrap();
        let file = |name: &str| Replayed { name: name.to_owned(), hash: name.len().to_string(), ..Replayed::default() };
        for name in ["a", "bb"] {
            store.add_file(&file(name)).unwrap();
        }
        assert_eq!(store.source().unwrap().unwrap().files, [file("a"), file("bb")]);
        assert_eq!(store.claim("products", EMBEDDED, 2).unwrap().files.len(), 2);
    }
}
