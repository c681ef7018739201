//! Runs a training in a child process, so that a server can kill a training that does not end.
//!
//! Input: the store, the SQL files and a time limit. Output: the result of [`super::train`]. The child is this program with a
//! hidden subcommand (`cli/train_worker.rs`): it reads an [`Order`] as one line of JSON from stdin, writes each
//! [`TrainingEvent`] as one to stdout, and logs to the inherited stderr. It ends when this process ends.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tercile_store::Store;

use super::event::{Emit, Timeout, TrainingEvent};
use super::{TrainerOptions, Training};
use crate::model::{Promote, SolverKind};
use crate::process::{self, Supervised};

/// The hidden subcommand of the child process.
pub const COMMAND: &str = "train-worker";

/// A training without a time limit that takes longer than this is reported in the log.
const LONG: Duration = Duration::from_secs(600);

/// The input of the child process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    pub store: PathBuf,
    /// The directory of SQL files; `None` means `sql` if it exists, otherwise the built-in files.
    pub sql: Option<PathBuf>,
    /// [`super::Options::keep_members`].
    pub keep_members: usize,
    pub solver: SolverKind,
    pub promote: Promote,
}

/// The reason why a training in a child process gave no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the process of the training: {0}")]
    Start(io::Error),
    #[error(transparent)]
    Timeout(Timeout),
    #[error("the process of the training ended without an answer ({0})")]
    Died(ExitStatus),
    #[error("the process of the training was killed by signal {0}; the machine may lack memory")]
    Killed(i32),
    #[error("{0}")]
    Failed(String),
}

/// Trains every segmentation in a child process, which is killed when this future is dropped. Sends its events, but not the last
/// one, which is the result.
///
/// # Errors
/// The error of the training as text, the time limit, or a child process that could not be started or was killed.
pub async fn train(
    store: &Store,
    sql: Option<&Path>,
    &TrainerOptions { timeout: limit, keep_members, solver, promote }: &TrainerOptions,
    emit: Emit,
) -> Result<Training, Error> {
    let absolute = |path: &Path| process::absolute(path).map_err(Error::Start);
    let (store, sql) = (absolute(store.root())?, sql.map(absolute).transpose()?);
    let order = Order { store, sql, keep_members, solver, promote };
    let mut line = serde_json::to_vec(&order).map_err(|e| Error::Start(e.into()))?;
    line.push(b'\n');
    let mut command = process::worker(COMMAND).map_err(Error::Start)?;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(Error::Start)?;
    let stdout = child.stdout.take();
    // Dropping this future kills the child while another thread still reads its output.
    let child = Owned(Arc::new(Mutex::new(Some(Supervised::new(child)))));
    let attended = Arc::clone(&child.0);
    let mut attending = tokio::task::spawn_blocking(move || attend(&attended, stdout, &line, &emit));
    let deadline = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => {
                tokio::time::sleep(LONG).await;
                let minutes = LONG.as_secs() / 60;
                tracing::warn!("a training has run for {minutes} minutes and goes on; --train-timeout limits it");
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        attended = &mut attending => attended.unwrap_or_else(|e| Err(Error::Start(io::Error::other(e)))),
        () = deadline => Err(Error::Timeout(Timeout(limit.unwrap_or_default()))),
    }
}

type Shared = Arc<Mutex<Option<Supervised>>>;

/// Kills the child on drop.
struct Owned(Shared);

impl Drop for Owned {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Sends the order to the child and passes its events on until the last one.
fn attend(child: &Shared, stdout: Option<ChildStdout>, order: &[u8], emit: &Emit) -> Result<Training, Error> {
    if let Some(stdin) = child.lock().unwrap_or_else(PoisonError::into_inner).as_mut().and_then(Supervised::stdin) {
        // A child that ended before it read the whole order is judged by its exit status.
        let _ = stdin.write_all(order);
    }
    let mut end = None;
    for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).split(b'\n')) {
        match serde_json::from_slice(&line.map_err(Error::Start)?) {
            Ok(TrainingEvent::Ended(training)) => end = Some(Ok(*training)),
            Ok(TrainingEvent::Failed { why, .. }) => end = Some(Err(Error::Failed(why))),
            Ok(event) => emit.send(event),
            // The rest of a line: the child was killed, and is judged by its exit status.
            Err(_) => break,
        }
    }
    let child = child.lock().unwrap_or_else(PoisonError::into_inner).take();
    let status = child.map(Supervised::wait).transpose().map_err(Error::Start)?;
    match (end, status) {
        (Some(end), _) => end,
        (None, Some(status)) => Err(status.signal().map_or(Error::Died(status), Error::Killed)),
        // The future was dropped, and nobody reads this.
        (None, None) => Err(Error::Start(io::ErrorKind::Interrupted.into())),
    }
}
