//! Reasons why a slice gets no new model.

use datafusion::arrow::error::ArrowError;
use tercile_kmeans::{self as kmeans, features};

use crate::engine;
use crate::sql::quote;

/// The reason why one slice of one segmentation has no new model.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no rows to train on")]
    NoRows,
    #[error(
        "the record at offset {offset} of partition {partition} comes twice; a segmentation gives each record once"
    )]
    Twice { partition: i32, offset: i64 },
    #[error("{error}{next}", error = .0, next = remedy(.0))]
    Features(#[from] features::Error),
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
    #[error("{0}")]
    Arrow(#[from] ArrowError),
    /// Not a refusal of these rows: the training cannot continue.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

/// The next step after an error of the feature columns, in terms of the SQL file; empty where the error states it.
fn remedy(error: &features::Error) -> String {
    let features::Error::NotFinite { feature, .. } = error else { return String::new() };
    let column = quote(feature);
    format!(
        "; make it NULL in the SQL file, as in CASE WHEN abs({column}) < CAST('Infinity' AS DOUBLE) THEN {column} END: a NULL \
         takes the mean and is counted"
    )
}
