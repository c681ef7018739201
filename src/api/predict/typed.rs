//! Predictions with the shipped segmentations, whose rows have types in the OpenAPI document.

use std::sync::Arc;

use poem::web::Data;
use poem_openapi::OpenApi;
use poem_openapi::param::Query;

use super::super::asked::{Asked, FitMode, asked};
use super::super::buffered_body::BufferedBody;
use super::super::declared::NeedsRead;
use super::super::language::Language;
use super::super::posted::Posted;
use super::super::predictions::Answer;
use super::super::problem::Problem;
use super::super::rows::{
    DiscountPrediction, DiscountRow, PriceRatingPrediction, PriceRatingRow, RatingCountPrediction, RatingCountRow,
};
use super::super::slice_number::SliceNumber;
use super::super::{State, Tags};
use super::{PredictFailure, whole};

pub struct TypedPredictApi;

type Answered<T> = Result<Answer<T>, PredictFailure>;

#[OpenApi]
#[allow(clippy::too_many_arguments, reason = "what a request may say is an argument each")]
impl TypedPredictApi {
    /// Cluster products by price and rating
    #[oai(
        path = "/api/cluster_products_by_price_rating",
        method = "post",
        tag = "Tags::Predictions",
        operation_id = "clusterByPriceRating"
    )]
    async fn cluster_products_by_price_rating(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<PriceRatingRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
        /// `true`: each answer has an `explanation`.
        explain: Query<Option<bool>>,
        _scope: NeedsRead,
    ) -> Answered<PriceRatingPrediction> {
        answer(&state, "price_rating", rows.body, asked((model.0, as_of.0), lang.0, fit.0), explain.0).await
    }

    /// Cluster products by rating and number of reviews
    #[oai(
        path = "/api/cluster_products_by_rating_count",
        method = "post",
        tag = "Tags::Predictions",
        operation_id = "clusterByRatingCount"
    )]
    async fn cluster_products_by_rating_count(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<RatingCountRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
        /// `true`: each answer has an `explanation`.
        explain: Query<Option<bool>>,
        _scope: NeedsRead,
    ) -> Answered<RatingCountPrediction> {
        answer(&state, "rating_count", rows.body, asked((model.0, as_of.0), lang.0, fit.0), explain.0).await
    }

    /// Cluster products by discount
    #[oai(
        path = "/api/cluster_products_by_discount",
        method = "post",
        tag = "Tags::Predictions",
        operation_id = "clusterByDiscount"
    )]
    async fn cluster_products_by_discount(
        &self,
        state: Data<&Arc<State>>,
        rows: Posted<DiscountRow>,
        /// The slice whose model answers: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        /// The language of the descriptions (`en` if not given).
        lang: Query<Option<Language>>,
        /// `request`: cluster the posted rows themselves instead of asking a model.
        fit: Query<Option<FitMode>>,
        /// A version: answer as that model would have, whatever serves now.
        as_of: Query<Option<u64>>,
        /// `true`: each answer has an `explanation`.
        explain: Query<Option<bool>>,
        _scope: NeedsRead,
    ) -> Answered<DiscountPrediction> {
        answer(&state, "discount", rows.body, asked((model.0, as_of.0), lang.0, fit.0), explain.0).await
    }
}

async fn answer<T>(state: &State, name: &str, body: BufferedBody, asked: Asked, explain: Option<bool>) -> Answered<T> {
    asked.sound()?;
    let explain = explain.unwrap_or(false);
    if asked.fit.is_some() && explain {
        return Err(Problem::unprocessable("fit=request has nothing to explain").field("explain").into());
    }
    let (json, stamp) = whole(state, name, body, asked, (false, explain)).await?;
    Ok(Answer::new(json, stamp))
}
