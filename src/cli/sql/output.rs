//! Writers of the result formats.
//!
//! Input: the batches of one result. Output: bytes, written batch by batch, so that a result need not fit into
//! memory.

use std::io::{self, Write};
use std::sync::Arc;

use clap::ValueEnum;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv::{Writer as CsvWriter, WriterBuilder as CsvBuilder};
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::{FileWriter, StreamWriter};
use datafusion::arrow::json::writer::{JsonArray, LineDelimited, Writer as JsonWriter, WriterBuilder as JsonBuilder};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::table::{Column, TextTable};
use crate::parquet_types;
use crate::printable::printable;
use crate::text_columns::{flat, not_finite, readable};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Csv,
    Tsv,
    /// One array of objects
    Json,
    /// An object a line
    Ndjson,
    Markdown,
    Parquet,
    /// Arrow's streaming format
    Arrow,
    /// Arrow's file format, which is Feather version 2
    Feather,
}

impl Format {
    /// True for binary formats.
    pub fn binary(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow | Self::Feather)
    }
}

/// A writer of one result.
pub trait Rows {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()>;

    /// Writes the remaining rows. Returns a note for the user, if any.
    fn end(self: Box<Self>) -> anyhow::Result<Option<String>>;
}

/// Starts a result. `fit` is the terminal width that a table must fit.
pub fn start<'a>(
    format: Format,
    schema: &SchemaRef,
    fit: Option<usize>,
    out: &'a mut (dyn Write + Send),
) -> anyhow::Result<Box<dyn Rows + 'a>> {
    Ok(match format {
        Format::Table => Box::new(Table { grid: TextTable::new(columns(schema), fit), out }),
        Format::Markdown => Box::new(Markdown::start(schema, out)?),
        Format::Csv | Format::Tsv => {
            let delimiter = if format == Format::Csv { b',' } else { b'\t' };
            let csv = CsvBuilder::new().with_header(true).with_delimiter(delimiter).build(out);
            Box::new(Csv { csv, header: Some(Arc::clone(schema)) })
        }
        Format::Json => Box::new(Json {
            json: JsonBuilder::new().with_explicit_nulls(true).build::<_, JsonArray>(out),
            not_finite: 0,
        }),
        Format::Ndjson => Box::new(Ndjson {
            json: JsonBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out),
            not_finite: 0,
        }),
        Format::Parquet => {
            let compression = Compression::ZSTD(ZstdLevel::try_new(3)?);
            let properties = WriterProperties::builder().set_compression(compression).build();
            Box::new(Parquet { writer: ArrowWriter::try_new(out, parquet_types::schema(schema), Some(properties))? })
        }
        Format::Arrow => Box::new(Ipc { writer: StreamWriter::try_new(out, schema).map_err(failed)? }),
        Format::Feather => Box::new(Feather { writer: FileWriter::try_new(out, schema).map_err(failed)? }),
    })
}

/// Errors arrive as text. A closed pipe must still be recognised as such.
fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    let text = error.to_string();
    if text.contains("Broken pipe") {
        return io::Error::from(io::ErrorKind::BrokenPipe).into();
    }
    anyhow::anyhow!("cannot write the rows: {text}")
}

fn columns(schema: &Schema) -> Vec<Column> {
    let column = |field: &Arc<Field>| Column {
        name: printable(field.name()).into_owned(),
        right: field.data_type().is_numeric(),
    };
    schema.fields().iter().map(column).collect()
}

/// Text format of values. NULL is `NULL` in a table and empty in CSV.
fn options(null: &str) -> FormatOptions<'_> {
    FormatOptions::default().with_null(null).with_display_error(true)
}

/// The cells of a batch, row by row.
fn each_row(batch: &RecordBatch, mut row: impl FnMut(Vec<String>) -> io::Result<()>) -> anyhow::Result<()> {
    let options = options("NULL");
    let batch = &readable(batch)?;
    let formatters: Result<Vec<_>, ArrowError> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect();
    let formatters = formatters.map_err(failed)?;
    for i in 0..batch.num_rows() {
        row(formatters.iter().map(|column| column.value(i).to_string()).collect())?;
    }
    Ok(())
}

struct Table<'a> {
    grid: TextTable,
    out: &'a mut (dyn Write + Send),
}

