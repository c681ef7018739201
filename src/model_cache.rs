//! Cache of the models in service, for everything that scores: requests and streams read them here, and new ones are swapped in
//! atomically.

mod recall;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use prometheus::IntCounter;
use tercile_store::{self as store, Snapshot, Store};
use tokio::sync::OnceCell;
use watch::Fingerprint;

use crate::bulk::Lines;
use crate::drift::asked::AskedRows;
use crate::engine::row_by_row::NotRowByRow;
use crate::engine::{self, Segmentations};
use crate::model::{Candidate, Model, ModelRegistry, Predictor, Slices};
use crate::scoring::RecordScorer;
use crate::slices::all_slices;
use crate::sql::language::{self, FALLBACK};
use crate::sql::{Files, Segmentation};

/// A model in service.
pub struct Serving {
    pub model: Model,
    pub predictor: Predictor,
    /// Prepared parts of the JSON predictions: in the fallback language, and in each other that the model has.
    lines: (Lines, BTreeMap<String, Lines>),
    tally: OnceLock<Tally>,
    /// The rows of requests that it answered.
    pub asked: Arc<AskedRows>,
}

impl Serving {
    fn new(model: Model) -> Self {
        let lines = |language: &str| Lines::of(&model, language);
        let other = model.languages().filter(|language| *language != FALLBACK);
        let lines = (lines(FALLBACK), other.map(|language| (language.to_owned(), lines(language))).collect());
        Self { predictor: model.predictor(), model, lines, tally: OnceLock::new(), asked: Arc::default() }
    }

    /// The parts of predictions in a language, or in the fallback language if the model has no descriptions in it.
    pub fn lines(&self, language: &str) -> &Lines {
        self.lines.1.get(language).unwrap_or(&self.lines.0)
    }

    /// Counters of its predictions, which `make` makes for the first caller.
    pub fn tally(&self, make: impl FnOnce(&Model) -> Tally) -> &Tally {
        self.tally.get_or_init(|| make(&self.model))
    }
}

/// Prediction counters of one model, by cluster.
pub struct Tally(pub Vec<IntCounter>);

impl Tally {
    pub fn add(&self, clusters: impl IntoIterator<Item = u32>) {
        let mut counts = vec![0; self.0.len()];
        for cluster in clusters {
            counts[cluster as usize] += 1;
        }
        for (counter, count) in self.0.iter().zip(counts).filter(|(_, count)| *count > 0) {
            counter.inc_by(count);
        }
    }
}

/// One slice of a segmentation.
pub struct Slot {
    pub slice: u8,
    pub serving: Option<Arc<Serving>>,
    /// Whether the version is pinned, so that trainings do not replace it.
    pub pinned: bool,
    /// A newer version that waits for an operator's decision.
    pub candidate: Option<Candidate>,
    /// Reason why the last training gave no model.
    pub refused: Option<String>,
    /// Fault class of an unusable file, without its path: the model's own or the list of versions. A previous version may still
    /// be in service.
    pub fault: Option<String>,
}

/// One segmentation with its three slices.
pub struct Served {
    pub segmentation: Segmentation,
    pub slots: Vec<Slot>,
    files: Arc<Files>,
    /// Prepared by the first request that needs it, for as long as the SQL stays the same.
    records: Arc<OnceCell<Result<Arc<RecordScorer>, NotRowByRow>>>,
}

impl Served {
    /// The SQL files that it was planned with.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Cleans raw records with the SQL files.
    ///
    /// # Errors
    /// If a record alone does not determine its features.
    pub async fn record_scorer(&self) -> Result<Arc<RecordScorer>, NotRowByRow> {
        let prepare = async || RecordScorer::new(&self.files, &self.segmentation).await.map(Arc::new);
        self.records.get_or_init(prepare).await.clone()
    }

    /// Whether every slice has a model, or a recorded reason why not.
    pub fn ready(&self) -> bool {
        self.slots.iter().all(|slot| slot.serving.is_some() || (slot.refused.is_some() && slot.fault.is_none()))
    }
}

/// Immutable view of all segmentations. A request holds one of them, so no response mixes versions.
#[derive(Default)]
pub struct Models {
    pub segmentations: Vec<Served>,
}

impl Models {
    pub fn get(&self, name: &str) -> Option<&Served> {
        self.segmentations.iter().find(|served| served.segmentation.name == name)
    }

    pub fn ready(&self) -> bool {
        self.segmentations.iter().all(Served::ready)
    }

    /// The languages that the SQL files have words for, and those that are built in.
    pub fn languages(&self) -> BTreeSet<&str> {
        let labelled = self.segmentations.iter().flat_map(|served| language::offered(&served.segmentation.labels));
        language::BUILT_IN.into_iter().chain(labelled).collect()
    }
}

/// Current models, swapped atomically.
pub struct ModelCache {
    store: Store,
    sql: Option<PathBuf>,
    now: RwLock<Arc<Models>>,
    /// Held from the read of the registry to the swap, so that no older state replaces a newer one.
    reloading: tokio::sync::Mutex<()>,
    /// LRU cache: the most recently used version is last.
    recalled: Mutex<Vec<(String, Arc<Serving>)>>,
    /// Faults that were logged and still exist.
    logged: Mutex<BTreeSet<String>>,
    /// The fingerprint of the files that were read at the start.
    started: Mutex<Fingerprint>,
    /// The files that were planned last, and their segmentations.
    planned: Mutex<Option<(Arc<Files>, Arc<Segmentations>)>>,
}

