//! Marks: a second record of a store's expected content, outside `records/`, to detect missing files.
//!
//! ```text
//! store/
//!   marks/source.json     a copy of source.json
//!   marks/<partition>     start, next and expired: three offsets of 20 digits
//!   marks/keys            the store has keys.json
//! ```
//!
//! A directory listing does not show that the last files, or the directory itself, are missing. A partition's mark records the
//! log's start, its end, and the offset before which records expired. It is written after the file that it refers to, so a mark
//! is never ahead of its log: a log that ends before its mark has lost files.
//!
//! On a disk a mark is overwritten in place, each number by the process that changes it: the whole mark lies in one sector and
//! needs no sync. On an object store, to save requests, it is written at most every [`PAUSE`], together with the
//! publication of a file, and at the end.

mod of_store;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Error;
use super::footer::DataFile;
use super::log::{Log, START};

/// The directory of the marks.
const DIR: &str = "marks";
/// The mark of `keys.json`, which says nothing about records.
pub(super) const KEYS: &str = "keys";
/// Bytes of a number and its separator.
const WIDTH: u64 = 21;
/// Minimum interval between two writes of a mark on an object store, and the lifetime of a cached one.
const PAUSE: Duration = Duration::from_secs(10);

/// State of a partition's log when its mark was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// The first offset of the log, as in `_start`.
    pub start: i64,
    /// The position after the last record of the newest file.
    pub next: i64,
    /// Records before this offset expired, as in `_expired`; `start` if none did.
    pub expired: i64,
}

/// This process's cache of the marks of an object store.
#[derive(Debug, Default)]
pub(super) struct Cache {
    partitions: Mutex<HashMap<i32, Cached>>,
    /// Whether this process updated the copy of `source.json`.
    copied: AtomicBool,
}

#[derive(Debug, Clone, Copy)]
struct Cached {
    mark: Option<Mark>,
    read: Instant,
    /// When this process last wrote the mark.
    written: Option<Instant>,
    /// The end of the log that is not written yet.
    pending: Option<i64>,
}

impl Cache {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<i32, Cached>) -> T) -> T {
        work(&mut self.partitions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn copied(&self) -> bool {
        self.copied.load(Ordering::Relaxed)
    }
}

impl Mark {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut numbers = text.split(' ').map(|number| if number.len() == 20 { number.parse().ok() } else { None });
        let mark = Self { start: numbers.next()??, next: numbers.next()??, expired: numbers.next()?? };
        let ordered = 0 <= mark.start && mark.start <= mark.expired && mark.expired <= mark.next;
        (numbers.next().is_none() && ordered).then_some(mark)
    }

    fn text(&self) -> String {
        format!("{:020} {:020} {:020}\n", self.start, self.next, self.expired)
    }
}

/// A number of a mark, by its position in the text.
#[derive(Debug, Clone, Copy)]
enum Number {
    Next = 1,
    Expired = 2,
}

impl Log {
    pub(super) fn mark_file(&self) -> PathBuf {
        self.store.marks_dir().join(self.partition.to_string())
    }

    /// The partition's mark; `None` if there is none or it cannot be read, which [`Log::read_mark`] reports.
    pub(super) fn mark(&self) -> Result<Option<Mark>, Error> {
        if self.store.place.is_disk() {
            return readable(self.read_mark());
        }
        let cached = self.store.marks.with(|cache| cache.get(&self.partition).copied());
        if let Some(cached) = cached.filter(|cached| cached.read.elapsed() < PAUSE) {
            return Ok(cached.mark);
        }
        let mark = readable(self.read_mark())?;
        self.remember_mark(mark, None);
        Ok(mark)
    }

