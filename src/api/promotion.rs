//! Promotion of model versions: rollbacks and pins.
//!
//! Input: a segmentation and a version. Output: the version in service, effective in this process at once and in others within
//! a second.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use tercile_store as store;

use super::declared::NeedsAdmin;
use super::problem::{Problem, problems};
use super::segments::find;
use super::{State, Tags};
use crate::model::history::{RollbackError, RolledBack};
use crate::model::{ModelRegistry, Until};

problems! {
    /// Why nothing changed.
    ServingFailure {
        /// There is no segmentation of this name, no such version of it, or it is not pinned.
        404,
        /// The version is of other features than rows have now.
        422,
        /// The store can't be read or written.
        503,
    }
}

/// What serves a slice now.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct NowServing {
    pub segmentation: String,
    /// The slice that the version was trained on.
    pub slice: u8,
    /// The version that serves now.
    pub version: u64,
    /// The version that served before, if one did.
    #[oai(skip_serializing_if_is_none)]
    pub before: Option<u64>,
    /// Whether it serves whatever trainings find, until it is unpinned.
    pub pinned: bool,
}

pub struct ServingApi;

type Changed = Result<Json<NowServing>, ServingFailure>;

#[OpenApi]
impl ServingApi {
    /// Let an older version serve again
    ///
    /// Until a training finds other records or other SQL than the newest model was made of. Waits for a training that runs.
    #[oai(
        path = "/api/segments/:name/rollback/:version",
        method = "post",
        tag = "Tags::Training",
        operation_id = "rollBack"
    )]
    async fn roll_back(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// A version of any slice.
        version: Path<u64>,
        _scope: NeedsAdmin,
    ) -> Changed {
        let (name, version) = (name.0, version.0);
        let done =
            change(&state, &name.clone(), move |registry| registry.roll_back(&name, version, Until::NewModel)).await?;
        Ok(Json(now_serving(&state, done, "rollback")))
    }

    /// Pin a version
    ///
    /// It serves its slice, whatever trainings find: they go on making versions, and none of them serves until this one is
    /// unpinned, or the SQL file gives other features. Waits for a training that runs.
    #[oai(path = "/api/segments/:name/pin/:version", method = "put", tag = "Tags::Training", operation_id = "pin")]
    async fn pin(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// A version of any slice.
        version: Path<u64>,
        _scope: NeedsAdmin,
    ) -> Changed {
        let (name, version) = (name.0, version.0);
        let done =
            change(&state, &name.clone(), move |registry| registry.roll_back(&name, version, Until::Unpinned)).await?;
        Ok(Json(now_serving(&state, done, "pin")))
    }

    /// Unpin a version
    ///
    /// The newest version of its slice serves again. Waits for a training that runs.
    #[oai(path = "/api/segments/:name/pin/:version", method = "delete", tag = "Tags::Training", operation_id = "unpin")]
    async fn unpin(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The version that is pinned.
        version: Path<u64>,
        _scope: NeedsAdmin,
    ) -> Changed {
        let (name, version) = (name.0, version.0);
        let done = change(&state, &name.clone(), move |registry| registry.unpin(&name, version)).await?;
        Ok(Json(now_serving(&state, done, "unpin")))
    }
}

/// Runs `change` on the registry of a segmentation, under the lock that excludes trainings.
///
/// # Errors
/// A problem that says why nothing changed.
pub(super) async fn change<T: Send + 'static>(
    state: &State,
    name: &str,
    change: impl FnOnce(&ModelRegistry) -> Result<T, RollbackError> + Send + 'static,
) -> Result<T, Problem> {
    find(&state.live.now(), name)?;
    let (store, registry) = (state.store.clone(), ModelRegistry::new(&state.store, name));
    let work = move || {
        // Waits for a running training, which would promote its own models when it ends.
        let _alone = store.lock_models()?;
        change(&registry)
    };
    let done = tokio::task::spawn_blocking(work).await;
    let done = match done {
        Ok(done) => done.map_err(problem)?,
        Err(_) => return Err(Problem::unavailable("the change was cut off; look at what serves, and try again")),
    };
    if let Err(error) = state.live.reload().await {
        tracing::warn!("the change is not in service yet: {error:#}");
    }
    Ok(done)
}

/// The serving version after a change. The change is sent to webhooks with its cause, `by`.
pub(super) fn now_serving(state: &State, done: RolledBack, by: &'static str) -> NowServing {
    let RolledBack { model, before, pinned } = &done;
    let now = NowServing {
        segmentation: model.segmentation.clone(),
        slice: model.slice,
        version: model.version,
        before: *before,
        pinned: *pinned,
    };
    if let Some(notifier) = state.notifier.clone() {
        tokio::task::spawn_blocking(move || notifier.changed(&done, by));
    }
    now
}

fn problem(error: RollbackError) -> Problem {
    match error {
        RollbackError::Store(store::Error::File(fault)) => {
            tracing::error!("{fault}");
            Problem::unavailable(format!("nothing was changed: {}; tercile doctor says which file", fault.class()))
        }
        RollbackError::Store(error) => {
            tracing::error!("{error}");
            Problem::unavailable("the models can't be changed now; the server's log says why")
        }
        RollbackError::NoVersion { segmentation, version } => {
            Problem::not_found(format!("{segmentation} has no version {version}")).field("version")
        }
        RollbackError::NotPinned { segmentation, version } => {
            Problem::not_found(format!("version {version} of {segmentation} is not pinned")).field("version")
        }
        RollbackError::NoCandidate { segmentation, slice } => {
            Problem::not_found(format!("slice {slice} of {segmentation} has no candidate")).field("slice")
        }
        RollbackError::Pinned { segmentation, slice, version } => {
            let why = format!("version {version} of {segmentation} is pinned to slice {slice}; unpin it first");
            Problem::conflict(why).field("slice")
        }
        error @ RollbackError::OtherFeatures { .. } => Problem::unprocessable(error.to_string()).field("version"),
    }
}
