//! Mean and standard deviation of a column, in two passes at memory bandwidth.
//!
//! Input: a column that may have nulls. Output: its range, its sum, and the sum of squared differences from a value. Sums
//! are compensated (Neumaier, "Rundungsfehleranalyse einiger Verfahren zur Summation endlicher Summen", ZAMM 54, 1974) in
//! eight lanes: they are exact or nearly so, and depend on the rows alone, not on threads or instruction sets.

use std::ops::Range;

use arrow_array::Float64Array;
use fearless_simd::{Level, Select, Simd, SimdBase, SimdMask, dispatch};

use crate::column::Column;
use crate::column_buffer::done_with;
use crate::parallel::by_chunk;

/// Number of separate partial sums, the same for every vector width.
pub const LANES: usize = 8;

/// Range and sum of a column's valid values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Minimum; +∞ without values.
    pub least: f64,
    /// Maximum; -∞ without values.
    pub greatest: f64,
    /// Sum of the values times the unit.
    pub sum: f64,
    /// Number of valid values.
    pub known: usize,
    /// Whether all valid values are finite. If not, the other fields are meaningless.
    pub finite: bool,
}

/// Range of the values, and sum of the values times `unit`.
pub fn extent(column: &Column<'_>, unit: f64, threads: usize, level: Level) -> Extent {
    let chunks = by_chunk(column.len(), threads, |rows| {
        let mut lanes = ExtentLanes::new();
        known(column, rows, |groups, rest| {
            dispatch!(level, simd => lanes.add(simd, groups, unit));
            lanes.add_rest(rest, unit);
        });
        lanes
    });
    let mut all = ExtentLanes::new();
    let mut sum = Compensated::default();
    for chunk in &chunks {
        chunk.sum.iter().zip(&chunk.lost).for_each(|(sum_of, lost)| {
            sum.add(*sum_of);
            sum.add(*lost);
        });
        all.least = all.least.min(chunk.least);
        all.greatest = all.greatest.max(chunk.greatest);
        all.finite &= chunk.finite;
    }
    Extent {
        least: all.least,
        greatest: all.greatest,
        sum: sum.total(),
        known: column.len() - column.null_count(),
        finite: all.finite,
    }
}

/// Sum of (value · unit - middle)² over the valid values.
pub fn squares(column: &Column<'_>, unit: f64, middle: f64, threads: usize, level: Level) -> f64 {
    let chunks = by_chunk(column.len(), threads, |rows| {
        let (mut sum, mut lost) = ([0.0; LANES], [0.0; LANES]);
        known(column, rows, |groups, rest| {
            dispatch!(level, simd => add_squares(simd, groups, unit, middle, &mut sum, &mut lost));
            for (lane, value) in rest.iter().enumerate() {
                let off = value * unit - middle;
                (sum[lane], lost[lane]) = two_sum(sum[lane], lost[lane], off * off);
            }
        });
        (sum, lost)
    });
    let mut total = Compensated::default();
    for (sum, lost) in chunks {
        sum.iter().zip(&lost).for_each(|(sum, lost)| {
            total.add(*sum);
            total.add(*lost);
        });
    }
    total.total()
}

/// Moments of a part of a column, for columns that are distributed over several processes.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Range and sum.
    pub extent: Extent,
    /// Sum of squared differences from the part's mean.
    squares: f64,
}

impl Part {
    /// Measures a part.
    pub fn of(column: &Float64Array) -> Self {
        let (column, level) = (Column::from(column), Level::new());
        let extent = extent(&column, 1.0, 1, level);
        let squares = match extent.known {
            0 => 0.0,
            known => squares(&column, 1.0, extent.sum / known as f64, 1, level),
        };
        Self { extent, squares }
    }

