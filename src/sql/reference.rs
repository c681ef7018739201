//! Reference tables: files `name.csv` and `name.parquet` of the SQL directory, which the views may read.
//!
//! Input: the directory. Output: the tables' names, their bytes and a hash of these. The bytes are read once, with the hash, so that a
//! training reads what its receipt says. The module `engine` parses them, at most once for each copy of the bytes.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use datafusion::catalog::MemTable;
use sha2::{Digest as _, Sha256};

use super::{Error, is_view_name};
use crate::files::Source;
use crate::printable::hex;
use crate::spool::spooled;

/// A reference table.
#[derive(Clone)]
pub struct Reference {
    pub name: String,
    /// The file, for messages.
    pub path: PathBuf,
    /// SHA-256 of the file's bytes, in hex.
    pub hash: String,
    pub content: Content,
    /// The parsed table.
    pub table: Arc<OnceLock<Arc<MemTable>>>,
}

/// The bytes of a reference table.
#[derive(Debug, Clone)]
pub enum Content {
    /// A file in any dialect of CSV.
    Csv(Source),
    Parquet(Bytes),
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reference").field("name", &self.name).field("hash", &self.hash).finish_non_exhaustive()
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.path, &self.hash) == (&other.name, &other.path, &other.hash)
    }
}

impl Eq for Reference {}

/// Whether a file of the SQL directory is a reference table by its ending.
pub fn is_reference(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|ending| ending == "csv" || ending == "parquet")
}

/// Reads these files, in the order of their names. `taken` tells names of views and other tables.
///
/// # Errors
/// If a name is taken or is no name of a table, or if a file cannot be read or copied.
pub(super) fn read(mut paths: Vec<PathBuf>, taken: impl Fn(&str) -> bool) -> Result<Vec<Reference>, Error> {
    paths.sort();
    let mut references: Vec<Reference> = Vec::new();
    for path in paths {
        let file = path.display().to_string();
        let name = path.file_stem().and_then(|name| name.to_str()).filter(|name| is_view_name(name));
        let Some(name) = name else { return Err(Error::ReferenceName { file }) };
        if taken(name) || references.iter().any(|reference| reference.name == name) {
            return Err(Error::ReferenceTwice { file, name: name.to_owned() });
        }
        references.push(Reference::of(&path, name).map_err(|source| Error::Io { path: path.clone(), source })?);
    }
    Ok(references)
}

impl Reference {
    /// Reads a file whose name is the table's.
    fn of(path: &Path, name: &str) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let hash = hex(&Sha256::digest(&bytes));
        let content = match path.extension().is_some_and(|ending| ending == "parquet") {
            true => Content::Parquet(bytes.into()),
            false => Content::Csv(Source::Copied { name: path.to_owned(), file: Arc::new(spooled(&bytes[..])?) }),
        };
        Ok(Self { name: name.to_owned(), path: path.to_owned(), hash, content, table: Arc::default() })
    }
}
