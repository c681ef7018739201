//! The request that `up` suggests to try.
//!
//! Input: the models that serve. Output: a request for a prediction with values that occur.

use crate::api::live::Models;

/// A request for a prediction.
pub struct Example {
    pub path: String,
    pub body: String,
}

/// A request to the first segmentation that has a model of all records: the medians of its largest cluster.
pub fn of(models: &Models) -> Option<Example> {
    let (segmentation, serving) = models.segmentations.iter().find_map(|served| {
        let slot = served.slots.iter().rev().find_map(|slot| slot.serving.as_ref());
        Some((&served.segmentation, slot?))
    })?;
    let cluster = serving.model.clusters.iter().max_by_key(|cluster| cluster.size)?;
    let mut row = serde_json::Map::new();
    for feature in &serving.model.features {
        let median = cluster.typical.get(feature).and_then(|quartiles| quartiles.get(1));
        let value = median.or(cluster.centroid.get(feature))?;
        row.insert(feature.clone(), (*value).into());
    }
    let path = format!("/api/segments/{}/predict", segmentation.name);
    Some(Example { path, body: serde_json::json!([row]).to_string() })
}
