//! The supervisor: opens a worker for each partition, handles consumer events, and decides when to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::another_writer::warn_of_another_writer;
use super::control::FlushEvent;
use super::partition::PartitionWorker;
use super::start::recover;
use super::upkeep::ahead_of_topic;
use super::{Ended, Error, Report, Shared, Skips};
use crate::broker::{Bound, Event, Gap, Start, Trouble, place};

/// Maximum time to drain an embedded broker during a shutdown.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Interval of updating positions and lags and of polling events.
const LOOK: Duration = Duration::from_millis(20);
const TELL: Duration = Duration::from_millis(100);
/// Interval between two checks whether a halted partition can continue.
const RETRY: Duration = Duration::from_secs(5);
/// Maximum number of partitions named in a warning.
const NAMED: usize = 10;

pub(super) struct Supervisor<'scope, 'env> {
    shared: &'env Shared<'env>,
    scope: &'scope Scope<'scope, 'env>,
    workers: BTreeMap<i32, Arc<PartitionWorker<'env>>>,
    halted: BTreeMap<i32, Gap>,
    /// End of each partition at the start, and where to stop reading, if anywhere.
    ends_at_start: BTreeMap<i32, i64>,
    targets: Option<BTreeMap<i32, i64>>,
    /// Partitions to read again from the end of their log: another process stored more than this one, or a halted partition can
    /// continue.
    restart: BTreeSet<i32>,
    /// Time of the last check of halted partitions.
    retried: Instant,
    /// When to warn that the group has not assigned partitions, or that partitions have not answered.
    patience: Option<Instant>,
    joined: bool,
}

impl<'scope, 'env> Supervisor<'scope, 'env> {
    pub(super) fn new(shared: &'env Shared<'env>, scope: &'scope Scope<'scope, 'env>) -> Self {
        let patience = Instant::now().checked_add(shared.job.cluster.timeout);
        let joined = shared.job.group.is_none();
        Self {
            shared,
            scope,
            workers: BTreeMap::new(),
            halted: BTreeMap::new(),
            ends_at_start: BTreeMap::new(),
            targets: None,
            restart: BTreeSet::new(),
            retried: Instant::now(),
            patience,
            joined,
        }
    }

    /// Reads `starts` and all partitions assigned by a group, until the session ends. The workers then write or drop their
    /// batches, depending on the reason.
    pub(super) fn run(
        mut self,
        starts: &[Start],
        reported: &Receiver<Report>,
        begun: &mut bool,
    ) -> Result<Ended, Error> {
        let ended = self.read(starts, reported, begun);
        if !matches!(ended, Ok(Ended::Done(_) | Ended::Skipping(_) | Ended::Grown(_) | Ended::Again(_))) {
            self.shared.abandon.store(true, Ordering::SeqCst);
        }
        self.workers.values().for_each(|worker| worker.finish());
        ended
    }

