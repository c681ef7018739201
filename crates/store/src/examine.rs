//! Examines a store for faults: contradictions between its files, marks and checksums.
//!
//! Input: a store. Output: the live files, and one sentence per fault with advice.

use std::collections::BTreeSet;

use super::footer::DataFile;
use super::live_files::effective;
use super::log::{Log, START};
use super::{Error, Snapshot, Source, Store};

/// Result of an examination.
#[derive(Debug, Default)]
pub struct Examined {
    /// The source that feeds the store.
    pub source: Source,
    /// The live files.
    pub snapshot: Snapshot,
    /// One sentence per fault, with advice.
    pub faults: Vec<String>,
    /// Files whose bytes were all compared with their checksums.
    pub compared: u64,
    /// Files without checksums, written by an earlier build.
    pub without_checksums: u64,
}

impl Store {
    /// Examines the store; `None` if it is empty. `deep` reads every file, including those that wait for deletion, and verifies
    /// its checksums.
    ///
    /// # Errors
    /// If nothing can be examined: `source.json` is missing or unreadable, or the disk fails.
    pub fn examine(&self, deep: bool) -> Result<Option<Examined>, Error> {
        let Some(source) = self.source()? else { return Ok(None) };
        let mut examined = Examined { source: source.clone(), ..Examined::default() };
        examined.snapshot.topic.clone_from(&source.topic);
        for log in self.logs()? {
            log.examine(&mut examined, deep)?;
        }
        for topic in self.topics()?.into_iter().filter(|topic| *topic != source.topic) {
            examined.faults.push(format!(
                "{} holds files, but source.json names the topic {}: move them to a store of their own",
                self.root().join("records").join(topic).display(),
                source.topic
            ));
        }
        self.examine_copy(&mut examined)?;
        Ok(Some(examined))
    }

    /// Compares the copy of `source.json`. A store that was only written by builds without marks has no copy.
    fn examine_copy(&self, examined: &mut Examined) -> Result<(), Error> {
        let (bytes, _) = self.read_revision(&self.source_copy())?;
        let with_marks = examined.snapshot.files.iter().any(|file| file.checksums.is_some());
        let fault = match bytes {
            None if !with_marks => return Ok(()),
            None => "is missing; the next ingest or up writes it anew",
            Some(bytes) if bytes == examined.source.json() => return Ok(()),
            Some(_) => match self.copied_source()? {
                None => "cannot be read; the next ingest or up writes it anew",
                Some(copy) if copy.topic == examined.source.topic && copy.id == examined.source.id => {
                    "is not what source.json says; the next ingest or up writes it anew"
                }
                Some(_) => {
                    "names another topic than source.json: one of them is from another store; bring the right one back, and \
                     delete the other"
                }
            },
        };
        examined.faults.push(format!("{} {fault}", self.source_copy().display()));
        Ok(())
    }
}

impl Log {
    fn examine(&self, examined: &mut Examined, deep: bool) -> Result<(), Error> {
        self.examine_marks(examined)?;
        let mut broken: BTreeSet<String> = BTreeSet::new();
        match self.verify() {
            Ok(files) => {
                if self.read_mark().is_ok_and(|mark| mark.is_none())
                    && files.last().is_some_and(|newest| newest.checksums.is_some())
                {
                    let mark = self.mark_file();
                    examined
                        .faults
                        .push(format!("{} is missing; the next ingest or up writes it anew", mark.display()));
                }
                examined.snapshot.files.extend(files);
            }
            Err(error) if is_fault(&error) => {
                broken.insert(error.to_string());
            }
            Err(error) => return Err(error),
        }
        // `verify` stops at the first fault; find further damaged files.
        let mut whole: Vec<DataFile> = Vec::new();
        for name in self.names()? {
            match self.footer(name) {
                Ok(file) => whole.push(file),
                Err(error) if error.is_gone() => {}
                Err(error) if is_fault(&error) => {
                    broken.insert(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        if deep {
            for file in &whole {
                match file.check() {
                    Ok(true) => examined.compared += 1,
                    Ok(false) => examined.without_checksums += 1,
                    Err(error) if error.is_gone() => continue,
                    Err(error) if is_fault(&error) => {
                        broken.insert(error.to_string());
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                match file.read_through() {
                    Ok(()) => {}
                    Err(error) if error.is_gone() => {}
                    Err(error) if is_fault(&error) => {
                        broken.insert(error.to_string());
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if !broken.is_empty() {
            examined.snapshot.files.extend(effective(whole));
        }
        examined.faults.extend(broken);
        Ok(())
    }

    /// Compares `_start` and `_expired` with the mark.
    fn examine_marks(&self, examined: &mut Examined) -> Result<(), Error> {
        let mut fault = |words: String| examined.faults.push(words);
        let mark = match self.read_mark() {
            Err(error @ Error::Unusable { .. }) => {
                fault(error.to_string());
                None
            }
            read => read?,
        };
        let start = self.dir.join(START);
        let anew = "the next ingest or up writes it anew";
        match (self.read_start(), mark) {
            (Ok(Some(said)), Some(mark)) if said != mark.start => {
                fault(format!("{} says {said} instead of {}; {anew}", start.display(), mark.start));
            }
            (Ok(Some(_)), _) => {}
            (Ok(None) | Err(Error::Unusable { .. }), Some(mark)) => {
                fault(format!("{} is lost or damaged; {anew}, as {}", start.display(), mark.start));
            }
            (Ok(None), None) if self.names()?.is_empty() => {}
            (Ok(None), None) => {
                let fix = "write the offset into it that the name of the partition's first file begins with";
                fault(format!("{} is missing; {fix}", start.display()));
            }
            (Err(error @ Error::Unusable { .. }), None) => fault(error.to_string()),
            (Err(error), _) => return Err(error),
        }
        match (self.read_expired(), mark.filter(|mark| mark.start < mark.expired)) {
            (Ok(said), Some(mark)) if said < Some(mark.expired) => {
                let path = self.dir.join("_expired");
                fault(format!("{} does not say that records before {} expired; {anew}", path.display(), mark.expired));
            }
            (Ok(_), _) => {}
            (Err(error @ Error::Unusable { .. }), _) => fault(error.to_string()),
            (Err(error), _) => return Err(error),
        }
        Ok(())
    }
}

/// Whether an error is a fault of the store, as opposed to a failed examination.
fn is_fault(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. } | Error::Lost { .. } | Error::Unusable { .. })
}
