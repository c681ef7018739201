//! Values of `u -> 'field'` where SQL needs a number or a text.
//!
//! Such a value is an Arrow union with a child for each kind of JSON value. The engine takes one child of it, by the type on the other side:
//! `u -> 'price' > 10` is NULL where the price is 12.5, and `CAST(price AS DOUBLE)` is NULL where it is a whole number. Here
//!
//! - [`Rewrite`] gives comparisons and casts all numbers, and texts as `->>` gives them, before types are coerced;
//! - [`Coerced`] does the same for functions that need a text or a double, orders all numbers, and refuses what would still take one child.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray as _, Float64Array, Int64Array, StringArray};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{DFSchema, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::functions::core::expr_fn::coalesce;
use datafusion::logical_expr::expr::{Case, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::{FunctionRewrite, NamePreserver};
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Between, BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, LogicalPlan, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, SortExpr, Volatility, binary_expr, cast,
};
use datafusion::optimizer::analyzer::AnalyzerRule;
use datafusion_functions_json::{JsonUnionEncoder, JsonUnionValue, udfs};

/// The SQL value that is read from a JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    /// A whole number within 64 bits, or a text of one; otherwise NULL.
    Integer,
    /// Any number, or a text of one; otherwise NULL.
    Number,
    /// As of `->>`: a text without quotes, any other value as JSON.
    Text,
    /// JSON in which equal values are equal: 2.0 is 2, and the text "2" is another value.
    Key,
}

impl Target {
    const ALL: [Self; 4] = [Self::Integer, Self::Number, Self::Text, Self::Key];

    /// The expression that reads it from a union.
    fn of(self, value: &Expr) -> Expr {
        let mut inner = value;
        while let Expr::Alias(alias) = inner {
            inner = &alias.expr;
        }
        // From the document itself, without a union.
        if let Expr::ScalarFunction(call) = inner
            && call.name() == "json_get"
            && let Some(direct) = match self {
                Self::Integer => Some(udfs::json_get_int_udf()),
                Self::Number => Some(udfs::json_get_float_udf()),
                Self::Text => Some(udfs::json_as_text_udf()),
                Self::Key => None,
            }
        {
            return Expr::ScalarFunction(ScalarFunction::new_udf(direct, call.args.clone()));
        }
        Expr::ScalarFunction(ScalarFunction::new_udf(self.function(), vec![value.clone()]))
    }

    fn function(self) -> Arc<ScalarUDF> {
        let signature = Signature::any(1, Volatility::Immutable);
        Arc::new(ScalarUDF::from(ReadUnion { target: self, signature }))
    }
}

/// The functions, for processes that execute plans of other sessions.
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    Target::ALL.into_iter().map(Target::function)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ReadUnion {
    target: Target,
    signature: Signature,
}

