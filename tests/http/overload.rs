//! Overload of memory and processors: unread answers, accumulating bodies, and probes that must still be answered.
//! `TERCILE_TEST_POINTS` is the number of clients that request points at the same time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::http2::Http2;
use common::wire::{connect, raw};
use common::{Place, Running, eventually};

use crate::common;

const PRICE: &str = "/api/cluster_products_by_price_rating";
const ROW: &str = r#"{"discounted_price":300,"rating":4.5}"#;
const MIB: usize = 1024 * 1024;
/// Memory in MiB that the process may need beside the budget: for connections, and freed memory that the allocator keeps.
const BESIDES: usize = 16;

/// A store with models, without a training.
fn trained() -> Place {
    let place = Place::new();
    place.copy_fixture("store-method-1", "store");
    place
}

/// A memory figure of a process in MiB, such as `RssAnon`.
fn memory(running: &Running, figure: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)).unwrap();
    line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<usize>().unwrap() / 1024
}

/// The result of some work, and the greatest anonymous memory of a process meanwhile in MiB. Anonymous memory is what the process
/// allocates; pages of the program and its data are loaded and dropped by the system.
fn most_memory<T>(running: &Running, work: impl FnOnce() -> T) -> (T, usize) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::SeqCst) {
                most = most.max(memory(running, "RssAnon"));
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        let result = work();
        done.store(true, Ordering::SeqCst);
        (result, sampler.join().unwrap())
    })
}

/// A metric without labels.
fn metric(running: &Running, name: &str) -> usize {
    let text = running.get("/metrics").text;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or_else(|| panic!("{text}"));
    line.parse().unwrap()
}

/// The status of a small prediction, and whether it has a Retry-After header.
fn predict(running: &Running) -> (u16, bool) {
    let answer = raw(
        running,
        &[&format!("POST {PRICE} HTTP/1.1"), "Host: localhost", "Content-Type: application/json"],
        &format!("[{ROW}]"),
    );
    (answer.status, answer.header("retry-after").is_some())
}

#[test]
fn a_request_counts_until_its_answer_is_taken() {
    let place = trained();
    let running = place.serve(&["--max-concurrent", "5", "--idle-timeout", "60"]);
    let mut client = Http2::connect(&running, 0);
    let streams: Vec<u32> = (0..20).map(|_| client.ask("GET", "/api/segments/price_rating/points", b"")).collect();
    let statuses = client.statuses(20);
    assert_eq!(statuses, [[200; 5].as_slice(), &[429; 15]].concat());
    assert_eq!(client.most_streams, Some(100));
    // The answers are unread, so further requests of this address are rejected with any protocol.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(predict(&running), (429, true));
    assert_eq!(running.get("/health/live").status, 200);
    client.take(0, 100_000_000);
    for stream in streams {
        client.take(stream, 10_000_000);
    }
    eventually("the ends of all answers", || {
        client.read();
        client.ended.len() == 20
    });
    eventually("a place for a request", || predict(&running).0 == 200);
    // With a window of one byte the whole of a small answer is in the connection's buffer, and its body is gone.
    let mut client = Http2::connect(&running, 1);
    for _ in 0..20 {
        client.ask("GET", "/api/segments", b"");
    }
    assert_eq!(client.statuses(20), [[200; 5].as_slice(), &[429; 15]].concat());
    assert_eq!(predict(&running).0, 429);
    drop(client);
    eventually("a place for a request", || predict(&running).0 == 200);
    // Answers are released when their connection closes.
    let mut client = Http2::connect(&running, 0);
    for _ in 0..5 {
        client.ask("GET", "/api/segments/price_rating/points", b"");
    }
    assert_eq!(client.statuses(5), [200; 5]);
    assert_eq!(predict(&running).0, 429);
    drop(client);
    eventually("a place for a request", || predict(&running).0 == 200);
}

