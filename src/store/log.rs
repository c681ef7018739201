//! One partition's files: their names, what their footers say, the reader's rule, and how a file comes to be.
//!
//! A file is named by where it was expected to start, the `next` of the file before it. That makes the name a claim:
//! whoever links it in first owns the range, and whoever finds it taken has lost the partition.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{Error, Store};
use crate::record::Fields;

/// A file of records, as its footer describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
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

/// How publishing ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// The file is in the store, for good.
    File(DataFile),
    /// Somebody else wrote this range: drop what you hold and read the log again.
    Taken,
}

/// What a name in a partition's directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    start: i64,
    /// Larger files that replace small ones name their end as well.
    next: Option<i64>,
}

impl Name {
    fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(".parquet")?;
        let digits = |text: &str| if text.len() == 20 { text.parse::<i64>().ok() } else { None };
        match stem.split_once('-') {
            Some((start, next)) => Some(Self { start: digits(start)?, next: Some(digits(next)?) }),
            None => Some(Self { start: digits(stem)?, next: None }),
        }
    }
}

/// The log of one partition.
#[derive(Debug, Clone)]
pub struct Log {
    pub(super) store: Store,
    pub(super) dir: PathBuf,
    pub(super) partition: i32,
}

impl Log {
    pub(super) fn new(store: Store, topic: &str, partition: i32) -> Self {
        let dir = store.root.join("records").join(topic).join(partition.to_string());
        Self { store, dir, partition }
    }

    /// Sets newest files aside that can't be read, so that their range is read again from the topic. Whoever publishes
    /// syncs before the name is there, so this is the work of a broken disk or of somebody's hands.
    /// One file at most: where several can't be read, somebody should look before more is moved.
    pub fn set_damaged_aside(&self) -> Result<(), Error> {
        if let Some((name, path)) = self.names()?.pop() {
            let Err(Error::Damaged { why, .. }) = self.footer(&path, name) else { return Ok(()) };
            let aside = self.store.root.join("aside");
            fs::create_dir_all(&aside).map_err(Error::io("make", &aside))?;
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let to = aside.join(format!("{}-{}-{file}", self.partition, std::process::id()));
            fs::rename(&path, &to).map_err(Error::io("set aside", &path))?;
            tracing::warn!(
                "{} is damaged ({why}): set aside as {}, its range is read again",
                path.display(),
                to.display()
            );
        }
        Ok(())
    }

    /// Makes the directory, and fixes where the partition's very first file starts. If that is fixed already, by an
    /// earlier run or by somebody faster, the earlier word stands.
    pub fn begin(&self, first: i64) -> Result<(), Error> {
        fs::create_dir_all(&self.dir).map_err(Error::io("make", &self.dir))?;
        self.store.publish_bytes(first.to_string().as_bytes(), &self.dir.join("_start"))?;
        Ok(())
    }

