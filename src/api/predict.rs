//! Rows to clusters: the three typed endpoints, and the one for any segmentation.

use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::Float64Array;
use poem::web::Data;
use poem::{IntoResponse, Response};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use poem_openapi::{ApiResponse, Enum, OpenApi};
use serde::Serialize;
use serde_json::value::RawValue;

use super::live::{Live, Served, Serving};
use super::posted::{self, Posted, Rows};
use super::problem::{Problem, problems};
use super::rows::{
    AnyRow, DiscountPrediction, DiscountRow, Prediction, PriceRatingPrediction, PriceRatingRow, RatingCountPrediction,
    RatingCountRow,
};
use super::{State, Tags};
use crate::model::describe::describe;
use crate::model::{Model, Predictor, SLICES};
use crate::train;

/// Bodies above this are read and answered on a thread of their own, so that small requests need not wait for them.
const INLINE_BYTES: usize = 64 * 1024;
/// Clusters of `?fit=request`, unless there are fewer different rows.
const REQUEST_K: usize = 3;

/// The language of descriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Indonesian.
    Id,
}

impl Language {
    fn code(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Id => "id",
        }
    }
}

/// What to cluster with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename_all = "lowercase")]
pub enum FitMode {
    /// The posted rows themselves.
    Request,
}

problems! {
    /// Why there is no prediction.
    PredictFailure {
        /// The body is no JSON.
        NotJson = 400,
        /// There is no segmentation of this name, or no such version of it.
        NotFound = 404,
        /// Too many rows, or too many bytes.
        TooLarge = 413,
        /// The body is not sent as JSON.
        MediaType = 415,
        /// A row does not fit, which `index` and `field` name; or a parameter does not.
        Unprocessable = 422,
        /// There is no model for this slice yet.
        Unavailable = 503,
    }
}

/// A JSON answer that is documented as an array of `T`.
pub struct Answer<T> {
    json: Vec<u8>,
    item: PhantomData<fn() -> T>,
}

impl<T: Type> Payload for Answer<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn schema_ref() -> MetaSchemaRef {
        Vec::<T>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        Vec::<T>::register(registry);
    }
}

impl<T: Type> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        Response::builder().content_type(Self::CONTENT_TYPE).body(self.json)
    }
}

impl<T: Type> ApiResponse for Answer<T> {
    fn meta() -> MetaResponses {
        let content = vec![MetaMediaType { content_type: Self::CONTENT_TYPE, schema: Self::schema_ref() }];
        let response = MetaResponse {
            description: "The rows' clusters, in the order of the rows.",
            status: Some(200),
            status_range: None,
            content,
            headers: vec![],
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(registry: &mut Registry) {
        <Self as Payload>::register(registry);
    }
}

/// One row's answer as it is written. What it looks like from outside is documented by the types of rows.rs.
#[derive(Serialize)]
struct Line<'a> {
    cluster: usize,
    description: &'a str,
    features: Features<'a>,
    /// To the centroid, in standardised units.
    distance: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    other: Option<&'a RawValue>,
}

struct Features<'a> {
    names: &'a [String],
    values: &'a [f64],
    prediction: usize,
}

impl Serialize for Features<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(self.names.len() + 1))?;
        for (name, value) in self.names.iter().zip(self.values) {
            map.serialize_entry(name, value)?;
        }
        map.serialize_entry("prediction", &self.prediction)?;
        map.end()
    }
}

/// What a request asks beside its rows.
#[derive(Clone, Copy)]
struct Asked {
    model: Option<u8>,
    as_of: Option<u64>,
    language: Language,
    fit: Option<FitMode>,
    keep_other: bool,
}

pub struct PredictApi;

type Answered<T> = Result<Answer<T>, PredictFailure>;

