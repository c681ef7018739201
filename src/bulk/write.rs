//! Blocks of rows with their clusters to bytes.

use std::io::Write;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array};
use datafusion::arrow::csv::{Writer as CsvWriter, WriterBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::arrow::json::LineDelimitedWriter;
use parquet::arrow::ArrowWriter;

use super::{ADDED, Block, Carried, Error, Format, Found, Scorer};
use crate::record::push_json_string;

/// Writes blocks one after the other. Columns come out as they came in, JSON objects verbatim, and the three that are
/// added stand behind them. JSON objects become columns where columns are asked for: the features, and the object itself
/// as the text `row`.
pub struct Writer<W: Write + Send> {
    sink: Sink<W>,
    any: bool,
}

enum Sink<W: Write + Send> {
    Csv(Box<CsvWriter<W>>),
    /// Objects, in an array or one a line.
    Json {
        out: W,
        array: bool,
    },
    /// Opened by the first block, which brings the columns.
    Arrow(Option<W>, Option<Box<StreamWriter<W>>>),
    Parquet(Option<W>, Option<Box<ArrowWriter<W>>>),
}

impl<W: Write + Send> Writer<W> {
    pub fn new(out: W, format: Format) -> Self {
        let sink = match format {
            Format::Csv => Sink::Csv(Box::new(WriterBuilder::new().with_header(true).build(out))),
            Format::Json => Sink::Json { out, array: true },
            Format::Ndjson => Sink::Json { out, array: false },
            Format::Arrow => Sink::Arrow(Some(out), None),
            Format::Parquet => Sink::Parquet(Some(out), None),
        };
        Self { sink, any: false }
    }

    pub fn write(&mut self, block: Block, found: &Found, scorer: &Scorer) -> Result<(), Error> {
        match &mut self.sink {
            Sink::Json { out, array } => {
                let objects = match block.carried {
                    Carried::Objects(objects) => objects,
                    Carried::Columns(batch) => as_objects(&batch)?,
                };
                let mut text = String::new();
                for ((object, &cluster), distance) in objects.iter().zip(&found.clusters).zip(&found.distances) {
                    text.push_str(match (*array, self.any) {
                        (true, false) => "[",
                        (true, true) => ",\n",
                        (false, _) => "",
                    });
                    self.any = true;
                    text.push_str(object.strip_suffix('}').unwrap_or(object));
                    text.push_str(if object == "{}" { "\"cluster\":" } else { ",\"cluster\":" });
                    text.push_str(&cluster.to_string());
                    text.push_str(",\"description\":");
                    push_json_string(&mut text, &scorer.descriptions[cluster as usize]);
                    text.push_str(&format!(",\"distance\":{distance}}}"));
                    if !*array {
                        text.push('\n');
                    }
                }
                Ok(out.write_all(text.as_bytes())?)
            }
            Sink::Csv(csv) => csv.write(&with_clusters(block, found, scorer)?).map_err(wrote),
            Sink::Arrow(out, writer) => {
                let batch = with_clusters(block, found, scorer)?;
                if let Some(out) = out.take() {
                    *writer = Some(Box::new(StreamWriter::try_new(out, &batch.schema()).map_err(wrote)?));
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(wrote)
            }
            Sink::Parquet(out, writer) => {
                let batch = with_clusters(block, found, scorer)?;
                if let Some(out) = out.take() {
                    *writer = Some(Box::new(ArrowWriter::try_new(out, batch.schema(), None).map_err(wrote)?));
                }
                writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(wrote)
            }
        }
    }

    /// Ends what must be ended.
    pub fn finish(self) -> Result<(), Error> {
        match self.sink {
            Sink::Json { mut out, array } => {
                if array {
                    out.write_all(if self.any { b"]\n" } else { b"[]\n" })?;
                }
                Ok(out.flush()?)
            }
            Sink::Csv(csv) => Ok(csv.into_inner().flush()?),
            Sink::Arrow(_, Some(mut writer)) => writer.finish().map_err(wrote),
            Sink::Parquet(_, Some(writer)) => writer.close().map(|_| ()).map_err(wrote),
            // No rows, so no columns are known either.
            Sink::Arrow(..) | Sink::Parquet(..) => Ok(()),
        }
    }
}

/// A closed pipe comes wrapped up in words; it must still be known for what it is.
fn wrote(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    if text.contains("Broken pipe") {
        return std::io::Error::from(std::io::ErrorKind::BrokenPipe).into();
    }
    Error::Write(crate::sql::one_line(&text))
}

/// The rows of columns as JSON objects.
fn as_objects(batch: &RecordBatch) -> Result<Vec<String>, Error> {
    let mut text = Vec::new();
    let kept: Vec<usize> = kept(batch.schema_ref()).collect();
    let batch = batch.project(&kept).map_err(wrote)?;
    let mut writer = LineDelimitedWriter::new(&mut text);
    writer.write(&batch).and_then(|()| writer.finish()).map_err(wrote)?;
    let text = String::from_utf8(text).map_err(wrote)?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn kept(schema: &Schema) -> impl Iterator<Item = usize> + '_ {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| !ADDED.contains(&field.name().as_str())).map(|(i, _)| i)
}

fn with_clusters(block: Block, found: &Found, scorer: &Scorer) -> Result<RecordBatch, Error> {
    let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = match block.carried {
        Carried::Columns(batch) => {
            kept(batch.schema_ref()).map(|i| (batch.schema_ref().field(i).clone(), Arc::clone(batch.column(i)))).unzip()
        }
        Carried::Objects(objects) => {
            let width = scorer.features.len();
            let features = scorer.features.iter().enumerate().map(|(i, name)| {
                let values: Float64Array =
                    block.values.iter().skip(i).step_by(width).copied().collect::<Vec<_>>().into();
                (Field::new(name, DataType::Float64, false), Arc::new(values) as ArrayRef)
            });
            let rows = StringArray::from(objects);
            features.chain([(Field::new("row", DataType::Utf8, false), Arc::new(rows) as ArrayRef)]).unzip()
        }
    };
    let descriptions: StringArray =
        found.clusters.iter().map(|&cluster| Some(scorer.descriptions[cluster as usize].as_str())).collect();
    let added: [(DataType, ArrayRef); 3] = [
        (DataType::UInt32, Arc::new(UInt32Array::from(found.clusters.clone()))),
        (DataType::Utf8, Arc::new(descriptions)),
        (DataType::Float64, Arc::new(Float64Array::from(found.distances.clone()))),
    ];
    for (name, (kind, column)) in ADDED.into_iter().zip(added) {
        fields.push(Field::new(name, kind, false));
        columns.push(column);
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(wrote)
}
