//! A file's rows as a stream: which of them the store holds already.
//!
//! Each replayed record carries two headers, the file's hash and its row. What is stored is read from those, so a replay
//! that was cut off goes on with just the rows that are missing, whatever came between them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;

use crate::broker::{FILE_HEADER, ROW_HEADER};
use crate::engine::{self, Error};
use crate::produce::RowSet;

/// The rows of the file with this hash that are stored.
pub async fn stored_rows(ctx: &SessionContext, hash: &str) -> Result<RowSet, Error> {
    let query = |e| Error::Query(engine::explain(&e));
    let wanted = STANDARD.encode(hash);
    let sql = format!("SELECT _headers FROM records WHERE contains(_headers, '{wanted}')");
    let mut batches = engine::plan(ctx, &sql).await?.execute_stream().await.map_err(query)?;
    let mut rows = RowSet::default();
    while let Some(batch) = batches.next().await {
        let headers =
            cast(batch.map_err(query)?.column(0), &DataType::Utf8).map_err(|e| Error::Query(e.to_string()))?;
        for json in headers.as_string::<i32>().iter().flatten() {
            if let Some(row) = row_of(json, &wanted) {
                rows.insert(row);
            }
        }
    }
    Ok(rows)
}

/// The row that headers name, if they name this file.
fn row_of(json: &str, wanted: &str) -> Option<u64> {
    let headers: Vec<(String, Option<String>)> = serde_json::from_str(json).ok()?;
    let value = |name: &str| headers.iter().find(|(header, _)| header == name)?.1.as_deref();
    if value(FILE_HEADER)? != wanted {
        return None;
    }
    String::from_utf8(STANDARD.decode(value(ROW_HEADER)?).ok()?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_name_a_row_of_a_file() {
        let hash = STANDARD.encode("abc");
        let json = format!(r#"[["x",null],["tercile-file","{hash}"],["tercile-row","{}"]]"#, STANDARD.encode("17"));
        assert_eq!(row_of(&json, &hash), Some(17));
        assert_eq!(row_of(&json, "other"), None);
        assert_eq!(row_of("[]", &hash), None);
        assert_eq!(row_of(r#"[["tercile-file",null]]"#, &hash), None);
    }
}
