//! Training: from slices to models.
//!
//! Input: a fixed list of the store's files, and the SQL files. Output: for each segmentation and slice a model in the
//! registry, or the recorded reason why there is none.

mod comparison;
mod dataset;
#[cfg(feature = "distributed")]
mod distributed;
mod entities;
pub mod event;
mod job;
mod options;
mod order;
mod outcome;
pub mod preview;
mod promotion;
mod record_rows;
mod refusal;
mod request_fit;
mod serving_models;
mod stream;
mod trainer;
mod unusable;
pub mod verify;
mod view_query;
pub mod worker;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use dataset::{Input, Rows};
use event::TrainingEvent;
use job::{Job, JobOutcome, settings};
pub use options::{KEEP_MEMBERS, Options, Progress};
use outcome::refused;
pub use outcome::{Outcome, Seconds, Training};
use promotion::Case;
use refusal::Refusal;
pub use request_fit::{RequestFit, RequestFitError, fit_for_request};
use serving_models::{ServingModels, with_sample};
use stream::{Stream, stream};
use tercile_kmeans::Limits;
/// The seed of the restarts.
pub use tercile_kmeans::SEED;
use tercile_store::{self as store, Held, Revision, Store};
use tokio::task::JoinSet;
pub use trainer::{Trainer, TrainerOptions};
pub use view_query::query as view_query;

use crate::engine::{self, Segmentations, cluster::Engine};
use crate::model::{Model, ModelRegistry, Predecessor, Promote, PromotedBy, ServingState, Slices};
use crate::slices::all_slices;
use crate::sql::{Files, Segmentation};

/// Runs until assignments are stable. The iteration limit has never been reached.
const LIMITS: Limits = Limits { iterations: 10_000, tolerance: 0.0 };

/// An error that stops a whole training. An error of one model is recorded as its refusal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("the training was cut off: {0}")]
    Cut(String),
}

/// Trains every segmentation on every slice. A lock allows one training at a time.
pub async fn train(store: &Store, files: &Files, options: &Options) -> Result<Training, Error> {
    let _one_at_a_time = lock(store).await?;
    let snapshot = store.snapshot()?;
    let ctx = engine::open_within(&snapshot, files, options.limits(snapshot.rows())).await?;
    let Segmentations { usable: segmentations, mut unusable } = engine::each_segmentation(&ctx, files).await;
    if segmentations.is_empty() && !unusable.is_empty() {
        return Err(unusable.swap_remove(0).error.into());
    }
    for warning in segmentations.iter().flat_map(|segmentation| &segmentation.warnings) {
        tracing::warn!("{warning}");
    }
    let (stream, cuts) = stream(&ctx, &snapshot).await?;
    options.emit.send(TrainingEvent::Started { n: stream.n });
    let stream = Arc::new(stream);
    let damage = engine::damage(&ctx);
    let input = Input { ctx, snapshot, files: files.clone(), cuts };
    let mut preparing = JoinSet::new();
    let outcomes = train_all((input, store), segmentations, (&stream, options), &mut preparing).await;
    // Cancelling the preparation of further segmentations deletes their temporary files.
    preparing.shutdown().await;
    let mut outcomes = outcomes?;
    for one in &unusable {
        let refused = unusable::refuse(store, one)?;
        refused.iter().for_each(|outcome| options.emit.send(TrainingEvent::Slice(Box::new(outcome.clone()))));
        outcomes.extend(refused);
    }
    let mut incomplete = damage.messages();
    incomplete.extend(unusable.iter().map(|one| one.error.to_string()));
    Ok(Training { n: stream.n, outcomes, incomplete })
}

type Prepared = (Segmentation, Result<Box<dyn Rows>, engine::Error>);

