//! When files are merged and deleted.

use std::time::Duration;

/// When to merge, and when to delete.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// Target size of a merged file in bytes on disk.
    pub target: u64,
    /// Grace period for replaced and expired files.
    pub grace: Duration,
    /// Merge the newest run too, regardless of its size.
    pub eager: bool,
    /// Retention policy.
    pub keep: RetentionPolicy,
}

/// Retention policy of a partition. Only whole files expire, so slightly more is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// Keep records up to this age, and those whose age is unknown.
    pub age: Option<Duration>,
    /// Keep the newest files up to this sum of bytes.
    pub bytes: Option<u64>,
}

impl RetentionPolicy {
    /// True if all records are kept.
    pub(super) fn all(&self) -> bool {
        *self == Self::default()
    }
}
