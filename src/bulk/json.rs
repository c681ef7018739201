//! One JSON object to its features, and its other fields verbatim.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{ADDED, Error};
use crate::record::{Text, object_of};

/// Reads the row of this number: its features go to `values`, and what it holds besides the columns that are added is
/// given back as an object.
pub fn row(json: &[u8], features: &[String], row: u64, values: &mut Vec<f64>) -> Result<String, Error> {
    let at = |what: String| Error::Row { row, what };
    let text = std::str::from_utf8(json).map_err(|_| at("expected UTF-8, found other bytes".to_owned()))?;
    if !text.starts_with('{') {
        return Err(at(format!("expected a JSON object, found {}", shortened(text))));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let fields: Vec<(Cow<'_, str>, &RawValue)> = json
        .deserialize_map(Fields)
        .and_then(|fields| json.end().map(|()| fields))
        .map_err(|e| at(format!("no JSON: {e}")))?;
    for name in features {
        let field = |what: &str| Error::Field { row, field: name.clone(), what: what.to_owned() };
        let mut found = fields.iter().filter(|(key, _)| key == name);
        let (_, raw) = found.next().ok_or_else(|| field("is missing"))?;
        if found.next().is_some() {
            return Err(field("stands twice"));
        }
        values.push(number(raw.get()).map_err(field)?);
    }
    Ok(object_of(fields.into_iter().filter(|(key, _)| !ADDED.contains(&key.as_ref())).collect()))
}

fn shortened(text: &str) -> String {
    let start: String = text.chars().take(20).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            fields.push((key.0, map.next_value()?));
        }
        Ok(fields)
    }
}

/// A JSON value as a finite number.
pub fn number(json: &str) -> Result<f64, &'static str> {
    match json.as_bytes().first() {
        Some(b'-' | b'0'..=b'9') => match json.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(value),
            _ => Err("is too large for a number"),
        },
        Some(b'n') => Err("must be a number, is null"),
        Some(b'"') => Err("must be a number, is a string"),
        Some(b't' | b'f') => Err("must be a number, is true or false"),
        Some(b'[') => Err("must be a number, is an array"),
        _ => Err("must be a number, is an object"),
    }
}
