//! Prints the rows and plans of statements.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::time::Duration;

use datafusion::arrow::array::AsArray;
use datafusion::error::DataFusionError;
use futures::StreamExt as _;

use super::super::progress::Progress;
use super::super::query::Ready;
use super::super::{output, table};
use super::Runner;
use crate::file_format;

impl Runner {
    /// Prints rows as they arrive.
    pub(super) async fn show(&self, ready: Ready, cap: Option<usize>) -> Result<Option<Shown>, Trouble> {
        let Ready { mut stream, plan } = ready;
        let schema = stream.schema();
        if schema.fields().is_empty() {
            // A statement without rows, such as CREATE VIEW, must still be executed.
            while let Some(batch) = stream.next().await {
                batch?;
            }
            return Ok(None);
        }
        let format = self.format();
        // One array of JSON as well.
        let one = format.binary() || format == output::Format::Json && self.settings.output.is_some();
        if one && self.results > 0 {
            let why = "holds one result, and there are more; write them to a file each";
            return Err(anyhow::anyhow!("{} {why}", file_format::value_name(&format)).into());
        }
        let mut out = self.out();
        let fit = self.fit();
        let mut rows = output::start(format, &schema, fit, &mut *out)?;
        let mut shown = Shown { rows: 0, more: false, note: None };
        let mut progress = Progress::new(&plan, &self.terminal);
        let mut clock = tokio::time::interval(Duration::from_millis(100));
        loop {
            let batch = tokio::select! {
                biased;
                _ = clock.tick() => { progress.tick(); continue }
                batch = stream.next() => batch,
            };
            let Some(batch) = batch else { break };
            let mut batch = batch?;
            if let Some(cap) = cap {
                let left = cap - shown.rows as usize;
                shown.more |= batch.num_rows() > left;
                batch = batch.slice(0, batch.num_rows().min(left));
            }
            shown.rows += batch.num_rows() as u64;
            rows.batch(&batch)?;
        }
        drop(progress);
        shown.note = rows.end()?;
        out.flush()?;
        Ok(Some(shown))
    }

    /// Prints plans as plain text, because they have many lines.
    pub(super) async fn show_plan(&self, ready: Ready) -> Result<Option<Shown>, Trouble> {
        let mut stream = ready.stream;
        let mut out = self.out();
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            let text = |i: usize| {
                datafusion::arrow::compute::cast(batch.column(i), &datafusion::arrow::datatypes::DataType::Utf8)
            };
            let (kinds, plans) = (text(0)?, text(1)?);
            for (kind, plan) in kinds.as_string::<i32>().iter().zip(plans.as_string::<i32>()) {
                writeln!(
                    out,
                    "-- {}\n{}",
                    kind.unwrap_or_default().replace('_', " "),
                    plan.unwrap_or_default().trim_end()
                )?;
            }
        }
        out.flush()?;
        Ok(None)
    }

    /// The buffered output of results. The caller must flush it.
    pub fn out(&self) -> Box<dyn Write + Send + '_> {
        match &self.settings.output {
            Some(output) => Box::new(BufWriter::new(output)),
            None => Box::new(BufWriter::new(io::stdout())),
        }
    }

    /// The width that tables must fit.
    pub(super) fn fit(&self) -> Option<usize> {
        if self.settings.output.is_some() || !io::stdout().is_terminal() {
            return None;
        }
        terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
    }

    /// Prints a small table of this program's own data.
    pub fn print_table(&self, names: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
        let columns = names.iter().map(|name| table::Column { name: (*name).to_owned(), right: false }).collect();
        let mut out = self.out();
        let mut grid = table::TextTable::new(columns, self.fit());
        for row in rows {
            grid.row(row, &mut *out)?;
        }
        grid.end(&mut *out)?;
        out.flush()?;
        Ok(())
    }
}

/// The number of rows shown.
pub(super) struct Shown {
    pub rows: u64,
    /// True if more rows exist.
    pub more: bool,
    /// An additional note for the user.
    pub note: Option<String>,
}

/// An error during output: from the query or from the writer.
pub(super) enum Trouble {
    Query(DataFusionError),
    Other(anyhow::Error),
}

impl From<DataFusionError> for Trouble {
    fn from(error: DataFusionError) -> Self {
        Self::Query(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<datafusion::arrow::error::ArrowError> for Trouble {
    fn from(error: datafusion::arrow::error::ArrowError) -> Self {
        Self::Query(error.into())
    }
}

/// The error of a statement: `blame` finds the place of an error of the query.
pub(super) fn on_error(trouble: Trouble, blame: impl Fn(DataFusionError) -> anyhow::Error) -> anyhow::Error {
    match trouble {
        Trouble::Query(error) => blame(error),
        Trouble::Other(error) => error,
    }
}
