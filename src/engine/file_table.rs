//! A file of the user as a table, read by [`crate::files`]: CSV, JSON and Arrow.
//!
//! Input: a source that can be read more than once, and its dialect. Output: a table whose column types keep every value (see
//! [`Seen`]); nested JSON is text, for `->`, `->>` and `json_get`. All rows are read once to find the types. Each query reads the
//! file again, from the first row to the last, in one partition.

use std::borrow::Cow;
use std::sync::Arc;

use csv::StringRecord;
use datafusion::arrow::array::{ArrayRef, AsArray as _, RecordBatch, RecordBatchOptions, StringBuilder};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::ipc::reader::{FileReader, StreamReader};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use tercile_store::json_text::text_of;

use super::explain;
use crate::file_format::Format;
use crate::files::{self, CsvRecords, Error, Fault, Opened, Options, Seen, Source, Splitter, Type, decimal_point};
use crate::spool::spooled;

/// Rows per batch.
const ROWS: usize = 8192;

/// A file and the type of each column.
#[derive(Debug)]
pub struct FileTable {
    source: Source,
    options: Options,
    schema: SchemaRef,
}

/// Reads a file once to determine its columns and their types.
///
/// # Errors
/// If the file cannot be read or a row is malformed.
pub fn table(source: Source, options: Options) -> std::result::Result<StreamingTable, Error> {
    let name = source.name();
    let schema = schema_of(&source, &options)?;
    let table = Arc::new(FileTable { source, options, schema: Arc::clone(&schema) });
    StreamingTable::try_new(schema, vec![table]).map_err(|error| Fault::whole(error.to_string()).at(&name))
}

/// The columns of a file and their types, for which all of it is read.
fn schema_of(source: &Source, options: &Options) -> std::result::Result<SchemaRef, Error> {
    let opened = files::open(source, options)?;
    if !matches!(opened.format, Format::Csv | Format::Tsv) {
        files::report(&opened.path, opened.format, &opened.dialect, None);
    }
    types_of(opened, true)
}

/// As [`schema_of`]. `reports`: whether to report the dialect of a CSV file.
fn types_of(opened: Opened, reports: bool) -> std::result::Result<SchemaRef, Error> {
    match opened.format {
        Format::Csv | Format::Tsv => csv_schema(opened, reports),
        Format::Json | Format::Ndjson => json_schema(opened),
        _ => Ok(arrow_batches(opened)?.0),
    }
}

/// Reads a file to the end, for tables that stay in memory.
///
/// # Errors
/// If the file cannot be read or a row is malformed.
pub fn read(source: Source, options: Options) -> std::result::Result<(SchemaRef, Vec<RecordBatch>), Error> {
    let name = source.name();
    let schema = schema_of(&source, &options)?;
    let table = FileTable { source, options, schema: Arc::clone(&schema) };
    let mut all = Vec::new();
    let mut keep = |batch| {
        all.push(batch?);
        Ok(true)
    };
    table.scan(&mut keep).map_err(|error| Fault::whole(explain(&error)).at(&name))?;
    Ok((schema, all))
}

fn csv_schema(opened: Opened, reports: bool) -> std::result::Result<SchemaRef, Error> {
    let Opened { path, format, dialect, input, .. } = opened;
    let mut records = CsvRecords::open(input, &dialect).map_err(|fault| fault.at(&path))?;
    if reports {
        files::report(&path, format, &dialect, Some(&records));
    }
    let names = records.names().to_vec();
    let mut seen = vec![Seen::default(); names.len()];
    let mut record = StringRecord::new();
    while records.next(&mut record).map_err(|fault| fault.at(&path))?.is_some() {
        for (seen, text) in seen.iter_mut().zip(&record) {
            seen.add(&decimal_point(text, dialect.decimal));
        }
    }
    Ok(schema(&names, &seen))
}

fn json_schema(opened: Opened) -> std::result::Result<SchemaRef, Error> {
    let Opened { path, input, .. } = opened;
    let mut values = Splitter::new(input, usize::MAX).by_lines();
    let (mut names, mut seen): (Vec<String>, Vec<Seen>) = (Vec::new(), Vec::new());
    while let Some((line, text)) = files::object(&mut values).map_err(|fault| fault.at(&path))? {
        let fields = files::fields(text).map_err(|error| Fault::line(line, error.to_string()).at(&path))?;
        for (place, (name, value)) in fields.iter().enumerate() {
            // Most objects have the same fields in the same order.
            let known = match names.get(place) {
                Some(known) if known == name => Some(place),
                _ => names.iter().position(|known| known == name),
            };
            let column = known.unwrap_or_else(|| {
                names.push(name.clone().into_owned());
                seen.push(Seen::default());
                names.len() - 1
            });
            match value.get().as_bytes().first() {
                Some(b'n') | None => {}
                Some(b'"' | b'{' | b'[') => seen[column].add_text(),
                _ => seen[column].add(value.get()),
            }
        }
    }
    Ok(schema(&names, &seen))
}

