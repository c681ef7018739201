//! Types of columns that Parquet keeps for all of its readers.
//!
//! Parquet has times in milliseconds, microseconds and nanoseconds. The writer stores others as plain integers and their type in a note that
//! only readers of Arrow know, so that other programs would see numbers. Here times in seconds, and dates in milliseconds, become times in
//! milliseconds, at any nesting level.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::error::ArrowError;

/// The schema of the file.
pub fn schema(schema: &SchemaRef) -> SchemaRef {
    let fields = fields(schema.fields());
    if fields == *schema.fields() {
        Arc::clone(schema)
    } else {
        Arc::new(Schema::new_with_metadata(fields, schema.metadata.clone()))
    }
}

/// The rows with the types of the file's schema.
///
/// # Errors
/// If a time in seconds is out of range in milliseconds, 292 million years from now.
pub fn batch(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = schema(batch.schema_ref());
    if schema == *batch.schema_ref() {
        return Ok(batch.clone());
    }
    // A value that does not fit is an error, not NULL.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let column = |(column, field): (&ArrayRef, &FieldRef)| match column.data_type() == field.data_type() {
        true => Ok(Arc::clone(column)),
        false => cast_with_options(column, field.data_type(), &options),
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(column).collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema, columns)
}

fn fields(fields: &Fields) -> Fields {
    fields.iter().map(field).collect()
}

fn field(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_data_type(kind(field.data_type())))
}

fn kind(of: &DataType) -> DataType {
    match of {
        DataType::Timestamp(TimeUnit::Second, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone.clone()),
        DataType::Time32(TimeUnit::Second) => DataType::Time32(TimeUnit::Millisecond),
        DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::List(item) => DataType::List(field(item)),
        DataType::LargeList(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(inner) => DataType::Struct(fields(inner)),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Date64Array, Int64Array, ListArray, TimestampSecondArray};
    use datafusion::arrow::datatypes::TimestampSecondType;
    use parquet::arrow::ArrowWriter;
    use parquet::basic::LogicalType;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};

    use super::*;

    #[test]
    fn every_time_has_a_type_that_other_readers_know() {
        let seconds = TimestampSecondArray::from(vec![Some(1_704_189_600), None]).with_timezone("UTC");
        let listed = ListArray::from_iter_primitive::<TimestampSecondType, _, _>(vec![Some(vec![Some(1), None]), None]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("seconds", Arc::new(seconds)),
            ("listed", Arc::new(listed)),
            ("dates", Arc::new(Date64Array::from(vec![Some(86_400_000), None]))),
        ];
        let rows = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), schema(rows.schema_ref()), None).unwrap();
        writer.write(&batch(&rows).unwrap()).unwrap();
        let file = SerializedFileReader::new(bytes::Bytes::from(writer.into_inner().unwrap())).unwrap();
        for column in file.metadata().file_metadata().schema_descr().columns() {
            let kind = column.logical_type_ref();
            assert!(matches!(kind, Some(LogicalType::Timestamp { .. })), "{}: {kind:?}", column.name());
        }
        let far = RecordBatch::try_from_iter([("s", Arc::new(TimestampSecondArray::from(vec![i64::MAX])) as ArrayRef)]);
        assert!(batch(&far.unwrap()).is_err());
        let plain = RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        assert_eq!(batch(&plain).unwrap(), plain);
    }
}
