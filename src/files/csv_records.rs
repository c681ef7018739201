//! Records of CSV, in a known dialect.
//!
//! Quoting follows RFC 4180: quoted fields may contain delimiters, quotes and line ends. Names of columns are trimmed. An empty
//! name becomes `column_N` with the column's number, and a name that occurs again gets a number (`a`, `a_2`). Trailing columns
//! without a name, which a delimiter at the end of each line makes, are left out as long as they are empty.

use std::io::{self, BufRead as _, BufReader, Read};

use csv::{ErrorKind, ReaderBuilder, StringRecord};

use super::input::DecodeFault;
use super::{Dialect, Fault, Header};

const OTHER_ENCODING: &str = "name its encoding, as in --encoding cp1252";
const TITLES: &str = "if there are lines before the header, give --skip N";
const NAMES: &str = "give --header no if the first line has values, --header yes if these are names";

/// A name that differs from the one in the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renamed {
    /// Empty if the column has no name.
    pub from: String,
    pub to: String,
}

/// Reader of CSV records.
pub struct CsvRecords {
    reader: csv::Reader<Quotes<BufReader<Box<dyn Read + Send>>>>,
    names: Vec<String>,
    renamed: Vec<Renamed>,
    /// The first record, if there is no header line.
    first: Option<StringRecord>,
    /// Number of lines before the header.
    before: u64,
    /// 1 if lines end in CR LF: the csv crate counts between the two characters. Otherwise 0.
    behind: u64,
    advice: bool,
}

impl CsvRecords {
    /// Reads the header.
    ///
    /// # Errors
    /// If there is no header, or if its names are numbers and `dialect.header` does not say that it is one.
    pub fn open(input: Box<dyn Read + Send>, dialect: &Dialect) -> Result<Self, Fault> {
        let mut input = BufReader::with_capacity(1 << 18, input);
        // The csv crate would skip a second byte-order mark together with a quote that follows it.
        for already in [false, true] {
            if input.fill_buf().map_err(Fault::Io)?.starts_with(b"\xef\xbb\xbf") {
                if already {
                    return Err(Fault::whole("there are two byte-order marks; expected plain UTF-8"));
                }
                input.consume(3);
            }
        }
        let behind = lines_behind(input.fill_buf().map_err(Fault::Io)?);
        let quotes = Quotes::around(input, dialect.delimiter, dialect.skip);
        let mut builder = ReaderBuilder::new();
        let builder = builder.has_headers(false).flexible(true).delimiter(dialect.delimiter);
        let reader = builder.buffer_capacity(1 << 16).from_reader(quotes);
        let (before, advice) = (dialect.skip, dialect.advice);
        let mut records = Self { reader, names: Vec::new(), renamed: Vec::new(), first: None, before, behind, advice };
        let mut header = StringRecord::new();
        loop {
            if !records.reader.read_record(&mut header).map_err(|error| records.fault(error, 0))? {
                return Err(Fault::whole("expected a header line with the columns' names, the file is empty"));
            }
            if header.iter().any(|name| !name.trim().is_empty()) {
                break;
            }
        }
        let line = header.position().map_or(1, csv::Position::line) + before;
        records.name(&header, dialect, line)?;
        Ok(records)
    }

    /// Names of the columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Columns whose names differ from the header's.
    pub fn renamed(&self) -> &[Renamed] {
        &self.renamed
    }

    /// Whether more than one column has this name in the header, so that a request for it is ambiguous.
    pub fn is_ambiguous(&self, name: &str) -> bool {
        self.renamed.iter().any(|renamed| renamed.from == name)
    }

    /// End of the last record: bytes from the header on.
    pub fn position(&self) -> u64 {
        self.reader.position().byte()
    }

    /// Reads the next record, with as many fields as there are names. Returns the line where it starts; `None` at the end.
    ///
    /// # Errors
    /// If the record has more or fewer fields, a quote that is not closed, or bytes that are not text.
    pub fn next(&mut self, record: &mut StringRecord) -> Result<Option<u64>, Fault> {
        if let Some(first) = self.first.take() {
            *record = first;
            return Ok(Some(record.position().map_or(1, csv::Position::line) + self.before));
        }
        loop {
            if !self.reader.read_record(record).map_err(|error| self.fault(error, self.behind))? {
                return Ok(None);
            }
            let line = record.position().map_or(0, csv::Position::line) + self.before + self.behind;
            let columns = self.names.len();
            if record.len() == columns {
                return Ok(Some(line));
            }
            // White space is a blank line.
            if record.len() == 1 && record[0].trim().is_empty() {
                continue;
            }
            self.fit(record, line)?;
            return Ok(Some(line));
        }
    }

    /// Cuts empty fields behind the last column.
    fn fit(&self, record: &mut StringRecord, line: u64) -> Result<(), Fault> {
        let (columns, found) = (self.names.len(), record.len());
        if found > columns && record.iter().skip(columns).all(|field| field.trim().is_empty()) {
            record.truncate(columns);
            return Ok(());
        }
        let fault = Fault::line(
            line,
            format!("expected {columns} field{} as in the header, found {found}", if columns == 1 { "" } else { "s" }),
        );
        // A table has more columns than its title.
        Err(if columns == 1 && self.advice { fault.with_remedy(TITLES) } else { fault })
    }

