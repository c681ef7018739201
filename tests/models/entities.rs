//! Segmentations of entities: one row per key, from the records of each slice alone.

use std::collections::{BTreeMap, BTreeSet};

use common::Place;
use serde_json::{Value, json};

use crate::common;

pub const RECORDS: &str = "CREATE TABLE records (customer_id TEXT, amount TEXT)";

pub const ORDERS: &str = "SELECT _partition, _offset, _timestamp, customer_id, TRY_CAST(amount AS DOUBLE) AS amount
FROM records WHERE _error IS NULL";

pub const CUSTOMERS: &str = "-- k: 3
-- entity: customer_id
-- label.total.en: Small | Medium | Large

SELECT customer_id, CAST(count(*) AS DOUBLE) AS orders, sum(amount) AS total FROM orders GROUP BY customer_id";

/// Orders of customers: some come late, some only once. Row 7 of each hundred has no customer.
pub fn orders() -> Vec<(String, f64)> {
    let order = |i: u32| {
        let customer = match i % 100 {
            7 => String::new(),
            n if n % 3 == 0 => format!("C{:03}", i / 3),
            n => format!("C{:03}", (n * n + i / 90) % 40),
        };
        (customer, f64::from(i * 7919 % 1000) / 8.0 + if i % 40 < 4 { 5000.0 } else { 0.0 })
    };
    (0..300).map(order).collect()
}

/// A place whose store holds the orders; trained with these SQL files by `up`.
pub fn place(segmentations: &[(&str, &str)]) -> Place {
    let place = Place::new();
    place.write("sql/00_records.sql", RECORDS);
    place.write("sql/10_orders.sql", ORDERS);
    for (name, sql) in segmentations {
        place.write(&format!("sql/{name}"), sql);
    }
    let rows = orders().into_iter().map(|(customer, amount)| match customer.is_empty() {
        // Not even the field: the key is NULL.
        true => json!({ "amount": amount }).to_string() + "\n",
        false => json!({ "customer_id": customer, "amount": amount }).to_string() + "\n",
    });
    place.write("orders.ndjson", rows.collect::<String>());
    let up = place.up(&["--data", "orders.ndjson"]).interrupt();
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    place
}

