//! `tercile sql --diff FILE`: the effect of an edited SQL file.
//!
//! Input: the edited file and the active file of the same name: the saved file, or the built-in file if FILE is the
//! saved file itself. Output: removed and added rows, changed columns, a summary of each column, the state of all
//! dependent views, and, if the file is a segmentation, the models of both versions (models.rs). Nothing is saved.

mod models;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;

use super::runner::Runner;
use crate::engine::{self, Limits};
use crate::printable::shell_word;
use crate::sql::Files;
use crate::sql::quote;

/// Table names of the two versions in the queries below.
const BEFORE: &str = "tercile before";
const AFTER: &str = "tercile after";

/// Prints the whole comparison.
pub async fn run(runner: &Runner, path: &Path) -> anyhow::Result<()> {
    let (store, snapshot) = runner.data();
    std::fs::metadata(path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
    let (before, after, name) = runner.files.with_edited(path)?;
    let (old, old_broken) = engine::open_what_plans(snapshot, &before, Limits::default()).await?;
    let (new, new_broken) = engine::open_what_plans(snapshot, &after, Limits::default()).await?;
    if let Some(fault) = new_broken.get(&name) {
        return Err(fault.clone().into());
    }
    let shown = path.display();
    let Some(against) = before.view(&name) else {
        anyhow::bail!(
            "{shown}: there is no view {name} yet to compare it with; `tercile sql {}` shows its rows",
            shell_word(&shown.to_string())
        );
    };
    if let Some(fault) = old_broken.get(&name) {
        anyhow::bail!("{shown}: the view it would replace does not run: {fault}");
    }
    let mut out = runner.out();
    writeln!(out, "{name}: {shown} against {}", against.file)?;
    old.register_table(engine::bare(BEFORE), old.table_provider(name.as_str()).await?)?;
    old.register_table(engine::bare(AFTER), new.table_provider(name.as_str()).await?)?;
    let compared = Compared::of(&old).await?;
    writeln!(out, "rows: {}", compared.rows)?;
    for line in &compared.columns_changed {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    drop(out);
    runner
        .print_table(&["column", "type", "values changed", "missing", "lowest", "highest", "mean"], compared.summary)?;

    let mut fates = Vec::new();
    for view in standing_on(&after, &name) {
        let (was, is) = (fate(&old, &view).await, fate(&new, &view).await);
        let is = new_broken.get(&view).map_or(is, ToString::to_string);
        fates.push(vec![view, arrow(&was, &is)]);
    }
    if !fates.is_empty() {
        runner.print_table(&["stands on it", "rows"], fates)?;
    }
    let versions = models::Versions { before: &before, after: &after };
    models::run(runner, (store, snapshot), versions, &name, &old).await
}

/// The views that read this view directly or indirectly.
fn standing_on(files: &Files, name: &str) -> Vec<String> {
    let mut reached = BTreeSet::from([name.to_owned()]);
    let mut found = Vec::new();
    for view in files.views() {
        if view.reads().iter().any(|read| reached.contains(read)) && reached.insert(view.name.clone()) {
            found.push(view.name.clone());
        }
    }
    found
}

/// The number of rows of a view, or the reason why it fails.
async fn fate(ctx: &SessionContext, view: &str) -> String {
    match numbers(ctx, &format!("SELECT count(*) FROM {}", quote(view))).await {
        Ok(counts) => counts.first().cloned().unwrap_or_default(),
        Err(error) => error.to_string(),
    }
}

/// `a → b`, or only one of them if they are equal.
fn arrow(before: &str, after: &str) -> String {
    if before == after { before.to_owned() } else { format!("{before} → {after}") }
}

struct Compared {
    rows: String,
    columns_changed: Vec<String>,
    summary: Vec<Vec<String>>,
}

impl Compared {
    async fn of(ctx: &SessionContext) -> anyhow::Result<Self> {
        let schema = async |name: &str| anyhow::Ok(ctx.table_provider(engine::bare(name)).await?.schema());
        let (old, new) = (schema(BEFORE).await?, schema(AFTER).await?);
        let has = |schema: &Schema, name: &str| schema.column_with_name(name).is_some();
        let keyed = ["_partition", "_offset"].iter().all(|key| has(&old, key) && has(&new, key));

        let count = async |sql: String| anyhow::Ok(numbers(ctx, &sql).await?.first().cloned().unwrap_or_default());
        let before = count(format!("SELECT count(*) FROM {}", quote(BEFORE))).await?;
        let after = count(format!("SELECT count(*) FROM {}", quote(AFTER))).await?;
        let mut rows = format!("{before} before, {after} after");
        if keyed {
            let only = |here: &str, there: &str| {
                let (here, there) = (quote(here), quote(there));
                format!("SELECT count(*) FROM {here} LEFT ANTI JOIN {there} USING (_partition, _offset)")
            };
            let (lost, new) = (count(only(BEFORE, AFTER)).await?, count(only(AFTER, BEFORE)).await?);
            rows.push_str(&format!("; {lost} lost, {new} new"));
        }

        let mut columns_changed = Vec::new();
        let mut names: Vec<&String> = old.fields().iter().map(|field| field.name()).collect();
        for field in new.fields() {
            if !has(&old, field.name()) {
                columns_changed.push(format!("new column: {} ({})", field.name(), field.data_type()));
                names.push(field.name());
            }
        }
        for field in old.fields().iter().filter(|field| !has(&new, field.name())) {
            columns_changed.push(format!("lost column: {} ({})", field.name(), field.data_type()));
        }
        let both: Vec<&String> = names.iter().copied().filter(|name| has(&old, name) && has(&new, name)).collect();
        let changed = if keyed { changes(ctx, &both, &old, &new).await? } else { Vec::new() };
        let (was, is) = (Summary::of(ctx, BEFORE, &old).await?, Summary::of(ctx, AFTER, &new).await?);
        let summary = names.iter().map(|name| {
            let at = |schema: &Schema| schema.column_with_name(name).map(|(i, _)| i);
            let cell = |pick: fn(&Summary) -> &Vec<String>| {
                let of = |i: Option<usize>, summary| i.map_or(String::new(), |i| pick(summary)[i].clone());
                arrow(&of(at(&old), &was), &of(at(&new), &is))
            };
            let changed = both.iter().position(|both| both == name).and_then(|i| changed.get(i)).cloned();
            vec![
                (*name).clone(),
                cell(|s| &s.types),
                changed.unwrap_or_default(),
                cell(|s| &s.missing),
                cell(|s| &s.lowest),
                cell(|s| &s.highest),
                cell(|s| &s.mean),
            ]
        });
        Ok(Self { rows, columns_changed, summary: summary.collect() })
    }
}

/// Per column: the number of rows present in both versions whose values differ. Numbers are compared as numbers, all
/// other types as text.
async fn changes(ctx: &SessionContext, columns: &[&String], old: &Schema, new: &Schema) -> anyhow::Result<Vec<String>> {
    let numeric = |schema: &Schema, name: &str| {
        schema.column_with_name(name).is_some_and(|(_, field)| field.data_type().is_numeric())
    };
    let differs = |(i, name): (usize, &&String)| {
        let kind = if numeric(old, name) && numeric(new, name) { "DOUBLE" } else { "VARCHAR" };
        let (before, after) =
            (format!("CAST(b.{} AS {kind})", quote(name)), format!("CAST(a.{} AS {kind})", quote(name)));
        format!("count(*) FILTER (WHERE {before} IS DISTINCT FROM {after}) AS changed_{i}")
    };
    let differs: Vec<String> = columns.iter().enumerate().map(differs).collect();
    let sql = format!(
        "SELECT {} FROM {} AS b JOIN {} AS a ON b._partition = a._partition AND b._offset = a._offset",
        differs.join(", "),
        quote(BEFORE),
        quote(AFTER)
    );
    numbers(ctx, &sql).await
}

/// Summary statistics of each column of a table.
struct Summary {
    types: Vec<String>,
    missing: Vec<String>,
    lowest: Vec<String>,
    highest: Vec<String>,
    mean: Vec<String>,
}

impl Summary {
    async fn of(ctx: &SessionContext, table: &str, schema: &Schema) -> anyhow::Result<Self> {
        let mut wanted = Vec::new();
        for (i, field) in schema.fields().iter().enumerate() {
            let name = quote(field.name());
            let plain = !field.data_type().is_nested() && !matches!(field.data_type(), DataType::Null);
            let extreme = |f: &str| if plain { format!("{f}({name}) AS {f}_{i}") } else { format!("'' AS {f}_{i}") };
            let mean = if field.data_type().is_numeric() { format!("round(avg({name}), 4)") } else { "''".to_owned() };
            let (missing, mean) = (format!("count(*) - count({name}) AS missing_{i}"), format!("{mean} AS mean_{i}"));
            wanted.extend([missing, extreme("min"), extreme("max"), mean]);
        }
        let values = numbers(ctx, &format!("SELECT {} FROM {}", wanted.join(", "), quote(table))).await?;
        let pick = |i: usize| values.iter().skip(i).step_by(4).cloned().collect();
        let types = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        Ok(Self { types, missing: pick(0), lowest: pick(1), highest: pick(2), mean: pick(3) })
    }
}

/// The single row of a query result, as text.
async fn numbers(ctx: &SessionContext, sql: &str) -> anyhow::Result<Vec<String>> {
    let batch = engine::collect(ctx, sql).await?;
    let options = FormatOptions::default();
    let mut cells = Vec::new();
    for column in batch.columns() {
        if column.is_empty() {
            continue;
        }
        let text: String = ArrayFormatter::try_new(column, &options)?.value(0).to_string().chars().take(40).collect();
        cells.push(crate::printable::printable(&text).into_owned());
    }
    Ok(cells)
}
