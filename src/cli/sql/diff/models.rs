//! The effect of an edited SQL file on the segments, if the file is a segmentation.
//!
//! Input: both versions of the SQL files, and sessions on them. Output: both models, trained for the comparison and stored
//! nowhere: parameters, clusters, and the records that are in another cluster.

use std::collections::BTreeSet;
use std::io::Write as _;

use datafusion::arrow::array::{AsArray as _, Float64Array};
use datafusion::arrow::datatypes::Float64Type;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt as _;
use tercile_store::{Snapshot, Store};

use super::super::runner::Runner;
use super::{AFTER, BEFORE, arrow};
use crate::cli::{count, thousands};
use crate::engine;
use crate::model::diff::{Diff, Moved, diff, moved_of};
use crate::model::{Model, baseline};
use crate::sql::language::Labels;
use crate::sql::{Files, quote};
use crate::train::Options;
use crate::train::preview::preview;

/// Both versions of the SQL files.
pub struct Versions<'a> {
    pub before: &'a Files,
    pub after: &'a Files,
}

/// Prints the comparison. `joined` has the rows of both versions as tables. Nothing is printed if neither is a segmentation.
pub async fn run(
    runner: &Runner,
    (store, snapshot): (&Store, &Snapshot),
    files: Versions<'_>,
    name: &str,
    joined: &SessionContext,
) -> anyhow::Result<()> {
    let header = |files: &Files| files.view(name).map(|view| (view.header.k, view.header.labels.clone()));
    let (Some((k, labels)), Some((new_k, new_labels))) = (header(files.before), header(files.after)) else {
        return Ok(());
    };
    let mut out = runner.out();
    match (k, new_k) {
        (None, None) => return Ok(()),
        (None, Some(k)) => writeln!(out, "{name} becomes a segmentation with {k} clusters")?,
        (Some(_), None) => {
            writeln!(out, "{name} is no segmentation any more: its header has no k")?;
            return Ok(());
        }
        (Some(_), Some(_)) => {}
    }
    writeln!(out, "models of the whole stream, trained for this comparison and stored nowhere:")?;
    out.flush()?;
    drop(out);
    let options = Options::default();
    let on = |files, predecessor| preview((store, snapshot), files, name, predecessor, &options);
    let before = match k {
        Some(_) => Some(on(files.before, None).await),
        None => None,
    };
    let known = before.as_ref().and_then(|before| before.as_ref().ok()).cloned();
    let after = on(files.after, known.clone()).await;
    let mut lines = Vec::new();
    if let (Some(k), Some(new_k)) = (k, new_k)
        && k != new_k
    {
        lines.push(format!("k: {k} → {new_k}"));
    }
    lines.extend(changed_labels(&labels, &new_labels).map(|changed| format!("labels changed: {changed}")));
    if let Some(Err(why)) = &before {
        lines.push(format!("no model before: {why}"));
    }
    if let Err(why) = &after {
        lines.push(format!("no model after: {why}"));
    }
    let mut out = runner.out();
    let (Some(before), Ok(after)) = (known, after) else {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
        return Ok(out.flush()?);
    };
    if before.features != after.features {
        lines.push(format!("features: {} → {}", before.features.join(", "), after.features.join(", ")));
    }
    if before.entity != after.entity {
        lines.push(format!("entity: {} → {}", keys(&before).join(", "), keys(&after).join(", ")));
    }
    let score = |model: &Model| model.silhouette.map_or_else(|| "none".to_owned(), |score| format!("{score:.3}"));
    lines.push(format!("silhouette: {}", arrow(&score(&before), &score(&after))));
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    out.flush()?;
    drop(out);
    let compared = diff(&before, &after, || None);
    clusters(runner, &compared, &before, &after)?;
    let moved = moved(joined, &before, &after).await?;
    let mut out = runner.out();
    if let Some(moved) = moved {
        let entities = if before.entity.is_empty() { "record" } else { "entity of both" };
        tell(&mut *out, &moved, (&before, &after), entities)?;
    } else {
        writeln!(out, "the two have no key in common, so no records are compared")?;
    }
    Ok(out.flush()?)
}

/// The features and languages whose words changed.
fn changed_labels(before: &Labels, after: &Labels) -> Option<String> {
    let features: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changed = Vec::new();
    for feature in features {
        let words = |labels: &Labels| labels.get(feature).cloned().unwrap_or_default();
        let (was, is) = (words(before), words(after));
        let languages: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        let differ = languages.into_iter().filter(|language| was.get(*language) != is.get(*language));
        let differ: Vec<&str> = differ.map(String::as_str).collect();
        if !differ.is_empty() {
            changed.push(format!("{feature} ({})", differ.join(", ")));
        }
    }
    (!changed.is_empty()).then(|| changed.join(", "))
}

