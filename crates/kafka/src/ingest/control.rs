//! What a running ingest shows and what it obeys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::broker::Gap;

/// Shared with whoever watches or steers a running ingest.
#[derive(Default)]
pub struct Control {
    pub progress: Progress,
    stop: AtomicBool,
    reading: AtomicBool,
    flushes: Mutex<Vec<Sender<FlushEvent>>>,
}

/// What is said to whoever waits for a flush.
pub(super) enum FlushEvent {
    /// So many partitions are asked.
    Asked(usize),
    /// One of them is stored.
    Stored,
}

/// A flush on its way.
pub struct Flush(Receiver<FlushEvent>);

impl Flush {
    /// Waits until everything is stored that was read when it was asked for. `false`: partitions changed hands, or are
    /// read again, meanwhile.
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
    /// Ends the ingest: what was read is stored, and of an embedded broker also what it still holds.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Asks for everything read so far to be stored now.
    pub fn flush(&self) -> Flush {
        let (done, wait) = channel();
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        Flush(wait)
    }

    /// Whether records may have been read that are not stored yet. Until then a stop need not wait for whatever broker is asked.
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
    pub received: AtomicU64,
    /// Bytes of keys and values.
    pub received_bytes: AtomicU64,
    pub stored: AtomicU64,
    pub unreadable: AtomicU64,
    pub files: AtomicU64,
    places: Mutex<Places>,
    /// Whether every partition has been read to where it ended at start, or halted.
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

    /// The position after the last record read of each partition.
    pub fn positions(&self) -> BTreeMap<i32, i64> {
        self.places().positions.clone()
    }

    /// Records behind each partition's position, as far as the last fetch told.
    pub fn lags(&self) -> BTreeMap<i32, i64> {
        self.places().lags.clone()
    }

    /// The gaps that halted partitions.
    pub fn gaps(&self) -> Vec<Gap> {
        self.places().gaps.clone()
    }

    /// The file that was published last.
    pub fn last_file(&self) -> Option<PathBuf> {
        self.places().last_file.clone()
    }

    pub(super) fn stands(&self, positions: BTreeMap<i32, i64>, lags: BTreeMap<i32, i64>) {
        let mut places = self.places();
        places.positions = positions;
        places.lags = lags;
    }

    pub(super) fn halted(&self, gap: Gap) {
        self.places().gaps.push(gap);
    }

    pub(super) fn wrote(&self, file: &Path) {
        self.places().last_file = Some(file.to_owned());
    }

    /// How an ingest that ended with these gaps went.
    pub fn summary(&self, gaps: Vec<Gap>) -> Summary {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Summary {
            received: count(&self.received),
            stored: count(&self.stored),
            unreadable: count(&self.unreadable),
            files: count(&self.files),
            gaps,
        }
    }
}

/// How an ingest ended.
#[derive(Debug, Default)]
pub struct Summary {
    pub received: u64,
    pub stored: u64,
    pub unreadable: u64,
    pub files: u64,
    pub gaps: Vec<Gap>,
}
