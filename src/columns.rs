//! Columns of numbers out of any Parquet or CSV file.
//!
//! Input: a path and the columns' names. Output: one Arrow column of doubles each, in the order of the file. What is no finite
//! number (NULL, NaN, an infinity, in CSV any other text) is null, just as products.sql has it. Parquet is read by all
//! threads, a column of a row group at a time, and only the columns asked for. Columns that memory does not hold go to a
//! spool.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use datafusion::arrow::array::{Array, AsArray, BooleanBufferBuilder, Float64Array};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, MutableBuffer, NullBuffer};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

use crate::features::chunks::in_parallel;
use crate::spool::{self, Growing, Space};

/// Rows that are decoded at once.
const BATCH: usize = 65_536;

/// What is wrong with a file of columns.
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
    #[error("cannot read {path} as CSV: {why}", path = path.display())]
    Csv { path: PathBuf, why: String },
    #[error(
        "the columns of {path} are more than --memory-limit, and cannot be kept in a file instead: {source}; see TMPDIR", path = path.display()
    )]
    Spool { path: PathBuf, source: io::Error },
}

/// Columns of the same length.
#[derive(Debug)]
pub struct Columns {
    pub columns: Vec<Float64Array>,
    pub rows: usize,
}

/// Reads these columns of a file, on so many threads, into this space.
pub fn read(path: &Path, names: &[String], threads: usize, space: &Space) -> Result<Columns, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::with_capacity(4);
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    if magic == b"PAR1" { parquet(path, &file, names, threads, space) } else { csv(path, file, names, space) }
}

/// A part of a column, and where its values go.
struct Part<'a> {
    column: usize,
    group: usize,
    rows: usize,
    to: To<'a>,
}

enum To<'a> {
    Memory(Mutex<&'a mut [f64]>),
    /// From this row on.
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
            Self::File(file, start) => spool::write_at(file, values, start + at),
        }
    }
}

fn parquet(path: &Path, file: &File, names: &[String], threads: usize, space: &Space) -> Result<Columns, Error> {
    let fault = |source| Error::Parquet { path: path.to_owned(), source };
    let metadata = ArrowReaderMetadata::load(file, Default::default()).map_err(fault)?;
    let fields = metadata.schema().fields();
    let mut roots = Vec::new();
    for name in names {
        let Some((root, field)) = fields.find(name) else {
            let has: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            return Err(Error::NoColumn { path: path.to_owned(), name: name.clone(), has: has.join(", ") });
        };
        if !(field.data_type().is_numeric() || matches!(field.data_type(), DataType::Boolean | DataType::Null)) {
            return Err(Error::NoNumber { path: path.to_owned(), name: name.clone(), kind: field.data_type().clone() });
        }
        roots.push(root);
    }
    let sizes: Vec<usize> = metadata.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect();
    let rows: usize = sizes.iter().sum();
    let spooled = |source| Error::Spool { path: path.to_owned(), source };
    let fits = space.holds(rows * names.len() * size_of::<f64>());
    // Arrow's own memory begins where a vector register likes it to.
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
            start += rows;
            parts.push(Part { column, group, rows, to });
        }
    }
    // The parts of one row group are neighbours in the file.
    parts.sort_by_key(|part| (part.group, part.column));
    let read = in_parallel(parts.len(), threads, |i| {
        let part = &parts[i];
        decode(path, &metadata, roots[part.column], &names[part.column], part)
    });
    let mut valid: Vec<Vec<(usize, BooleanBuffer)>> = vec![Vec::new(); names.len()];
    for (part, buffer) in parts.iter().zip(read) {
        valid[part.column].push((part.group, buffer?));
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
            Some(file) => spool::mapped(file, nulls),
            None => Ok(Float64Array::new(Buffer::from(values).into(), nulls)),
        }
    });
    Ok(Columns { columns: columns.collect::<io::Result<_>>().map_err(spooled)?, rows })
}

/// Decodes one column of one row group to where it belongs; gives which values are there.
fn decode(
    path: &Path,
    metadata: &ArrowReaderMetadata,
    root: usize,
    name: &str,
    part: &Part<'_>,
) -> Result<BooleanBuffer, Error> {
    let fault = |source| Error::Parquet { path: path.to_owned(), source };
    let arrow = |source| Error::Arrow { path: path.to_owned(), name: name.to_owned(), source };
    // A file of its own: clones of one share the place they read at.
    let file = File::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
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
        let numbers = cast(batch.column(0), &DataType::Float64).map_err(arrow)?;
        let numbers = numbers.as_primitive::<Float64Type>();
        part.to.put(at, numbers.values()).map_err(|source| Error::Spool { path: path.to_owned(), source })?;
        at += numbers.len();
        match present(numbers) {
            Some(there) => valid.append_buffer(&there),
            None => valid.append_n(numbers.len(), true),
        }
    }
    Ok(valid.finish())
}

