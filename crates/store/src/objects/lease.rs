//! Leases: a lock on an object store is an object that its holder rewrites every few seconds.
//!
//! Other processes watch the object: a live holder changes it, and a holder that does not within [`DEAD`] has lost it. Only one
//! watcher can replace the version that all of them saw. Clocks of different machines are never compared. Unlike a file lock, a
//! lease can be lost by a process that is suspended or cut off from the store; its own clock tells it so before another process
//! can take the lease ([`Lease::holds`]). That check can still be overtaken, so no guarantee depends on a lease alone: files
//! are put under free names (fencing), and objects replaced in place use conditional puts.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Objects, Version};
use crate::unique;

/// Interval of the holder's heartbeats.
const BEAT: Duration = Duration::from_secs(3);
/// Time without a heartbeat after which a lease may be taken over.
const DEAD: Duration = Duration::from_secs(15);
/// Time after its last heartbeat for which a holder may rely on the lease; less than [`DEAD`].
const SURE: Duration = Duration::from_secs(12);
/// Polling interval of watchers.
const LOOK: Duration = Duration::from_secs(1);
/// Content of a lease that nobody holds.
const FREE: &[u8] = b"free\n";

/// Version of each held lease when it was last read, and the time of the first read of that version.
pub(super) type Sightings = BTreeMap<PathBuf, (Version, Instant)>;

/// A held lease, released on drop.
#[derive(Debug)]
pub struct Lease {
    beats: Arc<Beats>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// State of a held lease.
#[derive(Debug)]
pub(super) struct Beats {
    /// Time just before the last successful heartbeat was sent.
    said: Mutex<Instant>,
    lost: AtomicBool,
}

impl Beats {
    /// Whether the lease is certainly still held.
    pub fn holds(&self) -> bool {
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        !self.lost.load(Ordering::SeqCst) && said.elapsed() < SURE
    }

    fn said(&self, when: Instant) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = when;
    }
}

impl Lease {
    /// The shortest patience that distinguishes a live holder from a dead one.
    pub const TELLS: Duration = Duration::from_secs(DEAD.as_secs() + 3);

