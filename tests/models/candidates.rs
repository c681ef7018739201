//! Candidates: models that `--promote guarded` and `--promote manual` hold back, and the decisions of operators.

use common::{Ended, Place, Running, files};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::{Value, json};

use crate::common;

/// A broker with a topic `products`, a store, and the shipped SQL files.
struct Shop {
    place: Place,
    _broker: Running,
    address: String,
}

/// Rows of products of three kinds, which are far apart. Every tenth price from `faulty` on is multiplied by 1,000.
fn rows(from: usize, to: usize, faulty: usize) -> String {
    let row = |i: usize| {
        let times = if i >= faulty && i.is_multiple_of(10) { 1_000 } else { 1 };
        let (kind, noise) = (i % 3, i * 7919 % 101);
        json!({
            "product_id": i.to_string(), "discounted_price": format!("₹{}", (500 + 3_000 * kind + noise) * times),
            "rating": format!("{}.{}", [3, 4, 2][kind], noise % 5),
            "rating_count": (100 + 700 * kind + noise).to_string(),
            "discount_percentage": format!("{}%", 10 + 35 * kind + noise % 10),
        })
        .to_string()
            + "\n"
    };
    (from..to).map(row).collect()
}

impl Shop {
    fn new() -> Self {
        let place = Place::new();
        let mut broker = place.start(&["broker", "--topic", "products"]);
        let address = broker.line_with("");
        for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
        }
        Self { place, _broker: broker, address }
    }

    fn add(&self, rows: &str) {
        self.place.write("rows.ndjson", rows);
        self.place.ok(&["produce", "rows.ndjson", "--bootstrap-servers", &self.address]);
        self.place.ok(&["ingest", "--until-end", "--bootstrap-servers", &self.address]);
    }

    fn train(&self, promote: &str) -> Ended {
        let ended = self.place.run(&["train", "--promote", promote]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended
    }

    /// The entry of a slice in `slices.json`.
    fn slice(&self, segmentation: &str, slice: u8) -> Value {
        self.slice_of("store", segmentation, slice)
    }

    fn slice_of(&self, store: &str, segmentation: &str, slice: u8) -> Value {
        let path = self.place.path(&format!("{store}/models/{segmentation}/slices.json"));
        serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap()[slice.to_string()].clone()
    }

    fn candidates(&self) -> Vec<Value> {
        serde_json::from_str(&self.place.ok(&["models", "candidates", "--json"])).unwrap()
    }
}

