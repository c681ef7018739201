//! Promotions while models answer, pinned models, models of an older method, and trainings that are killed while writing.
//!
//! `TERCILE_TEST_SWAPS` and `TERCILE_TEST_MODEL_KILLS` are the numbers of promotions and kills.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Answer, Place, Running, eventually};
use serde_json::Value;

use crate::common;

const PREDICT: &str = "/api/segments/price_rating/predict";

fn many(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// The sample, trained; then 1,000 more records, trained again: versions 1 to 3, and 4 to 6.
fn trained_twice() -> Place {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    place.ok(&["generate", "1000", "--seed", "9", "-o", "more.csv"]);
    assert_eq!(place.up(&["--data", "more.csv", "--append"]).interrupt().code, Some(0));
    place
}

/// `n` rows with varied values.
fn rows(n: usize) -> String {
    let mut lines = String::new();
    for i in 0..n {
        let _ = writeln!(
            lines,
            r#"{{"discounted_price":{},"rating":{}}}"#,
            (i * 7919) % 5000,
            1.0 + (i % 40) as f64 / 10.0
        );
    }
    lines
}

fn bulk(running: &Running, query: &str, rows: &str) -> Answer {
    running.post_as(&format!("{PREDICT}{query}"), "application/x-ndjson", rows.as_bytes())
}

fn serving(running: &Running) -> Value {
    running.get("/api/segments/price_rating").json()["slices"][2].clone()
}

#[test]
fn no_answer_under_swaps_is_torn_mixed_or_missing() {
    let place = trained_twice();
    let running = place.serve(&[]);
    // One body large enough to stream, and one small enough for a single answer.
    let (large, small) = (rows(4000), rows(3));
    let right: BTreeMap<(usize, u64), Vec<u8>> = [large.as_str(), small.as_str()]
        .iter()
        .enumerate()
        .flat_map(|(of, rows)| {
            [3, 6].map(|version| ((of, version), bulk(&running, &format!("?as_of={version}"), rows).bytes))
        })
        .collect();
    assert_ne!(right[&(0, 3)], right[&(0, 6)], "the two versions are told apart");
    let (swaps, done, asked) = (many("TERCILE_TEST_SWAPS", 100), AtomicBool::new(false), AtomicU64::new(0));
    let seen: [AtomicU64; 2] = Default::default();
    std::thread::scope(|scope| {
        for of in [0, 1, 1] {
            let (running, right, done, asked, seen) = (&running, &right, &done, &asked, &seen);
            let rows = [large.as_str(), small.as_str()][of];
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let answer = bulk(running, "", rows);
                    assert_eq!(answer.status, 200, "{}", answer.text);
                    let version: u64 = answer.header("model-version").unwrap().parse().unwrap();
                    assert!(
                        answer.bytes == right[&(of, version)],
                        "an answer of version {version} is not that version's"
                    );
                    seen[usize::from(version == 6)].fetch_add(1, Ordering::Relaxed);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for swap in 0..swaps {
            let version = if swap % 2 == 0 { 3 } else { 6 };
            let path = format!("/api/segments/price_rating/rollback/{version}");
            let answer = running.call("POST", &path, &[]);
            assert_eq!((answer.status, answer.json()["version"].clone()), (200, version.into()), "{}", answer.text);
        }
        done.store(true, Ordering::Relaxed);
    });
    let [old, new] = seen.map(AtomicU64::into_inner);
    println!("{swaps} swaps, {} answers: {old} of version 3, {new} of version 6", asked.into_inner());
    assert!(old > 0 && new > 0);
    let told = running.get("/metrics").text;
    let counted: u64 = told
        .lines()
        .filter(|line| line.starts_with("tercile_predictions_total{") && line.contains("price_rating"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(counted >= 2 * 4003 + old + new, "{counted}: {told}");
}

#[test]
fn a_pinned_version_serves_until_it_is_unpinned() {
    let place = trained_twice();
    let running = place.serve(&[]);
    let pin =
        |method: &str, version: u64| running.call(method, &format!("/api/segments/price_rating/pin/{version}"), &[]);
    let pinned = pin("PUT", 3);
    assert_eq!(pinned.text, r#"{"segmentation":"price_rating","slice":3,"version":3,"before":6,"pinned":true}"#);
    assert_eq!((serving(&running)["version"].as_u64(), serving(&running)["pinned"].as_bool()), (Some(3), Some(true)));
    // New records give new versions, and none of them is promoted.
    place.ok(&["generate", "500", "--seed", "11", "-o", "again.csv"]);
    assert_eq!(place.up(&["--data", "again.csv", "--append"]).interrupt().code, Some(0));
    assert!(place.path("store/models/price_rating/9.json").exists());
    eventually("the other slices' new versions", || {
        running.get("/api/segments/price_rating").json()["slices"][0]["version"] == 7
    });
    assert_eq!(serving(&running)["version"], 3);
    assert!(place.ok(&["models"]).contains(" (pinned)"));
    assert_eq!(pin("DELETE", 6).status, 404);
    assert_eq!(pin("PUT", 99).status, 404);
    let unpinned = pin("DELETE", 3).json();
    assert_eq!((unpinned["version"].as_u64(), unpinned["pinned"].as_bool()), (Some(9), Some(false)));
    assert_eq!(serving(&running)["version"], 9);
    // The same with the command line.
    assert!(place.ok(&["models", "pin", "price_rating", "6"]).contains("until it is unpinned"));
    eventually("the pin", || serving(&running)["version"] == 6);
    assert!(place.fails(1, &["models", "unpin", "price_rating", "9"]).contains("is not pinned"));
    assert!(place.ok(&["models", "unpin", "price_rating", "6"]).contains("is served by version 9"));
}

#[test]
fn a_training_that_is_killed_leaves_models_that_answer() {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let running = place.serve(&[]);
    let kills = many("TERCILE_TEST_MODEL_KILLS", 12);
    // Each training has different SQL, so that each produces nine models.
    let train = |round: u64| {
        for (file, features) in
            [("30_price_rating", "discounted_price, rating"), ("31_rating_count", "rating, rating_count")]
        {
            let sql = format!(
                "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, {features} FROM slices WHERE {round} > 0"
            );
            place.write(&format!("other/{file}.sql"), sql);
        }
        for file in ["00_records", "10_products", "20_slices", "32_discount"] {
            let shipped = format!("{}/sql/{file}.sql", env!("CARGO_MANIFEST_DIR"));
            place.write(&format!("other/{file}.sql"), std::fs::read(shipped).unwrap());
        }
        let mut command = place.command(&["train", "--sql", "other", "-q"]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let start = std::time::Instant::now();
    assert!(train(1).wait().unwrap().success());
    let whole = start.elapsed();
    let mut written = 0;
    for round in 0..kills {
        let before = std::fs::read_dir(place.path("store/models/price_rating")).unwrap().count();
        let mut child = train(round + 2);
        // After the first third: nothing is written before.
        let part = 0.3 + 0.7 * (round as f64 + 0.5) / kills as f64;
        let until = std::time::Instant::now() + Duration::from_secs_f64(whole.as_secs_f64() * part);
        while std::time::Instant::now() < until {
            let answer = bulk(&running, "", &rows(3));
            assert_eq!(answer.status, 200, "{}", answer.text);
        }
        let _ = child.kill();
        child.wait().unwrap();
        written += usize::from(std::fs::read_dir(place.path("store/models/price_rating")).unwrap().count() > before);
        // Every file is complete, and every serving version exists.
        for segmentation in ["price_rating", "rating_count", "discount"] {
            let listed: Value = serde_json::from_str(&place.ok(&["models", segmentation, "--json"])).unwrap();
            let versions: Vec<u64> =
                listed.as_array().unwrap().iter().map(|one| one["version"].as_u64().unwrap()).collect();
            let slices = std::fs::read(place.path(&format!("store/models/{segmentation}/slices.json"))).unwrap();
            let slices: Value = serde_json::from_slice(&slices).unwrap();
            for slice in ["1", "2", "3"] {
                assert!(versions.contains(&slices[slice]["version"].as_u64().unwrap()), "{segmentation}: {slices}");
            }
        }
        let answer = bulk(&running, "", &rows(3));
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    println!("{kills} trainings killed, {written} of them after they had written a model");
    assert!(written > 0, "none was killed while it wrote");
    assert!(train(kills + 2).wait().unwrap().success());
}

/// The store of a build whose receipts have no `method`.
fn first_method() -> Place {
    let place = Place::new();
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/store-method-1");
    let copied = std::process::Command::new("cp").args(["-r", from]).arg(place.path("store")).status().unwrap();
    assert!(copied.success());
    place
}

#[test]
fn models_of_another_method_are_readable_and_served_and_a_training_replaces_them() {
    let place = first_method();
    assert_eq!(place.number("SELECT count(*) FROM records"), 400);
    let error = place.fails(1, &["verify", "price_rating"]);
    for part in ["price_rating@3@3: it was trained by method 1 (tercile 0.1.0)", "they hash to what the receipt says"] {
        assert!(error.contains(part) && !error.contains("was changed"), "{part}: {error}");
    }
    let server = place.serve(&[]);
    let before: Vec<Value> =
        (1..=3).map(|slice| server.get(&format!("/api/segments/price_rating/models/{slice}")).json()).collect();
    assert!(before.iter().all(|model| model["receipt"]["method"] == 1), "{before:?}");
    let row = r#"[{"discounted_price": 300, "rating": 4.5}]"#;
    assert_eq!(server.post("/api/cluster_products_by_price_rating", row).json()[0]["version"], 3);
    assert_eq!(server.get("/api/segments/price_rating/points").json()["points"].as_array().unwrap().len(), 400);
    assert_eq!(server.interrupt().code, Some(0));

    place.ok(&["train"]);
    for (slice, old) in (1..=3).zip(&before) {
        let version = slice + 3;
        place.ok(&["verify", &format!("price_rating@{slice}@{version}")]);
        let text = std::fs::read(place.path(&format!("store/models/price_rating/{version}.json"))).unwrap();
        let new: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(new["receipt"]["method"], 2);
        assert_eq!(new["receipt"]["predecessor"], serde_json::json!({"slice": slice, "version": old["version"]}));
        assert_eq!(new["receipt"]["rows_hash"], old["receipt"]["rows_hash"]);
        // The same minimum, and each cluster keeps its number.
        let sizes = |model: &Value| -> Vec<u64> {
            model["clusters"].as_array().unwrap().iter().map(|cluster| cluster["size"].as_u64().unwrap()).collect()
        };
        assert_eq!(sizes(&new), sizes(old), "slice {slice}");
    }
    // Another training finds nothing new.
    place.ok(&["train"]);
    assert!(!place.path("store/models/price_rating/7.json").exists());
}
