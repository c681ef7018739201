//! Models after training: verified against receipts, listed, compared, rolled back, and queried as of an older version.

use common::{Place, Running, eventually, files};
use serde_json::{Value, json};

use crate::common;

/// The sample, trained; then 1,000 more records, trained again: versions 1 to 3, and 4 to 6.
fn trained_twice() -> Place {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    place.ok(&["generate", "1000", "--seed", "9", "-o", "more.csv"]);
    assert_eq!(place.up(&["--data", "more.csv", "--append"]).interrupt().code, Some(0));
    place
}

fn shipped_sql(place: &Place) {
    for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
    }
}

/// A change of a value's text.
type Change<'c> = &'c dyn Fn(&str) -> String;

/// Writes a copy of a model file with the value after this text changed. The change is textual, because a JSON value would be
/// rounded.
fn changed(place: &Place, path: &str, after: &str, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(place.path(path)).unwrap();
    let start = text.find(after).unwrap_or_else(|| panic!("{after}: {text}")) + after.len();
    let end = start + text[start..].find([',', '\n']).unwrap();
    place.write("transitions.json", format!("{}{}{}", &text[..start], change(&text[start..end]), &text[end..]));
}

#[test]
fn a_model_is_what_its_receipt_says_or_what_differs_is_named() {
    let place = trained_twice();
    let all =
        ["price_rating", "price_rating@2", "price_rating@3@3", "price_rating@2@5", "rating_count@1@4", "discount@2@2"];
    for model in all {
        let said = place.ok(&["verify", model]);
        assert!(said.starts_with(model) && said.contains("is what its receipt says, to the bit"), "{said}");
    }
    // After compaction into one file, the records of the older models end in the middle of the file.
    place.ok(&["compact", "--grace", "0"]);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!(files(&place.path("store/records")).len(), 2, "one file, and where it starts");
    for model in all {
        place.ok(&["verify", model]);
    }
    assert_eq!(files(&place.path("store/tmp")).len(), 0);

    let path = "store/models/discount/3.json";
    assert!(place.ok(&["verify", path]).starts_with("discount@3@3 "));
    let ulp = |text: &str| f64::from_bits(text.parse::<f64>().unwrap().to_bits() + 1).to_string();
    let to = |value: &'static str| move |_: &str| value.to_owned();
    let cases: [(&str, Change<'_>, &str); 6] = [
        ("\"centroid\": {\n        \"discount_percentage\": ", &ulp, "the centroid of cluster 0 differs"),
        ("\"inertia\": ", &ulp, "inertia differs"),
        ("\"size\": ", &to("7"), "the size of cluster 0 differs: 7 in the model"),
        ("\"seed\": ", &to("7"), "it was trained with the seed 7"),
        ("\"rows_hash\": ", &to("\"0\""), "the rows are others than it was trained on"),
        ("\"next_offsets\": {\n      \"0\": ", &to("1400"), "the store holds 1400 of the 1465 records"),
    ];
    for (after, change, said) in cases {
        changed(&place, path, after, change);
        let error = place.fails(1, &["verify", "transitions.json"]);
        assert!(error.contains("cannot verify discount@3@3: ") && error.contains(said), "{said}: {error}");
    }

    // For another method only the rows are checked.
    for (method, stated) in [("1", "method 1"), ("99", "method 99")] {
        changed(&place, path, "\"method\": ", to(method));
        let error = place.fails(1, &["verify", "transitions.json"]);
        for part in [&format!("it was trained by {stated} (tercile "), "they hash to what the receipt says"] {
            assert!(error.contains(part) && !error.contains("was changed"), "{part}: {error}");
        }
    }
    let text = std::fs::read_to_string(place.path(path)).unwrap();
    let unnamed = text.replace(",\n    \"method\": 2", "").replace("\"rows_hash\": \"", "\"rows_hash\": \"0");
    place.write("transitions.json", unnamed);
    let error = place.fails(1, &["verify", "transitions.json"]);
    assert!(error.contains("trained by method 1 ") && error.contains("the rows are others than"), "{error}");

    shipped_sql(&place);
    assert!(place.ok(&["verify", "discount"]).starts_with("discount@3@6 "));
    place.write("sql/32_discount.sql", "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, rating FROM slices");
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("the SQL changed since: the files of discount hash to "), "{error}");
    std::fs::remove_file(place.path("sql/32_discount.sql")).unwrap();
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("there is no SQL file of the segmentation discount any more"), "{error}");
    for (name, said) in [
        ("discount@3@2", "version 2 of discount is of slice 2; say discount@2@2"),
        ("discount@3@99", "discount has no version 99"),
        ("nothing", "there is no model of nothing"),
        ("nothing.json", "the model file nothing.json is missing"),
    ] {
        let error = place.fails(1, &["verify", name]);
        assert!(error.contains(said), "{name}: {error}");
    }
}

