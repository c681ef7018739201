//! A TCP proxy in front of an object store that injects faults of networks and stores.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The treatment of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Pass,
    /// 503; the store does not receive the request.
    Busy,
    /// The request is forwarded late.
    Late(Duration),
    /// The connection breaks in the middle of the body: the store receives an incomplete request.
    CutRequest,
    /// The store processes the request, and the response is lost.
    CutAnswer,
    /// An earlier response to the same request, if there is one.
    Stale(Duration),
    /// Conditional headers are ignored, as by a service without conditional puts.
    Unconditional,
}

/// Chooses the treatment from a request's method, its path with the query, and the number of earlier requests with this method.
pub type Plan = fn(&str, &str, usize) -> Act;

pub struct Proxy {
    pub url: String,
    /// The requests with their treatment.
    pub done: Arc<Mutex<Vec<(Act, String)>>>,
}

#[derive(Default)]
struct Seen {
    counts: HashMap<String, usize>,
    answers: HashMap<String, Vec<(Instant, Vec<u8>)>>,
}

impl Proxy {
    pub fn start(upstream: &str, plan: Plan) -> Self {
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (done, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Seen::default())));
        let told = Arc::clone(&done);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (upstream, told, seen) = (upstream.clone(), Arc::clone(&told), Arc::clone(&seen));
                thread::spawn(move || serve(client, &upstream, plan, &told, &seen));
            }
        });
        Self { url, done }
    }

    pub fn count(&self, wanted: impl Fn(Act) -> bool) -> usize {
        self.done.lock().unwrap().iter().filter(|(act, _)| wanted(*act)).count()
    }
}

/// One request per connection: each response has `Connection: close`.
fn serve(
    mut client: TcpStream,
    upstream: &str,
    plan: Plan,
    told: &Mutex<Vec<(Act, String)>>,
    seen: &Mutex<Seen>,
) -> Option<()> {
    let head = head(&mut client)?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.unwrap_or(0);
    let count = {
        let mut seen = seen.lock().unwrap();
        let count = seen.counts.entry(method.clone()).or_default();
        *count += 1;
        *count - 1
    };
    let act = plan(&method, &path, count);
    told.lock().unwrap().push((act, format!("{method} {path}")));
    let mut body = vec![0; if act == Act::CutRequest { length / 2 } else { length }];
    client.read_exact(&mut body).ok()?;
    match act {
        Act::CutRequest => {
            // Half of the request reaches the store.
            let mut there = TcpStream::connect(upstream).ok()?;
            there.write_all(&head).and_then(|()| there.write_all(&body)).ok()?;
            let _ = there.shutdown(Shutdown::Both);
            let _ = client.shutdown(Shutdown::Both);
            return None;
        }
        Act::Busy => {
            let busy = "HTTP/1.1 503 Slow Down\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            return client.write_all(busy.as_bytes()).ok();
        }
        Act::Late(how) => thread::sleep(how),
        Act::Pass | Act::CutAnswer | Act::Stale(_) | Act::Unconditional => {}
    }
    let dropped = if act == Act::Unconditional { "if-none-match:" } else { "connection:" };
    let answer = ask(upstream, &text, dropped, &body)?;
    let key = format!("{method} {path}");
    let mut stale = None;
    if method == "GET" && path.contains("list-type") {
        let mut seen = seen.lock().unwrap();
        let answers = seen.answers.entry(key).or_default();
        if let Act::Stale(age) = act {
            stale = answers.iter().rfind(|(at, _)| at.elapsed() >= age).map(|(_, answer)| answer.clone());
        }
        answers.push((Instant::now(), answer.clone()));
    }
    if act == Act::CutAnswer {
        let _ = client.shutdown(Shutdown::Both);
        return None;
    }
    client.write_all(&stale.unwrap_or(answer)).ok()?;
    client.shutdown(Shutdown::Write).ok()
}

fn head(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

fn ask(upstream: &str, head: &str, dropped: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut there = TcpStream::connect(upstream).ok()?;
    let mut lines: Vec<&str> = head.trim_end().lines().collect();
    lines.retain(|line| {
        let line = line.to_ascii_lowercase();
        !line.starts_with("connection:") && !line.starts_with(dropped)
    });
    let head = format!("{}\r\nconnection: close\r\n\r\n", lines.join("\r\n"));
    there.write_all(head.as_bytes()).ok()?;
    there.write_all(body).ok()?;
    let mut answer = Vec::new();
    there.read_to_end(&mut answer).ok()?;
    Some(answer)
}
