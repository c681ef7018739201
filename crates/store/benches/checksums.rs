//! The share of checksums in writing and in reading files of records: `cargo bench -p tercile-store --bench checksums`.
//!
//! Writing: all files are published, then `DataFile::check` reads each again and computes every checksum of it, which is at least
//! what the writer computes. Reading: all columns of the same files are decoded from memory, then the CRC-32 of the same bytes is
//! computed. Both are ratios within one run; the least time of several alternating runs counts.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a benchmark ends with a panic")]

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tercile_store::Store;
use tercile_store::batch::{Batch, Record};
use tercile_store::record::{self, Fields};

const ROWS: i64 = 100_000;
const FILES: i64 = 10;
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let batch = records()?;
    let least = Duration::MAX;
    let (mut write, mut check, mut decode, mut sums) = (least, least, least, least);
    for _ in 0..RUNS {
        let dir = tempfile::tempdir()?;
        let store = Store::open(dir.path())?;
        store.claim("bench", "id", 1)?;
        let log = store.log("bench", 0);
        log.begin(0)?;
        let start = Instant::now();
        for file in 0..FILES {
            log.publish(&batch, file * ROWS, (file + 1) * ROWS)?;
        }
        write = write.min(start.elapsed());
        let files = store.snapshot()?.files;
        let start = Instant::now();
        for file in &files {
            assert!(file.check()?, "the files have checksums");
        }
        check = check.min(start.elapsed());
        let bytes: Vec<Bytes> =
            files.iter().map(|file| fs::read(&file.path).map(Bytes::from)).collect::<Result<_, _>>()?;
        let start = Instant::now();
        let mut rows = 0;
        for bytes in &bytes {
            for batch in ParquetRecordBatchReaderBuilder::try_new(bytes.clone())?.build()? {
                rows += batch?.num_rows();
            }
        }
        decode = decode.min(start.elapsed());
        assert_eq!(rows as i64, ROWS * FILES);
        let start = Instant::now();
        let all = bytes.iter().fold(0, |all, bytes| all ^ crc32fast::hash(bytes));
        sums = sums.min(start.elapsed());
        std::hint::black_box(all);
    }
    let share = |part: Duration, of: Duration| 100.0 * part.as_secs_f64() / of.as_secs_f64();
    println!("writing {write:.1?}, its checksums at most {check:.1?}: {:.2} %", share(check, write));
    println!("decoding {decode:.1?}, its checksums {sums:.1?}: {:.2} %", share(sums, decode));
    Ok(())
}

fn records() -> Result<RecordBatch, Box<dyn Error>> {
    let names = ["product_id", "product_name", "category", "discounted_price", "rating", "rating_count"];
    let fields = Fields::new(names.map(str::to_owned).to_vec());
    let mut batch = Batch::new(0, &fields);
    let now = Instant::now();
    for offset in 0..ROWS {
        let json = format!(
            r#"{{"product_id":"{offset}","category":"Things","discounted_price":"₹{}","rating":"4.{}","rating_count":"{}","product_name":"a thing of no importance whatever, number {offset} of many"}}"#,
            offset % 9999,
            offset % 10,
            offset % 77_777
        );
        let record = Record { offset, timestamp: Some(offset / 100), key: None, payload: Some(json.as_bytes()) };
        batch.push(&record, std::iter::empty(), &record::decode(record.payload, &fields), now);
    }
    Ok(batch.take()?.ok_or("an empty batch")?.records)
}
