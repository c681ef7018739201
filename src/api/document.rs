//! What the guard does with requests, as the OpenAPI document has to say it: keys, and answers that any operation may give.
//!
//! Input: the document of the handlers. Output: the same with security schemes, what each operation needs, and the answers
//! that come before any handler.

use std::collections::HashMap;

use poem::http::Method;
use serde_json::{Map, Value, json};

use super::guard::needed;

/// Answers that the guard gives, by status: a name, what it means, and whether only requests with a body get it.
const ANSWERS: [(&str, &str, &str, bool); 6] = [
    ("401", "Unauthorized", "The server asks for keys, and this request came without a valid one.", false),
    ("403", "Forbidden", "The key's scope does not allow it; or the Host or Origin header names somebody else.", false),
    ("408", "RequestTimeout", "The body did not arrive in time.", true),
    ("415", "UnsupportedMediaType", "The body comes in a media type or an encoding that is not taken.", true),
    ("429", "TooManyRequests", "Too many requests of this key or address.", false),
    ("431", "HeaderFieldsTooLarge", "Path, query and headers have too many bytes.", false),
];

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
    let components = &mut document["components"];
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

/// The document's paths by what the router calls them: it numbers the parameters.
pub fn names(document: &str) -> HashMap<String, String> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flat_map(Map::keys);
    let numbered = |path: &String| {
        let mut number = 0..;
        let part = |part: &str| match part.strip_prefix('{').and_then(|_| number.next()) {
            Some(number) => format!(":param{number}"),
            None => part.to_owned(),
        };
        path.split('/').map(part).collect::<Vec<_>>().join("/")
    };
    paths.map(|path| (numbered(path), path.clone())).collect()
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
    let Some(responses) = operation["responses"].as_object_mut() else { return };
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
