//! What every request goes through: a name, the guard, the handlers, and a line in the log.
//!
//! Input: requests as they come off the wire. Output: answers of which each carries an `X-Request-Id`; metrics; an access
//! line as soon as the whole answer was handed over.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use futures::{StreamExt as _, stream};
use http_body::Body as _;
use http_body_util::combinators::BoxBody;
use poem::error::MethodNotAllowedError;
use poem::http::header::{ALLOW, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER};
use poem::http::{Method, StatusCode, Version};
use poem::{Addr, Body, Endpoint, IntoResponse as _, PathPattern, Request, Response};

use super::clients::Busy;
use super::document::Known;
use super::events;
use super::guard::{Admitted, Guard};
use super::problem::{self, Problem};
use super::{State, body};

/// The target of access lines.
const ACCESS: &str = "tercile::access";
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes, behind the guard.
pub struct Front<E> {
    pub inner: E,
    pub state: Arc<State>,
    pub guard: Arc<Guard>,
    /// Paths as the OpenAPI document has them, by the router's patterns.
    pub known: HashMap<String, Known>,
}

impl<E: Endpoint> Endpoint for Front<E> {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let mut record = Record::start(&self.state, &request);
        let (id, origin) = (record.id.clone(), self.guard.allowed_origin(&request));
        let (keeps_alive, old) = (request.version() < Version::HTTP_2, request.version() < Version::HTTP_11);
        let late = body::hasten(&mut request, self.guard.body_timeout, record.busy.as_ref());
        let mut response = match self.guard.admit(&request, || self.exists(request.uri().path())) {
            Ok(admitted) => {
                record.admitted = admitted;
                if request.uri().path() == events::PATH
                    && let Some(pass) = self.guard.pass(&request)
                {
                    request.extensions_mut().insert(pass);
                }
                let response = self.answer(request, &mut record).await;
                if late.is_some_and(|late| late.load(Ordering::Relaxed)) { too_late() } else { response }
            }
            Err(refusal) => refusal,
        };
        // Older than chunks, it ends where the connection does: one that breaks off would look whole.
        if old && response_length(&mut response).is_none() {
            response = Problem::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, ONLY_WHOLE).into_response();
        }
        record.status = Some(response.status());
        let unavailable = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        let headers = response.headers_mut();
        if unavailable && !headers.contains_key(RETRY_AFTER) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        headers.insert(REQUEST_ID, id);
        self.guard.tell_origin(origin.as_ref(), headers);
        if keeps_alive && self.state.draining.load(Ordering::SeqCst) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        record.follow(&mut response);
        Ok(response)
    }
}

impl<E: Endpoint> Front<E> {
    async fn answer(&self, request: Request, record: &mut Record) -> Response {
        match self.inner.call(request).await {
            Ok(response) => {
                let response = response.into_response();
                record.route = self.route(response.data());
                response
            }
            Err(error) => {
                let pattern = error.data();
                record.route = self.route(pattern);
                let allow = error.is::<MethodNotAllowedError>().then(|| self.allow(pattern));
                let mut response = problem::from_framework(error).await;
                if let Some(allow) = allow {
                    response.headers_mut().insert(ALLOW, allow);
                }
                response
            }
        }
    }

    /// What a request is counted under: labels stay few, whatever paths are asked for.
    fn route(&self, pattern: Option<&PathPattern>) -> String {
        let pattern = pattern.map(|PathPattern(pattern)| pattern.as_ref()).filter(|pattern| !pattern.is_empty());
        let name =
            pattern.and_then(|pattern| self.known.get(pattern).map(|known| known.path.as_str()).or(Some(pattern)));
        name.unwrap_or("other").to_owned()
    }

    /// Whether the document has this path, or it is one of the pages.
    fn exists(&self, path: &str) -> bool {
        let fits = |known: &Known| {
            let (known, asked) = (known.path.split('/'), path.split('/'));
            known.clone().count() == asked.clone().count()
                && known.zip(asked).all(|(known, asked)| known == asked || known.starts_with('{'))
        };
        let page = matches!(path.split('/').nth(1), Some("" | "docs" | "dashboard" | "openapi.json"));
        page || self.known.values().any(fits)
    }

