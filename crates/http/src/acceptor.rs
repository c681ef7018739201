//! Thread that accepts connections and answers requests with priority.
//!
//! Input: a listener. Output: connections, each served by a task of its own on the runtime of the endpoint. Connections whose
//! first request has priority are served on this thread instead, so that such a request never waits for a task or blocking thread
//! of that runtime.
//!
//! The first request is recognised without consuming it (`MSG_PEEK`). This is impossible over TLS, so TLS connections go to the
//! runtime of the endpoint.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::Settings;
use crate::connections::Registered;
use crate::server::{Phase, Server};

/// Backoff after `accept` failed for lack of descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// Time at shutdown for handshakes already in progress: the third packet of a TCP handshake arrives one round trip after the
/// second.
const HANDSHAKES: Duration = Duration::from_millis(200);
/// Methods of requests with priority.
const METHODS: [&str; 2] = ["GET ", "HEAD "];
/// Polling interval and number of attempts for the rest of a partial prefix.
const PARTIAL: Duration = Duration::from_millis(5);
const LOOKS: u32 = 10;

/// Starts to accept connections. The returned channel is closed when the thread has ended.
pub(crate) fn start(listener: StdListener, server: Arc<Server>) -> io::Result<oneshot::Receiver<()>> {
    let (ends, ended) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let accepting = move || {
        if let Err(error) = runtime.block_on(accept(listener, &server)) {
            tracing::error!("no more connections are accepted: {error}");
        }
        server.is_deaf.store(true, Ordering::SeqCst);
        // Connections of this thread.
        runtime.block_on(async {
            tokio::select! {
                () = server.settings.connections.emptied() => {}
                () = server.reached(Phase::Aborted) => {}
            }
        });
        let _ = ends.send(());
    };
    std::thread::Builder::new().name("acceptor".to_owned()).spawn(accepting)?;
    Ok(ended)
}

/// Accepts connections until shutdown, and then those that are established already.
async fn accept(listener: StdListener, server: &Arc<Server>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    {
        let mut closed = pin!(async {
            server.reached(Phase::Closing).await;
            ignore_newcomers(&listener);
            tokio::time::sleep(HANDSHAKES).await;
        });
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => admit(server, stream, address),
                    Err(error) => {
                        tracing::debug!("a connection could not be accepted: {error}");
                        tokio::time::sleep(EXHAUSTED).await;
                    }
                },
                () = &mut closed => break,
            }
        }
    }
    // Accept the remaining connections of the kernel's queue, without the runtime's readiness. No new connection can arrive.
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((stream, address)) => {
                stream.set_nonblocking(true)?;
                admit(server, TcpStream::from_std(stream)?, address);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Has a connection served, unless there are too many.
fn admit(server: &Arc<Server>, stream: TcpStream, address: SocketAddr) {
    let Settings { connections, max_connections, tls, priority_prefix, .. } = &server.settings;
    let Some(registered) = connections.add(tls.is_some(), *max_connections) else { return };
    // Responses are written whole, so that Nagle's algorithm would only delay them.
    let _ = stream.set_nodelay(true);
    let server = Arc::clone(server);
    match priority_prefix.filter(|_| tls.is_none()) {
        None => hand_over(&server, stream, address, registered),
        Some(prefix) => {
            tokio::spawn(async move {
                let priority = tokio::select! {
                    biased;
                    priority = has_priority(&stream, prefix, &server) => priority,
                    () = registered.connection.woken.notified() => false,
                };
                if registered.connection.is_closed() {
                    return;
                }
                // Each in a task of its own: one that waits for a first byte has less to keep.
                if priority {
                    tokio::spawn(server.serve(stream, address, registered, true));
                } else {
                    hand_over(&server, stream, address, registered);
                }
            });
        }
    }
}

/// Serves a connection on the runtime of the endpoint, with which its socket must be registered.
fn hand_over(server: &Arc<Server>, stream: TcpStream, address: SocketAddr, registered: Registered) {
    let Ok(stream) = stream.into_std() else { return };
    let serving = Arc::clone(server);
    server.runtime.spawn(async move {
        if let Ok(stream) = TcpStream::from_std(stream) {
            serving.serve(stream, address, registered, false).await;
        }
    });
}

/// Whether the first request of a connection has priority, decided as soon as possible. Returns at once during shutdown.
async fn has_priority(stream: &TcpStream, prefix: &str, server: &Server) -> bool {
    let starts = METHODS.map(|method| format!("{method}{prefix}").into_bytes());
    let mut head = vec![0; starts.iter().map(Vec::len).max().unwrap_or_default()];
    for _ in 0..LOOKS {
        let read = tokio::select! {
            read = stream.peek(&mut head) => read,
            () = server.reached(Phase::Closing) => return false,
        };
        let Ok(read @ 1..) = read else { return false };
        let head = &head[..read];
        if starts.iter().any(|start| head.starts_with(start)) {
            return true;
        }
        if !starts.iter().any(|start| start.starts_with(head)) {
            return false;
        }
        tokio::time::sleep(PARTIAL).await;
    }
    false
}

/// Makes the kernel drop packets that open a connection. A client that connects between the last check of the queue and the
/// closing of the socket would be reset with its request already sent; therefore new connections are prevented before the
/// socket closes. A client that retries after a second is refused and knows that nothing of its request was read.
#[cfg(target_os = "linux")]
fn ignore_newcomers(listener: &TcpListener) {
    use socket2::{SockFilter, SockRef};
    // Instructions of the classic packet filter: load a byte, AND, jump if equal, return.
    const LOAD: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // The filter sees packets from the TCP header on: byte 13 holds the flags, and SYN without ACK opens a connection.
    let steps = [
        SockFilter::new(LOAD, 0, 0, 13),
        SockFilter::new(AND, 0, 0, 0x12),
        SockFilter::new(JUMP, 0, 1, 0x02),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    if let Err(error) = SockRef::from(listener).attach_filter(&steps) {
        tracing::debug!("newcomers are not held off while the server stops: {error}");
    }
}

#[cfg(not(target_os = "linux"))]
fn ignore_newcomers(_: &TcpListener) {}
