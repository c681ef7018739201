//! Whatever comes in is read the same however it is cut, agrees with another reader, or is refused with a reason: rows in each
//! format, records, headers of SQL files, model files. `TERCILE_TEST_CASES` and `TERCILE_TEST_SEED` try others.

mod common;

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::{Arc, LazyLock};

use common::Place;
use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use datafusion::arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::Value;
use serde_json::value::RawValue;
use tercile::bulk::{Error, Format, Keep, Limits, Reader};
use tercile::model::Model;
use tercile::record::{Fields, MAX_DEPTH, Unreadable, decode};
use tercile::sql::header::{self, MAX_K};

const LIMITS: Limits = Limits { rows: 200, fields: 20, depth: 10, piece: 64 * 1024 };
const FORMATS: [Format; 4] = [Format::Json, Format::Ndjson, Format::Csv, Format::Arrow];

fn features() -> Vec<String> {
    vec!["a".to_owned(), "b".to_owned()]
}

fn many(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// Gives at most so many bytes at a time.
struct Trickle(Cursor<Vec<u8>>, usize);

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(self.1);
        self.0.read(&mut buffer[..most])
    }
}

/// The features of all rows, bit by bit, or the error and how many rows came before it.
fn read(format: Format, bytes: &[u8], at_once: usize) -> Result<Vec<[u64; 2]>, String> {
    let input = Box::new(Trickle(Cursor::new(bytes.to_vec()), at_once.max(1)));
    let mut rows = Vec::new();
    let mut reader = Reader::open_limited(input, Some(format), &features(), LIMITS, Keep::Row).map_err(said)?;
    while let Some(block) = reader.block().map_err(said)? {
        assert!(block.features.iter().all(|column| column.len() == block.rows()), "columns are as long as the block");
        for row in 0..block.rows() {
            let values = [block.features[0].value(row), block.features[1].value(row)];
            assert!(values.iter().all(|value| value.is_finite()), "only finite numbers come through");
            rows.push(values.map(f64::to_bits));
        }
    }
    assert!(rows.len() as u64 <= LIMITS.rows);
    Ok(rows)
}

fn said(error: Error) -> String {
    if let Error::Field { row, .. } | Error::Row { row, .. } | Error::Syntax { row, .. } = &error {
        assert!(*row <= LIMITS.rows, "the row is one of those that came: {error}");
    }
    let said = error.to_string();
    assert!(!said.is_empty() && !said.contains('\n'), "one line: {said:?}");
    said
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<i32>().prop_map(f64::from),
        prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL
    ]
}

/// The rows as each format writes them.
fn written(format: Format, rows: &[(f64, f64, String)]) -> Vec<u8> {
    let objects: Vec<Value> = rows.iter().map(|(a, b, c)| serde_json::json!({ "c": c, "a": a, "b": b })).collect();
    match format {
        Format::Json => serde_json::to_vec(&objects).unwrap(),
        Format::Ndjson => objects.iter().flat_map(|object| format!("{object}\n").into_bytes()).collect(),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(["c", "a", "b"]).unwrap();
            for (a, b, c) in rows {
                writer.write_record([c.clone(), a.to_string(), b.to_string()]).unwrap();
            }
            writer.into_inner().unwrap()
        }
        _ => {
            let column = |of: fn(&(f64, f64, String)) -> f64| -> ArrayRef {
                Arc::new(rows.iter().map(|row| Some(of(row))).collect::<Float64Array>())
            };
            let texts: ArrayRef = Arc::new(rows.iter().map(|row| Some(row.2.as_str())).collect::<StringArray>());
            let batch =
                RecordBatch::try_from_iter([("c", texts), ("a", column(|row| row.0)), ("b", column(|row| row.1))])
                    .unwrap();
            let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
            writer.write(&batch).unwrap();
            writer.into_inner().unwrap()
        }
    }
}

/// What was changed in some bytes: where, as a part of their length, what is taken away, and what comes in its place.
type Damage = Vec<(f64, usize, Vec<u8>)>;

fn damage() -> impl Strategy<Value = Damage> {
    let tokens = [
        "NaN",
        "Infinity",
        "-1e400",
        "1e308",
        "null",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "\\",
        ",",
        ":",
        "\n",
        "\r\n",
        "\u{feff}",
        "\"a\":1,",
        "\"a\":[[[[[[[[[[[[]]]]]]]]]]]]",
        "\0",
        "\\ud800",
        "é",
        "-",
        "k: 3",
        "|",
    ];
    let token = prop::sample::select(tokens.to_vec()).prop_map(|token| token.as_bytes().to_vec());
    let bytes = prop_oneof![3 => token, 1 => prop::collection::vec(any::<u8>(), 0..6)];
    prop::collection::vec((0.0..1.0_f64, 0_usize..8, bytes), 0..4)
}

