//! HTTP/2 at frame level: clients that reset, flood, or take nothing, which no library supports.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test ends with a panic")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{Running, eventually, quick, serve, until_closed};
use futures::stream;
use poem::endpoint::make;
use poem::{Body, Endpoint, Response, Route, get};
use tercile_http::{Settings, Timeouts};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// GET / of localhost, by the static table and literals.
const REQUEST: &[u8] = b"\x82\x84\x86\x41\x09localhost";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// Connects with an initial window of `window` bytes per stream.
async fn connect(running: &Running, window: u32) -> TcpStream {
    let mut stream = running.connect().await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, window))).await.unwrap();
    stream
}

/// The next frame: kind, stream, payload. `None` if the server has closed the connection.
async fn next(stream: &mut TcpStream) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// The error code of the GOAWAY with which the server ends the connection, if it sends one.
async fn goaway(stream: &mut TcpStream) -> Option<u32> {
    let mut code = None;
    while let Some((kind, _, payload)) = next(stream).await {
        if kind == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
    code
}

/// Held by each test that measures memory, which is that of all tests.
static MEMORY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Anonymous memory of this process in KiB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn hello() -> impl Endpoint {
    Route::new().at("/", get(make(|_| async { "hello" })))
}

/// Writes the same bytes until the server closes the connection or reads nothing for a while; the bytes written.
async fn flood(stream: &mut TcpStream, bytes: &[u8], most: usize) -> usize {
    let mut written = 0;
    while written < most {
        match tokio::time::timeout(Duration::from_millis(200), stream.write_all(bytes)).await {
            Ok(Ok(())) => written += bytes.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let running = Arc::new(AtomicUsize::new(0));
    let begun = Arc::clone(&running);
    let forever = make(move |_| {
        begun.fetch_add(1, SeqCst);
        std::future::pending::<Response>()
    });
    let server =
        serve(Route::new().at("/", get(forever)).at("/other", get(make(|_| async { "hello" }))), quick()).await;
    let mut stream = connect(&server, 65_535).await;
    let mut all = Vec::new();
    for number in (1..).step_by(2).take(10_000) {
        all.extend(frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST));
        all.extend(frame(RESET, 0, number, &8_u32.to_be_bytes()));
    }
    let start = Instant::now();
    let _ = stream.write_all(&all).await;
    // ENHANCE_YOUR_CALM.
    let code = goaway(&mut stream).await;
    assert!(code.is_none_or(|code| code == 11), "{code:?}");
    assert!(running.load(SeqCst) < 2000 && start.elapsed() < Duration::from_secs(5), "{running:?}");
    eventually("end of the connection", || server.connections.count() == 0).await;
    assert!(server.get("/other").await.ends_with("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_without_end_end_the_connection() {
    let _alone = MEMORY.lock().await;
    let server = serve(hello(), quick()).await;
    for large in [true, false] {
        let mut stream = connect(&server, 65_535).await;
        stream.write_all(&frame(HEADERS, END_STREAM, 1, REQUEST)).await.unwrap();
        // Literal fields that are never indexed, or frames without content.
        let field = [&b"\x10\x01x\x7f\x81\x07"[..], &[b'y'; 262]].concat();
        let more = if large { frame(CONTINUATION, 0, 1, &field.repeat(60)) } else { frame(CONTINUATION, 0, 1, b"") };
        let (before, start) = (memory(), Instant::now());
        let written = flood(&mut stream, &more, 1 << 30).await;
        assert!(written < 64 << 20, "{written} bytes of a head were read");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(memory() < before + 16 * 1024, "{} KiB, then {}", before, memory());
        until_closed(&mut stream).await;
    }
    assert!(server.get("/").await.ends_with("hello"));
}

/// Each of these frames has to be acknowledged, and the client reads no acknowledgement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_settings_and_pings_wait_in_the_client() {
    let _alone = MEMORY.lock().await;
    let server = serve(hello(), quick()).await;
    for one in [frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 0)), frame(PING, 0, 0, b"whatever")] {
        let mut stream = connect(&server, 0).await;
        let before = memory();
        let written = flood(&mut stream, &one.repeat(1000), 1 << 30).await;
        assert!(written < 64 << 20, "{written} bytes were read");
        assert!(memory() < before + 16 * 1024, "{before} KiB, then {}", memory());
        let start = Instant::now();
        eventually("end of the connection", || server.connections.count() == 0).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
    assert!(server.get("/").await.ends_with("hello"));
}

/// Sets a flag when it is dropped.
struct Flag(Arc<AtomicUsize>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_of_a_reset_stream_and_of_a_lost_connection_are_dropped() {
    let (begun, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&begun), Arc::clone(&gone));
    let forever = make(move |_| {
        let (begun, gone) = counters.clone();
        async move {
            let _gone = Flag(gone);
            begun.fetch_add(1, SeqCst);
            std::future::pending::<()>().await;
        }
    });
    let server = serve(Route::new().at("/", get(forever)), quick()).await;
    let mut stream = connect(&server, 65_535).await;
    for number in [1, 3, 5] {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST)).await.unwrap();
    }
    eventually("requests", || begun.load(SeqCst) == 3).await;
    stream.write_all(&frame(RESET, 0, 3, &8_u32.to_be_bytes())).await.unwrap();
    eventually("end of the stream that was reset", || gone.load(SeqCst) == 1).await;
    drop(stream);
    eventually("end of all", || gone.load(SeqCst) == 3 && server.connections.count() == 0).await;
}

