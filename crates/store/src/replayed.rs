//! Tracks which rows of replayed files are stored, also after their records expire.
//!
//! Each record that `up` replayed from a file has two headers: the file's hash and the row's number. The stored rows are those
//! of the stored records, and those that `source.json` lists as expired. Retention writes the latter before the records expire,
//! so that at each moment a row is in at least one of them, even after a crash.

use arrow::array::AsArray as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::compact::open;
use super::footer::DataFile;
use super::log::Log;
use super::{Error, Replayed, footer};
use crate::row_set::RowSet;

/// Header of a record replayed by `up`: the file's hash.
pub const FILE_HEADER: &str = "tercile-file";
/// Header of a record replayed by `up`: the row within that file, counted from 0.
pub const ROW_HEADER: &str = "tercile-row";

/// Maximum rows of a file whose number of rows is unknown.
const MOST: u64 = 100_000_000;

impl Log {
    /// Records in `source.json` which rows of replayed files are in these files, before their records expire.
    pub(super) fn keep_progress(&self, files: &[DataFile]) -> Result<(), Error> {
        let Some(source) = self.store.source()? else { return Ok(()) };
        if source.files.is_empty() {
            return Ok(());
        }
        let mut found: Vec<RowSet> = vec![RowSet::default(); source.files.len()];
        for file in files {
            file.replayed_rows(&source.files, &mut found)?;
        }
        self.store.change_source(|now| {
            let mut changed = false;
            for (known, rows) in source.files.iter().zip(&found) {
                let listed = now.files.iter_mut().find(|listed| listed.hash == known.hash);
                changed |= listed.is_some_and(|listed| listed.expired.add(rows));
            }
            changed
        })
    }
}

impl DataFile {
    /// Adds the rows of these replayed files that this file contains.
    fn replayed_rows(&self, replayed: &[Replayed], found: &mut [RowSet]) -> Result<(), Error> {
        let damaged = |e: &dyn std::fmt::Display| Error::Damaged { path: self.path.clone(), why: e.to_string() };
        // A missing file was compacted: the larger file contains its rows.
        let Some((input, metadata)) = open(self)? else { return Ok(()) };
        footer::check(&self.path, &input)?;
        let schema = metadata.parquet_schema();
        let Some(column) = schema.columns().iter().position(|column| column.name() == "_headers") else {
            return Ok(());
        };
        let mask = ProjectionMask::leaves(schema, [column]);
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata).with_projection(mask);
        let wanted: Vec<String> = replayed.iter().map(|file| STANDARD.encode(&file.hash)).collect();
        for batch in reader.build().map_err(|e| damaged(&e))? {
            let batch = batch.map_err(|e| damaged(&e))?;
            let Some(headers) = batch.column(0).as_string_opt::<i32>() else { return Ok(()) };
            for json in headers.iter().flatten() {
                for ((file, wanted), rows) in replayed.iter().zip(&wanted).zip(found.iter_mut()) {
                    if let Some(row) = row_of(json, wanted).filter(|row| *row < file.rows.unwrap_or(MOST)) {
                        rows.insert(row);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The row in a record's headers, if they name the file with this hash (base64, as in the headers).
pub fn row_of(json: &str, wanted: &str) -> Option<u64> {
    // Most records of a topic have no such header.
    if !json.contains(wanted) {
        return None;
    }
    let headers: Vec<(String, Option<String>)> = serde_json::from_str(json).ok()?;
    let value = |name: &str| headers.iter().find(|(header, _)| header == name)?.1.as_deref();
    if value(FILE_HEADER)? != wanted {
        return None;
    }
    String::from_utf8(STANDARD.decode(value(ROW_HEADER)?).ok()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::{EMBEDDED, Policy, Published, RetentionPolicy, Store};
    use super::*;
    use crate::batch::{Batch, Record};
    use crate::record::{self, Fields};

    #[test]
    fn headers_name_a_row_of_a_file() {
        let hash = STANDARD.encode("abc");
        let json = format!(r#"[["x",null],["tercile-file","{hash}"],["tercile-row","{}"]]"#, STANDARD.encode("17"));
        assert_eq!(row_of(&json, &hash), Some(17));
        assert_eq!(row_of(&json, "other"), None);
        assert_eq!(row_of("[]", &hash), None);
        assert_eq!(row_of(r#"[["tercile-file",null]]"#, &hash), None);
    }

    #[test]
    fn expiring_rows_are_recorded_first() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", EMBEDDED, 1).unwrap();
        let file = |hash: &str| Replayed {
            name: hash.to_owned(),
            hash: hash.to_owned(),
            rows: Some(40),
            ..Replayed::default()
        };
        store.add_file(&file("one")).unwrap();
        store.add_file(&file("two")).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let fields = Fields::new(vec!["a".into()]);
        for start in [0, 10, 20] {
            let mut batch = Batch::new(0, &fields);
            for offset in start..start + 10 {
                let record = Record { offset, timestamp: None, key: None, payload: Some(b"{}") };
                // A forged row may be any number.
                let row = if offset == 3 { u64::MAX } else { offset.unsigned_abs() };
                let (hash, row) = (if offset % 2 == 0 { "one" } else { "two" }, row.to_string());
                let headers = [(FILE_HEADER, Some(hash.as_bytes())), (ROW_HEADER, Some(row.as_bytes()))];
                let decoded = record::decode(Some(b"{}"), &fields);
                batch.push(
                    &record,
                    headers.into_iter().map(|(name, value)| (name.into(), value)),
                    &decoded,
                    Instant::now(),
                );
            }
            let records = batch.take().unwrap().unwrap().records;
            assert!(matches!(log.publish(&records, start, start + 10).unwrap(), Published::File(_)));
        }
        let policy = Policy { keep: RetentionPolicy { bytes: Some(1), age: None }, ..Policy::default() };
        assert_eq!(log.compact(&policy).unwrap().expired, 20);
        let source = store.source().unwrap().unwrap();
        let of = |rows: &dyn Fn(u64) -> bool| {
            let mut set = RowSet::default();
            for row in (0..20).filter(|row| rows(*row)) {
                set.insert(row);
            }
            set
        };
        let found: Vec<&RowSet> = source.files.iter().map(|file| &file.expired).collect();
        assert_eq!(found, [&of(&|row| row % 2 == 0), &of(&|row| row % 2 == 1 && row != 3)]);
        assert_eq!(store.copied_source().unwrap(), Some(source));
    }
}