fn clusters(runner: &Runner, compared: &Diff, before: &Model, after: &Model) -> anyhow::Result<()> {
    let mut features: Vec<&String> = before.features.iter().collect();
    features.extend(after.features.iter().filter(|name| !before.features.contains(name)));
    let rows = compared.clusters.iter().map(|pair| {
        let cell = |of: &dyn Fn(&crate::model::Cluster) -> Option<String>| {
            let side =
                |cluster: Option<&crate::model::Cluster>| cluster.and_then(of).unwrap_or_else(|| "none".to_owned());
            arrow(&side(pair.a.as_ref()), &side(pair.b.as_ref()))
        };
        let mut cells = vec![
            pair.cluster.to_string(),
            cell(&|cluster| Some(cluster.description.clone())),
            cell(&|cluster| Some(thousands(cluster.size))),
        ];
        cells.extend(
            features.iter().map(|name| cell(&|cluster| cluster.centroid.get(*name).map(|value| short(*value)))),
        );
        cells
    });
    let mut header = vec!["cluster", "description", "rows"];
    header.extend(features.iter().map(|name| name.as_str()));
    runner.print_table(&header, rows.collect())
}

/// Five significant digits.
fn short(value: f64) -> String {
    let digits = 4 - value.abs().max(1e-4).log10().floor() as i32;
    let text = format!("{value:.*}", digits.clamp(0, 8) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The columns that name a row.
fn keys(model: &Model) -> Vec<String> {
    if model.entity.is_empty() { ["_partition", "_offset"].map(str::to_owned).to_vec() } else { model.entity.clone() }
}

/// The rows that both versions have, by their clusters, each row by the features of its version. `None` if they have other keys.
async fn moved(joined: &SessionContext, before: &Model, after: &Model) -> anyhow::Result<Option<Moved>> {
    if keys(before) != keys(after) {
        return Ok(None);
    }
    let select = |side: &str, model: &Model| -> Vec<String> {
        model.features.iter().map(|name| format!("CAST({side}.{} AS DOUBLE)", quote(name))).collect()
    };
    let mut columns = Vec::new();
    for (at, column) in select("b", before).into_iter().chain(select("a", after)).enumerate() {
        columns.push(format!("{column} AS v{at}"));
    }
    let on: Vec<String> = keys(before).iter().map(|key| format!("b.{0} = a.{0}", quote(key))).collect();
    let sql = format!(
        "SELECT {} FROM {} AS b JOIN {} AS a ON {}",
        columns.join(", "),
        quote(BEFORE),
        quote(AFTER),
        on.join(" AND ")
    );
    let mut rows = engine::stream(joined, &sql).await?;
    let (old, new) = (before.predictor(), after.predictor());
    let mut matrix = vec![vec![0; after.clusters.len()]; before.clusters.len()];
    while let Some(batch) = rows.try_next().await? {
        let columns: Vec<Float64Array> =
            batch.columns().iter().map(|column| column.as_primitive::<Float64Type>().clone()).collect();
        let (of_before, of_after) = columns.split_at(before.features.len());
        let (from, to) = (baseline::nearest(&old, of_before).0, baseline::nearest(&new, of_after).0);
        for (from, to) in from.into_iter().zip(to) {
            if let Some(count) = matrix.get_mut(from as usize).and_then(|row: &mut Vec<u64>| row.get_mut(to as usize)) {
                *count += 1;
            }
        }
    }
    Ok(Some(moved_of(matrix)))
}

/// How many records are in another cluster, and in which. Numbers are those of the same clusters only with the same features and
/// k.
fn tell(
    out: &mut dyn std::io::Write,
    moved: &Moved,
    (before, after): (&Model, &Model),
    what: &str,
) -> std::io::Result<()> {
    let same = after.receipt.predecessor.is_some();
    let records = count(moved.records, what);
    if same {
        let share = moved.changed as f64 * 100.0 / moved.records.max(1) as f64;
        writeln!(out, "{} of {records} in another cluster ({share:.1} %)", thousands(moved.changed))?;
    } else {
        writeln!(out, "{records} by cluster before and after; the numbers are new:")?;
    }
    for (from, row) in moved.matrix.iter().enumerate() {
        for (to, n) in row.iter().enumerate().filter(|(to, n)| **n > 0 && !(same && *to == from)) {
            let name = |model: &Model, at: usize| {
                model.clusters.get(at).map_or_else(String::new, |cluster| format!("{at} \"{}\"", cluster.description))
            };
            writeln!(out, "{} from {} to {}", thousands(*n), name(before, from), name(after, to))?;
        }
    }
    Ok(())
}
