//! Slow, silent, endless or many clients, TLS, limits, and a server that shuts down under load.
//!
//! `TERCILE_TEST_SLOW` and `TERCILE_TEST_IDLE` are the numbers of slow clients and idle connections, and `TERCILE_TEST_STOPS`
//! is the number of shutdowns under load. The defaults suit any machine.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::wire::{connect, raw};
use common::{Place, Running, eventually};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring};

use crate::common;

const PRICE: &str = "/api/cluster_products_by_price_rating";
const ROW: &str = r#"[{"discounted_price":300,"rating":4.5}]"#;

fn many(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

fn head(length: &str) -> String {
    format!("POST {PRICE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n")
}

fn request() -> String {
    format!("{}{ROW}", head(&format!("Content-Length: {}", ROW.len())))
}

/// Sends one request; returns the head of the response, or `None` if the connection was cut.
fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(request().as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n = stream.read(&mut part).ok().filter(|n| *n > 0)?;
        answer.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() >= length.parse().unwrap() {
                return Some(head.to_owned());
            }
        }
    }
}

/// The 99th percentile of the latency of a hundred requests of a normal client.
fn p99(running: &Running) -> Duration {
    let mut stream = connect(running);
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            assert!(ask(&mut stream).is_some_and(|head| head.starts_with("HTTP/1.1 200")));
            start.elapsed()
        })
        .collect();
    times.sort();
    times[197]
}

fn resident(running: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// True if the server has closed an idle connection.
fn closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut rest = [0; 4096];
    loop {
        match stream.read(&mut rest) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn slow_and_silent_clients_are_closed_and_honest_ones_hardly_notice() {
    let place = Place::new();
    place.up(&[]).interrupt();
    let running = place.serve(&[]);
    let before = p99(&running);
    let (slow, idle) = (many("TERCILE_TEST_SLOW", 60), many("TERCILE_TEST_IDLE", 300));
    let memory = resident(&running);

    let start = Instant::now();
    // One byte at a time: of a head, of a body with a length, and of a chunked body.
    let beginnings = [String::new(), head("Content-Length: 1000"), head("Transfer-Encoding: chunked")];
    let trickle = ["GET / HTTP/1.1\r\nX: ", "[", "1\r\n[\r\n"];
    let mut slow: Vec<(TcpStream, &str)> = (0..slow)
        .map(|i| {
            let mut stream = connect(&running);
            stream.write_all(beginnings[i % 3].as_bytes()).unwrap();
            (stream, trickle[i % 3])
        })
        .collect();
    let many_at_once = slow.len() + idle;
    let mut idle: Vec<TcpStream> = (0..idle).map(|_| connect(&running)).collect();
    assert!(ask(idle.last_mut().unwrap()).is_some(), "one of them has asked something before");
    let mut during = Vec::new();
    let mut peak = memory;
    while !slow.is_empty() || !idle.is_empty() {
        for (stream, bytes) in &mut slow {
            let _ = stream.write_all(bytes.as_bytes());
        }
        slow.retain_mut(|(stream, _)| !closed(stream));
        idle.retain_mut(|stream| !closed(stream));
        during.push(p99(&running));
        peak = peak.max(resident(&running));
        std::thread::sleep(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(60), "{} and {} are still there", slow.len(), idle.len());
    }
    let took = start.elapsed();
    // The median ignores outliers caused by other load.
    during.sort();
    let during = during[during.len() / 2];
    eprintln!("all closed after {took:.1?}; p99 {before:.1?} before, {during:.1?} beside them; {memory} kB, {peak} kB");
    assert!(took < Duration::from_secs(12), "{took:?}");
    // A connection has a task and a head buffer; above 8,192 connections the others are closed.
    let most = 32 * 1024 + 12 * many_at_once.min(8192) as u64;
    assert!(peak < memory + most, "{memory} kB before, {peak} kB at most, not {most} more");
    assert!(during < before * 2 + Duration::from_millis(20), "{before:?} before, {during:?} beside them");
}

#[test]
fn bodies_without_end_are_refused() {
    let place = Place::new();
    let running = place.serve(&[]);
    let memory = resident(&running);
    let mut stream = connect(&running);
    stream.write_all(head("Transfer-Encoding: chunked").as_bytes()).unwrap();
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let start = Instant::now();
    while stream.write_all(chunk.as_bytes()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20), "it still reads");
    }
    assert!(resident(&running) < memory + 200 * 1024);
    let mut late = connect(&running);
    late.write_all(format!("{}[", head("Content-Length: 100")).as_bytes()).unwrap();
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("the body did not arrive in time"), "{answer}");
    let mut endless = connect(&running);
    let _ = endless.write_all("GET / HTTP/1.1\r\n".as_bytes());
    let start = Instant::now();
    while endless.write_all(b"X-Header: and so on and so on\r\n").is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10), "it still reads");
    }
    raw(&running, &["GET /health/live HTTP/1.1", "Host: localhost"], "");
}

