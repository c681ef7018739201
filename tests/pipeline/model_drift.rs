//! Drift: rows that arrived after a training, rows of requests and thirds, compared with the model's baseline.

use std::collections::BTreeMap;

use common::{Place, kafka};
use serde_json::{Value, json};

use super::kafka::topic;
use crate::common;

/// Rows of products; prices are multiplied.
fn rows(from: usize, to: usize, times: usize) -> String {
    let row = |i: usize| {
        json!({
            "product_id": i.to_string(), "discounted_price": format!("₹{}", (i * 7919 % 9973 + 1) * times),
            "rating": if i.is_multiple_of(50) { String::new() } else { format!("{}.{}", 3 + i * 13 % 2, i * 31 % 10) },
            "rating_count": (i * 5471 % 1013).to_string(), "discount_percentage": format!("{}%", i * 37 % 97),
        })
        .to_string()
            + "\n"
    };
    (from..to).map(row).collect()
}

struct Shop {
    place: Place,
    servers: String,
    topic: String,
}

impl Shop {
    fn new(servers: &str) -> Self {
        let shop = Self { place: Place::new(), servers: servers.to_owned(), topic: topic("drift") };
        for file in common::files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            shop.place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
        }
        shop
    }

    /// Sends rows and stores them.
    fn add(&self, rows: &str) {
        self.place.write("rows.ndjson", rows);
        let to = ["--bootstrap-servers", &self.servers, "--topic", &self.topic];
        self.place.ok(&[&["produce", "rows.ndjson", "--partitions", "2"][..], &to].concat());
        self.place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    }

    fn drift(&self, args: &[&str]) -> Value {
        serde_json::from_str::<Value>(&self.place.ok(&[&["drift", "--json"], args].concat())).unwrap()
    }

    fn one(&self, args: &[&str]) -> Value {
        let mut reports = self.drift(args);
        assert_eq!(reports.as_array().unwrap().len(), 1);
        reports[0].take()
    }
}

/// The population stability index of a feature, from the published baseline and the rows themselves.
fn index_by_hand(baseline: &Value, values: &[Option<f64>]) -> f64 {
    let counts = |of: &Value| -> Vec<f64> { of.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect() };
    let mut before = counts(&baseline["counts"]);
    before.push(baseline["missing"].as_f64().unwrap());
    let mut now = vec![0.0; before.len()];
    for value in values {
        let bin = match (value, &baseline["values"]) {
            (None, _) => now.len() - 1,
            (Some(value), Value::Array(known)) => {
                known.iter().position(|one| one.as_f64() == Some(*value)).unwrap_or(known.len())
            }
            (Some(value), _) => counts(&baseline["edges"]).iter().filter(|edge| *edge < value).count(),
        };
        now[bin] += 1.0;
    }
    let (all, all_now) = (before.iter().sum::<f64>(), now.iter().sum::<f64>());
    let shares = before.iter().zip(&now).map(|(a, b)| ((a / all).max(1e-4), (b / all_now).max(1e-4)));
    shares.map(|(p, q)| (q - p) * (q / p).ln()).sum()
}

