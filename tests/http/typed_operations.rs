//! The typed operations of the OpenAPI document: those of the store that is served, with its features, fields and values, and what
//! each caller may see of them.

use common::{Place, Running, eventually};
use serde_json::Value;

use crate::common;

const KINDS: [&str; 3] = ["application/json", "application/x-ndjson", "text/csv"];

/// A shop of its own, with a segmentation of records and one of entities, whose names need encoding.
fn shop() -> Place {
    let place = Place::new();
    place.write(
        "sql/00_records.sql",
        "CREATE TABLE records (\"Order ID\" TEXT, price TEXT, \"Stars (0-5)\" TEXT, customer TEXT)",
    );
    place.write(
        "sql/30_orders.sql",
        "-- k: 2\n\nSELECT _partition, _offset, _timestamp, 3 AS _slice, to_number(price, '€') AS price, \
         to_number(\"Stars (0-5)\") AS \"Stars (0-5)\" FROM records",
    );
    place.write(
        "sql/31_customers.sql",
        "-- k: 2\n-- entity: customer\n\nSELECT customer, count(*) AS orders, sum(to_number(price, '€')) AS turnover FROM records \
         GROUP BY customer",
    );
    let mut csv = "Order ID,price,Stars (0-5),customer\n".to_owned();
    for i in 0..300 {
        csv += &format!("o{i},\"€ {}\",{},c{}\n", if i % 2 == 0 { i + 5 } else { 9000 + i }, 1 + i % 5, i % 40);
    }
    place.write("orders.csv", csv);
    place
}

fn document(server: &Running, headers: &[(&str, &str)]) -> (Value, String) {
    let answer = server.call("GET", "/openapi.json", headers);
    assert_eq!(answer.status, 200);
    (answer.json(), answer.headers["etag"].to_str().unwrap().to_owned())
}

fn schema<'d>(document: &'d Value, name: &str) -> &'d Value {
    let schema = &document["components"]["schemas"][name];
    assert!(schema.is_object(), "no schema {name}");
    schema
}

#[test]
fn the_document_is_about_the_store_that_is_served() {
    let place = shop();
    let up = place.up(&["--data", "orders.csv"]);
    let (all, etag) = document(&up, &[]);
    let paths = all["paths"].as_object().unwrap();
    assert!(!paths.keys().any(|path| path.contains("cluster_products_by")), "there is no such segmentation");
    assert!(!paths.contains_key("/api/segments/customers/score"), "an entity is no record");
    assert!(paths.contains_key("/api/segments/customers/predict"));
    for (verb, item, answer) in
        [("predict", "OrdersValues", "OrdersAssignment"), ("score", "OrdersRecord", "OrdersScore")]
    {
        let path = format!("/api/segments/orders/{verb}");
        let operation = &paths[&path]["post"];
        assert_eq!(operation["operationId"], format!("{verb}Orders"));
        let content = &operation["requestBody"]["content"];
        assert_eq!(content["application/json"]["schema"]["items"]["$ref"], format!("#/components/schemas/{item}"));
        let returned = &operation["responses"]["200"]["content"]["application/json"]["schema"]["items"];
        assert_eq!(returned["$ref"], format!("#/components/schemas/{answer}"));
        let features = &schema(&all, answer)["properties"]["features"]["properties"];
        assert_eq!(features["price"]["type"], "number", "{features}");
        // Each example is answered with a cluster.
        for kind in KINDS {
            let example = &content[kind]["example"];
            let body = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
            let found = up.ask(&path, &[("content-type", kind), ("accept", "application/json")], &body);
            assert_eq!(found.status, 200, "{body}: {}", found.text);
            assert!(found.json()[0]["cluster"].is_u64(), "{body}: {}", found.text);
        }
    }
    let stars = &schema(&all, "OrdersValues")["properties"]["Stars (0-5)"];
    assert_eq!(stars["description"], "Observed from 1 to 5, with median 3, in 300 rows.");
    assert_eq!(schema(&all, "OrdersValues")["required"], serde_json::json!(["price", "Stars (0-5)"]));
    let record = schema(&all, "OrdersRecord");
    assert!(record["properties"]["price"]["examples"][0].as_str().unwrap().starts_with('€'), "{record}");
    assert!(record["properties"].get("customer").is_none(), "the SQL does not read it");
    let name = &paths["/api/segments/{name}"]["get"]["parameters"][0];
    assert!(["orders", "customers"].contains(&name["example"].as_str().unwrap()), "{name}");
    assert!(up.get("/docs").text.contains("predictOrders"));
    // The document and its tag change with the SQL files, and only then.
    assert_eq!(document(&up, &[]).1, etag);
    let known = up.call("GET", "/openapi.json", &[("if-none-match", &etag)]);
    assert_eq!((known.status, known.text.as_str()), (304, ""));
    place.write(
        "sql/32_prices.sql",
        "-- k: 2\n\nSELECT _partition, _offset, _timestamp, 3 AS _slice, to_number(price, '€') AS price FROM records",
    );
    eventually("the new segmentation", || document(&up, &[]).0["paths"]["/api/segments/prices/score"].is_object());
    assert_eq!(up.call("GET", "/openapi.json", &[("if-none-match", &etag)]).status, 200);
    // It has no model yet.
    let (all, _) = document(&up, &[]);
    assert!(schema(&all, "PricesValues")["properties"]["price"].get("description").is_none());
}

