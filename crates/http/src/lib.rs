//! An HTTP/1.1 and HTTP/2 server for any [poem] endpoint, on hyper.
//!
//! poem's own server has no timeouts, no limit of connections, and continues with connections that have failed. This one adds
//! what a server needs that faces slow, silent, endless or many clients:
//!
//! | policy | file |
//! |---|---|
//! | a thread that accepts connections, and answers probes whatever the other threads do | `acceptor.rs` |
//! | limit of connections: beyond it the one that is idle longest is closed; sweep of overdue connections | `connections.rs` |
//! | timeouts: handshake, request head, idle, stalled and slow readers | `connection.rs`, `slow_reader.rs` |
//! | minimum rate of request bodies; unread bodies are drained | `body_timeout.rs` |
//! | size of reads, size of heads | `stream.rs` |
//! | TLS with certificates that are reloaded | `tls.rs` |
//! | graceful shutdown | `run.rs` |
//! | protocol limits, a connection | `server.rs` |
//!
//! ```
//! use std::time::Duration;
//!
//! use poem::{Route, get, handler};
//! use tercile_http::{Settings, Timeouts};
//!
//! #[handler]
//! fn hello() -> &'static str {
//!     "hello"
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let settings = Settings {
//!     timeouts: Timeouts { idle: Duration::from_secs(60), ..Timeouts::default() },
//!     max_connections: 1000,
//!     priority_prefix: Some("/health/"),
//!     ..Settings::default()
//! };
//! let routes = Route::new().at("/", get(hello)).at("/health/live", get(hello));
//! let stop = tokio::time::sleep(Duration::from_millis(10)); // in a program: a signal
//! tercile_http::run(listener, routes, settings, stop).await
//! # }
//! ```
//!
//! Each request has an [`Exchange`] in its extensions. A response may have an observer ([`Observed`]), which lives until the
//! connection has taken the last byte: an access log, or memory that the response holds. A handler whose client is gone is
//! dropped. Upgrades, such as WebSocket, are not supported.

#![warn(missing_docs)]

mod acceptor;
mod body_timeout;
mod connection;
mod connections;
mod exchange;
mod run;
mod server;
mod settings;
mod slow_reader;
mod stream;
mod tls;

pub use connection::MIN_RATE;
pub use connections::Connections;
pub use exchange::Exchange;
pub use run::run;
pub use settings::{Settings, Timeouts};
pub use slow_reader::{Observed, ResponseObserver};
pub use tls::{Tls, TlsError};