fn damaged(mut bytes: Vec<u8>, damage: &Damage) -> Vec<u8> {
    for (place, gone, come) in damage {
        let at = (bytes.len() as f64 * place) as usize;
        let end = (at + gone).min(bytes.len());
        bytes.splice(at..end, come.iter().copied());
    }
    bytes
}

fn rows() -> impl Strategy<Value = Vec<(f64, f64, String)>> {
    prop::collection::vec((number(), number(), "[a-z,\"\n é]{0,6}"), 1..30)
}

/// Objects by serde_json, the features of each as the nearest doubles; `None` where it is no such thing. Its own numbers are
/// not always the nearest.
fn other_reader(format: Format, bytes: &[u8]) -> Option<Vec<[u64; 2]>> {
    type Object<'a> = BTreeMap<String, &'a RawValue>;
    let objects: Vec<Object<'_>> = match format {
        Format::Json => serde_json::from_slice(bytes).ok()?,
        _ => serde_json::Deserializer::from_slice(bytes).into_iter().collect::<Result<_, _>>().ok()?,
    };
    let feature = |object: &Object<'_>, name: &str| Some(object.get(name)?.get().parse::<f64>().ok()?.to_bits());
    objects.iter().map(|object| Some([feature(object, "a")?, feature(object, "b")?])).collect()
}

