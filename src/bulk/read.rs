//! Bytes to blocks of rows.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Cursor, Read, Seek as _, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Float64Array, RecordBatch, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::reader::FileReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::arrow::Batches;
use super::split::Splitter;
use super::{Block, Carried, Error, Format, Keep, Limits, json, unnamed_file};
use crate::rows::{QuoteFault, Quotes};

/// Rows of a block of text, at most.
const ROWS: usize = 8192;
/// Rows of a block of columns, at most: enough to go on for a while, few enough to stay in the cache.
const COLUMN_ROWS: usize = 16_384;
/// Bytes of text in a block, more or less.
const BYTES: usize = 4 * 1024 * 1024;

/// Blocks of rows out of a stream.
pub struct Reader {
    pub format: Format,
    source: Source,
    features: Vec<String>,
    limits: Limits,
    keep: Keep,
    /// Rows given so far.
    pub rows: u64,
}

enum Source {
    Json(Splitter<Box<dyn Read + Send>>),
    /// And what is left of the last batch.
    Columns(Box<dyn Iterator<Item = Result<RecordBatch, Error>> + Send>, Option<RecordBatch>),
}

impl Reader {
    /// Opens a stream. Without a format, the first bytes tell.
    pub fn open(input: Box<dyn Read + Send>, format: Option<Format>, features: &[String]) -> Result<Self, Error> {
        Self::open_limited(input, format, features, Limits::NONE, Keep::Row)
    }

    /// Opens a stream whose rows may not be more, or other, than this.
    pub fn open_limited(
        mut input: Box<dyn Read + Send>,
        format: Option<Format>,
        features: &[String],
        limits: Limits,
        keep: Keep,
    ) -> Result<Self, Error> {
        // Enough to see past a byte-order mark and blank lines.
        let mut head = Vec::new();
        input.by_ref().take(4096).read_to_end(&mut head)?;
        let format = format.unwrap_or_else(|| recognise(&head));
        let file = head.starts_with(b"ARROW1");
        let whole: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(input));
        let source = match format {
            Format::Json | Format::Ndjson => Source::Json(Splitter::new(whole, limits.piece)),
            Format::Csv => Source::columns(csv_rows(whole, limits)?),
            // Its lengths are taken at their word, which only who brings their own files may ask for.
            Format::Arrow if file && limits.piece != Limits::NONE.piece => {
                return Err(Error::Read("they are in Arrow's file format; send its streaming format".to_owned()));
            }
            Format::Arrow if file => {
                let reader = FileReader::try_new(spooled(whole)?, None).map_err(read)?;
                Source::columns(reader.map(|batch| batch.map_err(read)))
            }
            Format::Arrow => {
                let mut batches = Batches::new(whole, limits);
                Source::columns(std::iter::from_fn(move || batches.next().transpose()))
            }
            Format::Parquet => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(spooled(whole)?).map_err(read)?;
                let reader = reader.with_batch_size(ROWS).build().map_err(read)?;
                Source::columns(reader.map(|batch| batch.map_err(read)))
            }
        };
        Ok(Self { format, source, features: features.to_vec(), limits, keep, rows: 0 })
    }

    /// The next rows; `None` at the end.
    pub fn block(&mut self) -> Result<Option<Block>, Error> {
        let block = match &mut self.source {
            Source::Json(values) => objects(values, (&self.features, self.keep, self.limits), self.rows)?,
            Source::Columns(batches, rest) => {
                let batch = next_batch(batches, rest).transpose()?;
                batch.map(|batch| columns(batch, &self.features, self.rows)).transpose()?
            }
        };
        if let Some(block) = &block {
            self.rows += block.rows() as u64;
            if self.rows > self.limits.rows {
                return Err(Error::TooMuch(format!("at most {} rows go into one request", self.limits.rows)));
            }
        }
        Ok(block)
    }
}

impl Source {
    fn columns(batches: impl Iterator<Item = Result<RecordBatch, Error>> + Send + 'static) -> Self {
        Self::Columns(Box::new(batches), None)
    }
}

