//! A Kafka cluster: its address, its topics, and the first and last offsets of partitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::Client;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaConfRes;

use super::context::{Context, Failures};
use super::settings::set_missing;
use super::{Bound, Error, Settings, Topics, error, offsets, topic_id};

/// Prefix of the cluster id of an embedded broker.
const EMBEDDED_CLUSTER: &str = "mockCluster";
/// Timeout of the first attempt to reach a broker, after which refused credentials are checked for; each further attempt lasts
/// twice as long.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);

/// A Kafka cluster: addresses and client settings.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Bootstrap addresses, host:port, separated by commas.
    pub servers: String,
    /// Timeout for requests.
    pub timeout: Duration,
    settings: Arc<Settings>,
    pub(super) failures: Failures,
}

/// A topic as described by the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Topic name; of several topics that are read as one, their names, separated by commas.
    pub name: String,
    /// Kafka's topic id, else the cluster's id; empty if the broker is too old for either. Of several topics, their ids, separated by
    /// commas.
    pub id: String,
    /// The cluster's id; empty if the broker is too old for one.
    pub cluster: String,
    /// One more than the highest partition number: the number of partitions of a single topic.
    pub partitions: i32,
    /// The numbers of the partitions ([`Topics`]), ascending.
    pub numbers: Vec<i32>,
    /// Whether the broker is an embedded one, of this or another process.
    pub embedded: bool,
}

/// The pause between two attempts of a request whose error is transient.
const RETRY: Duration = Duration::from_millis(200);

