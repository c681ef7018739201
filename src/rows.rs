//! Reads a CSV or NDJSON file as JSON objects, one per row.
//!
//! Input: a path. Output: each row as the JSON object that is sent to the topic, with its values as written in the
//! file. CSV follows RFC 4180 in full: quoted fields may contain commas, quotes and line ends. CSV values become
//! strings.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tercile_sample as generate;
use tercile_store::record;

/// An error in a file of rows. `line` counts from 1.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: expected a header line with the fields' names, the file is empty", path = path.display())]
    Empty { path: PathBuf },
    #[error("{path}, line 1: expected a header line with the fields' names, found {why}", path = path.display())]
    Header { path: PathBuf, why: String },
    #[error("{path}, line {line}: expected {expected} fields as in the header, found {found}", path = path.display())]
    Fields { path: PathBuf, line: u64, expected: u64, found: u64 },
    #[error("{path}, line {line}: {why}", path = path.display())]
    Quote { path: PathBuf, line: u64, why: &'static str },
    #[error("{path}, line {line}: expected UTF-8, found other bytes", path = path.display())]
    Utf8 { path: PathBuf, line: u64 },
    #[error("{path}, line {line}: expected one JSON object a line, found {why}", path = path.display())]
    Json { path: PathBuf, line: u64, why: String },
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

enum Format {
    Csv {
        reader: csv::Reader<Box<dyn Read + Send>>,
        record: ByteRecord,
        /// Each field's name as a JSON string, followed by a colon.
        keys: Vec<String>,
        /// 1 if lines end in CR LF: the csv reader counts between the two characters. Otherwise 0.
        behind: u64,
    },
    Ndjson {
        reader: BufReader<Box<dyn Read + Send>>,
        line: u64,
        bytes: u64,
        buffer: Vec<u8>,
    },
}

/// The source of the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Stdin,
    /// The built-in sample, identical to `generate 1465 --seed 42`.
    Sample,
}

impl Source {
    /// The name used in errors and messages.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Stdin => PathBuf::from("stdin"),
            Self::Sample => PathBuf::from("the shipped sample"),
        }
    }

    /// Total size in bytes, if known.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File(path) => path.metadata().ok().map(|m| m.len()),
            Self::Stdin | Self::Sample => None,
        }
    }

    fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        Ok(match self {
            Self::File(path) => Box::new(File::open(path).map_err(Error::io(path))?),
            Self::Stdin => Box::new(io::stdin()),
            Self::Sample => Box::new(io::Cursor::new(generate::sample())),
        })
    }
}

/// A file of rows, read sequentially.
pub struct Rows {
    path: PathBuf,
    format: Format,
}

/// A file that was read completely without an error.
pub struct Checked {
    pub rows: u64,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
}

impl Rows {
    /// Opens a source. Input that starts with `{` is NDJSON, any other input is CSV.
    ///
    /// # Errors
    /// If the source cannot be opened or its first bytes cannot be read.
    pub fn open(source: &Source) -> Result<Self, Error> {
        Self::new(&source.name(), source.open()?)
    }