#[test]
fn a_client_that_takes_nothing_is_closed_however_alive_it_looks() {
    let place = Place::new();
    let running = place.serve(&["--idle-timeout", "1"]);
    let (mut silent, mut honest) = (Http2::connect(&running, 0), Http2::connect(&running, 0));
    let [_, stream] = [&mut silent, &mut honest].map(|client| client.ask("GET", "/api/segments", b""));
    assert_eq!((silent.statuses(1), honest.statuses(1)), (vec![200], vec![200]));
    honest.take(stream, 1_000_000);
    let start = Instant::now();
    eventually("the end of a connection", || {
        for client in [&mut silent, &mut honest] {
            client.ping();
            client.read();
        }
        silent.closed
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(honest.ended == [stream] && !honest.closed, "who took the answer may go on");
}

#[test]
fn answers_that_nobody_takes_share_the_memory_budget() {
    let place = trained();
    let running = place.serve(&["--memory-limit", "16MB", "--idle-timeout", "60"]);
    assert_eq!(predict(&running), (200, false));
    let before = memory(&running, "RssAnon");
    let body = format!("[{}]", vec![ROW; 220].join(","));
    // Their answers would exceed 50 MB.
    let mut clients: Vec<Http2> = (0..12).map(|_| Http2::connect(&running, 0)).collect();
    let (statuses, after) = most_memory(&running, || {
        for client in &mut clients {
            for _ in 0..100 {
                client.ask("POST", PRICE, body.as_bytes());
            }
        }
        clients.iter_mut().flat_map(|client| client.statuses(100)).collect::<Vec<u16>>()
    });
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
    assert_eq!(count(200) + count(503), statuses.len(), "{statuses:?}");
    // If not even a rejection fits, the connection is closed and its memory is released.
    let closed = clients.iter().filter(|client| client.closed).count();
    eprintln!(
        "{} answers, {} refusals, {closed} closed: {before} MiB before, {after} MiB at most",
        count(200),
        count(503)
    );
    assert!(count(200) > 100 && count(503) > 10, "{} answers, {} refusals", count(200), count(503));
    assert!(after < before + 16 + BESIDES, "{before} MiB before, {after} MiB at most");
    assert_eq!(running.get("/health/live").status, 200);
    drop(clients);
    eventually("memory for the next one", || predict(&running) == (200, false));
    assert_eq!(metric(&running, "tercile_http_memory_limit_bytes"), 16_000_000);
    eventually("the budget's end", || metric(&running, "tercile_http_memory_bytes") < 100_000);
}

/// Answers that nobody takes fill the budget: monitoring goes on, over HTTP/1.1 and HTTP/2.
#[test]
fn probes_and_metrics_do_not_depend_on_the_memory_budget() {
    let place = trained();
    let running = place.serve(&["--memory-limit", "16MB", "--idle-timeout", "60"]);
    let body = format!("[{}]", vec![ROW; 220].join(","));
    let mut clients = Vec::new();
    // First large answers, then small ones in what is left.
    for body in [body, format!("[{ROW}]")] {
        loop {
            let mut client = Http2::connect(&running, 0);
            for asked in 1..=50 {
                client.ask("POST", PRICE, body.as_bytes());
                if client.statuses(asked).contains(&503) {
                    break;
                }
            }
            let full = client.statuses.values().any(|status| *status == 503);
            clients.push(client);
            if full {
                break;
            }
        }
    }
    assert_eq!(predict(&running), (503, true));
    for path in ["/health/live", "/health/ready", "/metrics"] {
        for _ in 0..20 {
            assert_eq!(running.get(path).status, 200, "{path}");
        }
        let mut client = Http2::connect(&running, 1_000_000);
        client.ask("GET", path, b"");
        assert_eq!(client.statuses(1), [200], "{path} over HTTP/2");
    }
    let used = metric(&running, "tercile_http_memory_bytes");
    assert!(used > 15_000_000, "{used}");
    drop(clients);
    eventually("the budget's end", || metric(&running, "tercile_http_memory_bytes") < 100_000);
    assert_eq!(predict(&running), (200, false));
}

#[test]
fn bodies_share_the_memory_budget_as_they_arrive() {
    let place = trained();
    let running = place.serve(&["--memory-limit", "32MiB", "--body-timeout", "60"]);
    assert_eq!(predict(&running), (200, false));
    let before = memory(&running, "RssAnon");
    // A claimed length costs nothing; a body that can never fit is rejected before it is sent.
    let head = |length: usize| {
        format!(
            "POST {PRICE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let mut claims: Vec<TcpStream> = (0..40).map(|_| connect(&running)).collect();
    claims.iter_mut().for_each(|claim| claim.write_all(format!("{}[", head(8 * MIB)).as_bytes()).unwrap());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(predict(&running), (200, false));
    let mut whole = connect(&running);
    whole.write_all(format!("{}[", head(60 * MIB)).as_bytes()).unwrap();
    assert_eq!(status(&mut whole), 503);
    drop(claims);

    // The last part of each body is sent when all others have reached the same point.
    let most = [b"[".as_slice(), &vec![b' '; 8 * MIB - 2 - ROW.len()]].concat();
    let mut clients: Vec<TcpStream> = (0..12).map(|_| connect(&running)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        // With a length, and chunked.
        let part = if i % 2 == 0 {
            [head(8 * MIB).as_bytes(), &most].concat()
        } else {
            let head = head(0).replace("Content-Length: 0", "Transfer-Encoding: chunked");
            [format!("{head}{:x}\r\n", 8 * MIB).as_bytes(), &most].concat()
        };
        client.write_all(&part).unwrap();
    }
    eventually("memory to be used", || metric(&running, "tercile_http_memory_bytes") > 20 * MIB);
    assert_eq!(predict(&running), (200, false), "what is small still goes");
    let (statuses, after) = most_memory(&running, || -> Vec<u16> {
        let finish = |(i, client): (usize, &mut TcpStream)| {
            let rest = format!("{ROW}]{}", if i % 2 == 0 { "" } else { "\r\n0\r\n\r\n" });
            client.write_all(rest.as_bytes()).unwrap();
            status(client)
        };
        clients.iter_mut().enumerate().map(finish).collect()
    });
    eprintln!("{statuses:?}: {before} MiB before, {after} MiB at most");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert!(after < before + 32 + BESIDES, "{before} MiB before, {after} MiB at most");
    eventually("the budget's end", || metric(&running, "tercile_http_memory_bytes") < 100_000);
}

/// The status of the next answer; a 503 must have a Retry-After header.
fn status(client: &mut TcpStream) -> u16 {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = client.read(&mut part).unwrap();
        assert!(read > 0, "closed without an answer");
        answer.extend(&part[..read]);
    }
    let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(status != 503 || head.contains("\r\nretry-after: "), "{head}");
    status
}

#[test]
fn rows_that_stream_share_the_memory_budget() {
    let place = trained();
    let running = place.serve(&["--memory-limit", "64MiB", "--body-timeout", "60"]);
    let path = "/api/segments/price_rating/predict";
    let rows = format!("{ROW}\n").repeat(200_000);
    let streamed = running.post_as(path, "application/x-ndjson", rows.as_bytes());
    assert_eq!((streamed.status, streamed.text.lines().count()), (200, 200_000));
    let before = memory(&running, "RssAnon");
    // One row that exceeds a stream's budget, several of which exceed the total budget.
    let row = format!("{{\"discounted_price\":300,\"rating\":4.5,\"note\":\"{}\"}}\n", "x".repeat(20 * MIB));
    let post = || running.post_as(path, "application/x-ndjson", row.as_bytes()).status;
    let (statuses, after): (Vec<u16>, usize) = most_memory(&running, || {
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(post)).collect();
            asked.into_iter().map(|one| one.join().unwrap()).collect()
        })
    });
    eprintln!("{statuses:?}: {before} MiB before, {after} MiB at most");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)) && statuses.contains(&503), "{statuses:?}");
    assert!(after < before + 64 + BESIDES, "{before} MiB before, {after} MiB at most");
    assert_eq!(running.post_as(path, "application/x-ndjson", rows.as_bytes()).status, 200);
}

