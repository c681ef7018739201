//! The table function `slice_cuts()`: the last record of slices 1, 2 and 3.
//!
//! Input: the snapshot of a session. Output: rows of `slice`, `place` (the number of records in the slice),
//! `_timestamp`, `_partition` and `_offset`. They are computed at the first read and cached for later queries.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use tercile_store::Snapshot;
use tokio::sync::OnceCell;

use crate::slices::{self, Cut, Thirds};

/// The name of the function.
pub const NAME: &str = "slice_cuts";

/// The function. Each session has its own instance.
#[derive(Debug)]
pub struct SliceCuts {
    table: Arc<CutTable>,
}

impl SliceCuts {
    pub fn of(snapshot: &Snapshot) -> Self {
        Self { table: Arc::new(CutTable { snapshot: snapshot.clone(), rows: OnceCell::new() }) }
    }
}

impl TableFunctionImpl for SliceCuts {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        if !args.exprs().is_empty() {
            return Err(DataFusionError::Plan(format!("'{NAME}' takes no arguments")));
        }
        Ok(Arc::clone(&self.table) as Arc<dyn TableProvider>)
    }
}

#[derive(Debug)]
struct CutTable {
    snapshot: Snapshot,
    rows: OnceCell<RecordBatch>,
}

fn schema() -> SchemaRef {
    let timestamp = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("slice", DataType::Int32, false),
        Field::new("place", DataType::Int64, false),
        Field::new("_timestamp", timestamp, true),
        Field::new("_partition", DataType::Int32, false),
        Field::new("_offset", DataType::Int64, false),
    ]))
}

fn batch(cuts: &[Cut]) -> Result<RecordBatch> {
    let times: TimestampMillisecondArray = cuts.iter().map(|cut| cut.timestamp).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(cuts.iter().map(|cut| i32::from(cut.slice)).collect::<Int32Array>()),
        Arc::new(cuts.iter().map(|cut| cut.place as i64).collect::<Int64Array>()),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(cuts.iter().map(|cut| cut.partition).collect::<Int32Array>()),
        Arc::new(cuts.iter().map(|cut| cut.offset).collect::<Int64Array>()),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

#[async_trait]
impl TableProvider for CutTable {
    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let found = self.rows.get_or_try_init(async || {
            let snapshot = self.snapshot.clone();
            // It reads files, and that blocks.
            let cuts = tokio::task::spawn_blocking(move || slices::cuts(&snapshot, &Thirds)).await;
            let cuts = cuts.map_err(|e| DataFusionError::Execution(format!("the cuts were not found: {e}")))?;
            batch(&cuts.map_err(|e| DataFusionError::Execution(e.to_string()))?)
        });
        let rows = found.await?.clone();
        let plan = MemorySourceConfig::try_new_exec(&[vec![rows]], schema(), projection.cloned())?;
        Ok(plan)
    }
}
