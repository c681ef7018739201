//! Bulk prediction over HTTP: every input and output format, limits, errors in the middle of a body, explanations, and model
//! headers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use common::wire::raw;
use common::{Answer, Place, Running};
use datafusion::arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};

use crate::common;

const PATH: &str = "/api/segments/price_rating/predict";
const TYPED: &str = "/api/cluster_products_by_price_rating";
const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const CSV: &str = "text/csv";
const ARROW: &str = "application/vnd.apache.arrow.stream";

fn up(args: &[&str]) -> (Place, Running) {
    let place = Place::new();
    let running = place.up(args);
    (place, running)
}

fn stream(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn numbers(values: &[f64]) -> ArrayRef {
    Arc::new(Float64Array::from(values.to_vec()))
}

fn ask(up: &Running, path: &str, from: &str, to: &str, body: &[u8]) -> Answer {
    up.ask(path, &[("content-type", from), ("accept", to)], body)
}

fn problem(answer: &Answer, status: u16, field: Option<&str>, what: &str) {
    assert_eq!((answer.status, answer.content_type.as_str()), (status, "application/problem+json"), "{}", answer.text);
    let problem = answer.json();
    assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(what), "{what}: {problem}");
}

#[test]
fn every_format_comes_in_and_goes_out_with_the_same_answers() {
    let (_place, up) = up(&[]);
    let rows = r#"[{"name":"a","discounted_price":300,"rating":4.5},{"name":"b","discounted_price":1e5,"rating":1}]"#;
    let expected = up.post(PATH, rows);
    assert_eq!(expected.content_type, JSON);
    let expected = expected.json();
    assert_eq!(expected[0]["other"], json!({"name": "a"}));
    let csv = "name,discounted_price,rating\na,300,4.5\nb,1e5,1\n".to_owned();
    let ndjson = rows.trim_matches(['[', ']']).replace("},{", "}\n{");
    let arrow = stream(vec![
        ("name", Arc::new(StringArray::from(vec!["a", "b"]))),
        ("discounted_price", Arc::new(Int64Array::from(vec![300, 100_000]))),
        ("rating", numbers(&[4.5, 1.0])),
    ]);
    let bodies: [(&str, &[u8]); 4] =
        [(JSON, rows.as_bytes()), (NDJSON, ndjson.as_bytes()), (CSV, csv.as_bytes()), (ARROW, &arrow)];
    for (from, body) in bodies {
        let answer = ask(&up, PATH, from, JSON, body);
        assert_eq!((answer.status, answer.json()), (200, expected.clone()), "{from}");
        assert_eq!(answer.header("etag"), Some("\"price_rating@3@3\""));
        assert_eq!(answer.header("model-version"), Some("3"));
        let lines = ask(&up, PATH, from, NDJSON, body);
        let lines: Vec<Value> = lines.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(Value::from(lines), expected, "{from}");

        let table = ask(&up, PATH, from, CSV, body);
        assert_eq!((table.status, table.content_type.as_str()), (200, "text/csv; charset=utf-8"), "{}", table.text);
        let lines: Vec<&str> = table.text.lines().collect();
        assert_eq!(lines.len(), 3, "{}", table.text);
        assert!(lines[0].ends_with(",cluster,description,distance"), "{}", lines[0]);
        let last = format!(
            "{},\"{}\",{}",
            expected[1]["cluster"],
            expected[1]["description"].as_str().unwrap(),
            expected[1]["distance"]
        );
        assert!(lines[2].ends_with(&last), "{last}: {}", lines[2]);

        let answer = ask(&up, PATH, from, ARROW, body);
        assert_eq!((answer.status, answer.content_type.as_str()), (200, ARROW));
        let batches: Vec<RecordBatch> =
            StreamReader::try_new(&answer.bytes[..], None).unwrap().map(Result::unwrap).collect();
        let column = |name: &str| Arc::clone(batches[0].column_by_name(name).unwrap());
        for row in 0..2 {
            let cluster = column("cluster").as_primitive::<UInt32Type>().value(row);
            let distance = column("distance").as_primitive::<Float64Type>().value(row);
            let words = datafusion::arrow::util::display::array_value_to_string(&column("description"), row).unwrap();
            assert_eq!(
                json!([cluster, distance, words]),
                json!([expected[row]["cluster"], expected[row]["distance"], expected[row]["description"]])
            );
        }
        // The default output format is the input format.
        let same = up.ask(PATH, &[("content-type", from)], body);
        assert_eq!(same.content_type.split(';').next(), Some(from));
    }
    problem(&ask(&up, PATH, JSON, "text/html", rows.as_bytes()), 406, None, "application/x-ndjson");
    problem(&ask(&up, PATH, "text/plain", JSON, rows.as_bytes()), 415, None, "text/csv");
}

