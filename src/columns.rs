//! Reader of numeric columns from Parquet, Arrow, CSV and JSON files.
//!
//! Input: a path, column names, and the policy for values that are not finite numbers ([`Policy`]). Output: one Arrow column of
//! doubles per name, in file order; values to impute are null. Parquet is read by all threads, one column of one row group at a
//! time, and only the requested columns; text columns are parsed like CSV cells. Columns that exceed the memory limit are
//! written to spool files (out of core).

mod sequential;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use datafusion::arrow::array::{Array, AsArray, BooleanArray, BooleanBufferBuilder, Float64Array};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use datafusion::arrow::compute::{cast, filter};
use datafusion::arrow::datatypes::{DataType, Fields, Float64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::reader::{FileReader, StreamReader};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use tercile_kmeans::column_buffer::{self, Growing, Space};
use tercile_kmeans::parallel::in_parallel;

use crate::file_format::Format;
use crate::files::{self, Options, Source};
use crate::missing::{Gaps, Missing, Place, Policy, Value, cleaning, shortened};
use crate::printable::shell_word;
use crate::spool::spooled;
use crate::sql::identifier;

/// Rows per decoded batch.
const BATCH: usize = 65_536;

/// Error of reading columns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot read {path} as Parquet: {source}", path = path.display())]
    Parquet { path: PathBuf, source: ParquetError },
    #[error("cannot read {name} of {path}: {source}", path = path.display())]
    Arrow { path: PathBuf, name: String, source: ArrowError },
    #[error("{path} has no column {name}; it has {has}", path = path.display())]
    NoColumn { path: PathBuf, name: String, has: String },
    #[error("the column {name} of {path} holds {kind}, which is no number; name others with --features", path = path.display())]
    NoNumber { path: PathBuf, name: String, kind: DataType },
    #[error(
        "{path}, {place}: the column {name} holds `{text}`, which is no number; {remedy}, or give --missing impute (the mean takes its place) or --missing skip (the row is left out)", path = path.display()
    )]
    Invalid { path: PathBuf, name: String, place: Place, text: String, remedy: String },
    #[error(
        "{path}, {place}: the column {name} is empty; fill it in, or give --missing impute (the mean takes its place) or --missing skip (the row is left out)", path = path.display()
    )]
    Empty { path: PathBuf, name: String, place: Place },
    #[error(
        "the column {name} of {path} holds no number in any of {rows} rows: {invalid} hold text, such as `{text}` in {place}; name others with --features, or make numbers of it with tercile sql", path = path.display()
    )]
    AllText { path: PathBuf, name: String, rows: usize, invalid: u64, text: String, place: Place },
    #[error("{path} has no rows to cluster", path = path.display())]
    NoRows { path: PathBuf },
    #[error("no row of {path} has a number in each of {names}, so --missing skip leaves none", path = path.display())]
    AllSkipped { path: PathBuf, names: String },
    #[error(transparent)]
    File(#[from] files::Error),
    #[error("{path}: more than one column is named {name}; give them different names", path = path.display())]
    Ambiguous { path: PathBuf, name: String },
    #[error(
        "the columns of {path} are more than --memory-limit, and cannot be kept in a file instead: {source}; see TMPDIR", path = path.display()
    )]
    Spool { path: PathBuf, source: io::Error },
}

/// A file and how it is written. The source can be read more than once ([`Source::rereadable`]).
#[derive(Debug, Clone)]
pub struct Input {
    pub source: Source,
    pub options: Options,
}

impl From<&Path> for Input {
    fn from(path: &Path) -> Self {
        Self { source: Source::File(path.to_owned()), options: Options::default() }
    }
}

#[derive(Debug)]
pub struct Columns {
    pub columns: Vec<Float64Array>,
    /// Length of each column.
    pub rows: usize,
    /// Missing and invalid values of the whole file, by column.
    pub gaps: Vec<Gaps>,
    /// Rows of the file that [`Missing::Skip`] left out.
    pub rows_left_out: u64,
}

