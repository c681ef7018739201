//! A lock on an object store: an object that its holder writes anew every few seconds.
//!
//! Whoever finds it watches it: a holder that lives changes it, and one that does not within [`DEAD`] has lost it. Only one
//! watcher can replace the version that all of them saw. No clock is compared with another's. Unlike a file's lock it can
//! be lost by a process that sleeps or can't reach the store: that one knows by its own clock, before anybody can have
//! taken the lock ([`Lease::holds`]). A check may be overtaken all the same, so nothing that must hold stands on a lock
//! alone: files are put under names that are free, and what is replaced in place is replaced only as it was read.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Objects, Version};
use crate::publish::unique;

/// How often a holder says that it lives.
const BEAT: Duration = Duration::from_secs(3);
/// How long one that says nothing is waited for.
const DEAD: Duration = Duration::from_secs(15);
/// How long a holder may believe that it is one without having said so: less than others wait.
const SURE: Duration = Duration::from_secs(12);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What stands in a lock that nobody holds.
const FREE: &[u8] = b"free\n";

/// A lock that is held; it is given back when this goes.
#[derive(Debug)]
pub struct Lease {
    beats: Arc<Beats>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is known of a lock that was taken.
#[derive(Debug)]
pub(super) struct Beats {
    /// Before the last word that arrived was sent.
    said: Mutex<Instant>,
    lost: AtomicBool,
}

impl Beats {
    /// Whether nobody else can have the lock.
    pub fn holds(&self) -> bool {
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        !self.lost.load(Ordering::SeqCst) && said.elapsed() < SURE
    }

    fn said(&self, when: Instant) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = when;
    }
}

impl Lease {
    /// A patience that tells the dead from the living, and no more.
    pub const TELLS: Duration = Duration::from_secs(DEAD.as_secs() + 3);

    /// Takes a lock; `None` if somebody who lives holds it. That takes until `patience` to tell, where it is held.
    pub fn take(objects: &Arc<Objects>, path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let holder = unique();
        let mut seen: Option<(Version, Instant)> = None;
        let began = Instant::now();
        loop {
            let now = objects.read_version(path)?;
            let free = match (&now, &seen) {
                (None, _) => true,
                (Some((word, _)), _) if word == FREE => true,
                (Some((_, now)), Some((before, since))) if now == before => since.elapsed() >= DEAD,
                (Some((_, now)), had) => {
                    // Its holder lives, and whoever did not come to wait need not.
                    if had.is_some() && patience <= Self::TELLS {
                        return Ok(None);
                    }
                    seen = Some((now.clone(), Instant::now()));
                    false
                }
            };
            let asked = Instant::now();
            let over = now.map(|(_, version)| version);
            if free && let Some(version) = objects.replace_if(word(&holder, 0), path, over)? {
                return Self::hold(objects, path, Held { holder, version, said: asked }).map(Some);
            }
            if began.elapsed() >= patience {
                return Ok(None);
            }
            thread::sleep(LOOK);
        }
    }

    /// Whether nobody else can have it by now.
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
                    // What can't be told now is told the next time.
                    Err(error) => tracing::debug!("cannot renew {}: {error}", path.display()),
                }
            }
            // One that is somebody else's by now stays theirs; one that can't be given back dies.
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
            // It has nothing to say but that it ended.
            let _ = thread.join();
        }
    }
}

/// A lock as its holder knows it.
struct Held {
    holder: String,
    version: Version,
    said: Instant,
}

impl Held {
    /// Says that the holder lives; `false` if the lock is somebody else's.
    fn renew(&mut self, objects: &Objects, path: &Path, count: u64) -> io::Result<bool> {
        loop {
            if let Some(version) = objects.replace_if(word(&self.holder, count), path, Some(self.version.clone()))? {
                self.version = version;
                return Ok(true);
            }
            // An earlier word, whose fate was not known, may have arrived after all: then this one goes over it.
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

/// What a holder writes: never the same twice, by anybody.
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
    fn a_lock_is_one_holders_until_it_is_given_back() {
        let (objects, path) = lock();
        let held = Lease::take(&objects, path, Lease::TELLS).unwrap().unwrap();
        assert!(held.holds());
        assert!(Lease::take(&objects, path, Duration::ZERO).unwrap().is_none());
        // It beats meanwhile: whoever looks twice knows that its holder lives.
        let began = Instant::now();
        assert!(Lease::take(&objects, path, Lease::TELLS).unwrap().is_none());
        assert!(began.elapsed() < DEAD);
        drop(held);
        assert!(Lease::take(&objects, path, Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn a_holder_that_was_overtaken_knows_and_gives_nothing_back() {
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
    fn what_the_dead_held_is_taken_over_by_one() {
        let (objects, path) = lock();
        objects.replace_if(b"somebody who died\n".to_vec(), path, None).unwrap();
        let takers: Vec<_> = (0..3)
            .map(|_| {
                let objects = Arc::clone(&objects);
                thread::spawn(move || Lease::take(&objects, path, Lease::TELLS).unwrap())
            })
            .collect();
        // All leases live until all have looked.
        let taken: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        assert_eq!(taken.iter().flatten().count(), 1);
    }
}
