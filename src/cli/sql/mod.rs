//! `tercile sql`: runs SQL from files, a flag, a pipe or a prompt, on the store and on files.

mod commands;
mod copy;
mod diff;
#[cfg(target_os = "linux")]
mod landlock;
pub(super) mod output;
mod params;
mod progress;
mod query;
mod runner;
pub mod sandbox;
mod scripts;
pub mod session;
mod shell;
mod table;

use std::io::{self, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};
use output::Format;
use params::{Param, TableFile};
use runner::{Runner, Settings};

use super::output_file::OutputFile;
use super::{Done, Terminal, Usage, job, within};
use crate::config::{EngineArgs, InputArgs, SqlArgs, StoreArgs, bytes, seconds};
use crate::engine::Limits;
use crate::engine::cluster::Engine;
use crate::file_format;
use crate::sql::fault::Source;

/// Run SQL over the store, or open a shell
///
/// The tables are `records` (the raw records) and the views of the SQL files: products, slices, segmentations, reports. Without
/// FILE and -c, statements are read from stdin; at a terminal, a shell is opened. The first statement that fails ends the run.
#[derive(Args)]
#[command(group(ArgGroup::new("what").args(["files", "command", "diff"])))]
pub struct Sql {
    /// Files of SQL statements and dot commands; - is stdin
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// SQL statements to run
    #[arg(short, long, env = "TERCILE_COMMAND", value_name = "SQL", allow_hyphen_values = true)]
    command: Option<String>,
    /// Show the effect of an edited SQL file: changed rows, columns and values, and the views that depend on it
    #[arg(long, env = "TERCILE_DIFF", value_name = "FILE")]
    diff: Option<PathBuf>,
    /// Format of results [default: by the file extension of the output, else table]
    #[arg(short, long, env = "TERCILE_FORMAT", value_name = "FORMAT")]
    format: Option<Format>,
    /// Output file, written after all statements succeeded [default: stdout]
    #[arg(short, long, env = "TERCILE_OUTPUT", value_name = "FILE")]
    output: Option<OutputFile>,
    /// Value for $NAME in the SQL: a number, true, false, null, or text; NAME:text=VALUE is always text; may be repeated
    #[arg(long = "param", env = "TERCILE_PARAM", value_name = "NAME=VALUE", value_parser = Param::parse)]
    params: Vec<Param>,
    /// A Parquet, Arrow, CSV or JSON file as a table; may be repeated
    #[arg(long = "table", env = "TERCILE_TABLE", value_name = "NAME=FILE", value_parser = TableFile::parse)]
    tables: Vec<TableFile>,
    /// Maximum number of printed rows; 0: no limit [default: 50 at a terminal, else 0]
    #[arg(long, env = "TERCILE_MAX_ROWS", value_name = "N")]
    max_rows: Option<usize>,
    /// Print the duration of each statement on stderr
    #[arg(long, env = "TERCILE_TIMER", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    timer: bool,
    /// Timeout of a statement in seconds
    #[arg(long, env = "TERCILE_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Memory limit of queries, as in 512MB or 2GiB; beyond it they spill to disk, or fail. On a cluster, the executors have the
    /// limit
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", value_parser = bytes)]
    memory_limit: Option<usize>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

/// Row limit of results printed to a terminal.
const ROWS_FOR_PEOPLE: usize = 50;

impl Sql {
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        if let (Some(_), Engine::Cluster(address)) = (self.memory_limit, &self.engine.engine) {
            return Err(Usage(format!(
                "--memory-limit is for --engine local, and {address} runs the queries; give it to tercile executor"
            ))
            .into());
        }
        let at_prompt =
            self.files.is_empty() && self.command.is_none() && self.diff.is_none() && io::stdin().is_terminal();
        if let Some(format) = self.format
            && format.binary()
            && self.output.is_none()
            && io::stdout().is_terminal()
        {
            anyhow::bail!(
                "{} is no text for a terminal; add --output FILE, or a pipe",
                file_format::value_name(&format)
            );
        }
        if let Some(output) = &self.output {
            // A comparison is text, independent of the result format.
            output.format(if self.diff.is_some() { Some(Format::Table) } else { self.format })?;
        }
        if at_prompt {
            return shell::run().await;
        }
        let terminal = terminal.clone();
        job(async move {
            let runner = self.open(&terminal, false).await?;
            self.scripts(runner).await
        })
        .await
    }

    /// Opens a session on the store, with the tables given on the command line.
    async fn open(&self, terminal: &Terminal, at_prompt: bool) -> anyhow::Result<Runner> {
        let for_people = io::stdout().is_terminal() && self.output.is_none();
        let settings = Settings {
            format: self.format,
            output: self.output.as_ref().map(OutputFile::open).transpose()?,
            input: self.input.options(),
            params: self.params.iter().cloned().map(|Param(name, value)| (name, value)).collect(),
            max_rows: self.max_rows.unwrap_or(if for_people { ROWS_FOR_PEOPLE } else { 0 }),
            timer: self.timer || at_prompt,
            timeout: self.timeout,
            explain: false,
        };
        let limits = Limits { memory: self.memory_limit, engine: self.engine.engine.clone(), ..Limits::default() };
        let runner = Runner::open(self.store.clone(), self.sql.clone(), settings, limits, terminal).await?;
        for table in &self.tables {
            runner.add_table("--table", table).await?;
        }
        Ok(runner)
    }

    async fn scripts(self, mut runner: Runner) -> anyhow::Result<Done> {
        self.statements(&mut runner).await?;
        runner.finish()?;
        Ok(Done::Well)
    }

    async fn statements(self, runner: &mut Runner) -> anyhow::Result<()> {
        if let Some(path) = &self.diff {
            let compared = diff::run(runner, path);
            within(self.timeout, "--timeout", "the comparison", compared).await?;
            return Ok(());
        }
        if let Some(text) = &self.command {
            return scripts::text(runner, &Source { name: None, text }).await;
        }
        let files = if self.files.is_empty() { vec![PathBuf::from("-")] } else { self.files };
        for path in files {
            if path.as_os_str() == "-" {
                let read = tokio::task::spawn_blocking(|| {
                    let mut text = String::new();
                    io::stdin().read_to_string(&mut text).map(|_| text)
                });
                let text = read.await?.map_err(|e| anyhow::anyhow!("cannot read SQL from stdin: {e}"))?;
                let text = commands::spelled_lines(&text);
                scripts::text(runner, &Source { name: Some("stdin"), text: &text }).await?;
            } else {
                scripts::file(runner, &path).await?;
            }
        }
        Ok(())
    }
}
