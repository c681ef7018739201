//! A worker of a group: reads its partitions, scores and sends batches, and commits each with the positions after its input.
//!
//! A batch is collected, scored, sent and committed before the next event of the group is handled, so partitions are given back
//! between batches only. The member that commits a batch is the one that it was before the batch was read: if the group has given
//! the partitions to others meanwhile, the coordinator rejects the commit.
//!
//! After an error that passes, the session ends, and a new one joins the group again and reads from its positions.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::bail;
use tercile_kafka::broker::{
    BatchError, BatchProducer, Consumer, Error, Event, Item, Member, Message, Queue, Reading, Trouble,
};
use tercile_kafka::ingest::partition_list;

use super::Job;
use super::control::Control;
use super::positions::{self, Identity, Shared};
use super::transaction::{self, Batch};

/// Maximum records and bytes of a batch.
const ROWS: usize = 10_000;
const BYTES: usize = 16 << 20;
/// Maximum time from the first record of a batch to its end.
const AGE: Duration = Duration::from_millis(20);
/// Maximum time of a poll when nothing is there to do.
const IDLE: Duration = Duration::from_millis(5);
/// Interval of checks while models are missing, and whether other workers have finished.
const CHECK: Duration = Duration::from_millis(300);
/// Pause before everything is read again, or a batch is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// Attempts of one batch within a session.
const ATTEMPTS: usize = 5;
/// Time in which a group tells a static member that another process has its name: several heartbeats.
const FENCING: Duration = Duration::from_secs(3);
/// Maximum bytes of fetched records in a partition's queue.
const QUEUE_BYTES: usize = 16 << 20;
/// Interval of librdkafka's metadata refresh, by which a group notices new partitions.
const REFRESH: Duration = Duration::from_secs(30);
/// Interval of updates of the lag.
const TELL: Duration = Duration::from_millis(500);

/// Why a session ended.
pub(super) enum Ended {
    Done,
    /// The reason why everything that is not committed is read again.
    Again(String),
}

/// Enriches until the end of the job or [`Control::stop`].
///
/// # Errors
/// On a permanent error of the broker, the SQL files or the store.
pub fn run(job: &Job, control: &Control) -> anyhow::Result<()> {
    let shared = Shared::new(job, control)?;
    loop {
        let ended = session(job, control, &shared);
        let ended = match ended {
            Err(error) if error.downcast_ref::<Error>().is_some_and(Error::passes) => Ended::Again(error.to_string()),
            other => other?,
        };
        match ended {
            Ended::Again(why) if !control.stopping() => {
                shared.warn(&why, &format!("{why}; joining the group {} again", job.group.name));
                let until = Instant::now() + PAUSE;
                while !control.stopping() && Instant::now() < until {
                    std::thread::sleep(IDLE);
                }
            }
            _ => return Ok(()),
        }
    }
}

fn session(job: &Job, control: &Control, shared: &Shared) -> anyhow::Result<Ended> {
    let share = (256 << 20) / usize::try_from(job.input.partitions).unwrap_or(1).max(1);
    let reading =
        Reading { embedded: job.input.embedded, queue_bytes: share.clamp(1 << 20, QUEUE_BYTES), refresh: REFRESH };
    let resolve = positions::resolve(job, shared);
    let consumer = Consumer::join(&job.cluster, &job.input.name, &job.group, reading, resolve)?;
    let session = Session {
        job,
        control,
        shared,
        consumer: &consumer,
        partitions: BTreeMap::new(),
        producer: None,
        identity: Identity::default(),
        down: false,
        told: Instant::now(),
        others: Instant::now(),
    };
    let ended = session.run();
    consumer.close();
    ended
}

struct Session<'s> {
    job: &'s Job,
    control: &'s Control,
    shared: &'s Shared,
    consumer: &'s Consumer,
    partitions: BTreeMap<i32, Partition<'s>>,
    /// The producer, and the partition that its transactional id is named after.
    producer: Option<(BatchProducer, i32)>,
    identity: Identity,
    /// Whether no broker answers.
    down: bool,
    told: Instant,
    /// When the positions of other workers were last asked for.
    others: Instant,
}