/// Reads the named columns of a file with `threads` threads into `space`.
///
/// # Errors
/// If the file cannot be read, lacks a column, contains a value that the policy refuses, or has no numbers.
pub fn read(input: &Input, names: &[String], policy: Policy, threads: usize, space: &Space) -> Result<Columns, Error> {
    let path = &input.source.name();
    let mut found = every_row(input, names, policy, threads, space)?;
    if found.rows == 0 {
        return Err(Error::NoRows { path: path.to_owned() });
    }
    if policy.missing == Missing::Skip || policy.invalid == Missing::Skip {
        found.skip(space).map_err(|source| Error::Spool { path: path.to_owned(), source })?;
        if found.rows == 0 && found.rows_left_out > 0 {
            return Err(Error::AllSkipped { path: path.to_owned(), names: names.join(", ") });
        }
        return Ok(found);
    }
    let textual = |(name, gaps): (&String, &Gaps)| {
        let example = gaps.example.clone().filter(|_| gaps.count() == found.rows as u64)?;
        let (path, invalid) = (path.to_owned(), gaps.invalid);
        let (text, place) = (example.text, example.place);
        Some(Error::AllText { path, name: name.clone(), rows: found.rows, invalid, text, place })
    };
    match names.iter().zip(&found.gaps).find_map(textual) {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

impl Columns {
    /// Removes the rows in which any column is null.
    fn skip(&mut self, space: &Space) -> io::Result<()> {
        let nulls = self.columns.iter().fold(None, |all, column| NullBuffer::union(all.as_ref(), column.nulls()));
        let Some(whole) = nulls.filter(|nulls| nulls.null_count() > 0) else { return Ok(()) };
        self.rows_left_out = whole.null_count() as u64;
        self.rows -= whole.null_count();
        let mut kept: Vec<Growing<Float64Type>> = self.columns.iter().map(|_| Growing::new(0)).collect();
        for start in (0..whole.len()).step_by(BATCH) {
            let rows = BATCH.min(whole.len() - start);
            let mask = BooleanArray::new(whole.inner().slice(start, rows), None);
            for (kept, column) in kept.iter_mut().zip(&self.columns) {
                let values = filter(&column.slice(start, rows), &mask).map_err(io::Error::other)?;
                kept.append(values.as_primitive())?;
                column_buffer::done_with(&column.values()[start..start + rows]);
            }
            if !space.holds(kept.iter().map(Growing::held).sum()) {
                kept.iter_mut().try_for_each(|column| column.spill(space))?;
            }
        }
        self.columns = kept.into_iter().map(Growing::finish).collect::<io::Result<_>>()?;
        Ok(())
    }
}

/// Counts the gaps of one column while it is read, and applies the policy.
struct Watch<'a> {
    path: &'a Path,
    name: &'a str,
    policy: Policy,
    gaps: Gaps,
}

impl Watch<'_> {
    fn new<'a>(path: &'a Path, name: &'a str, policy: Policy) -> Watch<'a> {
        Watch { path, name, policy, gaps: Gaps::default() }
    }

    /// The number, or `None` for a gap that the policy accepts.
    fn see(&mut self, value: Value<'_>, place: Place) -> Result<Option<f64>, Error> {
        let (path, name) = (|| self.path.to_owned(), || self.name.to_owned());
        match value {
            Value::Number(number) => return Ok(Some(number)),
            Value::Missing if self.policy.missing == Missing::Refuse => {
                return Err(Error::Empty { path: path(), name: name(), place });
            }
            Value::Missing => self.gaps.missing += 1,
            Value::Invalid(text) if self.policy.invalid == Missing::Refuse => {
                let (text, remedy) = (shortened(text), remedy(self.path, self.name, text));
                return Err(Error::Invalid { path: path(), name: name(), place, text, remedy });
            }
            Value::Invalid(text) => self.gaps.add_invalid(text, place),
        }
        Ok(None)
    }
}

impl Watch<'_> {
    /// The numbers of an Arrow column whose first value is in row `start`, and their validity (`None` if all are valid).
    fn numbers(&mut self, column: &dyn Array, start: usize) -> Result<(Float64Array, Option<BooleanBuffer>), Error> {
        let fault = |source| Error::Arrow { path: self.path.to_owned(), name: self.name.to_owned(), source };
        let place = |row: usize| Place::Row((start + row) as u64);
        if is_text(column.data_type()) {
            let texts = cast(column, &DataType::Utf8).map_err(fault)?;
            let texts = texts.as_string::<i32>().iter().enumerate();
            let values = texts.map(|(row, text)| self.see(text.map_or(Value::Missing, Value::of_text), place(row)));
            let numbers = values.collect::<Result<Float64Array, Error>>()?;
            let present = numbers.nulls().map(|nulls| nulls.inner().clone());
            return Ok((numbers, present));
        }
        let numbers = cast(column, &DataType::Float64).map_err(fault)?;
        let numbers = numbers.as_primitive::<Float64Type>().clone();
        let present = present(&numbers);
        for row in present.iter().flat_map(|there| (0..there.len()).filter(|row| !there.value(*row))) {
            let text = numbers.value(row).to_string();
            let missing = numbers.is_null(row) || numbers.value(row).is_nan();
            self.see(if missing { Value::Missing } else { Value::Invalid(&text) }, place(row))?;
        }
        Ok((numbers, present))
    }
}

