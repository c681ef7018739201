//! Sessions: limits of memory and capabilities, tables, functions and rules.

use std::sync::Arc;

use datafusion::config::ConfigNonZeroUsize;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use tercile_store::Snapshot;

use super::cluster::{self, Engine};
use super::{
    Error, Limits, add_records, checked_arithmetic, checked_sum, conversions, distinct_count, exact_aggregates,
    explain, guards, members, reference, segment, spill, tombstones,
};
use crate::sql::{Files, RECURSION};

/// Maximum number of files whose Parquet footers are read before a query runs. Footers improve the plan, but each
/// must be read. With more files, pruning uses only the snapshot.
pub(super) const FOOTERS: usize = 1_000;

/// A session without views.
pub(super) fn session(snapshot: &Snapshot, files: &Files, limits: Limits) -> Result<SessionContext, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    let mut config = SessionConfig::new()
        .with_information_schema(!limits.confined)
        .with_collect_statistics(snapshot.files.len() <= FOOTERS)
        .with_extension(Arc::new(limits.engine.clone()))
        .with_extension(Arc::clone(&limits.damage));
    if limits.confined || limits.serial {
        config = config.with_target_partitions(1);
    }
    let parser = &mut config.options_mut().sql_parser;
    parser.collect_spans = true;
    parser.recursion_limit = ConfigNonZeroUsize::try_new(RECURSION).map_err(query)?;
    let mut runtime = RuntimeEnvBuilder::new();
    if let Some(bytes) = limits.memory {
        // The memory that each sort reserves for its merge must leave room for other operators.
        let reserved = &mut config.options_mut().execution.sort_spill_reservation_bytes;
        *reserved = (*reserved).min(bytes / 6);
        runtime = match limits.confined {
            // Without spilling, a fair share would only waste memory.
            true => runtime.with_memory_pool(Arc::new(GreedyMemoryPool::new(bytes))),
            false => runtime.with_memory_pool(Arc::new(FairSpillPool::new(bytes))),
        };
    }
    if limits.confined {
        let no_disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        runtime = runtime.with_disk_manager_builder(no_disk);
    }
    let runtime = runtime.build_arc().map_err(query)?;
    spill::delete_at_exit(&runtime);
    let ctx = match &limits.engine {
        Engine::Local => SessionContext::new_with_config_rt(config, runtime),
        Engine::Cluster(address) => cluster::session(config, runtime, address).map_err(query)?,
    };
    add_records(&ctx, snapshot, &files.fields, limits.up_to.as_ref())?;
    reference::register(&ctx, files, &limits.engine)?;
    conversions::register(&ctx).map_err(query)?;
    checked_arithmetic::register(&ctx);
    checked_sum::register(&ctx);
    guards::register(&ctx);
    if limits.up_to.is_some() {
        exact_aggregates::register(&ctx);
        distinct_count::register(&ctx);
    }
    for function in segment::functions(limits.models.as_ref(), !limits.confined) {
        ctx.register_udf(function);
    }
    tombstones::functions().into_iter().for_each(|function| ctx.register_udf(function));
    let members = members::MembersFunction::of(limits.models.as_ref(), !limits.confined);
    ctx.register_udtf(members::NAME, Arc::new(members));
    Ok(ctx)
}
