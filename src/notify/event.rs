//! Events: what is told to the URLs of `--notify`.
//!
//! Input: the results of trainings, comparisons and checks. Output: an [`Event`], whose JSON is the body of a request. An event
//! that lasts (a drift, a gap) is an episode: it is told when it begins (`firing`) and when it ends (`resolved`), with the same
//! id. The other events happen at one moment and are `firing` only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tercile_kafka::broker::Gap;
use tercile_store::times;

use crate::drift::Drift;
use crate::printable::hex;
use crate::train::{Outcome, Training};

/// The kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A training has ended.
    #[serde(rename = "training.done")]
    TrainingDone,
    /// A training gave no model for a slice, or failed as a whole. An episode.
    #[serde(rename = "training.refused")]
    TrainingRefused,
    /// Another version serves a slice.
    #[serde(rename = "model.promoted")]
    Promoted,
    /// A new version does not serve, because it violates rules of its segmentation. An episode.
    #[serde(rename = "model.held_back")]
    HeldBack,
    /// Records that arrived after the training differ from the training's. An episode.
    #[serde(rename = "drift")]
    Drift,
    /// Records were gone before they could be read. An episode of a partition.
    #[serde(rename = "ingest.gap")]
    Gap,
    /// The ingest is behind its topic. An episode.
    #[serde(rename = "ingest.lag")]
    Lag,
    /// Many of the arriving records cannot be read. An episode.
    #[serde(rename = "ingest.unreadable")]
    Unreadable,
    /// The store cannot be read or written. An episode.
    #[serde(rename = "store.error")]
    StoreError,
    /// A message of `tercile notify --test`.
    #[serde(rename = "test")]
    Test,
}

impl Kind {
    /// The kinds that occur by themselves.
    pub const ALL: [Self; 9] = [
        Self::TrainingDone,
        Self::TrainingRefused,
        Self::Promoted,
        Self::HeldBack,
        Self::Drift,
        Self::Gap,
        Self::Lag,
        Self::Unreadable,
        Self::StoreError,
    ];

    /// The name in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TrainingDone => "training.done",
            Self::TrainingRefused => "training.refused",
            Self::Promoted => "model.promoted",
            Self::HeldBack => "model.held_back",
            Self::Drift => "drift",
            Self::Gap => "ingest.gap",
            Self::Lag => "ingest.lag",
            Self::Unreadable => "ingest.unreadable",
            Self::StoreError => "store.error",
            Self::Test => "test",
        }
    }

    /// Whether the event begins and ends.
    pub fn is_episode(self) -> bool {
        !matches!(self, Self::TrainingDone | Self::Promoted | Self::Test)
    }
}

/// Whether an event begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It happens now, and lasts if it is an episode.
    Firing,
    /// The episode has ended.
    Resolved,
}

impl State {
    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// An event. Its JSON is the body of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same for each attempt to send the event, and for the end of an episode as for its begin.
    pub id: String,
    pub event: Kind,
    pub state: State,
    pub segmentation: Option<String>,
    pub slice: Option<u8>,
    /// When it happened or began, RFC 3339, UTC.
    pub since: String,
    /// A sentence, by language.
    pub words: BTreeMap<String, String>,
    /// Figures, depending on the kind.
    pub details: Value,
}

impl Event {
    fn new(event: Kind, words: String, details: Value) -> Self {
        let words = BTreeMap::from([("en".to_owned(), words)]);
        Self {
            id: new_id(),
            event,
            state: State::Firing,
            segmentation: None,
            slice: None,
            since: now(),
            words,
            details,
        }
    }

    fn of(mut self, segmentation: &str, slice: u8) -> Self {
        (self.segmentation, self.slice) = (Some(segmentation.to_owned()), Some(slice));
        self
    }

    /// The sentence in English.
    pub fn sentence(&self) -> &str {
        self.words.get("en").map_or("", String::as_str)
    }

    /// What an episode is about. Only one episode of a key is open at a time.
    pub fn key(&self) -> String {
        let mut key = self.event.name().to_owned();
        if let (Some(segmentation), Some(slice)) = (&self.segmentation, self.slice) {
            key += &format!("-{segmentation}-{slice}");
        }
        if let (Kind::Gap, Some(partition)) = (self.event, self.details.get("partition")) {
            key += &format!("-{partition}");
        }
        key
    }

    /// The end of this episode.
    pub fn resolved(self, words: String, details: Value) -> Self {
        let words = BTreeMap::from([("en".to_owned(), words)]);
        Self { state: State::Resolved, words, details, ..self }
    }

    /// A training has ended.
    pub fn training_done(training: &Training) -> Self {
        let model = |outcome: &Outcome| {
            let model = outcome.model.as_ref();
            json!({
                "segmentation": outcome.segmentation, "slice": outcome.slice, "version": model.map(|model| model.version),
                "rows": model.map(|model| model.rows), "silhouette": model.and_then(|model| model.silhouette),
                "new": outcome.fresh, "refused": outcome.public_refusal(),
            })
        };
        let new = training.outcomes.iter().filter(|outcome| outcome.fresh).count();
        let refused = training.outcomes.iter().filter(|outcome| outcome.refused.is_some()).count();
        let waiting = training.outcomes.iter().filter(|outcome| outcome.candidate.is_some()).count();
        let words = format!(
            "trained on {} records: {new} new models, {waiting} candidates, {refused} slices without a new model",
            training.n
        );
        let models: Vec<Value> = training.outcomes.iter().map(model).collect();
        Self::new(Kind::TrainingDone, words, json!({ "records": training.n, "models": models }))
    }

