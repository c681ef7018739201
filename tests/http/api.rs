//! The API on a trained store: answers, problems, and their agreement with the OpenAPI document.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use common::{Answer, Place, Running};
use serde_json::{Value, json};

use crate::common;

struct Service {
    running: Running,
    place: Place,
}

/// One service shared by all tests that run at the same time; the last test stops it.
fn shared() -> Arc<Service> {
    static SHARED: Mutex<Weak<Service>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let place = Place::new();
        let service = Arc::new(Service { running: place.up(&[]), place });
        *shared = Arc::downgrade(&service);
        service
    })
}

thread_local! {
    /// This test's reference to the service.
    static SERVICE: Arc<Service> = shared();
}

fn get(path: &str) -> Answer {
    SERVICE.with(|service| service.running.get(path))
}

fn post(path: &str, body: &str) -> Answer {
    SERVICE.with(|service| service.running.post(path, body))
}

const PRICE: &str = "/api/cluster_products_by_price_rating";

/// Checks the format of a problem and returns it.
fn problem(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text);
    assert_eq!(answer.content_type, "application/problem+json", "{}", answer.text);
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    for key in ["type", "title", "detail"] {
        assert!(problem[key].is_string(), "{problem}");
    }
    for leak in ["/src/", "panicked", ".rs", "store/"] {
        assert!(!answer.text.contains(leak), "{}", answer.text);
    }
    problem
}

#[test]
fn the_greeting() {
    assert_eq!(get("/").json(), json!({"message": "Big Data API is running."}));
    assert_eq!(get("/health/live").json()["status"], "live");
    assert_eq!(get("/health/ready").json()["status"], "ready");
}

#[test]
fn rows_get_their_clusters_in_order() {
    let body = r#"[{"discounted_price":300,"rating":4.5,"name":"ignored"},{"rating":3.1,"discounted_price":150000}]"#;
    let rows = post(PRICE, body).json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    for (i, row) in rows.as_array().unwrap().iter().enumerate() {
        let cluster = row["cluster"].as_u64().unwrap();
        assert!(cluster < 3);
        assert_eq!(row["features"]["prediction"], cluster);
        assert_eq!(row["features"]["discounted_price"], [300.0, 150_000.0][i]);
        assert_eq!(row["features"].as_object().unwrap().len(), 3);
        assert!(row["distance"].as_f64().unwrap() >= 0.0);
        assert_eq!((&row["model"], &row["version"]), (&json!(3), &json!(3)));
    }
    let model = get("/api/segments/price_rating/models/3").json();
    let cluster = rows[0]["cluster"].as_u64().unwrap() as usize;
    assert_eq!(rows[0]["description"], model["clusters"][cluster]["description"]);
}

