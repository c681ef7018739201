//! A training that stores nothing: what a version of the SQL files would give.
//!
//! Input: a snapshot, SQL files, and the model whose cluster numbers are kept. Output: the model of the whole stream.

use tercile_store::{Snapshot, Store};

use super::dataset::Input;
use super::{Job, Options, Refusal, rows, stream};
use crate::engine;
use crate::model::{Model, Predecessor};
use crate::slices::SLICES;
use crate::sql::Files;

/// Why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the training was cut off: {0}")]
    Cut(String),
}

/// The model of a segmentation on all records of a snapshot. Its version is 0.
///
/// # Errors
/// If the SQL fails, or the rows cannot be clustered.
pub async fn preview(
    (store, snapshot): (&Store, &Snapshot),
    files: &Files,
    name: &str,
    predecessor: Option<Model>,
    options: &Options,
) -> Result<Model, Error> {
    let ctx = engine::open_within(snapshot, files, options.limits(snapshot.rows())).await?;
    let segmentations = engine::segmentations(&ctx, files).await?;
    let segmentation = segmentations.into_iter().find(|segmentation| segmentation.name == name);
    let segmentation = segmentation.ok_or_else(|| Error::Refused(format!("{name} is no segmentation")))?;
    let (stream, cuts) = stream(&ctx, snapshot).await?;
    let input = Input { ctx, snapshot: snapshot.clone(), files: files.clone(), cuts };
    let rows = rows(&input, &segmentation, (options, store)).await?;
    let (store, options) = (store.clone(), options.clone());
    let work = move || -> Result<Model, Refusal> {
        let kept = predecessor.as_ref().filter(|model| model.is_continued_by(&segmentation));
        let job = Job {
            segmentation: &segmentation,
            slice: SLICES,
            stream: &stream,
            store: &store,
            options: &options,
            predecessor: kept,
            replaced: predecessor.as_ref().filter(|_| kept.is_none()).map(Predecessor::of),
            before: None,
            earlier: None,
            newest: None,
            warm: None,
        };
        let all = rows.up_to(SLICES)?;
        let receipt = job.receipt(all.as_ref());
        Ok(job.fit(rows.as_ref(), all.as_ref(), receipt)?.model)
    };
    let trained = tokio::task::spawn_blocking(work).await.map_err(|e| Error::Cut(e.to_string()))?;
    trained.map_err(|refusal| Error::Refused(refusal.to_string()))
}