#[test]
fn a_faulty_feed_is_held_back_until_it_is_rejected() {
    let shop = Shop::new();
    shop.add(&rows(0, 4_000, 4_000));
    let first = shop.train("guarded").stderr;
    assert!(
        first.contains("price_rating@3: version 3 serves without a comparison, because there is no model before it")
    );
    assert_eq!((shop.slice("price_rating", 3)["version"].clone(), shop.candidates().len()), (json!(3), 0));
    assert_eq!(shop.place.ok(&["models", "candidates"]), "there are no candidates\n");

    // Good rows: every new model keeps the rules.
    shop.add(&rows(4_000, 4_400, 5_000));
    shop.train("guarded");
    assert_eq!((shop.slice("price_rating", 3)["version"].clone(), shop.candidates().len()), (json!(6), 0));

    shop.add(&rows(4_400, 4_900, 4_400));
    let serve = shop.place.serve(&[]);
    let said = shop.train("guarded").stderr;
    let of = said.lines().filter(|line| line.contains("does not serve yet")).collect::<Vec<_>>();
    assert_eq!(of.len(), 1, "{said}");
    assert!(of[0].contains("price_rating@3: version 9 does not serve yet: "), "{said}");
    assert!(of[0].contains("10 % of its 500 new rows are unlike those of version 6 (at most 5.0 %)"), "{said}");
    assert!(of[0].contains("tercile models promote price_rating@3 lets it serve"), "{said}");
    // The other slices and segmentations keep the rules.
    assert_eq!(
        (&shop.slice("price_rating", 3)["version"], &shop.slice("price_rating", 2)["version"]),
        (&json!(6), &json!(8))
    );
    assert_eq!(shop.slice("rating_count", 3)["version"], json!(9));
    let held = shop.slice("price_rating", 3)["candidate"].clone();
    let violated: Vec<&Value> = held["violated"].as_array().unwrap().iter().map(|one| &one["rule"]).collect();
    assert!(violated.contains(&&json!("unlike")), "{held}");

    // What serves answers, the candidate can be looked at, and nothing changes by training again.
    let listed = shop.candidates();
    assert_eq!((listed.len(), &listed[0]["champion"]["version"], &listed[0]["version"]), (1, &json!(6), &json!(9)));
    let shown = |name: &str| {
        serde_json::from_str::<Value>(&shop.place.ok(&["model", "show", name, "--format", "json"])).unwrap()
    };
    assert_eq!(
        (&shown("price_rating@champion")["version"], &shown("price_rating@challenger")["version"]),
        (&json!(6), &json!(9))
    );
    assert_eq!(shown("price_rating@3@challenger")["version"], 9);
    assert!(
        shop.place
            .fails(1, &["model", "show", "price_rating@2@challenger"])
            .contains("slice 2 of price_rating has no candidate")
    );
    let again = shop.train("guarded").stderr;
    assert!(again.contains("version 9 does not serve yet"), "{again}");
    assert_eq!(shop.slice("price_rating", 3)["candidate"], held);

    common::eventually("the server knows the candidate", || {
        serve.get("/api/segments/price_rating").json()["slices"][2]["candidate"] == 9
    });
    assert_eq!(serve.get("/api/segments/price_rating/models/3").json()["version"], 6);
    let all = serve.get("/api/segments/price_rating/candidates").json();
    assert_eq!(
        (all.as_array().unwrap().len(), &all[0]["slice"], &all[0]["violated"]),
        (1, &json!(3), &held["violated"])
    );
    assert_eq!((&all[0]["candidate"]["version"], &all[0]["champion"]["version"]), (&json!(9), &json!(6)));
    let none = serve.post("/api/segments/price_rating/candidates/2/promote", "");
    assert_eq!((none.status, none.json()["field"].clone()), (404, json!("slice")));
    let rejected = serve.post("/api/segments/price_rating/candidates/3/reject", "");
    assert_eq!(
        (rejected.status, &rejected.json()["rejected"], &rejected.json()["version"]),
        (200, &json!(9), &json!(6))
    );
    assert_eq!(serve.get("/api/segments/price_rating").json()["slices"][2]["candidate"], Value::Null);

    // A rejected model stays rejected for these records, whichever mode trains.
    for promote in ["guarded", "manual", "auto"] {
        shop.train(promote);
        let slice = shop.slice("price_rating", 3);
        assert_eq!((&slice["version"], &slice["candidate"]), (&json!(6), &Value::Null), "{promote}");
    }
    let history = std::fs::read_to_string(shop.place.path("store/models/price_rating/served.ndjson")).unwrap();
    let last: Vec<Value> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let changes: Vec<_> = last.iter().filter(|line| line["version"] == 9).map(|line| line["change"].clone()).collect();
    assert_eq!(changes, [json!("held_back"), json!("rejected")]);

    // Every new model serves with auto.
    shop.add(&rows(4_900, 5_000, 4_400));
    shop.train("auto");
    assert_eq!(shop.slice("price_rating", 3)["version"], 12);
    assert_eq!(shop.slice("price_rating", 3)["rejected"], Value::Null);
}

