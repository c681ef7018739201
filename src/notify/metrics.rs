//! Metrics of notifications.

use prometheus::core::Collector;
use prometheus::{IntCounterVec, IntGauge, Opts};

use super::event::Kind;

/// What became of an attempt to send a message.
#[derive(Debug, Clone, Copy)]
pub enum Sending {
    /// The receiver took it.
    Sent,
    /// It is tried again.
    Failed,
    /// It was tried for a day.
    Dropped,
}

/// Counters of the notifications of this process.
#[derive(Debug, Clone)]
pub struct Metrics {
    total: IntCounterVec,
    pending: IntGauge,
}

impl Metrics {
    /// # Errors
    /// If a name is invalid.
    pub fn new() -> Result<Self, prometheus::Error> {
        let total = Opts::new("tercile_notifications_total", "Attempts to send a notification, by what became of them");
        let metrics = Self {
            total: IntCounterVec::new(total, &["event", "result"])?,
            pending: IntGauge::new(
                "tercile_notifications_pending",
                "Notifications that their receivers did not take yet",
            )?,
        };
        // A rate needs the zero before the first one.
        for kind in Kind::ALL {
            for sending in [Sending::Sent, Sending::Failed, Sending::Dropped] {
                metrics.counter(kind.name(), sending);
            }
        }
        Ok(metrics)
    }

    fn counter(&self, event: &str, sending: Sending) -> prometheus::IntCounter {
        let result = match sending {
            Sending::Sent => "sent",
            Sending::Failed => "failed",
            Sending::Dropped => "dropped",
        };
        self.total.with_label_values(&[event, result])
    }

    pub fn count(&self, kind: Kind, sending: Sending) {
        self.counter(kind.name(), sending).inc();
    }

    /// Changes the number of pending messages of one receiver.
    pub fn pending(&self, before: usize, now: usize) {
        self.pending.add(now as i64 - before as i64);
    }

    /// All metrics, for a registry.
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![Box::new(self.total.clone()), Box::new(self.pending.clone())]
    }
}
