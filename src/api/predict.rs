//! Predictions of rows with any segmentation.

mod any_format;
mod request_fit;
mod typed;

use std::sync::Arc;

use any_format::answer_any;
pub(super) use any_format::{Whole, begin, explainer, form};
use poem::Request;
use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::{Path, Query};
use request_fit::cluster_themselves;
pub use typed::TypedPredictApi;

use super::asked::{Asked, FitMode, asked, find};
use super::budget::{Budget, Exhausted, Hold};
use super::buffered_body::BufferedBody;
use super::declared::NeedsRead;
use super::etag::EntityTag;
use super::language::Language;
use super::posted::{self, Rows};
use super::predictions::Predicted;
use super::problem::{Problem, problems};
use super::slice_number::SliceNumber;
use super::{State, Tags, bulk};
use crate::bulk::{Explainer, Lines, TooFar};
use crate::model::Predictor;
use crate::model_cache::{Serving, Tally};

/// Maximum body size that is processed inline; larger bodies are processed on a blocking thread, so that small requests do not
/// wait for them.
const INLINE_BYTES: usize = 64 * 1024;
/// Approximate bytes of JSON in a response per value of a row.
const VALUE_JSON: usize = 96;

problems! {
    /// Why there is no prediction.
    PredictFailure {
        /// The body is not what its Content-Type says.
        400,
        /// There is no segmentation of this name, or no such version of it.
        404,
        /// Answers come in other media types than those that the Accept header names.
        406,
        /// The records of this slice cannot be clustered; the detail says why.
        409,
        /// Too many rows, or too many bytes.
        413,
        /// The body is sent as something else than rows come in.
        415,
        /// A row does not fit, which `index` and `field` name; or a parameter does not.
        422,
        /// There is no model for this slice yet; or as many bodies as may are being answered: try again in a moment.
        503,
    }
}

pub struct PredictApi;

#[OpenApi]
#[allow(clippy::too_many_arguments, reason = "what a request may say is an argument each")]
impl PredictApi {
    /// Predict with any segmentation
    ///
    /// Rows come as `application/json`, `application/x-ndjson`, `text/csv` or `application/vnd.apache.arrow.stream`, and go out
    /// as the Accept header asks, else as they came; `application/jsonl` and `text/tab-separated-values` work too. Bodies of any length stream: by default up to 1 GiB (`--max-body-bytes`),
    /// 10,000,000 rows (`--max-body-rows`), 1,000 fields a row (`--max-body-fields`) and 127 levels (`--max-body-depth`); a row,
    /// or a record batch of Arrow's, may have 64 MiB. With `fit=request` a body may have 64 MiB and 100,000 rows.
    #[oai(path = "/api/segments/:name/predict", method = "post", tag = "Tags::Predictions", operation_id = "predict")]
    async fn predict(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        rows: bulk::Rows,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model; JSON only.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
        /// `true`: each answer has an `explanation`; JSON and NDJSON only.
        explain: Query<Option<bool>>,
        _scope: NeedsRead,
    ) -> Result<Predicted, PredictFailure> {
        let asked = asked((model.0, as_of.0), lang.0, fit.0);
        Ok(answer_any(&state, &name.0, request, rows, asked, explain.0.unwrap_or(false)).await?)
    }
}

/// Predicts for a complete JSON body.
async fn whole(
    state: &State,
    name: &str,
    body: BufferedBody,
    asked: Asked,
    (keep_other, explain): (bool, bool),
) -> Result<(Vec<u8>, Option<EntityTag>), Problem> {
    let (live, models) = (Arc::clone(&state.live), state.live.now());
    let small = body.bytes.len() <= INLINE_BYTES && asked.fit.is_none() && asked.as_of.is_none();
    let limits = state.bodies.limits;
    let metrics = state.metrics.clone();
    let budget = state.budget.clone();
    let name = name.to_owned();
    let work = move || {
        if asked.fit.is_some() {
            let served = find(&models, &name)?;
            let rows = posted::read(&body.bytes, &served.segmentation.features, keep_other, limits)?;
            drop(body);
            let _hold = hold_answer(&budget, &rows)?;
            return Ok((cluster_themselves(served, &rows, &asked.language)?, None));
        }
        let features = &find(&models, &name)?.segmentation.features;
        // Errors in the rows take precedence over a missing model.
        let rows = |features: &[String]| posted::read(&body.bytes, features, keep_other, limits);
        let rows = if asked.as_of.is_none() { Some(rows(features)?) } else { None };
        let serving = asked.serving(&live, &models, &name)?;
        let rows = rows.map_or_else(|| posted::read(&body.bytes, &serving.model.features, keep_other, limits), Ok)?;
        drop(body);
        let _hold = hold_answer(&budget, &rows)?;
        let language = asked.language.code();
        let explainer = match explain {
            true => Some(explainer(find(&models, &name)?, &serving, language)),
            false => None,
        };
        let json = predict(&serving, &rows, language, explainer.as_ref(), serving.tally(|model| metrics.tally(model)))?;
        Ok((json, Some(EntityTag::of(&serving.model))))
    };
    if small {
        return work();
    }
    let done = state.turns.run(work).await;
    done.unwrap_or_else(|| Err(Problem::unavailable("the answer was cut off; try again")))
}

/// Holds memory for the rows and their response, from the release of the body until the response is handed over.
fn hold_answer(budget: &Budget, rows: &Rows) -> Result<Hold, Exhausted> {
    let other: usize = rows.other.iter().map(String::len).sum();
    budget.hold(rows.values.len() * (size_of::<f64>() + VALUE_JSON) + 2 * other)
}

fn predict(
    serving: &Serving,
    rows: &Rows,
    language: &str,
    explainer: Option<&Explainer>,
    tally: &Tally,
) -> Result<Vec<u8>, Problem> {
    let (features, lines) = (&serving.model.features, serving.lines(language));
    let (json, clusters) = write(features, rows, &serving.predictor, lines, explainer)?;
    tally.add(clusters);
    let width = serving.model.features.len();
    serving.asked.add(rows.values.len() / width, |row| Some(rows.values[row * width..][..width].into()));
    Ok(json)
}

/// JSON of the response, and the cluster of each row.
fn write(
    names: &[String],
    rows: &Rows,
    predictor: &Predictor,
    lines: &Lines,
    explainer: Option<&Explainer>,
) -> Result<(Vec<u8>, Vec<u32>), Problem> {
    let mut json = Vec::with_capacity(rows.values.len() * VALUE_JSON + 2);
    json.push(b'[');
    let mut scratch = vec![0.0; names.len()];
    let mut clusters = Vec::with_capacity(rows.values.len() / names.len());
    for (i, values) in rows.values.chunks_exact(names.len()).enumerate() {
        scratch.copy_from_slice(values);
        let (cluster, distance) = predictor.predict(&mut scratch);
        let too_far = |TooFar { feature, why }: TooFar| {
            let field = &names[feature];
            Problem::unprocessable(format!("row {i}: {field} {why}")).at(i as u64).field(field)
        };
        if !predictor.tells(distance) {
            return Err(too_far(TooFar::of(predictor, values)));
        }
        if i > 0 {
            json.push(b',');
        }
        clusters.push(cluster as u32);
        let other = rows.other.get(i).map(String::as_str);
        // Only explanations can fail.
        lines.push(&mut json, values, (cluster, distance), other, explainer).map_err(too_far)?;
    }
    json.push(b']');
    Ok((json, clusters))
}
