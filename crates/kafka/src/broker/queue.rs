//! The queue of one partition: its messages, taken many at a time, by whoever reads that partition and nobody else.
//!
//! rdkafka gives one message a call, each by way of an event. librdkafka's own call takes a fraction of that time, and a
//! queue of its own for each partition lets as many threads read as there are partitions. Not its batch call: that takes
//! the end of a partition for a record, and where a group's rebalance pauses the partition next, the one record that
//! comes there is passed over (2.12, rd_kafka_q_serve_rkmessages).

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

/// Messages that one call takes, at most.
pub const CHUNK: usize = 256;

/// The messages of one partition. Nothing of it comes by way of [`super::Consumer::poll`].
pub struct Queue<'c> {
    handle: NonNull<rd::rd_kafka_queue_t>,
    base: i64,
    /// The client must not go before its queues.
    client: PhantomData<&'c ()>,
}

// SAFETY: librdkafka's queues may be used from any thread, and from several at once.
unsafe impl Send for Queue<'_> {}
unsafe impl Sync for Queue<'_> {}

/// What a queue brought.
pub enum Item<'c> {
    Message(Message<'c>),
    /// The partition was read to its end, which is this position now.
    End(i64),
    /// The broker has records missing where we stand.
    OutOfRange,
    /// The broker refuses to hand out this partition, and will go on doing so.
    Refused(RDKafkaErrorCode),
    /// The broker, or what it sent, is at fault; librdkafka goes on trying.
    Trouble(Trouble),
    /// What the broker sent can't be read, and librdkafka passes over it: nothing after it may be stored.
    Broken(String),
}

impl<'c> Queue<'c> {
    /// Makes a partition's queue its own. Must be called before the partition is assigned: a message that came sooner
    /// would wait elsewhere. `None` if the topic's name is none.
    ///
    /// # Safety
    /// `client` must live as long as `'c`.
    pub(super) unsafe fn own(client: *mut rd::rd_kafka_t, topic: &str, partition: i32, base: i64) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client lives, and the name ends in a zero byte. The queue is ours until it is destroyed.
        let handle = unsafe {
            let handle = NonNull::new(rd::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition))?;
            rd::rd_kafka_queue_forward(handle.as_ptr(), std::ptr::null_mut());
            handle
        };
        Some(Self { handle, base, client: PhantomData })
    }

    /// Adds what came to `items`: all there is, [`CHUNK`] messages at most; where there is nothing, the first that comes
    /// before the time is over or somebody calls [`Queue::wake`].
    pub fn take(&self, items: &mut Vec<Item<'c>>, timeout: Duration) {
        // SAFETY: the queue lives as long as `self`. A message that is handed out is ours.
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

    /// Ends a [`Queue::take`] that waits.
    pub fn wake(&self) {
        // SAFETY: the queue lives as long as `self`.
        unsafe { rd::rd_kafka_queue_yield(self.handle.as_ptr()) }
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        // SAFETY: it is ours, and used no more.
        unsafe { rd::rd_kafka_queue_destroy(self.handle.as_ptr()) }
    }
}

/// A message, its offset counted as the store counts.
pub struct Message<'c> {
    inner: NonNull<rd::rd_kafka_message_t>,
    base: i64,
    client: PhantomData<&'c ()>,
}

impl Message<'_> {
    fn raw(&self) -> &rd::rd_kafka_message_t {
        // SAFETY: the message is ours until it is destroyed, and nobody writes to it.
        unsafe { self.inner.as_ref() }
    }

    /// Counted as the store counts.
    pub fn offset(&self) -> i64 {
        self.raw().offset + self.base
    }

    fn key(&self) -> Option<&[u8]> {
        // SAFETY: a key that is there has `key_len` bytes, which live as long as the message.
        unsafe { bytes(self.raw().key, self.raw().key_len) }
    }

    fn payload(&self) -> Option<&[u8]> {
        // SAFETY: a payload that is there has `len` bytes, which live as long as the message.
        unsafe { bytes(self.raw().payload, self.raw().len) }
    }

    fn timestamp(&self) -> Option<i64> {
        let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives; librdkafka only writes the kind.
        let millis = unsafe { rd::rd_kafka_message_timestamp(self.inner.as_ptr(), &raw mut kind) };
        (kind != rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE && millis != -1).then_some(millis)
    }

    /// What an error says of itself.
    fn words(&self) -> String {
        String::from_utf8_lossy(self.payload().unwrap_or_default()).into_owned()
    }

    pub fn record(&self) -> Record<'_> {
        Record { offset: self.offset(), timestamp: self.timestamp(), key: self.key(), payload: self.payload() }
    }

    /// Names and values of the headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (Cow<'_, str>, Option<&[u8]>)> {
        // SAFETY: the message lives as long as what is borrowed from it.
        unsafe { super::headers::of(self.inner.as_ptr()) }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.raw().len + self.raw().key_len
    }

    /// Bytes of the value.
    pub fn payload_len(&self) -> usize {
        self.raw().len
    }

    /// Whether `up` replayed it from a file.
    pub fn is_replayed(&self) -> bool {
        self.headers().any(|(name, _)| name == FILE_HEADER)
    }
}

impl Drop for Message<'_> {
    fn drop(&mut self) {
        // SAFETY: it is ours, and used no more.
        unsafe { rd::rd_kafka_message_destroy(self.inner.as_ptr()) }
    }
}

/// # Safety
/// Unless it is null, `start` must point to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: as the caller says.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}