    /// A training gave no model for a slice. The reason has no key of an entity.
    pub fn training_refused(outcome: &Outcome, why: &str) -> Self {
        let serving = outcome.model.as_ref().map(|model| model.version);
        let details = json!({ "reason": why, "serving": serving });
        Self::new(Kind::TrainingRefused, format!("no new model: {why}"), details)
            .of(&outcome.segmentation, outcome.slice)
    }

    /// A training failed as a whole.
    pub fn training_failed(why: &str, timed_out: bool) -> Self {
        let words = format!("the training failed, the models stay as they were: {why}");
        Self::new(Kind::TrainingRefused, words, json!({ "reason": why, "timed_out": timed_out }))
    }

    /// Another version serves a slice. `by` is `training`, `rollback`, `pin`, `unpin` or `promotion`.
    pub fn promoted(segmentation: &str, slice: u8, (version, before): (u64, Option<u64>), by: &str) -> Self {
        let instead = before.map_or("the first one".to_owned(), |before| format!("{before} before"));
        let words = format!("version {version} of {segmentation} serves slice {slice} ({by}; {instead})");
        let details = json!({ "version": version, "before": before, "by": by });
        Self::new(Kind::Promoted, words, details).of(segmentation, slice)
    }

    /// A new version of a slice does not serve. `violated` has a sentence for each rule that it violates.
    pub fn held_back(segmentation: &str, slice: u8, version: u64, violated: &[String], details: Value) -> Self {
        let words =
            format!("version {version} of {segmentation} does not serve slice {slice} yet: {}", violated.join("; "));
        let details = json!({ "version": version, "violated": violated, "figures": details });
        Self::new(Kind::HeldBack, words, details).of(segmentation, slice)
    }

    /// Records that arrived after the training differ from it. The details are the report.
    pub fn drift(report: &Drift) -> Self {
        let details = serde_json::to_value(report).unwrap_or_default();
        let mut event = Self::new(Kind::Drift, String::new(), details).of(&report.segmentation, report.model);
        event.words.clone_from(&report.words);
        if let Some(began) = report.began.as_ref().or(report.since.as_ref()) {
            event.since.clone_from(began);
        }
        event
    }

    /// Records of a partition were gone before they could be read.
    pub fn gap(gap: &Gap) -> Self {
        let details = json!({
            "topic": gap.topic, "partition": gap.partition, "expected": gap.expected, "found": gap.found,
            "lost": gap.found - gap.expected,
        });
        Self::new(Kind::Gap, gap.to_string(), details)
    }

    /// The ingest has been behind its topic for a while.
    pub fn lag(records: u64, limit: u64) -> Self {
        let words = format!("the ingest is {records} records behind its topic; the limit is {limit}");
        Self::new(Kind::Lag, words, json!({ "records": records, "limit": limit }))
    }

    /// Of the records that were stored lately, too many cannot be read.
    pub fn unreadable(unreadable: u64, stored: u64) -> Self {
        let words = format!("{unreadable} of the last {stored} records that were stored cannot be read");
        Self::new(Kind::Unreadable, words, json!({ "unreadable": unreadable, "stored": stored }))
    }

    /// The store cannot be read or written.
    pub fn store_error(why: &str) -> Self {
        Self::new(Kind::StoreError, why.to_owned(), json!({ "reason": why }))
    }

    /// A message to try a receiver.
    pub fn test() -> Self {
        Self::new(
            Kind::Test,
            "a message to try the receiver".to_owned(),
            json!({ "tercile": env!("CARGO_PKG_VERSION") }),
        )
    }
}

/// The time, RFC 3339, UTC.
fn now() -> String {
    times::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// 16 random bytes in hexadecimal digits.
fn new_id() -> String {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => hex(&bytes),
        // Unique across processes, too.
        Err(_) => tercile_store::unique(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for state in [State::Firing, State::Resolved] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }

    #[test]
    fn a_body_has_the_documented_fields_in_order() {
        let violated = ["rows: 40 % of the rows before, at least 50 % are needed".to_owned()];
        let event = Event::held_back("price_rating", 2, 7, &violated, json!({ "rows": 0.4 }));
        let body = serde_json::to_value(&event).unwrap();
        let fields: Vec<&String> = body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "event", "state", "segmentation", "slice", "since", "words", "details"]);
        assert_eq!((&body["event"], &body["slice"]), (&json!("model.held_back"), &json!(2)));
        assert_eq!(
            event.sentence(),
            "version 7 of price_rating does not serve slice 2 yet: rows: 40 % of the rows before, at least 50 % are needed"
        );
        assert_eq!(serde_json::from_value::<Event>(body).unwrap(), event);
    }

    #[test]
    fn an_episode_is_of_a_slice_or_of_a_partition() {
        let gap = |partition| Event::gap(&Gap { topic: "t".to_owned(), partition, expected: 3, found: 8 });
        assert_eq!((gap(1).key(), gap(2).key()), ("ingest.gap-1".to_owned(), "ingest.gap-2".to_owned()));
        assert_eq!(Event::lag(1, 1).key(), Event::lag(2, 1).key());
        let promoted = Event::promoted("discount", 3, (2, Some(1)), "training");
        assert_eq!(promoted.key(), "model.promoted-discount-3");
        let begun = Event::store_error("the disk is full");
        let (id, since) = (begun.id.clone(), begun.since.clone());
        let ended = begun.resolved("the store can be read again".to_owned(), Value::Null);
        assert_eq!((ended.id, ended.since, ended.state), (id, since, State::Resolved));
    }
}
