//! Dot commands of the SQL shell: commands about the session rather than the data.

use anyhow::Context as _;
use clap::ValueEnum as _;
use datafusion::datasource::TableType;

use super::super::Usage;
use super::super::output_file::OutputFile;
use super::output::Format;
use super::params::Param;
use super::runner::Runner;
use crate::engine;
use crate::file_format;
use crate::sql::fault::{Source, nearest};
use crate::sql::script::Piece;

/// Name, arguments and description of each command.
pub const COMMANDS: [(&str, &str, &str); 12] = [
    (".help", "", "this list"),
    (".tables", "", "tables and views"),
    (".schema", "[NAME]", "the columns of one of them, or of all"),
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

/// Runs a dot command.
pub async fn run(runner: &mut Runner, source: &Source<'_>, piece: &Piece<'_>) -> anyhow::Result<()> {
    let text = piece.text.trim_end_matches(';').trim_end();
    let (command, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = unquoted(rest.trim());
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
        ".read" => runner.file(rest.as_ref()).await,
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
    }
}

fn unquoted(text: &str) -> &str {
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    within('\'').or_else(|| within('"')).unwrap_or(text)
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
