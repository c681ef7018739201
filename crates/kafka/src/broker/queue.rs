//! The queue of one partition, from which that partition's worker alone takes its messages in batches.
//!
//! rdkafka returns one message per call, each wrapped in an event. librdkafka's own call takes a fraction of that time, and
//! separate queues allow one reader thread per partition. The batch call is not used: it treats the end of a partition as a
//! record, and if a group's rebalance then pauses the partition, the next record is lost (2.12, rd_kafka_q_serve_rkmessages).

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::borrow::Cow;
use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;
use std::time::Duration;

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::types::RDKafkaRespErr;
use tercile_store::FILE_HEADER;
use tercile_store::batch::Record;

use super::consumer::Trouble;
use super::error;

/// Maximum messages per [`Queue::take`].
pub const CHUNK: usize = 256;

/// The messages of one partition, none of which passes through [`super::Consumer::poll`].
pub struct Queue<'c> {
    handle: NonNull<rd::rd_kafka_queue_t>,
    base: i64,
    /// The client must outlive its queues.
    client: PhantomData<&'c ()>,
}

// SAFETY: librdkafka's queues are thread-safe.
unsafe impl Send for Queue<'_> {}
unsafe impl Sync for Queue<'_> {}

/// An entry of a queue.
pub enum Item<'c> {
    /// A message.
    Message(Message<'c>),
    /// The end of the partition was reached, at this position.
    End(i64),
    /// The broker does not hold the requested offset.
    OutOfRange,
    /// The broker refuses to serve this partition. Permanent.
    Refused(RDKafkaErrorCode),
    /// A transient error of the broker; librdkafka retries.
    Trouble(Trouble),
    /// A corrupt or unsupported response, which librdkafka skips: nothing after it may be stored.
    Broken(String),
}

impl<'c> Queue<'c> {
    /// Redirects a partition's messages to its own queue. Must be called before the partition is assigned, or earlier messages
    /// arrive elsewhere. `None` if the topic's name contains a zero byte.
    ///
    /// # Safety
    /// `client` must live as long as `'c`.
    pub(super) unsafe fn own(client: *mut rd::rd_kafka_t, topic: &str, partition: i32, base: i64) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client is alive, and the name ends in a zero byte. This value owns the queue until it destroys it.
        let handle = unsafe {
            let handle = NonNull::new(rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition))?;
            rd::rd_kafka_queue_forward(handle.as_ptr(), std::ptr::null_mut());
            handle
        };
        Some(Self { handle, base, client: PhantomData })
    }

    /// Appends the available entries to `items`, at most [`CHUNK`]. If there are none, waits for the first until `timeout` or
    /// [`Queue::wake`].
    pub fn take(&self, items: &mut Vec<Item<'c>>, timeout: Duration) {
        // SAFETY: the queue lives as long as `self`. The caller owns a returned message.
        let next = |millis| NonNull::new(unsafe { rd::rd_kafka_consume_queue(self.handle.as_ptr(), millis) });
        let patience = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        for taken in 0..CHUNK {
            let message = next(0).or_else(|| if taken == 0 && patience > 0 { next(patience) } else { None });
            let Some(message) = message else { return };
            let message = Message { inner: message, base: self.base, client: PhantomData };
            items.push(match message.raw().err {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Item::Message(message),
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => Item::End(message.offset()),
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => Item::OutOfRange,
                RDKafkaRespErr::RD_KAFKA_RESP_ERR__BAD_MSG
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNDERFLOW
                | RDKafkaRespErr::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED => Item::Broken(message.words()),
                code => match RDKafkaErrorCode::from(code) {
                    code if error::is_permanent(code) => Item::Refused(code),
                    code => {
                        let message = format!("{}{}", message.words(), error::advised(code));
                        Item::Trouble(Trouble { cause: format!("{code:?}"), message })
                    }
                },
            });
        }
    }

    /// Ends a [`Queue::take`] that is waiting.
    pub fn wake(&self) {
        // SAFETY: the queue lives as long as `self`.
        unsafe { rd::rd_kafka_queue_yield(self.handle.as_ptr()) }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        // SAFETY: this value owns the queue, and does not use it again.
        unsafe { rd::rd_kafka_queue_destroy(self.handle.as_ptr()) }
    }
}

/// A message, with its offset in store offsets.
pub struct Message<'c> {
    inner: NonNull<rd::rd_kafka_message_t>,
    base: i64,
    client: PhantomData<&'c ()>,
}

// SAFETY: librdkafka's messages belong to no thread. They are not `Sync`: the first look at the headers of a message parses them.
unsafe impl Send for Message<'_> {}

impl Message<'_> {
    fn raw(&self) -> &rd::rd_kafka_message_t {
        // SAFETY: this value owns the message until it destroys it, and nothing writes to it.
        unsafe { self.inner.as_ref() }
    }

    /// For librdkafka's functions, as long as this value lives.
    pub(super) fn pointer(&self) -> *const rd::rd_kafka_message_t {
        self.inner.as_ptr()
    }

    /// Offset in store offsets.
    pub fn offset(&self) -> i64 {
        self.raw().offset + self.base
    }

    fn key(&self) -> Option<&[u8]> {
        // SAFETY: a key that is present has `key_len` bytes, which live as long as the message.
        unsafe { bytes(self.raw().key, self.raw().key_len) }
    }

    fn payload(&self) -> Option<&[u8]> {
        // SAFETY: a payload that is present has `len` bytes, which live as long as the message.
        unsafe { bytes(self.raw().payload, self.raw().len) }
    }

    fn timestamp(&self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive; librdkafka only writes the kind.
        let millis = unsafe { rd::rd_kafka_message_timestamp(self.inner.as_ptr(), &raw mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis != -1).then_some(millis)
    }

    /// The text of an error entry.
    fn words(&self) -> String {
        String::from_utf8_lossy(self.payload().unwrap_or_default()).into_owned()
    }

    /// The message as a record: offset, timestamp (milliseconds since 1970), key and payload.
    pub fn record(&self) -> Record<'_> {
        Record { offset: self.offset(), timestamp: self.timestamp(), key: self.key(), payload: self.payload() }
    }

    /// Names and values of the headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Option<&[u8]>)> {
        // SAFETY: the message lives as long as the borrows from it.
        unsafe { super::headers::of(self.inner.as_ptr()) }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.raw().len + self.raw().key_len
    }

    /// Whether `up` replayed this record from a file.
    pub fn is_replayed(&self) -> bool {
        self.headers().any(|(name, _)| name == FILE_HEADER)
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        // SAFETY: this value owns the message, and does not use it again.
        unsafe { rd::rd_kafka_message_destroy(self.inner.as_ptr()) }
    }
}

/// Converts a pointer and a length to a slice; `None` for null.
///
/// # Safety
/// Unless it is null, `start` must point to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: guaranteed by the caller.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}
