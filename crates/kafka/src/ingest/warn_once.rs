//! Limits repeated warnings to one per cause and period.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between warnings of the same cause.
const REPEAT: Duration = Duration::from_secs(600);
/// Maximum number of remembered causes.
const CAUSES: usize = 1000;

/// The causes that were reported, with the time of the last report.
#[derive(Default)]
pub struct WarnOnce(Mutex<BTreeMap<String, Instant>>);

impl WarnOnce {
    /// Whether to report this cause: the first time, and again after ten minutes.
    pub fn is_new(&self, cause: &str) -> bool {
        self.is_new_at(cause, Instant::now())
    }

    fn is_new_at(&self, cause: &str, now: Instant) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = told.get(cause).is_none_or(|told| now.saturating_duration_since(*told) >= REPEAT);
        if new {
            if told.len() >= CAUSES {
                told.clear();
            }
            told.insert(cause.to_owned(), now);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_reported_once_per_period() {
        let (once, now) = (WarnOnce::default(), Instant::now());
        assert!(once.is_new_at("a", now) && once.is_new_at("b", now));
        assert!(!once.is_new_at("a", now + Duration::from_secs(599)));
        assert!(once.is_new_at("a", now + REPEAT));
    }
}
