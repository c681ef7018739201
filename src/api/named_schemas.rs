//! Schemas of the OpenAPI document that the framework cannot name.

use serde_json::{Value, json};

/// The schemas by name.
pub fn all() -> [(&'static str, Value); 5] {
    let open = |description: &str| json!({ "type": "object", "description": description, "additionalProperties": {} });
    let row =
        "A row: a finite number for each feature of the segmentation, and other fields, which come back as `other`.";
    let event = json!({
        "type": "object",
        "description": "One event of the stream.",
        "required": ["event", "data"],
        "properties": {
            "event": { "type": "string", "const": "status" },
            "data": { "type": "string", "contentMediaType": "application/json", "contentSchema": reference("Status") },
        },
    });
    let key = json!({
        "description": "The key of an entity: a value, or an object with a value for each column.",
        "type": ["string", "integer", "boolean", "object"],
        "additionalProperties": { "type": ["string", "integer", "boolean"] },
    });
    let found = json!({
        "description": "A member, or null for an unknown key.",
        "anyOf": [reference("Member"), { "type": "null" }],
    });
    [
        ("MemberKey", key),
        ("MemberOrNull", found),
        ("ResultRow", open("A row of a result: its columns by their names.")),
        ("Row", open(row)),
        ("StatusEvent", event),
    ]
}

/// A reference to a schema.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}
