//! The table `records`: all files of a snapshot under the fields that are declared now.
//!
//! Input: a snapshot, whose files may have been written while `00_records.sql` declared other fields, and the fields of
//! today. Output: one table. A field that was declared later is looked for in `_extra` of the older files, by the decoder
//! that would have found it in the message; one that is declared no more goes there, as JSON text.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray, StringBuilder, StructArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Fields as Columns};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::functions::core::expr_fn::get_field;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::{SessionContext, ident};

use super::{Error, explain, listing_url};
use crate::batch;
use crate::record::{self, Fields};
use crate::store::{DataFile, Place, Snapshot};

/// What a record holds beside the declared fields.
const EXTRA: &str = "_extra";
/// A column on the way: what became of `_extra`, and the fields found in it.
const MOVED: &str = "_moved";

/// The records of these files.
pub fn table(ctx: &SessionContext, snapshot: &Snapshot, fields: &Fields) -> Result<Arc<dyn TableProvider>, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    #[cfg(feature = "object-stores")]
    super::known::register(ctx, &snapshot.files).map_err(Error::Query)?;
    // By fields and by place: a part of a file that was copied is on this machine's disk.
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
        [(had, files)] if *had == fields => return listing(files, had),
        _ => {}
    }
    let mut all: Option<DataFrame> = None;
    for (had, files) in groups {
        let group = ctx.read_table(listing(&files, had)?).map_err(query)?;
        let group = reshaped(group, had, fields).map_err(query)?;
        all = Some(match all {
            Some(before) => before.union(group).map_err(query)?,
            None => group,
        });
    }
    all.map(DataFrame::into_view).ok_or_else(|| Error::Query("there are no files".to_owned()))
}

/// Files that were written with the same fields.
fn listing(files: &[&DataFile], had: &Fields) -> Result<Arc<dyn TableProvider>, Error> {
    let mut urls = Vec::with_capacity(files.len());
    for file in files {
        let url = file_url(file);
        urls.push(url.map_err(|why| Error::File { path: file.path.clone(), why })?);
    }
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    let schema = batch::schema(had);
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    Ok(Arc::new(ListingTable::try_new(config).map_err(|e| Error::Query(explain(&e)))?))
}

/// Where a query finds a file.
fn file_url(file: &DataFile) -> Result<ListingTableUrl, String> {
    match &file.place {
        Place::Disk => listing_url(&file.path),
        #[cfg(feature = "object-stores")]
        Place::Objects(_) => ListingTableUrl::parse(super::known::url(file)?).map_err(|e| explain(&e)),
    }
}

/// Records that had these fields, with the fields that are wanted.
fn reshaped(records: DataFrame, had: &Fields, wanted: &Fields) -> DataFusionResult<DataFrame> {
    let (added, gone) = (had.missing(wanted), wanted.missing(had));
    let mut columns: Vec<Expr> = batch::schema(wanted).fields().iter().map(|field| ident(field.name())).collect();
    if added.is_empty() && gone.is_empty() {
        return records.select(columns);
    }
    let mut inner: Vec<Expr> = batch::schema(had).fields().iter().map(|field| ident(field.name())).collect();
    let arguments = std::iter::once(EXTRA).chain(gone.iter().map(String::as_str)).map(ident).collect();
    for column in &mut columns {
        if let Expr::Column(name) = column
            && (name.name == EXTRA || added.contains(&name.name))
        {
            let name = name.name.clone();
            *column = get_field(ident(MOVED), name.clone()).alias(name);
        }
    }
    inner.push(ScalarUDF::new_from_impl(Move::new(added, gone)).call(arguments).alias(MOVED));
    records.select(inner)?.select(columns)
}

/// `_extra` and the texts of fields that are declared no more, to `_extra` with those and the fields declared since, taken
/// out of it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Move {
    added: Vec<String>,
    gone: Vec<String>,
    signature: Signature,
}

