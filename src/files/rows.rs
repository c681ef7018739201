//! Reads a CSV or JSON file as JSON objects, one per row.
//!
//! Input: a [`Source`]. Output: each row as the JSON object that is sent to the topic, with its values as written in the
//! file. CSV values become strings; JSON objects stay as they are.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use csv::StringRecord;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tercile_store::json_text;

use super::input::{Wrap, open_wrapped};
use super::{CsvRecords, Dialect, Error, Fault, Opened, Options, Source, Splitter, no_number};
use crate::file_format::{self, Format};
use crate::printable::{hex, shell_word};

enum Kind {
    Csv {
        records: Box<CsvRecords>,
        record: StringRecord,
        /// Each column's name as a JSON string, followed by a colon.
        keys: Vec<String>,
    },
    Json(Splitter<Box<dyn Read + Send>>),
}

/// A file of rows, read sequentially.
pub struct Rows {
    path: PathBuf,
    pub format: Format,
    pub dialect: Dialect,
    kind: Kind,
    /// Bytes before the header: a byte-order mark and lines that are skipped.
    start: u64,
    position: Arc<AtomicU64>,
}

/// A file that was read completely without an error.
#[derive(Debug, Clone)]
pub struct Checked {
    pub rows: u64,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
    /// SHA-256 of the first row as JSON, in hex; empty if there is none.
    pub first: String,
}

impl Rows {
    /// Opens a source.
    ///
    /// # Errors
    /// If the source cannot be opened, or if its first bytes are neither CSV nor JSON.
    pub fn open(source: &Source, options: &Options) -> Result<Self, Error> {
        Self::open_wrapped(source, options, &|bytes| bytes)
    }

    pub(super) fn open_wrapped(source: &Source, options: &Options, wrap: Wrap<'_>) -> Result<Self, Error> {
        let opened = open_wrapped(source, options, wrap)?;
        let position = opened.position();
        let Opened { path, format, dialect, input, start, .. } = opened;
        let kind = match format {
            Format::Csv | Format::Tsv => {
                let records = CsvRecords::open(input, &dialect).map_err(|fault| fault.at(&path))?;
                let keys = records.names().iter().map(|name| key(name)).collect();
                Kind::Csv { records: Box::new(records), record: StringRecord::new(), keys }
            }
            Format::Json | Format::Ndjson => Kind::Json(Splitter::new(input, usize::MAX).by_lines()),
            Format::Parquet | Format::Arrow | Format::Feather => {
                let (found, table) = (file_format::value_name(&format), format!("t={}", path.display()));
                let what = format!(
                    "expected CSV or JSON, found {found}; convert it with `tercile sql --table {} -o rows.ndjson -c \"SELECT * FROM t\"`",
                    shell_word(&table)
                );
                return Err(Fault::whole(what).at(&path));
            }
        };
        Ok(Self { path, format, dialect, kind, start, position })
    }

    /// The path used in error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reports the dialect: see [`super::report`].
    pub fn report(&self) {
        let records = match &self.kind {
            Kind::Csv { records, .. } => Some(records.as_ref()),
            Kind::Json(_) => None,
        };
        super::report(&self.path, self.format, &self.dialect, records);
    }

    /// The columns of a CSV file; `None` for JSON.
    pub fn names(&self) -> Option<&[String]> {
        match &self.kind {
            Kind::Csv { records, .. } => Some(records.names()),
            Kind::Json(_) => None,
        }
    }

    /// Bytes of the file read so far, for progress.
    pub fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    /// Bytes before the header, in a file that is not compressed.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// End of the last row: bytes of decoded text from the header on.
    pub(super) fn end(&self) -> u64 {
        match &self.kind {
            Kind::Csv { records, .. } => records.position(),
            Kind::Json(values) => values.position(),
        }
    }

