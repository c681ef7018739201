//! Batches of records to topics, each with the positions of the input that it was made from.
//!
//! On a Kafka a batch is a transaction: its records and the positions of the group become visible together, or not at all
//! (KIP-98), and the coordinator of the group rejects positions of a member that no longer has the partitions (KIP-447). Without
//! transactions, positions are committed once all records are acknowledged, so a record may arrive twice.
//!
//! Records are copied with librdkafka's C API: rdkafka's headers have names in UTF-8 only, and each of its records allocates.

#![allow(unsafe_code, reason = "librdkafka through FFI")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::bindings as rd;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::consumer::Member;
use super::delivery::{Deliveries, Reports};
use super::error::{advised, is_about_a_record, is_permanent, meaning};
use super::settings::set_missing;
use super::{Cluster, Consumer, Error, Message, admin};

/// Maximum time of one call that blocks on the broker; it is repeated until it succeeds.
const CALL: Duration = Duration::from_secs(1);
/// Maximum time of one call that aborts a transaction; delivery reports are not handled during the call.
const ABORT_CALL: Duration = Duration::from_millis(100);
/// Maximum time of one wait for acknowledgements; then failed records are looked for.
const FLUSH_CALL: Duration = Duration::from_millis(20);
/// Without a commit for this time, the coordinator aborts a transaction. Other workers wait that long for the positions of one that
/// was killed.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum bytes of a batch of the protocol, if the topics allow more: librdkafka's default.
const BATCH_BYTES: usize = 1_000_000;

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The broker rejects one record for its own sake.
    #[error("{reason}")]
    Rejected {
        /// The index of the record, as passed to [`BatchProducer::send`].
        index: usize,
        /// The broker's reason.
        reason: String,
    },
    /// The batch has to be aborted, and can be sent again.
    #[error("{0}")]
    Aborted(String),
    /// The group no longer takes positions of this member as it was when the batch began.
    #[error("{0}")]
    NotAMember(String),
    /// Another producer has the same transactional id, or the transaction has expired.
    #[error("{0}")]
    Fenced(String),
    /// A permanent error.
    #[error(transparent)]
    Broker(#[from] Error),
}

/// The failed record of a batch that explains it best.
#[derive(Default)]
struct Batch {
    failed: Option<Failed>,
}

#[derive(Clone, Copy)]
struct Failed {
    index: usize,
    size: usize,
    code: RDKafkaErrorCode,
}

impl Reports for Batch {
    /// `index` is that of the record in its batch.
    fn take(&mut self, result: &DeliveryResult<'_>, index: usize) {
        let Err((error, message)) = result else { return };
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        // Records that an abort removes from the queues are no failures.
        if matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
            return;
        }
        let size = message.payload_len();
        // A batch of the protocol is rejected as a whole; the largest record is the likely cause.
        let replaces = self.failed.is_none_or(|known| {
            let about = is_about_a_record(code);
            about && (!is_about_a_record(known.code) || size > known.size)
        });
        if replaces {
            self.failed = Some(Failed { index, size, code });
        }
    }
}

/// A record to send, made from a message.
pub struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a CStr,
    /// The partition; by the key, as the Java clients choose it, if `None`.
    pub partition: Option<i32>,
    /// The message, whose key, timestamp and headers the record gets.
    pub message: &'a Message<'a>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values of headers after those of the message, in parts.
    pub headers: &'a [&'a [(&'static str, &'a [u8])]],
    /// The index of the record in its batch.
    pub index: usize,
}

/// Sends batches.
pub struct BatchProducer {
    inner: BaseProducer<Deliveries<Batch>>,
    cluster: Cluster,
    transactional: bool,
}

