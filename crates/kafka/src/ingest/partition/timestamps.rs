//! Warnings about times of records that are missing, unreadable or probably in another unit.

use std::sync::atomic::Ordering;

use tercile_store as store;
use tercile_store::event_time::NoEventTime;
use tercile_store::times::likely_unit;

use super::super::Shared;
use super::PartitionWorker;
use crate::broker::place;

impl PartitionWorker<'_> {
    /// Counts a record that keeps Kafka's timestamp because it has no event time, and warns of the first one.
    pub(super) fn fall_back(&self, shared: &Shared<'_>, offset: i64, field: &str, why: &NoEventTime) {
        shared.control.progress.without_event_time.fetch_add(1, Ordering::Relaxed);
        let (cause, why) = match why {
            NoEventTime::Missing => ("no event time", "no value".to_owned()),
            NoEventTime::Unreadable(text) if text.trim().parse::<f64>().is_ok_and(f64::is_finite) => {
                let unit =
                    format!("; for a number name its unit in 00_records.sql: -- timestamp: {field} ms, or s, us, ns");
                ("a number as event time", format!("the number {text}{unit}"))
            }
            NoEventTime::Unreadable(text) => {
                ("unreadable event time", format!("{text:?}, which to_datetime does not read"))
            }
        };
        if shared.told.is_new(cause) {
            let partition = self.start.partition;
            let place = place(&shared.job.topic, partition);
            tracing::warn!(
                partition,
                offset,
                "{place}, offset {offset}: the field {field}, the timestamp by 00_records.sql, has {why}; this \
                 record and others like it keep Kafka's timestamp, and are counted"
            );
        }
    }

    /// Warns of the first timestamp that is probably in another unit. It is stored unchanged.
    pub(super) fn check_timestamp(&self, shared: &Shared<'_>, offset: i64, timestamp: Option<i64>) {
        let Some((millis, unit)) = timestamp.and_then(|millis| Some((millis, likely_unit(millis)?))) else { return };
        if self.state.odd_timestamp.swap(true, Ordering::Relaxed) || !shared.told.is_new(unit.name()) {
            return;
        }
        let partition = self.start.partition;
        tracing::warn!(
            partition,
            offset,
            "{}, offset {offset}: {}; it is stored as it came, slices follow it, and --keep-for never lets such \
             records expire: correct the producer",
            place(&shared.job.topic, partition),
            store::implausible(millis)
        );
    }
}
