//! Registry of open connections: their limit, and the sweep that enforces timeouts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::Timeouts;
use crate::connection::Connection;

/// Interval of the sweeps.
const INTERVAL: Duration = Duration::from_millis(200);
/// When there are too many connections, 1 in `SHARE` is evicted.
const SHARE: usize = 64;

/// All open connections of a server. Clones share them.
#[derive(Clone, Default)]
pub struct Connections(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    count: AtomicUsize,
    next: AtomicU64,
    emptied: Notify,
}

impl Connections {
    /// Number of open connections.
    pub fn count(&self) -> usize {
        self.0.count.load(Relaxed)
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection. At the limit, the waiting connections with the oldest progress are evicted; `None` if all are
    /// busy.
    pub(crate) fn add(&self, tls: bool, limit: usize) -> Option<Registered> {
        let mut open = self.open();
        if open.len() >= limit {
            let waiting = open.iter().filter(|(_, connection)| !connection.is_busy());
            let mut waiting: Vec<(u64, u64)> =
                waiting.map(|(id, connection)| (connection.useful.load(Relaxed), *id)).collect();
            if waiting.is_empty() {
                return None;
            }
            // Evicting several costs one selection and makes room for the next connections.
            let many = (limit / SHARE).clamp(1, waiting.len());
            waiting.select_nth_unstable(many - 1);
            for (_, id) in waiting.drain(..many) {
                // Removed at once: it must not be selected again before its task has dropped it.
                if let Some(longest) = open.remove(&id) {
                    longest.close();
                }
            }
        }
        let (id, connection) = (self.0.next.fetch_add(1, Relaxed), Arc::new(Connection::new(tls)));
        open.insert(id, Arc::clone(&connection));
        self.0.count.store(open.len(), Relaxed);
        Some(Registered { connections: self.clone(), id, connection })
    }

    /// Closes overdue connections, for the lifetime of the server.
    pub(crate) async fn sweep(self, timeouts: Timeouts) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.open().values().filter(|connection| connection.is_overdue(&timeouts)).for_each(|late| late.close());
        }
    }

    /// Ends idle connections.
    pub(crate) fn end_idle(&self) {
        self.open().values().for_each(|connection| connection.end_if_idle());
    }

    /// Resolves when no connection is open.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            if self.count() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

/// Registration of an open connection, removed on drop.
pub(crate) struct Registered {
    connections: Connections,
    id: u64,
    pub connection: Arc<Connection>,
}

impl Registered {
    /// Number of open connections.
    pub fn all(&self) -> usize {
        self.connections.count()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.remove(&self.id);
        self.connections.0.count.store(open.len(), Relaxed);
        if open.is_empty() {
            self.connections.0.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_connection_makes_room_and_busy_ones_do_not() {
        let connections = Connections::default();
        let add = || connections.add(false, 3);
        let [first, second, third] = [add(), add(), add()].map(Option::unwrap);
        let running = first.connection.begin();
        std::thread::sleep(Duration::from_millis(2));
        let fourth = add().unwrap();
        assert!(second.connection.is_closed() && !first.connection.is_closed() && !third.connection.is_closed());
        assert_eq!(connections.count(), 3);
        // The eviction counts once, although its task drops the connection later.
        drop(second);
        assert_eq!(connections.count(), 3);
        let all = [third.connection.begin(), fourth.connection.begin()];
        assert!(add().is_none(), "all are busy");
        drop((running, all));
        assert!(add().is_some());
    }

    #[tokio::test]
    async fn it_tells_when_the_last_connection_is_gone() {
        let connections = Connections::default();
        connections.emptied().await;
        let one = connections.add(true, 1).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), connections.emptied()).await.is_err());
        let (emptied, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(5), connections.emptied()), async {
            drop(one);
        });
        emptied.unwrap();
    }
}