impl BatchProducer {
    /// A producer with this transactional id, or without transactions. Producers of the same id before it are fenced, and their open
    /// transaction is aborted. `limit` is the maximum size of a batch of the protocol, if known.
    ///
    /// # Errors
    /// If the settings are invalid, or the broker refuses. [`BatchError::Aborted`] if `stop` is set while no broker answers.
    pub fn new(
        cluster: &Cluster,
        id: Option<&str>,
        limit: Option<usize>,
        stop: &AtomicBool,
    ) -> Result<Self, BatchError> {
        let mut config = cluster.config();
        let batch_bytes = limit.map_or(BATCH_BYTES, |limit| limit.min(BATCH_BYTES)).to_string();
        let timeout = TRANSACTION_TIMEOUT.as_millis().to_string();
        let tuning = [
            ("partitioner", "murmur2_random"),
            // A batch is flushed at its end, which ends the linger. An idempotent producer of librdkafka has one request per
            // partition in flight, and its thread polls without a pause while records that have lingered wait for the response.
            ("linger.ms", "1000"),
            ("message.max.bytes", "1000000000"),
            ("batch.size", &batch_bytes),
            ("compression.type", "lz4"),
        ];
        set_missing(&mut config, &tuning);
        if let Some(id) = id {
            set_missing(&mut config, &[("transaction.timeout.ms", &timeout), ("message.timeout.ms", &timeout)]);
            config.set("transactional.id", id);
        }
        config.set("enable.idempotence", "true").set("acks", "all").set("delivery.report.only.error", "true");
        let context = Deliveries::new(&cluster.failures);
        let inner = config.create_with_context(context).map_err(cluster.kafka("make a producer"))?;
        let producer = Self { inner, cluster: cluster.clone(), transactional: id.is_some() };
        if let Some(id) = id {
            let millis = CALL.as_millis() as i32;
            // SAFETY: the handle lives as long as `inner`; the caller owns the returned error.
            let call = || unsafe { rd::rd_kafka_init_transactions(producer.inner.client().native_ptr(), millis) };
            producer.repeated(&format!("begin transactions as {id}"), call, stop)?;
        }
        Ok(producer)
    }

    /// Begins a batch.
    ///
    /// # Errors
    /// If a transaction cannot begin.
    pub fn begin(&self, stop: &AtomicBool) -> Result<(), BatchError> {
        self.inner.context().reports().failed = None;
        if !self.transactional {
            return Ok(());
        }
        // SAFETY: the handle lives as long as `inner`; the caller owns the returned error.
        let call = || unsafe { rd::rd_kafka_begin_transaction(self.inner.client().native_ptr()) };
        self.repeated("begin a transaction", call, stop)
    }

    /// Enqueues a record of the batch.
    ///
    /// # Errors
    /// If the client does not take it.
    pub fn send(&self, record: &Outgoing<'_>) -> Result<(), BatchError> {
        use rd::rd_kafka_vtype_t as vtype;
        let input = record.message.record();
        let (value, value_len) = parts(record.value);
        let (key, key_len) = parts(input.key);
        let timestamp = input.timestamp.unwrap_or(0);
        loop {
            let headers = headers(record);
            // SAFETY: the arguments have the types that their tags announce (rdkafka.h); the client copies key and value, and owns
            // the headers if it takes the record.
            let code = unsafe {
                rd::rd_kafka_producev(
                    self.inner.client().native_ptr(),
                    vtype::RD_KAFKA_VTYPE_TOPIC,
                    record.topic.as_ptr(),
                    vtype::RD_KAFKA_VTYPE_PARTITION,
                    record.partition.unwrap_or(-1),
                    vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                    rd::RD_KAFKA_MSG_F_COPY,
                    vtype::RD_KAFKA_VTYPE_VALUE,
                    value,
                    value_len,
                    vtype::RD_KAFKA_VTYPE_KEY,
                    key,
                    key_len,
                    vtype::RD_KAFKA_VTYPE_OPAQUE,
                    record.index as *mut c_void,
                    vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                    timestamp,
                    vtype::RD_KAFKA_VTYPE_HEADERS,
                    headers,
                    vtype::RD_KAFKA_VTYPE_END,
                )
            };
            if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            // SAFETY: the client did not take the record, so the headers still belong to this function.
            unsafe { rd::rd_kafka_headers_destroy(headers) };
            match RDKafkaErrorCode::from(code) {
                RDKafkaErrorCode::QueueFull => self.inner.poll(Duration::from_millis(10)),
                // Why the transaction has failed is known by now.
                RDKafkaErrorCode::Fatal | RDKafkaErrorCode::State => {
                    return Err(self.failure().unwrap_or_else(|| BatchError::Aborted(meaning(code.into()))));
                }
                code => return Err(self.sorted(code, meaning(code), record.index)),
            }
        }
    }

