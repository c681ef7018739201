//! `tercile compact`

use clap::Args;

use super::{Done, count};
use crate::config::{RollArgs, StoreArgs};
use crate::store::Rolled;

/// Roll runs of small files into larger ones
///
/// ingest and up do so by themselves while they run; this does it at once, however short a run is. Small files stay for a
/// day after a larger one replaced them (--grace): `tercile files` lists what counts. Writers and readers may go on.
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
            let Rolled { small, large, deleted } = log.compact(&self.roll.policy(true))?;
            sum = Rolled { small: sum.small + small, large: sum.large + large, deleted: sum.deleted + deleted };
        }
        tracing::info!(
            small = sum.small,
            large = sum.large,
            deleted = sum.deleted,
            "rolled {} into {}, deleted {}",
            count(sum.small, "small file"),
            count(sum.large, "larger one"),
            count(sum.deleted, "replaced file")
        );
        Ok(Done::Well)
    }
}
