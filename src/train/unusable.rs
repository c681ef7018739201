//! Segmentations whose views cannot be used: their models serve on, and the registry has the reason.

use std::collections::BTreeSet;

use tercile_store::{self as store, Store};

use super::serving_models::ServingModels;
use super::{Outcome, Seconds};
use crate::engine::Unusable;
use crate::model::{ModelRegistry, PromotedBy};
use crate::slices::all_slices;

/// Records the reason for all slices. Nothing is trained.
pub(super) fn refuse(store: &Store, unusable: &Unusable) -> Result<Vec<Outcome>, store::Error> {
    let name = &unusable.view.name;
    let registry = ModelRegistry::new(store, name);
    let (mut standings, read) = registry.slices_or_again()?;
    let versions = registry.versions_for(&standings)?;
    let (mut outcomes, mut reported) = (Vec::new(), BTreeSet::new());
    for slice in all_slices() {
        let standing = standings.entry(slice).or_default();
        let model = ServingModels::read(&versions, slice, standing.version, &mut reported)?.earlier;
        standing.refused = Some(format!("{name} of slice {slice}: {}", unusable.error));
        standing.refused_without_key = None;
        outcomes.push(Outcome {
            segmentation: name.clone(),
            slice,
            model,
            fresh: false,
            candidate: standing.candidate.clone(),
            before: standing.version,
            serving: standing.version,
            refused: standing.refused.clone(),
            refused_without_key: None,
            seconds: Seconds { sql: 0.0, train: 0.0 },
        });
    }
    registry.serve(&standings, &read, PromotedBy::Training)?;
    Ok(outcomes)
}