#[test]
fn what_does_not_fit_is_named_in_every_format() {
    let (_place, up) = up(&[]);
    let price = Some("discounted_price");
    let head = "discounted_price,rating\n";
    for (kind, body, status, field, what) in [
        (CSV, format!("{head}1,2\nNaN,2\n"), 422, price, "row 1: discounted_price must be a finite number"),
        (CSV, format!("{head}1,2\ninf,2\n"), 422, price, "row 1: discounted_price must be a finite number"),
        (CSV, format!("{head}1e400,2\n"), 422, price, "row 0: discounted_price must be a finite number"),
        (CSV, format!("{head}x,2\n"), 422, price, "is \"x\""),
        (CSV, format!("{head},2\n"), 422, price, "is empty"),
        (CSV, "discounted_price,discounted_price,rating\n1,1,2\n".into(), 422, price, "stands twice"),
        (CSV, "rating\n1\n".into(), 422, price, "no column discounted_price"),
        (CSV, format!("{head}1,2,3\n"), 400, None, "line 2: expected 2 fields as in the header, found 3"),
        (CSV, format!("\u{feff}\u{feff}{head}1,2\n"), 400, None, "two byte-order marks"),
        (CSV, String::new(), 400, None, "empty"),
        (NDJSON, "{\"discounted_price\":NaN,\"rating\":1}".into(), 400, None, "row 0: no JSON"),
        (NDJSON, "{\"discounted_price\":-Infinity,\"rating\":1}".into(), 400, None, "row 0: no JSON"),
        (
            NDJSON,
            "{\"discounted_price\":1,\"rating\":1}\n{\"discounted_price\":1e400,\"rating\":1}".into(),
            422,
            price,
            "row 1: ",
        ),
        (NDJSON, "{\"discounted_price\":1,\"rating\":1,\"discounted_price\":1}".into(), 422, price, "stands twice"),
        (NDJSON, "{\"discounted_price\":\"1\",\"rating\":1}".into(), 422, price, "is a string"),
        (NDJSON, "{\"discounted_price\":01,\"rating\":1}".into(), 400, None, "row 0: no JSON"),
        (NDJSON, "{\"discounted_price\":1e300,\"rating\":1}".into(), 422, price, "too far from every cluster"),
        (NDJSON, "{\"rating\":1}".into(), 422, price, "is missing"),
        (NDJSON, "[{\"discounted_price\":1,\"rating\":1}]".into(), 422, None, "found an array"),
        (NDJSON, "7".into(), 422, None, "expected a JSON object, found 7"),
        (NDJSON, "{\"discounted_price\":1,\"rating\":1".into(), 400, None, "does not end"),
        (JSON, "\u{feff}".into(), 400, None, "empty"),
    ] {
        let answer = up.post_as(PATH, kind, body.as_bytes());
        problem(&answer, status, field, what);
    }
    let good = [1.0, 2.0];
    for (columns, field, what) in [
        (vec![("discounted_price", numbers(&[1.0, f64::NAN])), ("rating", numbers(&good))], price, "row 1: "),
        (vec![("discounted_price", numbers(&[f64::INFINITY, 1.0])), ("rating", numbers(&good))], price, "row 0: "),
        (vec![("rating", numbers(&good))], price, "no column discounted_price"),
        (
            vec![("discounted_price", numbers(&good)), ("rating", numbers(&good)), ("rating", numbers(&good))],
            Some("rating"),
            "stands twice",
        ),
        (
            vec![
                ("discounted_price", Arc::new(Float64Array::from(vec![None, Some(1.0)])) as ArrayRef),
                ("rating", numbers(&good)),
            ],
            price,
            "is null",
        ),
    ] {
        problem(&up.post_as(PATH, ARROW, &stream(columns)), 422, field, what);
    }
    // A byte-order mark, as written by Excel, is not part of the rows.
    for (kind, body) in [
        (CSV, "\u{feff}id,discounted_price,rating\r\n1,300,4.5\r\n"),
        (NDJSON, "\u{feff}{\"id\":\"1\",\"discounted_price\":300,\"rating\":4.5}\n"),
        (JSON, "\u{feff}[{\"id\":\"1\",\"discounted_price\":300,\"rating\":4.5}]"),
    ] {
        let answer = ask(&up, PATH, kind, JSON, body.as_bytes());
        assert_eq!((answer.status, &answer.json()[0]["other"]), (200, &json!({"id": "1"})), "{kind}: {}", answer.text);
    }
    // No rows give an empty answer, with columns if the format has columns.
    let none = stream(vec![("discounted_price", numbers(&[])), ("rating", numbers(&[]))]);
    for (kind, body) in [(CSV, head.as_bytes()), (NDJSON, b""), (NDJSON, b"\n\n"), (JSON, b"[]"), (ARROW, &none)] {
        for (to, text) in [(JSON, "[]"), (NDJSON, "")] {
            let answer = ask(&up, PATH, kind, to, body);
            assert_eq!((answer.status, answer.text.trim_end()), (200, text), "{kind} to {to}");
        }
        let table = ask(&up, PATH, kind, CSV, body);
        let objects = if [NDJSON, JSON].contains(&kind) { "row," } else { "" };
        assert_eq!(table.text, format!("discounted_price,rating,{objects}cluster,description,distance\n"), "{kind}");
        let arrow = ask(&up, PATH, kind, ARROW, body);
        let read = StreamReader::try_new(arrow.bytes.as_slice(), None).unwrap();
        assert!(read.schema().field_with_name("cluster").is_ok(), "{kind}");
    }
    problem(&ask(&up, &format!("{PATH}?fit=request"), JSON, JSON, b"[]"), 422, None, "at least one row");
    problem(&up.post(TYPED, "[]"), 422, None, "at least one row");
    let whole = stream(vec![("discounted_price", numbers(&good)), ("rating", numbers(&good))]);
    problem(&up.post_as(PATH, ARROW, &whole[..whole.len() - 60]), 400, None, "middle of a message");
    problem(&up.post_as(PATH, ARROW, b"ARROW1 and so on"), 400, None, "");
    problem(&up.post_as(PATH, ARROW, b"\xff\xff\xff\xff\xff\xff\xff\x7f"), 400, None, "16 MiB");
    // With each byte inverted, the server answers with rows or a problem and keeps running.
    for i in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[i] ^= 0xff;
        let status = up.post_as(PATH, ARROW, &bytes).status;
        assert!([200, 400, 413, 422].contains(&status), "byte {i}: {status}");
    }
    assert_eq!(up.get("/health/live").status, 200);
}

