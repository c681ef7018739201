//! Metrics of the process in Prometheus text format.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::drift_monitor::DriftGauges;
use super::ingest_metrics::{self, Ingesting};
use super::{State, memory};
use crate::model::Model;
use crate::model_cache::Tally;

/// Maximum age of the store's size, whose computation stats every file.
const SIZE_AGE: Duration = Duration::from_secs(10);

/// All metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    ready: IntGauge,
    predictions: IntCounterVec,
    versions: IntGaugeVec,
    rows: IntGaugeVec,
    faults: IntGaugeVec,
    connections: IntGauge,
    store_bytes: IntGauge,
    /// Time of the last size computation.
    sized: Arc<Mutex<Option<Instant>>>,
    memory: IntGauge,
    http_memory: IntGauge,
    http_memory_limit: IntGauge,
    http_memory_refused: IntCounter,
    descriptors: IntGauge,
    ingest: Ingesting,
    drift: DriftGauges,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let buckets = vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];
        let seconds = HistogramOpts::new("tercile_request_seconds", "Time to answer, in seconds").buckets(buckets);
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("tercile_requests_total", "Requests answered"),
                &["endpoint", "method", "status"],
            )?,
            seconds: HistogramVec::new(seconds, &["endpoint"])?,
            predictions: IntCounterVec::new(
                Opts::new("tercile_predictions_total", "Rows that a model found a cluster for"),
                &["segmentation", "slice", "cluster"],
            )?,
            ready: IntGauge::new("tercile_ready", "1 if every segmentation has its models or a recorded refusal")?,
            versions: IntGaugeVec::new(
                Opts::new("tercile_model_version", "The version that serves"),
                &["segmentation", "slice"],
            )?,
            rows: IntGaugeVec::new(
                Opts::new("tercile_model_rows", "Rows the serving model was trained on"),
                &["segmentation", "slice"],
            )?,
            faults: IntGaugeVec::new(
                Opts::new(
                    "tercile_model_faults",
                    "1 where a file is missing, damaged, unreadable or misnamed, and so its model does not serve",
                ),
                &["segmentation", "slice"],
            )?,
            connections: IntGauge::new("tercile_connections", "Connections that are open")?,
            store_bytes: IntGauge::new("tercile_store_bytes", "Bytes of the store on disk, up to ten seconds ago")?,
            sized: Arc::default(),
            memory: IntGauge::new("process_resident_memory_bytes", "Resident memory of this process")?,
            http_memory: IntGauge::new(
                "tercile_http_memory_bytes",
                "Memory of requests and answers that are not complete",
            )?,
            http_memory_limit: IntGauge::new("tercile_http_memory_limit_bytes", "What that may be at most")?,
            http_memory_refused: IntCounter::new(
                "tercile_http_memory_refused_total",
                "Requests and parts of requests for which there was no memory",
            )?,
            descriptors: IntGauge::new("process_open_fds", "File descriptors that are open")?,
            ingest: Ingesting::register(&registry)?,
            drift: DriftGauges::register(&registry)?,
            registry,
        };
        let all: [Box<dyn Collector>; 14] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.predictions.clone()),
            Box::new(metrics.ready.clone()),
            Box::new(metrics.versions.clone()),
            Box::new(metrics.rows.clone()),
            Box::new(metrics.faults.clone()),
            Box::new(metrics.connections.clone()),
            Box::new(metrics.store_bytes.clone()),
            Box::new(metrics.memory.clone()),
            Box::new(metrics.http_memory.clone()),
            Box::new(metrics.http_memory_limit.clone()),
            Box::new(metrics.http_memory_refused.clone()),
            Box::new(metrics.descriptors.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// Adds metrics of another part of the process.
    ///
    /// # Errors
    /// If one of the same name exists.
    pub fn add(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    /// Records a response.
    pub fn answered(&self, endpoint: &str, method: &str, status: &str, elapsed: Duration) {
        self.seconds.with_label_values(&[endpoint]).observe(elapsed.as_secs_f64());
        self.requests.with_label_values(&[endpoint, method, status]).inc();
    }

    /// Counters of a model's predictions.
    pub fn tally(&self, model: &Model) -> Tally {
        let slice = model.slice.to_string();
        let counter = |cluster: u32| {
            self.predictions.with_label_values(&[model.segmentation.as_str(), &slice, &cluster.to_string()])
        };
        Tally((0..model.k).map(counter).collect())
    }

    /// All metrics as text, with current gauges.
    pub fn render(&self, state: &State) -> String {
        let models = state.live.now();
        self.ready.set(i64::from(models.ready() && !state.warming.load(Ordering::SeqCst)));
        self.versions.reset();
        self.rows.reset();
        self.faults.reset();
        for served in &models.segmentations {
            for slot in &served.slots {
                let labels = [served.segmentation.name.as_str(), &slot.slice.to_string()];
                if slot.fault.is_some() {
                    self.faults.with_label_values(&labels).set(1);
                }
                if let Some(serving) = &slot.serving {
                    self.versions.with_label_values(&labels).set(serving.model.version.cast_signed());
                    self.rows.with_label_values(&labels).set(serving.model.rows.cast_signed());
                }
            }
        }
        if let Some(control) = &state.ingest {
            self.ingest.update(&control.progress);
        }
        self.drift.show(&state.drift_monitor);
        self.connections.set(state.connections.count() as i64);
        self.size(state.store.root());
        self.memory.set(memory::resident());
        self.http_memory.set(state.budget.used() as i64);
        self.http_memory_limit.set(state.budget.limit() as i64);
        let refused = state.budget.refused();
        self.http_memory_refused.inc_by(refused.saturating_sub(self.http_memory_refused.get()));
        self.descriptors.set(fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as i64));
        ingest_metrics::text(&self.registry)
    }

    /// Updates the size of the store unless it is recent.
    fn size(&self, root: &Path) {
        let mut sized = self.sized.lock().unwrap_or_else(PoisonError::into_inner);
        if sized.is_none_or(|at| at.elapsed() > SIZE_AGE) {
            self.store_bytes.set(bytes_below(root).cast_signed());
            *sized = Some(Instant::now());
        }
    }
}

/// Total size of the files below a directory. Files removed meanwhile count as 0.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
