//! Options of a training, and its limits of memory.

use std::sync::Arc;

use tercile_kmeans::Step;
use tercile_kmeans::column_buffer::{self, Space};
use tercile_store::Store;

use super::Refusal;
use super::event::Emit;
use crate::engine::{self, cluster::Engine};
use crate::model::{Promote, SolverKind};

/// Minimum memory of a training in bytes.
const LEAST_MEMORY: usize = 256_000_000;
/// The part of it for the program and for reading the store's files, in bytes.
const READING: usize = 160 << 20;
/// Default of [`Options::keep_members`].
pub const KEEP_MEMBERS: usize = 3;
/// Upper bound of a sort's memory per record in bytes.
const SORTED: u64 = 128;

/// Progress of a training.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// Number of rows that the SQL has returned so far.
    Rows {
        segmentation: &'a str,
        rows: usize,
    },
    Pass {
        segmentation: &'a str,
        slice: u8,
        step: Step,
    },
}

/// Options of a training. Except for the solver, they do not influence the model.
#[derive(Clone)]
pub struct Options {
    /// Memory limit in bytes. Larger data is trained out of core, in files.
    pub memory: usize,
    /// The engine that runs the SQL and the passes over its rows.
    pub engine: Engine,
    /// Versions of each slice that keep their members, beside those that serve.
    pub keep_members: usize,
    /// Implementation of KMeans, which does influence the model. On a cluster it is always the built-in one.
    pub solver: SolverKind,
    /// Which new models serve.
    pub promote: Promote,
    /// Callback for progress, in this process only.
    pub tell: Arc<dyn Fn(Progress<'_>) + Send + Sync>,
    /// Gets the events of the training.
    pub emit: Emit,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: column_buffer::half_of_memory(),
            engine: Engine::Local,
            keep_members: KEEP_MEMBERS,
            solver: SolverKind::default(),
            promote: Promote::default(),
            tell: Arc::new(|_| {}),
            emit: Emit::default(),
        }
    }
}

impl Options {
    /// A third of the remaining memory is for SQL sorts; their merges and the batches in transit need memory too.
    pub(super) fn share(&self) -> usize {
        self.memory.max(LEAST_MEMORY).saturating_sub(READING) / 3
    }

    /// Checks that the solver can hold the rows.
    pub(super) fn check_solver(&self, rows: usize, features: usize) -> Result<(), Refusal> {
        let (needed, memory) = (rows.saturating_mul(features) * size_of::<f64>(), self.share());
        if self.solver == SolverKind::Linfa && needed > memory {
            return Err(Refusal::LinfaMemory { rows, needed, memory });
        }
        Ok(())
    }

    /// Limits for the SQL over this number of records.
    pub(super) fn limits(&self, records: u64) -> engine::Limits {
        // Parallel sorts that spill take memory from each other's merges and then fail.
        let serial = records.saturating_mul(SORTED) > self.share() as u64;
        engine::Limits { memory: Some(self.share()), serial, engine: self.engine.clone(), ..Default::default() }
    }

    /// The memory and temporary directory for the rows that the SQL returns.
    pub(super) fn space(&self, store: &Store) -> Space {
        Space::new(self.share(), store.tmp())
    }
}
