//! Adapts the crate `tercile-cluster`: which functions and files of this program its processes know, and errors of this crate.

use std::path::Path;
use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{FunctionRegistry, SendableRecordBatchStream};
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
pub use tercile_cluster::{Address, serve, solver};
use tercile_cluster::{Environment, LocalFunctions};
use url::Url;

use super::super::user_files::listing_url;
use super::super::{
    Error, add_file, checked_arithmetic, checked_sum, conversions, explain, records, segment, sized_store, stream,
};

/// Whether this build can use a cluster.
pub const ENABLED: bool = true;

/// The functions of `segment.rs`.
const MODELS: LocalFunctions = LocalFunctions {
    names: &segment::NAMES,
    reason: "answers from models that executors don't have; use --engine local, or the SQL that tercile model show NAME --format sql \
             prints",
};

/// A session whose queries run on the cluster of this scheduler.
pub fn session(config: SessionConfig, runtime: Arc<RuntimeEnv>, address: &Address) -> Result<SessionContext> {
    tercile_cluster::session(config, runtime, address, MODELS)
}

/// The functions and files that a scheduler and executors know.
pub fn environment() -> Environment {
    let own = std::iter::once(Arc::new(records::function()));
    let functions = own.chain(conversions::functions()).chain(checked_arithmetic::functions()).collect();
    Environment { client: Arc::new(client), functions, aggregates: vec![checked_sum::sum()], register }
}

fn register(registry: &mut dyn FunctionRegistry) -> Result<()> {
    registry.register_udf(Arc::new(records::function()))?;
    registry.register_udaf(checked_sum::sum())?;
    checked_arithmetic::functions().try_for_each(|function| registry.register_udf(function).map(drop))?;
    conversions::register_with(registry)
}

fn client(url: &Url) -> Result<Arc<dyn ObjectStore>> {
    let client: Arc<dyn ObjectStore> = match url.scheme() {
        "file" => Arc::new(LocalFileSystem::new()),
        _ => tercile_store::client(url).map_err(|why| DataFusionError::Execution(format!("{url}: {why}")))?,
    };
    Ok(sized_store::of_plans::named(client))
}

/// Writes the rows of an internal statement to a Parquet file, in order, on the engine that runs the queries. Returns
/// the number of rows. A repeated call writes an identical file.
pub async fn write(ctx: &SessionContext, sql: &str, path: &Path) -> std::result::Result<u64, Error> {
    let url = listing_url(path).map_err(|why| Error::Table { path: path.to_owned(), why })?;
    tercile_cluster::write(ctx, sql, url.as_str()).await.map_err(|e| Error::Query(explain(&e)))
}

/// Reads a Parquet file in order, in this process.
pub async fn read_in_order(ctx: &SessionContext, path: &Path) -> std::result::Result<SendableRecordBatchStream, Error> {
    let config = SessionConfig::new().with_target_partitions(1);
    let here = SessionContext::new_with_config_rt(config, ctx.runtime_env());
    add_file(&here, "rows", path).await?;
    stream(&here, "SELECT * FROM rows").await
}
