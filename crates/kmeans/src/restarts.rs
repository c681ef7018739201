//! Where to begin the passes over all rows.
//!
//! Input: points, the number of restarts, and perhaps centroids of an earlier model as one more. Output: local minima to polish
//! on all rows. Few rows are grouped into distinct weighted points, so that a restart costs little and their order makes no
//! difference. Many are represented by a coreset, which takes one pass over all rows, or a few where rare rows hide behind
//! rarer ones (coreset.rs). The search works on a smaller coreset of that one, and judges on the larger one (search.rs).

use std::convert::Infallible;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::coreset::{self, Guide};
use super::kmeans_plus_plus::{further, unit};
use super::lloyd::{Limits, Outcome};
use super::points::Points;
use super::search::Search;

/// Up to so many rows are looked at themselves; of more, a coreset of about that size is.
pub(super) const START_ROWS: usize = 65_536;
/// The first guide is found on so many rows, a uniform sample, with so many restarts.
const PILOT_ROWS: usize = 8_192;
const PILOT_STARTS: usize = 4;
/// It has so many times the clusters that are wanted, within a range: then costs on its coreset are more exact.
const FINER: usize = 4;
const PILOT_CLUSTERS: std::ops::RangeInclusive<usize> = 16..=128;
const PILOT_LIMITS: Limits = Limits { iterations: 20, tolerance: 1e-3 };
/// The search works on about so many points, where there are twice as many or more.
const SEARCHED: usize = 8_192;
/// Local minima of a coreset that are evaluated on all rows: as many as so many rows in all allow, within a range, of those
/// that are not much worse than the best.
const EVALUATED: usize = 24_000_000;
const FINALISTS: std::ops::RangeInclusive<usize> = 3..=12;
const NEARLY: f64 = 1.02;
/// Coresets that are drawn at most, each by a better guide.
const ROUNDS: u64 = 8;
/// How many times the cost of the best solution on a coreset the cost of its guide may be.
const ROUGH: f64 = 2.0;
/// Batches of crossings that the search waits for something better, at most.
const PATIENCE: usize = 10;

/// What the starts follow from.
#[derive(Clone, Copy)]
pub(super) struct Restarts<'a> {
    pub k: usize,
    pub seed: u64,
    pub starts: usize,
    /// In original units.
    pub warm: Option<&'a [f64]>,
}

/// Local minima, the best first: of all rows the best one, of a coreset a few that differ.
pub(super) fn best(points: &Points<'_>, job: &Restarts<'_>, limits: Limits, threads: usize) -> Vec<Outcome> {
    if points.rows() <= START_ROWS {
        let rows: Vec<u32> = (0..points.rows() as u32).collect();
        let weights = rows.iter().map(|&row| points.weight(row as usize)).collect();
        let (columns, weights) = gather(points, &rows, weights, true);
        let few = points.weighted(&columns, &weights);
        let mut found = minima(&few, None, job, (limits, threads));
        found.truncate(1);
        return found;
    }
    let draw = |guide: &Guide, seed| {
        let drawn = coreset::draw(points, guide, START_ROWS, seed, threads);
        Ok::<_, Infallible>(gather(points, &drawn.rows, drawn.weights, false))
    };
    let guide = pilot(points, points.rows(), job, threads);
    let Ok(mut found) = best_of_coresets(points, guide, job, (limits, threads), draw);
    found.truncate((EVALUATED / points.rows()).clamp(*FINALISTS.start(), *FINALISTS.end()));
    found
}

/// Local minima of a coreset, the best first. `draw` makes a coreset out of a guide and a seed: a column for each feature, as
/// [`Points::value`] gives them, and the weights. A guide that costs much more than what is found gives way to that.
pub(super) fn best_of_coresets<E>(
    scale: &Points<'_>,
    mut guide: Guide,
    job: &Restarts<'_>,
    (limits, threads): (Limits, usize),
    draw: impl Fn(&Guide, u64) -> Result<(Vec<Vec<f64>>, Vec<f64>), E>,
) -> Result<Vec<Outcome>, E> {
    let mut found = Vec::new();
    for round in 0..ROUNDS {
        let (columns, weights) = draw(&guide, further(job.seed, round))?;
        let few = scale.weighted(&columns, &weights);
        found = minima(&few, Some(&guide), job, (limits, threads));
        let better = Guide::of(&found[0]);
        if guide.inertia <= better.inertia * ROUGH {
            break;
        }
        guide = better;
    }
    let most = found[0].inertia * NEARLY;
    found.retain(|outcome| outcome.inertia <= most);
    Ok(found)
}

