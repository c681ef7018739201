//! Unreadable messages: their number, and the latest of them.
//!
//! Input: files of records. Output: counts from their footers, and rows from only those parts of the files that contain some;
//! in a store without unreadable messages only footers are read.

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

use super::{DataFile, Error, Input, Snapshot};

/// Bytes of a message that are shown.
const SHOWN: usize = 240;

/// A message that could not be parsed as a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Partition number.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, UTC.
    pub timestamp: Option<i64>,
    /// Why it could not be parsed.
    pub reason: String,
    /// Size of the message in bytes.
    pub bytes: usize,
    /// The first bytes of the message.
    pub start: Vec<u8>,
}

impl Snapshot {
    /// The latest unreadable messages, latest first, at most `most`.
    pub fn last_unreadable(&self, most: usize) -> Result<Vec<Unreadable>, Error> {
        let mut found: Vec<Unreadable> = Vec::new();
        for files in self.files.chunk_by(|a, b| a.partition == b.partition) {
            let before = found.len();
            for file in files.iter().rev() {
                if found.len() - before >= most {
                    break;
                }
                found.extend(file.last_unreadable(most)?);
            }
        }
        found.sort_by_key(|one| std::cmp::Reverse((one.timestamp, one.partition, one.offset)));
        found.truncate(most);
        Ok(found)
    }
}

impl DataFile {
    /// Number of the file's rows that are unreadable messages.
    pub fn unreadable(&self) -> Result<u64, Error> {
        let reader = self.reader()?;
        (0..reader.metadata().num_row_groups()).map(|group| self.in_group(reader.metadata(), group)).sum()
    }

    fn last_unreadable(&self, most: usize) -> Result<Vec<Unreadable>, Error> {
        let metadata = self.reader()?.metadata().clone();
        let mut found = Vec::new();
        for group in (0..metadata.num_row_groups()).rev() {
            if found.len() >= most {
                break;
            }
            if self.in_group(&metadata, group)? == 0 {
                continue;
            }
            let reader = self.reader()?;
            let wanted = ["_offset", "_timestamp", "_error", "_raw"];
            let columns = ProjectionMask::columns(reader.parquet_schema(), wanted);
            let batches = reader.with_projection(columns).with_row_groups(vec![group]).build();
            for batch in batches.map_err(|e| self.damaged(&e))? {
                let batch = batch.map_err(|e| self.damaged(&e.into()))?;
                found.extend(self.rows(&batch).ok_or_else(|| self.damaged(&columns_differ()))?);
                // Only the last ones of a row group are needed.
                found.drain(..found.len().saturating_sub(most));
            }
        }
        Ok(found)
    }

    fn rows(&self, batch: &RecordBatch) -> Option<Vec<Unreadable>> {
        let offsets = batch.column_by_name("_offset")?.as_primitive_opt::<Int64Type>()?;
        let times = batch.column_by_name("_timestamp")?.as_primitive_opt::<TimestampMillisecondType>()?;
        let errors = batch.column_by_name("_error")?.as_string_opt::<i32>()?;
        let raw = batch.column_by_name("_raw")?.as_binary_opt::<i32>()?;
        let rows = (0..batch.num_rows()).filter(|&row| errors.is_valid(row));
        let message = |row: usize| if raw.is_valid(row) { raw.value(row) } else { &[] };
        let unreadable = |row: usize| Unreadable {
            partition: self.partition,
            offset: offsets.value(row),
            timestamp: times.is_valid(row).then(|| times.value(row)),
            reason: errors.value(row).to_owned(),
            bytes: message(row).len(),
            start: message(row).iter().copied().take(SHOWN).collect(),
        };
        Some(rows.map(unreadable).collect())
    }

    fn reader(&self) -> Result<ParquetRecordBatchReaderBuilder<Input>, Error> {
        ParquetRecordBatchReaderBuilder::try_new(self.open()?).map_err(|e| self.damaged(&e))
    }

    /// Number of unreadable rows in a row group, from the footer's statistics.
    fn in_group(&self, metadata: &ParquetMetaData, group: usize) -> Result<u64, Error> {
        let group = metadata.row_group(group);
        let column = group.columns().iter().find(|column| column.column_path().string() == "_error");
        let nulls = column.and_then(|column| column.statistics()).and_then(|statistics| statistics.null_count_opt());
        let nulls = nulls.ok_or_else(|| self.damaged(&columns_differ()))?;
        Ok((group.num_rows().unsigned_abs()).saturating_sub(nulls))
    }

    fn damaged(&self, why: &ParquetError) -> Error {
        Error::Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

fn columns_differ() -> ParquetError {
    ParquetError::General("its columns, or what the footer says of them, are not those of a store".to_owned())
}