    /// Where the next file starts; `None` if the log has not begun.
    pub fn next(&self) -> Result<Option<i64>, Error> {
        loop {
            let names = self.names()?;
            // Only the footer of the highest name is opened: this is asked before each file that is published.
            let Some((name, path)) = names.last() else { return self.first() };
            let covered = names.iter().filter_map(|(name, _)| name.next).max();
            // Readers pass over what starts inside a covered range, whatever it says of its end.
            if covered.is_some_and(|covered| name.start < covered) {
                return Ok(covered);
            }
            match self.footer(path, *name) {
                Ok(file) => return Ok(Some(file.next)),
                // Replaced by a larger one and deleted since the directory was listed.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Where the very first file starts; `None` if the log has not begun.
    pub fn first(&self) -> Result<Option<i64>, Error> {
        let path = self.dir.join("_start");
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(first) => Ok(Some(first)),
                Err(_) => Err(Error::Damaged { path, why: format!("expected an offset, found {text:?}") }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// The files that count, by start: the reader's rule.
    pub fn files(&self) -> Result<Vec<DataFile>, Error> {
        Ok(effective(self.all_files()?))
    }

    /// All files, those that larger ones replaced among them.
    pub(super) fn all_files(&self) -> Result<Vec<DataFile>, Error> {
        let mut files: Vec<DataFile> = Vec::new();
        for (name, path) in self.names()? {
            match self.footer(&path, name) {
                Ok(mut file) => {
                    // Most files have the fields of the one before: they are kept once.
                    if let Some(DataFile { fields, .. }) = files.last()
                        && *fields == file.fields
                    {
                        file.fields = Arc::clone(fields);
                    }
                    files.push(file);
                }
                // Replaced by a larger one and deleted since the directory was listed: the larger one is there.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    return self.all_files();
                }
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    fn names(&self) -> Result<Vec<(Name, PathBuf)>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::io("list", &self.dir)(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            if let Some(name) = entry.file_name().to_str().and_then(Name::parse) {
                names.push((name, entry.path()));
            }
        }
        names.sort_by_key(|(name, _)| (name.start, name.next));
        Ok(names)
    }

    fn footer(&self, path: &Path, name: Name) -> Result<DataFile, Error> {
        let damaged = |why: String| Error::Damaged { path: path.to_owned(), why };
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).map_err(|e| unreadable(path, e))?;
        let number = |key: &str| {
            footer_value(&metadata, key)
                .and_then(|value| value.parse::<i64>().ok())
                .ok_or_else(|| damaged(format!("its footer holds no {key}")))
        };
        let (start, next, rows) = (number("start")?, number("next")?, number("rows")?);
        if start != name.start || name.next.is_some_and(|named| named != next) {
            return Err(damaged(format!("its footer says {start} to {next}, its name says otherwise")));
        }
        let partition = footer_value(&metadata, "partition").map(str::parse::<i32>);
        if partition.is_some_and(|partition| partition != Ok(self.partition)) {
            return Err(damaged("its footer says that it is another partition's".to_owned()));
        }
        Ok(DataFile {
            path: path.to_owned(),
            partition: self.partition,
            start,
            next,
            rows: u64::try_from(rows).map_err(|_| damaged("its footer counts less than no rows".to_owned()))?,
            size,
            fields: Arc::new(declared(metadata.file_metadata().schema().get_fields().iter().map(|f| f.name()))),
        })
    }

    /// Writes the records from `start` up to `next`, and publishes them if their name is still free.
    ///
    /// The order is the guarantee: written outside `records/`, synced, linked in only if the name is free, directory
    /// synced. Only after that may the broker be told.
    pub fn publish(&self, records: &RecordBatch, start: i64, next: i64) -> Result<Published, Error> {
        // A log that ends sooner than the writer believes, for somebody set a damaged file aside, is not its own either.
        if self.next()? != Some(start) {
            return Ok(Published::Taken);
        }
        let path = self.dir.join(format!("{start:020}.parquet"));
        let scratch = self.store.scratch();
        let size =
            write_parquet(&scratch, records, &Span { partition: self.partition, start, next }).inspect_err(|_| {
                let _ = fs::remove_file(&scratch);
            })?;
        if !self.store.link(&scratch, &path)? {
            return Ok(Published::Taken);
        }
        // Whoever slept between the look above and the link may have found a name free that was replaced and deleted
        // meanwhile. Readers pass over such a file, but nothing may be built on it.
        if self.names()?.iter().any(|(name, _)| name.next.is_some_and(|end| name.start <= start && start < end)) {
            fs::remove_file(&path).map_err(Error::io("take back", &path))?;
            return Ok(Published::Taken);
        }
        let rows = records.num_rows() as u64;
        let fields = Arc::new(declared(records.schema_ref().fields().iter().map(|field| field.name().as_str())));
        Ok(Published::File(DataFile { path, partition: self.partition, start, next, rows, size, fields }))
    }
}

/// Of a file's columns those that hold fields of the records; the others are the store's own.
fn declared<'c>(columns: impl Iterator<Item = &'c str>) -> Fields {
    Fields::new(columns.filter(|name| !name.starts_with('_')).map(str::to_owned).collect())
}

fn footer_value<'m>(metadata: &'m ParquetMetaData, key: &str) -> Option<&'m str> {
    let pairs = metadata.file_metadata().key_value_metadata()?;
    pairs.iter().find(|pair| pair.key == key)?.value.as_deref()
}

/// Of files with the same start the one that reaches furthest; of those that start inside a range already covered,
/// none. Small files that wait to be deleted after a larger one replaced them are passed over by this.
pub(super) fn effective(mut files: Vec<DataFile>) -> Vec<DataFile> {
    files.sort_by(|a, b| (a.start, b.next, &a.path).cmp(&(b.start, a.next, &b.path)));
    let mut covered = i64::MIN;
    files.retain(|file| {
        let counts = file.start >= covered;
        if counts {
            covered = file.next;
        }
        counts
    });
    files
}

/// Of files that count, by start, those that cover another's whole range without a gap; none if they don't.
pub(super) fn covering<'f>(files: &'f [DataFile], other: &DataFile) -> &'f [DataFile] {
    let after = files.partition_point(|file| file.start <= other.start);
    let Some(first) = after.checked_sub(1) else { return &[] };
    let mut end = files[first].start;
    for (i, file) in files.iter().enumerate().skip(first) {
        if file.start != end {
            return &[];
        }
        end = file.next;
        if other.next <= end {
            return &files[first..=i];
        }
    }
    &[]
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

/// What a file covers.
pub(super) struct Span {
    pub partition: i32,
    pub start: i64,
    pub next: i64,
}

/// How files are written: compressed, with statistics, and with a footer that says what they cover.
pub(super) fn properties(span: &Span, rows: u64, like: &RecordBatch) -> WriterProperties {
    let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("tercile ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(vec![
            pair("partition", span.partition.to_string()),
            pair("start", span.start.to_string()),
            pair("next", span.next.to_string()),
            pair("rows", rows.to_string()),
        ]));
    for name in ["_offset", "_timestamp"] {
        properties = properties
            .set_column_encoding(ColumnPath::from(name), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(ColumnPath::from(name), false);
    }
    for (field, column) in like.schema_ref().fields().iter().zip(like.columns()) {
        if !repeats(column) {
            properties = properties.set_column_dictionary_enabled(ColumnPath::new(vec![field.name().clone()]), false);
        }
    }
    properties.build()
}

