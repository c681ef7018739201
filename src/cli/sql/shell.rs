//! The interactive prompt: a line editor and the child process that runs the statements.
//!
//! Input: typed lines. Output: the results of the session. Ctrl-C discards the line or cancels the query, Ctrl-D
//! quits.

#![allow(
    unsafe_code,
    reason = "terminal modes and signals of a child process have no safe wrapper in the standard library"
)]

use std::borrow::Cow;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Context as _;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use serde::Serialize;
use tercile_store::cleanup;

use super::super::watchdog::{self, Mode};
use super::super::{Done, blocking, config_file};
use super::commands::{COMMANDS, spelled};
use super::output::Format;
use super::session::{self, Event, Request};
use crate::sql::script;
use crate::{file_format, process};

/// SQL keywords offered for completion, a subset of those that the planner accepts.
const KEYWORDS: [&str; 44] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "HAVING",
    "LIMIT",
    "OFFSET",
    "JOIN",
    "LEFT JOIN",
    "CROSS JOIN",
    "USING",
    "ON",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS NULL",
    "IS NOT NULL",
    "LIKE",
    "BETWEEN",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "DISTINCT",
    "UNION ALL",
    "EXCEPT",
    "INTERSECT",
    "WITH",
    "OVER",
    "PARTITION BY",
    "NULLS FIRST",
    "DESC",
    "CAST",
    "TRY_CAST",
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "DESCRIBE",
    "CREATE VIEW",
    "VALUES",
    "FILTER",
];

/// Runs until the user quits. Statements run in a child process ([`session`]). If a statement does not end at Ctrl-C
/// or at its deadline, that process is ended, and the shell starts a new one.
pub async fn run() -> anyhow::Result<Done> {
    watchdog::set_mode(Mode::Shell);
    restore_terminal_at_exit();
    let session = Arc::new(AtomicI32::new(0));
    let forwarding = tokio::spawn(forward_interrupts(Arc::clone(&session)));
    let ended = blocking(move || prompt(&session)).await;
    forwarding.abort();
    ended
}

/// Forwards a signal that was sent only to the shell to the process that runs the statement.
async fn forward_interrupts(session: Arc<AtomicI32>) {
    let mut interrupts = watchdog::interrupts();
    interrupts.mark_unchanged();
    while interrupts.changed().await.is_ok() {
        let process = session.load(Ordering::SeqCst);
        if process > 0 {
            // SAFETY: the call takes integers. The child was not waited for, so its process id is still valid.
            unsafe { libc::kill(process, libc::SIGINT) };
        }
    }
}

/// The line editor changes the terminal mode. A process that ends while it waits for a line restores the mode.
fn restore_terminal_at_exit() {
    // SAFETY: an all-zero structure is valid, and the call fills it in if stdin is a terminal.
    let mut before: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    if unsafe { libc::tcgetattr(libc::STDIN_FILENO, &raw mut before) } != 0 {
        return;
    }
    let restore = move || {
        // SAFETY: as above.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const before) };
        if io::stdout().is_terminal() {
            // Turns bracketed paste off, followed by a line break. Errors cannot be reported here.
            let off = b"\x1b[?2004l\r\n";
            // SAFETY: the call reads the bytes, which outlive it. It takes no lock of stdout.
            unsafe { libc::write(libc::STDOUT_FILENO, off.as_ptr().cast(), off.len()) };
        }
    };
    cleanup::register(restore).keep();
}

/// The process that runs the statements.
struct Session {
    child: Child,
    lines: BufReader<UnixStream>,
    process: Arc<AtomicI32>,
}

/// The outcome of waiting for a session.
enum Came {
    Ready { words: Vec<String>, leave: bool },
    Ended(ExitStatus),
}

impl Session {
    fn start(process: &Arc<AtomicI32>) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = process::worker(session::COMMAND)?;
        // At a terminal the child receives Ctrl-C as well.
        let child = command.process_group(current_group()).stdin(Stdio::from(OwnedFd::from(theirs))).spawn();
        let child = child.context("cannot start the process that runs the statements")?;
        process.store(child.id().cast_signed(), Ordering::SeqCst);
        let mut session = Self { child, lines: BufReader::new(ours), process: Arc::clone(process) };
        session.send(&config_file::arguments());
        Ok(session)
    }

    /// Errors are ignored: [`Session::wait`] detects a session that is gone.
    fn send(&mut self, request: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(request) {
            line.push(b'\n');
            let _ = self.lines.get_ref().write_all(&line);
        }
    }

    /// Waits until the session is ready for the next request. Its new definitions are appended to `definitions`.
    fn wait(&mut self, definitions: &mut Vec<String>) -> anyhow::Result<Came> {
        let mut line = String::new();
        while matches!(self.lines.read_line(&mut line), Ok(1..)) {
            match serde_json::from_str(&line) {
                Ok(Event::Defined(text)) => definitions.push(text),
                Ok(Event::Ready { words, leave }) => return Ok(Came::Ready { words, leave }),
                Err(_) => break,
            }
            line.clear();
        }
        let status = self.child.wait()?;
        self.process.store(0, Ordering::SeqCst);
        Ok(Came::Ended(status))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.process.store(0, Ordering::SeqCst);
        let _ = self.lines.get_ref().shutdown(Shutdown::Both);
        // The child ends when its socket is closed.
        let _ = self.child.wait();
    }
}

/// The process group of this process.
fn current_group() -> libc::pid_t {
    // SAFETY: the call takes no arguments and cannot fail.
    unsafe { libc::getpgrp() }
}

