//! Notifications: events to the URLs of `--notify`, by HTTP POST.
//!
//! Input: [`Event`]s of trainings (training.rs), of the drift monitor of the API, and of the checks of ingest and store
//! (watch.rs). Output: a request to each receiver, at least once. A message is in the store (queue.rs) until its receiver took
//! it, and a thread for each receiver sends it (sender.rs, webhook.rs). Whoever makes an event never waits for a receiver.

mod alertmanager;
mod episodes;
pub mod event;
mod metrics;
mod queue;
mod sender;
mod signature;
mod training;
pub mod watch;
mod webhook;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::core::Collector;
use serde_json::Value;
use tercile_store::{Error, Store, times};

use self::episodes::{Episode, Episodes};
use self::event::State;
pub use self::event::{Event, Kind};
use self::metrics::Metrics;
pub use self::queue::{Waiting, waiting};
use self::sender::Sender;
pub use self::signature::Secret;
pub use self::training::{PROMOTED, REJECTED};
pub use self::webhook::{Format, Roots, TIMEOUT, Webhook, url};

/// Time that the end of a process waits for the threads of its receivers.
const STOP: Duration = Duration::from_secs(1);
/// Interval of looking whether messages were taken.
const POLL: Duration = Duration::from_millis(20);

/// Takes events, and tells them to all receivers. Copies are the same.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    senders: Vec<Sender>,
    episodes: Episodes,
    /// Episodes that were told, and that the store could not note.
    unnoted: Mutex<BTreeMap<String, Episode>>,
    metrics: Metrics,
    store: Store,
}

impl Notifier {
    /// Starts a thread for each receiver, and queues again what an interrupted process had not queued.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(store: &Store, webhooks: Vec<Webhook>) -> anyhow::Result<Self> {
        let metrics = Metrics::new()?;
        let start = |webhook| Sender::start(webhook, store, metrics.clone());
        let senders = webhooks.into_iter().map(start).collect::<Result<_, _>>()?;
        let inner =
            Inner { senders, episodes: Episodes::new(store), unnoted: Mutex::default(), metrics, store: store.clone() };
        let notifier = Self(Arc::new(inner));
        if let Err(error) = notifier.recover() {
            tracing::warn!("{error}; what began before this start may not be told");
        }
        Ok(notifier)
    }

    /// Tells an event that happens at one moment. Blocks while the store is written.
    pub fn tell(&self, event: &Event) {
        self.queue(event, now());
    }

    /// Tells the begin of an episode, unless it is known as open. Blocks while the store is written.
    pub fn raise(&self, event: Event) {
        let key = event.key();
        let mut unnoted = self.unnoted();
        let (told, begun) = match unnoted.get(&key) {
            Some(begun) => (true, begun.clone()),
            None => (false, Episode { event, made: now(), queued: false }),
        };
        let noted = Episode { queued: told, ..begun.clone() };
        match self.change(&key, |known| known.is_none().then_some(noted)) {
            Ok(()) => drop(unnoted.remove(&key)),
            Err(_) if told => {}
            Err(error) => {
                tracing::warn!("{error}; {key} is told, but not noted: after a restart it is told again");
                self.queue(&begun.event, begun.made);
                unnoted.insert(key, begun);
            }
        }
    }

    /// Tells the end of an episode if it is open. `details` replaces those of the begin. Blocks while the store is written.
    pub fn resolve(&self, key: &str, words: &str, details: &Value) {
        let unnoted = self.unnoted().remove(key);
        let end = |begun: &Episode| {
            let event = begun.event.clone().resolved(words.to_owned(), details.clone());
            // Names of messages sort by time.
            Episode { event, made: now().max(begun.made + 1), queued: false }
        };
        // Most calls are about nothing, and need no lock.
        let open = self.0.episodes.read(key).map(|(open, _)| open.is_some());
        let resolved = match open {
            Ok(false) => Ok(()),
            Ok(true) => self.change(key, |known| known.map(end)),
            Err(error) => Err(error),
        };
        match (resolved, unnoted) {
            (Ok(()), None) => {}
            (_, Some(begun)) => {
                let ended = end(&begun);
                self.queue(&ended.event, ended.made);
            }
            (Err(error), None) => tracing::warn!("{error}; the end of {key} is not told"),
        }
    }

    /// The open episodes of a kind. What cannot be read counts as not open.
    pub fn open(&self, kind: Kind) -> Vec<Event> {
        let episodes = &self.0.episodes;
        let keys = episodes.keys(Some(kind)).unwrap_or_default();
        let open = keys.iter().filter_map(|key| Some(episodes.read(key).ok()?.0?.event));
        open.filter(|event| event.state == State::Firing).collect()
    }

    /// The store of the queue.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Waits until the messages of this process are taken, by any process. Returns the number of those that are not.
    pub fn wait(&self, limit: Duration) -> usize {
        let poll = self.0.store.place().patience(POLL);
        let began = Instant::now();
        loop {
            let pending: usize = self.0.senders.iter().map(Sender::own_pending).sum();
            if pending == 0 || began.elapsed() >= limit {
                return pending;
            }
            thread::sleep(poll.min(limit));
        }
    }

    /// Ends the threads, except for those that wait for a receiver.
    pub fn stop(&self) {
        self.0.senders.iter().for_each(Sender::stop);
        let until = Instant::now() + STOP;
        self.0.senders.iter().for_each(|sender| sender.join(until.saturating_duration_since(Instant::now())));
    }

    /// All metrics, for a registry.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.0.metrics.collectors()
    }

    /// The receivers, in messages.
    pub fn shown(&self) -> String {
        self.0.senders.iter().map(Sender::shown).collect::<Vec<_>>().join(", ")
    }

    fn queue(&self, event: &Event, made: i64) {
        for sender in &self.0.senders {
            sender.put(event, made);
        }
    }

    fn unnoted(&self) -> MutexGuard<'_, BTreeMap<String, Episode>> {
        self.0.unnoted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what an interrupted process had written and not queued.
    fn recover(&self) -> Result<(), Error> {
        for key in self.0.episodes.keys(None)? {
            self.change(&key, |_| None)?;
        }
        Ok(())
    }

    /// Replaces an episode by what `change` makes of the open one, and queues its message.
    fn change(&self, key: &str, change: impl FnOnce(Option<&Episode>) -> Option<Episode>) -> Result<(), Error> {
        let episodes = &self.0.episodes;
        let _alone = episodes.lock()?;
        self.settle(key)?;
        let (known, revision) = episodes.read(key)?;
        match change(known.as_ref()) {
            // If another process was faster, it tells its own.
            Some(new) if episodes.write(key, &new, &revision)? => self.settle(key),
            _ => Ok(()),
        }
    }

    /// Queues the message of an episode if it is not queued, and removes the episode if it has ended.
    fn settle(&self, key: &str) -> Result<(), Error> {
        let episodes = &self.0.episodes;
        let (Some(episode), revision) = episodes.read(key)? else { return Ok(()) };
        if episode.queued {
            return Ok(());
        }
        self.queue(&episode.event, episode.made);
        if episode.event.state == State::Resolved {
            return episodes.remove(key);
        }
        episodes.write(key, &Episode { queued: true, ..episode }, &revision).map(drop)
    }
}

