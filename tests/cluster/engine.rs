//! A scheduler and two executors as processes: same answers as on one machine, and behaviour when executors die.

use std::path::Path;
use std::time::{Duration, Instant};

use common::cluster::cluster;
use common::{Place, within};
use serde_json::Value;

use crate::common;

/// More rows in every slice than the restarts sample: all passes of a training run on the executors.
const ROWS: &str = "200000";
/// Time limit for the first model in a dev build.
const TRAINING: Duration = Duration::from_secs(240);

/// A store with many records, and a copy of it without models.
fn place() -> Place {
    let place = Place::new();
    place.ok(&["generate", ROWS, "--format", "ndjson", "--output", "rows.ndjson"]);
    place.up(&["--data", "rows.ndjson", "--store", "here"]).interrupt();
    std::fs::remove_dir_all(place.path("here/models")).unwrap();
    copy(&place.path("here"), &place.path("there"));
    place
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// Relative difference between the inertias of two local minima: a cluster draws other coresets to search.
const MINIMA: f64 = 0.01;
/// Fields that differ between trainings: times, passes, and quartiles, which a cluster takes from a sample.
const OTHER: [&str; 5] = ["trained_at", "seconds", "iterations", "typical", "moved"];
/// Fields that depend on which local minimum was found.
const OF_A_MINIMUM: [&str; 5] = ["inertia", "silhouette", "centroid", "size", "spread"];

/// Fails if two models differ. Doubles may differ in the tenth digit, and one model may be another local minimum that is nearly as
/// good.
fn same(one: &Value, other: &Value, at: &str) {
    same_but(one, other, at, &OTHER);
}

fn same_but(one: &Value, other: &Value, at: &str, but: &[&str]) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{at}");
            let inertia = |of: &serde_json::Map<String, Value>| of.get("inertia").and_then(Value::as_f64);
            let off = inertia(one).zip(inertia(other)).map_or(0.0, |(one, other)| (other / one - 1.0).abs());
            assert!(off < MINIMA, "{at}.inertia: {off}");
            let but = if off < 1e-9 { but.to_vec() } else { [but, &OF_A_MINIMUM].concat() };
            let fields = one.iter().filter(|(name, _)| !but.contains(&name.as_str()));
            fields.for_each(|(name, value)| same_but(value, &other[name], &format!("{at}.{name}"), &but));
        }
        (Value::Array(one), Value::Array(other)) => {
            assert_eq!(one.len(), other.len(), "{at}");
            one.iter().zip(other).for_each(|(one, other)| same_but(one, other, at, but));
        }
        (Value::Number(one), Value::Number(other)) if one.is_f64() => {
            let (one, other) = (one.as_f64().unwrap(), other.as_f64().unwrap());
            assert!((one - other).abs() <= 1e-9 * one.abs(), "{at}: {one} here, {other} there");
        }
        _ => assert_eq!(one, other, "{at}"),
    }
}

