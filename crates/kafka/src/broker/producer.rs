//! The producer: sends records and tracks their acknowledgements.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig};
use tercile_store::{FILE_HEADER, ROW_HEADER};

use super::delivery::{Deliveries, Reports};
use super::embedded::{PARTITION_LIMIT, RECORD_OVERHEAD};
use super::error::{advised, is_about_a_connection, is_about_a_record, is_permanent, meaning};
use super::settings::set_missing;
use super::{Bound, Cluster, Error, Topics, admin};

/// Maximum time of one wait for acknowledgements.
const WAIT: Duration = Duration::from_millis(50);
/// Maximum bytes of a batch, if the topic allows more: librdkafka's default.
const BATCH_BYTES: usize = 1_000_000;
/// After this time librdkafka asks for the producer id again if no broker was connected before.
const NEXT_ID_REQUEST: Duration = Duration::from_millis(500);
/// Delivery timeout of a record, unless a setting overrides it.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// Acknowledgements so far.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged {
    /// Number of acknowledged records.
    pub records: u64,
    /// Per partition the offset after its last acknowledged record.
    pub next: BTreeMap<i32, i64>,
    /// Last acknowledged line of the file.
    pub last_line: u64,
    /// Records neither acknowledged nor refused at the end; they may have arrived.
    pub unknown: u64,
}

/// Why not all records arrived.
#[derive(Debug)]
pub struct Failure {
    /// Line of the first row that did not arrive.
    pub line: u64,
    /// Number of refused rows.
    pub refused: u64,
    /// The error of that row.
    pub error: Error,
    /// True if every other row was acknowledged.
    pub others_arrived: bool,
}

/// Counts and errors of delivery reports.
#[derive(Default)]
struct Tally {
    acknowledged: Acknowledged,
    refused: u64,
    first_refused: Option<Refused>,
    /// The first row that was refused for a reason that concerns other rows too.
    first_ending: Option<Refused>,
    /// Size and line of the largest row that was refused for its size.
    largest: Option<(usize, u64)>,
    /// First line of the rows that were never sent.
    first_unsent: Option<u64>,
    last_progress: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Refused {
    line: u64,
    code: RDKafkaErrorCode,
}

impl Reports for Tally {
    /// `line` is the row's line in its file.
    fn take(&mut self, result: &DeliveryResult<'_>, line: usize) {
        let (tally, line) = (self, line as u64);
        tally.last_progress = Some(Instant::now());
        let (error, message) = match result {
            Ok(message) => {
                let acknowledged = &mut tally.acknowledged;
                acknowledged.records += 1;
                acknowledged.last_line = acknowledged.last_line.max(line);
                let next = acknowledged.next.entry(message.partition()).or_default();
                *next = (*next).max(message.offset() + 1);
                return;
            }
            Err((error, message)) => (error, message),
        };
        match error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown) {
            RDKafkaErrorCode::PurgeQueue => {
                tally.first_unsent = Some(tally.first_unsent.map_or(line, |first| first.min(line)));
            }
            RDKafkaErrorCode::PurgeInflight => tally.acknowledged.unknown += 1,
            code => {
                tally.refused += 1;
                let is_first = |first: &Option<Refused>| first.as_ref().is_none_or(|first| line < first.line);
                if is_first(&tally.first_refused) {
                    tally.first_refused = Some(Refused { line, code });
                }
                if !is_about_a_record(code) && is_first(&tally.first_ending) {
                    tally.first_ending = Some(Refused { line, code });
                }
                if code == RDKafkaErrorCode::MessageSizeTooLarge {
                    tally.largest = tally.largest.max(Some((message.payload_len(), line)));
                }
            }
        }
    }
}

/// An idempotent producer that waits for all replicas.
pub struct Producer {
    inner: BaseProducer<Deliveries<Tally>>,
    cluster: Cluster,
    topic: String,
    embedded: bool,
    /// Maximum bytes of a batch of the topic, if known.
    limit: Option<usize>,
    message_timeout: Duration,
    sent: u64,
    began: Instant,
    warned: bool,
    /// Whether rows that the broker rejects are only counted.
    counts_rejected: bool,
}