/// Responses as long as one likes, in pieces that are counted as they are made.
fn counted(made: &Arc<AtomicUsize>) -> impl Endpoint + use<> {
    let made = Arc::clone(made);
    Route::new().at(
        "/",
        get(make(move |_| {
            let made = Arc::clone(&made);
            let pieces = stream::repeat_with(move || {
                made.fetch_add(1, SeqCst);
                Ok::<_, std::io::Error>(vec![b'x'; 8192])
            });
            async move { Body::from_bytes_stream(pieces) }
        })),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_limited_and_pending_responses_too() {
    let _alone = MEMORY.lock().await;
    let made = Arc::new(AtomicUsize::new(0));
    let idle = Duration::from_secs(2);
    let settings = Settings { timeouts: Timeouts { idle, ..quick().timeouts }, ..quick() };
    let server = serve(counted(&made), settings).await;
    let mut stream = connect(&server, 0).await;
    let mut most = None;
    while most.is_none() {
        let (kind, _, payload) = next(&mut stream).await.unwrap();
        if kind == SETTINGS {
            let limit = payload.chunks_exact(6).find(|one| one[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
            most = limit.map(|one| u32::from_be_bytes(one[2..].try_into().unwrap()));
        }
    }
    assert_eq!(most, Some(100));
    let before = memory();
    for number in (1..).step_by(2).take(150) {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST)).await.unwrap();
    }
    let (mut begun, mut refused) = (0, 0);
    while begun + refused < 150 {
        match next(&mut stream).await.unwrap() {
            (HEADERS, ..) => begun += 1,
            // REFUSED_STREAM.
            (RESET, _, payload) => {
                assert_eq!(payload, 7_u32.to_be_bytes());
                refused += 1;
            }
            _ => {}
        }
    }
    assert_eq!((begun, refused), (100, 50));
    // At most 400 KiB wait in each stream, and a piece beside them.
    let pieces = made.load(SeqCst);
    let grown = memory().saturating_sub(before);
    assert!(pieces <= 100 * 52 && grown < 64 * 1024, "{pieces} pieces for 100 streams, {grown} KiB");
    // The connection looks alive, and takes nothing.
    let start = Instant::now();
    while stream.write_all(&frame(PING, 0, 0, b"whatever")).await.is_ok() && start.elapsed() < Duration::from_secs(90) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The idle timeout, and the time that a piece takes at the minimum rate.
    assert!(start.elapsed() < idle + Duration::from_secs(4), "{:?}", start.elapsed());
    eventually("end of the connection", || server.connections.count() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_told_to_go_away_and_its_request_completes() {
    let slow = make(|_| async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        "slow"
    });
    let server = serve(Route::new().at("/", get(slow)), Settings::default()).await;
    let mut stream = connect(&server, 65_535).await;
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, REQUEST)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stopped = server.stop();
    let (mut told, mut body) = (false, Vec::new());
    while let Some((kind, number, payload)) = next(&mut stream).await {
        match kind {
            GOAWAY => told = true,
            // The acknowledgement of the ping with which the server closes.
            PING => stream.write_all(&frame(PING, 1, 0, &payload)).await.unwrap(),
            0 if number == 1 => {
                assert!(told, "it is told before");
                body.extend(payload);
            }
            _ => {}
        }
    }
    assert!(told && body == b"slow", "{body:?}");
    stopped.await.unwrap().unwrap();
}
