//! Columns as text, where an output has no such values: times outside chrono's range, and nested values in CSV.
//!
//! Arrow formats times with chrono, whose years end at 262,142. For a later time it prints "ERROR: Cast error: …",
//! with quotes that break JSON, or fails. A topic may contain any 64-bit value as a time.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, FixedSizeListArray, GenericListArray, MapArray, OffsetSizeTrait,
    PrimitiveArray, RecordBatch, StringArray, StructArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Date64Type, Field, FieldRef, Float32Type, Float64Type, Schema, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampSecondType,
};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::json::writer::{LineDelimited, WriterBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use tercile_store::times::{civil, date};

/// Days since 1970 that are certainly inside chrono's range: about 250,000 years.
const DAYS: i64 = 91_000_000;

/// Replaces time columns that contain values outside chrono's range by text columns, and keys of maps that are no text by texts, at any
/// nesting level. Any other batch is returned unchanged.
///
/// # Errors
/// If a nested array cannot be reassembled, which would be a bug in this module.
pub fn readable(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<Option<ArrayRef>> = batch.columns().iter().map(column).collect::<Result<_, _>>()?;
    if columns.iter().all(Option::is_none) {
        return Ok(batch.clone());
    }
    let (mut fields, mut arrays) = (Vec::new(), Vec::new());
    for ((field, array), changed) in batch.schema().fields().iter().zip(batch.columns()).zip(columns) {
        let array = changed.unwrap_or_else(|| Arc::clone(array));
        fields.push(typed(field, &array));
        arrays.push(array);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

/// Replaces nested columns by text columns of JSON, because CSV has no nested values; also those of [`readable`]. NULL is empty.
///
/// # Errors
/// If an array cannot be formatted or reassembled, which would be a bug in this module.
pub fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let batch = readable(batch)?;
    if !batch.schema_ref().fields().iter().any(|field| field.data_type().is_nested()) {
        return Ok(batch);
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let column =
            if field.data_type().is_nested() { Arc::new(json(column)?) as ArrayRef } else { Arc::clone(column) };
        fields.push(typed(field, &column));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Each value as JSON.
fn json(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    const NAME: &str = "v";
    const BEFORE: usize = "{\"v\":".len();

    let rows = RecordBatch::try_from_iter_with_nullable([(NAME, Arc::clone(column), true)])?;
    let mut lines = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut lines);
    writer.write(&rows)?;
    writer.finish()?;
    drop(writer);
    // Line breaks inside texts are escaped.
    let lines = String::from_utf8(lines).map_err(|e| ArrowError::JsonError(e.to_string()))?;
    let value = |(row, line): (usize, &str)| {
        let value = line.get(BEFORE..line.len().saturating_sub(1)).unwrap_or_default();
        column.is_valid(row).then(|| value.to_owned())
    };
    Ok(lines.lines().enumerate().map(value).collect())
}

/// The number of doubles and floats that JSON cannot express: infinite ones and NaN, which are null there.
pub fn not_finite(batch: &RecordBatch) -> usize {
    let count = |column: &ArrayRef| match column.data_type() {
        DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().filter(|x| !x.is_finite()).count(),
        DataType::Float32 => column.as_primitive::<Float32Type>().iter().flatten().filter(|x| !x.is_finite()).count(),
        _ => 0,
    };
    batch.columns().iter().map(count).sum()
}

/// The same field with the type of `array`.
fn typed(field: &FieldRef, array: &ArrayRef) -> FieldRef {
    Arc::new(Field::new(field.name(), array.data_type().clone(), true))
}

/// The column as text or with text inside; `None` if all its values can be formatted unchanged.
fn column(array: &ArrayRef) -> Result<Option<ArrayRef>, ArrowError> {
    Ok(match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, zone) => times::<TimestampSecondType>(array, 0, zone.is_some()),
        DataType::Timestamp(TimeUnit::Millisecond, zone) => times::<TimestampMillisecondType>(array, 3, zone.is_some()),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => times::<TimestampMicrosecondType>(array, 6, zone.is_some()),
        DataType::Date32 => texts(array, array.as_primitive::<Date32Type>(), |days| {
            let days = i64::from(days);
            (days.abs() > DAYS).then(|| date(i128::from(days)))
        }),
        DataType::Date64 => texts(array, array.as_primitive::<Date64Type>(), |millis| {
            let days = millis.div_euclid(86_400_000);
            (days.abs() > DAYS).then(|| civil(i128::from(millis), 3))
        }),
        DataType::Struct(fields) => {
            let inner = array.as_struct();
            let changed: Vec<_> = inner.columns().iter().map(column).collect::<Result<_, _>>()?;
            if changed.iter().all(Option::is_none) {
                return Ok(None);
            }
            let arrays: Vec<ArrayRef> =
                inner.columns().iter().zip(changed).map(|(old, new)| new.unwrap_or_else(|| Arc::clone(old))).collect();
            let fields: Vec<FieldRef> = fields.iter().zip(&arrays).map(|(field, array)| typed(field, array)).collect();
            Some(Arc::new(StructArray::try_new(fields.into(), arrays, inner.nulls().cloned())?) as ArrayRef)
        }
        DataType::List(field) => list::<i32>(array, field)?,
        DataType::LargeList(field) => list::<i64>(array, field)?,
        DataType::FixedSizeList(field, size) => {
            let inner = array.as_fixed_size_list();
            let Some(values) = column(inner.values())? else { return Ok(None) };
            let nulls = inner.nulls().cloned();
            Some(Arc::new(FixedSizeListArray::try_new(typed(field, &values), *size, values, nulls)?) as ArrayRef)
        }
        DataType::Map(field, sorted) => {
            let inner = array.as_map();
            let entries = match text_keys(inner.entries())? {
                Some(entries) => column(&entries)?.unwrap_or(entries),
                None => match column(&(Arc::new(inner.entries().clone()) as ArrayRef))? {
                    Some(entries) => entries,
                    None => return Ok(None),
                },
            };
            let keyed = Arc::new(Field::new(field.name(), entries.data_type().clone(), false));
            let (offsets, nulls) = (inner.offsets().clone(), inner.nulls().cloned());
            Some(Arc::new(MapArray::try_new(keyed, offsets, entries.as_struct().clone(), nulls, *sorted)?) as ArrayRef)
        }
        DataType::Dictionary(_, values) if values.is_temporal() => {
            let plain = cast(array, values)?;
            column(&plain)?
        }
        _ => None,
    })
}

/// The entries of a map whose keys are no text with keys that are, as objects of JSON have.
fn text_keys(entries: &StructArray) -> Result<Option<ArrayRef>, ArrowError> {
    let keys = entries.column(0);
    if matches!(keys.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        return Ok(None);
    }
    let keys = cast(keys, &DataType::Utf8)?;
    let (key, value) = (&entries.fields()[0], &entries.fields()[1]);
    let key = Arc::new(Field::new(key.name(), DataType::Utf8, false));
    let columns = vec![keys, Arc::clone(entries.column(1))];
    let entries = StructArray::try_new(vec![key, Arc::clone(value)].into(), columns, entries.nulls().cloned())?;
    Ok(Some(Arc::new(entries)))
}

fn list<O: OffsetSizeTrait>(array: &ArrayRef, field: &FieldRef) -> Result<Option<ArrayRef>, ArrowError> {
    let inner = array.as_list::<O>();
    let Some(values) = column(inner.values())? else { return Ok(None) };
    let (offsets, nulls) = (inner.offsets().clone(), inner.nulls().cloned());
    Ok(Some(Arc::new(GenericListArray::<O>::try_new(typed(field, &values), offsets, values, nulls)?)))
}

fn times<T: ArrowPrimitiveType<Native = i64>>(array: &ArrayRef, decimals: u32, zoned: bool) -> Option<ArrayRef> {
    let per_day = 86_400 * 10_i64.pow(decimals);
    texts(array, array.as_primitive::<T>(), |value| {
        let far = value.div_euclid(per_day).abs() > DAYS;
        far.then(|| format!("{}{}", civil(i128::from(value), decimals), if zoned { "Z" } else { "" }))
    })
}

/// The column as text, if `far` formats at least one of its values.
fn texts<T: ArrowPrimitiveType>(
    array: &ArrayRef,
    values: &PrimitiveArray<T>,
    far: impl Fn(T::Native) -> Option<String>,
) -> Option<ArrayRef> {
    if !values.iter().flatten().any(|value| far(value).is_some()) {
        return None;
    }
    let options = FormatOptions::default();
    let formatter = ArrayFormatter::try_new(array, &options).ok()?;
    let text = |(row, value): (usize, Option<T::Native>)| {
        value.map(|value| far(value).unwrap_or_else(|| formatter.value(row).to_string()))
    };
    Some(Arc::new(values.iter().enumerate().map(text).collect::<StringArray>()))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{
        Date32Array, Date64Array, Int64Builder, ListArray, MapBuilder, StringBuilder, TimestampMillisecondArray,
        TimestampSecondArray,
    };
    use datafusion::arrow::datatypes::Int64Type;
    use datafusion::arrow::json::LineDelimitedWriter;

    use super::*;

    #[test]
    fn nested_values_are_json_in_csv() {
        let lists =
            ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1), None]), Some(vec![]), None]);
        let mut maps = MapBuilder::new(None, Int64Builder::new(), StringBuilder::new());
        maps.keys().append_value(7);
        maps.values().append_value("a \"b\"\nc");
        maps.append(true).unwrap();
        maps.append(true).unwrap();
        maps.append(false).unwrap();
        let columns: Vec<(&str, ArrayRef)> = vec![("lists", Arc::new(lists)), ("maps", Arc::new(maps.finish()))];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let flat = flat(&batch).unwrap();
        let texts = |column: usize| flat.column(column).as_string::<i32>().iter().collect::<Vec<_>>();
        assert_eq!(texts(0), [Some("[1,null]"), Some("[]"), None]);
        assert_eq!(texts(1), [Some(r#"{"7":"a \"b\"\nc"}"#), Some("{}"), None]);
    }

    #[test]
    fn every_time_is_valid_json_whatever_its_bits() {
        let zoned = TimestampMillisecondArray::from(vec![Some(i64::MAX), None, Some(0)]).with_timezone("UTC");
        let listed = ListArray::from_iter_primitive::<TimestampMillisecondType, _, _>(vec![
            Some(vec![Some(i64::MIN), None]),
            None,
            Some(vec![Some(1000)]),
        ]);
        let seconds: ArrayRef = Arc::new(TimestampSecondArray::from(vec![i64::MIN, 0, i64::MAX]));
        let nested = StructArray::from(vec![(Arc::new(Field::new("t", seconds.data_type().clone(), true)), seconds)]);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("zoned", Arc::new(zoned)),
            ("listed", Arc::new(listed)),
            ("nested", Arc::new(nested)),
            ("days", Arc::new(Date32Array::from(vec![i32::MAX, 0, i32::MIN]))),
            ("millis", Arc::new(Date64Array::from(vec![i64::MAX, 0, i64::MIN]))),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
        let mut bytes = Vec::new();
        let mut writer = LineDelimitedWriter::new(&mut bytes);
        writer.write(&readable(&batch).unwrap()).unwrap();
        writer.finish().unwrap();
        let lines: Vec<serde_json::Value> =
            String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert!(!lines.iter().any(|line| line.to_string().contains("ERROR")), "{lines:?}");
        assert_eq!(lines[0]["zoned"], "+292278994-08-17T07:12:55.807Z");
        assert_eq!(lines[2]["zoned"], "1970-01-01T00:00:00Z");
        assert_eq!(lines[0]["listed"][0], "-292275055-05-16T16:47:04.192");
        assert_eq!(lines[0]["nested"]["t"], "-292277022657-01-27T08:29:52");
        assert_eq!(lines[0]["days"], "+5881580-07-11");
        let plain = RecordBatch::try_from_iter([("a", Arc::new(Date32Array::from(vec![1])) as ArrayRef)]).unwrap();
        assert_eq!(readable(&plain).unwrap(), plain);
    }
}
