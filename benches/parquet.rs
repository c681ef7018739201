//! Compares writing files with the store and with a plain `ArrowWriter` (zstd, other settings default) that gets the same
//! batches and syncs its file once: `cargo bench --bench parquet`.
//!
//! The store additionally searches a free name, links the file and syncs the directory. It saves time by not building
//! dictionaries for columns whose values rarely repeat.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark ends with a panic")]

use std::error::Error;
use std::fs::File;
use std::time::{Duration, Instant};

use datafusion::arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use tercile::sql::Files;
use tercile_sample::{COLUMNS, Generator, ndjson_row};
use tercile_store::batch::{Batch, Record};
use tercile_store::record;
use tercile_store::{Published, Store};

const FILES: i64 = 20;
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    for (name, rows, small) in [("products of 3.5 KB", 20_000, false), ("records of 200 B", 100_000, true)] {
        let batch = ready(rows, small)?;
        let (mut ours, mut bare) = (Duration::MAX, Duration::MAX);
        // Alternating runs, so that both are affected equally by other load.
        for _ in 0..RUNS {
            ours = ours.min(store(&batch)?);
            bare = bare.min(arrow(&batch)?);
        }
        let rate = |time: Duration| rows as f64 * FILES as f64 / time.as_secs_f64();
        println!(
            "{name}: {:.0} rows/s, a bare ArrowWriter {:.0} rows/s: {:.2} of it",
            rate(ours),
            rate(bare),
            bare.as_secs_f64() / ours.as_secs_f64()
        );
    }
    Ok(())
}

fn ready(rows: usize, small: bool) -> Result<RecordBatch, Box<dyn Error>> {
    let fields = Files::load(None)?.fields;
    let mut batch = Batch::new(0, &fields);
    let mut generator = Generator::new(42);
    let now = Instant::now();
    for offset in 0..rows {
        let json = if small {
            format!(
                r#"{{"product_id":"{offset}","category":"Things","discounted_price":"₹{}","rating":"4.{}","rating_count":"{}","product_name":"a thing of no importance whatever, number {offset} of many"}}"#,
                offset % 9999,
                offset % 10,
                offset % 77_777
            )
        } else {
            let mut line = Vec::new();
            ndjson_row(&COLUMNS, &generator.next_row(), &mut line);
            String::from_utf8(line)?
        };
        let record = Record {
            offset: i64::try_from(offset)?,
            timestamp: Some(i64::try_from(offset / 100)?),
            key: None,
            payload: Some(json.as_bytes()),
        };
        batch.push(&record, std::iter::empty(), &record::decode(record.payload, &fields), now);
    }
    Ok(batch.take()?.ok_or("an empty batch")?.records)
}

fn store(batch: &RecordBatch) -> Result<Duration, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path())?;
    store.claim("bench", "id", 1)?;
    let log = store.log("bench", 0);
    log.begin(0)?;
    let rows = i64::try_from(batch.num_rows())?;
    let start = Instant::now();
    for file in 0..FILES {
        if !matches!(log.publish(batch, file * rows, (file + 1) * rows)?, Published::File(_)) {
            return Err("the name was taken".into());
        }
    }
    Ok(start.elapsed())
}

fn arrow(batch: &RecordBatch) -> Result<Duration, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let start = Instant::now();
    for file in 0..FILES {
        let output = File::create(dir.path().join(format!("{file}.parquet")))?;
        let mut writer = ArrowWriter::try_new(output, batch.schema(), Some(properties.clone()))?;
        writer.write(batch)?;
        writer.into_inner()?.sync_all()?;
    }
    Ok(start.elapsed())
}
