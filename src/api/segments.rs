//! Lookup endpoints: segmentations, their models, and sample points for plots.

use std::sync::Arc;

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt32Type};
use poem::Request;
use poem::web::Data;
use poem_openapi::param::{Path, Query};
use poem_openapi::{Object, OpenApi};
use tercile_store as store;

use super::asked::serving;
use super::declared::NeedsRead;
use super::etag::{Tagged, TaggedByContent};
use super::problem::{Problem, problems};
use super::slice_number::SliceNumber;
use super::{State, Tags};
use crate::model::{Model, ModelRegistry, imputed};
use crate::model_cache::{Models, Served};

problems! {
    /// Why there is nothing to show.
    LookupFailure {
        /// There is nothing of this name.
        404,
        /// The records of this slice cannot be clustered; the detail says why.
        409,
        /// A parameter does not fit.
        422,
        /// There is no model for this slice yet.
        503,
    }
}

problems! {
    /// Why there is no segmentation.
    NoSegmentation {
        /// There is nothing of this name.
        404,
        /// A parameter does not fit.
        422,
    }
}

/// A segmentation and what serves of it.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct SegmentationInfo {
    /// The SQL file's name without its number.
    pub name: String,
    /// The number of clusters.
    pub k: u32,
    /// The features' names; a row to predict has a number for each.
    pub features: Vec<String>,
    /// The slices 1, 2 and 3.
    pub slices: Vec<SliceInfo>,
}

/// What serves of one slice.
#[derive(Debug, Clone, PartialEq, Object)]
pub struct SliceInfo {
    pub slice: u8,
    /// The version that serves; not given if there is none.
    #[oai(skip_serializing_if_is_none)]
    pub version: Option<u64>,
    /// Whether that version serves whatever trainings find, until it is unpinned.
    pub pinned: bool,
    /// A newer version that waits for an operator's decision; not given if there is none.
    #[oai(skip_serializing_if_is_none)]
    pub candidate: Option<u64>,
    /// Why the last training gave no model; an older one may serve all the same.
    #[oai(skip_serializing_if_is_none)]
    pub refused: Option<String>,
    /// Which kind of file is missing, damaged, unreadable or misnamed, so that the version that should serve does not; what
    /// served before may serve all the same.
    #[oai(skip_serializing_if_is_none)]
    pub fault: Option<String>,
}

/// A sample of a model's records.
#[derive(Debug, Clone, Object)]
#[oai(rename = "PointSample")]
pub struct Points {
    pub segmentation: String,
    pub slice: u8,
    pub version: u64,
    /// The features' names, in the order of each point's values.
    pub features: Vec<String>,
    /// Records that the model was trained on. Where there are more of them than points, the points are a sample.
    pub sampled_from: u64,
    /// Up to 5,000, spread evenly, and up to 50 more of each rare cluster; in stream order.
    pub points: Vec<Point>,
}

/// One record of a sample.
#[derive(Debug, Clone, Object)]
pub struct Point {
    /// The record's partition. Not given for an entity.
    #[oai(skip_serializing_if_is_none)]
    pub partition: Option<i32>,
    /// The record's offset. Not given for an entity.
    #[oai(skip_serializing_if_is_none)]
    pub offset: Option<i64>,
    /// In the features' own units.
    pub values: Vec<f64>,
    /// The features that were missing in this record: their values are the mean. Not given where none was, nor by models
    /// that were made before this was kept.
    #[oai(default, skip_serializing_if_is_empty)]
    pub imputed: Vec<String>,
    pub cluster: u32,
}

pub struct SegmentsApi;

pub(super) type Found<T> = Result<Tagged<T>, LookupFailure>;

#[OpenApi]
impl SegmentsApi {
    /// All segmentations
    #[oai(path = "/api/segments", method = "get", tag = "Tags::Segments", operation_id = "listSegmentations")]
    async fn segments(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        _scope: NeedsRead,
    ) -> TaggedByContent<Vec<SegmentationInfo>> {
        TaggedByContent::of(request, &state.live.now().segmentations.iter().map(info).collect())
    }

    /// One segmentation
    #[oai(path = "/api/segments/:name", method = "get", tag = "Tags::Segments", operation_id = "getSegmentation")]
    async fn segment(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        _scope: NeedsRead,
    ) -> Result<TaggedByContent<SegmentationInfo>, NoSegmentation> {
        Ok(TaggedByContent::of(request, &info(find(&state.live.now(), &name.0)?)))
    }

