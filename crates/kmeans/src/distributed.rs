//! KMeans on rows that are somewhere else.
//!
//! Input: who passes over the rows ([`Elsewhere`]), and a uniform sample of them here. Output: the clusters that [`super::fit`]
//! would find. The sample gives the first guide; coresets are drawn where the rows are and searched here (`restarts.rs`); the
//! passes over all rows, which choose among what was found and polish the best, run where the rows are. A pass over there takes a while, however few rows are still moving, so
//! after one those rows are fetched that are near the border of their cluster, and passes go over them alone, until the
//! centroids have travelled so far that others may move too (Hamerly's bound, as in bounds.rs). Sums come back from there
//! rounded a little differently each time, so assignments have stopped changing when the centroids move by no more than that.

use ndarray::Array2;

use super::coreset::{Guide, Rates};
use super::lloyd::{self, Outcome};
use super::points::{Points, Totals};
use super::{Error, Fit, Limits, Settings, Step, distinct, flat, restarts};

/// The squared shift, in standardised units, that is no more than rounding: one row in a thousand million that goes to
/// another cluster moves two centroids by more.
const STILL: f64 = 1e-22;

/// Rows that are fetched at once: one of so many, but for a few; and so many values at most.
const ONE_OF: usize = 16;
const FEW: usize = 1 << 14;
const VALUES: usize = 1 << 22;

/// What rounding could make of a distance is far less than what is missing here. Rows alike have the same gap, here and where
/// the rows are, to the bit: however many they are, those at the margin itself are not fetched.
pub const SURELY: f64 = 1.0 - 2e-9;

/// Local minima of a coreset that one pass evaluates.
const FINALISTS: usize = 3;

/// A row that is far from its centroid.
pub struct Worst {
    /// In original units.
    pub values: Vec<f64>,
    pub cluster: usize,
}

/// Rows of a coreset.
pub struct Coreset {
    /// For each feature, in original units.
    pub columns: Vec<Vec<f64>>,
    /// For each row one over its probability.
    pub weights: Vec<f64>,
}

/// Who passes over the rows. Centroids are standardised, one after the other.
pub trait Elsewhere {
    type Error: From<Error>;

    /// How many rows differ, counted up to `most`.
    fn distinct(&self, most: usize) -> Result<usize, Self::Error>;
    /// How many rows there are.
    fn rows(&self) -> usize;
    /// Draws rows independently, each with the probability that the rates give it by its cluster and squared distance. What is
    /// drawn follows from the rows and the seed alone.
    fn draw(&self, centroids: &[f64], rates: &Rates, seed: u64) -> Result<Coreset, Self::Error>;
    /// What the rows of each cluster sum up to; and for each other set of centroids the sum of the squared distances from the
    /// nearest of those.
    fn pass(&self, centroids: &[f64], others: &[Vec<f64>]) -> Result<(Totals, Vec<f64>), Self::Error>;
    /// The rows whose second distance times [`SURELY`] is less than `margin` greater than the distance to the nearest centroid: a
    /// column for each feature, in original units.
    fn near(&self, centroids: &[f64], margin: f64) -> Result<Vec<Vec<f64>>, Self::Error>;
    /// The rows that are farthest from their centroids; none that stands on its centroid.
    fn worst(&self, centroids: &[f64], many: usize) -> Result<Vec<Worst>, Self::Error>;
}

/// The uniform sample of so many rows that the first guide is found on; `None`: all rows are looked at.
pub fn start_rows(rows: usize, seed: u64) -> Option<Vec<u32>> {
    (rows > restarts::START_ROWS).then(|| restarts::sample(rows, restarts::START_ROWS, seed))
}