/// A record to send.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Key of the record. Records with the same key go to the same partition.
    pub key: Option<&'a [u8]>,
    /// Value of the record; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The row's line in its file.
    pub line: u64,
    /// For a replay: the file's hash and the row's number in it.
    pub replay: Option<(&'a str, u64)>,
}

impl Producer {
    /// Connects to an existing topic.
    ///
    /// # Errors
    /// If no leader of a partition of the topic is reachable within the cluster's timeout, or access to the topic is denied.
    pub fn new(cluster: &Cluster, topic: &str) -> Result<Self, Error> {
        let embedded = cluster.is_embedded()?;
        let limit = if embedded { None } else { Self::prepare(cluster, topic)? };
        let batch_bytes = limit.map_or(BATCH_BYTES, |limit| limit.min(BATCH_BYTES)).to_string();
        let message_timeout = MESSAGE_TIMEOUT.as_millis().to_string();
        let mut config = cluster.config();
        let tuning = [
            // The partitions that the Java clients choose for the same keys; records without a key go anywhere.
            ("partitioner", "murmur2_random"),
            ("linger.ms", if embedded { "1" } else { "5" }),
            // The broker's limit on a record applies, not the client's.
            ("message.max.bytes", "1000000000"),
            // A batch is refused as a whole, by the sum of its records.
            ("batch.size", &batch_bytes),
            ("queue.buffering.max.kbytes", "65536"),
            ("message.timeout.ms", &message_timeout),
        ];
        set_missing(&mut config, &tuning);
        // The embedded broker and its backlog count uncompressed bytes.
        match embedded {
            true => _ = config.set("compression.type", "none"),
            false => set_missing(&mut config, &[("compression.type", "lz4")]),
        }
        let millis = config.get("message.timeout.ms").or_else(|| config.get("delivery.timeout.ms"));
        let millis = millis.and_then(|millis| millis.parse().ok());
        let context = Deliveries::new(&cluster.failures);
        let inner = config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .create_with_context(context)
            .map_err(cluster.kafka("make a producer"))?;
        request_id(&inner, topic);
        Ok(Self {
            inner,
            cluster: cluster.clone(),
            topic: topic.to_owned(),
            embedded,
            limit,
            message_timeout: millis.map_or(MESSAGE_TIMEOUT, Duration::from_millis),
            sent: 0,
            began: Instant::now(),
            warned: false,
            counts_rejected: false,
        })
    }

    /// Counts rows that the broker rejects for their own sake (too large, invalid) and goes on. Other failures still end it.
    #[must_use]
    pub fn counting_rejected(self) -> Self {
        Self { counts_rejected: true, ..self }
    }

    /// Checks that leaders of the topic's partitions are reachable; librdkafka would retry for two minutes. Returns the maximum
    /// bytes of a batch, if the broker reports it.
    fn prepare(cluster: &Cluster, topic: &str) -> Result<Option<usize>, Error> {
        let asker = cluster.asker()?;
        let partitions = asker.partitions(topic)?;
        match cluster.offsets_by(&asker.client, &Topics::new(topic), &partitions, Bound::Latest) {
            Err(error @ Error::Leaderless { .. }) => tracing::warn!("{error}; trying again"),
            other => drop(other?),
        }
        Ok(admin::max_message_bytes(asker.client(), topic, cluster.timeout))
    }

