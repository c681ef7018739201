//! Dot commands of the SQL shell: commands about the session rather than the data.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ValueEnum as _;
use datafusion::datasource::TableType;

use super::super::Usage;
use super::super::output_file::OutputFile;
use super::output::Format;
use super::params::{Param, TableFile};
use super::runner::Runner;
use crate::engine;
use crate::file_format;
use crate::sql::fault::{Source, nearest};
use crate::sql::piece::Piece;
use crate::sql::script;

/// Name, arguments and description of each command.
pub const COMMANDS: [(&str, &str, &str); 13] = [
    (".help", "", "this list"),
    (".tables", "", "tables and views"),
    (".schema", "[NAME]", "the columns of one of them, or of all"),
    (".add", "FILE [NAME]", "a Parquet, Arrow, CSV or JSON file as a table, called as the file without a NAME"),
    (".read", "FILE", "run a file of SQL"),
    (".timer", "on|off", "say how long each statement took"),
    (".format", "FORMAT", "table, csv, tsv, json, ndjson, markdown, parquet, arrow or feather"),
    (".output", "[FILE]", "write results to a file, or to the screen again"),
    (".param", "[NAME=VALUE]", "a value for $NAME; without one, those there are"),
    (".explain", "on|off", "show plans instead of rows"),
    (".rows", "N", "show so many rows of a table, 0 for all"),
    (".quit", "", "leave; so does Ctrl-D"),
    (".exit", "", "leave"),
];

/// The dot command for what users of other shells type on a line of its own: `exit`, `\\d products`.
pub fn spelled(line: &str) -> Option<String> {
    let line = line.trim().trim_end_matches(';').trim_end();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        match word.to_ascii_lowercase().as_str() {
            "exit" | "quit" | "exit()" | "quit()" => return Some(".quit".to_owned()),
            "help" | "?" => return Some(".help".to_owned()),
            _ => {}
        }
    }
    let command = match word.strip_prefix('\\')? {
        "q" => "quit",
        "?" | "h" => "help",
        "d" | "d+" if !rest.is_empty() => "schema",
        "d" | "d+" | "dt" | "dt+" | "dv" | "l" => "tables",
        "i" | "ir" => "read",
        "o" => "output",
        "set" => "param",
        "timing" if rest.is_empty() => return Some(".timer on".to_owned()),
        "timing" => "timer",
        other => other,
    };
    Some(format!(".{command} {rest}").trim_end().to_owned())
}

/// The text with its lines of [`spelled`] words as dot commands, where no statement is open: what is typed into a shell also works
/// through a pipe.
pub fn spelled_lines(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match spelled(line).filter(|_| !script::split(&written).open) {
            Some(command) => {
                written.push_str(&command);
                written.push_str(&line[line.trim_end_matches('\n').len()..]);
            }
            None => written.push_str(line),
        }
    }
    written
}

/// The next step after a dot command.
pub enum Next {
    /// The next piece.
    Piece,
    /// A file of SQL, before the next piece.
    Read(PathBuf),
}