    /// Takes a lease; `None` if another process holds it and may be alive. If it is held, this takes up to `patience`. What was seen
    /// is remembered: a later call succeeds if the holder has not renewed the lease for [`DEAD`] since then.
    pub fn take(objects: &Arc<Objects>, path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let holder = unique();
        let sightings = || objects.sightings.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let mut changed = 0;
        loop {
            let now = objects.read_version(path)?;
            let seen = sightings().get(path).cloned();
            let free = match (&now, seen) {
                (None, _) => true,
                (Some((word, _)), _) if word == FREE => true,
                (Some((_, now)), Some((before, since))) if *now == before => since.elapsed() >= DEAD,
                (Some((_, now)), _) => {
                    changed += 1;
                    sightings().insert(path.to_owned(), (now.clone(), Instant::now()));
                    // Its holder lives, and the caller does not want to wait longer.
                    if changed > 1 && patience <= Self::TELLS {
                        return Ok(None);
                    }
                    false
                }
            };
            let asked = Instant::now();
            let over = now.map(|(_, version)| version);
            if free && let Some(version) = objects.replace_if(word(&holder, 0), path, over)? {
                sightings().remove(path);
                return Self::hold(objects, path, Held { holder, version, said: asked }).map(Some);
            }
            if began.elapsed() >= patience {
                return Ok(None);
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether the lease is certainly still held.
    pub fn holds(&self) -> bool {
        self.beats.holds()
    }

    pub(super) fn beats(&self) -> Arc<Beats> {
        Arc::clone(&self.beats)
    }

    fn hold(objects: &Arc<Objects>, path: &Path, mut held: Held) -> io::Result<Self> {
        let beats = Arc::new(Beats { said: Mutex::new(held.said), lost: AtomicBool::new(false) });
        let (stop, stopped) = channel::<()>();
        let (objects, path, told) = (Arc::clone(objects), path.to_owned(), Arc::clone(&beats));
        let beat = move || {
            let mut count = 0_u64;
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                count += 1;
                let asked = Instant::now();
                match held.renew(&objects, &path, count) {
                    Ok(true) => told.said(asked),
                    Ok(false) => {
                        told.lost.store(true, Ordering::SeqCst);
                        tracing::warn!("somebody else took {}: this process was asleep, or cut off", path.display());
                        return;
                    }
                    // The next heartbeat retries.
                    Err(error) => tracing::debug!("cannot renew {}: {error}", path.display()),
                }
            }
            // Conditional: a lease taken over by another process is not touched. One that cannot be released times out.
            let _ = objects.replace_if(FREE.to_vec(), &path, Some(held.version));
        };
        let thread = thread::Builder::new().name("lease".to_owned()).spawn(beat)?;
        Ok(Self { beats, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // The thread has no result.
            let _ = thread.join();
        }
    }
}

/// A lease as its holder knows it.
struct Held {
    holder: String,
    version: Version,
    said: Instant,
}

impl Held {
    /// Sends a heartbeat; `false` if another process holds the lease.
    fn renew(&mut self, objects: &Objects, path: &Path, count: u64) -> io::Result<bool> {
        loop {
            if let Some(version) = objects.replace_if(word(&self.holder, count), path, Some(self.version.clone()))? {
                self.version = version;
                return Ok(true);
            }
            // An earlier heartbeat whose answer was lost may have succeeded: replace it.
            let ours = format!("{} ", self.holder);
            match objects.read_version(path)? {
                Some((word, version)) if word.starts_with(ours.as_bytes()) && version != self.version => {
                    self.version = version;
                }
                _ => return Ok(false),
            }
        }
    }
}

/// Content of a heartbeat, unique per holder and count.
fn word(holder: &str, count: u64) -> Vec<u8> {
    format!("{holder} {count}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    fn lock() -> (Arc<Objects>, &'static Path) {
        (
            Arc::new(Objects::over("s3://test/store", Arc::new(InMemory::new())).unwrap()),
            Path::new("s3://test/store/a.lock"),
        )
    }

    #[test]
    fn a_lease_is_exclusive_until_released() {
        let (objects, path) = lock();
        let held = Lease::take(&objects, path, Lease::TELLS).unwrap().unwrap();
        assert!(held.holds());
        assert!(Lease::take(&objects, path, Duration::ZERO).unwrap().is_none());
        // It has heartbeats meanwhile: a watcher that polls twice sees that its holder lives.
        let began = Instant::now();
        assert!(Lease::take(&objects, path, Lease::TELLS).unwrap().is_none());
        assert!(began.elapsed() < DEAD);
        drop(held);
        assert!(Lease::take(&objects, path, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn an_overtaken_holder_notices_and_releases_nothing() {
        let (objects, path) = lock();
        let held = Lease::take(&objects, path, Lease::TELLS).unwrap().unwrap();
        let (_, seen) = objects.read_version(path).unwrap().unwrap();
        let other = b"somebody else\n".to_vec();
        assert!(objects.replace_if(other.clone(), path, Some(seen)).unwrap().is_some());
        let began = Instant::now();
        while held.holds() {
            assert!(began.elapsed() < SURE);
            thread::sleep(Duration::from_millis(50));
        }
        drop(held);
        assert_eq!(objects.read(path).unwrap(), other);
    }

    #[test]
    fn who_does_not_wait_gets_what_the_dead_held_when_it_asks_again() {
        let (objects, path) = lock();
        objects.replace_if(b"somebody who died\n".to_vec(), path, None).unwrap();
        let ask = || Lease::take(&objects, path, Duration::ZERO).unwrap();
        let began = Instant::now();
        assert!(ask().is_none() && ask().is_none());
        assert!(began.elapsed() < LOOK);
        // As if that had been long ago.
        let long_ago = began.checked_sub(DEAD).unwrap();
        objects.sightings.lock().unwrap().get_mut(path).unwrap().1 = long_ago;
        let taken = ask();
        assert!(taken.is_some() && ask().is_none());
        // A holder that was seen long ago, and has said something since, lives.
        objects.sightings.lock().unwrap().get_mut(path).unwrap().1 = long_ago;
        let (_, version) = objects.read_version(path).unwrap().unwrap();
        assert!(objects.replace_if(b"the same\n".to_vec(), path, Some(version)).unwrap().is_some());
        assert!(ask().is_none());
    }

    #[test]
    fn the_lease_of_a_dead_holder_is_taken_over_once() {
        let (objects, path) = lock();
        objects.replace_if(b"somebody who died\n".to_vec(), path, None).unwrap();
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let objects = Arc::clone(&objects);
                thread::spawn(move || Lease::take(&objects, path, Lease::TELLS).unwrap())
            })
            .collect();
        // All leases live until every thread has finished.
        let taken: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        assert_eq!(taken.iter().flatten().count(), 1);
    }
}
