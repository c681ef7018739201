//! One partition's files: which there are, and how one comes to be.
//!
//! A file is named by where it was expected to start, the `next` of the file before it. That makes the name a claim:
//! whoever takes it first owns the range, and whoever finds it taken has lost the partition.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arrow::array::RecordBatch;

use super::checksums::Checksums;
use super::file_name::Name;
use super::footer::{Bounds, DataFile, declared, push};
use super::live_files::effective;
#[cfg(feature = "object-stores")]
use super::objects::Objects;
use super::parallel::each;
#[cfg(feature = "object-stores")]
use super::write::write_to;
use super::write::{Span, write_parquet};
use super::{Error, Place, Store, publish};
use crate::record::Fields;

/// Footers on a disk that are read at once: one that was never read waits for the disk.
const FOOTERS_AT_ONCE: usize = 8;
/// Fewer than these are read sooner than a thread has begun.
const FOOTERS_FOR_A_THREAD: usize = 16;

/// The file that fixes where a partition's very first file starts.
pub(super) const START: &str = "_start";

/// How publishing ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// The file is in the store, for good.
    File(DataFile),
    /// Somebody else wrote this range: drop what you hold and read the log again.
    Taken,
}

/// A file that has no name yet.
#[derive(Debug)]
pub struct Prepared {
    written: Written,
    start: i64,
    next: i64,
    rows: u64,
    size: u64,
    fields: Arc<Fields>,
    bounds: Option<Bounds>,
    checksums: Arc<Checksums>,
}

#[derive(Debug)]
enum Written {
    /// The records are kept: whatever becomes of the file before it has its name, it can be written anew.
    Scratch(Scratch, RecordBatch),
    #[cfg(feature = "object-stores")]
    Object(Arc<Objects>, bytes::Bytes),
}

/// A file in `tmp/` that goes with this.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is swept away later.
        let _ = fs::remove_file(&self.0);
    }
}

