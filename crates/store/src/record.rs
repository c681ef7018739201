//! Decodes a message's bytes to fields as text.
//!
//! Input: a Kafka payload and the declared fields. Output: one text (or null) per declared field, exactly as it came, and the
//! rest of the object as JSON text. Nothing panics and nothing is dropped: a payload that is not a JSON object is returned as
//! [`Unreadable`], which the store keeps beside the bytes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json_text::{Text, object_of, text_of, too_deep};

/// Maximum nesting depth of objects and arrays, including the record itself.
pub const MAX_DEPTH: usize = 127;

/// The declared fields of a record, in the order of `00_records.sql`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields {
    names: Vec<String>,
}

impl Fields {
    /// Field names must be distinct and must not begin with `_`, the prefix of the store's own columns; the SQL parser checks
    /// both.
    pub fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    /// The names in declared order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The fields of `other` that are not in `self`.
    pub fn missing(&self, other: &Self) -> Vec<String> {
        other.names.iter().filter(|name| !self.names.contains(name)).cloned().collect()
    }

    /// The index of a key. Producers write keys in a steady order, so the search begins after the last hit; even if some are
    /// left out this is faster than a hash.
    fn position(&self, key: &str, hint: usize) -> Option<usize> {
        let (before, after) = self.names.split_at(hint);
        let found = after.iter().position(|name| name == key).map(|i| hint + i);
        found.or_else(|| before.iter().position(|name| name == key))
    }
}

/// A decoded record.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded<'a> {
    /// One entry per declared field; `None` if the field is missing or null.
    pub values: Vec<Option<Cow<'a, str>>>,
    /// All other fields of the object, as JSON text; `{}` if there are none.
    pub extra: Cow<'a, str>,
}

/// Why a message could not be decoded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The message has no value.
    #[error("tombstone: the message has no value")]
    Tombstone,
    /// The value has no bytes.
    #[error("empty: the message has a value of no bytes")]
    Empty,
    /// Invalid UTF-8 at this byte.
    #[error("bad UTF-8 at byte {0}")]
    Utf8(usize),
    /// JSON of this type.
    #[error("not a JSON object but {0}")]
    NotAnObject(&'static str),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH}")]
    TooDeep,
    /// Not JSON, with the parser's message.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// The reason of a decoder of another encoding.
    #[error("{0}")]
    Encoding(String),
}

/// Prefixes of the reason stored for a message without a value; earlier builds used the second one.
pub const TOMBSTONE_REASONS: [&str; 2] = ["tombstone", "a tombstone"];

/// Whether a reason, as stored in `_error`, is that of a message without a value. Such a message deletes its key and is not counted
/// as unreadable.
pub fn is_tombstone(reason: &str) -> bool {
    TOMBSTONE_REASONS.iter().any(|tombstone| reason.starts_with(tombstone))
}

/// Numbers of records without fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WithoutFields {
    /// Messages that could not be parsed.
    pub unreadable: u64,
    /// Messages without a value ([`is_tombstone`]).
    pub tombstones: u64,
}

impl std::iter::Sum for WithoutFields {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, one| Self {
            unreadable: sum.unreadable + one.unreadable,
            tombstones: sum.tombstones + one.tombstones,
        })
    }
}

/// An encoding of record values. The ingest decodes each record once; what cannot be decoded is stored with the reason.
pub trait Decoder: fmt::Debug + Send + Sync {
    /// The declared fields of a record as text, and all other fields as a JSON object.
    ///
    /// # Errors
    /// The reason why the value has no fields. The record is stored all the same, with its bytes.
    fn decode<'a>(&self, payload: Option<&'a [u8]>, fields: &Fields) -> Result<Decoded<'a>, Unreadable>;
}

/// JSON objects in UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Json;

impl Decoder for Json {
    fn decode<'a>(&self, payload: Option<&'a [u8]>, fields: &Fields) -> Result<Decoded<'a>, Unreadable> {
        decode(payload, fields)
    }
}

/// Decodes one payload.
///
/// # Errors
/// [`Unreadable`] if the payload is not a JSON object.
pub fn decode<'a>(payload: Option<&'a [u8]>, fields: &Fields) -> Result<Decoded<'a>, Unreadable> {
    decode_with(payload, fields, true)
}

/// Decodes only these fields of a payload. All other fields are checked and dropped: `extra` is `{}`.
///
/// # Errors
/// As for [`decode`].
pub fn decode_only<'a>(payload: Option<&'a [u8]>, fields: &Fields) -> Result<Decoded<'a>, Unreadable> {
    decode_with(payload, fields, false)
}

fn decode_with<'a>(payload: Option<&'a [u8]>, fields: &Fields, others: bool) -> Result<Decoded<'a>, Unreadable> {
    let bytes = payload.ok_or(Unreadable::Tombstone)?;
    if bytes.is_empty() {
        return Err(Unreadable::Empty);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| Unreadable::Utf8(e.valid_up_to()))?;
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'{') => {}
        Some(b'[') => return Err(valid_but(text, "an array")),
        Some(b'"') => return Err(valid_but(text, "a string")),
        Some(b't' | b'f') => return Err(valid_but(text, "true or false")),
        Some(b'n') => return Err(valid_but(text, "null")),
        Some(b'-' | b'0'..=b'9') => return Err(valid_but(text, "a number")),
        _ => return Err(valid_but(text, "something else")),
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let decoded = json.deserialize_map(Object { fields, others }).map_err(not_json)?;
    json.end().map_err(not_json)?;
    decoded
}

fn not_json(error: serde_json::Error) -> Unreadable {
    Unreadable::NotJson(error.to_string())
}

