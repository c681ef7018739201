//! Compressed bodies, media types, slashes at the end of paths, and reverse proxies with a path prefix.

use std::io::{Read as _, Write as _};

use common::{Answer, Place, Running};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::common;

const PREDICT: &str = "/api/segments/price_rating/predict";
const ROW: &str = r#"[{"discounted_price":999.0,"rating":4.2}]"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

fn detail(answer: &Answer) -> String {
    answer.json()["detail"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn bodies_may_be_compressed() {
    let place = Place::new();
    let up = place.up(&["--max-body-bytes", "4MB"]);
    let zipped = |path: &str, kind: &str, body: &[u8]| {
        up.ask(path, &[("content-type", kind), ("content-encoding", "gzip")], &gzip(body)[..])
    };
    let plain = up.post(PREDICT, ROW);
    assert_eq!(plain.status, 200, "{}", plain.text);
    assert_eq!(zipped(PREDICT, "application/json", ROW.as_bytes()).text, plain.text);
    let typed = "/api/cluster_products_by_price_rating";
    assert_eq!(zipped(typed, "application/json", ROW.as_bytes()).text, up.post(typed, ROW).text);
    // Streamed in both directions.
    let mut rows = "discounted_price,rating\n".to_owned();
    (0..100_000).for_each(|i| rows.push_str(&format!("{}.5,4.{}\n", i % 5000, i % 10)));
    let plain = up.post_as(PREDICT, "text/csv", rows.as_bytes());
    assert_eq!(plain.text.lines().count(), 100_001);
    assert_eq!(zipped(PREDICT, "text/csv", rows.as_bytes()).text, plain.text);
    // The limit is that of the rows, not of the compressed bytes: a bomb of 100 MB has 100 kB.
    for kind in ["text/csv", "application/json"] {
        let start = if kind == "text/csv" { "discounted_price,rating\n" } else { "[" };
        let bomb = [start.as_bytes(), &b" ".repeat(100_000_000)].concat();
        let answer = zipped(PREDICT, kind, &bomb);
        assert_eq!(answer.status, 413, "{}", answer.text);
    }
    assert_eq!(zipped(typed, "application/json", &b" ".repeat(100_000_000)).status, 413);
    let sent = |encoding: &str, body: &[u8]| {
        up.ask(PREDICT, &[("content-type", "application/json"), ("content-encoding", encoding)], body)
    };
    for damaged in [ROW.as_bytes(), &gzip(ROW.as_bytes())[..20], b""] {
        let answer = sent("gzip", damaged);
        assert!(answer.status == 400 && detail(&answer).contains("no gzip"), "{}", answer.text);
    }
    for encoding in ["br", "gzip, gzip", "deflate"] {
        assert_eq!(sent(encoding, ROW.as_bytes()).status, 415, "{encoding}");
    }

    // Answers.
    let get = |path: &str, headers: &[(&str, &str)]| up.call("GET", path, headers);
    let accept = ("accept-encoding", "br, gzip");
    for path in ["/openapi.json", "/dashboard/", "/docs", "/api/segments/price_rating/models", "/metrics"] {
        let (plain, zipped) = (get(path, &[]), get(path, &[accept]));
        assert_eq!(
            (plain.header("content-encoding"), zipped.header("content-encoding")),
            (None, Some("gzip")),
            "{path}"
        );
        assert_eq!(zipped.header("vary"), Some("Accept-Encoding"), "{path}");
        assert!(zipped.bytes.len() * 2 < plain.bytes.len(), "{path}");
        if path != "/metrics" {
            assert_eq!(gunzip(&zipped.bytes), plain.text, "{path}");
            // What is known is not sent again, however it was sent.
            let tag = zipped.header("etag").unwrap();
            assert!(tag.starts_with("W/\""), "{path}: {tag}");
            for tag in [tag, plain.header("etag").unwrap()] {
                assert_eq!(get(path, &[accept, ("if-none-match", tag)]).status, 304, "{path}");
            }
        }
    }
    let headers = [("content-type", "text/csv"), accept];
    assert_eq!(
        gunzip(&up.ask(PREDICT, &headers, rows.as_bytes()).bytes),
        up.post_as(PREDICT, "text/csv", rows.as_bytes()).text
    );
    for (path, headers) in [("/", vec![accept]), ("/openapi.json", vec![("accept-encoding", "gzip;q=0")])] {
        assert_eq!(get(path, &headers).header("content-encoding"), None, "{path}");
    }
    assert_eq!(up.call("HEAD", "/openapi.json", &[accept]).header("content-encoding"), None);
}

#[test]
fn media_types_have_their_usual_names() {
    let place = Place::new();
    let up = place.up(&[]);
    let line = "{\"discounted_price\":999.0,\"rating\":4.2}\n";
    let ndjson = up.post_as(PREDICT, "application/x-ndjson", line.as_bytes());
    let jsonl = up.post_as(PREDICT, "application/jsonl", line.as_bytes());
    assert_eq!((jsonl.status, &jsonl.text), (200, &ndjson.text));
    let tabs = "discounted_price\trating\tname\n999\t4.2\ta,b\n";
    let tsv = up.post_as(PREDICT, "text/tab-separated-values", tabs.as_bytes());
    assert_eq!(tsv.content_type, "text/tab-separated-values; charset=utf-8");
    assert!(
        tsv.text.starts_with("discounted_price\trating\tname\tcluster\tdescription\tdistance\n999\t4.2\ta,b\t"),
        "{}",
        tsv.text
    );
    let accept = [("content-type", "application/jsonl"), ("accept", "text/tab-separated-values")];
    assert!(up.ask(PREDICT, &accept, line.as_bytes()).text.starts_with("discounted_price\trating\t"));
    let both = format!("\u{feff}{tabs}");
    assert_eq!(up.post_as(PREDICT, "text/tab-separated-values", both.as_bytes()).text, tsv.text);
    assert_eq!(up.post(PREDICT, &format!("\u{feff}{ROW}")).text, up.post(PREDICT, ROW).text);
    let typed = "/api/cluster_products_by_price_rating";
    let explained = up.post(&format!("{typed}?explain=true"), ROW);
    assert_eq!(explained.status, 200, "{}", explained.text);
    let (explained, plain) = (explained.json(), up.post(typed, ROW).json());
    assert_eq!(explained[0]["explanation"]["distances"].as_array().unwrap().len(), 3);
    assert_eq!(explained[0]["cluster"], plain[0]["cluster"]);
    assert_eq!(up.post(&format!("{typed}?explain=true&fit=request"), ROW).status, 422);
}

/// The paths that a page names.
fn names(up: &Running, headers: &[(&str, &str)], prefix: &str) {
    let page = up.call("GET", &format!("{prefix}/dashboard/"), headers);
    assert_eq!(page.status, 200);
    assert!(page.text.contains(&format!("data-prefix=\"{prefix}\"")));
    assert!(page.text.contains(&format!("src=\"{prefix}/dashboard/main.js\"")));
    assert_eq!(up.call("GET", &format!("{prefix}/dashboard/main.js"), headers).status, 200);
    for path in ["/openapi.json", "/docs"] {
        let text = up.call("GET", &format!("{prefix}{path}"), headers).text;
        assert!(text.contains(&format!("\"servers\": [{{\"url\": \"{prefix}\"}}]")), "{path}");
    }
    let job = up.call("POST", &format!("{prefix}/api/train"), headers);
    assert_eq!(
        (job.status, job.location.is_some_and(|to| to.starts_with(&format!("{prefix}/api/train/")))),
        (202, true)
    );
}

#[test]
fn proxies_may_show_the_api_below_a_prefix() {
    let place = Place::new();
    let up = place.up(&["--base-path", "/shop/", "--trust-forwarded-prefix"]);
    names(&up, &[], "/shop");
    names(&up, &[("x-forwarded-prefix", "/other/place")], "/other/place");
    // The proxy has removed the prefix.
    assert_eq!(up.get("/api/segments").json(), up.get("/shop/api/segments").json());
    assert!(up.get("/dashboard/").text.contains("src=\"/shop/dashboard/main.js\""));
    for hostile in ["//evil.example", "/a\"><script>", "/../x", "evil"] {
        let page = up.call("GET", "/dashboard/", &[("x-forwarded-prefix", hostile)]);
        assert!(page.text.contains("data-prefix=\"/shop\""), "{hostile}");
    }
    for same in ["/api/segments/", "/shop/api/segments/", "/health/live/", "/openapi.json/", "/shop/"] {
        assert_eq!(up.get(same).status, 200, "{same}");
    }
    assert_eq!(up.post(&format!("{PREDICT}/"), ROW).text, up.post(PREDICT, ROW).text);
    assert_eq!(up.get("/api//").status, 404);
    drop(up);
    // Without the flag the header is anybody's.
    let serve = place.serve(&[]);
    let page = serve.call("GET", "/dashboard/", &[("x-forwarded-prefix", "/other")]);
    assert!(page.text.contains("data-prefix=\"\"") && page.text.contains("src=\"/dashboard/main.js\""));
    let error = place.fails(2, &["serve", "--base-path", "shop"]);
    assert!(error.contains("expected a path such as /shop"), "{error}");
}
