//! `tercile models`: lists, compares, promotes and pins model versions.

mod candidates;

use std::io::Write as _;

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use tercile_store::{self as store, FileFault, Store};

use super::table::short;
use super::{Done, completions, count, notify, table, thousands};
use crate::config::{NotifyArgs, StoreArgs};
use crate::model::diff::{Counted, Diff, Moved, Pair, diff};
use crate::model::history::{Period, PromotedBy, Promotion, RollbackError, RolledBack, periods};
use crate::model::scaling::in_words;
use crate::model::{Candidate, Model, ModelRegistry, Until, model_ref};
use crate::notify::Notifier;
use crate::slices::all_slices;

/// List models, compare two, roll back to an older one, or pin one
///
/// Without a segmentation: the serving models. With one: all of its versions, and when each of them served. A rollback holds
/// until a training with other records or other SQL than those of the newest model. A pin holds until it is removed. A running
/// serve or up applies changes within a second.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Models {
    #[command(subcommand)]
    action: Option<Action>,
    /// The segmentation whose versions are listed: price_rating, ...
    #[arg(value_name = "SEGMENTATION", add = completions::segmentation())]
    segmentation: Option<String>,
    #[command(flatten)]
    out: Out,
}

#[derive(Subcommand)]
enum Action {
    Diff(DiffArgs),
    /// Serve an older version again (rollback)
    Rollback(Version),
    /// Serve a version of a slice, also after further trainings, until it is unpinned
    Pin(Version),
    /// Remove a pin: the newest version serves again
    Unpin(Version),
    Candidates(candidates::List),
    /// Let the candidate of a slice serve
    Promote(candidates::Decide),
    /// Reject the candidate of a slice: the version that serves keeps serving, until a training finds other records or SQL
    Reject(candidates::Decide),
}

/// Compare two models: centroids, sizes, and the number of records in another segment
///
/// Between a slice and the next slice of the same training, all records are counted; otherwise the sample of up to 5,000 records.
#[derive(Args)]
struct DiffArgs {
    /// A model: price_rating@1, price_rating@3@2 for a version, or a model file
    #[arg(value_name = "A", add = completions::model())]
    a: String,
    /// Another model
    #[arg(value_name = "B", add = completions::model())]
    b: String,
    #[command(flatten)]
    out: Out,
}

#[derive(Args)]
struct Version {
    /// The segmentation: price_rating, ...
    #[arg(value_name = "SEGMENTATION", add = completions::segmentation())]
    segmentation: String,
    /// The version; it serves the slice that it was trained on
    #[arg(value_name = "VERSION")]
    version: u64,
    #[command(flatten)]
    change: Change,
}

/// Arguments of the commands that change the serving version.
#[derive(Args)]
struct Change {
    #[command(flatten)]
    notify: NotifyArgs,
    #[command(flatten)]
    out: Out,
}

