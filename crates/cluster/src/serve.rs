//! Ballista's own scheduler and executor, with our settings.
//!
//! Input: addresses and limits. Output: a process's work until it is told to stop. The scheduler pushes tasks, so that a
//! small query waits for no poll; executors say every two seconds that they live, and one that is silent for fifteen is
//! gone: its tasks run elsewhere, or their queries fail if there is nobody (`watch.rs`). `scheduler.rs` and `tasks.rs` end
//! queries whose clients have disconnected.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::error::BallistaError;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::protobuf::ExecutorStoppedParams;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::utils::default_session_builder;
use ballista_executor::execution_engine::DefaultExecutionEngine;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::health::ExecutorHealth;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::create_scheduler;
use datafusion::execution::SessionStateBuilder;
use tonic::transport::Endpoint;

use super::Address;
use super::client_pool::Pool;
use super::error_message::plain;
use super::files::{Environment, runtimes};
use super::jobs::JobIds;
use super::scheduler as service;
use super::session::MESSAGE;
use super::tasks::{Engine, Tasks};

/// Seconds between two signs of life, and after how many without one an executor is gone.
const HEARTBEAT: u64 = 2;
const SILENCE: u64 = 15;
/// Seconds that queries wait for a first executor after the last one is gone.
const GRACE: u64 = 15;
/// Timeout of telling the scheduler that this executor restarts.
const GOODBYE: Duration = Duration::from_secs(1);
/// How often an executor looks whether it has joined.
const LOOK: Duration = Duration::from_millis(50);
/// Seconds that executors keep what stages handed to each other, after a query.
const LEFTOVERS: u64 = 60;

/// Why a scheduler or an executor stopped, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("cannot listen at {address}: {why}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        why: std::io::Error,
    },
    /// The directory of an executor cannot be used.
    #[error("cannot use {path} for what queries leave on the way: {why}", path = path.display())]
    Work {
        /// The directory.
        path: PathBuf,
        /// The cause.
        why: std::io::Error,
    },
    /// An error of Ballista, in one line.
    #[error("{0}")]
    Ballista(String),
}

impl From<BallistaError> for Error {
    fn from(error: BallistaError) -> Self {
        Self::Ballista(plain(&error.to_string()))
    }
}

/// An address whose port is known, a free one where 0 was asked for. Ballista tells others the port that it was told.
///
/// # Errors
/// [`Error::Bind`] if the address cannot be used.
pub fn with_port(address: SocketAddr) -> Result<SocketAddr, Error> {
    let bind = |why| Error::Bind { address, why };
    TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(bind)
}

/// Runs a scheduler, whose port must be known. `host` is what executors call it by.
///
/// # Errors
/// If it cannot use its address.
pub async fn scheduler(address: SocketAddr, host: String, environment: &Environment) -> Result<(), Error> {
    let config = SchedulerConfig {
        external_host: host,
        bind_host: address.ip().to_string(),
        bind_port: address.port(),
        scheduling_policy: TaskSchedulingPolicy::PushStaged,
        finished_job_data_clean_up_interval_seconds: LEFTOVERS,
        finished_job_state_clean_up_interval_seconds: LEFTOVERS,
        grpc_server_max_decoding_message_size: MESSAGE,
        grpc_server_max_encoding_message_size: MESSAGE,
        grpc_client_max_message_size: MESSAGE,
        executor_timeout_seconds: SILENCE,
        expire_dead_executor_interval_seconds: HEARTBEAT,
        no_executors_grace_period_seconds: GRACE,
        job_id_generator: Some(Arc::new(JobIds::default())),
        ..SchedulerConfig::default()
    };
    let runtime = runtimes(environment).map_err(BallistaError::from)?;
    let register = environment.register;
    let session = move |config| {
        let mut state = SessionStateBuilder::new_from_existing(default_session_builder(config)?)
            .with_runtime_env(Arc::new(runtime().build()?))
            .build();
        register(&mut state)?;
        Ok(state)
    };
    let config = SchedulerConfig { override_session_builder: Some(Arc::new(session)), ..config };
    let cluster = BallistaCluster::new_from_config(&config).await?;
    config.validate()?;
    let ballista = create_scheduler(cluster, Arc::new(config)).await?;
    service::serve(ballista, address, Duration::from_secs(SILENCE)).await.map_err(Error::Ballista)
}

