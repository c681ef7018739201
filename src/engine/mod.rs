//! Creates every [`SessionContext`]: the store's records, and the SQL files as views on them.
//!
//! Input: a snapshot of the store and the SQL files. Output: a session with the table `records` and all views. Other
//! modules do not depend on how queries are executed.

mod checked_arithmetic;
mod checked_sum;
pub mod cluster;
mod comparisons;
mod compiled_regex;
pub mod conversions;
mod date_planner;
mod distinct_count;
mod editing;
mod entity;
mod exact_aggregates;
mod exact_sum;
pub mod file_table;
mod guards;
#[cfg(test)]
mod inferred_tests;
mod json_values;
mod leading_zeros;
mod lookup;
mod members;
#[cfg(all(test, feature = "object-stores"))]
mod over_objects;
mod pruned_table;
mod records;
mod reference;
mod repeatable;
pub mod row_by_row;
pub mod segment;
mod segmentations;
mod sized_store;
mod slice_cuts;
mod spill;
mod text_hashes;
pub mod text_numbers;
mod time_functions;
mod tombstones;
mod topics;
mod user_files;

use std::path::PathBuf;
use std::sync::Arc;

use cluster::Engine;
use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::TableReference;
use datafusion::config::ConfigNonZeroUsize;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
pub use editing::{add_what_plans, open_what_plans, open_without_views, renew};
pub use segmentations::{Segmentations, Unusable, each_segmentation, segmentations};
pub use sized_store::Damage;
pub use slice_cuts::UpTo;
use tercile_store::record::Fields;
use tercile_store::{Snapshot, Store};
pub use user_files::{add_file, add_local_file, file_url};

use crate::files;
use crate::slices::Cut;
use crate::sql::fault::Fault;
pub use crate::sql::fault::explain;
use crate::sql::{self, Files, RECORDS, RECURSION, View};

/// Maximum number of files whose Parquet footers are read before a query runs. Footers improve the plan, but each
/// must be read. With more files, pruning uses only the snapshot.
const FOOTERS: usize = 1_000;

/// An error of a query.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{file}: {why}")]
    View { file: String, why: String },
    #[error("{0}")]
    Sql(#[source] Fault),
    #[error("{0}")]
    Query(String),
    #[error("cannot read {path}: {why}", path = path.display())]
    Table { path: PathBuf, why: String },
    #[error("cannot read the store's file {path}: {why}", path = path.display())]
    File { path: PathBuf, why: String },
    #[error(transparent)]
    Input(#[from] files::Error),
}

/// Resources and capabilities of a session.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The store whose models the functions of [`segment`] use. A training has none, because a model must not depend
    /// on itself.
    pub models: Option<Store>,
    /// Memory pool of queries in bytes. A query that needs more spills to disk or fails.
    pub memory: Option<usize>,
    /// True to use a single thread.
    pub serial: bool,
    /// True for SQL from untrusted users: only views and harmless functions are available, nothing is spilled, and
    /// one thread is used.
    pub confined: bool,
    /// The engine that runs the queries.
    pub engine: Engine,
    /// The slice whose records are visible, for views of entities: sums are exact then. `None` for all records.
    pub up_to: Option<UpTo>,
    /// Collects the damaged files that the queries come upon.
    pub damage: Arc<Damage>,
}

/// A session on these files of the store.
///
/// # Errors
/// If a view does not plan; the error names the first such view.
pub async fn open(snapshot: &Snapshot, files: &Files) -> Result<SessionContext, Error> {
    open_within(snapshot, files, Limits::default()).await
}

/// The same with limits.
pub async fn open_within(snapshot: &Snapshot, files: &Files, limits: Limits) -> Result<SessionContext, Error> {
    let ctx = session(snapshot, files, limits)?;
    for view in files.views() {
        add_view(&ctx, view).await.map_err(Error::Sql)?;
    }
    Ok(ctx)
}

