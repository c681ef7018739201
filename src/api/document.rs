//! What the guard does with requests, as the OpenAPI document has to say it: keys, and answers that any operation may give.
//!
//! Input: the document of the handlers. Output: the same with security schemes, what each operation needs, and the answers
//! that come before any handler.

use std::collections::HashMap;

use poem::http::{HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::guard::needed;
use super::posted;
use crate::model::SLICES;

/// Answers that the guard gives, by status: a name, what it means, and whether only requests with a body get it.
const ANSWERS: [(&str, &str, &str, bool); 6] = [
    ("401", "Unauthorized", "The server asks for keys, and this request came without a valid one.", false),
    ("403", "Forbidden", "The key's scope does not allow it; or the Host or Origin header names somebody else.", false),
    ("408", "RequestTimeout", "The body did not arrive in time.", true),
    ("415", "UnsupportedMediaType", "The body comes in a media type or an encoding that is not taken.", true),
    ("429", "TooManyRequests", "Too many requests of this key or address.", false),
    ("431", "HeaderFieldsTooLarge", "Path, query and headers have too many bytes.", false),
];

/// Properties that are always there and may be null: the framework takes them for some that may be missing.
const NULLABLE: [(&str, &str); 6] = [
    ("Candidate", "silhouette"),
    ("Cut", "timestamp"),
    ("Model", "moved"),
    ("Model", "silhouette"),
    ("Receipt", "cut"),
    ("Receipt", "predecessor"),
];

/// Parameters that are numbers, and from where to where they go.
const BOUNDS: [(&str, u64, u64); 3] = [("as_of", 1, u64::MAX), ("job", 1, u64::MAX), ("slice", 1, SLICES as u64)];

/// Completes the document. `required`: this server asks for keys.
pub fn complete(spec: &str, required: bool) -> String {
    let Ok(mut document) = serde_json::from_str::<Value>(spec) else { return spec.to_owned() };
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, operations) in paths {
            for (method, operation) in operations.as_object_mut().into_iter().flatten() {
                describe(path, method, operation, required);
            }
        }
    }
    // Its summary and its licence's identifier came with this version, and so did the type null.
    document["openapi"] = "3.1.0".into();
    let components = &mut document["components"];
    not_negative(&mut components["schemas"]);
    for (schema, property) in NULLABLE {
        may_be_null(&mut components["schemas"][schema], property);
    }
    components["securitySchemes"] = json!({
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "A key from `tercile keys create`, in the header `Authorization: Bearer KEY`.",
        },
        "key": {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Key",
            "description": "The same key in a header of its own.",
        },
    });
    components["headers"] = json!({
        "RequestId": {
            "description": "Names this request in the server's log: the X-Request-Id it came with, or a new one.",
            "schema": { "type": "string" },
        },
    });
    components["responses"] = ANSWERS.iter().map(|answer| (answer.1.to_owned(), response(answer))).collect();
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// What the document says of a path.
pub struct Known {
    /// As the document writes it.
    pub path: String,
    /// Its methods, for the header `Allow`.
    pub allow: HeaderValue,
}

/// The document's paths by what the router calls them: it numbers the parameters.
pub fn known(document: &str) -> HashMap<String, Known> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flatten();
    let numbered = |path: &String| {
        let mut number = 0..;
        let part = |part: &str| match part.strip_prefix('{').and_then(|_| number.next()) {
            Some(number) => format!(":param{number}"),
            None => part.to_owned(),
        };
        path.split('/').map(part).collect::<Vec<_>>().join("/")
    };
    let allow = |operations: &Value| {
        let methods = operations.as_object().into_iter().flat_map(Map::keys);
        // Whatever can be got can be asked for its head alone.
        let methods =
            methods.flat_map(|method| if method == "get" { vec!["GET", "HEAD"] } else { vec![method.as_str()] });
        let methods = methods.collect::<Vec<_>>().join(", ").to_ascii_uppercase();
        HeaderValue::try_from(methods).unwrap_or(HeaderValue::from_static("GET, HEAD"))
    };
    let known = |path: &String, operations| Known { path: path.clone(), allow: allow(operations) };
    paths.map(|(path, operations)| (numbered(path), known(path, operations))).collect()
}

