//! Computes the cuts between slices of a stream without sorting it.
//!
//! Input: the files of a snapshot. Output: the last record of slices 1, 2 and 3. Records are ordered by time (NULL
//! first), partition and offset. Of n records, slice i contains the first min(n, i·⌈n/3⌉). A record at a given place
//! is found as an order statistic by counting: row group statistics give the initial bounds, which are narrowed
//! (`selection.rs`) first by time, then by partition among records with that time, then by offset. Memory use does
//! not depend on the length of the stream.

mod row_group;
mod selection;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use row_group::{Unit, each_unit};
use selection::{Part, nth};
use tercile_store::Snapshot;

/// The reason why the cuts could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {why}", path = path.display())]
    File { path: PathBuf, why: String },
    #[error("the store's files hold other rows than their footers say; tercile doctor tells which are damaged")]
    Changed,
}

/// The number of slices of a stream: thirds.
pub const SLICES: u8 = 3;

/// The numbers of the slices of a stream, in order.
pub fn all_slices() -> RangeInclusive<u8> {
    1..=SLICES
}

/// The numbers of the slices in a sentence, with what stands before the last one: `1, 2 and 3`.
pub fn numbers(before_last: &str) -> String {
    let others: Vec<String> = (1..SLICES).map(|number| number.to_string()).collect();
    format!("{}{before_last}{SLICES}", others.join(", "))
}

/// A division of a stream into growing slices. Slices have numbers from 1; the last one is the whole stream.
pub trait Slicing: Sync {
    /// The number of slices.
    fn slices(&self) -> u8;

    /// The number of records in `slice` of a stream of `n` records: not less than in the slice before, and `n` for the last one.
    fn end(&self, n: u64, slice: u8) -> u64;
}

/// Slice i of n records holds the first min(n, i·⌈n/3⌉) of them.
#[derive(Debug, Clone, Copy)]
pub struct Thirds;

impl Slicing for Thirds {
    fn slices(&self) -> u8 {
        SLICES
    }

    fn end(&self, n: u64, slice: u8) -> u64 {
        n.min(u64::from(slice) * n.div_ceil(u64::from(SLICES)))
    }
}

/// The last record of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub slice: u8,
    /// Number of records in the slice.
    pub place: u64,
    /// Milliseconds since 1970, UTC.
    pub timestamp: Option<i64>,
    pub partition: i32,
    pub offset: i64,
}

/// The last record of each slice; none of an empty snapshot.
///
/// # Errors
/// If a file cannot be read, or its rows are not those that its footer states.
pub fn cuts(snapshot: &Snapshot, slicing: &dyn Slicing) -> Result<Vec<Cut>, Error> {
    let units = row_group::all(snapshot)?;
    let n: u64 = units.iter().map(|unit| unit.rows).sum();
    if n == 0 {
        return Ok(Vec::new());
    }
    let mut cuts: Vec<Cut> = Vec::new();
    for slice in 1..=slicing.slices() {
        let place = slicing.end(n, slice);
        // In a stream of two records the second third ends where the last one does.
        let cut = match cuts.iter().find(|cut| cut.place == place) {
            Some(cut) => Cut { slice, ..*cut },
            None => find(&units, slice, place)?,
        };
        cuts.push(cut);
    }
    Ok(cuts)
}

