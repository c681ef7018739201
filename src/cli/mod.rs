//! The command line: one file per command, which parses arguments, calls the library and prints the result.

mod alive;
mod broker;
#[cfg(feature = "distributed")]
mod cluster;
mod compact;
mod completions;
mod config_file;
mod docs;
mod doctor;
mod drift;
mod enrich;
mod exit_code;
mod files;
mod first_records;
mod fit;
mod generate;
mod hint_flags;
mod imputed;
mod ingest;
mod init;
mod keys;
mod man;
mod members;
mod model;
mod models;
mod notify;
mod openapi;
mod output_file;
mod plot;
mod predict;
mod produce;
mod quartiles;
mod reprocess;
mod scaling;
mod serve;
mod source_topics;
mod sql;
mod staged_file;
mod suggest;
mod table;
mod timestamps;
mod train;
mod train_worker;
mod up;
mod verify;
mod watchdog;

use std::any::TypeId;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use config_file::ConfigArgs;
use exit_code::{fail, say};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use output_file::OutputFile;
use tercile_store::{cleanup, times};
use tokio::sync::watch;
use watchdog::{Mode, Signalled};

use crate::hints;
use crate::log::{self, LogArgs};

/// Live segments from a Kafka stream.
///
/// tercile consumes records from a topic, keeps them as Parquet, cleans and slices them with SQL files, trains KMeans on
/// growing thirds of the stream, and serves predictions over HTTP. Start with `tercile up`.
#[derive(Parser)]
#[command(name = "tercile", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    Up(Box<up::Up>),
    Produce(produce::Produce),
    Ingest(ingest::Ingest),
    Compact(compact::Compact),
    Files(files::Files),
    Init(init::Init),
    #[command(visible_alias = "replay")]
    Reprocess(reprocess::Reprocess),
    Sql(sql::Sql),
    #[command(name = sql::session::COMMAND, hide = true)]
    SqlSession(sql::session::SqlSession),
    #[command(hide = true)]
    ConfinedSql(sql::sandbox::ConfinedSql),
    Train(train::Train),
    #[command(name = crate::train::worker::COMMAND, hide = true)]
    TrainWorker(train_worker::TrainWorker),
    Model(model::Model),
    Plot(plot::Plot),
    Models(models::Models),
    Members(members::Members),
    Verify(verify::Verify),
    Drift(drift::Drift),
    Predict(predict::Predict),
    Enrich(Box<enrich::Enrich>),
    Fit(fit::Fit),
    SuggestK(suggest::SuggestK),
    Serve(serve::Serve),
    Keys(keys::Keys),
    Notify(notify::Notify),
    Broker(broker::Broker),
    #[cfg(feature = "distributed")]
    #[command(flatten)]
    Cluster(cluster::Cluster),
    Generate(generate::Generate),
    Openapi(openapi::Openapi),
    Doctor(doctor::Doctor),
    Docs(docs::Docs),
    Completions(completions::Completions),
    #[command(name = "man")]
    ManPage(man::ManPage),
}

/// Stack size of a thread in bytes: SQL planning recurses, deepest in the dev profile. Unused stack costs nothing.
const STACK: usize = 64 << 20;
/// The runtime's own variable for the number of worker threads. If it is not set, `serve` leaves one core to the
/// kernel and other processes: a worker thread that waits for a core delays the answers of all its connections.
const WORKERS: &str = "TOKIO_WORKER_THREADS";

/// Commands about the program itself. They read no configuration file, so that they work beside a wrong one.
const ABOUT_ITSELF: [&str; 3] = ["completions", "docs", "man"];

/// Contradictory arguments. The exit code is 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(String);

/// A flag that names an output file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OutputFlag {
    /// The command and its subcommand, if any, separated by a space.
    pub command: String,
    /// The long form of the flag, with its dashes.
    pub flag: String,
}