/// When files last came to a partition, or went; and where the list of them is what tells, how many there are.
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

    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Sets newest files aside that can't be read, so that their range is read again from the topic. Whoever publishes
    /// syncs before the name is there, so this is the work of a broken disk or of somebody's hands.
    /// One file at most: where several can't be read, somebody should look before more is moved.
    pub fn set_damaged_aside(&self) -> Result<(), Error> {
        if let Some(name) = self.names()?.pop() {
            let path = self.path(name);
            let Err(Error::Damaged { why, .. }) = self.footer(name) else { return Ok(()) };
            let aside = self.store.root.join("aside");
            let to = aside.join(format!("{}-{}-{name}", self.partition, std::process::id()));
            self.lower_mark(name.start)?;
            self.store.place.set_aside(&path, &to).map_err(Error::io("set aside", &path))?;
            tracing::warn!(
                "{} is damaged ({why}): set aside as {}, its range is read again",
                path.display(),
                to.display()
            );
        }
        Ok(())
    }

    /// Makes the directory, and fixes where the partition's very first file starts. If that is fixed already, by an
    /// earlier run or by somebody faster, the earlier word stands.
    pub fn begin(&self, first: i64) -> Result<(), Error> {
        self.store.place.make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        self.store.publish_bytes(first.to_string().as_bytes(), &self.dir.join(START))?;
        Ok(())
    }

    /// Where the next file starts; `None` if the log has not begun.
    pub fn next(&self) -> Result<Option<i64>, Error> {
        if !self.store.place.is_disk() {
            // A list may lag behind what is there: the rule that finds what it left out finds the end.
            return Ok(self.files()?.last().map(|file| file.next).or(self.begins()?));
        }
        loop {
            let names = self.names()?;
            // Only the footer of the highest name is opened: this is asked before each file that is published.
            let Some(name) = names.last() else { return self.begins() };
            let covered = names.iter().filter_map(|name| name.next).max();
            // Readers pass over what starts inside a covered range, whatever it says of its end.
            if covered.is_some_and(|covered| name.start < covered) {
                return Ok(covered);
            }
            match self.footer(*name) {
                Ok(file) => return Ok(Some(file.next)),
                // Replaced by a larger one and deleted since the directory was listed.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the very first file starts; `None` if the log has not begun. The mark tells, for `_start` may be lost or cut.
    pub fn first(&self) -> Result<Option<i64>, Error> {
        match self.mark()? {
            Some(mark) => Ok(Some(mark.start)),
            None => self.read_start(),
        }
    }

    /// Reads `_start`.
    pub(super) fn read_start(&self) -> Result<Option<i64>, Error> {
        let path = self.dir.join(START);
        match self.store.read(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes);
                let why = format!("expected an offset, found {text:?}");
                let fix = "write the offset into it that the name of the partition's first file begins with".to_owned();
                text.trim().parse().map(Some).map_err(|_| Error::Unusable { path, why, fix })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// The files that count, by start: the reader's rule.
    pub fn files(&self) -> Result<Vec<DataFile>, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.store.place
            && let Some(files) = self.continued(objects)?
        {
            return Ok(files);
        }
        Ok(effective(self.all_files()?))
    }

    /// All files whose records have not expired, those that larger ones replaced among them.
    pub(super) fn all_files(&self) -> Result<Vec<DataFile>, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.store.place {
            return self.all_objects(objects);
        }
        let expired = self.expired()?;
        let mut names = self.names()?;
        names.retain(|name| expired.is_none_or(|before| before <= name.start));
        let threads = names.len().div_ceil(FOOTERS_FOR_A_THREAD).min(FOOTERS_AT_ONCE);
        let found = each(&names, threads, |name| match self.footer(*name) {
            Err(error) if error.is_gone() => Ok(None),
            read => read.map(Some),
        });
        let mut files: Vec<DataFile> = Vec::with_capacity(names.len());
        for file in found? {
            match file {
                Some(file) => push(&mut files, file),
                // Replaced by a larger one and deleted since the directory was listed: the larger one is there.
                None => return self.all_files(),
            }
        }
        Ok(files)
    }

    /// When files last came or went.
    pub(super) fn changed(&self) -> Result<Changed, Error> {
        if self.store.place.is_disk() {
            return match fs::metadata(&self.dir).and_then(|of| of.modified()) {
                Ok(modified) => Ok((modified, 0)),
                // A directory that is lost is told by whoever reads the files.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((SystemTime::UNIX_EPOCH, 0)),
                Err(e) => Err(Error::io("read", &self.dir)(e)),
            };
        }
        let entries = self.store.place.list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let newest = entries.iter().filter_map(|entry| entry.modified).max();
        Ok((newest.unwrap_or(SystemTime::UNIX_EPOCH), entries.len()))
    }

    /// The names that are there, in order.
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

    /// What a new file covers, and on an object store who writes it.
    pub(super) fn span(&self, start: i64, next: i64) -> Span {
        let writer = (!self.store.place.is_disk()).then(publish::unique);
        Span { partition: self.partition, start, next, writer }
    }

    /// Writes the records from `start` up to `next`, and publishes them if their name is still free.
    pub fn publish(&self, records: &RecordBatch, start: i64, next: i64) -> Result<Published, Error> {
        self.publish_prepared(&self.prepare(records, start, next)?)
    }

    /// Writes the records from `start` up to `next`, under no name yet. On an object store a file waits in memory, for it is put
    /// whole; on a disk it is in `tmp/`, synced.
    pub fn prepare(&self, records: &RecordBatch, start: i64, next: i64) -> Result<Prepared, Error> {
        let span = self.span(start, next);
        let (written, size, checksums) = match &self.store.place {
            Place::Disk => {
                let scratch = Scratch(self.store.scratch());
                self.store.make_tmp()?;
                let (size, checksums) = write_parquet(&scratch.0, records, &span)?;
                (Written::Scratch(scratch, records.clone()), size, checksums)
            }
            #[cfg(feature = "object-stores")]
            Place::Objects(objects) => {
                let bytes = write_to(Vec::new(), records, &span);
                let file = bytes.map_err(|source| Error::Parquet { path: self.path(Name::small(start)), source })?;
                let size = file.output.len() as u64;
                (Written::Object(Arc::clone(objects), file.output.into()), size, file.checksums)
            }
        };
        let fields = declared(records.schema_ref().fields().iter().map(|field| field.name().as_str()));
        let (rows, bounds) = (records.num_rows() as u64, Bounds::of_records(records));
        let (fields, checksums) = (Arc::new(fields), Arc::new(checksums));
        Ok(Prepared { written, start, next, rows, size, fields, bounds, checksums })
    }

    /// Publishes what was written if its name is still free. After an error it can be tried again.
    ///
    /// The order is the guarantee: written outside `records/`, synced, published only if the name is free, durably. Only
    /// after that may the broker be told.
    pub fn publish_prepared(&self, prepared: &Prepared) -> Result<Published, Error> {
        let &Prepared { ref written, start, next, rows, size, ref fields, bounds, ref checksums } = prepared;
        // A log that ends sooner than the writer believes, for somebody set a damaged file aside, is not its own either.
        if !self.ends_at(start)? {
            return Ok(Published::Taken);
        }
        self.store.check_fed_by_us()?;
        let path = self.path(Name::small(start));
        let taken = match written {
            Written::Scratch(scratch, records) => {
                self.restore_scratch(&scratch.0, records, prepared)?;
                self.store.place.make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
                self.store.take_name(&scratch.0, &path)
            }
            #[cfg(feature = "object-stores")]
            Written::Object(objects, bytes) => publish::put(objects, bytes.clone(), &path),
        };
        #[cfg_attr(not(feature = "object-stores"), allow(unused_variables, reason = "a disk tells none"))]
        let Some(revision) = taken? else { return Ok(Published::Taken) };
        // Whoever slept between the look above and the link may have found a name free that was replaced and deleted
        // meanwhile. Readers pass over such a file, but nothing may be built on it.
        if self.is_covered(start)? {
            self.store.place.delete(&path).map_err(Error::io("take back", &path))?;
            return Ok(Published::Taken);
        }
        let (place, partition, fields) = (self.store.place.clone(), self.partition, Arc::clone(fields));
        let checksums = Some(Arc::clone(checksums));
        let file = DataFile { place, path, partition, start, next, rows, size, fields, bounds, checksums };
        #[cfg(feature = "object-stores")]
        self.remember(&file, &revision);
        self.note_next(file.next);
        Ok(Published::File(file))
    }

    /// Writes a scratch file anew that was lost or cut before it had its name.
    fn restore_scratch(&self, scratch: &Path, records: &RecordBatch, prepared: &Prepared) -> Result<(), Error> {
        if fs::metadata(scratch).is_ok_and(|found| found.len() == prepared.size) {
            return Ok(());
        }
        tracing::warn!("{} was lost before it was published; it is written anew", scratch.display());
        self.store.make_tmp()?;
        match fs::remove_file(scratch) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("delete", scratch)(e)),
            _ => {}
        }
        write_parquet(scratch, records, &self.span(prepared.start, prepared.next)).map(drop)
    }

    /// Whether the log ends here.
    fn ends_at(&self, start: i64) -> Result<bool, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.store.place
            && self.last_object_ends_at(objects, start)?
        {
            return Ok(true);
        }
        Ok(self.next()? == Some(start))
    }

    /// Whether a large file covers what a file that starts here holds, or it has expired.
    fn is_covered(&self, start: i64) -> Result<bool, Error> {
        #[cfg(feature = "object-stores")]
        if let Place::Objects(objects) = &self.store.place
            && self.last_object_stands(objects, start)?
        {
            return Ok(false);
        }
        // A name whose file expired is no longer taken, either.
        let expired = self.expired()?.is_some_and(|before| start < before);
        Ok(expired || self.names()?.iter().any(|name| name.covers(start)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::File;
    use std::time::Instant;

    use parquet::arrow::ArrowWriter;

    use super::super::write::properties;
    use super::*;
    use crate::batch::{Batch, Record};
    use crate::record::{self, Fields};

    pub(crate) fn records(offsets: std::ops::Range<i64>) -> RecordBatch {
        records_at(&offsets.collect::<Vec<_>>())
    }

    pub(crate) fn records_at(offsets: &[i64]) -> RecordBatch {
        batch(offsets, None)
    }

    /// Records of one time, in milliseconds of the epoch.
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
    fn the_log_goes_on_where_it_ended_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        assert_eq!(log.next().unwrap(), None);
        log.begin(7).unwrap();
        log.begin(9).unwrap();
        assert_eq!(log.next().unwrap(), Some(7));
        // A gap in offsets: expected at 7, the first record came at 10.
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
    fn a_torn_newest_file_is_named_and_set_aside() {
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
    fn nothing_is_built_on_a_log_that_ends_sooner_or_on_a_file_that_readers_pass_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 10] {
            assert!(matches!(log.publish(&records(start..start + 10), start, start + 10).unwrap(), Published::File(_)));
        }
        // The newest file was set aside while this writer slept, which believes that the log ends at 20.
        fs::remove_file(log.dir.join("00000000000000000010.parquet")).unwrap();
        assert_eq!(log.publish(&records(20..25), 20, 25).unwrap(), Published::Taken);
        assert!(matches!(log.publish(&records(10..20), 10, 20).unwrap(), Published::File(_)));
        // A large file covers all; one that starts inside it was linked by a writer that slept, and then died.
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
    fn a_scratch_file_that_is_lost_or_cut_is_written_anew() {
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
            #[allow(irrefutable_let_patterns, reason = "object stores have files in memory")]
            let Written::Scratch(scratch, _) = &prepared.written else { panic!("no file") };
            damage(&scratch.0);
            assert!(matches!(log.publish_prepared(&prepared).unwrap(), Published::File(_)));
        }
        assert!(log.verify().unwrap().iter().all(|file| file.check().unwrap()));
    }

    #[test]
    fn files_of_another_partition_are_known() {
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
}
