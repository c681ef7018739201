//! The first records of a topic, as they are.

use std::time::{Duration, Instant};

use tercile_kafka::broker::{Bound, Cluster, Consumer, Event, Item, Reading, Start, Topic};

use super::count;

/// Limit of the consumer queue in bytes.
const QUEUE_BYTES: usize = 1 << 22;

/// Reads records from the earliest offset of each partition on, until there are `most` of them or each partition has ended. A broker
/// that falls silent is a warning if there are some.
///
/// # Errors
/// If the broker refuses, or gives no record in time.
pub fn read(cluster: &Cluster, topic: &Topic, most: usize, see: &mut dyn FnMut(&[u8])) -> anyhow::Result<usize> {
    let lows = cluster.offsets(&topic.name, &topic.numbers, Bound::Earliest)?;
    let start = |(partition, offset)| Start { partition, next: offset, offset, base: 0 };
    let starts: Vec<Start> = lows.into_iter().map(start).collect();
    let reading = Reading { embedded: false, queue_bytes: QUEUE_BYTES, refresh: Duration::from_secs(300) };
    let consumer = Consumer::assign(cluster, &topic.name, &starts, reading)?;
    let queues: Result<Vec<_>, _> = starts.iter().map(|start| consumer.queue(*start)).collect();
    let queues = queues?;
    let mut records = 0;
    let (mut ended, mut heard) = (vec![false; queues.len()], Instant::now());
    while records < most && ended.contains(&false) && heard.elapsed() < cluster.timeout {
        match consumer.poll(Duration::ZERO) {
            Some(Event::Fatal(why)) => anyhow::bail!("cannot read the topic {}: {why}", topic.name),
            Some(Event::Refused(error)) => return Err(error.into()),
            _ => {}
        }
        for (queue, ended) in queues.iter().zip(&mut ended) {
            let mut items = Vec::new();
            queue.take(&mut items, Duration::from_millis(20));
            for item in items {
                match item {
                    Item::Message(message) => {
                        see(message.record().payload.unwrap_or_default());
                        records += 1;
                    }
                    Item::End(_) => *ended = true,
                    Item::Refused(code) => return Err(consumer.refused(code).into()),
                    _ => continue,
                }
                heard = Instant::now();
            }
        }
    }
    if records < most && ended.contains(&false) {
        let why = consumer.failure().map_or_else(String::new, |why| format!(": {why}"));
        let silent = format!("{} gave no more of the topic {} in time{why}", cluster.servers, topic.name);
        if records == 0 {
            anyhow::bail!("{silent}");
        }
        tracing::warn!("{silent}; going on with {}", count(records as u64, "record"));
    }
    Ok(records)
}