#[OpenApi]
#[allow(clippy::too_many_arguments, reason = "what a request may say is an argument each")]
impl PredictApi {
    /// Cluster products by price and rating
    #[oai(path = "/api/cluster_products_by_price_rating", method = "post", tag = "Tags::Predictions")]
    async fn cluster_products_by_price_rating(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<PriceRatingRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "3")))]
        model: Query<Option<u8>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
    ) -> Answered<PriceRatingPrediction> {
        answer(&state, "price_rating", rows.body, asked((model.0, as_of.0), lang.0, fit.0, false)).await
    }

    /// Cluster products by rating and number of reviews
    #[oai(path = "/api/cluster_products_by_rating_count", method = "post", tag = "Tags::Predictions")]
    async fn cluster_products_by_rating_count(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<RatingCountRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "3")))]
        model: Query<Option<u8>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
    ) -> Answered<RatingCountPrediction> {
        answer(&state, "rating_count", rows.body, asked((model.0, as_of.0), lang.0, fit.0, false)).await
    }

    /// Cluster products by discount
    #[oai(path = "/api/cluster_products_by_discount", method = "post", tag = "Tags::Predictions")]
    async fn cluster_products_by_discount(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<DiscountRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "3")))]
        model: Query<Option<u8>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
    ) -> Answered<DiscountPrediction> {
        answer(&state, "discount", rows.body, asked((model.0, as_of.0), lang.0, fit.0, false)).await
    }

    /// Predict with any segmentation
    #[oai(path = "/api/segments/:name/predict", method = "post", tag = "Tags::Predictions")]
    async fn predict(
        &self,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        rows: Posted<AnyRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        #[oai(validator(minimum(value = "1"), maximum(value = "3")))]
        model: Query<Option<u8>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
    ) -> Answered<Prediction> {
        answer(&state, &name.0, rows.body, asked((model.0, as_of.0), lang.0, fit.0, true)).await
    }
}

fn asked(
    (model, as_of): (Option<u8>, Option<u64>),
    language: Option<Language>,
    fit: Option<FitMode>,
    keep_other: bool,
) -> Asked {
    Asked { model, as_of, language: language.unwrap_or_default(), fit, keep_other }
}

async fn answer<T>(state: &State, name: &str, body: Vec<u8>, asked: Asked) -> Answered<T> {
    let trained = [("model", asked.model.is_some()), ("as_of", asked.as_of.is_some())];
    if let Some((field, _)) = trained.into_iter().find(|(_, given)| *given).filter(|_| asked.fit.is_some()) {
        let detail = format!("{field} picks a trained model, fit=request asks for none: give one of the two");
        return Err(Problem::unprocessable(detail).field(field).into());
    }
    let (live, models) = (Arc::clone(&state.live), state.live.now());
    let small = body.len() <= INLINE_BYTES && asked.fit.is_none() && asked.as_of.is_none();
    let name = name.to_owned();
    let work = move || {
        let served = models.get(&name).ok_or_else(|| Problem::not_found(format!("there is no segmentation {name}")))?;
        if let Some(version) = asked.as_of {
            let older = recalled(&live, &name, version, asked.model)?;
            let rows = posted::read(&body, &older.model.features, asked.keep_other)?;
            return predict(&older, rows, asked.language);
        }
        let rows = posted::read(&body, &served.segmentation.features, asked.keep_other)?;
        match asked.fit {
            Some(FitMode::Request) => cluster_themselves(served, &rows, asked.language),
            None => predict(serving(served, asked.model.unwrap_or(SLICES))?, rows, asked.language),
        }
    };
    let json = if small {
        work()
    } else {
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(Problem::unavailable("the answer was cut off; try again")))
    };
    Ok(Answer { json: json?, item: PhantomData })
}

/// The model of the slice that was asked for, or why there is none.
pub(super) fn serving(served: &Served, slice: u8) -> Result<&Serving, Problem> {
    let slot = served.slots.iter().find(|slot| slot.slice == slice);
    let name = &served.segmentation.name;
    let slot = slot.ok_or_else(|| Problem::not_found(format!("{name} has the slices 1, 2 and 3, none {slice}")))?;
    slot.serving.as_deref().ok_or_else(|| {
        Problem::unavailable(match &slot.refused {
            Some(why) => format!("there is no model: {why}"),
            None => format!("{name} of slice {slice} is not trained yet; POST /api/train, or wait for more records"),
        })
    })
}