#[derive(Args)]
struct Out {
    /// Print the result as JSON
    #[arg(long, env = "TERCILE_JSON", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    json: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl Models {
    pub fn run(self) -> anyhow::Result<Done> {
        let text = match self.action {
            Some(Action::Diff(args)) => args.text()?,
            Some(Action::Rollback(args)) => args.rollback()?,
            Some(Action::Pin(args)) => args.pin()?,
            Some(Action::Unpin(args)) => args.unpin()?,
            Some(Action::Candidates(args)) => args.text()?,
            Some(Action::Promote(args)) => args.promote()?,
            Some(Action::Reject(args)) => args.reject()?,
            None => match &self.segmentation {
                Some(name) => self.out.versions(name)?,
                None => self.out.serving()?,
            },
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(Done::Well)
    }
}

/// The serving state of a slice.
#[derive(Serialize)]
struct Listed {
    segmentation: String,
    slice: u8,
    version: Option<u64>,
    rows: Option<u64>,
    inertia: Option<f64>,
    trained_at: Option<String>,
    since: Option<String>,
    by: Option<PromotedBy>,
    pinned: bool,
    /// The version that waits for an operator's decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    candidate: Option<Candidate>,
    /// The reason why the last training produced no model.
    refused: Option<String>,
    /// The unusable file, the reason and the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

impl Listed {
    /// A slice of which only a fault is known.
    fn unknown(segmentation: &str, slice: u8, fault: &FileFault) -> Self {
        Self {
            segmentation: segmentation.to_owned(),
            slice,
            version: None,
            rows: None,
            inertia: None,
            trained_at: None,
            since: None,
            by: None,
            pinned: false,
            candidate: None,
            refused: None,
            fault: Some(fault.to_string()),
        }
    }
}

/// The promotion history, as far as it is known.
fn history(registry: &ModelRegistry) -> Result<Vec<Promotion>, store::Error> {
    match registry.history() {
        Err(store::Error::File(fault)) => {
            tracing::warn!("{fault}");
            Ok(Vec::new())
        }
        history => history,
    }
}

/// A version and the times when it served.
#[derive(Serialize)]
struct Versioned {
    version: u64,
    slice: u8,
    rows: u64,
    inertia: f64,
    silhouette: Option<f64>,
    trained_at: String,
    served: Vec<Period>,
}

impl Change {
    /// Runs `change` on the registry of a segmentation under the lock that excludes other promotions, and `tell`s its result to the
    /// receivers of notifications.
    fn make<T>(
        &self,
        segmentation: &str,
        change: impl FnOnce(&ModelRegistry) -> Result<T, RollbackError>,
        tell: impl FnOnce(&Notifier, &T),
    ) -> anyhow::Result<T> {
        let store = self.out.store.look()?;
        let registry = registry(&store, segmentation)?;
        // A secret that cannot be read is an error before anything changes.
        let notifier = self.notify.start(&store)?;
        let alone = store.lock_models()?;
        let changed = change(&registry);
        drop(alone);
        if let Some(notifier) = notifier {
            if let Ok(changed) = &changed {
                tell(&notifier, changed);
                notify::wait(&notifier);
            }
            notifier.stop();
        }
        Ok(changed?)
    }

    /// A change of the version that serves. `by` names it in notifications.
    fn serving(
        &self,
        segmentation: &str,
        by: &str,
        change: impl FnOnce(&ModelRegistry) -> Result<RolledBack, RollbackError>,
    ) -> anyhow::Result<RolledBack> {
        self.make(segmentation, change, |notifier, done| notifier.changed(done, by))
    }
}

impl Out {
    fn serving(&self) -> anyhow::Result<String> {
        let store = self.store.look()?;
        let (mut all, mut faults) = (Vec::new(), Vec::new());
        for segmentation in store.segmentations()? {
            let registry = ModelRegistry::new(&store, &segmentation);
            let slices = match registry.slices() {
                Err(store::Error::File(fault)) => {
                    // The fault concerns all slices.
                    faults.push(fault.to_string());
                    all.extend(all_slices().map(|slice| Listed::unknown(&segmentation, slice, &fault)));
                    continue;
                }
                slices => slices?,
            };
            let history = history(&registry)?;
            for (slice, standing) in slices {
                let read = standing.version.map(|version| registry.model_of(version, slice)).transpose();
                let (model, fault) = match read {
                    Err(store::Error::File(fault)) => {
                        faults.push(fault.to_string());
                        (None, Some(fault.to_string()))
                    }
                    read => (read?, None),
                };
                let began = history.iter().rfind(|began| began.slice == slice);
                all.push(Listed {
                    segmentation: segmentation.clone(),
                    slice,
                    version: standing.version,
                    rows: model.as_ref().map(|model| model.rows),
                    inertia: model.as_ref().map(|model| model.inertia),
                    trained_at: model.map(|model| model.trained_at),
                    since: began.map(|began| began.at.clone()),
                    by: began.map(|began| began.by),
                    pinned: standing.pinned,
                    candidate: standing.candidate,
                    refused: standing.refused,
                    fault,
                });
            }
        }
        for fault in faults {
            tracing::warn!("{fault}");
        }
        if self.json {
            return json(&all);
        }
        ensure!(!all.is_empty(), "the store {} has no models; run tercile train", store.root().display());
        let header = ["segmentation", "slice", "version", "rows", "inertia", "trained at", "serves since"];
        let row = |one: &Listed| {
            let text = |value: Option<String>| value.unwrap_or_default();
            let back = match one.by {
                _ if one.pinned => " (pinned)",
                Some(PromotedBy::Rollback) => " (rolled back)",
                Some(PromotedBy::Operator) => " (promoted)",
                _ => "",
            };
            vec![
                one.segmentation.clone(),
                one.slice.to_string(),
                text(one.version.map(|version| version.to_string())),
                text(one.rows.map(thousands)),
                text(one.inertia.map(|inertia| format!("{inertia:.2}"))),
                text(one.trained_at.as_deref().map(second)),
                text(one.since.as_deref().map(|since| second(since) + back)),
            ]
        };
        let mut text = table::render(&header, &all.iter().map(row).collect::<Vec<_>>());
        for (one, held) in all.iter().filter_map(|one| Some((one, one.candidate.as_ref()?))) {
            let name = format!("{}@{}", one.segmentation, one.slice);
            text.push_str(&format!("{name}: version {} is a candidate: {}\n", held.version, held.reason));
        }
        for why in all.iter().filter_map(|one| one.refused.as_ref()) {
            text.push_str(&format!("no new model: {why}\n"));
        }
        Ok(text)
    }

