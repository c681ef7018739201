//! The command line: every command, the SQL shell, cancellation, output files.

#[path = "../common/mod.rs"]
mod common;

mod cancellation;
mod cli;
mod output_files;
mod sql;
