//! Where a group reads on, and whether the topic is still the one that it has read.
//!
//! The id of the input topic is committed beside each position. A topic that was deleted and created again has another id, and its
//! offsets begin anew.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tercile_kafka::broker::{Asker, Bound, Cluster, Consumer, Error, Gap, NotNow, Resolve, Start};
use tercile_kafka::ingest::WarnOnce;

use super::{Control, Job};

/// Maximum time to wait for the transaction of a worker that was killed, beyond which the group is joined again.
const UNSTABLE: Duration = Duration::from_secs(60);
/// Interval and timeout of the check of the topic's id, and the pause after a request without an answer.
const IDENTITY: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_secs(5);

/// State of all sessions.
pub(super) struct Shared {
    warned: WarnOnce,
    /// With `--until-end`: the ends of the partitions at the start.
    pub ends: Option<BTreeMap<i32, i64>>,
    /// The first offsets after accepted gaps.
    skips: Mutex<BTreeMap<i32, i64>>,
    /// The permanent error of the callback that finds positions.
    error: Arc<Mutex<Option<Error>>>,
    stop: Arc<AtomicBool>,
}

impl Shared {
    pub fn new(job: &Job, control: &Control) -> Result<Self, Error> {
        let partitions: Vec<i32> = (0..job.input.partitions).collect();
        let ends = || job.cluster.offsets(&job.input.name, &partitions, Bound::Latest);
        let ends = job.until_end.then(ends).transpose()?;
        let stop = Arc::clone(&control.stop);
        Ok(Self { warned: WarnOnce::default(), ends, skips: Mutex::default(), error: Arc::default(), stop })
    }

    /// Warns once per cause in ten minutes.
    pub fn warn(&self, cause: &str, message: &str) {
        if self.warned.is_new(cause) {
            tracing::warn!("{message}");
        }
    }

    /// The error that [`resolve`] has found.
    pub fn failed(&self, why: String) -> anyhow::Error {
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        error.map_or_else(|| anyhow::Error::msg(why), anyhow::Error::new)
    }

    /// The error for a partition whose next record is not there: the topic is another one, or records are gone. After an accepted gap,
    /// an error that passes: reading goes on behind it.
    pub fn out_of_range(&self, job: &Job, consumer: &Consumer, partition: i32, position: i64) -> anyhow::Error {
        let found = job.cluster.topic(&job.input.name).and_then(|topic| {
            same_topic(job, &topic.id)?;
            consumer.gap(partition, position)
        });
        match found {
            Err(error) => error.into(),
            Ok(Some(gap)) if gap.found < gap.expected => other_topic(job, &ends_before(partition, position)).into(),
            Ok(Some(gap)) if job.accept_gap => {
                tracing::warn!("{gap}; going on after them, as --accept-gap says");
                self.skips.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, gap.found);
                passing(job, &gap)
            }
            Ok(Some(gap)) => {
                anyhow::Error::new(Error::Gap(gap)).context("records are missing; --accept-gap goes on after them")
            }
            Ok(None) => Error::Leaderless {
                topic: job.input.name.clone(),
                partition,
                more: 0,
                why: "its records were out of reach for a moment".to_owned(),
            }
            .into(),
        }
    }
}

fn passing(job: &Job, gap: &Gap) -> anyhow::Error {
    let why = format!("its records begin at {}", gap.found);
    Error::Leaderless { topic: job.input.name.clone(), partition: gap.partition, more: 0, why }.into()
}

fn ends_before(partition: i32, position: i64) -> String {
    format!("partition {partition} ends before offset {position}, which was enriched")
}

fn other_topic(job: &Job, why: &str) -> Error {
    Error::OtherTopic {
        topic: job.input.name.clone(),
        servers: job.cluster.servers.clone(),
        group: job.group.name.clone(),
        why: why.to_owned(),
    }
}

/// Checks that the topic has the id that it had at the start.
fn same_topic(job: &Job, id: &str) -> Result<(), Error> {
    if id == job.input.id { Ok(()) } else { Err(other_topic(job, &recreated(&job.input.id, id))) }
}

