//! Parses the command line, runs the command and converts its result into an exit code.

use std::process::ExitCode;

/// musl's own allocator is slow with many threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tercile::cli::main()
}
