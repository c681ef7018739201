//! Reader that splits bytes of any supported format into blocks of rows.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Float64Array, RecordBatch, StringBuilder};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::reader::FileReader;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::arrow::Batches;
use super::raw_lines::{Lines, record_text};
use super::{At, BYTES, Block, Carried, Error, Format, Keep, Limits, Meter, ROWS, Unmetered, Wanted, json};

use crate::files::{self, CsvRecords, Dialect, Fault, Opened, Splitter, decimal_point};
use crate::missing::{Gaps, Missing, Value};
use crate::spool::spooled;

/// Maximum rows of a block of columns: large enough to amortise the work per block, small enough for the CPU cache.
const COLUMN_ROWS: usize = 16_384;

/// Reads blocks of rows from a stream. The first block is returned even if it has no rows, so that the columns are known.
pub struct Reader {
    pub format: Format,
    pub dialect: Dialect,
    source: Source,
    wanted: Wanted,
    /// Number of rows returned so far.
    pub rows: u64,
    begun: bool,
}

enum Source {
    Json(Splitter<Box<dyn Read + Send>>),
    /// Raw records, one per line.
    Lines(Lines),
    Columns(Columns),
}

struct Columns {
    /// Tables of the stream. The last one has no rows.
    tables: Box<dyn Iterator<Item = Result<Table, Error>> + Send>,
    /// Unread rest of the current table.
    rest: Option<Table>,
}

/// Rows as columns.
struct Table {
    batch: RecordBatch,
    /// Line of each row, in formats whose rows are lines; else empty.
    lines: Vec<u64>,
}

impl From<RecordBatch> for Table {
    fn from(batch: RecordBatch) -> Self {
        Self { batch, lines: Vec::new() }
    }
}

impl Reader {
    /// Opens a stream without limits. Without `format`, the first bytes determine it.
    ///
    /// # Errors
    /// If the stream cannot be read or its header is invalid.
    pub fn open(input: Box<dyn Read + Send>, format: Option<Format>, features: &[String]) -> Result<Self, Error> {
        Self::open_limited(input, format, features, Limits::NONE, Keep::Row)
    }

