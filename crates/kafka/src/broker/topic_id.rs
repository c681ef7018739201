//! A topic's id, which distinguishes a topic from a later one of the same name.
//!
//! rdkafka does not wrap the request (DescribeTopics, KIP-516); [`super::admin`] sends it.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use super::admin;

/// A broker's answer to the request for a topic's id.
pub(super) enum Id {
    /// The id, in the format of Kafka's own tools.
    Known(String),
    /// The broker is too old for topic ids.
    None,
    /// No answer at present. This must not be mistaken for another topic.
    NoAnswer,
}

/// Requests the id.
pub(super) fn fetch<C: ClientContext>(client: &Client<C>, topic: &str, timeout: Duration) -> Id {
    let Ok(name) = CString::new(topic) else { return Id::None };
    let mut names = [name.as_ptr()];
    // SAFETY: the collection is destroyed once, after the call, which copies it. The event lives until the id is copied from it.
    unsafe {
        let topics = rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let operation = rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let event = admin::request(client, operation, timeout, |options, queue| {
            rd::rd_kafka_DescribeTopics(client.native_ptr(), topics, options, queue);
        });
        rd::rd_kafka_TopicCollection_destroy(topics);
        match event {
            Ok(event) => id_in(event.pointer()),
            Err(RDKafkaErrorCode::UnsupportedFeature) => Id::None,
            Err(_) => Id::NoAnswer,
        }
    }
}

/// The id in a DescribeTopics result.
///
/// # Safety
/// `event` must be a live event.
unsafe fn id_in(event: *mut rd::rd_kafka_event_t) -> Id {
    // SAFETY: guaranteed by the caller; librdkafka returns null for missing parts.
    unsafe {
        let result = rd::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return Id::NoAnswer;
        }
        let mut count = 0;
        let descriptions = rd::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if descriptions.is_null() || count == 0 {
            return Id::NoAnswer;
        }
        let description = *descriptions;
        if rd::rd_kafka_error_code(rd::rd_kafka_TopicDescription_error(description))
            != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return Id::NoAnswer;
        }
        let uuid = rd::rd_kafka_TopicDescription_topic_id(description);
        let text = rd::rd_kafka_Uuid_base64str(uuid);
        if text.is_null() {
            return Id::None;
        }
        // An id of all zeros means that there is none.
        let id = CStr::from_ptr(text).to_str().ok().filter(|id| !id.trim_matches('A').is_empty());
        id.map_or(Id::None, |id| Id::Known(id.to_owned()))
    }
}
