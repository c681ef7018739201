//! A row group: its statistics, and its columns where statistics are missing.
//!
//! Input: the store's files. Output: bounds and counts of each row group, and its times and offsets batch by batch.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use tercile_store::{Bounds, DataFile, Snapshot};

use super::Error;
use super::selection::each;

/// Rows per batch.
const BATCH: usize = 65_536;

/// A row group.
#[derive(Debug, Clone)]
pub struct Unit {
    file: Arc<DataFile>,
    group: usize,
    pub partition: i32,
    pub rows: u64,
    /// Number of rows without a time.
    pub timeless: u64,
    /// Minimum and maximum time; `None` if no row has a time.
    pub times: Option<(i64, i64)>,
    pub offsets: (i64, i64),
}

/// All non-empty row groups of a snapshot.
pub fn all(snapshot: &Snapshot) -> Result<Vec<Unit>, Error> {
    let groups = on_all_cores(snapshot.files.len(), |i| of_file(&snapshot.files[i]))?;
    Ok(groups.into_iter().flatten().collect())
}

/// The results of `f` for all units, in order.
pub fn each_unit<R: Send>(units: &[Unit], f: impl Fn(&Unit) -> Result<R, Error> + Sync) -> Result<Vec<R>, Error> {
    on_all_cores(units.len(), |i| f(&units[i]))
}

fn on_all_cores<R: Send>(n: usize, f: impl Fn(usize) -> Result<R, Error> + Sync) -> Result<Vec<R>, Error> {
    let done: Mutex<Vec<(usize, Result<R, Error>)>> = Mutex::new(Vec::with_capacity(n));
    each(n, || {
        |job: Option<usize>| {
            let Some(i) = job else { return true };
            let result = f(i);
            let fine = result.is_ok();
            done.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
            fine
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

fn of_file(file: &DataFile) -> Result<Vec<Unit>, Error> {
    let (of, partition) = (Arc::new(file.clone()), file.partition);
    let unit = |group, rows, bounds: Option<Bounds>| {
        let Bounds { timeless, times, offsets } =
            bounds.unwrap_or(Bounds { timeless: 0, times: None, offsets: (0, 0) });
        let mut unit = Unit { file: Arc::clone(&of), group, partition, rows, timeless, times, offsets };
        if bounds.is_none() {
            unit.measure()?;
        }
        Ok(unit)
    };
    // Most files have one row group, whose bounds are already known.
    if let Some(bounds) = file.bounds {
        return Ok(vec![unit(0, file.rows, Some(bounds))?]);
    }
    let fault = |why: String| Error::File { path: of.path.clone(), why };
    let input = file.place.open_known(&file.path, file.size).map_err(|e| fault(e.to_string()))?;
    let metadata = ArrowReaderMetadata::load(&input, ArrowReaderOptions::new()).map_err(|e| fault(e.to_string()))?;
    let groups = metadata.metadata().row_groups().iter().enumerate().filter(|(_, group)| group.num_rows() > 0);
    let units = groups.map(|(i, group)| {
        let rows = u64::try_from(group.num_rows()).map_err(|e| fault(e.to_string()))?;
        unit(i, rows, Bounds::of_group(group))
    });
    units.collect()
}

impl Unit {
    /// Computes the bounds by reading, if the file has no statistics.
    fn measure(&mut self) -> Result<(), Error> {
        let (mut times, mut timeless, mut offsets) = (None, 0, None);
        let widen = |bounds: &mut Option<(i64, i64)>, value: i64| {
            *bounds = Some(bounds.map_or((value, value), |(low, high)| (low.min(value), high.max(value))));
        };
        self.read(true, true, |time, offset| {
            widen(&mut offsets, offset);
            match time {
                Some(time) => widen(&mut times, time),
                None => timeless += 1,
            }
        })?;
        (self.times, self.timeless, self.offsets) = (times, timeless, offsets.ok_or(Error::Changed)?);
        Ok(())
    }

    /// Calls `sees` with all times that are not NULL.
    pub fn read_times(&self, sees: &mut dyn FnMut(i64)) -> Result<(), Error> {
        self.read(true, false, |time, _| time.into_iter().for_each(&mut *sees))
    }

    /// Calls `sees` with the offsets of the rows that have this time.
    pub fn read_offsets(&self, time: Option<i64>, sees: &mut dyn FnMut(i64)) -> Result<(), Error> {
        let all = self.count_known(time) == Some(self.rows);
        self.read(!all, true, |found, offset| {
            if all || found == time {
                sees(offset);
            }
        })
    }

    /// Number of rows with this time.
    pub fn count_at(&self, time: Option<i64>) -> Result<u64, Error> {
        if let Some(known) = self.count_known(time) {
            return Ok(known);
        }
        let mut count = 0;
        self.read(true, false, |found, _| count += u64::from(found == time))?;
        Ok(count)
    }

    /// The same number, if the statistics determine it.
    fn count_known(&self, time: Option<i64>) -> Option<u64> {
        match (time, self.times) {
            (None, _) => Some(self.timeless),
            (Some(_), None) => Some(0),
            (Some(time), Some((low, high))) if time < low || high < time => Some(0),
            (Some(_), Some((low, high))) if low == high => Some(self.rows - self.timeless),
            _ => None,
        }
    }

    /// Calls `sees` with time and offset of each row. A column that is not requested is passed as `None` or 0.
    fn read(&self, times: bool, offsets: bool, mut sees: impl FnMut(Option<i64>, i64)) -> Result<(), Error> {
        let fault = |why: String| Error::File { path: self.file.path.clone(), why };
        let input = self.file.place.open_known(&self.file.path, self.file.size).map_err(|e| fault(e.to_string()))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(input).map_err(|e| fault(e.to_string()))?;
        let wanted = [("_timestamp", times), ("_offset", offsets)];
        let names = wanted.iter().filter(|(_, wanted)| *wanted).map(|(name, _)| *name);
        let mask = ProjectionMask::columns(builder.parquet_schema(), names);
        let reader = builder.with_projection(mask).with_row_groups(vec![self.group]).with_batch_size(BATCH).build();
        for batch in reader.map_err(|e| fault(e.to_string()))? {
            let batch = batch.map_err(|e| fault(e.to_string()))?;
            let column = |name: &str, wanted: bool| -> Result<Option<_>, Error> {
                if wanted { numbers(&batch, name).map(Some).map_err(fault) } else { Ok(None) }
            };
            let (times, offsets) = (column("_timestamp", times)?, column("_offset", offsets)?);
            let times = times.as_ref().map(|column| column.as_primitive::<Int64Type>());
            let offsets = offsets.as_ref().map(|column| column.as_primitive::<Int64Type>().values());
            for row in 0..batch.num_rows() {
                let time = times.and_then(|times| times.is_valid(row).then(|| times.value(row)));
                sees(time, offsets.map_or(0, |offsets| offsets[row]));
            }
        }
        Ok(())
    }
}

fn numbers(batch: &RecordBatch, name: &str) -> Result<Arc<dyn Array>, String> {
    let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column {name}"))?;
    cast(column, &DataType::Int64).map_err(|e| e.to_string())
}