#[test]
fn values_are_shown_to_those_who_may_see_them() {
    let place = shop();
    assert_eq!(place.up(&["--data", "orders.csv"]).interrupt().code, Some(0));
    let key = |scope: &str| place.ok(&["keys", "create", scope, "--scope", scope]).trim().to_owned();
    let (read, admin) = (key("read"), key("admin"));
    let serve = place.serve(&["--require-keys"]);
    let shown = |headers: &[(&str, &str)]| {
        let (all, etag) = document(&serve, headers);
        let values = schema(&all, "OrdersValues");
        assert_eq!(values["required"], serde_json::json!(["price", "Stars (0-5)"]), "names are for all");
        let record = schema(&all, "OrdersRecord");
        let example = &all["paths"]["/api/segments/orders/score"]["post"]["requestBody"]["content"]["application/json"];
        assert_eq!(example.get("example").is_some(), record.to_string().contains('€'));
        (values.to_string().contains("Observed"), record.to_string().contains('€'), etag)
    };
    let anyone = shown(&[]);
    let reader = shown(&[("x-api-key", &read)]);
    let admin = shown(&[("authorization", &format!("Bearer {admin}"))]);
    assert_eq!(
        [(anyone.0, anyone.1), (reader.0, reader.1), (admin.0, admin.1)],
        [(false, false), (true, false), (true, true)]
    );
    assert!(anyone.2 != reader.2 && reader.2 != admin.2, "each has a tag of its own");
    assert_eq!(shown(&[("x-api-key", "tercile_wrong")]), anyone);
    assert!(!serve.get("/docs").text.contains('€'));
}

#[test]
fn the_languages_are_those_of_the_sql_files() {
    let place = shop();
    let view = |name: &str, header: &str| {
        let select = "SELECT _partition, _offset, _timestamp, 3 AS _slice, to_number(price, '€') AS price FROM records";
        place.write(&format!("sql/{name}.sql"), format!("-- k: 2\n{header}\n{select}"));
    };
    view("32_prices", "-- label.price.en: Low | Mid | High\n-- label.price.pt-br: Baixo | Médio | Alto\n");
    let up = place.up(&["--data", "orders.csv"]);
    let offered = |up: &Running| schema(&document(up, &[]).0, "Language")["enum"].clone();
    assert_eq!(offered(&up), serde_json::json!(["en", "id", "pt-BR"]));
    let ask = |path: &str| up.post(&format!("/api/segments/{path}"), r#"[{"price": 5, "Stars (0-5)": 1}]"#);
    let description = |path: &str| {
        let answer = ask(path);
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()[0]["description"].as_str().unwrap().to_owned()
    };
    assert_eq!(description("prices/predict?lang=pt-BR"), "Baixo");
    assert_eq!(description("prices/predict?lang=PT-br&as_of=1"), "Baixo", "also a recalled version");
    assert_eq!(description("prices/predict?lang=pt-BR&fit=request"), "Médio");
    assert_eq!(description("prices/predict"), "Low");
    // A segmentation without words in a language answers in English.
    assert_eq!(description("orders/predict?lang=pt-BR"), description("orders/predict?lang=en"));
    for wrong in ["pt", "de", "english", ""] {
        let answer = ask(&format!("prices/predict?lang={wrong}"));
        assert_eq!((answer.status, &answer.json()["field"]), (422, &"lang".into()), "{}", answer.text);
        assert!(answer.text.contains("there are en, id, pt-BR"), "{}", answer.text);
    }
    let members = up.get("/api/segments/customers/members/c1?lang=pt-BR").json();
    assert_eq!(members["description"], up.get("/api/segments/customers/members/c1").json()["description"]);
    place.write("row.csv", "price\n5\n");
    let predict = ["predict", "prices", "row.csv", "--lang"];
    let said = place.ok(&[&predict[..], &["pt-BR"]].concat());
    assert!(said.contains("Baixo"), "{said}");
    let said = place.fails(1, &[&predict[..], &["de"]].concat());
    assert!(
        said.contains("the clusters of prices have no names in the language de; they have en, id, pt-BR"),
        "{said}"
    );
    place.fails(2, &[&predict[..], &["english"]].concat());
    // The offer changes with the files.
    view("32_prices", "-- label.price.de: Tief | Mittel | Hoch\n");
    eventually("another language", || offered(&up) == serde_json::json!(["de", "en", "id"]));
    // The model that serves has no words in it yet.
    assert_eq!(description("prices/predict?lang=de"), "Low");
}
