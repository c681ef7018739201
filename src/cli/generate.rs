//! `tercile generate`: writes generated sample rows.

use std::io::Write;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tercile_sample::{COLUMNS, Generator, csv_header, csv_row, ndjson_row};

use super::Done;
use super::output_file::{Output, OutputFile};

/// Size of the output buffer in bytes.
const CHUNK: usize = 1 << 18;
/// Rows per Parquet row group.
const GROUP: u64 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Ndjson,
    Parquet,
}

/// Generate sample product rows, as untidy as those of a real shop
///
/// The same seed gives the same bytes on any machine. data/products.csv is `tercile generate 1465`.
#[derive(Args)]
pub struct Generate {
    /// Number of rows
    #[arg(value_name = "N")]
    rows: u64,
    /// Seed of the random number generator
    #[arg(long, env = "TERCILE_SEED", value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Output format [default: by the file extension of the output, else csv]
    #[arg(long, env = "TERCILE_FORMAT", value_name = "FORMAT")]
    format: Option<Format>,
    /// Output file, written after all rows were generated [default: stdout]
    #[arg(long, short, env = "TERCILE_OUTPUT", value_name = "FILE")]
    output: Option<OutputFile>,
}

impl Generate {
    pub fn run(self) -> anyhow::Result<Done> {
        let format = match &self.output {
            Some(output) => output.format(self.format)?,
            None => self.format,
        };
        let out = Output::open(self.output.as_ref())?;
        self.write(format.unwrap_or(Format::Csv), &out)?;
        out.commit()?;
        Ok(Done::Well)
    }

    fn write(&self, format: Format, mut out: &Output) -> anyhow::Result<()> {
        let mut generator = Generator::new(self.seed);
        if format == Format::Parquet {
            return self.parquet(&mut generator, out);
        }
        let mut chunk = Vec::with_capacity(CHUNK + (1 << 14));
        if format == Format::Csv {
            csv_header(&mut chunk);
        }
        for _ in 0..self.rows {
            let row = generator.next_row();
            match format {
                Format::Csv => csv_row(&row, &mut chunk),
                Format::Ndjson | Format::Parquet => ndjson_row(&row, &mut chunk),
            }
            if chunk.len() >= CHUNK {
                out.write_all(&chunk)?;
                chunk.clear();
            }
        }
        out.write_all(&chunk)?;
        Ok(())
    }

    fn parquet(&self, generator: &mut Generator, out: &Output) -> anyhow::Result<()> {
        let fields: Vec<Field> = COLUMNS.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
        let mut writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties))?;
        let mut left = self.rows;
        while left > 0 {
            let rows = left.min(GROUP);
            let mut columns: Vec<StringBuilder> = COLUMNS.iter().map(|_| StringBuilder::new()).collect();
            for _ in 0..rows {
                let row = generator.next_row();
                columns.iter_mut().zip(row).for_each(|(column, value)| column.append_value(value));
            }
            let columns = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
            writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
            writer.flush()?;
            left -= rows;
        }
        writer.close()?;
        Ok(())
    }
}
