//! Runs many small reads concurrently, since they are bound by the latency of a disk or a network.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Applies a function to each item on at most this number of threads. Returns the results in order.
///
/// # Errors
/// One of the errors of the function.
pub fn each<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let some = || -> Result<Vec<(usize, R)>, E> {
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(i) else { return Ok(done) };
            match work(item) {
                Ok(result) => done.push((i, result)),
                Err(error) => {
                    // Makes the other threads stop.
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut all = thread::scope(|scope| {
        let others: Vec<_> = (1..items.len().min(threads)).map(|_| scope.spawn(some)).collect();
        let mut all = some();
        for other in others {
            let more = other.join().unwrap_or_else(|panic| resume_unwind(panic));
            all = all.and_then(|mut all| {
                all.append(&mut more?);
                Ok(all)
            });
        }
        all
    })?;
    all.sort_unstable_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_an_error_is_returned() {
        let items: Vec<usize> = (0..1000).collect();
        // So slow that each thread gets some.
        let twice = |i: &usize| {
            thread::sleep(std::time::Duration::from_micros(10));
            Ok::<_, ()>(i * 2)
        };
        for threads in [1, 2, 8, 2000] {
            assert_eq!(each(&items, threads, twice).unwrap(), (0..1000).map(|i| i * 2).collect::<Vec<_>>());
            assert_eq!(each(&items, threads, |i| if *i == 500 { Err(*i) } else { Ok(()) }), Err(500));
        }
        assert_eq!(each(&[] as &[usize], 8, |_| Ok::<_, ()>(())).unwrap(), []);
    }
}
