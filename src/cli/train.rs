//! `tercile train`

use std::io::Write as _;

use clap::Args;

use super::{Done, count, table, thousands};
use crate::config::{SqlArgs, StoreArgs};
use crate::model::Cluster;
use crate::train::{self, Outcome};

/// Train every segmentation on growing thirds of the stream
///
/// Prints a table of the models that serve now. A model that was trained on just the same before stays as it is.
#[derive(Args)]
pub struct Train {
    /// Print the models as JSON
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

impl Train {
    pub async fn run(self) -> anyhow::Result<Done> {
        let files = self.sql.load()?;
        if !self.store.store.is_dir() {
            anyhow::bail!("there is no store at {}; up and ingest make one", self.store.store.display());
        }
        let store = self.store.open()?;
        let outcomes = train::train(&store, &files).await?.outcomes;
        let mut out = std::io::stdout();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
        } else {
            out.write_all(models(&outcomes).as_bytes())?;
        }
        tell_new(&outcomes);
        for why in outcomes.iter().filter_map(|outcome| outcome.refused.as_ref()) {
            tracing::warn!("no new model: {why}");
        }
        let nothing = outcomes.iter().all(|outcome| outcome.model.is_none()) && !outcomes.is_empty();
        if nothing {
            tracing::error!("there is no model at all");
        }
        Ok(if nothing { Done::With(1) } else { Done::Well })
    }
}

/// A line for each segment that no older model knew.
pub(super) fn tell_new(outcomes: &[Outcome]) {
    for model in outcomes.iter().filter(|outcome| outcome.fresh).filter_map(|outcome| outcome.model.as_ref()) {
        let name = format!("{}@{}@{}", model.segmentation, model.slice, model.version);
        for Cluster { cluster, description, size, .. } in model.clusters.iter().filter(|cluster| cluster.new) {
            let records = count(*size, "record");
            tracing::info!(
                "{name}: segment {cluster} is new ({description}, {records}), unlike what had its number before"
            );
        }
    }
}

/// A line for each model that serves.
pub(super) fn models(outcomes: &[Outcome]) -> String {
    let header = ["segmentation", "slice", "version", "rows", "inertia", "silhouette", "clusters"];
    let rows: Vec<Vec<String>> = outcomes
        .iter()
        .filter_map(|outcome| outcome.model.as_ref())
        .map(|model| {
            let new = |c: &Cluster| if c.new { ", new" } else { "" };
            let clusters =
                model.clusters.iter().map(|c| format!("{} ({}{})", c.description, thousands(c.size), new(c)));
            vec![
                model.segmentation.clone(),
                model.slice.to_string(),
                model.version.to_string(),
                thousands(model.rows),
                format!("{:.2}", model.inertia),
                model.silhouette.map_or_else(String::new, |s| format!("{s:.3}")),
                clusters.collect::<Vec<_>>().join("; "),
            ]
        })
        .collect();
    table::render(&header, &rows)
}
