//! One batch: each message becomes a record of the output, or of the topic of dead letters.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tercile_kafka::broker::{BatchError, BatchProducer, Message, Outgoing};
use tercile_store::times;

use super::control::Progress;
use super::record::Field;
use super::scorers::{Answers, Input, Scorers};
use super::{Job, MODEL_HEADER, REASON_HEADER, SOURCE_HEADER, Target};

/// Bytes of a record in the protocol beside key, value and headers, and of the batch around it; an upper estimate.
const OVERHEAD: usize = 200;

/// Messages with their partitions, and their segments.
pub struct Batch<'c> {
    pub messages: Vec<(i32, Message<'c>)>,
    pub scorers: Arc<Scorers>,
    pub answers: Answers,
    /// The messages that the broker has rejected as records of the output.
    pub rejected: BTreeSet<usize>,
}

/// What becomes of a message.
enum Fate {
    Enriched,
    /// It has no value.
    Tombstone,
    Unfit(String),
}

/// Numbers of records of a batch, by what becomes of them.
#[derive(Default)]
pub struct Tally {
    enriched: u64,
    unchanged: u64,
    dead_letters: u64,
    tombstones: u64,
    bytes: u64,
}

impl<'c> Batch<'c> {
    /// Scores messages.
    ///
    /// # Errors
    /// If Arrow cannot build the columns.
    pub fn new(messages: Vec<(i32, Message<'c>)>, scorers: Arc<Scorers>) -> anyhow::Result<Self> {
        let mut inputs = Vec::with_capacity(messages.len());
        for (partition, message) in &messages {
            let headers = if scorers.reads_headers() { message.headers().collect() } else { Vec::new() };
            inputs.push(Input { partition: *partition, record: message.record(), headers });
        }
        let answers = scorers.score(&inputs)?;
        drop(inputs);
        Ok(Self { messages, scorers, answers, rejected: BTreeSet::new() })
    }

    /// A batch that only commits positions.
    pub fn empty(scorers: Arc<Scorers>) -> Self {
        Self { messages: Vec::new(), scorers, answers: Answers::default(), rejected: BTreeSet::new() }
    }

    /// The batch without the messages of these partitions.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn without(self, partitions: &[i32]) -> anyhow::Result<Self> {
        let Self { mut messages, scorers, .. } = self;
        messages.retain(|(partition, _)| !partitions.contains(partition));
        Self::new(messages, scorers)
    }