/// Whether a dictionary pays: values that hardly repeat only fill it up, and building it is most of the time of writing.
fn repeats(column: &ArrayRef) -> bool {
    let values: Vec<&[u8]> = match column.data_type() {
        DataType::Utf8 => {
            let column = column.as_string::<i32>();
            sampled(column.len()).filter(|&row| column.is_valid(row)).map(|row| column.value(row).as_bytes()).collect()
        }
        DataType::Binary => {
            let column = column.as_binary::<i32>();
            sampled(column.len()).filter(|&row| column.is_valid(row)).map(|row| column.value(row)).collect()
        }
        _ => return true,
    };
    let distinct: HashSet<&[u8]> = values.iter().copied().collect();
    distinct.len() * 2 <= values.len() || values.len() < 16
}

/// Up to a thousand rows, evenly spread.
fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by((rows / 1000).max(1))
}

fn write_parquet(path: &Path, records: &RecordBatch, span: &Span) -> Result<u64, Error> {
    let parquet = |source| Error::Parquet { path: path.to_owned(), source };
    let properties = properties(span, records.num_rows() as u64, records);
    let file = File::create_new(path).map_err(Error::io("write", path))?;
    let mut writer = ArrowWriter::try_new(file, records.schema(), Some(properties)).map_err(parquet)?;
    writer.write(records).map_err(parquet)?;
    let file = writer.into_inner().map_err(parquet)?;
    file.sync_all().map_err(Error::io("sync", path))?;
    Ok(file.metadata().map_err(Error::io("read", path))?.len())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::time::Instant;

    use crate::batch::{Batch, Record};
    use crate::record::{self, Fields};

    pub(in crate::store) fn records(offsets: std::ops::Range<i64>) -> RecordBatch {
        records_at(&offsets.collect::<Vec<_>>())
    }

    pub(in crate::store) fn records_at(offsets: &[i64]) -> RecordBatch {
        let fields = Fields::new(vec!["a".into()]);
        let mut batch = Batch::new(0, &fields);
        for &offset in offsets {
            let record = Record { offset, timestamp: None, key: None, payload: Some(b"{}") };
            batch.push(&record, std::iter::empty(), &record::decode(Some(b"{}"), &fields), Instant::now());
        }
        batch.take().unwrap().unwrap().records
    }

    fn file(start: i64, next: i64) -> DataFile {
        DataFile { path: PathBuf::new(), partition: 0, start, next, rows: 0, size: 0, fields: Arc::default() }
    }

    #[test]
    fn names_parse_or_are_none_of_ours() {
        let plain = Name { start: 42, next: None };
        assert_eq!(Name::parse("00000000000000000042.parquet"), Some(plain));
        let large = Name { start: 0, next: Some(42) };
        assert_eq!(Name::parse("00000000000000000000-00000000000000000042.parquet"), Some(large));
        for other in ["42.parquet", "_start", "00000000000000000042.tmp", "0000000000000000004x.parquet"] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_readers_rule() {
        let ranges = |files: Vec<DataFile>| files.iter().map(|f| (f.start, f.next)).collect::<Vec<_>>();
        assert_eq!(ranges(effective(vec![file(5, 9), file(0, 5)])), [(0, 5), (5, 9)]);
        let compacted = vec![file(0, 5), file(5, 9), file(0, 9), file(9, 12)];
        assert_eq!(ranges(effective(compacted)), [(0, 9), (9, 12)]);
        let twice = vec![file(0, 5), file(5, 9), file(0, 9), file(9, 12), file(12, 20), file(9, 20), file(0, 20)];
        assert_eq!(ranges(effective(twice)), [(0, 20)]);
    }

    #[test]
    fn the_log_goes_on_where_it_ended_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        assert_eq!(log.next().unwrap(), None);
        log.begin(7).unwrap();
        log.begin(9).unwrap();
        assert_eq!(log.next().unwrap(), Some(7));
        // A gap in offsets: expected at 7, the first record came at 10.
        let Published::File(first) = log.publish(&records(10..13), 7, 13).unwrap() else { panic!("taken") };
        assert!(first.path.ends_with("records/products/0/00000000000000000007.parquet"));
        assert_eq!((first.start, first.next, first.rows), (7, 13, 3));
        assert_eq!(log.publish(&records(10..12), 7, 12).unwrap(), Published::Taken);
        assert_eq!(log.publish(&records(10..12), 10, 12).unwrap(), Published::Taken);
        assert_eq!(log.next().unwrap(), Some(13));
        assert_eq!(log.files().unwrap(), [first]);
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_newest_file_is_named_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        fs::write(dir.path().join("records/products/0/00000000000000000000.parquet"), b"PAR1").unwrap();
        let error = log.files().unwrap_err().to_string();
        assert!(error.contains("00000000000000000000.parquet is damaged"), "{error}");
        log.set_damaged_aside().unwrap();
        assert_eq!(log.next().unwrap(), Some(0));
        assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 1);
    }
    #[test]
    fn nothing_is_built_on_a_log_that_ends_sooner_or_on_a_file_that_readers_pass_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let log = store.log("products", 0);
        log.begin(0).unwrap();
        for start in [0, 10] {
            assert!(matches!(log.publish(&records(start..start + 10), start, start + 10).unwrap(), Published::File(_)));
        }
        // The newest file was set aside while this writer slept, which believes that the log ends at 20.
        fs::remove_file(log.dir.join("00000000000000000010.parquet")).unwrap();
        assert_eq!(log.publish(&records(20..25), 20, 25).unwrap(), Published::Taken);
        assert!(matches!(log.publish(&records(10..20), 10, 20).unwrap(), Published::File(_)));
        // A large file covers all; one that starts inside it was linked by a writer that slept, and then died.
        let large = Span { partition: 0, start: 0, next: 20 };
        let path = log.large(0, 20);
        let mut writer = ArrowWriter::try_new(
            File::create(&path).unwrap(),
            records(0..20).schema(),
            Some(properties(&large, 20, &records(0..20))),
        )
        .unwrap();
        writer.write(&records(0..20)).unwrap();
        writer.close().unwrap();
        let stray = Span { partition: 0, start: 15, next: 30 };
        write_parquet(&log.dir.join("00000000000000000015.parquet"), &records(15..30), &stray).unwrap();
        assert_eq!(log.next().unwrap(), Some(20));
    }

    #[test]
    fn files_of_another_partition_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (one, other) = (store.log("products", 0), store.log("products", 1));
        one.begin(0).unwrap();
        other.begin(0).unwrap();
        let Published::File(file) = one.publish(&records(0..5), 0, 5).unwrap() else { panic!("taken") };
        fs::copy(&file.path, other.dir.join("00000000000000000000.parquet")).unwrap();
        let error = other.files().unwrap_err().to_string();
        assert!(error.contains("another partition"), "{error}");
    }

    #[test]
    fn several_files_may_cover_one() {
        let files = [file(0, 5), file(5, 9), file(9, 12), file(13, 20)];
        let covered = |other: DataFile| covering(&files, &other).iter().map(|f| f.start).collect::<Vec<_>>();
        assert_eq!(covered(file(5, 9)), [5]);
        assert_eq!(covered(file(3, 10)), [0, 5, 9]);
        assert!(covered(file(9, 14)).is_empty(), "offset 12 is nowhere");
        assert!(covered(file(13, 21)).is_empty());
    }
}
