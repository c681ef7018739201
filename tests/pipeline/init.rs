//! `tercile init` as a user runs it: the command lines that it and `up` print, run by a shell as they are; nested fields in
//! views and queries.

use std::path::Path;
use std::process::{Command, Output};

use common::{Place, Running};

use crate::common;

/// Runs a printed line in the directory of `place`, with `tercile` in the path.
fn shell(place: &Place, line: &str) -> Output {
    let bin = Path::new(env!("CARGO_BIN_EXE_tercile")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-c", line]).current_dir(place.dir.path()).env("PATH", path).output().unwrap()
}

/// The lines that `init` prints below "next:".
fn next(said: &str) -> Vec<String> {
    let (_, lines) = said.split_once("next:\n").unwrap();
    lines.lines().map(|line| line.trim().to_owned()).collect()
}

/// Words of a command line that a shell would pass.
fn words(line: &str) -> Vec<String> {
    let said =
        Command::new("sh").args(["-c", &format!("for word in {line}; do printf '%s\\n' \"$word\"; done")]).output();
    String::from_utf8(said.unwrap().stdout).unwrap().lines().map(str::to_owned).collect()
}

fn field(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/init").join(name)).unwrap()
}

/// Runs `init` on a file, then what it prints, then what `up` prints. Returns what `init` said, the curl line's answer, and
/// the rows of the last line.
fn follow(file: &str, content: &[u8]) -> (String, String, String) {
    let place = Place::new();
    place.write(file, content);
    let said = place.ok(&["init", file, "--sql", "our sql"]);
    let lines = next(&said);
    assert_eq!(lines.len(), 3, "{said}");
    assert!(shell(&place, &lines[0]).status.success(), "{}", lines[0]);
    let up = words(lines[1].strip_prefix("tercile up ").unwrap());
    let mut up: Running = place.up(&up.iter().map(String::as_str).collect::<Vec<_>>());
    let curl = up.line_with("try: ");
    let answer = shell(&place, &curl);
    assert!(answer.status.success(), "{curl}: {}", String::from_utf8_lossy(&answer.stderr));
    let rows = shell(&place, &lines[2]);
    assert!(rows.status.success(), "{}: {}", lines[2], String::from_utf8_lossy(&rows.stderr));
    let [answer, rows] = [answer, rows].map(|output| String::from_utf8(output.stdout).unwrap());
    (said, answer, rows)
}

#[test]
fn printed_lines_run_as_printed() {
    let (said, answer, rows) = follow("mall.csv", &field("mall.csv"));
    assert!(said.contains("`CustomerID`: text: digits with leading zeros (`0001`) are a code"), "{said}");
    assert!(said.contains("Features can be: Age, Annual Income (k$), Spending Score (1-100)"), "{said}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert!(answer[0]["cluster"].is_u64() && answer[0]["features"]["Age"].is_f64(), "{answer}");
    assert!(rows.contains("Spending Score (1-100)") && rows.contains("0001"), "{rows}");
    // The view is named like a keyword, and the file needs quotes.
    let (_, answer, rows) = follow("user.csv", &field("user.csv"));
    assert!(answer.contains("\"price\"") && rows.contains("Café au lait"), "{answer}{rows}");
    let (said, answer, rows) = follow("our shop's $1.ndjson", &field("nested.ndjson"));
    assert!(said.contains("stone_carat") && answer.contains("\"price_amount\""), "{said}{answer}");
    assert!(rows.contains("stone_quality_cut") && rows.contains("Premium"), "{rows}");
}

#[test]
fn missing_values_are_told_and_listed() {
    let place = Place::new();
    place.write("na.csv", field("na_values.csv"));
    let said = place.ok(&["init", "na.csv", "--sql", "a"]);
    assert!(said.contains("`age`: `NA` in 1 of 30 rows, treated as missing"), "{said}");
    let said = place.ok(&["init", "na.csv", "--sql", "b", "--na", "NA"]);
    assert!(said.contains("`mpg`: text: `?` in 1 of 30 rows is no number; list it with --na"), "{said}");
    place.write("sensor.csv", "t,co\n1,-200\n2,1.5\n3,2.5\n");
    let said = place.ok(&["init", "sensor.csv", "--sql", "c", "--na", "-200,?"]);
    assert!(said.contains("`co`: `-200` in 1 of 3 rows, treated as missing"), "{said}");
    let view = std::fs::read_to_string(place.path("c/10_sensor.sql")).unwrap();
    assert!(view.contains("to_number(CASE WHEN btrim(co) NOT IN ('-200') THEN co END) AS co"), "{view}");
}

#[test]
fn messages_suggest_lines_with_the_flags_of_the_command() {
    let place = Place::new();
    place.write("capitals.csv", field("capitals.csv"));
    let sql = ["sql", "--table", "t=capitals.csv", "-f", "csv", "-c"];
    for (wrong, right) in
        [("rating", "\"Rating\""), ("\"Order\"", "\"order\""), ("\"product name\"", "\"Product Name\"")]
    {
        let error = place.fails(1, &[&sql[..], &[&format!("SELECT {wrong} FROM t")]].concat());
        let meant = error.split("did you mean ").nth(1).unwrap().trim_end_matches('?');
        assert_eq!(meant, right, "{error}");
        place.ok(&[&sql[..], &[&format!("SELECT {meant} FROM t")]].concat());
    }
    let error = place.fails(1, &["predict", "price_rating", "--store", "our store"]);
    assert!(error.contains("make it with tercile up --store 'our store'"), "{error}");
}

/// The fenced block after a mark `<!-- … -->`.
fn block(page: &str, mark: &str) -> String {
    let (_, rest) = page.split_once(&format!("<!-- {mark} -->\n```")).unwrap();
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("\n```").unwrap().0.to_owned()
}

#[test]
fn the_example_of_json_in_the_manual_is_true() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sql.md")).unwrap();
    let place = Place::new();
    place.write("stones.ndjson", block(&page, "json: stones.ndjson"));
    for (name, text) in [
        ("00_records.sql", "CREATE TABLE records (sku TEXT, stone TEXT, price TEXT)".to_owned()),
        ("10_stones.sql", block(&page, "json: 10_stones.sql")),
        ("20_slices.sql", include_str!("../../sql/20_slices.sql").replace("products", "stones")),
        ("30_carats.sql", "-- k: 2\n\nSELECT _partition, _offset, _timestamp, _slice, carat FROM slices\n".to_owned()),
    ] {
        place.write(&format!("shop/{name}"), text);
    }
    let shop = ["--sql", "shop", "--store", "stones"];
    let running = place.up(&[&["--data", "stones.ndjson", "--topic", "stones"][..], &shop].concat());
    let answer = running.post("/api/segments/carats/predict", r#"[{"carat": 0.3}]"#).json();
    assert!(answer[0]["cluster"].is_u64(), "{answer}");
    let select = block(&page, "json: query");
    let rows = place.ok(&[&["sql", "-f", "table", "-c", &select][..], &shop].concat());
    assert_eq!(rows.trim_end(), block(&page, "json: answer"));
    // The operators work in a function of models too, and whole numbers in JSON stay exact.
    let exact = "SELECT '{\"a\": {\"b\": 9007199254740993, \"c\": [1, \"x\"]}}' -> 'a' ->> 'b' AS b, \
                 json_get_str('{\"c\": [1, \"x\"]}', 'c', 1) AS c, segment('carats', to_number(stone ->> 'carat')) IS NULL AS s \
                 FROM records LIMIT 1";
    let rows = place.ok(&[&["sql", "-f", "csv", "-c", exact][..], &shop].concat());
    assert_eq!(rows, "b,c,s\n9007199254740993,x,false\n");
    // As in PostgreSQL, they bind more closely than comparisons, and casts more closely than they.
    let compared =
        "SELECT sku FROM records WHERE stone -> 'quality' ->> 'cut' = 'Ideal' AND price ->> 'amount' IS NOT NULL";
    assert_eq!(place.ok(&[&["sql", "-f", "csv", "-c", compared][..], &shop].concat()), "sku\nD1\n");
    let cast = place.run(&[&["sql", "-c", "SELECT stone ->> 'carat'::int FROM records"][..], &shop].concat());
    assert!(cast.stderr.contains("write (a ->> 'b')::int"), "{}", cast.stderr);
    let text = place.run(&[&["sql", "SELECT 1 AS a"][..], &shop].concat());
    assert!(text.stderr.contains("write tercile sql --store stones --sql shop -c 'SELECT 1 AS a'"), "{}", text.stderr);
}

/// Runs `init --entity` and the `up` that it prints. Returns what `init` said, the SQL, and the model of the whole stream.
fn entities(place: &Place, file: &str, by: &str) -> (String, String, serde_json::Value) {
    let dir = format!("{}-sql", by.replace(',', "-"));
    let said = place.ok(&["init", file, "--entity", by, "--sql", &dir]);
    let lines = next(&said);
    assert_eq!(lines.len(), 2, "{said}");
    let wrote = said.lines().find(|line| line.contains("/30_")).unwrap().strip_prefix("wrote ").unwrap();
    let sql = std::fs::read_to_string(place.path(wrote)).unwrap();
    let name = Path::new(wrote).file_stem().unwrap().to_str().unwrap().strip_prefix("30_").unwrap();
    let up = words(lines[0].strip_prefix("tercile up ").unwrap());
    let up: Running = place.up(&up.iter().map(String::as_str).collect::<Vec<_>>());
    let model = up.get(&format!("/api/segments/{name}/models/3")).json();
    assert_eq!(model["receipt"]["n"].as_u64().map(|n| n > 0), Some(true), "{model}");
    assert!(up.get(&format!("/api/segments/{name}/models/1")).json()["clusters"].is_array());
    (said, sql, model)
}

#[test]
fn a_segmentation_of_entities_is_trained_at_once() {
    let place = Place::new();
    place.ok(&["generate", "orders", "3000", "-o", "orders.csv"]);
    let (said, sql, model) = entities(&place, "orders.csv", "customer_id");
    assert!(said.contains("in 3000 records, ") && said.contains("from 1.5 records each on"), "{said}");
    assert!(sql.starts_with("-- k: 3\n-- entity: customer_id\n") && sql.contains("GROUP BY customer_id"), "{sql}");
    let features: Vec<&str> = model["features"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!((features[0], *features.last().unwrap()), ("record_count", "days_since_last"));
    assert!(features.contains(&"quantity_sum") && !features.iter().any(|name| name.contains("_id")), "{features:?}");
    let counted = said.split("customer_id: ").nth(1).unwrap().split(' ').next().unwrap();
    let distinct = "SELECT count(DISTINCT customer_id) FROM t";
    let distinct = place.ok(&["sql", "--table", "t=orders.csv", "-f", "csv", "-c", distinct]);
    let distinct = distinct.lines().nth(1).unwrap();
    assert_eq!((counted, model["rows"].to_string().as_str()), (distinct, distinct));

    // Several columns; codes keep their zeros.
    let rows = |i: u32| format!("00{},{},{},{}\n", i % 7, i % 3, i * 37 % 100, i * i % 89);
    place.write("visits.csv", "shop,desk,guests,spent\n".to_owned() + &(0..400).map(rows).collect::<String>());
    let (_, sql, model) = entities(&place, "visits.csv", "shop,desk");
    assert!(sql.contains("-- entity: shop, desk\n") && sql.contains("slice_end() - max(_timestamp)"), "{sql}");
    assert_eq!((&model["rows"], &model["features"][1]), (&21.into(), &"guests_sum".into()));

    // About as many entities as records.
    let file = match common::amazon() {
        Some(file) => std::fs::copy(file, place.path("products.csv")).map(|_| "products.csv").unwrap(),
        None => {
            place.write("products.csv", place.ok(&["generate", "1500"]));
            "products.csv"
        }
    };
    let (said, sql, model) = entities(&place, file, "product_id");
    assert!(said.contains("below 1.5 records each a row is the latest record"), "{said}");
    assert!(sql.contains("PARTITION BY product_id ORDER BY _timestamp DESC NULLS LAST"), "{sql}");
    let features: Vec<&str> = model["features"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert!(features.contains(&"discounted_price") && !features.contains(&"product_id"), "{features:?}");

    for (by, said) in [
        ("custmer_id", "orders.csv has no field custmer_id; did you mean customer_id?"),
        ("customer_id,xyz", "orders.csv has no field xyz; it has order_id, customer_id,"),
        ("customer_id,customer_id", "--entity names the field customer_id twice"),
    ] {
        let error = place.fails(1, &["init", "orders.csv", "--entity", by, "--sql", "none"]);
        assert!(error.contains(said), "{error}");
        assert!(!place.path("none").exists());
    }
}
