//! The only place that names rdkafka: topics, a consumer, a producer, and a broker inside the process.
//!
//! Input: addresses and topics. Output: messages with partition, offset and timestamp; acknowledged records. The rest of
//! the program knows a Kafka by [`Cluster`], whichever it is.

mod consumer;
pub mod embedded;
mod headers;
mod producer;
mod queue;
mod settings;
mod topic_id;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaConfRes, RDKafkaRespErr};

pub use consumer::{Consumer, Event, Group, NotNow, Reading, Start, low_watermarks};
pub use embedded::Embedded;
pub use producer::{Acknowledged, Producer};
pub use queue::{CHUNK, Item, Message, Queue};
pub use settings::{Plugins, Settings};

/// Marks a record that `up` replayed from a file: the file's hash.
pub const FILE_HEADER: &str = "tercile-file";
/// The row within that file, counted from 0.
pub const ROW_HEADER: &str = "tercile-row";

/// How the id of an embedded broker's cluster begins.
const EMBEDDED_CLUSTER: &str = "mockCluster";

/// What went wrong between us and a broker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no answer from a broker at {servers} within {}s: {why}", timeout.as_secs_f64())]
    Unreachable { servers: String, timeout: Duration, why: String },
    #[error("the Kafka setting {key} {why}")]
    Setting { key: String, why: String },
    #[error("cannot read the Kafka settings in {path}: {why}", path = path.display())]
    SettingsFile { path: PathBuf, why: String },
    #[error("the topic {topic} does not exist at {servers}; make it, or name another with --topic")]
    NoTopic { topic: String, servers: String },
    #[error("cannot make the topic {topic} at {servers}: {why}")]
    CannotCreate { topic: String, servers: String, why: String },
    #[error("cannot {action} {servers}: {source}")]
    Kafka { action: &'static str, servers: String, source: KafkaError },
    #[error(
        "line {line}: a row of {size} bytes with its headers is more than the embedded broker holds ({limit}); send it to a real Kafka"
    )]
    RowTooLarge { line: u64, size: usize, limit: usize },
    #[error("{servers} did not take {count} of the rows, the first is in line {line}: {source}")]
    Undelivered { servers: String, count: u64, line: u64, source: KafkaError },
    #[error("cannot start the embedded broker: {0}")]
    Embedded(KafkaError),
    #[error("{0}")]
    Gap(Gap),
    #[error("{0}")]
    Client(String),
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
    settings: Arc<Settings>,
    heard: Heard,
}

/// The last thing librdkafka said of a connection that failed: the reason that its error codes leave out.
type Heard = Arc<Mutex<Option<String>>>;

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
struct Quiet {
    heard: Heard,
    /// For members of a group: where to start what is assigned, and what changed.
    membership: Option<consumer::Membership>,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.hear(message);
        }
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if reason.contains("/bootstrap: ") {
            self.hear(reason);
        }
        tracing::debug!(%error, "{reason}");
    }
}

impl Quiet {
    /// `…host:port/bootstrap: what happened (after …ms in state …)`
    fn hear(&self, message: &str) {
        let what = message.rsplit_once("/bootstrap: ").map_or(message, |(_, what)| what);
        let what = what.split(" (after ").next().unwrap_or(what);
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }
}

impl ConsumerContext for Quiet {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, change: RDKafkaRespErr, list: &mut TopicPartitionList) {
        if let Some(membership) = &self.membership {
            membership.rebalance(consumer, change, list);
        }
    }
}

impl Error {
    /// Whether a broker that is away, or busy with itself, may be all that is wrong.
    pub fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Kafka { source, .. } => matches!(
                source.rdkafka_error_code(),
                Some(
                    RDKafkaErrorCode::LeaderNotAvailable
                        | RDKafkaErrorCode::NotLeaderForPartition
                        | RDKafkaErrorCode::RequestTimedOut
                        | RDKafkaErrorCode::UnknownPartition
                        | RDKafkaErrorCode::ReplicaNotAvailable
                        | RDKafkaErrorCode::OffsetNotAvailable
                        | RDKafkaErrorCode::CoordinatorNotAvailable
                        | RDKafkaErrorCode::KafkaStorageError
                )
            ),
            _ => false,
        }
    }
}