#[test]
fn rows_that_arrived_after_the_training_are_compared_with_it() {
    let Some(servers) = kafka() else { return };
    let shop = Shop::new(&servers);
    shop.add(&rows(0, 3_000, 1));
    shop.place.ok(&["train"]);
    let none = shop.one(&["price_rating"]);
    assert_eq!((&none["state"], &none["rows"], &none["since"]), (&json!("too few"), &json!(0), &json!(null)));
    assert_eq!(none["words"]["en"], "too little data: 0 rows, and 500 are needed");

    shop.add(&rows(3_000, 4_000, 1));
    let same = shop.drift(&[]);
    assert_eq!(same.as_array().unwrap().len(), 3);
    for report in same.as_array().unwrap() {
        assert_eq!((&report["state"], &report["rows"], &report["read"]), (&json!("ok"), &json!(1_000), &json!(1_000)));
        assert!(report["features"].as_array().unwrap().iter().all(|one| one["direction"] == "none"), "{report}");
    }
    assert_eq!(shop.place.run(&["drift", "--fail"]).code, Some(0));

    shop.add(&rows(4_000, 6_000, 1_000));
    let report = shop.one(&["price_rating"]);
    let (price, rating) = (&report["features"][0], &report["features"][1]);
    assert_eq!(
        (&report["state"], &report["rows"], &report["of"]),
        (&json!("drifting"), &json!(3_000), &json!("stream"))
    );
    assert_eq!(
        (&price["name"], &price["direction"], &rating["direction"]),
        (&json!("discounted_price"), &json!("up"), &json!("none"))
    );
    assert!((rating["missing"].as_f64().unwrap() - 0.02).abs() < 1e-3 && rating["missing_before"] == 0.02, "{rating}");
    assert!(report["unlike"].as_f64().unwrap() > 0.3 && report["unlike_before"].as_f64().unwrap() < 0.01);
    let shares =
        |of: &str| -> f64 { report["clusters"].as_array().unwrap().iter().map(|one| one[of].as_f64().unwrap()).sum() };
    assert!((shares("share") - 1.0).abs() < 1e-9 && (shares("share_before") - 1.0).abs() < 1e-9);
    let words = report["words"]["en"].as_str().unwrap();
    assert!(words.starts_with("discounted_price is higher since 2") && words.contains("grew from"), "{words}");
    let failed = shop.place.run(&["drift", "price_rating", "--fail"]);
    assert_eq!(failed.code, Some(5), "{}", failed.stderr);
    assert_eq!(shop.place.run(&["drift", "discount", "--fail"]).code, Some(0));

    // The index is that of the published bins.
    let serve = shop.place.serve(&[]);
    let model = serve.get("/api/segments/price_rating/models/3").json();
    let receipt: BTreeMap<String, i64> = serde_json::from_value(model["receipt"]["next_offsets"].clone()).unwrap();
    // A partition that had no records then is not in the receipt: all of its records are later ones.
    let known: Vec<String> =
        receipt.iter().map(|(partition, next)| format!("(_partition = {partition} AND _offset < {next})")).collect();
    for (at, feature) in ["discounted_price", "rating"].iter().enumerate() {
        let sql = format!("SELECT {feature} AS v FROM price_rating WHERE NOT ({})", known.join(" OR "));
        let lines = shop.place.ok(&["sql", "-f", "ndjson", "-c", &sql]);
        let values: Vec<Option<f64>> =
            lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["v"].as_f64()).collect();
        assert_eq!(values.len(), 3_000);
        let (by_hand, found) = (
            index_by_hand(&model["baseline"]["features"][at], &values),
            report["features"][at]["psi"].as_f64().unwrap(),
        );
        assert!((by_hand - found).abs() <= 1e-9 * found.max(1.0), "{feature}: {by_hand}, {found}");
    }

    // The API gives the same report, and predictions tell rows that are unlike.
    let asked = serve.get("/api/segments/price_rating/drift?of=stream");
    assert_eq!((asked.status, asked.json()), (200, report));
    let far = serve
        .post(
            "/api/segments/price_rating/predict",
            r#"[{"discounted_price": 9000000, "rating": 4.0}, {"discounted_price": 5000, "rating": 4.0}]"#,
        )
        .json();
    assert_eq!((&far[0]["unlike"], &far[1]["unlike"]), (&json!(true), &json!(false)));
    let raw = serve
        .post(
            "/api/segments/price_rating/score",
            r#"[{"discounted_price": "₹90,00,000", "rating": "4.0"}, {"rating": "4"}]"#,
        )
        .json();
    assert_eq!((&raw[0]["unlike"], &raw[1]["cluster"]), (&json!(true), &json!(null)));
    drop(serve);

    // Compaction merges records of the training with later ones.
    shop.place.ok(&["compact"]);
    let again = shop.one(&["price_rating"]);
    assert_eq!(
        (&again["rows"], &again["read"], &again["features"]),
        (&json!(3_000), &json!(3_000), &asked.json()["features"])
    );

    // A new model ends it; thirds are compared with the slice before.
    shop.place.ok(&["train"]);
    assert_eq!(shop.one(&["price_rating"])["state"], "too few");
    let thirds = shop.one(&["price_rating", "--of", "thirds"]);
    assert_eq!((&thirds["model"], &thirds["rows"], &thirds["state"]), (&json!(2), &json!(2_000), &json!("drifting")));
    let error = shop.place.fails(1, &["drift", "price_rating", "--of", "thirds", "--slice", "1"]);
    assert!(error.contains("no slice before slice 1"), "{error}");
    let error = shop.place.fails(1, &["drift", "shoes"]);
    assert!(error.contains("there is no segmentation shoes; the SQL files have price_rating"), "{error}");
}

