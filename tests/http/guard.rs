//! Access control of the API: accepted callers, and the answers to rejected ones.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use common::wire::{Raw, connect, raw};
use common::{Place, Running, eventually};
use serde_json::Value;

use crate::common;

const PRICE: &str = "/api/cluster_products_by_price_rating";
const ROW: &str = r#"[{"discounted_price":300,"rating":4.5}]"#;

fn with_key(running: &Running, method: &str, path: &str, key: &str) -> Raw {
    let lines = [
        &format!("{method} {path} HTTP/1.1"),
        "Host: localhost",
        "Content-Type: application/json",
        &format!("Authorization: Bearer {key}"),
    ];
    raw(running, &lines, if method == "POST" { ROW } else { "" })
}

fn trained() -> Place {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    place
}

fn create(place: &Place, name: &str, scope: &str) -> String {
    place.ok(&["keys", "create", name, "--scope", scope]).trim_end().to_owned()
}

#[test]
fn keys_let_in_what_their_scope_allows() {
    let place = trained();
    let [read, train, admin] = ["read", "train", "admin"].map(|scope| create(&place, scope, scope));
    let revoked = create(&place, "gone", "admin");
    place.ok(&["keys", "revoke", "gone"]);
    let running = place.serve(&["--require-keys", "--enable-sql", "--log-format", "json"]);

    for path in ["/", "/docs", "/openapi.json", "/health/live", "/health/ready"] {
        assert_eq!(with_key(&running, "GET", path, "none").status, 200, "{path}");
    }
    with_key(&running, "GET", "/docs/../api/segments", "none").problem(404);
    let asked = [
        ("POST", PRICE),
        ("POST", "/api/segments/discount/predict"),
        ("GET", "/api/segments"),
        ("GET", "/metrics"),
        ("GET", "/api/train/1"),
        ("POST", "/api/train"),
        ("POST", "/api/sql"),
        ("GET", "/api/segments/nothing-of-that-name"),
        ("GET", "/nowhere"),
        ("GET", "//api/segments"),
        ("POST", "/docs"),
    ];
    // For every kind of invalid key and every request, the answer is byte-identical.
    let mut refusals = Vec::new();
    for (method, path) in asked {
        for wrong in ["", "x", "tercile_", &revoked, &read[..read.len() - 1], &format!("{read}x")] {
            let refused = with_key(&running, method, path, wrong);
            refused.problem(401);
            assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"tercile\""), "{}", refused.head);
            refusals.push(refused.body);
        }
    }
    refusals.dedup();
    assert_eq!(refusals.len(), 1, "{refusals:?}");

    for (method, path, statuses) in [
        ("POST", PRICE, [200, 200, 200]),
        ("GET", "/api/segments/price_rating/models/3", [200, 200, 200]),
        ("GET", "/metrics", [200, 200, 200]),
        ("GET", "/api/segments/..%2f..%2fkeys.json", [404, 404, 404]),
        ("GET", "/api/segments/%2e%2e/models/1", [404, 404, 404]),
        ("GET", "/api/train/99", [403, 404, 404]),
        ("POST", "/api/train", [403, 202, 202]),
        ("POST", "/api/sql", [403, 403, 422]),
        ("POST", "/api/%73ql", [404, 404, 404]),
        ("POST", "/api/segments/price_rating/predict/", [200, 200, 200]),
        ("POST", "/api/sql/", [403, 403, 422]),
        ("POST", "/api/segments/price_rating/predict//", [404, 404, 404]),
        ("POST", "/api/segments/a%2fb/predict", [404, 404, 404]),
    ] {
        for (key, status) in [&read, &train, &admin].into_iter().zip(statuses) {
            assert_eq!(with_key(&running, method, path, key).status, status, "{method} {path}");
        }
    }
    let own_header =
        raw(&running, &["GET /api/segments HTTP/1.1", "Host: localhost", &format!("X-API-Key: {read}")], "");
    assert_eq!(own_header.status, 200);

    // A running server applies changes within a second.
    place.ok(&["keys", "revoke", "read"]);
    std::thread::sleep(Duration::from_secs(1));
    with_key(&running, "GET", "/api/segments", &read).problem(401);
    let fresh = create(&place, "fresh", "read");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(with_key(&running, "GET", "/api/segments", &fresh).status, 200);

    let log = running.interrupt().stderr;
    let line = log.lines().find(|line| line.contains("\"key\":\"admin\"")).unwrap_or_else(|| panic!("{log}"));
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["method"], &line["route"], &line["status"]), (&"POST".into(), &PRICE.into(), &200.into()));
    for key in [read, train, admin, revoked, fresh] {
        assert!(!log.contains(&key["tercile_".len()..]), "a key is in the log");
    }
}

