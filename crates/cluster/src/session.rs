//! A session whose queries run on a Ballista cluster.
//!
//! Input: a session's settings and the address of a scheduler. Output: a session of the same type as a local one. What it
//! plans goes to the scheduler as it comes out of the optimizer, and rows come back from the executors.

use std::sync::Arc;

use ballista_core::config::BALLISTA_SHUFFLE_COMPRESSION_CODEC;
use ballista_core::extension::{SessionConfigExt, SessionStateExt};
use datafusion::error::Result;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::{SessionConfig, SessionContext};

use super::Address;
use super::plan::{LocalFunctions, Planner};

/// Bytes of a message: a plan names every file of the store, some 200 bytes each.
pub(super) const MESSAGE: u32 = 256 << 20;
/// Compression of data that is exchanged between stages. Columns of numbers compress badly, and networks within a cluster are
/// usually faster than the compression.
const SHUFFLED: (&str, &str) = (BALLISTA_SHUFFLE_COMPRESSION_CODEC, "none");

/// A session whose queries run on the cluster of this scheduler.
///
/// # Errors
/// If Ballista rejects the configuration.
pub fn session(
    config: SessionConfig,
    runtime: Arc<RuntimeEnv>,
    address: &Address,
    local: LocalFunctions,
) -> Result<SessionContext> {
    let config = config
        .upgrade_for_ballista()
        .with_target_partitions(address.parts.get())
        .set_str(SHUFFLED.0, SHUFFLED.1)
        // With it Ballista 55 writes files whose rows are out of order, whatever the query says.
        .with_ballista_adaptive_query_planner(false)
        .with_ballista_grpc_client_max_message_size(MESSAGE as usize);
    let state = SessionStateBuilder::new()
        .with_default_features()
        .with_config(config)
        .with_runtime_env(runtime)
        .build()
        .upgrade_for_ballista(format!("http://{}:{}", address.host, address.port))?;
    let planner = Planner::new(Arc::clone(state.query_planner()), address.clone(), local);
    let state = SessionStateBuilder::new_from_existing(state).with_query_planner(Arc::new(planner)).build();
    Ok(SessionContext::new_with_state(state))
}
