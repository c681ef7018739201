//! A member of a consumer group: where newly assigned partitions begin, and changes of the assignment.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use rdkafka::types::RDKafkaRespErr;

use super::context::{Context, Rebalance};
use super::{Queue, Topics};

/// The position from which to read a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// Partition number.
    pub partition: i32,
    /// End of the partition's log in the store, which names the next file.
    pub next: i64,
    /// First offset to read, in store offsets; larger than `next` if a gap was accepted.
    pub offset: i64,
    /// Store offset minus broker offset. Not 0 only for the embedded broker, whose offsets begin at 0 at each start.
    pub base: i64,
}

/// Returns the start positions of newly assigned partitions.
pub type Resolve = Box<dyn Fn(&[i32]) -> Result<Vec<Start>, NotNow> + Send + Sync>;

/// Why a partition cannot be read.
#[derive(Debug, Clone)]
pub struct NotNow {
    /// Reason, for the log.
    pub why: String,
    /// Whether the cause is transient.
    pub passes: bool,
}

/// State of a group member for rebalances.
pub(super) struct Membership {
    pub topics: Topics,
    /// Whether the member is static.
    pub fixed: bool,
    pub resolve: Resolve,
    pub changes: Mutex<VecDeque<Change>>,
    /// Set when the consumer closes; changes are no longer collected.
    pub closing: AtomicBool,
}

/// A change of the assignment that the consumer has not reported yet.
pub(super) enum Change {
    Assigned(Vec<Start>),
    Revoked(Vec<i32>),
    Failed(NotNow),
}

impl Rebalance for Membership {
    /// Called by librdkafka from within poll. Partitions are assigned once, with offsets, so no message
    /// arrives before a seek.
    fn rebalance(&self, consumer: &BaseConsumer<Context>, change: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let number = |place: &TopicPartitionListElem<'_>| self.topics.number(place.topic(), place.partition());
        let partitions: Vec<i32> = list.elements().iter().filter_map(number).collect();
        let told = match change {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS if !self.closing.load(Ordering::SeqCst) => {
                self.assign(consumer, &partitions)
            }
            // Closing: assigned only to be revoked; nothing reads these partitions.
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                let taken = list.set_all_offsets(Offset::End).and_then(|()| consumer.incremental_assign(list));
                if let Err(error) = taken {
                    tracing::debug!(%error, "while taking partitions to give them back");
                }
                return;
            }
            // The partition worker must stop first; it then calls `give_back`.
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
}

impl Membership {
    fn assign(&self, consumer: &BaseConsumer<Context>, partitions: &[i32]) -> Change {
        let starts = match (self.resolve)(partitions) {
            Ok(starts) => starts,
            Err(not_now) => return Change::Failed(not_now),
        };
        let mut list = TopicPartitionList::new();
        for &start in &starts {
            let offset = Offset::Offset(start.offset);
            let (topic, partition) = self.topics.place(start.partition);
            let added = own_queue(consumer, &self.topics, start)
                .and_then(|_| list.add_partition_offset(topic, partition, offset).map_err(|e| e.to_string()));
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

/// Gives a partition its own queue. Must be called before the partition is assigned.
pub(super) fn own_queue<'c>(
    consumer: &'c BaseConsumer<Context>,
    topics: &Topics,
    start: Start,
) -> Result<Queue<'c>, String> {
    let (topic, partition) = topics.place(start.partition);
    // SAFETY: the queue borrows the client.
    let queue = unsafe { Queue::own(consumer.client().native_ptr(), topic, partition, start.base) };
    queue.ok_or_else(|| format!("cannot read partition {partition} of {topic}: librdkafka has no queue for it"))
}