    fn read(&mut self, starts: &[Start], reported: &Receiver<Report>, begun: &mut bool) -> Result<Ended, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let caught_up = &control.progress.caught_up;
        let partitions: Vec<i32> = starts.iter().map(|start| start.partition).collect();
        self.ends_at_start = consumer.offsets(&partitions, Bound::Latest)?;
        *begun = true;
        // From here on a stop has to wait until the read records are stored.
        control.set_reading(true);
        for start in starts {
            self.check_end(start.partition, start.offset, self.ends_at_start.get(&start.partition).copied())?;
        }
        self.targets = job.until_end.then(|| self.ends_at_start.clone());
        self.take(starts, false)?;
        let mut deadline = None;
        let mut down = false;
        let mut told = Instant::now();
        self.tell();
        loop {
            while let Ok(report) = reported.try_recv() {
                match report {
                    Report::Overtaken(partition) => {
                        warn_of_another_writer(job, self.shared.told, partition);
                        self.restart.insert(partition);
                    }
                    Report::Failed(error) => return Err(error),
                    Report::Grown(partitions) => return Ok(Ended::Grown(partitions)),
                    Report::Again(why) => return Ok(Ended::Again(why)),
                    Report::OutOfRange(partition) => {
                        if let Some(ended) = self.out_of_range(partition)? {
                            return Ok(ended);
                        }
                    }
                }
            }
            if let Some(ended) = self.retry_halted()? {
                return Ok(ended);
            }
            if let Some(ended) = self.restart_partitions()? {
                return Ok(ended);
            }
            for done in control.asked_to_flush() {
                // The requester may be gone.
                let _ = done.send(FlushEvent::Asked(self.workers.len()));
                self.workers.values().for_each(|worker| worker.flush(done.clone()));
            }
            if control.stopping() && deadline.is_none() {
                if !job.embedded {
                    break;
                }
                // An embedded broker loses its records when it ends, so they are read first.
                deadline = Some(Instant::now() + DRAIN_LIMIT);
                let open: Vec<i32> = self.workers.keys().copied().collect();
                self.targets = Some(consumer.offsets(&open, Bound::Latest)?);
            }
            if !caught_up.load(Ordering::Relaxed) && self.reached(&self.ends_at_start) {
                self.tell();
                caught_up.store(true, Ordering::SeqCst);
            }
            let all_halted = !self.workers.is_empty() && self.halted.len() == self.workers.len();
            if self.targets.as_ref().is_some_and(|targets| self.reached(targets))
                || deadline.is_some_and(|deadline| Instant::now() > deadline)
                || (all_halted && job.group.is_none())
            {
                break;
            }
            match consumer.poll(LOOK) {
                None => {}
                Some(Event::Assigned(starts)) => {
                    let partitions: Vec<i32> = starts.iter().map(|start| start.partition).collect();
                    tracing::info!(?partitions, "reading {} now", partition_list(&partitions));
                    self.joined = true;
                    self.shared.heard.store(true, Ordering::Relaxed);
                    self.take(&starts, false)?;
                }
                Some(Event::Revoked(partitions)) => {
                    tracing::info!(?partitions, "no longer reading {}", partition_list(&partitions));
                    self.give_back(&partitions);
                    consumer.give_back(&partitions);
                }
                Some(Event::NotNow(not_now)) if not_now.passes => return Ok(Ended::Again(not_now.why)),
                Some(Event::NotNow(not_now)) => return Err(Error::Fatal(not_now.why)),
                Some(Event::Refused(error)) => return Err(error.into()),
                Some(Event::Trouble(Trouble { cause, message })) if self.shared.told.is_new(&cause) => {
                    tracing::warn!("{message}");
                }
                Some(Event::Trouble(_)) => {}
                Some(Event::Down(_)) if down => {}
                Some(Event::Down(why)) => {
                    let why = why.map_or_else(String::new, |why| format!(": {why}"));
                    tracing::warn!("no broker answers at {}{why}; trying again", job.cluster.servers);
                    self.shared.heard.store(false, Ordering::Relaxed);
                    down = true;
                }
                Some(Event::Fatal(why)) => return Err(Error::Fatal(why)),
            }
            if down && self.shared.heard.load(Ordering::Relaxed) {
                tracing::info!("the broker at {} is back", job.cluster.servers);
                down = false;
            }
            if self.patience.is_some_and(|patience| Instant::now() >= patience) {
                self.patience = None;
                if !down {
                    self.warn_of_silence();
                }
            }
            if told.elapsed() > TELL {
                self.tell();
                told = Instant::now();
            }
        }
        self.tell();
        Ok(Ended::Done(self.halted.values().cloned().collect()))
    }

    /// Warns if the broker or the group has not answered in time. Reading starts as soon as they do.
    fn warn_of_silence(&self) {
        let Shared { job, consumer, .. } = self.shared;
        let why = consumer.failure();
        let seconds = job.cluster.timeout.as_secs_f64();
        if let (false, Some(group)) = (self.joined, &job.group) {
            let why = why.unwrap_or_else(|| "its other members may still be finishing their work".to_owned());
            tracing::warn!("the group {} has not let this worker in within {seconds} s: {why}; waiting", group.name);
            return;
        }
        let silent: Vec<i32> =
            self.workers.iter().filter(|(_, worker)| !worker.has_answered()).map(|(&p, _)| p).collect();
        let silent: Vec<i32> = silent.into_iter().filter(|partition| !self.halted.contains_key(partition)).collect();
        if !silent.is_empty() {
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            tracing::warn!(
                partitions = ?silent,
                "no answer for {} of {} within {seconds} s{why}; trying again",
                partition_list(&silent),
                job.topic
            );
        }
    }

    /// Opens a worker for each of these partitions.
    fn take(&mut self, starts: &[Start], overtaken: bool) -> Result<(), Error> {
        if !starts.is_empty() {
            self.patience = Instant::now().checked_add(self.shared.job.cluster.timeout);
        }
        self.shared.workers.fetch_add(starts.len(), Ordering::SeqCst);
        for &start in starts {
            let ends = self.targets.as_ref().filter(|_| self.shared.job.until_end);
            let end = ends.and_then(|ends| ends.get(&start.partition).copied());
            let worker = PartitionWorker::open(self.scope, self.shared, start, end, overtaken)?;
            self.workers.insert(start.partition, worker);
        }
        Ok(())
    }

    /// Reads partitions again from the end of their logs. The consumer remains, so the group does not rebalance.
    fn restart_partitions(&mut self) -> Result<Option<Ended>, Error> {
        let Shared { job, consumer, own, .. } = *self.shared;
        // Revoked partitions must be given back before partitions are assigned.
        if self.restart.is_empty() || consumer.has_changes() {
            return Ok(None);
        }
        for partition in std::mem::take(&mut self.restart) {
            let Some(worker) = self.workers.get(&partition) else { continue };
            let base = worker.base();
            worker.revoke();
            let embedded = job.embedded.then_some(own);
            let starts = recover(&job.store, &job.cluster, &job.topic, &[partition], embedded, &Skips::new())?;
            self.give_back(&[partition]);
            for &start in &starts {
                if let Err(why) = consumer.reassign(start) {
                    return Ok(Some(Ended::Again(format!("cannot read partition {partition} anew: {why}"))));
                }
                // The records of an embedded broker have other offsets in the store now.
                for ends in [Some(&mut self.ends_at_start), self.targets.as_mut()].into_iter().flatten() {
                    ends.entry(partition).and_modify(|end| *end += start.base - base);
                }
            }
            self.take(&starts, true)?;
        }
        Ok(None)
    }

    /// Checks at intervals whether halted partitions can continue: another process (with --accept-gap, for example) has stored records
    /// after the gap, or the topic has the missing records again.
    fn retry_halted(&mut self) -> Result<Option<Ended>, Error> {
        let Shared { job, control, consumer, told, .. } = *self.shared;
        if self.halted.is_empty() || self.retried.elapsed() < RETRY || control.stopping() {
            return Ok(None);
        }
        self.retried = Instant::now();
        for (&partition, gap) in &self.halted {
            let next = match job.store.log(&job.topic, partition).next() {
                Ok(next) => next.unwrap_or(0),
                Err(error) => {
                    if told.is_new(&error.to_string()) {
                        tracing::warn!(partition, "{} stays halted: {error}", place(&job.topic, partition));
                    }
                    continue;
                }
            };
            if next > gap.expected {
                tracing::info!(
                    partition,
                    "{} goes on at offset {next}: another process stored records behind the gap",
                    place(&job.topic, partition)
                );
                self.restart.insert(partition);
            } else if matches!(consumer.gap(partition, gap.expected), Ok(None)) {
                return Ok(Some(Ended::Again(format!(
                    "{} has the records from offset {} again",
                    place(&job.topic, partition),
                    gap.expected
                ))));
            }
        }
        Ok(None)
    }

    /// Revokes these partitions: their workers drop their batches.
    fn give_back(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(worker) = self.workers.remove(partition) {
                worker.revoke();
                self.shared.workers.fetch_sub(1, Ordering::SeqCst);
            }
            self.halted.remove(partition);
            self.restart.remove(partition);
            self.shared.control.progress.resumed(|gap| gap.partition == *partition);
        }
    }

    fn positions(&self) -> BTreeMap<i32, i64> {
        self.workers.iter().map(|(&partition, worker)| (partition, worker.position())).collect()
    }

    fn reached(&self, targets: &BTreeMap<i32, i64>) -> bool {
        targets.iter().all(|(partition, end)| {
            self.workers
                .get(partition)
                .is_none_or(|worker| !worker.revoked() && (worker.position() >= *end || worker.at_end()))
                || self.halted.contains_key(partition)
        })
    }

    /// Handles a partition whose next record is gone: it halts, unless its gap is accepted. The partition is no longer fetched,
    /// so if no record is missing after all, everything is read again from the end of the log.
    fn out_of_range(&mut self, partition: i32) -> Result<Option<Ended>, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let Some(worker) = self.workers.get(&partition) else { return Ok(None) };
        // A topic that was deleted and created again is another topic, not a gap.
        let topic = job.cluster.topic(&job.topic)?;
        if !job.embedded {
            job.store.claim(&topic.name, &topic.id, topic.partitions)?;
        }
        let end = consumer.offsets(&[partition], Bound::Latest)?.get(&partition).copied();
        self.check_end(partition, worker.position(), end)?;
        match consumer.gap(partition, worker.position())? {
            None => Ok(Some(Ended::Again(format!("{} was rewound", place(&job.topic, partition))))),
            Some(gap) if job.accept_gap && gap.found > gap.expected => Ok(Some(Ended::Skipping(vec![gap]))),
            Some(gap) => {
                let goes_on = job.group.is_some() || self.workers.len() > self.halted.len() + 1;
                let next = if goes_on {
                    "; it goes on by itself once another `tercile ingest` with --accept-gap stored what follows, or the topic has them again"
                } else {
                    ""
                };
                tracing::error!("{gap}; this partition halts{next}");
                control.progress.halted(gap.clone());
                if let Some(backlog) = &job.backlog {
                    // The sender would otherwise wait for a halted reader.
                    backlog.close();
                }
                self.halted.insert(partition, gap);
                Ok(None)
            }
        }
    }

    /// Refuses a topic that ends before the store does: its new records would get offsets that are in use.
    fn check_end(&self, partition: i32, next: i64, end: Option<i64>) -> Result<(), Error> {
        let job = self.shared.job;
        let Some(end) = end.filter(|end| *end < next && !job.embedded) else { return Ok(()) };
        Err(ahead_of_topic(&job.store, &job.topic, (partition, next, end)).into())
    }

    /// Updates positions, lags and gaps in [`Control`].
    fn tell(&self) {
        let Shared { control, consumer, .. } = self.shared;
        // A partition that halted in an earlier session, and is read again in this one.
        control.progress.resumed(|gap| {
            let worker = self.workers.get(&gap.partition).filter(|_| !self.halted.contains_key(&gap.partition));
            worker.is_some_and(|worker| worker.position() > gap.expected || worker.at_end())
        });
        let positions = self.positions();
        let lags = positions.iter().filter_map(|(&p, &at)| Some((p, consumer.lag(p, at)?))).collect();
        control.progress.stands(positions, lags);
    }
}

/// `partition 3`, `partitions 0, 2`, `no partitions`.
pub fn partition_list(partitions: &[i32]) -> String {
    let numbers = partitions.iter().take(NAMED).map(i32::to_string).collect::<Vec<_>>().join(", ");
    match partitions.len() {
        0 => "no partitions".to_owned(),
        1 => format!("partition {numbers}"),
        n if n <= NAMED => format!("partitions {numbers}"),
        n => format!("partitions {numbers} and {} more", n - NAMED),
    }
}
