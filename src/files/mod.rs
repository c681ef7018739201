//! The reader of the user's files: CSV in any dialect, NDJSON, JSON arrays, concatenated objects; and the recognition of
//! Parquet and Arrow.
//!
//! Input: a path, a directory, a glob pattern, a pipe or stdin, and the settings of the command line ([`Options`]). Output:
//! UTF-8 text with a known dialect ([`Opened`]), which [`CsvRecords`], [`Splitter`] and [`Rows`] split into rows. All commands
//! that read files use it, so that the same bytes give the same table everywhere. Decompression and
//! encodings are left to libraries (flate2, zstd, encoding_rs, chardetng).

mod column_types;
mod concatenated;
mod csv_records;
mod dialect;
mod grown;
mod input;
mod json_values;
mod rows;
mod source;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use column_types::{Seen, Type};
pub use csv_records::{CsvRecords, Renamed};
pub use dialect::{Dialect, Header, decimal_point};
pub use grown::is_continued;
pub use input::{Opened, open};
pub use json_values::{Splitter, fields, no_number};
pub use rows::{Checked, Rows, check, object};
pub use source::Source;

use datafusion::arrow::datatypes::Schema;

use crate::file_format::Format;

/// Settings that replace detection.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub format: Option<Format>,
    pub delimiter: Option<u8>,
    pub encoding: Option<&'static encoding_rs::Encoding>,
    /// The decimal mark: `.` or `,`.
    pub decimal: Option<char>,
    pub header: Header,
    /// Number of lines before the header.
    pub skip: Option<u64>,
}

/// The reason why a file cannot be read, without its path.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("{0}")]
    Io(#[source] io::Error),
    /// `line` counts from 1.
    #[error("line {line}: {what}")]
    Line { line: u64, what: String, remedy: Option<&'static str> },
    #[error("{what}")]
    Whole { what: String, remedy: Option<&'static str> },
}

impl Fault {
    pub(crate) fn line(line: u64, what: impl Into<String>) -> Self {
        Self::Line { line, what: what.into(), remedy: None }
    }

    pub(crate) fn whole(what: impl Into<String>) -> Self {
        Self::Whole { what: what.into(), remedy: None }
    }

    /// Adds the next step for a user of the command line.
    #[must_use]
    pub(crate) fn with_remedy(mut self, text: &'static str) -> Self {
        if let Self::Line { remedy, .. } | Self::Whole { remedy, .. } = &mut self {
            *remedy = Some(text);
        }
        self
    }

    pub(crate) fn at(self, path: &Path) -> Error {
        Error { path: path.to_owned(), fault: self }
    }
}

/// An error in a file.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    pub path: PathBuf,
    #[source]
    pub fault: Fault,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let remedy = match &self.fault {
            Fault::Io(error) => return write!(f, "cannot read {path}: {error}"),
            Fault::Line { line, what, remedy } => {
                write!(f, "{path}, line {line}: {what}")?;
                remedy
            }
            Fault::Whole { what, remedy } => {
                write!(f, "{path}: {what}")?;
                remedy
            }
        };
        remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

/// Checks that the columns of Parquet or Arrow have different names: a reader by name would find only one of those that share one.
///
/// # Errors
/// If two columns have the same name.
pub fn check_names(schema: &Schema) -> Result<(), Fault> {
    let mut names = HashSet::new();
    match schema.fields().iter().find(|field| !names.insert(field.name())) {
        Some(field) => Err(Fault::whole(format!(
            "two columns have the name {}; give them different names where the file is written",
            field.name()
        ))),
        None => Ok(()),
    }
}

/// Reports the dialect of a file in one line if it is not plain, and names of columns that differ from the header's.
pub fn report(path: &Path, format: Format, dialect: &Dialect, records: Option<&CsvRecords>) {
    let path = path.display();
    let columns = records.map_or(0, |records| records.names().len());
    let line = match columns {
        0 => dialect.describe(format),
        1 => format!("{}, 1 column", dialect.describe(format)),
        n => format!("{}, {n} columns", dialect.describe(format)),
    };
    if dialect.is_plain(format) {
        tracing::debug!("{path}: {line}");
    } else {
        tracing::info!("{path}: {line}");
    }
    let renamed = records.map_or(&[][..], CsvRecords::renamed);
    let rename = |Renamed { from, to }: &Renamed| match from.is_empty() {
        true => format!("a column without a name is {to}"),
        false => format!("another column named {from} is {to}"),
    };
    for line in renamed.iter().take(3).map(rename) {
        tracing::info!("{path}: {line}");
    }
    if renamed.len() > 3 {
        tracing::info!("{path}: {} more columns have no name of their own and are numbered", renamed.len() - 3);
    }
}