/// Peak memory of a process in MB.
fn peak(up: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", up.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_large_body_streams_through_in_little_memory() {
    let (_place, up) = up(&[]);
    let before = peak(&up);
    let n = 600_000;
    let lines = "{\"discounted_price\": 300, \"rating\": 4.5, \"name\": \"a product of many words\"}\n".repeat(n);
    // This client sends the whole body before it reads.
    let answer = up.post_as(PATH, NDJSON, lines.as_bytes());
    assert_eq!((answer.status, answer.text.lines().count()), (200, n));
    let one: Value = serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
    assert_eq!(one["other"], json!({"name": "a product of many words"}));
    let array = format!("[{}]", lines.trim_end().replace('\n', ","));
    let answer = up.post_as(PATH, JSON, array.as_bytes());
    assert_eq!((answer.status, answer.json().as_array().unwrap().len()), (200, n));
    let grown = peak(&up).saturating_sub(before);
    assert!(grown < 120, "{grown} MB more for a body of {} MB", lines.len() / 1_000_000);
}

#[test]
fn an_error_in_the_middle_breaks_the_answer_off() {
    let (_place, up) = up(&[]);
    let good = "{\"discounted_price\":300,\"rating\":4.5}\n";
    // An early error is reported as a problem. The rest of the body fits into the connection's buffers: a client that continues
    // to send after the answer may find the connection closed before reading it.
    let body = format!("{}{{\"rating\":1}}\n{}", good.repeat(3_000), good.repeat(1_000));
    let answer = up.post_as(PATH, NDJSON, body.as_bytes());
    problem(&answer, 422, Some("discounted_price"), "row 3000: discounted_price is missing");
    assert_eq!(answer.json()["index"], 3000);
    let body = format!("{}{{\"rating\":1}}\n{good}", good.repeat(200_000));
    let mut answer = up.begin(PATH, &[("content-type", NDJSON)], body.as_bytes());
    assert_eq!(answer.status(), 200);
    let read = answer.body_mut().with_config().limit(1 << 30).read_to_vec();
    assert!(read.is_err(), "an answer that is not whole looked like one");
    assert_eq!(up.post_as(PATH, NDJSON, good.as_bytes()).status, 200);
}

