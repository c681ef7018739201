//! The context of a producer: its log lines and errors, and a report for each record.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;

use super::context::{Context, Failures};

/// Takes delivery reports.
pub(super) trait Reports: Default + Send {
    /// Takes the report of a record, by the number that it was sent with.
    fn take(&mut self, result: &DeliveryResult<'_>, number: usize);
}

/// The context of a producer whose reports go to `R`.
pub(super) struct Deliveries<R> {
    reports: Mutex<R>,
    context: Context,
}

impl<R: Reports> Deliveries<R> {
    pub fn new(failures: &Failures) -> Self {
        Self { reports: Mutex::default(), context: Context::new(failures) }
    }

    /// The reports so far.
    pub fn reports(&self) -> MutexGuard<'_, R> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Send> ClientContext for Deliveries<R> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl<R: Reports> ProducerContext for Deliveries<R> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        self.reports().take(result, number);
    }
}
