//! Comparison of arriving records with the models of slice 3, for metrics and the log.
//!
//! Input: the store and the models in service. Output: the latest report of each segmentation, and whether it drifts. A drift
//! ends when its figures are clearly below their limits, or when another version serves, so that it does not come and go at a
//! limit.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::{GaugeVec, IntGaugeVec, Opts, Registry};

use super::{State, drift};
use crate::drift::{Drift, Of, State as DriftState};
use crate::notify::{Event, Kind};
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
    /// Takes the report of a segmentation, and logs the begin and the end of a drift. `drifted` is whether the version drifted
    /// when it was last compared. Returns whether it does now.
    fn take(&self, report: Drift, read: BTreeMap<i32, i64>, drifted: bool) -> bool {
        let drifting = report.state == DriftState::Drifting || (drifted && !report.has_ended());
        let name = report.segmentation.clone();
        let words = report.words.get("en").map_or("", String::as_str);
        match (drifted, drifting) {
            (false, true) => tracing::warn!(segmentation = name, version = report.version, "{name} drifts: {words}"),
            (true, false) => tracing::info!(segmentation = name, "{name} no longer drifts: {words}"),
            _ => {}
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name, Watched { report, drifting, read });
        drifting
    }

    /// Whether a version drifted when it was last compared; `None` if this process has not compared the segmentation.
    fn drifted(&self, name: &str, version: u64) -> Option<bool> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).map(|known| known.drifting && known.report.version == version)
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
    // Why a segmentation is not compared, which is logged once.
    let mut logged = BTreeMap::new();
    loop {
        tokio::time::sleep(interval).await;
        let began = Instant::now();
        compare(&state, &mut logged).await;
        tokio::time::sleep(began.elapsed() * PAUSE).await;
    }
}

async fn compare(state: &State, logged: &mut BTreeMap<String, String>) {
    let models = state.live.now();
    let names: Vec<&str> = models.segmentations.iter().map(|served| served.segmentation.name.as_str()).collect();
    state.drift_monitor.keep_only(&names);
    let store = state.store.clone();
    let Ok(Ok(snapshot)) = tokio::task::spawn_blocking(move || store.snapshot()).await else { return };
    let read = snapshot.next_offsets();
    let open = open_episodes(state, &names).await;
    for served in &models.segmentations {
        let serving = served.slots.iter().find(|slot| slot.slice == SLICES).and_then(|slot| slot.serving.as_ref());
        let Some(serving) = serving.filter(|serving| serving.model.baseline.is_some()) else { continue };
        let (name, version) = (&served.segmentation.name, serving.model.version);
        if state.drift_monitor.knows(name, version, &read) {
            continue;
        }
        // A process that starts continues the drift that another one has told.
        let told = open.get(name).copied().flatten();
        let drifted = state.drift_monitor.drifted(name, version).unwrap_or(told == Some(version));
        match drift::report(state, Arc::clone(&models), name, (SLICES, Of::Stream)).await {
            Ok(report) => {
                logged.remove(name);
                let drifting = state.drift_monitor.take(report.clone(), read.clone(), drifted);
                tell(state, report, drifting).await;
            }
            Err(problem) => {
                let why = problem.detail;
                if logged.get(name) != Some(&why) {
                    tracing::warn!("{name} is not watched for drift: {why}");
                    logged.insert(name.clone(), why);
                }
            }
        }
    }
}

/// The segmentations whose drift is open as an episode, with the version that drifts. Ends those of segmentations that are gone.
async fn open_episodes(state: &State, names: &[&str]) -> BTreeMap<String, Option<u64>> {
    let Some(notifier) = state.notifier.clone() else { return BTreeMap::new() };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let look = move || {
        let mut open = BTreeMap::new();
        for event in notifier.open(Kind::Drift) {
            match &event.segmentation {
                Some(name) if names.contains(name) => {
                    open.insert(name.clone(), event.details["version"].as_u64());
                }
                name => {
                    let words = format!("{} is no longer served", name.as_deref().unwrap_or("the segmentation"));
                    notifier.resolve(&event.key(), &words, &event.details);
                }
            }
        }
        open
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Tells the begin of a drift, and its end: another version is another episode.
async fn tell(state: &State, report: Drift, drifting: bool) {
    let Some(notifier) = state.notifier.clone() else { return };
    let work = move || {
        let event = Event::drift(&report);
        let open = notifier.open(Kind::Drift).into_iter().find(|open| open.key() == event.key());
        let same_version = |open: &Event| open.details["version"] == report.version;
        if let Some(open) = open.filter(|open| !drifting || !same_version(open)) {
            let words = if same_version(&open) {
                format!("it no longer drifts: {}", event.sentence())
            } else {
                format!("version {} serves: {}", report.version, event.sentence())
            };
            notifier.resolve(&open.key(), &words, &event.details);
        }
        if drifting {
            notifier.raise(event);
        }
    };
    // Only a panic cuts it off; the next comparison tells it then.
    let _ = tokio::task::spawn_blocking(work).await;
}
