//! Checks of an ingest and of the store, at intervals: gaps, lag, unreadable records, a store that cannot be read.
//!
//! Input: the counters of an ingest, and the store. Output: episodes of [`Notifier`]. What is open in the store when the process
//! starts is continued.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tercile_kafka::ingest::{self, Control};
use tercile_store::Changed;

use super::{Event, Kind, Notifier};

/// Interval of the checks.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// How long a lag lasts before it is told, and over which unreadable records are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Percentage of unreadable records, of those stored within [`WINDOW`], from which they are told. It ends below half of it.
const UNREADABLE_PERCENT: u64 = 1;
/// Interval of reading a store that has not changed.
const STORE: Duration = Duration::from_secs(60);

/// An ingest to check.
pub struct Ingest {
    pub control: Arc<Control>,
    /// Records behind the topic from which a lag is told; `None`: never. It ends below half of them.
    pub lag_limit: Option<u64>,
}

/// The checks of a process.
pub struct Watch {
    notifier: Notifier,
    ingest: Option<Ingest>,
    lag: Lag,
    unreadable: Unreadable,
    /// The first offset after each gap that was told.
    gaps: Option<BTreeMap<i32, i64>>,
    store: StoreCheck,
    /// What each condition was at the last check.
    last: BTreeMap<&'static str, bool>,
}

#[derive(Default)]
struct StoreCheck {
    stamp: Option<Vec<Changed>>,
    checked: Option<Instant>,
}

impl Watch {
    pub fn new(notifier: Notifier, ingest: Option<Ingest>) -> Self {
        let (lag, unreadable) = (Lag::default(), Unreadable::default());
        Self { notifier, ingest, lag, unreadable, gaps: None, store: StoreCheck::default(), last: BTreeMap::new() }
    }

    /// Checks everything. Blocks while the store is read.
    pub fn look(&mut self, now: Instant) {
        self.look_at_store(now);
        let Some(Ingest { control, lag_limit }) = &self.ingest else { return };
        let (progress, lag_limit) = (Arc::clone(control), *lag_limit);
        let progress = &progress.progress;
        self.look_at_gaps(progress);
        if let Some(limit) = lag_limit {
            let records = progress.lags().values().map(|lag| lag.max(&0).unsigned_abs()).sum();
            let begun = (self.lag.observe(now, records, limit)).then(|| Event::lag(records, limit));
            let ended = (format!("the ingest is {records} records behind its topic"), json!({ "records": records }));
            self.episode(Kind::Lag, begun, ended);
        }
        let (unreadable, stored) =
            (progress.unreadable.load(Ordering::Relaxed), progress.stored.load(Ordering::Relaxed));
        let Counted { unreadable, stored, firing } = self.unreadable.observe(now, unreadable, stored);
        let begun = firing.then(|| Event::unreadable(unreadable, stored));
        let words = format!("{unreadable} of the last {stored} records cannot be read");
        self.episode(Kind::Unreadable, begun, (words, json!({ "unreadable": unreadable, "stored": stored })));
    }

    /// Tells that the ingest ended with an error, if it is one of the store.
    pub fn failed(&mut self, error: &anyhow::Error) {
        if let Some(ingest::Error::Store(error)) = error.downcast_ref() {
            self.notifier.raise(Event::store_error(&error.to_string()));
        }
    }

    /// Tells a begin at each check, which has no effect if it is known, and an end if it was another at the last check.
    fn episode(&mut self, kind: Kind, begun: Option<Event>, (words, details): (String, serde_json::Value)) {
        let (key, firing) = (kind.name(), begun.is_some());
        match begun {
            Some(event) => self.notifier.raise(event),
            None if self.last.get(key) != Some(&false) => self.notifier.resolve(key, &words, &details),
            None => {}
        }
        self.last.insert(key, firing);
    }

