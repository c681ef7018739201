//! A file of records, as its footer describes it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::Length as _;

use super::name::Name;
use super::{Error, Input, Place};
use crate::record::Fields;

/// A file of records, as its footer describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataFile {
    /// What the path is a path of.
    pub place: Place,
    pub path: PathBuf,
    pub partition: i32,
    /// Where it was expected to start.
    pub start: i64,
    /// The position after its last record.
    pub next: i64,
    pub rows: u64,
    /// Bytes on disk.
    pub size: u64,
    /// The fields that `00_records.sql` declared when it was written.
    pub fields: Arc<Fields>,
}

impl DataFile {
    /// Opens it, to be read in parts.
    pub fn open(&self) -> Result<Input, Error> {
        self.place.open(&self.path).map_err(Error::io("open", &self.path))
    }

    /// Whether this is the file of that name.
    #[cfg(feature = "object-stores")]
    pub(super) fn is_named(&self, name: Name) -> bool {
        self.path.file_name().is_some_and(|own| own == name.to_string().as_str())
    }

    /// Reads a footer, which must say what the name says and be of this partition.
    pub(super) fn read(place: &Place, path: &Path, name: Name, partition: i32) -> Result<Self, Error> {
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        let file = place.open(path).map_err(Error::io("open", path))?;
        let size = file.len();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|e| unreadable(path, e))?;
        let number = |key: &str| {
            value(&metadata, key)
                .and_then(|value| value.parse::<i64>().ok())
                .ok_or_else(|| damaged(format!("its footer holds no {key}")))
        };
        let (start, next, rows) = (number("start")?, number("next")?, number("rows")?);
        if start != name.start || name.next.is_some_and(|named| named != next) {
            return Err(damaged(format!("its footer says {start} to {next}, its name says otherwise")));
        }
        let whose = value(&metadata, "partition").map(str::parse::<i32>);
        if whose.is_some_and(|whose| whose != Ok(partition)) {
            return Err(damaged("its footer says that it is another partition's".to_owned()));
        }
        Ok(Self {
            place: place.clone(),
            path: path.to_owned(),
            partition,
            start,
            next,
            rows: u64::try_from(rows).map_err(|_| damaged("its footer counts less than no rows".to_owned()))?,
            size,
            fields: Arc::new(declared(metadata.file_metadata().schema().get_fields().iter().map(|f| f.name()))),
        })
    }
}

/// Of a file's columns those that hold fields of the records; the others are the store's own.
pub(super) fn declared<'c>(columns: impl Iterator<Item = &'c str>) -> Fields {
    Fields::new(columns.filter(|name| !name.starts_with('_')).map(str::to_owned).collect())
}

/// Adds a file. Most have the fields of the one before: they are kept once.
pub(super) fn push(files: &mut Vec<DataFile>, mut file: DataFile) {
    if let Some(DataFile { fields, .. }) = files.last()
        && *fields == file.fields
    {
        file.fields = Arc::clone(fields);
    }
    files.push(file);
}

fn value<'m>(metadata: &'m ParquetMetaData, key: &str) -> Option<&'m str> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
}

/// A file that can't be read may be damaged; or the disk may only fail to give it now.
fn unreadable(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => Error::io("read", path)(*source),
            Err(source) => Error::Damaged { path: path.to_owned(), why: source.to_string() },
        },
        error => Error::Damaged { path: path.to_owned(), why: error.to_string() },
    }
}
