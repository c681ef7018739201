//! The command line: every command, the SQL shell, cancellation, output files.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, unsafe_code, reason = "a test ends with a panic")]

#[path = "../common/mod.rs"]
mod common;

mod cancellation;
mod cli;
mod completions;
mod config_file;
mod other_dialects;
mod output_files;
mod sql;
mod your_files;
