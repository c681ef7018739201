//! Retries of what the disk refuses.

use std::thread;
use std::time::Duration;

use tercile_store as store;

use super::super::{Error, Shared};
use super::PartitionWorker;

impl PartitionWorker<'_> {
    /// Retries an operation that the disk refuses, until it succeeds or the ingest stops: meanwhile the records stay in memory
    /// and on the broker. `None`: the batch was dropped meanwhile.
    pub(super) fn until_it_works<T>(
        &self,
        shared: &Shared<'_>,
        attempt: impl Fn() -> Result<T, store::Error>,
    ) -> Result<Option<T>, Error> {
        let mut told = String::new();
        let done = loop {
            match attempt() {
                Ok(done) => break done,
                Err(_) if self.dropped(shared) => return Ok(None),
                Err(error) if error.may_pass() && !shared.control.stopping() => {
                    // The reason may change between retries.
                    let why = error.to_string();
                    if told != why {
                        tracing::warn!("{why}; trying again until it works");
                        told = why;
                    }
                    thread::sleep(Duration::from_secs(1));
                }
                Err(error) => return Err(error.into()),
            }
        };
        if !told.is_empty() {
            tracing::info!("the store takes records again");
        }
        Ok(Some(done))
    }
}
