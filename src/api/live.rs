//! The models in service: the one place where requests find them and where new ones are swapped in.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use tercile_store::{self as store, Snapshot, Store};

use super::etag;
use super::metrics::{Metrics, Tally};
use super::predict::{LANGUAGES, Language};
use crate::bulk::Lines;
use crate::engine;
use crate::model::{Model, ModelRegistry, Predictor, Slices, registry::all_slices};
use crate::sql::{Files, Segmentation};

/// How often the store is asked for new models: well within the second in which they must be noticed.
const INTERVAL: Duration = Duration::from_millis(250);

/// How often files that could not be used are looked at again.
const AGAIN: Duration = Duration::from_secs(1);

/// Older versions that are kept ready, after somebody asked for them.
const RECALLED: usize = 32;

/// A model that answers.
pub struct Serving {
    pub model: Model,
    pub predictor: Predictor,
    /// What answers to rows of JSON have in common, by language.
    lines: [Lines; LANGUAGES.len()],
    tally: OnceLock<Tally>,
    pub stamp: etag::EntityTag,
}

impl Serving {
    fn new(model: Model) -> Self {
        let from = Some((model.slice, model.version));
        let lines = LANGUAGES.map(|language| Lines::new(&model.features, &model.descriptions(language), from));
        Self { predictor: model.predictor(), stamp: etag::EntityTag::of(&model), model, lines, tally: OnceLock::new() }
    }

    pub fn lines(&self, language: Language) -> &Lines {
        &self.lines[language as usize]
    }

    /// Where its predictions are counted.
    pub fn tally(&self, metrics: &Metrics) -> &Tally {
        self.tally.get_or_init(|| metrics.tally(&self.model))
    }
}

/// One slice of a segmentation.
pub struct Slot {
    pub slice: u8,
    pub serving: Option<Arc<Serving>>,
    /// Whether it serves whatever trainings find.
    pub pinned: bool,
    /// Why the last training gave no model.
    pub refused: Option<String>,
    /// A file that cannot be used: the model's own, or the list of those that serve. Without its path. What served before
    /// may serve all the same.
    pub fault: Option<String>,
}

/// One segmentation with its three slices.
pub struct Served {
    pub segmentation: Segmentation,
    pub slots: Vec<Slot>,
}

impl Served {
    /// Whether every slice has a model, or a recorded reason why not.
    pub fn ready(&self) -> bool {
        self.slots.iter().all(|slot| slot.serving.is_some() || (slot.refused.is_some() && slot.fault.is_none()))
    }
}

/// All segmentations at one moment; a request holds on to one of these, so no answer mixes versions.
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
}

/// What was seen of the files when they were last read.
#[derive(PartialEq, Default)]
struct EntityTag {
    sql: Vec<(PathBuf, u64, Option<SystemTime>)>,
    slices: Vec<Option<Vec<u8>>>,
}

/// The swap point.
pub struct ModelCache {
    store: Store,
    sql: Option<PathBuf>,
    now: RwLock<Arc<Models>>,
    /// The last one asked for stands last.
    recalled: Mutex<Vec<(String, Arc<Serving>)>>,
    /// Faults that were logged, and are still there.
    logged: Mutex<BTreeSet<String>>,
}

impl ModelCache {
    /// Reads what there is. Faults in the SQL files are errors here, and warnings later on.
    pub async fn start(store: &Store, sql: Option<&Path>) -> Result<Arc<Self>, anyhow::Error> {
        let live = Self {
            store: store.clone(),
            sql: sql.map(Path::to_owned),
            now: RwLock::default(),
            recalled: Mutex::default(),
            logged: Mutex::default(),
        };
        live.reload().await?;
        Ok(Arc::new(live))
    }

    /// What serves now.
    pub fn now(&self) -> Arc<Models> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Any version of a segmentation, whether it serves or not; `None` if there is none of this number.
    pub fn recall(&self, name: &str, version: u64) -> Result<Option<Arc<Serving>>, store::Error> {
        let lock = || self.recalled.lock().unwrap_or_else(PoisonError::into_inner);
        let is = |(of, serving): &(String, Arc<Serving>)| of == name && serving.model.version == version;
        let known = lock().iter().find(|one| is(one)).map(|(_, serving)| Arc::clone(serving));
        let serving = match known {
            Some(serving) => serving,
            None => {
                let Some(model) = ModelRegistry::new(&self.store, name).version(version)? else { return Ok(None) };
                Arc::new(Serving::new(model))
            }
        };
        let mut recalled = lock();
        recalled.retain(|one| !is(one));
        if recalled.len() == RECALLED {
            recalled.remove(0);
        }
        recalled.push((name.to_owned(), Arc::clone(&serving)));
        Ok(Some(serving))
    }

    /// The directory of SQL files, if one was given.
    pub fn sql(&self) -> Option<&Path> {
        self.sql.as_deref()
    }

    /// The SQL files as they are now.
    pub fn files(&self) -> Result<Files, crate::sql::Error> {
        Files::load(self.sql.as_deref())
    }

    /// Reads the SQL files and the registry again, and swaps.
    pub async fn reload(&self) -> Result<(), anyhow::Error> {
        let files = self.files()?;
        // The views' columns are known without any records.
        let ctx = engine::open(&Snapshot::default(), &files).await?;
        let (mut segmentations, mut faults) = (Vec::new(), BTreeSet::new());
        for segmentation in engine::segmentations(&ctx, &files).await? {
            segmentations.push(self.read(segmentation, &mut faults));
        }
        self.log(faults);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Models { segmentations });
        Ok(())
    }

    /// Logs each fault once, as long as it is there.
    fn log(&self, faults: BTreeSet<String>) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        for fault in faults.difference(&logged) {
            tracing::error!("{fault}");
        }
        *logged = faults;
    }

    /// What serves of one segmentation. A file that cannot be used concerns its own slice, or segmentation, alone: what
    /// served before goes on serving, and the others do.
    fn read(&self, segmentation: Segmentation, faults: &mut BTreeSet<String>) -> Served {
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
            // A model of other features than the SQL file gives now can't answer for it.
            let serving = serving.filter(|serving| serving.model.features == segmentation.features);
            slots.push(Slot { slice, serving, pinned: standing.pinned, refused: standing.refused, fault });
        }
        Served { segmentation, slots }
    }

    fn stamp(&self) -> EntityTag {
        let dir = self.sql.clone().unwrap_or_else(|| PathBuf::from("sql"));
        let mut sql: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
        sql.sort_by_key(fs::DirEntry::path);
        let seen = |entry: &fs::DirEntry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), metadata.len(), metadata.modified().ok()))
        };
        let shelves = self.now();
        let names = shelves.segmentations.iter().map(|served| &served.segmentation.name);
        let slices = names.map(|name| ModelRegistry::new(&self.store, name).stamp()).collect();
        EntityTag { sql: sql.iter().filter_map(seen).collect(), slices }
    }

    /// Swaps in whatever changes, for ever.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = EntityTag::default();
        let mut looked = Instant::now();
        loop {
            let stamp = self.stamp();
            // A file that comes back changes nothing else.
            let faults =
                self.now().segmentations.iter().flat_map(|served| &served.slots).any(|slot| slot.fault.is_some());
            if stamp != seen || (faults && looked.elapsed() >= AGAIN) {
                looked = Instant::now();
                if let Err(error) = self.reload().await {
                    tracing::warn!("what serves stays as it was: {error:#}");
                }
                // Taken before the reading: what changed in between is seen the next time.
                seen = stamp;
            }
            tokio::time::sleep(self.store.place().patience(INTERVAL)).await;
        }
    }
}
