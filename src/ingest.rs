//! The loop from topic to store: read, decode, batch, publish, and only then tell the broker.
//!
//! One thread reads the consumer and hands each message to the lane of its partition; each lane is a thread that
//! decodes, batches and publishes its partition's files, one after the other. Where a lane finds its next name taken,
//! another writer was faster: everything unwritten is dropped and read again from where the log now ends.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use datafusion::arrow::error::ArrowError;

use crate::batch::{Batch, Limits};
use crate::broker::embedded::Backlog;
use crate::broker::{self, Cluster, Consumer, Event, Gap, Message, Start};
use crate::record::{self, Fields};
use crate::store::{self, DataFile, Log, Published, Store};

/// Bytes of messages that may wait in front of one lane.
const LANE_BYTES: usize = 8 * 1024 * 1024;
/// Messages that may wait in front of one lane.
const LANE_MESSAGES: usize = 8 * 1024;
/// How long a stopping worker may still read what stood in an embedded broker.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

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
    /// The embedded broker of this process: it has no past, so the store's next offsets are added to what it hands
    /// out, and room is made in the backlog for each replayed record that was read.
    pub embedded: Option<Arc<Backlog>>,
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
    /// Whether every partition has been read to its end at least once.
    pub caught_up: AtomicBool,
}

