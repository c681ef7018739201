//! Runs untrusted SQL in a sandboxed process.
//!
//! Input: a statement, its parameters and a format. Output: the bytes of its result, or a refusal. The process is this binary,
//! started with an empty environment. It limits itself before it parses the statement (`cli/sql/sandbox.rs`), and is killed at
//! the timeout or when the request is dropped. No failure of it affects this process.

use std::collections::BTreeMap;
use std::io::{self, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::budget::{Budget, Exhausted};
use super::problem::Problem;
use crate::process;

/// Hidden subcommand of the sandboxed process.
pub const COMMAND: &str = "confined-sql";
/// Exit code of a process whose last line of stderr is a [`Refusal`].
pub const REFUSED: u8 = 3;

/// Buffer size for reading a result.
const RESULT_PART: usize = 64 * 1024;
/// Maximum bytes kept of stderr.
const STDERR_BYTES: usize = 64 * 1024;

/// Limits of statements.
#[derive(Debug, Clone)]
pub struct Limits {
    pub timeout: Duration,
    /// Bytes of memory of the process.
    pub memory: usize,
    /// Bytes of the result.
    pub bytes: usize,
    /// Concurrent statements.
    pub concurrency: usize,
}

/// Result format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Json,
    Csv,
    Arrow,
}

/// Task of a process, sent as one line of JSON on stdin. Nothing is passed as an argument, which other users could read.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub store: PathBuf,
    /// The directory of SQL files, if one was given.
    pub sql: Option<PathBuf>,
    pub statement: String,
    pub params: BTreeMap<String, Value>,
    pub form: Form,
    pub memory: usize,
    pub bytes: usize,
    /// Seconds of CPU time.
    pub seconds: u64,
}

/// Reason why there is no result.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Whether the statement is at fault, or else the server.
    pub statement: bool,
    pub why: String,
    /// Position in the statement, if known.
    pub line: Option<u64>,
    pub column: Option<u64>,
}

impl Refusal {
    /// The statement is invalid or exceeds a limit.
    pub fn statement(why: impl Into<String>) -> Self {
        Self { statement: true, why: why.into(), line: None, column: None }
    }

    /// The server cannot run the statement now.
    pub fn server(why: impl Into<String>) -> Self {
        Self { statement: false, why: why.into(), line: None, column: None }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = match refusal.statement {
            true => Self::unprocessable(refusal.why),
            false => Self::unavailable(refusal.why),
        };
        Self { line: refusal.line, column: refusal.column, ..problem }
    }
}

/// Runs statements, with a concurrency limit.
pub struct Sandbox {
    limits: Limits,
    store: PathBuf,
    sql: Option<PathBuf>,
    free: Arc<Semaphore>,
}

impl Sandbox {
    pub fn new(store: &Path, sql: Option<&Path>, limits: Limits) -> Self {
        let free = Arc::new(Semaphore::new(limits.concurrency));
        Self { limits, store: store.to_owned(), sql: sql.map(Path::to_owned), free }
    }

    /// Runs one statement. Dropping the future kills its process.
    ///
    /// # Errors
    /// A refusal: too many statements run, the statement is at fault, or the process failed.
    pub async fn run(
        &self,
        statement: String,
        params: BTreeMap<String, Value>,
        form: Form,
        budget: &Budget,
    ) -> Result<Vec<u8>, Refusal> {
        let Ok(place) = Arc::clone(&self.free).try_acquire_owned() else {
            let running = self.limits.concurrency;
            let why =
                format!("{running} statements run already, which is all that --sql-concurrency allows; try again");
            return Err(Refusal::server(why));
        };
        let order = Order {
            store: self.store.clone(),
            sql: self.sql.clone(),
            statement,
            params,
            form,
            memory: self.limits.memory,
            bytes: self.limits.bytes,
            seconds: self.limits.timeout.as_secs_f64().ceil() as u64,
        };
        let cannot_start = |error: io::Error| {
            tracing::error!("cannot start a process for POST /api/sql: {error}");
            Refusal::server("the process that runs statements could not be started; the server's log says why")
        };
        let mut line = serde_json::to_vec(&order).map_err(|error| cannot_start(error.into()))?;
        line.push(b'\n');
        let mut child = start().map_err(cannot_start)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else { unreachable!("all three are piped") };
        let pipes = Pipes { stdin, stdout, stderr };
        let child = Running(Arc::new(Mutex::new(child)));
        let (attended, most, budget) = (child.clone(), self.limits.bytes, budget.clone());
        let mut attending = tokio::task::spawn_blocking(move || {
            let ended = attend(&attended, pipes, &line, most, &budget);
            // The slot is released only after the process has exited.
            drop(place);
            ended
        });
        let guard = Guard(child);
        match tokio::time::timeout(self.limits.timeout, &mut attending).await {
            Ok(Ok(ended)) => self.judge(ended.map_err(cannot_start)?),
            Ok(Err(error)) => Err(cannot_start(error.into())),
            Err(_) => {
                // Waits for the process to exit, so that the slot is free when the client learns of the timeout.
                drop(guard);
                let _ = attending.await;
                Err(self.too_slow())
            }
        }
    }