/// Bodies from many clients at once, of which few fit: neither partial bodies nor the buffers of connections whose bodies are
/// read to their end after a refusal take much memory beside the budget.
#[test]
fn many_uploads_at_once_stay_within_the_memory_budget() {
    let place = trained();
    let running = place.serve(&["--memory-limit", "64MiB", "--body-timeout", "60"]);
    assert_eq!(predict(&running), (200, false));
    let before = memory(&running, "RssAnon");
    let body = format!("[{}{ROW}]", " ".repeat(8 * MIB));
    let upload = || {
        let mut client = connect(&running);
        let head = "Host: localhost\r\nContent-Type: application/json";
        write!(client, "POST {PRICE} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        client.write_all(body.as_bytes()).unwrap();
        status(&mut client)
    };
    let (statuses, after): (Vec<u16>, usize) = most_memory(&running, || {
        std::thread::scope(|scope| {
            let uploads: Vec<_> = (0..60).map(|_| scope.spawn(upload)).collect();
            uploads.into_iter().map(|upload| upload.join().unwrap()).collect()
        })
    });
    let count = |status: u16| statuses.iter().filter(|found| **found == status).count();
    eprintln!("{} answers, {} refusals: {before} MiB before, {after} MiB at most", count(200), count(503));
    assert!(count(200) > 0 && count(503) > 0 && count(200) + count(503) == 60, "{statuses:?}");
    assert!(after < before + 64 + BESIDES, "{before} MiB before, {after} MiB at most");
}

#[test]
fn probes_do_not_wait_for_the_api() {
    let place = trained();
    let running = place.serve(&["--enable-sql", "--header-timeout", "60", "--idle-timeout", "60"]);
    let points = "/api/segments/price_rating/points";
    let tag = running.get(points).header("etag").unwrap().to_owned();
    assert_eq!(running.call("GET", points, &[("if-none-match", &tag)]).status, 304);
    let many = std::env::var("TERCILE_TEST_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let done = AtomicBool::new(false);
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let lines =
            ["Host: localhost".to_owned(), "Connection: close".to_owned(), String::new(), String::new()].join("\r\n");
        let load = |path: &'static str, clients: usize| {
            let (lines, running, done) = (lines.clone(), &running, &done);
            move || {
                while !done.load(Ordering::SeqCst) {
                    let mut all: Vec<TcpStream> = (0..clients).map(|_| connect(running)).collect();
                    for client in &mut all {
                        client.write_all(format!("GET {path} HTTP/1.1\r\n{lines}").as_bytes()).unwrap();
                    }
                    let mut answer = Vec::new();
                    for client in &mut all {
                        answer.clear();
                        client.read_to_end(&mut answer).unwrap();
                        assert!(answer.starts_with(b"HTTP/1.1 200") || answer.starts_with(b"HTTP/1.1 503"));
                    }
                }
            }
        };
        scope.spawn(load("/api/segments/price_rating/points", many));
        scope.spawn(load("/api/status", 50));
        scope.spawn(load("/metrics", 50));
        std::thread::sleep(Duration::from_millis(300));
        let probe = |path: &str| {
            let start = Instant::now();
            let answer = raw(&running, &[&format!("GET {path} HTTP/1.1"), "Host: localhost"], "");
            assert_eq!(answer.status, 200);
            start.elapsed()
        };
        let times = (0..200).map(|i| {
            std::thread::sleep(Duration::from_millis(10));
            probe(if i % 2 == 0 { "/health/live" } else { "/health/ready" })
        });
        let times = times.collect();
        done.store(true, Ordering::SeqCst);
        times
    });
    times.sort();
    let (p50, p99) = (times[100], times[197]);
    eprintln!("probes beside {many} clients that ask for points: p50 {p50:.1?}, p99 {p99:.1?}");
    assert!(p99 < Duration::from_millis(100), "p50 {p50:?}, p99 {p99:?}");
}

#[test]
fn a_connection_that_began_with_a_probe_is_as_good_as_any() {
    let place = trained();
    let running = place.serve(&[]);
    let mut client = connect(&running);
    // The first request arrives in two parts, and others follow.
    client.write_all(b"GET /hea").unwrap();
    std::thread::sleep(Duration::from_millis(30));
    client.write_all(b"lth/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(status(&mut client), 200);
    let body = format!("[{ROW}]");
    let head =
        format!("POST {PRICE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n");
    client.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("}]"), "{answer}");
}

#[test]
fn an_upload_over_http2_is_no_endless_head() {
    let place = trained();
    let running = place.serve(&[]);
    let mut client = Http2::connect(&running, 10_000_000);
    client.take(0, 100_000_000);
    let body = format!("[{}]", vec![ROW; 20_000].join(","));
    client.ask("POST", PRICE, body.as_bytes());
    assert_eq!(client.statuses(1), [200]);
    eventually("the whole answer", || {
        client.read();
        client.ended.len() == 1
    });
}
