//! Exports a model as plain SQL for any engine.
//!
//! Input: a model. Output: one query with the same arithmetic operations as predictions, so that it gives the same clusters.
//! Numbers have an exponent, because engines read such literals as doubles, exactly. A row without a cluster gets NULL: each
//! branch requires a distance below a limit, which is false for NULL, NaN and infinity in any engine.

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
            let value = format!("CAST({} AS DOUBLE PRECISION)", quoted(feature));
            // ln(1 + x) may differ in the last digit from the logarithm of predictions.
            let value = match scale.is_log(i) {
                true => format!("CASE WHEN {value} > -1 THEN ln(1 + {value}) END"),
                false => value,
            };
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
            let nearest = (cluster + 1..k).map(|other| format!("d{cluster} <= d{other}"));
            let conditions: Vec<String> =
                nearest.chain([format!("d{cluster} < {}", number(predictor.far() * predictor.far()))]).collect();
            format!("    WHEN {} THEN {}", conditions.join(" AND "), value(cluster))
        };
        format!("  CASE\n{}\n  END", (0..k).map(case).collect::<Vec<_>>().join("\n"))
    };
    let text = |cluster: usize| format!("'{}'", model.clusters[cluster].description.replace('\'', "''"));
    format!(
        "-- {} of slice {}, version {}: the cluster of each row of a table `input` that has {}.\n\
         -- NULL where a feature is missing or no finite number. A tie goes to the lower number.\n\
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
