//! `tercile sql`

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{ArgGroup, Args, ValueEnum};
use datafusion::arrow::csv::WriterBuilder;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::DFParser;
use futures::StreamExt as _;

use super::Done;
use crate::config::{SqlArgs, StoreArgs};
use crate::engine;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Csv,
}

/// Run SQL over the store
///
/// The tables are records, as they came, and every view of the SQL files: products, slices, the segmentations, the
/// reports. The first statement that fails ends the run.
#[derive(Args)]
#[command(group(ArgGroup::new("what").required(true).args(["files", "command"])))]
pub struct Sql {
    /// Files of SQL statements
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A statement
    #[arg(short, long, env = "TERCILE_COMMAND", value_name = "SQL")]
    command: Option<String>,
    /// What to print
    #[arg(long, env = "TERCILE_FORMAT", default_value = "table")]
    format: Format,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

impl Sql {
    pub async fn run(self) -> anyhow::Result<Done> {
        let mut texts = Vec::new();
        for path in &self.files {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            texts.push((Some(path.display().to_string()), text));
        }
        texts.extend(self.command.clone().map(|text| (None, text)));
        let files = self.sql.load()?;
        let snapshot = self.store.look().snapshot()?;
        let ctx = engine::open(&snapshot, &files).await?;
        for (file, text) in texts {
            let ran = self.statements(&ctx, &text).await;
            match file {
                Some(file) => ran.context(file)?,
                None => ran?,
            }
        }
        Ok(Done::Well)
    }

    async fn statements(&self, ctx: &SessionContext, text: &str) -> anyhow::Result<()> {
        let statements = DFParser::parse_sql(text).map_err(|e| anyhow::anyhow!("{}", engine::explain(&e)))?;
        for statement in statements {
            self.print(engine::plan(ctx, &statement.to_string()).await?).await?;
        }
        Ok(())
    }

    async fn print(&self, frame: DataFrame) -> anyhow::Result<()> {
        let explain = |e| anyhow::anyhow!("{}", engine::explain(&e));
        let mut out = io::BufWriter::new(io::stdout());
        let schema = Arc::clone(frame.schema().inner());
        match self.format {
            Format::Table => {
                let batches = frame.collect().await.map_err(explain)?;
                let empty = [datafusion::arrow::array::RecordBatch::new_empty(schema)];
                let shown = pretty_format_batches(if batches.is_empty() { &empty } else { &batches })?;
                writeln!(out, "{shown}")?;
            }
            Format::Csv => {
                let mut stream = frame.execute_stream().await.map_err(explain)?;
                let mut csv = WriterBuilder::new().with_header(true).build(&mut out);
                let mut any = false;
                while let Some(batch) = stream.next().await {
                    csv.write(&batch.map_err(explain)?).map_err(arrow_io)?;
                    any = true;
                }
                if !any {
                    csv.write(&datafusion::arrow::array::RecordBatch::new_empty(schema)).map_err(arrow_io)?;
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}

/// A closed pipe comes wrapped up in words; it must still be known for what it is.
fn arrow_io(error: datafusion::arrow::error::ArrowError) -> anyhow::Error {
    let text = error.to_string();
    if text.contains("Broken pipe") {
        return io::Error::from(io::ErrorKind::BrokenPipe).into();
    }
    anyhow::anyhow!("cannot write the rows: {text}")
}
