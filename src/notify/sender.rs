//! Sends the messages of one receiver: a thread, so that a receiver that hangs delays nothing else.
//!
//! Only the holder of the queue's lease sends from it, whichever process made the messages. After a failure the receiver is left
//! alone for a second, then for twice as long after each further one, up to five minutes. The message that was tried least often
//! is next, so that one that a receiver never takes does not block the others; the messages of one episode keep their order. A
//! message that was not taken within a day is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender as Channel, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tercile_store::{Error, Held, Store, times};

use super::event::Event;
use super::metrics::{Metrics, Sending};
use super::queue::{Name, Queue};
use super::webhook::Webhook;

/// Delay after the first failure.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// Maximum delay.
const LAST_BACKOFF: Duration = Duration::from_secs(300);
/// Age of a message at which it is dropped.
const LIFE: chrono::Duration = chrono::Duration::days(1);
/// Interval of looking for messages of other processes on a disk.
const LOOK: Duration = Duration::from_secs(1);
/// The same on an object store, where each look costs requests.
const LOOK_AT_OBJECTS: Duration = Duration::from_secs(10);

/// A message that the store could not take.
#[derive(Debug, Clone)]
struct Unsaved {
    name: Name,
    event: Event,
}

/// State shared by the thread and by those who queue messages.
#[derive(Debug)]
struct Shared {
    webhook: Webhook,
    queue: Queue,
    look: Duration,
    metrics: Metrics,
    memory: Mutex<Memory>,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Memory {
    /// Messages of this process that are in no file.
    unsaved: VecDeque<Unsaved>,
    /// Messages that this process has made and nobody has taken, as far as known.
    own: BTreeSet<Name>,
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sender of one receiver.
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    wake: Mutex<Option<Channel<()>>>,
    ended: Mutex<Receiver<()>>,
}

impl Sender {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(webhook: Webhook, store: &Store, metrics: Metrics) -> std::io::Result<Self> {
        let queue = Queue::new(store, &webhook.directory());
        let look = if store.place().is_disk() { LOOK } else { LOOK_AT_OBJECTS };
        let shared = Arc::new(Shared {
            webhook,
            queue,
            look,
            metrics,
            memory: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let (wake, woken) = channel();
        let (end, ended) = channel();
        let mut work = Work::new(Arc::clone(&shared));
        thread::Builder::new().name("notify".to_owned()).spawn(move || {
            work.run(&woken);
            // Releases the lease first.
            drop(work);
            let _ = end.send(());
        })?;
        Ok(Self { shared, wake: Mutex::new(Some(wake)), ended: Mutex::new(ended) })
    }

    /// Queues a message. If the store cannot be written, the message is kept in memory.
    pub fn put(&self, event: &Event, made: i64) {
        let name = Name::of(event, made);
        let put = self.shared.queue.put(&name, event);
        let mut memory = self.shared.memory();
        if memory.own.contains(&name) {
            return;
        }
        if let Err(error) = put {
            tracing::warn!("{error}; the notification {} is kept in memory only", event.event.name());
            memory.unsaved.push_back(Unsaved { name: name.clone(), event: event.clone() });
        }
        memory.own.insert(name);
        drop(memory);
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            // The thread ends with this value only.
            let _ = wake.send(());
        }
    }

    /// The number of own messages that were not taken yet.
    pub fn own_pending(&self) -> usize {
        let queued = self.shared.queue.names();
        let mut memory = self.shared.memory();
        if let Ok(queued) = queued {
            let unsaved: Vec<Name> = memory.unsaved.iter().map(|one| one.name.clone()).collect();
            memory.own.retain(|name| queued.contains(name) || unsaved.contains(name));
        }
        memory.own.len()
    }

    /// Tells the thread to end after the message that it is sending.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.wake.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for the end of the thread.
    pub fn join(&self, limit: Duration) {
        let _ = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit);
    }

