//! Bytes to blocks of rows.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Cursor, Read, Seek as _, SeekFrom};
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Float64Array, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::reader::{FileReader, StreamReader};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::split::Splitter;
use super::{Block, Carried, Error, Format, json};

/// Rows of a block, at most.
const ROWS: usize = 8192;

/// Blocks of rows out of a stream.
pub struct Reader {
    pub format: Format,
    source: Source,
    features: Vec<String>,
    /// Rows given so far.
    pub rows: u64,
}

enum Source {
    Json(Splitter<Box<dyn Read + Send>>),
    Columns(Box<dyn Iterator<Item = Result<RecordBatch, Error>> + Send>),
}

impl Reader {
    /// Opens a stream. Without a format, the first bytes tell.
    pub fn open(mut input: Box<dyn Read + Send>, format: Option<Format>, features: &[String]) -> Result<Self, Error> {
        // Enough to see past a byte-order mark and blank lines.
        let mut head = Vec::new();
        input.by_ref().take(4096).read_to_end(&mut head)?;
        let format = format.unwrap_or_else(|| recognise(&head));
        let whole: Box<dyn Read + Send> = Box::new(Cursor::new(head.clone()).chain(input));
        let source = match format {
            Format::Json | Format::Ndjson => Source::Json(Splitter::new(whole)),
            Format::Csv => Source::Columns(Box::new(csv_rows(whole)?)),
            Format::Arrow if head.starts_with(b"ARROW1") => {
                let reader = FileReader::try_new(spooled(whole)?, None).map_err(read)?;
                Source::Columns(Box::new(reader.map(|batch| batch.map_err(read))))
            }
            Format::Arrow => {
                let reader = StreamReader::try_new(BufReader::new(whole), None).map_err(read)?;
                Source::Columns(Box::new(reader.map(|batch| batch.map_err(read))))
            }
            Format::Parquet => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(spooled(whole)?).map_err(read)?;
                let reader = reader.with_batch_size(ROWS).build().map_err(read)?;
                Source::Columns(Box::new(reader.map(|batch| batch.map_err(read))))
            }
        };
        Ok(Self { format, source, features: features.to_vec(), rows: 0 })
    }

    /// The next rows; `None` at the end.
    pub fn block(&mut self) -> Result<Option<Block>, Error> {
        let block = match &mut self.source {
            Source::Json(values) => objects(values, &self.features, self.rows)?,
            Source::Columns(batches) => {
                let batch = batches.next().transpose()?;
                batch.map(|batch| columns(batch, &self.features, self.rows)).transpose()?
            }
        };
        if let Some(block) = &block {
            self.rows += (block.values.len() / self.features.len()) as u64;
        }
        Ok(block)
    }
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
    let path = std::env::temp_dir().join(format!("tercile-{}-{:p}", std::process::id(), &raw const input));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    io::copy(&mut input, &mut file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// All columns as text, as they stand in the file.
fn csv_rows(input: Box<dyn Read + Send>) -> Result<impl Iterator<Item = Result<RecordBatch, Error>>, Error> {
    let mut input = BufReader::with_capacity(256 * 1024, input);
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    let mut rows = csv::ReaderBuilder::new().has_headers(false).from_reader(input);
    let mut header = csv::StringRecord::new();
    if !rows.read_record(&mut header).map_err(read)? {
        return Err(Error::Read("expected a header line with the columns' names, there is nothing".to_owned()));
    }
    let fields: Vec<Field> = header.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut record = csv::StringRecord::new();
    let mut ended = false;
    Ok(std::iter::from_fn(move || {
        let width = schema.fields().len();
        let mut columns: Vec<Vec<String>> = vec![Vec::new(); width];
        while !ended && columns.first().is_some_and(|column| column.len() < ROWS) {
            match rows.read_record(&mut record) {
                Ok(true) => {
                    for (column, text) in columns.iter_mut().zip(record.iter()) {
                        column.push(text.to_owned());
                    }
                }
                Ok(false) => ended = true,
                Err(error) => {
                    ended = true;
                    return Some(Err(read(error)));
                }
            }
        }
        if columns.first().is_none_or(Vec::is_empty) {
            return None;
        }
        let arrays = columns.into_iter().map(|column| Arc::new(StringArray::from(column)) as ArrayRef);
        Some(RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).map_err(read))
    }))
}

fn objects<R: Read>(values: &mut Splitter<R>, features: &[String], first: u64) -> Result<Option<Block>, Error> {
    let mut block = Block { values: Vec::new(), carried: Carried::Objects(Vec::new()) };
    let Carried::Objects(rows) = &mut block.carried else { return Ok(None) };
    while rows.len() < ROWS {
        let row = first + rows.len() as u64;
        let value = values.value().map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Error::Row { row, what: error.to_string() },
            _ => Error::Io(error),
        })?;
        let Some(value) = value else { break };
        rows.push(json::row(value, features, row, &mut block.values)?);
    }
    Ok(if rows.is_empty() { None } else { Some(block) })
}

/// Takes the features out of columns of any type that holds numbers, or their text.
fn columns(batch: RecordBatch, features: &[String], first: u64) -> Result<Block, Error> {
    let mut numbers = Vec::with_capacity(features.len());
    for name in features {
        let Some(column) = batch.column_by_name(name) else {
            let there: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            return Err(Error::Missing(name.clone(), there.join(", ")));
        };
        let fault = |row: usize, what: &str| Error::Field {
            row: first + row as u64,
            field: name.clone(),
            what: what.to_owned(),
        };
        let column: Float64Array = match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let text = cast(column, &DataType::Utf8).map_err(read)?;
                let text = text.as_string::<i32>();
                let parsed: Result<Vec<f64>, Error> = (0..text.len())
                    .map(|row| match text.value(row).trim() {
                        _ if text.is_null(row) => Err(fault(row, "must be a number, is null")),
                        "" => Err(fault(row, "must be a number, is empty")),
                        value => value.parse().map_err(|_| fault(row, &format!("must be a number, is {value:?}"))),
                    })
                    .collect();
                parsed?.into()
            }
            kind if kind.is_numeric() => cast(column, &DataType::Float64).map_err(read)?.as_primitive().clone(),
            kind => return Err(fault(0, &format!("must be a number, the column is {kind}"))),
        };
        if let Some(row) = (0..column.len()).find(|&row| column.is_null(row)) {
            return Err(fault(row, "must be a number, is null"));
        }
        if let Some(row) = column.values().iter().position(|value| !value.is_finite()) {
            return Err(fault(row, "must be a finite number"));
        }
        numbers.push(column);
    }
    let mut values = Vec::with_capacity(batch.num_rows() * features.len());
    for row in 0..batch.num_rows() {
        values.extend(numbers.iter().map(|column| column.value(row)));
    }
    Ok(Block { values, carried: Carried::Columns(batch) })
}
