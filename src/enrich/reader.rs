//! The partitions that a worker holds, and batches of their messages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use tercile_kafka::broker::{Consumer, Item, Message, Queue, Start, Trouble};

use super::Job;
use super::positions::Shared;
use super::transaction::Batch;

/// Maximum records and bytes of a batch.
const ROWS: usize = 10_000;
const BYTES: usize = 16 << 20;
/// Maximum time from the first record of a batch to its end.
const AGE: Duration = Duration::from_millis(20);
/// Pause while a batch that is not full waits for more.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) struct Reader<'s> {
    pub job: &'s Job,
    pub shared: &'s Shared,
    pub consumer: &'s Consumer,
    partitions: BTreeMap<i32, Partition<'s>>,
}

struct Partition<'s> {
    queue: Queue<'s>,
    /// The offset after the last record that was read.
    position: i64,
    /// The offset up to which everything is committed; `None` if the group has no position yet.
    committed: Option<i64>,
}

impl<'s> Reader<'s> {
    pub fn new(job: &'s Job, shared: &'s Shared, consumer: &'s Consumer) -> Self {
        Self { job, shared, consumer, partitions: BTreeMap::new() }
    }

    /// Starts to read partitions; `next` of each is the committed position, or negative.
    pub fn add(&mut self, starts: Vec<Start>) -> anyhow::Result<()> {
        for start in starts {
            let committed = (start.next >= 0).then_some(start.next);
            let queue = self.consumer.queue(start)?;
            self.partitions.insert(start.partition, Partition { queue, position: start.offset, committed });
        }
        Ok(())
    }

    pub fn remove(&mut self, numbers: &[i32]) {
        self.partitions.retain(|partition, _| !numbers.contains(partition));
    }

    /// The numbers of the partitions, ascending.
    pub fn held(&self) -> impl Iterator<Item = i32> {
        self.partitions.keys().copied()
    }

    /// The positions that are not committed.
    pub fn moved(&self) -> BTreeMap<i32, i64> {
        let moved = self.partitions.iter().filter(|(_, state)| state.committed != Some(state.position));
        moved.map(|(&partition, state)| (partition, state.position)).collect()
    }

    /// Notes that these positions are committed.
    pub fn committed(&mut self, next: &BTreeMap<i32, i64>) {
        for (partition, next) in next {
            if let Some(state) = self.partitions.get_mut(partition) {
                state.committed = Some(*next);
            }
        }
    }

    /// Whether everything before this offset is committed; `None` if another worker holds the partition.
    pub fn reached(&self, partition: i32, end: i64) -> Option<bool> {
        let state = self.partitions.get(&partition)?;
        Some(state.committed.is_some_and(|committed| committed >= end))
    }

    /// Per partition the number of records that are not committed.
    pub fn lags(&self) -> BTreeMap<i32, i64> {
        let lag = |(&partition, state): (&i32, &Partition<'_>)| {
            Some((partition, self.consumer.lag(partition, state.committed.unwrap_or(state.position))?))
        };
        self.partitions.iter().filter_map(lag).collect()
    }

    /// The next batch, scored; `None` if there are no messages, or models are missing.
    pub fn batch(&mut self) -> anyhow::Result<Option<Batch<'s>>> {
        let scorers = self.job.models.now()?;
        if !self.job.no_wait && !scorers.missing().is_empty() {
            return Ok(None);
        }
        let messages = self.collect()?;
        if messages.is_empty() { Ok(None) } else { Batch::new(messages, scorers).map(Some) }
    }

    /// Takes messages until a batch is full, or for a short time after the first.
    fn collect(&mut self) -> anyhow::Result<Vec<(i32, Message<'s>)>> {
        let (mut messages, mut items, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut first: Option<Instant> = None;
        loop {
            let before = messages.len();
            for (&partition, state) in &mut self.partitions {
                state.queue.take(&mut items, Duration::ZERO);
                for item in items.drain(..) {
                    match item {
                        // A pause during a read, such as that of a rebalance, delivers the same messages again.
                        Item::Message(message) if message.offset() < state.position => {}
                        Item::Message(message) => {
                            state.position = message.offset() + 1;
                            bytes += message.size();
                            messages.push((partition, message));
                        }
                        Item::End(position) => state.position = state.position.max(position),
                        Item::OutOfRange => {
                            return Err(self.shared.out_of_range(self.job, self.consumer, partition, state.position));
                        }
                        Item::Refused(code) => return Err(self.consumer.refused(code).into()),
                        Item::Trouble(Trouble { cause, message }) => self.shared.warn(&cause, &message),
                        Item::Broken(why) => {
                            bail!("cannot read partition {partition} of {}: {why}", self.job.input.name)
                        }
                    }
                }
            }
            if first.is_none() && !messages.is_empty() {
                first = Some(Instant::now());
            }
            let full = messages.len() >= ROWS || bytes >= BYTES;
            if full || first.is_none_or(|first| first.elapsed() >= AGE) {
                return Ok(messages);
            }
            if messages.len() == before {
                std::thread::sleep(PAUSE);
            }
        }
    }
}
