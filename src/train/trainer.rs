//! The trainings of a server: in child processes, with subscribers.

use std::path::PathBuf;
use std::time::Duration;

use tercile_store::Store;

use super::event::Subscribers;
use super::{KEEP_MEMBERS, Training, worker};
use crate::model::{Promote, SolverKind};

/// Starts trainings of one store and one directory of SQL files.
pub struct Trainer {
    store: Store,
    sql: Option<PathBuf>,
    pub options: TrainerOptions,
    pub subscribers: Subscribers,
}

/// Options of the trainings of a server.
#[derive(Debug, Clone)]
pub struct TrainerOptions {
    /// Time limit of a training; `None` for no limit.
    pub timeout: Option<Duration>,
    /// [`super::Options::keep_members`].
    pub keep_members: usize,
    pub solver: SolverKind,
    /// [`super::Options::promote`].
    pub promote: Promote,
}

impl Default for TrainerOptions {
    fn default() -> Self {
        Self { timeout: None, keep_members: KEEP_MEMBERS, solver: SolverKind::default(), promote: Promote::default() }
    }
}

impl Trainer {
    pub fn new(store: &Store, sql: Option<PathBuf>) -> Self {
        Self { store: store.clone(), sql, options: TrainerOptions::default(), subscribers: Subscribers::default() }
    }

    /// Trains in a child process: a view that computes forever must not block serving or shutdown. `job` is the number of the
    /// request that asked for it, if one did.
    ///
    /// # Errors
    /// As [`worker::train`].
    pub async fn train(&self, job: Option<u64>) -> anyhow::Result<Training> {
        let (store, sql, options) = (&self.store, self.sql.as_deref(), &self.options);
        let train = |emit| async move {
            worker::train(store, sql, options, emit).await.map_err(|error| match error {
                worker::Error::Timeout(timeout) => timeout.into(),
                error => error.into(),
            })
        };
        self.subscribers.follow(job, train).await
    }
}
