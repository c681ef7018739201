//! A Kafka broker inside the process: librdkafka's mock cluster, which speaks the real protocol on loopback.
//!
//! It keeps at most [`PARTITION_LIMIT`] per partition and then forgets the oldest in silence, and it forgets everything
//! when its process ends. So whoever sends to it through us waits at the [`Backlog`], and whoever reads it adds the
//! store's next offset to what it hands out.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::{Cluster, Error, Settings};

/// Bytes of records that the broker keeps per partition.
pub const PARTITION_LIMIT: usize = 5 * 1024 * 1024;

/// Bytes that [`Backlog`] lets stand unread.
pub const UNREAD_LIMIT: usize = 2 * 1000 * 1000;

/// What a record weighs beside its payload: headers, key, and the protocol's own framing, rounded up.
pub const RECORD_OVERHEAD: usize = 256;

/// The broker; it stops when this is dropped.
pub struct Embedded {
    mock: MockCluster<'static, DefaultProducerContext>,
}

impl Embedded {
    /// Starts a broker on a free loopback port, with one topic.
    pub fn start(topic: &str, partitions: i32) -> Result<Self, Error> {
        let mock = MockCluster::new(1).map_err(Error::Embedded)?;
        mock.create_topic(topic, partitions, 1).map_err(Error::Embedded)?;
        Ok(Self { mock })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.mock.bootstrap_servers()
    }

    /// The broker as everybody else sees it.
    pub fn cluster(&self, timeout: Duration) -> Cluster {
        Cluster::new(&self.address(), timeout, Settings::default())
    }
}

/// Bounds what the embedded broker holds that nobody has read: the sender waits here, the reader makes room.
#[derive(Debug, Default)]
pub struct Backlog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    unread: usize,
    peak: usize,
    closed: bool,
}

impl Backlog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a record of this payload fits; a record larger than the limit waits until it is alone. `false`: the
    /// backlog was closed, send no more.
    pub fn enter(&self, payload: usize) -> bool {
        let size = payload + RECORD_OVERHEAD;
        let mut state = self.state();
        while !state.closed && state.unread > 0 && state.unread + size > UNREAD_LIMIT {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.unread += size;
        state.peak = state.peak.max(state.unread);
        !state.closed
    }

    /// A record of this payload was read.
    pub fn leave(&self, payload: usize) {
        let mut state = self.state();
        state.unread = state.unread.saturating_sub(payload + RECORD_OVERHEAD);
        self.changed.notify_all();
    }

    /// Whether everything that was sent has been read.
    pub fn is_empty(&self) -> bool {
        self.state().unread == 0
    }

    /// Lets a waiting sender go, with `false`.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// The most that ever stood unread, in bytes.
    pub fn peak(&self) -> usize {
        self.state().peak
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_sender_waits_for_the_reader() {
        let backlog = Arc::new(Backlog::default());
        assert!(backlog.enter(1_500_000));
        let entered = Arc::new(AtomicBool::new(false));
        let sender = {
            let (backlog, entered) = (Arc::clone(&backlog), Arc::clone(&entered));
            std::thread::spawn(move || {
                let ok = backlog.enter(1_000_000);
                entered.store(true, Ordering::SeqCst);
                ok
            })
        };
        std::thread::sleep(Duration::from_millis(50));
        assert!(!entered.load(Ordering::SeqCst), "2.5 MB would stand unread");
        backlog.leave(1_500_000);
        assert!(sender.join().unwrap());
        assert!(backlog.peak() <= UNREAD_LIMIT);
        backlog.leave(1_000_000);
        assert!(backlog.enter(4_000_000), "a large record goes alone");
        backlog.close();
        assert!(!backlog.enter(1));
    }
}
