//! Models beside those in service: older versions that were requested, and those of segmentations whose SQL does not run.

use std::sync::{Arc, PoisonError};

use tercile_store as store;

use super::{ModelCache, Serving};
use crate::engine::Unusable;
use crate::model::ModelRegistry;
use crate::sql::{Files, Segmentation, View};

/// Maximum number of cached older versions that were requested.
const RECALLED: usize = 32;

impl ModelCache {
    /// Any version of a segmentation, in service or not; `None` if it does not exist.
    ///
    /// # Errors
    /// If its file cannot be used.
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

    /// A segmentation whose view is unusable, as its models have it: they serve on. `None` without a model.
    pub(super) fn stand_in(&self, unusable: &Unusable, files: &Files) -> Option<Segmentation> {
        let View { name, file, header, .. } = &unusable.view;
        let registry = ModelRegistry::new(&self.store, name);
        let slices = registry.slices().ok()?;
        let model = slices.iter().rev().find_map(|(slice, of)| registry.model_of(of.version?, *slice).ok())?;
        Some(Segmentation {
            name: name.clone(),
            file: file.clone(),
            k: unusable.k,
            entity: model.entity.clone(),
            scaling: model.scale().scalings(),
            scaling_lines: vec![None; model.features.len()],
            features: model.features,
            labels: header.labels.clone(),
            guard: header.guard.clone(),
            warnings: Vec::new(),
            sql_hash: files.hash(name),
        })
    }
}
