//! Child processes that run this program, for work that must be cancellable while the parent process goes on.
//!
//! A thread cannot be stopped from outside, and a query may compute indefinitely without yielding. Therefore a server trains,
//! and a shell runs its statements, in a child process. The child exits and removes its temporary files when its stdin is
//! closed (`cli/watchdog.rs`); a child that does not is killed.

#![allow(unsafe_code, reason = "close_range has no safe wrapper in the standard library")]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::time::{Duration, Instant};

/// Grace period of a child after its stdin was closed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Polling interval during the grace period.
const LOOK: Duration = Duration::from_millis(5);

/// A command that starts this program again without inheriting descriptors. The executable file may have been replaced since
/// this process started: on Linux the command names the running one.
///
/// # Errors
/// If the system does not report the path of the executable.
pub fn this_program() -> io::Result<Command> {
    close_on_exec();
    let link = PathBuf::from("/proc/self/exe");
    let program = if link.exists() { link } else { std::env::current_exe()? };
    let mut command = Command::new(program);
    command.arg0("tercile");
    Ok(command)
}

/// Marks all descriptors of this process close-on-exec. Descriptors opened by Rust already are; C libraries open sockets that a
/// child would inherit, among them those of the embedded broker. Setting the flag here, rather than between fork and exec, lets
/// the standard library use its fast spawn path, which does not copy the page tables of a large server.
fn close_on_exec() {
    #[cfg(target_os = "linux")]
    // SAFETY: the call takes integers only and sets a flag that matters only at exec. It fails before Linux 5.11; there the
    // child process of a statement closes inherited descriptors itself (`cli/sql/sandbox.rs`).
    unsafe {
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
}

/// A command that runs a hidden subcommand of this program with the log settings of this process, in its own process group:
/// Ctrl-C at a terminal reaches only this process, which decides about the child.
///
/// # Errors
/// As for [`this_program`].
pub fn worker(command: &str) -> io::Result<Command> {
    let mut worker = this_program()?;
    worker.arg(command).args(crate::log::arguments()).process_group(0);
    Ok(worker)
}

/// A child process that ends with this value: on drop its stdin is closed, and after a grace period it is killed.
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

    /// Closes stdin and waits for a child that has finished its work.
    ///
    /// # Errors
    /// If the exit status cannot be read.
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
            // Reaped on a thread of its own: it may take up to the grace period.
            let ending = std::thread::Builder::new().name("reaper".to_owned()).spawn(move || end(child));
            if let Err(error) = ending {
                tracing::warn!("cannot wait for a child process: {error}");
            }
        }
    }
}

/// Waits for a child to exit and kills it after [`PATIENCE`].
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

/// Absolute form of a path, for a child process with any working directory. URLs are unchanged.
///
/// # Errors
/// If this process has no working directory.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    if tercile_store::scheme(path).is_some() { Ok(path.to_owned()) } else { std::path::absolute(path) }
}
