//! The reading thread: opens a lane for each partition, hears what the broker says besides messages, and knows when to
//! stop.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::lane::Lane;
use super::{Ended, Error, Report, Shared};
use crate::broker::{Consumer, Event, Gap, Start};

/// How long a stopping worker may still read what stood in an embedded broker.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often positions and lags are told, and events looked for.
const LOOK: Duration = Duration::from_millis(20);
const TELL: Duration = Duration::from_millis(100);

pub(super) struct Reader<'scope, 'env> {
    shared: &'env Shared<'env>,
    scope: &'scope Scope<'scope, 'env>,
    lanes: BTreeMap<i32, Arc<Lane<'env>>>,
    halted: BTreeMap<i32, Gap>,
}

impl<'scope, 'env> Reader<'scope, 'env> {
    pub(super) fn new(shared: &'env Shared<'env>, scope: &'scope Scope<'scope, 'env>) -> Self {
        Self { shared, scope, lanes: BTreeMap::new(), halted: BTreeMap::new() }
    }

    /// Reads these partitions and whatever a group gives us, until there is a reason to end. The lanes are told to write
    /// or to drop what they hold, as that reason demands.
    pub(super) fn run(mut self, starts: &[Start], reported: &Receiver<Report>) -> Result<Ended, Error> {
        let ended = self.read(starts, reported);
        if !matches!(ended, Ok(Ended::Done(_) | Ended::Skipping(_) | Ended::Grown(_))) {
            self.shared.abandon.store(true, Ordering::SeqCst);
        }
        self.lanes.values().for_each(|lane| lane.finish());
        ended
    }