    fn name(&mut self, header: &StringRecord, dialect: &Dialect, line: u64) -> Result<(), Fault> {
        let columns = (0..header.len()).rfind(|i| !header[*i].trim().is_empty()).map_or(0, |last| last + 1);
        if dialect.header == Header::No {
            self.names = (1..=header.len()).map(|number| format!("column_{number}")).collect();
            self.first = Some(header.clone());
            return Ok(());
        }
        let names: Vec<&str> = header.iter().take(columns).map(str::trim).collect();
        if dialect.header == Header::Auto
            && let Some(number) = no_name(&names)
        {
            let what = format!("expected a header line with the columns' names, found {number}, a number");
            return Err(Fault::line(line, what).with_remedy(NAMES));
        }
        for (i, name) in names.iter().enumerate() {
            let taken = |name: &str, all: &[String]| all.iter().any(|other| other == name) || names.contains(&name);
            let new = if name.is_empty() {
                let number = i + 1;
                free(&format!("column_{number}"), |name| taken(name, &self.names))
            } else if self.names.iter().any(|other| other == name) {
                let numbered = (2..).map(|n| format!("{name}_{n}")).find(|name| !taken(name, &self.names));
                numbered.unwrap_or_default()
            } else {
                self.names.push((*name).to_owned());
                continue;
            };
            self.renamed.push(Renamed { from: (*name).to_owned(), to: new.clone() });
            self.names.push(new);
        }
        Ok(())
    }

    fn fault(&self, error: csv::Error, behind: u64) -> Fault {
        let of = |line: u64| line + self.before + behind;
        match error.into_kind() {
            ErrorKind::Io(source) => {
                let inner = source.get_ref();
                if let Some(fault) = inner.and_then(|inner| inner.downcast_ref::<QuoteFault>()) {
                    return Fault::line(fault.line, fault.why.clone());
                }
                match inner.and_then(|inner| inner.downcast_ref::<DecodeFault>()) {
                    Some(fault) => {
                        let what = format!("expected {}, found other bytes", fault.encoding);
                        Fault::line(fault.line, what).with_remedy(OTHER_ENCODING)
                    }
                    None => Fault::Io(source),
                }
            }
            ErrorKind::Utf8 { pos, .. } => {
                let fault = Fault::line(of(pos.map_or(1, |p| p.line())), "expected UTF-8, found other bytes");
                if self.advice { fault.with_remedy(OTHER_ENCODING) } else { fault }
            }
            other => Fault::whole(format!("{other:?}")),
        }
    }
}

/// The name, or the name with underscores behind it that is free.
fn free(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut name = name.to_owned();
    while taken(&name) {
        name.push('_');
    }
    name
}

/// A number among the names that is no plausible name. Plausible are years, and consecutive whole numbers, beside at least one
/// name that is text.
fn no_name<'n>(names: &[&'n str]) -> Option<&'n str> {
    let numbers: Vec<&str> = names.iter().copied().filter(|name| name.parse::<f64>().is_ok()).collect();
    let first = numbers.first()?;
    let whole: Option<Vec<u64>> = numbers.iter().map(|name| name.parse().ok()).collect();
    let plausible = whole.is_some_and(|whole| {
        let years = whole.iter().all(|year| (1900..=2100).contains(year));
        let consecutive = whole.len() > 1 && whole.windows(2).all(|pair| pair[1] == pair[0] + 1);
        years || consecutive
    });
    let named = names.iter().any(|name| name.is_empty() || name.parse::<f64>().is_err());
    (!(plausible && named)).then_some(first)
}

/// The amount by which the csv crate's line numbers are too small, determined from the first bytes of a file: 1 if
/// lines end in CR LF, because the crate counts between the two characters. Its line number of a header is correct.
fn lines_behind(head: &[u8]) -> u64 {
    u64::from(head.windows(2).find(|pair| pair[1] == b'\n').is_some_and(|pair| pair[0] == b'\r'))
}

/// A reader that checks the quotes of CSV. The csv crate accepts quoting that RFC 4180 does not allow, and an
/// unclosed quote would turn the rest of a file into one field. A quote inside an unquoted field is accepted and
/// kept.
struct Quotes<R> {
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
struct QuoteFault {
    line: u64,
    why: String,
}

impl<R> Quotes<R> {
    /// Wraps a reader of CSV with this delimiter, whose first line has `before` lines before it.
    fn around(inner: R, delimiter: u8, before: u64) -> Self {
        Self { inner, state: Quoting::FieldStart, delimiter, line: before + 1, opened: 1 }
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
                let delimiter = match self.delimiter {
                    b'\t' => "a tab",
                    b',' => "a comma",
                    b';' => "a semicolon",
                    _ => "a delimiter",
                };
                let why = format!("expected {delimiter} or the line's end after a closing quote");
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
            let why = "the quote that opens here is never closed".to_owned();
            return Err(io::Error::other(QuoteFault { line: self.opened, why }));
        }
        for &byte in &buffer[..read] {
            self.see(byte).map_err(io::Error::other)?;
        }
        Ok(read)
    }
}
