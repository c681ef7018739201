//! What of a plan can go to a cluster, and how.
//!
//! Input: a plan as it comes out of the optimizer. Output: a plan that runs. Files are read by the executors, from the same
//! paths; the few rows that only this process has (where slices end, tables made in a shell) go along as literals; what
//! reads no file at all runs here. Functions that only this process has are refused in one line.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::Session;
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, ScalarValue};
use datafusion::datasource::listing::ListingTable;
use datafusion::datasource::source_as_provider;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::{
    EmptyRelation, Expr, LogicalPlan, LogicalPlanBuilder, TableScan, TableSource, lit, utils::conjunction,
};
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner as _};
use datafusion::prelude::ident;

use super::Address;
use super::watch::Watched;

/// Rows that may go along as literals.
const LITERAL_ROWS: usize = 10_000;

/// Functions that only the client has, so that no query on a cluster may call them.
#[derive(Debug, Clone, Copy)]
pub struct LocalFunctions {
    /// Their names.
    pub names: &'static [&'static str],
    /// The reason and the alternative, as the end of a sentence that begins with the function.
    pub reason: &'static str,
}

/// Plans for a cluster.
pub struct Planner {
    ballista: Arc<dyn QueryPlanner + Send + Sync>,
    address: Address,
    local: LocalFunctions,
}

impl Planner {
    pub fn new(ballista: Arc<dyn QueryPlanner + Send + Sync>, address: Address, local: LocalFunctions) -> Self {
        Self { ballista, address, local }
    }
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner").field("address", &self.address).finish_non_exhaustive()
    }
}

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(&self, plan: &LogicalPlan, session: &dyn Session) -> Result<Arc<dyn ExecutionPlan>> {
        let scans = scans(plan)?;
        if !scans.iter().any(|scan| is_listing(scan).unwrap_or(false)) {
            return DefaultPhysicalPlanner::default().create_physical_plan(plan, session).await;
        }
        check_functions(plan, self.local)?;
        let mut known = HashMap::new();
        for scan in scans {
            if !is_listing(&scan)? {
                known.insert(pointer(&scan.source), rows_of(&scan, session).await?);
            }
        }
        let plan = plan.clone().transform_up_with_subqueries(|node| with_literals(node, &known))?.data;
        let inner = self.ballista.create_physical_plan(&plan, session).await?;
        Ok(Arc::new(Watched::new(inner, self.address.clone(), session.session_id().to_owned())))
    }
}

fn scans(plan: &LogicalPlan) -> Result<Vec<TableScan>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found.push(scan.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// Whether it is files that a scan reads.
fn is_listing(scan: &TableScan) -> Result<bool> {
    Ok(source_as_provider(&scan.source)?.downcast_ref::<ListingTable>().is_some())
}

fn pointer(source: &Arc<dyn TableSource>) -> usize {
    Arc::as_ptr(source).cast::<()>() as usize
}

/// Refuses functions that executors do not have.
fn check_functions(plan: &LogicalPlan, local: LocalFunctions) -> Result<()> {
    let mut ours = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr {
                    let name = call.func.name();
                    ours = ours.take().or(local.names.contains(&name).then(|| name.to_owned()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let Some(name) = ours else { return Ok(()) };
    Err(DataFusionError::Plan(format!("{name}() {}", local.reason)))
}

/// All rows of a table that only this process has.
async fn rows_of(scan: &TableScan, session: &dyn Session) -> Result<Vec<RecordBatch>> {
    let provider = source_as_provider(&scan.source)?;
    let plan = provider.scan(session, None, &[], None).await?;
    let task = Arc::new(
        TaskContext::default()
            .with_session_config(session.config().clone())
            .with_runtime(Arc::clone(session.runtime_env())),
    );
    let rows = collect(plan, task).await?;
    if rows.iter().map(RecordBatch::num_rows).sum::<usize>() > LITERAL_ROWS {
        let why = format!(
            "the table {} is in this process, where executors can't read it; write it to a Parquet file that they can",
            scan.table_name
        );
        return Err(DataFusionError::Plan(why));
    }
    Ok(rows)
}

/// A node with literals in place of what only this process has.
fn with_literals(node: LogicalPlan, known: &HashMap<usize, Vec<RecordBatch>>) -> Result<Transformed<LogicalPlan>> {
    match &node {
        LogicalPlan::TableScan(scan) => match known.get(&pointer(&scan.source)) {
            Some(rows) => Ok(Transformed::yes(literals(scan, rows)?)),
            None => Ok(Transformed::no(node)),
        },
        // On its way it would lose its columns.
        LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema }) if !schema.fields().is_empty() => {
            Ok(Transformed::yes(nothing(schema)?))
        }
        _ => Ok(Transformed::no(node)),
    }
}

fn literals(scan: &TableScan, rows: &[RecordBatch]) -> Result<LogicalPlan> {
    let schema = &scan.projected_schema;
    let all = scan.source.schema();
    let columns: Vec<usize> = match &scan.projection {
        Some(projection) => projection.clone(),
        None => (0..all.fields().len()).collect(),
    };
    let mut values = Vec::new();
    for batch in rows {
        for row in 0..batch.num_rows() {
            let value = |&column: &usize| Ok(lit(ScalarValue::try_from_array(batch.column(column), row)?));
            values.push(columns.iter().map(value).collect::<Result<Vec<Expr>>>()?);
        }
    }
    if values.is_empty() {
        return nothing(schema);
    }
    // A scan with no columns still has rows.
    if columns.is_empty() {
        values.iter_mut().for_each(|row| row.push(lit(true)));
    }
    let plan = named(LogicalPlanBuilder::values(values)?, schema)?;
    match conjunction(scan.filters.clone()) {
        Some(filter) => plan.filter(filter)?.build(),
        None => plan.build(),
    }
}

/// No rows of these columns.
fn nothing(schema: &DFSchemaRef) -> Result<LogicalPlan> {
    let nulls = schema.fields().iter().map(|field| Ok(lit(ScalarValue::try_from(field.data_type())?)));
    let row = nulls.collect::<Result<Vec<Expr>>>()?;
    named(LogicalPlanBuilder::values(vec![row])?, schema)?.filter(lit(false))?.build()
}

/// Columns of values, called as they were.
fn named(values: LogicalPlanBuilder, schema: &DFSchemaRef) -> Result<LogicalPlanBuilder> {
    let columns = schema.iter().enumerate().map(|(i, (qualifier, field))| {
        ident(format!("column{}", i + 1)).alias_qualified(qualifier.cloned(), field.name())
    });
    values.project(columns)
}
