//! A model as plain SQL, for any engine.
//!
//! Input: a model. Output: one query whose arithmetic is that of the predictions, operation by operation, so that it gives
//! the same clusters. Numbers are written with an exponent: engines read those as doubles, and exactly.

use super::Model;

/// The query. It reads the features from a table `input`.
pub fn query(model: &Model) -> String {
    let predictor = model.predictor();
    let centroids = predictor.centroids();
    let k = model.clusters.len();
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let scale = model.scale();
    let standardised: Vec<String> = model
        .features
        .iter()
        .enumerate()
        .map(|(i, feature)| {
            let value = format!("coalesce(CAST({} AS DOUBLE PRECISION), {})", quoted(feature), number(model.mean[i]));
            format!("    ({value} - {}) * {} AS z{i}", number(scale.origin[i]), number(scale.inverse[i]))
        })
        .collect();
    let distances: Vec<String> = (0..k)
        .map(|cluster| {
            let squares = (0..model.features.len()).map(|i| {
                let centroid = number(centroids[[cluster, i]]);
                format!("(z{i} - {centroid}) * (z{i} - {centroid})")
            });
            format!("    {} AS d{cluster}", squares.collect::<Vec<_>>().join(" + "))
        })
        .collect();
    let cases = |value: &dyn Fn(usize) -> String| {
        let case = |cluster: usize| {
            let nearest: Vec<String> = (cluster + 1..k).map(|other| format!("d{cluster} <= d{other}")).collect();
            match nearest.is_empty() {
                true => format!("    ELSE {}", value(cluster)),
                false => format!("    WHEN {} THEN {}", nearest.join(" AND "), value(cluster)),
            }
        };
        if k == 1 {
            return format!("  {}", value(0));
        }
        format!("  CASE\n{}\n  END", (0..k).map(case).collect::<Vec<_>>().join("\n"))
    };
    let text = |cluster: usize| format!("'{}'", model.clusters[cluster].description.replace('\'', "''"));
    format!(
        "-- {} of slice {}, version {}: the cluster of each row of a table `input` that has {}.\n\
         -- A missing feature takes the mean. A tie goes to the lower number.\n\
         WITH standardised AS (\n  SELECT\n    *,\n{}\n  FROM input\n),\n\
         distances AS (\n  SELECT\n    *,\n{}\n  FROM standardised\n)\n\
         SELECT\n  *,\n{} AS cluster,\n{} AS description\nFROM distances\n",
        model.segmentation,
        model.slice,
        model.version,
        model.features.join(", "),
        standardised.join(",\n"),
        distances.join(",\n"),
        cases(&|cluster| cluster.to_string()),
        cases(&text),
    )
}

fn number(value: f64) -> String {
    let text = format!("{value:e}");
    if value.is_sign_negative() { format!("({text})") } else { text }
}
