//! Properties of each decoder for arbitrary bytes: the result does not depend on how the bytes are split, agrees with another
//! decoder, and respects limits. Each check panics on a violation. The tests and the fuzzer share the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::arrow::ipc::reader::StreamReader;
use serde_json::value::RawValue;
use tercile::api::posted;
use tercile::bulk::{Carried, Error, Format, Keep, Limits, Reader, is_added, is_answer};
use tercile::model::Model;
use tercile::sql::header::{self, MAX_K};
use tercile_store::json_text::too_deep;
use tercile_store::record::{Fields, MAX_DEPTH, Unreadable, decode};

/// Panics if the bytes are not decoded correctly.
type Check = fn(&[u8]);

/// All checks by decoder name.
pub const ALL: [(&str, Check); 8] = [
    ("json", |bytes| objects(Format::Json, bytes)),
    ("ndjson", |bytes| objects(Format::Ndjson, bytes)),
    ("csv", csv),
    ("arrow", arrow),
    ("posted", posted),
    ("record", record),
    ("header", sql_header),
    ("model", model),
];

pub const LIMITS: Limits = Limits { rows: 200, fields: 20, depth: 10, piece: 64 * 1024 };

/// The required features of each row.
pub fn features() -> Vec<String> {
    vec!["a".to_owned(), "b".to_owned()]
}

/// The bits of the features of all rows, or an error.
pub type Outcome = Result<Vec<[u64; 2]>, String>;

type Object<'a> = BTreeMap<String, &'a RawValue>;

/// A reader that returns at most this number of bytes at a time.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

/// Decodes rows that arrive in pieces of `at_once` bytes.
pub fn read(format: Format, bytes: &[u8], at_once: usize) -> Outcome {
    read_keeping(format, bytes, at_once, Keep::Row).map(|(rows, _)| rows)
}

/// The same, including other fields if rows are objects.
fn read_keeping(
    format: Format,
    bytes: &[u8],
    at_once: usize,
    keep: Keep,
) -> Result<(Vec<[u64; 2]>, Vec<String>), String> {
    let input = Box::new(Trickle(Cursor::new(bytes.to_vec()), at_once.max(1)));
    let (mut rows, mut others) = (Vec::new(), Vec::new());
    let mut reader = Reader::open_limited(input, Some(format), &features(), LIMITS, keep).map_err(said)?;
    while let Some(block) = reader.block().map_err(said)? {
        assert!(block.features.iter().all(|column| column.len() == block.rows()), "columns are as long as the block");
        for row in 0..block.rows() {
            let values = [block.features[0].value(row), block.features[1].value(row)];
            assert!(values.iter().all(|value| value.is_finite()), "only finite numbers come through");
            rows.push(values.map(f64::to_bits));
        }
        if let Carried::Objects(objects) = block.carried {
            others.extend(objects);
        }
    }
    assert!(rows.len() as u64 <= LIMITS.rows, "no more rows than are allowed");
    Ok((rows, others))
}

fn said(error: Error) -> String {
    let said = error.to_string();
    assert!(!said.is_empty() && !said.contains('\n'), "one line: {said:?}");
    said
}

/// Decodes at once and in pieces of a size derived from the bytes: both give the same rows or both fail. If there are several
/// errors, the reported one may differ, because quotes are checked as far as bytes have arrived, possibly several rows ahead.
fn read_both_ways(format: Format, bytes: &[u8]) -> Outcome {
    let at_once =
        bytes.iter().fold(bytes.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % 61;
    let whole = read(format, bytes, usize::MAX);
    let pieces = read(format, bytes, at_once + 1);
    let alike = whole == pieces || format == Format::Csv && whole.is_err() && pieces.is_err();
    assert!(alike, "{whole:?} at once, {pieces:?} {} bytes at a time", at_once + 1);
    whole
}

/// The same objects decoded by serde_json: an array of objects, or a sequence of objects.
fn other_objects(bytes: &[u8]) -> Option<Vec<Object<'_>>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice(bytes).ok()
    } else {
        serde_json::Deserializer::from_slice(bytes).into_iter().collect::<Result<_, _>>().ok()
    }
}

