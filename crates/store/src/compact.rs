//! Compaction: runs of small files are merged into one larger file that covers their range.
//!
//! The larger file is named by its start and its end, and published like any other. From then on readers skip the small files
//! (see `live_files`), which stay for a grace period: for readers that listed the directory before, and for globs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use arrow::array::RecordBatch;
use arrow::datatypes::Fields;
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder};

use super::file_name::Name;
use super::footer::DataFile;
use super::live_files::{covering, effective};
use super::log::Log;
use super::policy::Policy;
use super::write::{RecordsWriter, create, properties};
use super::{Error, Held, Input, footer};

/// Maximum bytes of a row group while it is written, which bounds the memory of a merge.
const GROUP_BYTES: usize = 32 * 1024 * 1024;
/// Minimum number of small files to merge in a run that has not reached the target size.
const WORTHWHILE: usize = 16;

/// Result of a compaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rolled {
    /// Small files that were merged.
    pub small: u64,
    /// Larger files that were written.
    pub large: u64,
    /// Records that expired.
    pub expired: u64,
    /// Files that were deleted, replaced or expired.
    pub deleted: u64,
}

impl Log {
    /// Merges small files, expires old records, and deletes files whose grace period is over. Any number of processes may call
    /// this concurrently, beside writers and readers.
    pub fn compact(&self, policy: &Policy) -> Result<Rolled, Error> {
        if !self.store.place.is_disk() && !self.has_work(policy)? {
            return Ok(Rolled::default());
        }
        // `compact` waits for the lease of a killed process; an ingest tries again later.
        let Some(alone) = self.alone(policy.eager)? else { return Ok(Rolled::default()) };
        let (expired, gone) = self.expire(policy, &alone)?;
        let replaced = self.delete_replaced(policy.grace)?;
        let mut rolled = Rolled { expired, deleted: gone + replaced, ..Rolled::default() };
        for run in plan(&self.files()?, policy) {
            for alike in self.alike(run)? {
                if self.roll(&alike, &alone)? {
                    rolled.small += alike.len() as u64;
                    rolled.large += 1;
                }
            }
        }
        if self.store.log_cache.index_is_old(self) {
            self.store.log_cache.write_index(self)?;
        }
        Ok(rolled)
    }

    /// Whether there is anything to merge or to delete. On an object store this check is cheaper than taking the lock.
    fn has_work(&self, policy: &Policy) -> Result<bool, Error> {
        let all = self.all_files()?;
        let counting = effective(all.clone());
        if self.store.log_cache.index_is_old(self) {
            return Ok(true);
        }
        Ok(counting.len() < all.len()
            || !plan(&counting, policy).is_empty()
            || self.has_expiring(&counting, &policy.keep)?)
    }

    /// Deletes small files that larger ones replaced before the grace period. A larger file is read first: if it is damaged, the
    /// small ones are the only good copy of its records.
    fn delete_replaced(&self, grace: Duration) -> Result<u64, Error> {
        let all = self.all_files()?;
        let counting = effective(all.clone());
        let now = SystemTime::now();
        // A large file covers many small ones, and its age costs a request on an object store.
        let mut ages: HashMap<PathBuf, bool> = HashMap::new();
        let mut deleted = 0;
        for file in &all {
            let by = covering(&counting, file);
            if by.is_empty() || by.iter().any(|by| by.path == file.path) {
                continue;
            }
            let mut replaced_long_ago = true;
            for by in by {
                let old = match ages.get(&by.path) {
                    Some(&old) => old,
                    None => {
                        let made = by.place.modified(&by.path).map_err(Error::io("read", &by.path))?;
                        let old = now.duration_since(made).is_ok_and(|age| age >= grace) && is_whole(by)?;
                        ages.insert(by.path.clone(), old);
                        old
                    }
                };
                replaced_long_ago &= old;
            }
            if replaced_long_ago {
                match file.place.delete(&file.path) {
                    Ok(()) => deleted += 1,
                    // Another process deleted it.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    Err(e) => return Err(Error::io("delete", &file.path)(e)),
                }
            }
        }
        Ok(deleted)
    }