/// Rows of three kinds of products, log-normal in their prices. With `faulty` every tenth price is multiplied by 1,000.
fn random_rows(random: &mut Xoshiro256PlusPlus, n: usize, faulty: bool) -> String {
    // The sum of twelve uniform numbers, less its mean, is close to a standard normal one.
    let mut normal = || (0..12).map(|_| random.next_u32() as f64 / 2f64.powi(32)).sum::<f64>() - 6.0;
    let mut row = |i: usize| {
        let kind = i % 3;
        let times = if faulty && i.is_multiple_of(10) { 1_000.0 } else { 1.0 };
        let price = [400.0, 2_000.0, 9_000.0][kind] * (0.3 * normal()).exp() * times;
        let rating = ([3.4, 4.4, 2.6][kind] + 0.2 * normal()).clamp(1.0, 5.0);
        json!({
            "product_id": i.to_string(), "discounted_price": format!("₹{price:.0}"), "rating": format!("{rating:.1}"),
            "rating_count": format!("{:.0}", [200.0, 3_000.0, 900.0][kind] * (0.4 * normal()).exp()),
            "discount_percentage": format!("{:.0}%", ([15.0, 45.0, 75.0][kind] + 4.0 * normal()).clamp(0.0, 99.0)),
        })
        .to_string()
            + "\n"
    };
    (0..n).map(&mut row).collect()
}

#[test]
fn auto_serves_faulty_feeds_and_guarded_none() {
    let feeds = std::env::var("TERCILE_TEST_FEEDS").map_or(2, |feeds| feeds.parse::<u64>().unwrap());
    for seed in 1..=feeds {
        let random = &mut Xoshiro256PlusPlus::seed_from_u64(seed);
        let shop = Shop::new();
        shop.add(&random_rows(random, 2_000, false));
        shop.train("guarded");
        shop.add(&random_rows(random, 200, true));
        let store = shop.place.path("store");
        for file in files(&store) {
            let copy = shop.place.path("auto").join(file.strip_prefix(&store).unwrap());
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(&file, copy).unwrap();
        }
        shop.train("guarded");
        shop.place.ok(&["train", "--promote", "auto", "--store", "auto"]);
        let [guarded, auto] = ["store", "auto"].map(|store| shop.slice_of(store, "price_rating", 3));
        assert_eq!((&guarded["version"], &guarded["candidate"]["version"]), (&json!(3), &json!(6)), "seed {seed}");
        assert_eq!((&auto["version"], &auto["candidate"]), (&json!(6), &Value::Null), "seed {seed}");
    }
}

#[test]
fn rows_that_held_a_candidate_back_hold_back_its_successors() {
    let shop = Shop::new();
    shop.add(&rows(0, 4_000, 4_000));
    shop.train("guarded");
    shop.add(&rows(4_000, 4_500, 4_000));
    shop.train("guarded");
    assert_eq!(shop.slice("price_rating", 3)["candidate"]["version"], 6);
    // Among more good rows their share is below the limit, and they are still there.
    shop.add(&rows(4_500, 6_500, 6_500));
    shop.train("guarded");
    let held = |version: u64| {
        let slice = shop.slice("price_rating", 3);
        assert_eq!((&slice["version"], &slice["candidate"]["version"]), (&json!(3), &json!(version)), "{slice}");
        let words = slice["candidate"]["reason"].as_str().unwrap().to_owned();
        let of = "it has the rows of version 6, which was not promoted: 10 % of its 500 new rows are unlike those of version 3";
        assert!(words.contains(of), "{words}");
    };
    held(9);
    shop.place.ok(&["models", "reject", "price_rating@3"]);
    shop.add(&rows(6_500, 6_600, 6_600));
    shop.train("guarded");
    held(12);
    // A limit is no part of the SQL that a model was trained with.
    let sql = std::fs::read_to_string(shop.place.path("sql/30_price_rating.sql")).unwrap();
    shop.place.write(
        "sql/30_price_rating.sql",
        sql.replace("-- k: 3", "-- k: 3\n-- guard.unlike: off\n-- guard.silhouette: off\n-- guard.moved: off"),
    );
    shop.place.ok(&["drift", "price_rating"]);
    shop.train("guarded");
    let slice = shop.slice("price_rating", 3);
    assert_eq!(slice["version"], 12, "{slice}");
}

