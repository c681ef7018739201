//! The loop from topic to store: read, decode, batch, publish, and only then tell the broker.
//!
//! One thread reads the consumer and hands messages to the lane of their partition. A lane is two threads: one decodes
//! and batches, the other publishes its partition's files, one after the other. Where it finds the next name taken,
//! another writer was faster: everything unwritten is dropped and read again from where the log now ends.

mod lane;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use datafusion::arrow::error::ArrowError;

use crate::batch::Limits;
use crate::broker::embedded::Backlog;
use crate::broker::{self, Cluster, Consumer, Event, Gap, Group, Message, Start};
use crate::record::Fields;
use crate::store::{self, Policy, Rolled, Store};
use lane::{CHUNK_BYTES, CHUNK_MESSAGES, Input, Lane};

/// How long a stopping worker may still read what stood in an embedded broker.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often small files are looked for.
const ROLL_INTERVAL: Duration = Duration::from_secs(30);

/// What ended an ingest before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Broker(#[from] broker::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot build a batch of partition {partition}: {source}")]
    Batch { partition: i32, source: ArrowError },
    #[error("the Kafka client gave up: {0}")]
    Fatal(String),
    #[error("cannot start a thread for partition {partition}: {source}")]
    Thread { partition: i32, source: std::io::Error },
}

/// What to read, and when to stop.
pub struct Job {
    pub cluster: Cluster,
    pub topic: String,
    pub partitions: i32,
    pub store: Store,
    pub fields: Fields,
    pub limits: Limits,
    /// Stop at the end of each partition as it was at start.
    pub until_end: bool,
    /// Share the topic with the other members of a group, instead of reading all of it alone.
    pub group: Option<Group>,
    /// Where records were gone before they could be read, go on after the gap instead of halting the partition.
    pub accept_gap: bool,
    /// How small files are rolled into large ones meanwhile.
    pub roll: Policy,
    /// The broker is this process's own: it has no past, so the store's next offsets are added to what it hands out.
    pub embedded: bool,
    /// Where room is made for each replayed record that was read, if the broker is an embedded one, ours or not.
    pub backlog: Option<Arc<Backlog>>,
}

/// Shared with whoever watches or steers a running ingest.
#[derive(Default)]
pub struct Control {
    pub progress: Progress,
    stop: AtomicBool,
    flushes: Mutex<Vec<Sender<()>>>,
}

/// Counters of a running ingest.
#[derive(Default)]
pub struct Progress {
    pub received: AtomicU64,
    /// Bytes of keys and values.
    pub received_bytes: AtomicU64,
    pub stored: AtomicU64,
    pub unreadable: AtomicU64,
    pub files: AtomicU64,
    positions: Mutex<BTreeMap<i32, i64>>,
    lags: Mutex<BTreeMap<i32, i64>>,
    last_file: Mutex<Option<PathBuf>>,
    gaps: Mutex<Vec<Gap>>,
    /// Whether every partition has been read to where it ended at start, or halted.
    pub caught_up: AtomicBool,
}

