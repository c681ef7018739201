//! The connections that are open: what each of them waits for, and which of them have waited for too long.
//!
//! Input: connections as they are accepted, and requests as they begin and end. Output: for a client, a wait for its end;
//! for those who are slow, the end. The framework goes on with a request whose client is gone; where an answer is dear, its
//! handler asks here. Nor has it any timeout for the head of a request. So a watcher goes through all connections now and
//! then, and shuts down those whose time is over, whatever state the protocols above are in.

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

use super::body_limit::RATE;

/// How often all connections are looked at.
const INTERVAL: Duration = Duration::from_millis(200);
/// When the server is about to stop, a connection may be silent for so long before it is taken for idle.
const QUIET: Duration = Duration::from_millis(250);

/// How a connection begins that speaks HTTP/2.
const HTTP2: &[u8] = b"PRI ";
/// One connection in so many has to go where there are too many.
const SHARE: usize = 64;

/// What a connection may take.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request; the first one counts from the start.
    pub header: Duration,
    /// Between requests, and for a client that reads nothing of its answer.
    pub idle: Duration,
    /// Connections at the same time.
    pub connections: usize,
    /// Bytes that may come before a request is there.
    pub head_bytes: usize,
}

/// Microseconds since the first time that somebody asked, from 1.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64 + 1
}

/// One connection. Times are those of `now`; 0: never.
pub struct Connection {
    address: SocketAddr,
    socket: RawFd,
    gone: watch::Sender<bool>,
    /// Whether the handshake is still to end.
    shaking: AtomicBool,
    /// Requests that began.
    requests: AtomicU64,
    /// Requests whose answers are not made yet.
    running: AtomicU32,
    /// When it last was of use: it came, a request ended, bytes of an answer went out.
    useful: AtomicU64,
    /// Whether it speaks HTTP/2.
    http2: AtomicBool,
    /// When the first bytes after the last request came, and how many there are.
    heard: AtomicU64,
    bytes: AtomicUsize,
    /// Since when the client has taken nothing of what waits for it.
    stalled: AtomicU64,
    /// Bytes that went out.
    written: AtomicU64,
    /// Answers that it has not taken whole.
    owed: Mutex<Vec<Arc<Part>>>,
}

/// The part of an answer that a connection was given last and has not come back from.
#[derive(Default)]
struct Part {
    /// Since when; 0: there is none, the connection waits for more.
    since: AtomicU64,
    bytes: AtomicU64,
    /// What the connection had written then.
    written: AtomicU64,
}

impl Part {
    /// Whether the client lets it lie: over HTTP/2 its window may stay closed while the connection itself looks alive. Of all
    /// that a connection is given it must take [`RATE`] bytes a second, as of a request's body so many must come.
    fn stuck(&self, now: u64, written: u64, idle: Duration) -> bool {
        let since = self.since.load(Relaxed);
        let waited = Duration::from_micros(now.saturating_sub(since)).as_secs_f64();
        let taken = written.saturating_sub(self.written.load(Relaxed)) as f64;
        let patience = idle.as_secs_f64() + self.bytes.load(Relaxed) as f64 / RATE;
        since > 0 && waited > patience && taken < RATE * waited
    }
}

impl Connection {
    /// Notes the end of the handshake.
    pub fn shaken(&self) {
        self.shaking.store(false, Relaxed);
        self.useful.store(now(), Relaxed);
    }

    /// Notes bytes that came. `false`: too many for the head of a request.
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
        // What is counted came before: one read may bring a head and much of its body. Over HTTP/2 several reads may, before
        // any of the requests in them begins; there the protocol limits the heads.
        self.bytes.fetch_add(bytes.len(), Relaxed) <= most || self.http2.load(Relaxed)
    }

    /// Notes bytes that went out, or that none could.
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

    /// Whether its time is over.
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
            // It takes what it is given, and over HTTP/2 says so, which is no beginning of a request.
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

    /// Whether nothing is to be expected of it, as far as one can tell.
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
        // SAFETY: called under the lock of all connections, which its owner takes before it closes the socket.
        unsafe { libc::shutdown(self.socket, how) };
    }
}

type All = HashMap<SocketAddr, Arc<Connection>>;

/// All connections that are open.
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

    /// Takes a connection in. Where there are too many, those that were of no use for longest have to go; `None`: all of
    /// them are busy.
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
            // Finding many takes no longer than finding one, and whoever connects next finds room.
            let many = (patience.connections / SHARE).clamp(1, waiting.len().max(1));
            if waiting.is_empty() {
                return None;
            }
            waiting.select_nth_unstable_by_key(many - 1, |(useful, _)| *useful);
            for (_, longest) in waiting.drain(..many) {
                longest.shut(Shutdown::Both);
                // Its owner finds out in a moment; until then it must not be chosen again.
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

    /// Forgets a connection whose socket is about to be closed.
    pub fn remove(&self, connection: &Arc<Connection>) {
        let mut all = self.all();
        if all.get(&connection.address).is_some_and(|known| Arc::ptr_eq(known, connection)) {
            all.remove(&connection.address);
        }
        connection.ended();
    }

    /// Notes that a request of this client runs, as long as what is returned lives.
    pub fn begin(&self, client: &RemoteAddr) -> Option<Busy> {
        let connection = self.get(client)?;
        connection.requests.fetch_add(1, Relaxed);
        connection.running.fetch_add(1, Relaxed);
        connection.heard.store(0, Relaxed);
        connection.bytes.store(0, Relaxed);
        Some(Busy(connection))
    }

    /// Done when a client has closed its connection. One that is not known never does.
    pub async fn gone(&self, client: &RemoteAddr) {
        let Some(connection) = self.get(client) else { return std::future::pending().await };
        let mut heard = connection.gone.subscribe();
        drop(heard.wait_for(|gone| *gone).await);
    }

    /// Ends a client's connection.
    pub fn shut(&self, client: &RemoteAddr) {
        let Addr::SocketAddr(address) = &client.0 else { return };
        if let Some(connection) = self.all().get(address) {
            connection.shut(Shutdown::Both);
        }
    }

    /// Ends those whose time is over, as long as the server lives.
    pub async fn watch(self, patience: Timeouts) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = now();
            for connection in self.all().values().filter(|connection| connection.overdue(now, &patience)) {
                connection.shut(Shutdown::Both);
            }
        }
    }

    /// Ends those who wait for nothing. What a client sent before that is read and answered all the same: only then comes
    /// the end of what it sends.
    pub fn end_idle(&self) {
        let now = now();
        for connection in self.all().values().filter(|connection| connection.idle(now)) {
            connection.shut(Shutdown::Read);
        }
    }
}

/// A request that runs, or whose body still arrives.
pub struct Busy(Arc<Connection>);

impl Busy {
    /// Notes an answer that the connection is given bit by bit, until what is returned is dropped.
    pub fn owe(&self) -> Owed {
        let (connection, part) = (Arc::clone(&self.0), Arc::<Part>::default());
        connection.owed().push(Arc::clone(&part));
        Owed { connection, part }
    }
}

/// An answer that a connection has not taken whole.
pub struct Owed {
    connection: Arc<Connection>,
    part: Arc<Part>,
}

impl Owed {
    /// Notes bytes that the connection was given: it takes them, and asks for more, within a time.
    pub fn given(&self, bytes: usize) {
        self.part.bytes.store(bytes as u64, Relaxed);
        self.part.written.store(self.connection.written.load(Relaxed), Relaxed);
        self.part.since.store(now(), Relaxed);
    }

    /// Notes that the connection asked for more than there is yet.
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
