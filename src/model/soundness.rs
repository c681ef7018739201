//! The invariants of a model file.

use super::{Cluster, Model, scaling};
use crate::slices::all_slices;

impl Model {
    /// Checks the invariants that users of a model rely on.
    pub(super) fn sound(&self) -> Result<(), &'static str> {
        let (features, k) = (self.features.len(), self.k as usize);
        let whole = |cluster: &Cluster| {
            let at = |feature| cluster.centroid.get(feature).is_some_and(|value| value.is_finite());
            cluster.centroid.len() == features && self.features.iter().all(at)
        };
        let known = |name: &String| self.features.contains(name);
        let profiled = |cluster: &Cluster| {
            cluster.typical.iter().all(|(name, quartiles)| known(name) && quartiles.len() == 3 && quartiles.is_sorted())
                && cluster.spread.iter().all(|(name, deviation)| known(name) && *deviation >= 0.0)
                && cluster.words.keys().all(known)
        };
        let numbered = self.clusters.iter().enumerate().all(|(i, cluster)| cluster.cluster as usize == i);
        if !all_slices().contains(&self.slice) {
            Err("its slice is none")
        } else if features == 0 || self.mean.len() != features || self.std.len() != features {
            Err("it has not a mean and a deviation for each feature")
        } else if !self.mean.iter().chain(&self.std).all(|value| value.is_finite()) || self.std.iter().any(|s| *s < 0.0)
        {
            Err("a mean or deviation is none")
        } else if !scaling::is_sound(self.scaling.as_deref(), (&self.mean, &self.std)) {
            Err("a scale is none of its features'")
        } else if k == 0 || self.clusters.len() != k || !numbered {
            Err("it has not k clusters, numbered from 0")
        } else if !self.clusters.iter().all(whole) {
            Err("a centroid has not a number for each feature")
        } else if self.imputed.as_ref().is_some_and(|imputed| {
            imputed.len() != features || !self.features.iter().all(|feature| imputed.contains_key(feature))
        }) {
            Err("it does not count the imputed rows of each feature")
        } else if !self.clusters.iter().all(profiled) {
            Err("the quartiles, the spread or the words of a cluster are none of its features'")
        } else if self.tiny.iter().flat_map(|tiny| &tiny.clusters).any(|&cluster| cluster as usize >= k) {
            Err("a tiny cluster that it has not")
        } else if self.words_changed.iter().any(|change| change.cluster as usize >= k) {
            Err("a word changed of a cluster that it has not")
        } else if self.moved.iter().flatten().any(|row| row.len() != k) {
            Err("its matrix of what moved has not k columns")
        } else if self.moved_by.iter().flat_map(|by| &by.model).any(|row| row.len() != k) {
            Err("its matrix of what the model moved has not k columns")
        } else if self.entity.iter().any(known) {
            Err("an entity column is a feature")
        } else if self.baseline.as_ref().is_some_and(|baseline| !baseline.is_sound(&self.features, k)) {
            Err("its baseline has not bins, counts and distances of its features and clusters")
        } else {
            Ok(())
        }
    }
}