    /// The methods of a path. What the document leaves out are pages.
    fn allow(&self, pattern: Option<&PathPattern>) -> HeaderValue {
        let known = pattern.and_then(|PathPattern(pattern)| self.known.get(pattern.as_ref()));
        known.map_or(HeaderValue::from_static("GET, HEAD"), |known| known.allow.clone())
    }
}

/// Why an answer does not come over HTTP/1.0.
const ONLY_WHOLE: &str =
    "this answer comes in pieces, and HTTP/1.0 can't tell whether the last one came; ask again with HTTP/1.1";

/// How long an answer's body is, if that is known.
fn response_length(response: &mut Response) -> Option<u64> {
    let body: BoxBody<_, _> = response.take_body().into();
    let length = body.size_hint().exact();
    response.set_body(Body::from(body));
    length
}

fn too_late() -> Response {
    let mut response = Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time").into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A request, from its head to the end of its answer. What is told of it is told when this is dropped, even if the client
/// went away before.
struct Record {
    state: Arc<State>,
    id: HeaderValue,
    method: &'static str,
    route: String,
    admitted: Admitted,
    status: Option<StatusCode>,
    bytes: u64,
    /// Whether the answer has begun, and its end has not come.
    cut: bool,
    client: String,
    start: Instant,
    /// Tells the connection that it is of use.
    busy: Option<Busy>,
}

impl Record {
    fn start(state: &Arc<State>, request: &Request) -> Self {
        // A method can be any word that a client makes up.
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
            bytes: 0,
            cut: false,
            client: client(request),
            start: Instant::now(),
            busy: state.clients.begin(request.remote_addr()),
        }
    }

    /// Stays with an answer until it was handed over.
    fn follow(mut self, response: &mut Response) {
        let body: BoxBody<_, _> = response.take_body().into();
        // Most bodies are there whole: they keep their length. The others go on as the stream they are.
        if let Some(length) = body.size_hint().exact() {
            self.bytes = length;
            response.set_body(Body::from(body));
            return;
        }
        // Who follows events leaves when it has seen enough.
        self.cut = !response.content_type().is_some_and(|kind| kind.starts_with("text/event-stream"));
        let parts = Box::pin(Body::from(body).into_bytes_stream());
        response.set_body(Body::from_bytes_stream(self.counted(parts)));
    }

    fn count(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    fn counted<B: AsRef<[u8]>, S: stream::Stream<Item = std::io::Result<B>>>(
        mut self,
        parts: S,
    ) -> impl stream::Stream<Item = std::io::Result<B>> {
        parts.map(Some).chain(stream::iter([None])).filter_map(move |part| {
            match &part {
                Some(part) => self.count(part.as_ref().map_or(0, |part| part.as_ref().len())),
                None => self.cut = false,
            }
            std::future::ready(part)
        })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { id, client, method, route, status, bytes, .. } = self;
        let elapsed = self.start.elapsed();
        // Who went away before the answer, or its end, came got none: proxies call that 499.
        let status = status.filter(|_| !self.cut);
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
        // Probes come every few seconds, whoever else comes.
        if route.starts_with("/health/") || route == "/metrics" { line!(debug) } else { line!(info) }
    }
}

/// Where a request comes from; empty where no line is written.
fn client(request: &Request) -> String {
    match &request.remote_addr().0 {
        Addr::SocketAddr(address) if tracing::enabled!(target: ACCESS, tracing::Level::INFO) => {
            address.ip().to_string()
        }
        _ => String::new(),
    }
}

/// The name of a request: its client's, if that is one that can go into a log, or a new one.
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
        // Longer only once there were four thousand million.
        let length = if n >> 32 == 0 { 17 } else { 25 };
        digits(n, &mut name[9..length]);
        HeaderValue::from_bytes(&name[..length]).unwrap_or(HeaderValue::from_static("none"))
    })
}

/// The last digits of a number, in hex.
fn digits(mut number: u64, out: &mut [u8]) {
    for digit in out.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number % 16) as usize];
        number /= 16;
    }
}
