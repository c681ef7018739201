//! The prompt: a line editor around the runner.
//!
//! Input: what somebody types. Output: what the runner prints. Ctrl-C drops the line or cancels the query, Ctrl-D leaves.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};
use tokio::runtime::Handle;

use super::super::{Done, blocking, exit_code, say};
use super::dot::COMMANDS;
use super::output::Format;
use super::runner::Runner;
use crate::engine;
use crate::sql::fault::Source;
use crate::sql::script;

/// Words of SQL that are offered; the planner knows more.
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

/// Runs until somebody leaves.
pub async fn run(runner: Runner) -> anyhow::Result<Done> {
    let handle = Handle::current();
    blocking(move || prompt(runner, &handle)).await
}

fn prompt(mut runner: Runner, handle: &Handle) -> anyhow::Result<Done> {
    handle.block_on(runner.make_views());
    let config =
        Config::builder().completion_type(CompletionType::List).history_ignore_space(true).auto_add_history(true);
    let mut editor = Editor::with_config(config.build())?;
    editor.set_helper(Some(Words::default()));
    let history = history_file();
    if let Some(path) = &history {
        // A first run has none.
        let _ = editor.load_history(path);
    }
    eprintln!("tercile {}: .help lists commands, statements end with a semicolon", env!("CARGO_PKG_VERSION"));
    for (name, fault) in &runner.broken {
        tracing::warn!("the view {name} does not run: {fault}");
    }
    while !runner.quit {
        if let Some(words) = editor.helper_mut() {
            handle.block_on(words.learn(&runner));
        }
        let line = match editor.readline("tercile> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let asked = async {
            runner.refresh().await?;
            runner.script(&Source { name: None, text: &line }).await
        };
        let ran = handle.block_on(async {
            tokio::select! {
                ran = asked => ran,
                _ = tokio::signal::ctrl_c() => {
                    eprintln!("cancelled");
                    Ok(())
                }
            }
        });
        if let Err(error) = ran {
            say(&error);
            if exit_code(&error) == 0 {
                break;
            }
        }
    }
    if let Some(path) = &history
        && let Err(error) = path.parent().map_or(Ok(()), std::fs::create_dir_all).map(|()| editor.save_history(path))
    {
        tracing::warn!("cannot keep the history in {}: {error}", path.display());
    }
    Ok(Done::Well)
}

/// Where the desktop's conventions want it.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("tercile/sql_history"))
}

/// What may be typed, and whether it is whole.
#[derive(Default)]
struct Words {
    names: Vec<String>,
    files: FilenameCompleter,
}

impl Words {
    async fn learn(&mut self, runner: &Runner) {
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
                ".read" | ".output" => self.files.complete(line, at, context),
                ".format" => {
                    let formats: Vec<String> =
                        clap::ValueEnum::value_variants().iter().map(|f: &Format| f.name()).collect();
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

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = script::split(context.input()).open;
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

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
