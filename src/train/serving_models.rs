//! The models of a slice that a training starts from.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tercile_store::{self as store, Store};

use crate::model::{Model, ModelRegistry, Versions};

/// The model that serves a slice, if its file is usable, and the newest other model that may replace it.
pub(super) struct ServingModels {
    pub earlier: Option<Model>,
    pub newest: Option<Model>,
    /// True if a version serves and its file is unusable.
    pub lost: bool,
}

impl ServingModels {
    /// Reads both. Each unusable file is reported once per training and skipped: new versions have new numbers, so nothing is
    /// overwritten.
    pub fn read(
        versions: &Versions,
        slice: u8,
        version: Option<u64>,
        reported: &mut BTreeSet<PathBuf>,
    ) -> Result<Self, store::Error> {
        let mut report = |fault: store::FileFault| {
            if reported.insert(fault.path.clone()) {
                tracing::warn!(
                    "{}; the training goes on without it, and its number is not used again; if that version is needed, bring the file back from a copy",
                    fault.found()
                );
            }
        };
        let earlier = match version.map(|version| versions.model_of(version, slice)).transpose() {
            Err(store::Error::File(fault)) => {
                report(*fault);
                None
            }
            read => read?,
        };
        let lost = version.is_some() && earlier.is_none();
        let newest = versions.newest(slice, version.filter(|_| !lost), &mut report)?;
        Ok(Self { earlier, newest, lost })
    }
}

/// The model, if its sample and its members exist. Without them the model is trained again as a new version with both. On an object
/// store each check costs a request, so the check is skipped.
pub(super) fn with_sample<'m>(
    store: &Store,
    registry: &ModelRegistry,
    model: Option<&'m Model>,
    reported: &mut BTreeSet<PathBuf>,
) -> Option<&'m Model> {
    let model = model?;
    if !store.place().is_disk() {
        return Some(model);
    }
    let members = match registry.members(model) {
        Ok(Some(_)) => Ok(()),
        Ok(None) if model.entity.is_empty() => Ok(()),
        Ok(None) => return None,
        Err(error) => Err(error),
    };
    match members.and_then(|()| registry.sample_of(model)) {
        Err(store::Error::File(fault)) if fault.reason != store::Reason::Unreadable => {
            if reported.insert(fault.path.clone()) {
                tracing::warn!("{}; a new version is made, with its own", fault.found());
            }
            None
        }
        _ => Some(model),
    }
}
