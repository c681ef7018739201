//! Reads a topic from given positions on.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;

use super::context::Context;
use super::{Bound, Cluster, Error, Gap, Queue, error, set_missing};

/// How long a consumer that goes is waited for: less than a stop may take.
const LEAVING: Duration = Duration::from_secs(4);
/// The group that a lone worker commits to, as advice to other tools.
const ALONE: &str = "tercile";
/// How long the group takes to name a new member.
const NAMED: Duration = Duration::from_millis(50);

/// Where to start reading a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub partition: i32,
    /// Where the log ends: what the next file is named by.
    pub next: i64,
    /// The first offset wanted, as the store counts; beyond `next` where a gap was accepted.
    pub offset: i64,
    /// What the store counts more than the broker does: the embedded broker has no past and begins at 0 each time.
    pub base: i64,
}

/// A consumer that was assigned its partitions once, with offsets, and never resets them.
pub struct Consumer {
    inner: BaseConsumer<Context>,
    cluster: Cluster,
    topic: String,
    group: String,
    bases: BTreeMap<i32, i64>,
    commits: bool,
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The broker is this process's own.
    pub embedded: bool,
    /// Bytes of fetched records that may wait in a partition's queue.
    pub queue_bytes: usize,
    /// How often librdkafka looks whether the topic has new partitions, which is how a group hears of them.
    pub refresh: Duration,
}

/// What happened besides the messages, which wait in the [`Queue`] of their partition.
pub enum Event {
    /// No broker answers, for this reason if it is known; it is tried again for ever.
    Down(Option<String>),
    /// A broker refuses what reading needs, and will go on doing so.
    Refused(Error),
    /// Something went wrong that may pass, or that reading can do without.
    Trouble(Trouble),
    /// The group gave us partitions, and we read them from here on.
    Assigned(Vec<Start>),
    /// The group took partitions away.
    Revoked(Vec<i32>),
    /// A partition that the group gave us can't be read.
    NotNow(NotNow),
    /// It can't go on.
    Fatal(String),
}

/// What went wrong, and may pass.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// The kind of trouble: the same cause need not be told twice.
    pub cause: String,
    pub message: String,
}

/// A group of workers that share a topic.
#[derive(Debug, Clone)]
pub struct Group {
    pub name: String,
    /// Makes the member static: it comes back to its partitions without a rebalance.
    pub instance: Option<String>,
    /// After so long without a sign of life, the others take its partitions.
    pub session_timeout: Duration,
    /// After so long without looking up from its work, likewise.
    pub max_poll_interval: Duration,
}

/// Finds where partitions go on, or says why they can't.
pub type Resolve = Box<dyn Fn(&[i32]) -> Result<Vec<Start>, NotNow> + Send + Sync>;

/// Why a partition can't be read, and whether that may pass.
#[derive(Debug, Clone)]
pub struct NotNow {
    pub why: String,
    pub passes: bool,
}

/// What a member of a group has to know when partitions come and go.
pub(super) struct Membership {
    topic: String,
    /// Whether the member is static.
    fixed: bool,
    resolve: Resolve,
    changes: Mutex<VecDeque<Change>>,
    /// Set when the consumer goes: nobody will ask for changes any more.
    closing: AtomicBool,
}

enum Change {
    Assigned(Vec<Start>),
    Revoked(Vec<i32>),
    Failed(NotNow),
}