impl Progress {
    /// The position after the last record read of each partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records behind each partition's position, as far as the last fetch told.
    pub fn lags(&self) -> BTreeMap<i32, i64> {
        self.lags.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The gaps that halted partitions.
    pub fn gaps(&self) -> Vec<Gap> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file that was published last.
    pub fn last_file(&self) -> Option<PathBuf> {
        self.last_file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Control {
    /// Ends the ingest: what was read is stored, and of an embedded broker also what it still holds.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Asks for everything read so far to be stored now. The receiver gets as many words as there are partitions, and
    /// hangs up when the last is stored.
    pub fn flush(&self) -> Receiver<()> {
        let (done, wait) = channel();
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        wait
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// How an ingest ended.
#[derive(Debug, Default)]
pub struct Summary {
    pub received: u64,
    pub stored: u64,
    pub unreadable: u64,
    pub files: u64,
    pub gaps: Vec<Gap>,
}

/// Accepted gaps: partition to the first offset after it.
type Skips = BTreeMap<i32, i64>;

/// Reads until the end that the job names, or until the control says stop.
pub fn run(job: &Job, control: &Control) -> Result<Summary, Error> {
    let mut skips = Skips::new();
    let gaps = loop {
        let (consumer, starts) = connect(job, &skips)?;
        match session(job, control, &consumer, &starts)? {
            Ended::Done(gaps) => break gaps,
            Ended::Skipping(gaps) => {
                for gap in gaps {
                    tracing::warn!("{gap}; going on after them, as --accept-gap says");
                    skips.insert(gap.partition, gap.found);
                }
            }
            Ended::Overtaken(partition) => {
                tracing::warn!(
                    partition,
                    "another writer stored partition {partition} further; reading again from there"
                );
            }
        }
    };
    let progress = &control.progress;
    Ok(Summary {
        received: progress.received.load(Ordering::Relaxed),
        stored: progress.stored.load(Ordering::Relaxed),
        unreadable: progress.unreadable.load(Ordering::Relaxed),
        files: progress.files.load(Ordering::Relaxed),
        gaps,
    })
}

/// A lone worker starts on all partitions at once; a member of a group on those it is given, when it is.
fn connect(job: &Job, skips: &Skips) -> Result<(Consumer, Vec<Start>), Error> {
    let Job { cluster, topic, store, embedded, .. } = job;
    if let Some(group) = &job.group {
        let (store, asked, name, skips) = (store.clone(), cluster.clone(), topic.clone(), skips.clone());
        let resolve =
            move |partition| recover(&store, &asked, &name, partition, false, &skips).map_err(|e| e.to_string());
        return Ok((Consumer::join(cluster, topic, group, Box::new(resolve))?, Vec::new()));
    }
    let mut starts = Vec::new();
    for partition in 0..job.partitions {
        starts.push(recover(store, cluster, topic, partition, *embedded, skips)?);
    }
    Ok((Consumer::assign(cluster, topic, &starts, *embedded)?, starts))
}

/// Each partition goes on where its log ends, and a new log begins where the topic does.
fn recover(
    store: &Store,
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    embedded: bool,
    skips: &Skips,
) -> Result<Start, Error> {
    let log = store.log(topic, partition);
    log.set_damaged_aside()?;
    let next = match log.next()? {
        Some(next) => next,
        None => {
            let lows = if embedded { Vec::new() } else { broker::low_watermarks(cluster, topic, &[partition])? };
            log.begin(lows.first().copied().unwrap_or(0))?;
            log.next()?.unwrap_or(0)
        }
    };
    let offset = skips.get(&partition).map_or(next, |after| next.max(*after));
    Ok(Start { partition, next, offset, base: if embedded { next } else { 0 } })
}

enum Ended {
    Done(Vec<Gap>),
    /// Gaps that are accepted: a new session goes on after them.
    Skipping(Vec<Gap>),
    Overtaken(i32),
}

/// What lanes report back.
enum Report {
    Overtaken(i32),
    Failed(Error),
}

/// What all lanes of a session share.
struct Shared<'s> {
    job: &'s Job,
    control: &'s Control,
    consumer: &'s Consumer,
    /// Set when this session's unwritten records must be dropped.
    abandon: AtomicBool,
    reports: Sender<Report>,
}

fn session(job: &Job, control: &Control, consumer: &Consumer, starts: &[Start]) -> Result<Ended, Error> {
    let (reports, reported) = channel();
    let shared = Shared { job, control, consumer, abandon: AtomicBool::new(false), reports };
    let ended = thread::scope(|scope| {
        let (_until_here, over) = channel();
        scope.spawn(|| roll(&shared, over));
        let mut reader =
            Reader { shared: &shared, scope, lanes: BTreeMap::new(), halted: BTreeMap::new(), at_end: BTreeSet::new() };
        let ended = reader.take(starts).and_then(|()| reader.read(&reported));
        if !matches!(ended, Ok(Ended::Done(_) | Ended::Skipping(_))) {
            shared.abandon.store(true, Ordering::SeqCst);
        }
        // Dropping the reader hangs up, which makes each lane write what it holds, unless it was told to drop it.
        ended
    })?;
    // A lane may have failed while it wrote its last file.
    match reported.try_recv() {
        Ok(Report::Failed(error)) => Err(error),
        Ok(Report::Overtaken(partition)) => Ok(Ended::Overtaken(partition)),
        Err(_) => Ok(ended),
    }
}

/// The reading thread.
struct Reader<'scope, 'env> {
    shared: &'env Shared<'env>,
    scope: &'scope Scope<'scope, 'env>,
    lanes: BTreeMap<i32, Lane<'env>>,
    halted: BTreeMap<i32, Gap>,
    at_end: BTreeSet<i32>,
}

impl<'env> Reader<'_, 'env> {
    /// Opens a lane for each of these partitions.
    fn take(&mut self, starts: &[Start]) -> Result<(), Error> {
        for &start in starts {
            let lane = Lane::open(self.scope, self.shared, start)?;
            self.lanes.insert(start.partition, lane);
            self.halted.remove(&start.partition);
            self.at_end.remove(&start.partition);
        }
        Ok(())
    }

    fn positions(&self) -> BTreeMap<i32, i64> {
        self.lanes.iter().map(|(&partition, lane)| (partition, lane.position)).collect()
    }

    /// Drops what these partitions' lanes hold: whoever reads them now has it.
    fn give_back(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(lane) = self.lanes.remove(partition) {
                lane.revoked.store(true, Ordering::SeqCst);
            }
            self.halted.remove(partition);
            self.at_end.remove(partition);
        }
    }

    fn read(&mut self, reported: &Receiver<Report>) -> Result<Ended, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let ends_at_start = ends(consumer, &self.positions())?;
        let mut targets = job.until_end.then(|| ends_at_start.clone());
        for (partition, lane) in self.lanes.iter_mut().filter(|_| job.until_end) {
            lane.end = ends_at_start.get(partition).copied();
        }
        let mut deadline = None;
        let mut down = false;
        let mut told = Instant::now();
        self.tell();
        let ended = loop {
            match reported.try_recv() {
                Ok(Report::Overtaken(partition)) => return Ok(Ended::Overtaken(partition)),
                Ok(Report::Failed(error)) => return Err(error),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
            }
            let asked = std::mem::take(&mut *control.flushes.lock().unwrap_or_else(PoisonError::into_inner));
            for done in asked {
                self.hand_over();
                for lane in self.lanes.values() {
                    // A lane that is gone has reported why.
                    let _ = lane.input.send(Input::Flush(done.clone()));
                }
            }
            if control.stopping() && deadline.is_none() {
                if !job.embedded {
                    break Ended::Done(self.halted.values().cloned().collect());
                }
                // What an embedded broker still holds dies with it, so it is read first.
                deadline = Some(Instant::now() + DRAIN_LIMIT);
                targets = Some(ends(consumer, &self.positions())?);
            }
            let caught_up = &control.progress.caught_up;
            if !caught_up.load(Ordering::Relaxed) && self.reached(&ends_at_start) {
                self.tell();
                caught_up.store(true, Ordering::SeqCst);
            }
            let all_halted = !self.lanes.is_empty() && self.halted.len() == self.lanes.len();
            if targets.as_ref().is_some_and(|targets| self.reached(targets))
                || deadline.is_some_and(|deadline| Instant::now() > deadline)
                || (all_halted && job.group.is_none())
            {
                break Ended::Done(self.halted.values().cloned().collect());
            }
            // Many messages for one look around: the checks above cost more than a message does.
            for _ in 0..CHUNK_MESSAGES {
                let event = consumer.poll(Duration::from_millis(50));
                if down && matches!(event, Some(Event::Message(_) | Event::End(_))) {
                    tracing::info!("the broker at {} is back", job.cluster.servers);
                    down = false;
                }
                match event {
                    Some(Event::Message(message)) => {
                        self.pass_on(message);
                        continue;
                    }
                    None => {}
                    Some(Event::End(partition)) => {
                        self.at_end.insert(partition);
                    }
                    Some(Event::OutOfRange) => {
                        let accepted = self.gaps()?;
                        if !accepted.is_empty() {
                            self.hand_over();
                            return Ok(Ended::Skipping(accepted));
                        }
                    }
                    Some(Event::Assigned(starts)) => {
                        let partitions: Vec<i32> = starts.iter().map(|start| start.partition).collect();
                        tracing::info!(?partitions, "reading {} now", partition_list(&partitions));
                        self.take(&starts)?;
                    }
                    Some(Event::Revoked(partitions)) => {
                        tracing::info!(?partitions, "no longer reading {}", partition_list(&partitions));
                        self.give_back(&partitions);
                    }
                    Some(Event::Down) if down => {}
                    Some(Event::Down) => {
                        tracing::warn!("no broker answers at {}; trying again", job.cluster.servers);
                        down = true;
                    }
                    Some(Event::Fatal(why)) => return Err(Error::Fatal(why)),
                }
                self.hand_over();
                break;
            }
            if told.elapsed() > Duration::from_millis(100) {
                self.hand_over();
                self.tell();
                told = Instant::now();
            }
        };
        self.hand_over();
        self.tell();
        Ok(ended)
    }

    fn reached(&self, targets: &BTreeMap<i32, i64>) -> bool {
        targets.iter().all(|(partition, end)| {
            self.lanes.get(partition).is_none_or(|lane| lane.position >= *end)
                || self.halted.contains_key(partition)
                || self.at_end.contains(partition)
        })
    }

    /// Puts a message to those that its lane gets next.
    fn pass_on(&mut self, message: Message<'env>) {
        let partition = message.partition();
        let Some(lane) = self.lanes.get_mut(&partition) else { return };
        let offset = message.offset();
        lane.position = offset + 1;
        if lane.end.is_some_and(|end| offset >= end) {
            return;
        }
        if !self.at_end.is_empty() {
            self.at_end.remove(&partition);
        }
        if let Some(backlog) = &self.shared.job.backlog
            && message.is_replayed()
        {
            backlog.leave(message.payload_len());
        }
        lane.chunk_bytes += message.size();
        lane.chunk.push(message);
        if lane.chunk.len() >= CHUNK_MESSAGES || lane.chunk_bytes >= CHUNK_BYTES {
            lane.hand_over(self.shared);
        }
    }

    /// Hands over whatever there is, to all lanes.
    fn hand_over(&mut self) {
        for lane in self.lanes.values_mut() {
            lane.hand_over(self.shared);
        }
    }

    /// Finds the partitions whose next record is gone. They halt, but for those whose gap is accepted, which come back.
    fn gaps(&mut self) -> Result<Vec<Gap>, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let mut accepted = Vec::new();
        for gap in consumer.gaps(&self.positions())? {
            let Entry::Vacant(running) = self.halted.entry(gap.partition) else { continue };
            if job.accept_gap && gap.found > gap.expected {
                accepted.push(gap);
            } else {
                tracing::error!("{gap}; this partition halts");
                consumer.pause(gap.partition)?;
                control.progress.gaps.lock().unwrap_or_else(PoisonError::into_inner).push(gap.clone());
                if let Some(backlog) = &job.backlog {
                    // What the sender still has would wait for a reader that does not come.
                    backlog.close();
                }
                running.insert(gap);
            }
        }
        Ok(accepted)
    }

