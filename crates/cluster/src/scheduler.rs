//! Serves Ballista's scheduler, and cancels queries whose clients have disconnected.
//!
//! Input: requests of clients and executors. Output: Ballista's answers. A query is cancelled when the connection of its
//! client ends: after Ctrl-C, a timeout or a kill. If the client's machine or network fails, the connection ends after
//! [`PING`] and [`PONG`]. Queries and executors are logged. `/queue/SESSION` tells what the query of a session waits for.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use ballista_core::JobId;
use ballista_core::serde::protobuf::job_status::Status as JobState;
use ballista_core::serde::protobuf::scheduler_grpc_server::{SchedulerGrpc, SchedulerGrpcServer};
use ballista_core::serde::protobuf::{
    CancelJobParams, CancelJobResult, CleanJobDataParams, CleanJobDataResult, CreateUpdateSessionParams,
    CreateUpdateSessionResult, ExecuteQueryParams, ExecuteQueryResult, ExecutorStoppedParams, ExecutorStoppedResult,
    GetJobMetricsParams, GetJobMetricsResult, GetJobStatusParams, GetJobStatusResult, HeartBeatParams, HeartBeatResult,
    PollWorkParams, PollWorkResult, RegisterExecutorParams, RegisterExecutorResult, RemoveSessionParams,
    RemoveSessionResult, UpdateTaskStatusParams, UpdateTaskStatusResult,
};
use ballista_scheduler::cluster::ClusterStateEvent;
use ballista_scheduler::scheduler_server::SchedulerServer;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use futures::{Stream, StreamExt as _};
use tokio::runtime::Handle;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::error_message::plain;
use super::jobs::{Jobs, numbered};
use super::session::MESSAGE;

/// Interval of HTTP/2 pings, and timeout of their answers.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);
/// Interval at which the state of a query that is being cancelled is read.
const LOOK: Duration = Duration::from_millis(100);

/// Ballista's scheduler.
pub(super) type Ballista = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// Serves a scheduler at this address.
pub(super) async fn serve(ballista: Ballista, address: SocketAddr, silence: Duration) -> Result<(), String> {
    let jobs = Arc::new(Jobs::default());
    let events = ballista.cluster_state_events().await.map_err(|e| e.to_string())?;
    tokio::spawn(log_executors(ballista.clone(), events));
    let health = Health { ballista: ballista.clone(), jobs: Arc::clone(&jobs), silence };
    let service = SchedulerGrpcServer::new(Service { ballista, jobs })
        .max_encoding_message_size(MESSAGE as usize)
        .max_decoding_message_size(MESSAGE as usize);
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/queue/{session}", get(queue))
        .with_state(health);
    Server::builder()
        .accept_http1(true)
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PONG))
        .add_routes(Routes::from(router).add_service(service))
        .serve(address)
        .await
        .map_err(|e| plain(&e.to_string()))
}

#[derive(Clone)]
struct Health {
    ballista: Ballista,
    jobs: Arc<Jobs>,
    silence: Duration,
}

/// Whether there are executors, for clients (`watch.rs`) and Kubernetes.
async fn readyz(State(health): State<Health>) -> (StatusCode, String) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let executors = health.ballista.state.executor_manager.get_executors_state().await.unwrap_or_default();
    let alive = |seen: &Option<Duration>| seen.is_some_and(|seen| now.saturating_sub(seen) < health.silence);
    let alive: Vec<_> = executors.into_iter().filter(|(_, seen, _)| alive(seen)).collect();
    let slots: u32 = alive.iter().map(|(executor, ..)| executor.specification.vcores).sum();
    match health.ballista.is_ready() {
        true => (StatusCode::OK, format!("ready: {} executors registered, {slots} tasks at a time\n", alive.len())),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready: 0 executors registered\n".to_owned()),
    }
}

/// What the query of a session waits for; empty if it does not wait.
async fn queue(State(health): State<Health>, Path(session): Path<String>) -> String {
    health.jobs.waiting(&session)
}

/// Logs executors that join and leave.
async fn log_executors(ballista: Ballista, mut events: impl Stream<Item = ClusterStateEvent> + Unpin) {
    let mut known: HashMap<String, String> = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            ClusterStateEvent::RegisteredExecutor { executor_id } => {
                // Fails for an executor that has left already.
                if let Ok(executor) = ballista.state.executor_manager.get_executor_metadata(&executor_id).await {
                    let at = format!("{}:{}", executor.host, executor.grpc_port);
                    tracing::info!("the executor {at} joined, for {} tasks at a time", executor.specification.vcores);
                    known.insert(executor_id, at);
                }
            }
            ClusterStateEvent::RemovedExecutor { executor_id } => {
                if let Some(at) = known.remove(&executor_id) {
                    tracing::warn!("the executor {at} is gone; its tasks run elsewhere");
                }
            }
        }
    }
}

/// The scheduler's gRPC service.
struct Service {
    ballista: Ballista,
    jobs: Arc<Jobs>,
}

