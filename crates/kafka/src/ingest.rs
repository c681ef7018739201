//! The ingest loop from topic to store: read, decode, batch, publish, then commit to the broker.
//!
//! Each partition has a worker of three threads: one takes messages, decodes and batches them, one writes batches as Parquet,
//! one publishes the files in order. If the next file name is taken, another writer was faster: the unpublished
//! records of the partition are dropped and read again from the new end of the log. One more thread runs the supervisor, and one compacts small files and
//! watches the topic for new partitions.

mod another_writer;
mod control;
mod embedded_offsets;
mod identity;
mod partition;
mod start;
mod supervisor;
mod upkeep;
mod warn_once;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use another_writer::warn_of_another_writer;
use arrow::error::ArrowError;
pub use control::{Control, Flush, Progress, Summary};
use embedded_offsets::EmbeddedOffsets;
use identity::Identity;
use start::{begin, connect};
pub use supervisor::partition_list;
use tercile_store::batch::Limits;
use tercile_store::event_time::EventTime;
use tercile_store::record::{Decoder, Fields};
use tercile_store::{self as store, Policy, Store};
pub use upkeep::ahead_of_topic;
pub use warn_once::WarnOnce;

use crate::broker::embedded::Backlog;
use crate::broker::{self, Bound, Cluster, Consumer, Gap, Group, Start};

/// Pause before everything is read again.
const PAUSE: Duration = Duration::from_secs(1);
/// Maximum delay until a stop is noticed during a pause.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// An error that ended an ingest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A permanent error of the broker.
    #[error(transparent)]
    Broker(#[from] broker::Error),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Arrow cannot build a record batch.
    #[error("cannot build a batch of partition {partition}: {source}")]
    Batch {
        /// Partition number.
        partition: i32,
        /// The cause.
        source: ArrowError,
    },
    /// An unrecoverable error of the Kafka client.
    #[error("the Kafka client gave up: {0}")]
    Fatal(String),
    /// A worker's thread cannot start.
    #[error("cannot start a thread for partition {partition}: {source}")]
    Thread {
        /// Partition number.
        partition: i32,
        /// The cause.
        source: std::io::Error,
    },
}

/// What to read, and when to stop.
pub struct Job {
    /// The cluster to read from.
    pub cluster: Cluster,
    /// Topic name.
    pub topic: String,
    /// The numbers of the partitions at start, ascending.
    pub partitions: Vec<i32>,
    /// The store to write to.
    pub store: Store,
    /// The encoding of the records.
    pub decoder: Arc<dyn Decoder>,
    /// Declared fields of the records.
    pub fields: Fields,
    /// The field that gives the time of a record; Kafka's timestamp if `None`.
    pub event_time: Option<EventTime>,
    /// Limits of a batch, before the memory budget applies.
    pub limits: Limits,
    /// Approximate memory budget for records in flight, in bytes.
    pub memory: usize,
    /// Stop each partition at the end that it had at start.
    pub until_end: bool,
    /// Share the topic with the other members of a group instead of reading all of it.
    pub group: Option<Group>,
    /// Where a store without records begins to read; the earliest record if `None`.
    pub from: Option<Bound>,
    /// Continue after a gap instead of halting the partition.
    pub accept_gap: bool,
    /// Compaction and retention policy during the ingest.
    pub roll: Policy,
    /// Interval of compaction and of the check for new partitions.
    pub upkeep: Duration,
    /// Whether the broker is this process's embedded one: its offsets begin at 0, so the store's next offsets are added to
    /// them.
    pub embedded: bool,
    /// Back-pressure to release for each replayed record that was read, if the broker is an embedded one, of any process.
    pub backlog: Option<Arc<Backlog>>,
}

/// Accepted gaps: partition to the first offset after the gap.
type Skips = BTreeMap<i32, i64>;

/// Runs until the job's end or until [`Control::stop`].
///
/// # Errors
/// On a permanent error of the broker, or an error of the store that a retry cannot fix; before the first record is asked for, on any.
pub fn run(job: &Job, control: &Control) -> Result<Summary, Error> {
    if let Some(from) = job.from {
        begin(job, from)?;
    }
    let mut skips = Skips::new();
    let mut partitions = job.partitions.clone();
    let mut begun = false;
    let (told, own) = (WarnOnce::default(), EmbeddedOffsets::default());
    let gaps = loop {
        let ended = connect(job, &partitions, &skips, &own).and_then(|(consumer, starts)| {
            let run = Run { job, control, told: &told, own: &own };
            let ended = session(run, &consumer, &partitions, &starts, &mut begun);
            consumer.close();
            control.set_reading(false);
            ended
        });
        let ended = match ended {
            // A broker that fails later is retried. One that never answered is most likely the wrong address.
            Err(Error::Broker(error)) if error.passes() && (begun || !error.is_unreachable()) => {
                Ended::Again(error.to_string())
            }
            // As when a file is written: what the disk refuses is tried again.
            Err(Error::Store(error)) if begun && error.may_pass() && !control.stopping() => {
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
                tracing::info!("the topic {} has {} partitions now, {} before", job.topic, now.len(), partitions.len());
                partitions = now;
            }
            Ended::Overtaken(partition) => warn_of_another_writer(job, &told, partition),
        }
    };
    Ok(control.progress.summary(gaps))
}

enum Ended {
    Done(Vec<Gap>),
    /// Accepted gaps: a new session continues after them.
    Skipping(Vec<Gap>),
    /// The topic now has these partitions: a new session reads them all.
    Grown(Vec<i32>),
    Overtaken(i32),
    /// The reason why all unwritten records are read again.
    Again(String),
}

/// A message from the other threads to the supervisor.
enum Report {
    Overtaken(i32),
    Failed(Error),
    Grown(Vec<i32>),
    Again(String),
    /// The broker does not hold the next offset of this partition.
    OutOfRange(i32),
}

/// State shared by all sessions of a run.
#[derive(Clone, Copy)]
struct Run<'s> {
    job: &'s Job,
    control: &'s Control,
    /// Causes that were warned of.
    told: &'s WarnOnce,
    /// Offsets of the embedded broker.
    own: &'s EmbeddedOffsets,
}

/// State shared by all threads of a session.
struct Shared<'s> {
    job: &'s Job,
    control: &'s Control,
    told: &'s WarnOnce,
    own: &'s EmbeddedOffsets,
    consumer: &'s Consumer,
    /// Set when this session's unwritten records must be dropped.
    abandon: AtomicBool,
    /// Set on each sign of life of the broker.
    heard: AtomicBool,
    identity: Identity,
    workers: AtomicUsize,
    reports: Sender<Report>,
}

impl Shared<'_> {
    fn report(&self, report: Report) {
        // Without a receiver, the session is over.
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
    run: Run<'_>,
    consumer: &Consumer,
    partitions: &[i32],
    starts: &[Start],
    begun: &mut bool,
) -> Result<Ended, Error> {
    let Run { job, control, told, own } = run;
    let (reports, reported) = channel();
    let (abandon, heard, workers) = (AtomicBool::new(false), AtomicBool::new(true), AtomicUsize::new(0));
    let identity = Identity::default();
    let shared = Shared { job, control, told, own, consumer, abandon, heard, identity, workers, reports };
    let ended = thread::scope(|scope| {
        let (_until_here, over) = channel();
        scope.spawn(|| upkeep::run(&shared, partitions, over));
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
