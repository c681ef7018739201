//! Runs the pieces of a text in sequence: statements and dot commands, and files that `.read` names.
//!
//! Input: SQL texts with dot commands. The first error ends a text.

use std::io::ErrorKind;
use std::path::Path;

use super::commands::{self, Next};
use super::runner::Runner;
use crate::file_format;
use crate::printable::shell_word;
use crate::sql::fault::Source;
use crate::sql::script;

/// Maximum nesting of `.read`.
const READ_DEPTH: usize = 16;

/// Dot commands whose effect another session can restore. `.output` is not among them, because opening
/// the file again would replace its content.
const SETTINGS: [&str; 6] = [".timer", ".format", ".param", ".explain", ".rows", ".add"];

/// Runs a file.
///
/// # Errors
/// If the file cannot be read, or one of its pieces fails.
pub async fn file(runner: &mut Runner, path: &Path) -> anyhow::Result<()> {
    nested_file(runner, path, 0).await
}

async fn nested_file(runner: &mut Runner, path: &Path, depth: usize) -> anyhow::Result<()> {
    let name = path.display().to_string();
    if file_format::name_of(path).is_some() {
        let (table, file) = (commands::name_of_file(&name).unwrap_or("t".to_owned()), shell_word(&name));
        anyhow::bail!(
            "{name} has rows and no SQL; to query it, run tercile sql --table {table}={file} -c 'SELECT * FROM {table}'"
        );
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        // The text of a statement is given where a file is expected.
        let word = name.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default().to_ascii_uppercase();
        let statement = name.contains(' ') || ["SELECT", "FROM", "WITH", "VALUES", "SHOW"].contains(&word.as_str());
        let hint = match e.kind() == ErrorKind::NotFound && statement {
            true if name.contains(' ') => format!("; to run SQL text, write tercile sql -c {}", shell_word(&name)),
            true => "; to run SQL text, write tercile sql -c 'SELECT …'".to_owned(),
            false => String::new(),
        };
        anyhow::anyhow!("cannot read {name}: {e}{hint}")
    })?;
    if depth >= READ_DEPTH {
        anyhow::bail!("{name}: files read each other more than {READ_DEPTH} deep");
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    pieces(runner, &Source { name: Some(&name), text }, depth).await
}

/// Runs all pieces of a text until one fails.
///
/// # Errors
/// That of the first piece that fails.
pub async fn text(runner: &mut Runner, source: &Source<'_>) -> anyhow::Result<()> {
    pieces(runner, source, 0).await
}

async fn pieces(runner: &mut Runner, source: &Source<'_>, depth: usize) -> anyhow::Result<()> {
    for piece in script::complete(source)?.pieces {
        let results = runner.begin()?;
        if piece.dot {
            runner.make_views().await;
            if let Next::Read(path) = commands::run(runner, source, &piece).await? {
                Box::pin(nested_file(runner, &path, depth + 1)).await?;
            }
            let command = piece.text.split_whitespace().next().unwrap_or_default();
            if SETTINGS.contains(&command) {
                runner.defined(piece.text)?;
            }
        } else {
            runner.statement(source, &piece).await?;
        }
        runner.complete(results)?;
        if runner.quit {
            break;
        }
    }
    Ok(())
}
