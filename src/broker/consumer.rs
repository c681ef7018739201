//! Reads a topic from given positions on.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{Cluster, Error, FILE_HEADER, Gap, Quiet};
use crate::batch::Record;

/// Where to start reading a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    pub partition: i32,
    /// The first offset wanted, as the store counts.
    pub offset: i64,
    /// What the store counts more than the broker does: the embedded broker has no past and begins at 0 each time.
    pub base: i64,
}

/// A consumer that was assigned its partitions once, with offsets, and never resets them.
pub struct Consumer {
    inner: BaseConsumer<Quiet>,
    cluster: Cluster,
    topic: String,
    bases: BTreeMap<i32, i64>,
    commits: bool,
}

/// What reading brought.
pub enum Event<'c> {
    Message(Message<'c>),
    /// A partition was read to its end, as it is now.
    End(i32),
    /// The broker has records missing where we stand. Somebody must ask [`Consumer::gaps`].
    OutOfRange,
    /// No broker answers; it is tried again for ever.
    Down,
    /// librdkafka gave up for good.
    Fatal(KafkaError),
}

/// A message, its offset counted as the store counts.
pub struct Message<'c> {
    inner: BorrowedMessage<'c>,
    base: i64,
}

impl Message<'_> {
    pub fn partition(&self) -> i32 {
        self.inner.partition()
    }

    pub fn record(&self) -> Record<'_> {
        Record {
            offset: self.inner.offset() + self.base,
            timestamp: self.inner.timestamp().to_millis(),
            key: self.inner.key(),
            payload: self.inner.payload(),
        }
    }

    /// Names and values of the headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.inner.headers().into_iter().flat_map(|headers| headers.iter().map(|h| (h.key, h.value)))
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.inner.payload_len() + self.inner.key_len()
    }

    /// Bytes of the value.
    pub fn payload_len(&self) -> usize {
        self.inner.payload_len()
    }

    /// Whether `up` replayed it from a file.
    pub fn is_replayed(&self) -> bool {
        self.headers().any(|(name, _)| name == FILE_HEADER)
    }
}

impl Consumer {
    /// Starts reading. A real Kafka is told how far the store is, as advice to its other users; an embedded broker would
    /// forget it anyway.
    pub fn assign(cluster: &Cluster, topic: &str, starts: &[Start], embedded: bool) -> Result<Self, Error> {
        let inner: BaseConsumer<Quiet> = cluster
            .config()
            .set("group.id", "tercile")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // A position that is gone must come back as an error: never as a silent jump.
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            // The embedded broker lets a reader that is early wait the whole time, whatever comes meanwhile.
            .set("fetch.wait.max.ms", if embedded { "10" } else { "100" })
            .set("fetch.error.backoff.ms", "50")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.max.bytes", "16777216")
            .set("max.partition.fetch.bytes", "4194304")
            .set("receive.message.max.bytes", "1100000000")
            .set("queued.max.messages.kbytes", "16384")
            .create_with_context(Quiet)
            .map_err(cluster.kafka("connect to"))?;
        let mut list = TopicPartitionList::with_capacity(starts.len());
        for start in starts {
            list.add_partition_offset(topic, start.partition, Offset::Offset(start.offset - start.base))
                .map_err(cluster.kafka("assign partitions of"))?;
        }
        inner.assign(&list).map_err(cluster.kafka("assign partitions of"))?;
        let bases = starts.iter().map(|start| (start.partition, start.base)).collect();
        Ok(Self { inner, cluster: cluster.clone(), topic: topic.to_owned(), bases, commits: !embedded })
    }

    fn base(&self, partition: i32) -> i64 {
        self.bases.get(&partition).copied().unwrap_or(0)
    }

    /// The next event, or `None` if there was none in time.
    pub fn poll(&self, timeout: Duration) -> Option<Event<'_>> {
        match self.inner.poll(timeout)? {
            Ok(inner) => {
                let base = self.base(inner.partition());
                Some(Event::Message(Message { inner, base }))
            }
            Err(KafkaError::PartitionEOF(partition)) => Some(Event::End(partition)),
            Err(KafkaError::MessageConsumptionFatal(code)) => {
                Some(Event::Fatal(KafkaError::MessageConsumptionFatal(code)))
            }
            Err(error) => match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => Some(Event::OutOfRange),
                Some(RDKafkaErrorCode::AllBrokersDown) => Some(Event::Down),
                _ => {
                    tracing::debug!(%error, "while reading");
                    None
                }
            },
        }
    }

    /// The first offset a partition holds and the one its next record will get, as the store counts.
    pub fn watermarks(&self, partition: i32) -> Result<(i64, i64), Error> {
        let base = self.base(partition);
        let (low, high) = self
            .inner
            .fetch_watermarks(&self.topic, partition, self.cluster.timeout)
            .map_err(self.cluster.kafka("read the offsets of"))?;
        Ok((low + base, high + base))
    }

    /// Of these positions those that the broker holds nothing of any more, or nothing of yet.
    pub fn gaps(&self, positions: &BTreeMap<i32, i64>) -> Result<Vec<Gap>, Error> {
        let mut gaps = Vec::new();
        for (&partition, &expected) in positions {
            let (low, high) = self.watermarks(partition)?;
            if expected < low || expected > high {
                gaps.push(Gap { topic: self.topic.clone(), partition, expected, found: low });
            }
        }
        Ok(gaps)
    }

    /// Stops fetching from a partition.
    pub fn pause(&self, partition: i32) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        self.inner.pause(&list).map_err(self.cluster.kafka("pause a partition of"))
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

/// The first offset of each partition of a topic that nobody reads yet.
pub fn low_watermarks(cluster: &Cluster, topic: &str, partitions: &[i32]) -> Result<Vec<i64>, Error> {
    let client = cluster.asking()?;
    partitions
        .iter()
        .map(|&partition| {
            client
                .fetch_watermarks(topic, partition, cluster.timeout)
                .map(|(low, _)| low)
                .map_err(cluster.kafka("read the offsets of"))
        })
        .collect()
}
