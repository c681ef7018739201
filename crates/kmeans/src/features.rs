//! Feature columns: standardisation, and for linfa-clustering a matrix.
//!
//! Input: one Arrow column per feature. Output: mean and standard deviation of each ([`Scale`]), sufficient for the passes
//! over the columns; and a fixed-size-list column without nulls whose child buffer is viewed as a two-dimensional array
//! ([`Matrix`]).

mod error;
mod matrix;
pub mod moments;
pub mod scaling;

use arrow_array::Float64Array;
pub use error::Error;
use fearless_simd::Level;
pub use matrix::Matrix;
use ndarray::Array2;
use scaling::{Measured, Method, Scaling};

use crate::column::Column;

/// Standardisation of features: original to standardised units, and the imputed value of each feature. All vectors have one
/// element per feature.
///
/// The standardised value of x is (x - origin) · inverse. The origin is a round number near the mean rather than the mean
/// itself: differences of round numbers from a round number are exact, so cluster means of round numbers are exact, too.
/// Distances do not depend on the origin. With [`Method::Log`] x is log(1 + value), and the origin a logarithm ([`scaling`]).
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Mean, which replaces missing values.
    pub mean: Vec<f64>,
    /// Population standard deviation, with missing values taken as the mean; 0 for a constant feature.
    pub std: Vec<f64>,
    /// Origin of standardised values, in original units.
    pub origin: Vec<f64>,
    /// Factor of the differences from the origin: the reciprocal of the standard deviation, and 1 for a constant feature, unless the
    /// feature has a weight or another method.
    pub inverse: Vec<f64>,
    /// How each feature is scaled.
    pub measured: Vec<Measured>,
}

impl Scale {
    /// A scale from the mean and the population standard deviation of each feature.
    pub fn new(mean: Vec<f64>, std: Vec<f64>) -> Self {
        let standard = |(&center, &spread): (&f64, &f64)| Measured { scaling: Scaling::default(), center, spread };
        let measured = mean.iter().zip(&std).map(standard).collect();
        Self::scaled(mean, std, measured)
    }

    /// A scale from the mean, the population standard deviation, and the scaling of each feature.
    pub fn scaled(mean: Vec<f64>, std: Vec<f64>, measured: Vec<Measured>) -> Self {
        let around = |(f, of): (usize, &Measured)| match of.scaling.method() {
            Method::Standard | Method::None => origin(mean[f], std[f]),
            Method::Log | Method::Robust => origin(of.center, of.spread),
        };
        let origin = measured.iter().enumerate().map(around).collect();
        let inverse = |of: &Measured| of.scaling.weight() / if of.spread == 0.0 { 1.0 } else { of.spread };
        let inverse = measured.iter().map(inverse).collect();
        Self { mean, std, origin, inverse, measured }
    }

    /// Whether the logarithms of a feature are standardised.
    pub fn is_log(&self, feature: usize) -> bool {
        self.measured[feature].scaling.method() == Method::Log
    }

    /// Whether any feature has another scale than its mean and standard deviation.
    pub fn is_special(&self) -> bool {
        self.measured.iter().any(|of| of.scaling != Scaling::default())
    }

    /// The method and weight of each feature.
    pub fn scalings(&self) -> Vec<Scaling> {
        self.measured.iter().map(|of| of.scaling).collect()
    }

    /// A value in the unit in which differences of a feature are proportional to scaled ones: its logarithm, or itself.
    pub fn linear(&self, feature: usize, value: f64) -> f64 {
        if self.is_log(feature) { scaling::log(value) } else { value }
    }

    /// [`Self::linear`] of centroids, k × features.
    pub fn linear_centroids(&self, centroids: &Array2<f64>) -> Array2<f64> {
        let mut linear = centroids.clone();
        linear.indexed_iter_mut().for_each(|((_, feature), value)| *value = self.linear(feature, *value));
        linear
    }

    /// Standard deviation in the unit of [`Self::linear`].
    pub fn linear_deviation(&self, feature: usize) -> f64 {
        if self.is_log(feature) { self.measured[feature].spread } else { self.std[feature] }
    }

    /// Standardises a value of a feature.
    pub fn standardise(&self, feature: usize, value: f64) -> f64 {
        (self.linear(feature, value) - self.origin[feature]) * self.inverse[feature]
    }

    /// Standardises values of a feature; `to` has as many places.
    #[inline]
    pub fn standardise_all(&self, feature: usize, values: &[f64], to: &mut [f64]) {
        if self.is_log(feature) {
            to.iter_mut().zip(values).for_each(|(to, value)| *to = self.standardise(feature, *value));
            return;
        }
        let (origin, inverse) = (self.origin[feature], self.inverse[feature]);
        to.iter_mut().zip(values).for_each(|(to, value)| *to = (value - origin) * inverse);
    }