    /// Parts of a run with the same columns: `00_records.sql` may have changed within it.
    pub(super) fn alike(&self, run: Vec<DataFile>) -> Result<Vec<Vec<DataFile>>, Error> {
        let mut parts: Vec<(Fields, Vec<DataFile>)> = Vec::new();
        for file in run {
            // Merged by another process, and deleted already.
            let Some((_, metadata)) = open(&file)? else { return Ok(Vec::new()) };
            match parts.last_mut() {
                Some((fields, part)) if *fields == metadata.schema().fields => part.push(file),
                _ => parts.push((metadata.schema().fields.clone(), vec![file])),
            }
        }
        Ok(parts.into_iter().map(|(_, part)| part).filter(|part| part.len() > 1).collect())
    }

    /// Merges a run into one file; `false` if another process did.
    fn roll(&self, run: &[DataFile], alone: &Held) -> Result<bool, Error> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(false) };
        let (start, next) = (first.start, last.next);
        let scratch = self.store.scratch();
        let written = self.merge(run, &scratch, start, next, Ok);
        if !matches!(written, Ok(true)) {
            let _ = fs::remove_file(&scratch);
            return written;
        }
        self.replace_range(&scratch, Name::large(start, next), alone)
    }

    /// Publishes a file that covers others; `false` if another process did.
    ///
    /// A lease can be lost. If another large file now covers a part of the same range, this one is deleted: readers skip the
    /// one that starts later, and its records beyond the other one must still exist in small files.
    pub(super) fn replace_range(&self, scratch: &Path, name: Name, alone: &Held) -> Result<bool, Error> {
        if !alone.holds() {
            let _ = fs::remove_file(scratch);
            return Err(Error::Rolling);
        }
        let path = self.path(name);
        if self.store.link(scratch, &path)?.is_none() {
            return Ok(false);
        }
        if !self.store.place.is_disk() && self.names()?.iter().any(|other| crosses(name, *other)) {
            self.store.place.delete(&path).map_err(Error::io("take back", &path))?;
            return Err(Error::Rolling);
        }
        Ok(true)
    }

    /// Writes the records of a run into one file, after applying a function to each batch; `false` if a file of the run is
    /// gone.
    pub(super) fn merge(
        &self,
        run: &[DataFile],
        scratch: &Path,
        start: i64,
        next: i64,
        change: impl Fn(RecordBatch) -> Result<RecordBatch, ArrowError>,
    ) -> Result<bool, Error> {
        let parquet = |source| Error::Parquet { path: scratch.to_owned(), source };
        let rows = run.iter().map(|file| file.rows).sum();
        let mut writer: Option<RecordsWriter<File>> = None;
        for file in run {
            let damaged = |e: &dyn std::fmt::Display| Error::Damaged { path: file.path.clone(), why: e.to_string() };
            let Some((input, metadata)) = open(file)? else { return Ok(false) };
            // Corrupted data must not be rewritten with valid checksums.
            footer::check(&file.path, &input)?;
            let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata);
            for batch in reader.build().map_err(|e| damaged(&e))? {
                let batch = batch.and_then(&change).map_err(|e| damaged(&e))?;
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => {
                        let output = create(scratch).map_err(Error::io("write", scratch))?;
                        let properties = properties(&self.span(start, next), rows, &batch);
                        let made = RecordsWriter::new(output, batch.schema(), properties);
                        writer.insert(made.map_err(parquet)?)
                    }
                };
                writer.write(&batch).map_err(parquet)?;
                writer.limit_group(GROUP_BYTES).map_err(parquet)?;
            }
        }
        let Some(writer) = writer else { return Ok(false) };
        let written = writer.finish().map_err(parquet)?;
        written.output.sync_all().map_err(Error::io("sync", scratch))?;
        Ok(true)
    }
}