/// A number as the nearest double, which serde_json does not guarantee.
fn finite(raw: &RawValue) -> Option<u64> {
    let number = raw.get().starts_with(['-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
    raw.get().parse::<f64>().ok().filter(|value| number && value.is_finite()).map(f64::to_bits)
}

fn values_of(objects: &[Object<'_>]) -> Option<Vec<[u64; 2]>> {
    objects.iter().map(|object| Some([finite(object.get("a")?)?, finite(object.get("b")?)?])).collect()
}

fn objects(format: Format, bytes: &[u8]) {
    let found = read_both_ways(format, bytes);
    let features_only = read_keeping(format, bytes, usize::MAX, Keep::Other);
    let rows_only = features_only.as_ref().map(|(rows, _)| rows);
    assert_eq!(found.as_ref(), rows_only, "what is kept beside the features changes nothing");
    let other = other_objects(bytes);
    match found {
        Ok(found) => {
            let other = other.expect("what is taken is JSON to another reader");
            assert_eq!(Some(&found), values_of(&other).as_ref());
            let (_, kept) = read_keeping(format, bytes, usize::MAX, Keep::Row).unwrap();
            for (kept, mut other) in kept.iter().zip(other) {
                let kept: Object<'_> = serde_json::from_str(kept).expect("a kept row is an object");
                // Only of an answer the added fields are left out.
                if is_answer(&[], |name| other.contains_key(name)) {
                    other.retain(|name, _| !is_added(name));
                }
                assert!(texts(&kept) == texts(&other), "a kept row is as it came");
            }
        }
        // Clearly valid input is not rejected.
        Err(why) => {
            let plain = |objects: &Vec<Object<'_>>| {
                let small = objects.len() < 100 && objects.iter().all(|object| object.len() < 10);
                let shallow =
                    objects.iter().flat_map(BTreeMap::values).all(|raw| !too_deep(raw.get(), 1, LIMITS.depth));
                small && shallow && values_of(objects).is_some()
            };
            let excused = why.contains("stands twice") || why.contains("fields go into one row");
            assert!(excused || bytes.len() > LIMITS.piece || !other.is_some_and(|other| plain(&other)), "{why}");
        }
    }
}

fn texts<'a>(object: &'a Object<'_>) -> BTreeMap<&'a str, &'a str> {
    object.iter().map(|(name, raw)| (name.as_str(), raw.get())).collect()
}

/// The rows of CSV by RFC 4180 alone: a quote inside an unquoted field is kept, empty lines are skipped, and a quoted field
/// that is not closed or is followed by other text is an error.
fn other_csv(bytes: &[u8]) -> Option<Vec<Vec<Vec<u8>>>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut rows, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if matches!(bytes[at], b'\r' | b'\n') {
            at += 1;
            continue;
        }
        let mut row = Vec::new();
        loop {
            let mut field = Vec::new();
            if bytes.get(at) == Some(&b'"') {
                at += 1;
                loop {
                    let end = at + bytes[at..].iter().position(|byte| *byte == b'"')?;
                    field.extend(&bytes[at..end]);
                    at = end + 1;
                    if bytes.get(at) != Some(&b'"') {
                        break;
                    }
                    field.push(b'"');
                    at += 1;
                }
                if !matches!(bytes.get(at), None | Some(b',' | b'\r' | b'\n')) {
                    return None;
                }
            } else {
                let rest = &bytes[at..];
                let length = rest.iter().position(|byte| matches!(byte, b',' | b'\r' | b'\n')).unwrap_or(rest.len());
                field.extend(&rest[..length]);
                at += length;
            }
            row.push(field);
            match bytes.get(at) {
                Some(b',') => at += 1,
                _ => break,
            }
        }
        rows.push(row);
    }
    Some(rows)
}