/// The record at a place, counted from 1.
fn find(units: &[Unit], slice: u8, place: u64) -> Result<Cut, Error> {
    let timeless: u64 = units.iter().map(|unit| unit.timeless).sum();
    let (timestamp, rank) = if place <= timeless {
        (None, place)
    } else {
        let parts = units.iter().filter_map(|unit| {
            let (low, high) = unit.times?;
            Some(Part { low, high, count: unit.rows - unit.timeless, of: unit })
        });
        let (time, rank) = nth(parts.collect(), place - timeless, |unit, sees| unit.read_times(sees))?;
        (Some(time), rank)
    };

    // Finds the partition among the records with that time.
    let counts = each_unit(units, |unit| unit.count_at(timestamp))?;
    let mut partitions: BTreeMap<i32, u64> = BTreeMap::new();
    for (unit, count) in units.iter().zip(&counts) {
        *partitions.entry(unit.partition).or_default() += count;
    }
    let mut rank = rank;
    let mut partition = None;
    for (candidate, count) in partitions {
        if rank <= count {
            partition = Some(candidate);
            break;
        }
        rank -= count;
    }
    let partition = partition.ok_or(Error::Changed)?;

    let parts = units.iter().zip(counts).filter(|(unit, count)| unit.partition == partition && *count > 0);
    let parts = parts.map(|(unit, count)| Part { low: unit.offsets.0, high: unit.offsets.1, count, of: unit });
    let (offset, _) = nth(parts.collect(), rank, |unit, sees| unit.read_offsets(timestamp, sees))?;
    Ok(Cut { slice, place, timestamp, partition, offset })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use datafusion::arrow::array::{Int32Array, Int64Array, RecordBatch, TimestampMillisecondArray};
    use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::{EnabledStatistics, WriterProperties};
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};
    use tercile_store::{DataFile, Place};

    use super::*;

    /// A slicing that exists only here: cuts are found for any.
    struct Quarters;

    impl Slicing for Quarters {
        fn slices(&self) -> u8 {
            4
        }

        fn end(&self, n: u64, slice: u8) -> u64 {
            n.min(u64::from(slice) * n.div_ceil(4))
        }
    }

    #[test]
    fn a_slice_is_a_third_rounded_up() {
        assert_eq!([1, 2, 3].map(|slice| Thirds.end(1465, slice)), [489, 978, 1465]);
        assert_eq!([1, 2, 3].map(|slice| Thirds.end(2, slice)), [1, 2, 2]);
        assert_eq!([1, 2, 3].map(|slice| Thirds.end(0, slice)), [0, 0, 0]);
    }

    type Row = (Option<i64>, i32, i64);

    fn write(path: &std::path::Path, rows: &[Row], group: usize, statistics: EnabledStatistics) {
        let schema = Arc::new(Schema::new(vec![
            Field::new("_partition", DataType::Int32, false),
            Field::new("_offset", DataType::Int64, false),
            Field::new("_timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), true),
        ]));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(rows.iter().map(|row| row.1).collect::<Int32Array>()),
                Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()),
                Arc::new(rows.iter().map(|row| row.0).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
            ],
        );
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(group))
            .set_statistics_enabled(statistics)
            .build();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
        writer.write(&batch.unwrap()).unwrap();
        writer.close().unwrap();
    }

    /// 1,000 small tables with ties, gaps in offsets, missing times, several partitions, files in any order, row
    /// groups of any size, with and without statistics: the cuts equal those of a plain sort.
    #[test]
    fn cuts_are_those_of_a_sort() {
        let dir = tempfile::tempdir().unwrap();
        for seed in 0..1000 {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut below = |n: u64| rng.next_u64() % n;
            let (partitions, spread) = (1 + below(4) as i32, [1, 3, 50, 10_000, u64::MAX / 4][below(5) as usize]);
            let missing = [0, 2, 10][below(3) as usize];
            let ordered = below(2) == 0;
            let mut all: Vec<Row> = Vec::new();
            let mut files = Vec::new();
            for partition in 0..partitions {
                let mut offset = below(5) as i64;
                for _ in 0..below(5) {
                    let mut rows = Vec::new();
                    let start = offset;
                    for _ in 0..below(40) {
                        let time = if ordered { offset * 10 } else { below(spread) as i64 - (spread / 2) as i64 };
                        let time = (missing == 0 || below(missing) > 0).then_some(time);
                        rows.push((time, partition, offset));
                        offset += 1 + [0, 0, 0, 7][below(4) as usize];
                    }
                    let path = dir.path().join(format!("{seed}-{partition}-{start}-{}.parquet", files.len()));
                    let statistics = [EnabledStatistics::Chunk, EnabledStatistics::None][usize::from(below(6) == 0)];
                    write(&path, &rows, 1 + below(20) as usize, statistics);
                    files.push(DataFile {
                        place: Place::default(),
                        path,
                        partition,
                        start,
                        next: offset,
                        rows: rows.len() as u64,
                        size: 0,
                        fields: Arc::default(),
                        bounds: None,
                        checksums: None,
                    });
                    all.extend(rows);
                }
            }
            for i in (1..files.len()).rev() {
                files.swap(i, below(i as u64 + 1) as usize);
            }
            all.sort_unstable();
            let snapshot = Snapshot { topic: "t".to_owned(), files };
            let slicings: [&dyn Slicing; 2] = [&Thirds, &Quarters];
            for slicing in slicings {
                let expected: Vec<Cut> = (1..=slicing.slices())
                    .filter(|_| !all.is_empty())
                    .map(|slice| {
                        let place = slicing.end(all.len() as u64, slice);
                        let (timestamp, partition, offset) = all[place as usize - 1];
                        Cut { slice, place, timestamp, partition, offset }
                    })
                    .collect();
                let found = cuts(&snapshot, slicing).unwrap();
                assert_eq!(found, expected, "seed {seed}, {} slices", slicing.slices());
            }
        }
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let file = DataFile {
            place: Place::default(),
            path: "gone.parquet".into(),
            partition: 0,
            start: 0,
            next: 1,
            rows: 1,
            size: 0,
            fields: Arc::default(),
            bounds: None,
            checksums: None,
        };
        let error = cuts(&Snapshot { topic: "t".to_owned(), files: vec![file] }, &Thirds).unwrap_err();
        assert!(error.to_string().starts_with("cannot read gone.parquet"), "{error}");
    }
}