    /// Enqueues one record. Waits while the queue is full, unless `stop` is set.
    ///
    /// A row that may exceed the topic's limit is sent alone, after all earlier rows were acknowledged, so that its refusal
    /// affects no other row.
    ///
    /// # Errors
    /// If the row cannot be sent. `Ok(false)`: not enqueued, because an earlier row failed or `stop` is set.
    pub fn send(&mut self, row: Row<'_>, stop: &AtomicBool) -> Result<bool, Error> {
        let size = [row.key, row.payload].into_iter().flatten().map(<[u8]>::len).sum::<usize>() + RECORD_OVERHEAD;
        if self.embedded && size > PARTITION_LIMIT {
            return Err(Error::RowTooLarge { size, limit: PARTITION_LIMIT });
        }
        let alone = self.limit.is_some_and(|limit| size > limit);
        if alone && !self.settle(stop) {
            return Ok(false);
        }
        if !self.enqueue(row, stop)? {
            return Ok(false);
        }
        self.sent += 1;
        if alone {
            // Later rows may only follow if this one was accepted.
            return Ok(self.settle(stop));
        }
        if self.sent.is_multiple_of(64) {
            self.poll(Duration::ZERO);
            return Ok(!self.has_failed());
        }
        Ok(true)
    }

    fn enqueue(&mut self, row: Row<'_>, stop: &AtomicBool) -> Result<bool, Error> {
        let topic = self.topic.clone();
        let opaque = usize::try_from(row.line).unwrap_or(usize::MAX);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&topic, opaque);
        (record.key, record.payload) = (row.key, row.payload);
        if let Some((hash, number)) = row.replay {
            let number = number.to_string();
            record = record.headers(
                OwnedHeaders::new_with_capacity(2)
                    .insert(Header { key: FILE_HEADER, value: Some(hash) })
                    .insert(Header { key: ROW_HEADER, value: Some(&number) }),
            );
        }
        loop {
            match self.inner.send(record) {
                Ok(()) => return Ok(true),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    self.poll(Duration::from_millis(10));
                    if self.has_failed() || stop.load(Ordering::Relaxed) {
                        return Ok(false);
                    }
                }
                // The client knows the reason, which `finish` reports.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), _)) => return Ok(false),
                Err((source, _)) => return Err(self.cluster.kafka(self.action())(source)),
            }
        }
    }

    fn action(&self) -> String {
        format!("write to the topic {}", self.topic)
    }

    /// Waits until no record is in flight; `false` if one failed or `stop` is set.
    fn settle(&mut self, stop: &AtomicBool) -> bool {
        while self.inner.in_flight_count() > 0 && !self.has_failed() {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            self.poll(WAIT);
        }
        !self.has_failed()
    }

    /// Processes delivery reports. Warns once if the broker is silent for longer than the cluster's timeout.
    pub fn poll(&mut self, timeout: Duration) {
        self.inner.poll(timeout);
        if self.inner.in_flight_count() == 0 {
            self.began = Instant::now();
            return;
        }
        let heard = self.inner.context().reports().last_progress.map_or(self.began, |last| last.max(self.began));
        if heard.elapsed() < self.cluster.timeout {
            self.warned = false;
        } else if !self.warned {
            self.warned = true;
            let why = self.cluster.failure().map_or_else(String::new, |why| format!(": {why}"));
            tracing::warn!(
                "{} has acknowledged nothing for {} s{why}; each row is tried for {} s",
                self.cluster.servers,
                self.cluster.timeout.as_secs_f64(),
                self.message_timeout.as_secs_f64()
            );
        }
    }

    /// Whether a record is known to have failed, so that no others are sent.
    pub fn has_failed(&self) -> bool {
        self.ending(&self.inner.context().reports()).is_some() || self.inner.client().fatal_error().is_some()
    }

    /// The refused row that ends the sending.
    fn ending(&self, tally: &Tally) -> Option<Refused> {
        if self.counts_rejected { tally.first_ending } else { tally.first_refused }
    }

    /// Waits until every record is acknowledged or failed. After a failure, unsent records are dropped; then, and once `stop`
    /// is set, records in flight are awaited for at most the cluster's timeout.
    pub fn finish(mut self, stop: &AtomicBool) -> (Acknowledged, Option<Failure>) {
        let mut deadline = None;
        let mut purged = false;
        while self.inner.in_flight_count() > 0 {
            self.poll(WAIT);
            let failed = self.has_failed();
            if failed && !purged {
                self.inner.purge(PurgeConfig::default().queue());
                purged = true;
            }
            if failed || stop.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.cluster.timeout);
                if Instant::now() >= deadline {
                    self.inner.purge(PurgeConfig::default().queue().inflight());
                    let _ = self.inner.flush(Duration::from_millis(500));
                    break;
                }
            }
        }
        let failure = self.failure();
        let mut acknowledged = self.inner.context().reports().acknowledged.clone();
        let settled = acknowledged.records + failure.as_ref().map_or(0, |failure| failure.refused);
        if failure.is_none() {
            acknowledged.unknown = self.sent.saturating_sub(settled);
        }
        (acknowledged, failure)
    }

    /// The first failure.
    fn failure(&self) -> Option<Failure> {
        let fatal = self.inner.client().fatal_error();
        let tally = self.inner.context().reports();
        let first = self.ending(&tally).or(tally.first_refused);
        let others_arrived = tally.acknowledged.records + tally.refused == self.sent;
        let (servers, action) = (self.cluster.servers.clone(), self.action());
        if let Some((code, reason)) = fatal {
            let line = first.map(|first| first.line).into_iter().chain(tally.first_unsent).min();
            let reason = if reason.is_empty() { meaning(code) } else { reason };
            let error = Error::Refused { action, servers, code, reason };
            return Some(Failure {
                line: line.unwrap_or(tally.acknowledged.last_line + 1),
                refused: tally.refused,
                error,
                others_arrived,
            });
        }
        let Refused { line, code } = first?;
        let refused = |reason| Error::Refused { action, servers, code, reason };
        let error = match (code, tally.largest) {
            (RDKafkaErrorCode::MessageSizeTooLarge, Some((size, largest))) => {
                let limit = self.limit.map_or_else(String::new, |limit| format!(", its max.message.bytes is {limit}"));
                let row = match tally.refused {
                    1 => format!("the row has {size} bytes{limit}"),
                    rows => format!(
                        "{rows} rows went as one batch, of which line {largest} is the largest, with {size} bytes{limit}"
                    ),
                };
                refused(format!("{} ({row})", meaning(code)))
            }
            _ if code == RDKafkaErrorCode::MessageTimedOut || is_about_a_connection(code) => {
                let why = self.cluster.failure().unwrap_or_else(|| meaning(code));
                Error::Unreachable { servers: self.cluster.servers.clone(), timeout: self.message_timeout, why }
            }
            _ if is_permanent(code) => refused(meaning(code)),
            _ => Error::Client(format!("{} did not take it: {}{}", self.cluster.servers, meaning(code), advised(code))),
        };
        Some(Failure { line, refused: tally.refused, error, others_arrived })
    }
}

