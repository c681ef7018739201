//! Events of trainings, and their subscribers.
//!
//! Input: the events that [`super::train`] emits, here or in a child process. Output: each event to each subscriber, in the
//! order of the events. To react to trainings, implement [`Subscriber`] and add it in [`Subscribers::default`], or, if it needs
//! something of the process, with [`Subscribers::add`].

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, UnboundedSender};

use super::{Outcome, Training};

/// A step of a training. The last event is `Ended` or `Failed`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum TrainingEvent {
    /// The training reads the stream, which has `n` records. Not sent if the training failed earlier.
    Started { n: u64 },
    /// A slice has its result, with name, version, silhouette and durations: a new model, the model before, or a refusal. The
    /// serving version is already in the registry.
    Slice(Box<Outcome>),
    /// All slices have their results.
    Ended(Box<Training>),
    /// The training ended early. Results of earlier slices are kept.
    Failed {
        why: String,
        /// True if the training exceeded its time limit.
        timed_out: bool,
    },
}

/// A training exceeded its time limit.
#[derive(Debug, thiserror::Error)]
#[error("the training was stopped after {0:?}, which is what --train-timeout allows")]
pub struct Timeout(pub Duration);

/// A part of the process that reacts to trainings.
pub trait Subscriber: Send + Sync {
    /// Handles an event. The next subscriber gets the event when this has ended; the training does not wait for it.
    ///
    /// `job` is the number of the request that asked for the training, if one did.
    fn on_event<'a>(&'a self, job: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()>;
}

/// Sends events from a training to its subscribers; the default sends nowhere.
#[derive(Clone, Default)]
pub struct Emit(Option<UnboundedSender<TrainingEvent>>);

impl Emit {
    pub fn send(&self, event: TrainingEvent) {
        if let Some(to) = &self.0 {
            // There is no receiver only if the caller of the training is gone.
            let _ = to.send(event);
        }
    }
}

/// The subscribers of a process, in the order in which they get an event.
pub struct Subscribers(RwLock<Vec<Arc<dyn Subscriber>>>);

impl Default for Subscribers {
    /// The subscribers that every process has which trains.
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Subscribers {
    /// These subscribers alone.
    pub fn new(subscribers: Vec<Arc<dyn Subscriber>>) -> Self {
        Self(RwLock::new(subscribers))
    }

    /// Adds a subscriber after all others.
    pub fn add(&self, subscriber: Arc<dyn Subscriber>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(subscriber);
    }

    /// Runs a training, which gets where to send its events, and adds `Ended` or `Failed`. Returns when every subscriber has
    /// handled the last event.
    ///
    /// # Errors
    /// The error of the training.
    pub async fn follow<T>(&self, job: Option<u64>, train: impl FnOnce(Emit) -> T) -> anyhow::Result<Training>
    where
        T: Future<Output = anyhow::Result<Training>>,
    {
        let (sender, mut events) = mpsc::unbounded_channel();
        let emit = Emit(Some(sender));
        let training = async {
            let result = train(emit.clone()).await;
            emit.send(match &result {
                Ok(training) => TrainingEvent::Ended(Box::new(training.clone())),
                Err(error) => TrainingEvent::Failed { why: format!("{error:#}"), timed_out: error.is::<Timeout>() },
            });
            result
        };
        let telling = async {
            while let Some(event) = events.recv().await {
                self.tell(job, &event).await;
                if matches!(event, TrainingEvent::Ended(_) | TrainingEvent::Failed { .. }) {
                    break;
                }
            }
        };
        tokio::join!(training, telling).0
    }

    async fn tell(&self, job: Option<u64>, event: &TrainingEvent) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        for subscriber in all {
            subscriber.on_event(job, event).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use futures::future::{FutureExt as _, ready};
    use tercile_store::Store;
    use tercile_store::batch::{Batch, Record};
    use tercile_store::record::decode;

    use super::*;
    use crate::sql::Files;
    use crate::train::{Options, train};

    /// Keeps a line per event.
    #[derive(Default)]
    struct Noted(Mutex<Vec<String>>);

    impl Subscriber for Noted {
        fn on_event<'a>(&'a self, job: Option<u64>, event: &'a TrainingEvent) -> BoxFuture<'a, ()> {
            assert_eq!(job, Some(7));
            let line = match event {
                TrainingEvent::Started { n } => format!("started {n}"),
                TrainingEvent::Slice(outcome) => {
                    let model = outcome.model.as_ref().map(|model| (model.version, model.silhouette.is_some()));
                    format!("{} {} {model:?} {}", outcome.segmentation, outcome.slice, outcome.refused.is_some())
                }
                TrainingEvent::Ended(training) => format!("ended {}", training.outcomes.len()),
                TrainingEvent::Failed { why, timed_out } => format!("failed {why} {timed_out}"),
            };
            self.0.lock().unwrap().push(line);
            ready(()).boxed()
        }
    }

    /// A store of 30 records with a price and a rating, and no other fields.
    fn filled(dir: &std::path::Path, files: &Files) -> Store {
        let store = Store::open(dir).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let mut batch = Batch::new(0, &files.fields);
        for offset in 0..30 {
            let payload = format!(r#"{{"discounted_price": {}, "rating": {}}}"#, 100 + 40 * offset, offset % 5);
            let payload = payload.as_bytes();
            let record = Record { offset, timestamp: Some(offset), key: None, payload: Some(payload) };
            batch.push(&record, std::iter::empty(), &decode(Some(payload), &files.fields), Instant::now());
        }
        let ready = batch.take().unwrap().unwrap();
        log.publish(&ready.records, 0, ready.next).unwrap();
        store
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_subscriber_learns_of_each_slice_and_of_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::shipped().unwrap();
        let store = filled(dir.path(), &files);
        let noted = Arc::new(Noted::default());
        let subscribers = Subscribers::default();
        subscribers.add(noted.clone());
        let training = async |emit| Ok(train(&store, &files, &Options { emit, ..Options::default() }).await?);
        let trained = subscribers.follow(Some(7), training).await.unwrap();
        assert_eq!((trained.n, trained.outcomes.len()), (30, 9));
        let seen = std::mem::take(&mut *noted.0.lock().unwrap());
        assert_eq!(seen.first().unwrap(), "started 30");
        assert_eq!(seen.last().unwrap(), "ended 9");
        assert_eq!(seen.len(), 11);
        for slice in 1..=3 {
            let (made, none) =
                (format!("price_rating {slice} Some(({slice}, true)) false"), format!("discount {slice} None true"));
            assert!(seen.contains(&made) && seen.contains(&none), "{seen:?}");
        }

        // A training that fails ends with its reason, and the caller gets the error.
        let late = async |_| Err(Timeout(Duration::from_secs(1)).into());
        let error = subscribers.follow(Some(7), late).await.unwrap_err().to_string();
        assert_eq!(*noted.0.lock().unwrap(), [format!("failed {error} true")]);
    }
}