#[test]
fn what_was_trained_while_a_slice_was_pinned_is_judged_too() {
    let shop = Shop::new();
    shop.add(&rows(0, 600, 600));
    shop.train("guarded");
    shop.place.ok(&["models", "pin", "discount", "3"]);
    shop.add(&rows(600, 900, 900));
    shop.train("manual");
    let slice = shop.slice("discount", 3);
    assert_eq!(
        (&slice["version"], &slice["pinned"], &slice["candidate"]["version"]),
        (&json!(3), &json!(true), &json!(6))
    );
    shop.place.ok(&["models", "unpin", "discount", "3"]);
    assert_eq!(shop.slice("discount", 3)["version"], 3);
    // One that keeps the rules serves when the pin is removed.
    shop.place.ok(&["models", "pin", "discount", "3"]);
    shop.train("guarded");
    assert_eq!(
        (&shop.slice("discount", 3)["version"], &shop.slice("discount", 3)["candidate"]),
        (&json!(3), &Value::Null)
    );
    shop.place.ok(&["models", "unpin", "discount", "3"]);
    assert_eq!(shop.slice("discount", 3)["version"], 6);
}

#[test]
fn models_wait_for_an_operator_who_promotes_them() {
    let shop = Shop::new();
    shop.add(&rows(0, 600, 600));
    shop.train("manual");
    assert_eq!((shop.slice("discount", 3)["version"].clone(), shop.candidates().len()), (json!(3), 0));
    shop.add(&rows(600, 900, 900));
    let said = shop.train("manual").stderr;
    assert!(said.contains("discount@3: version 6 does not serve yet: models are promoted by hand"), "{said}");
    assert_eq!(shop.candidates().len(), 9);
    let table = shop.place.ok(&["models", "candidates", "discount"]);
    assert!(table.contains("champion") && table.contains("discount@2: models are promoted by hand"), "{table}");
    assert!(shop.place.ok(&["models"]).contains("discount@1: version 4 is a candidate: models are promoted by hand"));

    // A pin has precedence, and its end does not let a candidate serve.
    shop.place.ok(&["models", "pin", "discount", "3"]);
    let error = shop.place.fails(1, &["models", "promote", "discount@3"]);
    assert!(error.contains("version 3 of discount is pinned to slice 3; unpin it first"), "{error}");
    let serve = shop.place.serve(&[]);
    assert_eq!(serve.post("/api/segments/discount/candidates/3/promote", "").status, 409);
    shop.place.ok(&["models", "unpin", "discount", "3"]);
    assert_eq!(shop.slice("discount", 3)["version"], 3);

    let said = shop.place.ok(&["models", "promote", "discount@3"]);
    assert_eq!(said, "discount of slice 3 is served by version 6, no longer by 3\n");
    assert!(shop.place.ok(&["models"]).contains(" (promoted)"));
    let promoted = serve.post("/api/segments/discount/candidates/2/promote", "");
    assert_eq!((promoted.status, &promoted.json()["version"], &promoted.json()["before"]), (200, &json!(5), &json!(2)));
    assert_eq!(serve.get("/api/segments/discount/models/2").json()["version"], 5);
    assert!(
        shop.place
            .ok(&["models", "reject", "discount@1"])
            .contains("version 4 is rejected; discount of slice 1 is served by version 1")
    );
    assert!(shop.place.fails(1, &["models", "promote", "discount@1"]).contains("slice 1 of discount has no candidate"));
    let wrong = shop.place.fails(1, &["models", "promote", "discount@1@4"]);
    assert!(wrong.contains("a slice has one candidate; say discount@1"), "{wrong}");

    // Other features begin a new lineage, which serves at once.
    let sql = std::fs::read_to_string(shop.place.path("sql/32_discount.sql")).unwrap();
    shop.place.write("sql/32_discount.sql", sql.replace("-- k: 3", "-- k: 2"));
    let said = shop.train("manual").stderr;
    assert!(
        said.contains(
            "discount@3: version 9 serves without a comparison, because version 6 has other features or another k"
        ),
        "{said}"
    );
}

