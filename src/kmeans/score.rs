//! How well clusters are set apart.

use ndarray::ArrayView2;

/// The mean silhouette of the rows, from -1 to 1: how much nearer each is to its own cluster than to the next one.
/// `None` with fewer than two clusters among the labels. Rousseeuw, "Silhouettes" (J. Comput. Appl. Math. 20, 1987); a row
/// alone in its cluster counts 0. Compares every pair: meant for samples.
pub fn silhouette(rows: ArrayView2<'_, f64>, labels: &[u32], k: usize) -> Option<f64> {
    let mut sizes = vec![0_usize; k];
    labels.iter().for_each(|&label| sizes[label as usize] += 1);
    if sizes.iter().filter(|&&size| size > 0).count() < 2 {
        return None;
    }
    let n = rows.nrows();
    let features: Vec<Vec<f64>> = rows.columns().into_iter().map(|column| column.to_vec()).collect();
    let mut distances = vec![0.0_f64; n];
    let mut total = 0.0;
    for i in 0..n {
        distances.fill(0.0);
        for column in &features {
            let x = column[i];
            for (sum, y) in distances.iter_mut().zip(column) {
                *sum += (x - y) * (x - y);
            }
        }
        let mut sums = vec![0.0; k];
        for (&d, &label) in distances.iter().zip(labels) {
            sums[label as usize] += d.sqrt();
        }
        let own = labels[i] as usize;
        if sizes[own] < 2 {
            continue;
        }
        let within = sums[own] / (sizes[own] - 1) as f64;
        let next = (0..k)
            .filter(|&cluster| cluster != own && sizes[cluster] > 0)
            .map(|cluster| sums[cluster] / sizes[cluster] as f64)
            .fold(f64::INFINITY, f64::min);
        let larger = within.max(next);
        if larger > 0.0 {
            total += (next - within) / larger;
        }
    }
    Some(total / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn silhouettes_by_hand() {
        // a = 1, b = mean(9, 10) for the first; by symmetry for all four: (9.5 - 1) / 9.5 and (8.5 - 1) / 8.5.
        let rows = array![[0.0], [1.0], [9.0], [10.0]];
        let expected = (8.5 / 9.5 + 7.5 / 8.5) / 2.0;
        let found = silhouette(rows.view(), &[0, 0, 1, 1], 2).unwrap();
        assert!((found - expected).abs() < 1e-15, "{found}");
        assert_eq!(silhouette(rows.view(), &[0, 0, 0, 0], 2), None);
        assert_eq!(silhouette(array![[0.0], [1.0]].view(), &[0, 1], 2), Some(0.0));
    }
}
