//! The loop from topic to store: read, decode, batch, publish, and only then tell the broker.
//!
//! Each partition has a worker of three threads: one takes its messages, decodes and batches, one writes batches as Parquet, one
//! publishes the files, one after the other. Where that finds the next name taken, another writer was faster: everything
//! unpublished is dropped and read again from where the log now ends. One more thread opens workers and hears what the broker says, and one rolls
//! small files and notices that the topic grew.

mod control;
mod identity;
mod partition;
mod supervisor;
mod warn_once;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use arrow::error::ArrowError;
pub use control::{Control, Flush, Progress, Summary};
use identity::Identity;
use tercile_store::batch::Limits;
use tercile_store::record::{Decoder, Fields};
use tercile_store::{self as store, Policy, Rolled, Store};
use warn_once::WarnOnce;

use crate::broker::embedded::Backlog;
use crate::broker::{self, Bound, Cluster, Consumer, Gap, Group, NotNow, Reading, Start};

/// How long to wait before everything is read again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a stop takes to be heard in a pause, at most.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// How long upkeep waits for a broker: it must not hold up an end.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of fetched records that wait in a partition's queue, at most.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

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
    /// The encoding of the records.
    pub decoder: Arc<dyn Decoder>,
    pub fields: Fields,
    pub limits: Limits,
    /// Bytes that records on their way may take, more or less.
    pub memory: usize,
    /// Stop at the end of each partition as it was at start.
    pub until_end: bool,
    /// Share the topic with the other members of a group, instead of reading all of it alone.
    pub group: Option<Group>,
    /// Where records were gone before they could be read, go on after the gap instead of halting the partition.
    pub accept_gap: bool,
    /// How small files are rolled into large ones meanwhile.
    pub roll: Policy,
    /// How often small files are looked for, and new partitions.
    pub upkeep: Duration,
    /// The broker is this process's own: it has no past, so the store's next offsets are added to what it hands out.
    pub embedded: bool,
    /// Where room is made for each replayed record that was read, if the broker is an embedded one, ours or not.
    pub backlog: Option<Arc<Backlog>>,
}

/// Accepted gaps: partition to the first offset after it.
type Skips = BTreeMap<i32, i64>;

/// Reads until the end that the job names, or until the control says stop.
pub fn run(job: &Job, control: &Control) -> Result<Summary, Error> {
    let mut skips = Skips::new();
    let mut partitions = job.partitions;
    let mut begun = false;
    let told = WarnOnce::default();
    let gaps = loop {
        let ended = connect(job, partitions, &skips).and_then(|(consumer, starts)| {
            let ended = session(job, control, &consumer, partitions, &starts, &mut begun);
            consumer.close();
            control.set_reading(false);
            ended
        });
        let ended = match ended {
            // A broker that goes while it is asked something is no reason to go as well. But one that never answered is most likely
            // another than was meant.
            Err(Error::Broker(error)) if error.passes() && (begun || !error.is_unreachable()) => {
                Ended::Again(error.to_string())
            }
            other => other?,
        };
        match ended {
            Ended::Done(gaps) => break gaps,
            Ended::Again(_) if control.stopping() => break Vec::new(),
            Ended::Again(why) => {
                if told.is_new(&why) {
                    tracing::warn!("{why}; reading again from where the store ends");
                }
                let until = Instant::now() + PAUSE;
                while !control.stopping() && Instant::now() < until {
                    thread::sleep(STOP_CHECK);
                }
            }
            Ended::Skipping(gaps) => {
                for gap in gaps {
                    tracing::warn!("{gap}; going on after them, as --accept-gap says");
                    skips.insert(gap.partition, gap.found);
                }
            }
            Ended::Grown(now) => {
                tracing::info!("the topic {} has {now} partitions now, {partitions} before", job.topic);
                partitions = now;
            }
            Ended::Overtaken(partition) => {
                tracing::warn!(
                    partition,
                    "another writer stored partition {partition} further; reading again from there"
                );
            }
        }
    };
    Ok(control.progress.summary(gaps))
}

