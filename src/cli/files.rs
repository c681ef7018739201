//! `tercile files`: prints the paths of a store's live files.

use std::io::{self, Write as _};

use clap::Args;

use super::Done;
use crate::config::StoreArgs;

/// List the store's files that count, one a line
///
/// For readers that take a list of files: those that a larger file replaced, and those whose records expired, are left
/// out, so that each record is counted once.
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
