//! `tercile predict`: the same answers as the API, whatever format the rows come in.

mod common;

use common::Place;
use serde_json::Value;

/// A place with trained models, and what the API says of these rows of price and rating.
fn trained(rows: &str) -> (Place, Vec<Value>) {
    let place = Place::new();
    let up = place.up(&[]);
    let answers = up.post("/api/segments/price_rating/predict", rows).json();
    assert_eq!(up.interrupt().code, Some(0));
    (place, answers.as_array().unwrap().clone())
}

const ROWS: &str = r#"[{"discounted_price": 300, "rating": 4.5}, {"discounted_price": 1e5, "rating": 1}, {"discounted_price": 12.50, "rating": 3.9}]"#;

#[test]
fn every_format_gives_the_answers_of_the_api() {
    let (place, answers) = trained(ROWS);
    let cluster = |i: usize| answers[i]["cluster"].as_u64().unwrap();
    let words = |i: usize| answers[i]["description"].as_str().unwrap().to_owned();
    let distance = |i: usize| answers[i]["distance"].as_f64().unwrap();

    // Fields stay as they came, in their order; those that are added replace those of the same name.
    let csv = "name,discounted_price,rating,cluster\n\"a, \"\"b\"\"\",300,4.5,9\n₹,1e5,1,9\nc,12.50,3.9,9\n";
    place.write("rows.csv", csv);
    let out = place.ok(&["predict", "price_rating", "rows.csv"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "name,discounted_price,rating,cluster,description,distance");
    for (i, row) in ["\"a, \"\"b\"\"\",300,4.5", "₹,1e5,1", "c,12.50,3.9"].iter().enumerate() {
        assert_eq!(lines[i + 1], format!("{row},{},\"{}\",{}", cluster(i), words(i), distance(i)));
    }

    let ndjson = "{\"x\":{\"y\":[1]},\"rating\":4.5,\"discounted_price\":300}\n{\"discounted_price\":1e5,\"rating\":1}\n\n{\"discounted_price\":12.50,\"rating\":3.9,\"cluster\":7}\n";
    place.write("rows.ndjson", ndjson);
    let out = place.ok(&["predict", "price_rating", "rows.ndjson"]);
    let expected: String = [
        r#"{"x":{"y":[1]},"rating":4.5,"discounted_price":300"#,
        r#"{"discounted_price":1e5,"rating":1"#,
        r#"{"discounted_price":12.50,"rating":3.9"#,
    ]
    .iter()
    .enumerate()
    .map(|(i, row)| {
        format!("{row},\"cluster\":{},\"description\":\"{}\",\"distance\":{}}}\n", cluster(i), words(i), distance(i))
    })
    .collect();
    assert_eq!(out, expected);

    place.write("rows.json", ROWS);
    let out: Value = serde_json::from_str(&place.ok(&["predict", "price_rating", "rows.json"])).unwrap();
    for (i, row) in out.as_array().unwrap().iter().enumerate() {
        assert_eq!((row["cluster"].as_u64(), row["distance"].as_f64()), (Some(cluster(i)), Some(distance(i))));
    }

    // Through Parquet and Arrow, and back to what came first.
    for between in ["rows.parquet", "rows.arrow"] {
        place.ok(&["predict", "price_rating", "rows.csv", "-o", between]);
        let back = place.ok(&["predict", "price_rating", between, "--format", "csv"]);
        assert_eq!(back, place.ok(&["predict", "price_rating", "rows.csv"]), "{between}");
    }
    let indonesian = place.ok(&["predict", "price_rating", "rows.csv", "--lang", "id", "--model", "1"]);
    assert!(indonesian.contains("Harga"), "{indonesian}");
    assert_eq!(
        place.ok(&["predict", "price_rating", "rows.csv", "--format", "json", "--input-format", "csv"]).lines().count(),
        3
    );
}

#[test]
fn what_does_not_fit_is_named_by_row_and_field() {
    let (place, _) = trained(ROWS);
    for (rows, said) in [
        ("discounted_price,rating\n1,2\n3,\n", "row 1: rating must be a number, is empty"),
        ("discounted_price,rating\n1,₹2\n", "row 0: rating must be a number, is \"₹2\""),
        ("discounted_price,rating\n1,nan\n", "row 0: rating must be a finite number"),
        ("discounted_price\n1\n", "no column rating"),
        ("discounted_price,rating\n1,2,3\n", "found record with 3 fields"),
        ("[{\"discounted_price\":1,\"rating\":2},{\"discounted_price\":1}]", "row 1: rating is missing"),
        ("{\"discounted_price\":1,\"rating\":\"2\"}", "row 0: rating must be a number, is a string"),
        ("{\"discounted_price\":1,\"rating\":2,\"rating\":2}", "row 0: rating stands twice"),
        ("{\"discounted_price\":1,\"rating\":1e400}", "row 0: rating is too large for a number"),
        ("[{\"discounted_price\":1,\"rating\":2}", "row 1: the array does not end"),
        ("[3]", "row 0: expected a JSON object, found 3"),
        ("{\"discounted_price\":1e300,\"rating\":2}", "row 0: discounted_price is too far from every cluster"),
        ("PAR1", "cannot read the rows"),
    ] {
        place.write("rows", rows);
        let error = place.fails(1, &["predict", "price_rating", "rows"]);
        assert!(error.contains(said), "{rows}: {error}");
    }
    let error = place.fails(1, &["predict", "nothing", "rows"]);
    assert!(error.contains("has no model of \"nothing\", it has discount, price_rating, rating_count"), "{error}");
    assert_eq!(place.run(&["predict", "price_rating", "--model", "4"]).code, Some(2));
    place.write("empty.csv", "discounted_price,rating\n");
    assert_eq!(place.ok(&["predict", "price_rating", "empty.csv", "--format", "json"]), "[]\n");
}
