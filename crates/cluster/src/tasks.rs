//! Tasks of an executor that end when their query is cancelled.
//!
//! Input: the plan of a task. Output: the same plan, which ends with an error once the query has ended on the scheduler.
//! Ballista alone does not do that: cancelling a task only stops waiting for it, and a join can compute for hours within one
//! poll. Here the rows of a task pass [`Stoppable`]; joins yield ([`CooperativeExec`]), and check at each evaluation of their
//! filters ([`Check`]). Once a second the executor asks the scheduler which queries still run. If a task does not end all
//! the same, [`Tasks::attend`] completes, and the process must be restarted.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::serde::protobuf::job_status::Status as JobState;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    GetJobStatusParams, RuntimeStatsReport, ShuffleWritePartition, TaskColumnStats, WindowStateReport,
};
use ballista_executor::execution_engine::{DefaultExecutionEngine, ExecutionEngine, QueryStageExecutor};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
};
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, ReplaceChildrenOptions,
};
use datafusion::prelude::SessionConfig;
use futures::StreamExt as _;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

/// Interval at which the scheduler is asked which queries run.
const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// How long a task may take to end.
const END: Duration = Duration::from_secs(3);

/// The tasks of this executor.
#[derive(Debug, Default)]
pub(super) struct Tasks(Mutex<Vec<Weak<Task>>>);

/// A task, as long as any part of its plan exists.
#[derive(Debug)]
struct Task {
    job: String,
    stopped: AtomicBool,
    /// Wakes streams that wait for rows.
    stop: watch::Sender<bool>,
    since: Mutex<Option<Instant>>,
}

impl Task {
    fn stop(&self) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            self.stop.send_replace(true);
        }
    }

    fn check(&self) -> Result<()> {
        match self.stopped.load(Ordering::Relaxed) {
            true => Err(DataFusionError::Execution("the query was cancelled".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether it should have ended by now.
    fn late(&self) -> bool {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > END)
    }
}

impl Tasks {
    fn list(&self) -> MutexGuard<'_, Vec<Weak<Task>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, job: &str) -> Arc<Task> {
        let (job, stop) = (job.to_owned(), watch::Sender::new(false));
        let task = Arc::new(Task { job, stopped: AtomicBool::new(false), stop, since: Mutex::default() });
        self.list().push(Arc::downgrade(&task));
        task
    }

    fn all(&self) -> Vec<Arc<Task>> {
        let mut list = self.list();
        list.retain(|task| task.strong_count() > 0);
        list.iter().filter_map(Weak::upgrade).collect()
    }

    /// Ends the tasks of queries that have ended on the scheduler at this URL. Completes with the number of a query some
    /// task of which does not end.
    pub async fn attend(&self, scheduler: &str) -> String {
        let mut client = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let tasks = self.all();
            if let Some(task) = tasks.iter().find(|task| task.late()) {
                return task.job.clone();
            }
            let mut jobs: Vec<&str> = tasks.iter().map(|task| task.job.as_str()).collect();
            jobs.sort_unstable();
            jobs.dedup();
            for job in jobs {
                match tokio::time::timeout(ANSWER, goes_on(&mut client, scheduler, job)).await {
                    Ok(Some(false)) => tasks.iter().filter(|task| task.job == job).for_each(|task| task.stop()),
                    Ok(Some(true)) => {}
                    // If the scheduler stays away, Ballista's heartbeats fail, and the executor ends.
                    Ok(None) | Err(_) => client = None,
                }
            }
        }
    }
}

/// Whether a query goes on, or has all its rows; `None` if the scheduler does not say.
async fn goes_on(client: &mut Option<SchedulerGrpcClient<Channel>>, scheduler: &str, job: &str) -> Option<bool> {
    if client.is_none() {
        let channel = Endpoint::from_shared(scheduler.to_owned()).ok()?.connect().await.ok()?;
        *client = Some(SchedulerGrpcClient::new(channel));
    }
    let asked = GetJobStatusParams { job_id: job.to_owned() };
    let answer = client.as_mut()?.get_job_status(asked).await.ok()?.into_inner();
    let state = answer.status.and_then(|status| status.status);
    Some(matches!(state, Some(JobState::Queued(_) | JobState::Running(_) | JobState::Successful(_))))
}

/// Ballista's way to run tasks, and [`Tasks`] that can be stopped.
pub(super) struct Engine {
    pub ballista: DefaultExecutionEngine,
    pub tasks: Arc<Tasks>,
}

impl ExecutionEngine for Engine {
    fn create_query_stage_exec(
        &self,
        job_id: JobId,
        stage_id: usize,
        task_id: usize,
        global_output_partition_ids: Vec<usize>,
        plan: Arc<dyn ExecutionPlan>,
        work_dir: &str,
        config: &SessionConfig,
    ) -> Result<Arc<dyn QueryStageExecutor>> {
        let task = self.tasks.begin(job_id.as_str());
        let plan = stoppable(plan, &task)?;
        let ids = global_output_partition_ids;
        let ballista = self.ballista.create_query_stage_exec(job_id, stage_id, task_id, ids, plan, work_dir, config)?;
        Ok(Arc::new(Stage { ballista, task }))
    }
}

/// A task that is stopped when Ballista drops its future.
#[derive(Debug)]
struct Stage {
    ballista: Arc<dyn QueryStageExecutor>,
    task: Arc<Task>,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ballista.fmt(f)
    }
}

