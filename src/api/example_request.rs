//! Requests with values that occur, which `up` suggests to try and the OpenAPI document shows.
//!
//! Input: the models that serve, and the store. Output: a request for a prediction with values that occur, and one that scores a
//! stored record as it came.

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use serde_json::{Map, Value};
use tercile_store::Store;

use crate::bulk::{Block, Carried, Keep, Scorer};
use crate::engine::{self, Limits};
use crate::missing::Missing;
use crate::model::Model;
use crate::model_cache::{Models, Served};
use crate::sql::{RECORDS, quote};

/// Maximum bytes of a value in a request on one line.
const VALUE_BYTES: usize = 100;

/// Number of stored records among which one is chosen.
const CANDIDATES: usize = 100;

/// A request for a prediction.
pub struct Example {
    pub path: String,
    pub body: String,
}

/// A request to the first segmentation that has a model of all records: the medians of its largest cluster.
pub fn of(models: &Models) -> Option<Example> {
    let (served, serving) = models.segmentations.iter().find_map(|served| {
        let slot = served.slots.iter().rev().find_map(|slot| slot.serving.as_ref());
        Some((served, slot?))
    })?;
    let row = row(&serving.model)?;
    let path = format!("/api/segments/{}/predict", segment(&served.segmentation.name));
    Some(Example { path, body: serde_json::json!([row]).to_string() })
}

/// The medians of a model's largest cluster.
pub fn row(model: &Model) -> Option<Value> {
    let cluster = model.clusters.iter().max_by_key(|cluster| cluster.size)?;
    let mut row = Map::new();
    for feature in &model.features {
        let median = cluster.typical.get(feature).and_then(|quartiles| quartiles.get(1));
        let value = median.or(cluster.centroid.get(feature))?;
        row.insert(feature.clone(), (*value).into());
    }
    Some(row.into())
}

/// A name as a segment of a path, percent-encoded.
pub fn segment(name: &str) -> String {
    let Ok(mut url) = url::Url::parse("http://localhost") else { return name.to_owned() };
    if let Ok(mut path) = url.path_segments_mut() {
        path.push(name);
    }
    url.path().trim_start_matches('/').to_owned()
}

/// A request that scores a stored record as it came, with the fields that the SQL reads; `None` if no segmentation can score records.
pub async fn raw(models: &Models, store: &Store) -> Option<Example> {
    for served in models.segmentations.iter().filter(|served| served.slots.iter().any(|slot| slot.serving.is_some())) {
        if let Some(example) = raw_of(served, store).await {
            return Some(example);
        }
    }
    None
}

/// A request that scores a stored record as it came.
pub async fn raw_of(served: &Served, store: &Store) -> Option<Example> {
    let files = served.files();
    let serving = served.slots.iter().rev().find_map(|slot| slot.serving.as_ref())?;
    let records = served.record_scorer().await.ok()?;
    let fields = records.fields().filter(|fields| !fields.is_empty())?;
    let ctx = engine::open_without_views(&store.snapshot().ok()?, files, Limits::default()).ok()?;
    let columns: Vec<String> = fields.iter().map(|field| quote(field)).collect();
    let sql = format!("SELECT {} FROM {RECORDS} WHERE _error IS NULL LIMIT {CANDIDATES}", columns.join(", "));
    let found = engine::collect(&ctx, &sql).await.ok()?;
    let columns: Vec<_> =
        found.columns().iter().map(|column| cast(column, &DataType::Utf8)).collect::<Result<_, _>>().ok()?;
    let object = |row: usize| {
        let value = |(field, column): (&&str, &ArrayRef)| {
            let texts = column.as_string::<i32>();
            let text = texts.is_valid(row).then(|| texts.value(row)).filter(|text| text.len() <= VALUE_BYTES)?;
            Some(((*field).to_owned(), Value::from(text)))
        };
        Value::Object(fields.iter().zip(&columns).filter_map(value).collect()).to_string()
    };
    let objects: Vec<String> = (0..found.num_rows()).map(object).collect();
    let block = Block { carried: Carried::Objects(objects.clone()), ..Block::default() };
    let scorer = Scorer::new(&serving.model, "en").with_missing(Missing::Skip);
    let (_, scores) = records.score(block, &scorer, (Keep::Other, usize::MAX)).ok()?;
    let row = scores.reasons?.iter().position(Option::is_none)?;
    let path = format!("/api/segments/{}/score", segment(&served.segmentation.name));
    Some(Example { path, body: format!("[{}]", objects[row]) })
}
