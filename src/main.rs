//! Parses what was typed, runs it, and turns how it ended into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tercile::cli::main()
}
