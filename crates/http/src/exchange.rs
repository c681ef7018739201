//! What a handler may ask of the server: whether its client is slow, and how to end the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::connection::Connection;
use crate::server::Phase;

/// The connection of a request, in the extensions of each request.
///
/// A handler needs none of it to notice that its client is gone: the server then drops the handler's future.
#[derive(Clone)]
pub struct Exchange {
    pub(crate) connection: Arc<Connection>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Set when the request body was too slow; `None` if it arrived with the head.
    pub(crate) late: Option<Arc<AtomicBool>>,
}

impl Exchange {
    /// Whether the request body failed because it arrived at less than [`MIN_RATE`](crate::MIN_RATE). The answer is a 408.
    pub fn body_timed_out(&self) -> bool {
        self.late.as_ref().is_some_and(|late| late.load(Ordering::Relaxed))
    }

    /// Resolves when the server stops accepting connections. Responses without end, such as event streams, end then.
    pub async fn shutdown(&self) {
        // A dropped sender means that the server is gone.
        let _ = self.phase.clone().wait_for(|phase| *phase >= Phase::Closing).await;
    }

    /// Closes the connection without an answer.
    pub fn abort(&self) {
        self.connection.close();
    }
}
