//! One partition's log: lists and publishes its files.
//!
//! A file is named by its expected start, the `next` of the file before it. The name acts as a conditional put: the first
//! writer to take it owns the range, and a writer that finds it taken has lost the partition.

mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;

use super::backend::StagedFile;
use super::checksums::Checksums;
use super::file_name::Name;
use super::footer::{Bounds, DataFile, declared, push};
use super::live_files::effective;
use super::parallel::each;
use super::write::Span;
use super::{Error, Store, unique};
use crate::record::Fields;

/// Footers read concurrently from a disk, to overlap the disk's latency.
const FOOTERS_AT_ONCE: usize = 8;
/// Below this number of footers, a thread costs more than it saves.
const FOOTERS_FOR_A_THREAD: usize = 16;
/// Maximum number of times a directory is listed again because one of its files has been deleted since. A dangling symbolic link would
/// cause endless retries.
const LISTS: usize = 100;

/// The file that records where a partition's very first file starts.
pub(super) const START: &str = "_start";

/// Result of publishing.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// The file is durably in the store.
    File(DataFile),
    /// Another writer published this range: drop the records and read the log again.
    Taken,
}

/// A written file without a name.
#[derive(Debug)]
pub struct Prepared {
    file: Box<dyn StagedFile>,
    start: i64,
    next: i64,
    rows: u64,
    size: u64,
    fields: Arc<Fields>,
    bounds: Option<Bounds>,
    checksums: Arc<Checksums>,
}

/// A change stamp of a partition: latest modification time, and, for backends that list files, their number.
pub type Changed = (SystemTime, usize);

/// The log of one partition.
#[derive(Debug, Clone)]
pub struct Log {
    pub(super) store: Store,
    pub(super) dir: PathBuf,
    pub(super) partition: i32,
}

impl Log {
    pub(super) fn new(store: Store, topic: &str, partition: i32) -> Self {
        let dir = store.root.join("records").join(topic).join(partition.to_string());
        Self { store, dir, partition }
    }

