//! Missing values in training: counted and shown with each model; a text feature is rejected.

use common::Place;
use serde_json::{Value, json};

use crate::common;

/// SQL files for a table with columns b and e, with a segmentation by b and one by both.
fn two_numbers(place: &Place) {
    let view =
        |features: &str| format!("-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, {features} FROM slices\n");
    place.write("sql/00_records.sql", "CREATE TABLE records (id TEXT, b TEXT, e TEXT)\n");
    place.write(
        "sql/10_numbers.sql",
        "SELECT _partition, _offset, _timestamp, TRY_CAST(b AS DOUBLE) AS b, TRY_CAST(e AS DOUBLE) AS e
         FROM records WHERE _error IS NULL\n",
    );
    let slices = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/20_slices.sql")).unwrap();
    place.write("sql/20_slices.sql", slices.replace("products", "numbers"));
    place.write("sql/30_by_b.sql", view("b"));
    place.write("sql/31_by_both.sql", view("e, b"));
}

#[test]
fn missing_values_are_counted_wherever_a_model_is_shown() {
    let place = Place::new();
    two_numbers(&place);
    let row = |i: usize| match i % 2 {
        0 => format!("{i},,{}\n", i % 11),
        _ => format!("{i},{},{}\n", i % 3 * 100 + i % 7, i % 11),
    };
    place.write("half.csv", format!("id,b,e\n{}", (0..120).map(row).collect::<String>()));
    let up = place.up(&["--data", "half.csv", "--sql", "sql"]);
    for (slice, half) in [(1, 20), (2, 40), (3, 60)] {
        let model = up.get(&format!("/api/segments/by_both/models/{slice}")).json();
        assert_eq!(model["imputed"], json!({"e": 0, "b": half}), "slice {slice}");
    }
    let points = up.get("/api/segments/by_both/points").json();
    for (i, point) in points["points"].as_array().unwrap().iter().enumerate() {
        let expected = if i % 2 == 0 { json!(["b"]) } else { json!(null) };
        assert_eq!(point.get("imputed").unwrap_or(&json!(null)), &expected, "{point}");
    }
    assert_eq!(up.get("/api/segments/by_both/k-report").json()["imputed"], json!({"e": 0, "b": 60}));
    // A prediction without the required values is rejected.
    let missing = up.post("/api/segments/by_both/predict", r#"[{"e":1,"b":2},{"e":1}]"#);
    assert_eq!((missing.status, &missing.json()["index"], &missing.json()["field"]), (422, &json!(1), &json!("b")));
    assert_eq!(up.interrupt().code, Some(0));

    let said = "by_both slice 3: b was missing in 60 of 120 rows and took the mean\n";
    let table = place.ok(&["train", "--sql", "sql"]);
    assert!(table.contains(said) && table.contains("by_b slice 1: b was missing in 20 of 40 rows"), "{table}");
    assert!(!table.contains(": e was missing"), "{table}");
    assert!(place.ok(&["model", "show", "by_b"]).contains("\nb was missing in 60 of 120 rows and took the mean\n"));
    let shown: Value = serde_json::from_str(&place.ok(&["model", "show", "by_b", "-f", "json"])).unwrap();
    assert_eq!(shown["imputed"], json!({"b": 60}));
    place.ok(&["verify", "by_b", "--sql", "sql"]);
    let drawn = place.ok(&["plot", "by_both"]);
    assert_eq!(
        (drawn.matches("<circle").count(), drawn.matches("fill=\"none\" stroke=\"#").count()),
        (120, 60),
        "{drawn}"
    );
    assert!(drawn.contains("missing, drawn at the mean</text>") && drawn.contains("60 of the drawn rows"), "{drawn}");
    let drawn = place.ok(&["plot", "by_b"]);
    assert!(drawn.contains("fill=\"none\" stroke=\"#") && drawn.contains("60 of the drawn rows"), "{drawn}");
    let sampled = "SELECT count(*) FROM sample WHERE _imputed = 2";
    let sample = "sample=store/models/by_both/3.sample.parquet";
    assert_eq!(
        place.ok(&["sql", "--sql", "sql", "--table", sample, "-f", "csv", "-c", sampled]).lines().nth(1),
        Some("60")
    );

    // Models and samples of earlier builds have no counts and remain usable.
    let text = std::fs::read_to_string(place.path("store/models/by_b/3.json")).unwrap();
    let start = text.find("  \"imputed\": {").unwrap();
    let end = start + text[start..].find("},\n").unwrap() + 3;
    place.write("older.json", format!("{}{}", &text[..start], &text[end..]));
    assert!(place.ok(&["verify", "older.json", "--sql", "sql"]).contains("is what its receipt says"));
}

#[test]
fn a_feature_that_is_no_number_is_refused_with_an_example_and_sql_that_helps() {
    let place = Place::new();
    two_numbers(&place);
    let rows = (0..60).map(|i| format!("{i},\"{},{:03}\",{}\n", i % 9 + 1, i, i % 11));
    place.write("grouped.csv", format!("id,b,e\n{}", rows.collect::<String>()));
    let up = place.up(&["--data", "grouped.csv", "--sql", "sql"]);
    assert_eq!(up.interrupt().code, Some(0));
    // TRY_CAST converted every text to NULL, which is reported.
    let train = place.run(&["train", "--sql", "sql"]);
    assert!(
        train.stderr.contains("no new model: by_b of slice 3: the feature b is missing in every row"),
        "{}",
        train.stderr
    );

    let view = |feature: &str| {
        let select = format!("SELECT _partition, _offset, _timestamp, _slice, {feature} AS b FROM with_text");
        place.write("sql/30_by_b.sql", format!("-- k: 3\n\n{select}\n"));
    };
    let _ = std::fs::remove_file(place.path("sql/31_by_both.sql"));
    place.write("sql/21_with_text.sql", "SELECT s.*, r.b AS b_text FROM slices s JOIN records r ON s._partition = r._partition AND s._offset = r._offset\n");
    view("b_text");
    let error = place.fails(1, &["train", "--sql", "sql"]);
    assert!(
        error.contains("30_by_b.sql: the feature b is text, such as `") && error.contains("select to_number(b)"),
        "{error}"
    );
    view("CAST(b_text AS DOUBLE)");
    let train = place.run(&["train", "--sql", "sql"]);
    assert!(
        train.stderr.contains("Cannot cast string '") && train.stderr.contains("; with TRY_CAST such a text is NULL"),
        "{}",
        train.stderr
    );
    for (value, said) in [("CASE WHEN e = 3 THEN 0.0 / 0.0 ELSE e END", "holds NaN in row "), ("e / 0.0", "holds ")] {
        view(value);
        let train = place.run(&["train", "--sql", "sql"]);
        assert!(
            train.stderr.contains(said)
                && train.stderr.contains("CASE WHEN abs(\"b\") < CAST('Infinity' AS DOUBLE) THEN \"b\" END"),
            "{}",
            train.stderr
        );
    }
    view("to_number(b_text)");
    let table = place.ok(&["train", "--sql", "sql"]);
    assert!(table.contains("by_b") && !table.contains("was missing"), "{table}");
}

#[test]
fn a_text_feature_refuses_its_segmentation_alone() {
    let place = Place::new();
    two_numbers(&place);
    let rows = (0..60).map(|i| format!("{i},{},{}\n", i % 9 + 1, i % 11));
    place.write("rows.csv", format!("id,b,e\n{}", rows.collect::<String>()));
    assert_eq!(place.up(&["--data", "rows.csv", "--sql", "sql"]).interrupt().code, Some(0));
    // An edit of one file makes its feature a text, another one changes the other segmentation.
    let select =
        |feature: &str| format!("-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, {feature} FROM slices\n");
    place.write("sql/30_by_b.sql", select("CAST(b AS TEXT) AS b"));
    place.write("sql/31_by_both.sql", select("e, b * 2 AS b"));
    let train = place.run(&["train", "--sql", "sql"]);
    assert_eq!(train.code, Some(1), "{}", train.stderr);
    assert!(
        train.stderr.contains("the training is incomplete: sql/30_by_b.sql: the feature b is text"),
        "{}",
        train.stderr
    );
    let said = "no new model: by_b of slice 3: sql/30_by_b.sql: the feature b is text, such as `";
    assert!(train.stderr.contains(said) && !train.stderr.contains("by_both of slice"), "{}", train.stderr);
    let versions = |name: &str| place.ok(&["models", name]).lines().count();
    assert!(versions("by_both") > versions("by_b"), "{}", train.stdout);
    // The models of the segmentation serve on.
    let serve = place.serve(&["--sql", "sql"]);
    assert_eq!(serve.post("/api/segments/by_b/predict", r#"[{"b": 3}]"#).status, 200);
    assert!(serve.get("/api/segments/by_b").text.contains("the feature b is text"));
    assert_eq!(serve.interrupt().code, Some(0));
    // The only segmentation that is asked for is refused with the reason.
    assert!(place.fails(1, &["verify", "by_b", "--sql", "sql"]).contains("the SQL changed since"));
}
