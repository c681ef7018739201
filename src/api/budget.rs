//! Memory budget of one process for running requests and responses in transit.
//!
//! Input: the number of bytes to be allocated. Output: a [`Hold`] on that part of the budget, released on drop, or a refusal,
//! which becomes a 503 (load shedding). Nothing waits for memory, because waiting requests would hold the memory that others
//! wait for.
//!
//! The last eighth is reserved for small holds, so that large bodies never block predictions of a few rows; the last part of
//! that is reserved for the refusals themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::problem::Problem;

/// Bytes charged per request until its response is complete: head, tasks and buffers.
pub const REQUEST: usize = 8 * 1024;
/// Maximum bytes of a small hold.
const SMALL: usize = 64 * 1024;

/// Memory budget of a process. Clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limit: usize,
    used: AtomicUsize,
    /// Number of refused holds.
    refused: AtomicU64,
}

/// The budget is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

impl From<Exhausted> for Problem {
    fn from(_: Exhausted) -> Self {
        Self::unavailable(
            "the memory for requests and answers is in use (--memory-limit); try again in a moment, or send less at once",
        )
    }
}

impl Budget {
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, used: AtomicUsize::new(0), refused: AtomicU64::new(0) }))
    }

    /// Holds `bytes`.
    ///
    /// # Errors
    /// [`Exhausted`] if they are not available.
    pub fn hold(&self, bytes: usize) -> Result<Hold, Exhausted> {
        let mut hold = Hold { budget: self.clone(), bytes: 0 };
        hold.grow(bytes)?;
        Ok(hold)
    }

    /// Holds the memory of a refused request's response. `None` if not even that is available.
    pub fn hold_refusal(&self) -> Option<Hold> {
        self.take(REQUEST, self.0.limit).then(|| Hold { budget: self.clone(), bytes: REQUEST })
    }

    /// Holds `bytes` even beyond the limit, for probes and metrics, which are always answered.
    pub fn hold_always(&self, bytes: usize) -> Hold {
        self.0.used.fetch_add(bytes, Relaxed);
        Hold { budget: self.clone(), bytes }
    }

    /// Bytes available to a large hold.
    pub fn available(&self) -> usize {
        self.0.large().saturating_sub(self.used())
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// Size of the budget in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Number of refused holds.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(Relaxed)
    }

    fn take(&self, bytes: usize, most: usize) -> bool {
        let room = |used: usize| used.checked_add(bytes).filter(|used| *used <= most);
        self.0.used.fetch_update(Relaxed, Relaxed, room).is_ok()
    }
}

impl Inner {
    fn large(&self) -> usize {
        self.limit - self.limit / 8
    }

    fn small(&self) -> usize {
        self.limit - self.limit / 64
    }
}

/// Reserved part of the budget, released on drop.
pub struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Hold {
    /// Holds `more` bytes in addition.
    ///
    /// # Errors
    /// [`Exhausted`] if they are not available; the existing hold is kept.
    pub fn grow(&mut self, more: usize) -> Result<(), Exhausted> {
        let inner = &self.budget.0;
        let most = if self.bytes.saturating_add(more) > SMALL { inner.large() } else { inner.small() };
        if !self.budget.take(more, most) {
            inner.refused.fetch_add(1, Relaxed);
            return Err(Exhausted);
        }
        self.bytes += more;
        Ok(())
    }

    /// Holds `more` bytes in addition, even beyond the limit.
    pub fn grow_always(&mut self, more: usize) {
        self.budget.0.used.fetch_add(more, Relaxed);
        self.bytes += more;
    }

    /// Size of the hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Releases the bytes beyond `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.budget.0.used.fetch_sub(less, Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_can_be_had_again() {
        let budget = Budget::new(1 << 20);
        let mut hold = budget.hold(500_000).unwrap();
        hold.grow(400_000).unwrap();
        assert_eq!((budget.used(), hold.grow(100_000)), (900_000, Err(Exhausted)));
        assert_eq!(budget.refused(), 1);
        hold.shrink_to(100_000);
        assert_eq!(budget.available(), (1 << 20) / 8 * 7 - 100_000);
        drop(hold);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn small_holds_have_an_eighth_of_their_own_and_refusals_the_last_of_it() {
        let budget = Budget::new(1 << 20);
        let _large = budget.hold(budget.available()).unwrap();
        assert!(budget.hold(SMALL + 1).is_err());
        let mut small = Vec::new();
        while let Ok(hold) = budget.hold(REQUEST) {
            small.push(hold);
        }
        assert_eq!(small.len(), ((1 << 20) / 8 - (1 << 20) / 64) / REQUEST);
        let (one, two) = (budget.hold_refusal(), budget.hold_refusal());
        assert!(one.is_some() && two.is_some() && budget.hold_refusal().is_none());
        let mut metrics = budget.hold_always(REQUEST);
        metrics.grow_always(2 * SMALL);
        assert_eq!(budget.used(), (1 << 20) + REQUEST + 2 * SMALL);
        drop(metrics);
        assert_eq!(budget.used(), 1 << 20);
    }
}