    /// The greatest standard deviation of a feature in scaled units, at least 1; exactly 1 if no feature is special.
    pub fn reach(&self) -> f64 {
        let special = self.measured.iter().enumerate().filter(|(_, of)| of.scaling != Scaling::default());
        special.map(|(f, _)| self.linear_deviation(f) * self.inverse[f]).fold(1.0, f64::max)
    }

    /// Measures columns of the same length. The result does not depend on the number of threads. `names` are used in
    /// errors.
    ///
    /// # Errors
    /// [`Error::AllMissing`], [`Error::NotFinite`] and [`Error::NoDeviation`].
    pub fn measure(names: &[String], columns: &[Float64Array], threads: usize) -> Result<Self, Error> {
        let columns: Vec<Column<'_>> = columns.iter().map(Column::from).collect();
        Self::measure_columns(names, &columns, threads)
    }

    /// Measures columns that have methods and weights of their own, one for each.
    ///
    /// # Errors
    /// As [`Self::measure`], [`Error::NoLogarithm`] and [`Error::NoRange`].
    pub fn measure_as(
        names: &[String],
        columns: &[Float64Array],
        scalings: &[Scaling],
        threads: usize,
    ) -> Result<Self, Error> {
        let Self { mean, std, .. } = Self::measure(names, columns, threads)?;
        let mut measured = Vec::with_capacity(names.len());
        for (f, (name, &scaling)) in names.iter().zip(scalings).enumerate() {
            measured.push(scaling::measure(name, &Column::from(&columns[f]), (mean[f], std[f]), scaling, threads)?);
        }
        Ok(Self::scaled(mean, std, measured))
    }

    /// Measures columns of Arrow or ndarray, as [`Self::measure`] does.
    pub(crate) fn measure_columns(names: &[String], columns: &[Column<'_>], threads: usize) -> Result<Self, Error> {
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for (name, column) in names.iter().zip(columns) {
            let (m, s) = mean_and_deviation(name, column, threads)?;
            mean.push(m);
            std.push(s);
        }
        Ok(Self::new(mean, std))
    }

    /// One unit for all features, so that distances are proportional to those in original units: the power of two just
    /// under the largest deviation, which changes no digit and prevents overflow.
    pub(crate) fn isotropic(self) -> Self {
        let largest = self.std.iter().copied().fold(0.0, f64::max);
        let inverse = if largest > 0.0 { 1.0 / power_under(largest) } else { 1.0 };
        Self { inverse: vec![inverse; self.std.len()], ..self }
    }

    /// Mean variance of the features that are not constant, in standardised units; 0 if all are constant.
    pub(crate) fn mean_variance(&self) -> f64 {
        let varied = self.std.iter().filter(|&&std| std != 0.0).count();
        let deviation = |f: usize| self.linear_deviation(f) * self.inverse[f];
        let sum: f64 = (0..self.std.len()).map(|f| deviation(f) * deviation(f)).sum();
        sum / varied.max(1) as f64
    }
}

/// The mean, rounded to a multiple of the power of two just under the deviation.
fn origin(mean: f64, std: f64) -> f64 {
    if std == 0.0 {
        return mean;
    }
    let grid = power_under(std);
    let rounded = (mean / grid).round() * grid;
    if rounded.is_finite() { rounded } else { mean }
}

/// The greatest power of two not greater than |value|; for a subnormal number the smallest normal one.
pub fn power_under(value: f64) -> f64 {
    f64::from_bits((value.abs().to_bits() & (0x7ff << 52)).max(1 << 52))
}

fn mean_and_deviation(name: &str, column: &Column<'_>, threads: usize) -> Result<(f64, f64), Error> {
    let level = Level::new();
    let mut extent = moments::extent(column, 1.0, threads, level);
    if !extent.finite {
        let odd = (0..column.len()).find(|&row| column.value(row).is_some_and(|value| !value.is_finite()));
        let row = odd.unwrap_or_else(|| unreachable!("one of the values is not finite"));
        return Err(Error::NotFinite { feature: name.to_owned(), value: column.values[row].to_string(), row });
    }
    let (low, high) = (extent.least, extent.greatest);
    if low > high {
        return Err(Error::AllMissing { feature: name.to_owned() });
    }
    if low == high {
        return Ok((low, 0.0));
    }
    // Squares of very large or very small values overflow or underflow. Scaling by a power of two is exact and avoids this.
    let largest = low.abs().max(high.abs());
    let mut unit = 1.0;
    if !(1e-100..1e100).contains(&largest) {
        unit = 1.0 / power_under(largest);
        extent = moments::extent(column, unit, threads, level);
    }
    let mean = extent.sum / extent.known as f64;
    let squares = moments::squares(column, unit, mean, threads, level);
    let std = (squares / column.len() as f64).sqrt();
    let (mean, std): (f64, f64) = (mean / unit, std / unit);
    // Passes take differences of values and divide by the deviation.
    let fits = (high - low).is_finite() && std.is_normal() && (1.0 / std).is_normal();
    if fits { Ok((mean, std)) } else { Err(Error::NoDeviation { feature: name.to_owned() }) }
}

/// Compensated sum (Neumaier) of values in order.
pub fn compensated_sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut sum = moments::Compensated::default();
    values.for_each(|value| sum.add(value));
    sum.total()
}

