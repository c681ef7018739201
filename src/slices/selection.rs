//! Order statistic: finds the k-th smallest of very many numbers by counting.
//!
//! Input: parts, each with a count and bounds of its numbers, and a function that reads them. Output: the number and
//! its rank among equal numbers. Parts entirely below or above the candidate range are counted without reading. The
//! others are counted into buckets, and the bucket with the k-th number is divided again. Each pass reduces the range
//! by a factor of 65,536.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Error;

const BUCKETS: i128 = 1 << 16;

/// A number of values between `low` and `high`.
pub struct Part<T> {
    pub low: i64,
    pub high: i64,
    pub count: u64,
    pub of: T,
}

/// The number of this rank (from 1), and its rank among equal numbers. `read` passes all numbers of a part.
///
/// # Errors
/// If reading fails, or if the numbers contradict the counts and bounds ([`Error::Changed`]).
pub fn nth<T: Sync>(
    parts: Vec<Part<T>>,
    rank: u64,
    read: impl Fn(&T, &mut dyn FnMut(i64)) -> Result<(), Error> + Sync,
) -> Result<(i64, u64), Error> {
    // Even if each number were its part's minimum, the result would not be below `low`.
    let low = bound(&parts, rank, |part| part.low).ok_or(Error::Changed)?;
    // Even if each number were its part's maximum, the result would not be above `high`.
    let high = bound(&parts, rank, |part| part.high).ok_or(Error::Changed)?;
    let (mut low, mut high) = (i128::from(low), i128::from(high));
    let mut rank = rank;
    let mut first = true;
    loop {
        let width = (high - low + 1 + BUCKETS - 1) / BUCKETS;
        let buckets = ((high - low) / width + 1) as usize;
        let mut counts = vec![0_u64; buckets];
        let mut below = 0;
        let mut open = Vec::new();
        for part in &parts {
            if i128::from(part.high) < low {
                below += part.count;
            } else if i128::from(part.low) > high {
            } else if part.low == part.high {
                counts[((i128::from(part.low) - low) / width) as usize] += part.count;
            } else {
                open.push(&part.of);
            }
        }
        let counted = count(&open, low, width, buckets, &read)?;
        below += counted.below;
        for (all, more) in counts.iter_mut().zip(counted.counts) {
            *all += more;
        }
        // Later passes have already subtracted the numbers below.
        if first {
            rank = rank.checked_sub(below).filter(|rank| *rank > 0).ok_or(Error::Changed)?;
            first = false;
        }
        let mut bucket = 0;
        while counts.get(bucket).is_some_and(|count| rank > *count) {
            rank -= counts[bucket];
            bucket += 1;
        }
        if bucket >= buckets {
            return Err(Error::Changed);
        }
        low += bucket as i128 * width;
        high = high.min(low + width - 1);
        if low == high {
            let value = i64::try_from(low).map_err(|_| Error::Changed)?;
            return Ok((value, rank));
        }
    }
}

/// The smallest bound with at least `rank` numbers at or below it, if all numbers of a part are at its bound.
fn bound<T>(parts: &[Part<T>], rank: u64, of: impl Fn(&Part<T>) -> i64) -> Option<i64> {
    let mut bounds: Vec<(i64, u64)> = parts.iter().map(|part| (of(part), part.count)).collect();
    bounds.sort_unstable();
    let mut sum = 0;
    bounds.into_iter().find_map(|(bound, count)| {
        sum += count;
        (sum >= rank).then_some(bound)
    })
}

struct Counted {
    below: u64,
    counts: Vec<u64>,
}

/// Counts the numbers of these parts into buckets, on all cores.
fn count<T: Sync>(
    open: &[&T],
    low: i128,
    width: i128,
    buckets: usize,
    read: &(impl Fn(&T, &mut dyn FnMut(i64)) -> Result<(), Error> + Sync),
) -> Result<Counted, Error> {
    let all = Mutex::new(Ok(Counted { below: 0, counts: vec![0; buckets] }));
    let total = &all;
    // i64 from here on: an i128 division per number would cost more than reading the number.
    let (base, width) = (low as i64, width as u64);
    each(open.len(), || {
        let mut counts = vec![0_u64; buckets];
        let mut below = 0;
        move |job| match job {
            Some(i) => read(open[i], &mut |number| {
                if number < base {
                    below += 1;
                } else if let Some(count) = counts.get_mut((number.wrapping_sub(base) as u64 / width) as usize) {
                    *count += 1;
                }
            })
            .map_err(|error| {
                let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *total = Err(error);
            })
            .is_ok(),
            None => {
                if let Ok(total) = &mut *total.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
                    total.below += below;
                    total.counts.iter_mut().zip(&counts).for_each(|(all, more)| *all += more);
                }
                true
            }
        }
    });
    all.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Distributes jobs 0 to n - 1 to one worker per core, and passes `None` to each worker at the end. A worker that
/// returns `false` gets no more jobs.
pub fn each<W: FnMut(Option<usize>) -> bool>(n: usize, worker: impl Fn() -> W + Sync) {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut work = worker();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                work(None);
                break;
            }
            if !work(Some(i)) {
                break;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(n);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_range_the_number_is_found() {
        let sets: [Vec<i64>; 5] = [
            vec![i64::MIN, i64::MAX],
            vec![5; 100],
            vec![i64::MIN, -1, 0, 0, 0, 1, i64::MAX, i64::MAX],
            (0..5000).map(|i| (i * 7919) % 1000 - 500).collect(),
            (0..100).map(|i| i64::MAX - i * i * i * i * i).collect(),
        ];
        for set in sets {
            let mut sorted = set.clone();
            sorted.sort_unstable();
            for rank in [1, 2, set.len() / 2, set.len() - 1, set.len()].map(|rank| rank.max(1)) {
                let part = |numbers: &[i64]| Part {
                    low: *numbers.iter().min().unwrap(),
                    high: *numbers.iter().max().unwrap(),
                    count: numbers.len() as u64,
                    of: numbers.to_vec(),
                };
                let parts = set.chunks(7).map(part).collect();
                let read = |numbers: &Vec<i64>, sees: &mut dyn FnMut(i64)| {
                    numbers.iter().for_each(|number| sees(*number));
                    Ok(())
                };
                let (value, equal) = nth(parts, rank as u64, read).unwrap();
                assert_eq!(value, sorted[rank - 1]);
                assert_eq!(equal as usize, rank - sorted.partition_point(|number| *number < value));
            }
        }
        assert!(matches!(nth(Vec::<Part<()>>::new(), 1, |(), _| Ok(())), Err(Error::Changed)));
    }
}
