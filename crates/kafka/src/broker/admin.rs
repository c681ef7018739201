//! Requests of librdkafka's admin API that rdkafka does not wrap, through its C API.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;
use std::{ptr, slice};

use rdkafka::bindings as rd;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;

/// An owned result event of the admin API.
pub(super) struct Event(NonNull<rd::rd_kafka_event_t>);

impl Event {
    /// For librdkafka's functions, as long as this value lives.
    pub(super) fn pointer(&self) -> *mut rd::rd_kafka_event_t {
        self.0.as_ptr()
    }
}

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
pub(super) unsafe fn request<C: ClientContext>(
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
    match unsafe { rd::rd_kafka_event_error(event.pointer()) } {
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
        code => Err(code.into()),
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
        let result = rd::rd_kafka_event_DescribeConfigs_result(event.pointer());
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
