//! Status of the service: records stored, ingest progress, models in service.
//!
//! Input: the store's file footers, the counters of an ingest, and the models in service. Output: the response of
//! `/api/status`, which events.rs also pushes on change. Files are immutable, so each is counted once.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use poem::web::Data;
use poem_openapi::types::ToJSON as _;
use poem_openapi::{Object, OpenApi};
use tercile_store::record::WithoutFields;
use tercile_store::{self as store, Changed, Store};

use super::cached_response::Written;
use super::declared::NeedsRead;
use super::problem::Problem;
use super::segments::{SegmentationInfo, info};
use super::{State, Tags};

/// Window of the ingest rate.
const RATE_OVER: Duration = Duration::from_secs(5);
/// Minimum interval between samples of the counters.
const APART: Duration = Duration::from_millis(200);
/// Age beyond which a further change of a directory is certain to have another timestamp.
const SETTLED: Duration = Duration::from_secs(1);

/// How things stand at one moment.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct Status {
    /// The server's clock, RFC 3339, UTC.
    pub now: String,
    /// The version of tercile.
    pub tercile: String,
    /// Whether every segmentation has its models, or a reason why not.
    pub ready: bool,
    /// Records in the store, unreadable ones and tombstones among them.
    pub records: u64,
    /// Messages in the store that could not be read as records.
    pub unreadable: u64,
    /// Messages in the store without a value, which delete their keys.
    pub tombstones: u64,
    /// Files that count.
    pub files: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Records a second over the last five seconds: those received where this process ingests, else those stored.
    pub rate: f64,
    /// The ingest of this process; not given where it has none.
    #[oai(skip_serializing_if_is_none)]
    pub ingest: Option<IngestStatus>,
    /// When the newest model in service was trained, RFC 3339, UTC; not given where there is none.
    #[oai(skip_serializing_if_is_none)]
    pub trained_at: Option<String>,
    /// What serves.
    pub segmentations: Vec<SegmentationInfo>,
    /// Why the figures of the store are older than `now`; not given where they are not.
    #[oai(skip_serializing_if_is_none)]
    pub stale: Option<String>,
}

/// A running ingest.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct IngestStatus {
    /// Records this process received, stored already or not.
    pub received: u64,
    /// Records of the topic that were not read yet.
    pub lag: u64,
    /// Where it stands in each partition.
    pub partitions: Vec<PartitionStatus>,
    /// Partitions that halted because records were gone before they could be read.
    pub halted: Vec<String>,
}

/// One partition of a running ingest.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct PartitionStatus {
    pub partition: i32,
    /// The offset after the last record read.
    pub position: i64,
    /// Records behind it that were not read yet, as far as the broker told.
    #[oai(skip_serializing_if_is_none)]
    pub lag: Option<i64>,
}

/// State kept between computations of the status.
#[derive(Default)]
pub struct Watched(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    stamp: Option<Vec<Changed>>,
    stored: Stored,
    /// Numbers of records without fields by live file.
    counted: HashMap<PathBuf, WithoutFields>,
    stale: Option<String>,
    /// Recent samples of the record count, oldest first.
    counts: VecDeque<(Instant, u64)>,
}

#[derive(Default, Clone)]
struct Stored {
    records: u64,
    without_fields: WithoutFields,
    files: u64,
    bytes: u64,
}

impl Kept {
    /// Recounts the store if any directory of records changed.
    fn look(&mut self, store: &Store) {
        let read = store.changed().and_then(|stamp| {
            if self.stamp.as_ref() != Some(&stamp) {
                self.stored = self.count(store)?;
                // Timestamps have a limited resolution: a directory that just changed may change again with the same timestamp.
                let settled = |(at, _): &Changed| at.elapsed().is_ok_and(|since| since > SETTLED);
                self.stamp = Some(stamp).filter(|stamp| stamp.iter().all(settled));
            }
            Ok(())
        });
        if let Err(error) = &read
            && self.stale.is_none()
        {
            tracing::warn!("the status shows older figures: {error}");
        }
        self.stale = read.err().map(|_| "the store can't be read now; the server's log says why".to_owned());
    }

    fn count(&mut self, store: &Store) -> Result<Stored, store::Error> {
        let snapshot = store.snapshot()?;
        let mut counted = HashMap::with_capacity(snapshot.files.len());
        for file in &snapshot.files {
            let without_fields = match self.counted.get(&file.path) {
                Some(known) => *known,
                None => file.without_fields()?,
            };
            counted.insert(file.path.clone(), without_fields);
        }
        self.counted = counted;
        let without_fields = self.counted.values().copied().sum();
        let (records, files, bytes) = (snapshot.rows(), snapshot.files.len() as u64, snapshot.bytes());
        Ok(Stored { records, without_fields, files, bytes })
    }

