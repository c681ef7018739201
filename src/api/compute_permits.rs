//! Concurrency limit for CPU-bound work: it runs on blocking threads, at most one per processor.
//!
//! The blocking pool of the runtime has hundreds of threads. If each computed, the threads that move bytes and answer probes
//! would get a small fraction of a processor. Waiting for a permit here costs no thread.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Permits of one process.
#[derive(Clone)]
pub struct ComputePermits(Arc<Semaphore>);

impl Default for ComputePermits {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(processors)))
    }
}

impl ComputePermits {
    /// Runs `work` on a blocking thread once a permit is available. `None` if it panicked or the runtime shuts down.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let turn = Arc::clone(&self.0).acquire_owned().await.ok()?;
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        working.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn no_more_work_runs_than_there_are_processors() {
        let (turns, running) = (ComputePermits::default(), Arc::new(AtomicUsize::new(0)));
        let processors = turns.0.available_permits();
        let work = || {
            let running = Arc::clone(&running);
            turns.run(move || {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                std::thread::sleep(Duration::from_millis(5));
                running.fetch_sub(1, Ordering::SeqCst);
                now
            })
        };
        let most = futures::future::join_all((0..4 * processors).map(|_| work())).await;
        assert_eq!(most.into_iter().flatten().max(), Some(processors));
    }

    #[tokio::test]
    async fn a_turn_comes_back_from_work_that_panics() {
        let turns = ComputePermits(Arc::new(Semaphore::new(1)));
        assert_eq!(turns.run(|| -> u8 { std::panic::resume_unwind(Box::new("broken")) }).await, None);
        assert_eq!(turns.run(|| 7).await, Some(7));
    }
}
