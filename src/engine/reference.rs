//! Reference tables of the SQL directory as tables in memory.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::MemTable;
use datafusion::prelude::SessionContext;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::cluster::Engine;
use super::{Error, explain, file_table};
use crate::files::Options;
use crate::sql::Files;
use crate::sql::reference::{Content, Reference};

/// Registers the reference tables of these files.
///
/// # Errors
/// If a file is malformed, or if the engine is a cluster, whose processes do not have the tables.
pub(super) fn register(ctx: &SessionContext, files: &Files, engine: &Engine) -> Result<(), Error> {
    for reference in &files.references {
        if *engine != Engine::Local {
            let why = "a reference table is not available on a cluster; use --engine local, or move the file away";
            return Err(Error::Table { path: reference.path.clone(), why: why.to_owned() });
        }
        let table = table(reference)?;
        ctx.register_table(reference.name.as_str(), table).map_err(|e| Error::Query(explain(&e)))?;
    }
    Ok(())
}

fn table(reference: &Reference) -> Result<Arc<MemTable>, Error> {
    if let Some(table) = reference.table.get() {
        return Ok(Arc::clone(table));
    }
    let fault = |why: String| Error::Table { path: reference.path.clone(), why };
    let (schema, batches) = match &reference.content {
        Content::Csv(source) => file_table::read(source.clone(), Options::default())?,
        Content::Parquet(bytes) => parquet(bytes.clone()).map_err(fault)?,
    };
    let table = MemTable::try_new(schema, vec![batches]).map_err(|e| fault(explain(&e)))?;
    Ok(Arc::clone(reference.table.get_or_init(|| Arc::new(table))))
}

fn parquet(bytes: bytes::Bytes) -> Result<(SchemaRef, Vec<RecordBatch>), String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let schema = Arc::clone(reader.schema());
    let batches = reader.build().map_err(|e| e.to_string())?.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
    Ok((schema, batches))
}
