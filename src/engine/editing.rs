//! Sessions in which views may fail to plan, or change: the shell, SQL of requests.

use std::collections::BTreeMap;

use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use tercile_store::Snapshot;

use super::cluster::Engine;
use super::{Error, Limits, add_records, add_view, explain, members, reference, session, slice_cuts, topics};
use crate::sql::fault::Fault;
use crate::sql::{Files, RECORDS, View};

/// The table functions that read only the store.
const TABLE_FUNCTIONS: [&str; 5] = ["generate_series", "range", slice_cuts::NAME, members::NAME, topics::NAME];

/// A session for editing views: views that do not plan are omitted and returned with the reason.
pub async fn open_what_plans(
    snapshot: &Snapshot,
    files: &Files,
    limits: Limits,
) -> Result<(SessionContext, BTreeMap<String, Fault>), Error> {
    let confined = limits.confined;
    let (ctx, mut broken) = (session(snapshot, files, limits)?, BTreeMap::new());
    add_what_plans(&ctx, files.views().iter(), &mut broken).await;
    if confined {
        confine(&ctx, files).map_err(|e| Error::Query(explain(&e)))?;
    }
    Ok((ctx, broken))
}

/// Removes everything except views and harmless functions from a session. The views keep their sources.
fn confine(ctx: &SessionContext, files: &Files) -> Result<(), DataFusionError> {
    ctx.deregister_table(RECORDS)?;
    for reference in &files.references {
        ctx.deregister_table(reference.name.as_str())?;
    }
    let functions: Vec<String> = ctx.state().table_functions().keys().cloned().collect();
    for function in functions.iter().filter(|name| !TABLE_FUNCTIONS.contains(&name.as_str())) {
        ctx.deregister_udtf(function);
    }
    // This function returns absolute local paths.
    ctx.deregister_udf("input_file_name");
    Ok(())
}

/// A session without views, which are added by [`add_what_plans`].
pub fn open_without_views(snapshot: &Snapshot, files: &Files, limits: Limits) -> Result<SessionContext, Error> {
    session(snapshot, files, limits)
}

/// Replaces the table `records` and the reference tables of a session after the store or the SQL files have changed. The old views
/// must have been removed.
pub fn renew(ctx: &SessionContext, snapshot: &Snapshot, (before, files): (&Files, &Files)) -> Result<(), Error> {
    let old = before.references.iter().map(|reference| reference.name.as_str());
    for name in old.chain([RECORDS]) {
        ctx.deregister_table(name).map_err(|e| Error::Query(explain(&e)))?;
    }
    add_records(ctx, snapshot, &files.fields, None)?;
    let engine = ctx.state().config().get_extension::<Engine>();
    reference::register(ctx, files, &engine.as_deref().cloned().unwrap_or_default())
}

/// Adds views to a session in the order of their files. Views that do not plan are omitted and returned with the
/// reason.
pub async fn add_what_plans<'v>(
    ctx: &SessionContext,
    views: impl Iterator<Item = &'v View>,
    broken: &mut BTreeMap<String, Fault>,
) {
    for view in views {
        // A view on a broken view is broken for the same reason.
        let below = view.reads().iter().find_map(|name| broken.get(name)).cloned();
        let added = match below {
            Some(fault) => Err(fault),
            None => add_view(ctx, view).await,
        };
        if let Err(fault) = added {
            broken.insert(view.name.clone(), fault);
        }
    }
}
