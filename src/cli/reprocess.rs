//! `tercile reprocess`: parses unreadable records again.

use std::time::Duration;

use clap::Args;
use tercile_store::{self as store, Log, Reprocessed};

use super::{Done, count, thousands};
use crate::config::StoreArgs;

/// Parse the unreadable records (dead letters) again
///
/// The store keeps them with their bytes and the reason (columns _raw and _error). After an upgrade whose parser accepts more,
/// this command fills in their fields. No record is lost or moved, and ingest can run meanwhile.
#[derive(Args)]
pub struct Reprocess {
    #[command(flatten)]
    store: StoreArgs,
}

/// Waits until no other process replaces files of this partition, then parses its unreadable records again.
fn reprocess(log: &Log) -> Result<Reprocessed, store::Error> {
    for _ in 0..600 {
        if let Some(done) = log.reprocess()? {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(store::Error::Rolling)
}

impl Reprocess {
    pub fn run(self) -> anyhow::Result<Done> {
        let mut sum = Reprocessed::default();
        for log in self.store.look()?.logs()? {
            let Reprocessed { records, files, unreadable, waiting } = reprocess(&log)?;
            sum.records += records;
            sum.files += files;
            sum.unreadable += unreadable;
            sum.waiting += waiting;
        }
        tracing::info!(
            records = sum.records,
            files = sum.files,
            unreadable = sum.unreadable,
            waiting = sum.waiting,
            "read {} that could not be read before, in {}; {} still can't be",
            count(sum.records, "record"),
            count(sum.files, "new file"),
            thousands(sum.unreadable)
        );
        if sum.waiting > 0 {
            tracing::warn!(
                "{} could be read, but stand in a large file alone in its partition; run this again once more records came",
                count(sum.waiting, "record")
            );
        }
        Ok(Done::Well)
    }
}