fn recreated(before: &str, now: &str) -> String {
    format!("it had the id {before}, and has {now}")
}

/// The callback that finds positions of partitions that the group assigns.
pub(super) fn resolve(job: &Job, shared: &Shared) -> Resolve {
    let (cluster, from) = (job.cluster.clone(), job.from);
    let group = Reader { group: job.group.name.clone(), topic: job.input.name.clone(), id: job.input.id.clone() };
    let skips = shared.skips.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (failed, stop) = (Arc::clone(&shared.error), Arc::clone(&shared.stop));
    Box::new(move |partitions| {
        starts((&cluster, &group), partitions, from, &skips, &stop).map_err(|error| {
            let not_now = NotNow { passes: error.passes(), why: error.to_string() };
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            not_now
        })
    })
}

/// A group, and the topic that it reads.
struct Reader {
    group: String,
    topic: String,
    id: String,
}

/// `next` of a start is the committed position, or -1 if there is none that reading begins at.
fn starts(
    (cluster, of): (&Cluster, &Reader),
    partitions: &[i32],
    from: Bound,
    skips: &BTreeMap<i32, i64>,
    stop: &AtomicBool,
) -> Result<Vec<Start>, Error> {
    let Reader { group, topic, id } = of;
    let other = |why: String| Error::OtherTopic {
        topic: topic.clone(),
        servers: cluster.servers.clone(),
        group: group.clone(),
        why,
    };
    let began = Instant::now();
    let committed = loop {
        match cluster.committed(group, topic, partitions) {
            // A worker was killed during a transaction. It is aborted when its successor begins, or after its timeout.
            Err(error) if error.is_unstable() && began.elapsed() < UNSTABLE && !stop.load(Ordering::Relaxed) => {
                thread::sleep(Duration::from_millis(100));
            }
            answer => break answer?,
        }
    };
    let new: Vec<i32> = partitions.iter().copied().filter(|partition| !committed.contains_key(partition)).collect();
    let begins = if new.is_empty() { BTreeMap::new() } else { cluster.offsets(topic, &new, from)? };
    let ends = cluster.offsets(topic, partitions, Bound::Latest)?;
    let mut starts = Vec::with_capacity(partitions.len());
    for &partition in partitions {
        let (next, mut offset) = match committed.get(&partition) {
            Some(known) if !known.note.is_empty() && known.note != *id => {
                return Err(other(recreated(&known.note, id)));
            }
            Some(known) if ends.get(&partition).is_some_and(|end| *end < known.next) => {
                return Err(other(ends_before(partition, known.next)));
            }
            Some(known) => (known.next, known.next),
            None => (-1, begins.get(&partition).copied().unwrap_or(0)),
        };
        if let Some(&after) = skips.get(&partition) {
            offset = offset.max(after);
        }
        starts.push(Start { partition, next, offset, base: 0 });
    }
    Ok(starts)
}

/// Checks the topic's id at an interval, because librdkafka goes on in a topic that was created again.
#[derive(Default)]
pub(super) struct Identity {
    asker: Option<Asker>,
    next: Option<Instant>,
}

impl Identity {
    /// # Errors
    /// If the topic has another id. A broker that does not answer, or has no such topic at present, is no error.
    pub fn check(&mut self, job: &Job) -> Result<(), Error> {
        if job.input.embedded || self.next.is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        let asker = match &self.asker {
            Some(asker) => asker,
            None => self.asker.insert(job.cluster.within(IDENTITY).asker()?),
        };
        let (answer, pause) = match asker.describe(&job.input.name) {
            Ok(Some(topic)) => (same_topic(job, &topic.id), IDENTITY),
            Ok(None) => (Ok(()), IDENTITY),
            Err(error) => {
                tracing::debug!(%error, "the topic's id is not known");
                (Ok(()), REST)
            }
        };
        self.next = Some(Instant::now() + pause);
        answer
    }
}
