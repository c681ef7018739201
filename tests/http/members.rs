//! Members of segmentations of entities over HTTP: look-ups, lists, scopes, and models that are swapped meanwhile.

use std::collections::BTreeMap;

use common::{Place, Running, eventually};
use serde_json::{Value, json};

use crate::common;

const LATEST: &str = "-- k: 3
-- entity: customer

SELECT customer, amount, n FROM (SELECT customer, amount, TRY_CAST(n AS DOUBLE) AS n FROM (
  SELECT customer, TRY_CAST(amount AS DOUBLE) AS amount, n,
    row_number() OVER (PARTITION BY customer ORDER BY _timestamp DESC, _partition DESC, _offset DESC) AS nth
  FROM records WHERE _error IS NULL) WHERE nth = 1)";

const PATH: &str = "/api/segments/latest/members";

/// Keys that are hard to send, among many plain ones.
fn keys() -> Vec<String> {
    let odd = ["", "a/b", "50%", "two\nlines", "😀", "predict", "members", "?", "a b", "\"q\"", "..", "'; DROP"];
    let mut keys: Vec<String> = odd.iter().map(|key| (*key).to_owned()).collect();
    keys.push("k".repeat(20_000));
    keys.extend((0..5000).map(|i| format!("C{i:05}")));
    keys
}

fn place() -> Place {
    let place = Place::new();
    place.write("sql/00_records.sql", "CREATE TABLE records (customer TEXT, amount TEXT, n TEXT)");
    place.write("sql/30_latest.sql", LATEST);
    place.write("sql/31_plain.sql", "-- k: 2\n\nSELECT _partition, _offset, _timestamp, 1 AS _slice, TRY_CAST(amount AS DOUBLE) AS amount FROM records");
    place.write(
        "sql/32_pairs.sql",
        "-- k: 2\n-- entity: letter, number\n\nSELECT left(customer, 1) AS letter, CAST(substr(customer, 2) AS BIGINT) AS number, CAST(amount AS DOUBLE) AS amount FROM records WHERE customer LIKE 'C0%'",
    );
    let row = |(i, key): (usize, &String)| {
        let n = if i % 10 == 0 { Value::Null } else { json!(i % 7) };
        json!({ "customer": key, "amount": (i * 7919) % 1000 + if i % 3 == 0 { 100_000 } else { 0 }, "n": n })
            .to_string()
            + "\n"
    };
    place.write("orders.ndjson", keys().iter().enumerate().map(row).collect::<String>());
    let up = place.up(&["--data", "orders.ndjson"]).interrupt();
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    place
}

