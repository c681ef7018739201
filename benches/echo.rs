//! An API that echoes its request: the throughput of the server library alone, as a reference for `benches/serve`.
//!
//! `cargo bench --bench echo -- ADDRESS`

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark ends with a panic")]

use poem::listener::TcpListener;
use poem::{Route, Server, handler, post};

#[handler]
async fn echo(body: Vec<u8>) -> Vec<u8> {
    body
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    // Cargo adds its own arguments.
    let Some(address) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) else {
        println!("an address is needed: cargo bench --bench echo -- 127.0.0.1:5001");
        return Ok(());
    };
    let routes = Route::new().at("/api/cluster_products_by_price_rating", post(echo));
    Server::new(TcpListener::bind(address)).run(routes).await
}
