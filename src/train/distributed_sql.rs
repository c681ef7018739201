//! The queries of a training on a cluster: plain SQL, with every number as a literal.
//!
//! Input: the table of prepared rows, a slice, and centroids. Output: texts. A distance is computed as the passes in this
//! process do it, feature by feature from 0, so that a row on a border goes where they put it; of equals the first wins.

use std::fmt::Write as _;

use ndarray::Array2;
use tercile_kmeans::features::Scale;
use tercile_kmeans::{Rates, SURELY};

/// A prime (2³¹ - 1): products of two numbers below it stay within 64 bits.
const PRIME: u64 = 2_147_483_647;

/// The rows of a slice, and what standardises them.
#[derive(Clone, Copy)]
pub(super) struct Over<'a> {
    pub table: &'a str,
    pub slice: u8,
    pub scale: &'a Scale,
    /// Whether some of the rows have none of a feature.
    pub missing: &'a [bool],
}

/// The shortest text that stands for a double and no other.
fn number(value: f64) -> String {
    format!("({value:?})")
}

fn list(many: usize, text: impl Fn(usize) -> String) -> String {
    (0..many).map(text).collect::<Vec<_>>().join(", ")
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

    /// A feature, its mean in place of none.
    fn value(&self, f: usize) -> String {
        match self.missing[f] {
            true => format!("coalesce(feature_{f}, {})", number(self.scale.mean[f])),
            false => format!("feature_{f}"),
        }
    }

    /// The rows, with the features counted from their origins (`off`).
    fn offsets(&self, suffix: &str) -> String {
        list(self.features(), |f| format!("{} - {} AS off{suffix}_{f}", self.value(f), number(self.scale.origin[f])))
    }

    /// The squared distances to each centroid, out of `off`.
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

    /// The rows with the squares of the distances to all centroids (`far`), and to the nearest (`least`).
    fn distant(&self, centroids: &[f64]) -> String {
        self.distant_with(centroids, "")
    }

    /// The same, with more columns of the table: `, expression AS name`.
    fn distant_with(&self, centroids: &[f64], more: &str) -> String {
        let k = centroids.len() / self.features();
        format!(
            "SELECT *, {} AS least FROM (SELECT *, {} FROM (SELECT {}, {}{more} FROM {} WHERE _slice <= {}))",
            least("", k),
            self.distances("", centroids),
            self.offsets(""),
            list(self.features(), |f| format!("{} AS value_{f}", self.value(f))),
            self.table,
            self.slice
        )
    }

    /// Rows drawn independently: their features, and their expected numbers of draws, as one list of all. A row's random number
    /// follows from its partition, its offset and the seed (squares of linear congruences modulo a prime).
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
        // In arithmetic, as in `first`.
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

    /// The same, with the number of the nearest centroid (`cluster`).
    fn nearest(&self, centroids: &[f64]) -> String {
        let k = centroids.len() / self.features();
        format!("SELECT *, {} AS cluster FROM ({})", first("", k), self.distant(centroids))
    }

    /// The rows to which the second of the nearest centroids is less than `margin` farther than the first, but for [`SURELY`]: their
    /// features, as one list of all. A WHERE in its place would work out all distances again for each place where they stand.
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

    /// Of each cluster: its rows, the sum of their squared distances, and of their features counted from the origins; then for
    /// each other set of centroids the sum of their squared distances from the nearest of those.
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

    /// Of each cluster: its rows; then for each feature the sum of the standardised differences from its centroid, the sum of
    /// their squares, and the least and the greatest value. Centroids are standardised.
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

    /// The rows that are farthest from their centroids: their clusters, and their features.
    pub fn worst(&self, centroids: &[f64], many: usize) -> String {
        let values = list(self.features(), |f| format!("value_{f}"));
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

/// The first cluster that is as near as the nearest, in arithmetic: a CASE of many arms deals the rows to its arms and
/// gathers them again, which takes longer than all distances.
fn first(suffix: &str, k: usize) -> String {
    let farther = |cluster| format!("CASE WHEN far{suffix}_{cluster} > least{suffix} THEN 1 ELSE 0 END");
    // Where all others are farther it is the last one.
    let after = |rest: String, cluster| format!("{} * (1 + {rest})", farther(cluster));
    (0..k - 1).rev().fold("0".to_owned(), after)
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
