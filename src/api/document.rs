//! Completes the OpenAPI document: security, limits, problems, examples, and names for generated clients.
//!
//! Input: the document of the handlers and `openapi/examples.json`. Output: the same document with security schemes and scopes,
//! the responses of the middleware, and an example of each request and response.

use serde_json::{Map, Value, json};

use super::declared;
use super::guard::is_probe;
use super::named_schemas::reference;
use super::{member_rows, named_schemas, posted};
use crate::slices::SLICES;

/// Recorded requests to a server with the shipped sample, and its responses. `tests/http/document.rs` repeats them.
const EXAMPLES: &str = include_str!("../../openapi/examples.json");

/// Responses of the middleware by status: name, meaning, and whether only requests with a body receive it.
const ANSWERS: [(&str, &str, &str, bool); 8] = [
    ("401", "Unauthorized", "The server asks for keys, and this request came without a valid one.", false),
    ("403", "Forbidden", "The key's scope does not allow it; or the Host or Origin header names somebody else.", false),
    ("408", "RequestTimeout", "The body did not arrive in time (`--body-timeout`).", true),
    ("415", "UnsupportedMediaType", "The body comes in a media type or an encoding that is not taken.", true),
    ("422", "UnknownParameter", "A query parameter is not known here, or stands twice; `field` names it.", false),
    (
        "429",
        "TooManyRequests",
        "Too many requests of this key or address, in this second (`--rate-limit`) or at a time (`--max-concurrent`).",
        false,
    ),
    ("431", "HeaderFieldsTooLarge", "Path, query and headers have too many bytes (`--max-header-bytes`).", false),
    (
        "503",
        "OutOfMemory",
        "The memory for requests and answers is in use (`--memory-limit`): try again in a moment, or send less at once.",
        false,
    ),
];

/// Limits of requests: name, flag, default as in `tercile serve --help`, and the consequence of exceeding it.
const LIMITS: [(&str, &str, &str, &str); 21] = [
    ("Bytes of path, query and headers", "--max-header-bytes", "16384", "431"),
    ("Bytes of a body of `…/predict`", "--max-body-bytes", "1GiB", "413"),
    ("Rows of it", "--max-body-rows", "10000000", "413"),
    ("Fields of a row", "--max-body-fields", "1000", "422; 413 of columns"),
    ("Levels of objects and arrays in a row", "--max-body-depth", "127", "422"),
    ("Bodies of more than 64 KiB, or not JSON to JSON, at a time", "--bulk-concurrency", "16", "503"),
    (
        "Bytes of a body of `…/cluster_products_by_…`, or with `fit=request`, if `--max-body-bytes` is not less",
        "",
        "64MiB",
        "413",
    ),
    ("Rows of it, if `--max-body-rows` is not less", "", "100000", "413"),
    ("Bytes of a row, or of a record batch of Arrow's", "", "64MiB", "413"),
    ("Bytes of a body of `/api/sql`", "", "256KiB", "413"),
    ("Keys of a request for members", "", "10000", "413"),
    ("Seconds of a statement", "--sql-timeout", "10", "422"),
    ("Memory of a statement", "--sql-memory", "256MB", "422"),
    ("Bytes of its rows", "--sql-bytes", "10MB", "422"),
    ("Statements at a time", "--sql-concurrency", "2", "503, `Retry-After`"),
    ("Requests a second of a key or address", "--rate-limit", "1000; none on loopback", "429, `Retry-After`"),
    ("Requests at a time of a key or address", "--max-concurrent", "256; none on loopback", "429, `Retry-After`"),
    ("Memory of all requests and answers that are not complete", "--memory-limit", "512MiB", "503, `Retry-After`"),
    ("Seconds for a body that hardly comes on", "--body-timeout", "5", "408"),
    ("Seconds for the head of a request", "--header-timeout", "5", "the connection is closed"),
    ("Seconds of silence between requests", "--idle-timeout", "8", "the connection is closed"),
];

