//! Somebody else's SQL, run where it can do no harm: in a process of its own.
//!
//! Input: a statement, its parameters and a format. Output: the bytes of its result, or why there are none. The process is
//! this binary, started anew with an empty environment. It limits itself before it looks at the statement
//! (`cli/sql/sandbox.rs`), and is killed at the deadline, or when nobody waits for it any longer. However it ends, this
//! process stays.

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

/// The hidden command that a process is started with.
pub const COMMAND: &str = "confined-sql";
/// The exit code of a process that says on its last line of stderr why there is no result.
pub const REFUSED: u8 = 3;

/// Bytes of a result that are read at a time.
const RESULT_PART: usize = 64 * 1024;
/// What it may say on stderr; more is dropped.
const STDERR_BYTES: usize = 64 * 1024;

/// What a statement may use.
#[derive(Debug, Clone)]
pub struct Limits {
    pub timeout: Duration,
    /// Bytes of memory of its process.
    pub memory: usize,
    /// Bytes of its result.
    pub bytes: usize,
    /// Statements that run at the same time.
    pub concurrency: usize,
}

/// What a result is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    Json,
    Csv,
    Arrow,
}

/// What a process is told, as one line of JSON on its stdin. Nothing of it is an argument that others could see.
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
    /// Seconds of processor time.
    pub seconds: u64,
}

/// Why there is no result.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// Whether the statement is to blame, or else the server.
    pub statement: bool,
    pub why: String,
    /// Where in the statement, if it is known.
    pub line: Option<u64>,
    pub column: Option<u64>,
}

impl Refusal {
    /// The statement asks for what it can't have.
    pub fn statement(why: impl Into<String>) -> Self {
        Self { statement: true, why: why.into(), line: None, column: None }
    }

    /// It may be a good statement, but it can't be answered now.
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

/// Runs statements, so many at a time.
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

    /// Runs one statement. If this is dropped, its process is killed.
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
            // Not before the process is gone.
            drop(place);
            ended
        });
        let guard = Guard(child);
        match tokio::time::timeout(self.limits.timeout, &mut attending).await {
            Ok(Ok(ended)) => self.judge(ended.map_err(cannot_start)?),
            Ok(Err(error)) => Err(cannot_start(error.into())),
            Err(_) => {
                // Whoever hears of it may send the next one at once.
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
                // The engine's own words, where they are more than the client may see.
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
        // What asks for memory that it does not get is ended by its own hand, or by the system's.
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

/// The refusal of a result that is too long.
pub fn too_long(bytes: usize) -> Refusal {
    let why = format!("the result is longer than {}, which is what --sql-bytes allows; add a LIMIT", size(bytes));
    Refusal::statement(why)
}

/// The refusal of a statement that needs too much memory.
pub fn too_large(bytes: usize) -> Refusal {
    let why =
        format!("the statement needs more memory than the {} that --sql-memory allows; ask for less", size(bytes));
    Refusal::statement(why)
}

/// `256 MB`, where it is so many.
fn size(bytes: usize) -> String {
    if bytes.is_multiple_of(1_000_000) { format!("{} MB", bytes / 1_000_000) } else { format!("{bytes} bytes") }
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    /// What it gave.
    result: Result<Vec<u8>, Unkept>,
    said: Vec<u8>,
}

/// Why a result was not kept.
#[derive(Debug, Clone, Copy)]
enum Unkept {
    TooLong,
    /// The server has no memory left for it.
    Exhausted,
}

/// The server's ends of a process' pipes.
struct Pipes {
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

/// A process that is known to whoever attends it and to whoever may have to kill it.
#[derive(Clone)]
struct Running(Arc<Mutex<Child>>);

impl Running {
    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills it, unless it has ended.
    fn kill(&self) {
        if let Err(error) = self.child().kill() {
            tracing::warn!("cannot end the process of a statement: {error}");
        }
    }

    /// How it ended. It must be about to end: others can kill it meanwhile, so it is asked and not waited for.
    fn ended(&self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.child().try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Kills a process at the latest when nobody waits for it any longer.
struct Guard(Running);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// Starts this binary once more, in a process group of its own: Ctrl-C in a terminal leaves requests that run to us.
fn start() -> io::Result<Child> {
    let mut command = process::this_program()?;
    command.arg(COMMAND).env_clear().process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// Gives a process its order, and takes what it says until it ends.
fn attend(
    child: &Running,
    Pipes { mut stdin, stdout, stderr }: Pipes,
    order: &[u8],
    most: usize,
    budget: &Budget,
) -> io::Result<Ended> {
    // One that died before it read everything is judged by how it ended.
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
    // It takes the end of its stdin for our end, so this had to live until now.
    drop(stdin);
    Ok(Ended { status, result: result?, said })
}

/// Reads a result of at most `most` bytes, charged to the budget as it comes.
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

/// Reads to the end, and keeps no more than the beginning of what is long.
fn listen(mut from: impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let room = STDERR_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}
