//! Distributed KMeans: the rows are on other machines.
//!
//! Input: an implementation of passes over the remote rows ([`Elsewhere`]), and a local uniform sample of them. Output:
//! clusters as good as those of [`super::fit`]. The sample gives the first guide. Coresets are drawn remotely and searched
//! locally (restarts.rs). Passes over all rows, which select among the candidates and polish the best one, run remotely.
//!
//! A remote pass has a high latency even if few rows change their cluster. So after each one the rows near a border between
//! clusters are fetched, and local passes read these alone, until the centroids have moved so far that other rows may
//! change (Hamerly's bound, as in hamerly.rs). Remote sums are rounded differently each time, so the descent ends when the
//! centroids move by no more than rounding.

use ndarray::Array2;

use super::coreset::{Guide, Rates};
use super::lloyd::{self, Outcome};
use super::points::Points;
use super::totals::Totals;
use super::{Error, Fit, Init, Limits, Settings, Step, distinct, flat, restarts};

/// Squared shift (standardised units) that is attributed to rounding. If one row in 10⁹ changes its cluster, two centroids
/// move by more.
const STILL: f64 = 1e-22;

/// Rows that are fetched near borders: 1 / `ONE_OF` of all but at least `FEW`, and at most `VALUES` values.
const ONE_OF: usize = 16;
const FEW: usize = 1 << 14;
const VALUES: usize = 1 << 22;

/// Factor of the second distance in a margin, which covers the rounding of distances. Equal rows have the same gap to the
/// bit, locally and remotely, so rows exactly at the margin are not fetched, however many they are.
pub const SURELY: f64 = 1.0 - 2e-9;

/// Local minima of a coreset that are evaluated on all rows, in one pass.
const FINALISTS: usize = 3;

/// A row far from its centroid.
pub struct Worst {
    /// One value per feature, in original units.
    pub values: Vec<f64>,
    /// Cluster of the row.
    pub cluster: usize,
}

/// Rows of a coreset.
pub struct Coreset {
    /// One column per feature, in original units.
    pub columns: Vec<Vec<f64>>,
    /// Reciprocal of the sampling probability of each row.
    pub weights: Vec<f64>,
}

/// Passes over remote rows. Centroids are k × features, standardised, row-major.
pub trait Elsewhere {
    /// Error of a remote pass, or of the fit.
    type Error: From<Error>;

    /// Number of distinct rows, counted up to `most`.
    ///
    /// # Errors
    /// If the remote pass fails; so do the other methods.
    fn distinct(&self, most: usize) -> Result<usize, Self::Error>;
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Draws rows independently, each with the probability that [`Rates`] defines by its cluster and squared distance. The
    /// draw is determined by the rows and the seed alone.
    fn draw(&self, centroids: &[f64], rates: &Rates, seed: u64) -> Result<Coreset, Self::Error>;
    /// Totals of one pass; and for each of the sets of centroids `others` its inertia.
    fn pass(&self, centroids: &[f64], others: &[Vec<f64>]) -> Result<(Totals, Vec<f64>), Self::Error>;
    /// The rows with second distance · [`SURELY`] - distance < `margin`, where the distances are to the second nearest and
    /// the nearest centroid. One column per feature, in original units.
    fn near(&self, centroids: &[f64], margin: f64) -> Result<Vec<Vec<f64>>, Self::Error>;
    /// The `many` rows farthest from their centroids, without rows at distance 0.
    fn worst(&self, centroids: &[f64], many: usize) -> Result<Vec<Worst>, Self::Error>;
}

/// Rows of the uniform sample that gives the first guide; `None` if there are so few rows that all are used.
pub fn start_rows(rows: usize, seed: u64) -> Option<Vec<u32>> {
    (rows > restarts::START_ROWS).then(|| restarts::sample(rows, restarts::START_ROWS, seed))
}

