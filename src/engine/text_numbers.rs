//! Comparisons of text with numbers.
//!
//! DataFusion converts the text of each row to the type of the number, and fails at the first text that is no such number. Input: the plan
//! of a query as written. Output: the columns of text that it compares with numbers, so that the error can name them.

use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::common::{DFSchema, ExprSchema as _};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, ExprSchemable as _, LogicalPlan};

use crate::sql::identifier;

/// The columns of text that a query compares or computes with numbers, in the order of their names.
pub fn columns(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // Neither closure fails.
    let _ = plan.apply_with_subqueries(|node| {
        let mut schema = DFSchema::empty();
        for input in node.inputs() {
            schema.merge(input.schema());
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                match expr {
                    Expr::BinaryExpr(BinaryExpr { left, right, .. }) => {
                        found.extend(pair(left, right, &schema).or_else(|| pair(right, left, &schema)));
                    }
                    Expr::Between(Between { expr, low, .. }) => found.extend(pair(expr, low, &schema)),
                    Expr::InList(InList { expr, list, .. }) => {
                        found.extend(list.iter().find_map(|value| pair(expr, value, &schema)));
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    found
}

/// The name of a column of text beside a number.
fn pair(text: &Expr, number: &Expr, schema: &DFSchema) -> Option<String> {
    let Expr::Column(column) = text else { return None };
    let is_text = schema.data_type(column).ok()?.is_string();
    (is_text && number.get_type(schema).ok()?.is_numeric()).then(|| column.name.clone())
}

/// Names the columns in the error of a text that is no number.
pub fn named(error: DataFusionError, columns: &BTreeSet<String>) -> DataFusionError {
    let message = error.find_root().strip_backtrace();
    let value = message.split_once("Cannot cast string ").and_then(|(_, rest)| rest.split_once(" to value of "));
    match (value, columns.first()) {
        (Some((value, _)), Some(column)) => {
            let shown = identifier(column);
            DataFusionError::Execution(format!(
                "'{column}' is text, and {value} is no whole number; write TRY_CAST({shown} AS DOUBLE), which is NULL for other texts, or \
                 to_number({shown}), which reads ₹1,099 too, or read a view in which it is a number"
            ))
        }
        _ => error,
    }
}
