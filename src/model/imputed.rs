//! The values of a model's sample that were missing and took the mean.
//!
//! A sample holds the mean in the place of a missing value, as the training does. The column `_imputed` tells the two apart:
//! bit i is set where feature i took the mean. Samples of older builds have no such column.

use std::collections::BTreeMap;

use datafusion::arrow::array::{Array, AsArray, Float64Array, RecordBatch, UInt32Array};
use datafusion::arrow::datatypes::UInt32Type;

/// The column's name. It comes last, and no feature may have it.
pub const COLUMN: &str = "_imputed";

/// One mask for each row of columns whose missing values are null.
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

/// The masks of a sample; `None` if it was written before they were kept.
pub fn of(sample: &RecordBatch) -> Option<&UInt32Array> {
    sample.column_by_name(COLUMN)?.as_primitive_opt::<UInt32Type>()
}

/// Feature to the number of the sample's rows in which it took the mean; `None` as for [`of`].
pub fn counts(sample: &RecordBatch, features: &[String]) -> Option<BTreeMap<String, u64>> {
    let masks = of(sample)?;
    let count = |feature| masks.values().iter().filter(|mask| is_set(**mask, feature)).count() as u64;
    Some(features.iter().enumerate().map(|(feature, name)| (name.clone(), count(feature))).collect())
}

/// Whether a mask says that this feature took the mean.
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