impl Move {
    fn new(added: Vec<String>, gone: Vec<String>) -> Self {
        let signature = Signature::any(1 + gone.len(), Volatility::Immutable);
        Self { added, gone, signature }
    }

    fn columns(&self) -> Columns {
        let names = self.added.iter().map(String::as_str).chain([EXTRA]);
        names.map(|name| Field::new(name, DataType::Utf8, true)).collect()
    }
}

impl ScalarUDFImpl for Move {
    fn name(&self) -> &'static str {
        "move_fields"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Struct(self.columns()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        let texts = ColumnarValue::values_to_arrays(&args.args)?;
        let texts = texts.iter().map(|text| Ok(cast(text, &DataType::Utf8)?.as_string::<i32>().clone()));
        let texts = texts.collect::<DataFusionResult<Vec<StringArray>>>()?;
        let [extra, gone @ ..] = texts.as_slice() else {
            return Err(DataFusionError::Internal("move_fields without a column".to_owned()));
        };
        let fields = Fields::new(self.added.clone());
        let mut found: Vec<StringBuilder> = self.added.iter().map(|_| StringBuilder::new()).collect();
        let mut rest = StringBuilder::new();
        for row in 0..extra.len() {
            let before = extra.is_valid(row).then(|| extra.value(row));
            // What could not be read when it came has no fields now either.
            let decoded = before.and_then(|text| record::decode(Some(text.as_bytes()), &fields).ok());
            for (i, column) in found.iter_mut().enumerate() {
                column.append_option(decoded.as_ref().and_then(|decoded| decoded.values[i].as_deref()));
            }
            let left = decoded.as_ref().map(|decoded| decoded.extra.as_ref()).or(before);
            rest.append_option(left.map(|left| self.with_gone(left, gone, row)));
        }
        let mut columns: Vec<ArrayRef> = found.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        columns.push(Arc::new(rest.finish()));
        Ok(ColumnarValue::Array(Arc::new(StructArray::try_new(self.columns(), columns, None)?)))
    }
}

impl Move {
    /// The object with what a row holds of fields that are declared no more.
    fn with_gone(&self, object: &str, gone: &[StringArray], row: usize) -> String {
        let object = object.trim_end();
        let mut text = object.strip_suffix('}').unwrap_or(object).to_owned();
        for (name, values) in self.gone.iter().zip(gone) {
            if values.is_valid(row) {
                let comma = if text.ends_with('{') { "" } else { "," };
                let (name, value) = (serde_json::json!(name), serde_json::json!(values.value(row)));
                text.push_str(&format!("{comma}{name}:{value}"));
            }
        }
        text + "}"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::config::ConfigOptions;

    fn moved(added: &[&str], gone: &[(&str, Option<&str>)], extra: Option<&str>) -> Vec<Option<String>> {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let names: Vec<&str> = gone.iter().map(|(name, _)| *name).collect();
        let function = Move::new(texts(added), texts(&names));
        let values = std::iter::once(extra).chain(gone.iter().map(|(_, value)| *value));
        let args = values.map(|value| ColumnarValue::Array(Arc::new(StringArray::from(vec![value])))).collect();
        let return_field = Arc::new(Field::new(MOVED, DataType::Struct(function.columns()), true));
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
            moved(&["a", "b", "c", "d", "x"], &[], extra),
            [some("1.50"), some("text"), None, some(r#"{"e":[1]}"#), None, some(r#"{"f":"stays"}"#)]
        );
        assert_eq!(moved(&["a"], &[], None), [None, None]);
    }

    #[test]
    fn a_field_taken_out_goes_to_extra() {
        let gone = [("old", Some("it's \"quoted\"")), ("none", None)];
        let one = |extra| moved(&[], &gone, Some(extra)).remove(0).unwrap();
        assert_eq!(one("{}"), r#"{"old":"it's \"quoted\""}"#);
        assert_eq!(one(r#"{"a":{"b":{}}}"#), r#"{"a":{"b":{}},"old":"it's \"quoted\""}"#);
        assert_eq!(moved(&[], &gone, None), [None]);
    }
}
