//! `tercile executor`

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;
use clap::Args;

use super::{Done, Stop, scheduler};
use crate::config::bytes;
use crate::engine::cluster::{Address, environment, serve};

/// An executor that ends sooner, unasked, had no scheduler to lose: it misses one for longer before it gives up.
const LASTING: Duration = Duration::from_secs(5);
/// Within this time an executor joins a scheduler that is there.
const SOON: Duration = Duration::from_secs(1);

/// How the directories of executors are called, and what ends the names of their locks.
const OWN: &str = "tercile-executor-";
const LOCK: &str = "lock";
/// How long a lock may have been there before it is held.
const BEGINNING: Duration = Duration::from_secs(60);

/// Run an executor of a cluster
///
/// It runs the tasks of a scheduler until Ctrl-C. It reads and writes the store under the same paths as its clients: a directory
/// that all machines share. Its address is the first line on stdout. If the scheduler is unreachable, the executor waits and joins
/// it again, possibly at another port, which it prints.
#[derive(Args)]
pub struct Executor {
    /// The scheduler, as in df://scheduler:50050
    #[arg(long, env = "TERCILE_SCHEDULER", value_name = "ADDRESS")]
    scheduler: Address,
    /// Address and port for tasks; port 0 selects a free one
    #[arg(long, env = "TERCILE_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:0",
          value_parser = crate::config::address)]
    bind: SocketAddr,
    /// Port at the same address from which others fetch rows; 0 selects a free one
    #[arg(long, env = "TERCILE_ROWS_PORT", value_name = "PORT", default_value_t = 0)]
    rows_port: u16,
    /// Name or address at which others reach it [default: that of --bind]
    #[arg(long, env = "TERCILE_ADVERTISE", value_name = "HOST")]
    advertise: Option<String>,
    /// Number of concurrent tasks [default: the number of processors]
    #[arg(long, env = "TERCILE_THREADS", value_name = "N")]
    threads: Option<NonZero<usize>>,
    /// Memory limit of queries, as in 512MB or 2GiB, shared by the tasks; beyond it they spill to disk
    /// [default: 0.7 of the memory]
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", value_parser = bytes)]
    memory_limit: Option<usize>,
    /// Directory for intermediate results of queries [default: a new directory in TMPDIR]
    #[arg(long, env = "TERCILE_WORK_DIR", value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

impl Executor {
    pub async fn run(self, mut stop: Stop) -> anyhow::Result<Done> {
        if self.rows_port != 0 && self.rows_port == self.bind.port() {
            anyhow::bail!("--bind and --rows-port are both {}; choose two ports", self.rows_port);
        }
        let tasks = serve::with_port(self.bind)?;
        let rows = serve::with_port(SocketAddr::new(tasks.ip(), self.rows_port))?;
        let host = scheduler::host(self.advertise.clone(), tasks, "executor")?;
        let own = match &self.work_dir {
            Some(_) => None,
            None => Some(Own::new(&std::env::temp_dir()).map_err(|(path, why)| serve::Error::Work { path, why })?),
        };
        let work = own.as_ref().map(|own| own.dir.clone()).or_else(|| self.work_dir.clone());
        let mut out = std::io::stdout();
        writeln!(out, "{host}:{}", tasks.port())?;
        out.flush()?;
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = self.threads.map_or(processors, NonZero::get);
        let began = Instant::now();
        let executor = serve::Executor {
            scheduler: self.scheduler.clone(),
            tasks,
            rows,
            host,
            threads,
            memory: self.memory_limit,
            work: work.unwrap_or_default(),
        };
        let joined = serve::Joined::default();
        let environment = environment();
        let running = serve::executor(executor, &environment, &joined);
        tokio::pin!(running);
        let ended = tokio::select! {
            ended = &mut running => ended,
            // Ballista does not hear signals while it waits for a scheduler.
            () = stop.wished() => return Ok(Done::Well),
            () = self.joining(&joined, threads) => {
                tokio::select! {
                    ended = &mut running => ended,
                    ended = stopping(&mut stop) => ended,
                }
            }
        };
        drop(own);
        if let serve::Ended::Stuck(query) = ended? {
            let why = format!("a task of the cancelled query {query} does not end");
            return Err(restart(&self.scheduler, &why));
        }
        // Ballista hears signals by itself, perhaps a little before we do.
        if tokio::time::timeout(Duration::from_millis(200), stop.wished()).await.is_err() {
            if began.elapsed() < LASTING {
                anyhow::bail!("the executor ended as soon as it had begun; are {tasks} and {rows} free? -v tells more");
            }
            let why = format!("the scheduler {} was out of reach", self.scheduler);
            return Err(restart(&self.scheduler, &why));
        }
        Ok(Done::Well)
    }

