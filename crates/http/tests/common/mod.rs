//! A server within the test, and clients that misbehave.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use poem::Endpoint;
use tercile_http::{Connections, Settings, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running server.
pub struct Running {
    pub address: SocketAddr,
    pub connections: Connections,
    pub serving: JoinHandle<std::io::Result<()>>,
    stop: oneshot::Sender<()>,
}

/// Short timeouts for tests.
pub fn quick() -> Settings {
    let [handshake, header, body, idle] = [300, 300, 300, 600].map(Duration::from_millis);
    Settings { timeouts: Timeouts { handshake, header, body, idle }, ..Settings::default() }
}

pub async fn serve(endpoint: impl Endpoint + 'static, settings: Settings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), settings.connections.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let serving = tokio::spawn(tercile_http::run(listener, endpoint, settings, shutdown));
    Running { address, connections, serving, stop }
}

impl Running {
    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The whole answer to a request on a connection of its own.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    /// Begins the shutdown; the handle ends with the server.
    pub fn stop(self) -> JoinHandle<std::io::Result<()>> {
        self.stop.send(()).unwrap();
        self.serving
    }
}

/// The time until the server closes a connection.
pub async fn until_closed(stream: &mut TcpStream) -> Duration {
    let (start, mut part) = (Instant::now(), [0; 4096]);
    let closing = async { while let Ok(1..) = stream.read(&mut part).await {} };
    tokio::time::timeout(Duration::from_secs(20), closing).await.expect("the connection is still open");
    start.elapsed()
}

/// The status line and headers of the next answer.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("closed without an answer"));
    }
    String::from_utf8(head).unwrap()
}

/// Waits until something is true.
pub async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < Duration::from_secs(20), "no {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