/// Stops a task when it is dropped.
struct Stops<'a>(&'a Task);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[async_trait]
impl QueryStageExecutor for Stage {
    async fn execute_query_stage(&self, id: usize, context: Arc<TaskContext>) -> Result<Vec<ShuffleWritePartition>> {
        // Ballista cancels a task by dropping this future; tasks that were spawned in it would continue.
        let stops = Stops(&self.task);
        let written = self.ballista.execute_query_stage(id, context).await;
        if written.is_ok() {
            // All parts of the task have ended.
            std::mem::forget(stops);
        }
        written
    }

    fn collect_plan_metrics(&self) -> Vec<MetricsSet> {
        self.ballista.collect_plan_metrics()
    }

    fn collect_runtime_stats_reports(&self) -> Vec<RuntimeStatsReport> {
        self.ballista.collect_runtime_stats_reports()
    }

    fn collect_window_state_reports(&self) -> Result<Vec<WindowStateReport>> {
        self.ballista.collect_window_state_reports()
    }

    fn collect_column_stats(&self) -> Vec<TaskColumnStats> {
        self.ballista.collect_column_stats()
    }
}

/// A task's plan that ends when the task is stopped.
fn stoppable(plan: Arc<dyn ExecutionPlan>, task: &Arc<Task>) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = plan.transform_up(|node| {
        let node = match checked(&node, task)? {
            Some(node) => node,
            // It can make many rows out of few.
            None if node.children().len() > 1 || node.is::<UnnestExec>() => node,
            None => return Ok(Transformed::no(node)),
        };
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as _))
    })?;
    // At the top is what writes the rows.
    let children: Vec<_> = plan.data.children().into_iter().map(|child| Stoppable::over(child, task)).collect();
    plan.data.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
}

/// A join with its filter checked; `None`: it is another node, or has no filter.
fn checked(node: &Arc<dyn ExecutionPlan>, task: &Arc<Task>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let check = |filter: &JoinFilter| {
        let expression = Arc::new(Check { inner: Arc::clone(filter.expression()), task: Arc::clone(task) });
        JoinFilter::new(expression, filter.column_indices().to_vec(), Arc::clone(filter.schema()))
    };
    if let Some(join) = node.downcast_ref::<SortMergeJoinExec>()
        && let Some(filter) = join.filter()
    {
        let (left, right) = (Arc::clone(join.left()), Arc::clone(join.right()));
        let (on, options) = (join.on().to_vec(), join.sort_options().to_vec());
        let filter = Some(check(filter));
        let join =
            SortMergeJoinExec::try_new(left, right, on, filter, join.join_type(), options, join.null_equality())?;
        return Ok(Some(Arc::new(join)));
    }
    if let Some(join) = node.downcast_ref::<HashJoinExec>()
        && let Some(filter) = join.filter()
    {
        return Ok(Some(join.builder().with_filter(Some(check(filter))).build_exec()?));
    }
    if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>()
        && let Some(filter) = join.filter()
    {
        let (left, right) = (Arc::clone(join.left()), Arc::clone(join.right()));
        let builder = NestedLoopJoinExecBuilder::new(left, right, *join.join_type());
        let builder = builder.with_projection_ref(join.projection().clone()).with_filter(Some(check(filter)));
        return Ok(Some(Arc::new(builder.build()?)));
    }
    Ok(None)
}

/// The rows of a task, until it is stopped.
#[derive(Debug)]
struct Stoppable {
    inner: Arc<dyn ExecutionPlan>,
    task: Arc<Task>,
}

impl Stoppable {
    fn over(inner: &Arc<dyn ExecutionPlan>, task: &Arc<Task>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { inner: Arc::clone(inner), task: Arc::clone(task) })
    }
}

impl DisplayAs for Stoppable {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stoppable: query={}", self.task.job)
    }
}

impl ExecutionPlan for Stoppable {
    fn name(&self) -> &'static str {
        "Stoppable"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.inner]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        match children.as_slice() {
            [inner] => Ok(Self::over(inner, &self.task)),
            _ => Err(DataFusionError::Internal("a task's plan has one child".to_owned())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let rows = self.inner.execute(partition, context)?;
        let schema = rows.schema();
        let task = Arc::clone(&self.task);
        let until = futures::stream::unfold(Some(rows), move |rows| {
            let task = Arc::clone(&task);
            async move {
                let mut rows = rows?;
                let mut stopped = task.stop.subscribe();
                tokio::select! {
                    biased;
                    _ = stopped.wait_for(|stopped| *stopped) => task.check().err().map(|error| (Err(error), None)),
                    batch = rows.next() => batch.map(|batch| (batch, Some(rows))),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, until)))
    }
}

/// An expression that fails once its task is stopped.
#[derive(Debug)]
struct Check {
    inner: Arc<dyn PhysicalExpr>,
    task: Arc<Task>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PartialEq for Check {
    fn eq(&self, other: &Self) -> bool {
        self.inner.as_ref() == other.inner.as_ref() && Arc::ptr_eq(&self.task, &other.task)
    }
}

impl Eq for Check {}

impl Hash for Check {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.as_ref().hash(state);
    }
}

impl PhysicalExpr for Check {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.task.check()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.as_slice() {
            [inner] => Ok(Arc::new(Self { inner: Arc::clone(inner), task: Arc::clone(&self.task) })),
            _ => Err(DataFusionError::Internal("a check has one child".to_owned())),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
