//! Collects records to a [`RecordBatch`], limited by rows, bytes or age.
//!
//! Pure: no clock, no broker and no disk. The caller passes the time and asks whether the batch is due.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayBuilder as _, ArrayRef, GenericByteBuilder, Int32Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow::datatypes::{BinaryType, ByteArrayType, Utf8Type};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::json_text;
use crate::record::{Decoded, Fields, Unreadable, WithoutFields};

/// A batch is full as soon as it reaches one of these limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Records.
    pub rows: usize,
    /// Bytes of keys, headers and values.
    pub bytes: usize,
    /// Time since the first record.
    pub age: Duration,
}

/// A message as received from the broker, not decoded.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, UTC.
    pub timestamp: Option<i64>,
    /// Key bytes.
    pub key: Option<&'a [u8]>,
    /// Value bytes; `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// The schema of every file of the store, for these declared fields.
pub fn schema(fields: &Fields) -> SchemaRef {
    let mut columns = vec![
        Field::new("_partition", DataType::Int32, false),
        Field::new("_offset", DataType::Int64, false),
        Field::new("_timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
        Field::new("_key", DataType::Binary, true),
        Field::new("_headers", DataType::Utf8, true),
    ];
    columns.extend(fields.names().iter().map(|name| Field::new(name, DataType::Utf8, true)));
    columns.push(Field::new("_extra", DataType::Utf8, true));
    columns.push(Field::new("_error", DataType::Utf8, true));
    columns.push(Field::new("_raw", DataType::Binary, true));
    Arc::new(Schema::new(columns))
}

/// Records of one partition that are not stored yet.
pub struct Batch {
    partition: i32,
    schema: SchemaRef,
    offsets: Int64Builder,
    timestamps: TimestampMillisecondBuilder,
    keys: Sparse<BinaryType>,
    headers: StringBuilder,
    values: Vec<Sparse<Utf8Type>>,
    extra: Sparse<Utf8Type>,
    errors: Sparse<Utf8Type>,
    raw: Sparse<BinaryType>,
    rows: usize,
    without_fields: WithoutFields,
    bytes: usize,
    /// When the first record came, and the offset after the last one.
    span: Option<(Instant, i64)>,
}

/// A column that is mostly null: nulls take no memory until a value comes.
struct Sparse<T: ByteArrayType>(GenericByteBuilder<T>);

impl<T: ByteArrayType<Offset = i32>> Sparse<T> {
    fn new() -> Self {
        Self(GenericByteBuilder::new())
    }

    fn fill(&mut self, rows: usize) {
        let missing = rows - self.0.len();
        self.0.append_nulls(missing);
    }

    /// Sets the value of this row.
    fn set(&mut self, row: usize, value: Option<impl AsRef<T::Native>>) {
        if let Some(value) = value {
            self.fill(row);
            self.0.append_value(value);
        }
    }

    fn finish(&mut self, rows: usize) -> ArrayRef {
        self.fill(rows);
        Arc::new(self.0.finish())
    }
}

/// A batch that is ready to be written.
pub struct Ready {
    /// The records, in the columns of [`schema`].
    pub records: RecordBatch,
    /// The position after the last record.
    pub next: i64,
    /// Numbers of records without fields.
    pub without_fields: WithoutFields,
    /// Bytes of keys, headers and values.
    pub bytes: usize,
}

impl Batch {
    /// An empty batch for one partition.
    pub fn new(partition: i32, fields: &Fields) -> Self {
        Self {
            partition,
            schema: schema(fields),
            offsets: Int64Builder::new(),
            timestamps: TimestampMillisecondBuilder::new().with_timezone("UTC"),
            keys: Sparse::new(),
            headers: StringBuilder::new(),
            values: fields.names().iter().map(|_| Sparse::new()).collect(),
            extra: Sparse::new(),
            errors: Sparse::new(),
            raw: Sparse::new(),
            rows: 0,
            without_fields: WithoutFields::default(),
            bytes: 0,
            span: None,
        }
    }

    /// Adds a record received at `now`. `headers` are names and values, in order.
    pub fn push<'h>(
        &mut self,
        record: &Record<'_>,
        headers: impl Iterator<Item = (Cow<'h, str>, Option<&'h [u8]>)>,
        decoded: &Result<Decoded<'_>, Unreadable>,
        now: Instant,
    ) {
        self.offsets.append_value(record.offset);
        self.timestamps.append_option(record.timestamp);
        let row = self.rows;
        self.keys.set(row, record.key);
        let mut headers = headers.peekable();
        let json = if headers.peek().is_none() { Cow::from("[]") } else { Cow::from(headers_json(headers)) };
        self.bytes += json.len() + record.key.map_or(0, <[u8]>::len) + record.payload.map_or(0, <[u8]>::len);
        self.headers.append_value(json);
        match decoded {
            Ok(decoded) => {
                for (column, value) in self.values.iter_mut().zip(&decoded.values) {
                    column.set(row, value.as_deref());
                }
                self.extra.set(row, Some(&*decoded.extra));
            }
            Err(reason) => {
                self.errors.set(row, Some(reason.to_string()));
                self.raw.set(row, record.payload);
                match reason {
                    Unreadable::Tombstone => self.without_fields.tombstones += 1,
                    _ => self.without_fields.unreadable += 1,
                }
            }
        }
        self.rows += 1;
        let first = self.span.map_or(now, |(first, _)| first);
        self.span = Some((first, record.offset + 1));
    }

    /// Number of records.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the batch has reached a limit at `now`.
    pub fn due(&self, limits: &Limits, now: Instant) -> bool {
        self.rows >= limits.rows
            || self.bytes >= limits.bytes
            || self.span.is_some_and(|(first, _)| now.saturating_duration_since(first) >= limits.age)
    }

    /// When the batch reaches its age limit; `None` if it is empty.
    pub fn due_at(&self, limits: &Limits) -> Option<Instant> {
        self.span.and_then(|(first, _)| first.checked_add(limits.age))
    }

    /// Takes the batch and starts a new one; `None` if it is empty.
    ///
    /// # Errors
    /// If Arrow cannot build the record batch.
    pub fn take(&mut self) -> Result<Option<Ready>, ArrowError> {
        let Some((_, next)) = self.span.take() else { return Ok(None) };
        let mut partitions = Int32Builder::with_capacity(self.rows);
        partitions.append_value_n(self.partition, self.rows);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(partitions.finish()),
            Arc::new(self.offsets.finish()),
            Arc::new(self.timestamps.finish()),
            self.keys.finish(self.rows),
            Arc::new(self.headers.finish()),
        ];
        columns.extend(self.values.iter_mut().map(|column| column.finish(self.rows)));
        columns.push(self.extra.finish(self.rows));
        columns.push(self.errors.finish(self.rows));
        columns.push(self.raw.finish(self.rows));
        let ready = Ready {
            records: RecordBatch::try_new(Arc::clone(&self.schema), columns)?,
            next,
            without_fields: std::mem::take(&mut self.without_fields),
            bytes: std::mem::take(&mut self.bytes),
        };
        self.rows = 0;
        Ok(Some(ready))
    }
}

