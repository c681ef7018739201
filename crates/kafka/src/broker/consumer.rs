//! The consumer: reads partitions from given offsets, alone or as a member of a group.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

mod leave;
mod member;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

pub use member::{Committed, Member};

use super::context::Context;
use super::membership::{Change, Membership, NotNow, Resolve, Start, own_queue};
use super::settings::set_missing;
use super::{Bound, Cluster, Error, Gap, Queue, Topics, error};

/// The group id under which a worker without a group commits its offsets, as information for other tools.
const ALONE: &str = "tercile";

/// A consumer whose partitions are assigned with explicit offsets, which are never reset.
pub struct Consumer {
    inner: BaseConsumer<Context>,
    cluster: Cluster,
    topics: Topics,
    group: String,
    bases: Mutex<BTreeMap<i32, i64>>,
    /// Of a group member.
    membership: Option<Arc<Membership>>,
    commits: bool,
}

/// Options of a consumer.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Whether the broker is this process's embedded one.
    pub embedded: bool,
    /// Maximum bytes of fetched records in a partition's queue.
    pub queue_bytes: usize,
    /// Interval of librdkafka's metadata refresh, by which a group notices new partitions.
    pub refresh: Duration,
}

/// An event other than a message. Messages arrive in the [`Queue`] of their partition.
pub enum Event {
    /// No broker is reachable, with the reason if known. librdkafka retries without limit.
    Down(Option<String>),
    /// A broker refuses a request that reading needs. Permanent.
    Refused(Error),
    /// A transient error, or one that does not affect reading.
    Trouble(Trouble),
    /// The group assigned these partitions; reading starts at these positions.
    Assigned(Vec<Start>),
    /// The group revoked these partitions.
    Revoked(Vec<i32>),
    /// A partition assigned by the group cannot be read.
    NotNow(NotNow),
    /// Unrecoverable error.
    Fatal(String),
}

/// A transient error.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Identifies the cause, so that repeated warnings can be suppressed.
    pub cause: String,
    /// Text for the log.
    pub message: String,
}

/// Session timeout and maximum poll interval of group members, unless they are given.
const SESSION_TIMEOUT: Duration = Duration::from_secs(45);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);

/// A consumer group whose members share a topic.
#[derive(Debug, Clone)]
pub struct Group {
    /// Group id (`group.id`).
    pub name: String,
    /// Instance id of a static member, which gets its partitions back without a rebalance.
    pub instance: Option<String>,
    /// Without a heartbeat for this time, a member loses its partitions; `None`: as the settings say, or 45 seconds.
    pub session_timeout: Option<Duration>,
    /// Without a poll for this time, a member loses its partitions; `None`: as the settings say, or 5 minutes.
    pub max_poll_interval: Option<Duration>,
}

impl Consumer {
    fn config(cluster: &Cluster, reading: Reading) -> ClientConfig {
        let mut config = cluster.config();
        let queue_kbytes = (reading.queue_bytes / 1024).max(1).to_string();
        let queue_messages = (reading.queue_bytes / 1024).clamp(1000, 100_000).to_string();
        let refresh = reading.refresh.as_millis().clamp(10, 3_600_000).to_string();
        let tuning = [
            ("fetch.error.backoff.ms", "50"),
            ("fetch.queue.backoff.ms", "10"),
            // The embedded broker always delays a fetch at the end of the log for the full wait, even if records arrive.
            ("fetch.wait.max.ms", if reading.embedded { "10" } else { "100" }),
            ("fetch.max.bytes", "16777216"),
            ("max.partition.fetch.bytes", "4194304"),
            ("receive.message.max.bytes", "1100000000"),
            ("queued.max.messages.kbytes", &queue_kbytes),
            // The limit in kilobytes counts values only, and a message without a value takes memory too.
            ("queued.min.messages", &queue_messages),
            ("topic.metadata.refresh.interval.ms", &refresh),
        ];
        set_missing(&mut config, &tuning);
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // An offset out of range must be an error, never a silent reset.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false");
        config
    }

    /// Assigns the partitions and starts reading. Commits the store's offsets, as information for other tools; not to an
    /// embedded broker, which would lose them anyway.
    ///
    /// # Errors
    /// If the settings are invalid or librdkafka refuses the assignment.
    pub fn assign(cluster: &Cluster, topic: &str, starts: &[Start], reading: Reading) -> Result<Self, Error> {
        let inner: BaseConsumer<Context> = Self::config(cluster, reading)
            .set("group.id", ALONE)
            .create_with_context(Context::new(&cluster.failures))
            .map_err(cluster.kafka("make a consumer"))?;
        let action = || format!("read the topic {topic}");
        let topics = Topics::new(topic);
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for &start in starts {
            own_queue(&inner, &topics, start).map_err(Error::Client)?;
            let (topic, partition) = topics.place(start.partition);
            list.add_partition_offset(topic, partition, Offset::Offset(start.offset - start.base))
                .map_err(cluster.kafka(action()))?;
        }
        inner.assign(&list).map_err(cluster.kafka(action()))?;
        let bases = Mutex::new(starts.iter().map(|start| (start.partition, start.base)).collect());
        let (group, commits) = (ALONE.to_owned(), !reading.embedded);
        Ok(Self { inner, cluster: cluster.clone(), topics, group, bases, membership: None, commits })
    }

