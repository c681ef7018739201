//! A matrix of standardised values, for linfa-clustering.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Float64Type;
use arrow_array::{Array, FixedSizeListArray, Float64Array};
use arrow_schema::{DataType, Field};
use ndarray::ArrayView2;

use super::{Error, Scale};
use crate::column_view;

/// Standardised values as one Arrow column: rows × features, row-major.
pub struct Matrix {
    list: FixedSizeListArray,
}

impl Matrix {
    /// Imputes and standardises columns of the same length. Copies them.
    ///
    /// # Errors
    /// [`Error::Arrow`] if Arrow rejects the shape.
    pub fn build(scale: &Scale, columns: &[Float64Array]) -> Result<Self, Error> {
        let rows = columns.first().map_or(0, Array::len);
        let mut values = Vec::with_capacity(rows * columns.len());
        for row in 0..rows {
            for (feature, column) in columns.iter().enumerate() {
                let value = if column.is_null(row) { scale.mean[feature] } else { column.value(row) };
                values.push(scale.standardise(feature, value));
            }
        }
        let width = i32::try_from(columns.len()).map_err(|e| Error::Arrow(e.to_string()))?;
        let item = Arc::new(Field::new("item", DataType::Float64, false));
        let list = FixedSizeListArray::try_new(item, width, Arc::new(Float64Array::from(values)), None)
            .map_err(|e| Error::Arrow(e.to_string()))?;
        Ok(Self { list })
    }

    /// The fixed-size-list column.
    pub fn column(&self) -> &FixedSizeListArray {
        &self.list
    }

    /// A view of the column's buffer: rows × features.
    pub fn view(&self) -> ArrayView2<'_, f64> {
        let values = column_view(self.list.values().as_primitive::<Float64Type>());
        let shape = (self.list.len(), self.list.value_length() as usize);
        values.into_shape_with_order(shape).unwrap_or_else(|_| unreachable!("the child holds rows times features"))
    }
}