/// Starts a session to replace one that ended, and replays its definitions.
fn renew(process: &Arc<AtomicI32>, definitions: &mut Vec<String>) -> anyhow::Result<(Session, Came)> {
    let mut session = Session::start(process)?;
    let mut ignored = Vec::new();
    let mut came = session.wait(&mut ignored)?;
    if matches!(came, Came::Ready { .. }) {
        session.send(&Request::Restore(definitions.clone()));
        came = session.wait(&mut ignored)?;
        if matches!(came, Came::Ended(_)) {
            tracing::warn!("the views, tables and settings of this session could not be defined again; it starts anew");
            definitions.clear();
            session = Session::start(process)?;
            came = session.wait(&mut ignored)?;
            if matches!(came, Came::Ready { .. }) {
                session.send(&Request::Restore(Vec::new()));
                came = session.wait(&mut ignored)?;
            }
        }
    }
    Ok((session, came))
}

fn prompt(process: &Arc<AtomicI32>) -> anyhow::Result<Done> {
    let config = Config::builder().completion_type(CompletionType::List).history_ignore_space(true);
    let mut editor = Editor::with_config(config.build())?;
    editor.set_helper(Some(Words::default()));
    let history = history_file();
    if let Some(path) = &history {
        // There is no history file in the first run.
        let _ = editor.load_history(path);
    }
    let mut definitions = Vec::new();
    let mut session = Session::start(process)?;
    let mut came = session.wait(&mut definitions)?;
    if let Came::Ended(status) = came {
        // The session already printed the reason.
        return Ok(Done::With(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    eprintln!("tercile {}: .help lists commands, statements end with a semicolon", env!("CARGO_PKG_VERSION"));
    loop {
        let words = match came {
            Came::Ready { leave: true, .. } => break,
            Came::Ready { words, .. } => words,
            Came::Ended(status) => {
                if let Some(signal) = status.signal() {
                    tracing::error!(
                        "the statement's process was killed by signal {signal}; the machine may lack memory"
                    );
                }
                (session, came) = renew(process, &mut definitions)?;
                if let Came::Ended(status) = came {
                    return Ok(Done::With(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
                }
                continue;
            }
        };
        if let Some(helper) = editor.helper_mut() {
            helper.learn(words);
        }
        match read(&mut editor) {
            Ok(text) => {
                session.send(&Request::Run(text));
                came = session.wait(&mut definitions)?;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(path) = &history
        && let Err(error) = path.parent().map_or(Ok(()), std::fs::create_dir_all).map(|()| editor.save_history(path))
    {
        tracing::warn!("cannot keep the history in {}: {error}", path.display());
    }
    Ok(Done::Well)
}

/// Reads lines until no statement, quote or comment is open. Ctrl-C discards them.
fn read(editor: &mut Editor<Words, DefaultHistory>) -> rustyline::Result<String> {
    let mut text = String::new();
    loop {
        let prompt = if text.is_empty() { "tercile> " } else { "     ...> " };
        let line = match editor.readline(prompt) {
            Err(ReadlineError::Interrupted) => {
                text.clear();
                continue;
            }
            line => line?,
        };
        if text.is_empty()
            && let Some(command) = spelled(&line)
        {
            editor.add_history_entry(&line)?;
            return Ok(command);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&line);
        if text.trim().is_empty() {
            text.clear();
        } else if !script::split(&text).open {
            editor.add_history_entry(&text)?;
            return Ok(text);
        }
    }
}

/// The history file's path according to the XDG conventions.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("tercile/sql_history"))
}

/// Completion, and the look of the prompt.
#[derive(Default)]
struct Words {
    names: Vec<String>,
    files: FilenameCompleter,
}

impl Words {
    fn learn(&mut self, mut names: Vec<String>) {
        names.extend(KEYWORDS.map(str::to_owned));
        names.sort();
        names.dedup();
        self.names = names;
    }

    fn offer<'a>(words: impl Iterator<Item = &'a str>, begun: &str) -> Vec<Pair> {
        let fits = |word: &&str| {
            word.len() >= begun.len()
                && word.is_char_boundary(begun.len())
                && word[..begun.len()].eq_ignore_ascii_case(begun)
        };
        words.filter(fits).map(|word| Pair { display: word.to_owned(), replacement: word.to_owned() }).collect()
    }
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, at: usize, context: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..at];
        if before.starts_with('.') {
            let Some((command, rest)) = before.split_once(' ') else {
                return Ok((0, Self::offer(COMMANDS.iter().map(|(name, ..)| *name), before)));
            };
            let from = at - rest.len();
            return match command {
                ".read" | ".output" | ".add" => self.files.complete(line, at, context),
                ".format" => {
                    let formats: Vec<String> =
                        clap::ValueEnum::value_variants().iter().map(file_format::value_name::<Format>).collect();
                    Ok((from, Self::offer(formats.iter().map(String::as_str), rest)))
                }
                ".timer" | ".explain" => Ok((from, Self::offer(["on", "off"].into_iter(), rest))),
                _ => Ok((from, Self::offer(self.names.iter().map(String::as_str), rest))),
            };
        }
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let from = before.rfind(|c| !word(c)).map_or(0, |i| i + before[i..].chars().next().map_or(1, char::len_utf8));
        if from == at {
            return Ok((at, Vec::new()));
        }
        Ok((from, Self::offer(self.names.iter().map(String::as_str), &before[from..])))
    }
}

impl Validator for Words {}

impl Highlighter for Words {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        if io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) {
            return Cow::Owned(format!("\x1b[1m{prompt}\x1b[0m"));
        }
        Cow::Borrowed(prompt)
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Helper for Words {}
