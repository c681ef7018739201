//! Typed predict and score operations in the OpenAPI document, for each segmentation of the running store.
//!
//! Input: the completed document, and the segmentations with their observed values. Output: the document with two more paths
//! for each segmentation, whose schemas name its features and the fields of its records, so that generated clients have a type
//! for them. The paths are those of the general operations with the name filled in; the router needs no route for them.

use std::collections::BTreeSet;

use datafusion::arrow::array::{AsArray as _, Float64Array};
use datafusion::arrow::datatypes::Float64Type;
use serde_json::{Map, Value, json};
use tercile_store::{Snapshot, Store};

use super::example_request;
use super::named_schemas::reference;
use crate::engine;
use crate::engine::row_by_row::NotRowByRow;
use crate::model::ModelRegistry;
use crate::model_cache::{Models, Served, Serving};
use crate::scoring::RecordScorer;
use crate::sql::{Files, Segmentation};

/// The path of a general operation, its schemas of an item of the request and of the response, and the names of their typed forms.
struct General {
    path: &'static str,
    verb: &'static str,
    summary: &'static str,
    item: &'static str,
    answer: &'static str,
    typed_item: &'static str,
    typed_answer: &'static str,
}

const PREDICT: General = General {
    path: "/api/segments/{name}/predict",
    verb: "predict",
    summary: "Predict clusters of",
    item: "Row",
    answer: "Prediction",
    typed_item: "Values",
    typed_answer: "Assignment",
};

const SCORE: General = General {
    path: "/api/segments/{name}/score",
    verb: "score",
    summary: "Score raw records by",
    item: "Row",
    answer: "RecordScore",
    typed_item: "Record",
    typed_answer: "Score",
};

/// Prefix of the paths of the endpoints for products; the name of a segmentation follows.
const PRODUCTS: &str = "/api/cluster_products_by_";

/// A segmentation as the document describes it.
pub struct Described {
    name: String,
    features: Vec<String>,
    /// For each feature the observed values in words, where known.
    observed: Vec<Option<String>>,
    /// A row of features, where known.
    row: Option<Value>,
    /// The fields of a raw record that the SQL reads; `None`: the segmentation cannot score records.
    fields: Option<Vec<String>>,
    /// A stored record as it came, where known.
    record: Option<Value>,
}

/// Level of detail of the data in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Names only: for clients without a key, where keys are required.
    Names,
    /// Ranges of the features and medians of clusters too.
    Ranges,
    /// A stored record too.
    Records,
}

impl Described {
    fn new(segmentation: &Segmentation, files: &Files, scorer: Result<&RecordScorer, &NotRowByRow>) -> Self {
        let of = |scorer: &RecordScorer| match scorer.fields() {
            Some(fields) => fields.into_iter().map(str::to_owned).collect(),
            None => files.fields.names().to_vec(),
        };
        Self {
            name: segmentation.name.clone(),
            features: segmentation.features.clone(),
            observed: vec![None; segmentation.features.len()],
            row: None,
            fields: scorer.ok().map(of),
            record: None,
        }
    }

    /// Of a segmentation of the running store.
    async fn of(served: &Served, store: &Store, detail: Detail) -> Self {
        let scorer = served.record_scorer().await;
        let mut described = Self::new(&served.segmentation, served.files(), scorer.as_deref());
        let serving = served.slots.iter().rev().find_map(|slot| slot.serving.clone());
        let Some(serving) = serving.filter(|_| detail != Detail::Names) else { return described };
        described.row = example_request::row(&serving.model);
        let (store_of_sample, name) = (store.clone(), served.segmentation.name.clone());
        let observed = tokio::task::spawn_blocking(move || observed(&store_of_sample, &name, &serving)).await;
        described.observed = observed.ok().flatten().unwrap_or(described.observed);
        if detail == Detail::Records {
            let example = example_request::raw_of(served, store).await;
            described.record =
                example.and_then(|example| serde_json::from_str::<Value>(&example.body).ok()?.get(0).cloned());
        }
        described
    }
}

/// The segmentations of the running store.
pub async fn of_store(models: &Models, store: &Store, detail: Detail) -> Vec<Described> {
    let mut all = Vec::new();
    for served in &models.segmentations {
        all.push(Described::of(served, store, detail).await);
    }
    all
}

/// The segmentations of SQL files without a store.
///
/// # Errors
/// If the SQL files do not plan.
pub async fn of_files(files: &Files) -> anyhow::Result<Vec<Described>> {
    let ctx = engine::open(&Snapshot::default(), files).await?;
    let mut all = Vec::new();
    for segmentation in engine::segmentations(&ctx, files).await? {
        let scorer = RecordScorer::new(files, &segmentation).await;
        all.push(Described::new(&segmentation, files, scorer.as_ref()));
    }
    Ok(all)
}

