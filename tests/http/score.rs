//! Raw records over HTTP and on the command line: the same features and clusters as stored records have, a reason for each record
//! without a cluster, and segmentations that single records do not determine.

use std::sync::Arc;

use common::{Answer, Place, Running};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};

use crate::common;

const JSON: &str = "application/json";
const NDJSON: &str = "application/x-ndjson";
const CSV: &str = "text/csv";
const ARROW: &str = "application/vnd.apache.arrow.stream";
const NAMES: [&str; 3] = ["price_rating", "rating_count", "discount"];

fn path(name: &str) -> String {
    format!("/api/segments/{name}/score")
}

fn ask(up: &Running, name: &str, from: &str, to: &str, body: &[u8]) -> Answer {
    up.ask(&path(name), &[("content-type", from), ("accept", to)], body)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The stored records of slice 3, by offset: features and cluster, as the model's own function and the views give them; null for those
/// that the view leaves out or in which a feature is missing.
fn stored(place: &Place, name: &str, features: &[&str], records: usize) -> Vec<Value> {
    let list = features.join(", ");
    let sql = format!("SELECT _offset, {list}, segment('{name}', {list}) AS cluster FROM {name} ORDER BY _offset");
    let mut expected = vec![json!({"cluster": null}); records];
    for row in lines(&place.ok(&["sql", "--format", "ndjson", "-c", &sql])) {
        let offset = row["_offset"].as_u64().unwrap() as usize;
        if let Some(cluster) = row.get("cluster").filter(|cluster| !cluster.is_null()) {
            let features: serde_json::Map<String, Value> =
                features.iter().map(|name| ((*name).to_owned(), row[*name].clone())).collect();
            expected[offset] = json!({"cluster": cluster, "features": features});
        }
    }
    expected
}

/// All raw records have the features and clusters that they have as stored records.
/// Returns the number of records without a cluster, by segmentation.
fn compare(place: &Place, up: &Running, file: &str) -> Vec<usize> {
    let mut without = Vec::new();
    let raw =
        place.ok(&["sql", "--format", "csv", "--table", &format!("raw={file}"), "-c", "SELECT count(*) FROM raw"]);
    let records: usize = raw.lines().nth(1).unwrap().parse().unwrap();
    let bytes = std::fs::read(place.path(file)).unwrap();
    for (name, features) in
        NAMES.iter().zip([&["discounted_price", "rating"][..], &["rating", "rating_count"], &["discount_percentage"]])
    {
        let expected = stored(place, name, features, records);
        let answer = ask(up, name, CSV, NDJSON, &bytes);
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answers = lines(&answer.text);
        assert_eq!(answers.len(), records);
        for (i, (answer, expected)) in answers.iter().zip(&expected).enumerate() {
            assert_eq!(answer["cluster"], expected["cluster"], "{name}, record {i}: {answer}");
            // Serialised doubles are equal only if all their bits are.
            assert_eq!(answer.get("features"), expected.get("features"), "{name}, record {i}");
            assert_eq!(answer["cluster"].is_null(), answer.get("reason").is_some(), "{answer}");
        }
        without.push(answers.iter().filter(|answer| answer["cluster"].is_null()).count());
        let typed = place.ok(&["predict", name, "--raw", file, "--format", "ndjson"]);
        for (line, answer) in lines(&typed).iter().zip(&answers) {
            for field in ["cluster", "distance", "reason"] {
                assert_eq!(line[field], answer[field], "{line}");
            }
        }
    }
    without
}

#[test]
fn raw_records_have_the_clusters_of_stored_records() {
    let place = Place::new();
    place.ok(&["generate", "2000", "--output", "rows.csv"]);
    let up = place.up(&["--data", "rows.csv"]);
    compare(&place, &up, "rows.csv");
}

#[test]
fn all_records_of_the_real_data_have_the_clusters_of_slice_3() {
    let Some(csv) = common::amazon() else { return };
    let place = Place::new();
    std::fs::copy(csv, place.path("rows.csv")).unwrap();
    let up = place.up(&["--data", "rows.csv"]);
    // One record's rating is `|`, and two have no number of ratings.
    assert_eq!(compare(&place, &up, "rows.csv"), [1, 3, 0]);
}

#[test]
fn each_record_is_answered_at_its_position_in_every_format() {
    let place = Place::new();
    let mut up = place.up(&[]);
    let raw = up.line_with("raw: ");
    let curl = std::process::Command::new("sh").args(["-c", &raw]).output().unwrap();
    let answer: Value = serde_json::from_slice(&curl.stdout).unwrap();
    assert!(answer[0]["cluster"].is_u64(), "{raw}: {answer}");

    let body = "{\"discounted_price\":\"₹1,099\",\"rating\":\"4.2\",\"x\":{\"y\":[1]}}\n\n{\"rating\"\n7\n{\"rating\":4,\"cluster\":9}\n";
    let answer = ask(&up, "price_rating", NDJSON, NDJSON, body.as_bytes());
    let answers = lines(&answer.text);
    let reasons: Vec<Option<&str>> = answers.iter().map(|answer| answer["reason"].as_str()).collect();
    assert_eq!(
        reasons,
        [
            None,
            Some("not JSON: EOF while parsing an object at line 1 column 9"),
            Some("not a JSON object but a number"),
            Some("discounted_price is missing")
        ]
    );
    let first = &answers[0];
    assert_eq!(first["features"], json!({"discounted_price": 1099.0, "rating": 4.2}));
    assert_eq!(answer.header("model-version"), Some("3"));
    assert_eq!((&first["model"], &first["version"], first.get("other")), (&json!(3), &json!(3), None));
    assert_eq!(answers[1], json!({"cluster": null, "reason": reasons[1]}));

    // Bytes that are no text are a reason; an element of an array that is no object too.
    let answer = ask(&up, "price_rating", NDJSON, NDJSON, b"{\"a\":\"\xff\"}\n{}\n");
    assert_eq!(lines(&answer.text)[0]["reason"], "bad UTF-8 at byte 6");
    let answer = ask(
        &up,
        "price_rating",
        JSON,
        JSON,
        b"[null, {\"discounted_price\":\"\xe2\x82\xb91,099\",\"rating\":4.2}, []]",
    );
    assert_eq!((answer.status, &answer.json()[1]), (200, first));

    // The same record as a table.
    let csv = ask(&up, "price_rating", CSV, JSON, "rating,discounted_price\n4.2,\"₹1,099\"\n".as_bytes());
    assert_eq!(csv.json(), json!([first]));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("discounted_price", Arc::new(StringArray::from(vec!["₹1,099"]))),
        ("rating", Arc::new(StringArray::from(vec!["4.2"]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    let arrow = ask(&up, "price_rating", ARROW, JSON, &writer.into_inner().unwrap());
    assert_eq!(arrow.json(), json!([first]), "{}", arrow.text);
    let table = ask(&up, "price_rating", CSV, CSV, "rating,discounted_price,reason\n4.2,x,y\n".as_bytes());
    assert_eq!(
        table.text,
        "rating,discounted_price,reason,cluster,description,distance,reason_2\n4.2,x,y,,,,discounted_price is missing\n"
    );
    let explained = up.post(
        &format!("{}?explain=true&lang=id&model=1", path("price_rating")),
        &format!("[{}]", body.lines().next().unwrap()),
    );
    assert!(explained.json()[0]["explanation"]["distances"].is_array(), "{}", explained.text);
    assert_eq!(explained.json()[0]["model"], 1);

    for (body, status) in [("", 400), ("{}", 422), ("[{]", 400), ("[", 400)] {
        let answer = up.post(&path("price_rating"), body);
        assert_eq!((answer.status, answer.content_type.as_str()), (status, "application/problem+json"), "{body}");
    }
    assert_eq!(up.post(&path("price_rating"), "[]").json(), json!([]));
    assert_eq!(up.post(&path("nothing"), "[]").status, 404);
    assert_eq!(up.post(&format!("{}?fit=request", path("price_rating")), "[]").status, 422);
}

/// The request in docs/api.md gets the answer that stands below it.
#[test]
fn the_documentation_shows_a_request_and_its_answer() {
    let text = include_str!("../../docs/api.md");
    let (_, after) = text.split_once("<!-- score: request -->\n").unwrap();
    let blocks: Vec<&str> = after.split("```").collect();
    let (request, answer) = (blocks[1].strip_prefix("sh\n").unwrap(), blocks[3].strip_prefix("json\n").unwrap());
    let place = Place::new();
    let up = place.up(&[]);
    let line = request.replace("http://127.0.0.1:5000", &up.address);
    let said = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), answer);
}

/// Writes the shipped SQL files, one of them replaced, and starts `up`.
fn edited(place: &Place, file: &str, sql: &str) -> Running {
    write_sql(place);
    place.write(&format!("our/{file}"), sql);
    place.up(&["--sql", "our"])
}

fn write_sql(place: &Place) {
    for (name, text) in [
        ("00_records.sql", include_str!("../../sql/00_records.sql")),
        ("10_products.sql", include_str!("../../sql/10_products.sql")),
        ("20_slices.sql", include_str!("../../sql/20_slices.sql")),
        ("30_price_rating.sql", include_str!("../../sql/30_price_rating.sql")),
    ] {
        place.write(&format!("our/{name}"), text);
    }
}

#[test]
fn sql_that_needs_other_records_is_a_conflict_that_names_the_line() {
    let head = "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, rating FROM slices\n";
    for (tail, line, what) in [
        ("ORDER BY rating", 4, "sorts records"),
        ("LIMIT 100", 4, "has a LIMIT"),
        ("WHERE rating > (SELECT avg(rating) FROM products)", 4, "has a subquery"),
        ("WHERE now() IS NOT NULL", 4, "calls now()"),
        ("WHERE _timestamp <= slice_end()", 4, "calls slice_end()"),
        (
            "UNION ALL SELECT _partition, _offset + 100000, _timestamp, _slice, rating FROM slices",
            4,
            "combines queries",
        ),
    ] {
        let place = Place::new();
        let up = edited(&place, "33_other.sql", &format!("{head}{tail}\n"));
        let answer = up.post(&path("other"), "[{}]");
        assert_eq!(answer.status, 409, "{tail}: {}", answer.text);
        let problem = answer.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(what) && detail.contains("33_other.sql, line"), "{detail}");
        assert_eq!(problem["line"], line, "{detail}");
        assert!(!detail.contains("our/"), "{detail}");
        // The others are not concerned.
        assert_eq!(up.post(&path("price_rating"), r#"[{"discounted_price":"₹99","rating":"4"}]"#).status, 200);
        let said = place.fails(1, &["predict", "other", "--raw", "--sql", "our", "-"]);
        assert!(said.contains(what), "{said}");
    }
}

#[test]
fn a_join_that_never_ends_is_not_read() {
    let place = Place::new();
    write_sql(&place);
    let join = "CROSS JOIN range(100000) AS a JOIN range(1000000) AS b ON a.value * b.value = -1";
    let sql = format!("-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, rating FROM slices\n{join}\n");
    place.write("our/33_other.sql", sql);
    let said = place.fails(1, &["predict", "other", "--raw", "--sql", "our", "-"]);
    assert!(said.contains("33_other.sql, line 4") && said.contains("constants and reference tables"), "{said}");
}

#[test]
fn a_record_that_a_cast_rejects_is_answered_with_the_reason() {
    let place = Place::new();
    let sql = "-- k: 3\n\nSELECT s._partition, s._offset, s._timestamp, _slice, CAST(r.rating AS DOUBLE) AS rating FROM records AS r\n";
    // A view over records with a constant row of its own, and a condition in its join.
    let sql = sql.replace("s._", "r._").replace("_slice,", "3 AS _slice,")
        + "CROSS JOIN (SELECT 1 AS one) AS c WHERE r._error IS NULL AND c.one = 1 AND r.rating <> '|'\n";
    let up = edited(&place, "33_cast.sql", &sql);
    let answer = up.post(&path("cast"), r#"[{"rating":"4"},{"rating":"many"},{"rating":"|"},{"rating":" 5"}]"#);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answers = answer.json();
    assert!(answers[0]["cluster"].is_u64() && answers[3]["features"]["rating"] == 5.0, "{answers}");
    assert!(answers[1]["reason"].as_str().unwrap().contains("many"), "{answers}");
    assert_eq!(answers[2]["reason"], "left out by the SQL of cast");
}

const WEIGHTED: &str = "-- k: 3

SELECT _partition, _offset, _timestamp, _slice, s.discounted_price, w.weight
FROM slices AS s LEFT JOIN weights AS w ON s.rating = w.rating
";

fn weights(tenths: impl Iterator<Item = u32>, factor: u32) -> String {
    let row = |tenth: u32| format!("{},{};{},5\n", tenth / 10, tenth % 10, tenth * factor);
    tenths.fold("rating;weight\n".to_owned(), |text, tenth| text + &row(tenth))
}

#[test]
fn a_reference_table_is_joined_for_stored_and_raw_records_and_is_part_of_the_hash() {
    let place = Place::new();
    place.ok(&["generate", "600", "--output", "rows.csv"]);
    place.write("our/weights.csv", weights(10..46, 3));
    let up = edited(&place, "33_weighted.sql", WEIGHTED);
    // The shipped sample is stored; these records are not.
    let bytes = std::fs::read(place.path("rows.csv")).unwrap();
    let raw = lines(&ask(&up, "weighted", CSV, NDJSON, &bytes).text);
    assert_eq!(raw.len(), 600);
    let weight = |rating: f64| (rating * 10.0).round() * 3.0 + 0.5;
    let mut csv = csv::Reader::from_reader(&bytes[..]);
    let column = csv.headers().unwrap().iter().position(|name| name == "rating").unwrap();
    for (record, answer) in csv.records().zip(&raw) {
        let rating = record.unwrap()[column].parse::<f64>().ok();
        match rating.filter(|rating| *rating <= 4.5) {
            Some(rating) if answer["cluster"].is_u64() => assert_eq!(answer["features"]["weight"], weight(rating)),
            Some(_) => assert_eq!(answer["reason"], "discounted_price is missing"),
            None => assert!(answer["reason"].as_str().unwrap().ends_with("is missing"), "{answer}"),
        }
    }
    assert_eq!(up.interrupt().code, Some(0));

    // An inner join leaves records out.
    let inner = WEIGHTED.replace("LEFT JOIN", "JOIN");
    place.write("our/34_inner.sql", &inner);
    place.ok(&["train", "--sql", "our"]);
    let answer = place.ok(&["predict", "inner", "--raw", "rows.csv", "--sql", "our", "--format", "ndjson"]);
    assert!(answer.contains("left out by the SQL of inner"), "{answer}");
    let hash = |place: &Place| {
        let model: Value = serde_json::from_str(&place.ok(&["model", "show", "weighted", "--format", "json"])).unwrap();
        (model["version"].clone(), model["receipt"]["sql_hash"].clone())
    };
    let before = hash(&place);
    place.write("our/weights.csv", weights(10..46, 4));
    place.ok(&["train", "--sql", "our"]);
    let after = hash(&place);
    assert!(before.0 != after.0 && before.1 != after.1, "{before:?} {after:?}");

    // A key that occurs twice makes two rows of a record.
    place.write("our/weights.csv", weights((10..46).chain([42]), 4));
    let said = place.fails(1, &["predict", "weighted", "--raw", "rows.csv", "--sql", "our"]);
    assert!(said.contains("33_weighted.sql, line 4") && said.contains("the key 4.2 occurs twice"), "{said}");
    for (file, what) in [
        ("our/slices.csv", "there is a view or table slices already"),
        ("our/weights.parquet", "there is a view or table weights already"),
        ("our/My File.csv", "a reference table is called name.csv or name.parquet"),
    ] {
        place.write(file, "a,b\n1,2\n");
        let said = place.fails(1, &["sql", "--sql", "our", "-c", "SELECT 1"]);
        assert!(said.contains(what), "{said}");
        std::fs::remove_file(place.path(file)).unwrap();
    }
}
