//! Conditions that keep rows away from an operation that fails.
//!
//! `WHERE a <> 0 AND 10 / a > 1` works in PostgreSQL and DuckDB. The engine computes both terms for all rows, and makes terms of AND of a CASE
//! with one or two branches. Here a term that can fail (a division of whole numbers or decimals, a cast of a text) becomes a CASE under the terms
//! before it, with as many branches as the engine leaves alone. The terms before it stay, so that they select files and row groups.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::error::Result;
use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::{conjunction, merge_schema, split_conjunction_owned};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable as _, LogicalPlan, Operator, lit};
use datafusion::optimizer::analyzer::AnalyzerRule;
use datafusion::prelude::SessionContext;

/// Branches of a CASE that the engine does not turn into AND and OR.
const BRANCHES: usize = 3;

/// Makes conditions guard what follows them.
pub fn register(ctx: &SessionContext) {
    ctx.add_analyzer_rule(std::sync::Arc::new(Guards));
}

/// The rule, after types are coerced.
#[derive(Debug)]
struct Guards;

impl AnalyzerRule for Guards {
    fn name(&self) -> &'static str {
        "guards"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(guarded).map(|plan| plan.data)
    }
}

fn guarded(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let schema = merge_schema(&plan.inputs());
    let names = NamePreserver::new(&plan);
    let plan = plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let expr = expr.transform_up(|expr| Ok(lasting(expr, &schema)))?;
        Ok(expr.update_data(|expr| name.restore(expr)))
    })?;
    Ok(plan.update_data(|plan| match plan {
        LogicalPlan::Filter(mut filter) => {
            filter.predicate = in_order(filter.predicate, &schema);
            LogicalPlan::Filter(filter)
        }
        other => other,
    }))
}

/// The terms of a filter, each of which that can fail under those before it. NULL and false are alike in a filter.
fn in_order(predicate: Expr, schema: &DFSchema) -> Expr {
    let terms = split_conjunction_owned(predicate);
    let mut safe: Vec<Expr> = Vec::new();
    let mut done = Vec::with_capacity(terms.len());
    for term in terms {
        if !can_fail(&term, schema) {
            safe.push(term.clone());
            done.push(term);
            continue;
        }
        match conjunction(safe.clone()).filter(|guard| !guard.is_volatile()) {
            Some(guard) => {
                let branch = (Box::new(guard), Box::new(term));
                done.push(Expr::Case(Case::new(None, vec![branch; BRANCHES], Some(Box::new(lit(false))))));
            }
            None => done.push(term),
        }
    }
    conjunction(done).unwrap_or_else(|| lit(true))
}

/// A CASE whose results can fail, with more branches. Their conditions are that of a branch before them, so that they are never reached, and
/// their result is one that can fail, because the engine also changes a CASE whose results are constants.
fn lasting(expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
    let Expr::Case(mut case) = expr else { return Transformed::no(expr) };
    let few = case.expr.is_none() && case.when_then_expr.len() < BRANCHES;
    let results: Vec<&Expr> =
        case.when_then_expr.iter().map(|(_, then)| then).chain(&case.else_expr).map(AsRef::as_ref).collect();
    let is_boolean = |result: &&Expr| result.get_type(schema).is_ok_and(|kind| kind == DataType::Boolean);
    let failing = results.iter().find(|result| few && can_fail(result, schema)).filter(|result| is_boolean(result));
    let unreached = failing.map(|result| Box::new((*result).clone())).zip(case.when_then_expr.last());
    match unreached.map(|(result, (when, _))| (when.clone(), result)) {
        Some(branch) => {
            case.when_then_expr.resize(BRANCHES, branch);
            Transformed::yes(Expr::Case(case))
        }
        None => Transformed::no(Expr::Case(case)),
    }
}

/// Whether an expression fails for some values.
fn can_fail(expr: &Expr, schema: &DFSchema) -> bool {
    let kind = |expr: &Expr| expr.get_type(schema).unwrap_or(DataType::Null);
    let found = expr.exists(|part| {
        Ok(match part {
            Expr::BinaryExpr(BinaryExpr { op: Operator::Divide | Operator::Modulo, right, .. }) => {
                !kind(right).is_floating() && !matches!(right.as_ref(), Expr::Literal(..))
            }
            Expr::ScalarFunction(call) => call.name() == "checked_remainder",
            Expr::Cast(to) => is_text(&kind(&to.expr)) && !is_text(to.field.data_type()),
            _ => false,
        })
    });
    found.unwrap_or(false)
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}