/// The observed values of each feature in words, from the model's sample; `None` if the sample cannot be read.
fn observed(store: &Store, name: &str, serving: &Serving) -> Option<Vec<Option<String>>> {
    let model = &serving.model;
    let sample = ModelRegistry::new(store, name).sample_of(model).ok()?;
    let rows = sample.num_rows();
    let of = |feature: &String| {
        let column = sample.column_by_name(feature)?.as_primitive_opt::<Float64Type>()?;
        let (least, median, most) = range(column)?;
        let rows = match rows as u64 == model.rows {
            true => format!("{rows} rows"),
            false => format!("a sample of {rows} of {} rows", model.rows),
        };
        Some(format!("Observed from {least} to {most}, with median {median}, in {rows}."))
    };
    Some(model.features.iter().map(of).collect())
}

/// Minimum, median and maximum.
fn range(column: &Float64Array) -> Option<(f64, f64, f64)> {
    let mut values: Vec<f64> = column.iter().flatten().filter(|value| value.is_finite()).collect();
    values.sort_unstable_by(f64::total_cmp);
    Some((*values.first()?, *values.get(values.len() / 2)?, *values.last()?))
}

/// Adds the typed operations, and removes what there is no segmentation for.
pub fn add(document: &mut Value, all: &[Described]) {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let schemas = document["components"]["schemas"].as_object().into_iter().flatten();
    let mut names: BTreeSet<String> = schemas.map(|(name, _)| name.clone()).collect();
    let mut typed = Map::new();
    for described in all {
        let word = type_name(&described.name, &mut taken);
        let mut parts = vec![(&PREDICT, values(described), described.row.as_ref())];
        if let Some(fields) = &described.fields {
            parts.push((&SCORE, record(fields, described.record.as_ref()), described.record.as_ref()));
        }
        for (general, item, example) in parts {
            let item_name = free_name(&format!("{word}{}", general.typed_item), &mut names);
            let answer_name = free_name(&format!("{word}{}", general.typed_answer), &mut names);
            let mut answer = answer(&document["components"]["schemas"][general.answer], described);
            answer["title"] = answer_name.as_str().into();
            let operation = &document["paths"][general.path]["post"];
            let operation = operation_of(operation, general, described, &word, (&item_name, &answer_name), example);
            let path = general.path.replace("{name}", &example_request::segment(&described.name));
            typed.insert(path, json!({ "post": operation }));
            document["components"]["schemas"][item_name] = item;
            document["components"]["schemas"][answer_name] = answer;
        }
    }
    let Some(paths) = document["paths"].as_object_mut() else { return };
    paths.retain(|path, _| match path.strip_prefix(PRODUCTS) {
        Some(name) => all.iter().any(|described| described.name == name),
        None => true,
    });
    if let Some(first) = all.first() {
        name_in_use(paths, all, &first.name);
    }
    // First, because they are what a client of this store calls.
    let mut sorted = typed;
    sorted.append(paths);
    *paths = sorted;
}

/// The example name of a segmentation is one that exists.
fn name_in_use(paths: &mut Map<String, Value>, all: &[Described], first: &str) {
    let operations = paths.values_mut().filter_map(Value::as_object_mut).flatten().map(|(_, operation)| operation);
    let parameters = operations.filter_map(|operation| operation.get_mut("parameters")?.as_array_mut()).flatten();
    for parameter in parameters.filter(|parameter| parameter["name"] == "name" && parameter["in"] == "path") {
        let known = |name: &str| all.iter().any(|described| described.name == name);
        if !parameter["example"].as_str().is_some_and(known) {
            parameter["example"] = first.into();
        }
    }
}

fn operation_of(
    general_operation: &Value,
    general: &General,
    described: &Described,
    word: &str,
    (item, answer): (&str, &str),
    example: Option<&Value>,
) -> Value {
    let mut operation = general_operation.clone();
    let name = &described.name;
    operation["operationId"] = format!("{}{word}", general.verb).into();
    operation["summary"] = format!("{} {name}", general.summary).into();
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.retain(|parameter| parameter["in"] != "path");
    }
    let retyped = |content: &mut Value, from: &str, to: &str| {
        if content["schema"]["items"] == reference(from) {
            content["schema"]["items"] = reference(to);
        }
    };
    let contents =
        |one: Option<&mut Value>| one.and_then(|one| one.get_mut("content")?.as_object_mut().map(std::mem::take));
    if let Some(mut given) = contents(operation.get_mut("requestBody")) {
        for (kind, content) in &mut given {
            content.as_object_mut().and_then(|content| content.remove("example"));
            retyped(content, general.item, item);
            if let Some(text) = example.and_then(|row| shown(kind, row)) {
                content["example"] = text;
            }
        }
        operation["requestBody"]["content"] = given.into();
    }
    if let Some(mut given) = contents(operation["responses"].get_mut("200")) {
        for content in given.values_mut() {
            content.as_object_mut().and_then(|content| content.remove("example"));
            retyped(content, general.answer, answer);
        }
        operation["responses"]["200"]["content"] = given.into();
    }
    operation
}

