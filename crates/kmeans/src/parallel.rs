//! Parallel map over chunks of rows, and over jobs.
//!
//! Input: a number of rows and a function of a range of rows. Output: the function's result for each chunk, in order.
//! Chunks have a fixed size and results keep their order, so results do not depend on the number of threads.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Rows per chunk: large compared with the cost of scheduling, small enough to occupy many threads.
pub const CHUNK: usize = 65_536;

/// Number of available processors, the default number of threads.
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Calls `work` on each chunk of `rows` rows and returns the results in order.
pub fn by_chunk<T: Send>(rows: usize, threads: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    in_parallel(rows.div_ceil(CHUNK), threads, |chunk| work(chunk * CHUNK..rows.min((chunk + 1) * CHUNK)))
}

/// Calls `work` on the numbers from 0 to `jobs` - 1 and returns the results in order. Each job goes to the first free
/// thread.
///
/// # Panics
/// If `work` panics: the panic is resumed in the calling thread.
pub fn in_parallel<T: Send>(jobs: usize, threads: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = threads.clamp(1, jobs.max(1));
    if threads == 1 {
        return (0..jobs).map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let share = || {
        let mut done = Vec::new();
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                return done;
            }
            done.push((job, work(job)));
        }
    };
    let mut done = thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(share)).collect();
        let mut done = share();
        for worker in workers {
            match worker.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(job, _)| *job);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_one_chunk_and_results_are_in_order() {
        for rows in [0, 1, CHUNK, 3 * CHUNK + 5] {
            for threads in [1, 2, 7] {
                let chunks = by_chunk(rows, threads, |chunk| chunk);
                assert_eq!(chunks.iter().map(Range::len).sum::<usize>(), rows);
                assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
        }
    }
}
