//! Columns: the values of one feature, borrowed from Arrow or ndarray.

use std::borrow::Cow;

use arrow_array::{Array, Float64Array};
use arrow_buffer::NullBuffer;
use ndarray::ArrayView1;

use crate::column_view;

/// The values of one feature, and which of them are valid.
///
/// Arrow columns and contiguous views are borrowed; views with gaps between values, such as the columns of a row-major
/// matrix, are copied.
#[derive(Debug, Clone)]
pub struct Column<'a> {
    pub(crate) values: Cow<'a, [f64]>,
    /// `None` without nulls.
    pub(crate) valid: Option<&'a NullBuffer>,
}

impl Column<'_> {
    /// Number of values, nulls included.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the column has no values.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Number of nulls.
    pub fn null_count(&self) -> usize {
        self.valid.map_or(0, NullBuffer::null_count)
    }

    /// The value of a row; `None` for a null.
    ///
    /// # Panics
    /// If `row` is not less than [`Self::len`].
    pub fn value(&self, row: usize) -> Option<f64> {
        let value = self.values[row];
        self.valid.is_none_or(|valid| valid.is_valid(row)).then_some(value)
    }
}

impl<'a> From<ArrayView1<'a, f64>> for Column<'a> {
    fn from(view: ArrayView1<'a, f64>) -> Self {
        let values = view.to_slice().map_or_else(|| Cow::Owned(view.to_vec()), Cow::Borrowed);
        Self { values, valid: None }
    }
}

impl<'a> From<&ArrayView1<'a, f64>> for Column<'a> {
    fn from(view: &ArrayView1<'a, f64>) -> Self {
        Self::from(*view)
    }
}

impl<'a> From<&'a Float64Array> for Column<'a> {
    fn from(array: &'a Float64Array) -> Self {
        let valid = array.nulls().filter(|nulls| nulls.null_count() > 0);
        Self { valid, ..Self::from(column_view(array)) }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ShapeBuilder as _};

    use super::*;

    #[test]
    fn a_column_shares_arrows_buffer() {
        let array: Float64Array = (0..100).map(|i| (i % 7 != 3).then(|| f64::from(i))).collect();
        for array in [array.slice(0, 100), array.slice(13, 20), array.slice(100, 0)] {
            assert_eq!(column_view(&array).as_ptr(), array.values().as_ptr());
            let column = Column::from(&array);
            assert_eq!(column.values.as_ptr(), array.values().as_ptr());
            assert_eq!((column.len(), column.null_count()), (array.len(), array.null_count()));
            assert!((0..array.len()).all(|row| column.value(row) == array.iter().nth(row).flatten()));
        }
    }

    #[test]
    fn a_column_of_a_column_major_matrix_is_borrowed() {
        let rows = Array2::from_shape_fn((5, 3), |(row, column)| (row * 3 + column) as f64);
        let mut columns = Array2::zeros((5, 3).f());
        columns.assign(&rows);
        for feature in 0..3 {
            let (copied, borrowed) = (Column::from(rows.column(feature)), Column::from(columns.column(feature)));
            assert_eq!(borrowed.values.as_ptr(), columns.column(feature).as_ptr());
            assert!(matches!(copied.values, Cow::Owned(_)) && copied.values == borrowed.values);
        }
    }
}
