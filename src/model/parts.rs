//! Parts of a feature: runs of neighbouring clusters that share a word because the feature does not distinguish their rows.
//!
//! Input: centroid, spread and size of each cluster, and the predecessor's words for clusters that continue. Output: for each
//! feature the part of each cluster, counted from the lowest. `docs/descriptions.md` defines the rule.
//!
//! The difference between two clusters is measured in pooled standard deviations (Cohen's d; J. Cohen, "Statistical Power
//! Analysis for the Behavioral Sciences", 2nd edition, 1988, chapter 2). The result does not depend on the numbering of the
//! clusters.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use ndarray::ArrayView2;

/// Cohen (1988): a large effect. Threshold for different words if the clusters have no history or changed their order.
const LARGE: f64 = 0.8;
/// Cohen (1988): a medium effect. Threshold for keeping different words.
const MEDIUM: f64 = 0.5;
/// S. S. Sawilowsky, "New Effect Size Rules of Thumb" (Journal of Modern Applied Statistical Methods 8, 2009): a very large
/// effect. Threshold for different words if the clusters shared a word.
const VERY_LARGE: f64 = 1.2;

/// Standard deviations up to this multiple of the values' magnitude are rounding errors and count as no spread.
const ROUNDING: f64 = 16.0 * f64::EPSILON;

/// The clusters of a model. Matrices are k by features, in original units.
#[derive(Debug, Clone, Copy)]
pub struct Shapes<'a> {
    /// Finite; the mean of each cluster's rows.
    pub centroids: ArrayView2<'a, f64>,
    /// Population standard deviation of each cluster's rows, at least 0.
    pub spread: ArrayView2<'a, f64>,
    /// Number of rows of each cluster.
    pub sizes: &'a [u64],
}

/// Two clusters in the predecessor, with the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// True if they had the same word for the feature.
    pub same_word: bool,
    /// True if the first centroid was above the second.
    pub first_above: bool,
}

/// The history of a feature and two clusters; `None` if the predecessor gives no valid history, because one of them is new.
pub type History<'a> = dyn Fn(usize, usize, usize) -> Option<Pair> + 'a;

/// The parts of one feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The part of each cluster; 0 is the lowest.
    pub part: Vec<usize>,
    /// Number of parts.
    pub count: usize,
}

/// Maximum number of rounds until parts are stable.
const ROUNDS: usize = 16;

/// The parts of every feature. Two clusters with different centroids differ in the part of at least one feature.
///
/// Parts are stable: the same clusters, with these parts as their history, get the same parts. If clusters with equal
/// descriptions had to be separated, that may take a few rounds.
pub fn parts(shapes: &Shapes<'_>, history: &History<'_>) -> Vec<Parts> {
    let mut found = decide(shapes, history);
    for _ in 0..ROUNDS {
        let as_found = |feature: usize, a: usize, b: usize| {
            let parts: &Parts = &found[feature];
            Some(Pair { same_word: parts.part[a] == parts.part[b], first_above: false })
        };
        let again = decide(shapes, &as_found);
        if again == found {
            break;
        }
        found = again;
    }
    found
}

fn decide(shapes: &Shapes<'_>, history: &History<'_>) -> Vec<Parts> {
    let line = |feature| Line::new(shapes, feature, history);
    let mut lines: Vec<Line> = (0..shapes.centroids.ncols()).map(line).collect();
    while let Some((feature, low, high)) = widest_equal_pair(shapes, &lines) {
        lines[feature].cut_between(shapes, low, high);
    }
    lines.iter().map(Line::parts).collect()
}

impl Shapes<'_> {
    /// The difference of two clusters in pooled standard deviations. Without spread it is infinite if the centroids differ in
    /// nine significant digits, otherwise 0.
    fn difference(&self, feature: usize, a: usize, b: usize) -> f64 {
        let (at_a, at_b) = (self.centroids[[a, feature]], self.centroids[[b, feature]]);
        let deviation = self.pooled_deviation(feature, a, b);
        if deviation > ROUNDING * at_a.abs().max(at_b.abs()) {
            (at_a - at_b).abs() / deviation
        } else if nine_digits(at_a) == nine_digits(at_b) {
            0.0
        } else {
            f64::INFINITY
        }
    }

    /// sqrt((SS1 + SS2) / (n1 + n2 - 2)), where SS is the sum of squared deviations from the cluster's mean; 0 without degrees
    /// of freedom.
    fn pooled_deviation(&self, feature: usize, a: usize, b: usize) -> f64 {
        let (spread_a, spread_b) = (self.spread[[a, feature]], self.spread[[b, feature]]);
        let (n_a, n_b) = (self.sizes[a] as f64, self.sizes[b] as f64);
        // Squares of very large or small deviations overflow or underflow; ratios to the larger deviation do not.
        let unit = spread_a.max(spread_b);
        let freedom = n_a + n_b - 2.0;
        if unit == 0.0 || freedom <= 0.0 {
            return 0.0;
        }
        let square = |spread: f64| (spread / unit) * (spread / unit);
        ((n_a * square(spread_a) + n_b * square(spread_b)) / freedom).sqrt() * unit
    }
}

