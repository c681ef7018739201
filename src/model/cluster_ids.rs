//! Assigns numbers to clusters and determines the new clusters.

use ndarray::Array2;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{self as kmeans, Fit};

use super::{Model, Predictor};

/// `number[cluster]` is the new number of a cluster.
pub fn renumbered(fit: Fit, number: &[usize]) -> Fit {
    let mut new = fit.clone();
    for (cluster, &number) in number.iter().enumerate() {
        new.centroids.row_mut(number).assign(&fit.centroids.row(cluster));
        new.sizes[number] = fit.sizes[cluster];
    }
    new
}

/// The number of each cluster. With a predecessor, clusters are matched by the minimum sum of squared distances in the new
/// model's units. Otherwise the number is the rank by the first feature, with ties resolved by the following features.
pub fn numbers(scale: &Scale, centroids: &Array2<f64>, predecessor: Option<&Model>) -> Vec<usize> {
    let Some(model) = predecessor else { return by_features(centroids) };
    let (new, old) = both(scale, centroids, model);
    let cost = Array2::from_shape_fn((new.nrows(), old.nrows()), |(i, j)| {
        new.row(i).iter().zip(old.row(j)).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
    });
    kmeans::match_rows(cost.view())
}

/// States for each numbered cluster whether it is new, that is, has an unused number instead of continuing the predecessor's
/// cluster of that number. A cluster continues if the two centroids are mutual nearest neighbours. A drift of less than half
/// the distance to the next cluster creates no new cluster.
pub fn newcomers(scale: &Scale, centroids: &Array2<f64>, predecessor: Option<&Model>) -> Vec<bool> {
    let Some(model) = predecessor else { return vec![false; centroids.nrows()] };
    let (new, old) = both(scale, centroids, model);
    newcomers_among(&new, &old)
}

fn newcomers_among(new: &Array2<f64>, old: &Array2<f64>) -> Vec<bool> {
    let nearest = |of: &Array2<f64>, among: &Array2<f64>, cluster: usize| {
        kmeans::nearest(&of.row(cluster).to_vec(), among).0 == cluster
    };
    (0..new.nrows()).map(|cluster| !(nearest(new, old, cluster) && nearest(old, new, cluster))).collect()
}

/// The centroids of a model and of its predecessor, both standardised with the model's scale.
fn both(scale: &Scale, centroids: &Array2<f64>, predecessor: &Model) -> (Array2<f64>, Array2<f64>) {
    let standardised = |centroids| Predictor::new(scale.clone(), centroids).centroids().clone();
    (standardised(centroids), standardised(&predecessor.centroids()))
}

/// The rank of each centroid by its first feature, with ties resolved by the following features.
pub fn by_features(centroids: &Array2<f64>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..centroids.nrows()).collect();
    order.sort_by(|&a, &b| {
        let orders = centroids.row(a).into_iter().zip(centroids.row(b)).map(|(x, y)| x.total_cmp(y));
        orders.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    let mut number = vec![0; order.len()];
    for (rank, &cluster) in order.iter().enumerate() {
        number[cluster] = rank;
    }
    number
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn what_drifts_is_old_and_what_comes_out_of_nowhere_is_new() {
        let old = array![[0.0], [10.0], [20.0]];
        assert_eq!(newcomers_among(&old, &old), [false; 3]);
        assert_eq!(newcomers_among(&array![[4.0], [14.0], [24.0]], &old), [false; 3]);
        // The two upper clusters merged, and the unused number was assigned to a cluster below all others.
        assert_eq!(newcomers_among(&array![[1.0], [-9.0], [15.5]], &old), [false, true, false]);
        // The lowest cluster merged with the next one, and the new lowest cluster is far below.
        assert_eq!(newcomers_among(&array![[-20.0], [7.0], [20.0]], &old), [true, false, false]);
    }
}
