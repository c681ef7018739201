//! Sends records and keeps count of what the broker acknowledged.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::embedded::{PARTITION_LIMIT, RECORD_OVERHEAD};
use super::{Cluster, Error, FILE_HEADER, ROW_HEADER};

/// What the broker has said so far.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged {
    pub records: u64,
    /// The offset after the last acknowledged record of each partition.
    pub next: BTreeMap<i32, i64>,
}

#[derive(Default)]
struct Deliveries(Mutex<Tally>);

#[derive(Default)]
struct Tally {
    acknowledged: Acknowledged,
    failed: u64,
    first_failure: Option<(u64, KafkaError)>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "{reason}");
    }
}

impl ProducerContext for Deliveries {
    /// The row's line in its file.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, line: usize) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(message) => {
                tally.acknowledged.records += 1;
                let next = tally.acknowledged.next.entry(message.partition()).or_default();
                *next = (*next).max(message.offset() + 1);
            }
            Err((error, _)) => {
                tally.failed += 1;
                if tally.first_failure.as_ref().is_none_or(|(first, _)| line as u64 <= *first) {
                    tally.first_failure = Some((line as u64, error.clone()));
                }
            }
        }
    }
}

/// An idempotent producer that waits for all replicas.
pub struct Producer {
    inner: BaseProducer<Deliveries>,
    cluster: Cluster,
    topic: String,
    embedded: bool,
    sent: u64,
}

impl Producer {
    /// Connects to a topic that exists.
    pub fn new(cluster: &Cluster, topic: &str) -> Result<Self, Error> {
        let embedded = cluster.is_embedded()?;
        let inner = cluster
            .config()
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", if embedded { "1" } else { "5" })
            // The broker's own limit on a record decides, not ours.
            .set("message.max.bytes", "1000000000")
            .set("queue.buffering.max.kbytes", "65536")
            .set("message.timeout.ms", "120000")
            // The embedded broker counts bytes as they arrive, and so does its backlog.
            .set("compression.type", if embedded { "none" } else { "lz4" })
            .create_with_context(Deliveries::default())
            .map_err(cluster.kafka("connect to"))?;
        Ok(Self { inner, cluster: cluster.clone(), topic: topic.to_owned(), embedded, sent: 0 })
    }

    /// Hands one record over; `line` names it in errors, `replay` is the file's hash and the row in it. Waits while the
    /// queue is full, and fails as soon as a delivery is known to have failed.
    pub fn send(&mut self, payload: &[u8], line: u64, replay: Option<(&str, u64)>) -> Result<(), Error> {
        let size = payload.len() + RECORD_OVERHEAD;
        if self.embedded && size > PARTITION_LIMIT {
            return Err(Error::RowTooLarge { line, size, limit: PARTITION_LIMIT });
        }
        let opaque = usize::try_from(line).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(&self.topic, opaque).payload(payload);
        if let Some((hash, row)) = replay {
            let row = row.to_string();
            record = record.headers(
                OwnedHeaders::new_with_capacity(2)
                    .insert(Header { key: FILE_HEADER, value: Some(hash) })
                    .insert(Header { key: ROW_HEADER, value: Some(&row) }),
            );
        }
        loop {
            match self.inner.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.inner.poll(Duration::from_millis(10));
                }
                Err((source, _)) => {
                    return Err(Error::Undelivered { servers: self.cluster.servers.clone(), count: 1, line, source });
                }
            }
        }
        self.sent += 1;
        if self.sent.is_multiple_of(64) {
            self.inner.poll(Duration::ZERO);
            self.check()?;
        }
        Ok(())
    }

    /// Lets what is queued go out now; for senders that wait for the reader.
    pub fn poll(&self) {
        self.inner.poll(Duration::ZERO);
    }

    /// What was acknowledged so far.
    pub fn acknowledged(&self) -> Acknowledged {
        self.inner.context().0.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.clone()
    }

    /// Waits until every record is acknowledged, or known not to be.
    pub fn finish(self) -> Result<Acknowledged, Error> {
        let deadline = Instant::now() + Duration::from_secs(130);
        while self.inner.in_flight_count() > 0 && Instant::now() < deadline {
            self.inner.poll(Duration::from_millis(50));
            self.check()?;
        }
        self.inner.flush(Duration::from_secs(1)).map_err(self.cluster.kafka("send the last rows to"))?;
        self.check()?;
        Ok(self.acknowledged())
    }

    fn check(&self) -> Result<(), Error> {
        let tally = self.inner.context().0.lock().unwrap_or_else(PoisonError::into_inner);
        match &tally.first_failure {
            Some((line, source)) => Err(Error::Undelivered {
                servers: self.cluster.servers.clone(),
                count: tally.failed,
                line: *line,
                source: source.clone(),
            }),
            None => Ok(()),
        }
    }
}
