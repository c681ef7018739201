//! Views of single records: whether a view can be applied to records one by one, and its application to batches of records that
//! are not stored.
//!
//! Input: the SQL files and the name of a segmentation of records. Output: a [`RowPlan`], whose steps are the filters and
//! projections of the view and of those that it reads, optimised once. Applied to a batch of records it returns the features of
//! the records that the view keeps, with their places in the batch. Expressions are evaluated by DataFusion, as for stored
//! records, so the features have the same bits.
//!
//! `slice_cuts()` has no times here, so that the shipped `slices` puts every record into slice 3. Whatever makes a record depend
//! on other records, or on the time of the query, is rejected with the line of the SQL file.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, BooleanArray, Float64Array, RecordBatch, RecordBatchOptions, UInt32Array,
};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, UInt32Type};
use datafusion::catalog::MemTable;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Filter, Join, JoinType, LogicalPlan, Projection, SubqueryAlias, Volatility, cast, lit,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionContext, ident};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tercile_store::record::Fields;
use tercile_store::{Snapshot, batch};

use super::compiled_regex::compiled;
use super::lookup::{Lookup, Shape};
use super::{Error, Limits, add_view, explain, slice_cuts, topics};
use crate::slices::SLICES;
use crate::sql::fault::Fault;
use crate::sql::piece::Place;
use crate::sql::{Files, RECORDS, View};

/// Column with a record's place in its batch. A declared field cannot have this name, because it begins with `_`.
const ROW: &str = "_row_of_batch";

/// The reason why a view cannot be applied to single records.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotRowByRow {
    /// The view depends on more than one record: the node of its plan, and where it is.
    #[error("{0}")]
    Node(Fault),
    /// The view does not plan, or its expressions cannot be prepared.
    #[error("{0}")]
    Plan(String),
}

impl From<DataFusionError> for NotRowByRow {
    fn from(error: DataFusionError) -> Self {
        Self::Plan(explain(&error))
    }
}

/// A view of records as a sequence of steps over a batch.
#[derive(Debug)]
pub struct RowPlan {
    steps: Vec<Step>,
    /// The schema of the records: [`records_schema`].
    records: SchemaRef,
    features: usize,
}

#[derive(Debug)]
enum Step {
    /// Selects columns by index.
    Columns(Vec<usize>),
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    /// Adds the columns of a reference table.
    LookUp(Lookup),
    /// The optimizer has found that no record is kept.
    Nothing,
}

/// The records of a batch that a view keeps.
#[derive(Debug)]
pub struct Kept {
    /// Their places in the batch, from 0.
    pub rows: UInt32Array,
    /// One column per feature; NULL where it is missing.
    pub features: Vec<Float64Array>,
}

/// The columns of records that are scored: those of the store, all of which may be NULL, and the place in the batch.
pub fn records_schema(fields: &Fields) -> SchemaRef {
    let stored = batch::schema(fields);
    let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
    let mut columns: Vec<Field> = stored.fields().iter().map(nullable).collect();
    columns.push(Field::new(ROW, DataType::UInt32, false));
    Arc::new(Schema::new(columns))
}

