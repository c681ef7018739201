//! Retention: the oldest records expire, and their files are deleted after a grace period.
//!
//! `_expired` in a partition's directory lists offsets before which records are expired, and since when:
//!
//! ```text
//! 1000 1764000000000      before offset 1000, since that time (milliseconds of the epoch)
//! 2500 1764010800000
//! ```
//!
//! It is written first, by the process that holds the partition's compaction lock, and from then on readers skip records before
//! the last line's offset. The files are deleted only after the grace period, so that running queries can finish. The newest
//! file always stays: it marks the end of the log. Expiring rows of replayed files are recorded before (replayed.rs).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::age::older_than;
use super::footer::DataFile;
use super::log::Log;
use super::policy::{Policy, RetentionPolicy};
use super::{Error, Held};

/// The file with the expired offsets.
pub(super) const EXPIRED: &str = "_expired";
/// A line is added at most once per this fraction of the grace period, which bounds the number of lines.
const LINES: u32 = 8;

/// The last reported reason per partition why retention waits, to report it once.
static TOLD: LazyLock<Mutex<BTreeMap<PathBuf, String>>> = LazyLock::new(Mutex::default);

/// Since when records before an offset are expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Line {
    before: i64,
    since: SystemTime,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (before, since) = line.split_once(' ')?;
        let since = Duration::from_millis(since.parse().ok()?);
        Some(Self { before: before.parse().ok()?, since: SystemTime::UNIX_EPOCH + since })
    }

    fn is_older(&self, age: Duration) -> bool {
        self.since.elapsed().is_ok_and(|elapsed| elapsed >= age)
    }
}

impl Log {
    /// The offset before which records are expired; `None` if none are.
    ///
    /// # Errors
    /// If neither `_expired` nor the mark can be read.
    pub fn expired(&self) -> Result<Option<i64>, Error> {
        let marked = self.marked_expired()?;
        match self.read_expired() {
            Ok(before) => Ok(before.max(marked)),
            // The mark has the offset too.
            Err(Error::Unusable { .. }) if marked.is_some() => Ok(marked),
            Err(error) => Err(error),
        }
    }

    /// The offset before which records expired, as the mark has it.
    pub(super) fn marked_expired(&self) -> Result<Option<i64>, Error> {
        Ok(self.mark()?.filter(|mark| mark.start < mark.expired).map(|mark| mark.expired))
    }

