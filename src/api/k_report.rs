//! Report on the choice of k: several numbers of clusters tried on a model's sample.
//!
//! Input: the sample stored with a model. Output: the result of suggest.rs. The computation is CPU-bound, so it runs on
//! request, one at a time, and is cached (`cached_response.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{AsArray as _, Float64Array};
use datafusion::arrow::datatypes::Float64Type;
use poem::Request;
use poem::web::Data;
use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use tercile_kmeans::{Limits, Settings, starts_for};

use super::asked::serving;
use super::declared::NeedsRead;
use super::etag::Tagged;
use super::problem::Problem;
use super::segments::{Found, find, no_sample};
use super::slice_number::SliceNumber;
use super::{State, Tags};
use crate::fit::Error;
use crate::model::{Model, ModelRegistry, imputed};
use crate::suggest;

/// Range of k.
const KS: std::ops::RangeInclusive<usize> = 2..=8;
/// Maximum number of restarts per k; the genetic search that follows finds nothing better with more.
const STARTS: usize = 100;
/// How well several numbers of clusters fit a model's sample.
#[derive(Debug, Clone, Object)]
pub struct KReport {
    pub segmentation: String,
    pub slice: u8,
    pub version: u64,
    /// Rows that were tried: all that the model was trained on, or a sample that includes its rare clusters, weighted.
    pub rows: u64,
    /// Rows that the model was trained on. Where they are more than `rows`, all figures are those of the sample.
    pub sampled_from: u64,
    /// Feature to the number of these rows whose value was missing and took the mean. Not given by models that were made
    /// before this was kept.
    #[oai(skip_serializing_if_is_none)]
    pub imputed: Option<BTreeMap<String, u64>>,
    /// The number of clusters that the model has.
    pub k: u32,
    /// The numbers that were tried, ascending.
    pub candidates: Vec<Candidate>,
    /// What they speak for; not given where too few different rows left nothing to try.
    #[oai(skip_serializing_if_is_none)]
    pub suggestion: Option<Suggestion>,
}

/// One number of clusters.
#[derive(Debug, Clone, Object)]
pub struct Candidate {
    pub k: u32,
    /// Sum of squared distances to the centroids, in standardised units.
    pub inertia: f64,
    /// From -1 to 1.
    pub silhouette: Option<f64>,
    /// How alike the clusters are that several seeds find, from about 0 to 1: always the same.
    pub stability: f64,
}

/// What three ways to look at the candidates pick.
#[derive(Debug, Clone, Object)]
pub struct Suggestion {
    pub elbow: u32,
    pub silhouette: u32,
    pub stability: u32,
    /// What two of the three pick, else what the silhouette does.
    pub recommended: u32,
    /// How many of the three pick it.
    pub agree: u32,
}

pub struct KReportApi;

#[OpenApi]
impl KReportApi {
    /// Which number of clusters fits: elbow, silhouette, stability
    ///
    /// Tried on the sample that was kept with the model: all of its rows up to 5,000, of more a weighted sample that includes
    /// rare clusters. `rows` and `sampled_from` tell how many those are. The first answer for a version takes seconds.
    #[oai(path = "/api/segments/:name/k-report", method = "get", tag = "Tags::Segments", operation_id = "getKReport")]
    async fn k_report(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The slice: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        _scope: NeedsRead,
    ) -> Found<KReport> {
        let models = state.live.now();
        let model = &serving(find(&models, &name.0)?, model.0.unwrap_or_default().get())?.model;
        if let Some(unchanged) = Tagged::unchanged(request, model) {
            return Ok(unchanged);
        }
        let registry = ModelRegistry::new(&state.store, &model.segmentation);
        let ready = state.reports.get(&state, model, move |model| report(&registry, model)).await?;
        Ok(Tagged::ready(ready, model))
    }
}

fn report(registry: &ModelRegistry, model: &Model) -> Result<KReport, Problem> {
    let broken = |error: &dyn std::fmt::Display| {
        tracing::error!("no k report of {} version {}: {error}", model.segmentation, model.version);
        Problem::unavailable("the sample can't be read; train again")
    };
    let sample = registry.sample_of(model).map_err(|e| no_sample(&e))?;
    let column = |name: &String| sample.column_by_name(name)?.as_primitive_opt::<Float64Type>().cloned();
    let columns: Option<Vec<Float64Array>> = model.features.iter().map(column).collect();
    let columns = columns.ok_or_else(|| broken(&"the sample lacks a feature"))?;
    // A single thread, which leaves the other processors to predictions.
    let limits = Limits { iterations: 300, tolerance: 0.0 };
    let weights = model.sample_weights(&sample);
    let rows = suggest::Rows { scale: &model.scale(), columns: &columns, weights: weights.as_deref() };
    let settings =
        Settings { k: 0, seed: model.seed, starts: starts_for(sample.num_rows()).min(STARTS), limits, threads: 1 };
    let mut tried = Vec::new();
    let all = suggest::candidates(rows, KS, &settings, &mut |one| tried.push(one.clone()));
    match all {
        // With few distinct rows only the smaller k were tried.
        Ok(_) | Err(Error::TooFew(_)) => {}
        Err(error) => return Err(broken(&error)),
    }
    let suggestion = (!tried.is_empty()).then(|| suggest::suggest(&tried)).map(|found| Suggestion {
        elbow: found.elbow as u32,
        silhouette: found.silhouette as u32,
        stability: found.stability as u32,
        recommended: found.recommended as u32,
        agree: found.agree as u32,
    });
    let candidate = |one: suggest::Candidate| Candidate {
        k: one.k as u32,
        inertia: one.inertia,
        silhouette: one.silhouette,
        stability: one.stability,
    };
    Ok(KReport {
        segmentation: model.segmentation.clone(),
        slice: model.slice,
        version: model.version,
        rows: sample.num_rows() as u64,
        sampled_from: model.rows,
        imputed: imputed::counts(&sample, &model.features),
        k: model.k,
        candidates: tried.into_iter().map(candidate).collect(),
        suggestion,
    })
}
