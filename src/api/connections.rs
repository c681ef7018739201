//! Registry of open connections: the state of each, and the enforcement of timeouts.
//!
//! Input: connections as they are accepted, and requests as they begin and end. Output: a future that resolves when a client
//! disconnects, and the shutdown of connections that exceed a timeout. The framework keeps running the request of a client that
//! is gone, so handlers of expensive responses check here; and it has no timeout for request heads. Therefore a watcher
//! regularly scans all connections and shuts down the overdue ones, whatever the state of the protocols above.

#![allow(unsafe_code, reason = "shuts a socket down by its descriptor while the server owns it")]

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use poem::Addr;
use poem::web::RemoteAddr;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Minimum rate in bytes per second of waiting, for request bodies and for responses.
pub const RATE: f64 = 4096.0;

/// Interval of the scans.
const INTERVAL: Duration = Duration::from_millis(200);
/// Silence after which a connection counts as idle at shutdown.
const QUIET: Duration = Duration::from_millis(250);

/// Start of the HTTP/2 connection preface.
const HTTP2: &[u8] = b"PRI ";
/// When there are too many connections, 1 in `SHARE` is evicted.
const SHARE: usize = 64;

/// Timeouts and limits of connections.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request; for the first one from the start of the connection.
    pub header: Duration,
    /// Between requests, and for a client that reads nothing of its response.
    pub idle: Duration,
    /// Maximum concurrent connections.
    pub connections: usize,
    /// Maximum bytes before a complete request head.
    pub head_bytes: usize,
}

/// Microseconds since the first call, starting at 1.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64 + 1
}

/// One connection. Times are values of `now`; 0 means never.
pub struct Connection {
    address: SocketAddr,
    socket: RawFd,
    gone: watch::Sender<bool>,
    /// Whether the TLS handshake is in progress.
    shaking: AtomicBool,
    /// Number of requests begun.
    requests: AtomicU64,
    /// Number of requests whose responses are not yet made.
    running: AtomicU32,
    /// Time of the last progress: accepted, a request ended, or response bytes written.
    useful: AtomicU64,
    /// Whether the connection uses HTTP/2.
    http2: AtomicBool,
    /// Time of the first bytes after the last request, and their number.
    heard: AtomicU64,
    bytes: AtomicUsize,
    /// Time since which the client has not read pending response bytes.
    stalled: AtomicU64,
    /// Bytes written.
    written: AtomicU64,
    /// Responses that the client has not read completely.
    owed: Mutex<Vec<Arc<Part>>>,
}

/// The latest piece of a response handed to the connection and not yet consumed.
#[derive(Default)]
struct Part {
    /// Time of handover; 0: no piece is pending, the connection waits for more.
    since: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that the connection had written at handover.
    written: AtomicU64,
}

impl Part {
    /// Whether the client does not read the piece: over HTTP/2 a stream's window may stay closed while the connection itself is
    /// active. A client must read at least [`RATE`] bytes per second, the minimum rate of request bodies.
    fn stuck(&self, now: u64, written: u64, idle: Duration) -> bool {
        let since = self.since.load(Relaxed);
        let waited = Duration::from_micros(now.saturating_sub(since)).as_secs_f64();
        let taken = written.saturating_sub(self.written.load(Relaxed)) as f64;
        let patience = idle.as_secs_f64() + self.bytes.load(Relaxed) as f64 / RATE;
        since > 0 && waited > patience && taken < RATE * waited
    }
}

impl Connection {
    /// Records the end of the handshake.
    pub fn shaken(&self) {
        self.shaking.store(false, Relaxed);
        self.useful.store(now(), Relaxed);
    }