/// A lone worker starts on all partitions at once; a member of a group on those it is given, when it is.
fn connect(job: &Job, partitions: i32, skips: &Skips) -> Result<(Consumer, Vec<Start>), Error> {
    let Job { cluster, topic, store, embedded, .. } = job;
    let share = job.memory / 4 / usize::try_from(partitions).unwrap_or(1).max(1);
    let reading = Reading { embedded: *embedded, queue_bytes: share.min(QUEUE_BYTES), refresh: job.upkeep };
    let all: Vec<i32> = (0..partitions).collect();
    let Some(group) = &job.group else {
        let starts = recover(store, cluster, topic, &all, *embedded, skips)?;
        return Ok((Consumer::assign(cluster, topic, &starts, reading)?, starts));
    };
    // A member that can't reach the brokers would wait for its group without a word.
    match cluster.offsets(topic, &all, Bound::Latest) {
        Err(error @ broker::Error::Leaderless { .. }) => tracing::warn!("{error}; trying again"),
        other => drop(other?),
    }
    let (store, asked, name, skips) = (store.clone(), cluster.clone(), topic.clone(), skips.clone());
    let resolve = move |partitions: &[i32]| {
        recover(&store, &asked, &name, partitions, false, &skips).map_err(|error| NotNow {
            passes: matches!(&error, Error::Broker(error) if error.passes()),
            why: error.to_string(),
        })
    };
    Ok((Consumer::join(cluster, topic, group, reading, Box::new(resolve))?, Vec::new()))
}

/// Each partition goes on where its log ends, and a new log begins where the topic does.
fn recover(
    store: &Store,
    cluster: &Cluster,
    topic: &str,
    partitions: &[i32],
    embedded: bool,
    skips: &Skips,
) -> Result<Vec<Start>, Error> {
    let mut ends = BTreeMap::new();
    for &partition in partitions {
        let log = store.log(topic, partition);
        log.set_damaged_aside()?;
        ends.insert(partition, log.next()?);
    }
    let new: Vec<i32> = ends.iter().filter(|(_, next)| next.is_none()).map(|(&partition, _)| partition).collect();
    let lows =
        if embedded || new.is_empty() { BTreeMap::new() } else { cluster.offsets(topic, &new, Bound::Earliest)? };
    for partition in new {
        let log = store.log(topic, partition);
        log.begin(lows.get(&partition).copied().unwrap_or(0))?;
        ends.insert(partition, log.next()?);
    }
    let start = |(partition, next): (i32, Option<i64>)| {
        let next = next.unwrap_or(0);
        let offset = skips.get(&partition).map_or(next, |after| next.max(*after));
        Start { partition, next, offset, base: if embedded { next } else { 0 } }
    };
    let starts: Vec<Start> = ends.into_iter().map(start).collect();
    for start in &starts {
        store.log(topic, start.partition).settle(start.next)?;
    }
    Ok(starts)
}

enum Ended {
    Done(Vec<Gap>),
    /// Gaps that are accepted: a new session goes on after them.
    Skipping(Vec<Gap>),
    /// The topic has so many partitions now: a new session reads them all.
    Grown(i32),
    Overtaken(i32),
    /// Why everything unwritten is read again.
    Again(String),
}

/// What the other threads tell the reading one.
enum Report {
    Overtaken(i32),
    Failed(Error),
    Grown(i32),
    Again(String),
    /// The broker has records missing where this partition's worker stands.
    OutOfRange(i32),
}

/// What all threads of a session share.
struct Shared<'s> {
    job: &'s Job,
    control: &'s Control,
    consumer: &'s Consumer,
    /// Set when this session's unwritten records must be dropped.
    abandon: AtomicBool,
    /// Set whenever the broker is heard of.
    heard: AtomicBool,
    identity: Identity,
    workers: AtomicUsize,
    reports: Sender<Report>,
    /// What was warned of.
    told: WarnOnce,
}

impl Shared<'_> {
    fn report(&self, report: Report) {
        // Where nobody listens any more, the session is over.
        let _ = self.reports.send(report);
    }

    fn abandon(&self, report: Report) {
        self.abandon.store(true, Ordering::SeqCst);
        self.report(report);
    }

    fn limits(&self) -> Limits {
        partition::share(&self.job.limits, self.job.memory, self.workers.load(Ordering::Relaxed))
    }
}

