//! Finds the rows of a replayed file that the store already contains.
//!
//! Each replayed record has two headers, the file's hash and the row number. The stored rows are determined from
//! these headers, so an interrupted replay continues with exactly the missing rows, whatever was ingested in between.
//! Rows whose records were removed by retention are listed in `source.json`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use tercile_store::row_of;
use tercile_store::row_set::RowSet;

use crate::engine::{self, Error};

/// The stored rows of the file with this hash and this number of rows.
///
/// # Errors
/// If the query fails.
pub async fn stored_rows(ctx: &SessionContext, hash: &str, rows_of_file: u64) -> Result<RowSet, Error> {
    let query = |e| Error::Query(engine::explain(&e));
    let wanted = STANDARD.encode(hash);
    let sql = format!("SELECT _headers FROM records WHERE contains(_headers, '{wanted}')");
    let mut batches = engine::plan(ctx, &sql).await?.execute_stream().await.map_err(query)?;
    let mut rows = RowSet::default();
    while let Some(batch) = batches.next().await {
        let headers =
            cast(batch.map_err(query)?.column(0), &DataType::Utf8).map_err(|e| Error::Query(e.to_string()))?;
        for json in headers.as_string::<i32>().iter().flatten() {
            // Every writer of the topic can send any row number in a header.
            if let Some(row) = row_of(json, &wanted).filter(|row| *row < rows_of_file) {
                rows.insert(row);
            }
        }
    }
    Ok(rows)
}