impl ScalarUDFImpl for ReadUnion {
    fn name(&self) -> &'static str {
        match self.target {
            Target::Integer => "json_union_integer",
            Target::Number => "json_union_number",
            Target::Text => "json_union_string",
            Target::Key => "json_union_key",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        match (kinds, self.target) {
            ([kind], _) if !is_union(kind) => plan_err!("{} takes a value of u -> 'field'", self.name()),
            (_, Target::Integer) => Ok(DataType::Int64),
            (_, Target::Number) => Ok(DataType::Float64),
            (_, Target::Text | Target::Key) => Ok(DataType::Utf8),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [array] = arrays.as_slice() else { return exec_err!("{} takes one argument", self.name()) };
        let Some(values) = JsonUnionEncoder::from_union(array.as_union().clone()) else {
            return exec_err!("{} takes a value of u -> 'field'", self.name());
        };
        let values = (0..values.len()).map(|i| values.get_value(i));
        Ok(ColumnarValue::Array(match self.target {
            Target::Integer => Arc::new(values.map(|value| integer(&value)).collect::<Int64Array>()) as ArrayRef,
            Target::Number => Arc::new(values.map(|value| number(&value)).collect::<Float64Array>()),
            Target::Text => Arc::new(values.map(|value| text(&value)).collect::<StringArray>()),
            Target::Key => Arc::new(values.map(|value| key(&value)).collect::<StringArray>()),
        }))
    }
}

fn integer(value: &JsonUnionValue<'_>) -> Option<i64> {
    match value {
        JsonUnionValue::Int(value) => Some(*value),
        JsonUnionValue::Float(value) => whole(*value),
        JsonUnionValue::Str(text) => text.parse().ok(),
        _ => None,
    }
}

/// A double without a fraction as an integer, if it is in its range.
#[expect(clippy::cast_possible_truncation, reason = "the range is checked; its ends are powers of two")]
fn whole(value: f64) -> Option<i64> {
    const END: f64 = 9_223_372_036_854_775_808.0;
    (value.fract() == 0.0 && (-END..END).contains(&value)).then_some(value as i64)
}

#[expect(clippy::cast_precision_loss, reason = "a double has 53 bits, as every reader of JSON as doubles knows")]
fn number(value: &JsonUnionValue<'_>) -> Option<f64> {
    match value {
        JsonUnionValue::Int(value) => Some(*value as f64),
        JsonUnionValue::Float(value) => Some(*value),
        JsonUnionValue::Str(text) => text.parse().ok(),
        _ => None,
    }
}

fn text(value: &JsonUnionValue<'_>) -> Option<String> {
    Some(match value {
        JsonUnionValue::JsonNull => return None,
        JsonUnionValue::Bool(value) => value.to_string(),
        JsonUnionValue::Int(value) => value.to_string(),
        // As serde_json, with a fraction: 2.0.
        JsonUnionValue::Float(value) => format!("{value:?}"),
        JsonUnionValue::Str(text) | JsonUnionValue::Array(text) | JsonUnionValue::Object(text) => (*text).to_owned(),
    })
}

fn key(value: &JsonUnionValue<'_>) -> Option<String> {
    match value {
        JsonUnionValue::Float(number) => whole(*number).map_or_else(|| text(value), |number| Some(number.to_string())),
        JsonUnionValue::Str(text) => Some(format!("{text:?}")),
        _ => text(value),
    }
}

fn is_union(kind: &DataType) -> bool {
    matches!(kind, DataType::Union(..))
}

fn is_text(kind: &DataType) -> bool {
    matches!(kind, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Comparisons and casts.
#[derive(Debug)]
pub struct Rewrite;

impl FunctionRewrite for Rewrite {
    fn name(&self) -> &'static str {
        "json_values"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        Ok(match rewritten(&expr, schema)? {
            Some(rewritten) => Transformed::yes(rewritten),
            None => Transformed::no(expr),
        })
    }
}

fn rewritten(expr: &Expr, schema: &DFSchema) -> Result<Option<Expr>> {
    let union = |expr: &Expr| expr.get_type(schema).is_ok_and(|kind| is_union(&kind));
    Ok(match expr {
        // Types of long conditions are not derived anew at each AND.
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if !matches!(op, Operator::And | Operator::Or) => {
            match (union(left), union(right)) {
                (true, false) => compared(left, *op, right, &right.get_type(schema)?, false),
                (false, true) => compared(right, *op, left, &left.get_type(schema)?, true),
                (true, true) => both(left, *op, right),
                (false, false) => None,
            }
        }
        Expr::Between(Between { expr, negated, low, high }) if union(expr) && !union(low) && !union(high) => {
            let low = compared(expr, Operator::GtEq, low, &low.get_type(schema)?, false);
            let high = compared(expr, Operator::LtEq, high, &high.get_type(schema)?, false);
            low.zip(high).map(|(low, high)| {
                let both = low.and(high);
                if *negated { !both } else { both }
            })
        }
        Expr::InList(InList { expr, list, negated }) if union(expr) => {
            let kinds: Vec<DataType> = list.iter().map(|item| item.get_type(schema)).collect::<Result<_>>()?;
            let among = |target: Target| target.of(expr).in_list(list.clone(), *negated);
            if kinds.iter().all(DataType::is_integer) {
                Some(coalesce(vec![among(Target::Integer), among(Target::Number)]))
            } else if kinds.iter().all(DataType::is_numeric) {
                Some(among(Target::Number))
            } else if kinds.iter().all(is_text) {
                Some(among(Target::Text))
            } else {
                None
            }
        }
        Expr::Like(like) if union(&like.expr) => {
            let mut like = like.clone();
            like.expr = Box::new(Target::Text.of(&like.expr));
            Some(Expr::Like(like))
        }
        Expr::Case(Case { expr: Some(value), when_then_expr, else_expr }) if union(value) => {
            let mut branches = Vec::with_capacity(when_then_expr.len());
            for (when, then) in when_then_expr {
                let equal = compared(value, Operator::Eq, when, &when.get_type(schema)?, false)
                    .unwrap_or_else(|| binary_expr(value.as_ref().clone(), Operator::Eq, when.as_ref().clone()));
                branches.push((Box::new(equal), then.clone()));
            }
            Some(Expr::Case(Case::new(None, branches, else_expr.clone())))
        }
        Expr::Cast(to) if union(&to.expr) => read_as(&to.expr, to.field.data_type()).map(|value| {
            let mut to = to.clone();
            *to.expr = value;
            Expr::Cast(to)
        }),
        Expr::TryCast(to) if union(&to.expr) => read_as(&to.expr, to.field.data_type()).map(|value| {
            let mut to = to.clone();
            *to.expr = value;
            Expr::TryCast(to)
        }),
        _ => None,
    })
}

/// `value op other`, or with `flipped` `other op value`, where the value is a union and `other` has the type `kind`.
fn compared(value: &Expr, op: Operator, other: &Expr, kind: &DataType, flipped: bool) -> Option<Expr> {
    use Operator::{
        Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq, RegexIMatch, RegexMatch, RegexNotIMatch,
        RegexNotMatch, StringConcat,
    };

    let with = |target: Target| match flipped {
        false => binary_expr(target.of(value), op, other.clone()),
        true => binary_expr(other.clone(), op, target.of(value)),
    };
    let is_comparison = matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom);
    if is_text(kind) {
        let is_of_texts = matches!(op, RegexMatch | RegexIMatch | RegexNotMatch | RegexNotIMatch | StringConcat);
        return (is_comparison || is_of_texts).then(|| with(Target::Text));
    }
    if !is_comparison || !kind.is_numeric() {
        return None;
    }
    if !kind.is_integer() {
        return Some(with(Target::Number));
    }
    match op {
        // One operation, so that a join has a key. A number with a fraction is distinct from any whole number.
        IsDistinctFrom | IsNotDistinctFrom => Some(with(Target::Integer)),
        Eq if !matches!(other, Expr::Literal(..)) => Some(with(Target::Integer)),
        // Whole numbers with all of their digits, others as doubles.
        _ => Some(coalesce(vec![with(Target::Integer), with(Target::Number)])),
    }
}

/// A comparison of two unions. Equality is that of one text, so that a join has a key, and NULL equals nothing.
fn both(left: &Expr, op: Operator, right: &Expr) -> Option<Expr> {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};