fn models(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_cluster_gives_what_one_machine_gives_and_bears_the_death_of_an_executor() {
    let place = place();
    let (_scheduler, address, mut executors) = cluster(&place);
    let ask = |engine: &str, sql: &str| {
        place.ok(&["sql", "--store", "here", "--engine", engine, "--format", "csv", "-c", sql])
    };
    for sql in [
        "SELECT rating, count(*) AS n FROM products GROUP BY rating ORDER BY n DESC, rating",
        "SELECT _slice, count(*), sum(rating_count) FROM slices GROUP BY _slice ORDER BY 1",
        "SELECT * FROM slice_cuts() ORDER BY slice",
        "SELECT * FROM categories ORDER BY main_category",
        "SELECT product_id FROM products WHERE rating > 9",
        "SELECT array_length(array_agg(rating)) FROM products",
    ] {
        assert_eq!(ask(&address, sql), ask("local", sql), "{sql}");
    }
    // The number of partitions.
    let few = format!("{address}?parts=3");
    let counted = "SELECT rating, count(*) FROM products GROUP BY rating ORDER BY rating";
    assert_eq!(ask(&few, counted), ask("local", counted));
    let plan = ask(&few, &format!("EXPLAIN {counted}"));
    assert!(plan.contains("], 3)") && !plan.contains("], 16)"), "{plan}");
    // Removed and added fields.
    copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")), &place.path("changed"));
    let declared = std::fs::read_to_string(place.path("changed/00_records.sql")).unwrap();
    let changed = declared.replace("  img_link            TEXT,\n", "  weight TEXT,\n");
    assert_ne!(changed, declared);
    place.write("changed/00_records.sql", changed);
    let moved = |engine: &str| {
        let sql = "SELECT count(*), count(weight), min(_extra), max(_extra) FROM records";
        let (store, files) = (["--store", "here"], ["--sql", "changed"]);
        let rest = ["--engine", engine, "--format", "csv", "-c", sql];
        place.ok(&[&["sql"], &store[..], &files, &rest].concat())
    };
    assert_eq!(moved(&address), moved("local"));
    assert!(moved(&address).contains("img_link"), "{}", moved(&address));
    let refused = place.fails(
        1,
        &[
            "sql",
            "--store",
            "here",
            "--engine",
            &address,
            "-c",
            "SELECT segment_name('discount', rating) FROM products",
        ],
    );
    assert!(refused.contains("use --engine local"), "{refused}");

    let here = models(&place.ok(&["train", "--store", "here", "--json"]));
    let mut training = place.start(&["train", "--store", "there", "--engine", &address, "--json"]);
    within(TRAINING, "the first model", || place.path("there/models/price_rating/1.json").exists());
    executors[0].signal("-KILL");
    within(2 * TRAINING, "the end of the training", || training.child.try_wait().unwrap().is_some());
    assert!(training.wait().success(), "{}", training.stderr());
    let there = models(&place.ok(&["train", "--store", "there", "--json"]));
    same(&strip(here), &strip(there), "models");
    let verified = place.ok(&["verify", "price_rating@3", "--store", "there", "--engine", &address]);
    assert!(verified.contains("to nine digits"), "{verified}");
    assert_eq!(std::fs::read_dir(place.path("there/tmp")).unwrap().count(), 0, "nothing stays in tmp/");
    executors[0].wait();
}

/// JSON functions, table functions, and the members of entities, whose sums are exact.
#[test]
fn json_functions_and_entities_are_those_of_one_machine() {
    let place = Place::new();
    let row = |i: u64| {
        let (shop, price) = (i * 7919 % 400, (i * 37 % 900) as f64 / 7.0);
        let meta = format!("{{\"colour\":\"c{}\",\"size\":{{\"n\":{}}}}}", i % 5, i % 11);
        format!(
            "{{\"shop\":\"s{shop}\",\"price\":\"{price}\",\"meta\":{meta},\"more\":{{\"tags\":[\"t{}\"]}}}}\n",
            i % 3
        )
    };
    place.write("rows.ndjson", (0..4000).map(row).collect::<String>());
    place.write("sql/00_records.sql", "CREATE TABLE records (shop TEXT, price TEXT, meta TEXT)");
    place.write(
        "sql/30_shops.sql",
        "-- k: 3\n-- entity: shop\n\nSELECT shop, sum(to_number(price)) AS turnover, avg(to_number(price)) AS price, \
         count(*) FILTER (WHERE (meta->>'colour') = 'c1') AS reds FROM records GROUP BY shop",
    );
    place.up(&["--data", "rows.ndjson", "--store", "here"]).interrupt();
    std::fs::remove_dir_all(place.path("here/models")).unwrap();
    copy(&place.path("here"), &place.path("there"));
    let (_scheduler, address, _executors) = cluster(&place);
    let ask = |engine: &str, sql: &str| {
        place.ok(&["sql", "--store", "here", "--engine", engine, "--format", "csv", "-c", sql])
    };
    for sql in [
        "SELECT meta->>'colour' AS colour, count(*) AS n FROM records GROUP BY 1 ORDER BY 1",
        "SELECT sum(json_get_int(meta, 'size', 'n')) AS n, count(*) FROM records WHERE (meta->'size'->>'n') > '3'",
        "SELECT json_get_str(_extra, 'more', 'tags', 0) AS tag, count(*) AS n FROM records GROUP BY 1 ORDER BY 1",
        "SELECT topic, partition, count(*) AS n FROM records JOIN topics() USING (_partition) GROUP BY 1, 2",
        "SELECT count(*) AS n FROM records WHERE key_text(_key) IS NULL AND NOT is_tombstone(_error)",
    ] {
        let here = ask("local", sql);
        assert!(here.lines().count() > 1, "{sql}: {here}");
        assert_eq!(ask(&address, sql), here, "{sql}");
    }
    place.ok(&["train", "--store", "here"]);
    place.ok(&["train", "--store", "there", "--engine", &address]);
    for slice in ["1", "2", "3"] {
        let members = |store: &str| place.ok(&["members", "shops", "--slice", slice, "--store", store, "-f", "csv"]);
        let here = members("here");
        assert!(here.lines().count() > 300, "{here}");
        assert_eq!(here, members("there"), "slice {slice}: to the bit");
    }
    place.ok(&["verify", "shops@3", "--store", "there", "--engine", &address]);
    place.ok(&["verify", "shops@3", "--store", "there"]);
}

/// Removes the field that states whether this training produced the model.
fn strip(mut outcomes: Value) -> Value {
    outcomes
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .for_each(|outcome| drop(outcome.as_object_mut().unwrap().remove("fresh")));
    outcomes
}

#[test]
fn without_executors_a_training_ends_in_time_and_leaves_nothing_half_done() {
    let place = place();
    let (_scheduler, address, executors) = cluster(&place);
    let mut training = place.start(&["train", "--store", "there", "--engine", &address]);
    within(TRAINING, "its first rows", || {
        std::fs::read_dir(place.path("there/tmp")).is_ok_and(|mut entries| entries.next().is_some())
    });
    std::thread::sleep(Duration::from_millis(500));
    executors.iter().for_each(|executor| executor.signal("-KILL"));
    let killed = Instant::now();
    while training.child.try_wait().unwrap().is_none() {
        assert!(killed.elapsed() < Duration::from_secs(40), "it still waits: {}", training.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(training.wait().code(), Some(1));
    let said = training.stderr();
    assert!(
        said.lines().filter(|line| line.starts_with("error: ")).count() == 1 && said.contains("executor"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(place.path("there/tmp")).unwrap().count(), 0, "nothing stays in tmp/");
    assert!(!place.path("there/models/price_rating/slices.json").exists(), "no model serves");
    // The same store can be trained locally afterwards.
    place.ok(&["train", "--store", "there"]);
}

#[test]
fn a_scheduler_that_is_not_there_is_named() {
    let place = Place::new();
    place.ok(&["generate", "10", "--format", "ndjson", "--output", "rows.ndjson"]);
    place.up(&["--data", "rows.ndjson"]).interrupt();
    let said = place.fails(1, &["sql", "--engine", "df://127.0.0.1:9", "-c", "SELECT count(*) FROM products"]);
    assert!(said.contains("the scheduler df://127.0.0.1:9 does not answer"), "{said}");
}

/// The same with a store that no machine has as a directory.
#[cfg(feature = "object-stores")]
#[test]
fn a_cluster_over_an_object_store_gives_what_one_machine_gives() {
    let Ok(server) = std::env::var("TERCILE_TEST_S3") else {
        eprintln!("skipped: TERCILE_TEST_S3 names no S3-compatible server; .ci/s3 starts one");
        return;
    };
    let bucket = format!("{server}/cluster-{}", std::process::id());
    ureq::put(&bucket).send_empty().unwrap();
    let mut place = place();
    put(&place.path("there"), &format!("{bucket}/a/store"));
    let settings = [
        ("AWS_ENDPOINT_URL", server.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ];
    place.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let far = format!("s3://cluster-{}/a/store", std::process::id());
    let (_scheduler, address, _executors) = cluster(&place);
    let ask = |engine: &str| {
        let sql = "SELECT _slice, count(*), sum(rating_count) FROM slices GROUP BY _slice ORDER BY 1";
        place.ok(&["sql", "--store", &far, "--engine", engine, "--format", "csv", "-c", sql])
    };
    assert_eq!(ask(&address), ask("local"));
    let here = models(&place.ok(&["train", "--store", "here", "--json"]));
    let there = models(&place.ok(&["train", "--store", &far, "--json", "--engine", &address]));
    same(&here, &there, "models");
    let verified = place.ok(&["verify", "price_rating@3", "--store", &far, "--engine", &address]);
    assert!(verified.contains("to nine digits"), "{verified}");
    let left = ureq::get(&format!("{bucket}?list-type=2&prefix=a/store/tmp/")).call().unwrap();
    assert!(!left.into_body().read_to_string().unwrap().contains("<Key>"), "nothing stays in tmp/");
}

/// Uploads the files of a directory below a URL.
#[cfg(feature = "object-stores")]
fn put(from: &Path, to: &str) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = format!("{to}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            put(&entry.path(), &to);
        } else {
            ureq::put(&to).send(&std::fs::read(entry.path()).unwrap()[..]).unwrap();
        }
    }
}