impl RowPlan {
    /// Prepares the view of a segmentation of records. `features` are the columns to return.
    ///
    /// # Errors
    /// [`NotRowByRow`] with the reason.
    pub async fn new(files: &Files, name: &str, features: &[String]) -> Result<Self, NotRowByRow> {
        let records = records_schema(&files.fields);
        let ctx = session(files, &records).await?;
        let Some(view) = files.view(name) else {
            return Err(NotRowByRow::Plan(format!("there is no SQL file of {name}")));
        };
        let whole = ctx.table(name).await?.into_unoptimized_plan();
        let rewriter = Rewriter { ctx: &ctx, files, joins: Mutex::default() };
        let plan = rewriter.rewrite(&whole, view).await?;
        let mut columns = vec![hidden(&plan)?, cast(ident("_slice"), DataType::Int64).alias("_slice")];
        columns.extend(features.iter().map(|name| cast(ident(name), DataType::Float64).alias(name)));
        let plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?);
        let optimized = ctx.state().optimize(&plan)?;
        let joins = rewriter.joins.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut steps = Vec::new();
        add_steps(&ctx, &optimized, joins.first().unwrap_or(view), &mut steps).await?;
        Ok(Self { steps, records, features: features.len() })
    }

    /// The schema of the batches that [`Self::apply`] takes.
    pub fn schema(&self) -> &SchemaRef {
        &self.records
    }

    /// The columns of records that the view reads.
    pub fn reads(&self) -> Vec<&str> {
        let all = || (0..self.records.fields().len()).collect();
        let columns = match self.steps.first() {
            Some(Step::Columns(columns)) => columns.clone(),
            _ => all(),
        };
        columns
            .into_iter()
            .map(|column| self.records.field(column).name().as_str())
            .filter(|name| *name != ROW)
            .collect()
    }

    /// Applies the view to a batch of records.
    ///
    /// # Errors
    /// If an expression fails for one of the records, as a CAST of a text that is no number does.
    pub fn apply(&self, records: RecordBatch) -> Result<Kept, String> {
        self.evaluated(records).map_err(|error| explain(&error))
    }

    fn evaluated(&self, records: RecordBatch) -> DataFusionResult<Kept> {
        let mut batch = records;
        for step in &self.steps {
            batch = match step {
                Step::Columns(columns) => batch.project(columns)?,
                Step::Filter(predicate) => {
                    let kept = predicate.evaluate(&batch)?.into_array(batch.num_rows())?;
                    filter_record_batch(&batch, kept.as_boolean())?
                }
                Step::Project(expressions, schema) => {
                    let rows = batch.num_rows();
                    let column = |expression: &Arc<dyn PhysicalExpr>| match expression.evaluate(&batch)? {
                        ColumnarValue::Array(array) => Ok(array),
                        ColumnarValue::Scalar(value) => value.to_array_of_size(rows),
                    };
                    let columns = expressions.iter().map(column).collect::<DataFusionResult<Vec<ArrayRef>>>()?;
                    let options = RecordBatchOptions::new().with_row_count(Some(rows));
                    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?
                }
                Step::LookUp(lookup) => lookup.joined(&batch)?,
                Step::Nothing => {
                    let features = (0..self.features).map(|_| Float64Array::new_null(0)).collect();
                    return Ok(Kept { rows: UInt32Array::new_null(0), features });
                }
            };
        }
        // A record of no slice is not trained on, so it is not scored.
        let slices = batch.column(1).as_primitive::<Int64Type>();
        if slices.null_count() > 0 || slices.values().iter().any(|slice| *slice > i64::from(SLICES)) {
            let known = |slice: Option<i64>| slice.is_some_and(|slice| slice <= i64::from(SLICES));
            let known: BooleanArray = slices.iter().map(|slice| Some(known(slice))).collect();
            batch = filter_record_batch(&batch, &known)?;
        }
        let rows = batch.column(0).as_primitive::<UInt32Type>().clone();
        let features = batch.columns()[2..].iter().map(|column| column.as_primitive::<Float64Type>().clone());
        Ok(Kept { rows, features: features.collect() })
    }
}

/// A session on no records, with the views.
async fn session(files: &Files, records: &SchemaRef) -> Result<SessionContext, NotRowByRow> {
    let plan = |error: Error| NotRowByRow::Plan(error.to_string());
    let limits = Limits { serial: true, ..Limits::default() };
    let ctx = super::open_without_views(&Snapshot::default(), files, limits).map_err(plan)?;
    ctx.deregister_table(RECORDS)?;
    ctx.register_table(RECORDS, Arc::new(MemTable::try_new(Arc::clone(records), vec![Vec::new()])?))?;
    ctx.register_udtf(slice_cuts::NAME, Arc::new(slice_cuts::NoCuts::new()?));
    for view in files.views() {
        // A view that does not plan is an error of those that read it.
        if let Err(fault) = add_view(&ctx, view).await {
            tracing::debug!("{fault}");
        }
    }
    Ok(ctx)
}

/// The column [`ROW`] of a plan.
fn hidden(plan: &LogicalPlan) -> Result<Expr, NotRowByRow> {
    let found = plan.schema().iter().find(|(_, field)| field.name() == ROW);
    let missing = || NotRowByRow::Plan("the view reads no records".to_owned());
    found.map(|(qualifier, field)| Expr::from((qualifier, field))).ok_or_else(missing)
}