/// Compares a file with its checksums; `false` if another process has deleted it.
fn is_whole(file: &DataFile) -> Result<bool, Error> {
    match file.check() {
        Ok(_) => Ok(true),
        Err(error) if error.is_gone() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Start of the part of the last run that is worth merging: many files, none of which is half of it. So a record is rewritten
/// only when its file grows by a multiple, and few files remain at any size.
fn worthwhile(run: &[DataFile]) -> usize {
    let (mut size, mut largest, mut from) = (0, 0, run.len());
    for (i, file) in run.iter().enumerate().rev() {
        size += file.size;
        largest = largest.max(file.size);
        if run.len() - i >= WORTHWHILE && size >= 2 * largest {
            from = i;
        }
    }
    from
}

/// Whether the ranges of two large files overlap without one containing the other.
fn crosses(one: Name, other: Name) -> bool {
    let (Some(end), Some(other_end)) = (one.next, other.next) else { return false };
    let (first, second) = if one.start < other.start { (end, other_end) } else { (other_end, end) };
    one.start != other.start && one.start.max(other.start) < first && first < second
}

/// A file's footer; `None` if another process merged and deleted it.
pub(super) fn open(file: &DataFile) -> Result<Option<(Input, ArrowReaderMetadata)>, Error> {
    let input = match file.open() {
        Ok(input) => input,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = ArrowReaderMetadata::load(&input, Default::default())
        .map_err(|e| Error::Damaged { path: file.path.clone(), why: e.to_string() })?;
    Ok(Some((input, metadata)))
}

/// Runs of adjacent small files. A run ends at the target size; of the last run, the part that is worth merging.
fn plan(files: &[DataFile], policy: &Policy) -> Vec<Vec<DataFile>> {
    let mut runs = Vec::new();
    let mut run: Vec<DataFile> = Vec::new();
    let size = |run: &[DataFile]| run.iter().map(|file| file.size).sum::<u64>();
    for file in files {
        let unbroken = run.last().is_none_or(|last: &DataFile| last.next == file.start);
        if file.size >= policy.target || !unbroken {
            runs.push(std::mem::take(&mut run));
        }
        if file.size < policy.target {
            run.push(file.clone());
            if size(&run) >= policy.target {
                runs.push(std::mem::take(&mut run));
            }
        }
    }
    if policy.eager {
        runs.push(run);
    } else {
        runs.push(run.split_off(worthwhile(&run)));
    }
    runs.retain(|run| run.len() > 1);
    runs
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::records;
    use super::super::{Published, Store};
    use super::*;

    const POLICY: Policy = Policy {
        target: 100,
        grace: Duration::ZERO,
        eager: false,
        keep: crate::RetentionPolicy { age: None, bytes: None },
    };

    fn file(start: i64, next: i64, size: u64) -> DataFile {
        DataFile { start, next, rows: 1, size, ..DataFile::default() }
    }

    #[test]
    fn runs_end_when_large_and_the_last_one_waits() {
        let ranges = |files: &[DataFile], policy: &Policy| -> Vec<(i64, i64)> {
            plan(files, policy).iter().map(|run| (run[0].start, run[run.len() - 1].next)).collect()
        };
        let files: Vec<DataFile> = (0..10).map(|i| file(i, i + 1, 30)).collect();
        assert_eq!(ranges(&files, &POLICY), [(0, 4), (4, 8)]);
        assert_eq!(ranges(&files, &Policy { eager: true, ..POLICY }), [(0, 4), (4, 8), (8, 10)]);
        let with_large = [file(0, 1, 10), file(1, 2, 10), file(2, 3, 500), file(3, 4, 10)];
        assert_eq!(ranges(&with_large, &POLICY), [(0, 2)]);
        let tiny: Vec<DataFile> = (0..16).map(|i| file(i, i + 1, 1)).collect();
        assert_eq!(ranges(&tiny, &POLICY), [(0, 16)]);
        let unbalanced: Vec<DataFile> = (0..16).map(|i| file(i, i + 1, if i == 0 { 50 } else { 1 })).collect();
        assert_eq!(ranges(&unbalanced, &POLICY), []);
        // The small files after a medium one need not wait until their sum reaches its size.
        let tiers: Vec<DataFile> = (0..17).map(|i| file(i, i + 1, if i == 0 { 50 } else { 1 })).collect();
        assert_eq!(ranges(&tiers, &POLICY), [(1, 17)]);
    }

    #[test]
    fn ranges_cross_if_neither_contains_the_other() {
        let range = Name::large;
        assert!(crosses(range(0, 10), range(5, 15)) && crosses(range(5, 15), range(0, 10)));
        for other in [range(0, 10), range(0, 20), range(2, 8), range(5, 10), range(10, 20), range(20, 30)] {
            assert!(!crosses(range(0, 10), other) && !crosses(other, range(0, 10)), "{other}");
        }
        assert!(!crosses(range(0, 10), Name::small(5)));
    }

    #[test]
    fn compaction_leaves_few_files() {
        let policy = Policy { target: 1 << 40, ..POLICY };
        let (mut files, mut written) = (Vec::new(), 0);
        for i in 0..10_000 {
            files.push(file(i, i + 1, 1));
            for run in plan(&files, &policy) {
                let size = run.iter().map(|f| f.size).sum();
                written += size;
                let (first, last) = (run[0].start, run[run.len() - 1].next);
                files.retain(|f| f.start < first);
                files.push(file(first, last, size));
            }
            assert!(files.len() < 16 * 4, "{} files after {i}", files.len());
        }
        assert!(written < 10_000 * 8, "each record was written {} times", written / 10_000);
    }

    #[test]
    fn two_do_not_roll_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for i in 0..4 {
            log.publish(&records(i..i + 1), i, i + 1).unwrap();
        }
        let policy = Policy { target: 1 << 20, grace: Duration::ZERO, eager: true, ..POLICY };
        let alone = log.alone(true).unwrap();
        assert_eq!(log.compact(&policy).unwrap(), Rolled::default());
        assert_eq!(log.reprocess().unwrap(), None);
        drop(alone);
        assert_eq!(log.compact(&policy).unwrap(), Rolled { small: 4, large: 1, ..Rolled::default() });
    }

    #[test]
    fn compaction_keeps_every_record_once_and_its_range_taken() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for i in 0..20 {
            assert!(matches!(log.publish(&records(i * 5..i * 5 + 5), i * 5, i * 5 + 5).unwrap(), Published::File(_)));
        }
        let policy = Policy { target: 1 << 20, grace: Duration::from_secs(3600), ..POLICY };
        assert_eq!(log.compact(&policy).unwrap(), Rolled { small: 20, large: 1, ..Rolled::default() });
        assert_eq!(log.compact(&policy).unwrap(), Rolled::default(), "nothing is left to do");
        let files = log.files().unwrap();
        assert_eq!(files.iter().map(|f| (f.start, f.next, f.rows)).collect::<Vec<_>>(), [(0, 100, 100)]);
        assert_eq!(log.all_files().unwrap().len(), 21);
        let policy = Policy { grace: Duration::ZERO, ..policy };
        assert_eq!(log.compact(&policy).unwrap(), Rolled { deleted: 20, ..Rolled::default() });
        assert_eq!(log.files().unwrap(), files);
        assert_eq!(log.next().unwrap(), Some(100));
        // A worker that was suspended meanwhile finds its name free, and must not get it.
        assert_eq!(log.publish(&records(5..12), 5, 12).unwrap(), Published::Taken);
        assert!(matches!(log.publish(&records(100..101), 100, 101).unwrap(), Published::File(_)));
        assert_eq!(store.snapshot().unwrap().rows(), 101);
    }
}
