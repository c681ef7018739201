//! Intermediate files between queries.

use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, UInt64Type};
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::error::Result;
use datafusion::prelude::SessionContext;

/// Rows per row group. A task reads one or several row groups.
const ROW_GROUP: usize = 131_072;

/// Writes the rows of a statement to one Parquet file at this URL, in order, on the executors. Returns the number of rows. A
/// repeated call writes an identical file.
///
/// # Errors
/// The error of the statement, or of the file.
pub async fn write(ctx: &SessionContext, sql: &str, url: &str) -> Result<u64> {
    // Options of a COPY are lost on the way to a scheduler, these are not. The file is read a few times and then
    // deleted.
    let mut options = TableParquetOptions::default();
    options.global.compression = Some("lz4_raw".to_owned());
    options.global.dictionary_enabled = Some(false);
    options.global.max_row_group_size = ROW_GROUP;
    let one = DataFrameWriteOptions::new().with_single_file_output(true);
    let written = ctx.sql(sql).await?.write_parquet(url, one, Some(options)).await?;
    let mut rows = 0;
    for batch in written {
        let counts = cast(batch.column(0), &DataType::UInt64)?;
        rows += counts.as_primitive::<UInt64Type>().iter().flatten().sum::<u64>();
    }
    Ok(rows)
}
