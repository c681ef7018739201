//! Metrics of an enrichment, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use poem::{EndpointExt as _, IntoResponse as _, Response, Route, get, handler, web::Data};
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts, Registry};

use super::control::Control;
use crate::api::ingest_metrics::text;

/// The metrics of an enrichment, which are read from its counters when they are collected.
pub struct Enriching {
    records: IntGaugeVec,
    bytes: IntGauge,
    batches: IntGaugeVec,
    lag: IntGaugeVec,
    control: Arc<Control>,
}

impl Enriching {
    /// # Errors
    /// Never, unless a definition is invalid.
    pub fn new(control: Arc<Control>) -> Result<Self, prometheus::Error> {
        let records = Opts::new("tercile_enrich_records", "Records enriched by this process, by what became of them");
        let batches = Opts::new("tercile_enrich_batches", "Batches of this process, by how they ended");
        let lag = Opts::new("tercile_enrich_lag", "Records of the input that are not committed yet");
        Ok(Self {
            records: IntGaugeVec::new(records, &["state"])?,
            bytes: IntGauge::new("tercile_enrich_bytes", "Bytes of keys and values read by this process")?,
            batches: IntGaugeVec::new(batches, &["state"])?,
            lag: IntGaugeVec::new(lag, &["partition"])?,
            control,
        })
    }

    fn all(&self) -> [&dyn Collector; 5] {
        [&self.records, &self.bytes, &self.batches, &self.lag, &self.control.progress.latency]
    }
}

impl Collector for Enriching {
    fn desc(&self) -> Vec<&Desc> {
        self.all().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let progress = &self.control.progress;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).cast_signed();
        let states = [
            ("read", &progress.read),
            ("enriched", &progress.enriched),
            ("unchanged", &progress.unchanged),
            ("dead_letter", &progress.dead_letters),
            ("tombstone", &progress.tombstones),
        ];
        for (state, counter) in states {
            self.records.with_label_values(&[state]).set(count(counter));
        }
        self.batches.with_label_values(&["committed"]).set(count(&progress.batches));
        self.batches.with_label_values(&["aborted"]).set(count(&progress.aborted));
        self.bytes.set(count(&progress.bytes));
        // Partitions of another worker must disappear.
        self.lag.reset();
        for (partition, lag) in progress.lags() {
            self.lag.with_label_values(&[partition.to_string()]).set(lag);
        }
        self.all().into_iter().flat_map(Collector::collect).collect()
    }
}

/// Serves `/metrics` and `/health/live`, for the lifetime of the process.
///
/// # Errors
/// If the metrics cannot be registered or the listener fails.
pub async fn serve(listener: tokio::net::TcpListener, control: Arc<Control>) -> anyhow::Result<()> {
    let registry = Registry::new();
    registry.register(Box::new(Enriching::new(control)?))?;
    let app = Route::new().at("/metrics", get(metrics)).at("/health/live", get(live)).data(registry);
    Ok(tercile_http::run(listener, app, tercile_http::Settings::default(), std::future::pending()).await?)
}

#[handler]
fn metrics(Data(registry): Data<&Registry>) -> Response {
    text(registry).with_content_type("text/plain; version=0.0.4").into_response()
}

#[handler]
fn live() -> &'static str {
    "ok"
}
