//! Policies of the server over HTTP/1.1: timeouts, limits, priority, shutdown.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends with a panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{eventually, head, quick, serve, until_closed};
use futures::{StreamExt as _, stream};
use poem::endpoint::make;
use poem::http::StatusCode;
use poem::{Body, Endpoint, IntoResponse as _, Request, Response, Route, get, post};
use tercile_http::{Exchange, Observed, ResponseObserver, Settings, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn hello() -> impl Endpoint {
    Route::new().at("/", get(make(|_| async { "hello" })))
}

#[tokio::test]
async fn each_kind_of_silence_has_its_timeout() {
    let running = serve(hello(), quick()).await;
    let between = |least: u64, took: Duration| {
        assert!(took >= Duration::from_millis(least) && took < Duration::from_millis(least + 900), "{least}: {took:?}");
    };
    // Nothing at all; a head that never ends; a request and then nothing.
    let mut silent = running.connect().await;
    between(300, until_closed(&mut silent).await);
    let (mut endless, start) = (running.connect().await, Instant::now());
    while endless.write_all(b"X").await.is_ok() && start.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    between(300, start.elapsed());
    let mut idle = running.connect().await;
    idle.write_all(GET).await.unwrap();
    assert!(head(&mut idle).await.starts_with("HTTP/1.1 200"));
    between(600, until_closed(&mut idle).await);
}

#[tokio::test]
async fn heads_have_a_limit() {
    let running = serve(hello(), Settings { max_header_bytes: 20_000, ..quick() }).await;
    let mut endless = running.connect().await;
    let (start, line) = (Instant::now(), [b'x'; 1000]);
    endless.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
    let mut sent = 0;
    while endless.write_all(&line).await.is_ok() {
        sent += line.len();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(sent < 1_000_000 && start.elapsed() < Duration::from_millis(300), "{sent} in {:?}", start.elapsed());
}

#[tokio::test]
async fn a_slow_body_ends_and_an_unread_one_is_drained() {
    let read = |request: Request| async move {
        let exchange = request.extensions().get::<Exchange>().cloned().unwrap();
        let failed = request.into_body().into_bytes().await.is_err();
        let late = failed && exchange.body_timed_out();
        Response::builder().status(if late { StatusCode::REQUEST_TIMEOUT } else { StatusCode::OK }).finish()
    };
    let refuse = |_: Request| async { StatusCode::UNAUTHORIZED.into_response() };
    let routes = Route::new().at("/", get(make(|_| async { "hello" })).post(make(read))).at("/no", post(make(refuse)));
    let running = serve(routes, quick()).await;
    let mut slow = running.connect().await;
    slow.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n[").await.unwrap();
    let start = Instant::now();
    let trickle = async {
        while slow.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let mut status = [0; 12];
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(1), slow.read_exact(&mut status)).await {
                return status;
            }
        }
        panic!("closed without an answer");
    };
    assert_eq!(&trickle.await, b"HTTP/1.1 408");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // A client that sends faster than the minimum rate may take longer than the timeout.
    let mut steady = running.connect().await;
    steady.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n").await.unwrap();
    for _ in 0..10 {
        steady.write_all(&[b'x'; 1000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert!(head(&mut steady).await.starts_with("HTTP/1.1 200"));
    // A refused body may be sent, and the connection goes on.
    let mut refused = running.connect().await;
    refused.write_all(b"POST /no HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    refused.write_all(&vec![b'x'; 8_000_000]).await.unwrap();
    refused.write_all(GET).await.unwrap();
    assert!(head(&mut refused).await.starts_with("HTTP/1.1 401"));
    assert!(head(&mut refused).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn one_connection_too_many_ends_the_one_that_is_idle_longest() {
    let running = serve(hello(), Settings { max_connections: 3, ..quick() }).await;
    let mut first = running.connect().await;
    first.write_all(GET).await.unwrap();
    head(&mut first).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(running.connect().await);
    }
    assert!(until_closed(&mut first).await < Duration::from_millis(200));
    for other in &mut others {
        other.write_all(GET).await.unwrap();
        assert!(head(other).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(running.connections.count(), 3);
}

/// Counts what happens to a response.
#[derive(Clone, Default)]
struct Counted {
    sent: Arc<AtomicUsize>,
    completed: Arc<AtomicBool>,
    dropped: Arc<AtomicBool>,
}

/// The observer itself.
struct Counting(Counted);

impl ResponseObserver for Counting {
    fn sent(&self, bytes: usize) {
        self.0.sent.fetch_add(bytes, SeqCst);
    }

    fn completed(&self) {
        self.0.completed.store(true, SeqCst);
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.0.dropped.store(true, SeqCst);
    }
}

/// Answers with a stream of pieces, observed.
fn streamed(counted: &Counted, pieces: usize) -> impl Endpoint + use<> {
    let counted = counted.clone();
    make(move |_| {
        let counted = counted.clone();
        async move {
            let pieces = stream::iter((0..pieces).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 65_536])));
            let mut response = Response::builder().body(Body::from_bytes_stream(pieces));
            response.extensions_mut().insert(Observed::by(Counting(counted)));
            response
        }
    })
}

#[tokio::test]
async fn a_response_is_pending_until_it_is_read_and_who_reads_nothing_is_closed() {
    let counted = Counted::default();
    let running = serve(Route::new().at("/", get(streamed(&counted, 1000))), quick()).await;
    let mut stuck = running.connect().await;
    stuck.write_all(GET).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!counted.dropped.load(SeqCst));
    eventually("end of who reads nothing", || counted.dropped.load(SeqCst)).await;
    assert!(!counted.completed.load(SeqCst) && counted.sent.load(SeqCst) < 65_536_000, "it is truncated");
    eventually("end of the connection", || running.connections.count() == 0).await;

    let counted = Counted::default();
    let running = serve(Route::new().at("/", get(streamed(&counted, 100))), quick()).await;
    assert!(running.get("/").await.len() > 6_553_600);
    eventually("end of the response", || counted.dropped.load(SeqCst)).await;
    assert!(counted.completed.load(SeqCst) && counted.sent.load(SeqCst) == 6_553_600);
}

#[tokio::test]
async fn a_response_that_fails_does_not_look_complete() {
    let pieces = || {
        stream::iter([Ok("one"), Ok("two"), Err(std::io::Error::other("broken"))]).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            piece
        })
    };
    let failing = make(move |_| async move { Body::from_bytes_stream(pieces()) });
    let running = serve(Route::new().at("/", get(failing)), quick()).await;
    let answer = running.get("/").await;
    assert!(answer.contains("two") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

/// Sets a flag when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[tokio::test]
async fn a_handler_whose_client_is_gone_is_dropped() {
    let (begun, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let flags = (Arc::clone(&begun), Arc::clone(&gone));
    let forever = move |_| {
        let (begun, gone) = flags.clone();
        async move {
            let _gone = Flag(gone);
            begun.store(true, SeqCst);
            std::future::pending::<()>().await;
        }
    };
    for priority_prefix in [None, Some("/health/")] {
        begun.store(false, SeqCst);
        gone.store(false, SeqCst);
        let routes =
            Route::new().at("/", get(make(forever.clone()))).at("/health/live", get(make(|_| async { "live" })));
        let running = serve(routes, Settings { priority_prefix, ..quick() }).await;
        let mut client = running.connect().await;
        if priority_prefix.is_some() {
            client.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            head(&mut client).await;
        }
        client.write_all(GET).await.unwrap();
        eventually("request", || begun.load(SeqCst)).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!gone.load(SeqCst), "a handler may take longer than the idle timeout");
        drop(client);
        eventually("end of the handler", || gone.load(SeqCst)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_with_priority_wait_for_nothing() {
    let block = make(|_| async { std::thread::sleep(Duration::from_secs(1)) });
    let routes = Route::new().at("/", get(block)).at("/health/live", get(make(|_| async { "live" })));
    let running = serve(routes, Settings { priority_prefix: Some("/health/"), ..quick() }).await;
    let address = running.address;
    let blocking = tokio::spawn(async move { running.get("/").await });
    // The clients have a thread of their own, because the runtime is blocked.
    let asked = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        let mut client = std::net::TcpStream::connect(address).unwrap();
        // In two parts.
        client.write_all(b"GET /hea").unwrap();
        std::thread::sleep(Duration::from_millis(20));
        client.write_all(b"lth/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        (answer, start.elapsed())
    });
    let (answer, took) = tokio::task::spawn_blocking(|| asked.join().unwrap()).await.unwrap();
    assert!(answer.ends_with("live") && took < Duration::from_millis(500), "{took:?}: {answer}");
    assert!(blocking.await.unwrap().starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn shutdown_drops_no_request() {
    let slow = make(|_| async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        "slow"
    });
    let endless = |request: Request| async move {
        let exchange = request.extensions().get::<Exchange>().cloned().unwrap();
        let pieces = stream::repeat_with(|| Ok::<_, std::io::Error>("x")).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            piece
        });
        Body::from_bytes_stream(pieces.take_until(Box::pin(async move { exchange.shutdown().await })))
    };
    let routes = Route::new()
        .at("/", get(make(|_| async { "hello" })))
        .at("/slow", get(slow))
        .at("/endless", get(make(endless)));
    let notice = Duration::from_millis(200);
    let running = serve(routes, Settings { drain_notice: notice, ..Settings::default() }).await;
    let (address, connections) = (running.address, running.connections.clone());
    let get = move |path: &'static str| async move {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Keep-alive: the connection ends by the shutdown.
        stream.read_to_string(&mut answer).await.expect("it is not reset");
        Some(answer)
    };
    let mut idle = running.connect().await;
    idle.write_all(GET).await.unwrap();
    assert!(!head(&mut idle).await.contains("connection: close"));
    let mut unused = running.connect().await;
    let [slow, endless] = ["/slow", "/endless"].map(|path| tokio::spawn(get(path)));
    eventually("connections", || connections.count() == 4).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopped = running.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let during = get("/").await.unwrap();
    assert!(during.contains("connection: close") && during.ends_with("hello"), "{during}");
    let start = Instant::now();
    until_closed(&mut idle).await;
    until_closed(&mut unused).await;
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    assert!(slow.await.unwrap().unwrap().ends_with("slow"));
    assert!(endless.await.unwrap().unwrap().ends_with("0\r\n\r\n"), "an endless response ends properly");
    tokio::time::timeout(Duration::from_secs(2), stopped).await.unwrap().unwrap().unwrap();
    assert!(get("/").await.is_none() && connections.count() == 0);
}

/// `TERCILE_TEST_STOPS` is the number of shutdowns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_under_load_drops_no_request() {
    use std::io::{Read as _, Write as _};
    let stops = std::env::var("TERCILE_TEST_STOPS").ok().and_then(|stops| stops.parse().ok()).unwrap_or(3);
    let (answered, mut dropped) = (Arc::new(AtomicUsize::new(0)), 0);
    for _ in 0..stops {
        let running =
            serve(hello(), Settings { drain_notice: Duration::from_millis(100), ..Settings::default() }).await;
        let address = running.address;
        let client = |answered: Arc<AtomicUsize>| {
            move || {
                // The client reconnects for each request, as far as it can connect.
                while let Ok(mut stream) = std::net::TcpStream::connect(address) {
                    let mut answer = String::new();
                    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    if asked.and_then(|()| stream.read_to_string(&mut answer)).is_err() || !answer.ends_with("hello") {
                        return 1;
                    }
                    answered.fetch_add(1, SeqCst);
                }
                0
            }
        };
        let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(client(Arc::clone(&answered)))).collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        running.stop().await.unwrap().unwrap();
        dropped += clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>();
    }
    eprintln!("{stops} stops, {} requests answered, {dropped} dropped", answered.load(SeqCst));
    assert!(dropped == 0 && answered.load(SeqCst) > 100);
}

#[tokio::test]
async fn a_request_in_the_kernel_is_answered_at_shutdown() {
    // The connection is idle when its end is decided, and its request arrives before that is carried out.
    let running = serve(hello(), quick()).await;
    let mut client = running.connect().await;
    client.write_all(GET).await.unwrap();
    let mut rest = [0; 5];
    head(&mut client).await;
    client.read_exact(&mut rest).await.unwrap();
    tokio::time::sleep(Duration::from_millis(260)).await;
    let stopped = running.stop();
    // Blocks the only thread of this runtime beyond the begin of the shutdown.
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    client.try_write(GET).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    stopped.await.unwrap().unwrap();
}

#[tokio::test]
async fn requests_that_outlast_the_drain_are_dropped_and_so_is_everything_with_the_future() {
    let forever = || Route::new().at("/", get(make(|_| std::future::pending::<Response>())));
    let running = serve(forever(), Settings { drain: Duration::from_millis(100), ..quick() }).await;
    let mut client = running.connect().await;
    client.write_all(GET).await.unwrap();
    let connections = running.connections.clone();
    eventually("connection", || connections.count() == 1).await;
    tokio::time::timeout(Duration::from_secs(2), running.stop()).await.unwrap().unwrap().unwrap();
    assert_eq!(connections.count(), 0);
    until_closed(&mut client).await;

    let running = serve(forever(), quick()).await;
    let mut client = running.connect().await;
    client.write_all(GET).await.unwrap();
    eventually("connection", || running.connections.count() == 1).await;
    running.serving.abort();
    assert!(until_closed(&mut client).await < Duration::from_millis(250));
    eventually("end of the listener", || std::net::TcpStream::connect(running.address).is_err()).await;
}

#[tokio::test]
async fn tls_has_a_handshake_timeout_and_both_protocols() {
    let place = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| place.path().join(name));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let error = Tls::open(&cert, &place.path().join("none.pem")).err().unwrap().to_string();
    assert!(error.starts_with("cannot read a private key from "), "{error}");
    let tls = Some(Arc::new(Tls::open(&cert, &key).unwrap()));
    let running = serve(hello(), Settings { tls, priority_prefix: Some("/health/"), ..quick() }).await;
    let mut silent = running.connect().await;
    let took = until_closed(&mut silent).await;
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(1), "{took:?}");

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.cert.pem().as_bytes()).unwrap()).unwrap();
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, running.connect().await).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        if protocol == b"h2" {
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut frame = [0; 9];
            stream.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame[3], 4, "the server's settings");
        } else {
            stream.write_all(GET).await.unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).await.unwrap();
            assert_eq!(&status, b"HTTP/1.1 200");
        }
    }
}