    /// Combines parts: range and sum of all values, and the sum of squared differences from their mean. Chan, Golub and
    /// LeVeque, "Algorithms for computing the sample variance" (The American Statistician 37, 1983).
    pub fn join<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> (Extent, f64) {
        let mut all = Extent { least: f64::INFINITY, greatest: f64::NEG_INFINITY, sum: 0.0, known: 0, finite: true };
        let mut sum = Compensated::default();
        for Self { extent, .. } in parts.clone() {
            all.least = all.least.min(extent.least);
            all.greatest = all.greatest.max(extent.greatest);
            all.known += extent.known;
            all.finite &= extent.finite;
            sum.add(extent.sum);
        }
        all.sum = sum.total();
        let mean = all.sum / all.known as f64;
        let mut squares = Compensated::default();
        for part in parts.filter(|part| part.extent.known > 0) {
            let known = part.extent.known as f64;
            let off = part.extent.sum / known - mean;
            squares.add(part.squares);
            squares.add(known * off * off);
        }
        (all, squares.total())
    }
}

/// Passes the valid values of a range to `take`, in groups of eight, and the remainder.
fn known(column: &Column<'_>, rows: Range<usize>, mut take: impl FnMut(&[[f64; LANES]], &[f64])) {
    let values = &column.values[rows.clone()];
    match column.valid.map(|nulls| nulls.inner().slice(rows.start, rows.len())) {
        Some(valid) if valid.count_set_bits() < rows.len() => {
            let packed: Vec<f64> = valid.set_indices().map(|row| values[row]).collect();
            let (groups, rest) = packed.as_chunks();
            take(groups, rest);
        }
        _ => {
            let (groups, rest) = values.as_chunks();
            take(groups, rest);
        }
    }
    done_with(values);
}

struct ExtentLanes {
    least: f64,
    greatest: f64,
    finite: bool,
    sum: [f64; LANES],
    lost: [f64; LANES],
}

impl ExtentLanes {
    fn new() -> Self {
        let (sum, lost) = ([0.0; LANES], [0.0; LANES]);
        Self { least: f64::INFINITY, greatest: f64::NEG_INFINITY, finite: true, sum, lost }
    }

    #[inline(always)]
    fn add<S: Simd>(&mut self, simd: S, groups: &[[f64; LANES]], unit: f64) {
        let width = S::f64s::LEN;
        let splat = |value| S::f64s::splat(simd, value);
        for first in (0..LANES).step_by(width) {
            let lanes = first..first + width;
            let mut sum = S::f64s::from_slice(simd, &self.sum[lanes.clone()]);
            let mut lost = S::f64s::from_slice(simd, &self.lost[lanes.clone()]);
            let (mut least, mut greatest) = (splat(f64::INFINITY), splat(f64::NEG_INFINITY));
            // 0 as long as all values are finite, NaN afterwards.
            let mut odd = splat(0.0);
            for group in groups {
                let value = S::f64s::from_slice(simd, &group[lanes.clone()]);
                least = value.simd_lt(least).select(value, least);
                greatest = value.simd_gt(greatest).select(value, greatest);
                odd += value * splat(0.0);
                let value = value * splat(unit);
                let next = sum + value;
                let larger = sum.abs().simd_ge(value.abs());
                lost += larger.select((sum - next) + value, (value - next) + sum);
                sum = next;
            }
            sum.store_slice(&mut self.sum[lanes.clone()]);
            lost.store_slice(&mut self.lost[lanes]);
            self.finite &= odd.simd_eq(splat(0.0)).all_true();
            least.as_slice().iter().for_each(|value| self.least = self.least.min(*value));
            greatest.as_slice().iter().for_each(|value| self.greatest = self.greatest.max(*value));
        }
    }

    fn add_rest(&mut self, rest: &[f64], unit: f64) {
        for (lane, &value) in rest.iter().enumerate() {
            self.least = self.least.min(value);
            self.greatest = self.greatest.max(value);
            self.finite &= value.is_finite();
            (self.sum[lane], self.lost[lane]) = two_sum(self.sum[lane], self.lost[lane], value * unit);
        }
    }
}