    /// The receiver, in messages.
    pub fn shown(&self) -> String {
        self.shared.webhook.shown()
    }
}

/// The delay after failures.
#[derive(Debug, Default)]
struct Backoff {
    delay: Option<Duration>,
    until: Option<Instant>,
}

impl Backoff {
    fn failed(&mut self, now: Instant) -> Duration {
        let delay = self.delay.map_or(FIRST_BACKOFF, |delay| (delay * 2).min(LAST_BACKOFF));
        (self.delay, self.until) = (Some(delay), Some(now + delay));
        delay
    }

    /// Whether the receiver had failed before.
    fn worked(&mut self) -> bool {
        self.until = None;
        self.delay.take().is_some()
    }

    fn remaining(&self, now: Instant) -> Duration {
        self.until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }
}

/// State of the thread.
struct Work {
    shared: Arc<Shared>,
    lease: Option<Held>,
    backoff: Backoff,
    /// Failed attempts of each message.
    attempts: BTreeMap<Name, u32>,
    /// Messages that were taken and could not be deleted.
    taken: BTreeSet<Name>,
    pending: usize,
    /// The last error of the store, which is told once.
    told: Option<String>,
}

impl Work {
    fn new(shared: Arc<Shared>) -> Self {
        let (attempts, taken) = (BTreeMap::new(), BTreeSet::new());
        Self { shared, lease: None, backoff: Backoff::default(), attempts, taken, pending: 0, told: None }
    }

    fn run(&mut self, woken: &Receiver<()>) {
        loop {
            match self.pass() {
                Ok(()) => self.told = None,
                Err(error) => {
                    let error = error.to_string();
                    if self.told.as_ref() != Some(&error) {
                        tracing::warn!("notifications wait: {error}");
                        self.told = Some(error);
                    }
                }
            }
            let wait = self.shared.look.max(self.backoff.remaining(Instant::now()).min(LOOK_AT_OBJECTS));
            match woken.recv_timeout(wait) {
                Err(RecvTimeoutError::Disconnected) => return,
                _ => while woken.try_recv().is_ok() {},
            }
        }
    }

    /// Sends what is due, until a message fails or there are no more.
    fn pass(&mut self) -> Result<(), Error> {
        // A process that was suspended may have lost it.
        self.lease.take_if(|lease| !lease.holds());
        if self.lease.is_none() {
            self.lease = self.shared.queue.lease().unwrap_or_default();
        }
        let listed = self.shared.queue.names();
        let unsaved: Vec<Name> = self.shared.memory().unsaved.iter().map(|one| one.name.clone()).collect();
        // A store that cannot be read does not keep this process from sending what it has in memory.
        let mut waiting: Vec<Name> = listed.as_ref().cloned().unwrap_or_default();
        waiting.retain(|name| !self.deleted(name));
        self.show_pending(waiting.len() + unsaved.len());
        if self.lease.is_none() {
            waiting.clear();
        }
        waiting.extend(unsaved);
        waiting.sort();
        self.attempts.retain(|name, _| waiting.contains(name));
        while let Some(name) = self.next(&waiting) {
            if self.shared.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
            let expired = times::now() - made(&name) > LIFE;
            if !expired && !self.backoff.remaining(Instant::now()).is_zero() {
                break;
            }
            if !self.handle(&name, expired)? {
                break;
            }
            waiting.retain(|other| *other != name);
            self.show_pending(waiting.len());
        }
        listed.map(drop)
    }

    /// The message to send next: the one that was tried least often, and of those the oldest.
    fn next(&self, waiting: &[Name]) -> Option<Name> {
        let first_of_its_id = |at: usize| waiting[..at].iter().all(|earlier| earlier.id != waiting[at].id);
        let due = (0..waiting.len()).filter(|&at| first_of_its_id(at)).map(|at| &waiting[at]);
        due.min_by_key(|name| self.attempts.get(*name).copied().unwrap_or_default()).cloned()
    }

