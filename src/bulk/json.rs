//! Parser of one JSON object into features and other fields; the latter are kept verbatim.

use serde_json::value::RawValue;
use tercile_kmeans::MAX_FEATURES;
use tercile_store::json_text::{object_of, too_deep};

use super::Wanted;
use super::{At, Error, Keep, is_added};
use crate::files::{fields, no_number};
use crate::missing::Value;

/// Parses the row at `at`. Appends its features to the columns, with NaN for a gap, and returns the kept fields as a JSON
/// object, or an empty string if none are kept.
///
/// # Errors
/// If the row is not an object within the limits, or if a feature is absent or not a number.
pub fn row(json: &[u8], at: At, wanted: &mut Wanted, columns: &mut [Vec<f64>]) -> Result<String, Error> {
    let (keep, limits) = (wanted.keep, wanted.limits);
    if keep == Keep::Other && plain(json, &wanted.features, columns) {
        return Ok(String::new());
    }
    let text = std::str::from_utf8(json).map_err(|_| {
        let what = "expected UTF-8, found other bytes".to_owned();
        Error::Syntax { at, what }
    })?;
    let syntax = |e: serde_json::Error| {
        let why = no_number(text).unwrap_or_else(|| e.to_string());
        Error::Syntax { at, what: format!("no JSON: {why}") }
    };
    if !text.starts_with('{') {
        serde_json::from_str::<&RawValue>(text).map_err(syntax)?;
        return Err(Error::Row { at, what: format!("expected a JSON object, found {}", shortened(text)) });
    }
    let fields = fields(text).map_err(syntax)?;
    if fields.len() > limits.fields {
        return Err(Error::Row { at, what: format!("at most {} fields go into one row", limits.fields) });
    }
    for (feature, column) in columns.iter_mut().enumerate() {
        let name = &wanted.features[feature];
        let mut found = fields.iter().filter(|(key, _)| key == name);
        let raw = found.next().map(|(_, raw)| raw.get());
        if found.next().is_some() {
            return Err(Error::Field { at, field: name.clone(), what: "stands twice".to_owned() });
        }
        wanted.absent[feature] += u64::from(raw.is_none());
        let value = raw.map_or(Err("is missing"), number);
        column.push(match (value, raw) {
            (Ok(value), _) => value,
            (Err(what), None | Some("null" | "\"\"")) => wanted.gap(feature, Value::Missing, at, what)?,
            (Err(what), Some(raw)) => wanted.gap(feature, Value::Invalid(raw), at, what)?,
        });
    }
    if let Some((name, _)) = fields.iter().find(|(_, raw)| too_deep(raw.get(), 1, limits.depth)) {
        let what = format!("nests deeper than {}", limits.depth);
        return Err(Error::Field { at, field: name.clone().into_owned(), what });
    }
    let answer = keep == Keep::Row && wanted.note_answer(|name| fields.iter().any(|(key, _)| key == name));
    let kept = |name: &str| match keep {
        Keep::Row => !(answer && is_added(name)),
        Keep::Other => !wanted.features.iter().any(|feature| feature == name),
    };
    Ok(object_of(fields.into_iter().filter(|(key, _)| kept(key.as_ref())).collect()))
}

/// Fast path for rows that consist of exactly the features, each once and without escapes. Returns `false`, with the columns
/// unchanged, for any other row, which the general parser then handles.
fn plain(json: &[u8], features: &[String], columns: &mut [Vec<f64>]) -> bool {
    let mut values = [0.0; MAX_FEATURES];
    let mut found = 0_u32;
    let Some(mut rest) = json.strip_prefix(b"{") else { return false };
    loop {
        let Some(key) = trimmed(rest).strip_prefix(b"\"") else { return false };
        let Some(end) = key.iter().position(|&byte| byte == b'"') else { return false };
        let Some(feature) = features.iter().position(|name| name.as_bytes() == &key[..end]) else { return false };
        let Some(value) = trimmed(&key[end + 1..]).strip_prefix(b":") else { return false };
        let value = trimmed(value);
        let length = number_length(value);
        let number = std::str::from_utf8(&value[..length]).ok().and_then(|text| text.parse::<f64>().ok());
        let Some(number) = number.filter(|number| number.is_finite() && found & (1 << feature) == 0) else {
            return false;
        };
        values[feature] = number;
        found |= 1 << feature;
        rest = trimmed(&value[length..]);
        match rest {
            [b',', after @ ..] => rest = after,
            [b'}'] => break,
            _ => return false,
        }
    }
    if found.count_ones() as usize != features.len() {
        return false;
    }
    for (column, value) in columns.iter_mut().zip(values) {
        column.push(value);
    }
    true
}

/// Strips leading JSON white space.
fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    start.map_or(&[], |start| &text[start..])
}

/// Length of the JSON number at the start of `text`; 0 if there is none.
fn number_length(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let whole = usize::from(text.first() == Some(&b'-'));
    let mut at = match (digits(whole), text.get(whole)) {
        (0, _) => return 0,
        (n, Some(b'0')) if n > 1 => return 0,
        (n, _) => whole + n,
    };
    if text.get(at) == Some(&b'.') {
        match digits(at + 1) {
            0 => return 0,
            n => at += 1 + n,
        }
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        match digits(at + 1 + sign) {
            0 => return 0,
            n => at += 1 + sign + n,
        }
    }
    at
}

fn shortened(text: &str) -> String {
    let start: String = text.chars().take(20).collect();
    if start.len() < text.len() { format!("{start}…") } else { start }
}

/// Parses a JSON value as a finite number. The error says why it is none.
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
