//! Child processes that run this program: for work that must be possible to end while the parent process lives on.
//!
//! A thread cannot be ended from outside, and a query may compute for ever without a pause. So a server trains, and a shell
//! runs its statements, in a child process. The child ends by itself, with its temporary files, when its stdin is closed
//! (`cli/watchdog.rs`); one that does not is killed.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long a child may take to end after its stdin was closed.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(5);

/// A command that starts this program again, without the descriptors of this process. Its file may have been replaced since
/// this process started: on Linux the command names the one that runs.
///
/// # Errors
/// If the system does not tell where the program is.
pub fn this_program() -> io::Result<Command> {
    close_on_exec();
    let link = PathBuf::from("/proc/self/exe");
    let program = if link.exists() { link } else { std::env::current_exe()? };
    let mut command = Command::new(program);
    command.arg0("tercile");
    Ok(command)
}

/// Marks all descriptors of this process close-on-exec. Those that Rust opens are so anyway; C libraries open sockets that a
/// new process would inherit, the embedded broker's among them. Setting the flag here, and not between fork and exec, leaves
/// the standard library its quick way to start a process, which does not copy the page tables of a large server.
fn close_on_exec() {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes numbers, and changes a flag that only matters when a program is started. It fails before Linux
    // 5.11; the process of a statement then closes what it got (`cli/sql/sandbox.rs`).
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
}

/// Starts this program with a hidden command and the log format of this process, in a process group of its own: Ctrl-C at
/// a terminal reaches this process only, which then decides.
pub fn worker(command: &str) -> io::Result<Command> {
    let mut worker = this_program()?;
    worker.arg(command).args(crate::log::arguments()).process_group(0);
    Ok(worker)
}

/// A child process that ends at the latest when this is dropped: then its stdin is closed, and after a second it is
/// killed.
#[derive(Debug)]
pub struct Supervised {
    child: Option<Child>,
    stdin: Option<ChildStdin>,
}

impl Supervised {
    pub fn new(mut child: Child) -> Self {
        let stdin = child.stdin.take();
        Self { child: Some(child), stdin }
    }

    pub fn stdin(&mut self) -> Option<&mut ChildStdin> {
        self.stdin.as_mut()
    }

    /// Waits for the end of a child that has nothing left to do.
    ///
    /// # Errors
    /// If the system does not tell how it ended.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        drop(self.stdin.take());
        match self.child.take() {
            Some(child) => end(child),
            None => Err(io::Error::other("the process was waited for already")),
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Some(child) = self.child.take() {
            // It may take a second, which whoever drops this must not wait.
            let ending = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || end(child));
            if let Err(error) = ending {
                tracing::warn!("cannot wait for a child process: {error}");
            }
        }
    }
}

/// Waits until a child has ended, and kills it after [`PATIENCE`].
fn end(mut child: Child) -> io::Result<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            return child.wait();
        }
        std::thread::sleep(LOOK);
    }
}

/// A path as a child process finds it, wherever that runs.
///
/// # Errors
/// If this process has no working directory.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    if tercile_store::scheme(path).is_some() { Ok(path.to_owned()) } else { std::path::absolute(path) }
}