impl Cluster {
    /// The same Kafka, waited for no longer than this.
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(self.timeout), ..self.clone() }
    }

    /// Addresses of brokers, host:port, separated by commas.
    pub fn new(servers: &str, timeout: Duration, settings: Settings) -> Self {
        Self { servers: servers.to_owned(), timeout, settings: Arc::new(settings), heard: Heard::default() }
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in self.settings.iter() {
            config.set(key, value);
        }
        // Somebody who asks for librdkafka's own words with -X debug=… and -v gets them.
        let level = if config.get("debug").is_some() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Warning };
        config
            .set("bootstrap.servers", &self.servers)
            .set("client.id", "tercile")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(level);
        config
    }

    fn kafka(&self, action: &'static str) -> impl FnOnce(KafkaError) -> Error + '_ {
        move |source| match source.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve,
            ) => {
                let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let check = "check --bootstrap-servers and that the broker runs";
                let why = heard.map_or_else(|| check.to_owned(), |heard| format!("{heard}; {check}"));
                Error::Unreachable { servers: self.servers.clone(), timeout: self.timeout, why }
            }
            _ => match source {
                // The value may be a secret, and librdkafka's own words repeat it.
                KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, key, _) => {
                    Error::Setting { key, why: "is unknown to librdkafka".to_owned() }
                }
                KafkaError::ClientConfig(_, _, key, _) => {
                    Error::Setting { key, why: "has a value that librdkafka does not take".to_owned() }
                }
                source => Error::Kafka { action, servers: self.servers.clone(), source },
            },
        }
    }

    fn quiet(&self) -> Quiet {
        Quiet { heard: Arc::clone(&self.heard), membership: None }
    }

    /// A client that asks without making topics by asking: a producer's question would.
    fn asking(&self) -> Result<BaseConsumer<Quiet>, Error> {
        self.config()
            .set("allow.auto.create.topics", "false")
            .create_with_context(self.quiet())
            .map_err(self.kafka("connect to"))
    }

    /// What the broker says of a topic; `None` if it knows none of that name.
    pub fn describe(&self, topic: &str) -> Result<Option<Topic>, Error> {
        self.asker()?.describe(topic)
    }

    /// Somebody to ask again and again.
    pub fn asker(&self) -> Result<Asker, Error> {
        Ok(Asker { client: self.asking()?, cluster: self.clone() })
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
        Ok(id.is_some_and(|id| id.starts_with(EMBEDDED_CLUSTER)))
    }
}

/// Asks a cluster about topics, over a connection that stays.
pub struct Asker {
    client: BaseConsumer<Quiet>,
    cluster: Cluster,
}

impl Asker {
    /// What the broker says of a topic; `None` if it knows none of that name.
    pub fn describe(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let Self { client, cluster: to } = self;
        let metadata = client.fetch_metadata(Some(topic), to.timeout);
        // What went wrong waits in the client's queue, and would fill it up.
        for _ in 0..20 {
            let _ = client.poll(Duration::ZERO);
        }
        let metadata = metadata.map_err(to.kafka("read the topics of"))?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => return Ok(None),
            Some(code) => {
                return Err(to.kafka("read the topics of")(KafkaError::MetadataFetch(code)));
            }
        }
        let partitions = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
        if partitions == 0 {
            return Ok(None);
        }
        // A broker too old for topics with ids at least tells one cluster from another. So does the embedded one, which
        // leaves the question for a topic's id without an answer.
        let cluster = client.client().fetch_cluster_id(to.timeout);
        let id = match cluster {
            Some(cluster) if cluster.starts_with(EMBEDDED_CLUSTER) => cluster,
            cluster => match topic_id::fetch(client.client(), topic, to.timeout) {
                topic_id::Id::Known(id) => id,
                topic_id::Id::None => cluster.unwrap_or_default(),
                topic_id::Id::NoAnswer => {
                    let late = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
                    return Err(to.kafka("ask for a topic's id at")(late));
                }
            },
        };
        Ok(Some(Topic { name: topic.to_owned(), id, partitions }))
    }
}
