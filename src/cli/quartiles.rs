//! Formats the quartiles of clusters as a table.

use super::table::{self, short};
use crate::model::Cluster;

/// One line per cluster and feature: quartiles, mean and standard deviation. Empty if no cluster has quartiles, as in
/// models of earlier versions.
pub(super) fn render(features: &[String], clusters: &[Cluster]) -> String {
    let mut rows = Vec::new();
    for cluster in clusters {
        for feature in features {
            let Some(quartiles) = cluster.typical.get(feature) else { continue };
            let mut cells = vec![cluster.cluster.to_string(), feature.clone()];
            cells.extend(quartiles.iter().map(|value| short(*value)));
            cells.extend(
                [&cluster.centroid, &cluster.spread].map(|of| of.get(feature).map_or_else(String::new, |v| short(*v))),
            );
            rows.push(cells);
        }
    }
    let header = ["cluster", "feature", "1st quartile", "median", "3rd quartile", "mean", "deviation"];
    if rows.is_empty() { String::new() } else { table::render(&header, &rows) }
}
