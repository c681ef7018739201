//! State of one connection, from which its timeouts follow.
//!
//! Input: events of the stream (`stream.rs`), of requests and of responses (`slow_reader.rs`). Output: whether a timeout is
//! exceeded, and a signal to the task that serves the connection.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::Timeouts;

/// Minimum rate of request bodies and responses, in bytes per second of waiting.
pub const MIN_RATE: f64 = 4096.0;

/// Silence after which a connection counts as idle at shutdown.
const QUIET: Duration = Duration::from_millis(250);
/// Start of the HTTP/2 connection preface.
const HTTP2: &[u8] = b"PRI ";

/// Values of `Connection::signal`.
const END_WHEN_IDLE: u8 = 1;
const CLOSE: u8 = 2;

/// Microseconds since the first call, starting at 1.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64 + 1
}

/// One connection. Times are values of `now`; 0 means never.
#[derive(Default)]
pub(crate) struct Connection {
    /// The last request to the connection's task.
    signal: AtomicU8,
    pub woken: Notify,
    /// Whether the TLS handshake is in progress.
    shaking: AtomicBool,
    /// Number of requests begun.
    requests: AtomicU64,
    /// Number of requests whose responses are not yet made.
    running: AtomicU32,
    /// Time of the last progress: accepted, a request ended, or response bytes written.
    pub useful: AtomicU64,
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
    /// active. A client must read at least [`MIN_RATE`] bytes per second, the minimum rate of request bodies.
    fn stuck(&self, now: u64, written: u64, idle: Duration) -> bool {
        let since = self.since.load(Relaxed);
        let waited = Duration::from_micros(now.saturating_sub(since)).as_secs_f64();
        let taken = written.saturating_sub(self.written.load(Relaxed)) as f64;
        let patience = idle.as_secs_f64() + self.bytes.load(Relaxed) as f64 / MIN_RATE;
        since > 0 && waited > patience && taken < MIN_RATE * waited
    }
}

impl Connection {
    /// A connection that was just accepted; with TLS its handshake comes first.
    pub fn new(tls: bool) -> Self {
        Self { shaking: tls.into(), useful: now().into(), ..Self::default() }
    }

    /// Makes the task of the connection drop it.
    pub fn close(&self) {
        self.signal.store(CLOSE, Relaxed);
        self.woken.notify_one();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.signal.load(Relaxed) == CLOSE
    }

    /// Ends the connection once no byte of a request is unread, if it is idle.
    pub fn end_if_idle(&self) {
        if self.is_idle() && self.signal.fetch_max(END_WHEN_IDLE, Relaxed) < CLOSE {
            self.woken.notify_one();
        }
    }

    /// Whether the stream is to end unless something is unread.
    pub fn ends(&self) -> bool {
        self.signal.load(Relaxed) == END_WHEN_IDLE && self.is_idle()
    }

    /// Records the end of the handshake.
    pub fn shaken(&self) {
        self.shaking.store(false, Relaxed);
        self.useful.store(now(), Relaxed);
    }

    /// Whether the connection uses HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
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
        self.bytes.fetch_add(bytes.len(), Relaxed) <= most || self.is_http2()
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

    /// Records a running request, until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Relaxed);
        self.running.fetch_add(1, Relaxed);
        self.heard.store(0, Relaxed);
        self.bytes.store(0, Relaxed);
        Busy(Arc::clone(self))
    }

    /// Whether a request runs.
    pub fn is_busy(&self) -> bool {
        self.running.load(Relaxed) > 0
    }

    /// Whether a response is being written.
    pub fn owes(&self) -> bool {
        !self.owed().is_empty()
    }

    /// Whether a timeout is exceeded.
    pub fn is_overdue(&self, timeouts: &Timeouts) -> bool {
        let now = now();
        let late = |since: u64, limit: Duration| now.saturating_sub(since) > limit.as_micros() as u64;
        let (useful, heard, stalled) =
            (self.useful.load(Relaxed), self.heard.load(Relaxed), self.stalled.load(Relaxed));
        if stalled > 0 && late(stalled, timeouts.idle) {
            return true;
        }
        let written = self.written.load(Relaxed);
        {
            let owed = self.owed();
            if owed.iter().any(|part| part.stuck(now, written, timeouts.idle)) {
                return true;
            }
            // The client is reading. Over HTTP/2 it then sends window updates, which do not start a request.
            if !owed.is_empty() {
                return false;
            }
        }
        match (self.shaking.load(Relaxed), self.is_busy(), heard, self.requests.load(Relaxed)) {
            (true, ..) => late(useful, timeouts.handshake),
            (_, true, ..) => false,
            (_, _, 1.., _) => late(heard, timeouts.header),
            (.., 0) => late(useful, timeouts.header),
            _ => late(useful, timeouts.idle),
        }
    }

    fn owed(&self) -> MutexGuard<'_, Vec<Arc<Part>>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no request is in progress or expected soon, as far as can be told.
    fn is_idle(&self) -> bool {
        let quiet = now().saturating_sub(self.useful.load(Relaxed)) > QUIET.as_micros() as u64;
        quiet && !self.is_busy() && self.heard.load(Relaxed) == 0 && self.owed().is_empty()
    }
}

/// A running request, or one whose body is still arriving.
pub(crate) struct Busy(Arc<Connection>);

impl Busy {
    /// Records a response, until the returned value is dropped.
    pub fn owe(&self) -> Owed {
        let (connection, part) = (Arc::clone(&self.0), Arc::<Part>::default());
        connection.owed().push(Arc::clone(&part));
        Owed { connection, part }
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

/// A response that the client has not read completely.
pub(crate) struct Owed {
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
