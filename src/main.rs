//! Parses the command line, runs the command and converts its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    tercile::cli::main()
}
