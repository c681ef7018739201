//! Rows to clusters: the three typed endpoints, and the one for any segmentation.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::Float64Array;
use poem::web::Data;
use poem::{IntoResponse, Response};
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Payload;
use poem_openapi::registry::{MetaMediaType, MetaResponse, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::{Example, Type};
use poem_openapi::{ApiResponse, Enum, Object, OpenApi};
use serde::Serialize;
use serde_json::value::RawValue;

use super::live::{Served, Serving};
use super::posted::{self, Posted, Rows};
use super::problem::{Problem, problems};
use super::{State, Tags};
use crate::model::describe::describe;
use crate::model::{Predictor, SLICES};
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
        /// There is no segmentation of this name.
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

/// One row's answer as it is written. What it looks like from outside is documented by the types below.
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

macro_rules! typed_rows {
    ($row:ident, $features:ident, $prediction:ident, $title:literal, $description:literal,
     { $($(#[$doc:meta])* $field:ident: $example:literal,)+ }) => {
        #[doc = concat!("A row of the segmentation by ", $title, ". Fields beside these are ignored.")]
        #[derive(Debug, Clone, Object)]
        #[oai(example)]
        pub struct $row {
            $($(#[$doc])* pub $field: f64,)+
        }

        impl Example for $row {
            fn example() -> Self {
                Self { $($field: $example,)+ }
            }
        }

        #[doc = concat!("The features of a row of the segmentation by ", $title, ", and its cluster.")]
        #[derive(Debug, Clone, Object)]
        pub struct $features {
            $($(#[$doc])* pub $field: f64,)+
            /// The cluster's number.
            pub prediction: u32,
        }

        #[doc = concat!("The answer for one row of the segmentation by ", $title, ".")]
        #[derive(Debug, Clone, Object)]
        #[oai(example)]
        pub struct $prediction {
            /// The cluster's number, from 0.
            pub cluster: u32,
            /// What the cluster's centroid is like.
            pub description: String,
            pub features: $features,
            /// Distance to the centroid, in standardised units.
            pub distance: f64,
            /// The slice whose model answered; not given with `fit=request`.
            #[oai(skip_serializing_if_is_none)]
            pub model: Option<u8>,
            /// The version of that model; not given with `fit=request`.
            #[oai(skip_serializing_if_is_none)]
            pub version: Option<u64>,
        }

        impl Example for $prediction {
            fn example() -> Self {
                Self {
                    cluster: 0,
                    description: $description.to_owned(),
                    features: $features { $($field: $example,)+ prediction: 0 },
                    distance: 0.25,
                    model: Some(3),
                    version: Some(3),
                }
            }
        }
    };
}

typed_rows!(PriceRatingRow, PriceRatingFeatures, PriceRatingPrediction, "price and rating", "Low Price, High Rating", {
    /// Price after the discount, in rupees.
    discounted_price: 300.0,
    /// Mean rating, from 0 to 5.
    rating: 4.5,
});
typed_rows!(RatingCountRow, RatingCountFeatures, RatingCountPrediction, "rating and number of reviews", "High Rating, High Reviews", {
    /// Mean rating, from 0 to 5.
    rating: 4.8,
    /// Number of reviews.
    rating_count: 20000.0,
});
typed_rows!(DiscountRow, DiscountFeatures, DiscountPrediction, "discount", "High Discount", {
    /// Discount in percent, from 0 to 100.
    discount_percentage: 60.0,
});

/// A row for any segmentation: a number for each of its features. Other fields come back under `other`.
pub type AnyRow = BTreeMap<String, serde_json::Value>;

/// The answer for one row of any segmentation.
#[derive(Debug, Clone, Object)]
pub struct Prediction {
    /// The cluster's number, from 0.
    pub cluster: u32,
    /// What the cluster's centroid is like.
    pub description: String,
    /// The row's features, and the cluster's number as `prediction`.
    pub features: BTreeMap<String, f64>,
    /// Distance to the centroid, in standardised units.
    pub distance: f64,
    /// The slice whose model answered; not given with `fit=request`.
    #[oai(skip_serializing_if_is_none)]
    pub model: Option<u8>,
    /// The version of that model; not given with `fit=request`.
    #[oai(skip_serializing_if_is_none)]
    pub version: Option<u64>,
    /// The row's other fields, as they came.
    pub other: BTreeMap<String, serde_json::Value>,
}

/// What a request asks beside its rows.
#[derive(Clone, Copy)]
struct Asked {
    model: Option<u8>,
    language: Language,
    fit: Option<FitMode>,
    keep_other: bool,
}

pub struct PredictApi;

type Answered<T> = Result<Answer<T>, PredictFailure>;

#[OpenApi]
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
    ) -> Answered<PriceRatingPrediction> {
        answer(&state, "price_rating", rows.body, asked(model.0, lang.0, fit.0, false)).await
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
    ) -> Answered<RatingCountPrediction> {
        answer(&state, "rating_count", rows.body, asked(model.0, lang.0, fit.0, false)).await
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
    ) -> Answered<DiscountPrediction> {
        answer(&state, "discount", rows.body, asked(model.0, lang.0, fit.0, false)).await
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
    ) -> Answered<Prediction> {
        answer(&state, &name.0, rows.body, asked(model.0, lang.0, fit.0, true)).await
    }
}

fn asked(model: Option<u8>, language: Option<Language>, fit: Option<FitMode>, keep_other: bool) -> Asked {
    Asked { model, language: language.unwrap_or_default(), fit, keep_other }
}

async fn answer<T>(state: &State, name: &str, body: Vec<u8>, asked: Asked) -> Answered<T> {
    if asked.fit.is_some() && asked.model.is_some() {
        let detail = "model picks a trained model, fit=request asks for none: give one of the two";
        return Err(Problem::unprocessable(detail).field("model").into());
    }
    let models = state.live.now();
    let small = body.len() <= INLINE_BYTES && asked.fit.is_none();
    let name = name.to_owned();
    let work = move || {
        let served = models.get(&name).ok_or_else(|| Problem::not_found(format!("there is no segmentation {name}")))?;
        let rows = posted::read(&body, &served.segmentation.features, asked.keep_other)?;
        match asked.fit {
            Some(FitMode::Request) => cluster_themselves(served, &rows, asked.language),
            None => predict(served, rows, asked),
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

fn predict(served: &Served, mut rows: Rows, asked: Asked) -> Result<Vec<u8>, Problem> {
    let serving = serving(served, asked.model.unwrap_or(SLICES))?;
    let clusters = &serving.model.clusters;
    let descriptions: Vec<&str> =
        clusters.iter().map(|c| c.descriptions.get(asked.language.code()).unwrap_or(&c.description).as_str()).collect();
    let about = (Some(serving.model.slice), Some(serving.model.version));
    write(&served.segmentation.features, &mut rows, &serving.predictor, &descriptions, about)
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