pub fn model(place: &Place, name: &str, version: u64) -> Value {
    let path = place.path(&format!("store/models/{name}/{version}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The customers of the first records, with number and sum of their orders.
pub fn customers(records: usize) -> BTreeMap<String, (f64, f64)> {
    let mut all = BTreeMap::new();
    for (customer, amount) in orders().into_iter().take(records).filter(|(customer, _)| !customer.is_empty()) {
        let entry = all.entry(customer).or_insert((0.0, 0.0));
        *entry = (entry.0 + 1.0, entry.1 + amount);
    }
    all
}

#[test]
fn each_slice_has_its_own_entities() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    for slice in 1..=3 {
        let model = model(&place, "customers", slice);
        let expected = customers(slice as usize * 100);
        assert_eq!(model["entity"], json!(["customer_id"]));
        assert_eq!(model["rows"], expected.len(), "slice {slice}");
        assert_eq!(model["rows_left_out"], 1, "one row has no key");
        let sizes: u64 = model["clusters"].as_array().unwrap().iter().map(|c| c["size"].as_u64().unwrap()).sum();
        assert_eq!(sizes, expected.len() as u64);
        // The features are those that were known at the slice.
        let mean = expected.values().map(|(_, total)| total).sum::<f64>() / expected.len() as f64;
        assert!((model["mean"][1].as_f64().unwrap() - mean).abs() < 1e-9, "slice {slice}");

        let sum = |matrix: &Value| -> u64 {
            matrix.as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum()
        };
        if slice == 1 {
            assert_eq!((&model["moved"], model.get("moved_by")), (&Value::Null, None));
        } else {
            let before: BTreeSet<_> = customers(slice as usize * 100 - 100).into_keys().collect();
            let common = expected.keys().filter(|key| before.contains(*key)).count() as u64;
            for matrix in [&model["moved"], &model["moved_by"]["features"], &model["moved_by"]["model"]] {
                assert_eq!(sum(matrix), common, "slice {slice}: {matrix}");
            }
        }
        let name = format!("customers@{slice}");
        assert!(place.ok(&["verify", &name]).contains("to the bit"));
        let svg = place.ok(&["plot", &name, "--out", &format!("{slice}.svg")]);
        assert_eq!(svg, "");
    }
    // The sample has features and clusters, and nothing that names an entity.
    let sample = place.ok(&[
        "sql",
        "--table",
        "sample=store/models/customers/3.sample.parquet",
        "-f",
        "csv",
        "-c",
        "SELECT * FROM sample LIMIT 1",
    ]);
    assert_eq!(sample.lines().next(), Some("orders,total,cluster,_imputed"));
    let diff = place.ok(&["models", "diff", "customers@2", "customers@3"]);
    assert!(diff.contains("counted at training"), "{diff}");
    assert_eq!(place.number("SELECT count(*) FROM records WHERE _timestamp > slice_end()"), 0);
    assert_eq!(
        place.number("SELECT count(*) FROM (SELECT max(_timestamp) AS t FROM records) WHERE t = slice_end()"),
        1
    );

    let serve = place.serve(&[]);
    let points = serve.get("/api/segments/customers/points").json();
    let point = &points["points"][0];
    assert!(point.get("partition").is_none() && point["values"].as_array().unwrap().len() == 2, "{point}");
    assert_eq!(serve.get("/api/segments/customers/k-report").status, 200);
    let answer = serve.post("/api/segments/customers/predict", r#"[{"orders":1,"total":10}]"#);
    assert_eq!(answer.status, 200, "{}", answer.text);
    let api = serve.get("/api/segments/customers/models/3").json();
    assert_eq!(
        (&api["entity"], &api["moved_by"]),
        (&json!(["customer_id"]), &model(&place, "customers", 3)["moved_by"])
    );
}

#[test]
fn another_entity_begins_a_new_lineage() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    // With the same records and SQL nothing is new.
    let outcomes: Value = serde_json::from_str(&place.ok(&["train", "--json"])).unwrap();
    assert!(outcomes.as_array().unwrap().iter().all(|outcome| outcome["fresh"] == false), "{outcomes}");
    let sql =
        CUSTOMERS.replace("customer_id", "letter").replace("SELECT letter", "SELECT right(customer_id, 1) AS letter");
    let sql = sql.replace("GROUP BY letter", "GROUP BY 1");
    place.write("sql/30_customers.sql", sql);
    let trained = place.run(&["train"]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    assert!(trained.stderr.contains("is new") && trained.stderr.contains("entities"), "{}", trained.stderr);
    let new = model(&place, "customers", 4);
    assert_eq!((&new["entity"], &new["rows"]), (&json!(["letter"]), &json!(10)));
    assert_eq!(new["receipt"]["predecessor"], Value::Null);
    assert_eq!(new["receipt"]["replaced"], json!({ "slice": 1, "version": 1 }));
    assert!(new["clusters"].as_array().unwrap().iter().all(|cluster| cluster["new"] == true));
    place.ok(&["verify", "customers@1"]);
    place.ok(&["model", "show", "customers@1@1"]);
}

#[test]
fn an_entity_that_occurs_twice_refuses_the_slice() {
    let sql = "-- k: 2\n-- entity: customer_id, amount\n\nSELECT customer_id, CAST(amount AS BIGINT) AS amount, amount AS x FROM orders WHERE customer_id IN ('C001', 'C299') OR _offset >= 250 UNION ALL SELECT 'C-2', 7, 1.5 FROM orders WHERE _offset >= 298";
    let place = place(&[("30_twice.sql", sql)]);
    let trained = place.run(&["train"]);
    let said = "the entity customer_id \"C-2\", amount \"7\" occurs 2 times in the view";
    assert!(trained.stderr.contains(said), "{}", trained.stderr);
    let slices: Value =
        serde_json::from_slice(&std::fs::read(place.path("store/models/twice/slices.json")).unwrap()).unwrap();
    assert!(slices["3"]["refused"].as_str().unwrap().contains("C-2"), "{slices}");
    // Keys are not for everybody who may read the API.
    let serve = place.serve(&[]);
    let info = serve.get("/api/segments/twice").text;
    assert!(info.contains("occurs 2 times") && !info.contains("C-2"), "{info}");
}

#[test]
fn views_of_entities_are_checked_where_they_are_written() {
    let place = Place::new();
    place.write("sql/00_records.sql", RECORDS);
    place.write("sql/10_orders.sql", ORDERS);
    place.write("one.ndjson", "{\"customer_id\":\"a\",\"amount\":\"1\"}\n");
    assert_eq!(place.up(&["--data", "one.ndjson"]).interrupt().code, Some(0));
    let body = "SELECT customer_id, sum(amount) AS total FROM orders GROUP BY customer_id";
    let cases = [
        (
            "customer",
            body,
            "line 2, column 1: the entity customer is no column of the view, which gives customer_id, total",
        ),
        (
            "total",
            body,
            "line 2, column 1: the entity total is Float64, and must be text, an integer, a boolean or a date",
        ),
        ("t", "SELECT max(_timestamp) AS t, sum(amount) AS total FROM orders", "the entity t is Timestamp"),
        (
            "l",
            "SELECT array_agg(amount ORDER BY _partition, _offset) AS l, 1 AS total FROM orders",
            "the entity l is List",
        ),
        ("customer_id", "SELECT customer_id, _offset FROM orders", "may not give _offset"),
        ("customer_id", "SELECT customer_id, amount AS distance FROM orders", "may not be called distance"),
        (
            "customer_id",
            "SELECT customer_id, random() AS r FROM orders",
            "line 4, column 21: random does not depend on the records alone",
        ),
        (
            "customer_id",
            "SELECT customer_id, date_part('epoch', now() - max(_timestamp)) AS r FROM orders GROUP BY 1",
            "now does not depend",
        ),
        (
            "customer_id",
            "SELECT customer_id, 1 AS r FROM orders WHERE current_date > DATE '2020-01-01'",
            "current_date does not depend",
        ),
        ("customer_id", "SELECT customer_id, 1 AS r FROM orders WHERE EXISTS (SELECT uuid())", "uuid does not depend"),
        (
            "customer_id",
            "SELECT customer_id, stddev(amount) AS x FROM orders GROUP BY 1",
            "line 4, column 21: stddev cannot be exact at any number of partitions; use sqrt(greatest(",
        ),
        (
            "customer_id",
            "SELECT customer_id, approx_distinct(amount) AS x FROM orders GROUP BY 1",
            "use count(DISTINCT …)",
        ),
        ("customer_id", "SELECT customer_id, corr(amount, amount) AS x FROM orders GROUP BY 1", "corr cannot be exact"),
        (
            "customer_id",
            "SELECT customer_id, first_value(amount) AS x FROM orders GROUP BY 1",
            "first_value needs an order: first_value(… ORDER BY _timestamp, _partition, _offset)",
        ),
        (
            "customer_id",
            "SELECT customer_id, sum(DISTINCT amount) AS x FROM orders GROUP BY 1",
            "sum of DISTINCT doubles cannot be exact",
        ),
        (
            "customer_id",
            "SELECT customer_id, amount FROM (SELECT *, row_number() OVER (PARTITION BY customer_id) AS n FROM orders) WHERE n = 1",
            "row_number needs an order",
        ),
        (
            "customer_id",
            "SELECT customer_id, amount FROM noisy",
            "11_noisy.sql, line 1, column 46: random does not depend",
        ),
    ];
    place.write("sql/11_noisy.sql", "SELECT customer_id, amount FROM orders WHERE random() < 2");
    for (entity, sql, said) in cases {
        place.write("sql/30_s.sql", format!("-- k: 1\n-- entity: {entity}\n\n{sql}"));
        let error = place.fails(1, &["train"]);
        assert!(error.contains(said), "{entity}: {sql}: {error}");
        assert!(error.contains(".sql"), "{error}");
    }
}

#[test]
fn an_order_that_may_have_ties_is_warned_about() {
    let latest = |order: &str| {
        format!(
            "-- k: 2\n-- entity: customer_id\n\nSELECT customer_id, amount FROM (SELECT *, row_number() OVER (PARTITION BY customer_id ORDER BY {order}) AS n FROM orders) WHERE n = 1"
        )
    };
    let place = place(&[("30_latest.sql", &latest("_timestamp DESC, _partition DESC, _offset DESC"))]);
    let trained = place.run(&["train"]);
    assert!(!trained.stderr.contains("ORDER BY"), "{}", trained.stderr);
    // The latest amount of each customer, as known at the slice.
    assert_eq!(model(&place, "latest", 1)["rows"], customers(100).len());
    place.write("sql/30_latest.sql", latest("_timestamp DESC"));
    let trained = place.run(&["train"]);
    assert_eq!(trained.code, Some(0));
    assert!(trained.stderr.contains("30_latest.sql: ORDER BY orders._timestamp DESC"), "{}", trained.stderr);
    assert!(trained.stderr.contains("does not end with _partition, _offset"), "{}", trained.stderr);
}

#[test]
fn keys_may_be_anything_that_is_text_and_few_entities_are_refused_as_few_records_are() {
    let place = Place::new();
    place.write("sql/00_records.sql", RECORDS);
    place.write("sql/10_orders.sql", ORDERS);
    place.write("sql/30_customers.sql", CUSTOMERS);
    let long = "k".repeat(1 << 20);
    let keys = ["", "a/b", "50%", "two\nlines", "😀", &long];
    let mut rows = String::new();
    for _ in 0..3 {
        for (i, key) in keys.iter().enumerate() {
            rows += &(json!({ "customer_id": key, "amount": i * i }).to_string() + "\n");
        }
    }
    place.write("orders.ndjson", &rows);
    assert_eq!(place.up(&["--data", "orders.ndjson"]).interrupt().code, Some(0));
    assert_eq!(model(&place, "customers", 1)["rows"], keys.len());
    place.ok(&["verify", "customers"]);

    // Fewer entities than clusters.
    place.write(
        "sql/31_few.sql",
        "-- k: 3\n-- entity: kind\n\nSELECT customer_id = '' AS kind, sum(amount) AS total FROM orders GROUP BY 1",
    );
    let trained = place.run(&["train"]);
    assert!(trained.stderr.contains("few of slice 1: "), "{}", trained.stderr);
    // All equal.
    place.write(
        "sql/31_few.sql",
        "-- k: 2\n-- entity: kind\n\nSELECT customer_id AS kind, count(*) AS n FROM orders GROUP BY 1",
    );
    let trained = place.run(&["train", "--timeout", "60"]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
}