    fn judge(&self, ended: Ended) -> Result<Vec<u8>, Refusal> {
        let Ended { status, result, said } = ended;
        let said = String::from_utf8_lossy(&said);
        let result = result.map_err(|kept| match kept {
            Unkept::TooLong => too_long(self.limits.bytes),
            Unkept::Exhausted => Refusal::server(Problem::from(Exhausted).detail),
        })?;
        if status.success() {
            return Ok(result);
        }
        let last = said.trim_end().lines().next_back().unwrap_or_default();
        if status.code() == Some(i32::from(REFUSED))
            && let Ok(refusal) = serde_json::from_str::<Refusal>(last)
        {
            if !refusal.statement {
                // Logs the engine's message if it is more detailed than the refusal that the client sees.
                let first = said.trim().lines().next().filter(|first| *first != last).unwrap_or(&refusal.why);
                tracing::error!("POST /api/sql: {first}");
            }
            return Err(refusal);
        }
        if status.signal() == Some(libc::SIGXCPU) {
            return Err(self.too_slow());
        }
        let first = said.trim().lines().next().unwrap_or("it said nothing");
        tracing::warn!("a statement of POST /api/sql ended its process ({status}): {first}");
        if said.contains("overflowed its stack") {
            return Err(Refusal::statement("the statement is nested too deep; write it flatter"));
        }
        // Exceeding the memory limit aborts the process, or the kernel kills it.
        if status.signal().is_some() {
            return Err(too_large(self.limits.memory));
        }
        Err(Refusal::statement("the statement broke its process; the server's log says how. Ask in another way"))
    }

    fn too_slow(&self) -> Refusal {
        let seconds = self.limits.timeout.as_secs_f64();
        let why = format!("stopped after {seconds} s, which is what --sql-timeout allows; ask for less");
        Refusal::statement(why)
    }
}

/// Refusal of a result that is too long.
pub fn too_long(bytes: usize) -> Refusal {
    let why = format!("the result is longer than {}, which is what --sql-bytes allows; add a LIMIT", size(bytes));
    Refusal::statement(why)
}

/// Refusal of a statement that needs too much memory.
pub fn too_large(bytes: usize) -> Refusal {
    let why =
        format!("the statement needs more memory than the {} that --sql-memory allows; ask for less", size(bytes));
    Refusal::statement(why)
}

/// Bytes as text, in MB if it is a multiple.
fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(1_000_000) { format!("{} MB", bytes / 1_000_000) } else { format!("{bytes} bytes") }
}

/// Outcome of a process.
struct Ended {
    status: ExitStatus,
    /// Content of stdout.
    result: Result<Vec<u8>, Unkept>,
    said: Vec<u8>,
}

/// Reason why a result was discarded.
#[derive(Debug, Clone, Copy)]
enum Unkept {
    TooLong,
    /// The memory budget is exhausted.
    Exhausted,
}

/// The parent's ends of the pipes.
struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

/// A process shared by the thread that serves its pipes and the guard that may kill it.
#[derive(Clone)]
struct Running(Arc<Mutex<Child>>);

impl Running {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills the process unless it has exited.
    fn kill(&self) {
        if let Err(error) = self.child().kill() {
            tracing::warn!("cannot end the process of a statement: {error}");
        }
    }

    /// Exit status of a process that is about to exit. Polls, because a blocking wait would hold the lock that a kill needs.
    fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child().try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Kills the process when dropped.
struct Guard(Running);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Starts this binary in its own process group: Ctrl-C at a terminal does not interrupt running requests.
fn start() -> io::Result<Child> {
    let mut command = process::this_program()?;
    command.arg(COMMAND).env_clear().process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Sends a process its order and reads its output until it exits.
fn attend(
    child: &Running,
    Pipes { mut stdin, stdout, stderr }: Pipes,
    order: &[u8],
    most: usize,
    budget: &Budget,
) -> io::Result<Ended> {
    // A write to a process that died fails; its exit status tells more.
    let _ = stdin.write_all(order);
    let listening = std::thread::Builder::new().spawn(move || listen(stderr));
    let result = match &listening {
        Ok(_) => keep(stdout, most, budget),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    if !matches!(result, Ok(Ok(_))) {
        child.kill();
    }
    let said = listening.map(|thread| thread.join().unwrap_or_default()).unwrap_or_default();
    let status = child.ended()?;
    // Kept open until here: the process exits when its stdin is closed.
    drop(stdin);
    Ok(Ended { status, result: result?, said })
}

/// Reads a result of at most `most` bytes, charged to the budget as it arrives.
fn keep(mut from: ChildStdout, most: usize, budget: &Budget) -> io::Result<Result<Vec<u8>, Unkept>> {
    let (mut result, mut buffer) = (Vec::new(), vec![0; RESULT_PART]);
    let Ok(mut hold) = budget.hold(0) else { return Ok(Err(Unkept::Exhausted)) };
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(Ok(result)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if result.len() + read > most {
            return Ok(Err(Unkept::TooLong));
        }
        if hold.grow(read).is_err() {
            return Ok(Err(Unkept::Exhausted));
        }
        result.extend_from_slice(&buffer[..read]);
    }
}

/// Reads to the end and keeps at most [`STDERR_BYTES`] bytes.
fn listen(mut from: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let room = STDERR_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}
