//! Metrics of an ingest: registered beside the API's metrics if both run in one process, or served alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use poem::{EndpointExt as _, IntoResponse as _, Response, Route, get, handler, web::Data};
use prometheus::core::Collector;
use prometheus::{Encoder as _, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tercile_kafka::ingest::{Control, Progress};

#[derive(Clone)]
pub struct Ingesting {
    records: IntGaugeVec,
    bytes: IntGauge,
    files: IntGauge,
    lag: IntGaugeVec,
}

impl Ingesting {
    /// Registers the gauges.
    ///
    /// # Errors
    /// If a gauge is already registered.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let records = Opts::new("tercile_records", "Records ingested by this process, by what became of them");
        let lag = Opts::new("tercile_ingest_lag", "Records of the topic that were not read yet");
        let gauges = Self {
            records: IntGaugeVec::new(records, &["state"])?,
            bytes: IntGauge::new("tercile_ingest_bytes", "Bytes of keys and values received by this process")?,
            files: IntGauge::new("tercile_ingest_files", "Files that this process added to the store")?,
            lag: IntGaugeVec::new(lag, &["partition"])?,
        };
        let all: [Box<dyn Collector>; 4] = [
            Box::new(gauges.records.clone()),
            Box::new(gauges.bytes.clone()),
            Box::new(gauges.files.clone()),
            Box::new(gauges.lag.clone()),
        ];
        for collector in all {
            registry.register(collector)?;
        }
        Ok(gauges)
    }

    /// Sets the gauges to the current progress.
    pub fn update(&self, progress: &Progress) {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed).cast_signed();
        self.records.with_label_values(&["received"]).set(count(&progress.received));
        self.records.with_label_values(&["stored"]).set(count(&progress.stored));
        self.records.with_label_values(&["unreadable"]).set(count(&progress.unreadable));
        self.records.with_label_values(&["tombstone"]).set(count(&progress.tombstones));
        self.records.with_label_values(&["without_event_time"]).set(count(&progress.without_event_time));
        self.bytes.set(count(&progress.received_bytes));
        self.files.set(count(&progress.files));
        // Partitions reassigned to another worker must disappear.
        self.lag.reset();
        for (partition, lag) in progress.lags() {
            self.lag.with_label_values(&[partition.to_string()]).set(lag);
        }
    }
}

/// All metrics of a registry in Prometheus text format.
pub fn text(registry: &Registry) -> String {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut text) {
        tracing::error!("the metrics could not be written: {error}");
    }
    String::from_utf8(text).unwrap_or_default()
}

/// An ingest without an API in the same process.
struct Alone {
    registry: Registry,
    gauges: Ingesting,
    control: Arc<Control>,
}

/// Serves `/metrics` and `/health/live` of an ingest, for the lifetime of the process.
/// `others` are metrics of other parts of the process.
pub async fn serve(
    listener: tokio::net::TcpListener,
    control: Arc<Control>,
    others: Vec<Box<dyn Collector>>,
) -> anyhow::Result<()> {
    let registry = Registry::new();
    let gauges = Ingesting::register(&registry)?;
    others.into_iter().try_for_each(|collector| registry.register(collector))?;
    let alone = Arc::new(Alone { registry, gauges, control });
    let app = Route::new().at("/metrics", get(metrics)).at("/health/live", get(live)).data(alone);
    Ok(tercile_http::run(listener, app, tercile_http::Settings::default(), std::future::pending()).await?)
}

#[handler]
fn metrics(Data(alone): Data<&Arc<Alone>>) -> Response {
    alone.gauges.update(&alone.control.progress);
    text(&alone.registry).with_content_type("text/plain; version=0.0.4").into_response()
}

#[handler]
fn live() -> &'static str {
    "ok"
}