#[test]
fn one_connection_too_many_ends_the_one_that_is_idle_longest() {
    let place = Place::new();
    let running = place.serve(&["--max-connections", "3"]);
    let mut first = connect(&running);
    assert!(ask(&mut first).is_some());
    // The server notes the end of an exchange only after the client has the answer; until then the connection is busy.
    std::thread::sleep(Duration::from_millis(200));
    let mut others: Vec<TcpStream> = (0..3).map(|_| connect(&running)).collect();
    eventually("the end of the first", || closed(&mut first));
    assert!(!others.iter_mut().any(closed));
}

#[test]
fn no_request_is_dropped_when_the_server_stops() {
    let place = Place::new();
    place.up(&[]).interrupt();
    for round in 0..many("TERCILE_TEST_STOPS", 3) {
        let mut running = place.serve(&["--drain-notice", "0.3"]);
        let (stop, answered, told) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let mut clients = Vec::new();
            for _ in 0..8 {
                clients.push(scope.spawn(|| {
                    'connections: while let Ok(mut stream) = TcpStream::connect(&running.address["http://".len()..]) {
                        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                        while !stop.load(Ordering::SeqCst) {
                            let head = ask(&mut stream).expect("a request was dropped");
                            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                            answered.fetch_add(1, Ordering::SeqCst);
                            if head.contains("connection: close") {
                                told.fetch_add(1, Ordering::SeqCst);
                                continue 'connections;
                            }
                        }
                        break;
                    }
                }));
            }
            std::thread::sleep(Duration::from_millis(500));
            running.signal("-TERM");
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(running.get("/health/ready").status, 503, "readiness tells first");
            assert_eq!(running.get("/health/live").status, 200);
            for client in clients {
                client.join().unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        assert_eq!(running.wait().code(), Some(0), "round {round}");
        let (answered, told) = (answered.into_inner(), told.into_inner());
        assert!(answered > 100 && told > 0, "{answered} answered, {told} told to close");
    }
}

#[test]
fn a_terminal_that_closes_is_no_sudden_end() {
    let place = Place::new();
    let mut running = place.serve(&[]);
    running.signal("-HUP");
    assert_eq!(running.wait().code(), Some(0));
}

#[test]
fn limits_hold_for_each_caller() {
    let place = Place::new();
    let keys = ["a", "b"].map(|name| place.ok(&["keys", "create", name, "--scope", "read"]).trim_end().to_owned());
    let running = place.serve(&["--require-keys", "--rate-limit", "5"]);
    let asked =
        |key: &str| raw(&running, &["GET /api/segments HTTP/1.1", "Host: localhost", &format!("X-API-Key: {key}")], "");
    let answers: Vec<_> = (0..20).map(|_| asked(&keys[0])).collect();
    let refused = answers.iter().find(|answer| answer.status != 200).expect("one too many");
    refused.problem(429);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(asked(&keys[1]).status, 200, "another key has limits of its own");
    assert_eq!(asked("wrong").status, 401);
    assert!((0..20).any(|_| asked("guess").status == 429), "guessing is limited too");
    assert!((0..20).all(|_| raw(&running, &["GET /health/live HTTP/1.1", "Host: localhost"], "").status == 200));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(asked(&keys[0]).status, 200);
}

#[test]
fn other_origins_may_ask_if_they_were_named() {
    let place = Place::new();
    let running = place.serve(&["--cors-origin", "https://shop.test"]);
    let preflight = |origin: &str| {
        let wish = "Access-Control-Request-Method: POST";
        raw(
            &running,
            &[&format!("OPTIONS {PRICE} HTTP/1.1"), "Host: localhost", wish, &format!("Origin: {origin}")],
            "",
        )
    };
    let asked = |origin: &str| {
        raw(&running, &["GET /api/segments HTTP/1.1", "Host: localhost", &format!("Origin: {origin}")], "")
    };
    assert_eq!(preflight("https://shop.test").status, 204);
    for answer in [preflight("https://shop.test"), asked("https://shop.test")] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.test"), "{}", answer.head);
        assert_eq!(answer.header("vary"), Some("origin"));
    }
    for answer in [preflight("https://evil.test"), asked("https://shop.test.evil.test"), asked("null")] {
        assert_eq!(answer.header("access-control-allow-origin"), None, "{}", answer.head);
    }
    let everybody = Place::new();
    let running = everybody.serve(&["--cors-origin", "*"]);
    running.said("warning: --cors-origin '*' without keys: every web page");
    everybody.ok(&["keys", "create", "reader", "--scope", "read"]);
    let keyed = everybody.serve(&["--cors-origin", "*", "--require-keys"]);
    assert!(!keyed.stderr().contains("cors"), "{}", keyed.stderr());
    let silent = Place::new();
    let running = silent.serve(&[]);
    let answer = raw(&running, &["GET / HTTP/1.1", "Host: localhost", "Origin: https://shop.test"], "");
    assert!(!answer.head.contains("access-control") && !answer.head.contains("vary"), "{}", answer.head);
}