/// A value rounded to nine significant digits; -0 becomes 0.
fn nine_digits(value: f64) -> f64 {
    format!("{:.8e}", value + 0.0).parse().unwrap_or(value)
}

/// The clusters in the order of one feature, and the starts of its parts.
struct Line {
    feature: usize,
    /// Clusters with equal centroids, ascending.
    groups: Vec<Vec<usize>>,
    /// The group of each cluster.
    group_of: Vec<usize>,
    /// Groups, except the first, that start a part.
    begins: BTreeSet<usize>,
}

impl Line {
    fn new(shapes: &Shapes<'_>, feature: usize, history: &History<'_>) -> Self {
        // Adding 0 turns -0 into 0.
        let at = |cluster: &usize| shapes.centroids[[*cluster, feature]] + 0.0;
        let mut order: Vec<usize> = (0..shapes.centroids.nrows()).collect();
        order.sort_by(|a, b| at(a).total_cmp(&at(b)));
        let groups: Vec<Vec<usize>> = order.chunk_by(|a, b| at(a) == at(b)).map(<[usize]>::to_vec).collect();
        let mut group_of = vec![0; order.len()];
        for (group, clusters) in groups.iter().enumerate() {
            clusters.iter().for_each(|&cluster| group_of[cluster] = group);
        }
        let mut line = Self { feature, groups, group_of, begins: BTreeSet::new() };
        let differ = |low: usize, high: usize| {
            let threshold = match history(feature, low, high) {
                None | Some(Pair { first_above: true, .. }) => LARGE,
                Some(Pair { same_word: true, .. }) => VERY_LARGE,
                Some(Pair { same_word: false, .. }) => MEDIUM,
            };
            shapes.difference(feature, low, high) >= threshold
        };
        let mut first = 0;
        for group in 1..line.groups.len() {
            let differs = line.pairs(first, group).any(|(low, high)| differ(low, high));
            if differs {
                line.begins.insert(group);
                first = group;
            }
        }
        line
    }

    /// All pairs of a cluster of one group and a cluster of another.
    fn pairs(&self, low: usize, high: usize) -> impl Iterator<Item = (usize, usize)> {
        self.groups[low].iter().flat_map(move |&a| self.groups[high].iter().map(move |&b| (a, b)))
    }

    fn part(&self, cluster: usize) -> usize {
        self.begins.range(..=self.group_of[cluster]).count()
    }

    fn parts(&self) -> Parts {
        let part = (0..self.group_of.len()).map(|cluster| self.part(cluster)).collect();
        Parts { part, count: self.begins.len() + 1 }
    }

    /// Starts a part between two clusters that share one, at the widest gap between neighbours; of equal gaps, the lowest.
    fn cut_between(&mut self, shapes: &Shapes<'_>, low: usize, high: usize) {
        let gap = |group: &usize| {
            let differences = self.pairs(group - 1, *group).map(|(a, b)| shapes.difference(self.feature, a, b));
            differences.fold(0.0, f64::max)
        };
        let between = self.group_of[low] + 1..=self.group_of[high];
        let widest = between.rev().max_by(|a, b| gap(a).total_cmp(&gap(b)));
        self.begins.extend(widest);
    }
}