#[inline(always)]
fn add_squares<S: Simd>(
    simd: S,
    groups: &[[f64; LANES]],
    unit: f64,
    middle: f64,
    sums: &mut [f64; LANES],
    losts: &mut [f64; LANES],
) {
    let width = S::f64s::LEN;
    for first in (0..LANES).step_by(width) {
        let lanes = first..first + width;
        let mut sum = S::f64s::from_slice(simd, &sums[lanes.clone()]);
        let mut lost = S::f64s::from_slice(simd, &losts[lanes.clone()]);
        for group in groups {
            let value = S::f64s::from_slice(simd, &group[lanes.clone()]) * S::f64s::splat(simd, unit);
            let off = value - S::f64s::splat(simd, middle);
            let square = off * off;
            let next = sum + square;
            let larger = sum.simd_ge(square);
            lost += larger.select((sum - next) + square, (square - next) + sum);
            sum = next;
        }
        sum.store_slice(&mut sums[lanes.clone()]);
        lost.store_slice(&mut losts[lanes]);
    }
}

fn two_sum(sum: f64, lost: f64, value: f64) -> (f64, f64) {
    let next = sum + value;
    (next, lost + if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum })
}

/// A compensated sum (Neumaier 1974): rounding errors are summed separately and added at the end.
#[derive(Debug, Clone, Copy, Default)]
pub struct Compensated {
    sum: f64,
    lost: f64,
}

impl Compensated {
    /// Adds a value.
    pub fn add(&mut self, value: f64) {
        (self.sum, self.lost) = two_sum(self.sum, self.lost, value);
    }

    /// The sum.
    pub fn total(self) -> f64 {
        self.sum + self.lost
    }
}

#[cfg(test)]
mod tests {
    use ndarray::ArrayView1;

    use super::*;

    fn column(n: usize, nulls: bool) -> Float64Array {
        (0..n).map(|i| (!nulls || i % 7 != 3).then(|| ((i * 37) % 1001) as f64 + 0.1)).collect()
    }

    #[test]
    fn no_thread_and_no_instruction_set_changes_a_bit() {
        for (n, nulls) in [(1, false), (13, true), (200_003, true), (200_003, false)] {
            let array = column(n, nulls);
            let column = Column::from(&array);
            let best = extent(&column, 1.0, 1, Level::new());
            let rest = squares(&column, 1.0, 400.0, 1, Level::new());
            for level in super::super::levels() {
                assert_eq!(extent(&column, 1.0, 3, level), best);
                assert_eq!(squares(&column, 1.0, 400.0, 3, level), rest);
            }
            let exact: f64 = array.iter().flatten().map(|value| (value * 10.0).round()).sum();
            assert!((best.sum * 10.0 / exact - 1.0).abs() < 1e-15);
        }
    }

    #[test]
    fn joined_parts_equal_the_whole() {
        let column = column(200_003, true);
        let cuts = [0, 1, 4, 4, 70_000, 200_003];
        let parts: Vec<Part> = cuts.windows(2).map(|cut| Part::of(&column.slice(cut[0], cut[1] - cut[0]))).collect();
        let (joined, squared) = Part::join(parts.iter());
        let column = Column::from(&column);
        let whole = extent(&column, 1.0, 1, Level::new());
        let expected = squares(&column, 1.0, whole.sum / whole.known as f64, 1, Level::new());
        assert_eq!((joined.least, joined.greatest, joined.known), (whole.least, whole.greatest, whole.known));
        assert!((joined.sum / whole.sum - 1.0).abs() < 1e-15 && (squared / expected - 1.0).abs() < 1e-14);
        let (none, _) = Part::join([Part::of(&Float64Array::new_null(3))].iter());
        assert!(none.least > none.greatest && none.known == 0);
    }

    #[test]
    fn values_that_are_not_finite_are_detected_anywhere() {
        for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            for place in [0, 7, 16] {
                let mut values = vec![1.0; 17];
                values[place] = odd;
                assert!(
                    !extent(&ArrayView1::from(&values[..]).into(), 1.0, 1, Level::new()).finite,
                    "{odd} at {place}"
                );
                let hidden: Float64Array = values.into_iter().map(|v: f64| v.is_finite().then_some(v)).collect();
                assert!(extent(&Column::from(&hidden), 1.0, 1, Level::new()).finite);
            }
        }
    }
}