    fn read(&mut self, starts: &[Start], reported: &Receiver<Report>) -> Result<Ended, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let caught_up = &control.progress.caught_up;
        let ends_at_start = ends(consumer, starts.iter().map(|start| start.partition))?;
        let mut targets = job.until_end.then(|| ends_at_start.clone());
        self.take(starts, targets.as_ref())?;
        let mut deadline = None;
        let mut down = false;
        let mut told = Instant::now();
        self.tell();
        loop {
            while let Ok(report) = reported.try_recv() {
                match report {
                    Report::Overtaken(partition) => return Ok(Ended::Overtaken(partition)),
                    Report::Failed(error) => return Err(error),
                    Report::Grown(partitions) => return Ok(Ended::Grown(partitions)),
                    Report::OutOfRange => {
                        let accepted = self.gaps()?;
                        if !accepted.is_empty() {
                            return Ok(Ended::Skipping(accepted));
                        }
                    }
                }
            }
            for done in control.asked_to_flush() {
                self.lanes.values().for_each(|lane| lane.flush(done.clone()));
            }
            if control.stopping() && deadline.is_none() {
                if !job.embedded {
                    break;
                }
                // What an embedded broker still holds dies with it, so it is read first.
                deadline = Some(Instant::now() + DRAIN_LIMIT);
                targets = Some(ends(consumer, self.lanes.keys().copied())?);
            }
            if !caught_up.load(Ordering::Relaxed) && self.reached(&ends_at_start) {
                self.tell();
                caught_up.store(true, Ordering::SeqCst);
            }
            let all_halted = !self.lanes.is_empty() && self.halted.len() == self.lanes.len();
            if targets.as_ref().is_some_and(|targets| self.reached(targets))
                || deadline.is_some_and(|deadline| Instant::now() > deadline)
                || (all_halted && job.group.is_none())
            {
                break;
            }
            match consumer.poll(LOOK) {
                None => {}
                Some(Event::Assigned(starts)) => {
                    let partitions: Vec<i32> = starts.iter().map(|start| start.partition).collect();
                    tracing::info!(?partitions, "reading {} now", partition_list(&partitions));
                    self.take(&starts, None)?;
                }
                Some(Event::Revoked(partitions)) => {
                    tracing::info!(?partitions, "no longer reading {}", partition_list(&partitions));
                    self.give_back(&partitions);
                }
                Some(Event::Down) if down => {}
                Some(Event::Down) => {
                    tracing::warn!("no broker answers at {}; trying again", job.cluster.servers);
                    self.shared.heard.store(false, Ordering::Relaxed);
                    down = true;
                }
                Some(Event::Fatal(why)) => return Err(Error::Fatal(why)),
            }
            if down && self.shared.heard.load(Ordering::Relaxed) {
                tracing::info!("the broker at {} is back", job.cluster.servers);
                down = false;
            }
            if told.elapsed() > TELL {
                self.tell();
                told = Instant::now();
            }
        }
        self.tell();
        Ok(Ended::Done(self.halted.values().cloned().collect()))
    }

    /// Opens a lane for each of these partitions.
    fn take(&mut self, starts: &[Start], ends: Option<&BTreeMap<i32, i64>>) -> Result<(), Error> {
        self.shared.lanes.fetch_add(starts.len(), Ordering::SeqCst);
        for &start in starts {
            let end = ends.and_then(|ends| ends.get(&start.partition).copied());
            let lane = Lane::open(self.scope, self.shared, start, end)?;
            self.lanes.insert(start.partition, lane);
            self.halted.remove(&start.partition);
        }
        Ok(())
    }

    /// Drops what these partitions' lanes hold: whoever reads them now has it.
    fn give_back(&mut self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(lane) = self.lanes.remove(partition) {
                lane.revoke();
                self.shared.lanes.fetch_sub(1, Ordering::SeqCst);
            }
            self.halted.remove(partition);
        }
    }

    fn positions(&self) -> BTreeMap<i32, i64> {
        self.lanes.iter().map(|(&partition, lane)| (partition, lane.position())).collect()
    }

    fn reached(&self, targets: &BTreeMap<i32, i64>) -> bool {
        targets.iter().all(|(partition, end)| {
            self.lanes.get(partition).is_none_or(|lane| lane.position() >= *end || lane.at_end())
                || self.halted.contains_key(partition)
        })
    }

    /// Finds the partitions whose next record is gone. They halt, but for those whose gap is accepted, which come back.
    fn gaps(&mut self) -> Result<Vec<Gap>, Error> {
        let Shared { job, control, consumer, .. } = *self.shared;
        let mut accepted = Vec::new();
        for gap in consumer.gaps(&self.positions())? {
            let Entry::Vacant(running) = self.halted.entry(gap.partition) else { continue };
            if job.accept_gap && gap.found > gap.expected {
                accepted.push(gap);
            } else {
                tracing::error!("{gap}; this partition halts");
                consumer.pause(gap.partition)?;
                control.progress.halted(gap.clone());
                if let Some(backlog) = &job.backlog {
                    // What the sender still has would wait for a reader that does not come.
                    backlog.close();
                }
                running.insert(gap);
            }
        }
        Ok(accepted)
    }

    /// Lets whoever watches know where we are.
    fn tell(&self) {
        let Shared { control, consumer, .. } = self.shared;
        let positions = self.positions();
        let lags = positions.iter().filter_map(|(&p, &at)| Some((p, consumer.lag(p, at)?))).collect();
        control.progress.stands(positions, lags);
    }
}

/// `partition 3`, `partitions 0, 2`, `no partitions`.
fn partition_list(partitions: &[i32]) -> String {
    let numbers = partitions.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    match partitions.len() {
        0 => "no partitions".to_owned(),
        1 => format!("partition {numbers}"),
        _ => format!("partitions {numbers}"),
    }
}

/// The end of each partition as it is now.
fn ends(consumer: &Consumer, partitions: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, i64>, Error> {
    let mut ends = BTreeMap::new();
    for partition in partitions {
        ends.insert(partition, consumer.watermarks(partition)?.1);
    }
    Ok(ends)
}