fn encoded(key: &str) -> String {
    key.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn problem(running: &Running, method: &str, path: &str, body: Option<&str>, status: u16) -> String {
    let answer = match body {
        Some(body) => running.post(path, body),
        None => running.call(method, path, &[]),
    };
    assert_eq!(answer.status, status, "{path}: {}", answer.text);
    assert_eq!(answer.content_type, "application/problem+json", "{path}");
    answer.text
}

#[test]
fn members_are_found_by_key_and_listed_by_cluster() {
    let place = place();
    let running = place.serve(&[]);
    let model: Value = running.get("/api/segments/latest/models/3").json();
    // By POST every key is found, in order; each is the same by GET, if it can be in a path.
    let mut asked: Vec<Value> = keys().into_iter().map(Value::from).collect();
    asked.insert(3, json!("nobody"));
    asked.insert(5, json!({ "customer": "C00007" }));
    let found = running.post(PATH, &json!(asked).to_string()).json();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), asked.len());
    let mut clusters: BTreeMap<u64, usize> = BTreeMap::new();
    for (key, member) in asked.iter().zip(found) {
        if key == "nobody" {
            assert!(member.is_null());
            continue;
        }
        let text = key.as_str().unwrap_or("C00007");
        assert_eq!(member["key"]["customer"], *text);
        let cluster = member["cluster"].as_u64().unwrap();
        assert_eq!(member["description"], model["clusters"][cluster as usize]["description"]);
        if key.is_string() {
            *clusters.entry(cluster).or_default() += 1;
        }
    }
    for (cluster, size) in &clusters {
        assert_eq!(model["clusters"][*cluster as usize]["size"], *size);
    }
    for (key, member) in asked
        .iter()
        .zip(found)
        .filter(|(key, _)| key.as_str().is_some_and(|key| !key.is_empty()))
        .step_by(200)
        .chain(asked.iter().zip(found).skip(1).take(14))
    {
        let Some(key) = key.as_str().filter(|key| key.len() < 1000 && *key != "nobody") else { continue };
        let one = running.get(&format!("{PATH}/{}", encoded(key)));
        assert_eq!(one.status, 200, "{key}: {}", one.text);
        assert_eq!(one.json(), *member);
        assert_eq!(one.header("model-version"), Some("3"));
    }
    let plain = running.get(&format!("{PATH}/C00000?lang=id&model=3")).json();
    let keys: Vec<&String> = plain.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["key", "cluster", "description", "features", "distance", "previous", "model", "version"]);
    // A missing feature is null.
    assert!(found.iter().any(|member| member["features"]["n"].is_null() && !member.is_null()));

    let mut any_moved = false;
    // Pages put together are the list, in the order of the keys, in each format.
    for (cluster, size) in clusters {
        let path = format!("/api/segments/latest/clusters/{cluster}/members");
        let (mut all, mut next) = (Vec::new(), Value::Null);
        loop {
            let after = next.as_str().map_or_else(String::new, |next| format!("&after={}", encoded(next)));
            let page = running.get(&format!("{path}?limit=700{after}"));
            assert_eq!(page.status, 200, "{}", page.text);
            let page = page.json();
            all.extend(page["members"].as_array().unwrap().clone());
            next = page["next"].clone();
            if next.is_null() {
                break;
            }
            assert_eq!(page["members"].as_array().unwrap().len(), 700);
        }
        assert_eq!(all.len(), size);
        assert!(all.is_sorted_by_key(|member| member["key"]["customer"].as_str().unwrap().as_bytes().to_vec()));
        let is_moved = |member: &&Value| member["previous"].as_u64().is_some_and(|before| before != cluster);
        let moved: Vec<&Value> = all.iter().filter(is_moved).collect();
        let page = running.get(&format!("{path}?moved=true&limit=10000")).json();
        assert!(page["members"].as_array().unwrap().iter().eq(moved.iter().copied()) && page["next"].is_null());
        let csv = running.call("GET", &format!("{path}?moved=true"), &[("accept", "text/csv")]);
        let mut csv = csv::Reader::from_reader(csv.bytes.as_slice());
        assert_eq!(csv.records().count(), moved.len());
        any_moved |= !moved.is_empty();
        let as_form = |form: &str| running.call("GET", &path, &[("accept", form)]);
        let lines = as_form("application/x-ndjson").text;
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, all);
        let csv = as_form("text/csv");
        assert_eq!(csv.content_type, "text/csv; charset=utf-8");
        let mut csv = csv::Reader::from_reader(csv.bytes.as_slice());
        assert_eq!(
            csv.headers().unwrap(),
            vec!["customer", "amount", "n", "cluster", "description", "distance", "previous"]
        );
        let keys: Vec<String> = csv.records().map(|record| record.unwrap()[0].to_owned()).collect();
        assert!(keys.iter().eq(all.iter().map(|member| member["key"]["customer"].as_str().unwrap())));
        place.write("list.arrow", as_form("application/vnd.apache.arrow.stream").bytes);
        let file = std::fs::File::open(place.path("list.arrow")).unwrap();
        let arrow = datafusion::arrow::ipc::reader::StreamReader::try_new(file, None).unwrap();
        assert_eq!(arrow.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), size);
    }
    assert!(any_moved);
    // Keys of several columns.
    let pairs = running
        .post(
            "/api/segments/pairs/members",
            r#"[{"letter":"C","number":17},{"number":18,"letter":"C"},{"letter":"D","number":17}]"#,
        )
        .json();
    assert_eq!(pairs[0]["key"], json!({ "letter": "C", "number": 17 }));
    assert!(pairs[1].is_object() && pairs[2].is_null());
    let page = running.get("/api/segments/pairs/clusters/0/members?limit=1").json();
    let after = encoded(page["next"].as_str().unwrap());
    let following = running.get(&format!("/api/segments/pairs/clusters/0/members?limit=1&after={after}")).json();
    assert!(following["members"][0]["key"]["number"].as_i64() > page["members"][0]["key"]["number"].as_i64());
}

