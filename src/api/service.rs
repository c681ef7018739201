//! The operations of the API, and its OpenAPI document.

use poem_openapi::{LicenseObject, OpenApiService};

use super::{
    candidates, document, drift, events, health, k_report, members, predict, promotion, score, segments, sql, status,
    training, typed_operations, unreadable,
};
use crate::sql::Files;

type Apis = (
    (predict::TypedPredictApi, predict::PredictApi, score::ScoreApi),
    (segments::SegmentsApi, drift::DriftApi),
    k_report::KReportApi,
    unreadable::UnreadableApi,
    training::TrainingApi,
    sql::SqlApi,
    (promotion::ServingApi, candidates::CandidatesApi),
    (members::MembersApi, status::StatusApi, events::EventsApi, health::HealthApi),
);

/// All operations.
pub(super) fn service() -> OpenApiService<Apis, ()> {
    let apis: Apis = (
        (predict::TypedPredictApi, predict::PredictApi, score::ScoreApi),
        (segments::SegmentsApi, drift::DriftApi),
        k_report::KReportApi,
        unreadable::UnreadableApi,
        training::TrainingApi,
        sql::SqlApi,
        (promotion::ServingApi, candidates::CandidatesApi),
        (members::MembersApi, status::StatusApi, events::EventsApi, health::HealthApi),
    );
    OpenApiService::new(apis, "tercile", env!("CARGO_PKG_VERSION"))
        .summary("Live segments out of a Kafka stream")
        .description(
            "Segments of a stream of records, found by KMeans on the first third of the stream, the first two thirds \
             and all of it. Post rows, get the cluster of each, and what its centroid is like. Every error is a \
             problem+json (RFC 9457).",
        )
        .license(LicenseObject::new("Apache-2.0").identifier("Apache-2.0"))
}

/// The OpenAPI document of a server with the shipped SQL files.
///
/// # Errors
/// If the shipped SQL files do not plan.
pub async fn spec() -> anyhow::Result<String> {
    let mut document = document::complete(&service().spec(), false);
    typed_operations::add(&mut document, &typed_operations::of_files(&Files::shipped()?).await?);
    document::show_shipped(&mut document);
    Ok(document::text(&document))
}
