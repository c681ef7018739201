//! Functions of views of entities whose result may differ from one evaluation to the next.

use std::collections::BTreeSet;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::logical_expr::expr::{AggregateFunctionParams, WindowFunction};
use datafusion::logical_expr::{
    AggregateUDF, Distinct, Expr, ExprSchemable as _, LogicalPlan, SortExpr, Volatility, WindowFunctionDefinition,
};

use super::slice_cuts::SLICE_END;

/// Aggregates whose result depends only on the set of values. `sum` and `avg` of doubles are exact (`exact_aggregates.rs`).
const EXACT: [&str; 13] = [
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "count",
    "grouping",
    "max",
    "median",
    "min",
    "percentile_cont",
    "sum",
];

/// Aggregates whose result depends on the order of rows.
const ORDERED: [&str; 5] = ["array_agg", "first_value", "last_value", "nth_value", "string_agg"];

/// Window functions whose result depends on the order of rows, beside those above.
const ORDERED_WINDOWS: [&str; 4] = ["lag", "lead", "ntile", "row_number"];

/// The columns with which an order without ties ends.
const PLACE: [&str; 2] = ["_partition", "_offset"];

/// A function that is not allowed.
pub struct Unrepeatable {
    /// Its names, the usual one first.
    pub names: Vec<String>,
    pub why: String,
}

/// The first function of a node that is not allowed.
pub fn first_fault(node: &LogicalPlan) -> Option<Unrepeatable> {
    let kind = |argument: &Expr| {
        let of = |input: &&LogicalPlan| argument.get_type(input.schema()).ok();
        node.inputs().iter().find_map(of)
    };
    let mut found = None;
    for expr in node.expressions() {
        // The closure has no errors.
        let _ = expr.apply(|expr| {
            found = fault(expr, &kind);
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        if found.is_some() {
            break;
        }
    }
    found
}

/// The type of an expression over the node's input.
type KindOf<'a> = &'a dyn Fn(&Expr) -> Option<DataType>;

fn fault(expr: &Expr, kind: KindOf<'_>) -> Option<Unrepeatable> {
    match expr {
        Expr::ScalarFunction(call)
            if call.func.signature().volatility != Volatility::Immutable && call.func.name() != SLICE_END =>
        {
            let why = format!(
                "does not depend on the records alone, so the model could not be reproduced; {SLICE_END}() is the time of \
                 the slice's last record"
            );
            Some(Unrepeatable { names: names(call.func.name(), call.func.aliases()), why })
        }
        Expr::AggregateFunction(call) => {
            let AggregateFunctionParams { args, distinct, order_by, .. } = &call.params;
            aggregate(&call.func, (args, *distinct), order_by, kind)
        }
        Expr::WindowFunction(call) => {
            let WindowFunction { fun, params } = call.as_ref();
            match fun {
                WindowFunctionDefinition::AggregateUDF(function) => {
                    aggregate(function, (&params.args, params.distinct), &params.order_by, kind)
                }
                WindowFunctionDefinition::WindowUDF(function) => {
                    let ordered = ORDERED.contains(&function.name()) || ORDERED_WINDOWS.contains(&function.name());
                    (ordered && params.order_by.is_empty()).then(|| Unrepeatable {
                        names: names(function.name(), function.aliases()),
                        why: "needs an order: OVER (… ORDER BY _timestamp, _partition, _offset)".to_owned(),
                    })
                }
            }
        }
        _ => None,
    }
}

fn names(name: &str, aliases: &[String]) -> Vec<String> {
    std::iter::once(name).chain(aliases.iter().map(String::as_str)).map(str::to_owned).collect()
}

fn aggregate(
    function: &AggregateUDF,
    (arguments, distinct): (&[Expr], bool),
    order: &[SortExpr],
    kind: KindOf<'_>,
) -> Option<Unrepeatable> {
    let name = function.name();
    let kind = arguments.first().and_then(kind);
    // An average of integers is one of doubles.
    let adds_doubles = match name {
        "sum" => kind.is_some_and(|kind| kind.is_floating()),
        "avg" => kind.is_some_and(|kind| kind.is_floating() || kind.is_integer()),
        _ => false,
    };
    let why = if adds_doubles && distinct {
        "of DISTINCT doubles cannot be exact; select the distinct values in a subquery first".to_owned()
    } else if EXACT.contains(&name) {
        return None;
    } else if ORDERED.contains(&name) {
        if !order.is_empty() {
            return None;
        }
        format!("needs an order: {name}(… ORDER BY _timestamp, _partition, _offset)")
    } else {
        format!("cannot be exact at any number of partitions; use {}", alternative(name))
    };
    Some(Unrepeatable { names: names(name, function.aliases()), why })
}

/// Exact aggregates to use in the place of one that is not.
fn alternative(name: &str) -> &'static str {
    match name {
        "approx_distinct" => "count(DISTINCT …)",
        "approx_median" => "median(…)",
        "approx_percentile_cont" | "approx_percentile_cont_with_weight" => "percentile_cont(…)",
        "any_value" => "min(…), or first_value(… ORDER BY _timestamp, _partition, _offset)",
        "stddev" | "stddev_pop" => "sqrt(greatest(avg(x * x) - avg(x) * avg(x), 0))",
        "var" | "var_pop" | "var_samp" | "var_sample" => "avg(x * x) - avg(x) * avg(x)",
        "corr" | "covar" | "covar_pop" | "covar_samp" => "avg(x * y) - avg(x) * avg(y), and avg(x * x) of each",
        _ if name.starts_with("regr_") => "sums of products: sum(x * y), sum(x * x), sum(x), sum(y), count(*)",
        _ => "sum, avg, count, min, max or median",
    }
}

/// Adds the texts of a node's orders that do not end with the place of a record.
pub fn add_open_orders(node: &LogicalPlan, found: &mut BTreeSet<String>) {
    let mut add = |order: &[SortExpr]| {
        if !order.is_empty() && !ends_with_place(order) {
            found.insert(order.iter().map(|by| by.to_string()).collect::<Vec<_>>().join(", "));
        }
    };
    match node {
        LogicalPlan::Sort(sort) => add(&sort.expr),
        LogicalPlan::Distinct(Distinct::On(on)) => on.sort_expr.iter().for_each(|order| add(order)),
        _ => {}
    }
    for expr in node.expressions() {
        let _ = expr.apply(|expr| {
            match expr {
                Expr::AggregateFunction(call) => add(&call.params.order_by),
                Expr::WindowFunction(call) => add(&call.params.order_by),
                _ => {}
            }
            Ok(TreeNodeRecursion::Continue)
        });
    }
}

fn ends_with_place(order: &[SortExpr]) -> bool {
    let names = order.iter().map(|by| match &by.expr {
        Expr::Column(column) => column.name.as_str(),
        _ => "",
    });
    names.rev().zip(PLACE.iter().rev()).filter(|(name, place)| name == *place).count() == PLACE.len()
}