/// A row in a media type; `None` for binary ones.
fn shown(kind: &str, row: &Value) -> Option<Value> {
    match kind {
        "application/json" => Some(json!([row])),
        "application/x-ndjson" => Some(format!("{row}\n").into()),
        "text/csv" => {
            let fields = row.as_object()?;
            let cell = |value: &Value| match value.as_str() {
                Some(text) => text.to_owned(),
                None => value.to_string(),
            };
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(fields.keys()).ok()?;
            writer.write_record(fields.values().map(cell)).ok()?;
            String::from_utf8(writer.into_inner().ok()?).ok().map(Value::from)
        }
        _ => None,
    }
}

/// Schema of a row: a number for each feature.
fn values(described: &Described) -> Value {
    let property = |(feature, observed): (&String, &Option<String>)| {
        let mut schema = json!({ "type": "number" });
        if let Some(observed) = observed {
            schema["description"] = observed.clone().into();
        }
        if let Some(example) = described.row.as_ref().and_then(|row| row.get(feature)) {
            schema["examples"] = json!([example]);
        }
        (feature.clone(), schema)
    };
    let properties: Map<String, Value> = described.features.iter().zip(&described.observed).map(property).collect();
    json!({
        "type": "object",
        "description": format!("A row of {}: its features, and other fields, which come back as `other`.", described.name),
        "required": described.features,
        "properties": properties,
        "additionalProperties": {},
    })
}

/// Schema of a raw record: the fields that the SQL reads, of any type, as they are on the topic.
fn record(fields: &[String], example: Option<&Value>) -> Value {
    let property = |field: &String| {
        let mut schema = json!({ "description": "As it is on the topic, before any cleaning." });
        if let Some(example) = example.and_then(|record| record.get(field)) {
            schema["examples"] = json!([example]);
        }
        (field.clone(), schema)
    };
    let properties: Map<String, Value> = fields.iter().map(property).collect();
    json!({
        "type": "object",
        "description": "A raw record: the fields that the SQL reads. Other fields are ignored, and a missing one is NULL.",
        "properties": properties,
        "additionalProperties": {},
    })
}

/// Schema of an answer: the general one, with the features by their names.
fn answer(general: &Value, described: &Described) -> Value {
    let mut schema = general.clone();
    schema.as_object_mut().and_then(|schema| schema.remove("examples"));
    let features = &mut schema["properties"]["features"];
    let numbers = described.features.iter().map(|feature| (feature.clone(), json!({ "type": "number" })));
    let mut properties: Map<String, Value> = numbers.collect();
    let mut required = described.features.clone();
    if general["properties"].get("other").is_some() && !properties.contains_key("prediction") {
        properties.insert("prediction".to_owned(), json!({ "type": "integer", "minimum": 0 }));
        required.push("prediction".to_owned());
    }
    if let Some(object) = features.as_object_mut() {
        object.remove("additionalProperties");
        object.insert("required".to_owned(), json!(required));
        object.insert("properties".to_owned(), properties.into());
    }
    schema
}

/// The name of a segmentation as part of a type's name, in ASCII, and different for each.
fn type_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let capital = |word: &str| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    };
    let word: String = words.map(capital).collect();
    let word = match word.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => word,
        _ => format!("Segmentation{word}"),
    };
    free_name(&word, taken)
}

/// This name, or this name with the first number that makes it different from all others.
fn free_name(name: &str, taken: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|number| format!("{name}{number}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !taken.contains(name));
    let free = free.unwrap_or_default();
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_types_are_ascii_and_differ() {
        let mut taken = BTreeSet::new();
        let mut name = |name: &str| type_name(name, &mut taken);
        assert_eq!(name("price_rating"), "PriceRating");
        assert_eq!(name("Price rating"), "PriceRating2");
        assert_eq!(name("2024"), "Segmentation2024");
        assert_eq!(name("größe"), "GrE");
        assert_eq!(name("価格"), "Segmentation");
        assert_eq!(name("評価"), "Segmentation2");
    }

    #[test]
    fn examples_in_csv_are_quoted() {
        let row = json!({ "price": "₹1,099", "rating": 4.5 });
        assert_eq!(shown("text/csv", &row), Some("price,rating\n\"₹1,099\",4.5\n".into()));
        assert_eq!(shown("application/vnd.apache.arrow.stream", &row), None);
    }
}
