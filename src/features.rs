//! Feature columns as one matrix: imputed, standardised, and seen by ndarray without a copy.
//!
//! Input: one Arrow column per feature, in slice order. Output: a fixed-size-list column without nulls, in one batch,
//! whose child buffer an [`ArrayView2`] looks at; and the mean and deviation that went into it.

use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, FixedSizeListArray, Float64Array};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type};
use ndarray::ArrayView2;

/// Why a matrix cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the feature {feature} is missing in every row")]
    AllMissing { feature: String },
    #[error(
        "the feature {feature} holds {value} in row {row}, which is no finite number; make it NULL in the SQL file"
    )]
    NotFinite { feature: String, value: String, row: usize },
    #[error("the values of {feature} are too far apart for a deviation")]
    TooWide { feature: String },
    #[error("cannot build the feature column: {0}")]
    Arrow(String),
}

/// What turns values in original units into standardised ones, and stands in for missing ones.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    /// Of each feature.
    pub mean: Vec<f64>,
    /// Population deviation of each feature, missing values taken as the mean; 0 for a constant one.
    pub std: Vec<f64>,
}

impl Scale {
    /// (value - mean) / deviation, where a deviation of 0 divides by 1.
    pub fn standardise(&self, feature: usize, value: f64) -> f64 {
        let std = self.std[feature];
        (value - self.mean[feature]) / if std == 0.0 { 1.0 } else { std }
    }

    /// Measures columns of the same length. Sums run in row order and are compensated (Neumaier, 1974), so they depend
    /// on the rows alone.
    pub fn measure(names: &[String], columns: &[Float64Array]) -> Result<Self, Error> {
        let mut scale = Self { mean: Vec::new(), std: Vec::new() };
        for (name, column) in names.iter().zip(columns) {
            let (mean, std) = moments(name, column)?;
            scale.mean.push(mean);
            scale.std.push(std);
        }
        Ok(scale)
    }
}

fn moments(name: &str, column: &Float64Array) -> Result<(f64, f64), Error> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for (row, value) in column.iter().enumerate() {
        let Some(value) = value else { continue };
        if !value.is_finite() {
            return Err(Error::NotFinite { feature: name.to_owned(), value: value.to_string(), row });
        }
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        return Err(Error::AllMissing { feature: name.to_owned() });
    }
    if low == high {
        return Ok((low, 0.0));
    }
    // Squares of very large or very small values leave the range of a double: a power of two brings them back exactly.
    let largest = low.abs().max(high.abs());
    let unit = if (1e-100..1e100).contains(&largest) { 1.0 } else { 2_f64.powi(exponent(largest)) };
    let known = column.len() - column.null_count();
    let mean = compensated_sum(column.iter().flatten().map(|value| value / unit)) / known as f64;
    let squares = compensated_sum(column.iter().flatten().map(|value| {
        let off = value / unit - mean;
        off * off
    }));
    let std = (squares / column.len() as f64).sqrt();
    let (mean, std) = (mean * unit, std * unit);
    if !std.is_finite() || std == 0.0 {
        return Err(Error::TooWide { feature: name.to_owned() });
    }
    Ok((mean, std))
}

fn exponent(value: f64) -> i32 {
    // The bits of the exponent; good enough for a scale, subnormals included.
    ((value.to_bits() >> 52) & 0x7ff) as i32 - 1023
}

/// A sum whose rounding errors are carried along and added at the end.
pub fn compensated_sum(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut lost) = (0.0_f64, 0.0_f64);
    for value in values {
        let next = sum + value;
        lost += if sum.abs() >= value.abs() { (sum - next) + value } else { (value - next) + sum };
        sum = next;
    }
    sum + lost
}

/// Rows by features, standardised.
pub struct Matrix {
    list: FixedSizeListArray,
}