#[test]
fn what_does_not_exist_or_fit_is_told_without_a_key() {
    let place = place();
    let running = place.serve(&["--log-format", "json"]);
    problem(&running, "GET", &format!("{PATH}/SECRET1"), None, 404);
    problem(&running, "GET", "/api/segments/nothing/members/SECRET2", None, 404);
    let plain = problem(&running, "GET", "/api/segments/plain/members/SECRET3", None, 404);
    assert!(plain.contains("is a segmentation of records"), "{plain}");
    problem(&running, "GET", "/api/segments/plain/clusters/0/members", None, 404);
    problem(&running, "GET", "/api/segments/latest/clusters/3/members", None, 404);
    problem(&running, "GET", "/api/segments/latest/clusters/x/members", None, 404);
    problem(&running, "GET", &format!("{PATH}/SECRET4?as_of=99"), None, 404);
    problem(&running, "GET", &format!("{PATH}/SECRET4?after=x"), None, 422);
    problem(&running, "GET", "/api/segments/pairs/members/SECRET5", None, 422);
    let long = running.call("GET", &format!("{PATH}/{}", "k".repeat(20_000)), &[]);
    assert!([414, 431].contains(&long.status), "{}", long.status);
    let many = |n: usize| json!(vec!["SECRET6"; n]).to_string();
    assert_eq!(running.post(PATH, &many(10_000)).status, 200);
    problem(&running, "POST", PATH, Some(&many(10_001)), 413);
    for (body, status) in [
        ("[null]", 422),
        ("[[1]]", 422),
        (r#"[{"other":"SECRET7"}]"#, 422),
        ("{}", 422),
        (r#"["SECRET8""#, 400),
        ("", 400),
        (r#"[SECRET9]"#, 400),
    ] {
        let text = problem(&running, "POST", PATH, Some(body), status);
        assert!(!text.contains("SECRET"), "{text}");
    }
    assert_eq!(running.post(PATH, "[]").json(), json!([]));
    for wrong in ["limit=0", "limit=10001", "limit=x", "fit=request"] {
        problem(&running, "GET", &format!("/api/segments/latest/clusters/0/members?{wrong}"), None, 422);
    }
    let list = "/api/segments/latest/clusters/0/members";
    assert_eq!(running.call("GET", &format!("{list}?limit=5"), &[("accept", "text/csv")]).status, 422);
    assert_eq!(running.call("GET", list, &[("accept", "text/html")]).status, 406);
    // Deleted members.
    std::fs::remove_file(place.path("store/models/latest/2.members.parquet")).unwrap();
    for path in [format!("{PATH}/C00001"), "/api/segments/latest/clusters/0/members".to_owned()] {
        let separator = if path.contains('?') { '&' } else { '?' };
        problem(&running, "GET", &format!("{path}{separator}model=2"), None, 410);
        problem(&running, "GET", &format!("{path}{separator}as_of=2"), None, 410);
    }
    let metrics = running.get("/metrics").text;
    assert!(metrics.contains("/api/segments/{name}/members/{key}") && !metrics.contains("SECRET"), "{metrics}");
    let log = running.stderr();
    assert!(log.contains("/members") && !log.contains("SECRET"), "{log}");
}

#[test]
fn members_need_their_scope() {
    let place = place();
    let key = |scope: &str| place.ok(&["keys", "create", scope, "--scope", scope]).trim_end().to_owned();
    let keys: Vec<(String, String)> =
        ["read", "train", "members", "admin"].map(|scope| (scope.to_owned(), key(scope))).into();
    let running = place.serve(&["--require-keys"]);
    for (scope, key) in keys {
        let header = format!("Bearer {key}");
        let ask = |method: &str, path: &str| running.call(method, path, &[("authorization", &header)]).status;
        let may = ["members", "admin"].contains(&scope.as_str());
        let expected = if may { 200 } else { 403 };
        assert_eq!(ask("GET", &format!("{PATH}/C00001")), expected, "{scope}");
        assert_eq!(ask("GET", "/api/segments/latest/clusters/0/members"), expected, "{scope}");
        let headers = [("authorization", header.as_str()), ("content-type", "application/json")];
        assert_eq!(running.ask(PATH, &headers, "[\"C00001\"]").status, expected, "{scope}");
        assert_eq!(ask("GET", "/api/segments"), 200, "{scope}");
        let trains = ask("POST", "/api/train");
        assert_eq!(trains == 403, ["read", "members"].contains(&scope.as_str()), "{scope}: {trains}");
    }
}

/// Look-ups that read different row groups of one file at the same time, on servers that have read none yet.
#[test]
fn many_look_ups_at_once_find_their_own() {
    let place = place();
    for _ in 0..3 {
        let running = place.serve(&[]);
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let running = &running;
                scope.spawn(move || {
                    for i in 0..20 {
                        let key = format!("C{:05}", (thread * 1237 + i * 977) % 5000);
                        let answer = running.get(&format!("{PATH}/{key}"));
                        assert_eq!(answer.status, 200, "{key}: {}", answer.text);
                        assert_eq!(answer.json()["key"]["customer"], key.as_str());
                    }
                });
            }
        });
    }
}

