//! The missing values in a model's sample that were replaced by the mean.
//!
//! Like the training, a sample contains the mean in place of a missing value. Bit i of the column `_imputed` is set if feature
//! i was imputed. Samples of older builds do not have this column.

use std::collections::BTreeMap;

use datafusion::arrow::array::{Array, AsArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::datatypes::UInt32Type;

/// The column's name. It is the last column, and no feature may have this name.
pub const COLUMN: &str = "_imputed";

/// One mask per row of columns whose missing values are null.
pub fn masks(features: &[Float64Array]) -> UInt32Array {
    let rows = features.first().map_or(0, Array::len);
    let mut masks = vec![0_u32; rows];
    for (feature, column) in features.iter().enumerate().filter(|(_, column)| column.null_count() > 0) {
        masks
            .iter_mut()
            .enumerate()
            .filter(|(row, _)| column.is_null(*row))
            .for_each(|(_, mask)| *mask |= 1 << feature);
    }
    masks.into()
}

/// The masks of a sample; `None` for samples of older builds.
pub fn of(sample: &RecordBatch) -> Option<&UInt32Array> {
    sample.column_by_name(COLUMN)?.as_primitive_opt::<UInt32Type>()
}

/// Feature to the number of the sample's rows in which it was imputed; `None` as in [`of`].
pub fn counts(sample: &RecordBatch, features: &[String]) -> Option<BTreeMap<String, u64>> {
    let masks = of(sample)?;
    let count = |feature| masks.values().iter().filter(|mask| is_set(**mask, feature)).count() as u64;
    Some(features.iter().enumerate().map(|(feature, name)| (name.clone(), count(feature))).collect())
}

/// True if the mask marks this feature as imputed.
pub fn is_set(mask: u32, feature: usize) -> bool {
    mask >> feature & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_is_set_for_each_missing_value() {
        let columns =
            [Float64Array::from(vec![None, Some(1.0), None]), Float64Array::from(vec![Some(1.0), None, None])];
        let masks = masks(&columns);
        assert_eq!(masks.values()[..], [1, 2, 3]);
        assert_eq!([is_set(1, 0), is_set(1, 1), is_set(3, 1)], [true, false, true]);
        assert_eq!(super::masks(&[]).len(), 0);
    }
}
