//! The OpenAPI document: examples of each request, response and problem that match a server with the built-in sample; limits
//! that match the command line; names that are suitable for generated clients.

use std::sync::{Mutex, PoisonError};

use common::{Answer, Place, Running, eventually};
use serde_json::{Map, Value};

use crate::common;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/examples.json");

/// Operations with special tests or without any: all messages of the sample are valid, and the event stream is endless.
const APART: [&str; 13] = [
    "getMember",
    "getMetrics",
    "listCandidates",
    "listClusterMembers",
    "listUnreadable",
    "lookUpMembers",
    "pin",
    "promoteCandidate",
    "rejectCandidate",
    "rollBack",
    "startTraining",
    "unpin",
    "watchStatus",
];

/// Fields that differ between runs; only their types are compared.
const OF_THE_MOMENT: [&str; 11] = [
    "now",
    "since",
    "trained_at",
    "timestamp",
    "bytes",
    "rate",
    "received",
    "lag",
    "rows_hash",
    "sql_hash",
    "iterations",
];

fn document() -> Value {
    serde_json::from_str(&Place::new().ok(&["openapi"])).unwrap()
}

fn examples() -> Value {
    serde_json::from_str(&std::fs::read_to_string(EXAMPLES).unwrap()).unwrap()
}

/// Each operation with its method and path.
fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, of)| {
        of.as_object().unwrap().iter().map(|(method, operation)| (method.as_str(), path.as_str(), operation))
    })
}

/// A response, with its reference resolved.
fn resolved<'d>(document: &'d Value, one: &'d Value) -> &'d Value {
    match one["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).expect(reference),
        None => one,
    }
}

/// Compares the example at a position of the file with a server's response; with TERCILE_REWRITE the response is written
/// instead.
fn hold(at: &str, found: Value) {
    static WRITING: Mutex<()> = Mutex::new(());
    let _one = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all = examples();
    let example = all.pointer_mut(at).unwrap_or_else(|| panic!("no example at {at}"));
    if std::env::var_os("TERCILE_REWRITE").is_none() {
        return same(at, example, &found);
    }
    *example = found;
    std::fs::write(EXAMPLES, format!("{}\n", serde_json::to_string_pretty(&all).unwrap())).unwrap();
}

fn same(at: &str, example: &Value, found: &Value) {
    let key = at.rsplit('/').next().unwrap();
    match (example, found) {
        (Value::Object(a), Value::Object(b)) => {
            let keys = |object: &Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(a), keys(b), "{at}");
            a.iter().for_each(|(key, value)| same(&format!("{at}/{key}"), value, &b[key]));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).for_each(|(a, b)| same(at, a, b));
        }
        _ if OF_THE_MOMENT.contains(&key) => {
            assert_eq!(std::mem::discriminant(example), std::mem::discriminant(found), "{at}: {example}, {found}");
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-9 * a.abs().max(1.0), "{at}: {a}, {b}");
        }
        _ => assert_eq!(example, found, "{at}"),
    }
}

fn ask(running: &Running, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
    match body {
        Some(body) => running.ask(path, headers, body),
        None if method == "POST" => running.ask(path, headers, ""),
        None => running.call(method, path, headers),
    }
}

#[test]
fn every_question_and_answer_has_an_example() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no name"));
        assert!(operation["summary"].is_string(), "{id} has no summary");
        for (kind, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
            assert!(kind.contains("arrow") || !content["example"].is_null(), "{id}: no example of a request as {kind}");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].is_string(), "{id}: {parameter}");
        }
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolved(&document, response);
            assert!(response["description"].is_string(), "{id}: {status}");
            assert!(response["headers"]["X-Request-Id"].is_object(), "{id}: {status} has no X-Request-Id");
            for (kind, content) in response["content"].as_object().into_iter().flatten() {
                let shown = kind.contains("arrow") || kind.contains("ndjson") || !content["example"].is_null();
                assert!(shown, "{id}: no example of {status} as {kind}; it goes into openapi/examples.json");
                if !status.starts_with('2') {
                    assert_eq!(kind, "application/problem+json", "{id}: {status}");
                    assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem", "{id}: {status}");
                    assert_eq!(content["example"]["status"].to_string(), *status, "{id}");
                }
            }
        }
        let has = |status: &str, header: &str| match operation["responses"].get(status) {
            Some(response) => assert!(resolved(&document, response)["headers"][header].is_object(), "{id}: {status}"),
            None => panic!("{id} does not say that it may answer {status}"),
        };
        has("431", "X-Request-Id");
        if path.starts_with("/api/") {
            has("401", "WWW-Authenticate");
            has("429", "Retry-After");
            has("403", "X-Request-Id");
            has("422", "X-Request-Id");
        }
        if operation["requestBody"].is_object() {
            ["400", "408", "413", "415"].iter().for_each(|status| has(status, "X-Request-Id"));
        }
    }
}

