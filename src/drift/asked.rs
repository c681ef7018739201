//! A sample of the rows that a model was asked about, for comparison with its training.
//!
//! Of each block of rows of a request at most 64 evenly spaced rows are offered, and each row that was offered is in the sample with the
//! same probability (algorithm R of Vitter, "Random sampling with a reservoir", ACM TOMS 11, 1985).

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use datafusion::arrow::array::{Array as _, Float64Array, UInt32Array};
use datafusion::arrow::compute::take;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};

use super::rows::{Error, baseline};
use super::{Arrived, Drift, Of, compare};
use crate::model::Model;

/// Maximum number of rows in the sample.
const MOST: usize = 10_000;
/// Maximum number of rows that a block of a request contributes, so that one large file does not crowd out the others.
const PER_BLOCK: usize = 64;

/// The rows of requests since the model was loaded.
#[derive(Default)]
pub struct AskedRows(Mutex<Sample>);

struct Sample {
    /// Rows of all requests.
    rows: u64,
    /// Rows that were offered to the sample.
    offered: u64,
    random: Xoshiro256PlusPlus,
    /// Milliseconds since 1970, of each row in the sample.
    times: Vec<i64>,
    /// By row, the features.
    values: Vec<Box<[f64]>>,
}

impl Default for Sample {
    fn default() -> Self {
        let random = Xoshiro256PlusPlus::seed_from_u64(0);
        Self { rows: 0, offered: 0, random, times: Vec::new(), values: Vec::new() }
    }
}

impl AskedRows {
    /// Adds this many rows. `row` returns the features of one of them, in original units; `None` if it has no answer.
    pub fn add(&self, rows: usize, row: impl Fn(usize) -> Option<Box<[f64]>>) {
        let now = tercile_store::times::millis(SystemTime::now());
        let mut sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sample.rows += rows as u64;
        for place in 0..rows.min(PER_BLOCK) {
            let Some(values) = row(place * rows / rows.min(PER_BLOCK)) else { continue };
            sample.offered += 1;
            if sample.values.len() < MOST {
                sample.values.push(values);
                sample.times.push(now);
                continue;
            }
            // A multiplication in place of a division: the bias is below 2^-50.
            let at = ((u128::from(sample.random.next_u64()) * u128::from(sample.offered)) >> 64) as usize;
            if at < MOST {
                sample.values[at] = values;
                sample.times[at] = now;
            }
        }
    }

    /// Adds rows given as columns; a row without one of the features has no answer.
    pub fn add_columns(&self, columns: &[Float64Array]) {
        let rows = columns.first().map_or(0, Float64Array::len);
        self.add(rows, |row| columns.iter().map(|column| column.is_valid(row).then(|| column.value(row))).collect());
    }

    /// Compares the rows with those of the model's training.
    ///
    /// # Errors
    /// [`Error::NoBaseline`] for a model of an earlier build.
    pub fn drift(&self, model: &Model) -> Result<Drift, Error> {
        let baseline = baseline(model)?;
        let sample = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<u32> = (0..sample.values.len() as u32).collect();
        order.sort_by_key(|row| sample.times[*row as usize]);
        let order = UInt32Array::from(order);
        let column = |feature: usize| -> Float64Array { sample.values.iter().map(|row| Some(row[feature])).collect() };
        let sorted =
            |column: Float64Array| take(&column, &order, None).map(|column| Float64Array::from(column.to_data()));
        let columns = (0..model.features.len()).map(|feature| sorted(column(feature))).collect::<Result<_, _>>()?;
        let times = order.values().iter().map(|row| Some(sample.times[*row as usize])).collect();
        let arrived = Arrived { rows: sample.rows, times, columns };
        drop(sample);
        Ok(compare(model, baseline, Of::Api, &arrived))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_that_is_offered_has_the_same_chance() {
        let asked = AskedRows::default();
        for request in 0..1_000_u32 {
            asked.add(50, |row| Some([f64::from(request * 50 + row as u32)].into()));
        }
        // A long file contributes as much as 64 rows.
        asked.add(1_000_000, |row| Some([-1.0 - row as f64].into()));
        let sample = asked.0.lock().unwrap();
        assert_eq!((sample.rows, sample.offered, sample.values.len()), (1_050_000, 50_064, MOST));
        let late = sample.values.iter().filter(|row| row[0] >= 25_000.0).count();
        assert!((4_700..5_300).contains(&late), "{late} of {MOST} rows are of the second half");
        assert!(sample.values.iter().filter(|row| row[0] < 0.0).count() < 64);
    }
}