/// A first guide for `rows` rows, of which these points are all or a uniform sample.
pub(super) fn pilot(points: &Points<'_>, rows: usize, job: &Restarts<'_>, threads: usize) -> Guide {
    let drawn = sample(points.rows(), PILOT_ROWS.min(points.rows()), job.seed);
    let share = rows as f64 / drawn.len() as f64;
    let weights = drawn.iter().map(|&row| points.weight(row as usize) * share).collect();
    let (columns, weights) = gather(points, &drawn, weights, false);
    let few = points.weighted(&columns, &weights);
    let k = (FINER * job.k).clamp(*PILOT_CLUSTERS.start(), *PILOT_CLUSTERS.end()).max(job.k).min(few.rows());
    let (seed, starts, limits) = (job.seed, PILOT_STARTS, PILOT_LIMITS);
    let search = Search { points: &few, fewer: None, k, seed, starts, patience: 0, warm: None, limits, threads };
    Guide::of(&search.run()[0])
}

/// Local minima of these points, the best first.
fn minima(
    points: &Points<'_>,
    guide: Option<&Guide>,
    job: &Restarts<'_>,
    (limits, threads): (Limits, usize),
) -> Vec<Outcome> {
    let Restarts { k, seed, starts, warm } = *job;
    let patience = patience(points.rows(), guide.is_some(), job);
    let search = Search { points, fewer: None, k, seed, starts, patience, warm, limits, threads };
    if points.rows() < 2 * SEARCHED {
        return search.run();
    }
    let guide = guide.cloned().unwrap_or_else(|| pilot(points, points.rows(), job, threads));
    let drawn = coreset::draw(points, &guide, SEARCHED, !seed, threads);
    let (columns, weights) = gather(points, &drawn.rows, drawn.weights, false);
    let fewer = points.weighted(&columns, &weights);
    Search { fewer: Some(&fewer), ..search }.run()
}

/// How long to search: more clusters have more minima. Few points cost so little that more is worth it, where it adds
/// little to many restarts, or to passes over many rows.
fn patience(points: usize, of_many: bool, job: &Restarts<'_>) -> usize {
    let times = if points < SEARCHED && (of_many || job.starts >= 50) { 3 } else { 1 };
    times * (2 + job.k / 2).min(PATIENCE)
}

/// `many` rows, one out of each of so many equal parts, drawn so that nothing periodic in their order shows.
pub(super) fn sample(rows: usize, many: usize, seed: u64) -> Vec<u32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let part = rows as f64 / many as f64;
    (0..many).map(|j| (((j as f64 + unit(&mut rng)) * part) as usize).min(rows - 1) as u32).collect()
}

/// The values of these rows and their weights; equal rows become one where that pays, in order of their coordinates.
fn gather(points: &Points<'_>, rows: &[u32], weights: Vec<f64>, whole: bool) -> (Vec<Vec<f64>>, Vec<f64>) {
    // Adding 0 turns a negative zero into the other one.
    let column = |feature| points.values(feature, rows).into_iter().map(|value| value + 0.0).collect();
    let columns: Vec<Vec<f64>> = (0..points.features()).map(column).collect();
    let compare = |a: &usize, b: &usize| {
        let order = columns.iter().map(|column| column[*a].total_cmp(&column[*b]));
        order.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    };
    if !whole && !many_are_equal(rows.len(), compare) {
        return (columns, weights);
    }
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_unstable_by(compare);
    let (mut distinct, mut grouped): (Vec<usize>, Vec<f64>) = (Vec::new(), Vec::new());
    for place in order {
        match (distinct.last(), grouped.last_mut()) {
            (Some(last), Some(weight)) if compare(last, &place).is_eq() => *weight += weights[place],
            _ => {
                distinct.push(place);
                grouped.push(weights[place]);
            }
        }
    }
    let column = |column: &Vec<f64>| distinct.iter().map(|&place| column[place]).collect();
    (columns.iter().map(column).collect(), grouped)
}