/// The instruction sets of this machine, for tests that compare their results bit by bit.
#[cfg(test)]
pub(crate) fn levels() -> Vec<Level> {
    let best = Level::new();
    let mut levels = vec![best, Level::baseline()];
    #[cfg(target_arch = "x86_64")]
    levels.extend([best.as_sse4_2().map(Level::Sse4_2), best.as_avx2().map(Level::Avx2)].into_iter().flatten());
    levels
}

#[cfg(test)]
mod tests {
    use arrow_array::Array as _;
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::Float64Type;

    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("f{i}")).collect()
    }

    #[test]
    fn the_view_shares_arrows_buffer() {
        let columns = [Float64Array::from(vec![1.0, 2.0, 3.0]), Float64Array::from(vec![Some(4.0), None, Some(8.0)])];
        let scale = Scale::measure(&names(2), &columns, 1).unwrap();
        let matrix = Matrix::build(&scale, &columns).unwrap();
        let view = matrix.view();
        assert_eq!(view.as_ptr(), matrix.column().values().as_primitive::<Float64Type>().values().as_ptr());
        assert_eq!(view.dim(), (3, 2));
        assert_eq!(matrix.column().null_count() + matrix.column().values().null_count(), 0);
        let distance =
            |feature: usize, row: usize, value: f64| view[[row, feature]] - scale.standardise(feature, value);
        assert_eq!(distance(1, 1, 6.0), 0.0, "the mean stands in for what is missing");
        assert!((distance(0, 0, 2.0) + 1.5_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn missing_values_take_the_mean_and_count_in_the_deviation() {
        let column = [Float64Array::from(vec![Some(1.0), None, Some(3.0), None])];
        let scale = Scale::measure(&names(1), &column, 1).unwrap();
        assert_eq!((scale.mean[0], scale.std[0]), (2.0, 0.5_f64.sqrt()));
    }

    #[test]
    fn a_constant_feature_has_no_deviation_and_divides_by_one() {
        let column = [Float64Array::from(vec![Some(0.1), Some(0.1), None])];
        let scale = Scale::measure(&names(1), &column, 1).unwrap();
        assert_eq!((scale.mean[0], scale.std[0], scale.standardise(0, 1.1)), (0.1, 0.0, 1.0));
    }

    #[test]
    fn a_power_of_two_changes_no_bit() {
        let measured = |unit: f64| {
            let column: Float64Array = (0..100).map(|i| Some(f64::from(i * i % 17) * 0.3 * unit)).collect();
            let scale = Scale::measure(&names(1), std::slice::from_ref(&column), 1).unwrap();
            column.values().iter().map(|&value| scale.standardise(0, value)).collect::<Vec<_>>()
        };
        for exponent in [-900, -3, 1, 40, 900] {
            assert_eq!(measured(1.0), measured(2_f64.powi(exponent)), "{exponent}");
        }
    }

    #[test]
    fn errors_name_the_feature() {
        let refused = |values: Vec<Option<f64>>| {
            Scale::measure(&names(1), &[Float64Array::from(values)], 1).unwrap_err().to_string()
        };
        assert_eq!(refused(vec![None, None]), "the feature f0 is missing in every row");
        assert_eq!(refused(vec![]), "the feature f0 is missing in every row");
        assert!(refused(vec![Some(1.0), Some(f64::NAN)]).contains("holds NaN in row 1"));
        assert!(refused(vec![Some(f64::INFINITY)]).contains("holds inf"));
        for far in [vec![Some(-1e308), Some(1e308)], vec![Some(0.0), Some(5e-324)]] {
            assert!(refused(far).contains("too far apart, or too close together"));
        }
    }

    #[test]
    fn very_large_and_very_small_values_are_measured() {
        for unit in [2e307, 1e300, 1e-300, 1.0] {
            let column = [Float64Array::from(vec![unit, 2.0 * unit, 3.0 * unit])];
            let scale = Scale::measure(&names(1), &column, 1).unwrap();
            assert!((scale.mean[0] / unit - 2.0).abs() < 1e-12, "{unit}");
            assert!((scale.std[0] / unit - (2.0_f64 / 3.0).sqrt()).abs() < 1e-12, "{unit}");
        }
    }
}
