//! The table `records`: all files of a snapshot with the currently declared fields.
//!
//! Input: a snapshot, whose files may have been written while `00_records.sql` declared other fields, and the current
//! fields. Output: one table. A field declared later is extracted from `_extra` of older files with the decoder used
//! for messages. A field that is no longer declared is moved to `_extra` as JSON text.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray, StringBuilder, StructArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields as Columns};
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::prelude::{SessionContext, ident};
use tercile_store::batch;
use tercile_store::record::{self, Fields};
use tercile_store::{DataFile, Snapshot};

use super::cluster::Engine;
use super::pruned_table::PrunedTable;
use super::session::FOOTERS;
use super::{Error, explain, sized_store};
use crate::slices::Cut;

/// The column with the undeclared fields of a record.
const EXTRA: &str = "_extra";
/// Temporary column: the new `_extra` and the fields extracted from it.
const MOVED: &str = "_moved";

/// The records of these files.
pub fn table(ctx: &SessionContext, snapshot: &Snapshot, fields: &Fields) -> Result<Arc<dyn TableProvider>, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    sized_store::register(ctx, &snapshot.files).map_err(Error::Query)?;
    // Grouped by fields and by location: a copied part of a file is on the local disk.
    let mut groups: Vec<(&Fields, Vec<&DataFile>)> = Vec::new();
    for file in &snapshot.files {
        let with = |(had, group): &&mut (&Fields, Vec<&DataFile>)| {
            **had == *file.fields && group.first().is_none_or(|first| first.place == file.place)
        };
        match groups.iter_mut().find(with) {
            Some((_, group)) => group.push(file),
            None => groups.push((&file.fields, vec![file])),
        }
    }
    match groups.as_slice() {
        [] => return Ok(Arc::new(EmptyTable::new(batch::schema(fields)))),
        [(had, files)] if *had == fields => return listing(ctx, files, had),
        _ => {}
    }
    let mut all: Option<DataFrame> = None;
    for (had, files) in groups {
        let group = ctx.read_table(listing(ctx, &files, had)?).map_err(query)?;
        let group = reshaped(group, had, fields).map_err(query)?;
        all = Some(match all {
            Some(before) => before.union(group).map_err(query)?,
            None => group,
        });
    }
    all.map(DataFrame::into_view).ok_or_else(|| Error::Query("there are no files".to_owned()))
}

/// The records up to this one, in stream order.
pub(super) fn until(
    ctx: &SessionContext,
    records: Arc<dyn TableProvider>,
    end: Cut,
) -> DataFusionResult<Arc<dyn TableProvider>> {
    let (time, partition, offset) = (ident("_timestamp"), ident("_partition"), ident("_offset"));
    let within = partition
        .clone()
        .lt(lit(end.partition))
        .or(partition.eq(lit(end.partition)).and(offset.lt_eq(lit(end.offset))));
    let visible = match end.timestamp {
        None => time.is_null().and(within),
        Some(at) => {
            let at = lit(ScalarValue::TimestampMillisecond(Some(at), Some("UTC".into())));
            time.clone().is_null().or(time.clone().lt(at.clone())).or(time.eq(at).and(within))
        }
    };
    Ok(ctx.read_table(records)?.filter(visible)?.into_view())
}

/// Files that were written with the same fields.
fn listing(ctx: &SessionContext, files: &[&DataFile], had: &Fields) -> Result<Arc<dyn TableProvider>, Error> {
    // A cluster supports only DataFusion's own tables.
    let here = ctx.state().config().get_extension::<Engine>().is_none_or(|engine| *engine == Engine::Local);
    if here && files.len() > FOOTERS {
        return Ok(Arc::new(PrunedTable::new(files, batch::schema(had)).map_err(Error::Query)?));
    }
    let mut urls = Vec::with_capacity(files.len());
    for file in files {
        let url = sized_store::url(file).and_then(|url| ListingTableUrl::parse(url).map_err(|e| explain(&e)));
        urls.push(url.map_err(|why| Error::File { path: file.path.clone(), why })?);
    }
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    let schema = batch::schema(had);
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    Ok(Arc::new(ListingTable::try_new(config).map_err(|e| Error::Query(explain(&e)))?))
}