/// Runs a dot command.
///
/// # Errors
/// If there is no such command, its argument is wrong, or it fails.
pub async fn run(runner: &mut Runner, source: &Source<'_>, piece: &Piece<'_>) -> anyhow::Result<Next> {
    let text = piece.text.trim_end_matches(';').trim_end();
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    // The file of .add may be quoted, and a name may follow.
    let rest = if command == ".add" { rest.trim() } else { unquoted(rest.trim()) };
    let wrong = |why: String| source.fault(piece.place, why);
    let Some((_, takes, _)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
        let meant = nearest(command, COMMANDS.iter().map(|(name, ..)| *name)).unwrap_or(".help");
        return Err(wrong(format!("there is no command {command}; did you mean {meant}?")).into());
    };
    let missing = rest.is_empty() && !takes.is_empty() && !takes.starts_with('[');
    if missing || (takes.is_empty() && !rest.is_empty()) {
        let takes = if takes.is_empty() { "nothing" } else { takes };
        return Err(wrong(format!("{command} takes {takes}")).into());
    }
    let switch = || match rest {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(wrong(format!("{command} takes on or off"))),
    };
    match command {
        ".help" => {
            let rows = COMMANDS.iter().map(|(name, takes, does)| vec![format!("{name} {takes}"), (*does).to_owned()]);
            runner.print_table(&["command", "does"], rows.collect())
        }
        ".tables" => tables(runner).await,
        ".schema" => schema(runner, Some(rest).filter(|name| !name.is_empty())).await.map_err(|why| {
            if let Some(why) = why.downcast_ref::<Unknown>() { wrong(why.0.clone()).into() } else { why }
        }),
        ".add" => {
            let (path, name) = file_and_name(rest);
            let name = match name {
                Some(name) => name.to_owned(),
                None => name_of_file(path).ok_or_else(|| wrong(format!("give the table a name: .add {rest} NAME")))?,
            };
            runner.add_table(".add", &TableFile { name: name.clone(), path: path.into() }).await?;
            schema(runner, Some(&name)).await
        }
        ".read" => return Ok(Next::Read(rest.into())),
        ".timer" => {
            runner.settings.timer = switch()?;
            Ok(())
        }
        ".explain" => {
            runner.settings.explain = switch()?;
            Ok(())
        }
        ".format" => {
            let known = || Format::value_variants().iter().map(file_format::value_name).collect::<Vec<_>>().join(", ");
            let format = Format::from_str(rest, true);
            let format = format.map_err(|_| wrong(format!("there is no format {rest}; there are {}", known())))?;
            runner.set_format(format).map_err(|usage| wrong(usage.to_string()).into())
        }
        ".output" => {
            let file = Some(rest).filter(|path| !path.is_empty()).map(OutputFile::new);
            runner.write_to(file.as_ref()).map_err(|why| match why.downcast::<Usage>() {
                Ok(usage) => wrong(usage.to_string()).into(),
                Err(why) => why,
            })
        }
        ".param" if rest.is_empty() => {
            let rows = runner.settings.params.iter();
            let rows =
                rows.map(|(name, value)| vec![format!("${name}"), value.to_string(), value.data_type().to_string()]);
            runner.print_table(&["parameter", "value", "type"], rows.collect())
        }
        ".param" => {
            let Param(name, value) = Param::parse(rest).map_err(wrong)?;
            runner.settings.params.insert(name, value);
            Ok(())
        }
        ".rows" => {
            runner.settings.max_rows = rest.parse().map_err(|_| wrong(".rows takes a number".to_owned()))?;
            Ok(())
        }
        _ => {
            runner.quit = true;
            Ok(())
        }
    }?;
    Ok(Next::Piece)
}

fn unquoted(text: &str) -> &str {
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    within('\'').or_else(|| within('"')).unwrap_or(text)
}

/// A file, quoted or not, and the word after it.
fn file_and_name(text: &str) -> (&str, Option<&str>) {
    let quoted = ['\'', '"'].into_iter().find_map(|quote| text.strip_prefix(quote)?.split_once(quote));
    let (path, name) = match quoted {
        Some((path, name)) => (path, Some(name)),
        None => text.rsplit_once(char::is_whitespace).map_or((text, None), |(path, name)| (path, Some(name))),
    };
    (path.trim(), name.map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty()))
}

/// The name of a table for a file: `my orders.csv.gz` becomes `my_orders`.
pub fn name_of_file(path: &str) -> Option<String> {
    let file = Path::new(path).file_name()?.to_str()?;
    let stem = file.split('.').next()?.to_lowercase();
    let name: String = stem.chars().map(|c| if c.is_alphanumeric() { c } else { '_' }).collect();
    let name = name.trim_matches('_');
    let digits = name.starts_with(|c: char| c.is_ascii_digit());
    (!name.is_empty()).then(|| if digits { format!("t_{name}") } else { name.to_owned() })
}