    /// The models that serve a segmentation
    #[oai(path = "/api/segments/:name/models", method = "get", tag = "Tags::Segments", operation_id = "listModels")]
    async fn models(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        _scope: NeedsRead,
    ) -> Result<TaggedByContent<Vec<Model>>, NoSegmentation> {
        let models = state.live.now();
        let slots = &find(&models, &name.0)?.slots;
        let serving = slots.iter().filter_map(|slot| slot.serving.as_ref());
        Ok(TaggedByContent::of(request, &serving.map(|serving| serving.model.clone()).collect()))
    }

    /// The model that serves a slice
    #[oai(
        path = "/api/segments/:name/models/:slice",
        method = "get",
        tag = "Tags::Segments",
        operation_id = "getModel"
    )]
    async fn model(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// 1, 2 or 3.
        slice: Path<u8>,
        _scope: NeedsRead,
    ) -> Found<Model> {
        let models = state.live.now();
        let model = &serving(find(&models, &name.0)?, slice.0)?.model;
        Ok(Tagged::of(request, model, model))
    }

    /// A sample of records with their clusters
    #[oai(path = "/api/segments/:name/points", method = "get", tag = "Tags::Segments", operation_id = "getPoints")]
    async fn points(
        &self,
        request: &Request,
        state: Data<&Arc<State>>,
        /// The segmentation's name.
        name: Path<String>,
        /// The slice: 1, 2 or 3, the whole stream (3 if not given).
        model: Query<Option<SliceNumber>>,
        _scope: NeedsRead,
    ) -> Found<Points> {
        let models = state.live.now();
        let model = &serving(find(&models, &name.0)?, model.0.unwrap_or_default().get())?.model;
        if let Some(unchanged) = Tagged::unchanged(request, model) {
            return Ok(unchanged);
        }
        let registry = ModelRegistry::new(&state.store, &model.segmentation);
        let ready = state.points.get(&state, model, move |model| points(&registry, model)).await?;
        Ok(Tagged::ready(ready, model))
    }
}

pub(super) fn find<'m>(models: &'m Models, name: &str) -> Result<&'m Served, Problem> {
    models.get(name).ok_or_else(|| Problem::not_found(format!("there is no segmentation {name}")).field("name"))
}

pub(super) fn info(served: &Served) -> SegmentationInfo {
    SegmentationInfo {
        name: served.segmentation.name.clone(),
        k: served.segmentation.k as u32,
        features: served.segmentation.features.clone(),
        slices: served
            .slots
            .iter()
            .map(|slot| SliceInfo {
                slice: slot.slice,
                version: slot.serving.as_ref().map(|serving| serving.model.version),
                pinned: slot.pinned,
                candidate: slot.candidate.as_ref().map(|held| held.version),
                refused: slot.refused.clone(),
                fault: slot.fault.clone(),
            })
            .collect(),
    }
}

/// Problem of an unusable sample.
pub(super) fn no_sample(error: &store::Error) -> Problem {
    tracing::error!("{error}");
    let why = match error {
        store::Error::File(fault) => fault.class(),
        _ => "the sample cannot be read".to_owned(),
    };
    Problem::unavailable(format!(
        "{why}; a training makes a new version with its own, and tercile doctor says which file"
    ))
}

fn points(registry: &ModelRegistry, model: &Model) -> Result<Points, Problem> {
    let sample = registry.sample_of(model).map_err(|error| no_sample(&error))?;
    let column = |name: &str| sample.column_by_name(name);
    let Some(clusters) = column("cluster") else {
        return Err(Problem::unavailable("the sample lacks a column; train again"));
    };
    // A sample of entities names none.
    let partitions = column("_partition").map(|column| column.as_primitive::<Int32Type>());
    let offsets = column("_offset").map(|column| column.as_primitive::<Int64Type>());
    let clusters = clusters.as_primitive::<UInt32Type>();
    let features: Vec<_> =
        model.features.iter().filter_map(|f| column(f)).map(|c| c.as_primitive::<Float64Type>()).collect();
    let masks = imputed::of(&sample);
    let imputed = |row: usize| {
        let mask = masks.map_or(0, |masks| masks.value(row));
        let names = model.features.iter().enumerate().filter(|(feature, _)| imputed::is_set(mask, *feature));
        names.map(|(_, name)| name.clone()).collect()
    };
    let points = (0..sample.num_rows())
        .map(|row| Point {
            partition: partitions.map(|partitions| partitions.value(row)),
            offset: offsets.map(|offsets| offsets.value(row)),
            values: features.iter().map(|column| column.value(row)).collect(),
            imputed: imputed(row),
            cluster: clusters.value(row),
        })
        .collect();
    Ok(Points {
        segmentation: model.segmentation.clone(),
        slice: model.slice,
        version: model.version,
        features: model.features.clone(),
        sampled_from: model.rows,
        points,
    })
}
