//! Index of the footers of a partition's files in one object, so that a new process need not read each footer of a large store.
//!
//! It is written by compaction, and an entry is used only if the list shows the same ETag: an outdated or missing index costs
//! time only.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::{CachedLog, INDEX, Known};
use crate::file_name::Name;
use crate::footer::{Bounds, DataFile};
use crate::record::Fields;
use crate::revision::Revision;
use crate::{Error, Log};

/// Number of new files after which the index is rewritten.
const WORTHWHILE: usize = 1000;

/// The content of `_index.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    /// The distinct lists of declared fields.
    fields: Vec<Vec<String>>,
    files: Vec<Indexed>,
}

/// A file: name, tag, next, rows, size, position in `fields`, and bounds.
#[derive(Debug, Serialize, Deserialize)]
struct Indexed(String, String, i64, u64, u64, usize, Option<Bounds>);

impl CachedLog<'_> {
    fn index_file(self) -> PathBuf {
        self.log.dir.join(INDEX)
    }

    /// Reads the index, once, if it exists.
    pub(super) fn read_index(self, exists: bool) -> Result<(), Error> {
        if self.with(|partition| partition.indexed.is_some()) {
            return Ok(());
        }
        let index = if exists { self.index()?.0 } else { Index::default() };
        self.with(|partition| {
            partition.indexed = Some(index.files.len());
            for (name, known) in index.known(self.log) {
                partition.footers.entry(name).or_insert(known);
            }
        });
        Ok(())
    }

    fn index(self) -> Result<(Index, Revision), Error> {
        let (bytes, revision) = self.log.store.read_revision(&self.index_file())?;
        // The format of a later version is ignored.
        let index = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ok((index, revision))
    }

    /// Whether many files are missing from the index, or most of its files are gone.
    pub(super) fn index_is_old(self) -> bool {
        self.with(|partition| {
            let Some(indexed) = partition.indexed else { return false };
            let news = partition.footers.values().filter(|known| !known.indexed).count();
            news >= WORTHWHILE || indexed >= 2 * partition.footers.len() + WORTHWHILE
        })
    }

    /// Writes the index. A concurrent write by another process is equally good.
    pub(super) fn write_index(self) -> Result<(), Error> {
        let (_, revision) = self.index()?;
        let index = self.with(|partition| {
            let index = Index::of(&mut partition.footers);
            partition.indexed = Some(index.files.len());
            index
        });
        let bytes =
            serde_json::to_vec(&index).map_err(|e| Error::Damaged { path: self.index_file(), why: e.to_string() })?;
        self.log.store.replace_if(&bytes, &self.index_file(), &revision)?;
        Ok(())
    }
}

impl Index {
    fn of(footers: &mut HashMap<Name, Known>) -> Self {
        let mut index = Self::default();
        for (name, Known { tag, file, indexed }) in footers {
            // A file that no list has shown has no tag yet, and is indexed the next time.
            let Some(tag) = tag else { continue };
            *indexed = true;
            let names = file.fields.names();
            let number = index.fields.iter().position(|known| known == names).unwrap_or_else(|| {
                index.fields.push(names.to_vec());
                index.fields.len() - 1
            });
            index.files.push(Indexed(
                name.to_string(),
                tag.clone(),
                file.next,
                file.rows,
                file.size,
                number,
                file.bounds,
            ));
        }
        index
    }

    /// The entries for the files of a log; none if the content is not valid for it.
    fn known(self, log: &Log) -> Vec<(Name, Known)> {
        let fields: Vec<Arc<Fields>> = self.fields.into_iter().map(|names| Arc::new(Fields::new(names))).collect();
        let known = |Indexed(name, tag, next, rows, size, number, bounds): Indexed| {
            let name = Name::parse(&name)?;
            let file = DataFile {
                place: log.store.place.clone(),
                path: log.path(name),
                partition: log.partition,
                start: name.start,
                next,
                rows,
                size,
                fields: Arc::clone(fields.get(number)?),
                bounds,
                checksums: None,
            };
            (name.next.is_none_or(|named| named == next))
                .then_some((name, Known { tag: Some(tag), file, indexed: true }))
        };
        self.files.into_iter().filter_map(known).collect()
    }
}