/// Fits k clusters to remote rows. `sample` contains the rows of [`start_rows`]. Calls `watch` after each pass.
///
/// # Errors
/// [`Error::TooFew`], and the errors of `rows`.
pub fn fit_elsewhere<E: Elsewhere>(
    rows: &E,
    sample: &Points<'_>,
    settings: &Settings,
    init: Init<'_>,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Fit, E::Error> {
    let Settings { k, seed, starts, limits, threads } = *settings;
    if distinct(sample, k) < k {
        let distinct = rows.distinct(k)?;
        if distinct < k {
            return Err(Error::TooFew { k, distinct }.into());
        }
    }
    let fit = |before: usize, end: Outcome| Fit {
        centroids: Array2::from_shape_fn((k, sample.features()), |(cluster, feature)| {
            end.centroids[cluster * sample.features() + feature]
        }),
        sizes: end.weights.iter().map(|&weight| weight as u64).collect(),
        inertia: end.inertia,
        iterations: before + end.iterations,
    };
    let warm = match init {
        Init::Drawn(warm) => warm.map(flat),
        Init::Given(centroids) => {
            return Ok(fit(0, polish(rows, sample, (flat(centroids), None), (limits, threads), watch)?));
        }
    };
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
    Ok(fit(before, polish(rows, sample, (start.centroids, known), (limits, threads), watch)?))
}

/// Descends until assignments stop changing. The totals of the first pass may be known.
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

/// Upper bound of the change of a difference between distances to two centroids: twice the largest movement of a centroid,
/// and slightly more to cover rounding.
fn travelled(from: &[f64], to: &[f64], features: usize) -> f64 {
    let moved = from.chunks(features).zip(to.chunks(features)).map(|(from, to)| lloyd::squared(from, to));
    2.0 * moved.fold(0.0, f64::max).sqrt() * (1.0 + 1e-9)
}

/// Margin for [`Elsewhere::near`], estimated from the sample so that not too many rows are fetched.
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
    // One cluster has no borders.
    if gap.is_finite() { gap } else { 0.0 }
}

/// The rows that may change their cluster.
struct Near<'a> {
    points: Points<'a>,
    /// Distance that the centroids may move before other rows may change.
    margin: f64,
    threads: usize,
}

impl Near<'_> {
    /// Passes over these rows alone after a pass over all rows (`first`, `all`), until the margin is reached or the
    /// centroids stop moving.
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
        // Leaves one iteration for a pass over all rows.
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
    fn equal_rows_at_the_margin_are_not_fetched() {
        // Half of all rows are equal, and the quantile of the margin is among them.
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

    /// Local rows with counters of passes and fetched rows.
    struct Counted<'a> {
        points: &'a Points<'a>,
        passes: Cell<usize>,
        fetched: Cell<usize>,
    }

    impl Counted<'_> {
        /// Calls `tell` with each row's values and squared distances to all centroids.
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
    fn rows_near_borders_are_fetched_and_few_passes_read_all_rows() {
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
            let there =
                fit_elsewhere(&rows, &sample, &settings, Init::Drawn(None), &|step| seen.lock().unwrap().push(step));
            let (there, steps) = (there.unwrap(), seen.into_inner().unwrap());
            // Other coresets may select another of several nearly equal minima; it is a local minimum on all rows.
            assert!((there.inertia / here.inertia - 1.0).abs() < 0.01, "{} {}", there.inertia, here.inertia);
            let again = fit(&points, &settings, Init::Given(&there.centroids), &|_| {}).unwrap();
            assert_eq!(there.sizes, again.sizes, "{features} features");
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(1.0);
            assert!(there.centroids.iter().zip(&again.centroids).all(|(a, b)| close(*a, *b)));
            assert!((there.inertia / again.inertia - 1.0).abs() < 1e-12);
            // The reported inertia is computed from sums and never increases.
            assert!(steps.windows(2).all(|two| two[1].inertia <= two[0].inertia * (1.0 + 1e-9)), "{steps:?}");
            assert!(
                steps.len() > 10 && rows.passes.get() < steps.len() / 2,
                "{} of {}",
                rows.passes.get(),
                steps.len()
            );
            assert!(rows.fetched.get() < points.rows() / 4, "{}", rows.fetched.get());
            let given = fit_elsewhere(&rows, &sample, &settings, Init::Given(&there.centroids), &|_| {}).unwrap();
            assert_eq!(given.sizes, again.sizes, "from given centroids");
        }
    }
}