    fn look_at_gaps(&mut self, progress: &ingest::Progress) {
        let found = |event: Event| {
            let number = |name: &str| event.details.get(name)?.as_i64();
            Some((i32::try_from(number("partition")?).ok()?, number("found")?))
        };
        let notifier = &self.notifier;
        let open = || notifier.open(Kind::Gap).into_iter().filter_map(found).collect();
        let gaps = self.gaps.get_or_insert_with(open);
        let now = progress.gaps();
        let positions = progress.positions();
        for gap in &now {
            notifier.raise(Event::gap(gap));
            gaps.insert(gap.partition, gap.found);
        }
        // After a start, a partition with a gap has no position behind it until the gap was accepted.
        gaps.retain(|partition, found| {
            let passed = positions.get(partition).filter(|position| *position >= found);
            let Some(position) = passed.filter(|_| now.iter().all(|gap| gap.partition != *partition)) else {
                return true;
            };
            let words = format!("partition {partition} is read again, after the gap, at offset {position}");
            let details = json!({ "partition": partition, "position": position });
            notifier.resolve(&format!("{}-{partition}", Kind::Gap.name()), &words, &details);
            false
        });
    }

    /// Reads the list of files if it has changed, and from time to time.
    fn look_at_store(&mut self, now: Instant) {
        let store = self.notifier.store().clone();
        let stamp = store.changed();
        let due = self.store.checked.is_none_or(|checked| now.duration_since(checked) >= STORE);
        let read = match stamp {
            Ok(stamp) if !due && self.store.stamp.as_ref() == Some(&stamp) => return,
            Ok(stamp) => store.snapshot().map(|_| stamp),
            Err(error) => Err(error),
        };
        self.store.checked = Some(now);
        let begun = read.as_ref().err().map(|error| Event::store_error(&error.to_string()));
        // Read again at the next check while it fails.
        self.store.stamp = read.ok();
        self.episode(Kind::StoreError, begun, ("the store can be read".to_owned(), json!({})));
    }
}

/// Whether a lag has lasted.
#[derive(Default)]
struct Lag {
    since: Option<Instant>,
    firing: bool,
}

impl Lag {
    fn observe(&mut self, now: Instant, records: u64, limit: u64) -> bool {
        if records >= limit {
            let since = *self.since.get_or_insert(now);
            self.firing |= now.duration_since(since) >= WINDOW;
        } else {
            self.since = None;
            self.firing &= records >= limit.div_ceil(2);
        }
        self.firing
    }
}

/// Whether many of the records that were stored within a window are unreadable.
#[derive(Default)]
struct Unreadable {
    /// Unreadable and stored records at each check.
    seen: VecDeque<(Instant, u64, u64)>,
    firing: bool,
}

struct Counted {
    unreadable: u64,
    stored: u64,
    firing: bool,
}

impl Unreadable {
    fn observe(&mut self, now: Instant, unreadable: u64, stored: u64) -> Counted {
        // The counters begin with the process.
        if self.seen.is_empty() {
            self.seen.push_back((now, 0, 0));
        }
        self.seen.push_back((now, unreadable, stored));
        while self.seen.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        let (before, stored_before) = self.seen.front().map_or((0, 0), |&(_, unreadable, stored)| (unreadable, stored));
        let (unreadable, stored) = (unreadable - before, stored - stored_before);
        let limit = if self.firing { 1 } else { 2 };
        self.firing = unreadable > 0 && unreadable * 200 >= UNREADABLE_PERCENT * limit * stored;
        Counted { unreadable, stored, firing: self.firing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_told_when_it_lasts_and_ends_below_half() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let mut at = |seconds, records| lag.observe(start + Duration::from_secs(seconds), records, 1_000);
        assert!(!at(0, 5_000) && !at(55, 5_000));
        assert!(!at(58, 900), "shorter than a minute");
        assert!(!at(60, 1_000) && !at(115, 1_000) && at(120, 1_000));
        assert!(at(125, 700) && !at(130, 499) && !at(135, 700));
    }

    #[test]
    fn unreadable_records_are_counted_over_a_minute() {
        let (mut rule, start) = (Unreadable::default(), Instant::now());
        let mut at =
            |seconds, unreadable, stored| rule.observe(start + Duration::from_secs(seconds), unreadable, stored).firing;
        assert!(!at(0, 0, 0) && !at(5, 9, 1_000), "0.9 %");
        assert!(at(10, 30, 2_000));
        assert!(at(20, 31, 5_000), "0.6 %");
        assert!(!at(30, 31, 10_000), "0.3 %");
        assert!(!at(100, 31, 10_000) && at(110, 32, 10_001), "a single record is enough where there are few");
        assert!(!at(171, 32, 10_001));
    }
}