    /// Records per second over the recent samples.
    fn rate(&mut self, now: Instant, count: u64) -> f64 {
        if self.counts.back().is_none_or(|(last, _)| now.duration_since(*last) >= APART) {
            self.counts.push_back((now, count));
        }
        while self.counts.len() > 2 && self.counts.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.counts.pop_front();
        }
        let (Some((from, before)), Some((to, after))) = (self.counts.front(), self.counts.back()) else { return 0.0 };
        // The samples are stale: records received since then do not belong to the window.
        if to.duration_since(*from) > 2 * RATE_OVER {
            self.counts.drain(..self.counts.len() - 1);
            return 0.0;
        }
        let seconds = to.duration_since(*from).as_secs_f64();
        if seconds > 0.0 { after.saturating_sub(*before) as f64 / seconds } else { 0.0 }
    }
}

impl State {
    /// Current status. Reads the disk: must not run on an async thread.
    pub fn status(&self) -> Status {
        let models = self.live.now();
        let mut kept = self.watched.kept();
        kept.look(&self.store);
        let ingest = self.ingest.as_ref().map(|control| ingesting(&control.progress));
        let count = ingest.as_ref().map_or(kept.stored.records, |ingest| ingest.received);
        let rate = kept.rate(Instant::now(), count);
        let Stored { records, without_fields, files, bytes } = kept.stored.clone();
        let slots = models.segmentations.iter().flat_map(|served| &served.slots);
        let trained_at = slots.filter_map(|slot| Some(slot.serving.as_ref()?.model.trained_at.clone())).max();
        Status {
            now: tercile_store::times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            tercile: env!("CARGO_PKG_VERSION").to_owned(),
            ready: models.ready() && !self.warming.load(Ordering::SeqCst),
            records,
            unreadable: without_fields.unreadable,
            tombstones: without_fields.tombstones,
            files,
            bytes,
            rate,
            ingest,
            trained_at,
            segmentations: models.segmentations.iter().map(info).collect(),
            stale: kept.stale.clone(),
        }
    }
}

impl Watched {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ingesting(progress: &tercile_kafka::ingest::Progress) -> IngestStatus {
    let lags = progress.lags();
    let partition = |(partition, position)| PartitionStatus { partition, position, lag: lags.get(&partition).copied() };
    IngestStatus {
        received: progress.received.load(Ordering::Relaxed),
        lag: lags.values().map(|lag| lag.max(&0).unsigned_abs()).sum(),
        partitions: progress.positions().into_iter().map(partition).collect(),
        halted: progress.gaps().iter().map(ToString::to_string).collect(),
    }
}

pub struct StatusApi;

#[OpenApi]
impl StatusApi {
    /// How things stand: what is stored, what comes in, what serves
    #[oai(path = "/api/status", method = "get", tag = "Tags::Health", operation_id = "getStatus")]
    async fn status(&self, state: Data<&Arc<State>>, _scope: NeedsRead) -> poem::Result<Written<Status>> {
        match now(&state).await.as_ref() {
            Some(shown) => Ok(shown.text.clone().into()),
            None => Err(Problem::unavailable("the status was cut off; try again").into()),
        }
    }
}

/// A status and its serialisation.
pub struct Shown {
    pub status: Status,
    pub text: Bytes,
}

/// Current status, computed once for concurrent requests. `None` if the computation was aborted.
pub async fn now(state: &Arc<State>) -> Arc<Option<Shown>> {
    let look = async {
        let asked = Arc::clone(state);
        let show = move || {
            let status = asked.status();
            Shown { text: status.to_json_string().into(), status }
        };
        tokio::task::spawn_blocking(show).await.ok()
    };
    state.shown.get(look).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let start = Instant::now();
        let mut kept = Kept::default();
        let mut at = |seconds: u64, count| kept.rate(start + Duration::from_secs(seconds), count);
        assert_eq!(at(0, 100), 0.0);
        assert_eq!(at(1, 200), 100.0);
        assert_eq!(at(2, 400), 150.0);
        // Samples older than the window are dropped.
        for second in 3..=12 {
            at(second, 400);
        }
        assert_eq!(at(13, 400), 0.0);
        assert_eq!(at(14, 900), 100.0);
        // One hour without samples.
        assert_eq!(at(3614, 1_000_000), 0.0);
        assert_eq!(at(3615, 1_000_010), 10.0);
    }
}
