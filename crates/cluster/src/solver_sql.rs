//! The queries of KMeans on a cluster: plain SQL with numbers as literals.
//!
//! Input: a FROM clause and centroids. Output: SQL texts. Distances are summed as in the passes of this
//! process, feature by feature starting from 0, so that a row on a border gets the same cluster. Of equal distances the first
//! wins.

use std::fmt::Write as _;

use ndarray::Array2;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{Rates, SURELY};

/// A prime (2³¹ - 1): the product of two smaller numbers fits into 64 bits.
const PRIME: u64 = 2_147_483_647;

/// Rows, and the scale that standardises them.
#[derive(Clone, Copy)]
pub(super) struct Over<'a> {
    /// The rows as the text after FROM, which may end with a WHERE clause.
    pub rows: &'a str,
    pub scale: &'a Scale,
    /// Per feature: true if it is missing in some rows.
    pub missing: &'a [bool],
}

/// The shortest text that represents exactly this double.
fn number(value: f64) -> String {
    format!("({value:?})")
}

fn list(many: usize, text: impl Fn(usize) -> String) -> String {
    (0..many).map(text).collect::<Vec<_>>().join(", ")
}

/// The values of the first feature, and the number of rows with each value.
pub(super) fn counted(rows: &str) -> String {
    format!("SELECT feature_0, count(*) AS rows FROM {rows} GROUP BY feature_0 ORDER BY feature_0")
}