    /// Replaces the content of `json` by the next row and returns the line where the row starts; `None` at the end.
    ///
    /// # Errors
    /// If the row is malformed or the input cannot be read.
    pub fn next_row(&mut self, json: &mut String) -> Result<Option<u64>, Error> {
        json.clear();
        let path = &self.path;
        match &mut self.kind {
            Kind::Csv { records, record, keys } => {
                let Some(line) = records.next(record).map_err(|fault| fault.at(path))? else { return Ok(None) };
                json.push('{');
                for (i, (key, value)) in keys.iter().zip(record.iter()).enumerate() {
                    if i > 0 {
                        json.push(',');
                    }
                    json.push_str(key);
                    json_text::push_json_string(json, value);
                }
                json.push('}');
                Ok(Some(line))
            }
            Kind::Json(values) => {
                let Some((line, text)) = object(values).map_err(|fault| fault.at(path))? else { return Ok(None) };
                json.push_str(text);
                Ok(Some(line))
            }
        }
    }
}

/// The next object of a file of JSON, with the line where it starts.
///
/// # Errors
/// If the next value is no object, is malformed, or cannot be read.
pub fn object<R: Read>(values: &mut Splitter<R>) -> Result<Option<(u64, &str)>, Fault> {
    let expected = |line, found: String| Fault::line(line, format!("expected a JSON object, found {found}"));
    let start = values.next_line().map_err(Fault::Io)?;
    let piece = match values.value() {
        Ok(Some(piece)) => piece,
        Ok(None) => return Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::FileTooLarge) => {
            return Err(Fault::line(start, format!("expected a JSON object, but {error}")));
        }
        Err(error) => return Err(Fault::Io(error)),
    };
    let line = piece.line;
    let text = std::str::from_utf8(piece.bytes).map_err(|_| Fault::line(line, "expected UTF-8, found other bytes"))?;
    if !text.starts_with('{') {
        return Err(expected(line, "something else".to_owned()));
    }
    serde_json::from_str::<IgnoredAny>(text)
        .map_err(|error| expected(line, no_number(text).unwrap_or_else(|| format!("an error: {error}"))))?;
    Ok(Some((line, text)))
}

/// A column's name as a JSON string, followed by a colon.
fn key(name: &str) -> String {
    let mut key = String::new();
    json_text::push_json_string(&mut key, name);
    key.push(':');
    key
}

