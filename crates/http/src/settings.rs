//! Settings of a server.

use std::sync::Arc;
use std::time::Duration;

use crate::{Connections, Tls};

/// Timeouts of a connection. Each is checked every 200 ms, so a connection may live that much longer.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the head of a request; for the first one from the start of the connection.
    pub header: Duration,
    /// For a request body that arrives at less than [`MIN_RATE`](crate::MIN_RATE). Only time spent waiting for the client counts.
    pub body: Duration,
    /// Between requests, and for a client that reads nothing of its response, or reads it at less than
    /// [`MIN_RATE`](crate::MIN_RATE).
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let [handshake, header, body, idle] = [5, 5, 5, 8].map(Duration::from_secs);
        Self { handshake, header, body, idle }
    }
}

/// Settings of a server.
#[derive(Clone)]
pub struct Settings {
    /// Timeouts of each connection.
    pub timeouts: Timeouts,
    /// Maximum concurrent connections. Beyond it, those that wait for a request and were idle for longest are closed.
    pub max_connections: usize,
    /// Maximum bytes received before a complete request head.
    pub max_header_bytes: usize,
    /// Certificate and key, for HTTPS.
    pub tls: Option<Arc<Tls>>,
    /// At shutdown, time during which connections are accepted and responses over HTTP/1 close theirs, so that load balancers notice.
    pub drain_notice: Duration,
    /// At shutdown, time for running requests to complete after that.
    pub drain: Duration,
    /// Requests to paths with this prefix, such as `/health/`, are answered on the thread that accepts connections: they wait for
    /// no task or blocking thread of the runtime that calls [`run`](crate::run). Only connections that begin with such a request
    /// are served there, and only without TLS.
    pub priority_prefix: Option<&'static str>,
    /// Registry of open connections. A clone of it tells their number.
    pub connections: Connections,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            max_connections: 8192,
            max_header_bytes: 16 * 1024,
            tls: None,
            drain_notice: Duration::ZERO,
            drain: Duration::from_secs(10),
            priority_prefix: None,
            connections: Connections::default(),
        }
    }
}