/// Which values are finite numbers; nothing where all are.
fn present(numbers: &Float64Array) -> Option<BooleanBuffer> {
    let finite = numbers.values().iter().fold(true, |all, value| all & value.is_finite());
    match numbers.nulls() {
        None if finite => None,
        Some(nulls) if finite => Some(nulls.inner().clone()),
        _ => Some(BooleanBuffer::collect_bool(numbers.len(), |i| !numbers.is_null(i) && numbers.value(i).is_finite())),
    }
}

fn csv(path: &Path, file: File, names: &[String], space: &Space) -> Result<Columns, Error> {
    let fault = |error: csv::Error| Error::Csv { path: path.to_owned(), why: error.to_string() };
    let delimiter = if path.extension().is_some_and(|extension| extension == "tsv") { b'\t' } else { b',' };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).buffer_capacity(1 << 18).from_reader(file);
    let header = reader.byte_headers().map_err(fault)?.clone();
    let titles: Vec<String> = header.iter().map(|title| String::from_utf8_lossy(title).into_owned()).collect();
    let titles: Vec<&str> = titles.iter().map(|title| title.trim_start_matches('\u{feff}')).collect();
    let mut places = Vec::new();
    for name in names {
        let Some(place) = titles.iter().position(|title| title == name) else {
            return Err(Error::NoColumn { path: path.to_owned(), name: name.clone(), has: titles.join(", ") });
        };
        places.push(place);
    }
    let spooled = |source| Error::Spool { path: path.to_owned(), source };
    let mut columns: Vec<Growing<Float64Type>> = names.iter().map(|_| Growing::new(0)).collect();
    let mut some: Vec<Vec<Option<f64>>> = vec![Vec::with_capacity(BATCH); names.len()];
    let mut record = csv::ByteRecord::new();
    let mut rows = 0;
    loop {
        let more = reader.read_byte_record(&mut record).map_err(fault)?;
        if !more || rows % BATCH == 0 {
            for (column, some) in columns.iter_mut().zip(&mut some) {
                column.append(&some.drain(..).collect()).map_err(spooled)?;
            }
            if !space.holds(columns.iter().map(Growing::held).sum()) {
                columns.iter_mut().try_for_each(|column| column.spill(space)).map_err(spooled)?;
            }
        }
        if !more {
            break;
        }
        for (column, &place) in some.iter_mut().zip(&places) {
            let text = record.get(place).and_then(|field| std::str::from_utf8(field).ok());
            column.push(text.and_then(|text| text.trim().parse().ok()).filter(|value: &f64| value.is_finite()));
        }
        rows += 1;
    }
    let columns: io::Result<_> = columns.into_iter().map(Growing::finish).collect();
    Ok(Columns { columns: columns.map_err(spooled)?, rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, BooleanArray, Float32Array, Int64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::WriterProperties;

    fn here() -> Space {
        Space::within(usize::MAX, spool::scratch())
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
            for (threads, space) in [(1, here()), (3, here()), (3, Space::within(0, spool::scratch()))] {
                let found = read(file.path(), &names(&["c", "a", "b"]), threads, &space).unwrap();
                assert_eq!(found.rows, 1000);
                let [flags, ints, floats] = &found.columns[..] else { panic!() };
                assert_eq!((flags.value(4), flags.value(5), flags.null_count()), (1.0, 0.0, 0));
                assert_eq!((ints.value(999), ints.is_null(993), ints.null_count()), (999.0, true, 100));
                assert_eq!((floats.value(999), floats.is_null(17), floats.null_count()), (249.75, true, 1));
            }
            let error = read(file.path(), &names(&["a", "d"]), 1, &here()).unwrap_err().to_string();
            assert!(error.ends_with("has no column d; it has a, text, b, c"), "{error}");
            let error = read(file.path(), &names(&["text"]), 1, &here()).unwrap_err().to_string();
            assert!(
                error.contains("the column text of ") && error.contains("holds Utf8, which is no number"),
                "{error}"
            );
        }
    }

    #[test]
    fn text_that_is_no_finite_number_is_missing_in_csv() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}a,b\n1, 2.5e3\n,NaN\n\"x, y\",inf\n-0,1e999\n").unwrap();
        for space in [here(), Space::within(0, spool::scratch())] {
            let found = read(file.path(), &names(&["b", "a"]), 1, &space).unwrap();
            let rows: Vec<Vec<Option<f64>>> = found.columns.iter().map(|column| column.iter().collect()).collect();
            assert_eq!(rows, [[Some(2500.0), None, None, None], [Some(1.0), None, None, Some(-0.0)]]);
        }
        std::fs::write(file.path(), "a,b\n1,2\n3\n").unwrap();
        let error = read(file.path(), &names(&["a"]), 1, &here()).unwrap_err().to_string();
        assert!(error.contains("as CSV") && error.contains("line: 3"), "{error}");
    }
}