fn session(snapshot: &Snapshot, files: &Files, limits: Limits) -> Result<SessionContext, Error> {
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

fn add_records(ctx: &SessionContext, snapshot: &Snapshot, fields: &Fields, up_to: Option<&UpTo>) -> Result<(), Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    let mut table = records::table(ctx, snapshot, fields)?;
    if let Some(end) = up_to.and_then(UpTo::end).filter(|end| end.place < snapshot.rows()) {
        table = records::until(ctx, table, end).map_err(query)?;
    }
    ctx.register_table(RECORDS, table).map_err(query)?;
    let (cuts, slice_end) = slice_cuts::functions(snapshot, up_to);
    ctx.register_udtf(slice_cuts::NAME, Arc::new(cuts));
    ctx.register_udf(slice_end);
    ctx.register_udtf(topics::NAME, Arc::new(topics::TopicsFunction::of(snapshot).map_err(query)?));
    Ok(())
}

async fn add_view(ctx: &SessionContext, view: &View) -> Result<(), Fault> {
    let source = view.source();
    let piece = view.piece()?;
    let statement = sql::parse(&source, &piece)?;
    let blame = |e: DataFusionError| source.blame(&piece, &e, &tables(ctx));
    let plan = ctx.state().statement_to_plan(statement).await.map_err(blame)?;
    let frame = ctx.execute_logical_plan(plan).await.map_err(blame)?;
    ctx.register_table(view.name.as_str(), frame.into_view()).map_err(blame)?;
    Ok(())
}

/// Evaluates filters while files are read, so that columns of rows that do not count are not decoded. This pays for filters that
/// leave few rows.
pub fn filter_while_reading(ctx: &SessionContext) {
    ctx.state_ref().write().config_mut().options_mut().execution.parquet.pushdown_filters = true;
}

/// The names of the tables and views of a session.
pub fn tables(ctx: &SessionContext) -> Vec<String> {
    let schemas = ctx.catalog_names().into_iter().filter_map(|catalog| ctx.catalog(&catalog)?.schema("public"));
    let mut names: Vec<String> = schemas.flat_map(|schema| schema.table_names()).collect();
    names.sort();
    names
}

/// Plans one statement.
pub async fn plan(ctx: &SessionContext, sql: &str) -> Result<DataFrame, Error> {
    ctx.sql(sql).await.map_err(|e| Error::Query(explain(&e)))
}

/// The damaged files of the store that the queries of a session came upon.
pub fn damage(ctx: &SessionContext) -> Arc<Damage> {
    ctx.state().config().get_extension().unwrap_or_default()
}

/// Runs an internal statement and streams its rows.
pub async fn stream(ctx: &SessionContext, sql: &str) -> Result<SendableRecordBatchStream, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    plan(ctx, sql).await?.execute_stream().await.map_err(query)
}

/// Runs an internal statement and returns all rows as one batch.
pub async fn collect(ctx: &SessionContext, sql: &str) -> Result<RecordBatch, Error> {
    let query = |e: DataFusionError| Error::Query(explain(&e));
    let frame = plan(ctx, sql).await?;
    let schema = Arc::clone(frame.schema().inner());
    let batches = frame.collect().await.map_err(query)?;
    datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| Error::Query(e.to_string()))
}

/// The last record of each slice that a session knows; none of an empty stream.
pub async fn cuts(ctx: &SessionContext) -> Result<Vec<Cut>, Error> {
    let sql =
        format!("SELECT slice, place, CAST(_timestamp AS BIGINT), _partition, _offset FROM {}()", slice_cuts::NAME);
    let batch = collect(ctx, &sql).await?;
    let int = |column: usize| batch.column(column).as_primitive::<Int32Type>();
    let long = |column: usize| batch.column(column).as_primitive::<Int64Type>();
    let cut = |row: usize| Cut {
        slice: int(0).value(row) as u8,
        place: long(1).value(row) as u64,
        timestamp: long(2).is_valid(row).then(|| long(2).value(row)),
        partition: int(3).value(row),
        offset: long(4).value(row),
    };
    Ok((0..batch.num_rows()).map(cut).collect())
}

/// A table reference by its literal name, including dots.
pub fn bare(name: &str) -> TableReference {
    TableReference::bare(name)
}
