//! The members of a model of entities: which entity is in which cluster.
//!
//! A version has one file, `<version>.members.parquet`: key columns, features (NULL where missing), `cluster`, `distance` and
//! `previous`, sorted by key. Row groups are small, and their statistics tell which of them can hold a key, so a lookup reads
//! one row group. Groups that were read are cached within a budget. A row group is compared with its checksums before it is read
//! for the first time.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray as _, DynComparator, RecordBatch, StringArray, UInt32Array, make_comparator,
};
use datafusion::arrow::compute::{CastOptions, SortOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::Result as ParquetResult;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, Length};
use serde_json::Value;
use tercile_store::{Checksums, Error, FileFault, Input, Reason, write_with_checksums};

use super::{Kind, Model, ModelRegistry, ServingState};

/// The end of a members file's name, after the version.
pub(super) const ENDING: &str = ".members.parquet";
/// The columns after the features.
pub const COLUMNS: [&str; 3] = ["cluster", "distance", "previous"];
/// The column that tells the cluster's description, where members are shown.
pub const DESCRIPTION: &str = "description";

/// Rows of a batch.
const BATCH: usize = 8192;

/// Rows of a row group: about 500 groups, so that the footer of a large file stays small.
fn group_rows(rows: usize) -> usize {
    (rows / 500).clamp(1024, 65_536)
}

impl ModelRegistry {
    pub(super) fn members_file(&self, version: u64) -> PathBuf {
        self.dir.join(format!("{version}{ENDING}"))
    }

    /// Publishes the members of a version. `false` if its name was taken.
    pub(super) fn put_members(&self, members: &RecordBatch, version: u64) -> Result<bool, Error> {
        let path = self.members_file(version);
        let scratch = self.store.scratch();
        let write = || -> ParquetResult<()> {
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
                .set_max_row_group_row_count(Some(group_rows(members.num_rows())))
                .build();
            write_with_checksums(&scratch, members, properties)
        };
        write().map_err(|source| Error::Parquet { path: path.clone(), source })?;
        Ok(self.store.link(&scratch, &path)?.is_some())
    }

    /// True if the file of a version's members exists.
    pub fn has_members(&self, version: u64) -> bool {
        self.store.place().modified(&self.members_file(version)).is_ok()
    }

