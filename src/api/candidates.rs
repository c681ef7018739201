//! Candidates: models that trainings with `--promote guarded` or `manual` held back, and the decisions of operators.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};

use super::declared::{NeedsAdmin, NeedsRead};
use super::problem::{Problem, problems};
use super::promotion::{NowServing, change, now_serving};
use super::segments::find;
use super::{State, Tags};
use crate::model::candidate::Rejected;
use crate::model::{Model, ModelRegistry, Violation};
use crate::notify::{PROMOTED, REJECTED};

problems! {
    /// Why nothing was decided.
    DecisionFailure {
        /// There is no segmentation of this name, or its slice has no candidate.
        404,
        /// The slice is pinned: unpin it first.
        409,
        /// The candidate is of other features than rows have now.
        422,
        /// The store can't be read or written.
        503,
    }
}

problems! {
    /// Why there is no list.
    CandidatesFailure {
        /// There is no segmentation of this name.
        404,
        /// A candidate's file can't be read.
        503,
    }
}

/// A model that waits for a decision, beside the one that serves.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct HeldBack {
    pub slice: u8,
    /// Since when it waits, RFC 3339, UTC.
    pub since: String,
    /// Why it does not serve, in a sentence.
    pub reason: String,
    /// The guard rules that it violates; none if models are promoted by hand.
    pub violated: Vec<Violation>,
    /// The model that waits.
    pub candidate: Model,
    /// The model that serves; not given if its file cannot be read.
    #[oai(skip_serializing_if_is_none)]
    pub champion: Option<Model>,
}

pub struct CandidatesApi;

#[OpenApi]
impl CandidatesApi {
    /// The models that wait for a decision
    ///
    /// A training with `--promote guarded` holds back a model that violates a guard rule of its SQL file, and one with `--promote manual`
    /// every new model.
    #[oai(
        path = "/api/segments/:name/candidates",
        method = "get",
        tag = "Tags::Training",
        operation_id = "listCandidates"
    )]
    async fn candidates(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        _scope: NeedsRead,
    ) -> Result<Json<Vec<HeldBack>>, CandidatesFailure> {
        let models = state.live.now();
        let slots = &find(&models, &name.0)?.slots;
        let registry = ModelRegistry::new(&state.store, &name.0);
        let mut all = Vec::new();
        for (slot, held) in slots.iter().filter_map(|slot| Some((slot, slot.candidate.clone()?))) {
            let registry = registry.clone();
            let slice = slot.slice;
            let read = tokio::task::spawn_blocking(move || registry.model_of(held.version, slice)).await;
            let candidate = read.map_err(|_| Problem::unavailable("the request was cut off; try again"))?;
            all.push(HeldBack {
                slice: slot.slice,
                since: held.at,
                reason: held.reason,
                violated: held.violated,
                candidate: candidate.map_err(|error| unread(&error))?,
                champion: slot.serving.as_ref().map(|serving| serving.model.clone()),
            });
        }
        Ok(Json(all))
    }

    /// Let the candidate of a slice serve
    ///
    /// Waits for a training that runs.
    #[oai(
        path = "/api/segments/:name/candidates/:slice/promote",
        method = "post",
        tag = "Tags::Training",
        operation_id = "promoteCandidate"
    )]
    async fn promote(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// 1, 2 or 3.
        slice: Path<u8>,
        _scope: NeedsAdmin,
    ) -> Result<Json<NowServing>, DecisionFailure> {
        let (name, slice) = (name.0, slice.0);
        let done = change(&state, &name.clone(), move |registry| registry.promote(&name, slice)).await?;
        decided(&state, &done.model.segmentation, slice, PROMOTED);
        Ok(Json(now_serving(&state, done, "promotion")))
    }

    /// Reject the candidate of a slice
    ///
    /// The version that serves keeps serving. The rejected version is kept, and trainings of the same records and SQL do not make it a
    /// candidate again. Waits for a running training.
    #[oai(
        path = "/api/segments/:name/candidates/:slice/reject",
        method = "post",
        tag = "Tags::Training",
        operation_id = "rejectCandidate"
    )]
    async fn reject(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// 1, 2 or 3.
        slice: Path<u8>,
        _scope: NeedsAdmin,
    ) -> Result<Json<Rejected>, DecisionFailure> {
        let (name, slice) = (name.0, slice.0);
        let rejected = change(&state, &name.clone(), move |registry| registry.reject(&name, slice)).await?;
        decided(&state, &rejected.segmentation, slice, REJECTED);
        Ok(Json(rejected))
    }
}

/// Tells that a slice has no candidate any more.
fn decided(state: &State, name: &str, slice: u8, words: &'static str) {
    if let Some(notifier) = state.notifier.clone() {
        let name = name.to_owned();
        tokio::task::spawn_blocking(move || notifier.decided(&name, slice, words));
    }
}

/// Problem of a candidate that cannot be read.
fn unread(error: &tercile_store::Error) -> Problem {
    tracing::error!("{error}");
    let why = match error {
        tercile_store::Error::File(fault) => fault.class(),
        _ => "the candidate cannot be read".to_owned(),
    };
    Problem::unavailable(format!("{why}; reject it, and train again; tercile doctor says which file"))
}