/// Promotions under look-ups: each answer is of one version. `TERCILE_TEST_SWAPS` is the number of promotions.
#[test]
fn no_answer_mixes_versions() {
    let place = place();
    let more: String = (0..5000)
        .map(|i| json!({ "customer": format!("C{i:05}"), "amount": (i * 31) % 977, "n": 1 }).to_string() + "\n")
        .collect();
    place.write("more.ndjson", more);
    assert_eq!(place.up(&["--data", "more.ndjson", "--append"]).interrupt().code, Some(0));
    let running = place.serve(&[]);
    let versions: Vec<u64> = vec![3, 6];
    let of = |version: u64| running.post(&format!("{PATH}?as_of={version}"), r#"["C00001","C00002","C00003"]"#).text;
    let expected: BTreeMap<u64, String> = versions.iter().map(|&version| (version, of(version))).collect();
    assert_ne!(expected[&3], expected[&6]);
    let swaps: usize = std::env::var("TERCILE_TEST_SWAPS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..swaps {
                place.ok(&["models", "rollback", "latest", if i % 2 == 0 { "3" } else { "6" }]);
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            let answer = running.post(PATH, r#"["C00001","C00002","C00003"]"#);
            assert_eq!(answer.status, 200, "{}", answer.text);
            let version: u64 = answer.header("model-version").unwrap().parse().unwrap();
            assert_eq!(answer.text, expected[&version]);
            *seen.entry(version).or_default() += 1;
        }
    });
    assert_eq!(seen.len(), 2, "{seen:?}");
    // The entities of the newer version were in clusters before.
    eventually("an answer", || running.get(&format!("{PATH}/C00001?as_of=6")).json()["previous"].is_u64());
}
