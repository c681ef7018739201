//! The model that a request asks for: a slice, a version, or its own rows.

mod recalled;

use std::sync::Arc;

use poem_openapi::Enum;
use recalled::recalled;

use super::language::Language;
use super::problem::Problem;
use super::slice_number::SliceNumber;
use crate::model_cache::{ModelCache, Models, Served, Serving};
use crate::slices::numbers;

/// The rows that the clusters are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum FitMode {
    /// The posted rows themselves.
    Request,
}
/// Query parameters of a request.
#[derive(Clone)]
pub(super) struct Asked {
    model: Option<SliceNumber>,
    pub as_of: Option<u64>,
    pub language: Language,
    pub fit: Option<FitMode>,
}

/// The parameters of a request.
pub(super) fn asked(
    (model, as_of): (Option<SliceNumber>, Option<u64>),
    language: Option<Language>,
    fit: Option<FitMode>,
) -> Asked {
    Asked { model, as_of, language: language.unwrap_or_default(), fit }
}

impl Asked {
    /// Checks that the parameters do not contradict each other.
    pub fn sound(&self) -> Result<(), Problem> {
        let trained = [("model", self.model.is_some()), ("as_of", self.as_of.is_some())];
        match trained.into_iter().find(|(_, given)| *given).filter(|_| self.fit.is_some()) {
            None => Ok(()),
            Some((field, _)) => {
                let detail = format!("{field} picks a trained model, fit=request asks for none: give one of the two");
                Err(Problem::unprocessable(detail).field(field))
            }
        }
    }

    /// The model that predicts.
    pub fn serving(&self, live: &ModelCache, models: &Models, name: &str) -> Result<Arc<Serving>, Problem> {
        let served = find(models, name)?;
        match self.as_of {
            Some(version) => recalled(live, name, version, self.model.map(SliceNumber::get)),
            None => serving(served, self.model.unwrap_or_default().get()).cloned(),
        }
    }
}

/// The segmentation of a request.
pub(super) fn find<'m>(models: &'m Models, name: &str) -> Result<&'m Served, Problem> {
    models.get(name).ok_or_else(|| Problem::not_found(format!("there is no segmentation {name}")))
}

/// The model that a request names, in service or not.
pub(super) fn asked_model(
    live: &ModelCache,
    name: &str,
    model: Option<SliceNumber>,
    as_of: Option<u64>,
) -> Result<Arc<Serving>, Problem> {
    asked((model, as_of), None, None).serving(live, &live.now(), name)
}

/// The model in service of a slice, or a problem that tells why there is none.
pub(super) fn serving(served: &Served, slice: u8) -> Result<&Arc<Serving>, Problem> {
    let slot = served.slots.iter().find(|slot| slot.slice == slice);
    let name = &served.segmentation.name;
    let slot =
        slot.ok_or_else(|| Problem::not_found(format!("{name} has the slices {}, none {slice}", numbers(" and "))))?;
    slot.serving.as_ref().ok_or_else(|| match (&slot.fault, &slot.refused) {
        (Some(fault), _) => Problem::unavailable(format!(
            "{name} of slice {slice} cannot answer: {fault}; tercile doctor says which file"
        )),
        // To ask again is of no use before there are other records.
        (None, Some(why)) => Problem::conflict(format!("there is no model: {why}")),
        (None, None) => Problem::unavailable(format!(
            "{name} of slice {slice} is not trained yet; POST /api/train, or wait for more records"
        )),
    })
}
