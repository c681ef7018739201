//! Parser of request rows: a JSON array of objects, read in one pass, with errors by row and field.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use poem::{Request, RequestBody};
use poem_openapi::payload::{ParsePayload, Payload};
use poem_openapi::registry::{MetaSchemaRef, Registry};
use poem_openapi::types::Type;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use tercile_store::json_text::{Text, object_of, too_deep};

use super::State;
use super::buffered_body::{BufferedBody, claimed};
use super::problem::Problem;
use crate::bulk::{Limits, number};

/// Maximum rows of a request.
pub const MAX_ROWS: usize = 100_000;
/// Maximum bytes of a body.
pub const MAX_BODY: usize = 64 * 1024 * 1024;

/// Request body, documented as an array of `T`. [`read`] parses it once the features are known.
pub struct Posted<T> {
    pub body: BufferedBody,
    row: PhantomData<fn() -> T>,
}

impl<T: Type> Payload for Posted<T> {
    const CONTENT_TYPE: &'static str = "application/json";

    fn check_content_type(content_type: &str) -> bool {
        media_type(content_type).eq_ignore_ascii_case("application/json")
    }

    fn schema_ref() -> MetaSchemaRef {
        Vec::<T>::schema_ref()
    }

    fn register(registry: &mut Registry) {
        Vec::<T>::register(registry);
    }
}

impl<T: Type> ParsePayload for Posted<T> {
    const IS_REQUIRED: bool = true;

    async fn from_request(request: &Request, body: &mut RequestBody) -> poem::Result<Self> {
        let state: &Arc<State> = request.data().ok_or_else(Problem::no_state)?;
        let most = state.bodies.bytes.min(MAX_BODY as u64) as usize;
        let body = BufferedBody::whole(&state.budget, claimed(request), body.take()?, most).await?;
        Ok(Self { body, row: PhantomData })
    }
}

poem_openapi::impl_apirequest_for_payload!(Posted<T>, T: Type);

/// Content-Type without its parameters.
pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Features and other fields of the rows.
#[derive(Debug, Default, PartialEq)]
pub struct Rows {
    /// Values row by row, each with its features in order.
    pub values: Vec<f64>,
    /// The other fields of each row as a JSON object; empty unless requested.
    pub other: Vec<String>,
}

/// Parses a body. With `keep_other`, the fields that are not features are kept, and there may be no rows.
///
/// # Errors
/// A problem: 400 if the body is not JSON, 413 or 422 if a row does not fit.
pub fn read(body: &[u8], features: &[String], keep_other: bool, limits: Limits) -> Result<Rows, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|e| Problem::bad_request(format!("the body is no UTF-8 from byte {} on", e.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(Problem::bad_request("the body is empty"));
    }
    let syntax = |e: serde_json::Error| Problem::bad_request(format!("the body is no JSON: {e}"));
    if !text.trim_ascii_start().starts_with('[') {
        serde_json::from_str::<IgnoredAny>(text).map_err(syntax)?;
        return Err(Problem::unprocessable("expected an array of objects, one for each row"));
    }
    let mut reading = Reading { features, keep_other, rows: Rows::default(), count: 0, fault: None, limits };
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_seq(&mut reading).and_then(|()| json.end());
    // A JSON syntax error takes precedence over errors in rows.
    if let Err(error) = read
        && reading.fault.as_ref().is_none_or(|fault| fault.status != 413)
    {
        return Err(syntax(error));
    }
    match reading.fault {
        Some(fault) => Err(fault),
        None if reading.count == 0 && !keep_other => {
            Err(Problem::unprocessable("expected at least one row, the array is empty"))
        }
        None => Ok(reading.rows),
    }
}

struct Reading<'f> {
    features: &'f [String],
    keep_other: bool,
    rows: Rows,
    count: usize,
    /// The first error; after it rows are only validated.
    fault: Option<Problem>,
    limits: Limits,
}

impl Reading<'_> {
    fn fault(&mut self, field: Option<&str>, what: &str) {
        if self.fault.is_some() {
            return;
        }
        let index = self.count as u64;
        let problem = match field {
            Some(field) => Problem::unprocessable(format!("row {index}: {field} {what}")).field(field),
            None => Problem::unprocessable(format!("row {index}: {what}")),
        };
        self.fault = Some(problem.at(index));
    }
}

impl<'de> Visitor<'de> for &mut Reading<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while rows.next_element_seed(Row(self))?.is_some() {
            self.count += 1;
            let most = self.limits.rows.min(MAX_ROWS as u64);
            if self.count as u64 > most {
                self.fault = Some(Problem::too_large(format!("at most {most} rows go into one request")));
                return Err(A::Error::custom("too many rows"));
            }
        }
        Ok(())
    }
}

struct Row<'r, 'f>(&'r mut Reading<'f>);

impl<'de> DeserializeSeed<'de> for Row<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! not_an_object {
    ($($method:ident: $type:ty,)+) => {
        $(fn $method<E>(self, _: $type) -> Result<(), E> {
            self.0.fault(None, "expected an object");
            Ok(())
        })+
    };
}