    /// Reads `_expired`.
    pub(super) fn read_expired(&self) -> Result<Option<i64>, Error> {
        let path = self.dir.join(EXPIRED);
        match self.store.read(&path) {
            Ok(bytes) => Ok(lines(&bytes, path)?.last().map(|line| line.before)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Rewrites a missing or unreadable `_expired` from the mark.
    pub(super) fn restore_expired(&self, before: i64) -> Result<(), Error> {
        let path = self.dir.join(EXPIRED);
        if matches!(self.read_expired(), Ok(Some(said)) if said >= before) {
            return Ok(());
        }
        tracing::warn!("{} is lost or damaged; written anew from {}", path.display(), self.mark_file().display());
        let (_, revision) = self.store.read_revision(&path)?;
        let line = said(&Line { before, since: SystemTime::now() });
        // A concurrent writer wrote the same.
        self.store.replace_if(line.as_bytes(), &path, &revision)?;
        Ok(())
    }

    /// Expected start of the first live file; `None` if the log has not begun.
    pub(super) fn begins(&self) -> Result<Option<i64>, Error> {
        Ok(self.first()?.max(self.expired()?))
    }

    /// Expires records, and deletes files whose grace period is over; returns the number of records and of files.
    pub(super) fn expire(&self, policy: &Policy, alone: &Held) -> Result<(u64, u64), Error> {
        let path = self.dir.join(EXPIRED);
        if matches!(self.read_expired(), Err(Error::Unusable { .. }))
            && let Some(before) = self.expired()?
        {
            self.restore_expired(before)?;
        }
        let (bytes, revision) = self.store.read_revision(&path)?;
        let mut lines = lines(bytes.as_deref().unwrap_or_default(), path.clone())?;
        let mut records = 0;
        // Of the lines past the grace period, only the last is needed.
        let over = lines.iter().rposition(|line| line.is_older(policy.grace));
        let recently = lines.last().is_some_and(|line| !line.is_older(policy.grace / LINES));
        if !policy.keep.all() && !recently {
            let files = self.files()?;
            let (kept, waits) = first_kept(&files, &policy.keep)?;
            self.tell(waits);
            let known = lines.last().map(|line| line.before);
            if let Some(first) = files.get(kept).filter(|first| kept > 0 && known < Some(first.start)) {
                // Expiring rows must be recorded as stored first.
                self.keep_progress(&files[..kept])?;
                lines.drain(..over.unwrap_or(0));
                lines.push(Line { before: first.start, since: SystemTime::now() });
                let text: String = lines.iter().map(said).collect();
                if !alone.holds() || !self.store.replace_if(text.as_bytes(), &path, &revision)? {
                    return Err(Error::Rolling);
                }
                self.note_expired(first.start);
                records = files[..kept].iter().map(|file| file.rows).sum();
                self.store.log_cache.list_anew(self);
            }
        }
        let over = lines.iter().rfind(|line| line.is_older(policy.grace));
        let deleted = over.map_or(Ok(0), |line| self.delete_before(line.before))?;
        Ok((records, deleted))
    }

    /// Whether there is anything to expire or to delete.
    pub(super) fn has_expiring(&self, counting: &[DataFile], keep: &RetentionPolicy) -> Result<bool, Error> {
        let (kept, waits) = first_kept(counting, keep)?;
        self.tell(waits);
        if kept > 0 {
            return Ok(true);
        }
        let Some(before) = self.expired()? else { return Ok(false) };
        Ok(self.names()?.first().is_some_and(|name| name.start < before))
    }

    /// Warns once why retention waits.
    fn tell(&self, waits: Option<String>) {
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = waits else {
            told.remove(&self.dir);
            return;
        };
        if told.get(&self.dir) != Some(&why) {
            tracing::warn!("--keep-for lets no more records of {} expire: {why}", self.dir.display());
            told.insert(self.dir.clone(), why);
        }
    }

    /// Deletes the files of expired records, in the order of their names.
    fn delete_before(&self, before: i64) -> Result<u64, Error> {
        let mut deleted = 0;
        for name in self.names()?.into_iter().filter(|name| name.start < before) {
            let path = self.path(name);
            match self.store.place.delete(&path) {
                Ok(()) => deleted += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("delete", &path)(e)),
            }
        }
        Ok(deleted)
    }
}

/// Number of files, from the oldest on, that exceed the policy; and why it is not more, if an age or the clock is unknown.
fn first_kept(files: &[DataFile], keep: &RetentionPolicy) -> Result<(usize, Option<String>), Error> {
    let Some(newest) = files.len().checked_sub(1) else { return Ok((0, None)) };
    let mut first = 0;
    if let Some(most) = keep.bytes {
        let mut bytes: u64 = files.iter().map(|file| file.size).sum();
        while first < newest && bytes > most {
            bytes -= files[first].size;
            first += 1;
        }
    }
    let mut waits = None;
    if let Some(age) = keep.age {
        let (old, why) = older_than(files, age)?;
        // The age is irrelevant for files that expire by size, and for the newest.
        waits = why.filter(|_| old >= first && old < newest);
        first = first.max(old.min(newest));
    }
    Ok((first, waits))
}

fn lines(bytes: &[u8], path: PathBuf) -> Result<Vec<Line>, Error> {
    let text = String::from_utf8_lossy(bytes);
    // Each line ends with a line feed, so a file that was cut is recognised: half a time would be a time long ago.
    let parsed: Option<Vec<Line>> =
        text.split_inclusive('\n').map(|line| Line::parse(line.strip_suffix('\n')?)).collect();
    let fix = "delete it; compact and ingest write it anew once records expire".to_owned();
    let why = || format!("expected lines of an offset and a time, found {text:?}");
    parsed.ok_or_else(|| Error::Unusable { path, why: why(), fix })
}

fn said(line: &Line) -> String {
    let since = line.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{} {}\n", line.before, since.as_millis())
}

#[cfg(test)]
mod tests {
    use super::super::compact::Rolled;
    use super::super::log::tests::{records, records_at_time};
    use super::super::{Published, Store};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn policy(age: Option<Duration>, bytes: Option<u64>, grace: Duration) -> Policy {
        Policy { grace, keep: RetentionPolicy { age, bytes }, ..Policy::default() }
    }

    fn millis_ago(age: Duration) -> i64 {
        (SystemTime::now() - age).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
    }

    /// Four files of ten records, aged 100, 30, 3 and 0 days.
    fn aging() -> (tempfile::TempDir, Store, Log) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for (i, days) in [100, 30, 3, 0].into_iter().enumerate() {
            let start = i as i64 * 10;
            let batch = records_at_time(start..start + 10, millis_ago(DAY * days));
            assert!(matches!(log.publish(&batch, start, start + 10).unwrap(), Published::File(_)));
        }
        (dir, store, log)
    }

    fn starts(log: &Log) -> Vec<i64> {
        log.files().unwrap().iter().map(|file| file.start).collect()
    }

    #[test]
    fn old_records_expire_and_their_files_are_deleted_after_the_grace_period() {
        let (_dir, store, log) = aging();
        let week = policy(Some(DAY * 7), None, DAY);
        let rolled = log.compact(&week).unwrap();
        assert_eq!(rolled, Rolled { expired: 20, ..Rolled::default() });
        assert_eq!((starts(&log), store.snapshot().unwrap().rows()), (vec![20, 30], 20));
        assert_eq!(log.names().unwrap().len(), 4, "a query that began before still finds them");
        assert_eq!(log.verify().unwrap().len(), 2);
        assert_eq!(log.compact(&week).unwrap(), Rolled::default());
        let now = Policy { grace: Duration::ZERO, ..week };
        assert_eq!(log.compact(&now).unwrap(), Rolled { deleted: 2, ..Rolled::default() });
        assert_eq!((log.names().unwrap().len(), starts(&log)), (2, vec![20, 30]));
        assert_eq!(log.next().unwrap(), Some(40));
        assert_eq!(log.verify().unwrap().len(), 2);
        // A writer that was suspended meanwhile finds its name free, and must not get it.
        assert_eq!(log.publish(&records(5..10), 5, 10).unwrap(), Published::Taken);
        assert!(matches!(log.publish(&records(40..41), 40, 41).unwrap(), Published::File(_)));
    }

    #[test]
    fn the_newest_file_always_stays() {
        let (_dir, _, log) = aging();
        let least = policy(Some(Duration::ZERO), Some(0), Duration::ZERO);
        assert_eq!(log.compact(&least).unwrap(), Rolled { expired: 30, deleted: 3, ..Rolled::default() });
        assert_eq!((starts(&log), log.next().unwrap()), (vec![30], Some(40)));
        assert_eq!(log.compact(&least).unwrap(), Rolled::default());
    }

    #[test]
    fn the_byte_limit_keeps_the_newest_files() {
        let (_dir, _, log) = aging();
        let bytes = log.files().unwrap()[2..].iter().map(|file| file.size).sum();
        let rolled = log.compact(&policy(None, Some(bytes), DAY)).unwrap();
        assert_eq!((rolled.expired, starts(&log)), (20, vec![20, 30]));
        let (_dir, _, log) = aging();
        assert_eq!(log.compact(&policy(None, Some(bytes + 1), DAY)).unwrap().expired, 20);
        let (_dir, _, log) = aging();
        assert_eq!(log.compact(&policy(None, None, DAY)).unwrap(), Rolled::default());
    }

    #[test]
    fn records_without_a_timestamp_never_expire_by_age() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.claim("products", "id", 1).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 10] {
            log.publish(&records(start..start + 10), start, start + 10).unwrap();
        }
        let old = std::fs::File::options().write(true).open(&log.files().unwrap()[0].path).unwrap();
        assert_eq!(log.compact(&policy(Some(DAY), None, DAY)).unwrap(), Rolled::default());
        old.set_modified(SystemTime::now() - DAY * 2).unwrap();
        assert_eq!(log.compact(&policy(Some(DAY), None, DAY)).unwrap(), Rolled::default(), "whatever its file's age");
        assert_eq!(log.compact(&policy(Some(DAY), Some(0), DAY)).unwrap().expired, 10, "but they do for their bytes");
    }

    #[test]
    fn lines_are_bounded_and_damage_is_reported() {
        let (_dir, _, log) = aging();
        let path = log.dir.join(EXPIRED);
        let hours_ago = |hours: u32, before| format!("{before} {}\n", millis_ago(DAY / 24 * hours));
        let known: String =
            [(80, 1), (50, 2), (20, 3), (10, 10)].map(|(hours, before)| hours_ago(hours, before)).concat();
        std::fs::write(&path, known).unwrap();
        let rolled = log.compact(&policy(Some(DAY * 7), None, DAY)).unwrap();
        assert_eq!((rolled.expired, log.expired().unwrap()), (10, Some(20)));
        let befores: Vec<i64> =
            lines(&std::fs::read(&path).unwrap(), path.clone()).unwrap().iter().map(|line| line.before).collect();
        assert_eq!(befores, [2, 3, 10, 20], "of those whose grace is over only the last one");
        // Less than three hours since the last line: further expiry waits.
        assert_eq!(log.compact(&policy(Some(Duration::ZERO), None, DAY)).unwrap().expired, 0);
        let whole = std::fs::read(&path).unwrap();
        for length in 1..whole.len() {
            let cut = lines(&whole[..length], path.clone());
            assert!(cut.is_err() || whole[..length].ends_with(b"\n"), "{length}");
        }
        // Compaction restores the damaged file from the mark, and the grace period begins again.
        std::fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(log.compact(&policy(None, None, DAY)).unwrap().deleted, 0);
        assert_eq!(log.read_expired().unwrap(), Some(20));
        std::fs::write(&path, "soon").unwrap();
        assert_eq!(log.expired().unwrap(), Some(20), "the mark tells");
        std::fs::remove_file(log.mark_file()).unwrap();
        let error = log.files().unwrap_err().to_string();
        assert!(error.contains("_expired cannot be read: expected lines of an offset and a time"), "{error}");
    }
}