async fn tables(runner: &Runner) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for name in engine::tables(&runner.ctx) {
        let view = runner.files.view(&name);
        let kind = match view {
            Some(view) if view.header.k.is_some() => "segmentation",
            Some(_) => "view",
            None if name == crate::sql::RECORDS => "the store",
            None => match runner.ctx.table_provider(name.as_str()).await?.table_type() {
                TableType::View => "view of this session",
                _ => "table of this session",
            },
        };
        rows.push(vec![name, kind.to_owned(), view.map(|view| view.file.clone()).unwrap_or_default()]);
    }
    rows.extend(
        runner.broken.iter().map(|(name, fault)| vec![name.clone(), "does not run".to_owned(), fault.to_string()]),
    );
    runner.print_table(&["name", "is", "file"], rows)
}

/// An unknown table.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unknown(String);

async fn schema(runner: &Runner, name: Option<&str>) -> anyhow::Result<()> {
    let known = engine::tables(&runner.ctx);
    let wanted = match name {
        None => known,
        Some(name) => match (runner.broken.get(name), known.iter().find(|known| known.eq_ignore_ascii_case(name))) {
            (Some(fault), _) => return Err(fault.clone().into()),
            (None, Some(name)) => vec![name.clone()],
            (None, None) => {
                let meant = nearest(name, known.iter().map(String::as_str)).unwrap_or(".tables");
                return Err(Unknown(format!("there is no table or view {name}; did you mean {meant}?")).into());
            }
        },
    };
    let mut rows = Vec::new();
    for name in wanted {
        let table = runner.ctx.table_provider(name.as_str()).await.context("cannot look at the table")?;
        for field in table.schema().fields() {
            rows.push(vec![name.clone(), field.name().clone(), field.data_type().to_string()]);
        }
    }
    runner.print_table(&["table", "column", "type"], rows)
}

#[cfg(test)]
mod tests {
    use super::{file_and_name, name_of_file, spelled, spelled_lines};

    #[test]
    fn commands_of_other_shells_are_understood_through_a_pipe() {
        assert_eq!(spelled_lines("SELECT 1;\nexit\nSELECT 2;"), "SELECT 1;\n.quit\nSELECT 2;");
        assert_eq!(spelled_lines("\\d t\r\n\\q"), ".schema t\n.quit");
        // Within a statement, a text or a comment they are no commands.
        for text in ["SELECT 1\nexit\n", "SELECT '\nexit\n';", "/*\nexit\n*/"] {
            assert_eq!(spelled_lines(text), text);
        }
    }

    #[test]
    fn commands_of_other_shells_are_understood() {
        for (line, command) in [
            ("exit", ".quit"),
            (" QUIT; ", ".quit"),
            ("\\q", ".quit"),
            ("help", ".help"),
            ("\\?", ".help"),
            ("\\d", ".tables"),
            ("\\dt", ".tables"),
            ("\\d products;", ".schema products"),
            ("\\i a b.sql", ".read a b.sql"),
            ("\\timing", ".timer on"),
            ("\\timing off", ".timer off"),
            ("\\add a.csv t", ".add a.csv t"),
            ("\\nope", ".nope"),
        ] {
            assert_eq!(spelled(line).as_deref(), Some(command), "{line}");
        }
        for sql in ["", "SELECT 1;", "help me", "exit 1", ".quit", "quits"] {
            assert_eq!(spelled(sql), None, "{sql}");
        }
    }

    #[test]
    fn files_name_their_tables() {
        assert_eq!(file_and_name("a.csv"), ("a.csv", None));
        assert_eq!(file_and_name("a.csv  t"), ("a.csv", Some("t")));
        assert_eq!(file_and_name("'my file.csv'"), ("my file.csv", None));
        assert_eq!(file_and_name("\"my file.csv\" \"T 1\""), ("my file.csv", Some("T 1")));
        assert_eq!(name_of_file("dir/My orders.csv.gz").as_deref(), Some("my_orders"));
        assert_eq!(name_of_file("2024.csv").as_deref(), Some("t_2024"));
        assert_eq!(name_of_file("-.csv"), None);
    }
}
