//! Writes files of records: compressed, with statistics, and with their range in the footer.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{DEFAULT_MAX_ROW_GROUP_ROW_COUNT, EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Error;
use super::checksums::{self, Checksums, Output};

/// The range of a file.
#[derive(Debug)]
pub struct Span {
    /// Partition number.
    pub partition: i32,
    /// Start of the range.
    pub start: i64,
    /// End of the range.
    pub next: i64,
    /// On an object store the writer's id, because no two files may be identical there.
    pub writer: Option<String>,
}

/// Writer properties of a file with this range.
pub(super) fn properties(span: &Span, rows: u64, like: &RecordBatch) -> WriterProperties {
    let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let mut said = vec![
        pair("partition", span.partition.to_string()),
        pair("start", span.start.to_string()),
        pair("next", span.next.to_string()),
        pair("rows", rows.to_string()),
    ];
    said.extend(span.writer.as_ref().map(|writer| pair("writer", writer.clone())));
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("tercile ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(DEFAULT_MAX_ROW_GROUP_ROW_COUNT))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(said));
    for name in ["_offset", "_timestamp"] {
        properties = properties
            .set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    for (field, column) in like.schema_ref().fields().iter().zip(like.columns()) {
        if !repeats(column) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::new(vec![field.name().clone()]), false);
        }
    }
    properties.build()
}

/// Whether a dictionary is worthwhile: values that hardly repeat only fill it, and building it takes most of the time of
/// writing.
fn repeats(column: &ArrayRef) -> bool {
    let values: Vec<&[u8]> = match column.data_type() {
        DataType::Utf8 => {
            let column = column.as_string::<i32>();
            sampled(column.len()).filter(|&row| column.is_valid(row)).map(|row| column.value(row).as_bytes()).collect()
        }
        DataType::Binary => {
            let column = column.as_binary::<i32>();
            sampled(column.len()).filter(|&row| column.is_valid(row)).map(|row| column.value(row)).collect()
        }
        _ => return true,
    };
    let distinct: HashSet<&[u8]> = values.iter().copied().collect();
    distinct.len() * 2 <= values.len() || values.len() < 16
}

/// Up to a thousand rows, evenly spread.
fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by((rows / 1000).max(1))
}

/// A file that was written.
pub(super) struct Written<W> {
    pub output: W,
    pub checksums: Checksums,
}

/// Writes a file of records, and its checksums into its footer.
pub(super) struct RecordsWriter<W: Output>(ArrowWriter<W>);

impl<W: Output> RecordsWriter<W> {
    /// Starts a file.
    pub fn new(output: W, schema: SchemaRef, properties: WriterProperties) -> Result<Self, ParquetError> {
        ArrowWriter::try_new(output, schema, Some(properties)).map(Self)
    }

    /// Appends records.
    pub fn write(&mut self, records: &RecordBatch) -> Result<(), ParquetError> {
        self.0.write(records)
    }

    /// Ends the row group if it exceeds this number of bytes.
    pub fn limit_group(&mut self, bytes: usize) -> Result<(), ParquetError> {
        if self.0.in_progress_size() > bytes { self.0.flush() } else { Ok(()) }
    }

    /// Writes the footer with checksums.
    pub fn finish(mut self) -> Result<Written<W>, ParquetError> {
        self.0.flush()?;
        self.0.sync()?;
        let end = self.0.bytes_written() as u64;
        let chunks = checksums::chunks(self.0.flushed_row_groups(), self.0.inner())?;
        self.0.append_key_value_metadata(checksums::entry(&chunks));
        let mut output = self.0.into_inner()?;
        let checksums = checksums::complete(&mut output, chunks, end)?;
        Ok(Written { output, checksums })
    }
}

/// Writes a whole file and syncs it; returns its size and its checksums.
pub(super) fn write_parquet(path: &Path, records: &RecordBatch, span: &Span) -> Result<(u64, Checksums), Error> {
    let file = create(path).map_err(Error::io("write", path))?;
    let written = write_to(file, records, span).map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
    written.output.sync_all().map_err(Error::io("sync", path))?;
    let size = written.output.metadata().map_err(Error::io("read", path))?.len();
    Ok((size, written.checksums))
}

/// Writes a Parquet file that holds no records, with checksums like theirs, and syncs it.
///
/// # Errors
/// If it cannot be written.
pub fn write_with_checksums(path: &Path, rows: &RecordBatch, properties: WriterProperties) -> Result<(), ParquetError> {
    let mut writer = RecordsWriter::new(create(path)?, rows.schema(), properties)?;
    writer.write(rows)?;
    writer.finish()?.output.sync_all()?;
    Ok(())
}

/// Creates a file that is read again while its checksums are computed.
pub(super) fn create(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Writes a file's content.
pub(super) fn write_to<W: Output>(to: W, records: &RecordBatch, span: &Span) -> Result<Written<W>, ParquetError> {
    let properties = properties(span, records.num_rows() as u64, records);
    let mut writer = RecordsWriter::new(to, records.schema(), properties)?;
    writer.write(records)?;
    writer.finish()
}