/// The next rows of columns, few enough to be worked on at once.
fn next_batch(
    batches: &mut dyn Iterator<Item = Result<RecordBatch, Error>>,
    rest: &mut Option<RecordBatch>,
) -> Option<Result<RecordBatch, Error>> {
    let batch = match rest.take() {
        Some(batch) => batch,
        None => loop {
            match batches.next()? {
                Ok(batch) if batch.num_rows() == 0 => {}
                Ok(batch) => break batch,
                Err(error) => return Some(Err(error)),
            }
        },
    };
    if batch.num_rows() > COLUMN_ROWS {
        *rest = Some(batch.slice(COLUMN_ROWS, batch.num_rows() - COLUMN_ROWS));
    }
    Some(Ok(batch.slice(0, batch.num_rows().min(COLUMN_ROWS))))
}

fn read(error: impl std::fmt::Display) -> Error {
    Error::Read(crate::sql::one_line(&error.to_string()))
}

fn recognise(head: &[u8]) -> Format {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        _ if head.starts_with(b"PAR1") => Format::Parquet,
        _ if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) => Format::Arrow,
        Some(b'[') => Format::Json,
        Some(b'{') => Format::Ndjson,
        _ => Format::Csv,
    }
}

/// A file of its own, for formats that begin at their end.
fn spooled(mut input: impl Read) -> Result<File, Error> {
    let mut file = unnamed_file()?;
    io::copy(&mut input, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Input of which no more may come than this before somebody says that it is used.
struct Metered<R> {
    inner: R,
    unused: Arc<AtomicUsize>,
    limit: usize,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if self.unused.fetch_add(read, Ordering::Relaxed) > self.limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, TOO_LONG));
        }
        Ok(read)
    }
}

const TOO_LONG: &str = "a row is too long";

/// All columns as text, as they stand in the file.
fn csv_rows(
    input: Box<dyn Read + Send>,
    limits: Limits,
) -> Result<impl Iterator<Item = Result<RecordBatch, Error>> + Send, Error> {
    let unused = Arc::new(AtomicUsize::new(0));
    let metered = Metered { inner: input, unused: Arc::clone(&unused), limit: limits.piece };
    let mut input = BufReader::with_capacity(256 * 1024, metered);
    // The csv crate would pass over a second one, and the quote after it.
    for already in [false, true] {
        if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
            if already {
                return Err(Error::Read("they begin with two byte-order marks; send plain UTF-8".to_owned()));
            }
            input.consume(3);
        }
    }
    let input = Quotes::around(input);
    let mut rows = csv::ReaderBuilder::new().has_headers(false).buffer_capacity(64 * 1024).from_reader(input);
    let mut header = csv::StringRecord::new();
    if !rows.read_record(&mut header).map_err(csv_fault)? {
        return Err(Error::Read("expected a header line with the columns' names, there is nothing".to_owned()));
    }
    if header.len() > limits.fields {
        return Err(Error::TooMuch(format!("rows may have {} columns at most", limits.fields)));
    }
    let fields: Vec<Field> = header.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut record = csv::StringRecord::new();
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        let mut columns: Vec<StringBuilder> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        let (mut count, mut bytes) = (0, 0);
        while !ended && count < ROWS && bytes < BYTES {
            match rows.read_record(&mut record) {
                Ok(true) => {
                    unused.store(0, Ordering::Relaxed);
                    for (column, text) in columns.iter_mut().zip(record.iter()) {
                        column.append_value(text);
                    }
                    count += 1;
                    bytes += record.as_slice().len();
                }
                Ok(false) => ended = true,
                Err(error) => {
                    ended = true;
                    return Some(Err(csv_fault(error)));
                }
            }
        }
        if count == 0 {
            return None;
        }
        let arrays = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef);
        Some(RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).map_err(read))
    }))
}