/// A new certificate for localhost and its key, in PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// The response to a client that trusts only this certificate, and the negotiated protocol.
fn https(running: &Running, trusted: &str) -> Result<(String, Option<Vec<u8>>), std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let socket = TcpStream::connect(running.address.strip_prefix("https://").unwrap())?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((answer, stream.conn.alpn_protocol().map(<[u8]>::to_vec)))
}

#[test]
fn tls_serves_from_files_and_takes_over_new_ones() {
    let place = Place::new();
    let (first, key) = certificate();
    place.write("cert.pem", &first);
    place.write("key.pem", &key);
    place.fails(1, &["serve", "--bind", "127.0.0.1:0", "--tls-cert", "key.pem", "--tls-key", "key.pem"]);
    place.fails(1, &["serve", "--bind", "127.0.0.1:0", "--tls-cert", "cert.pem", "--tls-key", "none.pem"]);
    place.fails(2, &["serve", "--tls-cert", "cert.pem"]);
    let running = place.serve(&["--tls-cert", "cert.pem", "--tls-key", "key.pem", "--handshake-timeout", "1"]);
    let (answer, protocol) = https(&running, &first).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("is running.\"}"), "{answer}");
    assert_eq!(protocol.as_deref(), Some(&b"http/1.1"[..]));

    // Stalled handshakes block no other client and time out.
    let address = running.address.strip_prefix("https://").unwrap();
    let doctor = place.run(&["doctor", "--bind", address]).stdout;
    assert!(doctor.contains(&format!("a tercile serves at {address}")), "{doctor}");
    let mut silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    let start = Instant::now();
    assert!(https(&running, &first).is_ok() && start.elapsed() < Duration::from_secs(1));
    eventually("the end of those that say nothing", || silent.iter_mut().all(closed));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    let (second, key) = certificate();
    place.write("cert.pem", "no certificate");
    running.said("the certificate stays as it was");
    assert!(https(&running, &first).is_ok());
    place.write("key.pem", key);
    place.write("cert.pem", &second);
    running.said("serving with the new certificate");
    assert!(https(&running, &first).is_err());
    assert!(https(&running, &second).is_ok());
}

/// Sends the head, waits until the answer is generated, and only then sends the body.
fn late_body(running: &Running, path: &str, kind: &str, bytes: usize) -> String {
    let mut stream = connect(running);
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let piece = vec![b'x'; 64 * 1024];
    for at in (0..bytes).step_by(piece.len()) {
        stream.write_all(&piece[..piece.len().min(bytes - at)]).expect("the server still takes what comes");
        if at == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // The same connection accepts the next request.
    stream.write_all(request().replace("HTTP/1.1", "HTTP/1.1\r\nConnection: close").as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    answers
}

#[test]
fn who_is_refused_by_the_head_may_send_the_rest_and_reads_why() {
    let place = Place::new();
    place.up(&[]).interrupt();
    let bytes = 8 * 1024 * 1024;
    let running = place.serve(&["--max-body-bytes", "1000000"]);
    let predict = "/api/segments/price_rating/predict";
    for (path, kind, status) in [
        (PRICE, "text/plain", "415"),
        (predict, "image/png", "415"),
        (predict, "application/json", "413"),
        (predict, "text/csv", "413"),
        ("/api/segments/none/predict", "text/csv", "404"),
        ("/nowhere", "text/csv", "404"),
    ] {
        let answers = late_body(&running, path, kind, bytes);
        assert!(answers.starts_with(&format!("HTTP/1.1 {status}")), "{path} {kind}: {answers}");
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{path} {kind}: {answers}");
    }
    drop(running);
    place.ok(&["keys", "create", "reader", "--scope", "read"]);
    let running = place.serve(&["--require-keys"]);
    assert!(late_body(&running, PRICE, "application/json", bytes).starts_with("HTTP/1.1 401"));
}
