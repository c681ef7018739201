//! The clusters of a model in the format of its file.

use tercile_kmeans::{Fit, Profile};

use super::Cluster;
use super::describe::Described;

/// One entry per cluster of `fit`. Profile, descriptions and newness are given in the same order.
pub fn clusters(
    features: &[String],
    fit: &Fit,
    profile: &Profile,
    described: Vec<Described>,
    new: &[bool],
) -> Vec<Cluster> {
    let by_name = |values: &mut dyn Iterator<Item = f64>| features.iter().cloned().zip(values).collect();
    let cluster = |(cluster, Described { words, descriptions }): (usize, Described)| {
        let quartiles = profile.quartiles[cluster].as_ref();
        let spread = (fit.sizes[cluster] > 0).then(|| by_name(&mut profile.spread.row(cluster).iter().copied()));
        Cluster {
            cluster: cluster as u32,
            description: descriptions.get("en").cloned().unwrap_or_default(),
            descriptions,
            words,
            size: fit.sizes[cluster],
            new: new[cluster],
            centroid: by_name(&mut fit.centroids.row(cluster).iter().copied()),
            typical: quartiles
                .map(|of| features.iter().cloned().zip(of.iter().map(|quartiles| quartiles.to_vec())).collect())
                .unwrap_or_default(),
            spread: spread.unwrap_or_default(),
        }
    };
    described.into_iter().enumerate().map(cluster).collect()
}