impl Progress {
    /// The position after the last record read of each partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

/// Reads until the end that the job names, or until the control says stop.
pub fn run(job: &Job, control: &Control) -> Result<Summary, Error> {
    let gaps = loop {
        let starts = starts(job)?;
        let consumer = Consumer::assign(&job.cluster, &job.topic, &starts, job.embedded.is_some())?;
        match session(job, control, &consumer, &starts)? {
            Ended::Done(gaps) => break gaps,
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

/// Recovery: each partition goes on where its log ends, and a new log begins where the topic does.
fn starts(job: &Job) -> Result<Vec<Start>, Error> {
    let mut starts = Vec::new();
    for partition in 0..job.partitions {
        let log = job.store.log(&job.topic, partition);
        if log.next()?.is_none() {
            let first = match job.embedded {
                Some(_) => 0,
                None => broker::low_watermarks(&job.cluster, &job.topic, &[partition])?.first().copied().unwrap_or(0),
            };
            log.begin(first)?;
        }
        let offset = log.next()?.unwrap_or(0);
        let base = if job.embedded.is_some() { offset } else { 0 };
        starts.push(Start { partition, offset, base });
    }
    Ok(starts)
}

enum Ended {
    Done(Vec<Gap>),
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

struct Lane<'c> {
    input: SyncSender<Input<'c>>,
    waiting: Arc<AtomicUsize>,
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
    thread::scope(|scope| {
        let mut lanes = BTreeMap::new();
        for start in starts {
            let (input, messages) = sync_channel(LANE_MESSAGES);
            let waiting = Arc::new(AtomicUsize::new(0));
            let lane = Lane { input, waiting: Arc::clone(&waiting) };
            let (shared, start) = (&shared, *start);
            thread::Builder::new()
                .name(format!("lane-{}", start.partition))
                .spawn_scoped(scope, move || run_lane(shared, start, &messages, &waiting))
                .map_err(|source| Error::Thread { partition: start.partition, source })?;
            lanes.insert(start.partition, lane);
        }
        let ended = read(&shared, &lanes, &reported, starts);
        if !matches!(ended, Ok(Ended::Done(_))) {
            shared.abandon.store(true, Ordering::SeqCst);
        }
        // Hanging up makes each lane write what it holds, unless it was told to drop it.
        drop(lanes);
        ended
    })
    .and_then(|ended| {
        // A lane may have failed while it wrote its last file.
        match (reported.try_recv(), ended) {
            (Ok(Report::Failed(error)), _) => Err(error),
            (Ok(Report::Overtaken(partition)), Ended::Done(_)) if !job.until_end => Ok(Ended::Overtaken(partition)),
            (Ok(Report::Overtaken(partition)), _) => Ok(Ended::Overtaken(partition)),
            (Err(_), ended) => Ok(ended),
        }
    })
}

/// The reading thread.
fn read<'c>(
    shared: &Shared<'c>,
    lanes: &BTreeMap<i32, Lane<'c>>,
    reported: &Receiver<Report>,
    starts: &[Start],
) -> Result<Ended, Error> {
    let Shared { job, control, consumer, .. } = shared;
    let mut positions: BTreeMap<i32, i64> = starts.iter().map(|s| (s.partition, s.offset)).collect();
    let mut halted: BTreeMap<i32, Gap> = BTreeMap::new();
    let mut at_end = BTreeSet::new();
    let mut targets = if job.until_end { Some(ends(consumer, &positions)?) } else { None };
    let mut deadline = None;
    let mut down = false;
    publish_positions(control, &positions);
    let mut told = Instant::now();
    loop {
        match reported.try_recv() {
            Ok(Report::Overtaken(partition)) => return Ok(Ended::Overtaken(partition)),
            Ok(Report::Failed(error)) => return Err(error),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        let asked = std::mem::take(&mut *control.flushes.lock().unwrap_or_else(PoisonError::into_inner));
        for done in asked {
            publish_positions(control, &positions);
            for lane in lanes.values() {
                // A lane that is gone has reported why.
                let _ = lane.input.send(Input::Flush(done.clone()));
            }
        }
        if control.stopping() && deadline.is_none() {
            if job.embedded.is_none() {
                break;
            }
            // What an embedded broker still holds dies with it, so it is read first.
            deadline = Some(Instant::now() + DRAIN_LIMIT);
            targets = Some(ends(consumer, &positions)?);
        }
        if let Some(targets) = &targets {
            let reached = |p: &i32, end: &i64| {
                positions.get(p).is_some_and(|at| at >= end) || halted.contains_key(p) || at_end.contains(p)
            };
            if targets.iter().all(|(partition, end)| reached(partition, end)) {
                break;
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) || halted.len() == lanes.len() {
            break;
        }
        if told.elapsed() > Duration::from_millis(100) {
            publish_positions(control, &positions);
            told = Instant::now();
        }
        let event = consumer.poll(Duration::from_millis(50));
        if down && matches!(event, Some(Event::Message(_) | Event::End(_))) {
            tracing::info!("the broker at {} is back", job.cluster.servers);
            down = false;
        }
        match event {
            None => publish_positions(control, &positions),
            Some(Event::Message(message)) => {
                let partition = message.partition();
                let (Some(lane), Some(position)) = (lanes.get(&partition), positions.get_mut(&partition)) else {
                    continue;
                };
                *position = message.record().offset + 1;
                at_end.remove(&partition);
                control.progress.received.fetch_add(1, Ordering::Relaxed);
                control.progress.received_bytes.fetch_add(message.size() as u64, Ordering::Relaxed);
                if let Some(backlog) = &job.embedded
                    && message.is_replayed()
                {
                    backlog.leave(message.payload_len());
                }
                while lane.waiting.load(Ordering::Relaxed) > LANE_BYTES && reported_nothing(shared) {
                    thread::sleep(Duration::from_millis(1));
                }
                lane.waiting.fetch_add(message.size(), Ordering::Relaxed);
                let _ = lane.input.send(Input::Message(message));
            }
            Some(Event::End(partition)) => {
                at_end.insert(partition);
                if at_end.len() + halted.len() >= lanes.len() {
                    publish_positions(control, &positions);
                    control.progress.caught_up.store(true, Ordering::SeqCst);
                }
            }
            Some(Event::OutOfRange) => {
                for gap in consumer.gaps(&positions)? {
                    if let Entry::Vacant(running) = halted.entry(gap.partition) {
                        tracing::error!("{gap}; this partition halts");
                        consumer.pause(gap.partition)?;
                        running.insert(gap);
                    }
                }
            }
            Some(Event::Down) => {
                if !down {
                    tracing::warn!("no broker answers at {}; trying again", job.cluster.servers);
                    down = true;
                }
            }
            Some(Event::Fatal(error)) => return Err(Error::Fatal(error.to_string())),
        }
    }
    publish_positions(control, &positions);
    Ok(Ended::Done(halted.into_values().collect()))
}

fn reported_nothing(shared: &Shared<'_>) -> bool {
    !shared.abandon.load(Ordering::Relaxed)
}

fn publish_positions(control: &Control, positions: &BTreeMap<i32, i64>) {
    control.progress.positions.lock().unwrap_or_else(PoisonError::into_inner).clone_from(positions);
}

/// The end of each partition as it is now.
fn ends(consumer: &Consumer, positions: &BTreeMap<i32, i64>) -> Result<BTreeMap<i32, i64>, Error> {
    let mut ends = BTreeMap::new();
    for &partition in positions.keys() {
        ends.insert(partition, consumer.watermarks(partition)?.1);
    }
    Ok(ends)
}

/// One partition: decode, batch, publish.
fn run_lane(shared: &Shared<'_>, start: Start, messages: &Receiver<Input<'_>>, waiting: &AtomicUsize) {
    let result = lane(shared, start, messages, waiting);
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
) -> Result<Option<Overtaken>, Error> {
    let Shared { job, .. } = shared;
    let log = job.store.log(&job.topic, start.partition);
    let mut batch = Batch::new(start.partition, &job.fields);
    let mut expected = start.offset;
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
        if shared.abandon.load(Ordering::SeqCst) {
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
    let partition_error = |source| Error::Batch { partition: -1, source };
    let Some(ready) = batch.take().map_err(partition_error)? else { return Ok(Written::Nothing) };
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
            tracing::debug!(path = %file.path.display(), rows = file.rows, "stored");
            shared.consumer.commit(file.partition, file.next);
            Ok(Written::File(file))
        }
    }
}
