//! Progress of this process in the topic of its embedded broker, in offsets of the broker.
//!
//! An embedded broker assigns offsets from 0, and the store continues at the end of its log. While no other process stores records,
//! the difference is constant. Otherwise it changes, and this progress tells which records of the broker are stored, so that no
//! record is stored twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

#[derive(Default)]
pub(super) struct EmbeddedOffsets(Mutex<BTreeMap<i32, Offsets>>);

#[derive(Default, Clone, Copy)]
struct Offsets {
    /// Offset after the last record that was read.
    read: i64,
    /// Offset after the last record that is stored.
    stored: i64,
}

impl EmbeddedOffsets {
    fn change<T>(&self, partition: i32, change: impl FnOnce(&mut Offsets) -> T) -> T {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(partition).or_default())
    }

    /// The first offset of the broker that is not stored.
    pub(super) fn stored(&self, partition: i32) -> i64 {
        self.change(partition, |offsets| offsets.stored)
    }

    /// Records before this offset of the broker are stored.
    pub(super) fn set_stored(&self, partition: i32, next: i64) {
        self.change(partition, |offsets| offsets.stored = next);
    }

    /// Notes that the record at this offset of the broker was read; returns whether it is the first time.
    pub(super) fn is_first_read(&self, partition: i32, offset: i64) -> bool {
        self.change(partition, |offsets| {
            let first = offset >= offsets.read;
            offsets.read = offsets.read.max(offset + 1);
            first
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_read_again_is_told_from_a_new_one() {
        let offsets = EmbeddedOffsets::default();
        assert!(offsets.is_first_read(0, 0) && offsets.is_first_read(0, 1) && offsets.is_first_read(1, 0));
        assert!(!offsets.is_first_read(0, 1));
        offsets.set_stored(0, 1);
        assert_eq!((offsets.stored(0), offsets.stored(1)), (1, 0));
    }
}