    fn versions(&self, name: &str) -> anyhow::Result<String> {
        let registry = registry(&self.store.look()?, name)?;
        let history = history(&registry)?;
        let of = |model: Model| Versioned {
            served: periods(&history, model.version),
            version: model.version,
            slice: model.slice,
            rows: model.rows,
            inertia: model.inertia,
            silhouette: model.silhouette,
            trained_at: model.trained_at,
        };
        let all: Vec<Versioned> =
            registry.versions(&mut |fault| tracing::warn!("{fault}"))?.into_iter().map(of).collect();
        if self.json {
            return json(&all);
        }
        let row = |one: &Versioned| {
            let served: Vec<String> = one.served.iter().map(span).collect();
            let silhouette = one.silhouette.map_or_else(String::new, |score| format!("{score:.3}"));
            vec![
                one.version.to_string(),
                one.slice.to_string(),
                thousands(one.rows),
                format!("{:.2}", one.inertia),
                silhouette,
                second(&one.trained_at),
                served.join(", "),
            ]
        };
        let header = ["version", "slice", "rows", "inertia", "silhouette", "trained at", "served"];
        Ok(table::render(&header, &all.iter().map(row).collect::<Vec<_>>()))
    }
}

impl DiffArgs {
    fn text(&self) -> anyhow::Result<String> {
        let store = self.out.store.look()?;
        let find = |name| model_ref::find_or_read(&store, name).map_err(anyhow::Error::msg);
        let (a, b) = (find(&self.a)?, find(&self.b)?);
        let sample = || match ModelRegistry::new(&store, &b.segmentation).sample_of(&b) {
            Ok(sample) => Some(sample),
            Err(error) => {
                tracing::warn!("records can't be counted: {error}");
                None
            }
        };
        let found = diff(&a, &b, sample);
        if self.out.json { json(&found) } else { Ok(words(&found, &b.features)) }
    }
}

impl Version {
    fn pin(&self) -> anyhow::Result<String> {
        let name = &self.segmentation;
        let cannot = || format!("cannot pin version {} of {name}", self.version);
        let done = self
            .alone("pin", |registry| registry.roll_back(name, self.version, Until::Unpinned))
            .with_context(cannot)?;
        if self.change.out.json {
            return json(&done);
        }
        let (slice, version) = (done.model.slice, self.version);
        Ok(format!(
            "{name} of slice {slice} is served by version {version}, whatever trainings find, until it is unpinned\n"
        ))
    }

    fn unpin(&self) -> anyhow::Result<String> {
        let name = &self.segmentation;
        let cannot = || format!("cannot unpin version {} of {name}", self.version);
        let done = self.alone("unpin", |registry| registry.unpin(name, self.version)).with_context(cannot)?;
        if self.change.out.json {
            return json(&done);
        }
        let (slice, version) = (done.model.slice, done.model.version);
        Ok(format!("{name} of slice {slice} is served by version {version}, and by the next that a training makes\n"))
    }

    fn alone(
        &self,
        by: &str,
        change: impl FnOnce(&ModelRegistry) -> Result<RolledBack, RollbackError>,
    ) -> anyhow::Result<RolledBack> {
        self.change.serving(&self.segmentation, by, change)
    }