/// Whether grouping would leave a quarter of the rows or fewer, judged by how often two of a thousand are equal.
fn many_are_equal(rows: usize, compare: impl Fn(&usize, &usize) -> std::cmp::Ordering) -> bool {
    let mut some: Vec<usize> = (0..rows).step_by((rows / 1024).max(1)).collect();
    some.sort_unstable_by(&compare);
    let equal = some.windows(2).filter(|pair| compare(&pair[0], &pair[1]).is_eq()).count();
    // Among m draws from n values about m² / 2n repeat one before them.
    let different = (some.len() * some.len()) as f64 / (2.0 * equal as f64);
    different < rows as f64 / 4.0
}

#[cfg(test)]
mod tests {
    use super::super::lloyd;
    use super::super::tests::{limits, random, table};
    use super::*;

    #[test]
    fn equal_rows_become_one_point() {
        let (scale, columns) = table(vec![vec![2.0, 0.0, 2.0, -0.0], vec![1.0; 4]]);
        let points = Points::new(&scale, &columns);
        let (columns, weights) = gather(&points, &[0, 1, 2, 3], vec![1.0; 4], true);
        assert_eq!((columns, weights), (vec![vec![0.0, 2.0], vec![1.0, 1.0]], vec![2.0, 2.0]));
    }

    #[test]
    fn a_sample_spans_all_rows_and_is_grouped_only_where_that_pays() {
        let rows = sample(1_000_000, START_ROWS, 42);
        assert!(rows.is_sorted() && rows[0] < 20 && rows[START_ROWS - 1] > 999_980);
        let rows = sample(200_000, START_ROWS, 1);
        let ones = || vec![1.0; rows.len()];
        let (scale, columns) = table(random(200_000, 2));
        let points = Points::new(&scale, &columns);
        assert_eq!(gather(&points, &rows, ones(), false).1.len(), START_ROWS);
        let (scale, columns) = table(vec![(0..200_000).map(|i| f64::from(i % 50)).collect()]);
        let points = Points::new(&scale, &columns);
        assert_eq!(gather(&points, &rows, ones(), false).1.len(), 50);
    }

    /// Three blobs; beyond them, each a hundred times farther out, ever fewer rows in two groups.
    #[test]
    fn rare_groups_are_found_behind_rarer_ones() {
        let rows = 150_000;
        let mut columns = random(rows, 2);
        for (i, x) in columns[0].iter_mut().enumerate() {
            *x += (i % 3 * 4) as f64;
        }
        let mut centres: Vec<f64> = vec![0.5, 0.5, 4.5, 0.5, 8.5, 0.5];
        let mut row = 5;
        for (out, size) in [(2e2, 40), (2e4, 12), (2e6, 3)] {
            for side in [-1.0, 1.0] {
                for _ in 0..size {
                    columns[0][row] = out * side + columns[0][row] % 1.0;
                    columns[1][row] += out;
                    row += 1171;
                }
                centres.extend([out * side + 0.5, out + 0.5]);
            }
        }
        let (scale, columns) = table(columns);
        let points = Points::new(&scale, &columns);
        let job = Restarts { k: 9, seed: 7, starts: 10, warm: None };
        let found = best(&points, &job, limits(0.0), 2).remove(0);
        let true_cost = points.pass(&centres, 2).inertia;
        let cost = lloyd::run(&points, found.centroids, limits(0.0), 2, &|_| {}).inertia;
        assert!(cost <= true_cost, "{cost} {true_cost}");
    }

    #[test]
    fn a_warm_start_counts_where_it_is_better() {
        let (scale, columns) = table(random(3000, 2));
        let points = Points::new(&scale, &columns);
        let job = |starts, warm| Restarts { k: 8, seed: 7, starts, warm };
        let alone = best(&points, &job(1, None), limits(0.0), 1).remove(0);
        let many = best(&points, &job(60, None), limits(0.0), 2).remove(0);
        assert!(many.inertia < alone.inertia);
        let warm = best(&points, &job(1, Some(&many.centroids)), limits(0.0), 1).remove(0);
        assert!((warm.inertia / many.inertia - 1.0).abs() < 1e-9);
    }
}