    /// Opens a stream whose rows must stay within `limits`.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_limited(
        input: Box<dyn Read + Send>,
        format: Option<Format>,
        features: &[String],
        limits: Limits,
        keep: Keep,
    ) -> Result<Self, Error> {
        Self::open_metered(input, format, features, (limits, keep), Arc::new(Unmetered))
    }

    /// Opens a stream with limits, and accounts for decoded memory beyond the bytes read.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_metered(
        mut input: Box<dyn Read + Send>,
        format: Option<Format>,
        features: &[String],
        (limits, keep): (Limits, Keep),
        meter: Arc<dyn Meter>,
    ) -> Result<Self, Error> {
        // Long enough to look past a byte-order mark and blank lines.
        let mut head = Vec::new();
        input.by_ref().take(4096).read_to_end(&mut head)?;
        let format = format.unwrap_or_else(|| recognise(&head));
        let file = head.starts_with(b"ARROW1");
        let whole: Box<dyn Read + Send> = Box::new(Cursor::new(head).chain(input));
        let opened = match format {
            Format::Arrow | Format::Feather if file => Opened::of_request(Format::Feather, whole),
            Format::Feather => Opened::of_request(Format::Arrow, whole),
            format => Opened::of_request(format, whole),
        };
        Ok(Self { format, ..Self::of(opened, features, (limits, keep), meter)? })
    }

    /// Opens a stream of raw records, which are not parsed: a record that is no object is a row too.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn raw(
        input: Box<dyn Read + Send>,
        format: Format,
        (limits, keep): (Limits, Keep),
        meter: Arc<dyn Meter>,
    ) -> Result<Self, Error> {
        Self::open_metered(input, Some(format), &[], (limits, keep), meter)?.of_records()
    }

    /// Makes the rows raw records.
    ///
    /// # Errors
    /// If the first bytes cannot be read.
    pub fn of_records(mut self) -> Result<Self, Error> {
        self.wanted.raw = true;
        self.source = match self.source {
            Source::Json(values) if self.format == Format::Ndjson => {
                let mut input = BufReader::with_capacity(BYTES, values.into_input());
                // Objects that span lines are a sequence of values; otherwise a line that is cut off is one record.
                let head = input.fill_buf()?;
                let first = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty());
                let whole = first.is_none_or(|line| line.ends_with(b"}") || line.len() + 2 > head.len());
                if whole || self.wanted.limits.piece != Limits::NONE.piece {
                    Source::Lines(Lines::new(input))
                } else {
                    Source::Json(Splitter::new(Box::new(input), self.wanted.limits.piece))
                }
            }
            source => source,
        };
        Ok(self)
    }

    /// Reads a file of the user's own, in its dialect.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn of_file(opened: Opened, features: &[String]) -> Result<Self, Error> {
        if !matches!(opened.format, Format::Csv | Format::Tsv) {
            files::report(&opened.path, opened.format, &opened.dialect, None);
        }
        Self::of(opened, features, (Limits::NONE, Keep::Row), Arc::new(Unmetered))
    }

    fn of(
        opened: Opened,
        features: &[String],
        (limits, keep): (Limits, Keep),
        meter: Arc<dyn Meter>,
    ) -> Result<Self, Error> {
        let (format, dialect) = (opened.format, opened.dialect.clone());
        let source = match format {
            Format::Json | Format::Ndjson => Source::Json(Splitter::new(opened.input, limits.piece)),
            Format::Csv | Format::Tsv => Source::columns(csv_rows(opened, features, limits)?),
            // The file format's reader trusts the lengths in the file, which is acceptable only for the user's own files.
            Format::Feather if limits.piece != Limits::NONE.piece => {
                return Err(Error::Read("they are in Arrow's file format; send its streaming format".to_owned()));
            }
            Format::Feather => {
                let reader = FileReader::try_new(spooled(opened.input)?, None).map_err(read)?;
                files::check_names(&reader.schema()).map_err(fault)?;
                let empty = RecordBatch::new_empty(reader.schema());
                Source::columns(reader.map(|batch| batch.map(Table::from).map_err(read)).chain([Ok(empty.into())]))
            }
            Format::Arrow => {
                let mut batches = Some(Batches::new(opened.input, limits, meter));
                Source::columns(std::iter::from_fn(move || {
                    let table = batches.as_mut()?.next().transpose();
                    let last = || Some(Ok(RecordBatch::new_empty(batches.take()?.schema()?)));
                    Some(table.or_else(last)?.map(Table::from))
                }))
            }
            Format::Parquet => {
                let reader = ParquetRecordBatchReaderBuilder::try_new(spooled(opened.input)?).map_err(read)?;
                files::check_names(reader.schema()).map_err(fault)?;
                let empty = RecordBatch::new_empty(Arc::clone(reader.schema()));
                let reader = reader.with_batch_size(ROWS).build().map_err(read)?;
                Source::columns(reader.map(|batch| batch.map(Table::from).map_err(read)).chain([Ok(empty.into())]))
            }
        };
        let wanted = Wanted::new(features, (limits, keep), dialect.decimal);
        Ok(Self { format, dialect, source, wanted, rows: 0, begun: false })
    }

    /// Sets the policy for features that are missing or not finite: refused, or null in the block and counted.
    #[must_use]
    pub fn with_missing(mut self, missing: Missing) -> Self {
        self.wanted.missing = missing;
        self
    }

    /// A feature of which no row had a field, if there were several rows: a misspelt name rather than missing values.
    pub fn absent(&self) -> Option<&str> {
        let absent = self.wanted.absent.iter().position(|rows| *rows > 1 && *rows == self.rows)?;
        self.wanted.features.get(absent).map(String::as_str)
    }

    /// The columns of an earlier prediction that were replaced so far, as a list for a message.
    pub fn replaced(&self) -> Option<String> {
        let replaced: Vec<&str> = self.wanted.replaced.iter().copied().collect();
        (!replaced.is_empty()).then(|| replaced.join(", "))
    }

    /// Counts of the gaps so far, by feature.
    pub fn gaps(&self) -> &[Gaps] {
        &self.wanted.gaps
    }

    /// Next block; `None` at the end.
    ///
    /// # Errors
    /// If the input cannot be read or parsed, exceeds a limit, or has a gap that the policy refuses.
    pub fn block(&mut self) -> Result<Option<Block>, Error> {
        let first = self.rows;
        let block = match &mut self.source {
            Source::Json(values) => objects(values, self.format, &mut self.wanted, first)?,
            Source::Lines(lines) => lines.records(self.wanted.limits, first)?,
            Source::Columns(columns) => match columns.next(!self.begun)? {
                Some(table) => Some(block_of(table, &mut self.wanted, first)?),
                None => None,
            },
        };
        let block = block.filter(|block| block.rows() > 0 || !self.begun);
        self.begun = true;
        if let Some(block) = &block {
            self.rows += block.rows() as u64;
            if self.rows > self.wanted.limits.rows {
                return Err(Error::TooMuch(format!("at most {} rows go into one request", self.wanted.limits.rows)));
            }
        }
        Ok(block)
    }
}

