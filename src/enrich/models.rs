//! The models in service, prepared for batches of messages.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;

use super::scorers::Scorers;
use crate::model_cache::{ModelCache, Models};

/// Which segmentations score, and with which descriptions.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Names; all suitable ones if empty.
    pub segmentations: Vec<String>,
    /// Language of the descriptions.
    pub lang: String,
}

/// The current models of a store, which change while the process runs.
pub struct ModelSource {
    cache: Arc<ModelCache>,
    choice: Choice,
    runtime: Handle,
    prepared: Mutex<Prepared>,
}

#[derive(Default)]
struct Prepared {
    latest: Option<(Arc<Models>, Arc<Scorers>)>,
    told: BTreeSet<String>,
}

impl ModelSource {
    /// The models of a cache that is watched. Must be called within the runtime.
    pub fn new(cache: Arc<ModelCache>, choice: Choice) -> Self {
        Self { cache, choice, runtime: Handle::current(), prepared: Mutex::default() }
    }

    /// The segmentations with their current models. Prepares them if they have changed. Blocks, so it must not be called by a thread
    /// of the runtime.
    ///
    /// # Errors
    /// As for [`Scorers::new`].
    pub fn now(&self) -> anyhow::Result<Arc<Scorers>> {
        let models = self.cache.now();
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, scorers)) = &prepared.latest
            && Arc::ptr_eq(known, &models)
        {
            return Ok(Arc::clone(scorers));
        }
        let Choice { segmentations, lang } = &self.choice;
        let preparing = Scorers::new(&models, segmentations, lang, &mut prepared.told);
        let scorers = Arc::new(self.runtime.block_on(preparing)?);
        if prepared.latest.as_ref().is_none_or(|(_, before)| !before.models().eq(scorers.models())) {
            tracing::info!("scoring with {}", list(&scorers));
        }
        prepared.latest = Some((models, Arc::clone(&scorers)));
        Ok(scorers)
    }
}

fn list(scorers: &Scorers) -> String {
    let models = scorers.models().collect::<Vec<_>>().join(", ");
    if models.is_empty() { "no model".to_owned() } else { models }
}
