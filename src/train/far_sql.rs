//! The queries of a training on a cluster: plain SQL, with every number as a literal.
//!
//! Input: the table of prepared rows, a slice, and centroids. Output: texts. A distance is computed as the passes in this
//! process do it, feature by feature from 0, so that a row on a border goes where they put it; of equals the first wins.

use std::fmt::Write as _;

use ndarray::Array2;

use crate::features::Scale;

/// The rows of a slice, and what standardises them.
#[derive(Clone, Copy)]
pub(super) struct Over<'a> {
    pub table: &'a str,
    pub slice: u8,
    pub scale: &'a Scale,
}

/// The shortest text that stands for a double and no other.
fn number(value: f64) -> String {
    format!("({value:?})")
}

fn list(many: usize, text: impl Fn(usize) -> String) -> String {
    (0..many).map(text).collect::<Vec<_>>().join(", ")
}

/// Of each feature: least, greatest, sum, and how many rows have it; of a feature that no row has, no least.
pub(super) fn extents(table: &str, slice: u8, features: usize) -> String {
    let extent = |f: usize| {
        format!(
            "min(feature_{f}) AS low_{f}, max(feature_{f}) AS high_{f}, sum(feature_{f}) AS sum_{f}, count(feature_{f}) AS known_{f}"
        )
    };
    format!("SELECT {} FROM {table} WHERE _slice <= {slice}", list(features, extent))
}

/// Of each feature the sum of its squares about the mean.
pub(super) fn squares(table: &str, slice: u8, mean: &[f64]) -> String {
    let square = |f: usize| {
        let off = format!("(feature_{f} - {})", number(mean[f]));
        format!("sum({off} * {off}) AS squares_{f}")
    };
    format!("SELECT {} FROM {table} WHERE _slice <= {slice}", list(mean.len(), square))
}

/// The values of the first feature, and how many rows have each.
pub(super) fn counted(table: &str, slice: u8) -> String {
    format!(
        "SELECT feature_0, count(*) AS rows FROM {table} WHERE _slice <= {slice} GROUP BY feature_0 ORDER BY feature_0"
    )
}

impl Over<'_> {
    fn features(&self) -> usize {
        self.scale.mean.len()
    }

    /// The rows, with the features counted from their origins (`off`).
    fn offsets(&self, suffix: &str) -> String {
        list(self.features(), |f| {
            let (mean, origin) = (number(self.scale.mean[f]), number(self.scale.origin[f]));
            format!("coalesce(feature_{f}, {mean}) - {origin} AS off{suffix}_{f}")
        })
    }

    /// The squared distances to each centroid, out of `off`.
    fn distances(&self, suffix: &str, centroids: &[f64]) -> String {
        let features = self.features();
        list(centroids.len() / features, |cluster| {
            let mut sum = String::new();
            for f in 0..features {
                let at = number(centroids[cluster * features + f]);
                let off = format!("(off{suffix}_{f} * {} - {at})", number(self.scale.inverse[f]));
                let plus = if f == 0 { "" } else { " + " };
                let _ = write!(sum, "{plus}{off} * {off}");
            }
            format!("{sum} AS far{suffix}_{cluster}")
        })
    }

    /// The rows with the square of the distance to the nearest centroid (`least`), and its number (`cluster`).
    fn nearest(&self, centroids: &[f64]) -> String {
        let k = centroids.len() / self.features();
        format!(
            "SELECT *, {} AS cluster FROM (SELECT *, {} AS least FROM (SELECT *, {} FROM (SELECT {} FROM {} WHERE _slice <= {})))",
            first("", k),
            least("", k),
            self.distances("", centroids),
            self.offsets(""),
            self.table,
            self.slice
        )
    }

    /// Of each cluster: its rows, the sum of their squared distances, and of their features counted from the origins.
    pub fn pass(&self, centroids: &[f64]) -> String {
        let sums = list(self.features(), |f| format!("sum(off_{f}) AS sum_{f}"));
        let nearest = self.nearest(centroids);
        format!(
            "SELECT cluster, count(*) AS rows, sum(least) AS inertia, {sums} FROM ({nearest}) GROUP BY cluster ORDER BY cluster"
        )
    }

    /// The rows that are farthest from their centroids: their clusters, and their features.
    pub fn worst(&self, centroids: &[f64], many: usize) -> String {
        let values = list(self.features(), |f| format!("off_{f} + {} AS value_{f}", number(self.scale.origin[f])));
        let nearest = self.nearest(centroids);
        format!("SELECT cluster, {values} FROM ({nearest}) WHERE least > 0 ORDER BY least DESC LIMIT {many}")
    }

    /// So many rows that differ.
    pub fn distinct(&self, most: usize) -> String {
        let Self { table, slice, .. } = self;
        format!("SELECT DISTINCT {} FROM {table} WHERE _slice <= {slice} LIMIT {most}", self.offsets(""))
    }
}

fn least(suffix: &str, k: usize) -> String {
    format!("least({})", list(k, |cluster| format!("far{suffix}_{cluster}")))
}

/// The first cluster that is as near as the nearest.
fn first(suffix: &str, k: usize) -> String {
    let mut cases = String::from("CASE");
    for cluster in 0..k {
        let _ = write!(cases, " WHEN far{suffix}_{cluster} = least{suffix} THEN {cluster}");
    }
    format!("{cases} END")
}

/// How many rows are in each cluster of one model and of another.
pub(super) fn cross(old: Over<'_>, from: &Array2<f64>, new: Over<'_>, to: &Array2<f64>) -> String {
    let placed = |over: Over<'_>, centroids: &Array2<f64>, suffix: &str| {
        let features = over.features();
        let place = |(i, &value): (usize, &f64)| over.scale.standardise(i % features, value);
        over.distances(suffix, &centroids.iter().enumerate().map(place).collect::<Vec<f64>>())
    };
    let (k_old, k_new) = (from.nrows(), to.nrows());
    format!(
        "SELECT cluster_old, cluster_new, count(*) AS rows FROM (
           SELECT {} AS cluster_old, {} AS cluster_new FROM (
             SELECT *, {} AS least_old, {} AS least_new FROM (
               SELECT {}, {} FROM (SELECT {}, {} FROM {} WHERE _slice <= {}))))
         GROUP BY cluster_old, cluster_new ORDER BY cluster_old, cluster_new",
        first("_old", k_old),
        first("_new", k_new),
        least("_old", k_old),
        least("_new", k_new),
        placed(old, from, "_old"),
        placed(new, to, "_new"),
        old.offsets("_old"),
        new.offsets("_new"),
        old.table,
        new.slice
    )
}