    /// Joins a group. Assigned partitions arrive as [`Event::Assigned`], revoked ones as [`Event::Revoked`].
    ///
    /// # Errors
    /// If the settings are invalid or librdkafka refuses the subscription.
    pub fn join(
        cluster: &Cluster,
        topic: &str,
        group: &Group,
        reading: Reading,
        resolve: Resolve,
    ) -> Result<Self, Error> {
        let mut config = Self::config(cluster, reading);
        config.set("group.id", &group.name).set("partition.assignment.strategy", "cooperative-sticky");
        // A flag wins over a setting, and a setting over the default.
        let mut timing = |key: &str, flag: Option<Duration>, default: Duration| {
            if let Some(flag) = flag {
                config.set(key, flag.as_millis().to_string());
            }
            set_missing(&mut config, &[(key, &default.as_millis().to_string())]);
            config.get(key).and_then(|millis| millis.parse().ok()).map_or(default, Duration::from_millis)
        };
        let session = timing("session.timeout.ms", group.session_timeout, SESSION_TIMEOUT);
        timing(
            "max.poll.interval.ms",
            group.max_poll_interval.map(|poll| poll.max(session)),
            MAX_POLL_INTERVAL.max(session),
        );
        // Members notice a rebalance by their heartbeats, and the rebalance waits for the slowest member.
        let heartbeat = (session.as_millis() / 12).clamp(100, 500).to_string();
        set_missing(&mut config, &[("heartbeat.interval.ms", &heartbeat)]);
        if let Some(instance) = &group.instance {
            config.set("group.instance.id", instance);
        }
        let (changes, closing) = (Mutex::default(), AtomicBool::new(false));
        let fixed = group.instance.is_some();
        let topics = Topics::new(topic);
        let membership = Arc::new(Membership { topics: topics.clone(), fixed, resolve, changes, closing });
        let mut context = Context::new(&cluster.failures);
        context.on_rebalance = Some(Arc::<Membership>::clone(&membership));
        let inner: BaseConsumer<Context> =
            config.create_with_context(context).map_err(cluster.kafka("make a consumer"))?;
        let names: Vec<&str> = topics.names().iter().map(String::as_str).collect();
        inner.subscribe(&names).map_err(cluster.kafka(format!("join the group {}", group.name)))?;
        let (cluster, group) = (cluster.clone(), group.name.clone());
        Ok(Self { inner, cluster, topics, group, bases: Mutex::default(), membership: Some(membership), commits: true })
    }

    fn base(&self, partition: i32) -> i64 {
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied().unwrap_or(0)
    }

    /// Whether the group assigned or revoked partitions that [`Consumer::poll`] has not returned yet.
    pub fn has_changes(&self) -> bool {
        let changes = self.membership.as_ref().map(|membership| &membership.changes);
        changes.is_some_and(|changes| !changes.lock().unwrap_or_else(PoisonError::into_inner).is_empty())
    }

    /// Continues an assigned partition at another position; the group does not rebalance. No thread may still take from the
    /// partition's queue. Messages fetched before are discarded: librdkafka compares the version of each with that of the
    /// partition.
    ///
    /// # Errors
    /// The reason if librdkafka refuses. [`Consumer::has_changes`] must be `false`.
    pub fn reassign(&self, start: Start) -> Result<(), String> {
        let failed = |error: KafkaError| error.to_string();
        let mut list = TopicPartitionList::new();
        let (topic, partition) = self.topics.place(start.partition);
        list.add_partition_offset(topic, partition, Offset::Offset(start.offset - start.base)).map_err(failed)?;
        self.inner.incremental_unassign(&list).map_err(failed)?;
        self.bases.lock().unwrap_or_else(PoisonError::into_inner).insert(start.partition, start.base);
        own_queue(&self.inner, &self.topics, start)?;
        self.inner.incremental_assign(&list).map_err(failed)
    }

    /// Completes the revocation of partitions. Their queues must no longer be read.
    pub fn give_back(&self, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for &number in partitions {
            let (topic, partition) = self.topics.place(number);
            list.add_partition(topic, partition);
        }
        if let Err(error) = self.inner.incremental_unassign(&list) {
            tracing::debug!(%error, "while giving partitions back");
        }
    }

