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
mod query;
mod records;
mod reference;
mod repeatable;
pub mod row_by_row;
pub mod segment;
mod segmentations;
mod session;
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
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
pub use editing::{add_what_plans, open_what_plans, open_without_views, renew};
pub use query::{collect, cuts, damage, filter_while_reading, plan, stream, tables};
pub use segmentations::{Segmentations, Unusable, each_segmentation, segmentations};
use session::session;
pub use sized_store::Damage;
pub use slice_cuts::UpTo;
use tercile_store::record::Fields;
use tercile_store::{Snapshot, Store};
pub use user_files::{add_file, add_local_file, file_url};

use crate::files;
use crate::sql::fault::Fault;
pub use crate::sql::fault::explain;
use crate::sql::{self, Files, RECORDS, View};

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

/// A table reference by its literal name, including dots.
pub fn bare(name: &str) -> TableReference {
    TableReference::bare(name)
}