#[tokio::test]
async fn a_client_that_ends_its_side_gets_its_answer_and_one_that_is_gone_ends_its_request() {
    let dropped = Arc::new(AtomicBool::new(false));
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let flag = Arc::clone(&dropped);
    let endless = move |_: Request| {
        let dropped = Dropped(Arc::clone(&flag));
        async move {
            let _dropped = dropped;
            futures::future::pending::<()>().await;
        }
    };
    let soon = |request: Request| async move {
        let body = request.into_body().into_vec().await.unwrap_or_default();
        tokio::time::sleep(Duration::from_millis(100)).await;
        body
    };
    // A response that takes longer than a half-closed connection waits for its beginning.
    let pieces = || {
        stream::iter(0..15).then(|_| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, std::io::Error>("piece")
        })
    };
    let long = move |_: Request| async move { Body::from_bytes_stream(pieces()) };
    let routes = Route::new()
        .at("/", get(make(|_| async { "hello" })).post(make(soon)))
        .at("/long", get(make(long)))
        .at("/endless", get(make(endless)));
    let running = serve(routes, quick()).await;
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        for _ in 0..20 {
            let mut client = running.connect().await;
            client.write_all(request.as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            let (mut answer, start) = (String::new(), Instant::now());
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains(" 200 OK") && answer.ends_with("hello"), "{request}: {answer}");
            // The connection ends with the answer.
            assert!(start.elapsed() < Duration::from_millis(900), "{request}: {:?}", start.elapsed());
        }
    }
    let mut client = running.connect().await;
    client.write_all(b"GET /long HTTP/1.0\r\n\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(&"piece".repeat(15)), "{answer}");

    let mut client = running.connect().await;
    client.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(client);
    let start = Instant::now();
    eventually("end of the request", || dropped.load(SeqCst)).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}