    /// The path used in error messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn new(path: &Path, mut input: Box<dyn Read + Send>) -> Result<Self, Error> {
        let mut head = read_head(&mut input).map_err(Error::io(path))?;
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
        let first = text.iter().find(|byte| !byte.is_ascii_whitespace()).copied();
        let ndjson = match first {
            None => return Err(Error::Empty { path: path.to_owned() }),
            Some(b'[') => {
                let why = "an array: write each of its objects on a line of its own".to_owned();
                return Err(Error::Json { path: path.to_owned(), line: 1, why });
            }
            Some(byte) => byte == b'{',
        };
        let behind = lines_behind(text);
        // The byte-order mark is not part of the first field: with it, a quote after it would not open a quoted
        // field.
        let skipped = head.len() - text.len();
        let input: Box<dyn Read + Send> = Box::new(io::Cursor::new(head.split_off(skipped)).chain(input));
        let path = path.to_owned();
        if ndjson {
            let reader = BufReader::with_capacity(1 << 16, input);
            return Ok(Self { path, format: Format::Ndjson { reader, line: 0, bytes: 0, buffer: Vec::new() } });
        }
        let input: Box<dyn Read + Send> = Box::new(Quotes::around(input, b','));
        let mut reader = ReaderBuilder::new().buffer_capacity(1 << 16).from_reader(input);
        let header = match reader.byte_headers() {
            Ok(header) => header.clone(),
            Err(error) => return Err(csv_error(&path, 0, error)),
        };
        let keys = header_keys(&path, &header)?;
        Ok(Self { path, format: Format::Csv { reader, record: ByteRecord::new(), keys, behind } })
    }

    /// The names in a CSV file's header, as JSON strings; `None` for NDJSON.
    pub fn header(&self) -> Option<impl Iterator<Item = &str>> {
        match &self.format {
            Format::Csv { keys, .. } => Some(keys.iter().map(|key| key.trim_end_matches(':'))),
            Format::Ndjson { .. } => None,
        }
    }

    /// Bytes read so far, for progress.
    pub fn position(&self) -> u64 {
        match &self.format {
            Format::Csv { reader, .. } => reader.position().byte(),
            Format::Ndjson { bytes, .. } => *bytes,
        }
    }

    /// Replaces the content of `json` by the next row and returns the line where the row starts; `None` at the end.
    ///
    /// # Errors
    /// If the row is malformed or the input cannot be read.
    pub fn next_row(&mut self, json: &mut String) -> Result<Option<u64>, Error> {
        json.clear();
        let path = &self.path;
        match &mut self.format {
            Format::Csv { reader, record, keys, behind } => {
                if !reader.read_byte_record(record).map_err(|e| csv_error(path, *behind, e))? {
                    return Ok(None);
                }
                let line = record.position().map_or(0, csv::Position::line) + *behind;
                json.push('{');
                for (i, (key, value)) in keys.iter().zip(record.iter()).enumerate() {
                    if i > 0 {
                        json.push(',');
                    }
                    json.push_str(key);
                    let text = std::str::from_utf8(value).map_err(|_| Error::Utf8 { path: path.clone(), line })?;
                    record::push_json_string(json, text);
                }
                json.push('}');
                Ok(Some(line))
            }
            Format::Ndjson { reader, line, bytes, buffer } => loop {
                buffer.clear();
                let read = reader.read_until(b'\n', buffer).map_err(Error::io(path))?;
                if read == 0 {
                    return Ok(None);
                }
                *bytes += read as u64;
                *line += 1;
                let text =
                    std::str::from_utf8(buffer).map_err(|_| Error::Utf8 { path: path.clone(), line: *line })?.trim();
                if text.is_empty() {
                    continue;
                }
                let bad = |why: String| Error::Json { path: path.clone(), line: *line, why };
                if !text.starts_with('{') {
                    return Err(bad("something else".to_owned()));
                }
                serde_json::from_str::<IgnoredAny>(text).map_err(|e| bad(format!("an error: {e}")))?;
                json.push_str(text);
                return Ok(Some(*line));
            },
        }
    }
}

/// The amount by which the csv crate's line numbers are too small, determined from the first bytes of a file: 1 if
/// lines end in CR LF, because the crate counts between the two characters. Its line number of a header is correct.
pub(crate) fn lines_behind(head: &[u8]) -> u64 {
    u64::from(head.windows(2).find(|pair| pair[1] == b'\n').is_some_and(|pair| pair[0] == b'\r'))
}

/// The message and the line number of a CSV error; `None` if the error belongs to no line. `behind` is the result of
/// [`lines_behind`].
pub(crate) fn line_fault(error: &csv::Error, behind: u64) -> Option<String> {
    let line = |pos: &csv::Position| pos.line() + behind;
    match error.kind() {
        ErrorKind::UnequalLengths { pos: Some(pos), expected_len, len } => {
            Some(format!("line {}: expected {expected_len} fields as in the header, found {len}", line(pos)))
        }
        ErrorKind::Utf8 { pos: Some(pos), .. } => {
            Some(format!("line {}: expected UTF-8, found other bytes", line(pos)))
        }
        _ => None,
    }
}