impl Source {
    fn columns(tables: impl Iterator<Item = Result<Table, Error>> + Send + 'static) -> Self {
        Self::Columns(Columns { tables: Box::new(tables), rest: None })
    }
}

impl Columns {
    /// Next slice of at most [`COLUMN_ROWS`] rows. At the end, an empty table if `or_empty` is set and one was seen.
    fn next(&mut self, or_empty: bool) -> Result<Option<Table>, Error> {
        let mut empty = None;
        let mut table = match self.rest.take() {
            Some(table) => table,
            None => loop {
                match self.tables.next().transpose()? {
                    Some(table) if table.batch.num_rows() == 0 => empty = Some(table),
                    Some(table) => break table,
                    None => return Ok(empty.filter(|_| or_empty)),
                }
            },
        };
        let rows = table.batch.num_rows();
        if rows > COLUMN_ROWS {
            let lines = table.lines.split_off(COLUMN_ROWS.min(table.lines.len()));
            self.rest = Some(Table { batch: table.batch.slice(COLUMN_ROWS, rows - COLUMN_ROWS), lines });
            table.batch = table.batch.slice(0, COLUMN_ROWS);
        }
        Ok(Some(table))
    }
}

fn read(error: impl std::fmt::Display) -> Error {
    Error::Read(crate::sql::one_line(&error.to_string()))
}

fn recognise(head: &[u8]) -> Format {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    let header = text.split(|byte| matches!(byte, b'\n' | b'\r')).find(|line| !line.is_empty()).unwrap_or_default();
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        _ if head.starts_with(b"PAR1") => Format::Parquet,
        _ if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) => Format::Arrow,
        Some(b'[') => Format::Json,
        Some(b'{') => Format::Ndjson,
        _ if header.contains(&b'\t') && !header.contains(&b',') => Format::Tsv,
        _ => Format::Csv,
    }
}

/// Reader that fails when more than `limit` bytes were read since `unused` was last reset.
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