/// Converts records with the fields `had` to the fields `wanted`.
fn reshaped(records: DataFrame, had: &Fields, wanted: &Fields) -> DataFusionResult<DataFrame> {
    let (added, gone) = (had.missing(wanted), wanted.missing(had));
    let mut columns: Vec<Expr> = batch::schema(wanted).fields().iter().map(|field| ident(field.name())).collect();
    if added.is_empty() && gone.is_empty() {
        return records.select(columns);
    }
    let mut inner: Vec<Expr> = batch::schema(had).fields().iter().map(|field| ident(field.name())).collect();
    let names = [&added, &gone].map(|names| lit(serde_json::json!(names).to_string()));
    let texts = std::iter::once(EXTRA).chain(gone.iter().map(String::as_str)).map(ident);
    let arguments = names.into_iter().chain(texts).collect();
    for column in &mut columns {
        if let Expr::Column(name) = column
            && (name.name == EXTRA || added.contains(&name.name))
        {
            let name = name.name.clone();
            *column = get_field(ident(MOVED), name.clone()).alias(name);
        }
    }
    inner.push(function().call(arguments).alias(MOVED));
    records.select(inner)?.select(columns)
}

/// The function that moves fields. It depends only on its arguments, so that it can run in any process.
pub(super) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(Move { signature: Signature::variadic_any(Volatility::Immutable) })
}

/// Moves fields between columns and `_extra`. Arguments: the names of added fields and of removed fields, each as a
/// JSON list; `_extra`; the values of the removed fields. Result: `_extra` with the removed fields and without the
/// added ones, and the added fields.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Move {
    signature: Signature,
}

/// The columns of the result for these added fields.
fn moved(added: &[String]) -> Columns {
    let names = added.iter().map(String::as_str).chain([EXTRA]);
    names.map(|name| Field::new(name, DataType::Utf8, true)).collect()
}

fn names(list: Option<&ScalarValue>) -> DataFusionResult<Vec<String>> {
    let names = list.and_then(|list| serde_json::from_str(list.try_as_str()??).ok());
    names.ok_or_else(|| DataFusionError::Internal("move_fields without its lists of names".to_owned()))
}

impl ScalarUDFImpl for Move {
    fn name(&self) -> &'static str {
        "move_fields"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Err(DataFusionError::Internal("what move_fields gives depends on its lists of names".to_owned()))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> DataFusionResult<FieldRef> {
        let added = names(args.scalar_arguments.first().copied().flatten())?;
        Ok(Arc::new(Field::new(self.name(), DataType::Struct(moved(&added)), true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let [ColumnarValue::Scalar(added), ColumnarValue::Scalar(gone_names), texts @ ..] = args.args.as_slice() else {
            return Err(DataFusionError::Internal("move_fields without its lists of names".to_owned()));
        };
        let (added, gone_names) = (names(Some(added))?, names(Some(gone_names))?);
        let texts = ColumnarValue::values_to_arrays(texts)?;
        let texts = texts.iter().map(|text| Ok(cast(text, &DataType::Utf8)?.as_string::<i32>().clone()));
        let texts = texts.collect::<DataFusionResult<Vec<StringArray>>>()?;
        let [extra, gone @ ..] = texts.as_slice() else {
            return Err(DataFusionError::Internal("move_fields without a column".to_owned()));
        };
        let fields = Fields::new(added.clone());
        let mut found: Vec<StringBuilder> = added.iter().map(|_| StringBuilder::new()).collect();
        let mut rest = StringBuilder::new();
        for row in 0..extra.len() {
            let before = extra.is_valid(row).then(|| extra.value(row));
            // A payload that could not be decoded on arrival has no fields now either.
            let decoded = before.and_then(|text| record::decode(Some(text.as_bytes()), &fields).ok());
            for (i, column) in found.iter_mut().enumerate() {
                column.append_option(decoded.as_ref().and_then(|decoded| decoded.values[i].as_deref()));
            }
            let left = decoded.as_ref().map(|decoded| decoded.extra.as_ref()).or(before);
            rest.append_option(left.map(|left| with_gone(left, (&gone_names, gone), row)));
        }
        let mut columns: Vec<ArrayRef> = found.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        columns.push(Arc::new(rest.finish()));
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(moved(&added), columns, None)?)))
    }
}

