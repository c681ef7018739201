//! The queries that a scheduler has accepted and that have not ended.
//!
//! Input: queries that are accepted and end, and tasks that end. Output: the ID of each query as soon as it is accepted,
//! which Ballista reports only after planning; and a line for a client whose query waits for other queries.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use ballista_scheduler::scheduler_server::JobIdGenerator;

tokio::task_local! {
    /// The ID of the query that the current task submits.
    static NUMBER: RefCell<Option<String>>;
}

/// Generates IDs of queries. They are unique across restarts of a scheduler, because executors name directories after them.
pub(super) struct JobIds {
    began: u64,
    next: AtomicU64,
}

impl Default for JobIds {
    fn default() -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { began, next: AtomicU64::new(1) }
    }
}

#[async_trait]
impl JobIdGenerator for JobIds {
    async fn next_id(&self) -> String {
        let number = format!("{:x}-{}", self.began, self.next.fetch_add(1, Ordering::Relaxed));
        // It is read in `numbered` only.
        let _ = NUMBER.try_with(|told| told.replace(Some(number.clone())));
        number
    }
}

/// Runs `submit`, which submits a query, and returns the ID of the query as well.
pub(super) async fn numbered<T>(submit: impl Future<Output = T>) -> (T, Option<String>) {
    let submitted = async {
        let done = submit.await;
        (done, NUMBER.with(|number| number.take()))
    };
    NUMBER.scope(RefCell::default(), submitted).await
}

/// A query that was accepted.
struct Job {
    session: String,
    accepted: Instant,
    /// When its last task ended; `None` if none has.
    moved: Option<Instant>,
}

/// A query of which no task has ended for this time, after the first one, counts as waiting.
const STILL: Duration = Duration::from_secs(15);

/// The queries of a scheduler, by ID.
#[derive(Default)]
pub(super) struct Jobs(Mutex<BTreeMap<String, Job>>);

impl Jobs {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn accept(&self, number: &str, session: &str) {
        let job = Job { session: session.to_owned(), accepted: Instant::now(), moved: None };
        self.all().insert(number.to_owned(), job);
    }

    /// A task of a query has ended.
    pub fn task_ended(&self, number: &str) {
        if let Some(job) = self.all().get_mut(number) {
            job.moved = Some(Instant::now());
        }
    }

    /// Removes a query that has ended. Returns the time since it was accepted; `None` if it was removed before.
    pub fn end(&self, number: &str) -> Option<Duration> {
        self.all().remove(number).map(|job| job.accepted.elapsed())
    }

    /// Describes the queries for which the oldest query of a session waits. Empty if one of its tasks ended recently, or if no older
    /// query runs.
    pub fn waiting(&self, session: &str) -> String {
        let all = self.all();
        let Some(own) = all.values().filter(|job| job.session == session).min_by_key(|job| job.accepted) else {
            return String::new();
        };
        let others = all.values().filter(|job| job.session != session && job.accepted < own.accepted);
        let (many, oldest) = others.fold((0, own.accepted), |(n, oldest), job| (n + 1, oldest.min(job.accepted)));
        if many == 0 || own.moved.is_some_and(|moved| moved.elapsed() < STILL) {
            return String::new();
        }
        let seconds = |since: Instant| since.elapsed().as_secs();
        let others = if many == 1 {
            "1 other query, which".to_owned()
        } else {
            format!("{many} other queries, the oldest of which")
        };
        let waits = match own.moved {
            None => format!("has waited {} s for", seconds(own.accepted)),
            // Its tasks may run, or wait for slots that tasks of other queries hold.
            Some(moved) => format!("has ended no task for {} s beside", seconds(moved)),
        };
        format!("{waits} {others} was accepted {} s ago", seconds(oldest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_is_known_by_its_number_and_waits_for_those_before_it() {
        let numbers = JobIds::default();
        let (given, told) = numbered(numbers.next_id()).await;
        assert_eq!(Some(&given), told.as_ref());
        let (other, _) = numbered(numbers.next_id()).await;
        assert_ne!(given, other);

        let jobs = Jobs::default();
        jobs.accept(&given, "one");
        assert_eq!(jobs.waiting("one"), "");
        jobs.accept(&other, "two");
        assert_eq!(jobs.waiting("two"), "has waited 0 s for 1 other query, which was accepted 0 s ago");
        assert_eq!(jobs.waiting("one"), "");
        assert_eq!(jobs.waiting("three"), "");
        jobs.task_ended(&other);
        assert_eq!(jobs.waiting("two"), "");
        if let (Some(job), Some(before)) = (jobs.all().get_mut(&other), Instant::now().checked_sub(2 * STILL)) {
            job.moved = Some(before);
        }
        assert_eq!(jobs.waiting("two"), "has ended no task for 30 s beside 1 other query, which was accepted 0 s ago");
        assert!(jobs.end(&given).is_some() && jobs.end(&given).is_none());
    }
}
