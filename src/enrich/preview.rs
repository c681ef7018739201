//! A preview: the first records as they would be sent, without a group, and without sending or committing anything.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tercile_kafka::broker::{Bound, Cluster, Consumer, Event, Item, Reading, Start, Topic};

use super::models::ModelSource;
use super::record::Field;
use super::transaction::Batch;

/// Maximum bytes of fetched records in a partition's queue.
const QUEUE_BYTES: usize = 1 << 20;
/// Maximum number of messages that are scored at once.
const ROWS: usize = 1000;
/// Maximum time of a wait.
const LOOK: Duration = Duration::from_millis(10);

/// The records to show, and how they are enriched.
pub struct Preview {
    pub cluster: Cluster,
    pub input: Topic,
    pub from: Bound,
    /// Number of records.
    pub limit: u64,
    pub field: Field,
    pub models: ModelSource,
}

impl Preview {
    /// Writes up to `limit` values, each followed by a line end. Records that are not enriched are counted, with the first reason.
    ///
    /// # Errors
    /// If the topic cannot be read, or the values cannot be written.
    pub fn run(&self, out: &mut impl Write, stop: &std::sync::atomic::AtomicBool) -> anyhow::Result<()> {
        let name = &self.input.name;
        let partitions: Vec<i32> = (0..self.input.partitions).collect();
        let begins = self.cluster.offsets(name, &partitions, self.from)?;
        let ends = self.cluster.offsets(name, &partitions, Bound::Latest)?;
        let start = |(&partition, &offset): (&i32, &i64)| Start { partition, next: offset, offset, base: 0 };
        let starts: Vec<Start> = begins.iter().map(start).collect();
        let refresh = Duration::from_secs(300);
        let reading = Reading { embedded: self.input.embedded, queue_bytes: QUEUE_BYTES, refresh };
        let consumer = Consumer::assign(&self.cluster, name, &starts, reading)?;
        let scorers = self.models.now()?;
        for missing in scorers.missing() {
            tracing::warn!("no model: {missing}");
        }
        let mut queues = BTreeMap::new();
        for start in starts {
            queues.insert(start.partition, (consumer.queue(start)?, start.offset));
        }
        let (mut shown, mut left_out, mut first, mut items, mut value) = (0, 0_u64, None, Vec::new(), Vec::new());
        let mut heard = Instant::now();
        while shown < self.limit && !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let mut messages = Vec::new();
            for (&partition, (queue, position)) in &mut queues {
                queue.take(&mut items, Duration::ZERO);
                for item in items.drain(..) {
                    heard = Instant::now();
                    match item {
                        Item::Message(message) => {
                            *position = message.offset() + 1;
                            messages.push((partition, message));
                        }
                        Item::End(end) => *position = (*position).max(end),
                        Item::Refused(code) => return Err(consumer.refused(code).into()),
                        Item::OutOfRange => {
                            bail!("partition {partition} of {name} has no offset {position}; try again")
                        }
                        Item::Broken(why) => bail!("cannot read partition {partition} of {name}: {why}"),
                        Item::Trouble(trouble) => tracing::warn!("{}", trouble.message),
                    }
                }
                if messages.len() >= ROWS {
                    break;
                }
            }
            if messages.is_empty() {
                let is_read = |(partition, (_, position)): (&i32, &(_, i64))| {
                    ends.get(partition).is_none_or(|end| position >= end)
                };
                if queues.iter().all(is_read) {
                    break;
                }
                if heard.elapsed() > self.cluster.timeout {
                    bail!("no answer from {} for {} s", self.cluster.servers, self.cluster.timeout.as_secs_f64());
                }
                match consumer.poll(LOOK) {
                    Some(Event::Refused(error)) => return Err(error.into()),
                    Some(Event::Fatal(why)) => bail!("the Kafka client gave up: {why}"),
                    _ => {}
                }
                continue;
            }
            let batch = Batch::new(messages, Arc::clone(&scorers))?;
            for index in 0..batch.messages.len() {
                value.clear();
                match batch.value(&self.field, index, &mut value) {
                    Ok(()) if shown < self.limit => {
                        value.push(b'\n');
                        out.write_all(&value)?;
                        shown += 1;
                    }
                    Ok(()) => {}
                    Err(_) if shown >= self.limit => {}
                    Err(why) => {
                        left_out += 1;
                        let reason = why.unwrap_or_else(|| "it has no value".to_owned());
                        let (partition, message) = &batch.messages[index];
                        first.get_or_insert_with(|| format!("{name}/{partition}/{}: {reason}", message.offset()));
                    }
                }
            }
            out.flush()?;
        }
        if let Some(first) = first {
            tracing::warn!("{} cannot be enriched, the first is {first}", crate::enrich::records(left_out));
        }
        Ok(())
    }
}