struct Partition<'s> {
    queue: Queue<'s>,
    /// The offset after the last record that was read.
    position: i64,
    /// The offset up to which everything is committed; `None` if the group has no position yet.
    committed: Option<i64>,
}

impl<'s> Session<'s> {
    fn run(mut self) -> anyhow::Result<Ended> {
        loop {
            if self.control.stopping() {
                return Ok(Ended::Done);
            }
            // Before the events: whoever is a member now and loses partitions later is rejected at the commit.
            let member = self.consumer.member();
            if let Some(ended) = self.events()? {
                return Ok(ended);
            }
            self.tell();
            let Some(member) = member.filter(|_| !self.partitions.is_empty()) else {
                if self.is_done()? {
                    return Ok(Ended::Done);
                }
                if let Some(ended) = self.wait(IDLE * 4)? {
                    return Ok(ended);
                }
                continue;
            };
            self.identity.check(self.job)?;
            let scorers = self.job.models.now()?;
            let missing = scorers.missing();
            if !missing.is_empty() && !self.job.no_wait {
                let why = missing.join("; ");
                self.shared.warn(&why, &format!("waiting for models: {why}; --no-wait sends records without them"));
                if let Some(ended) = self.wait(CHECK)? {
                    return Ok(ended);
                }
                continue;
            }
            let messages = self.collect()?;
            let moved = self.partitions.values().any(|partition| partition.committed != Some(partition.position));
            if messages.is_empty() && !moved {
                if self.is_done()? {
                    return Ok(Ended::Done);
                }
                if let Some(ended) = self.wait(IDLE)? {
                    return Ok(ended);
                }
                continue;
            }
            let batch = Batch::new(messages, scorers)?;
            if let Some((message, partition, topic)) = batch.in_a_loop(self.job) {
                bail!(
                    "record {}/{partition}/{} has come from {topic}, which enrich writes: the topics form a loop; choose another --to",
                    self.job.input.name,
                    message.offset()
                );
            }
            if let Some(ended) = self.commit(batch, member)? {
                return Ok(ended);
            }
        }
    }