impl Cluster {
    /// A copy of this cluster whose timeout is at most `timeout`.
    pub fn within(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(self.timeout), ..self.clone() }
    }

    /// A cluster at `servers`: addresses host:port, separated by commas.
    pub fn new(servers: &str, timeout: Duration, settings: Settings) -> Self {
        Self { servers: servers.to_owned(), timeout, settings: Arc::new(settings), failures: Failures::default() }
    }

    pub(super) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in self.settings.iter() {
            config.set(key, value);
        }
        // With -X debug=… and -v, librdkafka's debug messages are wanted. A closed connection is logged at the level below
        // warnings.
        let level = if config.get("debug").is_some() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info };
        let tuning = [("client.id", "tercile"), ("socket.nagle.disable", "true"), ("reconnect.backoff.max.ms", "2000")];
        set_missing(&mut config, &tuning);
        config.set("bootstrap.servers", &self.servers).set_log_level(level);
        config
    }

    /// Converts an error of librdkafka's. `action` names the attempted action and its object: `read the topic products`.
    pub(super) fn kafka(&self, action: impl Into<String>) -> impl FnOnce(KafkaError) -> Error + '_ {
        let action = action.into();
        move |source| {
            let code = source.rdkafka_error_code();
            let refused =
                |code, reason| Error::Refused { action: action.clone(), servers: self.servers.clone(), code, reason };
            match (code, source) {
                (Some(code), _) if error::is_about_a_connection(code) => self
                    .denied()
                    .map_or_else(|| self.unreachable(), |reason| refused(RDKafkaErrorCode::Authentication, reason)),
                (Some(code), _) if error::is_permanent(code) => refused(code, error::meaning(code)),
                // The value may be a secret, and librdkafka's message repeats it.
                (_, KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, key, _)) => {
                    Error::Setting { key, why: "is unknown to librdkafka".to_owned() }
                }
                (_, KafkaError::ClientConfig(_, _, key, _)) => {
                    Error::Setting { key, why: "has a value that librdkafka does not take".to_owned() }
                }
                (_, source) => Error::Kafka { action, servers: self.servers.clone(), source },
            }
        }
    }

    /// The authentication failure, if one occurred recently.
    fn denied(&self) -> Option<String> {
        self.failures.denied(self.timeout * 2)
    }

    /// Why connections fail, if one failed recently.
    pub fn failure(&self) -> Option<String> {
        self.failures.reason(&self.servers, self.timeout * 2)
    }

    pub(super) fn unreachable(&self) -> Error {
        let why = self.failure().unwrap_or_else(|| "check --bootstrap-servers and that the broker runs".to_owned());
        Error::Unreachable { servers: self.servers.clone(), timeout: self.timeout, why }
    }

    /// A client for requests that does not create topics; a producer's metadata request would.
    fn asking(&self) -> Result<BaseConsumer<Context>, Error> {
        self.config()
            .set("allow.auto.create.topics", "false")
            .create_with_context(Context::new(&self.failures))
            .map_err(self.kafka("make a client"))
    }

    /// Describes a topic; `None` if the broker has no topic of that name.
    ///
    /// # Errors
    /// If the broker does not answer within the timeout, or refuses.
    pub fn describe(&self, topic: &str) -> Result<Option<Topic>, Error> {
        self.asker()?.describe(topic)
    }

    /// A connection for repeated requests.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn asker(&self) -> Result<Asker, Error> {
        Ok(Asker { client: self.asking()?, cluster: self.clone() })
    }

    /// Like [`Cluster::describe`], but the topic must exist.
    ///
    /// # Errors
    /// As [`Cluster::describe`], and if the topic, or one of several, does not exist.
    pub fn topic(&self, topic: &str) -> Result<Topic, Error> {
        let asker = self.asker()?;
        if let Some(found) = asker.describe(topic)? {
            return Ok(found);
        }
        let mut missing = topic.to_owned();
        for name in Topics::new(topic).names() {
            if asker.describe(name)?.is_none() {
                missing.clone_from(name);
                break;
            }
        }
        Err(Error::NoTopic { topic: missing, servers: self.servers.clone() })
    }

    /// The names of all topics but internal ones, sorted.
    ///
    /// # Errors
    /// As [`Cluster::describe`].
    pub fn topics(&self) -> Result<Vec<String>, Error> {
        let metadata = self.asker()?.metadata(None)?;
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with("__")).collect();
        names.sort();
        Ok(names)
    }

    /// The topic, created with this number of partitions and these settings if it does not exist. The flag is `true` if it was
    /// created.
    ///
    /// # Errors
    /// If the broker does not answer, or refuses.
    pub async fn topic_or_create(
        &self,
        topic: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<(Topic, bool), Error> {
        if let Some(found) = self.describe_in_background(topic).await? {
            return Ok((found, false));
        }
        self.create(topic, partitions, settings).await?;
        // A broker may acknowledge a new topic shortly before it can describe it.
        for _ in 0..50 {
            if let Some(made) = self.describe_in_background(topic).await? {
                return Ok((made, true));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(Error::NoTopic { topic: topic.to_owned(), servers: self.servers.clone() })
    }

    /// [`Cluster::describe`] blocks, and a blocked task cannot react to signals.
    async fn describe_in_background(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let (cluster, topic) = (self.clone(), topic.to_owned());
        let described = tokio::task::spawn_blocking(move || cluster.describe(&topic)).await;
        described.unwrap_or_else(|error| Err(Error::Client(format!("the question for a topic was cut off: {error}"))))
    }

    async fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<(), Error> {
        let cannot = |why: String| Error::CannotCreate { topic: topic.to_owned(), servers: self.servers.clone(), why };
        let cluster = self.clone();
        let embedded = tokio::task::spawn_blocking(move || cluster.is_embedded()).await;
        if embedded.map_err(|error| cannot(error.to_string()))?? {
            return Err(cannot(
                "an embedded broker holds the topic it was started with, and makes no others".to_owned(),
            ));
        }
        let context = Context::new(&self.failures);
        let admin: AdminClient<Context> =
            self.config().create_with_context(context).map_err(self.kafka("make a client"))?;
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
        new.config.extend(settings);
        let options = AdminOptions::new().operation_timeout(Some(self.timeout)).request_timeout(Some(self.timeout));
        let results = admin.create_topics([&new], &options).await.map_err(|e| cannot(e.to_string()))?;
        match results.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(cannot(format!("{}{}", error::meaning(code), error::advised(code))))
            }
            _ => Ok(()),
        }
    }

    /// Whether the broker is an embedded one, of this or another process, which requires back-pressure.
    ///
    /// # Errors
    /// If the broker does not answer within the timeout.
    pub fn is_embedded(&self) -> Result<bool, Error> {
        let client = self.asking()?;
        let id = client.client().fetch_cluster_id(self.timeout);
        Ok(id.is_some_and(|id| id.starts_with(EMBEDDED_CLUSTER)))
    }

    /// The offset of each partition at this position, over a new connection.
    ///
    /// # Errors
    /// Transient errors are retried within the timeout.
    /// [`Error::Unreachable`] if none of the partitions' leaders answers within the timeout, [`Error::Leaderless`] if some do
    /// not, [`Error::Refused`] if access is denied.
    pub fn offsets(&self, topic: &str, partitions: &[i32], bound: Bound) -> Result<BTreeMap<i32, i64>, Error> {
        let (began, topics) = (Instant::now(), Topics::new(topic));
        loop {
            let client = self.asking()?;
            let answer = self.offsets_by(&client, &topics, partitions, bound);
            drain(&client);
            match answer {
                // The leaders of a topic that was just created, or of a broker that restarts, are not known to all brokers yet.
                Err(error)
                    if matches!(error, Error::Kafka { .. }) && error.passes() && began.elapsed() < self.timeout =>
                {
                    thread::sleep(RETRY);
                }
                answer => return answer,
            }
        }
    }

    /// The offsets of the partitions, over an existing client.
    pub(super) fn offsets_by(
        &self,
        client: &BaseConsumer<Context>,
        topics: &Topics,
        partitions: &[i32],
        bound: Bound,
    ) -> Result<BTreeMap<i32, i64>, Error> {
        let action = || format!("read the offsets of {}", topics.name());
        let answers =
            offsets::offsets(client, topics, partitions, bound, self.timeout).map_err(self.kafka(action()))?;
        let mut found = BTreeMap::new();
        let mut failed = Vec::new();
        for (partition, answer) in answers {
            match answer {
                Ok(offset) => {
                    found.insert(partition, offset);
                }
                Err(code) => failed.push((partition, code)),
            }
        }
        match failed.first() {
            None => Ok(found),
            Some(&(partition, code)) if error::is_about_a_connection(code) && !found.is_empty() => {
                Err(Error::Leaderless {
                    topic: topics.name(),
                    partition,
                    more: failed.len() - 1,
                    why: self.failure().unwrap_or_else(|| error::meaning(code)),
                })
            }
            Some(&(_, code)) => Err(self.kafka(action())(KafkaError::OffsetFetch(code))),
        }
    }
}

