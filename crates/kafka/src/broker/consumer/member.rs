//! Positions of a group: the committed ones, with a note beside each, and the member that commits them.

use std::collections::BTreeMap;
use std::ptr::NonNull;

use rdkafka::bindings as rd;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Consumer;
use crate::broker::batches::BatchError;
use crate::broker::context::Context;
use crate::broker::error::meaning;
use crate::broker::{Cluster, Error, Topics};

/// A position that a group has committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The offset of the next record to read.
    pub next: i64,
    /// The text that was committed with it; empty if another tool committed it.
    pub note: String,
}

/// A member of a group as it was at one time: its id and the generation of the group.
pub struct Member(NonNull<rd::rd_kafka_consumer_group_metadata_t>);

// SAFETY: the metadata is only read.
unsafe impl Send for Member {}
unsafe impl Sync for Member {}

impl Member {
    pub(in crate::broker) fn ptr(&self) -> *const rd::rd_kafka_consumer_group_metadata_t {
        self.0.as_ptr()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // SAFETY: this value owns the metadata, and does not use it again.
        unsafe { rd::rd_kafka_consumer_group_metadata_destroy(self.0.as_ptr()) }
    }
}

impl Consumer {
    /// This member of the group, if it is one at present. Without the check, a broker would accept the positions of a client that
    /// is no member.
    pub fn member(&self) -> Option<Member> {
        // SAFETY: the handle lives as long as `self`; the value returned owns the metadata, whose texts live as long.
        unsafe {
            let metadata = rd::rd_kafka_consumer_group_metadata(self.inner.client().native_ptr());
            let member = Member(NonNull::new(metadata)?);
            let id = rd::rd_kafka_consumer_group_metadata_member_id(member.ptr());
            let generation = rd::rd_kafka_consumer_group_metadata_generation_id(member.ptr());
            (!id.is_null() && *id != 0 && generation >= 0).then_some(member)
        }
    }

    pub(in crate::broker) fn positions(
        &self,
        next: &BTreeMap<i32, i64>,
        note: &str,
    ) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::with_capacity(next.len());
        for (&number, &next) in next {
            let offset = Offset::Offset(next - self.base(number));
            let (topic, partition) = self.topics.place(number);
            list.add_partition(topic, partition).set_offset(offset)?;
            if let Some(mut position) = list.find_partition(topic, partition) {
                position.set_metadata(note);
            }
        }
        Ok(list)
    }

    /// Commits positions and waits for the answer.
    pub(in crate::broker) fn commit_now(&self, positions: &TopicPartitionList) -> Result<(), BatchError> {
        let Err(error) = self.inner.commit(positions, CommitMode::Sync) else { return Ok(()) };
        match error.rdkafka_error_code() {
            Some(
                code @ (RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::RebalanceInProgress),
            ) => Err(BatchError::NotAMember(meaning(code))),
            _ => match (self.cluster.kafka("commit positions"))(error) {
                error if error.passes() => Err(BatchError::Aborted(error.to_string())),
                error => Err(error.into()),
            },
        }
    }
}

impl Cluster {
    /// The positions that a group has committed for these partitions. Partitions without one are left out.
    ///
    /// # Errors
    /// If the broker does not answer within the timeout, or refuses; [`Error::is_unstable`] while a transaction is open that
    /// contains positions of these partitions.
    pub fn committed(&self, group: &str, topic: &str, partitions: &[i32]) -> Result<BTreeMap<i32, Committed>, Error> {
        let action = || format!("read the positions of the group {group}");
        let client: BaseConsumer<Context> = self
            .config()
            .set("group.id", group)
            // Positions in an open transaction are not decided yet (KIP-447).
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .create_with_context(Context::new(&self.failures))
            .map_err(self.kafka("make a client"))?;
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        let topics = Topics::new(topic);
        for &number in partitions {
            let (topic, partition) = topics.place(number);
            list.add_partition(topic, partition);
        }
        let list = client.committed_offsets(list, self.timeout).map_err(self.kafka(action()))?;
        let mut found = BTreeMap::new();
        for place in list.elements() {
            place.error().map_err(self.kafka(action()))?;
            let number = topics.number(place.topic(), place.partition());
            if let (Some(number), Offset::Offset(next)) = (number, place.offset()) {
                found.insert(number, Committed { next, note: place.metadata().to_owned() });
            }
        }
        Ok(found)
    }
}