    /// Handles all events that are there.
    fn events(&mut self) -> anyhow::Result<Option<Ended>> {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            if let Some(ended) = self.event(event)? {
                return Ok(Some(ended));
            }
        }
        Ok(None)
    }

    /// Waits for an event.
    fn wait(&mut self, timeout: Duration) -> anyhow::Result<Option<Ended>> {
        match self.consumer.poll(timeout) {
            Some(event) => self.event(event),
            None => Ok(None),
        }
    }

    fn event(&mut self, event: Event) -> anyhow::Result<Option<Ended>> {
        let servers = &self.job.cluster.servers;
        match event {
            Event::Assigned(starts) => {
                let numbers: Vec<i32> = starts.iter().map(|start| start.partition).collect();
                tracing::info!(partitions = ?numbers, "reading {}", partition_list(&numbers));
                for start in starts {
                    let committed = (start.next >= 0).then_some(start.next);
                    let queue = self.consumer.queue(start)?;
                    self.partitions.insert(start.partition, Partition { queue, position: start.offset, committed });
                }
            }
            Event::Revoked(numbers) => {
                tracing::info!(partitions = ?numbers, "no longer reading {}", partition_list(&numbers));
                self.partitions.retain(|partition, _| !numbers.contains(partition));
                // The next owner of the partition may take its transactional id.
                let named = self.producer.as_ref().map(|(_, partition)| *partition);
                if self.job.group.instance.is_none() && named.is_some_and(|named| numbers.contains(&named)) {
                    self.producer = None;
                }
                self.consumer.give_back(&numbers);
            }
            Event::NotNow(not_now) => {
                // Without an answer to its assignment the group would wait for this member.
                self.consumer.give_back(&[]);
                return if not_now.passes {
                    Ok(Some(Ended::Again(not_now.why)))
                } else {
                    Err(self.shared.failed(not_now.why))
                };
            }
            Event::Refused(error) => return Err(error.into()),
            Event::Fatal(why) => bail!("the Kafka client gave up: {why}"),
            Event::Trouble(Trouble { cause, message }) => self.shared.warn(&cause, &message),
            Event::Down(why) if !self.down => {
                self.down = true;
                let why = why.map_or_else(String::new, |why| format!(": {why}"));
                tracing::warn!("no broker answers at {servers}{why}; trying again");
            }
            Event::Down(_) => {}
        }
        Ok(None)
    }

    /// Takes messages until a batch is full, or for a short time after the first.
    fn collect(&mut self) -> anyhow::Result<Vec<(i32, Message<'s>)>> {
        let (mut messages, mut items, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut first: Option<Instant> = None;
        loop {
            let before = messages.len();
            for (&partition, state) in &mut self.partitions {
                state.queue.take(&mut items, Duration::ZERO);
                for item in items.drain(..) {
                    match item {
                        Item::Message(message) => {
                            state.position = message.offset() + 1;
                            bytes += message.size();
                            messages.push((partition, message));
                        }
                        Item::End(position) => state.position = state.position.max(position),
                        Item::OutOfRange => {
                            return Err(self.shared.out_of_range(self.job, self.consumer, partition, state.position));
                        }
                        Item::Refused(code) => return Err(self.consumer.refused(code).into()),
                        Item::Trouble(Trouble { cause, message }) => self.shared.warn(&cause, &message),
                        Item::Broken(why) => {
                            bail!("cannot read partition {partition} of {}: {why}", self.job.input.name)
                        }
                    }
                }
            }
            if messages.len() > before && self.down {
                self.down = false;
                tracing::info!("the broker at {} is back", self.job.cluster.servers);
            }
            if first.is_none() && !messages.is_empty() {
                first = Some(Instant::now());
            }
            let full = messages.len() >= ROWS || bytes >= BYTES;
            if full || first.is_none_or(|first| first.elapsed() >= AGE) {
                return Ok(messages);
            }
            if messages.len() == before {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Commits a batch, in several attempts if need be.
    fn commit(&mut self, mut batch: Batch<'s>, mut member: Member) -> anyhow::Result<Option<Ended>> {
        let (job, control, consumer) = (self.job, self.control, self.consumer);
        let stop = &control.stop;
        let next: BTreeMap<i32, i64> = self
            .partitions
            .iter()
            .filter(|(_, state)| state.committed != Some(state.position))
            .map(|(&partition, state)| (partition, state.position))
            .collect();
        for attempt in 1.. {
            let producer = match self.producer() {
                Ok(producer) => producer,
                Err(error) => return self.failed(error).map(Some),
            };
            let commit = |producer: &BatchProducer| producer.commit((consumer, &member), &next, &job.input.id, stop);
            let error = match transaction::run((job, producer), &batch, commit, stop) {
                Ok(tally) => {
                    tally.count(&control.progress, &batch.messages);
                    for (partition, next) in next {
                        if let Some(state) = self.partitions.get_mut(&partition) {
                            state.committed = Some(next);
                        }
                    }
                    return Ok(None);
                }
                Err(error) => error,
            };
            control.progress.aborted.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("a batch was aborted: {error}");
            if !matches!(error, BatchError::Fenced(_) | BatchError::Broker(_))
                && let Err(error) = producer.abort(stop)
            {
                return self.failed(error).map(Some);
            }
            match &error {
                BatchError::Rejected { index, reason } => {
                    let is_new = batch.rejected.insert(*index);
                    if job.dead_letters.is_some() && is_new {
                        continue;
                    }
                    let place = batch.messages.get(*index).map(|(partition, message)| (*partition, message.offset()));
                    let (partition, offset) = place.unwrap_or_default();
                    let (input, output) = (&job.input.name, &job.output.topic.name);
                    let advice = if is_new { "; --dead-letters names a topic for such records" } else { "" };
                    bail!("record {input}/{partition}/{offset} was rejected by {output}: {reason}{advice}");
                }
                BatchError::Aborted(why) | BatchError::NotAMember(why) => {
                    if attempt >= ATTEMPTS || control.stopping() {
                        return Ok(Some(Ended::Again(why.clone())));
                    }
                    self.shared.warn(why, &format!("{why}; sending the batch again"));
                    std::thread::sleep(IDLE * 20);
                    // The batch may be sent again only if the partitions still belong to this member.
                    let renewed = consumer.member();
                    if let Some(event) = (!consumer.has_changes()).then(|| consumer.poll(Duration::ZERO)).flatten()
                        && let Some(ended) = self.event(event)?
                    {
                        return Ok(Some(ended));
                    }
                    let held = next.keys().all(|partition| self.partitions.contains_key(partition));
                    match renewed.filter(|_| held && !consumer.has_changes()) {
                        Some(renewed) => member = renewed,
                        None => return Ok(Some(Ended::Again(why.clone()))),
                    }
                }
                BatchError::Fenced(_) | BatchError::Broker(_) => return self.failed(error).map(Some),
            }
        }
        Ok(None)
    }

    /// The producer. It is named after the instance, or after a partition that this worker holds, so that no other worker has the
    /// same name.
    fn producer(&mut self) -> Result<&BatchProducer, BatchError> {
        if self.producer.is_none() {
            let named = self.partitions.keys().next().copied().unwrap_or_default();
            let member = self.job.group.instance.clone().unwrap_or_else(|| named.to_string());
            let id = self.job.exactly_once.then(|| format!("{}-{member}", self.job.group.name));
            let limits = [Some(&self.job.output), self.job.dead_letters.as_ref()];
            let limit = limits.into_iter().flatten().filter_map(|target| target.limit).min();
            let producer = BatchProducer::new(&self.job.cluster, id.as_deref(), limit, &self.control.stop)?;
            self.producer = Some((producer, named));
        }
        match &self.producer {
            Some((producer, _)) => Ok(producer),
            None => Err(BatchError::Aborted("there is no producer".to_owned())),
        }
    }

    /// How the session ends after an error of the producer.
    fn failed(&mut self, error: BatchError) -> anyhow::Result<Ended> {
        let why = match error {
            BatchError::Broker(error) => return Err(error.into()),
            BatchError::Fenced(why) => why,
            other => return Ok(Ended::Again(other.to_string())),
        };
        // A transaction that has expired is fenced, too. Another process with the same instance id is known to the group.
        let began = Instant::now();
        while self.job.group.instance.is_some() && began.elapsed() < FENCING && !self.control.stopping() {
            if let Some(ended) = self.wait(IDLE * 4)? {
                return Ok(ended);
            }
        }
        Ok(Ended::Again(format!("the transaction has expired, or another producer has its name: {why}")))
    }

    /// Whether everything up to the end of the topic at the start is committed, by this worker or others of the group.
    fn is_done(&mut self) -> anyhow::Result<bool> {
        let Some(ends) = &self.shared.ends else { return Ok(false) };
        let reached = |(partition, end): (&i32, &i64)| {
            let state = self.partitions.get(partition);
            state.map(|state| state.committed.is_some_and(|committed| committed >= *end))
        };
        if ends.iter().any(|place| reached(place) == Some(false)) {
            return Ok(false);
        }
        let others: BTreeMap<i32, i64> =
            ends.iter().filter(|place| reached(*place).is_none()).map(|(&partition, &end)| (partition, end)).collect();
        if others.is_empty() {
            return Ok(true);
        }
        if self.others.elapsed() < CHECK {
            return Ok(false);
        }
        self.others = Instant::now();
        let numbers: Vec<i32> = others.keys().copied().collect();
        let known = match self.job.cluster.committed(&self.job.group.name, &self.job.input.name, &numbers) {
            Err(error) if error.passes() => return Ok(false),
            known => known?,
        };
        Ok(others.iter().all(|(partition, end)| known.get(partition).is_some_and(|known| known.next >= *end)))
    }

    /// Updates the lags.
    fn tell(&mut self) {
        if self.told.elapsed() < TELL {
            return;
        }
        self.told = Instant::now();
        let lag = |(&partition, state): (&i32, &Partition<'_>)| {
            Some((partition, self.consumer.lag(partition, state.committed.unwrap_or(state.position))?))
        };
        self.control.progress.set_lags(self.partitions.iter().filter_map(lag).collect());
    }
}