/// Checks a plan, node by node, and adds the column [`ROW`] to its projections. The views that it scans are put in their places.
struct Rewriter<'a> {
    ctx: &'a SessionContext,
    files: &'a Files,
    /// The views with a join of records with another table.
    joins: Mutex<Vec<View>>,
}

type Rewritten<'a> = BoxFuture<'a, Result<LogicalPlan, NotRowByRow>>;

impl Rewriter<'_> {
    fn rewrite<'p>(&'p self, plan: &'p LogicalPlan, view: &'p View) -> Rewritten<'p> {
        async move {
            check_expressions(plan, view)?;
            let rejected = |what: &str, words: &[&str]| Err(reject(view, what, words));
            match plan {
                LogicalPlan::Projection(projection) => {
                    let input = self.rewrite(&projection.input, view).await?;
                    let mut columns = projection.expr.clone();
                    if !projection.schema.fields().iter().any(|field| field.name() == ROW) {
                        columns.push(hidden(&input)?);
                    }
                    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?))
                }
                LogicalPlan::Filter(filter) => {
                    let input = self.rewrite(&filter.input, view).await?;
                    Ok(LogicalPlan::Filter(Filter::try_new(filter.predicate.clone(), Arc::new(input))?))
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    let input = self.rewrite(&alias.input, view).await?;
                    Ok(LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?))
                }
                LogicalPlan::TableScan(scan) => {
                    let name = scan.table_name.table();
                    let Some(inner) = scan.source.get_logical_plan() else { return Ok(plan.clone()) };
                    let below = self.files.view(name).unwrap_or(view);
                    let inner = self.rewrite(&inner, below).await?;
                    let alias = SubqueryAlias::try_new(Arc::new(inner), scan.table_name.clone())?;
                    Ok(LogicalPlan::SubqueryAlias(alias))
                }
                LogicalPlan::Join(join) => self.join(join, view).await,
                LogicalPlan::Aggregate(_) => {
                    rejected("aggregates records (GROUP BY)", &["group", "count", "sum", "avg"])
                }
                LogicalPlan::Window(_) => rejected("has a window function (OVER)", &["over"]),
                LogicalPlan::Sort(_) => rejected("sorts records (ORDER BY)", &["order"]),
                LogicalPlan::Limit(_) => rejected("has a LIMIT", &["limit", "offset"]),
                LogicalPlan::Distinct(_) => rejected("compares records (DISTINCT)", &["distinct", "union"]),
                LogicalPlan::Union(_) => rejected("combines queries (UNION)", &["union"]),
                LogicalPlan::Unnest(_) => rejected("makes several rows of a record (UNNEST)", &["unnest"]),
                LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => rejected("reads no records", &["values"]),
                other => {
                    let node = other.display().to_string();
                    let node = node.split([':', ' ']).next().unwrap_or_default();
                    rejected(&format!("has a node {node} in its plan"), &[])
                }
            }
        }
        .boxed()
    }

    /// Whether a plan reads `slice_cuts()`, constants and reference tables alone, and joins no reference tables.
    fn is_small(&self, plan: &LogicalPlan, view: &View) -> Result<bool, NotRowByRow> {
        check_expressions(plan, view)?;
        let inputs = || plan.inputs().into_iter().try_fold(true, |all, input| Ok(all && self.is_small(input, view)?));
        match plan {
            LogicalPlan::TableScan(scan) => {
                let name = scan.table_name.table();
                match scan.source.get_logical_plan() {
                    Some(inner) => self.is_small(&inner, self.files.view(name).unwrap_or(view)),
                    None => Ok(self.is_reference(name)
                        || name.starts_with(slice_cuts::NAME)
                        || name.starts_with(topics::NAME)),
                }
            }
            LogicalPlan::Join(_) => Ok(inputs()? && !self.reads_references(plan)?),
            LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::EmptyRelation(_) => inputs(),
            _ => Ok(false),
        }
    }

    fn is_reference(&self, name: &str) -> bool {
        self.files.references.iter().any(|reference| reference.name == name)
    }

    fn reads_references(&self, plan: &LogicalPlan) -> DataFusionResult<bool> {
        reads(plan, &|name| self.is_reference(name))
    }

    /// An inner join of records with one row becomes a projection, and a filter for its conditions. Other joins stay: once the
    /// optimizer has found their keys, they are looked up.
    async fn join(&self, join: &Join, view: &View) -> Result<LogicalPlan, NotRowByRow> {
        let rejected = |what: &str| Err(reject(view, what, &["join"]));
        let (records, other) = match (reads_records(&join.left)?, reads_records(&join.right)?) {
            (true, false) => (&join.left, &join.right),
            (false, true) => (&join.right, &join.left),
            (true, true) => return rejected("joins records with records"),
            (false, false) => return rejected("reads no records"),
        };
        let right = Arc::ptr_eq(records, &join.right);
        match join.join_type {
            JoinType::Inner => {}
            JoinType::Left if !right => {}
            JoinType::Right if right => {}
            other => return rejected(&format!("joins records with another table ({other} JOIN)")),
        }
        // It is read now, in full, and must not compute for long.
        if !self.is_small(other, view)? {
            return rejected("joins records with something else than constants and reference tables");
        }
        let input = self.rewrite(records, view).await?;
        let constants = self.ctx.execute_logical_plan(other.as_ref().clone()).await?.collect().await?;
        let rows: usize = constants.iter().map(RecordBatch::num_rows).sum();
        let one = constants.iter().find(|batch| batch.num_rows() == 1).filter(|_| rows == 1);
        let Some(constants) = one.filter(|_| join.join_type == JoinType::Inner) else {
            self.joins.lock().unwrap_or_else(PoisonError::into_inner).push(view.clone());
            let (left, right) = match right {
                true => (Arc::clone(other), Arc::new(input)),
                false => (Arc::new(input), Arc::clone(other)),
            };
            let Join { on, filter, join_type, join_constraint, null_equality, null_aware, .. } = join.clone();
            let join = Join::try_new(left, right, on, filter, join_type, join_constraint, null_equality, null_aware)?;
            return Ok(LogicalPlan::Join(join));
        };
        let mut columns: Vec<Expr> = input.schema().iter().map(Expr::from).collect();
        for ((qualifier, field), column) in other.schema().iter().zip(constants.columns()) {
            let value = lit(ScalarValue::try_from_array(column, 0)?);
            columns.push(value.alias_qualified(qualifier.cloned(), field.name()));
        }
        let mut plan = LogicalPlan::Projection(Projection::try_new(columns, Arc::new(input))?);
        let equal = join.on.iter().map(|(left, right)| left.clone().eq(right.clone()));
        for condition in equal.chain(join.filter.clone()) {
            plan = LogicalPlan::Filter(Filter::try_new(condition, Arc::new(plan))?);
        }
        Ok(plan)
    }
}

