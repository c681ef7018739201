//! Drift endpoint: later rows compared with those that a model was trained on.
//!
//! A report reads records, so it is made on a blocking thread with a permit, once for all concurrent requests for the same one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;

use super::asked::serving;
use super::cached_response::Coalesced;
use super::declared::NeedsRead;
use super::problem::{Problem, problems};
use super::segments::find;
use super::slice_number::SliceNumber;
use super::{State, Tags};
use crate::drift::rows::{Error, Source};
use crate::drift::{Drift, Of};
use crate::model_cache::Models;

/// Memory of a comparison's queries in bytes. Views that sort may need it; others read records one by one.
const MEMORY: usize = 256 << 20;

problems! {
    /// Why there is no report.
    DriftFailure {
        /// There is nothing of this name.
        404,
        /// The model has no baseline, or is of other SQL files than the current ones: a training makes a model that can be compared.
        409,
        /// A parameter does not fit.
        422,
        /// There is no model for this slice yet, or the records cannot be read.
        503,
    }
}

type Shared = Arc<Coalesced<Result<Drift, Problem>>>;

/// Reports that are being made, by segmentation, slice and rows.
#[derive(Default)]
pub struct Reports(Mutex<HashMap<(String, u8, Of), Shared>>);

impl Reports {
    fn of(&self, name: &str, slice: u8, of: Of) -> Shared {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Segmentations that are gone leave their names behind until then.
        if all.len() > 1_000 {
            all.clear();
        }
        Arc::clone(all.entry((name.to_owned(), slice, of)).or_default())
    }
}

pub struct DriftApi;

#[OpenApi]
impl DriftApi {
    /// Whether later rows are distributed like those of the training
    ///
    /// A feature drifts if its population stability index is 0.2 or more, a cluster if its share of the rows differs by 0.1 or more,
    /// and the model if 5 % more of the rows are unlike those of the training; each also needs a p-value below 0.0001, and 500 rows on
    /// either side. At most 100,000 rows are read.
    #[oai(path = "/api/segments/:name/drift", method = "get", tag = "Tags::Segments", operation_id = "getDrift")]
    async fn drift(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The slice: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// Which rows: records that arrived after the training (if not given), rows of requests to this process, or the rows that the
        /// slice has beyond the slice before.
        of: Query<Option<Of>>,
        _scope: NeedsRead,
    ) -> Result<Json<Drift>, DriftFailure> {
        let (slice, of) = (model.0.unwrap_or_default().get(), of.0.unwrap_or(Of::Stream));
        let models = state.live.now();
        find(&models, &name.0)?;
        let reports = state.drift.of(&name.0, slice, of);
        let report = reports.get(report(&state, models, &name.0, (slice, of))).await;
        match report.as_ref() {
            Ok(report) => Ok(Json(report.clone())),
            Err(problem) => Err(problem.clone().into()),
        }
    }
}

/// The report on a model in service.
///
/// # Errors
/// A problem that says why there is none.
pub(super) async fn report(
    state: &State,
    models: Arc<Models>,
    name: &str,
    (slice, of): (u8, Of),
) -> Result<Drift, Problem> {
    let served = find(&models, name)?;
    let model = Arc::clone(serving(served, slice)?);
    if of == Of::Api {
        return model.asked.drift(&model.model).map_err(problem);
    }
    let before = match of {
        Of::Thirds if slice == 1 => return Err(problem(Error::FirstSlice)),
        Of::Thirds => Some(Arc::clone(serving(served, slice - 1)?)),
        _ => None,
    };
    let (store, files, segmentation) = (state.store.clone(), served.files().clone(), served.segmentation.clone());
    let work = move || {
        let source = Source { store: &store, files: &files, segmentation: &segmentation, memory: Some(MEMORY) };
        // A runtime of its own: queries must not run on the threads that answer requests.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            tracing::error!("cannot compare rows with {}: {error}", segmentation.name);
            Problem::unavailable("the rows cannot be compared now; try again")
        })?;
        let compared = runtime.block_on(async {
            match &before {
                Some(before) => source.thirds(&before.model, &model.model).await,
                None => source.stream(&model.model).await,
            }
        });
        compared.map_err(problem)
    };
    let done = state.turns.run(work).await;
    done.unwrap_or_else(|| Err(Problem::unavailable("the comparison was cut off; try again")))
}

fn problem(error: Error) -> Problem {
    match error {
        Error::NoBaseline { .. } | Error::Sql { .. } | Error::Topic { .. } => Problem::conflict(error.to_string()),
        Error::FirstSlice => Problem::unprocessable(error.to_string()).field("model"),
        Error::Store(_) | Error::Engine(_) | Error::Arrow(_) => {
            tracing::error!("cannot compare rows: {error}");
            Problem::unavailable(
                "the records cannot be read; the log says why, and tercile doctor which file is the cause",
            )
        }
    }
}