#[test]
fn names_are_ready_for_generated_clients() {
    let document = document();
    fn check(at: &str, value: &Value) {
        match value {
            Value::Object(object) => {
                assert!(!object.contains_key("allOf"), "{at}: generators make a type of its own of this");
                if at.contains("/paths/") && at.ends_with("/schema/items") {
                    assert!(object.contains_key("$ref"), "{at} has no name");
                }
                object.iter().for_each(|(key, value)| check(&format!("{at}/{key}"), value));
            }
            Value::Array(all) => all.iter().for_each(|value| check(at, value)),
            _ => {}
        }
    }
    check("", &document);
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        assert_eq!(schema["title"].as_str().unwrap_or(name), name);
    }
}

#[test]
fn limits_are_those_of_the_command_line() {
    let document = document();
    let help = Place::new().ok(&["serve", "--help"]);
    let mut held = 0;
    for line in document["info"]["description"].as_str().unwrap().lines().filter(|line| line.contains("| `--")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let (default, flag) = (cells[1], cells[2].trim_matches('`'));
        let from = help.find(&format!("\n      {flag} ")).unwrap_or_else(|| panic!("there is no {flag}"));
        let after = &help[from + 1..];
        let own = &after[..after.find("\n      --").unwrap_or(after.len())];
        let own = own.split_whitespace().collect::<Vec<_>>().join(" ");
        let said = match default.split_once("; none on loopback") {
            Some((number, _)) => format!("[default: {number}, on loopback 0]"),
            None => format!("[default: {default}]"),
        };
        assert!(own.contains(&said), "{flag}: the document says {default}, the help {own}");
        held += 1;
    }
    assert!(held > 10, "{held}");
}

#[test]
fn answers_are_those_of_the_sample() {
    let (document, examples) = (document(), examples());
    let place = Place::new();
    let running = place.up(&["--enable-sql"]);
    // Other operations are called while the training runs, and its result is checked at the end.
    let started = ask(&running, "POST", "/api/train", &[], None).json();
    hold("/operations/startTraining/response/application~1json", started);
    eventually("the end of the training", || running.get("/api/train/1").json()["state"] != "running");
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        let example = &examples["operations"][id];
        if APART.contains(&id) {
            continue;
        }
        let path = path.replace("{name}", "price_rating").replace("{slice}", "3").replace("{job}", "1");
        for kind in example["response"].as_object().unwrap_or_else(|| panic!("{id} has no example")).keys() {
            let body = example["request"].as_object().map(|request| {
                let body = request.get(kind).unwrap_or(&request["application/json"]);
                body.as_str().map_or_else(|| body.to_string(), str::to_owned)
            });
            let sent = example["request"].get(kind).map_or("application/json", |_| kind);
            let headers = [("accept", kind.as_str()), ("content-type", sent)];
            let headers = if body.is_some() { &headers[..] } else { &headers[..1] };
            let found = ask(&running, &method.to_ascii_uppercase(), &path, headers, body.as_deref());
            assert_eq!(found.status, 200, "{id}: {}", found.text);
            let at = format!("/operations/{id}/response/{}", kind.replace('/', "~1"));
            if kind != "application/json" {
                hold(&at, found.text.into());
                continue;
            }
            let mut found = found.json();
            // The first few points are sufficient, and the last of several models.
            if let Some(points) = found.get_mut("points").and_then(Value::as_array_mut) {
                points.truncate(3);
            } else if id == "listModels" {
                found.as_array_mut().unwrap().drain(..2);
            }
            hold(&at, found);
        }
    }
    let rows = examples["operations"]["predict"]["request"]["application/json"].to_string();
    let explained = running.post("/api/segments/price_rating/predict?explain=true", &rows).json();
    hold("/schemas/Explanation", explained[0]["explanation"].clone());
    for (id, method, path) in [("pin", "PUT", "pin"), ("unpin", "DELETE", "pin"), ("rollBack", "POST", "rollback")] {
        let changed = ask(&running, method, &format!("/api/segments/price_rating/{path}/3"), &[], None).json();
        hold(&format!("/operations/{id}/response/application~1json"), changed);
    }
    let metrics = running.get("/metrics").text;
    for line in examples["operations"]["getMetrics"]["response"]["text/plain; charset=utf-8"].as_str().unwrap().lines()
    {
        assert!(metrics.contains(line), "{line}");
    }

    // The same SQL with another comment gives the same clusters, as candidates.
    for file in common::files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        place.write(&format!("other/{name}"), std::fs::read_to_string(&file).unwrap() + "\n-- Changed.\n");
    }
    place.ok(&["train", "--sql", "other", "--promote", "manual"]);
    let list = "/api/segments/price_rating/candidates";
    eventually("the server knows the candidates", || running.get(list).json().as_array().unwrap().len() == 3);
    let mut found = running.get(list).json();
    found.as_array_mut().unwrap().truncate(1);
    hold("/operations/listCandidates/response/application~1json", found);
    for (id, slice, word) in [("promoteCandidate", 3, "promote"), ("rejectCandidate", 2, "reject")] {
        let decided = ask(&running, "POST", &format!("{list}/{slice}/{word}"), &[], None).json();
        hold(&format!("/operations/{id}/response/application~1json"), decided);
    }
}

