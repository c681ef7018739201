//! `tercile files`: prints the paths of a store's live files.

use std::io::{self, Write as _};

use clap::Args;

use super::Done;
use crate::config::StoreArgs;

/// List the live files of the store, one per line
///
/// For programs that read a list of Parquet files: files that were replaced by a larger one or have expired are left out, so
/// that each record is contained once.
#[derive(Args)]
pub struct Files {
    #[command(flatten)]
    store: StoreArgs,
}

impl Files {
    pub fn run(self) -> anyhow::Result<Done> {
        let snapshot = self.store.look()?.snapshot()?;
        let mut out = io::BufWriter::new(io::stdout());
        for file in snapshot.files {
            writeln!(out, "{}", file.path.display())?;
        }
        out.flush()?;
        Ok(Done::Well)
    }
}
