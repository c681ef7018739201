//! Trainings: which models they make and which of these serve, and the comparison of later records with them.

use std::time::Duration;

use clap::Args;

use super::{seconds, seconds_or_none};
use crate::api::drift_monitor;
use crate::model::{Promote, SolverKind};
use crate::train::{self, TrainerOptions};

/// Flags for the comparison of arriving records with the models of a server.
#[derive(Debug, Clone, Args)]
pub struct DriftArgs {
    /// Interval in seconds of comparing records that arrive with the models that serve slice 3, for metrics and the log; 0: never
    /// [default: 60]
    #[arg(long, env = "TERCILE_DRIFT_INTERVAL", value_name = "SECONDS", value_parser = seconds_or_none)]
    drift_interval: Option<Duration>,
}

impl DriftArgs {
    /// The interval; `None`: never.
    pub fn interval(&self) -> Option<Duration> {
        Some(self.drift_interval.unwrap_or(drift_monitor::INTERVAL)).filter(|interval| !interval.is_zero())
    }
}

/// Flags for the trainings of a server.
#[derive(Debug, Clone, Args)]
pub struct TrainingArgs {
    /// Timeout of a training in seconds; after it the older models continue to serve [default: none]
    #[arg(long, env = "TERCILE_TRAIN_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    train_timeout: Option<Duration>,
    #[command(flatten)]
    members: MembersArgs,
    #[command(flatten)]
    solver: SolverArgs,
    #[command(flatten)]
    promotion: PromoteArgs,
}

/// Which new models serve.
#[derive(Debug, Clone, Args)]
pub struct PromoteArgs {
    /// Which new models serve: auto (all), guarded (those that keep the guard rules of their SQL file), or manual (none until tercile
    /// models promote)
    #[arg(long, env = "TERCILE_PROMOTE", default_value = "auto")]
    pub promote: Promote,
}

/// Which implementation of KMeans runs.
#[derive(Debug, Clone, Args)]
pub struct SolverArgs {
    /// Implementation: tercile, or linfa-clustering as a reference
    #[arg(long, env = "TERCILE_SOLVER", default_value = "tercile")]
    pub solver: SolverKind,
}

impl TrainingArgs {
    pub fn options(&self) -> TrainerOptions {
        TrainerOptions {
            timeout: self.train_timeout,
            keep_members: self.members.keep_members,
            solver: self.solver.solver,
            promote: self.promotion.promote,
        }
    }
}

/// Which members of segmentations of entities are kept.
#[derive(Debug, Clone, Args)]
pub struct MembersArgs {
    /// Versions of each slice of a segmentation of entities that keep their members, beside those that serve
    #[arg(long, env = "TERCILE_KEEP_MEMBERS", value_name = "N", default_value_t = train::KEEP_MEMBERS)]
    pub keep_members: usize,
}