#[test]
fn model_and_language_are_chosen() {
    let row = r#"[{"discount_percentage":90}]"#;
    for slice in 1..=3 {
        let answer = post(&format!("/api/cluster_products_by_discount?model={slice}&lang=id"), row).json();
        assert_eq!(answer[0]["model"], slice);
        assert_eq!(answer[0]["description"], "Diskon Tinggi");
    }
    for (query, named) in [
        ("model=4", "1, 2, 3"),
        ("model=0", "1, 2, 3"),
        ("model=x", "1, 2, 3"),
        ("lang=fr", "en, id"),
        ("fit=all", "request"),
    ] {
        let problem = problem(&post(&format!("{PRICE}?{query}"), r#"[{"discounted_price":1,"rating":1}]"#), 422);
        assert!(problem["detail"].as_str().unwrap().contains(named), "{query}: {problem}");
        assert_eq!(problem["field"], query.split('=').next().unwrap());
    }
    problem(&post(&format!("{PRICE}?fit=request&model=1"), r#"[{"discounted_price":1,"rating":1}]"#), 422);
    for query in ["modle=1", "model=1&model=2", "%20=1"] {
        problem(&post(&format!("{PRICE}?{query}"), r#"[{"discounted_price":1,"rating":1}]"#), 422);
    }
    problem(&get("/api/segments?model=1"), 422);
}

#[test]
fn what_does_not_fit_is_refused_with_index_and_field() {
    let good = r#"{"discounted_price":1,"rating":1}"#;
    for (body, status) in [("", 400), ("nope", 400), ("[", 400), ("{}", 422), ("[]", 422), ("[1]", 422), ("null", 422)]
    {
        problem(&post(PRICE, body), status);
    }
    for (row, field) in [
        (r#"{"discounted_price":1}"#, "rating"),
        (r#"{"discounted_price":null,"rating":1}"#, "discounted_price"),
        (r#"{"discounted_price":"1","rating":1}"#, "discounted_price"),
        (r#"{"discounted_price":1,"rating":1e400}"#, "rating"),
    ] {
        let problem = problem(&post(PRICE, &format!("[{good},{row}]")), 422);
        assert_eq!((&problem["index"], &problem["field"]), (&json!(1), &json!(field)));
    }
    problem(&post(PRICE, &format!("[{good},{{\"discounted_price\":NaN,\"rating\":1}}]")), 400);
    let many = |n: usize| format!("[{}]", vec![good; n].join(","));
    assert_eq!(post(PRICE, &many(100_000)).status, 200);
    problem(&post(PRICE, &many(100_001)), 413);
    let post_as = |kind: &str, body: &[u8]| SERVICE.with(|service| service.running.post_as(PRICE, kind, body));
    problem(&post_as("text/plain", b"[]"), 415);
    problem(&post_as("application/json", b"[{\"discounted_price\":\"\xff\"}]"), 400);
}

#[test]
fn a_row_beyond_all_measure_is_refused() {
    for price in ["1e300", "-1e300"] {
        let rows = format!(r#"[{{"discounted_price":1,"rating":1}},{{"discounted_price":{price},"rating":1}}]"#);
        let problem = problem(&post(PRICE, &rows), 422);
        assert_eq!((&problem["index"], &problem["field"]), (&json!(1), &json!("discounted_price")), "{problem}");
    }
}

#[test]
fn rows_that_cannot_be_clustered_by_themselves_say_why() {
    let one = r#"[{"discounted_price":5,"rating":4}]"#;
    let answer = post(&format!("{PRICE}?fit=request"), one).json();
    assert_eq!(answer[0]["description"], "Mid Price, Mid Rating", "one row is one cluster");
    assert_eq!((answer[0].get("model"), answer[0].get("version")), (None, None));
    let apart = r#"[{"discounted_price":1e308,"rating":4},{"discounted_price":-1e308,"rating":3},{"discounted_price":1,"rating":1}]"#;
    let problem = problem(&post(&format!("{PRICE}?fit=request"), apart), 422);
    assert!(problem["detail"].as_str().unwrap().contains("discounted_price are too far apart"), "{problem}");
    let huge = r#"[{"discounted_price":6e307,"rating":4},{"discounted_price":-2e307,"rating":3},{"discounted_price":1,"rating":1}]"#;
    let answer = post(&format!("{PRICE}?fit=request"), huge);
    let prices: Vec<String> =
        answer.json().as_array().unwrap().iter().map(|row| row["description"].to_string()).collect();
    let expected = ["\"High Price, High Rating\"", "\"Low Price, Mid Rating\"", "\"Mid Price, Low Rating\""];
    assert_eq!(prices, expected, "{}", answer.text);
}

#[test]
fn segments_and_models_are_listed() {
    let all = get("/api/segments").json();
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["price_rating", "rating_count", "discount"]);
    assert_eq!(all[1]["features"], json!(["rating", "rating_count"]));
    let models = get("/api/segments/price_rating/models").json();
    assert_eq!(models.as_array().unwrap().len(), 3);
    for model in models.as_array().unwrap() {
        let sizes: u64 = model["clusters"].as_array().unwrap().iter().map(|c| c["size"].as_u64().unwrap()).sum();
        assert_eq!(model["rows"], sizes);
        assert_eq!(model["receipt"]["n"], 1465);
        let moved: Option<u64> = model["moved"]
            .as_array()
            .map(|rows| rows.iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum());
        assert_eq!(moved, [None, Some(489), Some(978)][model["slice"].as_u64().unwrap() as usize - 1]);
    }
    assert_eq!(get("/api/segments/price_rating/models/2").json(), models[1]);
    let points = get("/api/segments/price_rating/points?model=1").json();
    assert_eq!(points["points"].as_array().unwrap().len(), 489);
    assert_eq!(points["points"][5]["values"].as_array().unwrap().len(), 2);
    for path in ["", "/models", "/models/1", "/points"] {
        problem(&get(&format!("/api/segments/nope{path}")), 404);
    }
    problem(&get("/api/segments/price_rating/models/4"), 404);
    problem(&get("/api/segments/price_rating/models/x"), 404);
    problem(&get("/api/segments/price_rating/points?model=4"), 422);
    problem(&post("/api/segments/nope/predict", "[{}]"), 404);
    problem(&get("/api/train/77"), 404);
    problem(&get("/nowhere"), 404);
    problem(&get("/api/segments/%ff"), 404);
    for (refused, allowed) in [
        (get(PRICE), "POST"),
        (post("/api/segments/price_rating", "[]"), "GET, HEAD"),
        (post("/docs", "[]"), "GET, HEAD"),
    ] {
        problem(&refused, 405);
        assert_eq!(refused.headers["allow"], allowed);
    }
}

#[test]
fn the_model_file_is_what_the_api_says() {
    let path = SERVICE.with(|service| service.place.path("store/models/discount/3.json"));
    let file = std::fs::read(path).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(get("/api/segments/discount/models/3").json(), file);
}

#[test]
fn documents_and_metrics() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json")).unwrap();
    let committed: Value = serde_json::from_str(&committed).unwrap();
    // The served document has values of the sample in its schemas and requests, and the committed one has recorded examples.
    let without_values = |document: &Value| {
        let mut document = document.clone();
        remove_values(&mut document);
        document
    };
    assert_eq!(without_values(&get("/openapi.json").json()), without_values(&committed));
    let docs = get("/docs").text;
    assert!(docs.contains("swagger-ui"), "{}", &docs[..200]);
    assert!(!docs.contains("src=\"http"), "the page loads nothing from elsewhere");
    post(PRICE, r#"[{"discounted_price":1,"rating":1}]"#);
    let metrics = get("/metrics").text;
    for line in [
        "tercile_ready 1",
        "tercile_model_version{segmentation=\"discount\",slice=\"3\"} 3",
        "tercile_requests_total{endpoint=\"/api/cluster_products_by_price_rating\",method=\"POST\",status=\"200\"}",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
}

/// Removes examples, and descriptions of observed values.
fn remove_values(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|name, _| name != "example" && name != "examples");
            if object.get("description").and_then(Value::as_str).is_some_and(|text| text.starts_with("Observed from "))
            {
                object.remove("description");
            }
            object.values_mut().for_each(remove_values);
        }
        Value::Array(all) => all.iter_mut().for_each(remove_values),
        _ => {}
    }
}
