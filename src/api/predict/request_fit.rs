//! Clusters of the rows of a request themselves (`?fit=request`).

use datafusion::arrow::array::Float64Array;

use super::super::language::Language;
use super::super::posted::Rows;
use super::super::problem::Problem;
use super::write;
use crate::bulk::Lines;
use crate::model::describe::{Described, describe};
use crate::model::parts::Shapes;
use crate::model_cache::Served;
use crate::train;

/// Number of clusters of `?fit=request`, or the number of distinct rows if smaller.
const REQUEST_K: usize = 3;

/// Clusters the rows of the request themselves (`?fit=request`), as the original student system did for every request.
pub(super) fn cluster_themselves(served: &Served, rows: &Rows, language: &Language) -> Result<Vec<u8>, Problem> {
    let features = &served.segmentation.features;
    if rows.values.is_empty() {
        return Err(Problem::unprocessable("expected at least one row to cluster, the array is empty"));
    }
    let columns: Vec<Float64Array> = (0..features.len())
        .map(|feature| rows.values.iter().skip(feature).step_by(features.len()).copied().collect::<Vec<_>>().into())
        .collect();
    let found = train::fit_for_request((features, &served.segmentation.scaling), &columns, REQUEST_K)
        .map_err(|e| Problem::unprocessable(format!("these rows can't be clustered: {e}")))?;
    let shapes = Shapes { centroids: found.linear.view(), spread: found.spread.view(), sizes: &found.sizes };
    let described = describe(&shapes, features, &served.segmentation.labels, None);
    let text = |one: &Described| one.descriptions.get(language.code()).cloned().unwrap_or_default();
    let descriptions: Vec<String> = described.iter().map(text).collect();
    Ok(write(features, rows, &found.predictor, &Lines::of_request(features, &descriptions), None)?.0)
}
