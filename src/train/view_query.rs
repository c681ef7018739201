//! The query of a training over the view of a segmentation of records.

use crate::engine;
use crate::slices::SLICES;
use crate::sql::{Segmentation, quote};

/// An error of this query, as one of the segmentation's SQL file.
pub(super) fn named(segmentation: &Segmentation, error: engine::Error) -> engine::Error {
    match error {
        engine::Error::Query(why) => engine::Error::View { file: segmentation.file.clone(), why },
        other => other,
    }
}

/// The rows of a segmentation of records in slice order: slice, partition, offset, milliseconds since 1970, features.
pub fn query(segmentation: &Segmentation) -> String {
    let names: Vec<String> = (0..segmentation.features.len()).map(|i| format!("feature_{i}")).collect();
    let feature = |(i, name): (usize, &String)| format!("CAST({} AS DOUBLE) AS feature_{i}", quote(name));
    let features: Vec<String> = segmentation.features.iter().enumerate().map(feature).collect();
    format!(
        "SELECT _slice, _partition, _offset, CAST(_timestamp AS BIGINT) AS milliseconds, {}
         FROM (SELECT CAST(_partition AS INT) AS _partition, CAST(_offset AS BIGINT) AS _offset,
                 arrow_cast(_timestamp, 'Timestamp(Millisecond, None)') AS _timestamp,
                 CAST(_slice AS BIGINT) AS _slice, {} FROM {})
         WHERE _slice <= {SLICES}
         ORDER BY _slice, _timestamp NULLS FIRST, _partition, _offset",
        names.join(", "),
        features.join(", "),
        quote(&segmentation.name)
    )
}

/// Adds advice if a CAST failed on text: CAST fails the view, TRY_CAST returns NULL.
pub(super) fn advised(why: String) -> String {
    match why.contains("Cannot cast string") {
        true => format!("{why}; with TRY_CAST such a text is NULL, which takes the mean and is counted"),
        false => why,
    }
}