async fn train_all(
    (input, store): (Input, &Store),
    segmentations: Vec<Segmentation>,
    (stream, options): (&Arc<Stream>, &Options),
    preparing: &mut JoinSet<Prepared>,
) -> Result<Vec<Outcome>, Error> {
    let mut coming = segmentations.into_iter().map(|segmentation| {
        let (input, store, options) = (input.clone(), store.clone(), options.clone());
        async move {
            let rows = rows(&input, &segmentation, (&options, &store)).await;
            (segmentation, rows)
        }
    });
    // On a cluster the next segmentation is prepared during the training of the current one, because that uses no local memory
    // and neither step uses all cores.
    let ahead = usize::from(options.engine != Engine::Local);
    let mut outcomes = Vec::new();
    coming.by_ref().take(1).for_each(|first| drop(preparing.spawn(first)));
    while let Some(prepared) = preparing.join_next().await {
        let (segmentation, rows) = prepared.map_err(|e| Error::Cut(e.to_string()))?;
        // A failure of the cluster is not a property of the rows.
        let here = options.engine == Engine::Local || !segmentation.entity.is_empty();
        let rows = if here { rows } else { Ok(rows?) };
        coming.by_ref().take(ahead).for_each(|next| drop(preparing.spawn(next)));
        let (store, stream, options) = (store.clone(), Arc::clone(stream), options.clone());
        let work = move || {
            let trained = match train_segmentation(&store, &segmentation, rows, (&stream, &options)) {
                // An unusable file concerns only this segmentation.
                Err(Error::Store(store::Error::File(fault))) => Ok(refused(&segmentation.name, &fault)),
                trained => trained,
            };
            for outcome in trained.iter().flatten() {
                options.emit.send(TrainingEvent::Slice(Box::new(outcome.clone())));
            }
            trained
        };
        let trained = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Cut(e.to_string()))?;
        outcomes.extend(trained?);
        coming.by_ref().take(1 - ahead).for_each(|next| drop(preparing.spawn(next)));
    }
    Ok(outcomes)
}

async fn lock(store: &Store) -> Result<Held, Error> {
    let store = store.clone();
    let locked = tokio::task::spawn_blocking(move || store.lock_models());
    Ok(locked.await.map_err(|e| Error::Cut(e.to_string()))??)
}

/// Runs a segmentation's SQL on the engine that runs the queries.
async fn rows(
    input: &Input,
    segmentation: &Segmentation,
    (options, store): (&Options, &Store),
) -> Result<Box<dyn Rows>, engine::Error> {
    if !segmentation.entity.is_empty() {
        return Ok(Box::new(entities::rows(input, segmentation, (options, store)).await?));
    }
    let (ctx, most) = (&input.ctx, input.snapshot.rows() as usize);
    #[cfg(feature = "distributed")]
    if options.engine != Engine::Local {
        return Ok(Box::new(distributed::rows(ctx, segmentation, (options, store)).await?));
    }
    Ok(Box::new(record_rows::rows(ctx, segmentation, (most, options, &options.space(store))).await?))
}