/// Milliseconds since 1970.
fn now() -> i64 {
    times::now().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A notifier whose receiver does not exist, and the messages in its queue.
    struct Silent {
        store: Store,
        webhook: Webhook,
        _dir: tempfile::TempDir,
    }

    impl Silent {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let webhook = Webhook::new(&url("http://127.0.0.1:1").unwrap(), Format::Tercile, None, &Roots::of_system());
            Self { store, webhook, _dir: dir }
        }

        fn start(&self) -> Notifier {
            Notifier::start(&self.store, vec![self.webhook.clone()]).unwrap()
        }

        fn queued(&self) -> Vec<(String, State)> {
            let queue = queue::Queue::new(&self.store, &self.webhook.directory());
            let events = queue.names().unwrap().into_iter().filter_map(|name| queue.read(&name).unwrap());
            events.map(|event| (event.id, event.state)).collect()
        }
    }

    #[test]
    fn an_episode_is_told_once_across_restarts_and_processes() {
        let silent = Silent::new();
        let (one, other) = (silent.start(), silent.start());
        one.raise(Event::lag(10, 5));
        one.raise(Event::lag(11, 5));
        other.raise(Event::lag(12, 5));
        silent.start().raise(Event::lag(13, 5));
        let queued = silent.queued();
        assert_eq!(queued.len(), 1);
        assert_eq!(one.open(Kind::Lag)[0].details["records"], 10);
        assert!(one.open(Kind::Gap).is_empty());
        other.resolve("ingest.lag", "it has caught up", &json!({ "records": 0 }));
        one.resolve("ingest.lag", "it has caught up", &json!({ "records": 0 }));
        one.resolve("ingest.gap-1", "nothing of the kind", &Value::Null);
        let id = queued[0].0.clone();
        assert_eq!(silent.queued(), [(id.clone(), State::Firing), (id, State::Resolved)]);
        assert!(one.open(Kind::Lag).is_empty());
        one.raise(Event::lag(14, 5));
        assert_eq!(silent.queued().len(), 3);
    }

    #[test]
    fn an_episode_that_was_not_queued_is_queued_at_the_next_start() {
        let silent = Silent::new();
        let event = Event::store_error("full");
        let episodes = Episodes::new(&silent.store);
        let interrupted = Episode { event: event.clone(), made: now(), queued: false };
        let _ = episodes.lock().unwrap();
        assert!(episodes.write("store.error", &interrupted, &Default::default()).unwrap());
        let notifier = silent.start();
        assert_eq!(silent.queued(), [(event.id.clone(), State::Firing)]);
        assert_eq!(notifier.open(Kind::StoreError), [event]);
    }

    #[test]
    fn what_the_store_cannot_note_is_told_once() {
        let silent = Silent::new();
        let notifier = silent.start();
        // A file where the directory should be.
        std::fs::write(silent.store.root().join("notifications"), "").unwrap();
        notifier.raise(Event::store_error("full"));
        notifier.raise(Event::store_error("full"));
        assert_eq!(notifier.0.senders[0].own_pending(), 1);
        notifier.resolve("store.error", "it works again", &Value::Null);
        assert_eq!(notifier.0.senders[0].own_pending(), 2);
    }
}