#[test]
fn rules_are_those_of_the_header() {
    let shop = Shop::new();
    shop.add(&rows(0, 600, 600));
    shop.train("guarded");
    let sql = std::fs::read_to_string(shop.place.path("sql/32_discount.sql")).unwrap();
    let with = |rules: &str| {
        shop.place.write("sql/32_discount.sql", sql.replacen("-- k: 3\n", &format!("-- k: 3\n{rules}"), 1))
    };
    with("-- guard.moved: much\n");
    let error = shop.place.fails(1, &["train"]);
    assert!(
        error.contains("32_discount.sql, line ") && error.contains("guard.moved must be a share from 0 to 1"),
        "{error}"
    );

    // No cluster has half of the rows.
    with("-- guard.share: 50 %\n");
    let said = shop.train("guarded").stderr;
    assert!(!said.contains("does not serve yet"), "what serves is not judged: {said}");
    shop.add(&rows(600, 700, 700));
    let said = shop.train("guarded").stderr;
    let of: Vec<&str> = said.lines().filter(|line| line.contains("does not serve yet")).collect();
    assert_eq!(of.len(), 3, "{said}");
    assert!(of[2].contains("discount@3: version 6 does not serve yet: its cluster "), "{said}");
    assert!(of[2].contains(" of 700 rows, ") && of[2].contains(" (at least 50 %)"), "{said}");
    // Without the rule, the same rows are promoted.
    with("-- guard.share: off\n");
    shop.train("guarded");
    assert_eq!(
        (&shop.slice("discount", 3)["version"], &shop.slice("discount", 3)["candidate"]),
        (&json!(6), &Value::Null)
    );
    // Far fewer rows than before.
    with("-- guard.rows: 0.9\n");
    let few = std::fs::read_to_string(shop.place.path("sql/32_discount.sql")).unwrap();
    shop.place.write("sql/32_discount.sql", few.trim_end().to_owned() + " AND _offset % 2 = 0\n");
    let said = shop.train("guarded").stderr;
    assert!(said.contains("of the 700 of version 6 (at least 90 %)"), "{said}");
}

#[test]
fn entities_that_change_their_cluster_are_counted() {
    let shop = Shop::new();
    let entity = "-- k: 2\n-- entity: customer\n-- guard.unlike: off\n-- guard.silhouette: off\n-- guard.rows: off\n\n\
                  SELECT product_id AS customer, max(to_number(discounted_price)) AS spent FROM records GROUP BY product_id\n";
    shop.place.write("sql/50_customers.sql", entity);
    let spent = |customers: &dyn Fn(usize) -> bool, much: &dyn Fn(usize) -> bool| -> String {
        let price = |i: usize| if much(i) { 100_000 + i } else { 100 + i };
        let row =
            |i: usize| json!({ "product_id": i.to_string(), "discounted_price": price(i).to_string() }).to_string();
        (0..400).filter(|i| customers(*i)).map(|i| row(i) + "\n").collect()
    };
    shop.add(&spent(&|_| true, &|i| !i.is_multiple_of(2)));
    shop.train("guarded");
    assert_eq!(shop.slice("customers", 3)["version"], 3);
    // Two of three customers who spent little spend much now: a third of all are in another cluster.
    shop.add(&spent(&|i| i % 6 < 3 && i.is_multiple_of(2), &|_| true));
    let said = shop.train("guarded").stderr;
    assert!(
        said.contains("customers@3: version 6 does not serve yet: ")
            && said.contains(" common rows change their cluster"),
        "{said}"
    );
    let held = shop.slice("customers", 3)["candidate"].clone();
    assert_eq!(held["violated"][0]["rule"], "moved");
    assert!(held["violated"][0]["value"].as_f64().unwrap() > 0.3, "{held}");
    // Members of a candidate are kept, those that serve answer.
    assert!(shop.place.path("store/models/customers/6.members.parquet").exists());
}
