//! Control and progress counters of a running ingest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::broker::Gap;

/// Handle to watch and control a running ingest.
#[derive(Default)]
pub struct Control {
    /// Counters and positions.
    pub progress: Progress,
    stop: AtomicBool,
    reading: AtomicBool,
    flushes: Mutex<Vec<Sender<FlushEvent>>>,
}

/// A message to the requester of a flush.
pub(super) enum FlushEvent {
    /// The number of partitions that were asked to flush.
    Asked(usize),
    /// One partition has stored its records.
    Stored,
}

/// A flush in progress.
pub struct Flush(Receiver<FlushEvent>);

impl Flush {
    /// Waits until all records read before the request are stored. Returns `false` if partitions were revoked or are read again
    /// meanwhile.
    pub fn wait(self) -> bool {
        let (mut asked, mut stored) = (None, 0);
        for word in self.0 {
            match word {
                FlushEvent::Asked(partitions) => asked = Some(partitions),
                FlushEvent::Stored => stored += 1,
            }
        }
        asked == Some(stored)
    }
}

impl Control {
    /// Starts a graceful shutdown: records that were read are stored, and an embedded broker is drained first.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Requests that all records read so far are stored now.
    pub fn flush(&self) -> Flush {
        let (done, wait) = channel();
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        Flush(wait)
    }

    /// Whether records may have been read that are not stored yet. While `false`, a stop need not wait for pending broker
    /// requests.
    pub fn is_reading(&self) -> bool {
        self.reading.load(Ordering::SeqCst)
    }

    pub(super) fn set_reading(&self, reading: bool) {
        self.reading.store(reading, Ordering::SeqCst);
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(super) fn asked_to_flush(&self) -> Vec<Sender<FlushEvent>> {
        std::mem::take(&mut *self.flushes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Counters of a running ingest.
#[derive(Default)]
pub struct Progress {
    /// Records received.
    pub received: AtomicU64,
    /// Bytes of their keys and values.
    pub received_bytes: AtomicU64,
    /// Records stored.
    pub stored: AtomicU64,
    /// Stored records that could not be parsed.
    pub unreadable: AtomicU64,
    /// Stored messages without a value.
    pub tombstones: AtomicU64,
    /// Received records that keep Kafka's timestamp because they have no event time.
    pub without_event_time: AtomicU64,
    /// Files published.
    pub files: AtomicU64,
    places: Mutex<Places>,
    /// Whether every partition was read to the end that it had at start, or halted.
    pub caught_up: AtomicBool,
}

#[derive(Default)]
struct Places {
    positions: BTreeMap<i32, i64>,
    lags: BTreeMap<i32, i64>,
    last_file: Option<PathBuf>,
    gaps: Vec<Gap>,
}

impl Progress {
    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Per partition the position after the last record read.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.places().positions.clone()
    }

    /// Per partition the number of records after its position, as of the last fetch.
    pub fn lags(&self) -> BTreeMap<i32, i64> {
        self.places().lags.clone()
    }

    /// The gaps that halted partitions.
    pub fn gaps(&self) -> Vec<Gap> {
        self.places().gaps.clone()
    }

    /// The latest published file.
    pub fn last_file(&self) -> Option<PathBuf> {
        self.places().last_file.clone()
    }

    pub(super) fn stands(&self, positions: BTreeMap<i32, i64>, lags: BTreeMap<i32, i64>) {
        let mut places = self.places();
        places.positions = positions;
        places.lags = lags;
    }

    /// Notes the gap of a partition, instead of the one that it had.
    pub(super) fn halted(&self, gap: Gap) {
        self.resumed(|known| known.partition == gap.partition);
        self.places().gaps.push(gap);
    }

    /// Removes the gaps of partitions that continue or were revoked.
    pub(super) fn resumed(&self, continues: impl Fn(&Gap) -> bool) {
        self.places().gaps.retain(|gap| !continues(gap));
    }

    pub(super) fn wrote(&self, file: &Path) {
        self.places().last_file = Some(file.to_owned());
    }

    /// The final counters of an ingest that ended with these gaps.
    pub fn summary(&self, gaps: Vec<Gap>) -> Summary {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Summary {
            received: count(&self.received),
            stored: count(&self.stored),
            unreadable: count(&self.unreadable),
            tombstones: count(&self.tombstones),
            without_event_time: count(&self.without_event_time),
            files: count(&self.files),
            gaps,
        }
    }
}

/// Result of an ingest.
#[derive(Debug, Default)]
pub struct Summary {
    /// Records received.
    pub received: u64,
    /// Records stored.
    pub stored: u64,
    /// Stored records that could not be parsed.
    pub unreadable: u64,
    /// Stored messages without a value.
    pub tombstones: u64,
    /// Received records that keep Kafka's timestamp because they have no event time.
    pub without_event_time: u64,
    /// Files published.
    pub files: u64,
    /// Gaps that halted partitions.
    pub gaps: Vec<Gap>,
}
