//! Queries of this program on a session.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::SessionContext;

use super::{Damage, Error, explain, slice_cuts};
use crate::slices::Cut;

/// Evaluates filters while files are read, so that columns of rows that do not count are not decoded. This pays for filters that
/// leave few rows.
pub fn filter_while_reading(ctx: &SessionContext) {
    ctx.state_ref().write().config_mut().options_mut().execution.parquet.pushdown_filters = true;
}

/// The names of the tables and views of a session.
pub fn tables(ctx: &SessionContext) -> Vec<String> {
    let schemas = ctx.catalog_names().into_iter().filter_map(|catalog| ctx.catalog(&catalog)?.schema("public"));
    let mut names: Vec<String> = schemas.flat_map(|schema| schema.table_names()).collect();
    names.sort();
    names
}

/// Plans one statement.
pub async fn plan(ctx: &SessionContext, sql: &str) -> Result<DataFrame, Error> {
    ctx.sql(sql).await.map_err(|e| Error::Query(explain(&e)))
}

/// The damaged files of the store that the queries of a session came upon.
pub fn damage(ctx: &SessionContext) -> Arc<Damage> {
    ctx.state().config().get_extension().unwrap_or_default()
}

/// Runs an internal statement and streams its rows.
pub async fn stream(ctx: &SessionContext, sql: &str) -> Result<SendableRecordBatchStream, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    plan(ctx, sql).await?.execute_stream().await.map_err(query)
}

/// Runs an internal statement and returns all rows as one batch.
pub async fn collect(ctx: &SessionContext, sql: &str) -> Result<RecordBatch, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    let frame = plan(ctx, sql).await?;
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.map_err(query)?;
    datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| Error::Query(e.to_string()))
}

/// The last record of each slice that a session knows; none of an empty stream.
pub async fn cuts(ctx: &SessionContext) -> Result<Vec<Cut>, Error> {
    let sql =
        format!("SELECT slice, place, CAST(_timestamp AS BIGINT), _partition, _offset FROM {}()", slice_cuts::NAME);
    let batch = collect(ctx, &sql).await?;
    let int = |column: usize| batch.column(column).as_primitive::<Int32Type>();
    let long = |column: usize| batch.column(column).as_primitive::<Int64Type>();
    let cut = |row: usize| Cut {
        slice: int(0).value(row) as u8,
        place: long(1).value(row) as u64,
        timestamp: long(2).is_valid(row).then(|| long(2).value(row)),
        partition: int(3).value(row),
        offset: long(4).value(row),
    };
    Ok((0..batch.num_rows()).map(cut).collect())
}
