//! Cache of the file list and footers of an object store, where each footer costs a request and a list may lag.
//!
//! Files never change, so a footer is read once and is valid as long as the list shows the same ETag. A lagging list misses
//! recent files: the name of the next file is the end of the last one, so it is requested by name.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Objects, PAGE};
use crate::backend::Entry;
use crate::file_name::Name;
use crate::footer::{DataFile, push};
use crate::live_files::effective;
use crate::log_cache::LogCache;
use crate::parallel::each;
use crate::retention::EXPIRED;
use crate::revision::Revision;
use crate::{Error, Log};

/// The file of the index (index.rs).
pub(super) const INDEX: &str = "_index.json";
/// Maximum number of footers requested concurrently.
const AT_ONCE: usize = 64;
/// Time for which only the end of a log is listed again; much shorter than the grace period of replaced files.
const FRESH: Duration = Duration::from_secs(60);

/// The cache of a store.
#[derive(Debug)]
pub(super) struct Catalog {
    objects: Arc<Objects>,
    /// Keyed by their directories.
    partitions: Mutex<HashMap<PathBuf, Partition>>,
}

/// One log and its cached state.
#[derive(Clone, Copy)]
pub(super) struct CachedLog<'a> {
    catalog: &'a Catalog,
    pub log: &'a Log,
}

#[derive(Debug, Default)]
pub(super) struct Partition {
    pub footers: HashMap<Name, Known>,
    /// The live files when all were listed, and those that came after them.
    chain: Vec<DataFile>,
    /// When all files were listed.
    listed: Option<Instant>,
    /// Start of the very first file.
    first: Option<i64>,
    /// Number of files in the index; `None` before it was read.
    pub indexed: Option<usize>,
}

#[derive(Debug, Clone)]
pub(super) struct Known {
    /// ETag in the list; unknown for a file that no list has shown yet.
    pub tag: Option<String>,
    pub file: DataFile,
    /// Whether the file is in the index.
    pub indexed: bool,
}

impl Known {
    fn new(tag: Option<String>, file: DataFile) -> Self {
        Self { tag, file, indexed: false }
    }
}

/// A file in a list.
#[derive(Debug)]
struct Listed {
    name: Name,
    tag: Option<String>,
}

impl Catalog {
    pub fn new(objects: &Arc<Objects>) -> Self {
        Self { objects: Arc::clone(objects), partitions: Mutex::default() }
    }

    fn of<'a>(&'a self, log: &'a Log) -> CachedLog<'a> {
        CachedLog { catalog: self, log }
    }
}

impl LogCache for Catalog {
    fn live_files(&self, log: &Log) -> Result<Option<Vec<DataFile>>, Error> {
        self.of(log).continued()
    }

    fn all_files(&self, log: &Log) -> Result<Option<Vec<DataFile>>, Error> {
        self.of(log).all_files().map(Some)
    }

    fn ends_at(&self, log: &Log, start: i64) -> Result<bool, Error> {
        self.of(log).last_file_ends_at(start)
    }

    fn is_live(&self, log: &Log, start: i64) -> Result<bool, Error> {
        self.of(log).last_file_is_live(start)
    }

    fn remember(&self, log: &Log, file: &DataFile, revision: &Revision) {
        self.of(log).remember(file, revision);
    }

    fn list_anew(&self, log: &Log) {
        self.of(log).with(|partition| partition.listed = None);
    }

    fn index_is_old(&self, log: &Log) -> bool {
        self.of(log).index_is_old()
    }

    fn write_index(&self, log: &Log) -> Result<(), Error> {
        self.of(log).write_index()
    }
}

impl Partition {
    /// Whether a listed file is cached with the same tag.
    fn knows(&mut self, listed: &Listed) -> bool {
        match self.footers.get_mut(&listed.name) {
            Some(Known { tag: tag @ None, .. }) => {
                tag.clone_from(&listed.tag);
                true
            }
            Some(known) => known.tag == listed.tag,
            None => false,
        }
    }

    /// The cached files of a list.
    fn files(&self, listed: &[Listed]) -> Vec<DataFile> {
        let mut files = Vec::with_capacity(listed.len());
        let known = listed.iter().filter_map(|listed| self.footers.get(&listed.name));
        known.for_each(|known| push(&mut files, known.file.clone()));
        files
    }

