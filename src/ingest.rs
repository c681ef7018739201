//! The loop from topic to store: read, decode, batch, publish, and only then tell the broker.
//!
//! One thread reads the consumer and hands each message to the lane of its partition; each lane is a thread that
//! decodes, batches and publishes its partition's files, one after the other. Where a lane finds its next name taken,
//! another writer was faster: everything unwritten is dropped and read again from where the log now ends.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use datafusion::arrow::error::ArrowError;

use crate::batch::{Batch, Limits};
use crate::broker::embedded::Backlog;
use crate::broker::{self, Cluster, Consumer, Event, Gap, Group, Message, Start};
use crate::record::{self, Fields};
use crate::store::{self, DataFile, Log, Policy, Published, Rolled, Store};

/// Bytes of messages that may wait in front of one lane.
const LANE_BYTES: usize = 8 * 1024 * 1024;
/// Messages that may wait in front of one lane.
const LANE_MESSAGES: usize = 8 * 1024;
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

enum Input<'c> {
    Message(Message<'c>),
    Flush(Sender<()>),
}

/// The reading thread's end of a lane.
struct Lane<'c> {
    input: SyncSender<Input<'c>>,
    /// Bytes of messages that the lane has not taken yet.
    waiting: Arc<AtomicUsize>,
    /// Set when the partition was taken away: what is unwritten is dropped.
    revoked: Arc<AtomicBool>,
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
        let mut reader = Reader {
            shared: &shared,
            scope,
            lanes: BTreeMap::new(),
            positions: BTreeMap::new(),
            halted: BTreeMap::new(),
            at_end: BTreeSet::new(),
        };
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
    /// The position after the last record read of each partition.
    positions: BTreeMap<i32, i64>,
    halted: BTreeMap<i32, Gap>,
    at_end: BTreeSet<i32>,
}

