//! Where reading begins: at the end of each partition's log, or where `--from` says.

use std::collections::BTreeMap;

use tercile_store::Store;

use super::embedded_offsets::EmbeddedOffsets;
use super::{Error, Job, Skips};
use crate::broker::{self, Bound, Cluster, Consumer, NotNow, Reading, Start};

/// Maximum bytes of fetched records in a partition's queue.
const QUEUE_BYTES: usize = 16 * 1024 * 1024;

/// Begins the logs of a store without records at this position. Logs that have begun stay as they are: of several workers the first
/// decides.
pub(super) fn begin(job: &Job, from: Bound) -> Result<(), Error> {
    let Job { store, cluster, topic, partitions, .. } = job;
    // The last partition first. Where it has begun, a lower one without a start was left by a worker that began at the same time
    // or was interrupted. A higher one is new, and its records are wanted from the first.
    let (mut missing, mut stored) = (Vec::new(), false);
    for &partition in partitions.iter().rev() {
        let log = store.log(topic, partition);
        match log.first()? {
            None => missing.push(partition),
            // A damaged file has records, too, and is reported by the reader.
            Some(first) => stored |= !matches!(log.next(), Ok(Some(next)) if next == first),
        }
    }
    let highest = partitions.iter().rev().copied().find(|partition| !missing.contains(partition));
    if let Some(highest) = highest {
        missing.retain(|partition| !stored && *partition < highest);
        if missing.is_empty() {
            let root = store.root().display();
            tracing::info!("the store {root} has begun: reading goes on where it ends, and --from is not used");
        }
    }
    let offsets = if missing.is_empty() { BTreeMap::new() } else { cluster.offsets(topic, &missing, from)? };
    for partition in missing {
        if let Some(&offset) = offsets.get(&partition) {
            store.log(topic, partition).begin(offset)?;
        }
    }
    Ok(())
}

/// Without a group, reading starts on all partitions at once; a group member waits for its assignment.
pub(super) fn connect(
    job: &Job,
    all: &[i32],
    skips: &Skips,
    own: &EmbeddedOffsets,
) -> Result<(Consumer, Vec<Start>), Error> {
    let Job { cluster, topic, store, embedded, .. } = job;
    let share = job.memory / 4 / all.len().max(1);
    let reading = Reading { embedded: *embedded, queue_bytes: share.min(QUEUE_BYTES), refresh: job.upkeep };
    let Some(group) = &job.group else {
        let starts = recover(store, cluster, topic, all, embedded.then_some(own), skips)?;
        return Ok((Consumer::assign(cluster, topic, &starts, reading)?, starts));
    };
    // A member that cannot reach the brokers would wait for its group without a message.
    match cluster.offsets(topic, all, Bound::Latest) {
        Err(error @ broker::Error::Leaderless { .. }) => tracing::warn!("{error}; trying again"),
        other => drop(other?),
    }
    let (store, asked, name, skips) = (store.clone(), cluster.clone(), topic.clone(), skips.clone());
    let resolve = move |partitions: &[i32]| {
        recover(&store, &asked, &name, partitions, None, &skips).map_err(|error| NotNow {
            passes: match &error {
                Error::Broker(error) => error.passes(),
                Error::Store(error) => error.may_pass(),
                _ => false,
            },
            why: error.to_string(),
        })
    };
    Ok((Consumer::join(cluster, topic, group, reading, Box::new(resolve))?, Vec::new()))
}

/// The start positions: each partition continues at the end of its log, and a new log begins at the topic's earliest offset.
pub(super) fn recover(
    store: &Store,
    cluster: &Cluster,
    topic: &str,
    partitions: &[i32],
    embedded: Option<&EmbeddedOffsets>,
    skips: &Skips,
) -> Result<Vec<Start>, Error> {
    let mut ends = BTreeMap::new();
    for &partition in partitions {
        let log = store.log(topic, partition);
        log.set_damaged_aside()?;
        ends.insert(partition, log.next()?);
    }
    let new: Vec<i32> = ends.iter().filter(|(_, next)| next.is_none()).map(|(&partition, _)| partition).collect();
    let lows = if embedded.is_some() || new.is_empty() {
        BTreeMap::new()
    } else {
        cluster.offsets(topic, &new, Bound::Earliest)?
    };
    for partition in new {
        let log = store.log(topic, partition);
        log.begin(lows.get(&partition).copied().unwrap_or(0))?;
        ends.insert(partition, log.next()?);
    }
    let start = |(partition, next): (i32, Option<i64>)| {
        let next = next.unwrap_or(0);
        let offset = skips.get(&partition).map_or(next, |after| next.max(*after));
        Start { partition, next, offset, base: embedded.map_or(0, |own| next - own.stored(partition)) }
    };
    let starts: Vec<Start> = ends.into_iter().map(start).collect();
    for start in &starts {
        store.log(topic, start.partition).settle(start.next)?;
    }
    Ok(starts)
}
