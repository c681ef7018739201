//! Events of trainings.

use futures::future::{BoxFuture, FutureExt as _, ready};
use serde_json::{Value, json};

use super::Notifier;
use super::event::{Event, Kind};
use crate::model::Candidate;
use crate::model::history::RolledBack;
use crate::train::Outcome;
use crate::train::event::{Subscriber, TrainingEvent};

/// The sentence, in English, that ends `model.held_back` after an operator's decision.
pub const PROMOTED: &str = "it was promoted";
pub const REJECTED: &str = "it was rejected";

impl Subscriber for Notifier {
    fn on_event<'a>(&'a self, _: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        if matches!(event, TrainingEvent::Started { .. }) {
            return ready(()).boxed();
        }
        let (notifier, event) = (self.clone(), event.clone());
        // The store is written, which must not hold up requests.
        tokio::task::spawn_blocking(move || notifier.training(&event)).map(drop).boxed()
    }
}

impl Notifier {
    fn training(&self, event: &TrainingEvent) {
        match event {
            TrainingEvent::Started { .. } => {}
            TrainingEvent::Slice(outcome) => self.slice(outcome),
            TrainingEvent::Ended(training) => {
                self.resolve(Kind::TrainingRefused.name(), "a training has ended well", &Value::Null);
                self.tell(&Event::training_done(training));
            }
            TrainingEvent::Failed { why, timed_out } => self.raise(Event::training_failed(why, *timed_out)),
        }
    }

    fn slice(&self, outcome: &Outcome) {
        let Outcome { segmentation, slice, model, before, serving, .. } = outcome;
        match outcome.public_refusal() {
            Some(why) => self.raise(Event::training_refused(outcome, why)),
            None => {
                let key = format!("{}-{segmentation}-{slice}", Kind::TrainingRefused.name());
                let version = model.as_ref().map(|model| model.version);
                let words = format!("there is a model of these records of slice {slice} of {segmentation}");
                self.resolve(&key, &words, &json!({ "version": version }));
            }
        }
        if let Some(version) = serving.filter(|_| serving != before) {
            self.promoted(segmentation, *slice, (version, *before), "training");
        }
        self.candidate(outcome);
    }

    /// Tells a candidate that is new, and the end of one that is gone. What a training without a result knows of candidates is nothing.
    fn candidate(&self, Outcome { segmentation, slice, candidate, refused, .. }: &Outcome) {
        let told = self.open(Kind::HeldBack).into_iter().find(|open| is_of(open, segmentation, *slice));
        let is_told = |version: u64| told.as_ref().is_some_and(|told| told.details["version"] == version);
        match candidate {
            Some(known) if is_told(known.version) => {}
            None if refused.is_some() => {}
            found => {
                self.decided(segmentation, *slice, "another model takes its place");
                if let Some(Candidate { version, violated, reason, .. }) = found {
                    let words: Vec<String> = violated.iter().map(|violation| violation.words.clone()).collect();
                    let words = if words.is_empty() { vec![reason.clone()] } else { words };
                    let figures = serde_json::to_value(violated).unwrap_or_default();
                    self.raise(Event::held_back(segmentation, *slice, *version, &words, figures));
                }
            }
        }
    }

    /// Tells that the candidate of a slice, if there is one, is promoted, rejected or gone. Blocks while the store is written.
    pub fn decided(&self, segmentation: &str, slice: u8, words: &str) {
        for open in self.open(Kind::HeldBack).iter().filter(|open| is_of(open, segmentation, slice)) {
            self.resolve(&open.key(), words, &open.details);
        }
    }

    /// Tells what an operator's change made serve, unless that served already. Blocks while the store is written.
    pub fn changed(&self, RolledBack { model, before, .. }: &RolledBack, by: &str) {
        // A rollback may name the candidate.
        let waits =
            |open: &&Event| is_of(open, &model.segmentation, model.slice) && open.details["version"] == model.version;
        for open in self.open(Kind::HeldBack).iter().filter(waits) {
            self.resolve(&open.key(), PROMOTED, &open.details);
        }
        if *before != Some(model.version) {
            self.promoted(&model.segmentation, model.slice, (model.version, *before), by);
        }
    }

    /// Tells that another version serves a slice, which ends the drift of the one before. Blocks while the store is written.
    fn promoted(&self, segmentation: &str, slice: u8, (version, before): (u64, Option<u64>), by: &str) {
        let promoted = Event::promoted(segmentation, slice, (version, before), by);
        let another = |open: &&Event| is_of(open, segmentation, slice) && open.details["version"] != version;
        for open in self.open(Kind::Drift).iter().filter(another) {
            self.resolve(&open.key(), promoted.sentence(), &promoted.details);
        }
        self.tell(&promoted);
    }
}

fn is_of(event: &Event, segmentation: &str, slice: u8) -> bool {
    event.segmentation.as_deref() == Some(segmentation) && event.slice == Some(slice)
}