fn session(
    job: &Job,
    control: &Control,
    consumer: &Consumer,
    partitions: i32,
    starts: &[Start],
    begun: &mut bool,
) -> Result<Ended, Error> {
    let (reports, reported) = channel();
    let (abandon, heard, workers) = (AtomicBool::new(false), AtomicBool::new(true), AtomicUsize::new(0));
    let identity = Identity::default();
    let told = WarnOnce::default();
    let shared = Shared { job, control, consumer, abandon, heard, identity, workers, reports, told };
    let ended = thread::scope(|scope| {
        let (_until_here, over) = channel();
        scope.spawn(|| upkeep(&shared, partitions, over));
        supervisor::Supervisor::new(&shared, scope).run(starts, &reported, begun)
    })?;
    // A worker may have failed while it wrote its last file.
    for report in reported.try_iter() {
        match report {
            Report::Failed(error) => return Err(error),
            Report::Overtaken(partition) => return Ok(Ended::Overtaken(partition)),
            Report::Again(why) => return Ok(Ended::Again(why)),
            Report::Grown(_) | Report::OutOfRange(_) => {}
        }
    }
    Ok(ended)
}

/// Now and then, until the session is over: rolls small files of the partitions we read, and looks whether the topic is
/// still the one it was, with as many partitions.
fn upkeep(shared: &Shared<'_>, partitions: i32, over: Receiver<()>) {
    let Shared { job, control, .. } = shared;
    let mut gone = false;
    if let Err(error) = job.store.sweep(store::LEFTOVER) {
        tracing::warn!("{error}");
    }
    while over.recv_timeout(job.upkeep) == Err(RecvTimeoutError::Timeout) {
        for partition in control.progress.positions().into_keys() {
            if control.stopping() {
                return;
            }
            match job.store.log(&job.topic, partition).compact(&job.roll) {
                Ok(rolled) if rolled == Rolled::default() => {}
                Ok(Rolled { small, large, expired, deleted }) => {
                    tracing::debug!(partition, small, large, expired, deleted, "rolled small files");
                }
                Err(error) => tracing::warn!("small files of partition {partition} stay as they are: {error}"),
            }
        }
        if job.embedded {
            continue;
        }
        let topic = match job.cluster.within(UPKEEP_TIMEOUT).describe(&job.topic) {
            Ok(Some(topic)) => topic,
            Ok(None) => {
                if !gone {
                    tracing::warn!("the topic {} is gone from {}; waiting for it", job.topic, job.cluster.servers);
                }
                gone = true;
                continue;
            }
            // A broker that is away is no news here.
            Err(_) => continue,
        };
        gone = false;
        match job.store.claim(&topic.name, &topic.id, topic.partitions) {
            // A group hears of new partitions by itself.
            Ok(_) if topic.partitions > partitions && job.group.is_none() && !job.until_end => {
                shared.report(Report::Grown(topic.partitions));
            }
            Ok(_) => {}
            Err(error @ store::Error::OtherTopic { .. }) => shared.abandon(Report::Failed(error.into())),
            Err(error) => tracing::warn!("{error}"),
        }
        if let Some(error) = ahead_of_topic(job, &control.progress.positions()) {
            shared.abandon(Report::Failed(error.into()));
        }
    }
}

/// Whether the topic ends before what was read of it. Asked by a client of its own: one that has read a topic fetches
/// on in silence after the broker came back with an older state of it.
fn ahead_of_topic(job: &Job, positions: &BTreeMap<i32, i64>) -> Option<store::Error> {
    let partitions: Vec<i32> = positions.keys().copied().collect();
    if partitions.is_empty() {
        return None;
    }
    // A broker that is away is no news here.
    let ends = job.cluster.within(UPKEEP_TIMEOUT).offsets(&job.topic, &partitions, Bound::Latest).ok()?;
    let ahead = |partition: i32, next: i64| ends.get(&partition).copied().filter(|end| *end < next);
    let (partition, next, end) = positions.iter().find_map(|(&p, &next)| Some((p, next, ahead(p, next)?)))?;
    let (store, topic) = (job.store.root().to_owned(), job.topic.clone());
    Some(store::Error::AheadOfTopic { store, topic, partition, next, end })
}
