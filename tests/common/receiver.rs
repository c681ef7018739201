//! A receiver of notifications: a real HTTP server on a port of its own, which fails as a test says.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// What a receiver does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    Status(u16),
    /// To another URL.
    Redirect(String),
    /// It reads the request and answers nothing for a minute.
    Hang,
    /// It closes the connection without an answer.
    Close,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Message {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Message {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn event(&self) -> String {
        self.headers["tercile-event"].clone()
    }

    pub fn id(&self) -> String {
        self.headers["tercile-id"].clone()
    }

    pub fn state(&self) -> String {
        self.json()["state"].as_str().unwrap().to_owned()
    }
}

type Behaviour = Box<dyn FnMut(usize) -> Reply + Send>;

/// A running receiver.
pub struct Receiver {
    pub address: SocketAddr,
    taken: Arc<Mutex<Vec<Message>>>,
    asked: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Receiver {
    /// Answers request `n`, from 0, with `behave(n)`.
    pub fn new(behave: impl FnMut(usize) -> Reply + Send + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), None, behave)
    }

    /// Takes every message.
    pub fn well() -> Self {
        Self::new(|_| Reply::Status(204))
    }

    /// The same at an address, perhaps with TLS.
    pub fn at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        behave: impl FnMut(usize) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            taken: Arc::default(),
            asked: Arc::default(),
            behaviour: Arc::new(Mutex::new(Box::new(behave))),
        };
        let (taken, asked) = (Arc::clone(&receiver.taken), Arc::clone(&receiver.asked));
        let behaviour = Arc::clone(&receiver.behaviour);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (taken, asked, behaviour) = (Arc::clone(&taken), Arc::clone(&asked), Arc::clone(&behaviour));
                let tls = tls.clone();
                std::thread::spawn(move || {
                    let mut stream: Box<dyn Stream> = match tls {
                        None => Box::new(stream),
                        Some(tls) => Box::new(StreamOwned::new(ServerConnection::new(tls).unwrap(), stream)),
                    };
                    let Some(message) = read(&mut *stream) else { return };
                    let reply = behaviour.lock().unwrap()(asked.fetch_add(1, Ordering::SeqCst));
                    let (status, more) = match reply {
                        Reply::Status(status) => (status, String::new()),
                        Reply::Redirect(to) => (307, format!("location: {to}\r\n")),
                        Reply::Hang => return std::thread::sleep(Duration::from_secs(60)),
                        Reply::Close => return,
                    };
                    if (200..300).contains(&status) {
                        taken.lock().unwrap().push(message);
                    }
                    let _ =
                        stream.write_all(format!("HTTP/1.1 {status} X\r\n{more}content-length: 0\r\n\r\n").as_bytes());
                    let _ = stream.flush();
                });
            }
        });
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// Messages that were taken.
    pub fn taken(&self) -> Vec<Message> {
        self.taken.lock().unwrap().clone()
    }

    /// Messages of an event that were taken.
    pub fn of(&self, event: &str) -> Vec<Message> {
        self.taken().into_iter().filter(|message| message.event() == event).collect()
    }

    /// Requests, taken or not.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Changes what it does.
    pub fn now(&self, behave: impl FnMut(usize) -> Reply + Send + 'static) {
        *self.behaviour.lock().unwrap() = Box::new(behave);
    }
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// Reads a request; `None` if the connection was closed before.
fn read(stream: &mut dyn Stream) -> Option<Message> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend(&buffer[..n]),
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    assert_eq!(first.next(), Some("POST"));
    let path = first.next()?.to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> =
        headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while bytes.len() < head + 4 + length {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(n) => bytes.extend(&buffer[..n]),
        }
    }
    Some(Message { path, headers, body: bytes[head + 4..head + 4 + length].to_vec(), at: Instant::now() })
}

/// An address where nothing listens.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Whether something listens.
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}