    /// Sends all records of the batch.
    ///
    /// # Errors
    /// [`BatchError`] of the producer.
    pub fn send(&self, job: &Job, producer: &BatchProducer) -> Result<Tally, BatchError> {
        let models: Vec<(&'static str, &[u8])> =
            self.scorers.models().map(|model| (MODEL_HEADER, model.as_bytes())).collect();
        let model_bytes: usize = models.iter().map(|(name, value)| name.len() + value.len()).sum();
        let mut tally = Tally::default();
        let (mut value, mut source) = (Vec::new(), Vec::new());
        for (index, (partition, message)) in self.messages.iter().enumerate() {
            let record = message.record();
            source.clear();
            // Writing to memory cannot fail.
            let _ = write!(source, "{}/{partition}/{}", job.input.name, record.offset);
            let mut fate = self.enriched(job, index, &mut value);
            let size = value.len() + record.key.map_or(0, <[u8]>::len) + model_bytes + source.len() + OVERHEAD;
            if let (Fate::Enriched, Some(limit)) = (&fate, job.output.limit.filter(|limit| size > *limit)) {
                fate =
                    Fate::Unfit(format!("with its segments the record has {size} bytes, and the topic takes {limit}"));
            }
            if self.rejected.contains(&index) {
                fate = Fate::Unfit(format!("the topic {} has rejected the record", job.output.topic.name));
            }
            let place = [(SOURCE_HEADER, &source[..])];
            let mut reason = [(REASON_HEADER, &[][..])];
            let (to, value, headers) = match &fate {
                Fate::Enriched => (&job.output, Some(&value[..]), [&models[..], &place[..], &[]]),
                Fate::Tombstone => (&job.output, None, [&[][..], &place[..], &[]]),
                Fate::Unfit(why) => {
                    reason[0].1 = why.as_bytes();
                    let to = job.dead_letters.as_ref().unwrap_or(&job.output);
                    (to, record.payload, [&[][..], &place[..], &reason[..]])
                }
            };
            let sent = Outgoing {
                topic: &to.name,
                partition: same_partition(job, to, *partition),
                message,
                value,
                headers: &headers,
                index,
            };
            producer.send(&sent)?;
            tally.bytes += message.size() as u64;
            match fate {
                Fate::Enriched => tally.enriched += 1,
                Fate::Tombstone => tally.tombstones += 1,
                Fate::Unfit(_) if job.dead_letters.is_some() => tally.dead_letters += 1,
                Fate::Unfit(_) => tally.unchanged += 1,
            }
        }
        Ok(tally)
    }

    /// Writes the value of an enriched record, if the message can be enriched.
    pub fn value(&self, field: &Field, index: usize, value: &mut Vec<u8>) -> Result<(), Option<String>> {
        let Some((_, message)) = self.messages.get(index) else { return Err(None) };
        let Some(payload) = message.record().payload else { return Err(None) };
        if let Some(why) = self.answers.unreadable.get(index).and_then(Option::as_ref) {
            return Err(Some(why.clone()));
        }
        let text = std::str::from_utf8(payload).unwrap_or_default();
        if let Some(name) = field.taken(text) {
            return Err(Some(format!("the record already has the field {name}")));
        }
        let (scorers, answers) = (&self.scorers, &self.answers);
        let reasons =
            scorers.lacks(answers, index).then_some(|out: &mut Vec<u8>| scorers.write_reasons(out, answers, index));
        field.write(value, payload, |out| scorers.write(out, answers, index), reasons);
        Ok(())
    }

    fn enriched(&self, job: &Job, index: usize, value: &mut Vec<u8>) -> Fate {
        value.clear();
        match self.value(&job.field, index, value) {
            Ok(()) => Fate::Enriched,
            Err(None) => Fate::Tombstone,
            Err(Some(why)) => Fate::Unfit(why),
        }
    }

    /// The first message that came from a topic which these records go to: it would be enriched again and again.
    pub fn in_a_loop(&self, job: &Job) -> Option<(&Message<'c>, i32, String)> {
        let targets = || [Some(&job.output), job.dead_letters.as_ref()].into_iter().flatten();
        self.messages.iter().find_map(|(partition, message)| {
            let came = message.headers().filter(|(name, _)| name == SOURCE_HEADER).find_map(|(_, place)| {
                let topic = place?.split(|&byte| byte == b'/').next()?;
                targets().find(|target| target.topic.name.as_bytes() == topic).map(|target| target.topic.name.clone())
            });
            came.map(|topic| (message, *partition, topic))
        })
    }
}

/// The partition of a record: the same as that of its message if the topics have as many, so that records stay in order; otherwise
/// by its key.
fn same_partition(job: &Job, to: &Target, partition: i32) -> Option<i32> {
    (to.topic.partitions == job.input.partitions && partition < to.topic.partitions).then_some(partition)
}

impl Tally {
    /// Adds a committed batch to the counters.
    pub fn count(&self, progress: &Progress, messages: &[(i32, Message<'_>)]) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        add(&progress.read, messages.len() as u64);
        add(&progress.bytes, self.bytes);
        add(&progress.enriched, self.enriched);
        add(&progress.unchanged, self.unchanged);
        add(&progress.dead_letters, self.dead_letters);
        add(&progress.tombstones, self.tombstones);
        add(&progress.batches, 1);
        let now = times::millis(std::time::SystemTime::now());
        let latency = progress.latency.local();
        for timestamp in messages.iter().filter_map(|(_, message)| message.record().timestamp) {
            latency.observe(now.saturating_sub(timestamp).max(0) as f64 / 1000.0);
        }
        latency.flush();
    }
}

/// Sends a batch and commits it with the positions after its input.
///
/// # Errors
/// [`BatchError`]; then the batch has to be aborted.
pub fn run(
    (job, producer): (&Job, &BatchProducer),
    batch: &Batch<'_>,
    commit: impl FnOnce(&BatchProducer) -> Result<(), BatchError>,
    stop: &AtomicBool,
) -> Result<Tally, BatchError> {
    producer.begin(stop)?;
    tracing::debug!("transaction: begun");
    let tally = batch.send(job, producer)?;
    commit(producer)?;
    Ok(tally)
}
