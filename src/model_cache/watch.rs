//! Watches SQL files and registry: new models are swapped in after a training of this process, or when the files have changed.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::{BoxFuture, FutureExt as _, ready};

use super::ModelCache;
use crate::model::ModelRegistry;
use crate::train::event::{Subscriber, TrainingEvent};

/// Polling interval for new models, which take effect within a second; on an object store within the interval of
/// [`Store::generation`].
const INTERVAL: Duration = Duration::from_millis(250);

/// Retry interval for files that could not be used, on a disk and on an object store.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// Fingerprint of the files when they were last read.
#[derive(PartialEq, Default)]
pub(super) struct Fingerprint {
    sql: Vec<(PathBuf, u64, Option<SystemTime>)>,
    /// Of a store on a disk.
    slices: Vec<Option<Vec<u8>>>,
    /// Of a store on an object store.
    generation: Option<u64>,
}

impl ModelCache {
    /// Reads again after a training: earlier than [`Self::watch`] would.
    async fn reload_trained(&self) {
        if let Err(error) = self.reload().await {
            tracing::warn!("the new models are not in service yet: {error:#}");
        }
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let dir = self.sql.clone().unwrap_or_else(|| PathBuf::from("sql"));
        let mut sql: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().collect();
        sql.sort_by_key(fs::DirEntry::path);
        let seen = |entry: &fs::DirEntry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), metadata.len(), metadata.modified().ok()))
        };
        let generation = self.store.generation();
        let models = self.now();
        let names = models.segmentations.iter().map(|served| &served.segmentation.name);
        let slices = match generation {
            Some(_) => Vec::new(),
            None => names.map(|name| ModelRegistry::new(&self.store, name).stamp()).collect(),
        };
        Fingerprint { sql: sql.iter().filter_map(seen).collect(), slices, generation }
    }

    /// Swaps in changes, for the lifetime of the server.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        let mut looked = Instant::now();
        let again = AGAIN[usize::from(!self.store.place().is_disk())];
        loop {
            let now = self.fingerprint();
            // A file may reappear without a change of the fingerprint.
            let faults =
                self.now().segmentations.iter().flat_map(|served| &served.slots).any(|slot| slot.fault.is_some());
            if now != seen || (faults && looked.elapsed() >= again) {
                looked = Instant::now();
                if let Err(error) = self.reload().await {
                    tracing::warn!("what serves stays as it was: {error:#}");
                }
                // Taken before the files were read: a change in between is found at the next check.
                seen = now;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

impl Subscriber for ModelCache {
    fn on_event<'a>(&'a self, _: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        match event {
            TrainingEvent::Ended(_) => self.reload_trained().boxed(),
            _ => ready(()).boxed(),
        }
    }
}