    /// Sends or drops a message. `false` if the receiver did not take it.
    fn handle(&mut self, name: &Name, expired: bool) -> Result<bool, Error> {
        let unsaved = self.shared.memory().unsaved.iter().find(|one| one.name == *name).map(|one| one.event.clone());
        let event = match unsaved {
            Some(event) => event,
            None => match self.shared.queue.read(name)? {
                Some(event) => event,
                None => return Ok(true),
            },
        };
        let (kind, shown) = (event.event, self.shared.webhook.shown());
        if expired {
            tracing::error!(
                id = event.id,
                "the notification {} of {} is dropped: {shown} did not take it within a day",
                kind.name(),
                event.since
            );
            self.shared.metrics.count(kind, Sending::Dropped);
            self.forget(name);
            return Ok(true);
        }
        match self.shared.webhook.send(&event, made(name)) {
            Ok(taken) => {
                tracing::debug!(id = event.id, status = taken.status, "{shown} took the notification {}", kind.name());
                if self.backoff.worked() {
                    tracing::info!("{shown} takes notifications again");
                }
                self.shared.metrics.count(kind, Sending::Sent);
                self.forget(name);
                Ok(true)
            }
            Err(why) => {
                let first = self.backoff.delay.is_none();
                let delay = self.backoff.failed(Instant::now());
                *self.attempts.entry(name.clone()).or_default() += 1;
                self.shared.metrics.count(kind, Sending::Failed);
                let line =
                    format!("{shown} did not take the notification {}: {why}; trying again in {delay:?}", kind.name());
                if first {
                    tracing::warn!("{line}")
                } else {
                    tracing::debug!("{line}")
                }
                Ok(false)
            }
        }
    }

    /// Removes a message that was taken or dropped.
    fn forget(&mut self, name: &Name) {
        let mut memory = self.shared.memory();
        memory.unsaved.retain(|one| one.name != *name);
        memory.own.remove(name);
        drop(memory);
        self.taken.insert(name.clone());
        self.deleted(name);
    }

    /// Whether the message was taken: then its file is deleted, now if that failed before.
    fn deleted(&mut self, name: &Name) -> bool {
        if !self.taken.contains(name) {
            return false;
        }
        match self.shared.queue.delete(name) {
            Ok(()) => {
                self.taken.remove(name);
            }
            Err(error) => tracing::debug!("{error}; trying again"),
        }
        true
    }

    fn show_pending(&mut self, now: usize) {
        self.shared.metrics.pending(self.pending, now);
        self.pending = now;
    }
}

fn made(name: &Name) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(name.made).unwrap_or_else(times::now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::webhook::{Format, Roots, url};

    #[test]
    fn delays_double_up_to_five_minutes() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let delays: Vec<u64> = (0..11).map(|_| backoff.failed(now).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(backoff.remaining(now + Duration::from_secs(299)), Duration::from_secs(1));
        assert!(backoff.worked() && !backoff.worked());
        assert_eq!(backoff.remaining(now), Duration::ZERO);
    }

    #[test]
    fn a_message_that_fails_does_not_block_others_and_an_episode_keeps_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let webhook = Webhook::new(&url("http://127.0.0.1:1").unwrap(), Format::Tercile, None, &Roots::of_system());
        let queue = Queue::new(&store, &webhook.directory());
        let metrics = Metrics::new().unwrap();
        let shared =
            Shared { webhook, queue, look: LOOK, metrics, memory: Mutex::default(), stopping: AtomicBool::new(false) };
        let mut work = Work::new(Arc::new(shared));
        let begun = Event::lag(9, 5);
        let ended = begun.clone().resolved("it caught up".to_owned(), serde_json::Value::Null);
        let other = Event::store_error("full");
        let names = [Name::of(&begun, 1), Name::of(&ended, 2), Name::of(&other, 3)];
        assert_eq!(work.next(&names).as_ref(), Some(&names[0]));
        work.attempts.insert(names[0].clone(), 1);
        assert_eq!(work.next(&names).as_ref(), Some(&names[2]));
        work.attempts.insert(names[2].clone(), 2);
        assert_eq!(work.next(&names).as_ref(), Some(&names[0]));
        assert_eq!(work.next(&names[1..]).as_ref(), Some(&names[1]));
    }
}