/// The best clusters that the settings find. `sample` holds the rows that [`start_rows`] names.
pub fn fit_elsewhere<E: Elsewhere>(
    rows: &E,
    sample: &Points<'_>,
    settings: &Settings,
    warm: Option<&Array2<f64>>,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Fit, E::Error> {
    let Settings { k, seed, starts, limits, threads } = *settings;
    if distinct(sample, k) < k {
        let distinct = rows.distinct(k)?;
        if distinct < k {
            return Err(Error::TooFew { k, distinct }.into());
        }
    }
    let warm = warm.map(flat);
    let job = restarts::Restarts { k, seed, starts, warm: warm.as_deref() };
    let guide = restarts::pilot(sample, rows.rows(), &job, threads);
    let draw = |guide: &Guide, seed| {
        let at = sample.standardised(&guide.centroids);
        let Coreset { columns, weights } = rows.draw(&at, &guide.rates(restarts::START_ROWS), seed)?;
        Ok::<_, E::Error>((columns, weights))
    };
    let until_settled = Limits { tolerance: 0.0, ..limits };
    let mut ends = restarts::best_of_coresets(sample, guide, &job, (until_settled, threads), draw)?;
    ends.truncate(FINALISTS);
    let places: Vec<Vec<f64>> = ends.iter().map(|end| sample.standardised(&end.centroids)).collect();
    let (first, others) = rows.pass(&places[0], &places[1..])?;
    let worth: Vec<f64> = std::iter::once(first.inertia).chain(others).collect();
    let best = ends.into_iter().zip(&worth).enumerate().min_by(|(_, (_, a)), (_, (_, b))| a.total_cmp(b));
    let Some((best, (start, _))) = best else { return Err(Error::TooFew { k, distinct: 0 }.into()) };
    let known = (best == 0).then_some(first);
    let before = start.iterations;
    let end = polish(rows, sample, (start.centroids, known), (limits, threads), watch)?;
    let features = sample.features();
    Ok(Fit {
        centroids: Array2::from_shape_fn((k, features), |(cluster, feature)| {
            end.centroids[cluster * features + feature]
        }),
        sizes: end.weights.iter().map(|&weight| weight as u64).collect(),
        inertia: end.inertia,
        iterations: before + end.iterations,
    })
}

/// Passes until assignments stop changing. What the first would find may be known.
fn polish<E: Elsewhere>(
    rows: &E,
    sample: &Points<'_>,
    (mut centroids, mut known): (Vec<f64>, Option<Totals>),
    (limits, threads): (Limits, usize),
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Outcome, E::Error> {
    let mut iteration = 0;
    loop {
        iteration += 1;
        let at = sample.standardised(&centroids);
        let totals = match known.take() {
            Some(known) => known,
            None => rows.pass(&at, &[])?.0,
        };
        let mut next = sample.means(&totals, &centroids);
        let empty = empty(&totals);
        if empty > 0 {
            let worst = rows.worst(&at, empty)?;
            let worst = worst.iter().map(|worst| (worst.values.as_slice(), 1.0, worst.cluster));
            lloyd::take_over(sample, &totals, &centroids, &mut next, worst);
        }
        let shift = lloyd::squared(&at, &sample.standardised(&next));
        watch(Step { iteration, inertia: totals.inertia, shift });
        let still = shift <= STILL;
        if still || iteration >= limits.iterations {
            let Totals { weights, inertia, .. } =
                if still { totals } else { rows.pass(&sample.standardised(&next), &[])?.0 };
            let centroids = if still { centroids } else { next };
            return Ok(Outcome { centroids, weights, inertia, iterations: iteration });
        }
        let margin = margin(sample, &at, rows.rows());
        if empty == 0 && travelled(&at, &sample.standardised(&next), sample.features()) < margin {
            let near = rows.near(&at, margin)?;
            let ones = vec![1.0; near[0].len()];
            let near = Near { points: sample.weighted(&near, &ones), margin, threads };
            next = near.follow((&centroids, &totals), next, (&mut iteration, limits), watch);
        }
        centroids = next;
    }
}

fn empty(totals: &Totals) -> usize {
    totals.weights.iter().filter(|&&weight| weight <= 0.0).count()
}

/// By how much the distances to two centroids may have drifted apart, at most: twice what the one that moved most moved, and
/// a little more for what rounding made of it.
fn travelled(from: &[f64], to: &[f64], features: usize) -> f64 {
    let moved = from.chunks(features).zip(to.chunks(features)).map(|(from, to)| lloyd::squared(from, to));
    2.0 * moved.fold(0.0, f64::max).sqrt() * (1.0 + 1e-9)
}

/// How near a border a row is that is to be fetched, told by the sample, so that there are not too many.
fn margin(sample: &Points<'_>, centroids: &[f64], rows: usize) -> f64 {
    let most = (rows / ONE_OF).max(FEW).min(VALUES / sample.features());
    let mut row = vec![0.0; sample.features()];
    let mut gaps: Vec<f64> = (0..sample.rows())
        .map(|i| {
            row.iter_mut().enumerate().for_each(|(f, value)| *value = sample.standardise(f, sample.value(f, i)));
            let (mut least, mut second) = (f64::INFINITY, f64::INFINITY);
            for centroid in centroids.chunks(row.len()) {
                let far = lloyd::squared(&row, centroid);
                second = second.min(far.max(least));
                least = least.min(far);
            }
            second.sqrt() * SURELY - least.sqrt()
        })
        .collect();
    let place = (most as f64 / rows as f64 * gaps.len() as f64) as usize;
    let last = gaps.len() - 1;
    let gap = *gaps.select_nth_unstable_by(place.min(last), f64::total_cmp).1;
    // With one cluster there are no borders.
    if gap.is_finite() { gap } else { 0.0 }
}

/// The rows that may move.
struct Near<'a> {
    points: Points<'a>,
    /// How far the centroids may travel before others may.
    margin: f64,
    threads: usize,
}

impl Near<'_> {
    /// Passes over these rows alone, from a pass over all to where that no longer tells, or nothing changes any more.
    fn follow(
        &self,
        (first, all): (&[f64], &Totals),
        mut centroids: Vec<f64>,
        (iteration, limits): (&mut usize, Limits),
        watch: &(dyn Fn(Step) + Sync),
    ) -> Vec<f64> {
        let Self { points, margin, threads } = self;
        let features = points.features();
        let settled = plus(all, -1.0, &points.pass(first, *threads));
        let (mut at, spread) = (points.standardised(first), all.inertia + points.saved(all, first));
        let mut far = 0.0;
        // One is left for a pass over all.
        while *iteration + 1 < limits.iterations {
            let to = points.standardised(&centroids);
            far += travelled(&at, &to, features);
            if far >= *margin {
                break;
            }
            at = to;
            let totals = plus(&settled, 1.0, &points.pass(&centroids, *threads));
            if empty(&totals) > 0 {
                break;
            }
            let next = points.means(&totals, &centroids);
            let shift = lloyd::squared(&at, &points.standardised(&next));
            *iteration += 1;
            watch(Step { iteration: *iteration, inertia: spread - points.saved(&totals, &centroids), shift });
            centroids = next;
            if shift <= STILL {
                break;
            }
        }
        centroids
    }
}

