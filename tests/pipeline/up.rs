//! The complete pipeline: `up` with the sample, with the real dataset, repeated, and with records sent by other clients.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use common::{Place, amazon, eventually};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

use crate::common;

/// Key and value of a message.
type Record<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// An independent client that knows only the broker's address.
fn send(broker: &str, records: &[Record<'_>]) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", broker).create().unwrap();
    for (key, payload) in records {
        let mut record = BaseRecord::<[u8], [u8]>::to("products");
        if let Some(key) = key {
            record = record.key(key);
        }
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

fn models(place: &Place) -> Vec<Value> {
    let outcomes: Value = serde_json::from_str(&place.ok(&["train", "--json"])).unwrap();
    outcomes.as_array().unwrap().iter().map(|outcome| outcome["model"].clone()).collect()
}

#[test]
fn the_sample_is_stored_once_however_often_up_runs() {
    let place = Place::new();
    let up = place.up(&[]);
    assert_eq!(up.get("/health/ready").status, 200);
    assert_eq!(place.records(), (1465, 1465));
    let ended = up.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("sent 1,465 records"), "{}", ended.stderr);
    assert!(ended.stdout.contains("try: curl"), "{}", ended.stdout);

    let up = place.up(&[]);
    assert_eq!(up.get("/api/segments/discount").json()["slices"][2]["version"], 3, "nothing new, no new version");
    assert_eq!(up.interrupt().code, Some(0));
    assert_eq!(place.records(), (1465, 1465));
}

#[test]
fn a_killed_up_goes_on_where_it_was() {
    let place = Place::new();
    let rows = place.ok(&["generate", "20000"]);
    place.write("rows.csv", &rows);
    let args = ["--data", "rows.csv", "--batch-rows", "700"];
    for _ in 0..2 {
        let mut all = vec!["up", "--bind", "127.0.0.1:0"];
        all.extend(args);
        let up = place.start(&all);
        let before = common::files(&place.path("store/records")).len();
        eventually("some files", || common::files(&place.path("store/records")).len() > before + 3);
        up.signal("-KILL");
    }
    let up = place.up(&args);
    assert!(up.stderr().contains("were stored already, going on"), "{}", up.stderr());
    assert_eq!(up.interrupt().code, Some(0));
    assert_eq!(place.records(), (20_000, 20_000));
    let ids = place.number("SELECT count(DISTINCT product_id) FROM records");
    assert_eq!(ids, 20_000, "every row, once");
    let in_order = place.number(
        "SELECT count(*) FROM (SELECT _offset, row_number() OVER (ORDER BY _timestamp, _offset) - 1 AS place FROM records)
         WHERE _offset <> place",
    );
    assert_eq!(in_order, 0, "stream order is file order");
}

/// Rows whose records expired are not sent again, neither after a graceful shutdown nor after a kill.
#[test]
fn a_replay_survives_retention() {
    let place = Place::new();
    place.ok(&["generate", "500", "--output", "rows.csv"]);
    let args = [
        "--data",
        "rows.csv",
        "--batch-rows",
        "50",
        "--keep-for",
        "1s",
        "--grace",
        "0",
        "--upkeep",
        "0.05",
        "--retrain-every",
        "3600",
    ];
    // The number of records ever stored, from the last offset.
    let stored = || place.number("SELECT max(_offset) + 1 FROM records");
    for kill in [20, 60, 120, 250, 500] {
        let mut up = place.start(&[&["up", "--bind", "127.0.0.1:0"], &args[..]].concat());
        eventually("records", || {
            common::files(&place.path("store/records")).iter().any(|file| file.extension().is_some())
        });
        std::thread::sleep(Duration::from_millis(kill));
        up.signal("-KILL");
        up.wait();
        assert!(stored() <= 500);
    }
    for _ in 0..3 {
        let up = place.up(&args);
        eventually("the oldest records to expire", || {
            common::files(&place.path("store/records/products/0")).len() <= 3
        });
        assert_eq!(up.interrupt().code, Some(0));
        assert_eq!(stored(), 500);
        assert!(place.number("SELECT count(*) FROM records") < 500);
    }
    let source = std::fs::read_to_string(place.path("store/source.json")).unwrap();
    assert!(source.contains("\"expired\": \"0-"), "{source}");
}

#[test]
fn two_ups_and_other_files_are_refused() {
    let place = Place::new();
    place.write("other.csv", "product_id,rating\nx,4\ny,2\nz,3\n");
    let up = place.up(&[]);
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0"]);
    assert!(error.contains("another tercile feeds the store"), "{error}");
    up.interrupt();
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", "other.csv"]);
    assert!(error.contains("other.csv") && error.contains("--append"), "{error}");
    let error = place.fails(3, &["up", "--bind", "127.0.0.1:0", "--topic", "others"]);
    assert!(error.contains("the store store is fed from topic products"), "{error}");
    let up = place.up(&["--data", "other.csv", "--append"]);
    assert_eq!(place.records(), (1468, 1468));
    up.interrupt();
    // The store now has another source than the sample, so nothing is replayed by default.
    place.up(&[]).interrupt();
    assert_eq!(place.records(), (1468, 1468));
}

#[test]
fn of_a_file_that_grew_the_new_rows_are_sent() {
    let place = Place::new();
    let rows = |from: usize, to: usize| {
        let row = |i| format!("P{i},{},{}\r\n", 100 + i % 7 * 10, 3 + i % 2);
        (from..to).map(row).collect::<String>()
    };
    let header = "\u{feff}product_id,discounted_price,rating\r\n".to_owned();
    // The last line has no line end.
    place.write("rows.csv", (header.clone() + &rows(0, 40)).trim_end());
    place.up(&["--data", "rows.csv"]).interrupt();
    place.write("rows.csv", header.clone() + &rows(0, 55));
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", "rows.csv"]);
    assert!(error.contains("rows.csv has 15 rows more; to send them say --append"), "{error}");
    let up = place.up(&["--data", "rows.csv", "--append"]);
    assert_eq!(place.records(), (55, 55));
    let said = up.interrupt().stderr;
    assert!(said.contains("the 40 rows of rows.csv and 15 new rows") && said.contains("sent 15 records"), "{said}");
    // Grown twice, under another name; and the same file again.
    place.write("later.csv", header.clone() + &rows(0, 60));
    for _ in 0..2 {
        place.up(&["--data", "later.csv", "--append"]).interrupt();
        assert_eq!(place.records(), (60, 60));
    }
    place.up(&[]).interrupt();
    assert_eq!(place.records(), (60, 60));
    // An older copy: its rows are stored, under the hash of another file.
    place.write("rows.csv", header.clone() + &rows(0, 50));
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", "rows.csv", "--append"]);
    assert!(error.contains("begins with the 40 rows of rows.csv, as rows.csv does, which was replayed"), "{error}");
    place.write("rows.csv", header.clone() + &rows(0, 1) + "changed,1,1\r\n" + &rows(2, 70));
    for append in [&[][..], &["--append"]] {
        let error = place.fails(1, &[&["up", "--bind", "127.0.0.1:0", "--data", "rows.csv"], append].concat());
        assert!(error.contains("other rows of that file have changed, are missing"), "{error}");
        assert!(!error.contains("say --append"), "{error}");
    }
    place.write("rows.csv", header + &rows(60, 64));
    place.up(&["--data", "rows.csv", "--append"]).interrupt();
    assert_eq!(place.records(), (64, 64));
}

#[test]
fn a_record_that_anybody_sends_is_stored_and_trained_on() {
    let place = Place::new();
    let up = place.up(&["--batch-age", "1", "--retrain-every", "1"]);
    let broker = up.broker();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let bad: [Record<'_>; 6] = [
        (Some(b"key"), Some(b"{\"product_id\":\"foreign\",\"rating\":\"4.5\",\"colour\":\"red\"}")),
        (None, Some(b"no json")),
        (None, Some(b"{\"product_id\":\"\xff\"}")),
        (None, Some(deep.as_bytes())),
        (None, Some(b"")),
        (None, None),
    ];
    send(&broker, &bad);
    eventually("the foreign records", || place.records().0 == 1471);
    let csv = place.ok(&[
        "sql",
        "--format",
        "csv",
        "-c",
        "SELECT _offset, CAST(_key AS TEXT) AS _key, product_id, _extra, _error, length(encode(_raw, 'hex')) / 2 AS bytes
         FROM records WHERE _offset >= 1465 ORDER BY _offset",
    ]);
    let expected = "\
_offset,_key,product_id,_extra,_error,bytes
1465,key,foreign,\"{\"\"colour\"\":\"\"red\"\"}\",,
1466,,,,not JSON: expected ident at line 1 column 2,7
1467,,,,bad UTF-8 at byte 15,18
1468,,,,nested deeper than 127,406
1469,,,,empty: the message has a value of no bytes,0
1470,,,,tombstone: the message has no value,
";
    assert_eq!(csv, expected);
    // Less than ten percent new records: no training. With ten percent, all models are trained again and served immediately.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(up.get("/api/segments/discount/models/3").json()["receipt"]["n"], 1465);
    let row: &[u8] = b"{\"discounted_price\":\"\\u20b91,099\",\"rating\":\"4\",\"discount_percentage\":\"64%\"}";
    send(&broker, &vec![(None, Some(row)); 147]);
    eventually("new models", || up.get("/api/segments/discount/models/3").json()["receipt"]["n"] == 1618);
    let model = up.get("/api/segments/discount/models/3").json();
    assert_eq!((&model["version"], &model["rows"], &model["rows_left_out"]), (&json!(6), &json!(1613), &json!(5)));
    // A record sent just before SIGINT is stored too.
    send(&broker, &[(None, Some(row))]);
    let ended = up.interrupt();
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains("(4 unreadable, 1 tombstone)"), "{}", ended.stderr);
    assert_eq!(place.records(), (1619, 1619));
}

#[test]
fn a_header_of_any_bytes_is_stored() {
    let place = Place::new();
    let up = place.up(&["--batch-age", "1"]);
    // rdkafka's producer accepts only UTF-8 names, so this test uses kcat, or Python if kcat is not installed, or is skipped.
    let sent = std::process::Command::new("kcat")
        .args(["-P", "-b", &up.broker(), "-t", "products", "-H"])
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe=b"))
        .arg(place.write("message.json", "{\"product_id\":\"odd\"}"))
        .status();
    let Ok(status) = sent else {
        eprintln!("skipped: kcat is not here");
        return;
    };
    assert!(status.success());
    eventually("the record", || place.records().0 == 1466);
    let csv = place.ok(&["sql", "--format", "csv", "-c", "SELECT _headers FROM records WHERE product_id = 'odd'"]);
    assert_eq!(csv, "_headers\n\"[[\"\"\u{fffd}\u{fffd}\"\",\"\"Yg==\"\"]]\"\n");
    assert_eq!(up.interrupt().code, Some(0));
}

#[test]
fn it_is_stopped_in_any_phase_and_by_nobody_who_does_not_listen() {
    let place = Place::new();
    place.write("rows.csv", place.ok(&["generate", "60000"]));
    for (millis, args) in
        [(20, &["up"][..]), (150, &["up", "--data", "rows.csv"]), (900, &["up", "--data", "rows.csv"])]
    {
        let mut args = args.to_vec();
        let store = format!("store-{millis}");
        args.extend(["--bind", "127.0.0.1:0", "--store", &store]);
        let mut up = place.start(&args);
        std::thread::sleep(Duration::from_millis(millis));
        up.signal("-TERM");
        let code = up.wait().code();
        // Before main runs, signals cannot be caught.
        assert!(code == Some(0) || (millis == 20 && code.is_none()), "{millis}: {code:?} {}", up.stderr());
    }
    let mut unreachable = place.start(&["ingest", "--bootstrap-servers", "127.0.0.1:1"]);
    std::thread::sleep(Duration::from_millis(500));
    unreachable.signal("-TERM");
    assert_eq!(unreachable.wait().code(), Some(0));
    // The process continues with a closed stdout.
    let mut command = place.command(&["up", "--bind", "127.0.0.1:0"]);
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    eventually("the models", || place.path("store/models/discount/slices.json").exists());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_view_that_gives_a_record_twice_is_refused() {
    let place = Place::new();
    let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
    for file in common::files(sql.as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
    }
    let columns = "SELECT _partition, _offset, _timestamp, _slice, actual_price FROM slices";
    place.write("sql/33_twice.sql", format!("-- k: 2\n\n{columns} UNION ALL {columns}"));
    let up = place.up(&[]);
    let answer = up.post("/api/segments/twice/predict", r#"[{"actual_price": 100}]"#);
    assert_eq!(answer.status, 409);
    assert!(answer.text.contains("comes twice"), "{}", answer.text);
}

#[test]
fn the_students_categories_come_back() {
    let place = Place::new();
    let up = place.up(&[]);
    let ask = |path: &str, body: &str| -> Vec<String> {
        let answer = up.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.text);
        let rows = answer.json();
        rows.as_array().unwrap().iter().map(|row| row["description"].as_str().unwrap().to_owned()).collect()
    };
    let price = r#"[{"discounted_price":300,"rating":4.5},{"discounted_price":1200,"rating":3.0},{"discounted_price":700,"rating":4.0}]"#;
    assert_eq!(
        ask("/api/cluster_products_by_price_rating?fit=request", price),
        ["Low Price, High Rating", "High Price, Low Rating", "Mid Price, Mid Rating"]
    );
    assert_eq!(
        ask("/api/cluster_products_by_price_rating?fit=request&lang=id", price),
        ["Harga Rendah, Rating Tinggi", "Harga Tinggi, Rating Rendah", "Harga Sedang, Rating Sedang"]
    );
    let count = r#"[{"rating":4.8,"rating_count":1500},{"rating":2.5,"rating_count":100}]"#;
    assert_eq!(
        ask("/api/cluster_products_by_rating_count?fit=request", count),
        ["High Rating, High Reviews", "Low Rating, Low Reviews"]
    );
    assert_eq!(
        ask("/api/cluster_products_by_rating_count?fit=request&lang=id", count),
        ["Rating Tinggi, Banyak Ulasan", "Rating Rendah, Sedikit Ulasan"]
    );
    let discount = r#"[{"discount_percentage":60},{"discount_percentage":25}]"#;
    let ask_discount =
        |lang: &str| ask(&format!("/api/cluster_products_by_discount?fit=request&lang={lang}"), discount);
    assert_eq!(ask_discount("en"), ["High Discount", "Low Discount"]);
    assert_eq!(ask_discount("id"), ["Diskon Tinggi", "Diskon Rendah"]);
}

/// The best inertia of 6,000 restarts of scikit-learn 1.9.1 on the real dataset, and the cluster sizes by first feature.
const SCIKIT_LEARN: [(&str, u64, f64, [u64; 3]); 9] = [
    ("price_rating", 1, 342.661_358_503_544_8, [162, 264, 63]),
    ("price_rating", 2, 665.820_724_547_605_7, [318, 563, 97]),
    ("price_rating", 3, 1_065.823_157_690_665_8, [522, 835, 108]),
    ("rating_count", 1, 335.187_491_935_912, [166, 24, 299]),
    ("rating_count", 2, 702.918_792_618_777, [321, 40, 617]),
    ("rating_count", 3, 1_104.249_771_156_935_4, [526, 42, 897]),
    ("discount", 1, 78.931_490_329_946_97, [103, 156, 230]),
    ("discount", 2, 145.255_657_689_543_1, [253, 364, 361]),
    ("discount", 3, 226.136_900_591_161_2, [358, 567, 540]),
];

#[test]
fn on_the_real_dataset_every_model_is_the_best_there_is() {
    let Some(csv) = amazon() else { return };
    let place = Place::new();
    place.up(&["--data", csv.to_str().unwrap()]).interrupt();
    assert_eq!(place.records(), (1465, 1465));
    let slices = place.ok(&[
        "sql",
        "--format",
        "csv",
        "-c",
        "SELECT count(*) FILTER (WHERE _slice <= 1) AS a, count(*) FILTER (WHERE _slice <= 2) AS b, count(*) AS c FROM slices",
    ]);
    assert_eq!(slices, "a,b,c\n489,978,1465\n");
    let means = place.ok(&[
        "sql",
        "--format",
        "csv",
        "-c",
        "SELECT round(avg(discounted_price), 4), round(avg(discount_percentage), 4), round(avg(rating), 4),
           count(rating), round(avg(rating_count), 4), count(rating_count), max(discounted_price) FROM products",
    ]);
    assert_eq!(means.lines().nth(1), Some("3125.3109,47.6915,4.0966,1464,18295.5414,1463,77990.0"));
    let models = models(&place);
    assert_eq!(models.len(), SCIKIT_LEARN.len());
    for (name, slice, inertia, sizes) in SCIKIT_LEARN {
        let model = models.iter().find(|m| m["segmentation"] == name && m["slice"] == slice).unwrap();
        let found = model["inertia"].as_f64().unwrap();
        assert!((found / inertia - 1.0).abs() < 1e-9, "{name} {slice}: {found} and {inertia}");
        let mut clusters: Vec<(f64, u64)> = model["clusters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| {
                let first = model["features"][0].as_str().unwrap();
                (c["centroid"][first].as_f64().unwrap(), c["size"].as_u64().unwrap())
            })
            .collect();
        clusters.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert_eq!(clusters.iter().map(|c| c.1).collect::<Vec<_>>(), sizes, "{name} {slice}");
        if (name, slice) == ("discount", 3) {
            let centroids: Vec<String> = clusters.iter().map(|c| format!("{:.2}", c.0)).collect();
            assert_eq!(centroids, ["17.95", "45.56", "69.65"]);
        }
    }
}

#[test]
fn what_cannot_be_trained_is_refused_by_name_and_the_rest_serves() {
    let place = Place::new();
    // Three rows, a constant rating, no discount: price_rating trains from slice 3 on, the others are refused.
    place.write("few.csv", "discounted_price,rating,rating_count,discount_percentage\n1,4,,\n2,4,5,\n3,4,5,\n");
    let up = place.up(&["--data", "few.csv"]);
    assert_eq!(up.get("/health/ready").status, 200, "a recorded refusal is an answer");
    let row = r#"[{"discounted_price":3,"rating":4}]"#;
    let answer = up.post("/api/cluster_products_by_price_rating", row);
    assert_eq!(answer.json()[0]["description"], "High Price, Mid Rating", "{}", answer.text);
    let answer = up.post("/api/cluster_products_by_price_rating?model=1", row);
    assert_eq!(answer.status, 409);
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("price_rating of slice 1: 3 clusters need at least 3 different rows, there are 1"),
        "{detail}"
    );
    let answer = up.post("/api/cluster_products_by_discount", r#"[{"discount_percentage":3}]"#);
    assert_eq!(answer.status, 409);
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("discount of slice 3: the feature discount_percentage is missing in every row"),
        "{detail}"
    );
    assert!(up.stderr().contains("no new model: discount of slice 3"), "{}", up.stderr());
}