/// Whether a plan scans `records`, itself or in a view.
fn reads_records(plan: &LogicalPlan) -> DataFusionResult<bool> {
    reads(plan, &|name| name == RECORDS)
}

/// Whether a plan scans one of these tables, itself or in a view.
fn reads(plan: &LogicalPlan, wanted: &dyn Fn(&str) -> bool) -> DataFusionResult<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            found |= match scan.source.get_logical_plan() {
                Some(view) => reads(&view, wanted)?,
                None => wanted(scan.table_name.table()),
            };
        }
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// Rejects subqueries and functions whose value is not determined by the record.
fn check_expressions(node: &LogicalPlan, view: &View) -> Result<(), NotRowByRow> {
    let mut fault = None;
    for expr in node.expressions() {
        expr.apply(|expr| {
            fault = match expr {
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::SetComparison(_) => {
                    Some(reject_at(view, "has a subquery in an expression", view.source().place_of_subquery()))
                }
                Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                    let name = call.func.name();
                    let what = format!("calls {name}(), whose value is not determined by the record");
                    let mut words = vec![name];
                    words.extend(call.func.aliases().iter().map(String::as_str));
                    Some(reject(view, &what, &words))
                }
                _ => None,
            };
            Ok(if fault.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        if fault.is_some() {
            break;
        }
    }
    fault.map_or(Ok(()), Err)
}

/// The fault at the first of these words in the view's text.
fn reject(view: &View, what: &str, words: &[&str]) -> NotRowByRow {
    let source = view.source();
    reject_at(view, what, words.iter().find_map(|word| source.place_of(word)))
}

fn reject_at(view: &View, what: &str, place: Option<Place>) -> NotRowByRow {
    let source = view.source();
    let why = format!("{} {what}, so it cannot be applied to single records", view.name);
    NotRowByRow::Node(match place {
        Some(place) => source.fault(place, why),
        None => source.fault_somewhere(why),
    })
}

/// Adds the steps of an optimised plan, those of its input first. `view` is named in errors.
fn add_steps<'p>(
    ctx: &'p SessionContext,
    plan: &'p LogicalPlan,
    view: &'p View,
    steps: &'p mut Vec<Step>,
) -> BoxFuture<'p, Result<(), NotRowByRow>> {
    let physical = |expr: &Expr, schema: &DFSchema| compiled(ctx.state().create_physical_expr(expr.clone(), schema)?);
    async move {
        match plan {
            LogicalPlan::Projection(projection) => {
                add_steps(ctx, &projection.input, view, steps).await?;
                let input = projection.input.schema();
                let expressions = projection.expr.iter().map(|expr| physical(expr, input));
                let expressions = expressions.collect::<DataFusionResult<Vec<_>>>()?;
                steps.push(Step::Project(expressions, Arc::clone(projection.schema.inner())));
            }
            LogicalPlan::Filter(filter) => {
                add_steps(ctx, &filter.input, view, steps).await?;
                steps.push(Step::Filter(physical(&filter.predicate, filter.input.schema())?));
            }
            LogicalPlan::SubqueryAlias(alias) => add_steps(ctx, &alias.input, view, steps).await?,
            LogicalPlan::TableScan(scan) => {
                if let Some(columns) = &scan.projection {
                    steps.push(Step::Columns(columns.clone()));
                }
                for filter in &scan.filters {
                    steps.push(Step::Filter(physical(filter, &scan.projected_schema)?));
                }
            }
            LogicalPlan::Join(join) => {
                let records = if reads_records(&join.right)? { &join.right } else { &join.left };
                add_steps(ctx, records, view, steps).await?;
                steps.push(Step::LookUp(lookup(ctx, join, view).await?));
                if let Some(filter) = &join.filter {
                    steps.push(Step::Filter(physical(filter, &join.schema)?));
                }
            }
            LogicalPlan::EmptyRelation(_) => steps.push(Step::Nothing),
            other => {
                let node = other.display().to_string();
                let why = format!("its optimised plan has a node {node}, which single records do not have");
                return Err(NotRowByRow::Plan(why));
            }
        }
        Ok(())
    }
    .boxed()
}

