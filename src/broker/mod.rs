//! The only place that names rdkafka: topics, a consumer, a producer, and a broker inside the process.
//!
//! Input: addresses and topics. Output: messages with partition, offset and timestamp; acknowledged records. The rest of
//! the program knows a Kafka by [`Cluster`], whichever it is.

mod consumer;
pub mod embedded;
mod producer;
mod topic_id;

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

pub use consumer::{Consumer, Event, Message, Start, low_watermarks};
pub use embedded::Embedded;
pub use producer::{Acknowledged, Producer};

/// Marks a record that `up` replayed from a file: the file's hash.
pub const FILE_HEADER: &str = "tercile-file";
/// The row within that file, counted from 0.
pub const ROW_HEADER: &str = "tercile-row";

/// What went wrong between us and a broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no answer from a broker at {servers} within {}s: check --bootstrap-servers and that the broker runs",
        timeout.as_secs_f64()
    )]
    Unreachable { servers: String, timeout: Duration },
    #[error("the topic {topic} does not exist at {servers}; make it, or name another with --topic")]
    NoTopic { topic: String, servers: String },
    #[error("cannot make the topic {topic} at {servers}: {why}")]
    CannotCreate { topic: String, servers: String, why: String },
    #[error("cannot {action} {servers}: {source}")]
    Kafka { action: &'static str, servers: String, source: KafkaError },
    #[error(
        "line {line}: a row of {size} bytes is more than the embedded broker holds ({limit}); send it to a real Kafka"
    )]
    RowTooLarge { line: u64, size: usize, limit: usize },
    #[error("{servers} did not take {count} of the rows, the first is in line {line}: {source}")]
    Undelivered { servers: String, count: u64, line: u64, source: KafkaError },
    #[error("cannot start the embedded broker: {0}")]
    Embedded(KafkaError),
    #[error("{0}")]
    Gap(Gap),
}

/// Records that were gone before they could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "partition {partition} of {topic}: the records from offset {expected} to {last} were gone before they could be read",
    last = found - 1
)]
pub struct Gap {
    pub topic: String,
    pub partition: i32,
    /// The offset we stood at.
    pub expected: i64,
    /// The first offset that is left.
    pub found: i64,
}

/// A Kafka to talk to.
#[derive(Debug, Clone)]
pub struct Cluster {
    pub servers: String,
    /// How long to wait for a first answer.
    pub timeout: Duration,
}

/// A topic as the broker describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    pub name: String,
    /// Kafka's id of it, else the cluster's; empty where the broker is too old for either.
    pub id: String,
    pub partitions: i32,
}

/// librdkafka speaks many lines a second where a broker is away. They stay behind `-v`; what users must know comes
/// back as errors and events.
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }
}

impl ConsumerContext for Quiet {}

impl Cluster {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.servers)
            .set("client.id", "tercile")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    fn kafka(&self, action: &'static str) -> impl FnOnce(KafkaError) -> Error + '_ {
        move |source| match source.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve,
            ) => Error::Unreachable { servers: self.servers.clone(), timeout: self.timeout },
            _ => Error::Kafka { action, servers: self.servers.clone(), source },
        }
    }

    /// A client that asks without making topics by asking: a producer's question would.
    fn asking(&self) -> Result<BaseConsumer<Quiet>, Error> {
        self.config()
            .set("allow.auto.create.topics", "false")
            .create_with_context(Quiet)
            .map_err(self.kafka("connect to"))
    }

    /// What the broker says of a topic; `None` if it knows none of that name.
    pub fn describe(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let client = self.asking()?;
        let metadata = client.fetch_metadata(Some(topic), self.timeout).map_err(self.kafka("read the topics of"))?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => return Ok(None),
            Some(code) => {
                return Err(self.kafka("read the topics of")(KafkaError::MetadataFetch(code)));
            }
        }
        let partitions = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
        if partitions == 0 {
            return Ok(None);
        }
        // A broker too old for topics with ids, and the embedded one, at least tell one cluster from another.
        let id = topic_id::fetch(client.client(), topic, self.timeout)
            .or_else(|| client.client().fetch_cluster_id(self.timeout))
            .unwrap_or_default();
        Ok(Some(Topic { name: topic.to_owned(), id, partitions }))
    }

    /// Like [`Cluster::describe`], for a topic that must be there.
    pub fn topic(&self, topic: &str) -> Result<Topic, Error> {
        self.describe(topic)?.ok_or_else(|| Error::NoTopic { topic: topic.to_owned(), servers: self.servers.clone() })
    }

    /// The topic as it is, or as it was made just now with so many partitions. The flag tells which.
    pub async fn topic_or_create(&self, topic: &str, partitions: i32) -> Result<(Topic, bool), Error> {
        if let Some(found) = self.describe(topic)? {
            return Ok((found, false));
        }
        self.create(topic, partitions).await?;
        // A broker answers for a new topic a moment after it said that it made it.
        for _ in 0..50 {
            if let Some(made) = self.describe(topic)? {
                return Ok((made, true));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Error::NoTopic { topic: topic.to_owned(), servers: self.servers.clone() })
    }

    async fn create(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        let cannot = |why: String| Error::CannotCreate { topic: topic.to_owned(), servers: self.servers.clone(), why };
        if self.is_embedded()? {
            return Err(cannot(
                "an embedded broker holds the topic it was started with, and makes no others".to_owned(),
            ));
        }
        let admin: AdminClient<DefaultClientContext> = self.config().create().map_err(self.kafka("connect to"))?;
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let results = admin.create_topics([&new], &options).await.map_err(|e| cannot(e.to_string()))?;
        match results.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => Err(cannot(code.to_string())),
            _ => Ok(()),
        }
    }

    /// Whether the broker is an embedded one, ours or another process's: what it can't hold must not be sent to it.
    pub fn is_embedded(&self) -> Result<bool, Error> {
        let client = self.asking()?;
        let id = client.client().fetch_cluster_id(self.timeout);
        Ok(id.is_some_and(|id| id.starts_with("mockCluster")))
    }
}
