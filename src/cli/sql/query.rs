//! One statement on its way to rows.
//!
//! Input: a parsed statement, its parameters, and how many rows are wanted. Output: a plan that runs, and its stream.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use datafusion::sql::parser::Statement;
use tokio::task::JoinSet;

/// A statement, and what is to become of it.
pub struct Work {
    pub statement: Statement,
    pub params: HashMap<String, ScalarValue>,
    /// Whether its plan is wanted instead of its rows.
    pub explain: bool,
    pub limit: Option<usize>,
}

/// A query about to give rows.
pub struct Ready {
    pub plan: Arc<dyn ExecutionPlan>,
    pub stream: SendableRecordBatchStream,
}

/// Plans a statement and starts it.
pub async fn prepare(ctx: SessionContext, work: Work) -> Result<Ready, DataFusionError> {
    let mut plan = ctx.state().statement_to_plan(work.statement).await?;
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

/// Runs work that thinks for long without a pause on a thread of its own: whoever waits for it can give up.
pub async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> anyhow::Result<T> {
    let mut tasks = JoinSet::new();
    tasks.spawn(work);
    let done = tasks.join_next().await.context("the query did not start")?;
    done.context("the query's planning broke off; please report the statement")
}