/// Tags in the order of the page: what applications call comes first.
const TAGS: [&str; 6] = ["Predictions", "Members", "Segments", "Training", "Sql", "Health"];

/// Rules that flags and schemas cannot express. Swagger UI shows them once the reader opens them.
const RULES: &str = "\
<details><summary>Keys, requests, answers and limits</summary>

## Keys

Where the server asks for keys, send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`; `tercile keys create NAME --scope \
read` makes one. `read` is for predictions, segments and metrics, `members` for the members of entities as well, `train` for trainings \
as well, but not for members, `admin` for everything. The greeting, this document and `/health` need none. Without a valid key: 401; with one of a lesser scope: 403.

## Requests and answers

- Each answer carries `X-Request-Id`: what the request named itself, or a new name. The server's log has it too.
- An unknown query parameter is a 422, not passed over. A path answers 405 with `Allow` to methods that it doesn't have.
- Bodies may have a `Content-Encoding` of `gzip`; any other is a 415. Limits of bodies apply to the bytes that it expands to. Texts are \
compressed for clients that send `Accept-Encoding: gzip`.
- A slash at the end of a path makes no difference.
- `ETag` of a GET changes just when its answer does, of a prediction when the models that answer do; with `If-None-Match` what is known already is a 304 without a body.
- Browsers of other origins are let in by `--cors-origin`.

## Limits

| what | at most, by default | flag | beyond |
|---|---|---|---|
";

/// Properties that are always present and may be null; the framework declares them optional.
const NULLABLE: [(&str, &str); 13] = [
    ("Candidate", "silhouette"),
    ("Cut", "timestamp"),
    ("Drift", "since"),
    ("GuardViolation", "value"),
    ("Member", "previous"),
    ("MemberPage", "next"),
    ("Model", "moved"),
    ("Model", "silhouette"),
    ("Receipt", "cut"),
    ("Receipt", "predecessor"),
    ("RecordScore", "cluster"),
    ("RejectedCandidate", "version"),
    ("TinyClusters", "preferred"),
];

/// String properties that are timestamps.
const TIMES: [(&str, &str); 7] = [
    ("Drift", "began"),
    ("Drift", "since"),
    ("HeldBack", "since"),
    ("Model", "trained_at"),
    ("Status", "now"),
    ("Status", "trained_at"),
    ("Unreadable", "timestamp"),
];

/// Example values of parameters.
const IN_USE: [(&str, &str); 5] =
    [("version", "1"), ("job", "1"), ("name", "\"price_rating\""), ("slice", "3"), ("limit", "50")];

/// Parameters of operations on members, in the examples and in their test.
const MEMBERS_IN_USE: [(&str, &str); 3] = [("name", "\"latest\""), ("key", "\"B0YG9IDWN7\""), ("cluster", "1")];

/// Headers that a response always has where the document names them.
const ALWAYS: [&str; 2] = ["Location", "Retry-After"];

/// Numeric parameters with their minimum and maximum.
const BOUNDS: [(&str, u64, u64); 4] =
    [("version", 1, u64::MAX), ("as_of", 1, u64::MAX), ("job", 1, u64::MAX), ("slice", 1, SLICES as u64)];

/// Body limits of the three typed endpoints.
const BODY_LIMITS: &str = "A body may have 64 MiB and 100,000 rows. Fields that are no features are ignored.\n\n";

/// Completes the document. `required`: this server requires keys.
pub fn complete(spec: &str, required: bool) -> Value {
    let mut document = serde_json::from_str::<Value>(spec).unwrap_or_default();
    let examples: Value = serde_json::from_str(EXAMPLES).unwrap_or_default();
    let intro = document["info"]["description"].as_str().unwrap_or_default();
    document["info"]["description"] = format!("{intro}\n\n{RULES}{}\n</details>", limits()).into();
    if let Some(tags) = document["tags"].as_array_mut() {
        tags.sort_by_key(|tag| TAGS.iter().position(|name| tag["name"] == *name));
    }
    plain_references(&mut document);
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, operations) in paths {
            for operation in operations.as_object_mut().into_iter().flat_map(Map::values_mut) {
                describe(path, operation, required);
                show(operation, &examples);
            }
        }
    }
    // Version 3.1 introduced the summary, the licence identifier and the type null.
    document["openapi"] = "3.1.0".into();
    let components = &mut document["components"];
    not_negative(&mut components["schemas"]);
    for (schema, property) in NULLABLE {
        may_be_null(&mut components["schemas"][schema], property);
    }
    for (schema, property) in TIMES {
        components["schemas"][schema]["properties"][property]["format"] = "date-time".into();
    }
    components["schemas"]["Member"]["properties"]["features"]["additionalProperties"]["type"] =
        json!(["number", "null"]);
    let slice = &mut components["schemas"]["Model"]["properties"]["slice"];
    slice["maximum"] = f64::from(SLICES).into();
    slice["minimum"] = 1.0.into();
    components["schemas"]["Health"]["properties"]["status"]["enum"] = json!(["live", "ready"]);
    for (name, schema) in named_schemas::all() {
        components["schemas"][name] = schema;
    }
    for (name, schema) in components["schemas"].as_object_mut().into_iter().flatten() {
        // Examples belong to operations, where a test compares them with responses.
        schema.as_object_mut().and_then(|schema| schema.remove("example"));
        if let Some(example) = examples["schemas"].get(name) {
            schema["examples"] = json!([example]);
        }
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
            "required": true,
            "schema": { "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,128}$" },
            "example": "5f0c9a3e-0000002a",
        },
    });
    components["responses"] = ANSWERS.iter().map(|answer| (answer.1.to_owned(), response(answer, &examples))).collect();
    document
}

/// Inserts the recorded examples into the operations of the shipped segmentations.
pub fn show_shipped(document: &mut Value) {
    let examples: Value = serde_json::from_str(EXAMPLES).unwrap_or_default();
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    for (_, operation) in paths.filter_map(|(_, operations)| operations.as_object_mut()).flatten() {
        show(operation, &examples);
    }
}

/// The document as text.
pub fn text(document: &Value) -> String {
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    text
}

fn describe(path: &str, operation: &mut Value, required: bool) {
    let scope = declared::scope(operation);
    operation.as_object_mut().and_then(|operation| operation.remove("security"));
    let posts = operation.get("requestBody").is_some();
    if let Some(scope) = scope {
        let mut schemes = vec![json!({ "bearer": [] }), json!({ "key": [] })];
        if !required {
            // On loopback keys are optional.
            schemes.push(json!({}));
        }
        operation["security"] = schemes.into();
        let before = operation.get("description").and_then(Value::as_str).map_or(String::new(), |d| format!("{d}\n\n"));
        let words = format!("{before}Scope of the key, where one is asked for: `{}`.", scope.word());
        operation["description"] = words.into();
    }
    // The three typed endpoints read the whole body; the others stream it.
    let most = path.starts_with("/api/cluster_products_by_").then_some(posted::MAX_ROWS);
    if most.is_some() {
        let before = operation["description"].as_str().unwrap_or_default();
        operation["description"] = format!("{BODY_LIMITS}{before}").into();
        // They always respond with JSON, whatever the Accept header.
        operation["responses"].as_object_mut().and_then(|responses| responses.remove("406"));
    }
    if operation["responses"].get("304").is_some() {
        for status in ["200", "304"] {
            operation["responses"][status]["headers"]["ETag"]["required"] = true.into();
        }
        let known = json!({
            "name": "If-None-Match",
            "in": "header",
            "description": "The `ETag` of an earlier answer: if that is still right, the answer is a 304 without a body.",
            "schema": { "type": "string" },
        });
        match operation.get_mut("parameters").and_then(Value::as_array_mut) {
            Some(parameters) => parameters.push(known),
            None => operation["parameters"] = json!([known]),
        }
    }
    let operation_id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, least, most)) = BOUNDS.iter().find(|(name, ..)| parameter["name"] == *name) {
            parameter["schema"]["minimum"] = (*least).into();
            parameter["schema"]["maximum"] = (*most).into();
        }
        let of_members =
            MEMBERS_IN_USE.iter().filter(|_| operation_id.ends_with("Member") || operation_id.ends_with("Members"));
        if let Some((_, example)) = of_members.chain(&IN_USE).find(|(name, _)| parameter["name"] == *name) {
            parameter["example"] = serde_json::from_str(example).unwrap_or_default();
        }
    }
    let contents = operation.pointer_mut("/requestBody/content").and_then(Value::as_object_mut);
    for content in contents.into_iter().flat_map(Map::values_mut) {
        let schema = &mut content["schema"];
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => {
                schema["minItems"] = 1.into();
                if schema["items"]["additionalProperties"].is_object() {
                    schema["items"] = reference("Row");
                } else if schema["items"].get("$ref").is_none() {
                    schema["items"] = reference("MemberKey");
                    schema["maxItems"] = member_rows::MAX_KEYS.into();
                }
                if let Some(most) = most {
                    schema["maxItems"] = most.into();
                }
            }
            Some("string") => schema["minLength"] = 1.into(),
            _ => {}
        }
    }
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    if let Some(unavailable) = responses.get_mut("503").filter(|answer| answer["headers"]["Retry-After"].is_null()) {
        unavailable["headers"]["Retry-After"] = retry_after();
    }
    let streams = |found: &&mut Value| found["content"].get("text/event-stream").is_some();
    if let Some(stream) = responses.get_mut("200").filter(streams) {
        stream["content"]["text/event-stream"]["schema"] = reference("StatusEvent");
        let header = |description: &str, value: &str| json!({ "description": description, "required": true, "schema": { "type": "string", "const": value } });
        stream["headers"]["Cache-Control"] = header("Events are not kept.", "no-cache");
        stream["headers"]["X-Accel-Buffering"] = header("Proxies hand each event on at once.", "no");
    }
    // Media type keys carry no parameters.
    for content in responses.values_mut().filter_map(|response| response.get_mut("content")?.as_object_mut()) {
        if let Some(json) = content.remove("application/json; charset=utf-8") {
            content.insert("application/json".to_owned(), json);
        }
        for schema in content.values_mut().map(|content| &mut content["schema"]) {
            if schema["items"]["additionalProperties"].is_object() {
                schema["items"] = reference("ResultRow");
            }
            if schema["items"] == reference("Member") {
                schema["items"] = reference("MemberOrNull");
            }
        }
    }
    for (status, name, _, body) in ANSWERS {
        let may = (posts || !body)
            && (status != "401" || scope.is_some())
            && (status != "422" || path.starts_with("/api/"))
            && (!matches!(status, "429" | "503") || !is_probe(path));
        if may && !responses.contains_key(status) {
            responses.insert(status.to_owned(), json!({ "$ref": format!("#/components/responses/{name}") }));
        }
    }
    for response in responses.values_mut().filter(|response| response.get("$ref").is_none()) {
        let headers = response.get_mut("headers").and_then(Value::as_object_mut);
        for (_, header) in headers.into_iter().flatten() {
            header.as_object_mut().and_then(|header| header.remove("deprecated"));
        }
        for name in ALWAYS {
            if let Some(header) = response.get_mut("headers").and_then(|headers| headers.get_mut(name)) {
                header["required"] = true.into();
            }
        }
        response["headers"]["X-Request-Id"] = json!({ "$ref": "#/components/headers/RequestId" });
    }
    let mut sorted: Vec<_> = std::mem::take(responses).into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    responses.extend(sorted);
}

/// Inserts examples into an operation: of its request body, its response, and each problem.
fn show(operation: &mut Value, examples: &Value) {
    let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    let example = &examples["operations"][&id];
    let put = |contents: Option<&mut Value>, given: &Value| {
        let contents = contents.and_then(|of| of.get_mut("content")).and_then(Value::as_object_mut);
        for (kind, content) in contents.into_iter().flatten() {
            if let Some(value) = given.get(kind) {
                content["example"] = value.clone();
            }
        }
    };
    put(operation.get_mut("requestBody"), &example["request"]);
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with('2') {
            put(Some(&mut *response), &example["response"]);
        } else if let Some(problem) = problem(examples, status, Some(&id)) {
            put(Some(&mut *response), &json!({ "application/problem+json": problem }));
        }
    }
}

/// Example of a problem that an operation responds with; for `None`, one of the middleware.
fn problem<'e>(examples: &'e Value, status: &str, operation: Option<&str>) -> Option<&'e Value> {
    let of = |example: &&Value| {
        let of = example["of"].as_array();
        let named = match operation {
            Some(id) => of.is_some_and(|of| of.iter().any(|one| one == id)),
            None => of.is_none(),
        };
        named && example["problem"]["status"].as_u64() == status.parse().ok()
    };
    examples["problems"].as_array()?.iter().find(of).map(|example| &example["problem"])
}

/// The limits as rows of a Markdown table.
fn limits() -> String {
    let row = |(what, flag, default, beyond): &(&str, &str, &str, &str)| {
        let flag = if flag.is_empty() { "fixed".to_owned() } else { format!("`{flag}`") };
        format!("| {what} | {default} | {flag} | {beyond} |\n")
    };
    LIMITS.iter().map(row).collect()
}

/// The framework wraps a reference that has a description in `allOf`; since 3.1 the two may be siblings.
fn plain_references(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            let wrapped =
                object.get("allOf").and_then(Value::as_array).and_then(|all| all.first()?.get("$ref").cloned());
            if let Some(wrapped) = wrapped {
                object.remove("allOf");
                object.insert("$ref".to_owned(), wrapped);
            }
            object.values_mut().for_each(plain_references);
        }
        Value::Array(all) => all.iter_mut().for_each(plain_references),
        _ => {}
    }
}

/// Adds the minimum 0, which the framework omits for unsigned integers.
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
        None => {
            let words = one.as_object_mut().and_then(|one| one.remove("description"));
            *one = json!({ "description": words, "anyOf": [one.take(), { "type": "null" }] });
        }
    }
    match schema.get_mut("required").and_then(Value::as_array_mut) {
        Some(required) => required.push(property.into()),
        None => schema["required"] = json!([property]),
    }
}

fn retry_after() -> Value {
    json!({
        "description": "Seconds after which to try again.",
        "required": true,
        "schema": { "type": "integer", "minimum": 1 },
        "example": 1,
    })
}

fn response((status, _, description, _): &(&str, &str, &str, bool), examples: &Value) -> Value {
    let mut headers = Map::new();
    headers.insert("X-Request-Id".to_owned(), json!({ "$ref": "#/components/headers/RequestId" }));
    let more = match *status {
        "401" => {
            let challenge = json!({
                "description": "How to bring a key.",
                "required": true,
                "schema": { "type": "string" },
                "example": "Bearer realm=\"tercile\"",
            });
            Some(("WWW-Authenticate", challenge))
        }
        "429" | "503" => Some(("Retry-After", retry_after())),
        _ => None,
    };
    headers.extend(more.map(|(name, header)| (name.to_owned(), header)));
    let mut content = json!({ "schema": reference("Problem") });
    if let Some(example) = problem(examples, status, None) {
        content["example"] = example.clone();
    }
    json!({ "description": description, "headers": headers, "content": { "application/problem+json": content } })
}
