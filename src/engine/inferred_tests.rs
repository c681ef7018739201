//! Views that `init` writes, run on the records that it has seen: twenty files of common kinds, files that failed in the
//! past, and random texts.

mod samples;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::TimestampMillisecondArray;
use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Int32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use proptest::prelude::*;
use samples::SAMPLES;
use tercile_store::{Snapshot, record};

use super::{collect, conversions, open};
use crate::files::{Options, Rows, Source};
use crate::sql::infer::{Inference, MISSING, view_name};
use crate::sql::{Files, identifier};
use crate::value::number::Format;
use crate::value::time::{self, Order};
use crate::value::trimmed;

/// The files that `init` writes for these records, and its inference.
fn init(name: &str, records: &[String], missing: Option<&[&str]>) -> (Inference, Files, tempfile::TempDir) {
    let listed = missing.map(|missing| missing.iter().map(|text| (*text).to_owned()).collect());
    let mut sketch = Inference::new(listed);
    records.iter().for_each(|record| sketch.see(record.as_bytes()));
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in sketch.files(name) {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let files = Files::load(Some(dir.path())).unwrap();
    (sketch, files, dir)
}

/// The rows of the typed view over these records.
fn typed(name: &str, records: &[String], files: &Files) -> RecordBatch {
    let fields = &files.fields;
    let mut columns: Vec<Vec<Option<String>>> = vec![Vec::new(); fields.names().len()];
    for text in records {
        let decoded = record::decode(Some(text.as_bytes()), fields).unwrap();
        for (column, value) in columns.iter_mut().zip(decoded.values) {
            column.push(value.map(|value| value.into_owned()));
        }
    }
    let rows = i64::try_from(records.len()).unwrap();
    let mut all: Vec<(String, ArrayRef)> = vec![
        ("_partition".to_owned(), Arc::new(Int32Array::from(vec![0; records.len()]))),
        ("_offset".to_owned(), Arc::new(Int64Array::from_iter_values(0..rows))),
        ("_timestamp".to_owned(), Arc::new(TimestampMillisecondArray::from_iter_values(0..rows).with_timezone("UTC"))),
        ("_error".to_owned(), Arc::new(StringArray::new_null(records.len()))),
    ];
    for (name, column) in fields.names().iter().zip(columns) {
        all.push((name.clone(), Arc::new(StringArray::from(column))));
    }
    let batch = RecordBatch::try_from_iter_with_nullable(all.into_iter().map(|(name, column)| (name, column, true)));
    let ctx = SessionContext::new();
    conversions::register(&ctx).unwrap();
    ctx.register_batch("records", batch.unwrap()).unwrap();
    let view = files.view(&view_name(name)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { collect(&ctx, &format!("SELECT * FROM ({}) ORDER BY _offset", view.text)).await }).unwrap()
}

/// The kind of a column's type, as a person would say it.
fn kind(kind: &DataType) -> &'static str {
    match kind {
        DataType::Float64 => "number",
        DataType::Decimal128(..) => "integer",
        DataType::Timestamp(..) => "time",
        DataType::Boolean => "boolean",
        DataType::Utf8 | DataType::Utf8View => "text",
        _ => "something else",
    }
}

fn rows_of(path: &Path) -> Vec<String> {
    let mut rows = Rows::open(&Source::File(path.to_owned()), &Options::default()).unwrap();
    let (mut all, mut json) = (Vec::new(), String::new());
    while rows.next_row(&mut json).unwrap().is_some() {
        all.push(json.clone());
    }
    all
}

fn rows_of_text(name: &str, text: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    rows_of(&path)
}

#[test]
fn twenty_files_get_the_types_that_a_person_would_choose() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, header, row, kinds, features) in SAMPLES {
        let text = (0..60).map(row).fold(header.to_owned(), |text, row| text + "\n" + &row);
        let records = rows_of_text(name, &text);
        let (sketch, files, dir) = init(name, &records, None);
        let batch = typed(name, &records, &files);
        let found: Vec<&str> = batch.schema().fields().iter().skip(3).map(|field| kind(field.data_type())).collect();
        assert_eq!(found.join(" "), kinds, "{name}: {header}");
        assert_eq!(sketch.features().0.join(", "), features, "{name}: {:?}", sketch.features().1);
        // What was seen as a value is one.
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()).skip(3) {
            let blank = records.iter().filter(|record| is_missing(record, field.name(), column.data_type())).count();
            assert_eq!(column.null_count(), blank, "{name}: {}", field.name());
        }
        // The segmentation, without the first dashes of each line, plans.
        let file = dir.path().join(format!("30_{}_segments.sql", view_name(name)));
        let active: Vec<String> = std::fs::read_to_string(&file)
            .unwrap()
            .lines()
            .map(|line| line.strip_prefix("-- ").or(line.strip_prefix("--")).unwrap().to_owned())
            .collect();
        std::fs::write(&file, active.join("\n")).unwrap();
        let files = Files::load(Some(dir.path())).unwrap();
        runtime.block_on(async {
            let ctx = open(&Snapshot::default(), &files).await.unwrap();
            let found = super::segmentations(&ctx, &files).await.unwrap();
            assert_eq!((found.len(), found[0].k, found[0].features.join(", ")), (1, 3, features.to_owned()));
        });
    }
}

