//! An earlier state of the store: the records before given offsets.
//!
//! Input: the next offset of each partition at that time. Output: a snapshot of those records alone. If compaction merged later
//! records into a file, the file's records before the offset are copied to `tmp/`; the copy is deleted with the snapshot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int64Type;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use super::{DataFile, Error, Place, Snapshot, Store};

/// An earlier state of the stream.
#[derive(Debug, Default)]
pub struct SnapshotAt {
    /// The files, including temporary copies.
    pub snapshot: Snapshot,
    copies: Vec<PathBuf>,
}

impl Drop for SnapshotAt {
    fn drop(&mut self) {
        for copy in &self.copies {
            // A remaining file is deleted by `sweep`.
            let _ = fs::remove_file(copy);
        }
    }
}

impl Store {
    /// The records before these offsets; partitions without an offset are empty.
    ///
    /// # Errors
    /// If records before an offset are missing, or a copy cannot be written.
    pub fn snapshot_until(&self, next_offsets: &BTreeMap<i32, i64>) -> Result<SnapshotAt, Error> {
        let now = self.snapshot()?;
        let mut prefix = SnapshotAt { snapshot: Snapshot { topic: now.topic, files: Vec::new() }, copies: Vec::new() };
        for file in now.files {
            let Some(&next) = next_offsets.get(&file.partition) else { continue };
            if file.next <= next {
                prefix.snapshot.files.push(file);
            } else if file.start < next {
                let path = self.scratch().with_extension("parquet");
                prefix.copies.push(path.clone());
                let rows = copy_until(&file, &path, next)?;
                let size = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
                prefix.snapshot.files.push(DataFile {
                    place: Place::default(),
                    path,
                    next,
                    rows,
                    size,
                    bounds: None,
                    checksums: None,
                    ..file
                });
            }
        }
        Ok(prefix)
    }
}

/// Copies the records before an offset, and returns their number.
fn copy_until(file: &DataFile, to: &Path, next: i64) -> Result<u64, Error> {
    let damaged = |why: String| Error::Damaged { path: file.path.clone(), why };
    let wrote = |source: ParquetError| Error::Parquet { path: to.to_owned(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file.open()?).map_err(|e| damaged(e.to_string()))?;
    file.check()?;
    let output = File::create_new(to).map_err(Error::io("write", to))?;
    let mut writer = ArrowWriter::try_new(output, reader.schema().clone(), None).map_err(wrote)?;
    let mut rows = 0;
    for batch in reader.build().map_err(|e| damaged(e.to_string()))? {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let offsets = batch.column_by_name("_offset").ok_or_else(|| damaged("it has no column _offset".to_owned()))?;
        let before: BooleanArray = offsets.as_primitive::<Int64Type>().iter().map(|o| Some(o < Some(next))).collect();
        let kept = filter_record_batch(&batch, &before).map_err(|e| damaged(e.to_string()))?;
        rows += kept.num_rows() as u64;
        writer.write(&kept).map_err(wrote)?;
        if kept.num_rows() < batch.num_rows() {
            break;
        }
    }
    writer.close().map_err(wrote)?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::records;
    use super::super::{EMBEDDED, Policy};
    use super::*;

    #[test]
    fn an_earlier_snapshot_has_the_records_before_its_end_and_deletes_its_copies() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", EMBEDDED, 2).unwrap();
        for partition in [0, 1] {
            let log = store.log("products", partition);
            log.begin(0).unwrap();
            for start in [0, 10, 20] {
                log.publish(&records(start..start + 10), start, start + 10).unwrap();
            }
        }
        let policy = Policy { target: 1 << 30, grace: std::time::Duration::ZERO, eager: true, ..Policy::default() };
        assert_eq!(store.log("products", 1).compact(&policy).unwrap().large, 1);

        let prefix = store.snapshot_until(&BTreeMap::from([(0, 20), (1, 13)])).unwrap();
        assert_eq!((prefix.snapshot.rows(), prefix.snapshot.files.len()), (33, 3));
        assert_eq!(prefix.snapshot.next_offsets(), BTreeMap::from([(0, 20), (1, 13)]));
        let copy = prefix.snapshot.files[2].path.clone();
        assert!(copy.starts_with(dir.path().join("tmp")) && copy.exists());
        drop(prefix);
        assert!(!copy.exists());
        assert_eq!(store.snapshot_until(&BTreeMap::from([(1, 30)])).unwrap().snapshot.rows(), 30);
    }
}