impl Membership {
    /// Called by librdkafka from within poll. Partitions are assigned once, with offsets: nothing slips through before
    /// a seek.
    pub(super) fn rebalance(
        &self,
        consumer: &BaseConsumer<Context>,
        change: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let partitions: Vec<i32> = list.elements().iter().map(TopicPartitionListElem::partition).collect();
        let told = match change {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !self.closing.load(Ordering::SeqCst) => {
                self.assign(consumer, &partitions)
            }
            // Taken only to be given back: what comes of them is read by nobody.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let taken = list.set_all_offsets(Offset::End).and_then(|()| consumer.incremental_assign(list));
                if let Err(error) = taken {
                    tracing::debug!(%error, "while taking partitions to give them back");
                }
                return;
            }
            // Whoever reads them must stop first, and gives them back then.
            _ if !self.closing.load(Ordering::SeqCst) => Change::Revoked(partitions),
            _ => {
                let gone = consumer.incremental_unassign(list);
                if let Err(error) = gone {
                    tracing::debug!(%error, "while giving partitions back");
                }
                return;
            }
        };
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push_back(told);
    }

    fn assign(&self, consumer: &BaseConsumer<Context>, partitions: &[i32]) -> Change {
        let starts = match (self.resolve)(partitions) {
            Ok(starts) => starts,
            Err(not_now) => return Change::Failed(not_now),
        };
        let mut list = TopicPartitionList::new();
        for &start in &starts {
            let offset = Offset::Offset(start.offset);
            let added = own_queue(consumer, &self.topic, start).and_then(|_| {
                list.add_partition_offset(&self.topic, start.partition, offset).map_err(|e| e.to_string())
            });
            if let Err(why) = added {
                return Change::Failed(NotNow { why, passes: false });
            }
        }
        match consumer.incremental_assign(&list) {
            Ok(()) => Change::Assigned(starts),
            Err(error) => Change::Failed(NotNow { why: format!("cannot take partitions: {error}"), passes: true }),
        }
    }
}