/// Whether a record has no value for a field: a blank, or for types other than text a text that stands for none.
fn is_missing(record: &str, field: &str, kind: &DataType) -> bool {
    let record: BTreeMap<String, serde_json::Value> = serde_json::from_str(record).unwrap();
    match record.get(field).and_then(serde_json::Value::as_str) {
        Some(text) => kind != &DataType::Utf8 && matches!(text.trim(), "" | "NA" | "?" | "null"),
        None => true,
    }
}

/// The kinds and the first row of a file in `tests/field/init`.
fn field(name: &str) -> (Vec<(String, &'static str)>, RecordBatch, Inference) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field/init").join(name);
    let records = rows_of(&path);
    let (sketch, files, _dir) = init(name, &records, None);
    let batch = typed(name, &records, &files);
    let schema = batch.schema();
    let kinds = schema.fields().iter().skip(3).map(|field| (field.name().clone(), kind(field.data_type()))).collect();
    (kinds, batch, sketch)
}

#[test]
fn files_that_failed_are_read() {
    let kinds = |name: &str| field(name).0.iter().map(|(_, kind)| *kind).collect::<Vec<_>>().join(" ");
    assert_eq!(kinds("dates.csv"), "number time time time time text time time time");
    assert_eq!(kinds("nbsp.csv"), "number number number");
    assert_eq!(kinds("shop_space.csv"), "text text number number number number number");
    assert_eq!(kinds("na_values.csv"), "number number number number");
    assert_eq!(kinds("late_decimal_comma.csv"), "number number");
    assert_eq!(kinds("capitals.csv"), "number number text number number number text");
    assert_eq!(kinds("nd_bigint.ndjson"), "integer number");
    assert_eq!(kinds("user.csv"), "text number number");
    assert_eq!(kinds("mixed.ndjson"), "text");
    assert_eq!(kinds("zip.csv"), "text number");
    let (_, ids, _) = field("nd_bigint.ndjson");
    let ids = datafusion::arrow::compute::cast(ids.column(3), &DataType::Utf8).unwrap();
    let ids: Vec<&str> = ids.as_string::<i32>().iter().flatten().collect();
    assert_eq!(ids, ["9007199254740993", "9007199254740992", "12345678901234567890123"]);
    let (nested, batch, sketch) = field("nd_nested.ndjson");
    let names: Vec<&str> = nested.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["id", "user", "user_age", "user_name", "tags", "price"]);
    assert_eq!(batch.column_by_name("user_age").unwrap().null_count(), 1);
    assert_eq!(sketch.features().0, ["user_age", "price"]);
    let notes = field("na_values.csv").2.notes();
    assert!(notes.iter().any(|(name, note)| name == "age" && note.starts_with("`NA` in 1 of")), "{notes:?}");
    for name in ["nbsp.csv", "shop_space.csv", "dates.csv", "late_decimal_comma.csv"] {
        let (_, batch, _) = field(name);
        assert_eq!(batch.columns().iter().map(|column| column.null_count()).sum::<usize>(), 0, "{name}");
    }
}

#[test]
fn names_of_any_kind_work() {
    let names = [
        "order",
        "Select",
        "a b",
        "unit.price",
        "x\"y",
        "it's",
        "_partition2",
        "user",
        "é",
        "1st",
        "slices",
        "count",
        "-- k: 3",
    ];
    let names = names.iter().filter(|name| !name.starts_with('_'));
    let row = |value: u32| {
        let object: serde_json::Map<_, _> = names
            .clone()
            .enumerate()
            .map(|(i, name)| ((*name).to_owned(), (value * 3 + i as u32 * 2 + value * value).to_string().into()))
            .collect();
        serde_json::Value::Object(object).to_string()
    };
    let records: Vec<String> = (1..12).map(row).collect();
    for from in [
        "user.csv",
        "range.csv",
        "order.csv",
        "one.csv",
        "two.csv",
        "slices.csv",
        "count.ndjson",
        "null.csv",
        "Größe (neu).csv",
        "select.csv",
        "products.csv",
    ] {
        let (_, files, _dir) = init(from, &records, None);
        let batch = typed(from, &records, &files);
        assert_eq!(batch.num_columns(), 3 + names.clone().count(), "{from}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ctx = runtime.block_on(open(&Snapshot::default(), &files)).unwrap();
        for view in [view_name(from), "slices".to_owned()] {
            runtime.block_on(collect(&ctx, &format!("SELECT * FROM {}", identifier(&view)))).unwrap();
        }
    }
}

/// Parts of texts that are numbers or times, or nearly.
const PARTS: [&str; 44] = [
    "0",
    "1",
    "12",
    "123",
    "999",
    "2024",
    "05",
    "31",
    "13",
    ".",
    ",",
    "-",
    "+",
    "\u{2212}",
    " ",
    "\u{a0}",
    "\u{202f}",
    "'",
    "€",
    "$",
    "₹",
    "%",
    "kg",
    "g",
    "e",
    "E5",
    "T",
    ":",
    "10:00",
    "2024-05-01",
    "01/02/2024",
    "/",
    "Z",
    "UTC",
    "+05:30",
    "AM",
    "May",
    "NA",
    "?",
    "nan",
    "inf",
    "true",
    "x",
    "\u{200b}",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::collection::vec(prop::sample::select(&PARTS[..]), 0..6).prop_map(|parts| parts.concat()),
        2 => (-10_000_i64..10_000, 0..1000_u32).prop_map(|(whole, part)| format!("{whole}.{part}")),
        2 => (1900..2100_u32, 1..14_u32, 1..33_u32).prop_map(|(y, m, d)| format!("{d:02}/{m:02}/{y}")),
        1 => any::<String>(),
    ]
}

