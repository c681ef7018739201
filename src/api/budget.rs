//! The memory of requests that run and of answers on their way: one budget for the process.
//!
//! Input: bytes that somebody is about to keep. Output: a [`Hold`] on so much of the budget, which gives it back when it is
//! dropped, or a refusal, which becomes a 503. Nothing waits for memory: those who wait would hold what the others wait for.
//!
//! The last eighth is kept for what is small, so that large bodies never shut out a prediction of a few rows, and the last
//! part of that for the refusals themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::problem::Problem;

/// Bytes that are charged for each request until its answer is complete: its head, its tasks, its buffers.
pub const REQUEST: usize = 8 * 1024;
/// Bytes up to which one hold is small.
const SMALL: usize = 64 * 1024;

/// The budget of one process. Clones share it.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    limit: usize,
    used: AtomicUsize,
    /// Holds that were refused so far.
    refused: AtomicU64,
}

/// There is not enough left.
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
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, used: AtomicUsize::new(0), refused: AtomicU64::new(0) }))
    }

    /// Takes `bytes` of it.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] if they are not there.
    pub fn hold(&self, bytes: usize) -> Result<Hold, Exhausted> {
        let mut hold = Hold { budget: self.clone(), bytes: 0 };
        hold.grow(bytes)?;
        Ok(hold)
    }

    /// Takes what the refusal of a request needs. `None`: not even that is there.
    pub fn hold_refusal(&self) -> Option<Hold> {
        self.take(REQUEST, self.0.limit).then(|| Hold { budget: self.clone(), bytes: REQUEST })
    }

    /// Takes `bytes`, whether they are there or not: for probes, which are answered whatever happens.
    pub fn hold_always(&self, bytes: usize) -> Hold {
        self.0.used.fetch_add(bytes, Relaxed);
        Hold { budget: self.clone(), bytes }
    }

    /// Bytes that a large hold could have now.
    pub fn available(&self) -> usize {
        self.0.large().saturating_sub(self.used())
    }

    /// Bytes that are held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Relaxed)
    }

    /// Bytes that may be held.
    pub fn limit(&self) -> usize {
        self.0.limit
    }

    /// Holds that were refused so far.
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

/// Bytes of the budget that are somebody's, until this is dropped.
pub struct Hold {
    budget: Budget,
    bytes: usize,
}

impl Hold {
    /// Takes more.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] if that is not there; what is held already stays.
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

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives back what is more than `bytes`.
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
        let _probe = budget.hold_always(REQUEST);
        assert_eq!(budget.used(), (1 << 20) + REQUEST);
    }
}