    /// Deletes members files, except those of versions that serve, are candidates or were last sent to a topic, and of the last `keep` of each
    /// slice. A version whose model file cannot be read keeps its members, and so do all while `published.json` cannot be read.
    pub fn expire_members(&self, keep: usize) -> Result<(), Error> {
        let sent = match self.published() {
            Ok((published, _)) => published.versions(),
            Err(Error::File(fault)) => {
                tracing::warn!("{fault}; until then no members are deleted");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut with: Vec<u64> = Vec::new();
        for name in self.names()? {
            with.extend(name.strip_suffix(ENDING).and_then(|version| version.parse::<u64>().ok()));
        }
        with.sort_unstable();
        let slices = self.slices()?;
        let used = |standing: &ServingState| [standing.version, standing.candidate.as_ref().map(|held| held.version)];
        let serving: Vec<u64> = slices.values().flat_map(used).flatten().collect();
        let mut seen: HashMap<u8, usize> = HashMap::new();
        for version in with.into_iter().rev() {
            let Ok(model) = self.model(version) else { continue };
            let nth = seen.entry(model.slice).or_default();
            *nth += 1;
            if *nth <= keep || serving.contains(&version) || sent.contains(&version) {
                continue;
            }
            let path = self.members_file(version);
            self.store.place().delete(&path).map_err(Error::io("delete", &path))?;
        }
        Ok(())
    }

    /// The members of a model; `None` if their file was deleted, or if the model has none.
    ///
    /// # Errors
    /// [`Error::File`] if the file is damaged, unreadable, or belongs to another model.
    pub fn members(&self, model: &Model) -> Result<Option<Members>, Error> {
        let path = self.members_file(model.version);
        let input = match self.store.place().open(&path) {
            Ok(input) => SharedInput(Arc::new(input)),
            Err(error) if FileFault::reason_of(&error) == Reason::Missing => return Ok(None),
            Err(error) => return Err(Kind::Members.unread(&path)(error)),
        };
        let damaged = |why: String| Kind::Members.fault(&path, Reason::Damaged, why);
        let metadata =
            ArrowReaderMetadata::load(&input, ArrowReaderOptions::new()).map_err(|e| damaged(e.to_string()))?;
        let checksums = Checksums::of_open(metadata.metadata(), &input.0).map_err(|e| damaged(e.to_string()))?;
        let names: Vec<&str> = metadata.schema().fields().iter().map(|field| field.name().as_str()).collect();
        let expected = model.entity.iter().chain(&model.features).map(String::as_str).chain(COLUMNS);
        if !expected.eq(names) || metadata.metadata().file_metadata().num_rows() as u64 != model.rows {
            let why = "its columns or rows are not those of the model";
            return Err(Kind::Members.fault(&path, Reason::Misnamed, why));
        }
        let (least, greatest) = bounds(&metadata, &model.entity[0]).map_err(|e| damaged(e.to_string()))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Relaxed);
        let checked = (0..metadata.metadata().num_row_groups()).map(|_| AtomicBool::new(checksums.is_none())).collect();
        let keys = model.entity.len();
        Ok(Some(Members { id, path, input, metadata, checksums, checked, keys, least, greatest }))
    }

    /// Compares every byte of the members of a model with their checksums, if there are any.
    ///
    /// # Errors
    /// As [`ModelRegistry::members`].
    pub(super) fn check_members(&self, model: &Model) -> Result<(), Error> {
        let Some(members) = self.members(model)? else { return Ok(()) };
        Kind::Members.verify(&members.path, &members.input.0)
    }
}

/// The least and the greatest value of a key column in each row group.
fn bounds(metadata: &ArrowReaderMetadata, key: &str) -> ParquetResult<(ArrayRef, ArrayRef)> {
    let converter = StatisticsConverter::try_new(key, metadata.schema(), metadata.parquet_schema())?;
    let groups = metadata.metadata().row_groups();
    Ok((converter.row_group_mins(groups)?, converter.row_group_maxes(groups)?))
}

/// An open file, shared by readers.
#[derive(Debug, Clone)]
struct SharedInput(Arc<Input>);

impl Length for SharedInput {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for SharedInput {
    type T = <Input as ChunkReader>::T;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.0.get_bytes(start, length)
    }
}

/// The members of one version.
#[derive(Debug)]
pub struct Members {
    /// Distinguishes open files in a cache.
    id: u64,
    path: PathBuf,
    input: SharedInput,
    metadata: ArrowReaderMetadata,
    /// `None` for a file of an earlier build.
    checksums: Option<Checksums>,
    /// The row groups that were compared with their checksums.
    checked: Vec<AtomicBool>,
    /// The number of key columns.
    keys: usize,
    /// Bounds of the first key column by row group.
    least: ArrayRef,
    greatest: ArrayRef,
}

/// One member: a row of a batch.
#[derive(Debug, Clone)]
pub struct Found {
    pub batch: Arc<RecordBatch>,
    pub row: usize,
}

impl Members {
    /// Keys, features, `cluster`, `distance`, `previous`.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(self.metadata.schema())
    }

    /// The number of row groups.
    pub fn groups(&self) -> usize {
        self.metadata.metadata().num_row_groups()
    }

    fn damaged(&self, why: String) -> Error {
        Kind::Members.fault(&self.path, Reason::Damaged, why)
    }

    /// The rows in order of their keys, from a row group on.
    pub fn read(
        &self,
        from: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, Error>> + Send + use<'_>, Error> {
        let mut batches = self.open((from..self.groups()).collect(), BATCH)?;
        let (mut group, mut checked, mut read) = (from, 0, 0);
        Ok(std::iter::from_fn(move || {
            // The groups that the next batch may have rows of.
            while group < self.groups() && checked < read + BATCH {
                if let Err(error) = self.check(group) {
                    return Some(Err(error));
                }
                checked += self.metadata.metadata().row_group(group).num_rows() as usize;
                group += 1;
            }
            let batch = batches.next()?.map_err(|e| self.damaged(e.to_string()));
            read += batch.as_ref().map_or(0, RecordBatch::num_rows);
            Some(batch)
        }))
    }

    /// Compares the bytes of a row group with their checksums, once.
    fn check(&self, group: usize) -> Result<(), Error> {
        let (Some(checksums), Some(checked)) = (&self.checksums, self.checked.get(group)) else { return Ok(()) };
        if checked.load(Relaxed) {
            return Ok(());
        }
        for column in self.metadata.metadata().row_group(group).columns() {
            let (start, length) = column.byte_range();
            let bytes = self.input.get_bytes(start, length as usize).map_err(|e| self.damaged(e.to_string()))?;
            if checksums.contradicts(&(start..start + length), &bytes) {
                let name = column.column_path();
                return Err(self.damaged(format!("row group {group} of {name} does not match its checksum")));
            }
        }
        checked.store(true, Relaxed);
        Ok(())
    }