impl ModelCache {
    /// Reads the SQL files and the registry.
    ///
    /// # Errors
    /// If a SQL file is invalid or the store cannot be read; later such faults are only logged.
    pub async fn start(store: &Store, sql: Option<&Path>) -> Result<Arc<Self>, anyhow::Error> {
        let live = Self {
            store: store.clone(),
            sql: sql.map(Path::to_owned),
            now: RwLock::default(),
            reloading: tokio::sync::Mutex::default(),
            recalled: Mutex::default(),
            logged: Mutex::default(),
            started: Mutex::default(),
            planned: Mutex::default(),
        };
        // Before the files: a change in between is found by the watch. On a disk the names of the segmentations are needed, too.
        let started = live.fingerprint();
        live.reload().await?;
        *live.started.lock().unwrap_or_else(PoisonError::into_inner) = started;
        Ok(Arc::new(live))
    }

    /// The models in service now.
    pub fn now(&self) -> Arc<Models> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The directory of SQL files, if one was given.
    pub fn sql(&self) -> Option<&Path> {
        self.sql.as_deref()
    }

    /// The current SQL files.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn files(&self) -> Result<Files, crate::sql::Error> {
        Files::load(self.sql.as_deref())
    }

    /// Reads the SQL files and the registry again and swaps in the result.
    ///
    /// # Errors
    /// If a SQL file is invalid; the models in service are unchanged then.
    pub async fn reload(&self) -> Result<(), anyhow::Error> {
        let _one = self.reloading.lock().await;
        let files = Arc::new(self.files()?);
        let (mut segmentations, mut faults) = (Vec::new(), BTreeSet::new());
        let planned = self.planned(&files).await?;
        for segmentation in planned.usable.iter().cloned() {
            segmentations.push(self.read(segmentation, &files, &mut faults));
        }
        for unusable in &planned.unusable {
            faults.insert(unusable.error.to_string());
            if let Some(segmentation) = self.stand_in(unusable, &files) {
                segmentations.push(self.read(segmentation, &files, &mut faults));
            }
        }
        self.log(faults);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Models { segmentations });
        Ok(())
    }

    /// The segmentations of these files. They follow from the files alone, so that the same files are planned once.
    async fn planned(&self, files: &Arc<Files>) -> Result<Arc<Segmentations>, engine::Error> {
        let last = || self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = last().as_ref().filter(|(of, _)| of == files) {
            return Ok(Arc::clone(known));
        }
        // The schemas of the views do not depend on records.
        let ctx = engine::open(&Snapshot::default(), files).await?;
        let planned = Arc::new(engine::each_segmentation(&ctx, files).await);
        *last() = Some((Arc::clone(files), Arc::clone(&planned)));
        Ok(planned)
    }

    /// Logs each fault once while it exists.
    fn log(&self, faults: BTreeSet<String>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in faults.difference(&logged) {
            tracing::error!("{fault}");
        }
        *logged = faults;
    }

    /// Models of one segmentation. An unusable file affects only its own slice or segmentation: the previous version stays in
    /// service.
    fn read(&self, segmentation: Segmentation, files: &Arc<Files>, faults: &mut BTreeSet<String>) -> Served {
        let registry = ModelRegistry::new(&self.store, &segmentation.name);
        let mut note = |error: store::Error| {
            let class = match &error {
                store::Error::File(fault) => fault.class(),
                _ => "its models cannot be read".to_owned(),
            };
            faults.insert(error.to_string());
            class
        };
        let (mut standings, fault) = match registry.slices() {
            Ok(standings) => (standings, None),
            Err(error) => (Slices::new(), Some(note(error))),
        };
        let before = self.now();
        let mut slots = Vec::new();
        for slice in all_slices() {
            let standing = standings.remove(&slice).unwrap_or_default();
            let known = before.get(&segmentation.name).and_then(|served| {
                let slot = served.slots.iter().find(|slot| slot.slice == slice)?;
                slot.serving.clone()
            });
            let (serving, fault) = match (standing.version, &fault) {
                (_, Some(fault)) => (known, Some(fault.clone())),
                (None, None) => (None, None),
                (Some(version), None) => match known.clone().filter(|known| known.model.version == version) {
                    Some(known) => (Some(known), None),
                    None => match registry.model_of(version, slice) {
                        Ok(model) => (Some(Arc::new(Serving::new(model))), None),
                        Err(error) => (known, Some(note(error))),
                    },
                },
            };
            // A model with other features than the current SQL file cannot predict for it.
            let serving = serving.filter(|serving| serving.model.is_about(&segmentation));
            let refused = standing.public_refusal().cloned();
            let (pinned, candidate) = (standing.pinned, standing.candidate);
            slots.push(Slot { slice, serving, pinned, candidate, refused, fault });
        }
        let same = before.get(&segmentation.name).filter(|served| served.segmentation == segmentation);
        let records = same.map(|served| Arc::clone(&served.records)).unwrap_or_default();
        Served { segmentation, slots, files: Arc::clone(files), records }
    }
}
