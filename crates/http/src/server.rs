//! The server: its phases, and the task of each connection.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use poem::endpoint::{DynEndpoint, ToDynEndpoint};
use poem::http::{self, HeaderValue, StatusCode, Version, header::CONNECTION, uri::Scheme};
use poem::web::{LocalAddr, RemoteAddr};
use poem::{Addr, Endpoint, EndpointExt as _, Request, Response};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::connection::{Busy, Connection};
use crate::connections::Registered;
use crate::stream::{Monitored, Transport};
use crate::{Exchange, Settings, body_timeout, slow_reader};

/// Maximum concurrent requests per HTTP/2 connection: the minimum that RFC 9113 recommends.
const STREAMS: u32 = 100;
/// Maximum streams of an HTTP/2 connection that the client reset before they were accepted, and that the server reset: beyond
/// it the connection is closed (rapid reset, CVE-2023-44487).
const RESET_STREAMS: usize = 20;
const REFUSED_STREAMS: usize = 1024;
/// Maximum bytes of an HTTP/2 request's head after decompression. It bounds CONTINUATION frames, too.
const HEADER_LIST: u32 = 16 * 1024;
/// Maximum response bytes that wait in each HTTP/2 stream for the client's window.
const SEND_BUFFER: usize = 400 * 1024;

/// Phase of a server. Later phases compare greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Responses over HTTP/1 close their connections.
    Notice,
    /// New connections are refused, and idle ones are closed.
    Closing,
    /// Running requests may complete.
    Draining,
    /// Connections are dropped.
    Aborted,
}

/// A running server.
pub(crate) struct Server {
    endpoint: Arc<dyn DynEndpoint<Output = Response>>,
    pub settings: Settings,
    local: LocalAddr,
    /// The runtime of the endpoint.
    pub runtime: Handle,
    protocol: auto::Builder<TokioExecutor>,
    phase: watch::Sender<Phase>,
    /// Whether all established connections were accepted, at shutdown.
    pub is_deaf: AtomicBool,
}

/// The protocols, detected by the first bytes. hyper's own timeouts are off: the sweep of the connections knows more.
fn protocol() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_pending_accept_reset_streams(RESET_STREAMS)
        .max_local_error_reset_streams(REFUSED_STREAMS)
        .max_header_list_size(HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER);
    builder
}

impl Server {
    /// A server at the address `local` that answers on the current runtime.
    pub fn new(endpoint: impl Endpoint + 'static, local: SocketAddr, settings: Settings) -> Self {
        Self {
            endpoint: Arc::new(ToDynEndpoint(endpoint.map_to_response())),
            local: LocalAddr(Addr::SocketAddr(local)),
            runtime: Handle::current(),
            protocol: protocol(),
            phase: watch::Sender::new(Phase::Open),
            is_deaf: AtomicBool::new(false),
            settings,
        }
    }

    /// Begins a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Resolves when the server has reached a phase.
    pub async fn reached(&self, wanted: Phase) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }

    /// Serves a connection until it ends. `here`: requests with priority are answered on the current runtime, others on that of the
    /// endpoint.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, address: SocketAddr, registered: Registered, here: bool) {
        let connection = Arc::clone(&registered.connection);
        let handshake = async {
            match &self.settings.tls {
                Some(tls) => Ok(Transport::Tls(Box::new(tls.accept(stream).await?))),
                None => Ok::<_, io::Error>(Transport::Plain(stream)),
            }
        };
        let transport = tokio::select! {
            biased;
            transport = handshake => transport,
            // Closed, or idle at shutdown.
            () = connection.woken.notified() => return,
            () = self.reached(Phase::Aborted) => return,
        };
        let Ok(transport) = transport else { return };
        connection.shaken();
        let scheme = if self.settings.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let remote = RemoteAddr(Addr::SocketAddr(address));
        let service = service_fn(|request: http::Request<Incoming>| {
            let request = Request::from((request, self.local.clone(), remote.clone(), scheme.clone()));
            let server = Arc::clone(&self);
            // Before the protocol reads on, and perhaps the client's end.
            let running = (connection.begin(), Arc::clone(&connection));
            async move {
                Ok::<http::Response<BoxBody<Bytes, io::Error>>, Infallible>(
                    server.answer(request, running, here).await.into(),
                )
            }
        });
        let max_header_bytes = self.settings.max_header_bytes;
        let stream = TokioIo::new(Monitored { transport, registered, max_header_bytes, half_closed: None });
        let mut serving = pin!(self.protocol.serve_connection(stream, service));
        let mut next = Phase::Closing;
        loop {
            tokio::select! {
                biased;
                // After an error of the protocol or the client's end, whatever runs for the connection is dropped with it.
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!("a connection ended: {error}");
                    }
                    return;
                }
                () = connection.woken.notified() => {
                    if connection.is_closed() {
                        return;
                    }
                    // Idle at shutdown: polled again, it reads its end.
                }
                () = self.reached(next) => match next {
                    Phase::Closing => {
                        if connection.is_http2() {
                            serving.as_mut().graceful_shutdown();
                        }
                        next = Phase::Draining;
                    }
                    Phase::Draining => {
                        serving.as_mut().graceful_shutdown();
                        next = Phase::Aborted;
                    }
                    _ => return,
                },
            }
        }
    }

    /// Answers a request and follows its response.
    async fn answer(
        self: Arc<Self>,
        mut request: Request,
        (busy, connection): (Busy, Arc<Connection>),
        here: bool,
    ) -> Response {
        let keeps_alive = request.version() < Version::HTTP_2;
        let late = body_timeout::enforce(&mut request, self.settings.timeouts.body, &busy);
        request.extensions_mut().insert(Exchange { connection, phase: self.phase.subscribe(), late });
        let prefix = self.settings.priority_prefix.filter(|_| here);
        let mut response = match prefix {
            Some(prefix) if !request.uri().path().starts_with(prefix) => self.answer_there(request).await,
            _ => self.endpoint.get_response(request).await,
        };
        if keeps_alive && *self.phase.borrow() > Phase::Open {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        slow_reader::follow(&mut response, busy);
        response
    }

    /// Answers a request without priority on the runtime of the endpoint.
    async fn answer_there(&self, request: Request) -> Response {
        let endpoint = Arc::clone(&self.endpoint);
        // Aborts the request if its connection ends.
        let mut task = JoinSet::new();
        task.spawn_on(async move { endpoint.get_response(request).await }, &self.runtime);
        match task.join_next().await {
            Some(Ok(response)) => response,
            Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime has ended.
            _ => StatusCode::SERVICE_UNAVAILABLE.into(),
        }
    }
}