/// Reads CSV rows with all columns as text, unchanged.
fn csv_rows(
    Opened { path, format, dialect, input, .. }: Opened,
    features: &[String],
    limits: Limits,
) -> Result<impl Iterator<Item = Result<Table, Error>> + Send + use<>, Error> {
    let unused = Arc::new(AtomicUsize::new(0));
    let metered = Metered { inner: input, unused: Arc::clone(&unused), limit: limits.piece };
    let mut rows = CsvRecords::open(Box::new(metered), &dialect).map_err(fault)?;
    if dialect.advice {
        files::report(&path, format, &dialect, Some(&rows));
    }
    if let Some(name) = features.iter().find(|name| rows.is_ambiguous(name)) {
        return Err(Error::Column { field: name.clone(), what: "stands twice".to_owned() });
    }
    if rows.names().len() > limits.fields {
        return Err(Error::TooMuch(format!("rows may have {} columns at most", limits.fields)));
    }
    let fields: Vec<Field> = rows.names().iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let empty = Table::from(RecordBatch::new_empty(Arc::clone(&schema)));
    let mut record = csv::StringRecord::new();
    let mut ended = false;
    let tables = std::iter::from_fn(move || {
        let mut columns: Vec<StringBuilder> = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        let mut lines = Vec::with_capacity(ROWS);
        let (mut count, mut bytes) = (0, 0);
        while !ended && count < ROWS && bytes < BYTES {
            match rows.next(&mut record) {
                Ok(Some(line)) => {
                    unused.store(0, Ordering::Relaxed);
                    lines.push(line);
                    for (column, text) in columns.iter_mut().zip(record.iter()) {
                        column.append_value(text);
                    }
                    count += 1;
                    bytes += record.as_slice().len();
                }
                Ok(None) => ended = true,
                Err(error) => {
                    ended = true;
                    return Some(Err(fault(error)));
                }
            }
        }
        if count == 0 {
            return None;
        }
        let arrays = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef);
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays.collect()).map_err(read);
        Some(batch.map(|batch| Table { batch, lines }))
    });
    Ok(tables.chain([Ok(empty)]))
}

fn fault(fault: Fault) -> Error {
    match fault {
        Fault::Io(error) if error.kind() == io::ErrorKind::InvalidData && error.to_string().contains(TOO_LONG) => {
            Error::TooMuch(TOO_LONG.to_owned())
        }
        Fault::Io(error) => Error::Io(error),
        fault @ (Fault::Line { remedy, .. } | Fault::Whole { remedy, .. }) => {
            read(remedy.map_or_else(|| fault.to_string(), |remedy| format!("{fault}; {remedy}")))
        }
    }
}

fn objects<R: Read>(
    values: &mut Splitter<R>,
    format: Format,
    wanted: &mut Wanted,
    first: u64,
) -> Result<Option<Block>, Error> {
    let mut columns: Vec<Vec<f64>> = wanted.features.iter().map(|_| Vec::with_capacity(ROWS)).collect();
    let (mut rows, mut lines, mut faults) = (Vec::with_capacity(ROWS), Vec::new(), Vec::new());
    let mut bytes = 0;
    while rows.len() < ROWS && bytes < BYTES {
        // Elements of a JSON array are identified by index, not by line.
        let at = |line| At { row: first + rows.len() as u64, line: (format == Format::Ndjson).then_some(line) };
        let value = match values.value() {
            Ok(Some(value)) => value,
            Ok(None) => break,
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::InvalidData => Error::Syntax { at: at(values.line), what: error.to_string() },
                    io::ErrorKind::FileTooLarge => Error::TooMuch(error.to_string()),
                    _ => Error::Io(error),
                });
            }
        };
        bytes += value.bytes.len();
        let at = at(value.line);
        lines.extend(at.line);
        if wanted.raw {
            rows.push(record_text(value.bytes, rows.len(), &mut faults));
        } else {
            rows.push(json::row(value.bytes, at, wanted, &mut columns)?);
        }
    }
    let features = columns.into_iter().map(with_gaps).collect();
    let has_answers = !wanted.replaced.is_empty();
    Ok(Some(Block { features, carried: Carried::Objects(rows), first, lines, has_answers, faults }))
}

/// Column with NaN converted to null.
fn with_gaps(values: Vec<f64>) -> Float64Array {
    let nulls = values.iter().any(|value| value.is_nan()).then(|| values.iter().map(|value| !value.is_nan()).collect());
    Float64Array::new(values.into(), nulls)
}

