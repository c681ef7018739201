//! What was sent to topics: `models/<segmentation>/published.json`.
//!
//! For each topic the version of the members that was sent last. It is written after the last acknowledgement. Versions whose
//! sending began and did not end are noted as well, because the topic may have some of their records.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use tercile_store::{Error, Held, Revision};

use super::{Kind, Model, ModelRegistry};

/// The content of `published.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Published {
    targets: Vec<Target>,
}

/// A topic.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    /// Kafka's id of the cluster.
    cluster: String,
    topic: String,
    /// Kafka's id of the topic: a topic that is deleted and made again has another one.
    topic_id: String,
    /// The version that was sent last, if one was.
    #[serde(flatten)]
    pub sent: Option<Sent>,
    /// Later versions, of which the topic may have some records.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Sent>,
}

/// A version whose members were sent, and the language of the descriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    pub slice: u8,
    pub version: u64,
    pub lang: String,
    /// When the sending began, RFC 3339, UTC.
    pub at: String,
}

impl Sent {
    pub fn now(model: &Model, lang: &str) -> Self {
        let at = tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        Self { slice: model.slice, version: model.version, lang: lang.to_owned(), at }
    }
}

impl Target {
    /// All versions of which the topic may have records: the one sent last, then those whose sending did not end.
    pub fn all(&self) -> impl Iterator<Item = &Sent> {
        self.sent.iter().chain(&self.begun)
    }

    /// Notes that the sending of a version begins.
    pub fn begin(&mut self, sent: &Sent) {
        self.begun.retain(|begun| (begun.version, &begun.lang) != (sent.version, &sent.lang));
        self.begun.push(sent.clone());
    }

    /// Notes that no record of a version arrived: the topic is as it was.
    pub fn withdraw(&mut self, sent: &Sent) {
        self.begun.retain(|one| one != sent);
    }

    /// Notes that every record of a version arrived except for those that the broker rejected. Of versions that were begun before,
    /// the topic has at most earlier states of these few; keeping the members of all would fill the disk.
    pub fn partly(&mut self, sent: &Sent, begun: &[Sent]) {
        self.begun.retain(|one| one == sent || !begun.contains(one));
    }

    /// Notes that the last record of a version was acknowledged. `begun` are the versions that were known when it began: a
    /// process that has lost its lease must not forget what another one sends meanwhile.
    pub fn end(&mut self, sent: Sent, begun: &[Sent]) {
        self.begun.retain(|one| !begun.contains(one));
        self.sent = Some(sent);
    }
}

impl Published {
    /// The versions of which a topic may have records.
    pub fn versions(&self) -> Vec<u64> {
        self.targets.iter().flat_map(Target::all).map(|sent| sent.version).collect()
    }

    /// What was sent to a topic; nothing if it was made again since.
    pub fn target(&mut self, cluster: &str, topic: &str, topic_id: &str) -> &mut Target {
        let known = self.targets.iter().position(|one| (one.cluster.as_str(), one.topic.as_str()) == (cluster, topic));
        let at = known.unwrap_or(self.targets.len());
        let new = || Target {
            cluster: cluster.to_owned(),
            topic: topic.to_owned(),
            topic_id: topic_id.to_owned(),
            sent: None,
            begun: Vec::new(),
        };
        if known.is_none() {
            self.targets.push(new());
        } else if self.targets[at].topic_id != topic_id {
            tracing::warn!("the topic {topic} was made again since members were sent to it: all are sent");
            self.targets[at] = new();
        }
        &mut self.targets[at]
    }
}

impl ModelRegistry {
    fn published_file(&self) -> PathBuf {
        self.dir.join("published.json")
    }

    /// What was sent to topics, and the revision that a replacement must match.
    ///
    /// # Errors
    /// [`Error::File`] if `published.json` cannot be used.
    pub fn published(&self) -> Result<(Published, Revision), Error> {
        let path = self.published_file();
        let (bytes, revision) = self.store.place().read_revision(&path).map_err(Kind::Published.unread(&path))?;
        let Some(bytes) = bytes else { return Ok((Published::default(), revision)) };
        let damaged =
            |why: serde_json::Error| Kind::Published.fault(&path, tercile_store::Reason::Damaged, why.to_string());
        Ok((serde_json::from_slice(&bytes).map_err(damaged)?, revision))
    }

    /// Replaces `published.json` as it was read. The caller holds the lock.
    ///
    /// # Errors
    /// If it cannot be written, or another process replaced it.
    pub fn put_published(&self, published: &Published, read: &Revision) -> Result<(), Error> {
        let path = self.published_file();
        let mut json = serde_json::to_string_pretty(published)
            .map_err(|e| Error::Damaged { path: path.clone(), why: e.to_string() })?;
        json.push('\n');
        if self.replace_if(json.as_bytes(), &path, read)? { Ok(()) } else { Err(Error::Changed { path }) }
    }

    /// Takes the lock of those who send members of this segmentation; `None` if another process holds it.
    ///
    /// # Errors
    /// If the lock cannot be taken for another reason.
    pub fn lock_published(&self) -> Result<Option<Held>, Error> {
        self.store.place().try_lock(&self.dir.join("published.lock"))
    }
}