#[test]
fn an_address_that_others_reach_wants_keys() {
    let place = Place::new();
    let why = place.fails(1, &["serve", "--bind", "0.0.0.0:0"]);
    assert!(why.contains("tercile keys create NAME --scope read --store store"), "{why}");
    place.fails(1, &["up", "--bind", "[::]:0"]);
    place.fails(1, &["serve", "--require-keys", "--bind", "127.0.0.1:0"]);
    place.fails(2, &["serve", "--require-keys", "--open"]);
    let open = place.start(&["serve", "--bind", "0.0.0.0:0", "--open"]);
    open.said("warning: --open: everybody");
    drop(open);

    let key = create(&place, "one", "read");
    let mut running = place.start(&["serve", "--bind", "0.0.0.0:0"]);
    let port = running.said("at http://0.0.0.0:").split(',').next().unwrap().to_owned();
    running.address = format!("http://127.0.0.1:{port}");
    with_key(&running, "GET", "/api/segments", "").problem(401);
    assert_eq!(with_key(&running, "GET", "/api/segments", &key).status, 200);
}

#[test]
fn keys_are_listed_and_never_shown() {
    let place = Place::new();
    let key = create(&place, "shop", "read");
    assert!(key.starts_with("tercile_") && key.len() == 51, "{key}");
    place.ok(&["keys", "create", "till-may", "--scope", "train", "--days", "3"]);
    let listed = place.ok(&["keys", "list"]);
    assert!(listed.contains("shop") && listed.contains("never") && listed.contains("till-may"), "{listed}");
    assert!(!listed.contains(&key) && !std::fs::read_to_string(place.path("store/keys.json")).unwrap().contains(&key));
    place.fails(1, &["keys", "create", "shop", "--scope", "admin"]);
    assert_eq!(place.ok(&["keys", "create", "shop", "--scope", "admin", "--if-missing"]), "");
    place.fails(1, &["keys", "create", "../shop", "--scope", "admin"]);
    place.fails(1, &["keys", "revoke", "nobody"]);
    place.fails(2, &["keys", "create", "root", "--scope", "everything"]);
}

/// `keys.json` is lost or damaged: nobody is let in, no new file takes its place in silence, and a copy of it heals all.
#[test]
fn lost_or_damaged_keys_are_told_and_let_nobody_in() {
    let place = trained();
    let key = create(&place, "shop", "read");
    let path = place.path("store/keys.json");
    let whole = std::fs::read(&path).unwrap();
    let running = place.serve(&["--require-keys"]);
    let status = |key: &str| with_key(&running, "GET", "/api/segments", key).status;
    let doctor = || {
        let ended = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
        let row = ended.stdout.lines().find(|line| line.contains("  keys  ")).map(str::to_owned);
        (ended.code, row.unwrap_or_else(|| panic!("{}", ended.stdout)))
    };
    assert_eq!((status(&key), doctor().0), (200, Some(0)));
    for (content, reason) in [
        (None, "missing"),
        (Some(&whole[..whole.len() / 2]), "damaged"),
        (Some(b""), "damaged"),
        (Some(b"{}"), "damaged"),
    ] {
        match content {
            None => std::fs::remove_file(&path).unwrap(),
            Some(content) => std::fs::write(&path, content).unwrap(),
        }
        eventually("the key to be refused", || status(&key) == 401);
        let words = format!("the file of API keys store/keys.json is {reason}");
        let (code, row) = doctor();
        assert!(code == Some(1) && row.starts_with("MEND") && row.contains(&words), "{row}");
        for command in [
            &["keys", "list"][..],
            &["keys", "create", "other", "--scope", "admin"],
            &["keys", "create", "shop", "--scope", "admin", "--if-missing"],
            &["keys", "revoke", "shop"],
            &["serve", "--bind", "127.0.0.1:0", "--require-keys"],
            &["up", "--bind", "127.0.0.1:0", "--require-keys"],
        ] {
            let said = place.fails(1, command);
            assert!(said.contains(&words) && said.contains("bring it back from a copy"), "{command:?}: {said}");
        }
        place.ok(&["models"]);
        std::fs::write(&path, &whole).unwrap();
        eventually("the key to be accepted again", || status(&key) == 200);
        assert_eq!(doctor().0, Some(0), "{reason}");
    }
    // The mark alone: nothing depends on it.
    let mark = place.path("store/marks/keys");
    std::fs::remove_file(&mark).unwrap();
    let (code, row) = doctor();
    assert!(code == Some(1) && row.contains("store/marks/keys is missing"), "{row}");
    create(&place, "other", "read");
    assert_eq!((status(&key), doctor().0), (200, Some(0)));
    // The advice: new keys.
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&mark).unwrap();
    let new = create(&place, "new", "read");
    eventually("the new key to be accepted", || status(&new) == 200);
    assert_eq!((status(&key), doctor().0), (401, Some(0)));
}