    /// Ends the batch: `next` has the positions after its input, and `note` is kept beside them. Returns once the records and the
    /// positions are committed.
    ///
    /// # Errors
    /// [`BatchError`]; the batch then has to be aborted, unless the error is permanent.
    pub fn commit(
        &self,
        (consumer, member): (&Consumer, &Member),
        next: &BTreeMap<i32, i64>,
        note: &str,
        stop: &AtomicBool,
    ) -> Result<(), BatchError> {
        let positions = consumer.positions(next, note).map_err(self.cluster.kafka("commit positions"))?;
        if !self.transactional {
            self.flush(stop)?;
            return consumer.commit_now(&positions);
        }
        tracing::debug!("transaction: produced");
        self.send_positions(&positions, member, stop)?;
        tracing::debug!("transaction: positions sent");
        self.flush(stop)?;
        let millis = CALL.as_millis() as i32;
        // SAFETY: the handle lives as long as `inner`; the caller owns the returned error.
        let call = || unsafe { rd::rd_kafka_commit_transaction(self.inner.client().native_ptr(), millis) };
        self.repeated("commit a transaction", call, stop)?;
        tracing::debug!("transaction: committed");
        Ok(())
    }

    fn send_positions(
        &self,
        positions: &TopicPartitionList,
        member: &Member,
        stop: &AtomicBool,
    ) -> Result<(), BatchError> {
        let millis = CALL.as_millis() as i32;
        // SAFETY: handle, list and metadata live as long as their owners; the caller owns the returned error.
        let call = || unsafe {
            let client = self.inner.client().native_ptr();
            rd::rd_kafka_send_offsets_to_transaction(client, positions.ptr(), member.ptr(), millis)
        };
        self.repeated("send positions to a transaction", call, stop)
    }

    /// Aborts the batch: of a transaction nothing becomes visible.
    ///
    /// # Errors
    /// [`BatchError::Fenced`], or a permanent error.
    pub fn abort(&self, stop: &AtomicBool) -> Result<(), BatchError> {
        if !self.transactional {
            self.inner.purge(PurgeConfig::default().queue().inflight());
            let _ = self.inner.flush(CALL);
            return Ok(());
        }
        self.inner.context().reports().failed = None;
        let millis = ABORT_CALL.as_millis() as i32;
        // SAFETY: the handle lives as long as `inner`; the caller owns the returned error.
        let call = || unsafe { rd::rd_kafka_abort_transaction(self.inner.client().native_ptr(), millis) };
        let aborted = self.repeated("abort a transaction", call, stop);
        self.inner.context().reports().failed = None;
        aborted
    }

    /// Waits until no record is in flight.
    fn flush(&self, stop: &AtomicBool) -> Result<(), BatchError> {
        let mut silence = Silence::new();
        loop {
            // Only failed records make events, so rdkafka's `flush`, which waits for events, would not notice the end.
            // SAFETY: the handle lives as long as `inner`.
            let flushed =
                unsafe { rd::rd_kafka_flush(self.inner.client().native_ptr(), FLUSH_CALL.as_millis() as i32) };
            self.inner.poll(Duration::ZERO);
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            if flushed == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            silence.check(&self.cluster, "send records", stop)?;
        }
    }

    /// The failure that was reported beside the calls.
    fn failure(&self) -> Option<BatchError> {
        if let Some((code, reason)) = self.inner.client().fatal_error() {
            return Some(self.sorted(code, reason, 0));
        }
        let Failed { index, code, .. } = self.inner.context().reports().failed?;
        Some(self.sorted(code, meaning(code), index))
    }

    fn sorted(&self, code: RDKafkaErrorCode, reason: String, index: usize) -> BatchError {
        use RDKafkaErrorCode as Code;
        match code {
            Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => BatchError::Fenced(reason),
            Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::RebalanceInProgress
            | Code::FencedInstanceId
            | Code::StaleMemberEpoch => BatchError::NotAMember(reason),
            code if is_about_a_record(code) => {
                BatchError::Rejected { index, reason: format!("{reason}{}", advised(code)) }
            }
            code if is_permanent(code) => BatchError::Broker(Error::Refused {
                action: "send enriched records".to_owned(),
                servers: self.cluster.servers.clone(),
                code,
                reason,
            }),
            code => BatchError::Aborted(format!("{}: {reason}{}", self.cluster.servers, advised(code))),
        }
    }

