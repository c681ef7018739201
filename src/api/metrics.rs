//! Counters in Prometheus' text format.

use std::sync::atomic::Ordering;
use std::time::Instant;

use poem::{Endpoint, IntoResponse, Middleware, Request, Response};
use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::State;
use super::ingesting::{self, Ingesting};

/// All metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    seconds: HistogramVec,
    ready: IntGauge,
    versions: IntGaugeVec,
    rows: IntGaugeVec,
    ingest: Ingesting,
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
            ready: IntGauge::new("tercile_ready", "1 if every segmentation has its models or a recorded refusal")?,
            versions: IntGaugeVec::new(
                Opts::new("tercile_model_version", "The version that serves"),
                &["segmentation", "slice"],
            )?,
            rows: IntGaugeVec::new(
                Opts::new("tercile_model_rows", "Rows the serving model was trained on"),
                &["segmentation", "slice"],
            )?,
            ingest: Ingesting::register(&registry)?,
            registry,
        };
        let all: [Box<dyn Collector>; 5] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.seconds.clone()),
            Box::new(metrics.ready.clone()),
            Box::new(metrics.versions.clone()),
            Box::new(metrics.rows.clone()),
        ];
        for collector in all {
            metrics.registry.register(collector)?;
        }
        Ok(metrics)
    }

    /// All metrics as text, the gauges as they stand now.
    pub fn render(&self, state: &State) -> String {
        let models = state.live.now();
        self.ready.set(i64::from(models.ready() && !state.warming.load(Ordering::SeqCst)));
        self.versions.reset();
        self.rows.reset();
        for served in &models.segmentations {
            for slot in &served.slots {
                if let Some(serving) = &slot.serving {
                    let labels = [served.segmentation.name.as_str(), &slot.slice.to_string()];
                    self.versions.with_label_values(&labels).set(serving.model.version.cast_signed());
                    self.rows.with_label_values(&labels).set(serving.model.rows.cast_signed());
                }
            }
        }
        if let Some(control) = &state.ingest {
            self.ingest.update(&control.progress);
        }
        ingesting::text(&self.registry)
    }
}

/// The endpoint a path belongs to, so that labels stay few whatever paths are asked for.
fn endpoint(path: &str) -> &'static str {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        [""] => "/",
        ["api", "cluster_products_by_price_rating"] => "/api/cluster_products_by_price_rating",
        ["api", "cluster_products_by_rating_count"] => "/api/cluster_products_by_rating_count",
        ["api", "cluster_products_by_discount"] => "/api/cluster_products_by_discount",
        ["api", "segments"] => "/api/segments",
        ["api", "segments", _] => "/api/segments/{name}",
        ["api", "segments", _, "models"] => "/api/segments/{name}/models",
        ["api", "segments", _, "models", _] => "/api/segments/{name}/models/{slice}",
        ["api", "segments", _, "points"] => "/api/segments/{name}/points",
        ["api", "segments", _, "predict"] => "/api/segments/{name}/predict",
        ["api", "sql"] => "/api/sql",
        ["api", "train"] => "/api/train",
        ["api", "train", _] => "/api/train/{job}",
        ["docs"] => "/docs",
        ["openapi.json"] => "/openapi.json",
        ["metrics"] => "/metrics",
        ["health", "live"] => "/health/live",
        ["health", "ready"] => "/health/ready",
        _ => "other",
    }
}

impl<E: Endpoint> Middleware<E> for Metrics {
    type Output = Measured<E>;

    fn transform(&self, inner: E) -> Self::Output {
        Measured { inner, metrics: self.clone() }
    }
}

/// An endpoint whose requests are counted.
pub struct Measured<E> {
    inner: E,
    metrics: Metrics,
}

impl<E: Endpoint> Endpoint for Measured<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let endpoint = endpoint(request.uri().path());
        let method = request.method().clone();
        let start = Instant::now();
        let response = match self.inner.call(request).await {
            Ok(response) => response.into_response(),
            Err(error) => super::problem::from_framework(error).await,
        };
        self.metrics.seconds.with_label_values(&[endpoint]).observe(start.elapsed().as_secs_f64());
        let status = response.status();
        // A method can be any word that a client makes up.
        let method = match method.as_str() {
            known @ ("GET" | "POST" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "PATCH") => known,
            _ => "other",
        };
        self.metrics.requests.with_label_values(&[endpoint, method, status.as_str()]).inc();
        Ok(response)
    }
}