/// Makes the producer id arrive at once, which an idempotent producer needs before its first record.
///
/// librdkafka requests the id when it receives metadata and a broker is connected, otherwise again after [`NEXT_ID_REQUEST`] (2.12,
/// rd_kafka_idemp_pid_fsm). The first metadata arrive over the bootstrap connection, which is then closed in favour of connections
/// to the brokers that they name, so that the request has to wait. A second answer comes over one of these.
fn request_id(producer: &BaseProducer<Deliveries<Tally>>, topic: &str) {
    for _ in 0..2 {
        if producer.client().fetch_metadata(Some(topic), NEXT_ID_REQUEST).is_err() {
            // The first record reports the error of the broker.
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Embedded;
    use super::*;

    #[test]
    fn the_first_record_does_not_wait_for_the_next_request_of_an_id() {
        let broker = Embedded::start("t", 2).unwrap();
        let cluster = broker.cluster(Duration::from_secs(10));
        let stop = AtomicBool::new(false);
        let send = || {
            let began = Instant::now();
            let mut producer = Producer::new(&cluster, "t").unwrap();
            assert!(producer.send(Row { key: None, payload: Some(b"1"), line: 1, replay: None }, &stop).unwrap());
            let (acknowledged, failure) = producer.finish(&stop);
            assert!(failure.is_none() && acknowledged.records == 1, "{failure:?}");
            began.elapsed()
        };
        // The machine may be busy, but not each time.
        let least = (0..5).map(|_| send()).min().unwrap();
        assert!(least < NEXT_ID_REQUEST, "{least:?}");
    }
}