    /// Repeats a call until it succeeds, or fails for another reason than a broker that does not answer.
    fn repeated(
        &self,
        action: &str,
        call: impl Fn() -> *mut rd::rd_kafka_error_t,
        stop: &AtomicBool,
    ) -> Result<(), BatchError> {
        let mut silence = Silence::new();
        loop {
            let error = call();
            if error.is_null() {
                return Ok(());
            }
            // SAFETY: this function owns the error until it destroys it, and copies its text before.
            let (code, reason, fatal, retriable) = unsafe {
                let code = RDKafkaErrorCode::from(rd::rd_kafka_error_code(error));
                let reason = CStr::from_ptr(rd::rd_kafka_error_string(error)).to_string_lossy().into_owned();
                let fatal = rd::rd_kafka_error_is_fatal(error) != 0;
                let retriable = rd::rd_kafka_error_is_retriable(error) != 0;
                rd::rd_kafka_error_destroy(error);
                (code, reason, fatal, retriable)
            };
            if !retriable || fatal {
                // A record that failed is the cause of a transaction that cannot be committed.
                let failed = self.inner.context().reports().failed;
                return Err(match failed.filter(|failed| !fatal && is_about_a_record(failed.code)) {
                    Some(Failed { index, code, .. }) => self.sorted(code, meaning(code), index),
                    None => self.sorted(code, reason, 0),
                });
            }
            tracing::debug!(?code, "cannot {action} yet: {reason}");
            self.inner.poll(Duration::from_millis(20));
            silence.check(&self.cluster, action, stop)?;
        }
    }
}

/// Maximum bytes of a batch of the protocol for a topic, if the broker reports it.
///
/// # Errors
/// If the settings are invalid.
pub fn batch_limit(cluster: &Cluster, topic: &str) -> Result<Option<usize>, Error> {
    let asker = cluster.asker()?;
    Ok(admin::max_message_bytes(asker.client(), topic, cluster.timeout))
}

/// Time since the last answer of a broker.
struct Silence {
    began: Instant,
    told: bool,
}

impl Silence {
    fn new() -> Self {
        Self { began: Instant::now(), told: false }
    }

    /// Warns once after the cluster's timeout. Then a stop is not delayed any longer.
    fn check(&mut self, cluster: &Cluster, action: &str, stop: &AtomicBool) -> Result<(), BatchError> {
        if self.began.elapsed() < cluster.timeout {
            return Ok(());
        }
        let why = cluster.failure().map_or_else(String::new, |why| format!(": {why}"));
        let what = format!("cannot {action} at {} for {} s{why}", cluster.servers, cluster.timeout.as_secs_f64());
        if stop.load(Ordering::Relaxed) {
            return Err(BatchError::Aborted(what));
        }
        if !self.told {
            self.told = true;
            tracing::warn!("{what}; trying again");
        }
        Ok(())
    }
}

/// Pointer and length of bytes; null for none.
fn parts(bytes: Option<&[u8]>) -> (*const c_void, usize) {
    bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast(), bytes.len()))
}

/// The headers of the message, byte for byte, and those that are added.
fn headers(record: &Outgoing<'_>) -> *mut rd::rd_kafka_headers_t {
    let mut own = ptr::null_mut();
    // SAFETY: the message lives as long as the borrow; its headers are only copied. Names and values have the lengths given, and
    // are copied. The caller owns the result.
    unsafe {
        let answer = rd::rd_kafka_message_headers(record.message.pointer(), &raw mut own);
        let any = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && !own.is_null();
        let headers = if any { rd::rd_kafka_headers_copy(own) } else { rd::rd_kafka_headers_new(record.headers.len()) };
        for (name, value) in record.headers.iter().copied().flatten() {
            let (start, len) = parts(Some(value));
            rd::rd_kafka_header_add(headers, name.as_ptr().cast(), name.len() as isize, start, len as isize);
        }
        headers
    }
}
