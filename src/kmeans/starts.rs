//! Many starts, and the best of them.
//!
//! Input: points, how many starts, and perhaps centroids of an earlier model as one more. Output: centroids to polish on all
//! rows. Few rows are grouped into distinct weighted points, so that a start costs little and their order makes no
//! difference; of many, a sample drawn with the seed stands for all.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::lloyd::{self, Limits, Outcome};
use super::points::Points;
use super::seed::{Urn, further, unit};
use crate::features::chunks::in_parallel;

/// Rows that the starts look at.
pub(super) const START_ROWS: usize = 65_536;
/// Ends of starts on a sample that are worth trying on all rows, and how much worse than the best they may be.
const FINALISTS: usize = 3;
const NEARLY: f64 = 1.02;

/// What the starts follow from.
pub(super) struct Starts<'a> {
    pub k: usize,
    pub seed: u64,
    pub starts: usize,
    /// In original units.
    pub warm: Option<&'a [f64]>,
}

/// Where the best starts ended, the best first: on all rows it is one, on a sample a few that differ.
pub(super) fn best(points: &Points<'_>, job: &Starts<'_>, limits: Limits, threads: usize) -> Vec<Outcome> {
    let whole = points.rows() <= START_ROWS;
    let rows: Vec<u32> = if whole { (0..points.rows() as u32).collect() } else { sample(points.rows(), job.seed) };
    best_of(points, (&rows, whole), job, limits, threads)
}

/// The same, where the points are a sample that was drawn already.
#[cfg(feature = "distributed")]
pub(super) fn best_of_sample(points: &Points<'_>, job: &Starts<'_>, limits: Limits, threads: usize) -> Vec<Outcome> {
    let rows: Vec<u32> = (0..points.rows() as u32).collect();
    best_of(points, (&rows, false), job, limits, threads)
}

fn best_of(
    points: &Points<'_>,
    (rows, whole): (&[u32], bool),
    job: &Starts<'_>,
    limits: Limits,
    threads: usize,
) -> Vec<Outcome> {
    let (columns, weights) = gather(points, rows, whole);
    let few = points.weighted(&columns, &weights);
    let urn = Urn::new(&few);
    let mut outcomes = in_parallel(job.starts + usize::from(job.warm.is_some()), threads, |start| {
        let from = match job.warm {
            Some(warm) if start == job.starts => in_order(warm, points.features()),
            _ => urn.draw(job.k, &mut Xoshiro256PlusPlus::seed_from_u64(further(job.seed, start as u64))),
        };
        lloyd::run(&few, from, limits, 1, &|_| {})
    });
    // The sort is stable: of equals, the earliest.
    outcomes.sort_by(|a, b| a.inertia.total_cmp(&b.inertia));
    let most = outcomes[0].inertia * NEARLY;
    outcomes.dedup_by(|next, before| next.inertia <= before.inertia * (1.0 + 1e-9));
    outcomes.retain(|outcome| outcome.inertia <= most);
    outcomes.truncate(if whole { 1 } else { FINALISTS });
    outcomes
}

/// Centroids in the order of their coordinates, so that their numbers make no difference.
fn in_order(centroids: &[f64], features: usize) -> Vec<f64> {
    let mut rows: Vec<&[f64]> = centroids.chunks_exact(features).collect();
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    rows.concat()
}

/// Rows, one out of each of so many equal parts, drawn so that nothing periodic in their order shows.
pub(super) fn sample(rows: usize, seed: u64) -> Vec<u32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let part = rows as f64 / START_ROWS as f64;
    (0..START_ROWS).map(|j| (((j as f64 + unit(&mut rng)) * part) as usize).min(rows - 1) as u32).collect()
}

/// The values of these rows and their weights; equal rows become one where that pays, in order of their coordinates.
fn gather(points: &Points<'_>, rows: &[u32], whole: bool) -> (Vec<Vec<f64>>, Vec<f64>) {
    // Adding 0 turns a negative zero into the other one.
    let column = |feature| points.values(feature, rows).into_iter().map(|value| value + 0.0).collect();
    let columns: Vec<Vec<f64>> = (0..points.features()).map(column).collect();
    let weights: Vec<f64> = rows.iter().map(|&row| points.weight(row as usize)).collect();
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
    use super::super::tests::{limits, random, table};
    use super::*;

    #[test]
    fn equal_rows_become_one_point() {
        let (scale, columns) = table(vec![vec![2.0, 0.0, 2.0, -0.0], vec![1.0; 4]]);
        let points = Points::new(&scale, &columns);
        let (columns, weights) = gather(&points, &[0, 1, 2, 3], true);
        assert_eq!((columns, weights), (vec![vec![0.0, 2.0], vec![1.0, 1.0]], vec![2.0, 2.0]));
    }

    #[test]
    fn a_sample_spans_all_rows_and_is_grouped_only_where_that_pays() {
        let rows = sample(1_000_000, 42);
        assert!(rows.is_sorted() && rows[0] < 20 && rows[START_ROWS - 1] > 999_980);
        let (scale, columns) = table(random(200_000, 2));
        let points = Points::new(&scale, &columns);
        assert_eq!(gather(&points, &sample(200_000, 1), false).1.len(), START_ROWS);
        let (scale, columns) = table(vec![(0..200_000).map(|i| f64::from(i % 50)).collect()]);
        let points = Points::new(&scale, &columns);
        assert_eq!(gather(&points, &sample(200_000, 1), false).1.len(), 50);
    }

    #[test]
    fn a_warm_start_counts_where_it_is_better() {
        let (scale, columns) = table(random(3000, 2));
        let points = Points::new(&scale, &columns);
        let job = |starts, warm| Starts { k: 8, seed: 7, starts, warm };
        let alone = best(&points, &job(1, None), limits(0.0), 1).remove(0);
        let many = best(&points, &job(60, None), limits(0.0), 2).remove(0);
        assert!(many.inertia < alone.inertia);
        let warm = best(&points, &job(1, Some(&many.centroids)), limits(0.0), 1).remove(0);
        assert!((warm.inertia / many.inertia - 1.0).abs() < 1e-9);
    }
}