/// Maximum number of bytes inspected before the first row: enough to skip a byte-order mark and blank lines.
const HEAD: usize = 4096;

/// Reads until the first line or its format is known. It reads no further, because the rest of a pipe may arrive much
/// later.
fn read_head(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut chunk = [0; HEAD];
    while head.len() < HEAD {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&head);
        let first = text.iter().position(|byte| !byte.is_ascii_whitespace());
        if first.is_some_and(|at| matches!(text[at], b'{' | b'[') || text[at..].contains(&b'\n')) {
            break;
        }
        match input.read(&mut chunk[..HEAD - head.len()]) {
            Ok(0) => break,
            Ok(read) => head.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(head)
}

/// A reader that checks the quotes of CSV. The csv crate accepts quoting that RFC 4180 does not allow, and an
/// unclosed quote would turn the rest of a file into one field. A quote inside an unquoted field is accepted and
/// kept.
pub(crate) struct Quotes<R> {
    inner: R,
    state: Quoting,
    delimiter: u8,
    line: u64,
    /// The line where the quoted field starts.
    opened: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Quoting {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside a quoted field: either the end of the field or the first half of an escaped quote.
    Closing,
}

#[derive(Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub(crate) struct QuoteFault {
    line: u64,
    why: &'static str,
}

impl<R> Quotes<R> {
    /// Wraps a reader of CSV with this delimiter.
    pub(crate) fn around(inner: R, delimiter: u8) -> Self {
        Self { inner, state: Quoting::FieldStart, delimiter, line: 1, opened: 1 }
    }

    fn see(&mut self, byte: u8) -> Result<(), QuoteFault> {
        self.line += u64::from(byte == b'\n');
        self.state = match (self.state, byte) {
            (Quoting::Quoted, b'"') => Quoting::Closing,
            (Quoting::Quoted, _) => Quoting::Quoted,
            (Quoting::Closing, b'"') => Quoting::Quoted,
            (_, b'\n' | b'\r') => Quoting::FieldStart,
            (_, byte) if byte == self.delimiter => Quoting::FieldStart,
            (Quoting::Closing, _) => {
                let why = match self.delimiter {
                    b'\t' => "expected a tab or the line's end after a closing quote",
                    _ => "expected a comma or the line's end after a closing quote",
                };
                return Err(QuoteFault { line: self.line, why });
            }
            (Quoting::FieldStart, b'"') => {
                self.opened = self.line;
                Quoting::Quoted
            }
            _ => Quoting::Plain,
        };
        Ok(())
    }
}

impl<R: Read> Read for Quotes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if read == 0 && self.state == Quoting::Quoted && !buffer.is_empty() {
            let fault = QuoteFault { line: self.opened, why: "the quote that opens here is never closed" };
            return Err(io::Error::other(fault));
        }
        for &byte in &buffer[..read] {
            self.see(byte).map_err(io::Error::other)?;
        }
        Ok(read)
    }
}

/// Reads a whole file without keeping it, so that no row of a faulty file is sent.
///
/// # Errors
/// If the file cannot be read or a row is malformed.
pub fn check(source: &Source) -> Result<Checked, Error> {
    struct Hashing<R>(R, std::sync::Arc<std::sync::Mutex<Sha256>>);
    impl<R: Read> Read for Hashing<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let read = self.0.read(buffer)?;
            self.1.lock().unwrap_or_else(std::sync::PoisonError::into_inner).update(&buffer[..read]);
            Ok(read)
        }
    }
    let hasher = std::sync::Arc::default();
    let input = Hashing(source.open()?, std::sync::Arc::clone(&hasher));
    let mut rows = Rows::new(&source.name(), Box::new(input))?;
    let mut json = String::new();
    let mut count = 0;
    while rows.next_row(&mut json)?.is_some() {
        count += 1;
    }
    drop(rows);
    let hasher = std::mem::take(&mut *hasher.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(Checked { rows: count, hash: hex(&hasher.finalize()) })
}