fn schema(names: &[String], seen: &[Seen]) -> SchemaRef {
    let field = |(name, seen): (&String, &Seen)| {
        let kind = match seen.column_type() {
            Type::Text => DataType::Utf8,
            Type::Boolean => DataType::Boolean,
            Type::Integer => DataType::Int64,
            Type::WideInteger => DataType::Decimal128(38, 0),
            Type::Double => DataType::Float64,
            Type::Date => DataType::Date32,
            Type::Timestamp { nanoseconds, zone } => DataType::Timestamp(
                if nanoseconds { TimeUnit::Nanosecond } else { TimeUnit::Microsecond },
                zone.then(|| "+00:00".into()),
            ),
        };
        Field::new(name, kind, true)
    };
    Arc::new(Schema::new(names.iter().zip(seen).map(field).collect::<Vec<_>>()))
}

type Batches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, datafusion::arrow::error::ArrowError>> + Send>;

fn arrow_batches(opened: Opened) -> std::result::Result<(SchemaRef, Batches), Error> {
    let path = opened.path.clone();
    let fault = |what: String| Fault::whole(crate::sql::one_line(&what)).at(&path);
    if opened.format == Format::Arrow {
        let reader = StreamReader::try_new(opened.input, None).map_err(|error| fault(error.to_string()))?;
        files::check_names(&reader.schema()).map_err(|fault| fault.at(&path))?;
        return Ok((reader.schema(), Box::new(reader)));
    }
    let file = spooled(opened.input).map_err(|error| Fault::Io(error).at(&path))?;
    let reader = FileReader::try_new(file, None).map_err(|error| fault(error.to_string()))?;
    files::check_names(&reader.schema()).map_err(|fault| fault.at(&path))?;
    Ok((reader.schema(), Box::new(reader)))
}

impl PartitionStream for FileTable {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), 2);
        let (batches, scan) = (builder.tx(), Self::clone(self));
        builder.spawn_blocking(move || scan.scan(&mut |batch| Ok(batches.blocking_send(batch).is_ok())));
        builder.build()
    }
}

impl Clone for FileTable {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), options: self.options.clone(), schema: Arc::clone(&self.schema) }
    }
}

impl FileTable {
    /// Hands on the rows of the file as batches, until the receiver is gone.
    fn scan(&self, batches: Receiver<'_>) -> Result<()> {
        let external = |error: Error| DataFusionError::External(error.into());
        let opened = files::open(&self.source, &self.options).map_err(external)?;
        let path = opened.path.clone();
        let mut columns = Columns::new(&self.schema);
        match opened.format {
            Format::Csv | Format::Tsv => {
                let decimal = opened.dialect.decimal;
                let fault = |fault: Fault| external(fault.at(&path));
                let mut records = CsvRecords::open(opened.input, &opened.dialect).map_err(fault)?;
                let mut record = StringRecord::new();
                while records.next(&mut record).map_err(fault)?.is_some() {
                    for (column, text) in record.iter().enumerate() {
                        // Empty is NULL, as in DataFusion's reader.
                        columns.push(column, (!text.is_empty()).then_some(text), decimal);
                    }
                    if !columns.end_row(batches)? {
                        return Ok(());
                    }
                }
            }
            Format::Json | Format::Ndjson => {
                let fault = |fault: Fault| external(fault.at(&path));
                let mut values = Splitter::new(opened.input, usize::MAX).by_lines();
                let mut found = vec![None; self.schema.fields().len()];
                while let Some((line, text)) = files::object(&mut values).map_err(fault)? {
                    let added = columns.push_object(text, &mut found);
                    added.map_err(|error| fault(Fault::line(line, error.to_string())))?;
                    if !columns.end_row(batches)? {
                        return Ok(());
                    }
                }
            }
            _ => {
                for batch in arrow_batches(opened).map_err(external)?.1 {
                    if !batches(batch.map_err(Into::into))? {
                        return Ok(());
                    }
                }
                return Ok(());
            }
        }
        columns.send(batches)?;
        Ok(())
    }
}

/// Takes a batch; `false` if no more is wanted.
type Receiver<'a> = &'a mut dyn FnMut(Result<RecordBatch>) -> Result<bool>;

/// Rows of one batch, as text until the batch is complete.
struct Columns {
    schema: SchemaRef,
    texts: Vec<StringBuilder>,
    rows: usize,
}