static MODEL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = Place::new();
    place.up(&[]).interrupt();
    std::fs::read(place.path("store/models/price_rating/2.json")).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: many("TERCILE_TEST_CASES", 400), failure_persistence: None,
        rng_seed: RngSeed::Fixed(many("TERCILE_TEST_SEED", 42).into()), ..ProptestConfig::default() })]

    #[test]
    fn rows_come_through_to_the_bit(rows in rows(), at_once in 1_usize..200) {
        let right: Vec<[u64; 2]> = rows.iter().map(|(a, b, _)| [a.to_bits(), b.to_bits()]).collect();
        for format in FORMATS {
            prop_assert_eq!(read(format, &written(format, &rows), at_once), Ok(right.clone()), "{:?}", format);
        }
    }

    #[test]
    fn damaged_rows_are_read_the_same_however_they_are_cut(rows in rows(), damage in damage(), at_once in 1_usize..64) {
        for format in FORMATS {
            let bytes = damaged(written(format, &rows), &damage);
            let whole = read(format, &bytes, usize::MAX);
            prop_assert_eq!(&whole, &read(format, &bytes, at_once), "{:?}", format);
            // What is taken is what another reader makes of it.
            if let (Format::Json | Format::Ndjson, Ok(found)) = (format, whole) {
                prop_assert_eq!(Some(found), other_reader(format, &bytes), "{}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), at_once in 1_usize..64) {
        for format in FORMATS {
            prop_assert_eq!(read(format, &bytes, usize::MAX), read(format, &bytes, at_once));
        }
    }

    #[test]
    fn a_record_is_what_another_reader_finds_or_unreadable(
        mut values in prop::collection::btree_map("[a-d]|_[a-z]", "[ -~é]{0,8}", 0..6),
        depth in 0_usize..200,
        damage in damage(),
    ) {
        values.insert("deep".to_owned(), String::new());
        let nest = if depth == 0 { "0".to_owned() } else { "[".repeat(depth) + &"]".repeat(depth) };
        let text = serde_json::to_string(&values).unwrap().replace("\"deep\":\"\"", &format!("\"deep\":{nest}"));
        let bytes = damaged(text.into_bytes(), &damage);
        let fields = Fields::new(features());
        let found = decode(Some(&bytes), &fields);
        // Numbers of any size and nests of any depth are JSON to this one.
        let mut other = serde_json::Deserializer::from_slice(&bytes);
        let other = BTreeMap::<String, &RawValue>::deserialize_whole(&mut other);
        match (found, other) {
            (Ok(found), Some(other)) => {
                for (name, value) in fields.names().iter().zip(&found.values) {
                    let raw = other.get(name).map(|raw| raw.get()).filter(|raw| *raw != "null");
                    let right = raw.map(|raw| serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned()));
                    prop_assert_eq!(value.as_deref(), right.as_deref());
                }
                let extra: BTreeMap<String, &RawValue> = serde_json::from_str(&found.extra).unwrap();
                let rest = other.keys().filter(|name| !fields.names().contains(name));
                prop_assert_eq!(extra.keys().collect::<Vec<_>>(), rest.collect::<Vec<_>>());
            }
            (Err(Unreadable::TooDeep), Some(_)) => {
                let opened = bytes.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
                prop_assert!(opened > MAX_DEPTH);
            }
            (Err(why), None) => prop_assert!(!why.to_string().contains('\n')),
            (Err(why), Some(other)) => {
                // Half of a surrogate pair is no text, which that reader does not look for.
                let half = |raw: &&RawValue| raw.get().starts_with('"') && serde_json::from_str::<String>(raw.get()).is_err();
                let half = fields.names().iter().filter_map(|name| other.get(name)).any(half);
                prop_assert!(half || std::str::from_utf8(&bytes).is_err(), "refused as {why}");
            }
            (Ok(found), None) => prop_assert!(false, "taken as {found:?}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    #[test]
    fn a_header_is_read_or_its_line_is_named(
        k in 0_usize..70,
        words in prop::collection::vec("[A-Z][a-z]{1,5}", 1..5),
        body in "[ -~\n]{0,40}",
        damage in damage(),
    ) {
        let labels = words.join(" | ");
        let text = format!("-- k: {k}\n-- label.a.en: {labels}\n-- prose\n");
        let right = header::parse(&format!("{text}\n{body}"));
        let fits = (1..=MAX_K).contains(&k) && [3, k].contains(&words.len());
        prop_assert_eq!(right.is_ok(), fits, "{:?}", right);
        if let Ok(right) = right {
            prop_assert_eq!((right.k, &right.labels["a"]["en"]), (Some(k), &words));
        }
        let bytes = damaged(text.into_bytes(), &damage);
        let text = String::from_utf8_lossy(&bytes);
        match header::parse(&text) {
            Ok(header) => prop_assert!(header.k.is_none_or(|k| (1..=MAX_K).contains(&k))),
            Err(fault) => prop_assert!((1..=text.lines().count()).contains(&fault.line) && !fault.why.is_empty()),
        }
    }

    #[test]
    fn a_model_file_answers_or_is_damaged(damage in damage()) {
        let whole = Model::parse(&MODEL).unwrap();
        if let Ok(model) = Model::parse(&damaged(MODEL.clone(), &damage)) {
            let mut row = vec![1.0; model.features.len()];
            let (cluster, distance) = model.predictor().predict(&mut row);
            prop_assert!(cluster < model.k as usize && !distance.is_nan());
            prop_assert_eq!(model.descriptions("id").len(), model.clusters.len());
            prop_assert!(!damage.is_empty() || model == whole);
        }
    }
}

/// A whole input as one value, or nothing.
trait Whole<'de>: serde::Deserialize<'de> {
    fn deserialize_whole<R: serde_json::de::Read<'de>>(json: &mut serde_json::Deserializer<R>) -> Option<Self> {
        let value = Self::deserialize(&mut *json).ok()?;
        json.end().ok().map(|()| value)
    }
}

impl<'de> Whole<'de> for BTreeMap<String, &'de RawValue> {}

#[test]
fn parts_of_a_model_file_fit_each_other() {
    let text = String::from_utf8(MODEL.clone()).unwrap();
    let model: Value = serde_json::from_str(&text).unwrap();
    let cases: [(&str, Value); 9] = [
        ("/slice", 4.into()),
        ("/mean", serde_json::json!([1.0])),
        ("/std", serde_json::json!([1.0, -1.0])),
        ("/features", serde_json::json!([])),
        ("/k", 2.into()),
        ("/k", 0.into()),
        ("/clusters/1/cluster", 0.into()),
        ("/clusters/1/centroid", serde_json::json!({"rating": 4.0, "other": 1.0})),
        ("/moved", serde_json::json!([[1, 2]])),
    ];
    for (at, value) in cases {
        let mut changed = model.clone();
        *changed.pointer_mut(at).unwrap() = value;
        assert!(Model::parse(changed.to_string().as_bytes()).is_err(), "{at}");
    }
}

#[test]
fn a_compressed_buffer_is_not_taken_at_its_word() {
    use datafusion::arrow::ipc::CompressionType;
    use datafusion::arrow::ipc::writer::IpcWriteOptions;
    for kind in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
        let numbers: ArrayRef = Arc::new(Float64Array::from(vec![1.5; 4000]));
        let batch = RecordBatch::try_from_iter([("a", Arc::clone(&numbers)), ("b", numbers)]).unwrap();
        let options = IpcWriteOptions::default().try_with_compression(Some(kind)).unwrap();
        let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
        writer.write(&batch).unwrap();
        let mut bytes = writer.into_inner().unwrap();
        let limits = Limits { rows: 5000, ..LIMITS };
        let open = |bytes: &[u8]| {
            let input = Box::new(Cursor::new(bytes.to_vec()));
            let mut reader = Reader::open_limited(input, Some(Format::Arrow), &features(), limits, Keep::Row)?;
            reader.block().map(|block| block.map_or(0, |block| block.rows()))
        };
        // 2 × 32,000 bytes are just within the limit.
        assert_eq!(open(&bytes).unwrap(), 4000);
        let claim = 32_000_i64.to_le_bytes();
        let at = bytes.windows(8).rposition(|eight| eight == claim).unwrap();
        bytes[at..at + 8].copy_from_slice(&(1_i64 << 45).to_le_bytes());
        assert!(matches!(open(&bytes), Err(Error::TooMuch(_))), "{kind:?}");
    }
}