#[test]
fn a_segmentation_is_added_by_adding_a_file() {
    let place = Place::new();
    let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
    for file in common::files(sql.as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
    }
    let up = place.up(&[]);
    let mine = "-- k: 2\n-- label.actual_price.en: Cheap | Dear\n\n\
                SELECT _partition, _offset, _timestamp, _slice, actual_price FROM slices";
    place.write("sql/33_mine.sql", mine);
    eventually("the new segmentation", || up.get("/api/segments/mine").status == 200);
    let row = r#"[{"actual_price": 100, "note": {"a": [1]}}]"#;
    assert_eq!(up.post("/api/segments/mine/predict", row).status, 503);
    let started = up.post("/api/train", "");
    assert_eq!(started.status, 202);
    let job = started.location.unwrap();
    eventually("the training", || up.get(&job).json()["state"] == "done");
    let done = up.get(&job).json();
    assert_eq!((&done["trained"], &done["unchanged"]), (&json!(3), &json!(9)), "{done}");
    let answer = up.post("/api/segments/mine/predict", row).json();
    assert_eq!(answer[0]["description"], "Cheap");
    assert_eq!(answer[0]["other"], json!({"note": {"a": [1]}}));
    assert_eq!(answer[0]["features"], json!({"actual_price": 100.0, "prediction": 0}));
}

#[test]
fn a_serve_beside_it_notices_new_models() {
    let place = Place::new();
    let mut serve = place.start(&["serve", "--bind", "127.0.0.1:0"]);
    serve.address = format!("http://{}", serve.said(" at http://").split(',').next().unwrap());
    assert_eq!(serve.get("/health/live").status, 200);
    assert_eq!(serve.get("/health/ready").status, 503);
    let row = r#"[{"discount_percentage":64}]"#;
    assert_eq!(serve.post("/api/cluster_products_by_discount", row).status, 503);
    place.up(&[]).interrupt();
    eventually("the models", || serve.get("/health/ready").status == 200);
    assert_eq!(serve.post("/api/cluster_products_by_discount", row).json()[0]["model"], 3);
    serve.signal("-TERM");
    assert_eq!(serve.wait().code(), Some(0));
}
