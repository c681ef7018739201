//! `tercile compact`: compacts the files of a store and applies retention once.

use clap::Args;
use tercile_store::Rolled;

use super::{Done, count};
use crate::config::{RollArgs, StoreArgs};

/// Roll runs of small files into larger ones, and let old records expire
///
/// ingest and up do so by themselves while they run; this does it at once, however short a run is. Records are kept for ever, but
/// for what --keep-for and --keep-bytes say. Small files stay for a day after a larger one replaced them, and so do files whose
/// records expired (--grace): `tercile files` lists what counts. Writers and readers may go on.
#[derive(Args)]
pub struct Compact {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    roll: RollArgs,
}

impl Compact {
    pub fn run(self) -> anyhow::Result<Done> {
        let store = self.store.look()?;
        let mut sum = Rolled::default();
        for log in store.logs()? {
            let Rolled { small, large, expired, deleted } = log.compact(&self.roll.policy(true))?;
            sum.small += small;
            sum.large += large;
            sum.expired += expired;
            sum.deleted += deleted;
        }
        tracing::info!(
            small = sum.small,
            large = sum.large,
            expired = sum.expired,
            deleted = sum.deleted,
            "rolled {} into {}, let {} expire, deleted {}",
            count(sum.small, "small file"),
            count(sum.large, "larger one"),
            count(sum.expired, "record"),
            count(sum.deleted, "file")
        );
        Ok(Done::Well)
    }
}
