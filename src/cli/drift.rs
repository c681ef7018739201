//! `tercile drift`: compares later rows with those that the models were trained on.

use std::io::Write as _;
use std::time::Duration;

use clap::Args;
use tercile_store::Snapshot;

use super::{Done, table, within};
use crate::config::{SqlArgs, StoreArgs, seconds};
use crate::drift::rows::{self, Source};
use crate::drift::{self, Of, State};
use crate::engine;
use crate::model::model_ref;
use crate::slices::{SLICES, all_slices};

/// Exit code of `--fail`.
const DRIFTING: u8 = 5;

/// Compare later rows with those that the models were trained on
///
/// A feature drifts if its population stability index is 0.2 or more, a cluster if its share of the rows differs by 0.1 or more, and
/// the model if 5 % more of the rows are unlike those of the training; each also needs a p-value below 0.0001, and 500 rows.
#[derive(Args)]
pub struct Drift {
    /// A segmentation [default: all of them]
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// The slice whose model is compared: 1, 2 or 3, the whole stream
    #[arg(long, env = "TERCILE_SLICE", value_name = "N", default_value_t = SLICES,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(SLICES)))]
    slice: u8,
    /// Which rows: those that arrived after the training, or those that the slice has beyond the slice before
    #[arg(long, env = "TERCILE_OF", value_name = "ROWS", default_value = "stream")]
    of: Of,
    /// Print the reports as JSON
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
    /// Exit with 5 if a segmentation drifts
    #[arg(long, env = "TERCILE_FAIL", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    fail: bool,
    /// Timeout in seconds
    #[arg(long, env = "TERCILE_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

impl Drift {
    pub async fn run(self) -> anyhow::Result<Done> {
        let (timeout, json, fail) = (self.timeout, self.json, self.fail);
        let (reports, complete) = within(timeout, "--timeout", "the comparison", self.reports()).await?;
        let mut text = String::new();
        if json {
            text = serde_json::to_string_pretty(&reports)? + "\n";
        } else {
            for report in &reports {
                text.push_str(&lines(report));
            }
        }
        std::io::stdout().write_all(text.as_bytes())?;
        let drifts = reports.iter().any(|report| report.state == State::Drifting);
        Ok(match (fail && drifts, complete) {
            (true, _) => Done::With(DRIFTING),
            (false, true) => Done::Well,
            (false, false) => Done::With(1),
        })
    }

    /// The reports, and whether each segmentation has one. Only if it is named, one that cannot be compared is an error.
    async fn reports(self) -> anyhow::Result<(Vec<drift::Drift>, bool)> {
        let files = self.sql.load()?;
        let store = self.store.look()?;
        let ctx = engine::open(&Snapshot::default(), &files).await?;
        let found = engine::each_segmentation(&ctx, &files).await;
        for unusable in &found.unusable {
            match self.name.as_deref() {
                Some(name) if name == unusable.view.name => anyhow::bail!("{}", unusable.error),
                Some(_) => {}
                None => tracing::warn!("not compared: {}", unusable.error),
            }
        }
        let all = found.usable;
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        if let Some(name) = self.name.as_deref().filter(|name| !names.contains(name)) {
            anyhow::bail!("there is no segmentation {name}; the SQL files have {}", names.join(", "));
        }
        let named = |one: &&crate::sql::Segmentation| self.name.as_ref().is_none_or(|name| *name == one.name);
        let (mut reports, mut complete) = (Vec::new(), found.unusable.is_empty() || self.name.is_some());
        for segmentation in all.iter().filter(named) {
            let source = Source { store: &store, files: &files, segmentation, memory: None };
            let model = |slice: u8| {
                model_ref::find(&store, &format!("{}@{slice}", segmentation.name)).map_err(anyhow::Error::msg)
            };
            let slice = model(self.slice)?;
            let report = match self.of {
                Of::Thirds if slice.slice == *all_slices().start() => return Err(rows::Error::FirstSlice.into()),
                Of::Thirds => source.thirds(&model(self.slice - 1)?, &slice).await,
                Of::Stream | Of::Api => source.stream(&slice).await,
            };
            match report {
                Err(why @ (rows::Error::Sql { .. } | rows::Error::NoBaseline { .. })) if self.name.is_none() => {
                    complete = false;
                    tracing::warn!("not compared: {why}");
                }
                report => reports.push(report?),
            }
        }
        Ok((reports, complete))
    }
}

/// A report as text.
fn lines(report: &drift::Drift) -> String {
    let state = match report.state {
        State::Ok => "ok",
        State::Drifting => "drifting",
        State::TooFew => "too few",
    };
    let words = report.words.get("en").map_or("", String::as_str);
    let mut text =
        format!("{} of slice {}, version {}: {state}\n{words}\n", report.segmentation, report.model, report.version);
    if report.state == State::TooFew {
        return text + "\n";
    }
    let features: Vec<Vec<String>> = report
        .features
        .iter()
        .map(|one| {
            let direction = serde_json::to_value(one.direction).ok();
            let direction = direction.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_owned();
            let numbers = [one.psi, one.p_value, one.missing_before, one.missing].map(table::short);
            [vec![one.name.clone()], numbers.to_vec(), vec![direction]].concat()
        })
        .collect();
    text += &table::render(&["feature", "psi", "p-value", "missing before", "missing now", "direction"], &features);
    let clusters: Vec<Vec<String>> = report
        .clusters
        .iter()
        .map(|one| {
            let numbers = [one.share_before, one.share, one.p_value].map(table::short);
            [vec![one.cluster.to_string(), one.description.clone()], numbers.to_vec()].concat()
        })
        .collect();
    text += "\n";
    text += &table::render(&["cluster", "description", "share before", "share now", "p-value"], &clusters);
    text + "\n"
}