#[test]
fn rows_of_requests_views_of_many_records_and_entities_are_compared_too() {
    let Some(servers) = kafka() else { return };
    let shop = Shop::new(&servers);
    // The price relative to the one before: a record alone does not determine it.
    let window = "-- k: 2\n\nSELECT _partition, _offset, _timestamp, _slice, discounted_price - lag(discounted_price, 1, 0.0) OVER (ORDER BY _partition, _offset) AS step FROM slices WHERE discounted_price IS NOT NULL";
    shop.place.write("sql/33_step.sql", window);
    let entities = "-- k: 2\n-- entity: product_id\n\nSELECT product_id, max(discounted_price) AS dearest FROM products GROUP BY product_id";
    shop.place.write("sql/34_dearest.sql", entities);
    shop.add(&rows(0, 2_000, 1));
    shop.place.ok(&["train"]);
    shop.add(&rows(2_000, 4_000, 1_000));
    let step = shop.one(&["step"]);
    assert_eq!((&step["state"], &step["rows"], &step["read"]), (&json!("drifting"), &json!(2_000), &json!(2_000)));
    // Half of the products are new, and dear.
    let dearest = shop.one(&["dearest"]);
    assert_eq!(
        (&dearest["state"], &dearest["rows"], &dearest["since"]),
        (&json!("drifting"), &json!(4_000), &json!(null))
    );
    assert!(dearest["words"]["en"].as_str().unwrap().starts_with("dearest is higher (PSI "), "{dearest}");

    let serve = shop.place.serve(&[]);
    let api = |slice: u8| serve.get(&format!("/api/segments/price_rating/drift?of=api&model={slice}")).json();
    assert_eq!((&api(3)["state"], &api(3)["rows"]), (&json!("too few"), &json!(0)));
    let request = |price: usize| {
        let rows: Vec<Value> = (0..50).map(|i| json!({"discounted_price": price + i, "rating": 4.5})).collect();
        serve.post("/api/segments/price_rating/predict", &json!(rows).to_string())
    };
    (0..12).for_each(|_| assert_eq!(request(9_000).status, 200));
    let report = api(3);
    assert_eq!((&report["state"], &report["rows"], &report["read"]), (&json!("drifting"), &json!(600), &json!(600)));
    assert_eq!(report["features"][0]["direction"], "up");
    // Other slices were not asked.
    assert_eq!(api(1)["rows"], 0);
    let refused = serve.get("/api/segments/price_rating/drift?model=1&of=thirds");
    assert_eq!((refused.status, &refused.json()["field"]), (422, &json!("model")));
    let refused = serve.get("/api/segments/price_rating/drift?of=moon").json();
    assert_eq!(refused["detail"], "the query parameter of must be one of stream, api, thirds");

    // SQL that has changed since the training.
    let sql = std::fs::read_to_string(shop.place.path("sql/30_price_rating.sql")).unwrap();
    shop.place.write("sql/30_price_rating.sql", format!("{sql}\n-- another comment\n").replace("SELECT", "SELECT ALL"));
    let error = shop.place.fails(1, &["drift", "price_rating"]);
    assert!(error.contains("the SQL of price_rating has changed since version"), "{error}");
    common::eventually("the server sees the new SQL", || serve.get("/api/segments/price_rating/drift").status == 409);
}
