//! `tercile verify`: verifies a model against its receipt by training again.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Done, completions, thousands, within};
use crate::config::{EngineArgs, SqlArgs, StoreArgs, seconds};
use crate::engine::cluster::Engine;
use crate::model::model_ref;
use crate::train::{Options, verify};

/// Train a model again from its receipt, and compare bit for bit
///
/// Reads the records up to the offsets in the receipt, compares the hashes of the SQL files and of the rows, trains, and compares
/// centroids, sizes, inertia and the fields derived from them. Exits with 0 if they are equal; otherwise one line names the
/// difference. A model that was trained on a cluster is equal to nine digits and is verified with the same --engine. Of a model of
/// another training method (`method` in its receipt) only the rows are compared, and the exit code is 1.
#[derive(Args)]
pub struct Verify {
    /// A model file, a segmentation, one of its slices, or a version: price_rating, price_rating@2, price_rating@2@5
    #[arg(value_name = "MODEL", add = completions::model())]
    model: String,
    /// Timeout in seconds
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