fn train_segmentation(
    store: &Store,
    segmentation: &Segmentation,
    rows: Result<Box<dyn Rows>, engine::Error>,
    (stream, options): (&Stream, &Options),
) -> Result<Vec<Outcome>, Error> {
    let registry = ModelRegistry::new(store, &segmentation.name);
    let (mut standings, read) = registry.slices_or_again()?;
    let (versions, as_read) = (registry.versions_for(&standings)?, standings.clone());
    let mut reported = BTreeSet::new();
    let mut outcomes = Vec::new();
    let mut before: Option<Model> = None;
    let mut warm = false;
    for slice in all_slices() {
        let began = Instant::now();
        let standing = standings.entry(slice).or_default();
        let served_before = standing.version;
        let ServingModels { earlier, newest, lost } =
            ServingModels::read(&versions, slice, standing.version, &mut reported)?;
        // A pin remains valid while its model has the features of the current SQL. The pin of an unusable file remains valid
        // too, because the file may be restored.
        standing.pinned &= lost || earlier.as_ref().is_some_and(|model| model.is_about(segmentation));
        if let (true, true, Some(version)) = (lost, standing.pinned, standing.version) {
            let name = &segmentation.name;
            tracing::warn!(
                "version {version} of {name} is pinned to slice {slice} and cannot serve; tercile models unpin {name} {version} lets the newest one serve"
            );
        }
        let fits = |model: &&Model| model.is_continued_by(segmentation);
        let same_slice = if lost { newest.as_ref() } else { earlier.as_ref() };
        let predecessor = same_slice.filter(fits).or(before.as_ref().filter(fits));
        let job = Job {
            segmentation,
            slice,
            stream,
            store,
            options,
            predecessor,
            replaced: earlier.as_ref().filter(|model| !fits(model)).map(Predecessor::of),
            before: before.as_ref(),
            earlier: with_sample(store, &registry, earlier.as_ref(), &mut reported),
            newest: with_sample(store, &registry, newest.as_ref(), &mut reported),
            warm: before.as_ref().filter(|model| warm && fits(model)),
        };
        let of_slice = |why: &dyn std::fmt::Display| format!("{} of slice {slice}: {why}", segmentation.name);
        let mut without_key = None;
        let trained = match &rows {
            Ok(rows) => match job.run(rows.as_ref()) {
                Err(Refusal::Engine(error)) => return Err(error.into()),
                ran => ran.map_err(|refusal| {
                    without_key = refusal.without_key().map(|why| of_slice(&why));
                    of_slice(&refusal)
                }),
            },
            Err(error) => Err(of_slice(error)),
        };
        // `trained` is the model of these records, which may not be the serving model.
        let (trained, fresh, refused) = match trained {
            Ok(JobOutcome::New(mut new)) => {
                registry.put(&mut new)?;
                (Some(new.model), true, None)
            }
            Ok(JobOutcome::Known(known)) => (Some(*known), false, None),
            Err(why) => (earlier.clone(), false, Some(why)),
        };
        // A rollback ends when there are new records or SQL; a pin ends only when it is removed.
        let keeps = match standing.pinned {
            true => options.promote == Promote::Auto,
            false => !fresh && standing.by == Some(PromotedBy::Rollback) && !lost,
        };
        if let (Some(model), Ok(rows), None, false) = (&trained, &rows, &refused, keeps) {
            let rows = rows.up_to(slice);
            // Of a pinned slice it is decided what may serve when the pin is removed.
            let mut unpinned = standing.clone();
            let decided = rows.and_then(|rows| {
                let (registry, serving) = (&registry, earlier.as_ref());
                let case = Case { segmentation, model, serving, registry, rows: rows.as_ref() };
                case.decide(options.promote, &mut unpinned)
            });
            *standing = match standing.pinned {
                true => ServingState { version: standing.version, ..unpinned },
                false => unpinned,
            };
            match decided {
                Err(Refusal::Engine(error)) => return Err(error.into()),
                Err(Refusal::Store(error)) => return Err(error.into()),
                Err(other) => return Err(Error::Cut(of_slice(&other))),
                Ok(()) => {}
            }
        }
        // A pinned slice reports the model that would serve.
        let serves = trained.as_ref().is_some_and(|model| standing.version == Some(model.version));
        let waits = standing.candidate.as_ref().map(|held| held.version) == trained.as_ref().map(|model| model.version);
        let reported = serves || (fresh && standing.pinned && !waits);
        let model = if reported { trained.clone() } else { earlier.clone() };
        let fresh = fresh && reported;
        // The result of an older training must not influence this one.
        warm = refused.is_none();
        standing.refused.clone_from(&refused);
        standing.refused_without_key.clone_from(&without_key);
        before = trained;
        let sql = rows.as_ref().map_or(0.0, |rows| rows.took().as_secs_f64());
        let seconds = Seconds { sql, train: began.elapsed().as_secs_f64() };
        let (segmentation, refused_without_key) = (segmentation.name.clone(), without_key);
        outcomes.push(Outcome {
            segmentation,
            slice,
            model,
            fresh,
            candidate: standing.candidate.clone(),
            before: served_before,
            serving: standing.version,
            refused,
            refused_without_key,
            seconds,
        });
    }
    if store.place().is_disk() {
        registry.serve(&standings, &read, PromotedBy::Training)?;
    } else if standings != as_read {
        // Reading the state again costs a request, and the put fails if another process changed it.
        let before = if read == Revision::None { Slices::new() } else { as_read };
        registry.serve_after(&before, (&standings, &read), PromotedBy::Training)?;
    }
    if !segmentation.entity.is_empty() {
        registry.expire_members(options.keep_members)?;
    }
    Ok(outcomes)
}
