//! Dead letters: unreadable records are decoded again, because a newer decoder may be able to read them.
//!
//! Files never change. A file with records that can be read now is rewritten as a larger file that covers it, as in compaction.
//! The new file also covers a neighbour of the old one: its range differs, so readers cannot confuse the two.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, BinaryArray, RecordBatch, StringArray};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::compact::open;
use super::file_name::Name;
use super::footer::DataFile;
use super::log::Log;
use super::{Error, Held};
use crate::record::{self, Decoded, Fields};

/// Result of decoding dead letters again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reprocessed {
    /// Records that can be read now.
    pub records: u64,
    /// Files that were written for them.
    pub files: u64,
    /// Records that still cannot be read, without tombstones.
    pub unreadable: u64,
    /// Readable records in a large file that has no neighbour yet.
    pub waiting: u64,
}

impl Log {
    /// Decodes every unreadable record again. Writers and readers may continue meanwhile. `None` if another process is
    /// compacting this partition, or the partition does not exist.
    pub fn reprocess(&self) -> Result<Option<Reprocessed>, Error> {
        let Some(alone) = self.alone(true)? else { return Ok(None) };
        let mut sum = Reprocessed::default();
        let mut done: HashSet<std::path::PathBuf> = HashSet::new();
        loop {
            let files = self.files()?;
            let Some(i) = files.iter().position(|file| !done.contains(&file.path)) else { return Ok(Some(sum)) };
            done.insert(files[i].path.clone());
            let Some((readable, unreadable)) = tried(&files[i])? else { continue };
            if readable == 0 {
                sum.unreadable += unreadable;
                continue;
            }
            let Some(run) = self.run(&files, i)? else {
                sum.waiting += readable;
                sum.unreadable += unreadable;
                continue;
            };
            if self.rewrite(&run, &alone)? {
                sum.files += 1;
                sum.records += readable;
                sum.unreadable += unreadable;
                // A neighbour's records were decoded with the others, but not counted.
                for file in run.iter().filter(|file| file.path != files[i].path && !done.contains(&file.path)) {
                    let (readable, unreadable) = tried(file)?.unwrap_or_default();
                    sum.records += readable;
                    sum.unreadable += unreadable;
                }
                if let (Some(first), Some(last)) = (run.first(), run.last()) {
                    done.insert(self.path(Name::large(first.start, last.next)));
                }
            } else {
                // Another process wrote a file of this name, over the same files.
                done.remove(&files[i].path);
            }
        }
    }

    /// The files to rewrite for this one: with its next neighbour, or else the previous one.
    fn run(&self, files: &[DataFile], i: usize) -> Result<Option<Vec<DataFile>>, Error> {
        let file = &files[i];
        let alike = |run: &[DataFile]| Ok::<_, Error>(self.alike(run.to_vec())?.first().is_some_and(|r| r.len() == 2));
        if i + 1 < files.len() && files[i + 1].start == file.next && alike(&files[i..i + 2])? {
            return Ok(Some(files[i..i + 2].to_vec()));
        }
        if file.path != self.path(Name::large(file.start, file.next)) {
            return Ok(Some(vec![file.clone()]));
        }
        if i > 0 && files[i - 1].next == file.start && alike(&files[i - 1..=i])? {
            return Ok(Some(files[i - 1..=i].to_vec()));
        }
        Ok(None)
    }

    fn rewrite(&self, run: &[DataFile], alone: &Held) -> Result<bool, Error> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(false) };
        let (start, next) = (first.start, last.next);
        let scratch = self.store.scratch();
        let again = |batch: RecordBatch| Ok(read_again(&batch)?.map_or(batch, |(reprocessed, _)| reprocessed));
        let written = self.merge(run, &scratch, start, next, again);
        if !matches!(written, Ok(true)) {
            let _ = fs::remove_file(&scratch);
            return written;
        }
        self.replace_range(&scratch, Name::large(start, next), alone)
    }
}