    let as_read = |target: Target| binary_expr(target.of(left), op, target.of(right));
    match op {
        Eq | NotEq | IsDistinctFrom | IsNotDistinctFrom => Some(as_read(Target::Key)),
        Lt | LtEq | Gt | GtEq => Some(coalesce(vec![as_read(Target::Number), as_read(Target::Text)])),
        _ => None,
    }
}

/// The expression that a cast to this type reads; `None` if the engine's own cast is right.
fn read_as(value: &Expr, kind: &DataType) -> Option<Expr> {
    match kind {
        DataType::Boolean => None,
        kind if kind.is_integer() => Some(Target::Integer.of(value)),
        kind if kind.is_numeric() => Some(Target::Number.of(value)),
        kind if is_union(kind) => None,
        _ => Some(Target::Text.of(value)),
    }
}

/// The rule for expressions that are neither comparisons nor casts in the statement, after types are coerced.
#[derive(Debug)]
pub struct Coerced;

impl AnalyzerRule for Coerced {
    fn name(&self) -> &'static str {
        "json_values"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| {
            let schema = merge_schema(&plan.inputs());
            let plan = ordered(plan, &schema);
            let names = NamePreserver::new(&plan);
            plan.map_expressions(|expr| {
                let name = names.save(&expr);
                let expr = expr.transform_up(|expr| one_child(expr, &schema))?;
                Ok(expr.update_data(|expr| name.restore(expr)))
            })
        })
        .map(|plan| plan.data)
    }
}

/// The order of unions, which the engine sorts by the kind of number: numbers, then other values as texts.
fn ordered(plan: LogicalPlan, schema: &DFSchema) -> LogicalPlan {
    let LogicalPlan::Sort(mut sort) = plan else { return plan };
    let mut keys = Vec::with_capacity(sort.expr.len());
    for key in sort.expr {
        if !key.expr.get_type(schema).is_ok_and(|kind| is_union(&kind)) {
            keys.push(key);
            continue;
        }
        // Values that are no numbers are at the end of ascending numbers, and NULL where the statement has it.
        let is_null = Target::Text.of(&key.expr).is_null();
        keys.push(SortExpr { expr: is_null, asc: !key.nulls_first, nulls_first: false });
        for target in [Target::Number, Target::Text] {
            keys.push(SortExpr { expr: target.of(&key.expr), asc: key.asc, nulls_first: !key.asc });
        }
    }
    sort.expr = keys;
    LogicalPlan::Sort(sort)
}

fn one_child(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let Some((inner, kind)) = cast_of_union(&expr, schema)? else { return Ok(Transformed::no(expr)) };
    Ok(match kind.data_type() {
        DataType::Boolean | DataType::Union(..) => Transformed::no(expr),
        DataType::Float64 | DataType::Float32 => {
            Transformed::yes(cast(Target::Number.of(inner), kind.data_type().clone()))
        }
        kind if is_text(kind) => Transformed::yes(cast(Target::Text.of(inner), kind.clone())),
        _ => {
            return plan_err!(
                "a value of u -> 'field' is compared or combined with another type; write u ->> 'field' for its text, \
                 CAST(u ->> 'field' AS DOUBLE) for a number"
            );
        }
    })
}

fn cast_of_union<'e>(expr: &'e Expr, schema: &DFSchema) -> Result<Option<(&'e Expr, &'e FieldRef)>> {
    let (inner, field) = match expr {
        Expr::Cast(to) => (&to.expr, &to.field),
        Expr::TryCast(to) => (&to.expr, &to.field),
        _ => return Ok(None),
    };
    // A reference to the query around a subquery has a type of its own; others that are unknown here are no unions.
    Ok(inner.get_type(schema).is_ok_and(|kind| is_union(&kind)).then_some((inner, field)))
}
