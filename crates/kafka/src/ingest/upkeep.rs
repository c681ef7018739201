//! Work at an interval beside the ingest: compaction, and checks of the topic.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tercile_store::{self as store, Rolled, Store};

use super::{Job, Report, Shared};
use crate::broker::{Bound, Topics};

/// Timeout of upkeep's requests, which must not delay a shutdown.
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs at an interval until the session ends: compacts small files of the assigned partitions, and checks the topic's identity
/// and number of partitions.
pub(super) fn run(shared: &Shared<'_>, partitions: &[i32], over: Receiver<()>) {
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
            // The supervisor reports an unreachable broker.
            Err(_) => continue,
        };
        gone = false;
        match job.store.claim(&topic.name, &topic.id, topic.partitions) {
            // A group notices new partitions by itself.
            Ok(_) if topic.numbers.len() > partitions.len() && job.group.is_none() && !job.until_end => {
                shared.report(Report::Grown(topic.numbers));
            }
            Ok(_) => {}
            Err(error @ store::Error::OtherTopic { .. }) => shared.abandon(Report::Failed(error.into())),
            Err(error) => tracing::warn!("{error}"),
        }
        if let Some(error) = some_ahead_of_topic(job, &control.progress.positions()) {
            shared.abandon(Report::Failed(error.into()));
        }
    }
}

/// The error for a topic that ends before the read position. Uses a new client: a consumer that has read a topic keeps fetching
/// silently after the broker was restored to an older state.
fn some_ahead_of_topic(job: &Job, positions: &BTreeMap<i32, i64>) -> Option<store::Error> {
    let partitions: Vec<i32> = positions.keys().copied().collect();
    if partitions.is_empty() {
        return None;
    }
    // The supervisor reports an unreachable broker.
    let ends = job.cluster.within(UPKEEP_TIMEOUT).offsets(&job.topic, &partitions, Bound::Latest).ok()?;
    let ahead = |partition: i32, next: i64| ends.get(&partition).copied().filter(|end| *end < next);
    let (partition, next, end) = positions.iter().find_map(|(&p, &next)| Some((p, next, ahead(p, next)?)))?;
    Some(ahead_of_topic(&job.store, &job.topic, (partition, next, end)))
}

/// The error for a partition that ends at `end` in its topic, and at `next` in the store.
pub fn ahead_of_topic(store: &Store, topic: &str, (number, next, end): (i32, i64, i64)) -> store::Error {
    let topics = Topics::new(topic);
    let (topic, partition) = topics.place(number);
    store::Error::AheadOfTopic { store: store.root().to_owned(), topic: topic.to_owned(), partition, next, end }
}
