//! The check of an enrichment: whether its group goes on in the topic that it has read.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tercile_kafka::broker::{Bound, Cluster, Gap};
use tercile_store::Store;

use crate::cli::{count, enrich};
use crate::config::{MaybeKafkaArgs, SourceArgs, StoreArgs};

/// Pause before positions are asked for again that a transaction is about to change.
const PAUSE: Duration = Duration::from_millis(50);

/// Checks that the output `to` exists, and that the positions of its group are in the topic of raw records.
///
/// # Errors
/// If the topic is another one than the group has read, ends before a position, or has lost records after it.
pub fn check(kafka: &MaybeKafkaArgs, topic: &SourceArgs, store: &StoreArgs, to: &str) -> anyhow::Result<String> {
    let cluster = kafka.cluster()?.context("--enrich-to is a topic of a Kafka: add --bootstrap-servers")?;
    let input = cluster.topic(&topic.resolve(&cluster, &Store::at(&store.store)?)?)?;
    let group = enrich::group(to);
    cluster.topic(to).context("tercile enrich --to makes its topic")?;
    let committed = committed(&cluster, &group, &input.name, &input.numbers)?;
    let known: Vec<i32> = committed.keys().copied().collect();
    let (lows, ends) = match known.is_empty() {
        true => return Ok(format!("the group {group} has no position: enriching begins at --from")),
        false => (
            cluster.offsets(&input.name, &known, Bound::Earliest)?,
            cluster.offsets(&input.name, &known, Bound::Latest)?,
        ),
    };
    let mut behind = 0;
    for (partition, position) in committed {
        let (name, next) = (&input.name, position.next);
        if !position.note.is_empty() && position.note != input.id {
            bail!(
                "the group {group} has read a topic {name} with the id {}, and it has {} now: it was made anew; tercile enrich --group \
                 NAME begins anew",
                position.note,
                input.id
            );
        }
        if let Some(end) = ends.get(&partition) {
            if *end < next {
                bail!(
                    "the group {group} has read partition {partition} of {name} up to offset {next}, and it ends at {end}; tercile \
                     enrich --group NAME begins anew"
                );
            }
            behind += (end - next).unsigned_abs();
        }
        if let Some(&low) = lows.get(&partition).filter(|low| next < **low) {
            let gap = Gap { topic: name.clone(), partition, expected: next, found: low };
            bail!("{gap}; tercile enrich --accept-gap goes on after them");
        }
    }
    let new = match input.numbers.len() - known.len() {
        0 => String::new(),
        new => format!(", and {} without a position", count(new as u64, "partition")),
    };
    Ok(format!("the group {group} goes on in {}; {} to enrich{new}", input.name, count(behind, "record")))
}

/// The positions of the group. While a worker runs, they are in a transaction most of the time.
fn committed(
    cluster: &Cluster,
    group: &str,
    topic: &str,
    partitions: &[i32],
) -> anyhow::Result<std::collections::BTreeMap<i32, tercile_kafka::broker::Committed>> {
    let began = Instant::now();
    loop {
        match cluster.committed(group, topic, partitions) {
            Err(error) if error.is_unstable() && began.elapsed() < cluster.timeout => thread::sleep(PAUSE),
            answer => return Ok(answer?),
        }
    }
}