    /// Removes cached files that a full list does not show.
    fn forget_others(&mut self, listed: &[Listed]) {
        let mut kept = HashMap::with_capacity(listed.len());
        for Listed { name, .. } in listed {
            kept.extend(self.footers.remove_entry(name));
        }
        self.footers = kept;
    }
}

impl CachedLog<'_> {
    /// Runs `work` on the cached state of the partition.
    pub fn with<T>(self, work: impl FnOnce(&mut Partition) -> T) -> T {
        let mut partitions: MutexGuard<'_, _> = self.catalog.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        work(partitions.entry(self.log.dir.clone()).or_default())
    }

    /// All files: those in the list and those that follow them.
    fn all_files(self) -> Result<Vec<DataFile>, Error> {
        let entries = self.catalog.objects.list_all(&self.log.dir, &self.marks());
        let entries = entries.map_err(Error::io("list", &self.log.dir))?;
        // Requests only files that are in the list. If the list lags, the index is not used, which costs time, and the offset before
        // which records expired is read from the mark.
        let has = |name: &str| entries.iter().any(|entry| entry.name == name);
        self.read_index(has(INDEX))?;
        let expired = if has(EXPIRED) { self.log.expired()? } else { self.log.marked_expired()? };
        let mut listed = listed(entries);
        listed.retain(|listed| expired.is_none_or(|before| before <= listed.name.start));
        self.read_footers(&listed)?;
        let mut files = self.with(|partition| {
            partition.forget_others(&listed);
            partition.files(&listed)
        });
        let first = self.known_first()?.max(expired);
        loop {
            let counting = effective(files.clone());
            let mut found = false;
            let ends = open_ends(first, &counting);
            for start in &ends {
                if let Some(file) = self.follows(*start)? {
                    push(&mut files, file);
                    found = true;
                }
            }
            if !found {
                self.with(|partition| {
                    // A log with a gap is listed again: the list may have missed files.
                    let listed = (ends.len() < 2).then(Instant::now);
                    (partition.chain, partition.listed) = (counting, listed);
                });
                return Ok(files);
            }
        }
    }

    /// The live files if a list of the log's end is sufficient; `None` if all must be listed.
    fn continued(self) -> Result<Option<Vec<DataFile>>, Error> {
        let last = self.with(|partition| {
            let fresh = partition.listed.is_some_and(|at| at.elapsed() < FRESH);
            partition.chain.last().cloned().filter(|_| fresh)
        });
        let Some(last) = last else { return Ok(None) };
        let Some(tail) = self.tail(&last)? else { return Ok(None) };
        // Compacted files require a full list.
        if tail.iter().any(|listed| listed.name.start >= last.next && listed.name.next.is_some()) {
            return Ok(None);
        }
        let news: Vec<Listed> = tail.into_iter().filter(|listed| listed.name.start >= last.next).collect();
        self.read_footers(&news)?;
        let mut more = self.with(|partition| partition.files(&news));
        let mut end = last.next;
        for file in &more {
            if file.start != end {
                return Ok(None);
            }
            end = file.next;
        }
        while let Some(file) = self.follows(end)? {
            end = file.next;
            push(&mut more, file);
        }
        Ok(self.with(|partition| {
            // Another thread may have changed it meanwhile.
            let same = partition.chain.last().is_some_and(|now| *now == last);
            same.then(|| {
                more.into_iter().for_each(|file| push(&mut partition.chain, file));
                partition.chain.clone()
            })
        }))
    }

    /// The names from this file on; `None` if the file no longer exists.
    fn tail(self, file: &DataFile) -> Result<Option<Vec<Listed>>, Error> {
        let tail = self.catalog.objects.list_from(&self.log.dir, &format!("{:020}", file.start));
        let tail = listed(tail.map_err(Error::io("list", &self.log.dir))?);
        let stands = |partition: &mut Partition| {
            tail.iter().any(|listed| is_named(file, listed.name) && partition.knows(listed))
        };
        Ok(self.with(stands).then_some(tail))
    }

    /// Start of the very first file, which never changes.
    fn known_first(self) -> Result<Option<i64>, Error> {
        if let Some(first) = self.with(|partition| partition.first) {
            return Ok(Some(first));
        }
        let first = self.log.first()?;
        self.with(|partition| partition.first = first);
        Ok(first)
    }

    /// The small file that starts here, if it exists.
    fn follows(self, start: i64) -> Result<Option<DataFile>, Error> {
        let name = Name::small(start);
        match self.log.footer(name) {
            Ok(file) => {
                let known = Known::new(None, file.clone());
                self.with(|partition| partition.footers.insert(name, known));
                Ok(Some(file))
            }
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names at which a full list can be split, to list the parts concurrently.
    fn marks(self) -> Vec<String> {
        let mut names = self.with(|partition| partition.footers.keys().copied().collect::<Vec<_>>());
        names.sort_unstable();
        names.chunks(PAGE).skip(1).map(|page| page[0].to_string()).collect()
    }

    /// Reads the unknown footers concurrently.
    fn read_footers(self, listed: &[Listed]) -> Result<(), Error> {
        let unknown: Vec<&Listed> =
            self.with(|partition| listed.iter().filter(|listed| !partition.knows(listed)).collect());
        each(&unknown, AT_ONCE, |Listed { name, tag }| {
            match self.log.footer(*name) {
                Ok(file) => {
                    let known = Known::new(tag.clone(), file);
                    self.with(|partition| partition.footers.insert(*name, known));
                }
                // Replaced by a larger file meanwhile, or the list still shows a deleted file.
                Err(error) if error.is_gone() => {
                    self.with(|partition| partition.footers.remove(name));
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Caches a file that this process wrote.
    fn remember(self, file: &DataFile, revision: &Revision) {
        let Revision::Object { e_tag, .. } = revision else { return };
        let known = Known::new(e_tag.clone(), file.clone());
        self.with(|partition| {
            partition.footers.insert(Name::small(file.start), known);
            match partition.chain.last() {
                Some(last) if last.next == file.start => push(&mut partition.chain, file.clone()),
                // A new log, or one extended by another writer: it is listed on the next request.
                _ => (partition.chain, partition.listed) = (vec![file.clone()], None),
            }
        });
    }

    /// Whether the log certainly ends here, by a list of its end only. `false` means unknown.
    ///
    /// Replaced files are deleted in the order of their names. So as long as the log's last known file exists, its successors
    /// exist too, or larger files that begin at their starts, and all of them are in the list from there.
    fn last_file_ends_at(self, start: i64) -> Result<bool, Error> {
        let tail = self.tail_before(start)?;
        Ok(tail.is_some_and(|tail| !tail.iter().any(|listed| listed.name.start >= start || listed.name.covers(start))))
    }

    /// Whether a new file follows an existing file and no large file covers its range, so that it is live. `false` means
    /// unknown.
    fn last_file_is_live(self, start: i64) -> Result<bool, Error> {
        let tail = self.tail_before(start)?;
        Ok(tail.is_some_and(|tail| !tail.iter().any(|listed| listed.name.covers(start))))
    }

    /// The names from the file on that ends here, if the log is known to end with it.
    fn tail_before(self, start: i64) -> Result<Option<Vec<Listed>>, Error> {
        let last = self.with(|partition| partition.chain.last().cloned());
        match last.filter(|last| last.next == start) {
            Some(last) => self.tail(&last),
            None => Ok(None),
        }
    }
}

/// The record files of a list, sorted.
fn listed(entries: Vec<Entry>) -> Vec<Listed> {
    let named = |entry: Entry| Some(Listed { name: Name::parse(&entry.name)?, tag: entry.tag });
    let mut listed: Vec<Listed> = entries.into_iter().filter_map(named).collect();
    listed.sort_unstable_by_key(|listed| listed.name);
    listed
}

/// Whether the file has this name.
fn is_named(file: &DataFile, name: Name) -> bool {
    file.path.file_name().is_some_and(|own| own == name.to_string().as_str())
}

/// Starts of possibly missing files: the ends of the log and of its parts.
fn open_ends(first: Option<i64>, counting: &[DataFile]) -> Vec<i64> {
    let (mut expected, mut ends) = (first, Vec::new());
    for file in counting {
        ends.extend(expected.filter(|expected| *expected < file.start));
        expected = Some(file.next);
    }
    ends.extend(expected);
    ends
}
