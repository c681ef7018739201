//! Golden answers of every SQL file of the repository: on the built-in sample, on unusual records, and on the real dataset if
//! available. `TERCILE_REWRITE=1 cargo test --test golden` rewrites the answers; review the diff.

use std::path::{Path, PathBuf};
use std::time::Instant;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::prelude::SessionContext;
use sqllogictest::{
    AsyncDB, DBOutput, DefaultColumnType, Runner, default_normalizer, default_validator, strict_column_validator,
};
use tercile::engine;
use tercile::files::{self, Rows, Source};
use tercile::sql::Files;
use tercile_store::batch::{Batch, Record};
use tercile_store::record;
use tercile_store::{Published, Store};

use crate::common;

/// A session on the built-in SQL files, as a database for sqllogictest.
struct Session(SessionContext);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

#[async_trait::async_trait]
impl AsyncDB for Session {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failed> {
        let batch = engine::collect(&self.0, sql).await.map_err(|e| Failed(e.to_string()))?;
        let types = batch.columns().iter().map(|column| match column.data_type() {
            kind if kind.is_integer() => DefaultColumnType::Integer,
            DataType::Float64 => DefaultColumnType::FloatingPoint,
            DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DefaultColumnType::Text,
            _ => DefaultColumnType::Any,
        });
        let types = types.collect();
        let rows = (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| cell(column, row)).collect());
        Ok(DBOutput::Rows { types, rows: rows.collect() })
    }

    async fn shutdown(&mut self) {}
}

fn cell(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "NULL".to_owned();
    }
    let text = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap().value(row).to_string();
    // Leading and trailing blanks would be lost between columns.
    let shown = text.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if text.trim() == text && !text.is_empty() { shown } else { format!("'{shown}'") }
}

/// Records with one millisecond per offset as their times; every seventh has no time.
fn store(dir: &Path, payloads: &[Vec<u8>], fields: &record::Fields) -> Store {
    let store = Store::open(dir).unwrap();
    store.claim("products", "id", 1).unwrap();
    let log = store.log("products", 0);
    log.begin(0).unwrap();
    let mut batch = Batch::new(0, fields);
    for (offset, payload) in (0..).zip(payloads) {
        let timestamp = (offset % 7 != 6).then_some(1_700_000_000_000 + offset);
        let record = Record { offset, timestamp, key: None, payload: Some(payload) };
        batch.push(&record, std::iter::empty(), &record::decode(Some(payload), fields), Instant::now());
    }
    let ready = batch.take().unwrap().unwrap();
    assert!(matches!(log.publish(&ready.records, 0, ready.next).unwrap(), Published::File(_)));
    store
}

fn rows(path: &Path) -> Vec<Vec<u8>> {
    let (mut rows, mut json, mut all) =
        (Rows::open(&Source::File(path.to_owned()), &files::Options::default()).unwrap(), String::new(), Vec::new());
    while rows.next_row(&mut json).unwrap().is_some() {
        all.push(json.clone().into_bytes());
    }
    all
}

/// The `.slt` files of a directory; `sample` and `amazon` have one per built-in SQL file.
fn slts(name: &str) -> Vec<PathBuf> {
    common::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt").join(name))
}

async fn hold(name: &str, payloads: &[Vec<u8>]) {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::shipped().unwrap();
    let store = store(dir.path(), payloads, &files.fields);
    let snapshot = store.snapshot().unwrap();
    for path in slts(name) {
        let connect =
            || async { engine::open(&snapshot, &files).await.map(Session).map_err(|e| Failed(e.to_string())) };
        let mut runner = Runner::new(connect);
        if std::env::var_os("TERCILE_REWRITE").is_some() {
            let (validator, normalizer, columns) = (default_validator, default_normalizer, strict_column_validator);
            runner.update_test_file(&path, "\t", validator, normalizer, columns).await.unwrap();
        } else {
            runner.with_column_validator(strict_column_validator);
            runner.run_file_async(&path).await.unwrap_or_else(|e| panic!("{}", e.display(false)));
        }
    }
}

#[test]
fn every_shipped_file_has_its_golden_answers() {
    let sql = common::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql"));
    let stems = |paths: &[PathBuf]| -> Vec<String> {
        paths.iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    for name in ["sample", "amazon"] {
        assert_eq!(stems(&slts(name)), stems(&sql), "tests/slt/{name}");
    }
    assert!(!slts("odd").is_empty());
}

#[tokio::test]
async fn the_sample() {
    hold("sample", &rows(&Path::new(env!("CARGO_MANIFEST_DIR")).join("data/products.csv"))).await;
}

#[tokio::test]
async fn the_real_dataset() {
    let Some(path) = common::amazon() else { return };
    hold("amazon", &rows(&path)).await;
}

#[tokio::test]
async fn odd_records() {
    let numbers = [
        "4.2",
        " 4.2 ",
        "-0",
        "-0.0",
        "1e308",
        "1e309",
        "-1e309",
        "5e-324",
        "nan",
        "inf",
        "-Infinity",
        "0x10",
        "१२",
        "1,5",
        "1,39,900",
        "₹1,39,900.50",
        "₹ 5",
        "",
        " ",
        "|",
        "9007199254740993",
        "1_000",
        "+7",
        "--7",
        "4,2",
        "12,34,567",
        "1,23",
    ];
    let mut payloads: Vec<Vec<u8>> = Vec::new();
    for number in numbers {
        let value = serde_json::Value::from(number);
        payloads.push(
            format!(r#"{{"product_id":"電話 🦀 ñ","category":"a|b","discounted_price":{value},"discount_percentage":{value},"rating":{value},"rating_count":{value},"actual_price":{value}}}"#)
                .into_bytes(),
        );
    }
    for other in [
        &b"{}"[..],
        b"",
        b"garbage",
        b"[1]",
        b"null",
        b"\xff\xfe",
        br#"{"rating":null}"#,
        br#"{"rating":4.5,"rating_count":12}"#,
        br#"{"rating":true}"#,
        br#"{"rating":[4]}"#,
        br#"{"rating":-0.0}"#,
        br#"{"rating":1e400}"#,
        br#"{"rating":1,"rating":2}"#,
        br#"{"discount_percentage":"64%"}"#,
        br#"{"discount_percentage":"101%"}"#,
        br#"{"discount_percentage":"-1 %"}"#,
        br#"{"category":""}"#,
        br#"{"category":"\u0000x|y"}"#,
        br#"{"other":{"deep":[1,{"x":null}]}}"#,
    ] {
        payloads.push(other.to_vec());
    }
    hold("odd", &payloads).await;
}
