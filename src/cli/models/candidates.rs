//! `tercile models candidates`, `promote` and `reject`: operators' decisions on models that do not serve yet.

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tercile_store as store;

use super::super::table::{self, short};
use super::super::{completions, thousands};
use super::{Change, Out, json, second};
use crate::model::candidate::Rejected;
use crate::model::history::RolledBack;
use crate::model::model_ref::{Name, Which};
use crate::model::{Model, ModelRegistry, Violation};
use crate::notify::{Notifier, PROMOTED, REJECTED};

/// List the candidates: new models that wait for promote or reject
///
/// A training with --promote guarded makes a candidate of a model that violates a guard rule of its SQL file, and one with --promote
/// manual of every new model. The model that serves is the champion.
#[derive(Args)]
pub(super) struct List {
    /// The segmentation: price_rating, ... [default: all]
    #[arg(value_name = "SEGMENTATION", add = completions::segmentation())]
    segmentation: Option<String>,
    #[command(flatten)]
    out: Out,
}

/// The slice whose candidate is promoted or rejected.
#[derive(Args)]
pub(super) struct Decide {
    /// The segmentation and the slice: price_rating@3, ...
    #[arg(value_name = "NAME@SLICE", add = completions::model())]
    name: String,
    #[command(flatten)]
    change: Change,
}

/// A candidate beside the champion.
#[derive(Serialize)]
struct Listed {
    segmentation: String,
    slice: u8,
    version: u64,
    /// Since when it waits.
    at: String,
    reason: String,
    violated: Vec<Violation>,
    champion: Option<Figures>,
    candidate: Option<Figures>,
}

/// The figures that are compared.
#[derive(Serialize)]
struct Figures {
    version: u64,
    rows: u64,
    inertia: f64,
    silhouette: Option<f64>,
    /// Rows of each cluster.
    sizes: Vec<u64>,
}

impl Figures {
    fn of(model: Model) -> Self {
        let Model { version, rows, inertia, silhouette, clusters, .. } = model;
        Self { version, rows, inertia, silhouette, sizes: clusters.into_iter().map(|cluster| cluster.size).collect() }
    }
}

impl List {
    pub fn text(&self) -> anyhow::Result<String> {
        let store = self.out.store.look()?;
        let names = match &self.segmentation {
            Some(name) => {
                super::registry(&store, name)?;
                vec![name.clone()]
            }
            None => store.segmentations()?,
        };
        let mut all = Vec::new();
        for segmentation in names {
            let registry = ModelRegistry::new(&store, &segmentation);
            for (slice, standing) in registry.slices()? {
                let Some(held) = standing.candidate else { continue };
                let figures = |version| match registry.model_of(version, slice) {
                    Err(store::Error::File(fault)) => {
                        tracing::warn!("{fault}");
                        Ok(None)
                    }
                    model => model.map(|model| Some(Figures::of(model))),
                };
                all.push(Listed {
                    segmentation: segmentation.clone(),
                    slice,
                    version: held.version,
                    champion: standing.version.map(figures).transpose()?.flatten(),
                    candidate: figures(held.version)?,
                    at: held.at,
                    reason: held.reason,
                    violated: held.violated,
                });
            }
        }
        if self.out.json {
            return json(&all);
        }
        if all.is_empty() {
            return Ok("there are no candidates\n".to_owned());
        }
        let header = ["segmentation", "slice", "", "version", "rows", "inertia", "silhouette", "sizes", "waits since"];
        let row = |one: &Listed, what: &str, figures: Option<&Figures>, since: String| {
            let text = |of: &dyn Fn(&Figures) -> String| figures.map_or_else(String::new, of);
            vec![
                one.segmentation.clone(),
                one.slice.to_string(),
                what.to_owned(),
                text(&|figures| figures.version.to_string()),
                text(&|figures| thousands(figures.rows)),
                text(&|figures| short(figures.inertia)),
                text(&|figures| figures.silhouette.map_or_else(String::new, |score| format!("{score:.3}"))),
                text(&|figures| figures.sizes.iter().map(|size| thousands(*size)).collect::<Vec<_>>().join(" ")),
                since,
            ]
        };
        let both = |one: &Listed| {
            let champion = row(one, "champion", one.champion.as_ref(), String::new());
            [champion, row(one, "candidate", one.candidate.as_ref(), second(&one.at))]
        };
        let mut text = table::render(&header, &all.iter().flat_map(both).collect::<Vec<_>>());
        for Listed { segmentation, slice, reason, .. } in &all {
            text.push_str(&format!("{segmentation}@{slice}: {reason}\n"));
        }
        Ok(text)
    }
}

impl Decide {
    fn slice(&self) -> anyhow::Result<Name> {
        let name = Name::parse(&self.name).map_err(anyhow::Error::msg)?;
        let decides = matches!(name.which, Which::Champion | Which::Challenger);
        ensure!(decides, "a slice has one candidate; say {}@{}", name.segmentation, name.slice);
        Ok(name)
    }

    pub fn promote(&self) -> anyhow::Result<String> {
        let Name { segmentation: name, slice, .. } = &self.slice()?;
        let cannot = || format!("cannot promote {name}@{slice}");
        let tell = |notifier: &Notifier, done: &RolledBack| {
            notifier.changed(done, "promotion");
            notifier.decided(name, *slice, PROMOTED);
        };
        let done = self.change.make(name, |registry| registry.promote(name, *slice), tell).with_context(cannot)?;
        if self.change.out.json {
            return json(&done);
        }
        let before = done.before.map_or_else(String::new, |before| format!(", no longer by {before}"));
        Ok(format!("{name} of slice {slice} is served by version {}{before}\n", done.model.version))
    }

    pub fn reject(&self) -> anyhow::Result<String> {
        let Name { segmentation: name, slice, .. } = &self.slice()?;
        let cannot = || format!("cannot reject {name}@{slice}");
        let tell = |notifier: &Notifier, _: &Rejected| notifier.decided(name, *slice, REJECTED);
        let done = self.change.make(name, |registry| registry.reject(name, *slice), tell).with_context(cannot)?;
        if self.change.out.json {
            return json(&done);
        }
        let serves = done.version.map_or_else(|| "by no version".to_owned(), |version| format!("by version {version}"));
        let rejected = done.rejected;
        Ok(format!("version {rejected} is rejected; {name} of slice {slice} is served {serves}\n"))
    }
}