#[test]
fn over_http_1_0_no_half_answer_looks_like_a_whole_one() {
    let (_place, up) = up(&[]);
    let rows = |n: usize| "{\"discounted_price\":1,\"rating\":1}\n".repeat(n);
    let asked = |body: &str| raw(&up, &[&format!("POST {PATH} HTTP/1.0"), &format!("Content-Type: {NDJSON}")], body);
    // Repeated, because an incomplete answer at the time of the check would be rejected.
    for _ in 0..200 {
        let few = asked(&rows(3));
        assert_eq!((few.status, few.body.lines().count()), (200, 3));
    }
    // More than is buffered in memory.
    let many = asked(&rows(200_000)).problem(505);
    assert!(many["detail"].as_str().unwrap().contains("ask again with HTTP/1.1"), "{many}");
}

#[test]
fn limits_hold_with_and_without_a_length() {
    let (_place, up) =
        up(&["--max-body-bytes", "1MB", "--max-body-rows", "1000", "--max-body-fields", "10", "--max-body-depth", "5"]);
    let row = "{\"discounted_price\":1,\"rating\":1}";
    let array = |rows: usize| format!("[{}]", vec![row; rows].join(","));
    for path in [PATH, TYPED] {
        assert_eq!(up.post(path, &array(1000)).status, 200, "{path}");
        problem(&up.post(path, &array(1001)), 413, None, "at most 1000 rows");
    }
    problem(&up.post_as(PATH, NDJSON, format!("{row}\n").repeat(1001).as_bytes()), 413, None, "at most 1000 rows");
    let wide: String = (0..9).map(|i| format!(",\"x{i}\":1")).collect();
    let wide = format!("{{\"discounted_price\":1,\"rating\":1{wide}}}");
    problem(&up.post(PATH, &format!("[{wide}]")), 422, None, "at most 10 fields");
    problem(&up.post_as(PATH, NDJSON, wide.as_bytes()), 422, None, "at most 10 fields");
    let columns: Vec<String> = (0..11).map(|i| format!("c{i}")).collect();
    problem(&up.post_as(PATH, CSV, format!("{}\n", columns.join(",")).as_bytes()), 413, None, "10 columns");
    let deep = "{\"discounted_price\":1,\"rating\":1,\"x\":[[[[[]]]]]}";
    problem(&up.post_as(PATH, NDJSON, deep.as_bytes()), 422, Some("x"), "nests deeper than 5");
    problem(&up.post(PATH, &format!("[{deep}]")), 422, Some("x"), "nests deeper than 5");

    // Endpoints that buffer a whole body reject it before it is sent.
    let said = raw(
        &up,
        &[&format!("POST {TYPED} HTTP/1.1"), "Host: localhost", "Content-Type: application/json"],
        &format!("[{}]", " ".repeat(1_000_000)),
    );
    assert!(said.problem(413)["detail"].as_str().unwrap().contains("1000000 bytes at most"));

    // With and without a length. A client that continues to send may be disconnected before it reads the answer.
    let blank = " ".repeat(1_000_001);
    let chunked = format!("{:x}\r\n{blank}\r\n0\r\n\r\n", blank.len());
    let length = format!("Content-Length: {}", blank.len());
    for (framing, body) in [(length.as_str(), &blank), ("Transfer-Encoding: chunked", &chunked)] {
        let mut socket = TcpStream::connect(up.address.strip_prefix("http://").unwrap()).unwrap();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {NDJSON}\r\n{framing}"
        );
        let _ = socket.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    // An endless body that is not a row either.
    let mut socket = TcpStream::connect(up.address.strip_prefix("http://").unwrap()).unwrap();
    write!(
        socket,
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let sent = (0..10_000).find(|_| socket.write_all(chunk.as_bytes()).is_err()).expect("it was read for ever");
    assert!(sent < 2_000, "{sent} chunks were read");
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn answers_are_explained() {
    let (place, up) = up(&[]);
    let rows = r#"[{"discounted_price":300,"rating":4.5},{"discounted_price":1e5,"rating":1,"x":1}]"#;
    let plain = up.post(PATH, rows).json();
    let explained = up.post(&format!("{PATH}?explain=true&lang=id"), rows);
    assert_eq!(explained.status, 200, "{}", explained.text);
    let explained = explained.json();
    for (plain, explained) in plain.as_array().unwrap().iter().zip(explained.as_array().unwrap()) {
        let cluster = plain["cluster"].as_u64().unwrap() as usize;
        let explanation = &explained["explanation"];
        assert_eq!((&explained["cluster"], &explained["other"]), (&plain["cluster"], &plain["other"]));
        let distances: Vec<f64> =
            explanation["distances"].as_array().unwrap().iter().map(|d| d.as_f64().unwrap()).collect();
        let close = |a: f64, b: &Value| (a - b.as_f64().unwrap()).abs() < 1e-12;
        assert!(distances.len() == 3 && close(distances[cluster], &plain["distance"]), "{explanation}");
        let runner_up = explanation["runner_up"].as_u64().unwrap() as usize;
        assert_ne!(runner_up, cluster);
        assert!((0..3).all(|i| i == cluster || distances[i] >= distances[runner_up]));
        assert!(close(distances[runner_up] - distances[cluster], &explanation["margin"]));
        let shares = explanation["shares"].as_object().unwrap();
        assert!(close(shares.values().map(|share| share.as_f64().unwrap()).sum(), &json!(1.0)), "{explanation}");
        for slice in 1..=3_usize {
            let said = &explanation["slices"][slice - 1];
            let row = Value::from(vec![plain["features"].clone()]).to_string();
            let own = up.post(&format!("{PATH}?model={slice}&lang=id"), &row).json();
            for field in ["version", "cluster", "description", "distance"] {
                assert_eq!(said[field], own[0][field], "slice {slice}");
            }
        }
    }
    let lines = ask(&up, &format!("{PATH}?explain=true"), CSV, NDJSON, b"discounted_price,rating\n300,4.5\n");
    assert!(lines.text.contains("\"explanation\":{\"distances\":["), "{}", lines.text);
    let csv = b"discounted_price,rating\n300,4.5\n";
    problem(
        &ask(&up, &format!("{PATH}?explain=true"), CSV, CSV, csv),
        406,
        None,
        "explained answers come as application/json",
    );
    problem(&up.post(&format!("{PATH}?explain=perhaps"), rows), 422, Some("explain"), "true or false");
    problem(&up.post(&format!("{PATH}?explain=true&fit=request"), rows), 422, Some("fit"), "nothing to explain");
    assert_eq!(up.interrupt().code, Some(0));

    // A slice without a model is reported.
    let standings = place.path("store/models/price_rating/slices.json");
    let mut slices: Value = serde_json::from_slice(&std::fs::read(&standings).unwrap()).unwrap();
    slices["2"] = json!({"refused": "too few rows"});
    std::fs::write(&standings, slices.to_string()).unwrap();
    let mut serve = place.start(&["serve", "--bind", "127.0.0.1:0"]);
    serve.address = format!("http://{}", serve.said("at http://").split(',').next().unwrap());
    let said = serve.post(&format!("{PATH}?explain=true"), rows).json();
    assert_eq!(said[0]["explanation"]["slices"][1], json!({"slice": 2, "missing": "there is no model: too few rows"}));
    // There is nothing to wait for.
    for path in [PATH, "/api/cluster_products_by_price_rating", "/api/segments/price_rating/score"] {
        problem(&serve.post(&format!("{path}?model=2"), rows), 409, None, "there is no model: too few rows");
    }
    for path in ["models/2", "points?model=2", "k-report?model=2"] {
        let answer = serve.get(&format!("/api/segments/price_rating/{path}"));
        problem(&answer, 409, None, "there is no model: too few rows");
    }
}

#[test]
fn what_a_client_has_is_not_sent_again() {
    let (_place, up) = up(&[]);
    for path in ["", "/price_rating", "/price_rating/models", "/price_rating/models/2", "/price_rating/points"] {
        let path = format!("/api/segments{path}");
        let first = up.get(&path);
        let tag = first.header("etag").unwrap_or_else(|| panic!("{path} has no ETag")).to_owned();
        let again = up.call("GET", &path, &[("if-none-match", &format!("\"x\", {tag}"))]);
        assert_eq!((again.status, again.bytes.len(), again.header("etag")), (304, 0, Some(tag.as_str())), "{path}");
        assert_eq!(up.call("GET", &path, &[("if-none-match", "\"x\"")]).status, 200, "{path}");
    }
    assert_eq!(up.get("/api/segments/price_rating/models/2").header("model-version"), Some("2"));
    let typed = up.post("/api/cluster_products_by_discount?model=1", r#"[{"discount_percentage":9}]"#);
    assert_eq!((typed.header("etag"), typed.header("model-version")), (Some("\"discount@1@1\""), Some("1")));
    let own = up.post("/api/cluster_products_by_discount?fit=request", r#"[{"discount_percentage":9}]"#);
    assert_eq!((own.status, own.header("etag")), (200, None));
}
