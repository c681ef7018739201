//! Errors of measuring or building feature columns.

/// Error of measuring or building feature columns.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A feature has no values.
    #[error("the feature {feature} is missing in every row")]
    AllMissing {
        /// Name of the feature.
        feature: String,
    },
    /// A value is NaN or infinite.
    #[error("the feature {feature} holds {value} in row {row}, which is no finite number")]
    NotFinite {
        /// Name of the feature.
        feature: String,
        /// The value.
        value: String,
        /// Index of the first such row, from 0.
        row: usize,
    },
    /// The range or the standard deviation of a feature overflows or underflows.
    #[error("the values of {feature} are too far apart, or too close together, for a deviation; use another unit")]
    NoDeviation {
        /// Name of the feature.
        feature: String,
    },
    /// A value of a feature on a logarithmic scale is -1 or less.
    #[error("{feature} is {value} in row {row}, and a logarithmic scale takes log(1 + x) of values above -1")]
    NoLogarithm {
        /// Name of the feature.
        feature: String,
        /// The value.
        value: String,
        /// Index of the first such row, from 0.
        row: usize,
    },
    /// The quartiles of a feature are equal, and its scale divides by their difference.
    #[error("the quartiles of {feature} are equal ({value}), and a robust scale divides by their difference")]
    NoRange {
        /// Name of the feature.
        feature: String,
        /// The median.
        value: String,
    },
    /// Arrow cannot build the matrix.
    #[error("cannot build the feature column: {0}")]
    Arrow(String),
}