/// Every flag that names an output file, taken from the definition of the command line.
pub fn output_flags() -> Vec<OutputFlag> {
    fn add(command: &clap::Command, path: &str, flags: &mut Vec<OutputFlag>) {
        for arg in command.get_arguments() {
            if arg.get_value_parser().type_id() == TypeId::of::<OutputFile>() {
                let flag = arg.get_long().map_or_else(|| arg.get_id().to_string(), |long| format!("--{long}"));
                flags.push(OutputFlag { command: path.to_owned(), flag });
            }
        }
        for command in command.get_subcommands() {
            add(command, format!("{path} {}", command.get_name()).trim_start(), flags);
        }
    }
    let mut flags = Vec::new();
    add(&Cli::command(), "", &mut flags);
    flags
}

/// Exit status of a successful command.
enum Done {
    Well,
    /// Exit with this code; all messages were already printed.
    With(u8),
}

/// The terminal state shared by commands.
#[derive(Clone)]
struct Terminal {
    bars: MultiProgress,
}

impl Terminal {
    /// A progress bar for this number of bytes, or a counter if the number is unknown. Hidden if stderr is not a
    /// terminal.
    fn bar(&self, bytes: Option<u64>) -> ProgressBar {
        let (bar, template) = match bytes {
            Some(bytes) => {
                (ProgressBar::new(bytes), "{bar:30} {percent:>3}%  {msg}  {binary_bytes_per_sec}  {eta} left")
            }
            None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(bar.with_style(style))
    }

    /// A progress bar for a query that has run for `elapsed` and reads this number of rows, if known.
    fn rows(&self, rows: Option<u64>, elapsed: Duration) -> ProgressBar {
        let (bar, template) = match rows {
            Some(rows) => (ProgressBar::new(rows), "{bar:30} {percent:>3}%  {msg}  {elapsed}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg}  {elapsed}"),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(bar.with_elapsed(elapsed).with_style(style))
    }
}

/// Runs the whole program, from the arguments to the exit code.
pub fn main() -> ExitCode {
    match completions::answer() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => error.exit(),
    }
    let matches = match config_file::parse(Cli::command) {
        Ok(matches) => matches,
        Err(config_file::Error::Line(error)) => error.exit(),
        Err(config_file::Error::File(error)) => {
            log::start(&LogArgs::default(), &MultiProgress::new());
            return fail(&error.into());
        }
    };
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    hints::set(hint_flags::of(&matches, Cli::command));
    let Some(command) = cli.command else {
        let printed = Cli::command().print_help();
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    };
    if let Command::ConfinedSql(confined) = command {
        return confined.run();
    }
    let target = if cli.log.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let terminal = Terminal { bars: MultiProgress::with_draw_target(target) };
    log::start(&cli.log, &terminal.bars);
    config_file::report();
    if let Err(error) = watchdog::start(&terminal.bars) {
        return fail(&anyhow::Error::new(error).context("cannot start the watchdog"));
    }
    if let Err(error) = check_clock(&command) {
        return fail(&error);
    }
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(command, Command::Serve(_)) && std::env::var_os(WORKERS).is_none() {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        runtime.worker_threads((cores - 1).max(1));
    }
    let runtime = match runtime.enable_all().thread_stack_size(STACK).build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let ended = runtime.block_on(run(command, terminal));
    // Threads that still read or write must not delay the exit: all important work was already awaited.
    runtime.shutdown_timeout(Duration::from_millis(100));
    // These threads may hold temporary files, which would be left behind.
    cleanup::run();
    match ended {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::With(code)) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

/// DataFusion panics if the clock is before 1970. Commands without queries still run, because ingest must not depend
/// on the clock.
fn check_clock(command: &Command) -> anyhow::Result<()> {
    let without_queries = matches!(
        command,
        Command::Ingest(_)
            | Command::Produce(_)
            | Command::Compact(_)
            | Command::Reprocess(_)
            | Command::Files(_)
            | Command::Generate(_)
            | Command::Broker(_)
            | Command::Notify(_)
            | Command::Openapi(_)
            | Command::Docs(_)
            | Command::Completions(_)
            | Command::ManPage(_)
    );
    let now = times::millis(std::time::SystemTime::now());
    if now < 0 && !without_queries {
        anyhow::bail!("the clock of this machine says {}, and queries need one after 1970; set it", times::text(now));
    }
    Ok(())
}

async fn run(command: Command, terminal: Terminal) -> anyhow::Result<Done> {
    match command {
        Command::Up(up) => up.run(&terminal, Stop::listen()).await,
        Command::Ingest(ingest) => ingest.run(&terminal, Stop::listen()).await,
        Command::Enrich(enrich) => enrich.run(&terminal, Stop::listen()).await,
        Command::Serve(serve) => serve.run(Stop::listen()).await,
        Command::Broker(broker) => broker.run(Stop::listen()).await,
        #[cfg(feature = "distributed")]
        Command::Cluster(cluster) => cluster.run(Stop::listen()).await,
        Command::Produce(produce) => produce.run(&terminal, Stop::listen()).await,
        Command::Init(init) => job(init.run()).await,
        Command::Sql(sql) => sql.run(&terminal).await,
        Command::SqlSession(session) => job(session.run(&terminal)).await,
        Command::Train(train) => job(train.run(&terminal)).await,
        Command::TrainWorker(worker) => job(worker.run()).await,
        Command::Verify(verify) => job(verify.run()).await,
        Command::Drift(drift) => job(drift.run()).await,
        Command::Fit(fit) => job(blocking(move || fit.run(&terminal))).await,
        Command::SuggestK(suggest) => job(blocking(move || suggest.run(&terminal))).await,
        Command::Doctor(doctor) => job(doctor.run()).await,
        Command::Compact(compact) => job(blocking(move || compact.run())).await,
        Command::Predict(predict) => job(predict.run()).await,
        Command::Reprocess(reprocess) => job(blocking(move || reprocess.run())).await,
        Command::Files(files) => job(blocking(move || files.run())).await,
        Command::Generate(generate) => job(blocking(move || generate.run())).await,
        Command::ConfinedSql(_) => unreachable!("it runs without this runtime"),
        Command::Model(model) => model.run(),
        Command::Plot(plot) => plot.run(),
        Command::Models(models) => job(blocking(move || models.run())).await,
        Command::Members(members) => members.run(&terminal).await,
        Command::Keys(keys) => job(blocking(move || keys.run())).await,
        Command::Notify(notify) => job(blocking(move || notify.run())).await,
        Command::Openapi(openapi) => job(openapi.run()).await,
        Command::Docs(docs) => docs.run(),
        Command::Completions(completions) => completions.run(),
        Command::ManPage(man) => man.run(),
    }
}

/// Runs a job that a signal cancels. If the job does not return, the watchdog ends the process.
async fn job(work: impl Future<Output = anyhow::Result<Done>>) -> anyhow::Result<Done> {
    tokio::select! {
        ended = work => ended,
        signal = watchdog::stopped() => {
            tracing::error!("{}", signal.line());
            Ok(Done::With(signal.exit_code()))
        }
    }
}

/// Applies a timeout to `work`, if a limit is given. Work that does not yield is ended by the watchdog together with
/// the process.
///
/// `flag` is the flag that set the limit, and `what` is the subject of the error message.
async fn within<T>(
    limit: Option<Duration>,
    flag: &str,
    what: &str,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let Some(limit) = limit else { return work.await };
    let words = format!("{what} was stopped after {limit:?}, which is what {flag} allows");
    let late = words.clone();
    let _armed = watchdog::deadline(limit, move || tracing::error!("{late}"));
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(anyhow::Error::msg(words)),
    }
}

/// Runs blocking work outside the runtime's worker threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// A shutdown request: SIGINT, SIGTERM or SIGHUP. The first signal starts the shutdown, a later one ends the process.
#[derive(Clone)]
struct Stop(watch::Receiver<Option<Signalled>>);

impl Stop {
    /// For a command that shuts down by itself, however long that takes.
    fn listen() -> Self {
        watchdog::set_mode(Mode::Service);
        Self(watchdog::stops())
    }

