//! Runs a server: from its first connection to a graceful shutdown.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use poem::Endpoint;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::server::{Phase, Server};
use crate::{Settings, acceptor};

/// At shutdown, time for connections to close by themselves, and interval of the look for idle ones.
const GOODBYE: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(20)];

/// Serves an endpoint on a listener until `shutdown` resolves, and then until running requests are complete: for
/// [`drain_notice`](Settings::drain_notice) connections are still accepted; then idle ones are closed, HTTP/2 connections are told
/// to go away, and requests may run for [`drain`](Settings::drain). Dropping the future closes all connections.
///
/// # Errors
/// If the thread that accepts connections cannot be started.
pub async fn run<E>(
    listener: TcpListener,
    endpoint: E,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()>
where
    E: Endpoint + 'static,
{
    let server = Arc::new(Server::new(endpoint, listener.local_addr()?, settings));
    let _abort = AbortOnDrop(Arc::clone(&server));
    let Settings { connections, timeouts, tls, drain_notice, drain, .. } = &server.settings;
    let mut tasks = JoinSet::new();
    tasks.spawn(connections.clone().sweep(timeouts.clone()));
    if let Some(tls) = tls {
        tasks.spawn(Arc::clone(tls).watch());
    }
    let ended = acceptor::start(listener.into_std()?, Arc::clone(&server))?;
    shutdown.await;
    server.enter(Phase::Notice);
    tokio::time::sleep(*drain_notice).await;
    server.enter(Phase::Closing);
    let start = Instant::now();
    while start.elapsed() < GOODBYE[0].min(*drain) {
        tokio::time::sleep(GOODBYE[1]).await;
        connections.end_idle();
        if connections.count() == 0 && server.is_deaf.load(Ordering::SeqCst) {
            break;
        }
    }
    server.enter(Phase::Draining);
    let _ = tokio::time::timeout(*drain, connections.emptied()).await;
    server.enter(Phase::Aborted);
    // Dropped connections are gone at once, unless a handler blocks its thread.
    let _ = tokio::time::timeout(GOODBYE[0], connections.emptied()).await;
    let _ = ended.await;
    Ok(())
}

/// Ends a server whose future is dropped.
struct AbortOnDrop(Arc<Server>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.enter(Phase::Aborted);
    }
}
