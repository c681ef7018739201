//! The enriched record: the bytes of a record with one more field.
//!
//! Input: the value of a message, which is a JSON object, and the segments of the record. Output: the same bytes, with the field
//! `segments` (and `segments_reason`, if a segment is missing) before the closing brace. Nothing is parsed and written again, so
//! numbers, spaces, the order of fields and duplicate fields stay as they are.

use tercile_store::json_text::push_json_string;

use crate::files;

/// The fields that are added to a record.
#[derive(Debug, Clone)]
pub struct Field {
    name: String,
    reason: String,
    /// The name as JSON, with its colon.
    name_json: String,
    reason_json: String,
}

impl Field {
    /// The name of the field of segments; that of the reasons has `_reason` appended.
    pub fn new(name: &str) -> Self {
        let json = |name: &str| {
            let mut json = String::new();
            push_json_string(&mut json, name);
            json + ":"
        };
        let reason = format!("{name}_reason");
        Self { name_json: json(name), reason_json: json(&reason), reason, name: name.to_owned() }
    }

    /// The first of the added fields that a record already has. `value` is a JSON object.
    pub fn taken<'f>(&'f self, value: &str) -> Option<&'f str> {
        // A name without escapes occurs as it is. The name of the reasons begins with the other.
        if !value.contains('\\') && !value.contains(&self.name) {
            return None;
        }
        let fields = files::fields(value).unwrap_or_default();
        let has = |name: &str| fields.iter().any(|(field, _)| field == name);
        [&self.name, &self.reason].into_iter().map(String::as_str).find(|name| has(name))
    }

    /// Writes the value with its fields. `value` is a JSON object without these fields; `segments` and `reasons` write theirs as
    /// JSON.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        value: &[u8],
        segments: impl FnOnce(&mut Vec<u8>),
        reasons: Option<impl FnOnce(&mut Vec<u8>)>,
    ) {
        let end = value.iter().rposition(|&byte| byte == b'}').unwrap_or(value.len());
        let (head, tail) = value.split_at(end);
        let is_empty = head.trim_ascii_end().ends_with(b"{");
        out.extend_from_slice(head);
        if !is_empty {
            out.push(b',');
        }
        out.extend_from_slice(self.name_json.as_bytes());
        segments(out);
        if let Some(reasons) = reasons {
            out.push(b',');
            out.extend_from_slice(self.reason_json.as_bytes());
            reasons(out);
        }
        out.extend_from_slice(tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(field: &Field, value: &str, reasons: bool) -> String {
        let mut out = Vec::new();
        let segments = |out: &mut Vec<u8>| out.extend_from_slice(b"{\"s\":null}");
        let reason = |out: &mut Vec<u8>| out.extend_from_slice(b"{\"s\":\"r\"}");
        field.write(&mut out, value.as_bytes(), segments, reasons.then_some(reason));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_bytes_of_a_record_stay_as_they_are() {
        let field = Field::new("segments");
        let cases = [
            (r#"{"a":1}"#, r#"{"a":1,"segments":{"s":null}}"#),
            ("{}", r#"{"segments":{"s":null}}"#),
            ("{ \n}", "{ \n\"segments\":{\"s\":null}}"),
            // Numbers that a parser would round, duplicates, escapes, spaces, and spaces at the end.
            (
                " {\"n\" : 1.50e+2, \"n\":12345678901234567890123, \"u\":\"\\u0041₹\"} \r\n",
                " {\"n\" : 1.50e+2, \"n\":12345678901234567890123, \"u\":\"\\u0041₹\",\"segments\":{\"s\":null}} \r\n",
            ),
            (r#"{"a":{}}"#, r#"{"a":{},"segments":{"s":null}}"#),
            (r#"{"a":"}"}"#, r#"{"a":"}","segments":{"s":null}}"#),
            (r#"{"a":"{"}"#, r#"{"a":"{","segments":{"s":null}}"#),
        ];
        for (value, expected) in cases {
            assert_eq!(written(&field, value, false), expected);
        }
        assert_eq!(written(&field, r#"{"a":1}"#, true), r#"{"a":1,"segments":{"s":null},"segments_reason":{"s":"r"}}"#);
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(126), "]".repeat(126));
        let json = written(&field, &deep, false);
        assert!(json.starts_with(&deep[..deep.len() - 1]) && json.ends_with("],\"segments\":{\"s\":null}}"), "{json}");
    }

    #[test]
    fn a_field_that_is_there_is_found_in_any_spelling() {
        let field = Field::new("segments");
        for value in [
            r#"{"segments":1}"#,
            r#"{"a":1, "segments" :null}"#,
            "{\"\\u0073egments\":1}",
            r#"{"segments":1,"segments":2}"#,
        ] {
            assert_eq!(field.taken(value), Some("segments"), "{value}");
        }
        assert_eq!(field.taken(r#"{"segments_reason":"x"}"#), Some("segments_reason"));
        for value in [
            r#"{"a":"segments"}"#,
            r#"{"a":{"segments":1}}"#,
            r#"{"Segments":1}"#,
            "{\"a\":\"\\n\"}",
            "{}",
            r#"{"segments ":1}"#,
        ] {
            assert_eq!(field.taken(value), None, "{value}");
        }
    }

    #[test]
    fn any_name_is_a_field() {
        let field = Field::new("a \"b\"\n");
        let json = written(&field, r#"{"x":1}"#, true);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["a \"b\"\n"], serde_json::json!({"s": null}));
        assert_eq!(parsed["a \"b\"\n_reason"], serde_json::json!({"s": "r"}));
        assert_eq!(field.taken(&json), Some("a \"b\"\n"));
    }
}
