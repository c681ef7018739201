//! Admin API requests: offsets of many partitions, and a topic's settings, in one request each.
//!
//! rdkafka asks for the offsets of one partition at a time, and each request waits behind the fetch in progress: a topic of 300
//! partitions took half a minute. librdkafka's admin API asks each broker once (ListOffsets). rdkafka does not wrap that call
//! yet, so this module uses librdkafka's C API, as [`super::topic_id`] does.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;
use std::{ptr, slice};

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use super::Topics;

/// A position in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The offset of the first record that the broker holds.
    Earliest,
    /// The offset that the next record will get; with open transactions, the offset of the first undecided record.
    Latest,
    /// The offset of the first record with this timestamp or a later one, in milliseconds since 1970; the latest offset if there is
    /// none.
    At(i64),
}

/// Per partition its offset, or the broker's error code.
pub(super) type Offsets = BTreeMap<i32, Result<i64, RDKafkaErrorCode>>;

/// An owned result event of the admin API.
struct Event(NonNull<rd::rd_kafka_event_t>);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: this value owns the event, and does not use it again.
        unsafe { rd::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// Sends an admin request and waits at most `timeout` for its result.
///
/// # Safety
/// `send` must pass its arguments, the options and the queue, to one call of the admin API for `operation`, and keep neither.
unsafe fn request<C: ClientContext>(
    client: &Client<C>,
    operation: rd::rd_kafka_admin_op_t,
    timeout: Duration,
    send: impl FnOnce(*mut rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
) -> Result<Event, RDKafkaErrorCode> {
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1);
    let handle = client.native_ptr();
    // SAFETY: `client` is borrowed, so the handle outlives the calls. Options and queue are destroyed once, after their last
    // use: the request has its own reference to the queue.
    let event = unsafe {
        let options = rd::rd_kafka_AdminOptions_new(handle, operation);
        rd::rd_kafka_AdminOptions_set_request_timeout(options, millis, ptr::null_mut(), 0);
        let queue = rd::rd_kafka_queue_new(handle);
        send(options, queue);
        let event = rd::rd_kafka_queue_poll(queue, millis);
        rd::rd_kafka_queue_destroy(queue);
        rd::rd_kafka_AdminOptions_destroy(options);
        NonNull::new(event).map(Event).ok_or(RDKafkaErrorCode::OperationTimedOut)?
    };
    // SAFETY: the event is destroyed only when `event` is dropped.
    match unsafe { rd::rd_kafka_event_error(event.0.as_ptr()) } {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
        code => Err(code.into()),
    }
}

/// The offsets of all `partitions` at this position, in one request per broker; two for [`Bound::At`].
pub(super) fn offsets<C: ClientContext>(
    client: &Client<C>,
    topics: &Topics,
    partitions: &[i32],
    bound: Bound,
    timeout: Duration,
) -> Result<Offsets, KafkaError> {
    let Bound::At(_) = bound else { return list_offsets(client, topics, partitions, bound, timeout) };
    // The ends first: a record that arrives between the requests must not be passed over.
    let ends = list_offsets(client, topics, partitions, Bound::Latest, timeout)?;
    let mut found = list_offsets(client, topics, partitions, bound, timeout)?;
    for (partition, answer) in &mut found {
        if *answer == Err(RDKafkaErrorCode::OffsetNotAvailable)
            && let Some(end) = ends.get(partition)
        {
            answer.clone_from(end);
        }
    }
    Ok(found)
}

fn list_offsets<C: ClientContext>(
    client: &Client<C>,
    topics: &Topics,
    partitions: &[i32],
    bound: Bound,
    timeout: Duration,
) -> Result<Offsets, KafkaError> {
    if partitions.is_empty() {
        return Ok(Offsets::new());
    }
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    let wanted = match bound {
        Bound::Earliest => Offset::Beginning,
        Bound::Latest => Offset::End,
        // The request has a timestamp in this place.
        Bound::At(millis) => Offset::Offset(millis),
    };
    for &number in partitions {
        let (topic, partition) = topics.place(number);
        list.add_partition_offset(topic, partition, wanted)?;
    }
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    // SAFETY: the request is one call, which copies the list. Pointers into the result are valid as long as the event.
    unsafe {
        let event = request(client, operation, timeout, |options, queue| {
            // The consumer reads committed records only, so records of an open transaction do not count.
            let committed = rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
            let error = rd::rd_kafka_AdminOptions_set_isolation_level(options, committed);
            if !error.is_null() {
                rd::rd_kafka_error_destroy(error);
            }
            rd::rd_kafka_ListOffsets(client.native_ptr(), list.ptr(), options, queue);
        })
        .map_err(KafkaError::OffsetFetch)?;
        let result = rd::rd_kafka_event_ListOffsets_result(event.0.as_ptr());
        let mut count = 0;
        let infos = if result.is_null() {
            ptr::null_mut()
        } else {
            rd::rd_kafka_ListOffsets_result_infos(result, &raw mut count)
        };
        if infos.is_null() {
            return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::InvalidMessage));
        }
        let mut found = Offsets::new();
        for &info in slice::from_raw_parts(infos, count) {
            let place = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(info);
            let offset = match place.err {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR if place.offset >= 0 => Ok(place.offset),
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Err(RDKafkaErrorCode::OffsetNotAvailable),
                code => Err(code.into()),
            };
            let topic = CStr::from_ptr(place.topic).to_str().ok();
            let number = topic.and_then(|topic| topics.number(topic, place.partition));
            found.insert(number.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::InvalidMessage))?, offset);
        }
        Ok(found)
    }
}

/// Maximum bytes of a record batch of the topic (`max.message.bytes`); `None` if the broker does not answer or denies access.
pub(super) fn max_message_bytes<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> Option<usize> {
    let name = CString::new(topic).ok()?;
    let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    // SAFETY: this function owns the resource until it destroys it; the call copies it. Pointers into the result are valid as
    // long as the event.
    unsafe {
        let kind = rd::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let resource = rd::rd_kafka_ConfigResource_new(kind, name.as_ptr());
        let mut resources = [resource];
        let event = request(client, operation, timeout, |options, queue| {
            rd::rd_kafka_DescribeConfigs(client.native_ptr(), resources.as_mut_ptr(), resources.len(), options, queue);
        });
        rd::rd_kafka_ConfigResource_destroy(resource);
        let event = event.ok()?;
        let result = rd::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let described = rd::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        if described.is_null() || count == 0 {
            return None;
        }
        let described = *described;
        if rd::rd_kafka_ConfigResource_error(described) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let entries = rd::rd_kafka_ConfigResource_configs(described, &raw mut count);
        if entries.is_null() {
            return None;
        }
        slice::from_raw_parts(entries, count).iter().find_map(|&entry| {
            if CStr::from_ptr(rd::rd_kafka_ConfigEntry_name(entry)).to_bytes() != b"max.message.bytes" {
                return None;
            }
            let value = rd::rd_kafka_ConfigEntry_value(entry);
            if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok()?.parse().ok() }
        })
    }
}