    /// Completes when a shutdown is requested.
    async fn wished(&mut self) {
        // The sender lives as long as the process.
        let _ = self.0.wait_for(Option::is_some).await;
    }

    /// The exit code of a cancelled job.
    fn exit_code(&self) -> u8 {
        self.0.borrow().unwrap_or(Signalled::Interrupt).exit_code()
    }

    /// Runs preparatory work; `None` if a shutdown is requested in the meantime.
    async fn unless<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        tokio::select! {
            done = work => done.map(Some),
            () = self.wished() => Ok(None),
        }
    }
}

/// A number with commas between thousands.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 record`, `2 records`.
fn count(n: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(n), if n == 1 { "" } else { "s" })
}

mod environment;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_setting_has_its_variable() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        let commands = cli.get_subcommands().flat_map(|command| [command].into_iter().chain(command.get_subcommands()));
        for command in commands {
            for arg in command.get_arguments().filter(|arg| !arg.is_positional()) {
                let Some(long) = arg.get_long().filter(|long| *long != "help") else { continue };
                // TERCILE_MODEL is a slice for `predict`.
                let name = if (command.get_name(), long) == ("fit", "model") { "model-file" } else { long };
                let expected = format!("TERCILE_{}", name.to_uppercase().replace('-', "_"));
                let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
                assert_eq!(env.as_deref(), Some(expected.as_str()), "{} --{long}", command.get_name());
            }
        }
    }

    /// Arguments for paths that are read, or for directories in which files are only created. Written files have the
    /// type `OutputFile`, so that no flag destroys a file. A new argument belongs here only if its command does not
    /// overwrite the path.
    const NOT_WRITTEN: [&str; 13] = [
        "config",
        "data",
        "diff",
        "file",
        "files",
        "init",
        "kafka_config",
        "notify_secret_file",
        "sql",
        "store",
        "tls_cert",
        "tls_key",
        "work_dir",
    ];

    #[test]
    fn a_path_is_read_or_is_an_output_file() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                let (id, kind) = (arg.get_id().as_str(), arg.get_value_parser().type_id());
                let output = kind == TypeId::of::<OutputFile>();
                let path = kind == TypeId::of::<std::path::PathBuf>();
                let place = format!("{} {id}", command.get_name());
                assert!(!path || NOT_WRITTEN.contains(&id), "{place}: a file that is written has the type OutputFile");
                let named =
                    ["out", "output", "svg", "o"].iter().any(|name| arg.get_long() == Some(name) || id == *name);
                assert!(!named || output, "{place} must have the type OutputFile");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
        assert!(output_flags().len() >= 6, "{:?}", output_flags());
    }

    /// Commands write files only through `OutputFile` and `StagedFile`.
    #[test]
    fn no_command_truncates_a_file() {
        fn sources(dir: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                match entry.path() {
                    path if path.is_dir() => sources(&path, found),
                    path => found.push(path),
                }
            }
        }
        let mut found = Vec::new();
        sources(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli")), &mut found);
        assert!(found.len() > 30);
        for path in found {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("cfg(test)]").next().unwrap();
            for call in ["File::create(", "fs::write(", ".truncate(true)", "fs::copy("] {
                assert!(!code.contains(call), "{}: {call} destroys what is there; see output_file.rs", path.display());
            }
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1465, 1_000_000].map(thousands), ["0", "999", "1,465", "1,000,000"]);
        assert_eq!([count(1, "record"), count(2, "record")], ["1 record", "2 records"]);
    }
}
