//! KMeans on rows that are somewhere else.
//!
//! Input: who passes over the rows ([`Elsewhere`]), and a sample of them here. Output: the clusters that [`super::fit`] would
//! find. The starts run on the sample, drawn as `starts.rs` draws it; the passes over all rows, which choose among their
//! ends and polish the best, run where the rows are. Sums come back from there rounded a little differently each time, so
//! assignments have stopped changing when the centroids move by no more than that.

use ndarray::Array2;

use super::lloyd::{self, Outcome};
use super::points::{Points, Totals};
use super::{Error, Fit, Limits, Settings, Step, distinct, flat, starts};

/// The squared shift, in standardised units, that is no more than rounding: one row in a thousand million that goes to
/// another cluster moves two centroids by more.
const STILL: f64 = 1e-22;

/// A row that is far from its centroid.
pub struct Worst {
    /// In original units.
    pub values: Vec<f64>,
    pub cluster: usize,
}

/// Who passes over the rows. Centroids are standardised, one after the other.
pub trait Elsewhere {
    type Error: From<Error>;

    /// How many rows differ, counted up to `most`.
    fn distinct(&self, most: usize) -> Result<usize, Self::Error>;
    /// What the rows of each cluster sum up to.
    fn pass(&self, centroids: &[f64]) -> Result<Totals, Self::Error>;
    /// The rows that are farthest from their centroids; none that stands on its centroid.
    fn worst(&self, centroids: &[f64], many: usize) -> Result<Vec<Worst>, Self::Error>;
}

/// Rows of so many that the starts look at, where they don't look at all.
pub fn start_rows(rows: usize, seed: u64) -> Option<Vec<u32>> {
    (rows > starts::START_ROWS).then(|| starts::sample(rows, seed))
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
    let job = starts::Starts { k, seed, starts, warm: warm.as_deref() };
    let ends = starts::best_of_sample(sample, &job, Limits { tolerance: 0.0, ..limits }, threads);
    let mut best: Option<(f64, Outcome)> = None;
    for end in ends {
        let worth = rows.pass(&sample.standardised(&end.centroids))?.inertia;
        if best.as_ref().is_none_or(|(least, _)| worth < *least) {
            best = Some((worth, end));
        }
    }
    let Some((_, start)) = best else { return Err(Error::TooFew { k, distinct: 0 }.into()) };
    let before = start.iterations;
    let end = polish(rows, sample, start.centroids, limits, watch)?;
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

/// Passes until assignments stop changing.
fn polish<E: Elsewhere>(
    rows: &E,
    sample: &Points<'_>,
    mut centroids: Vec<f64>,
    limits: Limits,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Outcome, E::Error> {
    for iteration in 1.. {
        let at = sample.standardised(&centroids);
        let totals = rows.pass(&at)?;
        let mut next = sample.means(&totals, &centroids);
        let empty = totals.weights.iter().filter(|&&weight| weight <= 0.0).count();
        if empty > 0 {
            let worst = rows.worst(&at, empty)?;
            let worst = worst.iter().map(|worst| (worst.values.as_slice(), 1.0, worst.cluster));
            lloyd::take_over(sample, &totals, &centroids, &mut next, worst);
        }
        let shift = lloyd::squared(&at, &sample.standardised(&next));
        watch(Step { iteration, inertia: totals.inertia, shift });
        let still = shift <= STILL;
        if still || iteration >= limits.iterations {
            let Totals { weights, inertia, .. } = if still { totals } else { rows.pass(&sample.standardised(&next))? };
            let centroids = if still { centroids } else { next };
            return Ok(Outcome { centroids, weights, inertia, iterations: iteration });
        }
        centroids = next;
    }
    unreachable!("one of the passes is the last")
}