impl Matrix {
    /// Imputes and standardises columns of the same length.
    pub fn build(scale: &Scale, columns: &[Float64Array]) -> Result<Self, Error> {
        let rows = columns.first().map_or(0, Array::len);
        let mut values = Vec::with_capacity(rows * columns.len());
        for row in 0..rows {
            for (feature, column) in columns.iter().enumerate() {
                // The mean itself standardises to 0.
                values.push(if column.is_null(row) { 0.0 } else { scale.standardise(feature, column.value(row)) });
            }
        }
        let width = i32::try_from(columns.len()).map_err(|e| Error::Arrow(e.to_string()))?;
        let item = Arc::new(Field::new("item", DataType::Float64, false));
        let list = FixedSizeListArray::try_new(item, width, Arc::new(Float64Array::from(values)), None)
            .map_err(|e| Error::Arrow(e.to_string()))?;
        Ok(Self { list })
    }

    /// The column itself.
    pub fn column(&self) -> &FixedSizeListArray {
        &self.list
    }

    /// Rows by features, on the column's own buffer.
    pub fn view(&self) -> ArrayView2<'_, f64> {
        let values: &[f64] = self.list.values().as_primitive::<Float64Type>().values();
        let shape = (self.list.len(), self.list.value_length() as usize);
        ArrayView2::from_shape(shape, values).unwrap_or_else(|_| unreachable!("the child holds rows times features"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("f{i}")).collect()
    }

    #[test]
    fn the_view_looks_at_arrows_own_buffer() {
        let columns = [Float64Array::from(vec![1.0, 2.0, 3.0]), Float64Array::from(vec![Some(4.0), None, Some(8.0)])];
        let scale = Scale::measure(&names(2), &columns).unwrap();
        let matrix = Matrix::build(&scale, &columns).unwrap();
        let view = matrix.view();
        assert_eq!(view.as_ptr(), matrix.column().values().as_primitive::<Float64Type>().values().as_ptr());
        assert_eq!(view.dim(), (3, 2));
        assert_eq!(matrix.column().null_count() + matrix.column().values().null_count(), 0);
        assert_eq!(view[[1, 1]], 0.0);
        assert!((view[[0, 0]] + 1.5_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn missing_values_take_the_mean_and_count_in_the_deviation() {
        let column = [Float64Array::from(vec![Some(1.0), None, Some(3.0), None])];
        let scale = Scale::measure(&names(1), &column).unwrap();
        assert_eq!((scale.mean[0], scale.std[0]), (2.0, 0.5_f64.sqrt()));
    }

    #[test]
    fn a_constant_feature_has_no_deviation_and_divides_by_one() {
        let column = [Float64Array::from(vec![Some(0.1), Some(0.1), None])];
        let scale = Scale::measure(&names(1), &column).unwrap();
        assert_eq!((scale.mean[0], scale.std[0], scale.standardise(0, 1.1)), (0.1, 0.0, 1.0));
    }

    #[test]
    fn what_cannot_be_measured_is_refused_by_name() {
        let refused = |values: Vec<Option<f64>>| {
            Scale::measure(&names(1), &[Float64Array::from(values)]).unwrap_err().to_string()
        };
        assert_eq!(refused(vec![None, None]), "the feature f0 is missing in every row");
        assert_eq!(refused(vec![]), "the feature f0 is missing in every row");
        assert!(refused(vec![Some(1.0), Some(f64::NAN)]).contains("holds NaN in row 1"));
        assert!(refused(vec![Some(f64::INFINITY)]).contains("holds inf"));
    }

    #[test]
    fn very_large_and_very_small_values_are_measured() {
        for unit in [1e300, 1e-300, 1.0] {
            let column = [Float64Array::from(vec![unit, 2.0 * unit, 3.0 * unit])];
            let scale = Scale::measure(&names(1), &column).unwrap();
            assert!((scale.mean[0] / unit - 2.0).abs() < 1e-12, "{unit}");
            assert!((scale.std[0] / unit - (2.0_f64 / 3.0).sqrt()).abs() < 1e-12, "{unit}");
        }
    }
}