    /// Reads the mark.
    ///
    /// # Errors
    /// [`Error::Unusable`] if the file is not a mark.
    pub(super) fn read_mark(&self) -> Result<Option<Mark>, Error> {
        let path = self.mark_file();
        match self.store.read(&path) {
            Ok(bytes) => {
                let fault = || Error::Unusable {
                    path,
                    why: format!("expected three offsets, found {:?}", String::from_utf8_lossy(&bytes)),
                    fix: "the next ingest or up writes it anew".to_owned(),
                };
                Mark::parse(&bytes).map(Some).ok_or_else(fault)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Checks a log against its mark before a writer continues at `next`, restores `_start` and `_expired` from the mark, and
    /// rewrites an outdated mark.
    ///
    /// # Errors
    /// [`Error::Lost`] if the log ends before its mark.
    pub fn settle(&self, next: i64) -> Result<(), Error> {
        let mark = readable(self.read_mark())?;
        let mut next = next;
        if let Some(mark) = mark {
            if mark.next > next {
                // Another writer may have published since `next` was read. Its file is there before its mark.
                next = self.next()?.unwrap_or(next);
            }
            self.check_end(next, mark)?;
            self.restore_start(mark)?;
            if mark.start < mark.expired {
                self.restore_expired(mark.expired)?;
            }
        }
        let now = self.mark_at(next)?;
        if mark != Some(now) {
            self.write_mark(now)?;
        }
        Ok(())
    }

    /// The mark of a log that ends at `next`.
    fn mark_at(&self, next: i64) -> Result<Mark, Error> {
        let start = match self.first()? {
            Some(start) => start,
            // A store of an earlier build whose `_start` is lost.
            None => self.names()?.first().map_or(next, |name| name.start),
        };
        Ok(Mark { start, next, expired: self.expired()?.unwrap_or(start).max(start) })
    }

    /// Records that the log ends at `next`. The file is already stored, so a failure is only a warning.
    pub(super) fn note_next(&self, next: i64) {
        self.note(Number::Next, next);
    }

    /// Records that the records before `before` expired.
    pub(super) fn note_expired(&self, before: i64) {
        self.note(Number::Expired, before);
    }

    /// Writes the end of the log if that was deferred to save requests.
    pub fn note_end(&self) {
        let cached = self.store.marks.with(|cache| cache.get(&self.partition).copied());
        if let Some(next) = cached.and_then(|cached| cached.pending) {
            self.note_now(Number::Next, next);
        }
    }

    fn note(&self, number: Number, offset: i64) {
        let put_off = !self.store.place.is_disk()
            && matches!(number, Number::Next)
            && self.store.marks.with(|cache| match cache.get_mut(&self.partition) {
                Some(cached) if cached.written.is_some_and(|at| at.elapsed() < PAUSE) => {
                    cached.pending = Some(offset);
                    true
                }
                _ => false,
            });
        if !put_off {
            self.note_now(number, offset);
        }
    }

    fn note_now(&self, number: Number, offset: i64) {
        let noted = if self.store.place.is_disk() {
            self.overwrite(number, offset)
        } else {
            self.replace_number(number, offset)
        };
        if let Err(error) = noted {
            tracing::warn!("the mark of partition {} is behind: {error}", self.partition);
        }
    }

    /// Overwrites one number of a mark on a disk.
    fn overwrite(&self, number: Number, offset: i64) -> Result<(), Error> {
        let path = self.mark_file();
        match OpenOptions::new().write(true).open(&path) {
            Ok(file) => {
                let written = file.write_all_at(format!("{offset:020}").as_bytes(), number as u64 * WIDTH);
                written.map_err(Error::io("write", &path))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.write_mark(self.mark_at(match number {
                Number::Next => offset,
                Number::Expired => self.next()?.unwrap_or(offset),
            })?),
            Err(e) => Err(Error::io("open", &path)(e)),
        }
    }

    /// Replaces one number of a mark on an object store.
    fn replace_number(&self, number: Number, offset: i64) -> Result<(), Error> {
        let path = self.mark_file();
        loop {
            let (bytes, revision) = self.store.read_revision(&path)?;
            let mut mark = match bytes.as_deref().and_then(Mark::parse) {
                Some(mark) => mark,
                None => self.mark_at(offset)?,
            };
            match number {
                Number::Next => mark.next = offset,
                Number::Expired => mark.expired = offset,
            }
            if self.store.replace_if(mark.text().as_bytes(), &path, &revision)? {
                self.remember_mark(Some(mark), Some(Instant::now()));
                return Ok(());
            }
        }
    }

    fn write_mark(&self, mark: Mark) -> Result<(), Error> {
        self.store.make_marks_dir()?;
        let path = self.mark_file();
        loop {
            let (_, revision) = self.store.read_revision(&path)?;
            if self.store.replace_if(mark.text().as_bytes(), &path, &revision)? {
                self.remember_mark(Some(mark), Some(Instant::now()));
                return Ok(());
            }
        }
    }

    /// Lowers the mark before the newest file, which starts here, is removed from the log.
    pub(super) fn lower_mark(&self, next: i64) -> Result<(), Error> {
        match readable(self.read_mark())? {
            Some(mark) if mark.next > next => {
                self.write_mark(Mark { start: mark.start.min(next), next, expired: mark.expired.min(next) })
            }
            _ => Ok(()),
        }
    }

    fn remember_mark(&self, mark: Option<Mark>, written: Option<Instant>) {
        self.store.marks.with(|cache| {
            let before = cache.get(&self.partition);
            let cached = match written {
                Some(_) => Cached { mark, read: Instant::now(), written, pending: None },
                None => Cached {
                    mark,
                    read: Instant::now(),
                    written: before.and_then(|cached| cached.written),
                    pending: before.and_then(|cached| cached.pending),
                },
            };
            cache.insert(self.partition, cached);
        });
    }

    /// Restores `_start` from the mark.
    fn restore_start(&self, mark: Mark) -> Result<(), Error> {
        let path = self.dir.join(START);
        let fault = match self.read_start() {
            Ok(Some(start)) if start == mark.start => return Ok(()),
            Ok(Some(start)) => format!("says {start} instead of {}", mark.start),
            Ok(None) => "is missing".to_owned(),
            Err(Error::Unusable { why, .. }) => format!("cannot be read ({why})"),
            Err(error) => return Err(error),
        };
        tracing::warn!("{} {fault}; written anew from {}", path.display(), self.mark_file().display());
        self.store.place.make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        let (_, revision) = self.store.read_revision(&path)?;
        // A concurrent writer wrote the same.
        self.store.replace_if(mark.start.to_string().as_bytes(), &path, &revision)?;
        Ok(())
    }

    /// Checks that no file is missing. The mark must have been read before the files were listed.
    ///
    /// # Errors
    /// [`Error::Lost`] if files are missing at the start, in the middle or at the end.
    pub(super) fn check_whole(&self, chain: &[DataFile], mark: Option<Mark>) -> Result<(), Error> {
        if let Some(hole) = chain.windows(2).find(|pair| pair[0].next != pair[1].start) {
            return Err(
                self.lost(format!("no file covers the offsets {} to {}", hole[0].next, hole[1].start - 1), None)
            );
        }
        if let Some(first) = chain.first() {
            let marked = mark.map(|mark| mark.expired);
            // Records that expired since the files were listed are not lost.
            if marked != Some(first.start)
                && let Some(begins) = self.begins()?
                && begins < first.start
            {
                let what = format!("no file covers the offsets {begins} to {}", first.start - 1);
                return Err(self.lost(what, None));
            }
        }
        let Some(mark) = mark else { return Ok(()) };
        let next = match chain.last() {
            Some(newest) => newest.next,
            None => self.begins()?.unwrap_or(mark.start),
        };
        self.check_end(next, mark)
    }

    fn check_end(&self, next: i64, mark: Mark) -> Result<(), Error> {
        if mark.next <= next {
            return Ok(());
        }
        let path = self.mark_file();
        let what = format!(
            "the files end at offset {next}, and {} says that there were records up to offset {}",
            path.display(),
            mark.next
        );
        Err(self.lost(what, Some(path)))
    }

    fn lost(&self, what: String, mark: Option<PathBuf>) -> Error {
        let or = mark.map_or_else(String::new, |mark| {
            format!(", or delete {} and have ingest read again what the topic still holds of them", mark.display())
        });
        Error::Lost { dir: self.dir.clone(), what, or }
    }
}

/// An unreadable mark counts as missing.
fn readable(read: Result<Option<Mark>, Error>) -> Result<Option<Mark>, Error> {
    match read {
        Err(Error::Unusable { .. }) => Ok(None),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::log::tests::records;
    use super::super::{Published, Store};
    use super::*;

    /// A log of four files of ten records from offset 5 on, and its store.
    fn log() -> (tempfile::TempDir, Store, Log) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(5).unwrap();
        log.settle(5).unwrap();
        for start in [5, 15, 25, 35] {
            let published = log.publish(&records(start..start + 10), start, start + 10).unwrap();
            assert!(matches!(published, Published::File(_)));
        }
        (dir, store, log)
    }

    #[test]
    fn a_mark_follows_its_log_and_is_in_one_place() {
        let (_dir, _, log) = log();
        let mark = Mark { start: 5, next: 45, expired: 5 };
        assert_eq!(log.read_mark().unwrap(), Some(mark));
        assert_eq!(fs::read_to_string(log.mark_file()).unwrap(), mark.text());
        log.note_expired(25);
        assert_eq!(log.read_mark().unwrap(), Some(Mark { expired: 25, ..mark }));
        for text in ["", "1 2 3\n", &mark.text()[..62], &format!("{}x", mark.text()), &"9".repeat(63)] {
            assert_eq!(Mark::parse(text.as_bytes()), None, "{text:?}");
        }
        fs::write(log.mark_file(), "").unwrap();
        assert!(matches!(log.read_mark(), Err(Error::Unusable { .. })));
        log.settle(45).unwrap();
        assert_eq!(log.read_mark().unwrap(), Some(mark));
    }

    #[test]
    fn missing_files_are_detected_anywhere() {
        for (lost, words) in [
            (&[5][..], "no file covers the offsets 5 to 14"),
            (&[15, 25], "no file covers the offsets 15 to 34"),
            (&[35], "the files end at offset 35, and"),
            (&[5, 15, 25, 35], "the files end at offset 5, and"),
        ] {
            let (_dir, store, log) = log();
            assert_eq!(store.snapshot().unwrap().rows(), 40);
            for start in lost {
                fs::remove_file(log.dir.join(format!("{start:020}.parquet"))).unwrap();
            }
            let error = store.snapshot().unwrap_err();
            assert!(matches!(error, Error::Lost { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(log.settle(log.next().unwrap().unwrap()).is_err(), lost.contains(&35), "{lost:?}");
        }
        let (_dir, store, log) = log();
        fs::remove_dir_all(&log.dir).unwrap();
        let error = store.snapshot().unwrap_err().to_string();
        assert!(error.contains("the files end at offset 5, and"), "{error}");
        assert_eq!(log.next().unwrap(), Some(5));
        assert!(matches!(log.settle(5), Err(Error::Lost { .. })));
        fs::remove_file(log.mark_file()).unwrap();
        assert_eq!(log.next().unwrap(), None, "it begins anew");
    }

    #[test]
    fn a_writer_that_was_overtaken_finds_nothing_lost() {
        let (_dir, _, log) = log();
        // It read the end of the log before another writer published two more files.
        log.settle(25).unwrap();
        assert_eq!(log.read_mark().unwrap(), Some(Mark { start: 5, next: 45, expired: 5 }));
    }

    #[test]
    fn a_lost_start_is_restored() {
        for damage in [None, Some(""), Some("1")] {
            let (_dir, store, log) = log();
            let start = log.dir.join(START);
            match damage {
                None => fs::remove_file(&start).unwrap(),
                Some(text) => fs::write(&start, text).unwrap(),
            }
            assert_eq!((log.first().unwrap(), store.snapshot().unwrap().rows()), (Some(5), 40));
            log.settle(45).unwrap();
            assert_eq!(fs::read_to_string(&start).unwrap(), "5");
        }
    }
}