    fn rollback(&self) -> anyhow::Result<String> {
        let name = &self.segmentation;
        let cannot = || format!("cannot roll {name} back to version {}", self.version);
        let done = self
            .alone("rollback", |registry| registry.roll_back(name, self.version, Until::NewModel))
            .with_context(cannot)?;
        if self.change.out.json {
            return json(&done);
        }
        let (slice, version) = (done.model.slice, self.version);
        Ok(match done.before {
            Some(before) if before == version => {
                format!("{name} of slice {slice} is served by version {version} already\n")
            }
            Some(before) => format!(
                "{name} of slice {slice} is served by version {version} again, no longer by {before}, until a training finds \
                 other records\n"
            ),
            None => format!("{name} of slice {slice} is served by version {version}\n"),
        })
    }
}

/// The registry of a segmentation that was trained.
fn registry(store: &Store, name: &str) -> anyhow::Result<ModelRegistry> {
    let trained = store.segmentations()?;
    let there = if trained.is_empty() { "none".to_owned() } else { trained.join(", ") };
    let root = store.root().display();
    ensure!(trained.iter().any(|one| one == name), "the store {root} has no models of {name:?}, it has {there}");
    Ok(ModelRegistry::new(store, name))
}

fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// A timestamp without fractions of a second.
fn second(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
}

fn span(period: &Period) -> String {
    let back = match period.by {
        PromotedBy::Rollback => " (rolled back)",
        PromotedBy::Operator => " (promoted)",
        PromotedBy::Training => "",
    };
    let to = period.to.as_deref().map_or_else(|| "now".to_owned(), second);
    format!("{} to {to}{back}", second(&period.from))
}

fn words(found: &Diff, features: &[String]) -> String {
    let mut header = vec!["cluster".to_owned(), "description".to_owned(), "rows".to_owned()];
    header.extend(features.iter().cloned());
    header.push("shift".to_owned());
    let pair = |a: Option<String>, b: Option<String>| match (a, b) {
        (Some(a), Some(b)) if a == b => a,
        (a, b) => format!("{} -> {}", a.unwrap_or_else(|| "none".into()), b.unwrap_or_else(|| "none".into())),
    };
    let row = |one: &Pair| {
        let both = |of: &dyn Fn(&crate::model::Cluster) -> Option<String>| {
            pair(one.a.as_ref().and_then(of), one.b.as_ref().and_then(of))
        };
        let new = if one.b.as_ref().is_some_and(|cluster| cluster.new) { " (new)" } else { "" };
        let mut cells = vec![
            one.cluster.to_string(),
            both(&|cluster| Some(cluster.description.clone())) + new,
            both(&|cluster| Some(thousands(cluster.size))),
        ];
        cells.extend(features.iter().map(|name| both(&|cluster| cluster.centroid.get(name).map(|v| short(*v)))));
        cells.push(one.shift.map_or_else(String::new, |shift| format!("{shift:.4}")));
        cells
    };
    let side = |side: &crate::model::diff::Side| {
        let (rows, inertia) = (thousands(side.rows), short(side.inertia));
        let name = format!("{}@{}@{}", side.segmentation, side.slice, side.version);
        let scaled =
            in_words(features, side.scaling.as_deref()).map_or_else(String::new, |words| format!(", scaled: {words}"));
        format!("{name}: {rows} rows, inertia {inertia}, trained at {}{scaled}\n", second(&side.trained_at))
    };
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let rows: Vec<Vec<String>> = found.clusters.iter().map(row).collect();
    let mut text = side(&found.a) + &side(&found.b) + &table::render(&header, &rows);
    if let Some(Moved { of, records, changed, matrix }) = &found.moved {
        let counted = match of {
            Counted::Training => "counted at training",
            Counted::Sample => "counted in the sample",
        };
        let share = *changed as f64 * 100.0 / (*records).max(1) as f64;
        let records = count(*records, "record");
        text.push_str(&format!("{} of {records} changed segment ({share:.1}%), {counted}\n", thousands(*changed)));
        for (from, row) in matrix.iter().enumerate() {
            for (to, n) in row.iter().enumerate().filter(|(to, n)| *to != from && **n > 0) {
                text.push_str(&format!("{} from {from} to {to}\n", thousands(*n)));
            }
        }
    }
    text
}