    /// Completes when the executor has joined its scheduler. Logs that it waits, and that it has joined.
    async fn joining(&self, joined: &serve::Joined, threads: usize) {
        if tokio::time::timeout(SOON, joined.wait()).await.is_err() {
            tracing::info!("waiting for the scheduler {}; Ctrl-C stops", self.scheduler);
            joined.wait().await;
        }
        tracing::info!("joined the scheduler {}, for {threads} tasks at a time", self.scheduler);
    }
}

/// Logs a request to stop: Ballista finishes running tasks first. Never completes.
async fn stopping<T>(stop: &mut Stop) -> T {
    stop.wished().await;
    tracing::info!("stopping: tasks that run are finished first; another Ctrl-C stops at once");
    std::future::pending().await
}

/// A directory of an executor's own, which goes with it; where it was killed, the next one takes it away.
struct Own {
    dir: PathBuf,
    /// Beside the directory. Its lock says that somebody uses that, and dies with the process.
    lock: PathBuf,
    _locked: File,
}

impl Own {
    fn new(at: &Path) -> Result<Self, (PathBuf, io::Error)> {
        sweep(at);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let dir = at.join(format!("{OWN}{}-{:x}", std::process::id(), since.as_nanos()));
        let lock = dir.with_extension(LOCK);
        let locked = File::create_new(&lock).and_then(|file| file.lock().map(|()| file));
        match locked {
            Ok(locked) => Ok(Self { dir, lock, _locked: locked }),
            Err(error) => Err((lock, error)),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_file(&self.lock);
    }
}

/// Takes away what executors that were killed left here. What can't be is in nobody's way.
fn sweep(at: &Path) {
    for entry in fs::read_dir(at).into_iter().flatten().flatten() {
        let lock = entry.path();
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(OWN))
            && lock.extension().is_some_and(|of| of == LOCK);
        // Whoever begins just now has not locked it yet.
        let old =
            || entry.metadata().and_then(|of| of.modified()).ok().and_then(|at| at.elapsed().ok()) > Some(BEGINNING);
        if named && old() && File::open(&lock).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(lock.with_extension(""));
            let _ = fs::remove_file(&lock);
        }
    }
}

/// Makes this process a new one. What Ballista remembers lives as long as the process: that its scheduler was out of reach or
/// has given it up, and threads whose tasks do not end. Gives the reason why it cannot.
fn restart(scheduler: &Address, why: &str) -> anyhow::Error {
    tracing::warn!("{why}; restarting, and joining {scheduler} again");
    let again = |program: &Path| Command::new(program).args(std::env::args_os().skip(1)).exec();
    // On Linux also a program whose file is gone, or another one by now.
    let error = match std::env::current_exe().map(|program| again(&program)) {
        Ok(_) | Err(_) if cfg!(target_os = "linux") => again(Path::new("/proc/self/exe")),
        Ok(error) | Err(error) => error,
    };
    anyhow!("cannot join {scheduler} again: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_executor_left_goes_with_the_next_one() {
        let at = tempfile::tempdir().unwrap();
        let begin = || Own::new(at.path()).map_err(|(_, error)| error).unwrap();
        let left = |name: &str| {
            let (dir, lock) = (at.path().join(name), at.path().join(format!("{name}.lock")));
            fs::create_dir_all(dir.join("job")).unwrap();
            fs::write(dir.join("job/rows"), "rows").unwrap();
            File::create(&lock).unwrap().set_modified(SystemTime::now() - 2 * BEGINNING).unwrap();
            (dir, lock)
        };
        let (killed, lock) = left("tercile-executor-1-2");
        let (other, _) = left("somebody-else");
        let living = begin();
        File::open(&living.lock).unwrap().set_modified(SystemTime::now() - 2 * BEGINNING).unwrap();
        fs::create_dir(&living.dir).unwrap();
        assert!(!killed.exists() && !lock.exists());
        let next = begin();
        assert!(living.dir.exists() && other.exists());
        drop((living, next));
        assert_eq!(fs::read_dir(at.path()).unwrap().count(), 2);
    }
}