impl Columns {
    fn new(schema: &SchemaRef) -> Self {
        let texts = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        Self { schema: Arc::clone(schema), texts, rows: 0 }
    }

    fn push(&mut self, column: usize, text: Option<&str>, decimal: char) {
        let (Some(builder), kind) = (self.texts.get_mut(column), self.schema.field(column).data_type()) else { return };
        match text {
            None => builder.append_null(),
            Some(text) if *kind == DataType::Utf8 => builder.append_value(text),
            Some(text) => match decimal_point(text.trim(), decimal) {
                text if text.is_empty() => builder.append_null(),
                text => builder.append_value(text),
            },
        }
    }

    /// Adds the fields of a JSON object, except for those that have no column. `found` is a buffer with a place for each column.
    fn push_object(&mut self, text: &str, found: &mut [Option<String>]) -> serde_json::Result<()> {
        found.fill(None);
        for (name, value) in files::fields(text)? {
            if let Ok(column) = self.schema.index_of(&name) {
                found[column] = text_of(value.get())?.map(Cow::into_owned);
            }
        }
        for (column, text) in found.iter().enumerate() {
            self.push(column, text.as_deref(), '.');
        }
        Ok(())
    }

    /// Ends a row; a complete batch is sent. `false` if the receiver is gone.
    fn end_row(&mut self, batches: Receiver<'_>) -> Result<bool> {
        self.rows += 1;
        if self.rows < ROWS { Ok(true) } else { self.send(batches) }
    }

    fn send(&mut self, batches: Receiver<'_>) -> Result<bool> {
        if self.rows == 0 {
            return Ok(true);
        }
        let batch = self.batch()?;
        batches(Ok(batch))
    }

    /// The rows since the last batch.
    fn batch(&mut self) -> Result<RecordBatch> {
        let rows = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let typed = |(builder, field): (&mut StringBuilder, &Arc<Field>)| -> Result<ArrayRef> {
            Ok(cast_with_options(&builder.finish(), field.data_type(), &options)?)
        };
        let columns = self.texts.iter_mut().zip(self.schema.fields()).map(typed).collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?)
    }
}

/// The types of a file's columns, for rows of it that were read as text.
#[derive(Debug)]
pub struct FileTypes {
    schema: SchemaRef,
    /// The decimal mark of numbers.
    decimal: char,
}

impl FileTypes {
    /// The types for the rows of a file if they are converted to a format that needs them: text of CSV to another format, or JSON to
    /// columns. Reads the file once; a pipe must have been copied before.
    ///
    /// # Errors
    /// If the file cannot be read or a row is malformed.
    pub fn for_conversion(
        source: &Source,
        options: &Options,
        (from, to): (Format, Format),
    ) -> std::result::Result<Option<Self>, Error> {
        if Self::are_needed(from, to) { Self::of(source, options).map(Some) } else { Ok(None) }
    }

    /// Whether [`Self::for_conversion`] reads the file.
    pub fn are_needed(from: Format, to: Format) -> bool {
        let is_csv = |format| matches!(format, Format::Csv | Format::Tsv);
        let is_json = |format| matches!(format, Format::Json | Format::Ndjson);
        is_csv(from) && !is_csv(to) || is_json(from) && !is_json(to)
    }

    fn of(source: &Source, options: &Options) -> std::result::Result<Self, Error> {
        let opened = files::open(source, options)?;
        let decimal = opened.dialect.decimal;
        Ok(Self { schema: types_of(opened, false)?, decimal })
    }

    /// Whether the file has no columns.
    pub fn is_empty(&self) -> bool {
        self.schema.fields().is_empty()
    }

    /// Rows of CSV, whose columns are text, as a table.
    ///
    /// # Errors
    /// If the file has changed, so that a text is no longer of its column's type.
    pub fn texts(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = Columns::new(&self.schema);
        for (i, texts) in rows.columns().iter().enumerate() {
            for text in texts.as_string::<i32>() {
                columns.push(i, text.filter(|text| !text.is_empty()), self.decimal);
            }
        }
        columns.rows = rows.num_rows();
        columns.batch()
    }

    /// JSON objects as a table.
    ///
    /// # Errors
    /// As for [`Self::texts`].
    pub fn objects(&self, objects: &[String]) -> Result<RecordBatch> {
        let mut columns = Columns::new(&self.schema);
        let mut found = vec![None; self.schema.fields().len()];
        for object in objects {
            columns.push_object(object, &mut found).map_err(|error| DataFusionError::External(error.into()))?;
            columns.rows += 1;
        }
        columns.batch()
    }
}
