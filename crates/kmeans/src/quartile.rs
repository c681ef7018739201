//! Quartiles between two order statistics, as numpy's `linear` method.

/// A quartile of `rows` values. `two` returns the order statistics of a rank and the next rank.
pub(crate) fn interpolated(rows: u64, quarter: u64, two: impl FnOnce(u64) -> (f64, f64)) -> f64 {
    let place = (rows - 1) * quarter;
    let (low, high) = two(place / 4);
    let share = (place % 4) as f64 / 4.0;
    match high - low {
        step if !step.is_finite() => low * (1.0 - share) + high * share,
        step if share >= 0.5 => high - step * (1.0 - share),
        step => low + step * share,
    }
}