    /// The queue of an assigned partition.
    ///
    /// # Errors
    /// If librdkafka has no queue for the partition.
    pub fn queue(&self, start: Start) -> Result<Queue<'_>, Error> {
        own_queue(&self.inner, &self.topics, start).map_err(Error::Client)
    }

    /// The next event; `None` after `timeout`.
    pub fn poll(&self, timeout: Duration) -> Option<Event> {
        if let Some(membership) = &self.membership
            && let Some(change) = membership.changes.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        {
            return Some(match change {
                Change::Assigned(starts) => Event::Assigned(starts),
                Change::Revoked(partitions) => Event::Revoked(partitions),
                Change::Failed(not_now) => Event::NotNow(not_now),
            });
        }
        if let Some(code) = self.inner.context().refused_commit()
            && error::is_permanent(code)
        {
            return Some(self.trouble(code, error::meaning(code)));
        }
        match self.inner.poll(timeout)? {
            // A message here is missing from its partition's queue.
            Ok(message) => Some(Event::Fatal(format!(
                "offset {} of partition {} came outside its queue",
                message.offset(),
                message.partition()
            ))),
            Err(KafkaError::MessageConsumptionFatal(_)) => {
                let fatal = self.inner.client().fatal_error();
                if let Some((RDKafkaErrorCode::FencedInstanceId, _)) = fatal {
                    return Some(Event::Refused(self.refused(RDKafkaErrorCode::FencedInstanceId)));
                }
                let why = fatal.map_or_else(
                    || self.inner.context().reason(),
                    |(code, reason)| format!("{reason}{}", error::advised(code)),
                );
                Some(Event::Fatal(why))
            }
            Err(error) => self.event(&error),
        }
    }

    /// Classifies an error of librdkafka's; `None` if it needs no reaction.
    fn event(&self, error: &KafkaError) -> Option<Event> {
        let code = error.rdkafka_error_code()?;
        let group = &self.membership;
        match code {
            RDKafkaErrorCode::AllBrokersDown => Some(Event::Down(self.cluster.failure())),
            // [`super::context::Failures`] keeps the reason, which is reported once no broker is left.
            _ if error::is_about_a_connection(code) => None,
            _ if group.is_none() && error::is_about_groups(code) => Some(self.trouble(code, error::meaning(code))),
            _ if error::is_permanent(code) => Some(Event::Refused(self.refused(code))),
            _ => Some(self.trouble(code, self.inner.context().reason())),
        }
    }

    fn trouble(&self, code: RDKafkaErrorCode, reason: String) -> Event {
        let servers = &self.cluster.servers;
        let message = if self.membership.is_none() && error::is_about_groups(code) {
            format!(
                "{servers} takes no positions of the group {}: {reason}; other tools don't see how far this worker is, and nothing \
                 else depends on it; grant the user Read on the group to change that",
                self.group
            )
        } else {
            format!("{servers}: {reason}{}; trying again", error::advised(code))
        };
        Event::Trouble(Trouble { cause: format!("{code:?}"), message })
    }

    /// The error for a permanent error code.
    pub fn refused(&self, code: RDKafkaErrorCode) -> Error {
        let group = self.membership.is_some() && code != RDKafkaErrorCode::TopicAuthorizationFailed;
        let action = if group {
            format!("join the group {}", self.group)
        } else {
            format!("read the topic {}", self.topics.name())
        };
        let reason = error::meaning(code);
        Error::Refused { action, servers: self.cluster.servers.clone(), code, reason }
    }

    /// Why connections fail, if one failed recently.
    pub fn failure(&self) -> Option<String> {
        self.cluster.failure()
    }

    /// The earliest or latest offset of each partition, in store offsets, in one request per broker.
    ///
    /// # Errors
    /// As [`Cluster::offsets`].
    pub fn offsets(&self, partitions: &[i32], bound: Bound) -> Result<BTreeMap<i32, i64>, Error> {
        let mut found = self.cluster.offsets_by(&self.inner, &self.topics, partitions, bound)?;
        for (&partition, offset) in &mut found {
            *offset += self.base(partition);
        }
        Ok(found)
    }

    /// The gap at `expected`, if the broker no longer holds that offset or does not hold it yet.
    ///
    /// # Errors
    /// If the broker does not answer.
    pub fn gap(&self, partition: i32, expected: i64) -> Result<Option<Gap>, Error> {
        let bound =
            |bound| Ok::<_, Error>(self.offsets(&[partition], bound)?.get(&partition).copied().unwrap_or(expected));
        let (low, high) = (bound(Bound::Earliest)?, bound(Bound::Latest)?);
        let missing = expected < low || expected > high;
        Ok(missing.then(|| Gap { topic: self.topics.name(), partition, expected, found: low }))
    }

    /// Number of records after `position`, as of the last fetch; makes no request.
    pub fn lag(&self, partition: i32, position: i64) -> Option<i64> {
        let base = self.base(partition);
        let (topic, partition) = self.topics.place(partition);
        let topic = CString::new(topic).ok()?;
        let (mut low, mut high) = (0, 0);
        // SAFETY: the handle lives as long as `self`, and librdkafka only writes to the two numbers.
        let answer = unsafe {
            let handle = self.inner.client().native_ptr();
            rd::rd_kafka_get_watermark_offsets(handle, topic.as_ptr(), partition, &raw mut low, &raw mut high)
        };
        let known = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0;
        known.then(|| (high + base - position).max(0))
    }

    /// Commits `next` to Kafka as information for other tools; the store never reads it back.
    pub fn commit(&self, partition: i32, next: i64) {
        if !self.commits {
            return;
        }
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(next - self.base(partition));
        let (topic, number) = self.topics.place(partition);
        let committed =
            list.add_partition_offset(topic, number, offset).and_then(|()| self.inner.commit(&list, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(%error, partition, "the commit did not go out");
        }
    }
}
