//! The processes of a cluster: `tercile scheduler` and `tercile executor`.

mod executor;
mod scheduler;

use clap::Subcommand;

use super::{Done, Stop};

/// Commands of a build with the feature `distributed`.
#[derive(Subcommand)]
pub enum Cluster {
    Scheduler(scheduler::Scheduler),
    Executor(executor::Executor),
}

impl Cluster {
    pub async fn run(self, stop: Stop) -> anyhow::Result<Done> {
        match self {
            Self::Scheduler(scheduler) => scheduler.run(stop).await,
            // Performs its own graceful shutdown and returns its work.
            Self::Executor(executor) => executor.run(stop).await,
        }
    }
}
