//! An embedded Kafka broker: librdkafka's mock cluster, which speaks the real protocol on loopback.
//!
//! It keeps at most [`PARTITION_LIMIT`] bytes per partition, then silently drops the oldest records, and loses everything when
//! its process ends. So senders apply back-pressure through [`Backlog`], and the consumer adds the store's next offset to the
//! broker's offsets.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::{Cluster, Error, Settings};

/// Maximum bytes of records that the broker keeps per partition.
pub const PARTITION_LIMIT: usize = 5 * 1024 * 1024;

/// Maximum unread bytes that [`Backlog`] admits.
pub const UNREAD_LIMIT: usize = 2 * 1000 * 1000;

/// Upper estimate of a record's size in bytes without its key and payload: headers and protocol framing.
pub const RECORD_OVERHEAD: usize = 256;

/// A running embedded broker; dropping it stops it.
pub struct Embedded {
    mock: MockCluster<'static, DefaultProducerContext>,
}

impl Embedded {
    /// Starts a broker on a free loopback port, with one topic.
    ///
    /// # Errors
    /// If librdkafka cannot start the mock cluster or create the topic.
    pub fn start(topic: &str, partitions: i32) -> Result<Self, Error> {
        let mock = MockCluster::new(1).map_err(Error::Embedded)?;
        mock.create_topic(topic, partitions, 1).map_err(Error::Embedded)?;
        Ok(Self { mock })
    }

    /// Creates another topic.
    ///
    /// # Errors
    /// If librdkafka cannot create it.
    pub fn add(&self, topic: &str, partitions: i32) -> Result<(), Error> {
        self.mock.create_topic(topic, partitions, 1).map_err(Error::Embedded)
    }

    /// Bootstrap address, host:port.
    pub fn address(&self) -> String {
        self.mock.bootstrap_servers()
    }

    /// The broker as a [`Cluster`] for clients.
    pub fn cluster(&self, timeout: Duration) -> Cluster {
        // A client that has learned from the first connection which broker is there waits for half of this time until it connects to
        // that one: 50 ms by default, for the sake of clusters.
        Cluster::new(&self.address(), timeout, Settings::default().with("reconnect.backoff.ms", "20"))
    }
}

/// Back-pressure for the embedded broker: bounds the unread bytes. Senders wait in [`Backlog::enter`], the reader calls
/// [`Backlog::leave`].
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

    /// Waits until a record with a key and payload of this many bytes fits; a record larger than the limit waits until it is alone.
    /// Returns `false` if the backlog was closed.
    pub fn enter(&self, bytes: usize) -> bool {
        let size = bytes + RECORD_OVERHEAD;
        let mut state = self.state();
        while !state.closed && state.unread > 0 && state.unread + size > UNREAD_LIMIT {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.unread += size;
        state.peak = state.peak.max(state.unread);
        true
    }

    /// Releases a record with a key and payload of this many bytes, after it was read.
    pub fn leave(&self, bytes: usize) {
        let mut state = self.state();
        state.unread = state.unread.saturating_sub(bytes + RECORD_OVERHEAD);
        self.changed.notify_all();
    }

    /// Whether all sent records have been read.
    pub fn is_empty(&self) -> bool {
        self.state().unread == 0
    }

    /// Closes the backlog; waiting senders return `false`.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Maximum unread bytes so far.
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
