//! The table function `slice_cuts()`: the last record of slices 1, 2 and 3. The function `slice_end()`: the timestamp of the
//! last record of the session's slice.
//!
//! Input: the snapshot of a session, and the slice that it is limited to, if any. Output: rows of `slice`, `place` (the
//! number of records in the slice), `_timestamp`, `_partition` and `_offset`. They are computed at the first use and cached
//! for later queries.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray, new_null_array,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::{MemTable, Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use tercile_store::Snapshot;

use crate::slices::{self, Cut, Thirds, all_slices};

/// The name of the table function.
pub const NAME: &str = "slice_cuts";

/// The name of the function of a slice's end.
pub const SLICE_END: &str = "slice_end";

/// Limits a session to the records of slices 1 to `slice`.
#[derive(Debug, Clone)]
pub struct UpTo {
    /// The cuts of the whole stream.
    pub cuts: Arc<Vec<Cut>>,
    pub slice: u8,
}

impl UpTo {
    /// The last record of the slice; `None` of an empty stream.
    pub fn end(&self) -> Option<Cut> {
        self.cuts.iter().find(|cut| cut.slice == self.slice).copied()
    }

    /// The cuts that the session knows: later slices end where this one ends, so nothing depends on later records.
    fn known(&self) -> Vec<Cut> {
        let end = self.end();
        let known = |cut: &Cut| match end {
            Some(end) if cut.slice > self.slice => Cut { slice: cut.slice, ..end },
            _ => *cut,
        };
        self.cuts.iter().map(known).collect()
    }
}

/// The cuts of a session. They are computed at the first use.
#[derive(Debug)]
struct Cuts {
    snapshot: Snapshot,
    found: Mutex<Option<Arc<Vec<Cut>>>>,
}

impl Cuts {
    /// Reads files, and so blocks.
    fn get(&self) -> Result<Arc<Vec<Cut>>> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cuts) = &*found {
            return Ok(Arc::clone(cuts));
        }
        let cuts = slices::cuts(&self.snapshot, &Thirds).map_err(|e| DataFusionError::Execution(e.to_string()))?;
        Ok(Arc::clone(found.insert(Arc::new(cuts))))
    }
}

/// The table function and the function, which share the cuts. Each session has its own instances.
pub fn functions(snapshot: &Snapshot, up_to: Option<&UpTo>) -> (SliceCuts, ScalarUDF) {
    let found = Mutex::new(up_to.map(|up_to| Arc::new(up_to.known())));
    let cuts = Arc::new(Cuts { snapshot: snapshot.clone(), found });
    let table = Arc::new(CutTable { cuts: Arc::clone(&cuts) });
    (SliceCuts { table }, ScalarUDF::from(SliceEnd { cuts, signature: Signature::nullary(Volatility::Stable) }))
}

#[derive(Debug)]
pub struct SliceCuts {
    table: Arc<CutTable>,
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
    cuts: Arc<Cuts>,
}

/// The type of `_timestamp`.
fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("slice", DataType::Int32, false),
        Field::new("place", DataType::Int64, false),
        Field::new("_timestamp", timestamp(), true),
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
        let cuts = Arc::clone(&self.cuts);
        let found = tokio::task::spawn_blocking(move || cuts.get()).await;
        let found = found.map_err(|e| DataFusionError::Execution(format!("the cuts were not found: {e}")))?;
        let rows = batch(&found?)?;
        let plan = MemorySourceConfig::try_new_exec(&[vec![rows]], schema(), projection.cloned())?;
        Ok(plan)
    }
}

/// `slice_cuts()` of records that are scored: slices without ends, so that no record is before the end of slice 1 or 2.
#[derive(Debug)]
pub(super) struct NoCuts(Arc<MemTable>);

impl NoCuts {
    pub fn new() -> Result<Self> {
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let schema = Arc::new(Schema::new(schema().fields().iter().map(nullable).collect::<Vec<_>>()));
        let slices: Int32Array = all_slices().map(i32::from).collect();
        let rows = slices.len();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(slices)];
        columns.extend(schema.fields().iter().skip(1).map(|field| new_null_array(field.data_type(), rows)));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(Self(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
    }
}

impl TableFunctionImpl for NoCuts {
    fn call_with_args(&self, _: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        Ok(Arc::clone(&self.0) as Arc<dyn TableProvider>)
    }
}

/// `slice_end()`. The optimizer replaces it by its value.
#[derive(Debug)]
struct SliceEnd {
    cuts: Arc<Cuts>,
    signature: Signature,
}

impl PartialEq for SliceEnd {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cuts, &other.cuts)
    }
}

impl Eq for SliceEnd {}

impl Hash for SliceEnd {
    fn hash<H: Hasher>(&self, state: &mut H) {
        SLICE_END.hash(state);
    }
}

impl SliceEnd {
    fn value(&self) -> Result<ScalarValue> {
        let cuts = Arc::clone(&self.cuts);
        // A thread of its own: readers of object stores may block only outside the runtime's threads.
        let found = std::thread::spawn(move || cuts.get()).join();
        let found = found.map_err(|_| DataFusionError::Execution("the cuts were not found".to_owned()))??;
        let end = found.iter().max_by_key(|cut| cut.slice).and_then(|cut| cut.timestamp);
        Ok(ScalarValue::TimestampMillisecond(end, Some("UTC".into())))
    }
}

impl ScalarUDFImpl for SliceEnd {
    fn name(&self) -> &str {
        SLICE_END
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(timestamp())
    }

    fn simplify(&self, _: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Simplified(lit(self.value()?)))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(ColumnarValue::Scalar(self.value()?))
    }
}