fn plus(some: &Totals, times: f64, others: &Totals) -> Totals {
    let add = |some: &[f64], others: &[f64]| some.iter().zip(others).map(|(a, b)| a + times * b).collect();
    Totals {
        sums: add(&some.sums, &others.sums),
        weights: add(&some.weights, &others.weights),
        inertia: some.inertia + times * others.inertia,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    #[test]
    fn rows_that_are_alike_are_not_fetched_by_the_million() {
        // Half of all rows are one, and stand where the quantile falls.
        let column: Vec<f64> =
            (0..100_000).map(|i| if i % 2 == 0 { 0.4 } else { f64::from(i % 1000) / 1000.0 }).collect();
        let (scale, columns) = table(vec![column.clone(), column]);
        let points = Points::new(&scale, &columns);
        let centroids = points.standardised(&[0.2, 0.2, 0.8, 0.8]);
        let margin = margin(&points, &centroids, points.rows());
        let rows = Counted { points: &points, passes: Cell::default(), fetched: Cell::default() };
        let near = rows.near(&centroids, margin).unwrap();
        assert!(near[0].len() <= FEW && !near[0].contains(&0.4), "{}", near[0].len());
    }

    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::SeedableRng as _;

    use super::super::tests::{limits, random, table};
    use super::super::{Init, SEED, fit, kmeans_plus_plus};
    use super::*;

    /// Rows that are here after all, and how often somebody went over them.
    struct Counted<'a> {
        points: &'a Points<'a>,
        passes: Cell<usize>,
        fetched: Cell<usize>,
    }

    impl Counted<'_> {
        /// Each row's values and its squared distances to all centroids.
        fn each(&self, centroids: &[f64], mut tell: impl FnMut(Vec<f64>, Vec<f64>)) {
            self.passes.set(self.passes.get() + 1);
            let features = self.points.features();
            for row in 0..self.points.rows() {
                let values: Vec<f64> = (0..features).map(|f| self.points.value(f, row)).collect();
                let at: Vec<f64> = values.iter().enumerate().map(|(f, v)| self.points.standardise(f, *v)).collect();
                tell(values, centroids.chunks(features).map(|centroid| lloyd::squared(&at, centroid)).collect());
            }
        }
    }

    impl Elsewhere for Counted<'_> {
        type Error = Error;

        fn distinct(&self, most: usize) -> Result<usize, Error> {
            Ok(distinct(self.points, most))
        }

        fn rows(&self) -> usize {
            self.points.rows()
        }

        fn draw(&self, centroids: &[f64], rates: &Rates, seed: u64) -> Result<Coreset, Error> {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut drawn = Coreset { columns: vec![Vec::new(); self.points.features()], weights: Vec::new() };
            self.each(centroids, |values, far| {
                let cluster = (0..far.len()).min_by(|a, b| far[*a].total_cmp(&far[*b])).unwrap();
                let draws = rates.of_cluster[cluster] + far[cluster] * rates.of_square;
                if kmeans_plus_plus::unit(&mut rng) < draws {
                    drawn.columns.iter_mut().zip(values).for_each(|(column, value)| column.push(value));
                    drawn.weights.push(1.0 / draws.min(1.0));
                }
            });
            Ok(drawn)
        }

        fn pass(&self, centroids: &[f64], others: &[Vec<f64>]) -> Result<(Totals, Vec<f64>), Error> {
            let features = self.points.features();
            let k = centroids.len() / features;
            let mut totals = Totals { sums: vec![0.0; centroids.len()], weights: vec![0.0; k], inertia: 0.0 };
            self.each(centroids, |values, far| {
                let cluster = (0..k).min_by(|a, b| far[*a].total_cmp(&far[*b])).unwrap();
                totals.inertia += far[cluster];
                totals.weights[cluster] += 1.0;
                for (f, value) in values.into_iter().enumerate() {
                    totals.sums[cluster * features + f] += value - self.points.origin(f);
                }
            });
            let worth = others.iter().map(|other| {
                let mut inertia = 0.0;
                self.each(other, |_, far| inertia += far.into_iter().fold(f64::INFINITY, f64::min));
                inertia
            });
            Ok((totals, worth.collect()))
        }

        fn near(&self, centroids: &[f64], margin: f64) -> Result<Vec<Vec<f64>>, Error> {
            let mut near = vec![Vec::new(); self.points.features()];
            self.each(centroids, |values, mut far| {
                far.sort_by(f64::total_cmp);
                if far[1].sqrt() * SURELY - far[0].sqrt() < margin {
                    near.iter_mut().zip(values).for_each(|(near, value)| near.push(value));
                }
            });
            self.fetched.set(self.fetched.get() + near[0].len());
            Ok(near)
        }

        fn worst(&self, _: &[f64], _: usize) -> Result<Vec<Worst>, Error> {
            unreachable!("no cluster loses all its rows")
        }
    }

    #[test]
    fn what_is_near_a_border_is_fetched_and_the_rest_passed_over_a_few_times() {
        for (features, k) in [(2, 8), (3, 5)] {
            let (scale, columns) = table(random(100_000, features));
            let points = Points::new(&scale, &columns);
            let settings = Settings { k, seed: SEED, starts: 10, limits: limits(0.0), threads: 2 };
            let here = fit(&points, &settings, Init::Drawn(None), &|_| {}).unwrap();
            let drawn = start_rows(points.rows(), SEED).unwrap();
            let picked: Vec<_> = columns.iter().map(|column| crate::column_buffer::take(column, &drawn)).collect();
            let sample = Points::new(&scale, &picked);
            let rows = Counted { points: &points, passes: Cell::default(), fetched: Cell::default() };
            let seen = std::sync::Mutex::new(Vec::new());
            let there = fit_elsewhere(&rows, &sample, &settings, None, &|step| seen.lock().unwrap().push(step));
            let (there, steps) = (there.unwrap(), seen.into_inner().unwrap());
            // Of minima that are nearly the same, other coresets may prefer another one; it is a minimum of all rows.
            assert!((there.inertia / here.inertia - 1.0).abs() < 0.01, "{} {}", there.inertia, here.inertia);
            let again = fit(&points, &settings, Init::Given(&there.centroids), &|_| {}).unwrap();
            assert_eq!(there.sizes, again.sizes, "{features} features");
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(1.0);
            assert!(there.centroids.iter().zip(&again.centroids).all(|(a, b)| close(*a, *b)));
            assert!((there.inertia / again.inertia - 1.0).abs() < 1e-12);
            // The inertia that is told on the way follows from sums, and never rises.
            assert!(steps.windows(2).all(|two| two[1].inertia <= two[0].inertia * (1.0 + 1e-9)), "{steps:?}");
            assert!(
                steps.len() > 10 && rows.passes.get() < steps.len() / 2,
                "{} of {}",
                rows.passes.get(),
                steps.len()
            );
            assert!(rows.fetched.get() < points.rows() / 4, "{}", rows.fetched.get());
        }
    }
}