/// The features of these rows, if all are valid.
fn csv_values(rows: &[Vec<Vec<u8>>]) -> Option<Vec<[u64; 2]>> {
    let blank = |field: &Vec<u8>| std::str::from_utf8(field).is_ok_and(|field| field.trim().is_empty());
    let (header, rows) = rows.split_first()?;
    let text = rows.iter().flatten().chain(header).all(|field| std::str::from_utf8(field).is_ok());
    // Empty fields behind the last name are no columns.
    let columns = header.iter().rposition(|name| !blank(name))? + 1;
    let place = |name: &str| {
        let mut found = (0..columns).filter(|&i| std::str::from_utf8(&header[i]).is_ok_and(|own| own.trim() == name));
        found.next().filter(|_| found.next().is_none())
    };
    let (a, b) = (place("a")?, place("b")?);
    let value = |field: &[u8]| {
        let value = std::str::from_utf8(field).ok()?.trim().parse::<f64>().ok()?;
        value.is_finite().then_some(value.to_bits())
    };
    let value_of = |row: &Vec<Vec<u8>>| {
        (row.len() >= columns && row[columns..].iter().all(blank)).then_some(())?;
        Some([value(&row[a])?, value(&row[b])?])
    };
    text.then(|| rows.iter().map(value_of).collect())?
}

fn csv(bytes: &[u8]) {
    let found = read_both_ways(Format::Csv, bytes);
    let other = other_csv(bytes).and_then(|rows| csv_values(&rows));
    match (found, other) {
        // Without rows the header is not checked.
        (Ok(found), other) if found.is_empty() => assert!(other.is_none_or(|other| other.is_empty())),
        (Ok(found), other) => assert_eq!(Some(found), other),
        (Err(why), Some(other)) => {
            let limited = why.contains("at most") || why.contains("too long");
            assert!(limited && (other.len() > 100 || bytes.len() > 20), "{why}");
        }
        (Err(_), None) => {}
    }
}

/// The same decoded by Arrow's stream reader.
fn other_arrow(bytes: &[u8]) -> Option<Vec<[u64; 2]>> {
    let mut rows = Vec::new();
    for batch in StreamReader::try_new(bytes, None).ok()? {
        let batch = batch.ok()?;
        let column = |name| cast(batch.column_by_name(name)?, &DataType::Float64).ok();
        let (a, b) = (column("a")?, column("b")?);
        let (a, b) = (a.as_primitive::<Float64Type>().values(), b.as_primitive::<Float64Type>().values());
        rows.extend(a.iter().zip(b).map(|(a, b)| [a.to_bits(), b.to_bits()]));
    }
    Some(rows)
}

fn arrow(bytes: &[u8]) {
    let found = read_both_ways(Format::Arrow, bytes);
    // Arrow's reader trusts every length in a stream, so it decodes only accepted input; the file format is excluded.
    if let Ok(found) = found
        && !found.is_empty()
        && !bytes.starts_with(b"ARROW1")
    {
        let other = catch_unwind(AssertUnwindSafe(|| other_arrow(bytes)));
        if let Ok(Some(other)) = other {
            assert_eq!(found, other);
        }
    }
}

