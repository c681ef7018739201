//! `tercile verify`: verifies a model against its receipt by training again.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Done, thousands, within};
use crate::config::{EngineArgs, SqlArgs, StoreArgs, seconds};
use crate::engine::cluster::Engine;
use crate::model::model_ref;
use crate::train::{Options, verify};

/// Train a model again from its receipt, and compare bit for bit
///
/// Reads the records up to the offsets in the receipt, holds the SQL files and the rows against their hashes, trains, and
/// compares centroids, sizes, inertia and all else that follows from them. Equal is exit 0; else one line says what differs.
/// On a cluster, or for a model that one trained, numbers are equal to nine digits: verify it with that --engine.
/// A model of another training method (`method` in its receipt) can't be compared: its rows are checked, and the exit is 1.
#[derive(Args)]
pub struct Verify {
    /// A model file, a segmentation, one of its slices, or a version: price_rating, price_rating@2, price_rating@2@5
    #[arg(value_name = "MODEL")]
    model: String,
    /// Seconds that it may take
    #[arg(long, env = "TERCILE_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

impl Verify {
    pub async fn run(self) -> anyhow::Result<Done> {
        let files = self.sql.load()?;
        let store = self.store.look()?;
        let model = model_ref::find_or_read(&store, &self.model).map_err(anyhow::Error::msg)?;
        let name = format!("{}@{}@{}", model.segmentation, model.slice, model.version);
        let (rows, clusters, inertia) = (model.rows, model.clusters.len(), model.inertia);
        let to = if self.engine.engine == Engine::Local { "to the bit" } else { "to nine digits" };
        let options = Options { engine: self.engine.engine, ..Options::default() };
        let verifying = async { Ok(verify::verify(&store, &files, model, &options).await?) };
        let verified = within(self.timeout, "--timeout", "the verification", verifying).await;
        verified.with_context(|| format!("cannot verify {name}"))?;
        let line = format!(
            "{name} is what its receipt says, {to}: {} rows, {clusters} clusters, inertia {inertia}\n",
            thousands(rows)
        );
        std::io::stdout().write_all(line.as_bytes())?;
        Ok(Done::Well)
    }
}
