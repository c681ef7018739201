//! `tercile generate`: writes generated sample rows.

use std::io::Write;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tercile_sample::{COLUMNS, Generator, ORDER_COLUMNS, Orders, csv_row, ndjson_row};

use super::output_file::{Output, OutputFile};
use super::{Done, Usage};

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

/// Generate sample product rows or orders, as untidy as those of a real shop
///
/// The same seed gives the same bytes on any machine. data/products.csv is `tercile generate 1465`. `tercile generate orders 1000` makes
/// orders of customers: few of them order often.
#[derive(Args)]
pub struct Generate {
    /// Number of product rows; or `orders`
    #[arg(value_name = "N|orders")]
    rows: String,
    /// Number of orders
    #[arg(value_name = "N")]
    orders: Option<u64>,
    /// Seed of the random number generator
    #[arg(long, env = "TERCILE_SEED", value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Output format [default: by the file extension of the output, else csv]
    #[arg(short, long, env = "TERCILE_FORMAT", value_name = "FORMAT")]
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
        let (mut source, rows) = self.source()?;
        let out = Output::open(self.output.as_ref())?;
        write((&mut source, rows), format.unwrap_or(Format::Csv), &out)?;
        out.commit()?;
        Ok(Done::Well)
    }

    /// The rows to make, and their number.
    fn source(&self) -> Result<(Source, u64), Usage> {
        match (self.rows.as_str(), self.orders) {
            ("orders", Some(rows)) => Ok((Source::Orders(Orders::new(self.seed)), rows)),
            ("orders", None) => Err(Usage("say how many orders: tercile generate orders 1000".to_owned())),
            (_, Some(_)) => Err(Usage(format!("expected orders before the number, found {:?}", self.rows))),
            (rows, None) => match rows.parse() {
                Ok(rows) => Ok((Source::Products(Box::new(Generator::new(self.seed))), rows)),
                Err(_) => Err(Usage(format!("expected a number of rows, or orders and a number, found {rows:?}"))),
            },
        }
    }
}

/// A stream of rows.
enum Source {
    Products(Box<Generator>),
    Orders(Orders),
}

impl Source {
    fn columns(&self) -> &'static [&'static str] {
        match self {
            Self::Products(_) => &COLUMNS,
            Self::Orders(_) => &ORDER_COLUMNS,
        }
    }

    /// Hands the next row over.
    fn next_row(&mut self, take: impl FnOnce(&[&str])) {
        match self {
            Self::Products(generator) => take(&generator.next_row()),
            Self::Orders(orders) => take(&orders.next_row()),
        }
    }
}

fn write((source, rows): (&mut Source, u64), format: Format, mut out: &Output) -> anyhow::Result<()> {
    if format == Format::Parquet {
        return parquet((source, rows), out);
    }
    let columns = source.columns();
    let mut chunk = Vec::with_capacity(CHUNK + (1 << 14));
    if format == Format::Csv {
        csv_row(columns, &mut chunk);
    }
    for _ in 0..rows {
        source.next_row(|row| match format {
            Format::Csv => csv_row(row, &mut chunk),
            Format::Ndjson | Format::Parquet => ndjson_row(columns, row, &mut chunk),
        });
        if chunk.len() >= CHUNK {
            out.write_all(&chunk)?;
            chunk.clear();
        }
    }
    out.write_all(&chunk)?;
    Ok(())
}

fn parquet((source, mut left): (&mut Source, u64), out: &Output) -> anyhow::Result<()> {
    let names = source.columns();
    let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, false)).collect();
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties))?;
    while left > 0 {
        let rows = left.min(GROUP);
        let mut columns: Vec<StringBuilder> = names.iter().map(|_| StringBuilder::new()).collect();
        for _ in 0..rows {
            source.next_row(|row| columns.iter_mut().zip(row).for_each(|(column, value)| column.append_value(value)));
        }
        let columns = columns.into_iter().map(|mut column| Arc::new(column.finish()) as ArrayRef).collect();
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
        writer.flush()?;
        left -= rows;
    }
    writer.close()?;
    Ok(())
}