/// Number of a file's unreadable records that can be read now, and of those that still cannot; `None` if the footer shows no
/// unreadable records.
fn tried(file: &DataFile) -> Result<Option<(u64, u64)>, Error> {
    let damaged = |e: &dyn std::fmt::Display| Error::Damaged { path: file.path.clone(), why: e.to_string() };
    let Some((input, metadata)) = open(file)? else { return Ok(None) };
    let schema = metadata.parquet_schema();
    let column = |name: &str| schema.columns().iter().position(|column| column.name() == name);
    let (Some(errors), Some(raw)) = (column("_error"), column("_raw")) else { return Ok(None) };
    let nulls = |group: &parquet::file::metadata::RowGroupMetaData| {
        group.column(errors).statistics().and_then(|statistics| statistics.null_count_opt())
    };
    let groups = metadata.metadata().row_groups();
    if groups.iter().all(|group| nulls(group).is_some_and(|nulls| nulls.cast_signed() == group.num_rows())) {
        return Ok(None);
    }
    let mask = ProjectionMask::leaves(schema, [errors, raw]);
    let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata).with_projection(mask);
    let (mut readable, mut unreadable) = (0, 0);
    for batch in reader.build().map_err(|e| damaged(&e))? {
        let batch = batch.map_err(|e| damaged(&e))?;
        let errors = batch.column(0).as_string::<i32>().iter().flatten();
        let failed = errors.filter(|error| !record::is_tombstone(error)).count() as u64;
        let now = read_again(&batch).map_err(|e| damaged(&e))?.map_or(0, |(_, count)| count);
        readable += now;
        unreadable += failed - now;
    }
    Ok(Some((readable, unreadable)))
}

