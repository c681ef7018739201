//! Restarts: candidate solutions for the passes over all rows.
//!
//! Input: points, the number of restarts, and optionally the centroids of an earlier model as a warm start. Output: local
//! minima to polish on all rows. Few rows are grouped into distinct weighted points, so that a restart is cheap and the
//! order of rows makes no difference. Many rows are represented by a coreset (coreset.rs), which takes one pass over all
//! rows, or a few if the first guide missed rare rows. The search runs on a smaller coreset of the coreset and evaluates on
//! the larger one (search.rs).

use std::convert::Infallible;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::coreset::{self, Guide};
use super::kmeans_plus_plus::{further, unit};
use super::lloyd::{Limits, Outcome};
use super::points::Points;
use super::search::Search;

/// Up to this number all rows are used; otherwise a coreset of about this size.
pub(super) const START_ROWS: usize = 65_536;
/// Size of the uniform sample for the first guide, and number of restarts on it.
const PILOT_ROWS: usize = 8_192;
const PILOT_STARTS: usize = 4;
/// The first guide has `FINER`·k clusters, within a range: more clusters reduce the error of its coreset.
const FINER: usize = 4;
const PILOT_CLUSTERS: std::ops::RangeInclusive<usize> = 16..=128;
const PILOT_LIMITS: Limits = Limits { iterations: 20, tolerance: 1e-3 };
/// Size of the smaller coreset on which the search runs, if there are at least twice as many points.
const SEARCHED: usize = 8_192;
/// Number of local minima of a coreset that are evaluated on all rows: `EVALUATED` / rows, within `FINALISTS`. Their
/// inertia is at most `NEARLY` times the best.
const EVALUATED: usize = 24_000_000;
const FINALISTS: std::ops::RangeInclusive<usize> = 3..=12;
const NEARLY: f64 = 1.02;
/// Maximum number of coresets, each drawn with a better guide.
const ROUNDS: u64 = 8;
/// A guide is replaced if its inertia is more than this multiple of the best solution's on its coreset.
const ROUGH: f64 = 2.0;
/// Maximum number of batches of crossings without improvement.
const PATIENCE: usize = 10;

/// Parameters of the restarts.
#[derive(Clone, Copy)]
pub(super) struct Restarts<'a> {
    pub k: usize,
    pub seed: u64,
    pub starts: usize,
    /// Centroids of a warm start, in original units, row-major.
    pub warm: Option<&'a [f64]>,
}

/// Local minima, the best first: only the best one if all rows are used, several of a coreset.
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

/// Local minima of a coreset, the best first. `draw` draws a coreset from a guide and a seed: a column per feature, in the
/// units of [`Points::value`], and weights. A guide that is much worse than the best minimum is replaced by it, and a new
/// coreset is drawn.
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

/// The first guide for `rows` rows. `points` are all of them or a uniform sample.
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

/// Number of batches without improvement after which the search ends: more clusters have more local minima. With few points
/// the search is cheap, so it lasts longer where other work, many restarts or passes over many rows, dominates anyway.
fn patience(points: usize, of_many: bool, job: &Restarts<'_>) -> usize {
    let times = if points < SEARCHED && (of_many || job.starts >= 50) { 3 } else { 1 };
    times * (2 + job.k / 2).min(PATIENCE)
}

/// A stratified sample: one random row out of each of `many` equal parts, so that periodic orders have no effect.
pub(super) fn sample(rows: usize, many: usize, seed: u64) -> Vec<u32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let part = rows as f64 / many as f64;
    (0..many).map(|j| (((j as f64 + unit(&mut rng)) * part) as usize).min(rows - 1) as u32).collect()
}

/// Values and weights of some rows. Equal rows are merged and sorted by coordinates if `whole`, or if that reduces their
/// number enough.
fn gather(points: &Points<'_>, rows: &[u32], weights: Vec<f64>, whole: bool) -> (Vec<Vec<f64>>, Vec<f64>) {
    // Adding 0 turns -0 into +0.
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

/// Whether merging equal rows would leave less than a quarter of them, estimated from the number of equal rows among 1,024.
fn many_are_equal(rows: usize, compare: impl Fn(&usize, &usize) -> std::cmp::Ordering) -> bool {
    let mut some: Vec<usize> = (0..rows).step_by((rows / 1024).max(1)).collect();
    some.sort_unstable_by(&compare);
    let equal = some.windows(2).filter(|pair| compare(&pair[0], &pair[1]).is_eq()).count();
    // Among m draws from n values about m² / 2n repeat an earlier one.
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

    /// Three blobs, and pairs of ever smaller groups, each a hundred times farther away.
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
