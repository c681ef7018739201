//! The table function `members('customers')`, `members('customers@2')` for a slice, `members('customers@2@5')` for a version:
//! the members of a model of entities.
//!
//! Output: key columns, features, `cluster`, `description` (in English), `distance` and `previous`, sorted by key. The file is
//! read while the query runs.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::scalar::ScalarValue;
use tercile_store::{self as store, Store};

use crate::model::{Model, ModelRegistry, members, model_ref};

/// The name of the function.
pub const NAME: &str = "members";

/// Batches that may wait for the query.
const WAITING: usize = 2;

/// The function.
#[derive(Debug)]
pub struct MembersFunction {
    store: Option<Store>,
    /// Whether error messages may contain local paths.
    paths: bool,
}

impl MembersFunction {
    pub fn of(store: Option<&Store>, paths: bool) -> Self {
        Self { store: store.cloned(), paths }
    }

    fn table(&self, name: &str) -> Result<MembersTable, String> {
        let store = self.store.as_ref().ok_or("no models are in reach here")?;
        let model = model_ref::find_for(store, name, self.paths)?;
        if model.entity.is_empty() {
            return Err(format!(
                "{name} is a segmentation of records, which has no members; one with a header line -- entity: has"
            ));
        }
        let registry = ModelRegistry::new(store, &model.segmentation);
        let shown = |error: store::Error| match error {
            error if self.paths => error.to_string(),
            store::Error::File(fault) => fault.class(),
            _ => "the members cannot be read".to_owned(),
        };
        let members = registry.members(&model).map_err(shown)?;
        let members = members.ok_or_else(|| deleted(&model))?;
        let schema = members::shown_schema(&members.schema());
        Ok(MembersTable { part: Arc::new(Part { store: store.clone(), model, schema, paths: self.paths }) })
    }
}

fn deleted(model: &Model) -> String {
    format!(
        "the members of version {} are deleted; if it serves, tercile train makes a new one with its own",
        model.version
    )
}

impl TableFunctionImpl for MembersFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        let name = match args.exprs() {
            [Expr::Literal(ScalarValue::Utf8(Some(name)) | ScalarValue::Utf8View(Some(name)), _)] => name,
            _ => {
                return Err(DataFusionError::Plan(format!(
                    "'{NAME}' takes the name of a model, as {NAME}('customers')"
                )));
            }
        };
        let table = self.table(name).map_err(|why| DataFusionError::Plan(format!("'{NAME}': {why}")))?;
        Ok(Arc::new(table))
    }
}

#[derive(Debug)]
struct MembersTable {
    part: Arc<Part>,
}

#[async_trait]
impl TableProvider for MembersTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.part.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let parts = vec![Arc::clone(&self.part) as Arc<dyn PartitionStream>];
        let plan = StreamingTableExec::try_new(self.schema(), parts, projection, None, false, limit)?;
        Ok(Arc::new(plan))
    }
}

/// The rows of one version.
struct Part {
    store: Store,
    model: Model,
    schema: SchemaRef,
    paths: bool,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Model { segmentation, slice, version, .. } = &self.model;
        write!(f, "members of {segmentation}@{slice}@{version}")
    }
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(Arc::clone(&self.schema), WAITING);
        let (out, store, model, paths) = (builder.tx(), self.store.clone(), self.model.clone(), self.paths);
        builder.spawn_blocking(move || {
            let failed = |error: store::Error| {
                let why = if paths { error.to_string() } else { "the members cannot be read".to_owned() };
                DataFusionError::Execution(why)
            };
            let registry = ModelRegistry::new(&store, &model.segmentation);
            let members = registry.members(&model).map_err(failed)?;
            let members = members.ok_or_else(|| DataFusionError::Execution(deleted(&model)))?;
            let descriptions = model.descriptions("en");
            for batch in members.read(0).map_err(failed)? {
                let shown = members::shown(&batch.map_err(failed)?, &descriptions)?;
                // The query needs no more rows.
                if out.blocking_send(Ok(shown)).is_err() {
                    break;
                }
            }
            Ok(())
        });
        builder.build()
    }
}
