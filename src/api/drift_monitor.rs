//! Comparison of arriving records with the models of slice 3, for metrics and the log.
//!
//! Input: the store and the models in service. Output: the latest report of each segmentation, and whether it drifts. A drift ends when
//! its figures are clearly below their limits, or when another version serves, so that it does not come and go at a limit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};

use super::{State, drift};
use crate::drift::{Drift, Of, State as DriftState};
use crate::slices::SLICES;

/// Default interval between two comparisons.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Pause after a comparison, as a multiple of its duration: it takes a twentieth of a processor at most.
const PAUSE: u32 = 20;

/// The latest reports.
#[derive(Default)]
pub struct DriftMonitor(Mutex<BTreeMap<String, Watched>>);

struct Watched {
    report: Drift,
    drifting: bool,
    /// The next offset of each partition that the report was made with.
    read: BTreeMap<i32, i64>,
}

/// Gauges of the reports.
#[derive(Clone)]
pub struct DriftGauges {
    drifting: IntGaugeVec,
    index: GaugeVec,
    unlike: GaugeVec,
    rows: IntGaugeVec,
}

impl DriftGauges {
    /// # Errors
    /// If one of the metrics exists.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels = ["segmentation", "slice"];
        let gauges = Self {
            drifting: IntGaugeVec::new(
                Opts::new("tercile_drift", "1 if records that arrived after the training differ from the training's"),
                &labels,
            )?,
            index: GaugeVec::new(
                Opts::new("tercile_drift_psi", "Population stability index of a feature in those records"),
                &["segmentation", "slice", "feature"],
            )?,
            unlike: GaugeVec::new(
                Opts::new("tercile_drift_unlike", "Share of those records that are unlike the training's"),
                &labels,
            )?,
            rows: IntGaugeVec::new(
                Opts::new("tercile_drift_rows", "Records that arrived after the training, at the last comparison"),
                &labels,
            )?,
        };
        registry.register(Box::new(gauges.drifting.clone()))?;
        registry.register(Box::new(gauges.index.clone()))?;
        registry.register(Box::new(gauges.unlike.clone()))?;
        registry.register(Box::new(gauges.rows.clone()))?;
        Ok(gauges)
    }

    /// Shows the latest reports.
    pub fn show(&self, monitor: &DriftMonitor) {
        self.drifting.reset();
        self.index.reset();
        self.unlike.reset();
        self.rows.reset();
        for (name, Watched { report, drifting, .. }) in monitor.0.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            let slice = report.model.to_string();
            let labels = [name.as_str(), slice.as_str()];
            self.drifting.with_label_values(&labels).set(i64::from(*drifting));
            self.rows.with_label_values(&labels).set(report.rows.cast_signed());
            self.unlike.with_label_values(&labels).set(report.unlike);
            for feature in &report.features {
                self.index.with_label_values(&[name.as_str(), slice.as_str(), &feature.name]).set(feature.psi);
            }
        }
    }
}

impl DriftMonitor {
    /// Takes the report of a segmentation, and logs the begin and the end of a drift.
    fn take(&self, report: Drift, read: BTreeMap<i32, i64>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.get(&report.segmentation);
        let drifted = before.is_some_and(|before| before.drifting && before.report.version == report.version);
        let drifting = report.state == DriftState::Drifting || (drifted && !report.has_ended());
        let name = report.segmentation.clone();
        let words = report.words.get("en").map_or("", String::as_str);
        match (drifted, drifting) {
            (false, true) => tracing::warn!(segmentation = name, version = report.version, "{name} drifts: {words}"),
            (true, false) => tracing::info!(segmentation = name, "{name} no longer drifts: {words}"),
            _ => {}
        }
        all.insert(name, Watched { report, drifting, read });
    }

    /// Whether a version was compared with the records up to these offsets.
    fn knows(&self, name: &str, version: u64, read: &BTreeMap<i32, i64>) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).is_some_and(|known| known.report.version == version && known.read == *read)
    }

    fn keep_only(&self, names: &[&str]) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|name, _| names.contains(&name.as_str()));
    }
}

/// Compares at intervals, for the lifetime of the server.
pub async fn watch(state: Arc<State>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let began = Instant::now();
        compare(&state).await;
        tokio::time::sleep(began.elapsed() * PAUSE).await;
    }
}

async fn compare(state: &State) {
    let models = state.live.now();
    let names: Vec<&str> = models.segmentations.iter().map(|served| served.segmentation.name.as_str()).collect();
    state.drift_monitor.keep_only(&names);
    let store = state.store.clone();
    let Ok(Ok(snapshot)) = tokio::task::spawn_blocking(move || store.snapshot()).await else { return };
    let read = snapshot.next_offsets();
    for served in &models.segmentations {
        let serving = served.slots.iter().find(|slot| slot.slice == SLICES).and_then(|slot| slot.serving.as_ref());
        let Some(serving) = serving.filter(|serving| serving.model.baseline.is_some()) else { continue };
        let name = &served.segmentation.name;
        if state.drift_monitor.knows(name, serving.model.version, &read) {
            continue;
        }
        match drift::report(state, Arc::clone(&models), name, (SLICES, Of::Stream)).await {
            Ok(report) => state.drift_monitor.take(report, read.clone()),
            Err(problem) => tracing::debug!("{name} is not compared: {}", problem.detail),
        }
    }
}
