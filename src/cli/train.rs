//! `tercile train`: trains every segmentation on every slice.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tercile_kmeans::column_buffer;
use tercile_kmeans::{self as kmeans, Step};
use tercile_store::Store;

use super::{Done, Terminal, Usage, blocking, count, imputed, notify, table, thousands, within};
use crate::config::{EngineArgs, MembersArgs, NotifyArgs, PromoteArgs, SolverArgs, SqlArgs, StoreArgs, bytes, seconds};
use crate::engine::cluster::Engine;
use crate::model::{Cluster, Model, SolverKind};
use crate::train::event::Subscribers;
use crate::train::{self, Options, Outcome, Progress};

/// Train every segmentation on growing thirds of the stream
///
/// Prints a table of the serving models. A model is not replaced if it would be trained on the same records and SQL.
#[derive(Args)]
pub struct Train {
    /// Print the models as JSON
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
    /// Memory limit, as in 512MB or 2GiB, at least 256MB: larger data is kept in files in the store's tmp/ (out of core)
    /// [default: half of the memory]
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", value_parser = memory)]
    memory_limit: Option<usize>,
    /// Timeout of the training in seconds; models that were completed before it are kept
    #[arg(long, env = "TERCILE_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    members: MembersArgs,
    #[command(flatten)]
    solver: SolverArgs,
    #[command(flatten)]
    promotion: PromoteArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
    #[command(flatten)]
    notify: NotifyArgs,
}

impl Train {
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        let solver = self.solver.solver;
        if solver != SolverKind::Tercile && self.engine.engine != Engine::Local {
            let why = "--solver linfa trains on this machine; leave out --engine, or --solver";
            return Err(Usage(why.to_owned()).into());
        }
        let files = self.sql.load()?;
        if !Store::at(&self.store.store)?.exists()? {
            anyhow::bail!("there is no store at {}; up and ingest make one", self.store.store.display());
        }
        let store = self.store.open()?;
        let notifier = self.notify.start(&store)?;
        let bar = terminal.bar(None);
        bar.enable_steady_tick(Duration::from_millis(100));
        let shown = bar.clone();
        let tell = Arc::new(move |progress: Progress<'_>| shown.set_message(message(progress)));
        let memory = self.memory_limit.unwrap_or_else(column_buffer::half_of_memory);
        let (keep_members, promote) = (self.members.keep_members, self.promotion.promote);
        let training = async |emit| {
            let options = Options { memory, engine: self.engine.engine, keep_members, solver, promote, tell, emit };
            let training = async { Ok(train::train(&store, &files, &options).await?) };
            within(self.timeout, "--timeout", "the training", training).await
        };
        let subscribers = Subscribers::default();
        if let Some(notifier) = &notifier {
            subscribers.add(Arc::new(notifier.clone()));
        }
        let trained = subscribers.follow(None, training).await;
        bar.finish_and_clear();
        if let Some(notifier) = notifier {
            let told = move || {
                notify::wait(&notifier);
                notifier.stop();
                Ok(())
            };
            blocking(told).await?;
        }
        let train::Training { outcomes, incomplete, .. } = trained?;
        let mut out = std::io::stdout();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&outcomes)?)?;
        } else {
            out.write_all(models(&outcomes).as_bytes())?;
        }
        let sql: f64 = outcomes.iter().filter(|outcome| outcome.slice == 1).map(|outcome| outcome.seconds.sql).sum();
        let fitting: f64 = outcomes.iter().map(|outcome| outcome.seconds.train).sum();
        tracing::info!("{sql:.2} s of SQL, {fitting:.2} s of training");
        tell_changes(&outcomes);
        tell_candidates(&outcomes);
        for why in refusals(&outcomes, |outcome| outcome.refused.as_ref()) {
            tracing::warn!("no new model: {why}");
        }
        let nothing = outcomes.iter().all(|outcome| outcome.model.is_none()) && !outcomes.is_empty();
        match incomplete.as_slice() {
            [] if nothing => tracing::error!("there is no model at all"),
            [] => {}
            [why] => tracing::error!("the training is incomplete: {why}"),
            [why, more @ ..] => tracing::error!("the training is incomplete: {why} ({} more)", more.len()),
        }
        Ok(if nothing || !incomplete.is_empty() { Done::With(1) } else { Done::Well })
    }
}

