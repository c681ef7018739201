//! Predictions in any format; large bodies are streamed.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use poem::{Body, Request};

use super::super::asked::{Asked, find, serving};
use super::super::buffered_body::{BufferedBody, claimed};
use super::super::etag::EntityTag;
use super::super::posted;
use super::super::predictions::Predicted;
use super::super::problem::Problem;
use super::super::{State, bulk, negotiation, streaming_body};
use super::{INLINE_BYTES, whole};
use crate::bulk::{Answers, Explainer, Format, Lines, Opinion, Scorer};
use crate::model_cache::{Served, Serving, Slot};

/// Predicts for rows in any format and streams large bodies.
pub(super) async fn answer_any(
    state: &State,
    name: &str,
    request: &Request,
    rows: bulk::Rows,
    asked: Asked,
    explain: bool,
) -> Result<Predicted, Problem> {
    asked.sound()?;
    let from = rows.format;
    let to = form(request, from, explain)?;
    if asked.fit.is_some() && (from, to, explain) != (Format::Json, Format::Json, false) {
        let detail = "fit=request takes rows as application/json, gives application/json, and has nothing to explain";
        return Err(Problem::unprocessable(detail).field("fit"));
    }
    let models = state.live.now();
    find(&models, name)?;
    let whole_up_to = if asked.fit.is_some() { Whole::Required } else { Whole::UpTo(INLINE_BYTES) };
    let (head, rest) = begin(state, request, rows.body, whole_up_to).await?;
    if rest.is_none() && (from, to, explain) == (Format::Json, Format::Json, false) {
        let (json, stamp) = whole(state, name, head, asked, (true, false)).await?;
        return Ok(Predicted { format: to, body: Body::from(json), stamp });
    }
    let serving = asked.serving(&state.live, &models, name)?;
    let language = asked.language.code();
    let served = find(&models, name)?;
    let explainer = explain.then(|| explainer(served, &serving, language));
    let lines = Lines::of(&serving.model, language);
    let order = bulk::Order {
        from,
        to,
        scorer: Scorer::new(&serving.model, language),
        tally: state.metrics.tally(&serving.model),
        asked: Arc::clone(&serving.asked),
        answers: Answers { lines, explainer },
        records: None,
    };
    let body = bulk::answer(state, order, head, rest).await?;
    Ok(Predicted { format: to, body, stamp: Some(EntityTag::of(&serving.model)) })
}

/// The part of a body that is buffered before its rows are parsed.
pub(in crate::api) enum Whole {
    /// All of it.
    Required,
    /// All of it if it is not longer; longer bodies are streamed and never held whole.
    UpTo(usize),
}

/// The first bytes of a body; all of them if there is no rest.
pub(in crate::api) async fn begin(
    state: &State,
    request: &Request,
    body: Body,
    whole: Whole,
) -> Result<(BufferedBody, Option<impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static>), Problem> {
    let mut body = Box::pin(body.into_bytes_stream());
    let (held, limit, required) = match whole {
        Whole::Required => (posted::MAX_BODY, state.bodies.bytes.min(posted::MAX_BODY as u64), true),
        Whole::UpTo(bytes) => (bytes, state.bodies.bytes, false),
    };
    let said = claimed(request);
    if said.is_some_and(|length| length > limit) {
        return Err(bulk::arrived(&streaming_body::too_long(limit)));
    }
    let mut head = BufferedBody::begin(&state.budget, said.filter(|_| required))?;
    let all = head.read(&mut body, held).await.map_err(|error| bulk::arrived(&error))?;
    if head.bytes.len() as u64 > limit || (required && !all) {
        return Err(bulk::arrived(&streaming_body::too_long(limit)));
    }
    Ok((head, if all { None } else { Some(body) }))
}

/// Explains the answers of a model.
pub(in crate::api) fn explainer(served: &Served, serving: &Serving, language: &str) -> Explainer {
    Explainer::new(&serving.model.features, &serving.predictor, opinions(served, language))
}

/// Format of the response.
pub(in crate::api) fn form(request: &Request, from: Format, explain: bool) -> Result<Format, Problem> {
    let can = |format: Format| !explain || matches!(format, Format::Json | Format::Ndjson);
    // Without a preference the response has the format of the request, where possible.
    let mut forms: Vec<(Format, &str)> = bulk::FORMS.into_iter().filter(|(format, _)| can(*format)).collect();
    forms.extend(bulk::ALSO.into_iter().filter(|(format, _)| can(*format)));
    forms.sort_by_key(|(format, _)| *format != from);
    negotiation::pick(request, &forms).ok_or_else(|| {
        let known = bulk::FORMS.into_iter().filter(|(format, _)| can(*format));
        let known: Vec<&str> = known.map(|(_, kind)| kind).collect();
        let what = if explain { "explained answers come as" } else { "answers come as" };
        Problem::not_acceptable(format!("{what} {}; the Accept header names none of them", known.join(", ")))
    })
}

/// Prediction sources of all slices, in order.
fn opinions(served: &Served, language: &str) -> Vec<Opinion> {
    let opinion = |slot: &Slot| match serving(served, slot.slice) {
        Ok(serving) => Opinion::of(&serving.model, language),
        Err(problem) => Opinion::missing(slot.slice, problem.detail),
    };
    served.slots.iter().map(opinion).collect()
}
