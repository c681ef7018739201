//! `tercile compact`: compacts the files of a store and applies retention once.

use clap::Args;
use tercile_store::Rolled;

use super::{Done, count};
use crate::config::{RollArgs, StoreArgs};

/// Compact small files into larger ones, and expire old records
///
/// ingest and up compact while they run; this command does it at once, also for few files. Without --keep-for and --keep-bytes
/// records are kept forever. Files that were replaced or expired are deleted after a day (--grace); `tercile files` lists the live
/// files. Writers and readers can continue meanwhile.
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