/// The join of records with a table by the equality of columns. A condition beside it is left to the caller, for inner joins.
async fn lookup(ctx: &SessionContext, join: &Join, view: &View) -> Result<Lookup, NotRowByRow> {
    let rejected = |what: &str| Err(reject(view, what, &["join"]));
    let right = reads_records(&join.right)?;
    let (records, other) = if right { (&join.right, &join.left) } else { (&join.left, &join.right) };
    let inner = join.join_type == JoinType::Inner;
    if join.on.is_empty() {
        return rejected("joins records with a table, and not by the equality of columns");
    }
    if !inner && join.filter.is_some() {
        return rejected("joins records with a table by a condition beside the equality of columns");
    }
    let table = ctx.execute_logical_plan(other.as_ref().clone()).await?.collect().await?;
    let table = concat_batches(other.schema().inner(), &table).map_err(DataFusionError::from)?;
    let keys = |of_right: bool, schema: &DFSchema| {
        let key = |(left, of): &(Expr, Expr)| {
            let key = if of_right { of } else { left };
            ctx.state().create_physical_expr(key.clone(), schema)
        };
        join.on.iter().map(key).collect::<DataFusionResult<Vec<_>>>()
    };
    let keys = (keys(right, records.schema())?, keys(!right, other.schema())?);
    let shape = Shape { schema: Arc::clone(join.schema.inner()), right, inner };
    match Lookup::new(&table, keys, shape)? {
        Ok(lookup) => Ok(lookup),
        Err(key) => rejected(&format!("joins records with a table in which the key {key} occurs twice")),
    }
}