/// Bytes as lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn header_keys(path: &Path, header: &ByteRecord) -> Result<Vec<String>, Error> {
    let bad = |why: String| Error::Header { path: path.to_owned(), why };
    let mut names: Vec<&str> = Vec::with_capacity(header.len());
    for name in header {
        let name = std::str::from_utf8(name).map_err(|_| Error::Utf8 { path: path.to_owned(), line: 1 })?;
        if name.trim().is_empty() {
            return Err(bad("an empty name".to_owned()));
        }
        if name.trim().parse::<f64>().is_ok() {
            return Err(bad(format!("{name}, a number")));
        }
        if names.contains(&name) {
            return Err(bad(format!("{name} twice")));
        }
        names.push(name);
    }
    if let [name] = names.as_slice()
        && name.contains([';', '\t'])
    {
        return Err(bad(format!("{name:?}: fields are separated by commas")));
    }
    let key = |name: &&str| {
        let mut key = String::new();
        record::push_json_string(&mut key, name);
        key.push(':');
        key
    };
    Ok(names.iter().map(key).collect())
}

fn csv_error(path: &Path, behind: u64, error: csv::Error) -> Error {
    let path = path.to_owned();
    match error.into_kind() {
        ErrorKind::Io(source) => match source.get_ref().and_then(|inner| inner.downcast_ref::<QuoteFault>()) {
            Some(fault) => Error::Quote { path, line: fault.line, why: fault.why },
            None => Error::Io { path, source },
        },
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            Error::Fields { path, line: pos.map_or(0, |p| p.line() + behind), expected: expected_len, found: len }
        }
        ErrorKind::Utf8 { pos, .. } => Error::Utf8 { path, line: pos.map_or(1, |p| p.line() + behind) },
        other => Error::Io { path, source: io::Error::other(format!("{other:?}")) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Result<Vec<(u64, String)>, Error> {
        let mut rows = Rows::new(Path::new("f"), Box::new(io::Cursor::new(bytes.to_vec())))?;
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
        assert_eq!(fault(b""), "f: expected a header line with the fields' names, the file is empty");
        assert_eq!(fault(b" \n \n"), "f: expected a header line with the fields' names, the file is empty");
        assert_eq!(fault(b"a,b\n1,2\n3\n"), "f, line 3: expected 2 fields as in the header, found 1");
        assert_eq!(fault(b"a,b\r\n1,2\r\n3\r\n"), "f, line 3: expected 2 fields as in the header, found 1");
        assert_eq!(fault(b"a,b\n1,2,3\n"), "f, line 2: expected 2 fields as in the header, found 3");
        assert_eq!(fault(b"a,b\n1,\xff\n"), "f, line 2: expected UTF-8, found other bytes");
        assert_eq!(fault(b"a\xff,b\n"), "f, line 1: expected UTF-8, found other bytes");
        assert_eq!(fault(b"x,4.2\n"), "f, line 1: expected a header line with the fields' names, found 4.2, a number");
        assert_eq!(fault(b"a,a\n"), "f, line 1: expected a header line with the fields' names, found a twice");
        assert_eq!(
            fault(b"a,b\n1,2\n\"x\"y,3\n"),
            "f, line 3: expected a comma or the line's end after a closing quote"
        );
        assert_eq!(fault(b"a,b\n1,2\n3,\"4\nb,3\nc,2\n"), "f, line 3: the quote that opens here is never closed");
        assert!(fault(b"a;b\n1;2\n").contains("fields are separated by commas"));
        assert!(fault(b" [{\"a\":1}]").starts_with("f, line 1: expected one JSON object a line, found an array"));
        assert!(fault(b"{}\n[1]\n").starts_with("f, line 2: expected one JSON object a line"));
        assert!(fault(b"{}\n{\"a\":}\n").starts_with("f, line 2: expected one JSON object a line"));
    }

    #[test]
    fn a_checked_file_has_a_count_and_a_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.csv");
        std::fs::write(&path, "a\n1\n2\n").unwrap();
        let checked = check(&Source::File(path)).unwrap();
        assert_eq!(checked.rows, 2);
        assert_eq!(checked.hash, hex(&Sha256::digest("a\n1\n2\n")));
    }
}
