//! The assignment problem: matches the clusters of two models.

use ndarray::ArrayView2;

/// Minimum-cost perfect matching of a square cost matrix (n × n, finite): returns the column of each row, each column once.
///
/// The Hungarian method (Kuhn, Naval Research Logistics Quarterly 2, 1955; Munkres, J. SIAM 5, 1957) in its O(n³) form:
/// shortest augmenting paths with row and column potentials (Jonker and Volgenant, Computing 38, 1987).
///
/// # Panics
/// If the matrix has fewer columns than rows.
pub fn match_rows(cost: ArrayView2<'_, f64>) -> Vec<usize> {
    let n = cost.nrows();
    // Index 0 means "unmatched"; rows and columns count from 1.
    let mut row_potential = vec![0.0; n + 1];
    let mut column_potential = vec![0.0; n + 1];
    let mut row_of = vec![0; n + 1];
    for row in 1..=n {
        row_of[0] = row;
        let mut slack = vec![f64::INFINITY; n + 1];
        let mut came_from = vec![0; n + 1];
        let mut used = vec![false; n + 1];
        let mut column = 0;
        loop {
            used[column] = true;
            let at = row_of[column];
            let mut delta = f64::INFINITY;
            let mut next = 0;
            for j in 1..=n {
                if used[j] {
                    continue;
                }
                let reduced = cost[[at - 1, j - 1]] - row_potential[at] - column_potential[j];
                if reduced < slack[j] {
                    slack[j] = reduced;
                    came_from[j] = column;
                }
                if slack[j] < delta {
                    delta = slack[j];
                    next = j;
                }
            }
            for j in 0..=n {
                if used[j] {
                    row_potential[row_of[j]] += delta;
                    column_potential[j] -= delta;
                } else {
                    slack[j] -= delta;
                }
            }
            column = next;
            if row_of[column] == 0 {
                break;
            }
        }
        while column != 0 {
            let previous = came_from[column];
            row_of[column] = row_of[previous];
            column = previous;
        }
    }
    let mut columns = vec![0; n];
    for column in 1..=n {
        columns[row_of[column] - 1] = column - 1;
    }
    columns
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    fn least(cost: &Array2<f64>, row: usize, used: &mut Vec<bool>) -> f64 {
        if row == cost.nrows() {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..cost.ncols() {
            if !used[column] {
                used[column] = true;
                best = best.min(cost[[row, column]] + least(cost, row + 1, used));
                used[column] = false;
            }
        }
        best
    }

    #[test]
    fn cost_equals_that_of_the_cheapest_permutation() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        for n in 1..=6 {
            for _ in 0..50 {
                let cost = Array2::from_shape_fn((n, n), |_| f64::from(rng.next_u32() % 20));
                let columns = match_rows(cost.view());
                let sum: f64 = columns.iter().enumerate().map(|(row, &column)| cost[[row, column]]).sum();
                assert_eq!(sum, least(&cost, 0, &mut vec![false; n]));
                let mut sorted = columns.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            }
        }
    }
}