    /// Partition number.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Where the next file starts; `None` if the log has not begun.
    pub fn next(&self) -> Result<Option<i64>, Error> {
        if !self.store.place.is_disk() {
            // A list may lag; `files` finds the end regardless.
            return Ok(self.files()?.last().map(|file| file.next).or(self.begins()?));
        }
        let mut tries = LISTS;
        loop {
            let names = self.names()?;
            // Only the footer of the highest name is opened: this is called before each publish.
            let Some(name) = names.last() else { return self.begins() };
            let covered = names.iter().filter_map(|name| name.next).max();
            // Readers skip a file that starts inside a covered range.
            if covered.is_some_and(|covered| name.start < covered) {
                return Ok(covered);
            }
            match self.footer(*name) {
                Ok(file) => return Ok(Some(file.next)),
                // Replaced by a larger file and deleted since the directory was listed.
                Err(error) if error.is_gone() && tries > 0 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The live files, sorted by start.
    ///
    /// # Errors
    /// If files are missing or unreadable.
    pub fn files(&self) -> Result<Vec<DataFile>, Error> {
        if let Some(files) = self.store.log_cache.live_files(self)? {
            return Ok(files);
        }
        Ok(effective(self.all_files()?))
    }

    /// All files whose records have not expired, including replaced ones.
    pub(super) fn all_files(&self) -> Result<Vec<DataFile>, Error> {
        if let Some(files) = self.store.log_cache.all_files(self)? {
            return Ok(files);
        }
        let mut tries = LISTS;
        loop {
            match self.listed_files() {
                // Replaced by a larger file and deleted since the directory was listed.
                Err(error) if error.is_gone() && tries > 0 => tries -= 1,
                found => return found,
            }
        }
    }

    /// Lists the directory and reads the footers.
    fn listed_files(&self) -> Result<Vec<DataFile>, Error> {
        let expired = self.expired()?;
        let mut names = self.names()?;
        names.retain(|name| expired.is_none_or(|before| before <= name.start));
        let threads = names.len().div_ceil(FOOTERS_FOR_A_THREAD).min(FOOTERS_AT_ONCE);
        let mut files: Vec<DataFile> = Vec::with_capacity(names.len());
        for file in each(&names, threads, |name| self.footer(*name))? {
            push(&mut files, file);
        }
        Ok(files)
    }

    /// The existing names, in order.
    pub(super) fn names(&self) -> Result<Vec<Name>, Error> {
        let entries = self.store.place.list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let mut names: Vec<Name> = entries.iter().filter_map(|entry| Name::parse(&entry.name)).collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn path(&self, name: Name) -> PathBuf {
        self.dir.join(name.to_string())
    }

    pub(super) fn footer(&self, name: Name) -> Result<DataFile, Error> {
        DataFile::read(&self.store.place, &self.path(name), name, self.partition)
    }

    /// The range of a new file, and on an object store its writer.
    pub(super) fn span(&self, start: i64, next: i64) -> Span {
        let writer = (!self.store.place.is_disk()).then(unique);
        Span { partition: self.partition, start, next, writer }
    }

    /// Writes the records from `start` up to `next`, and publishes them if the name is free.
    ///
    /// # Errors
    /// As [`Log::prepare`] and [`Log::publish_prepared`].
    pub fn publish(&self, records: &RecordBatch, start: i64, next: i64) -> Result<Published, Error> {
        self.publish_prepared(&self.prepare(records, start, next)?)
    }

    /// Writes the records from `start` up to `next` without a name. On an object store the file stays in memory, because a put
    /// needs all of it; on a disk it is in `tmp/`, synced.
    pub fn prepare(&self, records: &RecordBatch, start: i64, next: i64) -> Result<Prepared, Error> {
        let staged = self.store.place.stage(records, self.span(start, next), &self.path(Name::small(start)))?;
        let fields = declared(records.schema_ref().fields().iter().map(|field| field.name().as_str()));
        let (rows, bounds) = (records.num_rows() as u64, Bounds::of_records(records));
        let (fields, checksums) = (Arc::new(fields), Arc::new(staged.checksums));
        Ok(Prepared { file: staged.file, start, next, rows, size: staged.size, fields, bounds, checksums })
    }

    /// Publishes a prepared file if its name is free. Can be retried after an error.
    ///
    /// The order is the guarantee: write outside `records/`, sync, publish only if the name is free, sync the directory. Only
    /// then may offsets be committed to the broker.
    pub fn publish_prepared(&self, prepared: &Prepared) -> Result<Published, Error> {
        let &Prepared { file: ref staged, start, next, rows, size, ref fields, bounds, ref checksums } = prepared;
        let path = self.path(Name::small(start));
        // The log may also end earlier than the writer assumes, if a damaged file was moved to `aside/`: this writer has lost
        // the partition too.
        if !staged.is_at(&path) && !self.ends_at(start)? {
            return Ok(Published::Taken);
        }
        self.store.check_fed_by_us()?;
        let Some(revision) = staged.publish(&path)? else { return Ok(Published::Taken) };
        // A writer that was suspended between the check above and the link may get a name whose file was replaced and deleted
        // meanwhile. Readers skip such a file, but nothing may follow it.
        if self.is_covered(start)? {
            self.store.place.delete(&path).map_err(Error::io("take back", &path))?;
            return Ok(Published::Taken);
        }
        let (place, partition, fields) = (self.store.place.clone(), self.partition, Arc::clone(fields));
        let checksums = Some(Arc::clone(checksums));
        let file = DataFile { place, path, partition, start, next, rows, size, fields, bounds, checksums };
        self.store.log_cache.remember(self, &file, &revision);
        self.note_next(file.next);
        Ok(Published::File(file))
    }

    /// Whether the log ends here.
    fn ends_at(&self, start: i64) -> Result<bool, Error> {
        Ok(self.store.log_cache.ends_at(self, start)? || self.next()? == Some(start))
    }

    /// Whether a file that starts here is covered by a large file or has expired.
    fn is_covered(&self, start: i64) -> Result<bool, Error> {
        if self.store.log_cache.is_live(self, start)? {
            return Ok(false);
        }
        // The name of an expired file may be free again, but must not be used.
        let expired = self.expired()?.is_some_and(|before| start < before);
        Ok(expired || self.names()?.iter().any(|name| name.covers(start)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::{self, File};
    use std::path::Path;
    use std::time::Instant;

    use parquet::arrow::ArrowWriter;

    use super::super::write::{properties, write_parquet};
    use super::*;
    use crate::batch::{Batch, Record};
    use crate::record::{self, Fields};

    pub(crate) fn records(offsets: std::ops::Range<i64>) -> RecordBatch {
        records_at(&offsets.collect::<Vec<_>>())
    }

    pub(crate) fn records_at(offsets: &[i64]) -> RecordBatch {
        batch(offsets, None)
    }

    /// Records with the same timestamp, in milliseconds since 1970.
    pub(crate) fn records_at_time(offsets: std::ops::Range<i64>, millis: i64) -> RecordBatch {
        batch(&offsets.collect::<Vec<_>>(), Some(millis))
    }

    fn batch(offsets: &[i64], timestamp: Option<i64>) -> RecordBatch {
        let fields = Fields::new(vec!["a".into()]);
        let mut batch = Batch::new(0, &fields);
        for &offset in offsets {
            let record = Record { offset, timestamp, key: None, payload: Some(b"{}") };
            batch.push(&record, std::iter::empty(), &record::decode(Some(b"{}"), &fields), Instant::now());
        }
        batch.take().unwrap().unwrap().records
    }

    #[test]
    fn the_log_continues_at_its_end_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        assert_eq!(log.next().unwrap(), None);
        log.begin(7).unwrap();
        log.begin(9).unwrap();
        assert_eq!(log.next().unwrap(), Some(7));
        // A gap in offsets: expected at 7, the first record has offset 10.
        let Published::File(first) = log.publish(&records(10..13), 7, 13).unwrap() else { panic!("taken") };
        assert!(first.path.ends_with("records/products/0/00000000000000000007.parquet"));
        assert_eq!((first.start, first.next, first.rows), (7, 13, 3));
        assert_eq!(log.publish(&records(10..12), 7, 12).unwrap(), Published::Taken);
        assert_eq!(log.publish(&records(10..12), 10, 12).unwrap(), Published::Taken);
        assert_eq!(log.next().unwrap(), Some(13));
        assert_eq!(log.files().unwrap(), [first]);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_truncated_newest_file_is_reported_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        fs::write(dir.path().join("records/products/0/00000000000000000000.parquet"), b"PAR1").unwrap();
        let error = log.files().unwrap_err().to_string();
        assert!(error.contains("00000000000000000000.parquet is damaged"), "{error}");
        log.set_damaged_aside().unwrap();
        assert_eq!(log.next().unwrap(), Some(0));
        assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 1);
    }

    #[test]
    fn no_file_follows_a_shortened_log_or_a_file_that_is_not_live() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 10] {
            assert!(matches!(log.publish(&records(start..start + 10), start, start + 10).unwrap(), Published::File(_)));
        }
        // The newest file was moved aside while this writer, which expects the log to end at 20, was suspended.
        fs::remove_file(log.dir.join("00000000000000000010.parquet")).unwrap();
        assert_eq!(log.publish(&records(20..25), 20, 25).unwrap(), Published::Taken);
        assert!(matches!(log.publish(&records(10..20), 10, 20).unwrap(), Published::File(_)));
        // A large file covers all; one inside it was linked by a suspended writer that then died.
        let large = log.span(0, 20);
        let path = log.path(Name::large(0, 20));
        let mut writer = ArrowWriter::try_new(
            File::create(&path).unwrap(),
            records(0..20).schema(),
            Some(properties(&large, 20, &records(0..20))),
        )
        .unwrap();
        writer.write(&records(0..20)).unwrap();
        writer.close().unwrap();
        let stray = log.span(15, 30);
        write_parquet(&log.dir.join("00000000000000000015.parquet"), &records(15..30), &stray).unwrap();
        assert_eq!(log.next().unwrap(), Some(20));
    }

    #[test]
    fn a_lost_or_truncated_scratch_file_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let damages: [fn(&Path); 3] = [
            |path| fs::remove_file(path).unwrap(),
            |path| fs::write(path, "").unwrap(),
            |path| fs::remove_dir_all(path.parent().unwrap()).unwrap(),
        ];
        for (start, damage) in (0..).step_by(10).zip(damages) {
            let prepared = log.prepare(&records(start..start + 10), start, start + 10).unwrap();
            let scratch = fs::read_dir(store.tmp()).unwrap().next().unwrap().unwrap().path();
            damage(&scratch);
            assert!(matches!(log.publish_prepared(&prepared).unwrap(), Published::File(_)));
        }
        assert!(log.verify().unwrap().iter().all(|file| file.check().unwrap()));
    }

    #[test]
    fn files_of_another_partition_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (one, other) = (store.log("products", 0), store.log("products", 1));
        one.begin(0).unwrap();
        other.begin(0).unwrap();
        let Published::File(file) = one.publish(&records(0..5), 0, 5).unwrap() else { panic!("taken") };
        fs::copy(&file.path, other.dir.join("00000000000000000000.parquet")).unwrap();
        let error = other.files().unwrap_err().to_string();
        assert!(error.contains("another partition"), "{error}");
    }

    #[test]
    fn a_publish_that_failed_after_its_link_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        let [ours, theirs] = [(); 2].map(|()| log.prepare(&records(0..3), 0, 3).unwrap());
        for _ in 0..2 {
            assert!(matches!(log.publish_prepared(&ours).unwrap(), Published::File(file) if file.next == 3));
        }
        assert!(matches!(log.publish_prepared(&theirs).unwrap(), Published::Taken));
    }

    #[test]
    fn a_name_without_a_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        std::os::unix::fs::symlink("nothing", log.path(Name::small(0))).unwrap();
        assert!(log.next().is_err() && log.files().is_err());
    }
}