/// Among all clusters in the same part of every feature, the two with the greatest difference in one feature: returns the
/// feature, the lower and the higher cluster.
fn widest_equal_pair(shapes: &Shapes<'_>, lines: &[Line]) -> Option<(usize, usize, usize)> {
    let k = shapes.sizes.len();
    let same = |a: usize, b: usize| lines.iter().all(|line| line.part(a) == line.part(b));
    let pairs = (0..k).flat_map(|a| (0..a).map(move |b| (a, b))).filter(|&(a, b)| same(a, b));
    let candidates = pairs.flat_map(|(a, b)| {
        lines.iter().filter_map(move |line| {
            let (low, high) = match line.group_of[a].cmp(&line.group_of[b]) {
                Ordering::Less => (a, b),
                Ordering::Greater => (b, a),
                Ordering::Equal => return None,
            };
            Some((line.feature, low, high))
        })
    });
    // Ties are resolved by the first feature and then by the lowest centroids, never by cluster numbers.
    candidates.max_by(|&(f, low, high), &(g, other_low, other_high)| {
        let at = |feature: usize, cluster: usize| shapes.centroids[[cluster, feature]];
        shapes
            .difference(f, low, high)
            .total_cmp(&shapes.difference(g, other_low, other_high))
            .then(g.cmp(&f))
            .then(at(g, other_low).total_cmp(&at(f, low)))
            .then(at(g, other_high).total_cmp(&at(f, high)))
    })
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    fn none(_: usize, _: usize, _: usize) -> Option<Pair> {
        None
    }

    fn of(centroids: &Array2<f64>, spread: &Array2<f64>, history: &History<'_>) -> Vec<Vec<usize>> {
        let sizes = vec![1000; centroids.nrows()];
        let shapes = Shapes { centroids: centroids.view(), spread: spread.view(), sizes: &sizes };
        parts(&shapes, history).into_iter().map(|parts| parts.part).collect()
    }

    /// Parts of one feature; a second feature separates all clusters.
    fn one(centroids: &[f64], history: &History<'_>) -> Vec<usize> {
        let k = centroids.len();
        let at = Array2::from_shape_fn((k, 2), |(c, f)| if f == 0 { centroids[c] } else { c as f64 * 100.0 });
        of(&at, &Array2::ones((k, 2)), history).swap_remove(0)
    }

    #[test]
    fn a_part_begins_where_a_cluster_differs_from_the_first_of_the_part_before() {
        assert_eq!(one(&[0.0, 0.79, 5.0], &none), [0, 0, 1]);
        assert_eq!(one(&[0.0, 0.81, 5.0], &none), [0, 1, 2]);
        // The third cluster differs little from the second and enough from the first.
        assert_eq!(one(&[0.0, 0.45, 0.9, 1.3], &none), [0, 0, 1, 1]);
        assert_eq!(one(&[1.0, 0.0, 1.0], &none), [1, 0, 1]);
    }

    #[test]
    fn a_pair_keeps_its_words_until_the_difference_is_clear() {
        let had = |same_word, first_above| move |_, _, _| Some(Pair { same_word, first_above });
        assert_eq!(one(&[0.0, 0.51], &had(false, false)), [0, 1]);
        assert_eq!(one(&[0.0, 0.49], &had(false, false)), [0, 0]);
        assert_eq!(one(&[0.0, 1.19], &had(true, false)), [0, 0]);
        assert_eq!(one(&[0.0, 1.21], &had(true, false)), [0, 1]);
        for same in [false, true] {
            assert_eq!(
                (one(&[0.0, 0.79], &had(same, true)), one(&[0.0, 0.81], &had(same, true))),
                (vec![0, 0], vec![0, 1])
            );
        }
    }

    #[test]
    fn the_deviation_is_pooled_by_rows() {
        let (centroids, spread) = (array![[0.0], [2.0]], array![[1.0], [3.0]]);
        let difference = |sizes: [u64; 2]| {
            let shapes = Shapes { centroids: centroids.view(), spread: spread.view(), sizes: &sizes };
            shapes.difference(0, 1, 0)
        };
        assert!((difference([30, 10]) - 2.0 / (120.0_f64 / 38.0).sqrt()).abs() < 1e-12);
        assert_eq!(difference([1, 1]), f64::INFINITY, "no row is left to estimate a deviation from");
        let huge = spread.mapv(|deviation| deviation * 1e200);
        let shapes = Shapes { centroids: centroids.view(), spread: huge.view(), sizes: &[30, 10] };
        assert!((shapes.difference(0, 0, 1) / (2e-200 / (120.0_f64 / 38.0).sqrt()) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn without_spread_nine_digits_decide() {
        let zero = Array2::zeros((3, 2));
        let at = array![[5.0, 0.0], [5.000_000_000_1, 1.0], [5.000_001, 2.0]];
        assert_eq!(of(&at, &zero, &none)[0], [0, 0, 1]);
        assert_eq!(of(&array![[0.0, 1.0], [-0.0, 2.0]], &Array2::zeros((2, 2)), &none)[0], [0, 0]);
        assert_eq!(of(&array![[1e308], [-1e308]], &Array2::zeros((2, 1)), &none)[0], [1, 0]);
    }

    #[test]
    fn equal_descriptions_are_separated_by_the_largest_difference() {
        // No difference reaches 0.8. The second feature separates the first two best, the first feature the third.
        let at = array![[0.0, 0.0], [0.1, 0.5], [0.7, 0.2]];
        assert_eq!(of(&at, &Array2::ones((3, 2)), &none), [vec![0, 0, 1], vec![0, 1, 0]]);
        let alone = array![[0.0], [0.1], [0.3]];
        assert_eq!(of(&alone, &Array2::ones((3, 1)), &none), [vec![0, 1, 2]]);
        let equal = array![[1.0], [1.0]];
        assert_eq!(of(&equal, &Array2::ones((2, 1)), &none), [vec![0, 0]], "nothing tells equal centroids apart");
    }

    /// Numbers that are often equal, close or far apart.
    fn random(rng: &mut Xoshiro256PlusPlus, k: usize, features: usize) -> (Array2<f64>, Array2<f64>, Vec<u64>) {
        let mut draw = |most: u64| (rng.next_u64() % most) as f64;
        let centroids = Array2::from_shape_simple_fn((k, features), || draw(12) * [0.1, 1.0, 1e9][draw(3) as usize]);
        let spread = Array2::from_shape_simple_fn((k, features), || draw(3) * [0.0, 0.5, 2.0, 1e8][draw(4) as usize]);
        (centroids, spread, (0..k).map(|_| 1 + draw(20) as u64).collect())
    }

    #[test]
    fn whatever_the_clusters_the_rule_holds() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        for _ in 0..3000 {
            let (k, features) = (1 + (rng.next_u64() % 7) as usize, 1 + (rng.next_u64() % 3) as usize);
            let (centroids, spread, sizes) = random(&mut rng, k, features);
            let bits = rng.next_u64();
            let history = |feature: usize, a: usize, b: usize| {
                let of = |cluster: usize| bits >> (feature * 8 + cluster) & 1;
                let old = |cluster: usize| bits >> (30 + feature * 8 + cluster) & 3;
                (of(a) + of(b) < 2 || old(a) < 2)
                    .then(|| Pair { same_word: of(a) == of(b), first_above: old(a) > old(b) })
            };
            let shapes = Shapes { centroids: centroids.view(), spread: spread.view(), sizes: &sizes };
            let found = parts(&shapes, &history);
            for (feature, parts) in found.iter().enumerate() {
                for a in 0..k {
                    assert!(parts.part[a] < parts.count);
                    for b in 0..k {
                        let order = centroids[[a, feature]].total_cmp(&centroids[[b, feature]]);
                        let words = parts.part[a].cmp(&parts.part[b]);
                        assert!(words == Ordering::Equal || words == order, "a higher part is no lower word");
                    }
                }
            }
            for (a, b) in (0..k).flat_map(|a| (0..a).map(move |b| (a, b))) {
                let equal = found.iter().all(|parts| parts.part[a] == parts.part[b]);
                assert!(!equal || centroids.row(a) == centroids.row(b), "descriptions differ where clusters do");
            }
            let kept = |feature: usize, a: usize, b: usize| {
                let parts: &Parts = &found[feature];
                Some(Pair { same_word: parts.part[a] == parts.part[b], first_above: false })
            };
            assert_eq!(parts(&shapes, &kept), found, "what did not change keeps its words");
            // The parts do not depend on the numbering of the clusters.
            let turned = |of: &Array2<f64>| Array2::from_shape_fn(of.dim(), |(c, f)| of[[(c + 1) % k, f]]);
            let (at, wide) = (turned(&centroids), turned(&spread));
            let many: Vec<u64> = (0..k).map(|c| sizes[(c + 1) % k]).collect();
            let again = Shapes { centroids: at.view(), spread: wide.view(), sizes: &many };
            let again = parts(&again, &|feature, a, b| history(feature, (a + 1) % k, (b + 1) % k));
            for (parts, again) in found.iter().zip(&again) {
                assert_eq!(parts.count, again.count);
                assert!((0..k).all(|c| parts.part[(c + 1) % k] == again.part[c]));
            }
        }
    }
}
