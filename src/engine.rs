//! The one way to make a [`SessionContext`]: the store's records, and the SQL files as views on them.
//!
//! Input: a snapshot of the store and the SQL files. Output: a session whose tables are `records` and every view. Nobody
//! else knows what runs the queries.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::TableProvider;
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::batch;
use crate::record::Fields;
use crate::sql::{Files, RECORDS, Segmentation, View, one_line};
use crate::store::Snapshot;

/// The columns of a segmentation that are no features.
const KEYS: [&str; 4] = ["_partition", "_offset", "_timestamp", "_slice"];

/// The most features a segmentation may have.
pub const MAX_FEATURES: usize = 32;

/// What went wrong in a query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: {why}")]
    View { file: String, why: String },
    #[error("{0}")]
    Query(String),
    #[error("cannot read the store's file {path}: {why}", path = path.display())]
    File { path: PathBuf, why: String },
}

/// One line for people, without the engine's own prefixes.
pub fn explain(error: &DataFusionError) -> String {
    let text = one_line(&error.strip_backtrace());
    let plain = ["Error during planning: ", "Schema error: ", "Execution error: ", "SQL error: ", "Arrow error: "]
        .iter()
        .fold(text.as_str(), |text, prefix| text.strip_prefix(prefix).unwrap_or(text));
    plain.to_owned()
}

/// A session over these files of the store.
pub async fn open(snapshot: &Snapshot, files: &Files) -> Result<SessionContext, Error> {
    let config = SessionConfig::new().with_information_schema(true);
    let ctx = SessionContext::new_with_config(config);
    let query = |e: DataFusionError| Error::Query(explain(&e));
    ctx.register_table(RECORDS, records(snapshot, &files.fields)?).map_err(query)?;
    for view in files.views() {
        let fault = |e: DataFusionError| Error::View { file: view.file.clone(), why: explain(&e) };
        let frame = ctx.sql(&view.text).await.map_err(fault)?;
        ctx.register_table(view.name.as_str(), frame.into_view()).map_err(fault)?;
    }
    Ok(ctx)
}

fn records(snapshot: &Snapshot, fields: &Fields) -> Result<Arc<dyn TableProvider>, Error> {
    let schema = batch::schema(fields);
    if snapshot.files.is_empty() {
        return Ok(Arc::new(EmptyTable::new(schema)));
    }
    let fault = |path: &Path, why: String| Error::File { path: path.to_owned(), why };
    let mut urls = Vec::with_capacity(snapshot.files.len());
    for file in &snapshot.files {
        // As a URL, so that no character of the path is taken for a pattern.
        let path = std::path::absolute(&file.path).map_err(|e| fault(&file.path, e.to_string()))?;
        let url = url::Url::from_file_path(&path).map_err(|()| fault(&file.path, "its path is no URL".to_owned()))?;
        urls.push(ListingTableUrl::parse(url).map_err(|e| fault(&file.path, explain(&e)))?);
    }
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    let table = ListingTable::try_new(config).map_err(|e| Error::Query(explain(&e)))?;
    Ok(Arc::new(table))
}

/// Plans one statement.
pub async fn plan(ctx: &SessionContext, sql: &str) -> Result<DataFrame, Error> {
    ctx.sql(sql).await.map_err(|e| Error::Query(explain(&e)))
}

/// Runs one statement of our own and gives all rows as one batch.
pub async fn collect(ctx: &SessionContext, sql: &str) -> Result<RecordBatch, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    let frame = plan(ctx, sql).await?;
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.map_err(query)?;
    datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| Error::Query(e.to_string()))
}

/// The segmentations of these files, with the features that their views give.
pub async fn segmentations(ctx: &SessionContext, files: &Files) -> Result<Vec<Segmentation>, Error> {
    let mut all = Vec::new();
    for (view, k) in files.segmentations() {
        let fault = |why: String| Error::View { file: view.file.clone(), why };
        let table = ctx.table(view.name.as_str()).await.map_err(|e| fault(explain(&e)))?;
        let features = features(view, &table).map_err(fault)?;
        all.push(Segmentation {
            name: view.name.clone(),
            file: view.file.clone(),
            k,
            labels: view.header.labels.clone(),
            sql_hash: files.hash(&view.name),
            features,
        });
    }
    Ok(all)
}

fn features(view: &View, table: &DataFrame) -> Result<Vec<String>, String> {
    let schema = table.schema();
    for key in KEYS {
        if !schema.fields().iter().any(|field| field.name() == key) {
            return Err(format!("a segmentation must give {}; {key} is missing", KEYS.join(", ")));
        }
    }
    let mut features = Vec::new();
    for field in schema.fields().iter().filter(|field| !KEYS.contains(&field.name().as_str())) {
        let name = field.name();
        if !(field.data_type().is_numeric() || *field.data_type() == DataType::Null) {
            return Err(format!("the feature {name} must be a number, and is {}", field.data_type()));
        }
        if matches!(name.as_str(), "cluster" | "prediction") {
            return Err(format!("a feature may not be called {name}, which is what the answer is called"));
        }
        features.push(name.clone());
    }
    if features.is_empty() || features.len() > MAX_FEATURES {
        return Err(format!("a segmentation has 1 to {MAX_FEATURES} features; this one has {}", features.len()));
    }
    match view.header.labels.keys().find(|label| !features.contains(label)) {
        Some(label) => Err(format!("its header labels {label}, which is none of its features {}", features.join(", "))),
        None => Ok(features),
    }
}

/// A name as SQL wants it, whatever is in it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