fn describe(path: &str, method: &str, operation: &mut Value, required: bool) {
    let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap_or_default();
    let scope = needed(&method, path);
    let posts = operation.get("requestBody").is_some();
    if let Some(scope) = scope {
        let mut schemes = vec![json!({ "bearer": [] }), json!({ "key": [] })];
        if !required {
            // On loopback nobody needs a key, unless the server asks for one.
            schemes.push(json!({}));
        }
        operation["security"] = schemes.into();
        let before = operation.get("description").and_then(Value::as_str).map_or(String::new(), |d| format!("{d}\n\n"));
        let words = format!("{before}Scope of the key, where one is asked for: `{}`.", scope.word());
        operation["description"] = words.into();
    }
    // The three typed endpoints read their rows whole, the others as they come.
    let most = path.starts_with("/api/cluster_products_by_").then_some(posted::MAX_ROWS);
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, least, most)) = BOUNDS.iter().find(|(name, ..)| parameter["name"] == *name) {
            parameter["schema"]["minimum"] = (*least).into();
            parameter["schema"]["maximum"] = (*most).into();
        }
    }
    let contents = operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
    for content in contents.into_iter().flat_map(Map::values_mut) {
        let schema = &mut content["schema"];
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => {
                schema["minItems"] = 1.into();
                if let Some(most) = most {
                    schema["maxItems"] = most.into();
                }
            }
            Some("string") => schema["minLength"] = 1.into(),
            _ => {}
        }
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    if let Some(stream) = responses.get_mut("200").and_then(|found| found["content"].get_mut("text/event-stream")) {
        stream["schema"] = event(&stream["schema"]["items"]);
    }
    for (status, name, _, body) in ANSWERS {
        let may = (posts || !body)
            && (status != "401" || scope.is_some())
            && (status != "429" || !path.starts_with("/health"));
        if may && !responses.contains_key(status) {
            responses.insert(status.to_owned(), json!({ "$ref": format!("#/components/responses/{name}") }));
        }
    }
    for response in responses.values_mut().filter(|response| response.get("$ref").is_none()) {
        response["headers"]["X-Request-Id"] = json!({ "$ref": "#/components/headers/RequestId" });
    }
    let mut sorted: Vec<_> = std::mem::take(responses).into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    responses.extend(sorted);
}

/// One of the server's events: a stream of them is no array.
fn event(data: &Value) -> Value {
    json!({
        "type": "object",
        "description": "One event of the stream.",
        "required": ["event", "data"],
        "properties": {
            "event": { "type": "string", "enum": ["status"] },
            "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": data },
        },
    })
}

/// The framework says of unsigned numbers only what they are called.
fn not_negative(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if object.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                object.entry("minimum").or_insert(0.into());
            }
            object.values_mut().for_each(not_negative);
        }
        Value::Array(all) => all.iter_mut().for_each(not_negative),
        _ => {}
    }
}

fn may_be_null(schema: &mut Value, property: &str) {
    let one = &mut schema["properties"][property];
    match one.get("type").cloned() {
        Some(kind) => one["type"] = json!([kind, "null"]),
        None => *one = json!({ "anyOf": [one.take(), { "type": "null" }] }),
    }
    if let Some(required) = schema["required"].as_array_mut() {
        required.push(property.into());
    }
}

fn response((status, _, description, _): &(&str, &str, &str, bool)) -> Value {
    let mut headers = Map::new();
    headers.insert("X-Request-Id".to_owned(), json!({ "$ref": "#/components/headers/RequestId" }));
    let more = match *status {
        "401" => {
            Some(("WWW-Authenticate", json!({ "description": "How to bring a key.", "schema": { "type": "string" } })))
        }
        "429" => Some((
            "Retry-After",
            json!({ "description": "Seconds after which to try again.", "schema": { "type": "integer" } }),
        )),
        _ => None,
    };
    headers.extend(more.map(|(name, header)| (name.to_owned(), header)));
    json!({
        "description": description,
        "headers": headers,
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    })
}