fn posted(bytes: &[u8]) {
    let found = posted::read(bytes, &features(), true, LIMITS);
    let alone = posted::read(bytes, &features(), false, LIMITS);
    assert_eq!(found.as_ref().map(|rows| &rows.values), alone.as_ref().map(|rows| &rows.values));
    let bulk = read(Format::Json, bytes, usize::MAX);
    let array = bytes.trim_ascii_start().starts_with(b"[");
    match found {
        Ok(rows) => {
            let values: Vec<[u64; 2]> =
                rows.values.chunks_exact(2).map(|row| [row[0].to_bits(), row[1].to_bits()]).collect();
            assert_eq!(rows.other.len(), values.len());
            assert!(rows.other.iter().all(|other| serde_json::from_str::<Object<'_>>(other).is_ok()));
            assert_eq!(Ok(values), bulk, "the same rows as in bulk");
        }
        Err(problem) => {
            assert!((400..500).contains(&problem.status) && !problem.detail.contains('\n'), "{problem:?}");
            assert!(!array || !bulk.is_ok_and(|rows| !rows.is_empty()), "taken in bulk: {problem:?}");
        }
    }
}

fn record(bytes: &[u8]) {
    let fields = Fields::new(features());
    let found = decode(Some(bytes), &fields);
    // serde_json accepts numbers of any size and any nesting here.
    let other = serde_json::from_slice::<Object<'_>>(bytes).ok();
    match (found, other) {
        (Ok(found), Some(other)) => {
            for (name, value) in fields.names().iter().zip(&found.values) {
                let raw = other.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null");
                let right = raw.map(|raw| serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()));
                assert_eq!(value.as_deref(), right.as_deref(), "{name}");
            }
            let extra: Object<'_> = serde_json::from_str(&found.extra).expect("what is left is an object");
            let rest: Object<'_> = other.into_iter().filter(|(name, _)| !fields.names().contains(name)).collect();
            assert_eq!(texts(&extra), texts(&rest));
        }
        (Err(Unreadable::TooDeep), Some(_)) => {
            let opened = bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
            assert!(opened > MAX_DEPTH);
        }
        (Err(why), None) => assert!(!why.to_string().is_empty()),
        (Err(why), Some(_)) => assert!(std::str::from_utf8(bytes).is_err() || half_a_pair(bytes), "refused as {why}"),
        (Ok(found), None) => panic!("taken as {found:?}"),
    }
}

/// True if a text may contain an unpaired surrogate, which a Rust string cannot represent.
fn half_a_pair(bytes: &[u8]) -> bool {
    bytes.to_ascii_lowercase().windows(3).any(|three| three == b"\\ud")
}

fn sql_header(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match header::parse(&text) {
        Ok(header) => {
            assert!(header.k.is_none_or(|k| (1..=MAX_K).contains(&k)));
            assert!(header.k.is_some() || header.labels.is_empty());
            let words: BTreeSet<usize> = header.labels.values().flat_map(BTreeMap::values).map(Vec::len).collect();
            assert!(words.iter().all(|&words| words == 3 || Some(words) == header.k));
            // Formatting and parsing the header again gives the same header.
            let mut again = header.k.map_or_else(String::new, |k| format!("-- k: {k}\n"));
            for (feature, languages) in &header.labels {
                for (language, words) in languages {
                    again += &format!("-- label.{feature}.{language}: {}\n", words.join(" | "));
                }
            }
            assert_eq!(header::parse(&again).as_ref(), Ok(&header), "{again}");
        }
        Err(fault) => assert!((1..=text.lines().count()).contains(&fault.line) && !fault.why.is_empty(), "{fault:?}"),
    }
}

fn model(bytes: &[u8]) {
    let Ok(model) = Model::parse(bytes) else { return };
    let predictor = model.predictor();
    for value in [0.0, 1.0, -1e300] {
        let mut row = vec![value; model.features.len()];
        let columns: Vec<[f64; 1]> = row.iter().map(|value| [*value]).collect();
        let columns: Vec<&[f64]> = columns.iter().map(|column| &column[..]).collect();
        let (clusters, distances) = predictor.predict_columns(&columns);
        let (cluster, distance) = predictor.predict(&mut row);
        assert!(cluster < model.k as usize && !distance.is_sign_negative());
        if distance.is_finite() {
            assert_eq!((clusters[0] as usize, distances[0].to_bits()), (cluster, distance.to_bits()));
        }
    }
    assert_eq!(model.descriptions("id").len(), model.clusters.len());
    let again = Model::parse(&serde_json::to_vec(&model).unwrap());
    assert_eq!(again.as_ref(), Ok(&model), "written and read again");
}
