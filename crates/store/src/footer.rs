//! A file of records, as described by its footer.

mod check;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::compute::{max, min};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy, RowGroupMetaData,
};
use parquet::file::properties::DEFAULT_MAX_ROW_GROUP_ROW_COUNT;
use parquet::file::reader::{ChunkReader as _, Length as _};
use parquet::file::statistics::Statistics;
use serde::{Deserialize, Serialize};

pub use check::check;

use super::checksums::{Checksums, value};
use super::file_name::Name;
use super::{Error, Input, Place};
use crate::record::Fields;

/// Options for decoding a footer: statistics only of `_offset` and `_timestamp`, the second and third column. A file with
/// another column order has no bounds.
static WHAT_COUNTS: LazyLock<ParquetMetaDataOptions> = LazyLock::new(|| {
    ParquetMetaDataOptions::new()
        .with_column_stats_policy(ParquetStatisticsPolicy::skip_except(&[1, 2]))
        .with_encoding_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_size_stats_policy(ParquetStatisticsPolicy::SkipAll)
});

/// Bytes at the end of a file: the length of the footer and the magic number.
const TAIL: u64 = 8;

/// A file of records, as described by its footer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataFile {
    /// The backend that `path` belongs to.
    pub place: Place,
    /// Path of the file.
    pub path: PathBuf,
    /// Partition number.
    pub partition: i32,
    /// Start of the range, the `next` of the previous file.
    pub start: i64,
    /// The position after its last record.
    pub next: i64,
    /// Number of records.
    pub rows: u64,
    /// Bytes on disk.
    pub size: u64,
    /// The fields that `00_records.sql` declared when the file was written.
    pub fields: Arc<Fields>,
    /// Statistics, only for a file with one row group.
    pub bounds: Option<Bounds>,
    /// Checksums of its parts, if this process has read its footer and the footer has them.
    pub checksums: Option<Arc<Checksums>>,
}

/// Ranges of timestamps and offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Number of records without a timestamp.
    pub timeless: u64,
    /// Minimum and maximum timestamp; `None` if no record has one.
    pub times: Option<(i64, i64)>,
    /// Minimum and maximum offset.
    pub offsets: (i64, i64),
}

impl Bounds {
    /// Bounds from a row group's statistics, if present.
    pub fn of_group(group: &RowGroupMetaData) -> Option<Self> {
        let ((times, timeless), (offsets, _)) = (of_column(group, "_timestamp")?, of_column(group, "_offset")?);
        let said = times.is_some() || u64::try_from(group.num_rows()) == Ok(timeless);
        said.then_some(Self { timeless, times, offsets: offsets? })
    }

    /// Bounds of records in memory, if their file has one row group.
    pub(super) fn of_records(records: &RecordBatch) -> Option<Self> {
        if records.num_rows() > DEFAULT_MAX_ROW_GROUP_ROW_COUNT {
            return None;
        }
        let times = records.column_by_name("_timestamp")?.as_primitive_opt::<TimestampMillisecondType>()?;
        let offsets = records.column_by_name("_offset")?.as_primitive_opt::<Int64Type>()?;
        Some(Self {
            timeless: times.null_count() as u64,
            times: min(times).zip(max(times)),
            offsets: min(offsets).zip(max(offsets))?,
        })
    }
}

/// Minimum and maximum of a column, and its number of nulls; `None` without statistics.
fn of_column(group: &RowGroupMetaData, column: &str) -> Option<(Option<(i64, i64)>, u64)> {
    let chunk = group.columns().iter().find(|chunk| chunk.column_path().string() == column)?;
    let Some(Statistics::Int64(values)) = chunk.statistics() else { return None };
    let missing = values.null_count_opt()?;
    Some((values.min_opt().copied().zip(values.max_opt().copied()), missing))
}

impl DataFile {
    /// Opens the file for reading ranges.
    pub fn open(&self) -> Result<Input, Error> {
        self.place.open_known(&self.path, self.size).map_err(Error::io("open", &self.path))
    }

    /// Reads a footer, and checks that it agrees with the name and the partition.
    pub(super) fn read(place: &Place, path: &Path, name: Name, partition: i32) -> Result<Self, Error> {
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        let file = place.open(path).map_err(Error::io("open", path))?;
        let size = file.len();
        let (metadata, bytes) = read_footer(path, &file)?;
        let checksums = Checksums::of(&metadata, &bytes).map_err(damaged)?;
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
            checksums: checksums.map(Arc::new),
            bounds: match metadata.row_groups() {
                [only] => Bounds::of_group(only),
                _ => None,
            },
            fields: Arc::new(declared(metadata.file_metadata().schema().get_fields().iter().map(|f| f.name()))),
        })
    }
}

/// The columns that hold declared fields; the others are the store's own.
pub(super) fn declared<'c>(columns: impl Iterator<Item = &'c str>) -> Fields {
    Fields::new(columns.filter(|name| !name.starts_with('_')).map(str::to_owned).collect())
}

/// Appends a file. Equal field lists of adjacent files are shared.
pub(super) fn push(files: &mut Vec<DataFile>, mut file: DataFile) {
    if let Some(DataFile { fields, .. }) = files.last()
        && *fields == file.fields
    {
        file.fields = Arc::clone(fields);
    }
    files.push(file);
}

/// Reads a footer, and its bytes to the end of the file.
pub(super) fn read_footer(path: &Path, file: &Input) -> Result<(ParquetMetaData, Bytes), Error> {
    let size = file.len();
    let read = |from_end: u64| {
        let short = || ParquetError::EOF("it is too short for a Parquet file".to_owned());
        file.get_bytes(size.checked_sub(from_end).ok_or_else(short)?, from_end as usize)
    };
    let mut reader = ParquetMetaDataReader::new().with_metadata_options(Some(WHAT_COUNTS.clone()));
    let mut parse = || {
        let end = read(TAIL)?;
        let length = end.first_chunk().map(|length| u32::from_le_bytes(*length)).unwrap_or_default();
        let bytes = read(u64::from(length) + TAIL)?;
        reader.try_parse_sized(&bytes, size)?;
        Ok((reader.finish()?, bytes))
    };
    parse().map_err(|e| unreadable(path, e))
}

/// Converts a Parquet error: the file may be damaged, or the disk may have failed temporarily.
pub(super) fn unreadable(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(source) => match source.downcast::<io::Error>() {
            Ok(source) => Error::io("read", path)(*source),
            Err(source) => Error::Damaged { path: path.to_owned(), why: source.to_string() },
        },
        error => Error::Damaged { path: path.to_owned(), why: error.to_string() },
    }
}
