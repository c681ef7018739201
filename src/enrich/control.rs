//! Control and counters of a running enrichment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{Histogram, HistogramOpts};

/// Upper bounds of the latency histogram, in seconds.
const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0];

/// Handle to watch and stop a running enrichment.
pub struct Control {
    pub stop: Arc<AtomicBool>,
    pub progress: Progress,
}

/// Counters of committed batches.
pub struct Progress {
    /// Records read.
    pub read: AtomicU64,
    /// Bytes of their keys and values.
    pub bytes: AtomicU64,
    /// Records sent with segments.
    pub enriched: AtomicU64,
    /// Records sent as they are, because they cannot be enriched.
    pub unchanged: AtomicU64,
    /// Records sent to the topic of dead letters.
    pub dead_letters: AtomicU64,
    /// Messages without a value, sent as they are.
    pub tombstones: AtomicU64,
    /// Batches, and those that were aborted.
    pub batches: AtomicU64,
    pub aborted: AtomicU64,
    /// Seconds from the timestamp of a record to the commit of its batch.
    pub latency: Histogram,
    lags: Mutex<BTreeMap<i32, i64>>,
}

impl Control {
    /// # Errors
    /// Never, unless the histogram's definition is invalid.
    pub fn new() -> Result<Self, prometheus::Error> {
        let help = "Seconds from the timestamp of a record to the commit of its enriched record";
        let latency = HistogramOpts::new("tercile_enrich_latency_seconds", help).buckets(BUCKETS.to_vec());
        let progress = Progress {
            read: AtomicU64::default(),
            bytes: AtomicU64::default(),
            enriched: AtomicU64::default(),
            unchanged: AtomicU64::default(),
            dead_letters: AtomicU64::default(),
            tombstones: AtomicU64::default(),
            batches: AtomicU64::default(),
            aborted: AtomicU64::default(),
            latency: Histogram::with_opts(latency)?,
            lags: Mutex::default(),
        };
        Ok(Self { stop: Arc::default(), progress })
    }

    /// Asks the enrichment to end after the batch in progress.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

impl Progress {
    /// Per partition the number of records that were not read yet.
    pub fn lags(&self) -> BTreeMap<i32, i64> {
        self.lags.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_lags(&self, lags: BTreeMap<i32, i64>) {
        *self.lags.lock().unwrap_or_else(PoisonError::into_inner) = lags;
    }
}
