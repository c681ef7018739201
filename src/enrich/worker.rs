//! A worker of a group: reads its partitions, scores and sends batches, and commits each with the positions after its input.
//!
//! While one batch is sent and committed, the next is read and scored. Events of the group are handled between batches: partitions
//! are given back when nothing of them is in flight, and their messages are taken out of the batch that is ready. The member that
//! commits a batch is the one that it was before these events: if the group has given the partitions to others since, the coordinator
//! rejects the commit.
//!
//! After an error that passes, the session ends, and a new one joins the group again and reads from its positions.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use tercile_kafka::broker::{BatchError, BatchProducer, Consumer, Error, Event, Member, Reading, Trouble};
use tercile_kafka::ingest::partition_list;

use super::Job;
use super::control::Control;
use super::positions::{self, Identity, Shared};
use super::reader::Reader;
use super::transaction::{self, Batch};

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
                    thread::sleep(IDLE);
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
        reader: Reader::new(job, shared, &consumer),
        ready: None,
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
    reader: Reader<'s>,
    /// The batch that was read while the one before was sent, or why reading failed.
    ready: Option<anyhow::Result<Batch<'s>>>,
    /// The producer, and the partition that its transactional id is named after.
    producer: Option<(BatchProducer, i32)>,
    identity: Identity,
    /// Whether no broker answers.
    down: bool,
    told: Instant,
    /// When the positions of other workers were last asked for.
    others: Instant,
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
            let Some(member) = member.filter(|_| self.reader.held().next().is_some()) else {
                if self.is_done()? {
                    return Ok(Ended::Done);
                }
                if let Some(ended) = self.wait(IDLE * 4)? {
                    return Ok(ended);
                }
                continue;
            };
            self.identity.check(self.job)?;
            let batch = match self.ready.take() {
                Some(ready) => Some(ready?),
                None => self.reader.batch()?,
            };
            let Some(batch) = batch.or_else(|| self.empty_batch()) else {
                if self.is_done()? {
                    return Ok(Ended::Done);
                }
                let timeout = if self.waits_for_models()? { CHECK } else { IDLE };
                if let Some(ended) = self.wait(timeout)? {
                    return Ok(ended);
                }
                continue;
            };
            if self.down && !batch.messages.is_empty() {
                self.down = false;
                tracing::info!("the broker at {} is back", self.job.cluster.servers);
            }
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

    /// A batch without messages, if positions have moved: behind the markers of transactions in the input, or where reading begins.
    fn empty_batch(&self) -> Option<Batch<'s>> {
        let scorers = self.job.models.now().ok()?;
        (!self.reader.moved().is_empty()).then(|| Batch::empty(scorers))
    }

    /// Whether models are missing; says which.
    fn waits_for_models(&self) -> anyhow::Result<bool> {
        let missing = self.job.models.now()?.missing();
        if missing.is_empty() || self.job.no_wait {
            return Ok(false);
        }
        let why = missing.join("; ");
        self.shared.warn(&why, &format!("waiting for models: {why}; --no-wait sends records without them"));
        Ok(true)
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
                self.reader.add(starts)?;
            }
            Event::Revoked(numbers) => {
                tracing::info!(partitions = ?numbers, "no longer reading {}", partition_list(&numbers));
                self.reader.remove(&numbers);
                self.ready = match self.ready.take() {
                    Some(Ok(ready)) => Some(ready.without(&numbers)),
                    other => other,
                };
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

    /// Commits a batch, in several attempts if need be.
    fn commit(&mut self, mut batch: Batch<'s>, mut member: Member) -> anyhow::Result<Option<Ended>> {
        let (job, control, consumer) = (self.job, self.control, self.consumer);
        let stop = &control.stop;
        let next = self.reader.moved();
        if next.is_empty() && batch.messages.is_empty() {
            return Ok(None);
        }
        for attempt in 1.. {
            if let Err(error) = self.make_producer() {
                return self.failed(error).map(Some);
            }
            let Some((producer, _)) = &self.producer else { return Ok(Some(Ended::Again("no producer".to_owned()))) };
            let (reader, ready) = (&mut self.reader, &mut self.ready);
            let sent = thread::scope(|scope| {
                let commit =
                    |producer: &BatchProducer| producer.commit((consumer, &member), &next, &job.input.id, stop);
                let sending = scope.spawn(move || {
                    let sent = transaction::run((job, producer), &batch, commit, stop);
                    (batch, sent)
                });
                if ready.is_none() && !control.stopping() {
                    *ready = reader.batch().transpose();
                }
                sending.join()
            });
            let Ok((sent_batch, sent)) = sent else { bail!("the thread that sends has ended with a panic") };
            batch = sent_batch;
            let error = match sent {
                Ok(tally) => {
                    tally.count(&control.progress, &batch.messages);
                    self.reader.committed(&next);
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
                    thread::sleep(IDLE * 20);
                    // The batch may be sent again only if the partitions still belong to this member.
                    let renewed = consumer.member();
                    if let Some(event) = (!consumer.has_changes()).then(|| consumer.poll(Duration::ZERO)).flatten()
                        && let Some(ended) = self.event(event)?
                    {
                        return Ok(Some(ended));
                    }
                    let held = next.keys().all(|partition| self.reader.held().any(|held| held == *partition));
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
    fn make_producer(&mut self) -> Result<(), BatchError> {
        if self.producer.is_none() {
            let named = self.reader.held().next().unwrap_or_default();
            let member = self.job.group.instance.clone().unwrap_or_else(|| named.to_string());
            let id = self.job.exactly_once.then(|| format!("{}-{member}", self.job.group.name));
            let limits = [Some(&self.job.output), self.job.dead_letters.as_ref()];
            let limit = limits.into_iter().flatten().filter_map(|target| target.limit).min();
            let producer = BatchProducer::new(&self.job.cluster, id.as_deref(), limit, &self.control.stop)?;
            self.producer = Some((producer, named));
        }
        Ok(())
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
        let reached = |(partition, end): (&i32, &i64)| self.reader.reached(*partition, *end);
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
        self.control.progress.set_lags(self.reader.lags());
    }
}
