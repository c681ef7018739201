//! The user's files as tables: `--table`, `.add`, reference data.

use std::path::Path;
use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::datasource::file_format::options::ReadOptions as _;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::DataFusionError;
use datafusion::prelude::{CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionContext};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use tercile_store::scheme;
use url::Url;

use super::{Error, explain, file_table, leading_zeros, tables};
use crate::file_format::{self, Format};
use crate::files;
use crate::sql;

/// Number of rows of a text file used to infer column types.
const INFERRED: usize = 1_000_000;

/// Registers a file of this machine as a table of this process. Its format is determined by its first bytes and its name.
///
/// # Errors
/// If the file cannot be read, or if there is a table or view of this name.
pub async fn add_local_file(
    ctx: &SessionContext,
    name: &str,
    path: &Path,
    options: &files::Options,
) -> Result<(), Error> {
    if tables(ctx).iter().any(|known| known == name) {
        let why = format!("there is a table or view {name} already; choose another name");
        return Err(Error::Table { path: path.to_owned(), why });
    }
    let (path, options) = (path.to_owned(), options.clone());
    let table = move || -> Result<_, files::Error> {
        let source = files::Source::named(&path)?.rereadable()?;
        let opened = files::open(&source, &options)?;
        let format = opened.format;
        drop(opened);
        Ok(match (format, source) {
            (Format::Parquet, files::Source::File(path)) => Err(path),
            (Format::Parquet, source) => {
                return Err(files::Fault::whole("Parquet must be one file with a name").at(&source.name()));
            }
            (_, source) => Ok(file_table::table(source, options)?),
        })
    };
    let table = tokio::task::spawn_blocking(table).await.map_err(|e| Error::Query(e.to_string()))??;
    match table {
        Ok(table) => {
            let name = TableReference::bare(name);
            ctx.register_table(name, Arc::new(table)).map(drop).map_err(|e| Error::Query(explain(&e)))
        }
        Err(path) => add_file(ctx, name, &path).await,
    }
}

/// Registers a file as a table: Parquet, CSV, TSV or NDJSON, determined by its extension. Types of CSV columns are
/// inferred; columns with leading zeros are text. The file may be in an object store, or read by executors.
pub async fn add_file(ctx: &SessionContext, name: &str, path: &Path) -> Result<(), Error> {
    let fault = |why: String| Error::Table { path: path.to_owned(), why };
    if scheme(path).is_none() {
        std::fs::metadata(path).map_err(|e| fault(e.to_string()))?;
    }
    if tables(ctx).iter().any(|known| known == name) {
        return Err(fault(format!("there is a table or view {name} already; choose another name")));
    }
    let listing = listing_url(path).map_err(fault)?;
    let url = listing.as_str();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let dotted = format!(".{ending}");
    let table = TableReference::bare(name);
    let added = match file_format::name_of(path) {
        Some("parquet") => {
            if scheme(path).is_none() && path.is_file() {
                check_parquet(path).map_err(fault)?;
            }
            ctx.register_parquet(table, url, ParquetReadOptions::default().file_extension(&dotted)).await
        }
        Some("csv") => add_csv(ctx, table, &listing, &dotted, b',').await,
        Some("tsv") => add_csv(ctx, table, &listing, &dotted, b'\t').await,
        Some("ndjson" | "json") => {
            let options = JsonReadOptions::default().file_extension(&dotted).schema_infer_max_records(INFERRED);
            ctx.register_json(table, url, options).await
        }
        _ => {
            return Err(fault(
                "expected a name that ends in .parquet, .csv, .tsv, .ndjson, .jsonl or .json".to_owned(),
            ));
        }
    };
    added.map_err(|e| fault(explain(&e)))
}

/// Checks that the columns of a Parquet file have different names, which the engine would merge.
fn check_parquet(path: &Path) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let metadata =
        ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).map_err(|e| sql::one_line(&e.to_string()))?;
    files::check_names(metadata.schema()).map_err(|fault| fault.to_string())
}

/// A table of CSV files with a header. `ending` is the file extension with its dot.
async fn add_csv(
    ctx: &SessionContext,
    table: TableReference,
    url: &ListingTableUrl,
    ending: &str,
    delimiter: u8,
) -> Result<(), DataFusionError> {
    let options = CsvReadOptions::new()
        .delimiter(delimiter)
        .file_extension(ending)
        .schema_infer_max_records(INFERRED)
        .newlines_in_values(true);
    let inferred = options.get_resolved_schema(&ctx.copied_config(), ctx.state(), url.clone()).await?;
    let schema = leading_zeros::as_text(ctx, &inferred, url, ending, delimiter).await?;
    ctx.register_csv(table, url.as_str(), options.schema(&schema)).await
}

pub(super) fn listing_url(path: &Path) -> Result<ListingTableUrl, String> {
    if scheme(path).is_some() {
        return ListingTableUrl::parse(path.to_string_lossy()).map_err(|e| explain(&e));
    }
    ListingTableUrl::parse(file_url(path)?).map_err(|e| explain(&e))
}

/// A path as a URL, so that none of its characters is interpreted as a pattern.
pub fn file_url(path: &Path) -> Result<Url, String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    let url = Url::from_file_path(&path).map_err(|()| "its path is no URL".to_owned())?;
    // Parsed again to remove `..` segments.
    Url::parse(url.as_str()).map_err(|e| e.to_string())
}