/// Must come before the partition is assigned.
fn own_queue<'c>(consumer: &'c BaseConsumer<Context>, topic: &str, start: Start) -> Result<Queue<'c>, String> {
    // SAFETY: the queue borrows the client.
    let queue = unsafe { Queue::own(consumer.client().native_ptr(), topic, start.partition, start.base) };
    queue.ok_or_else(|| format!("cannot read partition {} of {topic}: librdkafka has no queue for it", start.partition))
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
            // The embedded broker lets a reader that is early wait the whole time, whatever comes meanwhile.
            ("fetch.wait.max.ms", if reading.embedded { "10" } else { "100" }),
            ("fetch.max.bytes", "16777216"),
            ("max.partition.fetch.bytes", "4194304"),
            ("receive.message.max.bytes", "1100000000"),
            ("queued.max.messages.kbytes", &queue_kbytes),
            // Kilobytes are counted by values alone, and a message without one takes its room too.
            ("queued.min.messages", &queue_messages),
            ("topic.metadata.refresh.interval.ms", &refresh),
        ];
        set_missing(&mut config, &tuning);
        config
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A position that is gone must come back as an error: never as a silent jump.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false");
        config
    }

    /// Starts reading. A real Kafka is told how far the store is, as advice to its other users; an embedded broker would
    /// forget it anyway.
    pub fn assign(cluster: &Cluster, topic: &str, starts: &[Start], reading: Reading) -> Result<Self, Error> {
        let inner: BaseConsumer<Context> = Self::config(cluster, reading)
            .set("group.id", ALONE)
            .create_with_context(Context::new(&cluster.failures))
            .map_err(cluster.kafka("make a consumer"))?;
        let action = || format!("read the topic {topic}");
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for &start in starts {
            own_queue(&inner, topic, start).map_err(Error::Client)?;
            list.add_partition_offset(topic, start.partition, Offset::Offset(start.offset - start.base))
                .map_err(cluster.kafka(action()))?;
        }
        inner.assign(&list).map_err(cluster.kafka(action()))?;
        let bases = starts.iter().map(|start| (start.partition, start.base)).collect();
        let (topic, group, commits) = (topic.to_owned(), ALONE.to_owned(), !reading.embedded);
        Ok(Self { inner, cluster: cluster.clone(), topic, group, bases, commits })
    }

    /// Joins a group. What it is given comes as [`Event::Assigned`], what it must give back as [`Event::Revoked`].
    pub fn join(
        cluster: &Cluster,
        topic: &str,
        group: &Group,
        reading: Reading,
        resolve: Resolve,
    ) -> Result<Self, Error> {
        let mut config = Self::config(cluster, reading);
        config.set("group.id", &group.name).set("partition.assignment.strategy", "cooperative-sticky");
        let session = group.session_timeout.as_millis();
        // A member hears that others come or go by its heartbeat, and all wait for the last one to hear it.
        let heartbeat = (session / 12).clamp(100, 500).to_string();
        let timing = [
            ("session.timeout.ms", &*session.to_string()),
            ("heartbeat.interval.ms", &heartbeat),
            ("max.poll.interval.ms", &group.max_poll_interval.as_millis().to_string()),
        ];
        set_missing(&mut config, &timing);
        if let Some(instance) = &group.instance {
            config.set("group.instance.id", instance);
        }
        let (changes, closing) = (Mutex::default(), AtomicBool::new(false));
        let fixed = group.instance.is_some();
        let membership = Membership { topic: topic.to_owned(), fixed, resolve, changes, closing };
        let mut context = Context::new(&cluster.failures);
        context.membership = Some(membership);
        let inner: BaseConsumer<Context> =
            config.create_with_context(context).map_err(cluster.kafka("make a consumer"))?;
        inner.subscribe(&[topic]).map_err(cluster.kafka(format!("join the group {}", group.name)))?;
        let (cluster, topic, group) = (cluster.clone(), topic.to_owned(), group.name.clone());
        Ok(Self { inner, cluster, topic, group, bases: BTreeMap::new(), commits: true })
    }

    fn base(&self, partition: i32) -> i64 {
        self.bases.get(&partition).copied().unwrap_or(0)
    }

    /// Gives partitions back to the group that it took away. Nobody may take from their queues any more.
    pub fn give_back(&self, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        if let Err(error) = self.inner.incremental_unassign(&list) {
            tracing::debug!(%error, "while giving partitions back");
        }
    }

    /// The messages of a partition that was assigned.
    pub fn queue(&self, start: Start) -> Result<Queue<'_>, Error> {
        own_queue(&self.inner, &self.topic, start).map_err(Error::Client)
    }

    /// The next event, or `None` if there was none in time.
    pub fn poll(&self, timeout: Duration) -> Option<Event> {
        if let Some(membership) = &self.inner.context().membership
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
            // It would be missing where it belongs.
            Ok(message) => Some(Event::Fatal(format!(
                "offset {} of partition {} came outside its queue",
                message.offset(),
                message.partition()
            ))),
            Err(KafkaError::MessageConsumptionFatal(_)) => {
                let fatal = self.inner.client().fatal_error();
                let why = fatal.map_or_else(
                    || self.inner.context().reason(),
                    |(code, reason)| format!("{reason}{}", error::advised(code)),
                );
                Some(Event::Fatal(why))
            }
            Err(error) => self.event(&error),
        }
    }

    /// What an error that librdkafka returned means for whoever reads.
    fn event(&self, error: &KafkaError) -> Option<Event> {
        let code = error.rdkafka_error_code()?;
        let group = &self.inner.context().membership;
        match code {
            RDKafkaErrorCode::AllBrokersDown => Some(Event::Down(self.cluster.failure())),
            // The reason is kept, and told once it is known that no broker is left.
            _ if error::is_about_a_connection(code) => None,
            _ if group.is_none() && error::is_about_groups(code) => Some(self.trouble(code, error::meaning(code))),
            _ if error::is_permanent(code) => Some(Event::Refused(self.refused(code))),
            _ => Some(self.trouble(code, self.inner.context().reason())),
        }
    }

    fn trouble(&self, code: RDKafkaErrorCode, reason: String) -> Event {
        let servers = &self.cluster.servers;
        let message = if self.inner.context().membership.is_none() && error::is_about_groups(code) {
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

    /// The error for a code that ends the reading.
    pub fn refused(&self, code: RDKafkaErrorCode) -> Error {
        let group = self.inner.context().membership.is_some() && code != RDKafkaErrorCode::TopicAuthorizationFailed;
        let action =
            if group { format!("join the group {}", self.group) } else { format!("read the topic {}", self.topic) };
        let reason = error::meaning(code);
        Error::Refused { action, servers: self.cluster.servers.clone(), code, reason }
    }

    /// Why connections fail, if they failed just now.
    pub fn failure(&self) -> Option<String> {
        self.cluster.failure()
    }

    /// The first offset that each of these partitions holds, or the one that its next record will get, as the store counts; all asked
    /// for at once.
    ///
    /// # Errors
    /// As [`Cluster::offsets`].
    pub fn offsets(&self, partitions: &[i32], bound: Bound) -> Result<BTreeMap<i32, i64>, Error> {
        let mut found = self.cluster.offsets_by(self.inner.client(), &self.topic, partitions, bound)?;
        for (&partition, offset) in &mut found {
            *offset += self.base(partition);
        }
        Ok(found)
    }

    /// What is missing where the broker holds nothing of this position any more, or nothing of it yet.
    pub fn gap(&self, partition: i32, expected: i64) -> Result<Option<Gap>, Error> {
        let bound =
            |bound| Ok::<_, Error>(self.offsets(&[partition], bound)?.get(&partition).copied().unwrap_or(expected));
        let (low, high) = (bound(Bound::Earliest)?, bound(Bound::Latest)?);
        let missing = expected < low || expected > high;
        Ok(missing.then(|| Gap { topic: self.topic.clone(), partition, expected, found: low }))
    }

    /// How many records of a partition stand behind this position, as far as the last fetch told; asks nobody.
    pub fn lag(&self, partition: i32, position: i64) -> Option<i64> {
        let topic = CString::new(self.topic.as_str()).ok()?;
        let (mut low, mut high) = (0, 0);
        // SAFETY: the handle lives as long as `self`, and librdkafka only writes to the two numbers.
        let answer = unsafe {
            let handle = self.inner.client().native_ptr();
            rd::rd_kafka_get_watermark_offsets(handle, topic.as_ptr(), partition, &raw mut low, &raw mut high)
        };
        let known = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0;
        known.then(|| (high + self.base(partition) - position).max(0))
    }

    /// Tells Kafka that everything before `next` is stored. Advice only: the store never asks for it back.
    pub fn commit(&self, partition: i32, next: i64) {
        if !self.commits {
            return;
        }
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(next - self.base(partition));
        let committed = list
            .add_partition_offset(&self.topic, partition, offset)
            .and_then(|()| self.inner.commit(&list, CommitMode::Async));
        if let Err(error) = committed {
            tracing::debug!(%error, partition, "the commit did not go out");
        }
    }
}

impl Consumer {
    /// Ends the connection and, as a member, leaves the group. Where the broker does not answer, or the group is long about
    /// it, that goes on by itself: nothing that is stored hangs on it.
    pub fn close(self) {
        let (closed, wait) = channel();
        let closing = std::thread::Builder::new().name("close".to_owned()).spawn(move || {
            drop(self);
            let _ = closed.send(());
        });
        if closing.is_ok() && wait.recv_timeout(LEAVING) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the broker was not waited for any longer");
        }
    }

    /// Tells the group that we go, as a member that holds nothing: when librdkafka 2.12 closes such a one, the group hears
    /// no word of it, and the others wait until its session ends. One that is just joining can say so only once it is in.
    fn leave(&self) {
        if self.inner.assignment().is_ok_and(|held| held.count() > 0) {
            return;
        }
        self.inner.unsubscribe();
        let began = Instant::now();
        // One that has sent its first word may not have heard its name yet.
        while began.elapsed() < NAMED || (self.is_member() && began.elapsed() < LEAVING) {
            let _ = self.inner.poll(Duration::from_millis(10));
        }
    }

    /// Whether the group knows us, by a name that librdkafka forgets as it leaves.
    fn is_member(&self) -> bool {
        // SAFETY: the handle lives as long as `self`; the name is ours to free, with librdkafka's own means.
        unsafe {
            let handle = self.inner.client().native_ptr();
            let name = rd::rd_kafka_memberid(handle);
            let known = !name.is_null() && *name != 0;
            rd::rd_kafka_mem_free(handle, name.cast());
            known
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if let Some(membership) = &self.inner.context().membership {
            membership.closing.store(true, Ordering::SeqCst);
            // The group waits until everything it took away is given back, and closing waits for the group.
            let changes = std::mem::take(&mut *membership.changes.lock().unwrap_or_else(PoisonError::into_inner));
            for change in changes {
                match change {
                    Change::Assigned(_) => {}
                    Change::Revoked(partitions) => self.give_back(&partitions),
                    Change::Failed(_) => self.give_back(&[]),
                }
            }
            if !membership.fixed {
                self.leave();
            }
        }
    }
}