#[test]
fn a_model_whose_records_are_gone_is_not_vouched_for() {
    let place = Place::new();
    assert_eq!(place.up(&["--batch-rows", "500"]).interrupt().code, Some(0));
    place.ok(&["verify", "discount"]);
    let newest =
        files(&place.path("store/records")).into_iter().rfind(|path| path.ends_with("00000000000000001000.parquet"));
    std::fs::remove_file(newest.unwrap()).unwrap();
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("are missing: the files end at offset 1000"), "{error}");
}

fn serve(place: &Place) -> Running {
    let mut serve = place.start(&["serve", "--bind", "127.0.0.1:0"]);
    serve.address = format!("http://{}", serve.said(" at http://").split(',').next().unwrap());
    serve
}

/// The output of a command with --json.
fn printed(place: &Place, args: &[&str]) -> Value {
    serde_json::from_str(&place.ok(&[args, &["--json"]].concat())).unwrap()
}

/// The version that serves slice 3 of price_rating, according to the list, the file and a service.
fn serving(place: &Place, serve: &Running) -> (Value, Value, Value) {
    let all = printed(place, &["models"]);
    let is = |one: &&Value| one["segmentation"] == "price_rating" && one["slice"] == 3;
    let listed = all.as_array().unwrap().iter().find(is).unwrap()["version"].clone();
    let file: Value =
        serde_json::from_slice(&std::fs::read(place.path("store/models/price_rating/slices.json")).unwrap()).unwrap();
    let answer = serve.post("/api/cluster_products_by_price_rating", r#"[{"discounted_price":300,"rating":4.5}]"#);
    (listed, file["3"]["version"].clone(), answer.json()[0]["version"].clone())
}

#[test]
fn models_are_listed_rolled_back_and_it_is_known_who_served_when() {
    let place = trained_twice();
    let serve = serve(&place);
    let all = |version: u64| (json!(version), json!(version), json!(version));
    assert_eq!(serving(&place, &serve), all(6));

    let table = place.ok(&["models"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 10, "a header and nine models: {table}");
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(header.join(" "), "segmentation slice version rows inertia trained at serves since");
    assert!(lines[6].starts_with("price_rating      3        6  2,465  "), "{table}");

    let said = place.ok(&["models", "rollback", "price_rating", "3"]);
    assert_eq!(
        said,
        "price_rating of slice 3 is served by version 3 again, no longer by 6, until a training finds other records\n"
    );
    eventually("the older model", || serving(&place, &serve) == all(3));
    assert!(place.ok(&["models"]).contains("(rolled back)"));
    let again = place.ok(&["models", "rollback", "price_rating", "3"]);
    assert!(again.ends_with("is served by version 3 already\n"), "{again}");

    // With the same records nothing is new, and the rollback remains; the other slices are unchanged.
    let outcomes = printed(&place, &["train"]);
    assert!(outcomes.as_array().unwrap().iter().all(|outcome| outcome["fresh"] == false), "{outcomes}");
    assert_eq!(serving(&place, &serve), all(3));
    assert_eq!(files(&place.path("store/models/price_rating")).len(), 6 * 2 + 2);

    let versions = printed(&place, &["models", "price_rating"]);
    let periods = |version: usize| versions[version - 1]["served"].as_array().unwrap().clone();
    assert_eq!(versions.as_array().unwrap().len(), 6);
    assert_eq!(periods(3).len(), 2);
    assert_eq!(periods(3)[0]["to"], periods(6)[0]["from"]);
    assert_eq!(periods(6)[0]["to"], periods(3)[1]["from"]);
    assert_eq!((&periods(3)[1]["to"], &periods(3)[1]["by"]), (&json!(null), &json!("rollback")));
    assert_eq!((&periods(5)[0]["to"], &periods(5)[0]["by"]), (&json!(null), &json!("training")));
    let table = place.ok(&["models", "price_rating"]);
    assert!(table.lines().nth(3).unwrap().contains(" to now (rolled back)"), "{table}");

    // With more records there is a new model, which continues the cluster numbers of the serving model.
    place.ok(&["generate", "2000", "--seed", "3", "-o", "more.csv"]);
    assert_eq!(place.up(&["--data", "more.csv", "--append"]).interrupt().code, Some(0));
    eventually("the new model", || serving(&place, &serve) == all(9));
    assert_eq!(shown(&place, "price_rating")["receipt"]["predecessor"]["version"], 3);
    place.ok(&["verify", "price_rating"]);

    let error = place.fails(1, &["models", "rollback", "price_rating", "99"]);
    assert!(error.contains("price_rating has no version 99; tercile models price_rating lists"), "{error}");
    let error = place.fails(1, &["models", "nothing"]);
    assert!(error.contains("has no models of \"nothing\", it has discount, price_rating, rating_count"), "{error}");
    let error = place.fails(1, &["models", "--store", "nowhere"]);
    assert!(error.contains("there is no store at nowhere; check --store"), "{error}");
    assert!(!place.path("nowhere").exists());
}

#[test]
fn two_models_are_compared() {
    let place = trained_twice();
    // A slice and the next one of the same training: the matrix stored in the model.
    let found = printed(&place, &["models", "diff", "price_rating@1@4", "price_rating@2@5"]);
    let model = shown(&place, "price_rating@2@5");
    assert_eq!((&found["moved"]["of"], &found["moved"]["matrix"]), (&json!("training"), &model["moved"]));
    assert_eq!(found["moved"]["records"], found["a"]["rows"]);
    // The same slice of two trainings: the sample, compared with the answers of the API.
    let found = printed(&place, &["models", "diff", "price_rating@3@3", "price_rating@3@6"]);
    assert_eq!((&found["moved"]["of"], &found["moved"]["records"]), (&json!("sample"), &json!(2465)));
    let serve = serve(&place);
    let points = serve.get("/api/segments/price_rating/points").json();
    let row = |point: &Value| json!({"discounted_price": point["values"][0], "rating": point["values"][1]});
    let points = points["points"].as_array().unwrap();
    let rows = Value::from(points.iter().map(row).collect::<Vec<_>>()).to_string();
    let old = serve.post("/api/segments/price_rating/predict?as_of=3", &rows).json();
    let mut matrix = vec![vec![0_u64; 3]; 3];
    for (old, new) in old.as_array().unwrap().iter().zip(points) {
        matrix[old["cluster"].as_u64().unwrap() as usize][new["cluster"].as_u64().unwrap() as usize] += 1;
    }
    assert_eq!(found["moved"]["matrix"], json!(matrix));
    let same: u64 = (0..3).map(|i| matrix[i][i]).sum();
    assert_eq!(found["moved"]["changed"], json!(2465 - same));
    assert!(found["clusters"][0]["shift"].as_f64().unwrap() > 0.0);

    let words = place.ok(&["models", "diff", "price_rating@3@3", "price_rating"]);
    assert!(words.contains(&format!("{} of 2,465 records changed segment", 2465 - same)), "{words}");
    let words = place.ok(&["models", "diff", "discount", "discount"]);
    assert!(words.contains("\n0 of 2,465 records changed segment (0.0%)") && !words.contains("->"), "{words}");
}

#[test]
fn an_older_version_answers_as_it_did() {
    let place = Place::new();
    let rows = r#"[{"discounted_price":300,"rating":4.5},{"discounted_price":1e5,"rating":1},{"discounted_price":1250,"rating":3.1}]"#;
    let path = "/api/cluster_products_by_price_rating";
    let up = place.up(&[]);
    let then: Vec<String> = (1..=3).map(|slice| up.post(&format!("{path}?model={slice}&lang=id"), rows).text).collect();
    up.interrupt();
    place.ok(&["generate", "1000", "--seed", "9", "-o", "more.csv"]);
    let up = place.up(&["--data", "more.csv", "--append"]);
    assert_ne!(up.post(&format!("{path}?lang=id"), rows).text, then[2]);
    for _ in 0..2 {
        for version in 1..=3 {
            let now = up.post(&format!("{path}?as_of={version}&lang=id"), rows);
            assert_eq!((now.status, &now.text), (200, &then[version - 1]), "version {version}");
        }
    }
    let answer = up.post("/api/segments/price_rating/predict?as_of=2&model=2", rows);
    assert_eq!((answer.status, &answer.json()[0]["version"]), (200, &json!(2)), "{}", answer.text);
    for (query, status, said) in [
        ("as_of=77", 404, "price_rating has no version 77"),
        ("as_of=2&model=3", 422, "version 2 of price_rating is of slice 2, not 3"),
        ("as_of=2&fit=request", 422, "as_of picks a trained model"),
        ("as_of=x", 422, "the query parameter as_of must be a version"),
        ("as_of=-1", 422, "the query parameter as_of must be a version"),
    ] {
        let answer = up.post(&format!("{path}?{query}"), rows);
        assert_eq!((answer.status, answer.content_type.as_str()), (status, "application/problem+json"), "{query}");
        let problem = answer.json();
        assert!(problem["detail"].as_str().unwrap().contains(said), "{query}: {problem}");
        assert_eq!(problem["field"], "as_of");
    }
    up.interrupt();

    place.write("rows.json", rows);
    let predicted = place.ok(&["predict", "price_rating", "rows.json", "--as-of", "2", "--lang", "id"]);
    let predicted: Value = serde_json::from_str(&predicted).unwrap();
    let then: Value = serde_json::from_str(&then[1]).unwrap();
    for (now, then) in predicted.as_array().unwrap().iter().zip(then.as_array().unwrap()) {
        for field in ["cluster", "description", "distance"] {
            assert_eq!(now[field], then[field]);
        }
    }
    let error = place.fails(1, &["predict", "price_rating", "rows.json", "--as-of", "77"]);
    assert!(error.contains("price_rating has no version 77"), "{error}");
    assert_eq!(place.run(&["predict", "price_rating", "--as-of", "1", "--model", "1"]).code, Some(2));
}

fn shown(place: &Place, model: &str) -> Value {
    serde_json::from_str(&place.ok(&["model", "show", model, "--format", "json"])).unwrap()
}

#[test]
fn a_segment_that_is_really_new_is_noted() {
    let place = Place::new();
    // Cheap, medium and expensive rows in the first third; later rows are never expensive, and some are free.
    let mut rows = "discounted_price,rating,rating_count,discount_percentage\n".to_owned();
    for i in 0..900_u32 {
        let discount = match (i < 300, i % 3) {
            (true, n) => [20, 30, 60][n as usize],
            (false, n) => [0, 1, 31][n as usize],
        };
        rows.push_str(&format!("{},{},{},{}\n", 100 + i % 50, 3.0 + f64::from(i % 7) / 7.0, i % 11, discount + i % 2));
    }
    place.write("rows.csv", rows);
    let up = place.up(&["--data", "rows.csv"]);
    let models = up.get("/api/segments/discount/models").json();
    let new = |slice: usize| -> Vec<bool> {
        let clusters = models[slice - 1]["clusters"].as_array().unwrap();
        clusters.iter().map(|cluster| cluster.get("new") == Some(&json!(true))).collect()
    };
    assert_eq!(new(1), [false; 3], "the first of all has nothing to be new against");
    assert_eq!(new(2), [true, false, false], "{models}");
    assert_eq!(new(3), [false; 3], "{models}");
    let ended = up.interrupt();
    let note = "discount@2@2: segment 0 is new (Low Discount, 200 records), unlike what had its number before";
    assert!(ended.stderr.contains(note), "{}", ended.stderr);
    assert!(place.ok(&["models", "diff", "discount@1", "discount@2"]).contains("Low Discount (new)"));
}

/// Slices are defined by the SQL, even if they alternate in the stream.
#[test]
fn slices_that_take_turns_are_trained_on_as_they_are() {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let turns =
        "-- k: 2\n\nSELECT _partition, _offset, _timestamp, _offset % 4 + 1 AS _slice, actual_price FROM products";
    place.write("sql/00_records.sql", include_bytes!("../../sql/00_records.sql"));
    place.write("sql/10_products.sql", include_bytes!("../../sql/10_products.sql"));
    place.write("sql/30_turns.sql", turns);
    // The same record in two slices that are not adjacent at this position.
    let shared =
        "_slice < 4 UNION ALL SELECT _partition, _offset, _timestamp, 2, actual_price FROM turns WHERE _offset = 8";
    place.write("sql/31_shared.sql", format!("-- k: 2\n\nSELECT * FROM turns WHERE {shared}"));
    let printed = place.ok(&["train", "--json"]);
    let outcomes: Vec<Value> = serde_json::from_str(&printed).unwrap();
    let [first, second, third, alone, twice, again] = &outcomes[..] else { panic!("{printed}") };
    for (slice, outcome) in [first, second, third].into_iter().enumerate() {
        let model = &outcome["model"];
        let last = slice as i64;
        let counted = place.number(&format!("SELECT count(*) FROM products WHERE _offset % 4 <= {last}"));
        assert_eq!(model["rows"], counted);
        let mean = place.ok(&[
            "sql",
            "-f",
            "csv",
            "-c",
            &format!("SELECT avg(actual_price) FROM products WHERE _offset % 4 <= {last}"),
        ]);
        let mean: f64 = mean.lines().last().unwrap().parse().unwrap();
        assert!((model["mean"][0].as_f64().unwrap() / mean - 1.0).abs() < 1e-12, "{model}");
        place.ok(&["verify", &format!("turns@{}", slice + 1)]);
    }
    assert!(alone["refused"].is_null());
    for refused in [twice, again] {
        let why = refused["refused"].as_str().unwrap();
        assert!(why.contains("offset 8 of partition 0 comes twice"), "{why}");
    }
}

#[test]
fn a_model_whose_records_expired_says_so_and_the_next_one_stands_on_what_is_left() {
    let place = Place::new();
    assert_eq!(place.up(&["--batch-rows", "500"]).interrupt().code, Some(0));
    std::thread::sleep(std::time::Duration::from_secs(2));
    let done = place.run(&["compact", "--keep-for", "1s", "--grace", "0"]);
    assert!(done.stderr.contains("let 1,000 records expire, deleted 2 files"), "{}", done.stderr);
    let error = place.fails(1, &["verify", "discount"]);
    let said = "retention let those before offset 1000 of partition 0 expire, and 465 are left of the 1465";
    assert!(error.contains(said), "{error}");
    let left = place.ok(&["sql", "-f", "csv", "-c", "SELECT count(*) AS n, min(_offset) AS first FROM records"]);
    assert_eq!(left, "n,first\n465,1000\n");
    place.ok(&["train"]);
    assert!(place.ok(&["verify", "discount"]).starts_with("discount@3@6 "));
    // Clusters that existed before keep their numbers, and new records are stored after them.
    place.ok(&["generate", "100", "--seed", "5", "-o", "more.csv"]);
    assert_eq!(place.up(&["--data", "more.csv", "--append"]).interrupt().code, Some(0));
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT count(*) AS n FROM records"]), "n\n565\n");
}

/// A broker with a topic `products`, whose files are named by number.
struct Parts {
    place: Place,
    _broker: Running,
    address: String,
}

impl Parts {
    fn new() -> Self {
        let place = Place::new();
        let mut broker = place.start(&["broker", "--topic", "products"]);
        let address = broker.line_with("");
        for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/field/words/sql").as_ref()) {
            let name = file.file_name().unwrap().to_str().unwrap();
            place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
        }
        Self { place, _broker: broker, address }
    }

    fn ingest(&self, part: usize) {
        let file = format!("{}/tests/field/words/words_part{part}.csv", env!("CARGO_MANIFEST_DIR"));
        self.place.ok(&["produce", &file, "--bootstrap-servers", &self.address]);
        self.place.ok(&["ingest", "--until-end", "--bootstrap-servers", &self.address]);
    }

    /// Trains and returns the models of all slices of the segmentation pr, with stderr.
    fn train(&self) -> (Vec<Value>, String) {
        let ended = self.place.run(&["train"]);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let serving: Value =
            serde_json::from_slice(&std::fs::read(self.place.path("store/models/pr/slices.json")).unwrap()).unwrap();
        (["1", "2", "3"].map(|slice| self.model(&serving[slice]["version"])).to_vec(), ended.stderr)
    }

    fn model(&self, version: &Value) -> Value {
        let path = self.place.path(&format!("store/models/pr/{version}.json"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// Checks that exactly the words that differ from the predecessor's are listed, except in new clusters. Returns their
    /// number.
    fn listed(&self, model: &Value) -> usize {
        let mut differ = Vec::new();
        let predecessor = &model["receipt"]["predecessor"];
        if !predecessor.is_null() {
            let before = self.model(&predecessor["version"]);
            for (old, new) in before["clusters"].as_array().unwrap().iter().zip(model["clusters"].as_array().unwrap()) {
                for feature in ["price", "rating"].into_iter().filter(|_| new["new"] != true) {
                    let (from, to) = (&old["words"][feature]["en"], &new["words"][feature]["en"]);
                    if from != to {
                        differ.push(json!([new["cluster"], feature, from, to]));
                    }
                }
            }
        }
        let listed = model["words_changed"].as_array().unwrap().iter();
        let listed: Vec<Value> =
            listed.map(|one| json!([one["cluster"], one["feature"], one["from"], one["to"]])).collect();
        assert_eq!(listed, differ, "{model}");
        listed.len()
    }
}

#[test]
fn words_hold_from_training_to_training_or_the_change_is_listed() {
    let parts = Parts::new();
    for part in 1..=6 {
        parts.ingest(part);
        let (models, said) = parts.train();
        let mut changes = 0;
        for model in &models {
            let mut words: Vec<&Value> =
                model["clusters"].as_array().unwrap().iter().map(|cluster| &cluster["description"]).collect();
            words.sort_by_key(|text| text.to_string());
            words.dedup();
            assert_eq!(words.len(), 3, "all descriptions differ: {model}");
            changes += parts.listed(model);
        }
        assert_eq!(
            said.lines().filter(|line| line.contains(" was ") && line.contains(", is ")).count(),
            changes,
            "{said}"
        );
    }

    // With another k, numbers start again, and no cluster continues.
    let sql = std::fs::read_to_string(parts.place.path("sql/30_pr.sql")).unwrap();
    parts.place.write("sql/30_pr.sql", sql.replace("-- k: 3", "-- k: 4"));
    let (models, _) = parts.train();
    for (model, slice) in models.iter().zip(1..) {
        assert_eq!(model["clusters"].as_array().unwrap().len(), 4);
        assert!(model["clusters"].as_array().unwrap().iter().all(|cluster| cluster["new"] == true), "{model}");
        assert_eq!((&model["words_changed"], &model["receipt"]["replaced"]["slice"]), (&json!([]), &json!(slice)));
    }
    parts.place.ok(&["verify", "pr@2"]);
    let (again, _) = parts.train();
    assert_eq!(again, models, "the same records make no new model");

    // More parts than words are reported.
    parts.place.write("sql/33_four.sql", "-- k: 4\n-- label.price.en: Low | Mid | High\n\nSELECT _partition, _offset, _timestamp, _slice, price FROM slices");
    let (_, said) = parts.train();
    assert!(said.contains("33_four.sql: slice 3 has 4 levels of price and 3 words for them"), "{said}");
    // A label of another column is reported with its line.
    parts.place.write("sql/33_four.sql", "-- k: 3\n-- label.prize.en: Low | Mid | High\n\nSELECT _partition, _offset, _timestamp, _slice, price FROM slices");
    let error = parts.place.fails(1, &["train"]);
    assert!(
        error.contains(
            "33_four.sql, line 2, column 1: the header labels prize, which is none of the view's features price"
        ),
        "{error}"
    );
}

#[test]
fn a_model_of_linfa_says_so_and_is_verified_by_linfa() {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let model = |version: u64| -> Value {
        serde_json::from_slice(
            &std::fs::read(place.path(&format!("store/models/price_rating/{version}.json"))).unwrap(),
        )
        .unwrap()
    };
    place.ok(&["train", "--solver", "linfa"]);
    let (own, linfa) = (model(1), model(4));
    assert_eq!((own["receipt"].get("solver"), &linfa["receipt"]["solver"]), (None, &json!("linfa")));
    assert_eq!(own["rows"], linfa["rows"]);
    let inertia = |model: &Value| model["inertia"].as_f64().unwrap();
    assert!(inertia(&linfa) >= inertia(&own) * (1.0 - 1e-9), "{} {}", inertia(&linfa), inertia(&own));
    assert!(inertia(&linfa) < inertia(&own) * 2.0, "{} {}", inertia(&linfa), inertia(&own));
    for version in [1, 4, 6] {
        let slice = model(version)["slice"].as_u64().unwrap();
        place.ok(&["verify", &format!("price_rating@{slice}@{version}")]);
    }
    // The receipt's solver decides, so another one is another model.
    let linfa_again = place.path("store/models/price_rating/4.json");
    let text = std::fs::read_to_string(&linfa_again).unwrap();
    std::fs::write(&linfa_again, text.replace("\"solver\": \"linfa\"", "\"solver\": \"tercile\"")).unwrap();
    place.fails(1, &["verify", "price_rating@1@4"]);
    std::fs::write(&linfa_again, text).unwrap();
    // A training with the same solver makes no new version; a training with another solver makes one.
    place.ok(&["train", "--solver", "linfa"]);
    assert!(!place.path("store/models/price_rating/7.json").exists());
    place.ok(&["train"]);
    assert_eq!(model(7)["receipt"].get("solver"), None);
    // A server trains with its solver, on request too.
    let serve = place.serve(&["--solver", "linfa"]);
    assert_eq!(serve.post("/api/train", "").status, 202);
    eventually("the training", || serve.get("/api/train/1").json()["state"] == "done");
    assert_eq!(serve.get("/api/segments/price_rating/models/3").json()["receipt"]["solver"], "linfa");
    assert_eq!(serve.get("/api/train/1").json()["refused"], json!([]));
}