/// Empties the event queue of a client that only makes requests, which log lines and errors would fill.
fn drain(client: &BaseConsumer<Context>) {
    for _ in 0..20 {
        let _ = client.poll(Duration::ZERO);
    }
}

/// A lasting connection for requests about topics.
pub struct Asker {
    pub(super) client: BaseConsumer<Context>,
    cluster: Cluster,
}

impl Asker {
    pub(super) fn client(&self) -> &Client<Context> {
        self.client.client()
    }

    /// The metadata of a topic, or of all topics. Refused credentials end the request as soon as they are known; librdkafka would retry until the
    /// timeout.
    fn metadata(&self, topic: Option<&str>) -> Result<Metadata, Error> {
        let Self { client, cluster } = self;
        let deadline = Instant::now() + cluster.timeout;
        let mut attempt = FIRST_ATTEMPT;
        loop {
            let began = Instant::now();
            let left = deadline.saturating_duration_since(began);
            let answer = client.fetch_metadata(topic, attempt.min(left).max(Duration::from_millis(1)));
            drain(client);
            match answer {
                Ok(metadata) => return Ok(metadata),
                Err(error) => {
                    let again = error.rdkafka_error_code().is_some_and(error::is_about_a_connection);
                    if !again || attempt >= left || cluster.denied().is_some() {
                        let what = topic.map_or_else(|| "all topics".to_owned(), |topic| format!("the topic {topic}"));
                        return Err(cluster.kafka(format!("ask for {what}"))(error));
                    }
                }
            }
            // An attempt that failed at once must not be repeated without a pause.
            std::thread::sleep(Duration::from_millis(50).saturating_sub(began.elapsed()));
            attempt *= 2;
        }
    }

    /// The partition numbers of an existing topic.
    pub(super) fn partitions(&self, topic: &str) -> Result<Vec<i32>, Error> {
        let metadata = self.metadata(Some(topic))?;
        let found = metadata.topics().iter().find(|t| t.name() == topic);
        Ok(found.map(|found| found.partitions().iter().map(|partition| partition.id()).collect()).unwrap_or_default())
    }

    /// As [`Cluster::describe`]. Several topics are described as one; `None` if one of them does not exist.
    ///
    /// # Errors
    /// If the broker does not answer within the timeout, or refuses.
    pub fn describe(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let topics = Topics::new(topic);
        let mut all: Option<Topic> = None;
        for name in topics.names() {
            let Some(one) = self.describe_one(name)? else { return Ok(None) };
            let numbers = one.numbers.iter().filter_map(|&partition| topics.number(name, partition));
            let described = all.get_or_insert_with(|| Topic {
                name: topics.name(),
                id: String::new(),
                numbers: Vec::new(),
                partitions: 0,
                ..one.clone()
            });
            described.numbers.extend(numbers);
            let comma = if described.id.is_empty() { "" } else { "," };
            described.id = format!("{}{comma}{}", described.id, one.id);
        }
        if let Some(described) = &mut all {
            described.numbers.sort_unstable();
            described.partitions = described.numbers.last().map_or(0, |highest| highest + 1);
        }
        Ok(all)
    }

    fn describe_one(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let Self { client, cluster: to } = self;
        let metadata = self.metadata(Some(topic))?;
        let action = || format!("read the topic {topic}");
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => return Ok(None),
            Some(code) => return Err(to.kafka(action())(KafkaError::MetadataFetch(code))),
        }
        let partitions = i32::try_from(found.partitions().len()).unwrap_or(i32::MAX);
        if partitions == 0 {
            return Ok(None);
        }
        // A broker without topic ids at least has a cluster id. The embedded broker does not answer the request for topic ids.
        let cluster = client.client().fetch_cluster_id(to.timeout);
        let embedded = cluster.as_ref().is_some_and(|cluster| cluster.starts_with(EMBEDDED_CLUSTER));
        let cluster = cluster.unwrap_or_default();
        let id = if embedded {
            cluster.clone()
        } else {
            match topic_id::fetch(client.client(), topic, to.timeout) {
                topic_id::Id::Known(id) => id,
                topic_id::Id::None => cluster.clone(),
                topic_id::Id::NoAnswer => {
                    drain(client);
                    let late = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
                    return Err(to.kafka(action())(late));
                }
            }
        };
        let numbers = (0..partitions).collect();
        Ok(Some(Topic { name: topic.to_owned(), id, cluster, partitions, numbers, embedded }))
    }
}