/// Implements the service. The calls that are listed are passed to Ballista unchanged.
macro_rules! service {
    ($($call:ident: $asked:ty => $answered:ty),* $(,)?) => {
        #[async_trait]
        impl SchedulerGrpc for Service {
            type ExecuteQueryPushStream = Followed;

            async fn execute_query_push(
                &self,
                request: Request<ExecuteQueryParams>,
            ) -> Result<Response<Followed>, Status> {
                self.accept(request).await
            }

            async fn execute_query(
                &self,
                _: Request<ExecuteQueryParams>,
            ) -> Result<Response<ExecuteQueryResult>, Status> {
                // Such a client has no connection whose end could be noticed.
                Err(Status::unimplemented("this scheduler takes queries by ExecuteQueryPush alone"))
            }

            async fn update_task_status(
                &self,
                request: Request<UpdateTaskStatusParams>,
            ) -> Result<Response<UpdateTaskStatusResult>, Status> {
                request.get_ref().task_status.iter().for_each(|task| self.jobs.task_ended(&task.job_id));
                SchedulerGrpc::update_task_status(&self.ballista, request).await
            }

            $(async fn $call(&self, request: Request<$asked>) -> Result<Response<$answered>, Status> {
                SchedulerGrpc::$call(&self.ballista, request).await
            })*
        }
    };
}

service! {
    poll_work: PollWorkParams => PollWorkResult,
    register_executor: RegisterExecutorParams => RegisterExecutorResult,
    heart_beat_from_executor: HeartBeatParams => HeartBeatResult,
    create_update_session: CreateUpdateSessionParams => CreateUpdateSessionResult,
    remove_session: RemoveSessionParams => RemoveSessionResult,
    get_job_status: GetJobStatusParams => GetJobStatusResult,
    get_job_metrics: GetJobMetricsParams => GetJobMetricsResult,
    executor_stopped: ExecutorStoppedParams => ExecutorStoppedResult,
    cancel_job: CancelJobParams => CancelJobResult,
    clean_job_data: CleanJobDataParams => CleanJobDataResult,
}

impl Service {
    async fn accept(&self, request: Request<ExecuteQueryParams>) -> Result<Response<Followed>, Status> {
        let session = request.get_ref().session_id.clone();
        let (answer, number) = numbered(SchedulerGrpc::execute_query_push(&self.ballista, request)).await;
        let (metadata, states, extensions) = answer?.into_parts();
        let number = number.ok_or_else(|| Status::internal("the query has no number"))?;
        self.jobs.accept(&number, &session);
        tracing::info!("query {number}: accepted");
        let (ballista, jobs) = (self.ballista.clone(), Arc::clone(&self.jobs));
        let followed = Followed { states, number, ballista, jobs, runtime: Handle::current(), ended: false };
        Ok(Response::from_parts(metadata, followed, extensions))
    }
}

type States = <Ballista as SchedulerGrpc>::ExecuteQueryPushStream;

/// The states of a query that its client receives. Dropping it before the query has ended cancels the query.
struct Followed {
    states: States,
    number: String,
    ballista: Ballista,
    jobs: Arc<Jobs>,
    runtime: Handle,
    ended: bool,
}

impl Stream for Followed {
    type Item = Result<GetJobStatusResult, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.states.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(told))) = &polled {
            match told.status.as_ref().and_then(|status| status.status.as_ref()) {
                Some(JobState::Successful(_)) => self.end("finished", ""),
                Some(JobState::Failed(failed)) => self.end("failed", &plain(&failed.error)),
                _ => {}
            }
        }
        polled
    }
}

impl Followed {
    fn end(&mut self, how: &str, why: &str) {
        self.ended = true;
        log_end(&self.jobs, &self.number, how, why);
    }
}

/// Logs how a query ended, once.
fn log_end(jobs: &Jobs, number: &str, how: &str, why: &str) {
    let Some(took) = jobs.end(number) else { return };
    let took = took.as_secs_f64();
    match why {
        "" => tracing::info!("query {number}: {how} after {took:.1} s"),
        _ => tracing::warn!("query {number}: {how} after {took:.1} s: {why}"),
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        if !self.ended {
            let (ballista, jobs, number) = (self.ballista.clone(), Arc::clone(&self.jobs), self.number.clone());
            self.runtime.spawn(async move { cancel(&ballista, &jobs, &number).await });
        }
    }
}

/// Cancels a query. This has no effect while Ballista plans the query, so it is repeated until the query has ended.
async fn cancel(ballista: &Ballista, jobs: &Jobs, number: &str) {
    let job = JobId::from(number.to_owned());
    loop {
        let state = match ballista.state.task_manager.get_job_status(&job).await {
            Ok(state) => state.and_then(|state| state.status),
            Err(error) => {
                tracing::warn!("query {number}: cannot be cancelled: {}", plain(&error.to_string()));
                return;
            }
        };
        match state {
            Some(JobState::Running(_)) => {
                if let Err(error) = ballista.cancel_job(job.clone()).await {
                    tracing::warn!("query {number}: cannot be cancelled: {}", plain(&error.to_string()));
                    return;
                }
            }
            Some(JobState::Queued(_)) => {}
            Some(JobState::Successful(_)) => return log_end(jobs, number, "finished", ""),
            Some(JobState::Failed(_)) | None => {
                return log_end(jobs, number, "cancelled", "its client has left");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