fn valid_but(text: &str, what: &'static str) -> Unreadable {
    match serde_json::from_str::<&RawValue>(text) {
        Ok(raw) if too_deep(raw.get(), 0, MAX_DEPTH) => Unreadable::TooDeep,
        Ok(_) => Unreadable::NotAnObject(what),
        Err(error) => not_json(error),
    }
}

struct Object<'f> {
    fields: &'f Fields,
    /// Whether other fields are kept.
    others: bool,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Result<Decoded<'de>, Unreadable>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values: Vec<Option<Cow<'de, str>>> = vec![None; self.fields.names.len()];
        let mut others: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        let mut hint = 0;
        let mut deep = false;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            let raw: &'de RawValue = map.next_value()?;
            let json = raw.get();
            let nested = matches!(json.as_bytes().first(), Some(b'{' | b'['));
            deep |= nested && too_deep(json, 1, MAX_DEPTH);
            match self.fields.position(&key.0, hint) {
                Some(i) => {
                    hint = i + 1;
                    // Of duplicate keys the last counts, even if it is null.
                    values[i] = text_of(json).map_err(serde::de::Error::custom)?;
                }
                None if self.others => others.push((key.0, raw)),
                None => {}
            }
        }
        if deep {
            return Ok(Err(Unreadable::TooDeep));
        }
        let extra = if others.is_empty() { Cow::Borrowed("{}") } else { Cow::Owned(object_of(others)) };
        Ok(Ok(Decoded { values, extra }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json_text::push_json_string;

    fn fields() -> Fields {
        Fields::new(vec!["a".into(), "b".into()])
    }

    fn read(json: &str) -> Result<(Vec<Option<String>>, String), Unreadable> {
        decode(Some(json.as_bytes()), &fields())
            .map(|d| (d.values.into_iter().map(|v| v.map(Cow::into_owned)).collect(), d.extra.into_owned()))
    }

    #[test]
    fn values_stay_as_they_came() {
        let (values, extra) = read(r#" {"b": 1.50e+2, "a":"₹1,099", "x":[1, {"y":null}], "z":"\u0041"} "#).unwrap();
        assert_eq!(values, [Some("₹1,099".into()), Some("1.50e+2".into())]);
        assert_eq!(extra, r#"{"x":[1, {"y":null}],"z":"\u0041"}"#);
    }

    #[test]
    fn fields_that_are_not_wanted_are_checked_and_dropped() {
        let only = |json: &'static str| decode_only(Some(json.as_bytes()), &fields());
        let found = only(r#"{"x":{"y":[1]},"b":1.50,"b":2,"z":"\u0041"}"#).unwrap();
        assert_eq!((found.values, found.extra), (vec![None, Some("2".into())], "{}".into()));
        for broken in [r#"{"x":}"#, r#"{"x":tru}"#, r#"{"x":1"#] {
            assert_eq!(only(broken).map(|_| ()), decode(Some(broken.as_bytes()), &fields()).map(|_| ()));
        }
        let deep: &'static str = format!("{{\"x\":{}{}}}", "[".repeat(127), "]".repeat(127)).leak();
        assert_eq!(only(deep), Err(Unreadable::TooDeep));
    }

    #[test]
    fn escapes_are_decoded_except_in_nested_values() {
        let (values, extra) = read(r#"{"a":"x\n\"\ud83d\ude00","b":{"k": [true]}}"#).unwrap();
        assert_eq!(values, [Some("x\n\"😀".into()), Some(r#"{"k": [true]}"#.into())]);
        assert_eq!(extra, "{}");
    }

    #[test]
    fn of_duplicate_keys_the_last_counts() {
        let (values, extra) = read(r#"{"a":1,"x":1,"a":null,"y":2,"x":3,"b":false}"#).unwrap();
        assert_eq!(values, [None, Some("false".into())]);
        assert_eq!(extra, r#"{"y":2,"x":3}"#);
    }

    #[test]
    fn unreadable_payloads_have_a_reason() {
        assert_eq!(decode(None, &fields()), Err(Unreadable::Tombstone));
        assert_eq!(decode(Some(b""), &fields()), Err(Unreadable::Empty));
        assert_eq!(decode(Some(b"{\"a\":\"\xff\"}"), &fields()), Err(Unreadable::Utf8(6)));
        assert_eq!(read("[1]"), Err(Unreadable::NotAnObject("an array")));
        assert_eq!(read("7"), Err(Unreadable::NotAnObject("a number")));
        for broken in ["{", "{\"a\":1}x", "{\"a\":tru}", "nul", "   ", "{\"a\":\"\\ud800\"}", "\u{feff}{}", "{'a':1}"] {
            assert!(matches!(read(broken), Err(Unreadable::NotJson(_))), "{broken}: {:?}", read(broken));
        }
    }

    #[test]
    fn nesting_is_bounded_at_127() {
        let nest = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(read(&nest(126)).is_ok());
        assert_eq!(read(&nest(127)), Err(Unreadable::TooDeep));
        assert_eq!(read(&nest(200)), Err(Unreadable::TooDeep));
        assert_eq!(read(&nest(1_000_000)), Err(Unreadable::TooDeep));
        let extra = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert_eq!(read(&extra(127)), Err(Unreadable::TooDeep));
        assert!(read(r#"{"a":"[[[[","b":"\"]]"}"#).is_ok());
    }

    #[test]
    fn json_strings_survive_a_round_trip() {
        let text = "a\"b\\c\n\r\t\u{1}\u{7f}é😀";
        let mut json = String::new();
        push_json_string(&mut json, text);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
