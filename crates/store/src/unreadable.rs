//! Unreadable messages: their number, and the latest of them.
//!
//! Input: files of records. Output: counts from their footers, and rows from only those parts of the files that contain some;
//! in a store without unreadable messages only footers are read. Tombstones, messages without a value, are counted separately.

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;

use super::{DataFile, Error, Input, Snapshot};
use crate::record::{TOMBSTONE_REASONS, WithoutFields, is_tombstone};

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
    /// Numbers of the file's records without fields.
    pub fn without_fields(&self) -> Result<WithoutFields, Error> {
        let metadata = self.reader()?.metadata().clone();
        let groups = (0..metadata.num_row_groups()).map(|group| {
            let errors = self.errors(&metadata, group)?;
            let tombstones = match errors {
                0 => 0,
                errors if has_only_tombstones(&metadata, group) => errors,
                _ => self.tombstones(group)?,
            };
            Ok(WithoutFields { unreadable: errors - tombstones, tombstones })
        });
        groups.sum()
    }

    /// Number of tombstones in a row group, from its column of reasons.
    fn tombstones(&self, group: usize) -> Result<u64, Error> {
        let mut count = 0;
        for batch in self.columns(group, &["_error"])? {
            let batch = batch.map_err(|e| self.damaged(&e.into()))?;
            let errors = batch.column(0).as_string_opt::<i32>().ok_or_else(|| self.damaged(&columns_differ()))?;
            count += errors.iter().flatten().filter(|error| is_tombstone(error)).count() as u64;
        }
        Ok(count)
    }

    fn columns(&self, group: usize, names: &[&str]) -> Result<ParquetRecordBatchReader, Error> {
        let reader = self.reader()?;
        let columns = ProjectionMask::columns(reader.parquet_schema(), names.iter().copied());
        reader.with_projection(columns).with_row_groups(vec![group]).build().map_err(|e| self.damaged(&e))
    }

    fn last_unreadable(&self, most: usize) -> Result<Vec<Unreadable>, Error> {
        let metadata = self.reader()?.metadata().clone();
        let mut found = Vec::new();
        for group in (0..metadata.num_row_groups()).rev() {
            if found.len() >= most {
                break;
            }
            if self.errors(&metadata, group)? == 0 || has_only_tombstones(&metadata, group) {
                continue;
            }
            for batch in self.columns(group, &["_offset", "_timestamp", "_error", "_raw"])? {
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
        let rows = (0..batch.num_rows()).filter(|&row| errors.is_valid(row) && !is_tombstone(errors.value(row)));
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

    /// Number of rows without fields in a row group, from the footer's statistics.
    fn errors(&self, metadata: &ParquetMetaData, group: usize) -> Result<u64, Error> {
        let group = metadata.row_group(group);
        let nulls = statistics(group).and_then(|statistics| statistics.null_count_opt());
        let nulls = nulls.ok_or_else(|| self.damaged(&columns_differ()))?;
        Ok((group.num_rows().unsigned_abs()).saturating_sub(nulls))
    }

    fn damaged(&self, why: &ParquetError) -> Error {
        Error::Damaged { path: self.path.clone(), why: why.to_string() }
    }
}

/// The statistics of the reasons in a row group.
fn statistics(group: &RowGroupMetaData) -> Option<&Statistics> {
    group.columns().iter().find(|column| column.column_path().string() == "_error")?.statistics()
}

/// Whether the least and the greatest reason in a row group show that all are those of tombstones.
fn has_only_tombstones(metadata: &ParquetMetaData, group: usize) -> bool {
    let Some(Statistics::ByteArray(reasons)) = statistics(metadata.row_group(group)) else { return false };
    let (least, greatest) = (reasons.min_opt(), reasons.max_opt());
    let [Some(least), Some(greatest)] = [least, greatest].map(|reason| reason.map(|bytes| bytes.data())) else {
        return false;
    };
    TOMBSTONE_REASONS.iter().any(|reason| [least, greatest].iter().all(|bytes| bytes.starts_with(reason.as_bytes())))
}

fn columns_differ() -> ParquetError {
    ParquetError::General("its columns, or what the footer says of them, are not those of a store".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::batch::{Batch, Record};
    use crate::record::{Decoded, Fields, Unreadable as Reason};
    use crate::{Published, Store};

    #[test]
    fn tombstones_are_not_unreadable() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let fields = Fields::new(vec!["a".into()]);
        let publish = |start: i64, reasons: &[Option<Reason>]| {
            let mut batch = Batch::new(0, &fields);
            for (offset, reason) in (start..).zip(reasons) {
                let payload = (*reason != Some(Reason::Tombstone)).then_some(&b"x"[..]);
                let record = Record { offset, timestamp: Some(1), key: Some(b"k"), payload };
                let decoded = match reason {
                    None => Ok(Decoded { values: vec![None], extra: "{}".into() }),
                    Some(Reason::Tombstone) => Err(Reason::Tombstone),
                    Some(_) => Err(Reason::Encoding("a tombstone of an earlier build".to_owned())),
                };
                batch.push(&record, std::iter::empty(), &decoded, Instant::now());
            }
            let ready = batch.take().unwrap().unwrap();
            let Published::File(file) = log.publish(&ready.records, start, ready.next).unwrap() else { panic!() };
            (ready.without_fields, file.without_fields().unwrap())
        };
        let count = |unreadable, tombstones| WithoutFields { unreadable, tombstones };
        assert_eq!(publish(0, &[None, None]), (count(0, 0), count(0, 0)));
        let tombstone = || Some(Reason::Tombstone);
        assert_eq!(publish(2, &[tombstone(), None, tombstone()]), (count(0, 2), count(0, 2)));
        // The text of an earlier build is recognised in files.
        let (_, stored) = publish(5, &[tombstone(), Some(Reason::Empty)]);
        assert_eq!(stored, count(0, 2));
        assert!(store.snapshot().unwrap().last_unreadable(10).unwrap().is_empty());
        assert_eq!(log.reprocess().unwrap().unwrap().unreadable, 0);
    }
}
