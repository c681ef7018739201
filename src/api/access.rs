//! Record of one request until the last byte of its response: request id, access log line, metrics.
//!
//! Input: events of the request. Output: an access line and counters when it ends, also if the client disconnected early.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use poem::http::header::{HeaderName, HeaderValue};
use poem::http::{Method, StatusCode};
use poem::{Addr, Request};
use tercile_http::ResponseObserver;

use super::State;
use super::budget::Hold;
use super::guard::Admitted;

/// Target of access log lines.
const ACCESS: &str = "tercile::access";
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request in progress. On drop it writes the access line and the counters, and releases the caller's concurrency slot and
/// the memory.
pub struct Record {
    state: Arc<State>,
    pub id: HeaderValue,
    method: &'static str,
    pub route: String,
    pub admitted: Admitted,
    pub status: Option<StatusCode>,
    bytes: AtomicU64,
    /// Whether the length of the response is unknown until its end.
    streamed: bool,
    /// Whether such a response has begun and not ended.
    cut: AtomicBool,
    client: String,
    start: Instant,
    /// Memory held from the budget.
    pub hold: Option<Hold>,
}

impl Record {
    pub fn start(state: &Arc<State>, request: &Request) -> Self {
        // Clients can send arbitrary methods, which must not become label values.
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::PATCH => "PATCH",
            _ => "other",
        };
        Self {
            state: Arc::clone(state),
            id: request_id(request),
            method,
            route: "refused".to_owned(),
            admitted: Admitted::default(),
            status: None,
            bytes: AtomicU64::new(0),
            streamed: false,
            cut: AtomicBool::new(false),
            client: client(request),
            start: Instant::now(),
            hold: None,
        }
    }

    /// Records the start of the response and its length, if known.
    pub fn begins(&mut self, length: Option<u64>, endless: bool) {
        match length {
            Some(length) => self.bytes = length.into(),
            // A client ends an event stream at any time; that is not a truncated response.
            None => (self.streamed, self.cut) = (true, (!endless).into()),
        }
    }
}

impl ResponseObserver for Record {
    fn sent(&self, bytes: usize) {
        if self.streamed {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    fn completed(&self) {
        self.cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { id, client, method, route, status, .. } = self;
        let (elapsed, bytes, cut) = (self.start.elapsed(), *self.bytes.get_mut(), *self.cut.get_mut());
        // A client that disconnected before the response was complete is recorded as 499, as proxies do.
        let status = status.filter(|_| !cut);
        self.state.metrics.answered(route, method, status.as_ref().map_or("499", StatusCode::as_str), elapsed);
        if !tracing::enabled!(target: ACCESS, tracing::Level::INFO) {
            return;
        }
        let status = status.map_or(499, |status| status.as_u16());
        let (id, key, ms) =
            (id.to_str().unwrap_or_default(), self.admitted.key.as_deref(), elapsed.as_secs_f64() * 1e3);
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: ACCESS,
                    id, client, method, route, status, bytes, ms, key,
                    "{method} {route} {status}, {bytes} bytes in {ms:.1} ms for {client}{}{}, {id}",
                    if key.is_some() { " with " } else { "" },
                    key.unwrap_or_default(),
                )
            };
        }
        // Probes are frequent and are logged at `debug`.
        if route.starts_with("/health/") || route == "/metrics" { line!(debug) } else { line!(info) }
    }
}

/// Client address; empty if access lines are disabled.
fn client(request: &Request) -> String {
    match &request.remote_addr().0 {
        Addr::SocketAddr(address) if tracing::enabled!(target: ACCESS, tracing::Level::INFO) => {
            address.ip().to_string()
        }
        _ => String::new(),
    }
}

/// Request id: the client's if it is safe to log, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    static PROCESS: LazyLock<u32> = LazyLock::new(|| getrandom::u32().unwrap_or_default());
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let sane = |id: &&HeaderValue| {
        let id = id.as_bytes();
        (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    let given = request.headers().get(REQUEST_ID).filter(sane).cloned();
    given.unwrap_or_else(|| {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut name = [b'-'; 8 + 1 + 16];
        digits(u64::from(*PROCESS), &mut name[..8]);
        // Grows from 8 to 16 digits after 2^32 requests.
        let length = if n >> 32 == 0 { 17 } else { 25 };
        digits(n, &mut name[9..length]);
        HeaderValue::from_bytes(&name[..length]).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// Writes the low digits of a number in hex.
fn digits(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        number /= 16;
    }
}