impl Over<'_> {
    fn features(&self) -> usize {
        self.scale.mean.len()
    }

    /// A feature, with its mean in place of missing values.
    fn value(&self, f: usize) -> String {
        match self.missing[f] {
            true => format!("coalesce(feature_{f}, {})", number(self.scale.mean[f])),
            false => format!("feature_{f}"),
        }
    }

    /// The rows, with each feature relative to its origin (`off`).
    fn offsets(&self, suffix: &str) -> String {
        list(self.features(), |f| format!("{} - {} AS off{suffix}_{f}", self.value(f), number(self.scale.origin[f])))
    }

    /// The squared distances to each centroid, computed from `off`.
    fn distances(&self, suffix: &str, centroids: &[f64]) -> String {
        self.distances_of(suffix, suffix, centroids)
    }

    fn distances_of(&self, of: &str, suffix: &str, centroids: &[f64]) -> String {
        let features = self.features();
        list(centroids.len() / features, |cluster| {
            let mut sum = String::new();
            for f in 0..features {
                let at = number(centroids[cluster * features + f]);
                let off = format!("(off{of}_{f} * {} - {at})", number(self.scale.inverse[f]));
                let plus = if f == 0 { "" } else { " + " };
                let _ = write!(sum, "{plus}{off} * {off}");
            }
            format!("{sum} AS far{suffix}_{cluster}")
        })
    }

    /// The rows with the squared distances to all centroids (`far`) and to the nearest (`least`).
    fn distant(&self, centroids: &[f64]) -> String {
        self.distant_with(centroids, "")
    }

    /// The same with additional columns of the table: `, expression AS name`.
    fn distant_with(&self, centroids: &[f64], more: &str) -> String {
        let k = centroids.len() / self.features();
        format!(
            "SELECT *, {} AS least FROM (SELECT *, {} FROM (SELECT {}, {}{more} FROM {}))",
            least("", k),
            self.distances("", centroids),
            self.offsets(""),
            list(self.features(), |f| format!("{} AS value_{f}", self.value(f))),
            self.rows
        )
    }

    /// Rows drawn independently: their features and their expected numbers of draws, as one list. A row's random number is
    /// derived from its partition, its offset and the seed (squares of linear congruences modulo a prime).
    pub fn draw(&self, centroids: &[f64], rates: &Rates, seed: u64) -> String {
        let k = centroids.len() / self.features();
        let (first_seed, second_seed) = (seed % PRIME, seed / PRIME % PRIME);
        let place =
            format!("(_offset % {PRIME} + CAST(_partition AS BIGINT) * 69621 % {PRIME} + {first_seed}) % {PRIME}");
        let mixed = format!("(({place}) * 48271 + {second_seed}) % {PRIME}");
        let mixed = format!("(({mixed}) * ({mixed})) % {PRIME}");
        let mixed = format!("(({mixed}) * 16807 + {first_seed}) % {PRIME}");
        let mixed = format!("(({mixed}) * ({mixed})) % {PRIME}");
        let uniform = format!(", CAST({mixed} AS DOUBLE) / {PRIME}.0 AS uniform");
        // As arithmetic instead of CASE, see `first`.
        let rate = |cluster: usize| {
            format!("CASE WHEN cluster = {cluster} THEN {} ELSE 0.0 END", number(rates.of_cluster[cluster]))
        };
        let rate = (0..k).map(rate).collect::<Vec<_>>().join(" + ");
        format!(
            "SELECT array_agg(struct({}, draws)) FILTER (WHERE uniform < draws) AS drawn
             FROM (SELECT *, {rate} + least * {} AS draws FROM (SELECT *, {} AS cluster FROM ({})))",
            list(self.features(), |f| format!("value_{f}")),
            number(rates.of_square),
            first("", k),
            self.distant_with(centroids, &uniform)
        )
    }

    /// The same with the number of the nearest centroid (`cluster`).
    fn nearest(&self, centroids: &[f64]) -> String {
        let k = centroids.len() / self.features();
        format!("SELECT *, {} AS cluster FROM ({})", first("", k), self.distant(centroids))
    }

    /// The rows whose second nearest centroid is less than `margin` farther than the nearest, up to [`SURELY`]: their features
    /// as one list. A WHERE clause would recompute all distances for each of its references to them.
    pub fn near(&self, centroids: &[f64], margin: f64) -> String {
        let k = centroids.len() / self.features();
        let second = list(k - 1, |c| format!("greatest({}, far_{})", least("", c + 1), c + 1));
        let share = number(SURELY);
        format!(
            "SELECT array_agg(struct({})) FILTER (WHERE sqrt(second) * {share} - sqrt(least) < {}) AS near
             FROM (SELECT *, least({second}) AS second FROM ({}))",
            list(self.features(), |f| format!("value_{f}")),
            number(margin),
            self.distant(centroids)
        )
    }

    /// Per cluster: number of rows, sum of squared distances, and sums of features relative to the origins; then, for each
    /// other set of centroids, the sum of squared distances to the nearest of them.
    pub fn pass(&self, centroids: &[f64], others: &[Vec<f64>]) -> String {
        let features = self.features();
        let suffix = |i: usize| format!("_of_{i}");
        let sums = (0..features).map(|f| format!(", sum(off_{f}) AS sum_{f}"));
        let worth = others.iter().enumerate().map(|(i, other)| {
            let least = least(&suffix(i), other.len() / features);
            format!(", sum({least}) AS inertia_{i}")
        });
        let mut rows = self.nearest(centroids);
        for (i, other) in others.iter().enumerate() {
            rows = format!("SELECT *, {} FROM ({rows})", self.distances_of("", &suffix(i), other));
        }
        format!(
            "SELECT cluster, count(*) AS rows, sum(least) AS inertia{} FROM ({rows}) GROUP BY cluster ORDER BY cluster",
            sums.chain(worth).collect::<String>()
        )
    }

    /// Per cluster: number of rows; then per feature the sum of standardised differences from the centroid, the sum of their
    /// squares, and the minimum and maximum value. Centroids are standardised.
    pub fn spread(&self, centroids: &[f64]) -> String {
        let features = self.features();
        let k = centroids.len() / features;
        let centroid = |f: usize| {
            let arms = (0..k).map(|c| format!(" WHEN {c} THEN {}", number(centroids[c * features + f])));
            format!("CASE cluster{} END", arms.collect::<String>())
        };
        let apart =
            list(features, |f| format!("off_{f} * {} - {} AS apart_{f}", number(self.scale.inverse[f]), centroid(f)));
        let sums =
            list(features, |f| format!("sum(apart_{f}), sum(apart_{f} * apart_{f}), min(value_{f}), max(value_{f})"));
        let rows = self.nearest(centroids);
        format!(
            "SELECT cluster, count(*) AS rows, {sums} FROM (SELECT *, {apart} FROM ({rows})) GROUP BY cluster ORDER BY cluster"
        )
    }

    /// The rows that are farthest from their centroids: their clusters and features.
    pub fn worst(&self, centroids: &[f64], many: usize) -> String {
        let values = list(self.features(), |f| format!("value_{f}"));
        let nearest = self.nearest(centroids);
        format!("SELECT cluster, {values} FROM ({nearest}) WHERE least > 0 ORDER BY least DESC LIMIT {many}")
    }

    /// At most `most` distinct rows.
    pub fn distinct(&self, most: usize) -> String {
        format!("SELECT DISTINCT {} FROM {} LIMIT {most}", self.offsets(""), self.rows)
    }
}

fn least(suffix: &str, k: usize) -> String {
    format!("least({})", list(k, |cluster| format!("far{suffix}_{cluster}")))
}

/// The first cluster at the minimum distance, as arithmetic: a CASE with many branches partitions the rows by branch and merges
/// them again, which takes longer than computing all distances.
fn first(suffix: &str, k: usize) -> String {
    let farther = |cluster| format!("CASE WHEN far{suffix}_{cluster} > least{suffix} THEN 1 ELSE 0 END");
    // If all others are farther, the result is the last cluster.
    let after = |rest: String, cluster| format!("{} * (1 + {rest})", farther(cluster));
    (0..k - 1).rev().fold("0".to_owned(), after)
}

/// Number of rows in each pair of clusters of two models.
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
               SELECT {}, {} FROM (SELECT {}, {} FROM {}))))
         GROUP BY cluster_old, cluster_new ORDER BY cluster_old, cluster_new",
        first("_old", k_old),
        first("_new", k_new),
        least("_old", k_old),
        least("_new", k_new),
        placed(old, from, "_old"),
        placed(new, to, "_new"),
        old.offsets("_old"),
        new.offsets("_new"),
        new.rows
    )
}