    /// Records received bytes. `false`: too many for the head of a request.
    pub fn heard(&self, bytes: &[u8], most: usize) -> bool {
        if self.running.load(Relaxed) > 0 {
            return true;
        }
        if self.heard.load(Relaxed) == 0 {
            self.heard.store(now(), Relaxed);
            if self.requests.load(Relaxed) == 0 && bytes.starts_with(HTTP2) {
                self.http2.store(true, Relaxed);
            }
        }
        // The limit applies to bytes received before this read, which may contain a head and much of its body. Over HTTP/2
        // several reads may precede the first request; there the protocol limits the heads.
        self.bytes.fetch_add(bytes.len(), Relaxed) <= most || self.http2.load(Relaxed)
    }

    /// Records written bytes, or with `None` that the socket accepted none.
    pub fn wrote(&self, bytes: Option<usize>) {
        let now = now();
        if let Some(bytes) = bytes {
            self.written.fetch_add(bytes as u64, Relaxed);
            self.useful.store(now, Relaxed);
            self.stalled.store(0, Relaxed);
        } else if self.stalled.load(Relaxed) == 0 {
            self.stalled.store(now, Relaxed);
        }
    }

    pub fn ended(&self) {
        self.gone.send_replace(true);
    }

    /// Whether a timeout is exceeded.
    fn overdue(&self, now: u64, patience: &Timeouts) -> bool {
        let late = |since: u64, limit: Duration| now.saturating_sub(since) > limit.as_micros() as u64;
        let (useful, heard, stalled) =
            (self.useful.load(Relaxed), self.heard.load(Relaxed), self.stalled.load(Relaxed));
        if stalled > 0 && late(stalled, patience.idle) {
            return true;
        }
        let written = self.written.load(Relaxed);
        {
            let owed = self.owed();
            if owed.iter().any(|part| part.stuck(now, written, patience.idle)) {
                return true;
            }
            // The client is reading. Over HTTP/2 it then sends window updates, which do not start a request.
            if !owed.is_empty() {
                return false;
            }
        }
        match (self.shaking.load(Relaxed), self.running.load(Relaxed), heard, self.requests.load(Relaxed)) {
            (true, ..) => late(useful, patience.handshake),
            (_, 1.., ..) => false,
            (_, _, 1.., _) => late(heard, patience.header),
            (.., 0) => late(useful, patience.header),
            _ => late(useful, patience.idle),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Vec<Arc<Part>>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no request is in progress or expected soon, as far as can be told.
    fn idle(&self, now: u64) -> bool {
        let quiet = now.saturating_sub(self.useful.load(Relaxed)) > QUIET.as_micros() as u64;
        quiet && self.running.load(Relaxed) == 0 && self.heard.load(Relaxed) == 0 && self.owed().is_empty()
    }

    fn shut(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => libc::SHUT_RD,
            Shutdown::Write => libc::SHUT_WR,
            Shutdown::Both => libc::SHUT_RDWR,
        };
        // SAFETY: called under the lock of all connections, which the owner takes before it closes the socket.
        unsafe { libc::shutdown(self.socket, how) };
    }
}

type All = HashMap<SocketAddr, Arc<Connection>>;

/// All open connections.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<All>>);

impl Connections {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, client: &RemoteAddr) -> Option<Arc<Connection>> {
        let Addr::SocketAddr(address) = &client.0 else { return None };
        self.all().get(address).cloned()
    }

    pub fn count(&self) -> usize {
        self.all().len()
    }

    /// Registers a connection. Above the limit, the waiting connections with the oldest progress are evicted; `None` if all are
    /// busy.
    pub fn add(
        &self,
        stream: &TcpStream,
        address: SocketAddr,
        shaking: bool,
        patience: &Timeouts,
    ) -> Option<Arc<Connection>> {
        let mut all = self.all();
        if all.len() >= patience.connections {
            let waiting = all.values().filter(|connection| connection.running.load(Relaxed) == 0);
            let mut waiting: Vec<(u64, Arc<Connection>)> =
                waiting.map(|connection| (connection.useful.load(Relaxed), Arc::clone(connection))).collect();
            // Evicting several costs one selection and makes room for the next connections.
            let many = (patience.connections / SHARE).clamp(1, waiting.len().max(1));
            if waiting.is_empty() {
                return None;
            }
            waiting.select_nth_unstable_by_key(many - 1, |(useful, _)| *useful);
            for (_, longest) in waiting.drain(..many) {
                longest.shut(Shutdown::Both);
                // Removed at once, because its owner notices the shutdown later and it must not be selected again.
                all.remove(&longest.address);
            }
        }
        let connection = Arc::new(Connection {
            address,
            socket: stream.as_raw_fd(),
            gone: watch::Sender::new(false),
            shaking: AtomicBool::new(shaking),
            requests: AtomicU64::new(0),
            running: AtomicU32::new(0),
            useful: AtomicU64::new(now()),
            http2: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
            stalled: AtomicU64::new(0),
            written: AtomicU64::new(0),
            owed: Mutex::default(),
        });
        all.insert(address, Arc::clone(&connection));
        Some(connection)
    }