/// The batch with newly decoded records, and their number; `None` if there are none.
fn read_again(batch: &RecordBatch) -> Result<Option<(RecordBatch, u64)>, ArrowError> {
    let (Some(errors), Some(raw)) = (batch.column_by_name("_error"), batch.column_by_name("_raw")) else {
        return Ok(None);
    };
    let (errors, raw): (&StringArray, &BinaryArray) = (errors.as_string(), raw.as_binary());
    let schema = batch.schema();
    let declared = schema.fields().iter().map(|field| field.name()).filter(|name| !name.starts_with('_'));
    let fields = Fields::new(declared.cloned().collect());
    let read: Vec<Option<Decoded<'_>>> = (0..batch.num_rows())
        .map(|row| {
            let failed = errors.is_valid(row) && raw.is_valid(row);
            failed.then(|| record::decode(Some(raw.value(row)), &fields).ok()).flatten()
        })
        .collect();
    let count = read.iter().flatten().count() as u64;
    if count == 0 {
        return Ok(None);
    }
    let text = |column: &ArrayRef, value: &dyn Fn(&Decoded<'_>) -> Option<String>| -> ArrayRef {
        let old = column.as_string::<i32>();
        let rows = read.iter().enumerate();
        Arc::new(
            rows.map(|(row, read)| match read {
                Some(decoded) => value(decoded),
                None => old.is_valid(row).then(|| old.value(row).to_owned()),
            })
            .collect::<StringArray>(),
        )
    };
    let mut columns = Vec::with_capacity(batch.num_columns());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        columns.push(match field.name().as_str() {
            "_error" => text(column, &|_| None),
            "_extra" => text(column, &|decoded| Some(decoded.extra.clone().into_owned())),
            "_raw" => {
                let rows = read.iter().enumerate();
                let kept = rows.map(|(row, read)| (read.is_none() && raw.is_valid(row)).then(|| raw.value(row)));
                Arc::new(kept.collect::<BinaryArray>()) as ArrayRef
            }
            name => match fields.names().iter().position(|declared| declared == name) {
                Some(i) => text(column, &|decoded| decoded.values[i].as_deref().map(str::to_owned)),
                None => Arc::clone(column),
            },
        });
    }
    Ok(Some((RecordBatch::try_new(schema, columns)?, count)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::{Policy, Published, Store};
    use super::*;
    use crate::batch::{Batch, Record};
    use crate::record::Unreadable;

    /// Records of which an older decoder without support for nested arrays could not read every second.
    fn by_an_older_decoder(offsets: std::ops::Range<i64>) -> RecordBatch {
        let fields = Fields::new(vec!["a".into()]);
        let mut batch = Batch::new(0, &fields);
        for offset in offsets {
            let payload = match offset % 4 {
                0 => format!(r#"{{"a":"{offset}"}}"#),
                3 => "no JSON at all".to_owned(),
                _ => format!(r#"{{"a":"{offset}","b":[{offset}]}}"#),
            };
            let record = Record { offset, timestamp: Some(offset), key: Some(b"k"), payload: Some(payload.as_bytes()) };
            let decoded = match offset % 4 {
                0 => record::decode(record.payload, &fields),
                _ => Err(Unreadable::NotJson("an array".to_owned())),
            };
            batch.push(&record, std::iter::empty(), &decoded, Instant::now());
        }
        batch.take().unwrap().unwrap().records
    }

    /// Offset, `a`, `_extra` and `_error`.
    type Row = (i64, Option<String>, Option<String>, Option<String>);

    fn rows(log: &Log) -> Vec<Row> {
        let mut rows = Vec::new();
        for file in log.files().unwrap() {
            let (input, metadata) = open(&file).unwrap().unwrap();
            for batch in ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata).build().unwrap() {
                let batch = batch.unwrap();
                let offsets = batch.column_by_name("_offset").unwrap();
                let offsets = offsets.as_primitive::<arrow::datatypes::Int64Type>();
                let text = |name: &str, row: usize| {
                    let column = batch.column_by_name(name).unwrap().as_string::<i32>();
                    column.is_valid(row).then(|| column.value(row).to_owned())
                };
                rows.extend(
                    (0..batch.num_rows())
                        .map(|row| (offsets.value(row), text("a", row), text("_extra", row), text("_error", row))),
                );
            }
        }
        rows
    }

    #[test]
    fn readable_dead_letters_are_decoded_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 8, 16] {
            let published = log.publish(&by_an_older_decoder(start..start + 8), start, start + 8).unwrap();
            assert!(matches!(published, Published::File(_)));
        }
        let before = rows(&log);
        assert_eq!(before.iter().filter(|row| row.3.is_some()).count(), 18);
        assert_eq!(log.reprocess().unwrap(), Some(Reprocessed { records: 12, files: 2, unreadable: 6, waiting: 0 }));
        let after = rows(&log);
        assert_eq!(after.len(), 24);
        for (old, new) in before.iter().zip(&after) {
            let offset = old.0;
            match offset % 4 {
                0 | 3 => assert_eq!(old, new),
                _ => {
                    let extra = format!(r#"{{"b":[{offset}]}}"#);
                    assert_eq!(*new, (offset, Some(offset.to_string()), Some(extra), None));
                }
            }
        }
        assert_eq!(log.next().unwrap(), Some(24));
        log.verify().unwrap();
        assert_eq!(
            log.reprocess().unwrap(),
            Some(Reprocessed { unreadable: 6, ..Reprocessed::default() }),
            "nothing is left to do"
        );
        let policy = Policy { target: 1, grace: Duration::ZERO, eager: false, ..Policy::default() };
        assert_eq!(log.compact(&policy).unwrap().deleted, 3);
        assert_eq!(rows(&log), after);
    }

    #[test]
    fn a_large_file_without_a_neighbour_waits_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 4] {
            log.publish(&by_an_older_decoder(start..start + 4), start, start + 4).unwrap();
        }
        let policy = Policy { target: 1 << 20, grace: Duration::ZERO, eager: true, ..Policy::default() };
        assert_eq!(log.compact(&policy).unwrap().large, 1);
        assert_eq!(log.reprocess().unwrap(), Some(Reprocessed { waiting: 4, unreadable: 2, ..Reprocessed::default() }));
        log.publish(&by_an_older_decoder(8..9), 8, 9).unwrap();
        assert_eq!(log.reprocess().unwrap(), Some(Reprocessed { records: 4, files: 1, unreadable: 2, waiting: 0 }));
        assert_eq!(rows(&log).len(), 9);
    }
}
