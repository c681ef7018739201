//! Logging to stderr, as plain sentences for people or as JSON lines for machines.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use indicatif::MultiProgress;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::{hints, panics};

/// Format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What goes to stderr.
#[derive(Debug, Clone, Default, Args)]
pub struct LogArgs {
    /// Print warnings and errors only
    #[arg(short, long, global = true, env = "TERCILE_QUIET", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub quiet: bool,
    /// Print more messages, with timestamps and modules
    #[arg(short, long, global = true, env = "TERCILE_VERBOSE", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub verbose: bool,
    /// Format of log lines
    #[arg(long, global = true, env = "TERCILE_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Target of progress events, which JSON logs and `-v` include.
pub const PROGRESS: &str = "tercile::progress";

/// Arguments of [`start`].
static ARGUMENTS: OnceLock<LogArgs> = OnceLock::new();

/// Arguments that give a child process the log settings of this one.
pub fn arguments() -> Vec<&'static str> {
    let Some(args) = ARGUMENTS.get() else { return Vec::new() };
    let format = match args.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let mut all = vec!["--log-format", format];
    all.extend(args.quiet.then_some("--quiet"));
    all.extend(args.verbose.then_some("--verbose"));
    all
}

/// Starts logging. Progress bars are redrawn around each log line.
pub fn start(args: &LogArgs, bars: &MultiProgress) {
    let _ = ARGUMENTS.set(args.clone());
    let level = match (args.quiet, args.verbose) {
        (true, _) => LevelFilter::ERROR,
        (false, true) => LevelFilter::DEBUG,
        (false, false) => LevelFilter::INFO,
    };
    let writer = AroundBars(bars.clone());
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(writer);
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    match (args.log_format, args.verbose) {
        (LogFormat::Json, _) => {
            // JSON logs include progress events, which text logs replace by a progress bar.
            let targets = Targets::new().with_default(level);
            let targets = if args.quiet { targets } else { targets.with_target(PROGRESS, LevelFilter::DEBUG) };
            let everything = builder.json().flatten_event(true).with_max_level(LevelFilter::DEBUG).finish();
            everything.with(targets).init();
        }
        (LogFormat::Text, true) => builder.with_ansi(colour).init(),
        (LogFormat::Text, false) => builder.with_ansi(colour).event_format(Sentences).init(),
    }
    panics::log_panics();
}

/// Formats only the message: fields, timestamps and targets are for `-v` and JSON. Events of libraries are shown from `warn`
/// on.
struct Sentences;

impl<S, N> FormatEvent<S, N> for Sentences
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut message = Message(String::new());
        event.record(&mut message);
        let message = hints::complete(&message.0);
        let ours = event.metadata().target().starts_with("tercile");
        let (word, colour) = match *event.metadata().level() {
            Level::ERROR => ("error: ", "\x1b[31m"),
            Level::WARN => ("warning: ", "\x1b[33m"),
            _ if ours => ("", ""),
            _ => return Ok(()),
        };
        if out.has_ansi_escapes() && !word.is_empty() {
            writeln!(out, "{colour}{word}\x1b[0m{message}")
        } else {
            writeln!(out, "{word}{message}")
        }
    }
}

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[derive(Clone)]
struct AroundBars(MultiProgress);

impl Write for AroundBars {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'w> MakeWriter<'w> for AroundBars {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}