impl<'env> Reader<'_, 'env> {
    /// Opens a lane for each of these partitions.
    fn take(&mut self, starts: &[Start]) -> Result<(), Error> {
        for &start in starts {
            let (input, messages) = sync_channel(LANE_MESSAGES);
            let (waiting, revoked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
            let lane = Lane { input, waiting: Arc::clone(&waiting), revoked: Arc::clone(&revoked) };
            let shared = self.shared;
            thread::Builder::new()
                .name(format!("lane-{}", start.partition))
                .spawn_scoped(self.scope, move || run_lane(shared, start, &messages, &waiting, &revoked))
                .map_err(|source| Error::Thread { partition: start.partition, source })?;
            self.lanes.insert(start.partition, lane);
            self.positions.insert(start.partition, start.offset);
            self.halted.remove(&start.partition);
            self.at_end.remove(&start.partition);
        }
        Ok(())
    }

    /// Drops what these partitions' lanes hold: whoever reads them now has it.
    fn give_back(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(lane) = self.lanes.remove(partition) {
                lane.revoked.store(true, Ordering::SeqCst);
            }
            self.positions.remove(partition);
            self.halted.remove(partition);
            self.at_end.remove(partition);
        }
    }

    fn read(&mut self, reported: &Receiver<Report>) -> Result<Ended, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let ends_at_start = ends(consumer, &self.positions)?;
        let mut targets = job.until_end.then(|| ends_at_start.clone());
        let mut deadline = None;
        let mut down = false;
        let mut told = Instant::now();
        self.tell();
        loop {
            match reported.try_recv() {
                Ok(Report::Overtaken(partition)) => return Ok(Ended::Overtaken(partition)),
                Ok(Report::Failed(error)) => return Err(error),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
            }
            let asked = std::mem::take(&mut *control.flushes.lock().unwrap_or_else(PoisonError::into_inner));
            for done in asked {
                for lane in self.lanes.values() {
                    // A lane that is gone has reported why.
                    let _ = lane.input.send(Input::Flush(done.clone()));
                }
            }
            if control.stopping() && deadline.is_none() {
                if !job.embedded {
                    break;
                }
                // What an embedded broker still holds dies with it, so it is read first.
                deadline = Some(Instant::now() + DRAIN_LIMIT);
                targets = Some(ends(consumer, &self.positions)?);
            }
            if targets.as_ref().is_some_and(|targets| self.reached(targets)) {
                break;
            }
            let caught_up = &control.progress.caught_up;
            if !caught_up.load(Ordering::Relaxed) && self.reached(&ends_at_start) {
                self.tell();
                caught_up.store(true, Ordering::SeqCst);
            }
            let all_halted = !self.lanes.is_empty() && self.halted.len() == self.lanes.len();
            if deadline.is_some_and(|deadline| Instant::now() > deadline) || (all_halted && job.group.is_none()) {
                break;
            }
            let event = consumer.poll(Duration::from_millis(50));
            if down && matches!(event, Some(Event::Message(_) | Event::End(_))) {
                tracing::info!("the broker at {} is back", job.cluster.servers);
                down = false;
            }
            if event.is_none() || told.elapsed() > Duration::from_millis(100) {
                self.tell();
                told = Instant::now();
            }
            match event {
                None => {}
                Some(Event::Message(message)) => self.pass_on(message),
                Some(Event::End(partition)) => {
                    self.at_end.insert(partition);
                }
                Some(Event::OutOfRange) => {
                    let accepted = self.gaps()?;
                    if !accepted.is_empty() {
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
        }
        self.tell();
        Ok(Ended::Done(std::mem::take(&mut self.halted).into_values().collect()))
    }

    fn reached(&self, targets: &BTreeMap<i32, i64>) -> bool {
        targets.iter().all(|(partition, end)| {
            self.positions.get(partition).is_none_or(|at| at >= end)
                || self.halted.contains_key(partition)
                || self.at_end.contains(partition)
        })
    }

    /// Hands a message to the lane of its partition, which may take a while: the broker's queue fills up behind us, and
    /// fetching stops by itself.
    fn pass_on(&mut self, message: Message<'env>) {
        let Shared { job, control, abandon, .. } = self.shared;
        let partition = message.partition();
        let (Some(lane), Some(position)) = (self.lanes.get(&partition), self.positions.get_mut(&partition)) else {
            return;
        };
        *position = message.record().offset + 1;
        self.at_end.remove(&partition);
        control.progress.received.fetch_add(1, Ordering::Relaxed);
        control.progress.received_bytes.fetch_add(message.size() as u64, Ordering::Relaxed);
        if let Some(backlog) = &job.backlog
            && message.is_replayed()
        {
            backlog.leave(message.payload_len());
        }
        while lane.waiting.load(Ordering::Relaxed) > LANE_BYTES && !abandon.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        lane.waiting.fetch_add(message.size(), Ordering::Relaxed);
        let _ = lane.input.send(Input::Message(message));
    }

    /// Finds the partitions whose next record is gone. They halt, but for those whose gap is accepted, which come back.
    fn gaps(&mut self) -> Result<Vec<Gap>, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let mut accepted = Vec::new();
        for gap in consumer.gaps(&self.positions)? {
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
        let lags = self.positions.iter().filter_map(|(&p, &at)| Some((p, consumer.lag(p, at)?))).collect();
        *control.progress.lags.lock().unwrap_or_else(PoisonError::into_inner) = lags;
        let mut positions = control.progress.positions.lock().unwrap_or_else(PoisonError::into_inner);
        positions.clone_from(&self.positions);
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

/// One partition: decode, batch, publish.
fn run_lane(
    shared: &Shared<'_>,
    start: Start,
    messages: &Receiver<Input<'_>>,
    waiting: &AtomicUsize,
    revoked: &AtomicBool,
) {
    let result = lane(shared, start, messages, waiting, revoked);
    if revoked.load(Ordering::SeqCst) {
        // Whatever happened, the partition is somebody else's now.
        return;
    }
    if !matches!(result, Ok(None)) {
        shared.abandon.store(true, Ordering::SeqCst);
    }
    match result {
        Ok(None) => {}
        Ok(Some(Overtaken)) => {
            let _ = shared.reports.send(Report::Overtaken(start.partition));
        }
        Err(error) => {
            let _ = shared.reports.send(Report::Failed(error));
        }
    }
}

struct Overtaken;

fn lane(
    shared: &Shared<'_>,
    start: Start,
    messages: &Receiver<Input<'_>>,
    waiting: &AtomicUsize,
    revoked: &AtomicBool,
) -> Result<Option<Overtaken>, Error> {
    let Shared { job, .. } = shared;
    let log = job.store.log(&job.topic, start.partition);
    let mut batch = Batch::new(start.partition, &job.fields);
    let mut expected = start.next;
    loop {
        let patience = match batch.due_at(&job.limits) {
            Some(due) => due.saturating_duration_since(Instant::now()),
            None => Duration::from_secs(3600),
        };
        let mut flushed = None;
        let mut hung_up = false;
        match messages.recv_timeout(patience) {
            Ok(Input::Message(message)) => {
                waiting.fetch_sub(message.size(), Ordering::Relaxed);
                let record = message.record();
                let decoded = record::decode(record.payload, &job.fields);
                batch.push(&record, message.headers(), &decoded, Instant::now());
            }
            Ok(Input::Flush(done)) => flushed = Some(done),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => hung_up = true,
        }
        if shared.abandon.load(Ordering::SeqCst) || revoked.load(Ordering::SeqCst) {
            return Ok(None);
        }
        if hung_up || flushed.is_some() || batch.due(&job.limits, Instant::now()) {
            match write(shared, &log, &mut batch, expected)? {
                Written::Nothing => {}
                Written::File(file) => expected = file.next,
                Written::Overtaken => return Ok(Some(Overtaken)),
            }
        }
        if let Some(done) = flushed {
            let _ = done.send(());
        }
        if hung_up {
            return Ok(None);
        }
    }
}

enum Written {
    Nothing,
    File(DataFile),
    Overtaken,
}

/// Publishes what the batch holds, then commits. A disk that refuses is tried again until there is room or somebody
/// says stop: the records wait here, and the broker keeps them too.
fn write(shared: &Shared<'_>, log: &Log, batch: &mut Batch, expected: i64) -> Result<Written, Error> {
    let unbuilt = |source| Error::Batch { partition: log.partition(), source };
    let Some(ready) = batch.take().map_err(unbuilt)? else { return Ok(Written::Nothing) };
    let mut told = false;
    let published = loop {
        match log.publish(&ready.records, expected, ready.next) {
            Ok(published) => break published,
            Err(error @ (store::Error::Io { .. } | store::Error::Parquet { .. })) if !shared.control.stopping() => {
                if !told {
                    tracing::warn!("{error}; trying again until it works");
                    told = true;
                }
                thread::sleep(Duration::from_secs(1));
            }
            Err(error) => return Err(error.into()),
        }
    };
    if told {
        tracing::info!("the store takes records again");
    }
    match published {
        Published::Taken => Ok(Written::Overtaken),
        Published::File(file) => {
            let progress = &shared.control.progress;
            progress.stored.fetch_add(file.rows, Ordering::Relaxed);
            progress.unreadable.fetch_add(ready.unreadable as u64, Ordering::Relaxed);
            progress.files.fetch_add(1, Ordering::Relaxed);
            *progress.last_file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.path.clone());
            tracing::debug!(path = %file.path.display(), rows = file.rows, "stored");
            shared.consumer.commit(file.partition, file.next);
            Ok(Written::File(file))
        }
    }
}
