//! Rate and concurrency limits per caller.
//!
//! Input: a caller and the current time. Output: a ticket held while the request runs, or the time after which to retry.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Number of callers above which idle ones are evicted.
const REMEMBERED: usize = 10_000;

/// Identity to which limits apply.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// Caller with the key of this name.
    Key(String),
    /// Caller without a key.
    Address(IpAddr),
}

impl Caller {
    /// Caller at an address. For IPv6 the /64 network is the caller, because one host usually has all of its addresses.
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        })
    }
}

struct Bucket {
    /// Token bucket: refilled over time up to one second's rate.
    tokens: f64,
    filled: Instant,
    running: u32,
}

/// Limits of each caller.
pub struct Limiter {
    rate: Option<u32>,
    concurrent: Option<u32>,
    buckets: Arc<Mutex<HashMap<Caller, Bucket>>>,
}

impl Limiter {
    /// Maximum requests per second and concurrent requests; `None`: no limit.
    pub fn new(rate: Option<u32>, concurrent: Option<u32>) -> Self {
        Self { rate, concurrent, buckets: Arc::default() }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// The time after which to retry.
    pub fn enter(&self, caller: Caller, now: Instant) -> Result<Option<Ticket>, Duration> {
        if self.rate.is_none() && self.concurrent.is_none() {
            return Ok(None);
        }
        let most = f64::from(self.rate.unwrap_or(1));
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= REMEMBERED && !buckets.contains_key(&caller) {
            buckets.retain(|_, b| b.running > 0 || now.duration_since(b.filled) < Duration::from_secs(1));
        }
        let bucket = buckets.entry(caller.clone()).or_insert(Bucket { tokens: most, filled: now, running: 0 });
        if self.concurrent.is_some_and(|most| bucket.running >= most) {
            return Err(Duration::from_secs(1));
        }
        if self.rate.is_some() {
            let grown = now.duration_since(bucket.filled).as_secs_f64() * most;
            (bucket.tokens, bucket.filled) = ((bucket.tokens + grown).min(most), now);
            if bucket.tokens < 1.0 {
                return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / most));
            }
            bucket.tokens -= 1.0;
        }
        bucket.running += 1;
        Ok(Some(Ticket { buckets: Arc::clone(&self.buckets), caller }))
    }
}

/// A running request.
pub struct Ticket {
    buckets: Arc<Mutex<HashMap<Caller, Bucket>>>,
    caller: Caller,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(bucket) = lock(&self.buckets).get_mut(&self.caller) {
            bucket.running -= 1;
        }
    }
}

fn lock(buckets: &Mutex<HashMap<Caller, Bucket>>) -> MutexGuard<'_, HashMap<Caller, Bucket>> {
    buckets.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody(last: u8) -> Caller {
        Caller::at(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn a_second_s_worth_goes_at_once_and_then_as_the_bucket_fills() {
        let limiter = Limiter::new(Some(4), None);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for _ in 0..4 {
            assert!(limiter.enter(somebody(1), at(0)).is_ok());
        }
        assert_eq!(limiter.enter(somebody(1), at(0)).err(), Some(Duration::from_millis(250)));
        assert!(limiter.enter(somebody(2), at(0)).is_ok(), "another caller has a bucket of its own");
        assert!(limiter.enter(somebody(1), at(250)).is_ok());
        assert!(limiter.enter(somebody(1), at(260)).is_err());
    }

    #[test]
    fn what_runs_is_counted_until_it_ends() {
        let limiter = Limiter::new(None, Some(2));
        let enter = || limiter.enter(somebody(1), Instant::now());
        let (first, _second) = (enter().unwrap(), enter().unwrap());
        assert!(enter().is_err());
        drop(first);
        assert!(enter().is_ok());
    }

    #[test]
    fn those_who_went_quiet_are_forgotten() {
        let limiter = Limiter::new(Some(1), None);
        let start = Instant::now();
        for n in 0..REMEMBERED as u32 {
            drop(limiter.enter(Caller::Address(IpAddr::from(n.to_be_bytes())), start));
        }
        drop(limiter.enter(Caller::Key("k".to_owned()), start + Duration::from_secs(2)));
        assert_eq!(lock(&limiter.buckets).len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller() {
        let at = |text: &str| Caller::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), somebody(1));
    }
}
