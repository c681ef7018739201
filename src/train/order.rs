//! The order of the rows of a segmentation of records: the ends of slices, and records that occur twice.

use datafusion::arrow::array::{Array as _, AsArray as _, Int32Array, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::prelude::SessionContext;

use super::Refusal;
use super::view_query::named;
use crate::engine;
use crate::slices::SLICES;
use crate::sql::{Segmentation, quote};

/// A record that occurs twice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Duplicate {
    pub row: usize,
    pub partition: i32,
    pub offset: i64,
}

/// The ends of slices and the first duplicate record, determined from rows in slice order.
#[derive(Default)]
pub(super) struct Order {
    /// Number of rows of slices 1 to 1, 1 to 2, and 1 to 3.
    pub ends: [usize; SLICES as usize],
    /// The first record that occurred before.
    pub twin: Option<Duplicate>,
    /// Slice, timestamp, partition and offset of the last row.
    last: Option<(i64, Option<i64>, i32, i64)>,
    /// True if a slice has a row that precedes, in stream order, a row of the previous slice.
    astray: bool,
    /// True if the rows are not in slice order.
    pub broken: bool,
}

impl Order {
    pub fn rows(&self) -> usize {
        self.ends[SLICES as usize - 1]
    }

    /// Processes the next rows of [`query`].
    pub fn see(&mut self, batch: &RecordBatch) {
        let (slices, partitions, offsets, timestamps) = keys(batch);
        let before = self.rows();
        for row in 0..batch.num_rows() {
            let timestamp = timestamps.is_valid(row).then(|| timestamps.value(row));
            let this = (slices.value(row), timestamp, partitions.value(row), offsets.value(row));
            if let Some(last) = self.last {
                let (place, last_place) = ((this.1, this.2, this.3), (last.1, last.2, last.3));
                if place == last_place && self.twin.is_none() {
                    self.twin = Some(Duplicate { row: before + row, partition: this.2, offset: this.3 });
                }
                self.astray |= place < last_place;
                self.broken |= this < last;
            }
            self.last = Some(this);
        }
        for (end, slice) in self.ends.iter_mut().zip(1..) {
            *end += slices.values().partition_point(|&of| of <= slice);
        }
    }

    /// Duplicates in slices that are not adjacent cannot be found by comparing neighbours.
    pub async fn look_everywhere(
        &mut self,
        ctx: &SessionContext,
        segmentation: &Segmentation,
    ) -> Result<(), engine::Error> {
        if self.twin.is_none() && self.astray {
            for slice in 2..=SLICES {
                if let Some((partition, offset)) = twin_anywhere(ctx, segmentation, slice).await? {
                    // Its second row is in this slice.
                    let row = self.ends[usize::from(slice) - 2];
                    self.twin = Some(Duplicate { row, partition, offset });
                    break;
                }
            }
        }
        Ok(())
    }

    /// Number of rows of slices 1 to `slice`, if they are valid.
    pub fn end(&self, slice: u8) -> Result<usize, Refusal> {
        let rows = self.ends[usize::from(slice) - 1];
        if rows == 0 {
            return Err(Refusal::NoRows);
        }
        match self.twin.filter(|twin| twin.row < rows) {
            Some(Duplicate { partition, offset, .. }) => Err(Refusal::Twice { partition, offset }),
            None => Ok(rows),
        }
    }
}

/// Slice, partition, offset and timestamp of the rows of [`query`].
pub(super) fn keys(batch: &RecordBatch) -> (&Int64Array, &Int32Array, &Int64Array, &Int64Array) {
    let long = |i: usize| batch.column(i).as_primitive::<Int64Type>();
    (long(0), batch.column(1).as_primitive::<Int32Type>(), long(2), long(3))
}

/// Partition and offset of a record that has more than one row in the slices up to this one.
async fn twin_anywhere(
    ctx: &SessionContext,
    segmentation: &Segmentation,
    slice: u8,
) -> Result<Option<(i32, i64)>, engine::Error> {
    let sql = format!(
        "SELECT CAST(_partition AS INT), CAST(_offset AS BIGINT) FROM {} WHERE _slice <= {slice}
         GROUP BY 1, 2 HAVING count(*) > 1 ORDER BY 1, 2 LIMIT 1",
        quote(&segmentation.name)
    );
    let found = engine::collect(ctx, &sql).await.map_err(|error| named(segmentation, error))?;
    Ok((found.num_rows() > 0).then(|| {
        let partition = found.column(0).as_primitive::<Int32Type>().value(0);
        (partition, found.column(1).as_primitive::<Int64Type>().value(0))
    }))
}