/// Hint for an error message: how to convert a text column to numbers.
fn remedy(path: &Path, name: &str, text: &str) -> String {
    let Some(expression) = cleaning(name, text) else { return "correct it".to_owned() };
    let sql = format!("SELECT * REPLACE ({expression} AS {}) FROM t", identifier(name));
    let table = format!("t={}", path.display());
    format!("clean it with `tercile sql --table {} -f csv -c {}`", shell_word(&table), shell_word(&sql))
}

fn every_row(input: &Input, names: &[String], policy: Policy, threads: usize, space: &Space) -> Result<Columns, Error> {
    let opened = files::open(&input.source, &input.options)?;
    let io = |source| Error::Io { path: opened.path.clone(), source };
    if !matches!(opened.format, Format::Csv | Format::Tsv) {
        files::report(&opened.path, opened.format, &opened.dialect, None);
    }
    match opened.format {
        Format::Parquet if opened.dialect.compression.is_none() => match &input.source {
            // A path that each thread can open for itself.
            Source::Copied { file, .. } => {
                let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                parquet((&opened.path, &path), names, policy, (threads, space))
            }
            _ => parquet((&opened.path, &opened.path), names, policy, (threads, space)),
        },
        Format::Parquet => {
            let copy = spooled(opened.input).map_err(io)?;
            let path = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
            parquet((&opened.path, &path), names, policy, (threads, space))
        }
        Format::Feather => {
            let (path, copy) = (opened.path.clone(), spooled(opened.input).map_err(io)?);
            let arrow = |source| Error::Arrow { path: path.clone(), name: "the schema".to_owned(), source };
            let reader = FileReader::try_new(copy, None).map_err(arrow)?;
            sequential::arrow((&path, &reader.schema()), reader, names, policy, space)
        }
        Format::Arrow => {
            let path = opened.path.clone();
            let arrow = |source| Error::Arrow { path: path.clone(), name: "the schema".to_owned(), source };
            let reader = StreamReader::try_new(opened.input, None).map_err(arrow)?;
            sequential::arrow((&path, &reader.schema()), reader, names, policy, space)
        }
        Format::Csv | Format::Tsv => sequential::csv(opened, names, policy, space),
        Format::Json | Format::Ndjson => sequential::json(opened, names, policy, space),
    }
}

/// One column of one row group, and the destination of its values.
struct Part<'a> {
    column: usize,
    group: usize,
    /// Row number in the file of the first row.
    start: usize,
    rows: usize,
    to: To<'a>,
}

enum To<'a> {
    Memory(Mutex<&'a mut [f64]>),
    /// The column's spool file and the first row to write.
    File(&'a File, usize),
}

impl To<'_> {
    fn put(&self, at: usize, values: &[f64]) -> io::Result<()> {
        match self {
            Self::Memory(to) => {
                let mut to = to.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                to[at..at + values.len()].copy_from_slice(values);
                Ok(())
            }
            Self::File(file, start) => column_buffer::write_at(file, values, start + at),
        }
    }
}

