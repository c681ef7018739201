//! A session whose queries run on a Ballista cluster.
//!
//! Input: a session's settings and the address of a scheduler. Output: a session of the same type as a local one. What it
//! plans goes to the scheduler as it comes out of the optimizer, and rows come back from the executors.

use std::sync::Arc;

use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::Address;
use super::plan::Planner;

/// Bytes of a message: a plan names every file of the store, some 200 bytes each.
pub(super) const MESSAGE: u32 = 256 << 20;
/// Parts that the rows of a query are dealt into. More than two machines have cores for, so that a third finds work; few
/// enough that small queries don't drown in tasks.
const PARTITIONS: usize = 16;

pub fn session(config: SessionConfig, runtime: Arc<RuntimeEnv>, address: &Address) -> Result<SessionContext> {
    let config = config
        .upgrade_for_ballista()
        .with_target_partitions(PARTITIONS)
        // With it Ballista 55 writes files whose rows are out of order, whatever the query says.
        .with_ballista_adaptive_query_planner(false)
        .with_ballista_grpc_client_max_message_size(MESSAGE as usize);
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .build()
        .upgrade_for_ballista(format!("http://{}:{}", address.host, address.port))?;
    let planner = Planner::new(Arc::clone(state.query_planner()), address.clone());
    let state = SessionStateBuilder::new_from_existing(state).with_query_planner(Arc::new(planner)).build();
    Ok(SessionContext::new_with_state(state))
}
