//! The start of a log, its change stamp, and a damaged end.

use std::fs;
use std::io;
use std::time::SystemTime;

use super::{Changed, Log, START};
use crate::Error;

impl Log {
    /// Moves a damaged newest file to `aside/`, so that its range is read again from the topic. Files are synced before they
    /// are named, so the cause is a broken disk or a manual change. Moves one file at most: if several are damaged, an operator
    /// should look first.
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

    /// Creates the directory and records where the partition's very first file starts, unless an earlier run or another process
    /// did.
    pub fn begin(&self, first: i64) -> Result<(), Error> {
        self.store.place.make_dir(&self.dir).map_err(Error::io("make", &self.dir))?;
        self.store.publish_bytes(first.to_string().as_bytes(), &self.dir.join(START))?;
        Ok(())
    }

    /// Start of the very first file; `None` if the log has not begun. Read from the mark, because `_start` may be lost or cut
    /// off.
    ///
    /// # Errors
    /// If neither the mark nor `_start` can be read.
    pub fn first(&self) -> Result<Option<i64>, Error> {
        match self.mark()? {
            Some(mark) => Ok(Some(mark.start)),
            None => self.read_start(),
        }
    }

    /// Reads `_start`.
    pub(crate) fn read_start(&self) -> Result<Option<i64>, Error> {
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

    /// The change stamp.
    pub(crate) fn changed(&self) -> Result<Changed, Error> {
        if self.store.place.is_disk() {
            return match fs::metadata(&self.dir).and_then(|of| of.modified()) {
                Ok(modified) => Ok((modified, 0)),
                // A missing directory is reported by the readers of its files.
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((SystemTime::UNIX_EPOCH, 0)),
                Err(e) => Err(Error::io("read", &self.dir)(e)),
            };
        }
        let entries = self.store.place.list(&self.dir).map_err(Error::io("list", &self.dir))?;
        let newest = entries.iter().filter_map(|entry| entry.modified).max();
        Ok((newest.unwrap_or(SystemTime::UNIX_EPOCH), entries.len()))
    }
}