/// `[[name, base64 or null], …]`
fn headers_json<'h>(headers: impl Iterator<Item = (Cow<'h, str>, Option<&'h [u8]>)>) -> String {
    let mut json = String::from("[");
    for (i, (name, value)) in headers.enumerate() {
        json.push_str(if i == 0 { "[" } else { ",[" });
        json_text::push_json_string(&mut json, &name);
        match value {
            Some(value) => {
                json.push_str(",\"");
                STANDARD.encode_string(value, &mut json);
                json.push_str("\"]");
            }
            None => json.push_str(",null]"),
        }
    }
    json.push(']');
    json
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;

    use super::*;
    use crate::record;

    fn push(batch: &mut Batch, fields: &Fields, offset: i64, payload: &[u8], now: Instant) {
        let record = Record { offset, timestamp: Some(1), key: None, payload: Some(payload) };
        batch.push(&record, std::iter::empty(), &record::decode(Some(payload), fields), now);
    }

    #[test]
    fn due_by_rows_bytes_or_age() {
        let fields = Fields::new(vec!["a".into()]);
        let limits = Limits { rows: 3, bytes: 100, age: Duration::from_secs(5) };
        let start = Instant::now();
        let mut batch = Batch::new(0, &fields);
        assert!(!batch.due(&limits, start + Duration::from_secs(99)), "an empty batch is never due");
        push(&mut batch, &fields, 0, b"{}", start);
        assert!(!batch.due(&limits, start));
        assert!(batch.due(&limits, start + Duration::from_secs(5)));
        assert_eq!(batch.due_at(&limits), Some(start + Duration::from_secs(5)));
        push(&mut batch, &fields, 1, b"{}", start);
        push(&mut batch, &fields, 2, b"{}", start);
        assert!(batch.due(&limits, start));
        batch.take().unwrap().unwrap();
        push(&mut batch, &fields, 3, &[b' '; 100], start);
        assert!(batch.due(&limits, start));
    }

    #[test]
    fn a_batch_holds_its_records_and_end_position() {
        let fields = Fields::new(vec!["a".into()]);
        let mut batch = Batch::new(7, &fields);
        assert!(batch.take().unwrap().is_none());
        let now = Instant::now();
        push(&mut batch, &fields, 10, br#"{"a":"x","b":1}"#, now);
        let record = Record { offset: 20, timestamp: None, key: Some(b"k"), payload: Some(b"\xff") };
        let headers = [(Cow::from("h"), Some(&b"v"[..])), (Cow::from("n\""), None)];
        batch.push(&record, headers.into_iter(), &record::decode(record.payload, &fields), now);
        let ready = batch.take().unwrap().unwrap();
        let one = WithoutFields { unreadable: 1, tombstones: 0 };
        assert_eq!((ready.next, ready.without_fields, ready.records.num_rows()), (21, one, 2));
        assert_eq!(ready.records.schema(), schema(&fields));
        let text = |name: &str| ready.records.column_by_name(name).unwrap().as_string::<i32>().clone();
        assert_eq!(text("a").value(0), "x");
        assert_eq!(text("_extra").value(0), r#"{"b":1}"#);
        assert_eq!(text("_headers").value(0), "[]");
        assert_eq!(text("_headers").value(1), r#"[["h","dg=="],["n\"",null]]"#);
        assert_eq!(text("_error").value(1), "bad UTF-8 at byte 0");
        assert_eq!(ready.records.column_by_name("_raw").unwrap().as_binary::<i32>().value(1), b"\xff");
        assert!(batch.take().unwrap().is_none());
    }
}