    /// Removes a connection whose socket is about to be closed.
    pub fn remove(&self, connection: &Arc<Connection>) {
        let mut all = self.all();
        if all.get(&connection.address).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            all.remove(&connection.address);
        }
        connection.ended();
    }

    /// Records a running request of this client, until the returned value is dropped.
    pub fn begin(&self, client: &RemoteAddr) -> Option<Busy> {
        let connection = self.get(client)?;
        connection.requests.fetch_add(1, Relaxed);
        connection.running.fetch_add(1, Relaxed);
        connection.heard.store(0, Relaxed);
        connection.bytes.store(0, Relaxed);
        Some(Busy(connection))
    }

    /// Resolves when the client's connection is closed; never for an unknown client.
    pub async fn gone(&self, client: &RemoteAddr) {
        let Some(connection) = self.get(client) else { return std::future::pending().await };
        let mut heard = connection.gone.subscribe();
        drop(heard.wait_for(|gone| *gone).await);
    }

    /// Shuts down a client's connection.
    pub fn shut(&self, client: &RemoteAddr) {
        let Addr::SocketAddr(address) = &client.0 else { return };
        if let Some(connection) = self.all().get(address) {
            connection.shut(Shutdown::Both);
        }
    }

    /// Shuts down overdue connections, for the lifetime of the server.
    pub async fn watch(self, patience: Timeouts) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = now();
            for connection in self.all().values().filter(|connection| connection.overdue(now, &patience)) {
                connection.shut(Shutdown::Both);
            }
        }
    }

    /// Shuts down the read side of idle connections. Bytes received before are still read and answered: end of file follows
    /// them.
    pub fn end_idle(&self) {
        let now = now();
        for connection in self.all().values().filter(|connection| connection.idle(now)) {
            connection.shut(Shutdown::Read);
        }
    }
}

/// A running request, or one whose body is still arriving.
pub struct Busy(Arc<Connection>);

impl Busy {
    /// Records a streamed response, until the returned value is dropped.
    pub fn owe(&self) -> Owed {
        let (connection, part) = (Arc::clone(&self.0), Arc::<Part>::default());
        connection.owed().push(Arc::clone(&part));
        Owed { connection, part }
    }
}

/// A response that the client has not read completely.
pub struct Owed {
    connection: Arc<Connection>,
    part: Arc<Part>,
}

impl Owed {
    /// Records bytes handed to the connection, which must be consumed in time.
    pub fn given(&self, bytes: usize) {
        self.part.bytes.store(bytes as u64, Relaxed);
        self.part.written.store(self.connection.written.load(Relaxed), Relaxed);
        self.part.since.store(now(), Relaxed);
    }

    /// Records that the connection waits for bytes that are not available yet.
    pub fn waiting(&self) {
        self.part.since.store(0, Relaxed);
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let mut owed = self.connection.owed();
        if let Some(place) = owed.iter().position(|part| Arc::ptr_eq(part, &self.part)) {
            owed.swap_remove(place);
        }
    }
}

impl Clone for Busy {
    fn clone(&self) -> Self {
        self.0.running.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.useful.store(now(), Relaxed);
        self.0.running.fetch_sub(1, Relaxed);
    }
}
