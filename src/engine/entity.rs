//! Checks of the views of entities: key columns, and functions whose result depends on more than the records.
//!
//! A view of entities is evaluated once per slice, at any number of partitions, and must return the same rows each time.

use std::collections::BTreeSet;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;

use super::repeatable::{self, Unrepeatable};
use crate::sql::fault::Fault;
use crate::sql::header;
use crate::sql::piece::Place;
use crate::sql::{Files, View, quote};

/// The columns of a segmentation of records that are not features.
pub(super) const KEYS: [&str; 4] = ["_partition", "_offset", "_timestamp", "_slice"];

/// Names of columns of the members of a segmentation, which keys and features may not have.
const MEMBER_COLUMNS: [&str; 4] = ["cluster", "description", "distance", "previous"];

/// Checks a view with `-- entity:`.
///
/// Returns warnings about orders that may have ties.
///
/// # Errors
/// The first fault, with file and line.
pub fn check(files: &Files, view: &View, table: &DataFrame) -> Result<Vec<String>, Fault> {
    let in_header = |why: String| match header::entity_line(&view.text) {
        Some(line) => view.source().fault(Place { line, column: 1 }, why),
        None => view.source().fault_somewhere(why),
    };
    keys(view, table).map_err(in_header)?;
    plan(files, view, table.logical_plan())
}

fn keys(view: &View, table: &DataFrame) -> Result<(), String> {
    let (schema, entity) = (table.schema(), &view.header.entity);
    for name in entity {
        let Some(field) = schema.fields().iter().find(|field| field.name() == name) else {
            let there: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            return Err(format!("the entity {name} is no column of the view, which gives {}", there.join(", ")));
        };
        let kind = field.data_type();
        if !is_key(kind) {
            let column = quote(name);
            return Err(format!(
                "the entity {name} is {kind}, and must be text, an integer, a boolean or a date: select CAST({column} AS VARCHAR) AS {column}"
            ));
        }
    }
    for field in schema.fields() {
        let name = field.name().as_str();
        if KEYS.contains(&name) {
            return Err(format!(
                "a segmentation of entities may not give {name}: its rows are entities, not records; leave the column out or rename it"
            ));
        }
        if MEMBER_COLUMNS.contains(&name) {
            return Err(format!("a column may not be called {name}, which is a column of the members; rename it"));
        }
    }
    Ok(())
}

/// True for the types of keys: text, integers, booleans and dates.
fn is_key(kind: &DataType) -> bool {
    kind.is_integer() || matches!(kind, DataType::Boolean | DataType::Date32 | DataType::Date64) || kind.is_string()
}

/// Checks the functions in a view's plan, in which the views that it reads are contained.
fn plan(files: &Files, view: &View, whole: &LogicalPlan) -> Result<Vec<String>, Fault> {
    let (mut found, mut orders) = (None, BTreeSet::new());
    let walked = each_node(whole, &mut |node| {
        if found.is_none() {
            found = repeatable::first_fault(node);
        }
        repeatable::add_open_orders(node, &mut orders);
    });
    walked.map_err(|e| view.source().fault_somewhere(super::explain(&e)))?;
    if let Some(Unrepeatable { names, why }) = found {
        return Err(blame(files, view, &names, &why));
    }
    let warning = |order: &String| {
        format!(
            "{}: ORDER BY {order} does not end with _partition, _offset: if rows have equal values, their order is not \
             determined, and models may not be reproducible",
            view.file
        )
    };
    Ok(orders.iter().map(warning).collect())
}

/// Visits the nodes of a plan, those of subqueries, and those of views that it scans.
fn each_node(plan: &LogicalPlan, visit: &mut dyn FnMut(&LogicalPlan)) -> Result<(), DataFusionError> {
    let walked = plan.apply_with_subqueries(|node| {
        visit(node);
        if let LogicalPlan::TableScan(scan) = node
            && let Some(view) = scan.source.get_logical_plan()
        {
            each_node(&view, visit)?;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map(drop)
}

/// The fault at a function's call, in the view or in one that it reads, under the name that it has there.
fn blame(files: &Files, view: &View, names: &[String], why: &str) -> Fault {
    let mut below = vec![view];
    let mut next = 0;
    while let Some(view) = below.get(next) {
        if let Some((name, place)) = names.iter().find_map(|name| Some((name, view.source().place_of(name)?))) {
            return view.source().fault(place, format!("{name} {why}"));
        }
        below.extend(view.reads().iter().filter_map(|name| files.view(name)));
        next += 1;
    }
    view.source().fault_somewhere(format!("{} {why}", names[0]))
}