fn csv_fault(error: csv::Error) -> Error {
    let text = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(error) if error.kind() == io::ErrorKind::InvalidData && text.contains(TOO_LONG) => {
            Error::TooMuch(TOO_LONG.to_owned())
        }
        csv::ErrorKind::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<QuoteFault>()) => read(error),
        csv::ErrorKind::Io(error) => Error::Io(error),
        _ => read(text),
    }
}

fn objects<R: Read>(
    values: &mut Splitter<R>,
    (features, keep, limits): (&[String], Keep, Limits),
    first: u64,
) -> Result<Option<Block>, Error> {
    let mut columns: Vec<Vec<f64>> = features.iter().map(|_| Vec::with_capacity(ROWS)).collect();
    let mut rows = Vec::with_capacity(ROWS);
    let mut bytes = 0;
    while rows.len() < ROWS && bytes < BYTES {
        let row = first + rows.len() as u64;
        let value = values.value().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::Syntax { row, what: error.to_string() },
            io::ErrorKind::FileTooLarge => Error::TooMuch(error.to_string()),
            _ => Error::Io(error),
        })?;
        let Some(value) = value else { break };
        bytes += value.len();
        rows.push(json::row(value, (features, keep, limits), row, &mut columns)?);
    }
    let features = columns.into_iter().map(Float64Array::from).collect();
    Ok(if rows.is_empty() { None } else { Some(Block { features, carried: Carried::Objects(rows) }) })
}

/// Takes the features out of columns of any type that holds numbers, or their text.
fn columns(batch: RecordBatch, features: &[String], first: u64) -> Result<Block, Error> {
    let numbers: Result<_, Error> = features.iter().map(|name| numbers(&batch, name, first)).collect();
    Ok(Block { features: numbers?, carried: Carried::Columns(batch) })
}

/// A feature's column.
fn numbers(batch: &RecordBatch, name: &str, first: u64) -> Result<Float64Array, Error> {
    let schema = batch.schema_ref();
    let mut found = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| field.name() == name);
    let Some((_, column)) = found.next() else {
        let there: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return Err(Error::Missing(name.to_owned(), crate::sql::one_line(&there.join(", "))));
    };
    let of_column = |what: String| Error::Column { field: name.to_owned(), what };
    if found.next().is_some() {
        return Err(of_column("stands twice".to_owned()));
    }
    let fault = |row: usize, what: &str| Error::Field {
        row: first + row as u64,
        field: name.to_owned(),
        what: what.to_owned(),
    };
    let column: Float64Array = match column.data_type() {
        // Never copied: views of one long text may be many.
        DataType::Utf8 => parsed(column.as_string::<i32>().iter(), fault)?,
        DataType::LargeUtf8 => parsed(column.as_string::<i64>().iter(), fault)?,
        DataType::Utf8View => parsed(column.as_string_view().iter(), fault)?,
        kind if kind.is_numeric() => cast(column, &DataType::Float64).map_err(read)?.as_primitive().clone(),
        kind => return Err(of_column(format!("must hold numbers, it is {kind}"))),
    };
    if let Some(row) = (0..column.len()).find(|&row| column.null_count() > 0 && column.is_null(row)) {
        return Err(fault(row, "must be a number, is null"));
    }
    // One pass without a branch says whether there is any at all.
    if column.values().iter().fold(false, |any, value| any | !value.is_finite())
        && let Some(row) = column.values().iter().position(|value| !value.is_finite())
    {
        return Err(fault(row, "must be a finite number"));
    }
    Ok(column)
}

fn parsed<'t>(
    texts: impl Iterator<Item = Option<&'t str>>,
    fault: impl Fn(usize, &str) -> Error,
) -> Result<Float64Array, Error> {
    let value = |(row, text): (usize, Option<&str>)| match text.map(str::trim) {
        None => Err(fault(row, "must be a number, is null")),
        Some("") => Err(fault(row, "must be a number, is empty")),
        Some(text) => text.parse().map_err(|_| fault(row, &format!("must be a number, is {text:?}"))),
    };
    texts.enumerate().map(value).collect::<Result<Vec<f64>, Error>>().map(Float64Array::from)
}
