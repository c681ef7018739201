//! How a feature is scaled before clustering: by its standard deviation, its logarithms, its quartiles, or not at all; and its weight.
//!
//! Input: a column. Output: centre and spread ([`Measured`]). The scaled value of x is weight · (t(x) - centre) / spread, where t is
//! the identity, or log(1 + x) for [`Method::Log`]. Missing values count as the column's mean before t is applied. Results depend on the
//! rows alone, not on threads, processor or C library: logarithms are those of the crate libm.

use super::Error;
use super::moments::Compensated;
use crate::column::Column;
use crate::column_buffer::done_with;
use crate::parallel::by_chunk;
use crate::quartile::interpolated;

/// How a feature is scaled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// Mean and population standard deviation (scikit-learn's StandardScaler).
    #[default]
    Standard,
    /// Mean and population standard deviation of log(1 + x), for values above -1.
    Log,
    /// Median and interquartile range (scikit-learn's RobustScaler).
    Robust,
    /// The values as they are.
    None,
}

/// Method and weight of a feature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    method: Method,
    weight: f64,
}

// A weight is never NaN.
impl Eq for Scaling {}

impl Default for Scaling {
    fn default() -> Self {
        Self { method: Method::Standard, weight: 1.0 }
    }
}

impl Scaling {
    /// `None` unless the weight is a number above 0 whose square and its reciprocal are neither 0 nor infinite.
    pub fn new(method: Method, weight: f64) -> Option<Self> {
        let fits = weight > 0.0 && (weight * weight).is_normal() && (1.0 / weight / weight).is_normal();
        fits.then_some(Self { method, weight })
    }

    /// The method.
    pub fn method(&self) -> Method {
        self.method
    }

    /// The factor of the scaled values, greater than 0.
    pub fn weight(&self) -> f64 {
        self.weight
    }
}

/// The scaling of a feature with its measured centre and spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Method and weight.
    pub scaling: Scaling,
    /// Value that is scaled to 0, after t.
    pub center: f64,
    /// Divisor; 0 for a constant feature, which is divided by 1.
    pub spread: f64,
}

/// log(1 + x), the same on every machine.
pub(crate) fn log(value: f64) -> f64 {
    libm::log1p(value)
}

/// The inverse of [`log`].
pub(crate) fn exp(value: f64) -> f64 {
    libm::expm1(value)
}

/// Measures a column whose mean and standard deviation are known, and whose known values are finite.
pub(super) fn measure(
    name: &str,
    column: &Column<'_>,
    (mean, std): (f64, f64),
    scaling: Scaling,
    threads: usize,
) -> Result<Measured, Error> {
    let (center, spread) = match scaling.method {
        Method::Standard => (mean, std),
        Method::None => (0.0, 1.0),
        Method::Log => logarithms(name, column, (mean, std), threads)?,
        Method::Robust => {
            let [low, median, high] = quartiles(column, mean, threads);
            let range = high - low;
            if range == 0.0 {
                return Err(Error::NoRange { feature: name.to_owned(), value: median.to_string() });
            }
            (median, range)
        }
    };
    // The deviation in scaled units: its square must be a normal number.
    let deviation = if scaling.method == Method::Log { spread } else { std };
    let divisor = if spread == 0.0 { 1.0 } else { spread };
    let scaled = deviation * (scaling.weight / divisor);
    let fits = (1e-140..1e140).contains(&scaled) && divisor.is_normal() && (scaling.weight / divisor).is_normal();
    let special = scaling != Scaling::default();
    match special && std != 0.0 && !fits {
        true => Err(Error::NoDeviation { feature: name.to_owned() }),
        false => Ok(Measured { scaling, center, spread }),
    }
}

/// Mean and population standard deviation of the logarithms.
fn logarithms(name: &str, column: &Column<'_>, (mean, std): (f64, f64), threads: usize) -> Result<(f64, f64), Error> {
    let value = |row: usize| column.value(row).unwrap_or(mean);
    let low = by_chunk(column.len(), threads, |mut rows| rows.find(|&row| value(row) <= -1.0));
    if let Some(row) = low.into_iter().flatten().next() {
        return Err(Error::NoLogarithm { feature: name.to_owned(), value: column.values[row].to_string(), row });
    }
    if std == 0.0 {
        return Ok((log(mean), 0.0));
    }
    let sum = |of: &(dyn Fn(f64) -> f64 + Sync)| {
        let chunks = by_chunk(column.len(), threads, |rows| {
            let mut sum = Compensated::default();
            rows.clone().for_each(|row| sum.add(of(log(value(row)))));
            done_with(&column.values[rows]);
            sum.total()
        });
        let mut total = Compensated::default();
        chunks.into_iter().for_each(|chunk| total.add(chunk));
        total.total()
    };
    let rows = column.len() as f64;
    let center = sum(&|log| log) / rows;
    Ok((center, (sum(&|log| (log - center) * (log - center)) / rows).sqrt()))
}

/// Bits of a value that one pass of [`nth`] determines.
const DIGIT: u32 = 11;