/// The object with the values that a row has for removed fields.
fn with_gone(object: &str, (names, gone): (&[String], &[StringArray]), row: usize) -> String {
    let object = object.trim_end();
    let mut text = object.strip_suffix('}').unwrap_or(object).to_owned();
    for (name, values) in names.iter().zip(gone) {
        if values.is_valid(row) {
            let comma = if text.ends_with('{') { "" } else { "," };
            let (name, value) = (serde_json::json!(name), serde_json::json!(values.value(row)));
            text.push_str(&format!("{comma}{name}:{value}"));
        }
    }
    text + "}"
}

#[cfg(test)]
mod tests {
    use datafusion::config::ConfigOptions;

    use super::*;

    fn after(added: &[&str], gone: &[(&str, Option<&str>)], extra: Option<&str>) -> Vec<Option<String>> {
        let names: Vec<&str> = gone.iter().map(|(name, _)| *name).collect();
        let lists = [added, &names].map(|names| ScalarValue::from(serde_json::json!(names).to_string()));
        let values = std::iter::once(extra).chain(gone.iter().map(|(_, value)| *value));
        let texts = values.map(|value| ColumnarValue::Array(Arc::new(StringArray::from(vec![value]))));
        let function = function();
        let scalars: Vec<Option<&ScalarValue>> = lists.iter().map(Some).collect();
        let fields = ReturnFieldArgs { arg_fields: &[], scalar_arguments: &scalars };
        let return_field = function.return_field_from_args(fields).unwrap();
        let args = lists.iter().cloned().map(ColumnarValue::Scalar).chain(texts).collect();
        let config_options = Arc::new(ConfigOptions::default());
        let args = ScalarFunctionArgs { args, arg_fields: Vec::new(), number_rows: 1, return_field, config_options };
        let ColumnarValue::Array(answer) = function.invoke_with_args(args).unwrap() else { panic!("no array") };
        let columns = answer.as_struct().columns().iter().map(|column| column.as_string::<i32>());
        columns.map(|column| column.is_valid(0).then(|| column.value(0).to_owned())).collect()
    }

    #[test]
    fn a_new_field_is_found_in_extra_as_the_decoder_would_have_found_it() {
        let extra = Some(r#"{"a":1.50,"b":"te\u0078t","c":null,"d":{"e":[1]},"f":"stays"}"#);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            after(&["a", "b", "c", "d", "x"], &[], extra),
            [some("1.50"), some("text"), None, some(r#"{"e":[1]}"#), None, some(r#"{"f":"stays"}"#)]
        );
        assert_eq!(after(&["a"], &[], None), [None, None]);
    }

    #[test]
    fn a_field_taken_out_goes_to_extra() {
        let gone = [("old", Some("it's \"quoted\"")), ("none", None)];
        let one = |extra| after(&[], &gone, Some(extra)).remove(0).unwrap();
        assert_eq!(one("{}"), r#"{"old":"it's \"quoted\""}"#);
        assert_eq!(one(r#"{"a":{"b":{}}}"#), r#"{"a":{"b":{}},"old":"it's \"quoted\""}"#);
        assert_eq!(after(&[], &gone, None), [None]);
    }
}
