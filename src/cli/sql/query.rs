//! Plans and starts one statement.
//!
//! Input: a parsed statement, its parameters and a row limit. Output: a physical plan and its stream of rows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Context as _;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Column, TableReference};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SQLOptions;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use datafusion_functions_json::udfs;
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::engine::text_numbers;
use crate::sql::column_names;
use crate::sql::fault::{Fault, Source};
use crate::sql::piece::{Piece, Place};

/// A statement and its execution options.
pub struct Work {
    pub statement: Statement,
    pub params: HashMap<String, ScalarValue>,
    /// True to return the plan instead of the rows.
    pub explain: bool,
    pub limit: Option<usize>,
    /// True to reject all statements except queries.
    pub read_only: bool,
}

/// A query that is ready to return rows.
pub struct Ready {
    pub plan: Arc<dyn ExecutionPlan>,
    pub stream: SendableRecordBatchStream,
}

/// The `given` parameters that a piece uses. A missing parameter is a fault at its position, with a `hint` how to
/// supply it.
pub fn params_of(
    source: &Source<'_>,
    piece: &Piece<'_>,
    given: &BTreeMap<String, ScalarValue>,
    hint: impl Fn(&str) -> String,
) -> Result<HashMap<String, ScalarValue>, Fault> {
    let mut tokens = Vec::new();
    let _ = Tokenizer::new(&GenericDialect {}, piece.text).tokenize_with_location_into_buf(&mut tokens);
    let mut named = HashMap::new();
    for token in tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        let start = token.span.start;
        let place = Place { line: start.line as usize, column: start.column as usize }.within(piece.place);
        let bare = name.trim_start_matches(['$', ':', '@', '?']);
        match given.get(bare) {
            None if bare.is_empty() => {
                return Err(source.fault(place, format!("a parameter has a name; write $name, and {}", hint("name"))));
            }
            Some(value) if name.starts_with('$') => named.insert(bare.to_owned(), value.clone()),
            Some(_) => return Err(source.fault(place, format!("write the parameter as ${bare}"))),
            None => {
                return Err(source.fault(place, format!("the parameter {name} is not given; {}", hint(bare))));
            }
        };
    }
    Ok(named)
}

/// Plans a statement and starts it.
pub async fn prepare(ctx: SessionContext, mut work: Work) -> Result<Ready, DataFusionError> {
    column_names::name(&mut work.statement);
    let plan = planned(&ctx, work.statement.clone()).await?;
    let texts = text_numbers::columns(&plan);
    let ready = start(&ctx, work, plan).await.map_err(|error| text_numbers::named(error, &texts))?;
    if texts.is_empty() {
        return Ok(ready);
    }
    let schema = ready.stream.schema();
    let rows = ready.stream.map(move |batch| batch.map_err(|error| text_numbers::named(error, &texts)));
    Ok(Ready { plan: ready.plan, stream: Box::pin(RecordBatchStreamAdapter::new(schema, rows)) })
}

/// The plan of a statement, with different names for its columns.
async fn planned(ctx: &SessionContext, mut statement: Statement) -> Result<LogicalPlan, DataFusionError> {
    let state = ctx.state();
    let mut planned = state.statement_to_plan(statement.clone()).await;
    if planned.as_ref().is_err_and(column_names::is_repeated)
        && let Some(wildcards) = column_names::wildcards(&statement)
        && let Ok(of_wildcards) = state.statement_to_plan(wildcards).await
    {
        let taken = of_wildcards.schema().fields().iter().map(|field| field.name().clone()).collect();
        column_names::set_apart(&mut statement, &taken);
        planned = state.statement_to_plan(statement).await;
    }
    json_as_text(column_names::distinguish(planned?)?)
}

/// The plan with columns of JSON values, as of `->`, as their text: no format of an output has a union of types.
fn json_as_text(plan: LogicalPlan) -> Result<LogicalPlan, DataFusionError> {
    match plan {
        LogicalPlan::Copy(copy) => {
            let input = Arc::new(json_as_text(Arc::unwrap_or_clone(Arc::clone(&copy.input)))?);
            Ok(LogicalPlan::Copy(CopyTo { input, ..copy }))
        }
        LogicalPlan::Ddl(_) | LogicalPlan::Dml(_) | LogicalPlan::Statement(_) | LogicalPlan::Explain(_) => Ok(plan),
        plan => {
            let is_json = |field: &FieldRef| matches!(field.data_type(), DataType::Union(..));
            if !plan.schema().fields().iter().any(is_json) {
                return Ok(plan);
            }
            let column = |(qualifier, field): (Option<&TableReference>, &FieldRef)| {
                let column = Expr::Column(Column::from((qualifier, field)));
                match is_json(field) {
                    true => udfs::json_union_to_text_udf()
                        .call(vec![column])
                        .alias_qualified(qualifier.cloned(), field.name()),
                    false => column,
                }
            };
            let columns: Vec<Expr> = plan.schema().iter().map(column).collect();
            LogicalPlanBuilder::from(plan).project(columns)?.build()
        }
    }
}

async fn start(ctx: &SessionContext, work: Work, mut plan: LogicalPlan) -> Result<Ready, DataFusionError> {
    if work.read_only {
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
    }
    if !work.params.is_empty() {
        plan = plan.with_param_values(work.params)?;
    }
    let mut frame = ctx.execute_logical_plan(plan).await?;
    if work.explain {
        frame = frame.explain(false, false)?;
    } else if let Some(limit) = work.limit {
        frame = frame.limit(0, Some(limit))?;
    }
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let stream = execute_stream(Arc::clone(&plan), task)?;
    Ok(Ready { plan, stream })
}

/// Runs CPU-bound work without yield points as a separate task, so that its caller can stop waiting for it.
pub async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> anyhow::Result<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn(work);
    let done = tasks.join_next().await.context("the query did not start")?;
    done.context("the query's planning broke off; please report the statement")
}
