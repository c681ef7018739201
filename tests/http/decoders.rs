//! Decoder properties: input is decoded identically however it is split, agrees with another decoder, or is rejected with a
//! reason. Covers rows in each format, records, SQL headers and model files. `TERCILE_TEST_CASES` and `TERCILE_TEST_SEED` vary
//! the cases, and `.ci/fuzz` searches for more with coverage guidance.

#[path = "../fuzz/src/checks.rs"]
mod checks;
use std::sync::{Arc, LazyLock};

use checks::read;
use common::Place;
use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use datafusion::arrow::ipc::writer::StreamWriter;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::Value;
use tercile::bulk::Format;
use tercile::model::Model;
use tercile::sql::header::{self, MAX_K};

use crate::common;

const FORMATS: [Format; 4] = [Format::Json, Format::Ndjson, Format::Csv, Format::Arrow];

fn many(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<i32>().prop_map(f64::from),
        prop::num::f64::NORMAL | prop::num::f64::ZERO | prop::num::f64::SUBNORMAL
    ]
}

/// The rows encoded in each format.
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

/// A modification of bytes: relative position, number of removed bytes, and inserted bytes.
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

/// Checks all properties of a decoder.
fn check(decoder: &str, bytes: &[u8]) {
    let (_, check) = checks::ALL.iter().find(|(name, _)| *name == decoder).unwrap();
    check(bytes);
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
    fn damaged_rows_are_read_as_another_reader_does(rows in rows(), damage in damage()) {
        for (format, decoder) in FORMATS.into_iter().zip(["json", "ndjson", "csv", "arrow"]) {
            check(decoder, &damaged(written(format, &rows), &damage));
        }
        check("posted", &damaged(written(Format::Json, &rows), &damage));
    }

    #[test]
    fn bytes_of_any_kind_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for (_, check) in checks::ALL {
            check(&bytes);
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
        check("record", &damaged(text.into_bytes(), &damage));
    }

    #[test]
    fn a_header_is_read_or_its_line_is_named(
        k in 0_usize..70,
        words in prop::collection::btree_set("[A-Z][a-z]{1,5}", 1..5).prop_map(Vec::from_iter),
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
        check("header", &damaged(text.into_bytes(), &damage));
    }

    #[test]
    fn a_model_file_answers_or_is_damaged(damage in damage()) {
        let whole = Model::parse(&MODEL).unwrap();
        let bytes = damaged(MODEL.clone(), &damage);
        check("model", &bytes);
        prop_assert!(!damage.is_empty() || Model::parse(&bytes) == Ok(whole));
    }
}

/// The fuzzer's seed corpus and its earlier findings.
#[test]
fn what_was_found_stays_mended() {
    for (decoder, check) in checks::ALL {
        let cases: Vec<_> = std::fs::read_dir(format!("tests/corpus/{decoder}")).unwrap().map(Result::unwrap).collect();
        assert!(!cases.is_empty(), "{decoder}");
        for case in cases {
            println!("{}", case.path().display());
            check(&std::fs::read(case.path()).unwrap());
        }
    }
}

fn refused(format: Format, case: &str) -> String {
    checks::read(format, &std::fs::read(format!("tests/corpus/{case}")).unwrap(), usize::MAX).unwrap_err()
}

/// A buffer that claims to decompress to 32 TiB would end the process, because so much memory cannot be allocated.
#[test]
fn compressed_arrow_unpacks_to_no_more_than_is_allowed() {
    for case in ["arrow/lz4-claim", "arrow/zstd-claim", "arrow/lz4-zeros"] {
        assert!(refused(Format::Arrow, case).contains("bytes at most"), "{case}");
    }
    assert!(refused(Format::Arrow, "arrow/file-claim").contains("file format"));
    for case in ["lz4", "zstd"] {
        let bytes = std::fs::read(format!("tests/corpus/arrow/{case}")).unwrap();
        let right = [1.0_f64.to_bits(), 2.0_f64.to_bits()];
        assert_eq!(checks::read(Format::Arrow, &bytes, 7), Ok(vec![right; 64]), "{case}");
    }
}

/// Whatever happens in a decoder, the log has one JSON object per line and the answer is a problem.
#[test]
fn damaged_bodies_leave_a_log_that_can_be_read() {
    let place = Place::new();
    place.copy_fixture("store-method-1", "store");
    let running = place.serve(&["--log-format", "json"]);
    let columns = ["discounted_price", "rating"].map(|name| {
        let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..40).map(f64::from)));
        (name, values)
    });
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..40).map(|i| format!("text {i}"))));
    let batch = RecordBatch::try_from_iter(columns.into_iter().chain([("note", texts)])).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    let whole = writer.into_inner().unwrap();
    let kind = "application/vnd.apache.arrow.stream";
    let post = |bytes: &[u8]| running.post_as("/api/segments/price_rating/predict", kind, bytes);
    assert_eq!(post(&whole).status, 200);
    // Every few bytes of the schema and of the batch header, which contain lengths and types.
    let mut refused = 0;
    for at in (0..whole.len().min(1400)).step_by(3) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] ^= flip;
            let answer = post(&damaged);
            assert!(
                matches!(answer.status, 200 | 400 | 413 | 422 | 503),
                "byte {at}: {} {}",
                answer.status,
                answer.text
            );
            if answer.status != 200 {
                refused += 1;
                assert_eq!(answer.content_type, "application/problem+json", "byte {at}");
            }
        }
    }
    assert!(refused > 100, "{refused}");
    let log = running.interrupt().stderr;
    let mut panics = 0;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        if let Some(place) = line["place"].as_str() {
            panics += 1;
            assert_eq!(line["level"], "WARN", "{line}");
            assert!(
                !place.starts_with("src/")
                    && !place.starts_with("crates/")
                    && line["message"].as_str().unwrap().contains("refused an Arrow stream"),
                "{line}"
            );
        }
    }
    eprintln!("{refused} bodies were refused, {panics} of them by a panic");
    assert!(panics > 0, "none of them made the library panic: the test shows nothing");
}

#[test]
fn quotes_of_csv_that_do_not_close_are_no_field() {
    assert!(refused(Format::Csv, "csv/open-quote").contains("line 2: the quote that opens here is never closed"));
    assert!(refused(Format::Csv, "csv/after-a-quote").contains("line 2: expected a comma"));
}

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
