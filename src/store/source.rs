//! What feeds a store: `source.json`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::place::Revision;
use super::{Error, Store};

/// The `id` of a store that the embedded broker feeds: it makes its topic anew at each start.
pub const EMBEDDED: &str = "embedded";

/// What feeds a store; the content of `source.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub topic: String,
    /// The topic's id as Kafka gave it, [`EMBEDDED`], or empty where the broker is too old to tell.
    pub id: String,
    pub partitions: i32,
    /// The files that `up` replayed into it, in order.
    #[serde(default)]
    pub files: Vec<Replayed>,
}

/// A file that `up` replayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    pub name: String,
    /// SHA-256 of its bytes, in hex.
    pub hash: String,
}

impl Source {
    fn describe(&self) -> String {
        match self.id.as_str() {
            EMBEDDED => format!("topic {} of the embedded broker", self.topic),
            "" => format!("topic {}", self.topic),
            id => format!("topic {} (id {id})", self.topic),
        }
    }

    fn json(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text.into_bytes()
    }
}

impl Store {
    fn source_file(&self) -> PathBuf {
        self.root.join("source.json")
    }

    /// What feeds the store; `None` if nothing did yet.
    pub fn source(&self) -> Result<Option<Source>, Error> {
        Ok(self.source_as_read()?.0)
    }

    fn source_as_read(&self) -> Result<(Option<Source>, Revision), Error> {
        let path = self.source_file();
        let (bytes, revision) = self.read_revision(&path)?;
        let source = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        Ok((source.map_err(|e| Error::Damaged { path, why: e.to_string() })?, revision))
    }

    /// Binds the store to a topic, or checks that it is bound to this one. More partitions than before are taken over.
    pub fn claim(&self, topic: &str, id: &str, partitions: i32) -> Result<Source, Error> {
        let asked = Source { topic: topic.to_owned(), id: id.to_owned(), partitions, files: Vec::new() };
        loop {
            let (had, revision) = self.source_as_read()?;
            let Some(had) = had else {
                self.check_place()?;
                // Two workers may come at once: the first one's word stands, and the second is held against it.
                self.publish_bytes(&asked.json(), &self.source_file())?;
                continue;
            };
            let same_id = had.id == asked.id || (had.id.is_empty() && asked.id != EMBEDDED);
            if had.topic != asked.topic || !same_id {
                let other =
                    Error::OtherTopic { store: self.root.clone(), had: had.describe(), asked: asked.describe() };
                return Err(other);
            }
            let now = Source { id: asked.id.clone(), partitions: partitions.max(had.partitions), ..had.clone() };
            if now == had || self.replace_if(&now.json(), &self.source_file(), &revision)? {
                return Ok(now);
            }
        }
    }

    /// Notes a file that is to be replayed, before any of its rows.
    pub fn add_file(&self, file: &Replayed) -> Result<(), Error> {
        loop {
            let (source, revision) = self.source_as_read()?;
            let path = self.source_file();
            let Some(mut source) = source else {
                return Err(Error::Damaged { path, why: "it was there, and is gone".to_owned() });
            };
            source.files.push(file.clone());
            if self.replace_if(&source.json(), &path, &revision)? {
                return Ok(());
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
    fn files_are_noted_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", EMBEDDED, 1).unwrap();
        let file = |name: &str| Replayed { name: name.to_owned(), hash: name.len().to_string() };
        for name in ["a", "bb"] {
            store.add_file(&file(name)).unwrap();
        }
        assert_eq!(store.source().unwrap().unwrap().files, [file("a"), file("bb")]);
        assert_eq!(store.claim("products", EMBEDDED, 2).unwrap().files.len(), 2);
    }
}