    /// Lets whoever watches know where we are.
    fn tell(&self) {
        let Shared { control, consumer, .. } = self.shared;
        let positions = self.positions();
        let lags = positions.iter().filter_map(|(&p, &at)| Some((p, consumer.lag(p, at)?))).collect();
        *control.progress.lags.lock().unwrap_or_else(PoisonError::into_inner) = lags;
        *control.progress.positions.lock().unwrap_or_else(PoisonError::into_inner) = positions;
    }
}

/// `partition 3`, `partitions 0, 2`, `no partitions`.
fn partition_list(partitions: &[i32]) -> String {
    let numbers = partitions.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    match partitions.len() {
        0 => "no partitions".to_owned(),
        1 => format!("partition {numbers}"),
        _ => format!("partitions {numbers}"),
    }
}

/// The end of each partition as it is now.
fn ends(consumer: &Consumer, positions: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, i64>, Error> {
    let mut ends = BTreeMap::new();
    for &partition in positions.keys() {
        ends.insert(partition, consumer.watermarks(partition)?.1);
    }
    Ok(ends)
}

/// Rolls small files of the partitions we read, now and then, until the session is over.
fn roll(shared: &Shared<'_>, over: Receiver<()>) {
    let Shared { job, control, .. } = shared;
    while over.recv_timeout(ROLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        for partition in control.progress.positions().into_keys() {
            match job.store.log(&job.topic, partition).compact(&job.roll) {
                Ok(Rolled { small: 0, deleted: 0, .. }) => {}
                Ok(Rolled { small, large, deleted }) => {
                    tracing::debug!(partition, small, large, deleted, "rolled small files");
                }
                Err(error) => tracing::warn!("small files of partition {partition} stay as they are: {error}"),
            }
        }
    }
}