/// A version that was asked for, whether it serves or not.
fn recalled(live: &Live, name: &str, version: u64, slice: Option<u8>) -> Result<Arc<Serving>, Problem> {
    let found = live.recall(name, version).map_err(|error| {
        tracing::error!("{error}");
        Problem::unavailable(format!("version {version} of {name} can't be read; the server's log says why"))
    })?;
    let none = || Problem::not_found(format!("{name} has no version {version}")).field("as_of");
    let found = found.ok_or_else(none)?;
    match slice.filter(|&slice| slice != found.model.slice) {
        None => Ok(found),
        Some(slice) => {
            let of = found.model.slice;
            let detail = format!("version {version} of {name} is of slice {of}, not {slice}: leave model out");
            Err(Problem::unprocessable(detail).field("as_of"))
        }
    }
}

fn predict(serving: &Serving, mut rows: Rows, language: Language) -> Result<Vec<u8>, Problem> {
    let Model { clusters, features, slice, version, .. } = &serving.model;
    let descriptions: Vec<&str> =
        clusters.iter().map(|c| c.descriptions.get(language.code()).unwrap_or(&c.description).as_str()).collect();
    write(features, &mut rows, &serving.predictor, &descriptions, (Some(*slice), Some(*version)))
}

/// What the student system did with each request: the rows are clustered by themselves.
fn cluster_themselves(served: &Served, rows: &Rows, language: Language) -> Result<Vec<u8>, Problem> {
    let features = &served.segmentation.features;
    let columns: Vec<Float64Array> = (0..features.len())
        .map(|feature| rows.values.iter().skip(feature).step_by(features.len()).copied().collect::<Vec<_>>().into())
        .collect();
    let found = train::fit_adhoc(features, &columns, REQUEST_K)
        .map_err(|e| Problem::unprocessable(format!("these rows can't be clustered: {e}")))?;
    let described = describe(found.centroids.view(), features, &served.segmentation.labels);
    let descriptions: Vec<&str> = described.iter().map(|d| d.get(language.code()).map_or("", String::as_str)).collect();
    let mut rows = Rows { values: rows.values.clone(), other: rows.other.clone() };
    write(features, &mut rows, &found.predictor, &descriptions, (None, None))
}

fn write(
    names: &[String],
    rows: &mut Rows,
    predictor: &Predictor,
    descriptions: &[&str],
    (model, version): (Option<u8>, Option<u64>),
) -> Result<Vec<u8>, Problem> {
    let broken = |e: serde_json::Error| {
        tracing::error!("an answer could not be written: {e}");
        Problem::unavailable("the answer could not be written")
    };
    let mut json = Vec::with_capacity(rows.values.len() * 96 + 2);
    json.push(b'[');
    let mut scratch = vec![0.0; names.len()];
    for (i, values) in rows.values.chunks_exact(names.len()).enumerate() {
        scratch.copy_from_slice(values);
        let (cluster, distance) = predictor.predict(&mut scratch);
        if !distance.is_finite() {
            // Squares left the range of a double, so no cluster is nearer than another. The scratch holds the
            // standardised row: its largest value is the one to blame.
            let worst = (0..names.len()).max_by(|&a, &b| scratch[a].abs().total_cmp(&scratch[b].abs())).unwrap_or(0);
            let detail = format!("row {i}: {} is too far from every cluster to tell them apart", names[worst]);
            return Err(Problem::unprocessable(detail).at(i as u64).field(&names[worst]));
        }
        let other = rows.other.get(i).map(|json| serde_json::from_str(json)).transpose().map_err(broken)?;
        let features = Features { names, values, prediction: cluster };
        let description = descriptions.get(cluster).copied().unwrap_or_default();
        if i > 0 {
            json.push(b',');
        }
        let line = Line { cluster, description, features, distance, model, version, other };
        serde_json::to_writer(&mut json, &line).map_err(broken)?;
    }
    json.push(b']');
    Ok(json)
}
