//! Scales and weights of features: equal to scikit-learn's pipelines (tests/truth/scaling.py), the same in `fit`, training, predictions,
//! SQL, the API and `verify`, and refused where they cannot be.

use std::collections::BTreeSet;

use common::Place;
use serde_json::{Value, json};

use crate::common;

const ROWS: &str = include_str!("../truth/scaling.csv");

fn cases() -> Vec<Value> {
    let truth: Value = serde_json::from_str(include_str!("../truth/scaling.json")).unwrap();
    truth["cases"].as_array().unwrap().clone()
}

/// `name=value` for each entry.
fn given(map: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    map.as_object().unwrap().iter().map(|(name, value)| format!("{name}={}", text(value))).collect()
}

fn near(a: &Value, b: &Value) -> bool {
    let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

fn sizes(model: &Value) -> Value {
    model["clusters"].as_array().unwrap().iter().map(|cluster| cluster["size"].clone()).collect()
}

/// SQL files whose segmentation has this header.
fn sql(place: &Place, header: &str) {
    place.write("sql/00_records.sql", "CREATE TABLE records (id TEXT, price TEXT, rating TEXT, count TEXT)\n");
    place.write(
        "sql/10_numbers.sql",
        "SELECT _partition, _offset, _timestamp, CAST(id AS INT) AS id, CAST(price AS DOUBLE) AS price, CAST(rating AS DOUBLE) AS rating,
           CAST(count AS DOUBLE) AS count FROM (SELECT _partition, _offset, _timestamp, id, nullif(price, '') AS price,
             nullif(rating, '') AS rating, nullif(count, '') AS count FROM records WHERE _error IS NULL)\n",
    );
    let slices = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/20_slices.sql")).unwrap();
    place.write("sql/20_slices.sql", slices.replace("products", "numbers"));
    let select = "SELECT _partition, _offset, _timestamp, _slice, price, rating, count FROM slices";
    place.write("sql/30_s.sql", format!("{header}\n\n{select}\n"));
}

#[test]
fn figures_are_those_of_scikit_learn() {
    let place = Place::new();
    place.write("rows.csv", ROWS);
    for case in cases() {
        let (k, scale, weight) =
            (case["k"].to_string(), given(&case["scale"]).join(","), given(&case["weight"]).join(","));
        let mut args =
            vec!["fit", "rows.csv", "--features", "price,rating,count", "--k", &k, "--json", "--model", "m.json"];
        for (flag, value) in [("--scale", &scale), ("--weight", &weight)] {
            if !value.is_empty() {
                args.extend([flag, value]);
            }
        }
        let report: Value = serde_json::from_str(&place.ok(&args)).unwrap();
        let name = &case["name"];
        assert!(near(&report["inertia"], &case["inertia"]), "{name}: {} {}", report["inertia"], case["inertia"]);
        assert_eq!(sizes(&report), case["sizes"], "{name}");
        for (cluster, expected) in
            report["clusters"].as_array().unwrap().iter().zip(case["centroids"].as_array().unwrap())
        {
            for (i, feature) in ["price", "rating", "count"].iter().enumerate() {
                let found = &cluster["centroid"][feature];
                assert!(near(found, &expected[i]), "{name}, {feature}: {found} {}", expected[i]);
            }
        }
        // The model file gives each row the same cluster and distance, as rows and with --output.
        let rows = place.ok(&["predict", "m.json", "rows.csv", "--missing", "impute", "-f", "ndjson"]);
        let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let clusters: String = rows.iter().map(|row| row["cluster"].to_string()).collect();
        assert_eq!(Value::from(clusters), case["clusters"], "{name}");
        for (row, distance) in rows.iter().zip(case["distances"].as_array().unwrap()) {
            assert!(
                (row["distance"].as_f64().unwrap() - distance.as_f64().unwrap()).abs() < 1e-9,
                "{name}: {row} {distance}"
            );
        }
        // Another number of threads, and columns out of core, give the same bits.
        let bits =
            |report: &Value| (report["clusters"].clone(), report["inertia"].to_string(), report["scaling"].clone());
        let again: Value =
            serde_json::from_str(&place.ok(&[&args[..], &["--threads", "1", "--memory-limit", "1MB"]].concat()))
                .unwrap();
        assert_eq!(bits(&again), bits(&report), "{name}");
    }
}

#[test]
fn a_training_agrees_with_fit_and_with_everything_that_reads_its_model() {
    let place = Place::new();
    place.write("rows.csv", ROWS);
    for case in cases().iter().filter(|case| ["log", "all"].contains(&case["name"].as_str().unwrap())) {
        let name = &case["name"];
        let lines = |kind: &str| {
            given(&case[kind]).iter().map(|one| format!("\n-- {kind}.{}", one.replace('=', ": "))).collect::<String>()
        };
        sql(&place, &format!("-- k: {}{}{}", case["k"], lines("scale"), lines("weight")));
        let _ = std::fs::remove_dir_all(place.path("store"));
        let up = place.up(&["--data", "rows.csv", "--sql", "sql"]);
        let model = up.get("/api/segments/s/models/3").json();
        assert!(near(&model["inertia"], &case["inertia"]), "{name}: {model}");
        // Numbers continue from slice to slice: the sizes, which all differ, tell which cluster is which.
        let sizes = |of: &Value| of.as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect::<Vec<_>>();
        let (found, expected) = (sizes(&self::sizes(&model)), sizes(&case["sizes"]));
        let numbered = |cluster: usize| found.iter().position(|size| *size == expected[cluster]).unwrap();
        assert_eq!((0..expected.len()).map(numbered).collect::<BTreeSet<_>>().len(), found.len(), "{name}: {found:?}");
        // The API: predictions, raw records, explanations, and rows clustered by themselves.
        let posted: Vec<Value> = ROWS
            .lines()
            .skip(1)
            .map(|line| line.split(',').collect::<Vec<_>>())
            .filter(|cells| cells.iter().all(|cell| !cell.is_empty()))
            .map(|cells| json!({"id": cells[0], "price": cells[1], "rating": cells[2], "count": cells[3]}))
            .collect();
        let number = |row: &Value, name: &str| row[name].as_str().unwrap().parse::<f64>().unwrap();
        let numbers: Vec<Value> = posted
            .iter()
            .map(|row| json!({"price": number(row, "price"), "rating": number(row, "rating"), "count": number(row, "count")}))
            .collect();
        let body = serde_json::to_string(&numbers).unwrap();
        let cluster_of = |row: &Value| {
            let id: usize = row["id"].as_str().unwrap().parse().unwrap();
            Value::from(numbered(usize::from(case["clusters"].as_str().unwrap().as_bytes()[id] - b'0')))
        };
        let answers = up.post("/api/segments/s/predict?explain=true", &body).json();
        let scored = up.post("/api/segments/s/score", &serde_json::to_string(&posted).unwrap()).json();
        for (i, row) in posted.iter().enumerate() {
            let (answer, score) = (&answers[i], &scored[i]);
            assert_eq!((&answer["cluster"], &score["cluster"]), (&cluster_of(row), &cluster_of(row)), "{name}: {row}");
            assert_eq!(answer["distance"], score["distance"], "{name}");
            let own = &answer["explanation"]["distances"][answer["cluster"].as_u64().unwrap() as usize];
            assert!(near(own, &answer["distance"]), "{name}: {answer}");
        }
        let themselves = up.post("/api/segments/s/predict?fit=request", &body);
        assert_eq!(
            (themselves.status, themselves.json().as_array().map(Vec::len)),
            (200, Some(posted.len())),
            "{name}"
        );
        let report = up.get("/api/segments/s/k-report").json();
        assert_eq!(report["candidates"][0]["k"], 2, "{report}");
        if case["scale"]["price"] == "log" {
            let refused = up.post("/api/segments/s/predict", r#"[{"price": -2, "rating": 4, "count": 9}]"#);
            assert_eq!(refused.status, 422);
            assert!(
                refused.text.contains("row 0: price is on a logarithmic scale and must be above -1"),
                "{}",
                refused.text
            );
        }
        assert_eq!(up.interrupt().code, Some(0));
        // SQL: segment() and the exported query.
        place.write("numbers.ndjson", numbers.iter().map(|row| format!("{row}\n")).collect::<String>());
        let plain = place.ok(&["model", "show", "s", "-f", "sql"]);
        let differ = format!(
            "CREATE VIEW input AS SELECT * FROM n;
             SELECT count(*) AS n FROM ({plain}) WHERE cluster IS DISTINCT FROM segment('s', price, rating, count)"
        );
        let counted = place.ok(&["sql", "--sql", "sql", "--table", "n=numbers.ndjson", "-f", "csv", "-c", &differ]);
        assert_eq!(counted.lines().nth(1), Some("0"), "{name}: {counted}");
        let sum = "SELECT count(*) FILTER (WHERE segment('s', price, rating, count) IS NOT NULL) FROM n";
        let counted = place.ok(&["sql", "--sql", "sql", "--table", "n=numbers.ndjson", "-f", "csv", "-c", sum]);
        assert_eq!(counted.lines().nth(1), Some(posted.len().to_string().as_str()), "{name}");
        // The exported model, the receipt, the words, drift.
        place.write("shown.json", place.ok(&["model", "show", "s", "-f", "json"]));
        let of = |model: &str| place.ok(&["predict", model, "numbers.ndjson"]);
        assert_eq!(of("shown.json"), of("s"), "{name}");
        assert!(place.ok(&["verify", "s", "--sql", "sql"]).contains("is what its receipt says, to the bit"), "{name}");
        let said = place.ok(&["model", "show", "s"]);
        assert!(said.contains("scaled: ") && said.contains("count "), "{said}");
        assert!(place.ok(&["train", "--sql", "sql", "--json"]).contains("\"fresh\": false"), "{name}: trained again");
        place.ok(&["drift", "s", "--of", "thirds", "--sql", "sql"]);
        place.ok(&["plot", "s"]);
    }
    // Another scale is another receipt, and the clusters keep their numbers.
    let header = "-- k: 5\n-- scale.price: log\n-- scale.count: log\n-- scale.rating: none";
    sql(&place, header);
    place.ok(&["train", "--sql", "sql"]);
    assert!(place.fails(1, &["verify", "s@3@3", "--sql", "sql"]).contains("the SQL changed since"));
    let diff: Value = serde_json::from_str(&place.ok(&["models", "diff", "s@3@3", "s@3@6", "--json"])).unwrap();
    assert_eq!(
        (&diff["a"]["scaling"][2]["scale"], &diff["b"]["scaling"][2]["scale"]),
        (&json!("robust"), &json!("log"))
    );
}

#[test]
fn what_cannot_be_scaled_is_named_with_its_line() {
    let place = Place::new();
    place.write("rows.csv", "id,price,rating,count\n1,-3,1,0\n2,5,2,0\n3,6,3,0\n4,9,4,9\n5,10,5,0\n6,11,1,0\n7,12,2,0\n8,13,3,0\n9,14,4,0\n");
    let fit = |flag: &str, value: &str| {
        let args = ["fit", "rows.csv", "--features", "price,count", "--k", "2", flag, value];
        let ended = place.run(&args);
        (ended.code, ended.stderr)
    };
    for (flag, value, code, said) in [
        (
            "--scale",
            "price=log",
            1,
            "price is -3 in row 0, and a logarithmic scale takes log(1 + x) of values above -1",
        ),
        ("--scale", "count=robust", 1, "the quartiles of count are equal (0)"),
        ("--scale", "rating=log", 2, "--scale names rating, which is none of --features price,count"),
        ("--scale", "price=logs", 2, "a scale is standard, log, robust or none, found logs"),
        ("--scale", "price", 2, "expected a feature and its scale, as in rating_count=log"),
        ("--scale", "price=log,price=none", 2, "--scale names price twice"),
        ("--weight", "price=0", 2, "a weight is a number above 0, such as 2 or 0.5, found 0"),
        ("--weight", "price=-1", 2, "found -1"),
        ("--weight", "price=NaN", 2, "found NaN"),
        ("--weight", "nope=2", 2, "--weight names nope"),
    ] {
        let (ended, stderr) = fit(flag, value);
        assert!(ended == Some(code) && stderr.contains(said), "{flag} {value}: {ended:?} {stderr}");
    }
    sql(&place, "-- k: 2");
    assert_eq!(place.up(&["--data", "rows.csv", "--sql", "sql"]).interrupt().code, Some(0));
    for (line, said) in [
        ("-- scale.price: log", "30_s.sql, line 2: price is -3 in row 0, and a logarithmic scale"),
        ("-- scale.count: robust", "30_s.sql, line 2: the quartiles of count are equal (0)"),
        (
            "-- scale.nope: log",
            "30_s.sql, line 2, column 1: the header scales nope, which is none of the view's features price, rating, count",
        ),
        ("-- weight.price: 0", "30_s.sql, line 2, column 1: weight.price: a weight is a number above 0"),
    ] {
        sql(&place, &format!("-- k: 2\n{line}"));
        let train = place.run(&["train", "--sql", "sql"]);
        assert!(train.stderr.contains(said), "{line}: {:?} {}", train.code, train.stderr);
    }
}
