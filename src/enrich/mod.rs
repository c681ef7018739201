//! Enrichment: records of a topic to another topic, each with its segments.
//!
//! Input: a topic of raw records, the SQL files, and the models in service. Output: the same records with a field `segments`
//! ([`record`]), in transactions that contain the positions of the input ([`worker`]). The models change between transactions only
//! ([`models`]).

pub mod control;
pub mod metrics;
pub mod models;
mod positions;
pub mod preview;
mod reader;
pub mod record;
pub mod scorers;
pub mod transaction;
pub mod worker;

use std::ffi::CString;

use tercile_kafka::broker::{Bound, Cluster, Group, Topic};

pub use control::Control;
use models::ModelSource;
use record::Field;

/// Header with a model that has scored the record, as in `price_rating@3@7`; one for each model.
pub const MODEL_HEADER: &str = "tercile-model";
/// Header with the place of the record that was enriched: topic, partition and offset, separated by `/`.
pub const SOURCE_HEADER: &str = "tercile-source";
/// Header with the reason why a record has no segments.
pub const REASON_HEADER: &str = "tercile-reason";

/// A topic that records are sent to.
pub struct Target {
    pub topic: Topic,
    pub name: CString,
    /// Maximum bytes of a batch of the protocol, if known.
    pub limit: Option<usize>,
}

/// The settings of an enrichment: its topics, models and delivery guarantee.
pub struct Job {
    pub cluster: Cluster,
    pub input: Topic,
    pub output: Target,
    /// Where records go that cannot be enriched; the output if `None`.
    pub dead_letters: Option<Target>,
    pub group: Group,
    /// Where reading begins in partitions without a position of the group.
    pub from: Bound,
    pub until_end: bool,
    /// Continue after records that were deleted before they could be read.
    pub accept_gap: bool,
    /// Whether batches are transactions.
    pub exactly_once: bool,
    /// Enrich records although models are missing.
    pub no_wait: bool,
    pub field: Field,
    pub models: ModelSource,
}

/// `1 record`, `2 records`.
fn records(n: u64) -> String {
    if n == 1 { "1 record".to_owned() } else { format!("{n} records") }
}
