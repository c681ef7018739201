//! JSON as text: values as they came, objects put together from parts, strings with escapes, and nesting.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserializer;
use serde::de::Visitor;
use serde_json::value::RawValue;

/// A value as text: strings without their quotes, other values verbatim, null as `None`.
pub fn text_of(json: &str) -> Result<Option<Cow<'_, str>>, serde_json::Error> {
    match json.as_bytes() {
        b"null" => Ok(None),
        [b'"', inner @ .., b'"'] => {
            if inner.contains(&b'\\') {
                serde_json::from_str::<String>(json).map(|s| Some(Cow::Owned(s)))
            } else {
                Ok(Some(Cow::Borrowed(&json[1..json.len() - 1])))
            }
        }
        _ => Ok(Some(Cow::Borrowed(json))),
    }
}

/// Joins fields to one object; of duplicate names the last counts. Keeps their order.
pub fn object_of(others: Vec<(Cow<'_, str>, &RawValue)>) -> String {
    if others.is_empty() {
        return "{}".to_owned();
    }
    let mut seen = HashSet::with_capacity(others.len());
    let mut last: Vec<_> = others.iter().rev().filter(|(key, _)| seen.insert(key.as_ref())).collect();
    last.reverse();
    let mut out = String::from("{");
    for (i, (key, raw)) in last.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        push_json_string(&mut out, key);
        out.push(':');
        out.push_str(raw.get());
    }
    out.push('}');
    out
}

/// Appends `text` as a JSON string, quotes included.
pub fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (i, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.push_str(&text[plain..i]);
        plain = i + 1;
        match byte {
            b'"' => out.push_str("\\\""),
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            _ => {
                out.push_str("\\u00");
                out.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
                out.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
            }
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// Whether valid JSON nests deeper than `limit`, with `around` enclosing levels. serde_json skips values without recursion and
/// so without a limit of its own.
pub fn too_deep(json: &str, around: usize, limit: usize) -> bool {
    let mut depth = around;
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    false
}

/// A string that borrows from the input if it has no escapes.
pub struct Text<'a>(pub Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AsText;
        impl<'de> Visitor<'de> for AsText {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(AsText)
    }
}
