//! Tests of reading columns from Parquet and CSV files.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, Float32Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use super::*;
use crate::missing::Example;

fn here() -> Space {
    Space::within(usize::MAX, column_buffer::scratch())
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn write(batch: &RecordBatch, group: usize) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    let mut writer = ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    file
}

#[test]
fn row_groups_and_threads_make_no_difference() {
    let ints: Int64Array = (0..1000).map(|i| (i % 10 != 3).then_some(i)).collect();
    let floats: Float32Array = (0..1000).map(|i| Some(if i == 17 { f32::NAN } else { i as f32 / 4.0 })).collect();
    let flags: BooleanArray = (0..1000).map(|i| Some(i % 2 == 0)).collect();
    let batch = RecordBatch::try_from_iter([
        ("a", Arc::new(ints) as ArrayRef),
        ("text", Arc::new(StringArray::from(vec!["x"; 1000]))),
        ("b", Arc::new(floats)),
        ("c", Arc::new(flags)),
    ])
    .unwrap();
    for group in [1000, 77] {
        let file = write(&batch, group);
        for (threads, space) in [(1, here()), (3, here()), (3, Space::within(0, column_buffer::scratch()))] {
            let found = read(&file.path().into(), &names(&["c", "a", "b"]), Policy::FIT, threads, &space).unwrap();
            assert_eq!(found.rows, 1000);
            let [flags, ints, floats] = &found.columns[..] else { panic!() };
            assert_eq!((flags.value(4), flags.value(5), flags.null_count()), (1.0, 0.0, 0));
            assert_eq!((ints.value(999), ints.is_null(993), ints.null_count()), (999.0, true, 100));
            assert_eq!((floats.value(999), floats.is_null(17), floats.null_count()), (249.75, true, 1));
        }
        let error = read(&file.path().into(), &names(&["a", "d"]), Policy::FIT, 1, &here()).unwrap_err().to_string();
        assert!(error.ends_with("has no column d; it has a, text, b, c"), "{error}");
        let error = read(&file.path().into(), &names(&["text"]), Policy::FIT, 1, &here()).unwrap_err().to_string();
        assert!(error.contains(", row 0: the column text holds `x`, which is no number"), "{error}");
    }
}

#[test]
fn a_policy_decides_what_becomes_of_missing_and_invalid_values() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "\u{feff}a,b\r\n1, 2.5e3\r\n,NaN\r\n\"x, y\",inf\r\n-0,7\r\n").unwrap();
    let names = names(&["b", "a"]);
    let gaps = |missing, invalid, text: &str, line| Gaps {
        missing,
        invalid,
        example: Some(Example { text: text.to_owned(), place: Place::Line(line) }),
    };
    for space in [here(), Space::within(0, column_buffer::scratch())] {
        let rows = |choice| {
            let found = read(&file.path().into(), &names, Policy::all(choice), 1, &space).unwrap();
            let rows = found.columns.iter().map(|column| column.iter().collect()).collect();
            assert_eq!(found.gaps, [gaps(1, 1, "inf", 4), gaps(1, 1, "x, y", 4)]);
            (rows, found.rows, found.rows_left_out)
        };
        let imputed: Vec<Vec<_>> =
            vec![vec![Some(2500.0), None, None, Some(7.0)], vec![Some(1.0), None, None, Some(-0.0)]];
        assert_eq!(rows(Missing::Impute), (imputed, 4, 0));
        let skipped: Vec<Vec<_>> = vec![vec![Some(2500.0), Some(7.0)], vec![Some(1.0), Some(-0.0)]];
        assert_eq!(rows(Missing::Skip), (skipped, 2, 2));
    }
    let refused = |policy| read(&file.path().into(), &names, policy, 1, &here()).unwrap_err().to_string();
    assert!(refused(Policy::FIT).contains(", line 4: the column b holds `inf`, which is no number; "));
    assert!(refused(Policy::PREDICT).contains(", line 3: the column b is empty; "));
    std::fs::write(file.path(), "a,b\n1,2\n3\n").unwrap();
    let error = read(&file.path().into(), &names, Policy::FIT, 1, &here()).unwrap_err().to_string();
    assert!(error.contains(", line 3: expected 2 fields as in the header, found 1"), "{error}");
    std::fs::write(file.path(), "a,b\nyes,1\nno,\n").unwrap();
    let refused = |choice| read(&file.path().into(), &names, Policy::all(choice), 1, &here()).unwrap_err().to_string();
    let error = refused(Missing::Impute);
    assert!(error.contains("the column a of ") && error.contains("2 hold text, such as `yes` in line 2"), "{error}");
    assert!(refused(Missing::Skip).contains("so --missing skip leaves none"));
}

#[test]
fn text_in_parquet_is_read_like_cells() {
    let texts = StringArray::from(vec![Some(" 1.5"), None, Some("24,269"), Some("")]);
    let floats = Float64Array::from(vec![Some(1.0), Some(f64::NAN), Some(f64::INFINITY), None]);
    let batch = RecordBatch::try_from_iter([("t", Arc::new(texts) as ArrayRef), ("f", Arc::new(floats))]).unwrap();
    for group in [4, 1] {
        let file = write(&batch, group);
        let found = read(&file.path().into(), &names(&["t", "f"]), Policy::all(Missing::Impute), 2, &here()).unwrap();
        assert_eq!(found.columns[0].iter().collect::<Vec<_>>(), [Some(1.5), None, None, None]);
        let told = |gaps: &Gaps| (gaps.missing, gaps.invalid, gaps.example.clone().unwrap());
        let example = |text: &str| Example { text: text.to_owned(), place: Place::Row(2) };
        assert_eq!(told(&found.gaps[0]), (2, 1, example("24,269")));
        assert_eq!(told(&found.gaps[1]), (2, 1, example("inf")));
        let error = read(&file.path().into(), &names(&["t", "f"]), Policy::FIT, 2, &here()).unwrap_err().to_string();
        let file = file.path().display();
        assert!(
            error.starts_with(&format!("{file}, row 2: the column t holds `24,269`, which is no number")),
            "{error}"
        );
        assert!(error.contains("'SELECT * REPLACE (to_number(t) AS t) FROM t'"), "{error}");
    }
}
