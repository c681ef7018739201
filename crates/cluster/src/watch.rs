//! A query on a cluster that ends, whatever happens to the cluster.
//!
//! Input: a plan that runs elsewhere. Output: the same plan, with an error where the scheduler does not answer, or says for a
//! while that it has no executors: by itself it would keep the query for whoever comes, and the client would wait for ever.
//! A query that waits for those of others is a warning.

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::MetricsSet;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Address;
use super::error_message::plain;

/// How long a cluster may be without executors: time enough to start one anew. With what it takes to notice that one is
/// gone (`serve.rs`) it stays below 40 seconds.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(5);
/// After how long a query that waits for others is a warning, and how long it is until the next one.
const WAITS: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(60);
/// Bytes of an answer.
const BYTES: u64 = 4096;

/// A plan that runs on a cluster, watched.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn ExecutionPlan>,
    address: Address,
    /// The name of the session, by which the scheduler knows its queries.
    session: String,
}

impl Watched {
    pub fn new(inner: Arc<dyn ExecutionPlan>, address: Address, session: String) -> Self {
        Self { inner, address, session }
    }
}

impl DisplayAs for Watched {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watched: scheduler={}", self.address)
    }
}

impl ExecutionPlan for Watched {
    fn name(&self) -> &'static str {
        "Watched"
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
            [inner] => Ok(Arc::new(Self::new(Arc::clone(inner), self.address.clone(), self.session.clone()))),
            _ => Err(DataFusionError::Internal("a watched plan has one child".to_owned())),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let stream = self.inner.execute(partition, context)?;
        let schema = stream.schema();
        let address = self.address.clone();
        let gone = Box::pin(gone(address.clone(), self.session.clone()));
        let watched = futures::stream::unfold(Some((stream, gone)), move |state| {
            let address = address.clone();
            async move {
                let (mut stream, mut gone) = state?;
                tokio::select! {
                    biased;
                    batch = stream.next() => match batch? {
                        Ok(batch) => Some((Ok(batch), Some((stream, gone)))),
                        Err(error) => Some((Err(reason(error, &address).await), None)),
                    },
                    why = &mut gone => Some((Err(DataFusionError::Execution(why)), None)),
                }
            }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, watched)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        self.inner.metrics()
    }
}

/// An error as people should read it: where the scheduler is gone, that is the reason.
async fn reason(error: DataFusionError, address: &Address) -> DataFusionError {
    match tokio::time::timeout(ANSWER, ready(address)).await {
        Ok(Ok(_)) => DataFusionError::Execution(plain(&error.strip_backtrace())),
        Ok(Err(why)) => DataFusionError::Execution(silent(address, &why.to_string())),
        Err(_) => DataFusionError::Execution(silent(address, "it says nothing")),
    }
}

fn silent(address: &Address, why: &str) -> String {
    format!("the scheduler {address} does not answer: {why}; start one with tercile scheduler, or say another --engine")
}

/// Done when there has been nobody for too long to run anything; says so. Warns of what a session's query waits for.
async fn gone(address: Address, session: String) -> String {
    let mut since = Instant::now();
    let mut warn_at = Instant::now() + WAITS;
    loop {
        let why = match tokio::time::timeout(ANSWER, ready(&address)).await {
            Ok(Ok(true)) => {
                since = Instant::now();
                String::new()
            }
            Ok(Ok(false)) => {
                let seconds = PATIENCE.as_secs();
                format!(
                    "no executor of {address} has been there for {seconds} s; start some with tercile executor --scheduler {address}"
                )
            }
            Ok(Err(error)) => silent(&address, &error.to_string()),
            Err(_) => silent(&address, "it says nothing"),
        };
        if since.elapsed() >= PATIENCE {
            return why;
        }
        if Instant::now() >= warn_at {
            // A scheduler that does not answer is noticed above.
            if let Ok(Ok((true, waits))) =
                tokio::time::timeout(ANSWER, ask(&address, &format!("/queue/{session}"))).await
                && !waits.is_empty()
            {
                tracing::warn!(
                    "the query {waits} at the scheduler {address}; wait, cancel that one, or start more executors with \
                     tercile executor --scheduler {address}"
                );
                warn_at = Instant::now() + AGAIN;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether the scheduler has executors: its probe for Kubernetes says so, on the port of all else.
async fn ready(address: &Address) -> std::io::Result<bool> {
    Ok(ask(address, "/readyz").await?.0)
}

/// Asks the scheduler over HTTP. Gives whether it says 200, and the body.
async fn ask(address: &Address, path: &str) -> std::io::Result<(bool, String)> {
    let host = address.host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = TcpStream::connect((host, address.port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", address.host);
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(BYTES).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.starts_with("HTTP/1.1 200"), body.trim().to_owned()))
}