/// Reads a whole file without keeping it, so that no row of a faulty file is sent.
///
/// # Errors
/// If the file cannot be read or a row is malformed.
pub fn check(source: &Source, options: &Options) -> Result<Checked, Error> {
    struct Hashing(Box<dyn Read + Send>, Arc<Mutex<Sha256>>);
    impl Read for Hashing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..read]);
            Ok(read)
        }
    }
    let hasher = Arc::default();
    let wrap = |bytes| Box::new(Hashing(bytes, Arc::clone(&hasher))) as Box<dyn Read + Send>;
    let mut rows = Rows::open_wrapped(source, options, &wrap)?;
    let mut json = String::new();
    let (mut count, mut first) = (0, String::new());
    while rows.next_row(&mut json)?.is_some() {
        if count == 0 {
            first = hex(&Sha256::digest(&json));
        }
        count += 1;
    }
    drop(rows);
    let hasher = std::mem::take(&mut *hasher.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Checked { rows: count, hash: hex(&hasher.finalize()), first })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, String)>, Error> {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        let source = Source::Copied { name: "f".into(), file: Arc::new(file) };
        let mut rows = Rows::open(&source, &Options::default())?;
        let mut json = String::new();
        let mut out = Vec::new();
        while let Some(line) = rows.next_row(&mut json)? {
            out.push((line, json.clone()));
        }
        Ok(out)
    }

    #[test]
    fn csv_rows_become_objects_of_strings() {
        let rows = all("\u{feff}a,\"b,c\"\r\n1,\"x\"\"y\nz\"\r\n,₹1\n".as_bytes()).unwrap();
        let expected =
            [(2, "{\"a\":\"1\",\"b,c\":\"x\\\"y\\nz\"}".to_owned()), (4, "{\"a\":\"\",\"b,c\":\"₹1\"}".to_owned())];
        assert_eq!(rows, expected);
    }

    #[test]
    fn ndjson_rows_stay_as_they_are() {
        let rows = all(b"\xef\xbb\xbf{\"a\": 1.50}\n\n {\"b\":[1,2]}\r\n{}").unwrap();
        assert_eq!(rows, [(1, "{\"a\": 1.50}".into()), (3, "{\"b\":[1,2]}".into()), (4, "{}".into())]);
    }

    #[test]
    fn faults_name_file_line_and_what_was_expected() {
        let fault = |bytes: &[u8]| all(bytes).unwrap_err().to_string();
        assert_eq!(fault(b""), "f: expected a header line with the columns' names, the file is empty");
        assert_eq!(fault(b" \n \n"), "f: expected a header line with the columns' names, the file is empty");
        assert_eq!(fault(b"a,b\n1,2\n3\n"), "f, line 3: expected 2 fields as in the header, found 1");
        assert_eq!(fault(b"a,b\r\n1,2\r\n3\r\n"), "f, line 3: expected 2 fields as in the header, found 1");
        assert_eq!(fault(b"a,b\n1,2,3\n"), "f, line 2: expected 2 fields as in the header, found 3");
        let number = "expected a header line with the columns' names, found 4.2, a number; give --header no if the first line \
                      has values, --header yes if these are names";
        assert_eq!(fault(b"x,4.2\n"), format!("f, line 1: {number}"));
        assert_eq!(
            fault(b"a,b\n1,2\n\"x\"y,3\n"),
            "f, line 3: expected a comma or the line's end after a closing quote"
        );
        assert_eq!(fault(b"a,b\n1,2\n3,\"4\nb,3\nc,2\n"), "f, line 3: the quote that opens here is never closed");
        assert_eq!(fault(b"{}\n[1]\n"), "f, line 2: expected a JSON object, found something else");
        assert_eq!(
            fault(b"{}\n{\"a\":\"NaN\",\"b\":-Infinity}\n"),
            "f, line 2: expected a JSON object, found Infinity, which JSON does not have; write null instead"
        );
        assert!(
            fault(b"{}\n{\"a\":}\n").starts_with("f, line 2: expected a JSON object, found an error: expected value")
        );
        assert_eq!(
            fault(b"{}\n\n{\"a\":1\n"),
            "f, line 3: expected a JSON object, but the object does not end on its line"
        );
        assert_eq!(
            fault(b"PAR1"),
            "f: expected CSV or JSON, found parquet; convert it with `tercile sql --table t=f -o rows.ndjson -c \"SELECT * FROM t\"`"
        );
        assert!(fault(b"PK\x03\x04").contains("Excel workbook"));
        assert!(fault(b"a,b\n\x00\x01\x02,\x00").contains("bytes that are zero"));
    }

    #[test]
    fn columns_without_a_name_of_their_own_are_numbered() {
        let rows = all(b",a, b ,a,\n1,2,3,4,\n5,6,7,8\n").unwrap();
        let object = |a, b, c, d| format!("{{\"column_1\":\"{a}\",\"a\":\"{b}\",\"b\":\"{c}\",\"a_2\":\"{d}\"}}");
        assert_eq!(rows, [(2, object(1, 2, 3, 4)), (3, object(5, 6, 7, 8))]);
        let named = |header: &str| all(format!("{header}\n").as_bytes()).map_err(|e| e.to_string()).is_ok();
        assert!(named("country,2019,2020") && named("id,1,2,3") && named(",0,1") && named("a,2020"));
        assert!(!named("alice,25,60000") && !named("1,2,3") && !named("bob,25") && !named("x,1.5"));
        assert!(all(b"a,b,\n1,2,3\n").unwrap_err().to_string().contains("line 2: expected 2 fields"));
    }

    #[test]
    fn a_checked_file_has_a_count_and_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.csv");
        std::fs::write(&path, "a\n1\n2\n").unwrap();
        let checked = check(&Source::File(path), &Options::default()).unwrap();
        assert_eq!(checked.rows, 2);
        assert_eq!(checked.hash, hex(&Sha256::digest("a\n1\n2\n")));
    }
}
