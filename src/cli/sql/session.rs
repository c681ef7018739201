//! The child process that runs the statements of a shell, so that a statement that does not yield can be killed
//! without ending the shell.
//!
//! Input: requests as lines of JSON on stdin, which is a socket. Output: rows on stdout and messages on stderr, both
//! inherited from the shell, and events as lines of JSON on the socket. SIGINT cancels the running statement. If the
//! statement does not end, SIGINT ends this process, and the shell starts a new one and replays the definitions.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clap::{Args, Parser as _};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::super::exit_code::exit_code;
use super::super::watchdog::{self, Mode};
use super::super::{Cli, Command, Done, Terminal, blocking, say};
use super::Sql;
use super::runner::Runner;
use super::scripts;
use crate::engine::{self, cluster::Engine};
use crate::sql::fault::Source;

/// The hidden subcommand of the child process.
pub const COMMAND: &str = "sql-session";

/// A request to a session. It follows the first line of the socket, which contains the arguments of the shell.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a line of input.
    Run(String),
    /// Replay the definitions of an earlier session.
    Restore(Vec<String>),
}

/// An event that a session sends to the shell.
#[derive(Debug, Serialize, Deserialize)]
pub enum Event {
    /// A statement or dot command that defines something was run.
    Defined(String),
    /// The session is ready for the next request.
    Ready {
        /// Names for completion in the line editor.
        words: Vec<String>,
        /// True if the shell must end.
        leave: bool,
    },
}

/// Run the statements of a shell, as told on stdin
#[derive(Args)]
pub struct SqlSession {}

impl SqlSession {
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        watchdog::set_mode(Mode::Session);
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let (mut lines, events) = (BufReader::new(socket.try_clone()?), socket);
        let (lines, sql) = blocking(move || {
            let mut line = String::new();
            lines.read_line(&mut line)?;
            let args: Vec<OsString> = serde_json::from_str(&line)?;
            match Cli::try_parse_from(args)?.command {
                Some(Command::Sql(sql)) => Ok((lines, sql)),
                _ => anyhow::bail!("expected the arguments of tercile sql"),
            }
        })
        .await?;
        let requests = listen(lines)?;
        serve(sql, terminal, requests, events).await
    }
}

/// Reads requests on a separate thread, which ends the process when the shell is gone.
fn listen(mut lines: BufReader<UnixStream>) -> anyhow::Result<mpsc::UnboundedReceiver<Request>> {
    let (sender, requests) = mpsc::unbounded_channel();
    let read = move || {
        let mut line = String::new();
        while matches!(lines.read_line(&mut line), Ok(1..)) {
            let Ok(request) = serde_json::from_str(&line) else { break };
            if sender.send(request).is_err() {
                break;
            }
            line.clear();
        }
        watchdog::end_quietly();
    };
    std::thread::Builder::new().name("requests".to_owned()).spawn(read)?;
    Ok(requests)
}

async fn serve(
    sql: Sql,
    terminal: &Terminal,
    mut requests: mpsc::UnboundedReceiver<Request>,
    mut events: UnixStream,
) -> anyhow::Result<Done> {
    // With a cluster the connections are tasks too, and queries do not run in this process.
    let here = sql.engine.engine == Engine::Local;
    let mut runner = sql.open(terminal, true).await?;
    runner.publish_each();
    runner.make_views().await;
    for (name, fault) in &runner.broken {
        tracing::warn!("the view {name} does not run: {fault}");
    }
    let mut definitions = events.try_clone()?;
    runner.on_definition(move |text| send(&mut definitions, &Event::Defined(text.to_owned())));
    let mut leave = false;
    loop {
        send(&mut events, &Event::Ready { words: words(&runner).await, leave })?;
        let Some(request) = requests.recv().await else { return Ok(Done::Well) };
        let mut busy = watchdog::busy();
        let ran = tokio::select! {
            ran = answer(&mut runner, request) => ran,
            () = busy.interrupted() => {
                eprintln!("cancelled");
                Ok(())
            }
        };
        if let Err(error) = runner.take_back() {
            say(&error.into());
        }
        leave = runner.quit;
        if let Err(error) = ran {
            say(&error);
            leave |= exit_code(&error) == 0;
        }
        // Tasks of the statement that do not yield would block worker threads for the next statement. The shell
        // starts a new session.
        if here && !tasks_end() {
            watchdog::end_quietly();
        }
        drop(busy);
    }
}

/// Time for the tasks of a finished statement to end.
const TASKS_END: Duration = Duration::from_millis(500);

/// Waits until no task of the last statement is left. `false` if a task does not yield.
fn tasks_end() -> bool {
    let metrics = Handle::current().metrics();
    let began = Instant::now();
    while metrics.num_alive_tasks() > 0 {
        if began.elapsed() > TASKS_END {
            return false;
        }
        // The runtime's timers may be blocked, because all its threads may be busy.
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

async fn answer(runner: &mut Runner, request: Request) -> anyhow::Result<()> {
    match request {
        Request::Run(text) => {
            runner.refresh().await?;
            scripts::text(runner, &Source { name: None, text: &text }).await
        }
        Request::Restore(definitions) => {
            // Opening the file again would replace the results of the earlier session.
            if let Some(file) = runner.write_to_screen() {
                tracing::warn!("results are shown here from now on; {} has those before", file.path().display());
            }
            let timer = std::mem::replace(&mut runner.settings.timer, false);
            for text in definitions {
                if let Err(error) = scripts::text(runner, &Source { name: None, text: &text }).await {
                    let text = crate::sql::one_line(&text);
                    tracing::warn!("not defined again: {text}: {}", crate::sql::one_line(&format!("{error:#}")));
                }
            }
            // A replayed definition may have changed the timer setting.
            runner.settings.timer |= timer;
            Ok(())
        }
    }
}

fn send(events: &mut UnixStream, event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(events.write_all(&line)?)
}

/// Tables, columns and functions.
async fn words(runner: &Runner) -> Vec<String> {
    let state = runner.ctx.state();
    let mut names: Vec<String> = Vec::new();
    for table in engine::tables(&runner.ctx) {
        if let Ok(provider) = runner.ctx.table_provider(table.as_str()).await {
            names.extend(provider.schema().fields().iter().map(|field| field.name().clone()));
        }
        names.push(table);
    }
    names.extend(state.scalar_functions().keys().map(|name| format!("{name}(")));
    names.extend(state.aggregate_functions().keys().map(|name| format!("{name}(")));
    names.extend(state.window_functions().keys().map(|name| format!("{name}(")));
    names.extend(state.table_functions().keys().map(|name| format!("{name}(")));
    names.sort();
    names.dedup();
    names
}
