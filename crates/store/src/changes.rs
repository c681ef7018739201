//! A mark of changes for servers on an object store, where each look at a file costs a request.
//!
//! ```text
//! store/
//!   changes       a text that differs after each change of the serving models or of the keys
//! ```
//!
//! A server looks at this object instead of at all files that it follows, and at these at least once a minute: a process that ended
//! before it wrote the mark, or an earlier build, does not hide a change for longer.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use super::{Store, unique};

/// Time between two looks at the mark.
const POLL: Duration = Duration::from_secs(5);
/// Time between two looks at all files.
const LOOK: Duration = Duration::from_secs(60);

/// State of the last look at the mark in this process.
#[derive(Debug, Default)]
pub(super) struct Changes {
    seen: Mutex<Option<Seen>>,
    generation: AtomicU64,
}

#[derive(Debug)]
struct Seen {
    stamp: Option<Vec<u8>>,
    polled: Instant,
    looked: Instant,
}

impl Store {
    fn changes_file(&self) -> PathBuf {
        self.root.join("changes")
    }

    /// Tells servers that a file which they follow was changed. No effect on a disk. A failure delays the change for them by a minute
    /// at most.
    pub fn note_change(&self) {
        if let Err(error) = self.place.note(unique().as_bytes(), &self.changes_file()) {
            tracing::warn!("servers notice the change within a minute, because it cannot be noted: {error}");
        }
    }

    /// A number that grows when the files that servers follow may have changed; `None` on a disk, where looking at them costs nothing.
    /// Makes a request if the last one is older than five seconds.
    pub fn generation(&self) -> Option<u64> {
        if self.place.is_disk() {
            return None;
        }
        let Changes { seen, generation } = &*self.changes;
        // While another thread waits for the answer, the last number is good enough.
        let seen = match seen.try_lock() {
            Ok(seen) => Some(seen),
            Err(TryLockError::Poisoned(seen)) => Some(seen.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Some(mut seen) = seen {
            let stamp = || self.place.stamp(&self.changes_file()).ok();
            match seen.as_mut() {
                None => *seen = Some(Seen { stamp: stamp(), polled: Instant::now(), looked: Instant::now() }),
                Some(seen) if seen.polled.elapsed() >= POLL => {
                    let stamp = stamp();
                    seen.polled = Instant::now();
                    if stamp != seen.stamp || seen.looked.elapsed() >= LOOK {
                        (seen.stamp, seen.looked) = (stamp, Instant::now());
                        generation.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(_) => {}
            }
        }
        Some(generation.load(Ordering::Relaxed))
    }
}