fn column() -> impl Strategy<Value = Vec<String>> {
    // A column of one notation, mostly: with random texts alone every column would be text.
    let numbers = (
        prop::sample::select(&["", "€", "%", " kg", "\u{a0}€"][..]),
        prop::bool::ANY,
        prop::collection::vec((0..3_000_000_u32, 0..100_u32), 1..8),
    )
        .prop_map(|(unit, comma, values)| {
            let written = |(whole, part): (u32, u32)| {
                let (mark, group) = if comma { (',', '.') } else { ('.', ',') };
                let digits = whole.to_string();
                let grouped: String = digits
                    .chars()
                    .enumerate()
                    .flat_map(|(i, c)| ((digits.len() - i) % 3 == 0 && i > 0).then_some(group).into_iter().chain([c]))
                    .collect();
                format!("{grouped}{mark}{part:02}{unit}")
            };
            values.into_iter().map(written).collect::<Vec<_>>()
        });
    (prop_oneof![2 => numbers, 1 => prop::collection::vec(text(), 1..8)], prop::option::weighted(0.5, text())).prop_map(
        |(mut values, odd)| {
            values.extend(odd);
            values
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// A view reads every value that `init` saw as a number or a time, and the functions of SQL are the rules in Rust.
    #[test]
    fn a_view_reads_what_init_read(values in column()) {
        let records: Vec<String> = values.iter().map(|value| serde_json::json!({ "x": value }).to_string()).collect();
        let (_, files, _dir) = init("things.csv", &records, None);
        let batch = typed("things.csv", &records, &files);
        let column = batch.column_by_name("x").unwrap();
        if *column.data_type() != DataType::Utf8 {
            for (row, value) in values.iter().enumerate() {
                let missing = trimmed(value).is_empty() || MISSING.contains(&trimmed(value).to_lowercase().as_str());
                prop_assert_eq!(column.is_null(row), missing, "{:?} in {:?}", value, values);
            }
        }
        let ctx = SessionContext::new();
        conversions::register(&ctx).unwrap();
        let texts: ArrayRef = Arc::new(StringArray::from(values.clone()));
        ctx.register_batch("t", RecordBatch::try_from_iter([("x", texts)]).unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sql = "SELECT to_number(x) AS a, to_number(x, ',', '€') AS b, to_integer(x) AS c, to_datetime(x) AS d, \
                   to_datetime(x, 'dmy') AS e FROM t";
        let read = runtime.block_on(collect(&ctx, sql)).unwrap();
        let comma = Format { mark: ',', unit: Some("€".to_owned()) };
        for (row, value) in values.iter().enumerate() {
            use datafusion::arrow::datatypes::{Decimal128Type, Float64Type, TimestampMicrosecondType};
            let number = |i: usize| read.column(i).as_primitive::<Float64Type>().iter().nth(row).flatten();
            let time = |i: usize| read.column(i).as_primitive::<TimestampMicrosecondType>().iter().nth(row).flatten();
            let whole = read.column(2).as_primitive::<Decimal128Type>().iter().nth(row).flatten();
            prop_assert_eq!(number(0), Format::default().number(value), "{:?}", value);
            prop_assert_eq!(number(1), comma.number(value), "{:?}", value);
            prop_assert_eq!(whole, Format::default().integer(value), "{:?}", value);
            prop_assert_eq!(time(3), time::time(value, None), "{:?}", value);
            prop_assert_eq!(time(4), time::time(value, Some(Order::DayFirst)), "{:?}", value);
        }
    }
}

#[test]
fn wrong_constants_are_named() {
    let ctx = SessionContext::new();
    conversions::register(&ctx).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fails = |sql: &str| runtime.block_on(collect(&ctx, sql)).unwrap_err().to_string();
    assert!(fails("SELECT to_number('1', '.', ',')").contains("each at most once; found ','"));
    assert!(fails("SELECT to_number('1', '5')").contains("a unit without digits"));
    assert!(fails("SELECT to_datetime('1', 'ymd')").contains("'dmy' (day first), 'mdy' (month first), or the unit"));
    assert!(fails("SELECT to_number()").contains("to_number"));
    assert!(fails("SELECT to_number('{}' -> 'a')").contains("->> gives a text"));
    assert!(fails("SELECT to_number('1', x) FROM (VALUES ('€')) t(x)").contains("must be constant texts"));
}