    fn open(&self, groups: Vec<usize>, batch: usize) -> Result<ParquetRecordBatchReader, Error> {
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.input.clone(), self.metadata.clone())
            .with_row_groups(groups)
            .with_batch_size(batch)
            .build()
            .map_err(|e| self.damaged(e.to_string()))
    }

    /// All rows of a row group.
    fn group(&self, group: usize, cache: &GroupCache) -> Result<Arc<RecordBatch>, Error> {
        if let Some(known) = cache.get((self.id, group)) {
            return Ok(known);
        }
        self.check(group)?;
        let rows = self.metadata.metadata().row_group(group).num_rows() as usize;
        let mut batches = self.open(vec![group], rows)?;
        let batch = batches.next().unwrap_or_else(|| Ok(RecordBatch::new_empty(self.schema())));
        let batch = Arc::new(batch.map_err(|e| self.damaged(e.to_string()))?);
        cache.put((self.id, group), &batch);
        Ok(batch)
    }

    /// Keys as arrays of the columns' types, from their texts by row. A text that is no value of its type is NULL, and found
    /// nowhere.
    pub fn keys(&self, texts: &[Vec<String>]) -> Result<Vec<ArrayRef>, ArrowError> {
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let key = |column: usize| {
            let text: StringArray = texts.iter().map(|key| key.get(column).map(String::as_str)).collect();
            cast_with_options(&text, self.metadata.schema().field(column).data_type(), &options)
        };
        (0..self.keys).map(key).collect()
    }

    /// The members with these keys, in order; `None` for unknown ones.
    pub fn find(&self, keys: &[ArrayRef], cache: &GroupCache) -> Result<Vec<Option<Found>>, Error> {
        let arrow = |e: ArrowError| self.damaged(e.to_string());
        let rows = keys.first().map_or(0, |key| key.len());
        let mut found = vec![None; rows];
        // In key order each row group is read once.
        let among = Order::of(keys, keys).map_err(arrow)?;
        let mut order: Vec<usize> = (0..rows).filter(|&row| keys.iter().all(|key| key.is_valid(row))).collect();
        order.sort_by(|&a, &b| among.compare(a, b));
        let mut last: Option<(usize, Arc<RecordBatch>, Order)> = None;
        for row in order {
            for group in self.candidates(&keys[0], row).map_err(arrow)? {
                let open = match last.take().filter(|(of, ..)| *of == group) {
                    Some(open) => open,
                    None => {
                        let batch = self.group(group, cache)?;
                        let compare = Order::of(&batch.columns()[..self.keys], keys).map_err(arrow)?;
                        (group, batch, compare)
                    }
                };
                let (_, batch, compare) = last.insert(open);
                let at = first_that(batch.num_rows(), |at| compare.compare(at, row) != Ordering::Less);
                if at < batch.num_rows() && compare.compare(at, row) == Ordering::Equal {
                    found[row] = Some(Found { batch: Arc::clone(batch), row: at });
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The row groups that can hold a key, judged by its first column.
    fn candidates(&self, keys: &ArrayRef, row: usize) -> Result<std::ops::Range<usize>, ArrowError> {
        let groups = self.groups();
        if self.least.null_count() + self.greatest.null_count() > 0 {
            return Ok(0..groups);
        }
        let least = make_comparator(&self.least, keys, SortOptions::default())?;
        let greatest = make_comparator(&self.greatest, keys, SortOptions::default())?;
        let first = first_that(groups, |group| greatest(group, row) != Ordering::Less);
        Ok(first..first_that(groups, |group| least(group, row) == Ordering::Greater).max(first))
    }

    /// The row group in which the rows after a key begin.
    pub fn group_after(&self, keys: &[ArrayRef]) -> Result<usize, Error> {
        Ok(self.candidates(&keys[0], 0).map_err(|e| self.damaged(e.to_string()))?.start)
    }

    /// The first row of a batch that comes after a key, or the number of rows.
    pub fn first_after(&self, batch: &RecordBatch, keys: &[ArrayRef]) -> Result<usize, Error> {
        let compare = Order::of(&batch.columns()[..self.keys], keys).map_err(|e| self.damaged(e.to_string()))?;
        Ok(first_that(batch.num_rows(), |row| compare.compare(row, 0) == Ordering::Greater))
    }
}

/// The first of sorted rows that satisfies a condition, or their number.
fn first_that(rows: usize, condition: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, rows);
    while low < high {
        let middle = low + (high - low) / 2;
        if condition(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// Compares keys of two lists of columns.
pub struct Order(Vec<DynComparator>);

impl Order {
    pub fn of(a: &[ArrayRef], b: &[ArrayRef]) -> Result<Self, ArrowError> {
        let columns = a.iter().zip(b);
        columns.map(|(a, b)| make_comparator(a, b, SortOptions::default())).collect::<Result<_, _>>().map(Self)
    }

    pub fn compare(&self, a: usize, b: usize) -> Ordering {
        self.0.iter().fold(Ordering::Equal, |order, compare| order.then_with(|| compare(a, b)))
    }
}

/// The columns of members as they are shown: keys, features, `cluster`, `description`, `distance`, `previous`.
pub fn shown_schema(stored: &Schema) -> SchemaRef {
    let mut fields: Vec<Arc<Field>> = stored.fields().iter().cloned().collect();
    fields.insert(fields.len() - 2, Arc::new(Field::new(DESCRIPTION, DataType::Utf8, false)));
    Arc::new(Schema::new(fields))
}

/// A batch of members with the descriptions of their clusters.
pub fn shown(batch: &RecordBatch, descriptions: &[&str]) -> Result<RecordBatch, ArrowError> {
    let clusters = clusters(batch).ok_or_else(|| ArrowError::SchemaError("members without a cluster".to_owned()))?;
    let text = |cluster: &u32| descriptions.get(*cluster as usize).copied().unwrap_or_default();
    let text: StringArray = clusters.values().iter().map(|cluster| Some(text(cluster))).collect();
    let mut columns = batch.columns().to_vec();
    columns.insert(columns.len() - 2, Arc::new(text));
    RecordBatch::try_new(shown_schema(&batch.schema()), columns)
}

/// The clusters of a batch of members.
pub fn clusters(batch: &RecordBatch) -> Option<&UInt32Array> {
    batch.column_by_name(COLUMNS[0])?.as_primitive_opt::<UInt32Type>()
}

/// The text of a key's value in JSON; `None` for null, arrays and objects.
pub fn key_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A value of a key column as JSON: a number, a boolean, or text; `None` if it is NULL.
pub fn key_value(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    if let Some(text) = column.as_string_view_opt() {
        return Some(text.value(row).into());
    }
    if let Some(flags) = column.as_boolean_opt() {
        return Some(flags.value(row).into());
    }
    let text = ArrayFormatter::try_new(column, &FormatOptions::default()).ok()?.value(row).try_to_string().ok()?;
    if !column.data_type().is_integer() {
        return Some(text.into());
    }
    match text.parse::<i64>() {
        Ok(number) => Some(number.into()),
        Err(_) => text.parse::<u64>().ok().map(Value::from),
    }
}

/// Row groups of members files that were read last, within a number of bytes.
#[derive(Debug)]
pub struct GroupCache {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    groups: HashMap<(u64, usize), (Arc<RecordBatch>, u64)>,
    bytes: usize,
    clock: u64,
}

impl GroupCache {
    /// A cache of at most this many bytes.
    pub fn new(most: usize) -> Self {
        Self { most, held: Mutex::default() }
    }

    fn get(&self, key: (u64, usize)) -> Option<Arc<RecordBatch>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.clock += 1;
        let clock = held.clock;
        let (batch, used) = held.groups.get_mut(&key)?;
        *used = clock;
        Some(Arc::clone(batch))
    }

    fn put(&self, key: (u64, usize), batch: &Arc<RecordBatch>) {
        let bytes = batch.get_array_memory_size();
        if bytes > self.most {
            return;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.bytes + bytes > self.most {
            let Some(oldest) = held.groups.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key) else {
                break;
            };
            held.bytes -= held.groups.remove(&oldest).map_or(0, |(batch, _)| batch.get_array_memory_size());
        }
        let clock = held.clock;
        if held.groups.insert(key, (Arc::clone(batch), clock)).is_none() {
            held.bytes += bytes;
        }
    }
}