fn memory(text: &str) -> Result<usize, String> {
    let found = bytes(text)?;
    if found < 256_000_000 { Err("expected a size of 256MB or more".to_owned()) } else { Ok(found) }
}

fn message(progress: Progress<'_>) -> String {
    match progress {
        Progress::Rows { segmentation, rows } => format!("{segmentation}: SQL, {} rows", thousands(rows as u64)),
        Progress::Pass { segmentation, slice, step: Step { iteration, inertia, shift } } => {
            format!("{segmentation}, slice {slice}, pass {iteration}: inertia {inertia:.6e}, shift {shift:.2e}")
        }
    }
}

/// The distinct reasons why there are no new models: an unusable file is one reason for all slices.
pub(super) fn refusals(outcomes: &[Outcome], of: impl Fn(&Outcome) -> Option<&String>) -> Vec<&String> {
    let mut all: Vec<&String> = outcomes.iter().filter_map(of).collect();
    all.dedup();
    all
}

/// Prints one line per segment that is new, and one per segment name that differs from its predecessor's.
pub(super) fn tell_changes(outcomes: &[Outcome]) {
    for model in outcomes.iter().filter(|outcome| outcome.fresh).filter_map(|outcome| outcome.model.as_ref()) {
        let name = format!("{}@{}@{}", model.segmentation, model.slice, model.version);
        for Cluster { cluster, description, size, .. } in model.clusters.iter().filter(|cluster| cluster.new) {
            let records = match (model.entity.is_empty(), size) {
                (true, _) => count(*size, "record"),
                (false, 1) => "1 entity".to_owned(),
                (false, _) => format!("{} entities", thousands(*size)),
            };
            tracing::info!(
                "{name}: segment {cluster} is new ({description}, {records}), unlike what had its number before"
            );
        }
        for change in &model.words_changed {
            tracing::info!("{name}: segment {}: {change}", change.cluster);
        }
    }
}

/// Prints one line per candidate, with the rules that it violates.
pub(super) fn tell_candidates(outcomes: &[Outcome]) {
    for (outcome, held) in outcomes.iter().filter_map(|outcome| Some((outcome, outcome.candidate.as_ref()?))) {
        let name = format!("{}@{}", outcome.segmentation, outcome.slice);
        let (version, reason) = (held.version, &held.reason);
        tracing::warn!(
            "{name}: version {version} does not serve yet: {reason}; tercile models promote {name} lets it serve, tercile models reject \
             {name} does not"
        );
    }
}

/// One line per serving model, followed by one line per feature with missing values.
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
    let mut text = table::render(&header, &rows);
    for model in outcomes.iter().filter_map(|outcome| outcome.model.as_ref()) {
        for line in imputed::of_model(model) {
            text.push_str(&format!("{} slice {}: {line}\n", model.segmentation, model.slice));
        }
    }
    for model in outcomes.iter().filter_map(|outcome| outcome.model.as_ref()) {
        if let Some(tiny) = &model.tiny {
            let sentence = tiny.sentence(&thousands(model.rows), &thousands(tiny.rows));
            text.push_str(&format!("{} slice {}: {sentence}\n", model.segmentation, model.slice));
        }
    }
    let sampled = |model: &Model| model.rows > kmeans::sample_rows(kmeans::MAX_ROWS).len() as u64;
    if outcomes.iter().filter_map(|outcome| outcome.model.as_ref()).any(sampled) {
        text.push_str(
            "a silhouette of more than 5,000 rows is that of a weighted sample, which includes rare clusters\n",
        );
    }
    text
}