/// The quartiles, interpolated as numpy's, with missing values taken as the mean. Passes over the column instead of a sorted copy.
fn quartiles(column: &Column<'_>, mean: f64, threads: usize) -> [f64; 3] {
    let rows = column.len() as u64;
    let at = |rank: u64| nth(column, mean, rank.min(rows - 1), threads);
    [1, 2, 3].map(|quarter| interpolated(rows, quarter, |rank| (at(rank), at(rank + 1))))
}

/// The value of a rank, from 0: counts the values by their leading bits, then those with the right leading bits by the next.
fn nth(column: &Column<'_>, mean: f64, mut rank: u64, threads: usize) -> f64 {
    let key = |row: usize| ascending(column.value(row).unwrap_or(mean) + 0.0);
    let (mut known, mut prefix) = (0, 0_u64);
    while known < u64::BITS {
        let digit = DIGIT.min(u64::BITS - known);
        let rest = u64::BITS - known - digit;
        let leading = |key: u64| if known == 0 { 0 } else { key >> (u64::BITS - known) };
        let chunks = by_chunk(column.len(), threads, |rows| {
            let mut counts = vec![0_u64; 1 << digit];
            for row in rows.clone() {
                let key = key(row);
                if leading(key) == prefix {
                    counts[((key >> rest) & ((1 << digit) - 1)) as usize] += 1;
                }
            }
            done_with(&column.values[rows]);
            counts
        });
        let mut next = 0;
        for value in 0..1_usize << digit {
            let count: u64 = chunks.iter().map(|counts| counts[value]).sum();
            next = value as u64;
            if rank < count {
                break;
            }
            rank -= count;
        }
        (known, prefix) = (known + digit, (prefix << digit) | next);
    }
    let sign = 1 << 63;
    f64::from_bits(if prefix & sign == 0 { !prefix } else { prefix ^ sign })
}

/// Bits whose order as a number is that of the values.
fn ascending(value: f64) -> u64 {
    let bits = value.to_bits();
    if bits >> 63 == 0 { bits | (1 << 63) } else { !bits }
}

#[cfg(test)]
mod tests {
    use arrow_array::Float64Array;

    use super::super::Scale;
    use super::*;
    use crate::tests::random;

    fn scaling(method: Method, weight: f64) -> Scaling {
        Scaling::new(method, weight).unwrap()
    }

    fn measured(values: &Float64Array, scaling: Scaling) -> Result<Scale, Error> {
        Scale::measure_as(&["x".to_owned()], std::slice::from_ref(values), &[scaling], 2)
    }

    #[test]
    fn ranks_are_those_of_sorted_values() {
        let mut values: Vec<f64> = random(1000, 1).remove(0).iter().map(|v| (v - 0.5) * 1e6).collect();
        values.extend([0.0, -0.0, -1e300, 1e300, f64::MIN_POSITIVE, 5e-324, -5e-324]);
        let column = Float64Array::from(values.clone());
        values.sort_by(f64::total_cmp);
        for (rank, &value) in values.iter().enumerate() {
            assert_eq!(nth(&Column::from(&column), 0.0, rank as u64, 2), value, "{rank}");
        }
    }

    #[test]
    fn a_missing_value_is_the_mean() {
        let column = Float64Array::from(vec![Some(0.0), None, Some(3.0), Some(9.0)]);
        let scale = measured(&column, scaling(Method::Log, 1.0)).unwrap();
        let logs = [1.0, 5.0, 4.0, 10.0].map(f64::ln);
        let mean = logs.iter().sum::<f64>() / 4.0;
        assert!((scale.measured[0].center - mean).abs() < 1e-14);
        // numpy.percentile([0, 4, 3, 9], [25, 50, 75]) is 2.25, 3.5 and 5.25.
        let scale = measured(&column, scaling(Method::Robust, 1.0)).unwrap();
        assert_eq!((scale.measured[0].center, scale.measured[0].spread), (3.5, 3.0));
    }

    #[test]
    fn a_weight_multiplies_the_scaled_value() {
        let column = Float64Array::from(vec![0.0, 1.0, 5.0, 90.0]);
        for method in [Method::Standard, Method::Log, Method::Robust, Method::None] {
            let (one, three) = (measured(&column, scaling(method, 1.0)), measured(&column, scaling(method, 3.0)));
            let apart = |scale: Result<Scale, Error>| {
                let scale = scale.unwrap();
                scale.standardise(0, 5.0) - scale.standardise(0, 1.0)
            };
            assert!((apart(three) / apart(one) - 3.0).abs() < 1e-14, "{method:?}");
        }
    }

    #[test]
    fn what_cannot_be_scaled_is_refused() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-200, 1e200] {
            assert_eq!(Scaling::new(Method::Standard, weight), None, "{weight}");
        }
        let refused = |values: Vec<f64>, method| {
            measured(&Float64Array::from(values), scaling(method, 1.0)).unwrap_err().to_string()
        };
        assert!(refused(vec![3.0, -1.0], Method::Log).contains("x is -1 in row 1"));
        assert!(refused(vec![1.0, 1.0, 1.0, 1.0, 9.0], Method::Robust).contains("the quartiles of x are equal (1)"));
        assert!(refused(vec![0.0, 1e200], Method::None).contains("too far apart"));
    }
}
