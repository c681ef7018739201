//! `tercile model`: shows a model, also as SQL.

use std::io::Write as _;

use clap::{Args, Subcommand, ValueEnum};

use super::{Done, completions, imputed, quartiles, table, thousands};
use crate::config::StoreArgs;
use crate::model::{model_ref, plain_sql, scaling};

/// Show the serving models
#[derive(Args)]
pub struct Model {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Show(Show),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
    /// A query that gives the same clusters in any engine
    Sql,
}

/// Print a model: as a table, as JSON, or as plain SQL that gives the same clusters in any engine
#[derive(Args)]
struct Show {
    /// A segmentation, one of its slices, or a version: price_rating, price_rating@2, price_rating@2@5
    #[arg(value_name = "NAME", add = completions::model())]
    name: String,
    /// Output format
    #[arg(short, long, env = "TERCILE_FORMAT", default_value = "table")]
    format: Format,
    #[command(flatten)]
    store: StoreArgs,
}

impl Model {
    pub fn run(self) -> anyhow::Result<Done> {
        let Action::Show(show) = self.action;
        let model = model_ref::find(&show.store.look()?, &show.name).map_err(anyhow::Error::msg)?;
        let text = match show.format {
            Format::Sql => plain_sql::query(&model),
            Format::Json => serde_json::to_string_pretty(&model)? + "\n",
            Format::Table => {
                let mut header = vec!["cluster", "description", "rows"];
                header.extend(model.features.iter().map(String::as_str));
                let rows: Vec<Vec<String>> = model
                    .clusters
                    .iter()
                    .map(|cluster| {
                        let mut row =
                            vec![cluster.cluster.to_string(), cluster.description.clone(), thousands(cluster.size)];
                        let centroid = |feature| cluster.centroid.get(feature).map(|value| format!("{value:.2}"));
                        row.extend(model.features.iter().map(|feature| centroid(feature).unwrap_or_default()));
                        row
                    })
                    .collect();
                let (name, slice, version) = (&model.segmentation, model.slice, model.version);
                let centroids = table::render(&header, &rows);
                let quartiles = quartiles::render(&model.features, &model.clusters);
                let gap = if quartiles.is_empty() { "" } else { "\n" };
                let mut text = format!("{name} of slice {slice}, version {version}\n{centroids}{gap}{quartiles}");
                if let Some(words) = scaling::in_words(&model.features, model.scaling.as_deref()) {
                    text.push_str(&format!("scaled: {words}\n"));
                }
                for line in imputed::of_model(&model) {
                    text.push_str(&(line + "\n"));
                }
                if let Some(tiny) = &model.tiny {
                    text.push_str(&(tiny.sentence(&thousands(model.rows), &thousands(tiny.rows)) + "\n"));
                }
                for change in &model.words_changed {
                    text.push_str(&format!("cluster {}: {change}\n", change.cluster));
                }
                text
            }
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Done::Well)
    }
}