/// The sample with a segmentation of entities: the latest record of each product.
fn place_of_entities() -> Place {
    let place = Place::new();
    for file in common::files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
    }
    let sql = "-- k: 3\n-- entity: product_id\n\nSELECT product_id, discounted_price, rating FROM (SELECT *, row_number() OVER (PARTITION BY product_id ORDER BY _timestamp DESC, _partition DESC, _offset DESC) AS nth FROM products) WHERE nth = 1";
    place.write("sql/33_latest.sql", sql);
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    std::fs::remove_file(place.path("store/models/latest/1.members.parquet")).unwrap();
    // As trained by a build without baselines.
    let file = place.path("store/models/latest/1.json");
    let mut model: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    model.as_object_mut().unwrap().remove("baseline").unwrap();
    std::fs::write(&file, model.to_string()).unwrap();
    place
}

#[test]
fn answers_about_members_are_those_of_the_sample() {
    let examples = examples();
    let place = place_of_entities();
    let running = place.serve(&[]);
    let found = running.get("/api/segments/latest/members/B0YG9IDWN7").json();
    hold("/operations/getMember/response/application~1json", found);
    let keys = examples["operations"]["lookUpMembers"]["request"]["application/json"].to_string();
    hold(
        "/operations/lookUpMembers/response/application~1json",
        running.post("/api/segments/latest/members", &keys).json(),
    );
    let list = "/api/segments/latest/clusters/1/members";
    let page = running.get(&format!("{list}?limit=2")).json();
    hold("/operations/listClusterMembers/response/application~1json", page);
    let csv = running.call("GET", list, &[("accept", "text/csv")]).text;
    let first: Vec<&str> = csv.lines().take(3).collect();
    hold("/operations/listClusterMembers/response/text~1csv", (first.join("\n") + "\n").into());
}

#[test]
fn problems_are_those_that_a_server_has() {
    let examples = examples();
    let place = Place::new();
    let sample = place.up(&["--enable-sql"]);
    let empty = place.serve(&["--store", "empty"]);
    let of_entities = place_of_entities();
    let entities = of_entities.serve(&[]);
    let key = place.ok(&["keys", "create", "shop", "--scope", "read", "--store", "keyed"]);
    let keyed = || place.serve(&["--store", "keyed", "--require-keys", "--rate-limit", "1"]);
    for (i, example) in examples["problems"].as_array().unwrap().iter().enumerate() {
        let asked = &example["ask"];
        // Cases that need a minute, a full disk or a gibibyte are tested elsewhere.
        if asked.is_null() {
            continue;
        }
        let fresh;
        let running = match asked["server"].as_str().unwrap() {
            "empty" => &empty,
            "entities" => &entities,
            "keyed" => {
                // A server without previous requests.
                fresh = keyed();
                &fresh
            }
            _ => &sample,
        };
        let given = asked["headers"].as_object().into_iter().flatten();
        let headers: Vec<(String, String)> = given
            .map(|(name, value)| {
                let value = value.as_str().unwrap().replace("KEY", key.trim_end());
                (name.clone(), value.replace("FILL", &"x".repeat(16_384)))
            })
            .collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let fill = asked["fill"].as_object().map(|fill| {
            let text = |part: &str| fill[part].as_str().unwrap();
            format!(
                "{}{}{}",
                text("before"),
                text("piece").repeat(fill["times"].as_u64().unwrap() as usize),
                text("after")
            )
        });
        let body = fill.as_deref().or(asked["body"].as_str());
        let (method, path) = (asked["method"].as_str().unwrap(), asked["path"].as_str().unwrap());
        let mut found = ask(running, method, path, &headers, body);
        for _ in 1..asked["times"].as_u64().unwrap_or(1) {
            found = ask(running, method, path, &headers, body);
        }
        hold(&format!("/problems/{i}/problem"), found.json());
        assert_eq!(found.content_type, "application/problem+json");
        assert_eq!(found.json()["status"], found.status, "{asked}");
    }
}