/// `path` is the name for messages, `place` the path that can be opened.
fn parquet(
    (path, place): (&Path, &Path),
    names: &[String],
    policy: Policy,
    (threads, space): (usize, &Space),
) -> Result<Columns, Error> {
    let fault = |source| Error::Parquet { path: path.to_owned(), source };
    let file = File::open(place).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let metadata = ArrowReaderMetadata::load(&file, Default::default()).map_err(fault)?;
    let roots = find(path, metadata.schema().fields(), names)?;
    let sizes: Vec<usize> = metadata.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect();
    let rows: usize = sizes.iter().sum();
    let spooled = |source| Error::Spool { path: path.to_owned(), source };
    let fits = space.holds(rows * names.len() * size_of::<f64>());
    // Arrow's allocator aligns buffers for vector registers.
    let bytes = if fits { rows * size_of::<f64>() } else { 0 };
    let mut values: Vec<MutableBuffer> = names.iter().map(|_| MutableBuffer::from_len_zeroed(bytes)).collect();
    let files =
        names.iter().filter(|_| !fits).map(|_| space.file()).collect::<io::Result<Vec<_>>>().map_err(spooled)?;
    let mut parts = Vec::new();
    for (column, mut rest) in values.iter_mut().map(MutableBuffer::typed_data_mut).enumerate() {
        let mut start = 0;
        for (group, &rows) in sizes.iter().enumerate() {
            let to = match files.get(column) {
                Some(file) => To::File(file, start),
                None => To::Memory(Mutex::new(rest.split_off_mut(..rows).unwrap_or_default())),
            };
            parts.push(Part { column, group, start, rows, to });
            start += rows;
        }
    }
    // The columns of one row group are adjacent in the file.
    parts.sort_by_key(|part| (part.group, part.column));
    let read = in_parallel(parts.len(), threads, |i| {
        let part = &parts[i];
        decode((&metadata, place), roots[part.column], part, Watch::new(path, &names[part.column], policy))
    });
    let mut valid: Vec<Vec<(usize, BooleanBuffer)>> = vec![Vec::new(); names.len()];
    let mut gaps = vec![Gaps::default(); names.len()];
    for (part, decoded) in parts.iter().zip(read) {
        let (buffer, found) = decoded?;
        valid[part.column].push((part.group, buffer));
        gaps[part.column].add(found);
    }
    drop(parts);
    let columns = values.into_iter().zip(valid).enumerate().map(|(column, (values, parts))| {
        let whole = parts.iter().all(|(_, part)| part.count_set_bits() == part.len());
        let mut all = BooleanBufferBuilder::new(if whole { 0 } else { rows });
        if !whole {
            parts.iter().for_each(|(_, part)| all.append_buffer(part));
        }
        let nulls = (!whole).then(|| NullBuffer::new(all.finish()));
        match files.get(column) {
            Some(file) => column_buffer::mapped(file, nulls),
            None => Ok(Float64Array::new(Buffer::from(values).into(), nulls)),
        }
    });
    Ok(Columns { columns: columns.collect::<io::Result<_>>().map_err(spooled)?, rows, gaps, rows_left_out: 0 })
}

/// Positions of the named columns.
fn find(path: &Path, fields: &Fields, names: &[String]) -> Result<Vec<usize>, Error> {
    let find = |name: &String| {
        let Some((place, field)) = fields.find(name) else {
            let has: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            return Err(Error::NoColumn { path: path.to_owned(), name: name.clone(), has: has.join(", ") });
        };
        if fields.iter().skip(place + 1).any(|other| other.name() == name) {
            return Err(Error::Ambiguous { path: path.to_owned(), name: name.clone() });
        }
        let kind = field.data_type();
        if !(kind.is_numeric() || matches!(kind, DataType::Boolean | DataType::Null) || is_text(kind)) {
            return Err(Error::NoNumber { path: path.to_owned(), name: name.clone(), kind: kind.clone() });
        }
        Ok(place)
    };
    names.iter().map(find).collect()
}

/// Whether a Parquet column holds text, possibly dictionary-encoded.
fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// Decodes one column of one row group to its destination. Returns the validity (finite numbers) and the counts of the other
/// values.
fn decode(
    (metadata, place): (&ArrowReaderMetadata, &Path),
    root: usize,
    part: &Part<'_>,
    mut watch: Watch<'_>,
) -> Result<(BooleanBuffer, Gaps), Error> {
    let (path, name) = (watch.path, watch.name);
    let fault = |source| Error::Parquet { path: path.to_owned(), source };
    let arrow = |source| Error::Arrow { path: path.to_owned(), name: name.to_owned(), source };
    // Opened anew: cloned handles share one file position.
    let file = File::open(place).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mask = ProjectionMask::roots(metadata.parquet_schema(), [root]);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
        .with_projection(mask)
        .with_row_groups(vec![part.group])
        .with_batch_size(BATCH)
        .build()
        .map_err(fault)?;
    let mut valid = BooleanBufferBuilder::new(part.rows);
    let mut at = 0;
    for batch in reader {
        let batch = batch.map_err(arrow)?;
        let (numbers, present) = watch.numbers(batch.column(0), part.start + at)?;
        part.to.put(at, numbers.values()).map_err(|source| Error::Spool { path: path.to_owned(), source })?;
        at += numbers.len();
        match present {
            Some(present) => valid.append_buffer(&present),
            None => valid.append_n(numbers.len(), true),
        }
    }
    Ok((valid.finish(), watch.gaps))
}

/// Validity of the values (finite numbers); `None` if all are valid.
fn present(numbers: &Float64Array) -> Option<BooleanBuffer> {
    let finite = numbers.values().iter().fold(true, |all, value| all & value.is_finite());
    match numbers.nulls() {
        None if finite => None,
        Some(nulls) if finite => Some(nulls.inner().clone()),
        _ => Some(BooleanBuffer::collect_bool(numbers.len(), |i| !numbers.is_null(i) && numbers.value(i).is_finite())),
    }
}

#[cfg(test)]
mod tests;