/// Extracts the features from columns of numbers or text.
fn block_of(table: Table, wanted: &mut Wanted, first: u64) -> Result<Block, Error> {
    let Table { batch, lines } = table;
    wanted.note_answer(|name| batch.schema_ref().index_of(name).is_ok());
    let (carried, has_answers) = (Carried::Columns(batch.clone()), !wanted.replaced.is_empty());
    let mut block = Block { carried, first, lines, has_answers, ..Block::default() };
    for feature in 0..wanted.features.len() {
        let column = numbers(&batch, feature, wanted, &|row| block.at(row))?;
        block.features.push(column);
    }
    Ok(block)
}

/// Column of one feature as doubles.
fn numbers(
    batch: &RecordBatch,
    feature: usize,
    wanted: &mut Wanted,
    at: &dyn Fn(usize) -> At,
) -> Result<Float64Array, Error> {
    let (name, decimal) = (wanted.features[feature].clone(), wanted.decimal);
    let schema = batch.schema_ref();
    let mut found = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| *field.name() == name);
    let Some((_, column)) = found.next() else {
        let there: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        return Err(Error::Missing(name, crate::sql::one_line(&there.join(", "))));
    };
    if found.next().is_some() {
        return Err(Error::Column { field: name, what: "stands twice".to_owned() });
    }
    let mut gap = |value: Value<'_>, row: usize, what: &str| wanted.gap(feature, value, at(row), what);
    let column: Float64Array = match column.data_type() {
        // Parsed without a copy: string views may refer to one long text many times.
        DataType::Utf8 => parsed(column.as_string::<i32>().iter(), decimal, gap)?,
        DataType::LargeUtf8 => parsed(column.as_string::<i64>().iter(), decimal, gap)?,
        DataType::Utf8View => parsed(column.as_string_view().iter(), decimal, gap)?,
        kind if kind.is_numeric() || matches!(kind, DataType::Null | DataType::Boolean) => {
            let column = cast(column, &DataType::Float64).map_err(read)?.as_primitive().clone();
            // One branch-free pass determines whether there are any gaps.
            let finite = column.values().iter().fold(true, |all, value: &f64| all & value.is_finite());
            if finite && column.null_count() == 0 {
                return Ok(column);
            }
            let number = |row: usize| match column.is_valid(row).then(|| column.value(row)) {
                Some(value) if value.is_finite() => Ok(value),
                Some(value) if value.is_nan() => gap(Value::Missing, row, NOT_FINITE),
                Some(value) => gap(Value::Invalid(&value.to_string()), row, NOT_FINITE),
                None => gap(Value::Missing, row, "must be a number, is null"),
            };
            with_gaps((0..column.len()).map(number).collect::<Result<_, Error>>()?)
        }
        kind => {
            let what = format!("must hold numbers, it is {kind}");
            return Err(Error::Column { field: name, what });
        }
    };
    Ok(column)
}

const NOT_FINITE: &str = "must be a finite number";

fn parsed<'t>(
    texts: impl Iterator<Item = Option<&'t str>>,
    decimal: char,
    mut gap: impl FnMut(Value<'_>, usize, &str) -> Result<f64, Error>,
) -> Result<Float64Array, Error> {
    let value = |(row, text): (usize, Option<&str>)| {
        let Some(text) = text.map(str::trim) else { return gap(Value::Missing, row, "must be a number, is null") };
        match Value::of_text(&decimal_point(text, decimal)) {
            Value::Number(number) => Ok(number),
            value if text.is_empty() => gap(value, row, "must be a number, is empty"),
            value if text.parse::<f64>().is_ok() => gap(value, row, NOT_FINITE),
            value => gap(value, row, &format!("must be a number, is {text:?}")),
        }
    };
    texts.enumerate().map(value).collect::<Result<_, Error>>().map(with_gaps)
}
