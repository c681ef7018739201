//! Scoring endpoint: raw records, cleaned by the SQL files, with the cluster of each or the reason why it has none.

use std::sync::Arc;

use poem::web::Data;
use poem::{Body, IntoResponse, Request, Response};
use poem_openapi::param::{Path, Query};
use poem_openapi::registry::{MetaResponse, MetaResponses, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, OpenApi};

use super::asked::{asked, find};
use super::declared::NeedsRead;
use super::etag::EntityTag;
use super::language::Language;
use super::predict::{Whole, begin, explainer, form};
use super::predictions::Predicted;
use super::problem::{Problem, problems};
use super::rows::RecordScore;
use super::slice_number::SliceNumber;
use super::{State, Tags, bulk, etag};
use crate::bulk::{Answers, Format, Lines, Scorer};
use crate::engine::row_by_row::NotRowByRow;
use crate::missing::Missing;
use crate::model::Model;
use crate::model_cache::Served;
use crate::sql::fault::Fault;

/// Maximum body size that is processed inline.
const INLINE_BYTES: usize = 8 * 1024;

problems! {
    /// Why there are no scores.
    ScoreFailure {
        /// The body is not what its Content-Type says.
        400,
        /// There is no segmentation of this name, or no such version of it.
        404,
        /// Answers come in other media types than those that the Accept header names.
        406,
        /// The segmentation is not determined by single records: its SQL aggregates, sorts or compares records, or it is one of
        /// entities; or the records of this slice cannot be clustered.
        409,
        /// Too many records, or too many bytes.
        413,
        /// The body is sent as something else than records come in.
        415,
        /// A parameter does not fit.
        422,
        /// There is no model for this slice yet; or as many bodies as may are being answered: try again in a moment.
        503,
    }
}

/// Scores in the negotiated format.
pub struct Scores(Predicted);

impl IntoResponse for Scores {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl ApiResponse for Scores {
    fn meta() -> MetaResponses {
        let response = MetaResponse {
            description: "The records' clusters, in the order of the records. As JSON an array of answers, as NDJSON one a line. \
                          As CSV or Arrow the columns that came and four more: `cluster`, `description`, `distance` and \
                          `reason`; records that came as JSON have a column for each feature, and themselves as the text `row`. \
                          Large answers stream while the records arrive; one that breaks off in the middle ended in an error.",
            status: Some(200),
            status_range: None,
            content: bulk::content(Vec::<RecordScore>::schema_ref()),
            headers: etag::headers(),
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        Vec::<RecordScore>::register(registry);
    }
}

pub struct ScoreApi;

#[OpenApi]
#[allow(clippy::too_many_arguments, reason = "what a request may say is an argument each")]
impl ScoreApi {
    /// Score raw records
    ///
    /// Records come as they are on the topic, before any cleaning, as JSON, NDJSON, CSV or Arrow. They pass through the same SQL
    /// files as stored records, and then through the model. A record that the SQL leaves out, that cannot be parsed or in which a
    /// feature is missing is answered at its position, with the reason. `_partition`, `_offset`, `_timestamp` and `_key` are NULL
    /// for these records, and `_slice` is 3. The limits are those of predict.
    #[oai(path = "/api/segments/:name/score", method = "post", tag = "Tags::Predictions", operation_id = "score")]
    async fn score(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        records: bulk::Rows,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
        /// `true`: each answer has an `explanation`; JSON and NDJSON only.
        explain: Query<Option<bool>>,
        _scope: NeedsRead,
    ) -> Result<Scores, ScoreFailure> {
        let asked = (model.0, as_of.0, lang.0.unwrap_or_default(), explain.0.unwrap_or(false));
        Ok(Scores(answer(&state, &name.0, request, records, asked).await?))
    }
}

async fn answer(
    state: &State,
    name: &str,
    request: &Request,
    records: bulk::Rows,
    (model, as_of, language, explain): (Option<SliceNumber>, Option<u64>, Language, bool),
) -> Result<Predicted, Problem> {
    let from = records.format;
    let to = form(request, from, explain)?;
    let models = state.live.now();
    let served = find(&models, name)?;
    let record_scorer = served.record_scorer().await.map_err(|why| conflict(name, &why))?;
    let serving = asked((model, as_of), None, None).serving(&state.live, &models, name)?;
    let Model { features, version, .. } = &serving.model;
    same_features(served, features, *version)?;
    let (head, rest) = begin(state, request, records.body, Whole::UpTo(INLINE_BYTES)).await?;
    let language = language.code();
    let lines = Lines::of_records(&serving.model, language);
    let answers = Answers { lines, explainer: explain.then(|| explainer(served, &serving, language)) };
    let order = bulk::Order {
        from,
        to,
        scorer: Scorer::new(&serving.model, language).with_missing(Missing::Skip),
        tally: state.metrics.tally(&serving.model),
        asked: Arc::clone(&serving.asked),
        answers,
        records: Some(record_scorer),
    };
    let stamp = Some(EntityTag::of(&serving.model));
    if rest.is_none() && from == Format::Json {
        let json = bulk::at_once(state, order, head)?;
        return Ok(Predicted { format: to, body: Body::from(json), stamp });
    }
    let body = bulk::answer(state, order, head, rest).await?;
    Ok(Predicted { format: to, body, stamp })
}

/// The current SQL gives the features of the model, unless an older version is asked for.
fn same_features(served: &Served, features: &[String], version: u64) -> Result<(), Problem> {
    let current = &served.segmentation.features;
    if current == features {
        return Ok(());
    }
    let (current, features) = (current.join(", "), features.join(", "));
    let detail = format!("version {version} has the features {features}, and the SQL gives {current}: leave as_of out");
    Err(Problem::conflict(detail).field("as_of"))
}

/// The reason why single records do not determine a segmentation, without the path of its SQL file.
fn conflict(name: &str, why: &NotRowByRow) -> Problem {
    match why {
        NotRowByRow::Plan(why) => Problem::conflict(format!("{name} cannot score records: {why}")),
        NotRowByRow::Node(Fault { file, place, why, .. }) => {
            let file = file.as_deref().map(|file| file.rsplit(['/', '\\']).next().unwrap_or(file)).unwrap_or_default();
            let line = place.map(|place| format!(", line {}", place.line)).unwrap_or_default();
            let mut problem = Problem::conflict(format!("{name} cannot score records: {file}{line}: {why}"));
            problem.line = place.map(|place| place.line as u64);
            problem.column = place.map(|place| place.column as u64);
            problem
        }
    }
}
