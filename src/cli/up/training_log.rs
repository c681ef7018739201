//! What `up` logs about trainings.
//!
//! Input: the events of all trainings of the process, those on request too. Output: log lines, and the number of records that the
//! models know, which decides when to train again.

use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt as _, ready};

use crate::cli::{count, train as tables};
use crate::train::event::{Subscriber, TrainingEvent};
use crate::train::{Outcome, Training};

/// Logs the models and changes of each training.
#[derive(Default)]
pub struct TrainingLog(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// Number of records at the start of the last training that ended well.
    n: Option<u64>,
    /// Why that training gave no new models, where it gave none.
    refusals: Vec<String>,
}

impl TrainingLog {
    /// Number of records that models were trained on.
    pub fn records(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).n.unwrap_or_default()
    }

    fn ended(&self, Training { n, outcomes, .. }: &Training) {
        let refusals: Vec<String> = tables::refusals(outcomes, Outcome::public_refusal).into_iter().cloned().collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.n.replace(*n) {
            None => tables::models(outcomes).lines().for_each(|line| tracing::info!("{line}")),
            Some(_) => {
                let fresh = outcomes.iter().filter(|outcome| outcome.fresh).count() as u64;
                tracing::info!("trained {} on {}", count(fresh, "new model"), count(*n, "record"));
            }
        }
        tables::tell_changes(outcomes);
        tables::tell_candidates(outcomes);
        if known.refusals != refusals {
            refusals.iter().for_each(|why| tracing::warn!("no new model: {why}"));
            known.refusals = refusals;
        }
    }
}

impl Subscriber for TrainingLog {
    fn on_event<'a>(&'a self, _: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
        if let TrainingEvent::Ended(training) = event {
            self.ended(training);
        }
        ready(()).boxed()
    }
}
