//! The dashboard for Grafana, the alert rules for Prometheus and the manual name only metrics that a running server has.

use std::collections::BTreeSet;
use std::path::Path;

use common::receiver::Receiver;
use common::{Place, eventually};
use serde_json::Value;

use crate::common;

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|word| word.starts_with("tercile_") || word.starts_with("process_"));
    metrics.map(str::to_owned).collect()
}

/// The metrics of a text in the format of Prometheus, with the labels of each.
fn shown(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn dashboard_rules_and_manual_name_metrics_that_exist() {
    let place = Place::new();
    let receiver = Receiver::well();
    let up = place.up(&["--drift-interval", "1", "--notify", &receiver.url()]);
    assert_eq!(up.post("/api/cluster_products_by_discount", r#"[{"discount_percentage": 10}]"#).status, 200);
    // A damaged file, which has a metric of its own.
    std::fs::write(place.path("store/models/discount/slices.json"), "{").unwrap();
    let mut metrics = BTreeSet::new();
    eventually("all kinds of metrics", || {
        metrics = shown(&up.get("/metrics").text);
        ["tercile_model_faults", "tercile_drift_psi", "tercile_predictions_total"]
            .iter()
            .all(|one| metrics.contains(*one))
    });

    let dashboard: Value = serde_json::from_str(&page("grafana/tercile.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(named(target["expr"].as_str().unwrap()).len(), 1, "{target}");
        }
    }
    let rules = page("prometheus-rules.yml");
    assert!(panels.len() >= 10 && named(&rules).len() >= 10);
    for (file, text) in [("grafana/tercile.json", dashboard.to_string()), ("prometheus-rules.yml", rules)] {
        for name in named(&text) {
            assert!(metrics.contains(&name), "{file}: {name} is no metric of a server; it has {metrics:?}");
        }
    }

    // The manual's table, whose names of histograms have no suffix; and each metric has a row.
    let manual = page("operations.md");
    let rows: String =
        manual.lines().filter(|line| line.starts_with("| `tercile_") || line.starts_with("| `process_")).collect();
    let known = |name: &String| metrics.contains(name) || metrics.contains(&format!("{name}_bucket"));
    for name in named(&rows).into_iter().filter(|name| !name.starts_with("tercile_enrich_")) {
        assert!(known(&name), "operations.md: {name} is no metric of a server");
    }
    let documented = named(&rows);
    for metric in &metrics {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric);
        assert!(documented.contains(name), "operations.md has no row about {name}");
    }
}