impl Rows for Table<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let Self { grid, out } = self;
        each_row(batch, |cells| grid.row(cells.iter().map(|cell| printable(cell).into_owned()).collect(), out))
    }

    fn end(self: Box<Self>) -> anyhow::Result<Option<String>> {
        let hidden = self.grid.end(self.out)?;
        Ok((hidden > 0).then(|| format!("{hidden} columns don't fit; name those you want, or .format ndjson")))
    }
}

struct Markdown<'a> {
    out: &'a mut (dyn Write + Send),
}

impl<'a> Markdown<'a> {
    fn start(schema: &Schema, out: &'a mut (dyn Write + Send)) -> io::Result<Self> {
        let columns = columns(schema);
        let mut this = Self { out };
        this.line(columns.iter().map(|column| column.name.clone()))?;
        this.line(columns.iter().map(|column| if column.right { "---:" } else { "---" }.to_owned()))?;
        Ok(this)
    }

    fn line(&mut self, cells: impl Iterator<Item = String>) -> io::Result<()> {
        let cells: Vec<String> = cells.collect();
        writeln!(self.out, "| {} |", cells.join(" | "))
    }
}

impl Rows for Markdown<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let cell = |cell: String| printable(&cell.replace('|', "\\|").replace('\n', "<br>")).into_owned();
        each_row(batch, |cells| self.line(cells.into_iter().map(cell)))
    }

    fn end(self: Box<Self>) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
}

/// The writer emits the header with the first batch: a query that fails before it prints nothing.
struct Csv<'a> {
    csv: CsvWriter<&'a mut (dyn Write + Send)>,
    /// The columns, until the header is written.
    header: Option<SchemaRef>,
}

impl Rows for Csv<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.header = None;
        self.csv.write(&flat(batch).map_err(failed)?).map_err(failed)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<Option<String>> {
        // A result may have no batch.
        if let Some(schema) = self.header.take() {
            self.csv.write(&flat(&RecordBatch::new_empty(schema)).map_err(failed)?).map_err(failed)?;
        }
        Ok(None)
    }
}

struct Json<'a> {
    json: JsonWriter<&'a mut (dyn Write + Send), JsonArray>,
    /// Values that are null in JSON.
    not_finite: usize,
}

impl Rows for Json<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.not_finite += not_finite(batch);
        self.json.write(&readable(batch)?).map_err(failed)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<Option<String>> {
        self.json.finish().map_err(failed)?;
        let note = not_finite_note(self.not_finite);
        writeln!(self.json.into_inner())?;
        Ok(note)
    }
}

fn not_finite_note(values: usize) -> Option<String> {
    (values > 0).then(|| format!("{values} infinite values or NaN are null, because JSON has no such numbers"))
}

struct Ndjson<'a> {
    json: JsonWriter<&'a mut (dyn Write + Send), LineDelimited>,
    /// Values that are null in JSON.
    not_finite: usize,
}

impl Rows for Ndjson<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.not_finite += not_finite(batch);
        self.json.write(&readable(batch)?).map_err(failed)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<Option<String>> {
        self.json.finish().map_err(failed)?;
        Ok(not_finite_note(self.not_finite))
    }
}

struct Parquet<'a> {
    writer: ArrowWriter<&'a mut (dyn Write + Send)>,
}

impl Rows for Parquet<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.writer.write(&parquet_types::batch(batch).map_err(failed)?).map_err(failed)
    }

    fn end(self: Box<Self>) -> anyhow::Result<Option<String>> {
        self.writer.close().map_err(failed)?;
        Ok(None)
    }
}

struct Ipc<'a> {
    writer: StreamWriter<&'a mut (dyn Write + Send)>,
}

impl Rows for Ipc<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.writer.write(batch).map_err(failed)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<Option<String>> {
        self.writer.finish().map_err(failed)?;
        Ok(None)
    }
}

struct Feather<'a> {
    writer: FileWriter<&'a mut (dyn Write + Send)>,
}

impl Rows for Feather<'_> {
    fn batch(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.writer.write(batch).map_err(failed)
    }

    fn end(mut self: Box<Self>) -> anyhow::Result<Option<String>> {
        self.writer.finish().map_err(failed)?;
        Ok(None)
    }
}
