//! Distinct points with their weights: what many starts can afford to look at.

use std::collections::HashMap;

use ndarray::ArrayView2;

/// A point, its coordinates beyond the features 0, and how many rows it stands for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point<const D: usize> {
    pub at: [f64; D],
    pub weight: f64,
}

/// The different rows, in order of their coordinates, so that their order of arrival makes no difference.
pub(super) fn distinct<const D: usize>(rows: ArrayView2<'_, f64>) -> Vec<Point<D>> {
    let mut counts: HashMap<[u64; D], u64> = HashMap::new();
    for row in rows.rows() {
        let mut key = [0; D];
        for (bits, value) in key.iter_mut().zip(row) {
            // Adding 0 turns a negative zero into the other one.
            *bits = (value + 0.0).to_bits();
        }
        *counts.entry(key).or_default() += 1;
    }
    let mut points: Vec<Point<D>> =
        counts.into_iter().map(|(bits, count)| Point { at: bits.map(f64::from_bits), weight: count as f64 }).collect();
    points.sort_unstable_by(|a, b| {
        let orders = a.at.iter().zip(&b.at).map(|(x, y)| x.total_cmp(y));
        orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    points
}

/// At most so many of the points, evenly spread over their order.
pub(super) fn sample<const D: usize>(points: Vec<Point<D>>, most: usize) -> Vec<Point<D>> {
    let n = points.len();
    if n <= most {
        return points;
    }
    (0..most).map(|j| points[j * n / most]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn equal_rows_become_one_point() {
        let rows = array![[2.0, 1.0], [0.0, 1.0], [2.0, 1.0], [-0.0, 1.0]];
        let points = distinct::<2>(rows.view());
        assert_eq!(points, [Point { at: [0.0, 1.0], weight: 2.0 }, Point { at: [2.0, 1.0], weight: 2.0 }]);
        assert_eq!(sample(points, 1).len(), 1);
    }
}