#[test]
fn on_loopback_names_and_origins_of_others_are_refused() {
    let place = Place::new();
    let running = place.serve(&["--allowed-host", "shop.test"]);
    let port = running.address.rsplit_once(':').unwrap().1;
    let asked = |host: &str| raw(&running, &["GET / HTTP/1.1", &format!("Host: {host}")], "");
    for host in [
        "localhost",
        "LocalHost:1",
        "127.0.0.1",
        &format!("127.0.0.1:{port}"),
        "127.8.0.1",
        "[::1]:80",
        "Shop.Test:443",
    ] {
        assert_eq!(asked(host).status, 200, "{host}");
    }
    for host in
        ["evil.test", "localhost.evil.test", "127.0.0.1.evil.test", "evil.test:127", "", "shop.test.", "10.0.0.1"]
    {
        asked(host).problem(403);
    }
    raw(&running, &["GET / HTTP/1.1"], "").problem(403);
    raw(&running, &["GET / HTTP/1.1", "Host: localhost", "Host: evil.test"], "").problem(403);
    raw(&running, &["GET http://evil.test/ HTTP/1.1", "Host: localhost"], "").problem(403);

    let train = |origin: &str| {
        raw(&running, &["POST /api/train HTTP/1.1", "Host: localhost:7", &format!("Origin: {origin}")], "")
    };
    train("http://evil.test").problem(403);
    train("null").problem(403);
    train("http://localhost:8").problem(403);
    assert_eq!(train("http://localhost:7").status, 202);
}

#[test]
fn bodies_need_their_media_type_and_no_encoding() {
    let place = Place::new();
    let running = place.serve(&["--max-header-bytes", "1000"]);
    let post = |lines: &[&str]| {
        let first = format!("POST {PRICE} HTTP/1.1");
        raw(&running, &[&[first.as_str(), "Host: localhost"], lines].concat(), ROW)
    };
    post(&[]).problem(415);
    post(&["Content-Type: text/plain"]).problem(415);
    post(&["Content-Type: application/x-www-form-urlencoded"]).problem(415);
    for encoding in ["deflate", "br", "identity, gzip", "nonsense"] {
        post(&["Content-Type: application/json", &format!("Content-Encoding: {encoding}")]).problem(415);
    }
    post(&["Content-Type: application/json", "Content-Encoding: gzip"]).problem(400);
    // The status shows that the request was accepted; nothing is trained.
    post(&["Content-Type: application/json", "Content-Encoding: identity"]).problem(503);
    let long = format!("X-Long: {}", "x".repeat(1000));
    post(&[&long]).problem(431);
}

#[test]
fn a_request_keeps_its_name() {
    let place = Place::new();
    let running = place.serve(&[]);
    let named =
        |id: &str| raw(&running, &["GET /nowhere HTTP/1.1", "Host: localhost", &format!("X-Request-Id: {id}")], "");
    assert_eq!(named("shop-7.b_1").header("x-request-id"), Some("shop-7.b_1"));
    for not_sane in ["", "a b", "a\tb", "\u{e4}", &"x".repeat(129), "a;b", "${x}"] {
        let given = named(not_sane);
        let id = given.header("x-request-id").unwrap();
        assert!(id != not_sane && !id.is_empty(), "{not_sane}");
    }
    raw(&running, &["GET /api/segments/x/models/1 HTTP/1.1", "Host: localhost", "X-Request-Id: seen"], "").problem(404);
    eventually("an access line", || {
        running
            .stderr()
            .lines()
            .any(|l| l.starts_with("GET /api/segments/{name}/models/{slice} 404,") && l.ends_with("seen"))
    });
}

#[test]
fn an_answer_that_goes_on_ends_with_its_key() {
    let place = trained();
    let key = create(&place, "shop", "read");
    let running = place.serve(&["--require-keys"]);
    let mut events = connect(&running);
    events.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(events, "GET /api/events HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n\r\n").unwrap();
    let mut some = [0; 64];
    assert!(events.read(&mut some).unwrap() > 0 && some.starts_with(b"HTTP/1.1 200"));
    place.ok(&["keys", "revoke", "shop"]);
    let revoked = Instant::now();
    let mut rest = Vec::new();
    events.read_to_end(&mut rest).unwrap_or_else(|e| panic!("it goes on after {:?}: {e}", revoked.elapsed()));
    assert!(rest.ends_with(b"0\r\n\r\n"), "it ends as events do");
}
