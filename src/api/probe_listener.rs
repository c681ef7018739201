//! Listener thread that accepts connections and answers probes.
//!
//! Input: a listener. Output: connections for the API server. Connections whose first request is a probe are served by a
//! separate server on this thread, so a probe never waits for a task or blocking thread of the API's runtime.
//!
//! The first request is recognised without consuming it (`MSG_PEEK`). This is impossible over TLS, so TLS connections go to the
//! API.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use poem::web::LocalAddr;
use poem::{Addr, Endpoint, IntoResponse as _, Request, Response, Server};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::acceptor::{Acceptor, Arrived, Inbox, Phase, closing};
use super::connections::{Connections, Timeouts};
use super::problem::Problem;
use super::tls::Tls;
use super::{STREAMS, guard};

/// Prefixes of a probe request.
const PROBES: [&[u8]; 2] = [b"GET /health/", b"HEAD /health/"];
/// Polling interval and number of attempts for the rest of a partial prefix.
const PARTIAL: Duration = Duration::from_millis(5);
const LOOKS: u32 = 10;

/// Settings of the listener thread.
pub struct Settings {
    pub clients: Connections,
    pub tls: Option<Arc<Tls>>,
    pub patience: Timeouts,
    pub phase: Arc<watch::Sender<Phase>>,
    /// Becomes true when only running responses may complete.
    pub stopped: watch::Receiver<bool>,
    /// Time for them to complete.
    pub drain: Duration,
}

/// Handle of the listener thread on the API's side.
pub struct ProbeListener {
    /// Connections for the API.
    pub inbox: Inbox,
    ended: oneshot::Receiver<()>,
}

impl ProbeListener {
    /// Starts to accept connections. `routes` handles requests; those that are not probes run on the current runtime, whichever
    /// server received them.
    ///
    /// # Errors
    /// If the thread or its runtime cannot be started.
    pub fn open<E>(listener: TcpListener, routes: Arc<E>, settings: Settings) -> anyhow::Result<Self>
    where
        E: Endpoint<Output = Response> + 'static,
    {
        let local = LocalAddr(Addr::SocketAddr(listener.local_addr()?));
        let (listener, api) = (listener.into_std()?, Handle::current());
        let (to_api, arrivals) = mpsc::unbounded_channel();
        let (tls, head_bytes) = (settings.tls.clone(), settings.patience.head_bytes);
        let inbox = Inbox { arrivals, local: local.clone(), tls, head_bytes };
        let (ends, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = move || {
            let stopped = runtime.block_on(serve(listener, local, Probes { routes, api }, to_api, settings));
            if let Err(error) = stopped {
                tracing::error!("no more connections are accepted: {error}");
            }
            let _ = ends.send(());
        };
        std::thread::Builder::new().name("door".to_owned()).spawn(serving)?;
        Ok(Self { inbox, ended })
    }

    /// Splits the handle into the connections and a future that resolves when the thread has ended, after `stopped`.
    pub fn into_parts(self) -> (Inbox, impl Future<Output = ()>) {
        (self.inbox, async {
            let _ = self.ended.await;
        })
    }
}

/// Accepts connections and answers probes until the server has stopped.
async fn serve<E>(
    listener: std::net::TcpListener,
    local: LocalAddr,
    probes: Probes<E>,
    to_api: mpsc::UnboundedSender<Arrived>,
    settings: Settings,
) -> io::Result<()>
where
    E: Endpoint<Output = Response> + 'static,
{
    let Settings { clients, tls, patience, phase, mut stopped, drain } = settings;
    let listener = TcpListener::from_std(listener)?;
    let (to_probes, arrivals) = mpsc::unbounded_channel();
    // Only connections without TLS are routed here.
    let inbox = Inbox { arrivals, local, tls: None, head_bytes: patience.head_bytes };
    let mut gate = Acceptor::new(listener, clients, tls.is_some(), patience, Arc::clone(&phase));
    let accepting = async {
        loop {
            let arrived = gate.accept().await;
            if tls.is_some() {
                let _ = to_api.send(arrived);
                continue;
            }
            let (to_api, to_probes, phase) = (to_api.clone(), to_probes.clone(), Arc::clone(&phase));
            tokio::spawn(async move {
                let to = if asks_for_health(&arrived.stream, &phase).await { to_probes } else { to_api };
                // Sending fails only if the receiving server has stopped.
                let _ = to.send(arrived);
            });
        }
    };
    let stopped = async move {
        // A dropped sender also means that the server has stopped.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let server = Server::new_with_acceptor(inbox).http2_max_concurrent_streams(STREAMS);
    tokio::select! {
        ended = server.run_with_graceful_shutdown(probes, stopped, Some(drain)) => ended,
        () = accepting => Ok(()),
    }
}

/// Whether the first request of a connection is a probe, decided as soon as possible. Returns at once during shutdown.
async fn asks_for_health(stream: &TcpStream, phase: &watch::Sender<Phase>) -> bool {
    let mut head = [0; 16];
    for _ in 0..LOOKS {
        let read = tokio::select! {
            read = stream.peek(&mut head) => read,
            () = closing(phase) => return false,
        };
        let Ok(read @ 1..) = read else { return false };
        let head = &head[..read];
        if PROBES.iter().any(|start| head.starts_with(start)) {
            return true;
        }
        if !PROBES.iter().any(|start| start.starts_with(head)) {
            return false;
        }
        tokio::time::sleep(PARTIAL).await;
    }
    false
}

/// All routes; only probes run on this thread.
struct Probes<E> {
    routes: Arc<E>,
    api: Handle,
}

impl<E: Endpoint<Output = Response> + 'static> Endpoint for Probes<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        if guard::is_probe(request.uri().path()) {
            return self.routes.call(request).await;
        }
        // A later request on a probe connection that is not a probe.
        let routes = Arc::clone(&self.routes);
        match self.api.spawn(async move { routes.call(request).await }).await {
            Ok(answered) => answered,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ok(Problem::unavailable("the server is about to stop; ask another one").into_response()),
        }
    }
}