/// What an executor is.
#[derive(Debug, Clone)]
pub struct Executor {
    /// The scheduler that it joins.
    pub scheduler: Address,
    /// Where it listens for tasks. This port and that of `rows` must be known.
    pub tasks: SocketAddr,
    /// Where it gives rows.
    pub rows: SocketAddr,
    /// What others call it by.
    pub host: String,
    /// Tasks at a time.
    pub threads: usize,
    /// Bytes for what queries keep, shared by the tasks.
    pub memory: Option<usize>,
    /// What stages hand to each other.
    pub work: PathBuf,
}

/// How an executor ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop, or has lost its scheduler.
    Stopped,
    /// A task of this query does not end although the query was cancelled.
    Stuck(String),
}

/// Whether an executor has joined its scheduler.
#[derive(Clone, Default)]
pub struct Joined(ExecutorHealth);

impl Joined {
    /// Completes when it has.
    pub async fn wait(&self) {
        while !self.0.is_ready() {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Runs an executor until SIGINT or SIGTERM, which it hears once it has joined.
///
/// # Errors
/// It cannot use its directory or its addresses, or cannot register.
pub async fn executor(executor: Executor, environment: &Environment, joined: &Joined) -> Result<Ended, Error> {
    let work = |why| Error::Work { path: executor.work.clone(), why };
    std::fs::create_dir_all(&executor.work).map_err(work)?;
    let config = ExecutorProcessConfig {
        bind_host: executor.tasks.ip().to_string(),
        external_host: Some(executor.host),
        port: executor.rows.port(),
        grpc_port: executor.tasks.port(),
        scheduler_host: executor.scheduler.host,
        scheduler_port: executor.scheduler.port,
        // One that is away is waited for.
        scheduler_connect_timeout_seconds: u16::MAX,
        vcores: executor.threads,
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir: Some(executor.work.display().to_string()),
        job_data_ttl_seconds: 3600,
        job_data_clean_up_interval_seconds: 600,
        grpc_max_decoding_message_size: MESSAGE,
        grpc_max_encoding_message_size: MESSAGE,
        executor_heartbeat_interval_seconds: HEARTBEAT,
        memory_pool_size: executor.memory.map(|bytes| bytes as u64),
        ..ExecutorProcessConfig::default()
    };
    let (runtime, spilled) = (runtimes(environment).map_err(BallistaError::from)?, executor.work);
    let runtime = move |_: &_| Ok(Arc::new(runtime().with_temp_file_path(spilled.clone()).build()?));
    let tasks = Arc::new(Tasks::default());
    let ballista = DefaultExecutionEngine::with_client_pool(Arc::new(Pool::default()));
    let engine = Engine { ballista, tasks: Arc::clone(&tasks) };
    let scheduler = format!("http://{}:{}", config.scheduler_host, config.scheduler_port);
    let config = ExecutorProcessConfig {
        override_runtime_producer: Some(Arc::new(runtime)),
        override_function_registry: Some(Arc::new(functions(environment))),
        override_execution_engine: Some(Arc::new(engine)),
        health: joined.0.clone(),
        ..config
    };
    let id = config.executor_id.clone();
    tokio::select! {
        ended = start_executor_process(Arc::new(config)) => Ok(ended.map(|()| Ended::Stopped)?),
        query = tasks.attend(&scheduler) => {
            // Then the scheduler reschedules its tasks at once, and not only after its heartbeats have stopped.
            let _ = tokio::time::timeout(GOODBYE, leave(&scheduler, id)).await;
            Ok(Ended::Stuck(query))
        }
    }
}

/// Tells a scheduler that an executor is gone.
async fn leave(scheduler: &str, executor_id: String) {
    let Ok(endpoint) = Endpoint::from_shared(scheduler.to_owned()) else { return };
    if let Ok(channel) = endpoint.connect().await {
        let reason = "a task does not end".to_owned();
        let _ = SchedulerGrpcClient::new(channel).executor_stopped(ExecutorStoppedParams { executor_id, reason }).await;
    }
}

/// DataFusion's own functions, and those of the environment.
fn functions(environment: &Environment) -> BallistaFunctionRegistry {
    let mut known = BallistaFunctionRegistry::from(&SessionStateBuilder::new().with_default_features().build());
    for function in &environment.functions {
        known.scalar_functions.insert(function.name().to_owned(), Arc::clone(function));
    }
    for function in &environment.aggregates {
        known.aggregate_functions.insert(function.name().to_owned(), Arc::clone(function));
    }
    known
}