impl<'de> Visitor<'de> for Row<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    not_an_object! { visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.fault(None, "expected an object, found null");
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        self.0.fault(None, "expected an object, found an array");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let reading = self.0;
        let features = reading.features;
        let mut found = [None; tercile_kmeans::MAX_FEATURES];
        let mut other = Vec::new();
        let mut count = 0;
        while let Some(key) = map.next_key::<Text<'de>>()? {
            count += 1;
            if count == reading.limits.fields + 1 {
                reading.fault(None, &format!("at most {} fields go into one row", reading.limits.fields));
            }
            let Some(feature) = features.iter().position(|name| *name == key.0) else {
                let raw: &RawValue = map.next_value()?;
                if too_deep(raw.get(), 1, reading.limits.depth) {
                    reading.fault(Some(&key.0), &format!("nests deeper than {}", reading.limits.depth));
                } else if reading.keep_other {
                    other.push((key.0, raw));
                }
                continue;
            };
            let raw: &RawValue = map.next_value()?;
            match number(raw.get()) {
                Ok(_) if found[feature].is_some() => reading.fault(Some(&key.0), "stands twice"),
                Ok(value) => found[feature] = Some(value),
                Err(what) => {
                    reading.fault(Some(&key.0), what);
                    found[feature] = Some(0.0);
                }
            }
        }
        for (name, value) in features.iter().zip(found) {
            match value {
                Some(value) => reading.rows.values.push(value),
                None => reading.fault(Some(name), "is missing"),
            }
        }
        if reading.keep_other {
            reading.rows.other.push(object_of(other));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { depth: 127, fields: 100, ..Limits::NONE };

    fn names() -> Vec<String> {
        vec!["a".into(), "b".into()]
    }

    fn fault(body: &str) -> (u16, Option<u64>, Option<String>) {
        let problem = read(body.as_bytes(), &names(), false, LIMITS).unwrap_err();
        (problem.status, problem.index, problem.field)
    }

    #[test]
    fn rows_are_read_whatever_the_order_of_fields() {
        let body = br#" [{"b": 2, "x": 1, "x": {"y": [1]}, "a": 1.5e1}, {"a":-0.0,"b":7}] "#;
        let rows = read(body, &names(), true, LIMITS).unwrap();
        assert_eq!(rows.values, [15.0, 2.0, -0.0, 7.0]);
        assert_eq!(rows.other, [r#"{"x":{"y": [1]}}"#, "{}"]);
    }

    #[test]
    fn faults_have_a_status_a_row_and_a_field() {
        let field = |name: &str| Some(name.to_owned());
        for no_json in
            ["", "nope", "[{]", "[{\"a\":NaN,\"b\":1}]", "[{\"a\":1,\"b\":2}", "[{\"a\":1,\"b\":2}]]", "\u{feff}"]
        {
            assert_eq!(fault(no_json).0, 400, "{no_json}");
        }
        assert_eq!(read(b"[{\"a\":\"\xff\"}]", &names(), false, LIMITS).unwrap_err().status, 400);
        assert_eq!(read("\u{feff}[{\"a\":1,\"b\":2}]".as_bytes(), &names(), true, LIMITS).unwrap().values, [1.0, 2.0]);
        assert_eq!(read(b"[]", &names(), true, LIMITS).unwrap(), Rows::default());
        for no_array in ["{}", "1", "\"x\"", "null", "[]"] {
            assert_eq!(fault(no_array), (422, None, None), "{no_array}");
        }
        for no_object in ["[1]", "[null]", "[[]]", "[\"x\"]", "[true]"] {
            assert_eq!(fault(no_object), (422, Some(0), None), "{no_object}");
        }
        let good = r#"{"a":1,"b":2}"#;
        for (row, name) in [
            (r#"{"a":1}"#, "b"),
            (r#"{"a":null,"b":1}"#, "a"),
            (r#"{"a":"1","b":1}"#, "a"),
            (r#"{"a":1,"b":1e400}"#, "b"),
            (r#"{"a":1,"b":-1e999}"#, "b"),
            (r#"{"a":[1],"b":1}"#, "a"),
            (r#"{"a":1,"b":true}"#, "b"),
            (r#"{"a":1,"a":1,"b":1}"#, "a"),
        ] {
            assert_eq!(fault(&format!("[{good},{row}]")), (422, Some(1), field(name)), "{row}");
        }
        assert_eq!(fault(r#"[{"a":1},]"#).0, 400, "what is no JSON is said first");
    }

    #[test]
    fn rows_are_counted() {
        let many = |n: usize| format!("[{}]", vec![r#"{"a":1,"b":2}"#; n].join(","));
        assert_eq!(read(many(MAX_ROWS).as_bytes(), &names(), false, LIMITS).unwrap().values.len(), 2 * MAX_ROWS);
        assert_eq!(fault(&many(MAX_ROWS + 1)).0, 413);
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("[{{\"a\":1,\"b\":2,\"x\":{}{}}}]", "[".repeat(100_000), "]".repeat(100_000));
        for keep_other in [false, true] {
            let problem = read(deep.as_bytes(), &names(), keep_other, LIMITS).unwrap_err();
            assert_eq!((problem.status, problem.field.as_deref()), (422, Some("x")));
        }
        let wide: String = (0..99).map(|i| format!(",\"x{i}\":1")).collect();
        assert_eq!(fault(&format!("[{{\"a\":1,\"b\":2{wide}}}]")), (422, Some(0), None));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(fault(&deep).0, 422);
    }
}
