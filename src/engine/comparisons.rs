//! Comparisons whose operands the engine would convert with a loss.
//!
//! - Intervals are compared as in PostgreSQL: a month has 30 days and a day 24 hours. The engine compares months, then days, then
//!   nanoseconds, so that a day is longer than any number of hours, and a difference of two times, which counts nanoseconds, shorter than a day.
//! - A DOUBLE meets a DECIMAL as a DOUBLE. The engine makes both a DECIMAL(30, 15), which cuts off small values and has no room for large ones.
//! - A DATE meets a time with a zone at midnight in that zone. The engine takes midnight in UTC.
//! - A BOOLEAN can be compared with `'true'` and `'false'`.

use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Decimal128Array};
use datafusion::arrow::compute::cast as cast_array;
use datafusion::arrow::datatypes::{
    DataType, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, exec_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{Case, InList, ScalarFunction};
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::{
    Between, BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, Operator, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, binary_expr, cast, lit,
};
use datafusion::scalar::ScalarValue;

/// Digits of a whole number of nanoseconds.
const PRECISION: u8 = 38;
const NANOSECONDS_OF_DAY: i128 = 86_400_000_000_000;

/// A literal of this size or smaller, unless it is 0, has digits that a DECIMAL(30, 15) cuts off.
const SMALL: f64 = 1e-9;
/// A literal of this size or larger has more digits before the point than a DECIMAL(30, 15).
const LARGE: f64 = 1e14;

/// Functions whose arguments get one type.
const OF_ONE_TYPE: [&str; 6] = ["coalesce", "nullif", "nvl", "ifnull", "greatest", "least"];

/// Converts the operands before types are coerced.
#[derive(Debug)]
pub struct Lossless;

impl FunctionRewrite for Lossless {
    fn name(&self) -> &'static str {
        "comparisons"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let rewritten = match &expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if is_comparison(*op) => compared(&[left, right], schema)
                .and_then(|operands| {
                    let [left, right] = <[Expr; 2]>::try_from(operands).ok()?;
                    Some(binary_expr(left, *op, right))
                }),
            Expr::Between(Between { expr, negated, low, high }) => {
                compared(&[expr, low, high], schema).and_then(|operands| {
                    let [expr, low, high] = <[Expr; 3]>::try_from(operands).ok()?.map(Box::new);
                    Some(Expr::Between(Between { expr, negated: *negated, low, high }))
                })
            }
            Expr::InList(InList { expr, list, negated }) => {
                let operands: Vec<&Expr> = std::iter::once(expr.as_ref()).chain(list).collect();
                compared(&operands, schema).map(|mut operands| {
                    let list = operands.split_off(1);
                    Expr::InList(InList { expr: Box::new(operands.remove(0)), list, negated: *negated })
                })
            }
            Expr::ScalarFunction(call) if OF_ONE_TYPE.contains(&call.name()) => {
                let args: Vec<&Expr> = call.args.iter().collect();
                as_doubles(&args, &kinds(&args, schema))
                    .map(|args| Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&call.func), args)))
            }
            Expr::Case(case) => {
                let thens = case.when_then_expr.iter().map(|(_, then)| then);
                let results: Vec<&Expr> = thens.chain(&case.else_expr).map(AsRef::as_ref).collect();
                as_doubles(&results, &kinds(&results, schema)).map(|results| {
                    let mut results = results.into_iter().map(Box::new);
                    let whens = case.when_then_expr.iter().map(|(when, _)| when.clone());
                    let branches = whens.zip(results.by_ref()).collect();
                    Expr::Case(Case { expr: case.expr.clone(), when_then_expr: branches, else_expr: results.next() })
                })
            }
            _ => None,
        };
        Ok(match rewritten {
            Some(rewritten) => Transformed::yes(rewritten),
            None => Transformed::no(expr),
        })
    }
}

fn is_comparison(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};

    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

/// The types; NULL for an operand without a type, such as a parameter, which is left to the engine.
fn kinds(operands: &[&Expr], schema: &DFSchema) -> Vec<DataType> {
    operands.iter().map(|operand| operand.get_type(schema).unwrap_or(DataType::Null)).collect()
}

/// The operands of a comparison with types that can be compared; `None` if the engine's conversion loses nothing.
fn compared(operands: &[&Expr], schema: &DFSchema) -> Option<Vec<Expr>> {
    let kinds = kinds(operands, schema);
    let is_span = |kind: &DataType| matches!(kind, DataType::Interval(_) | DataType::Duration(_));
    let with = |change: &dyn Fn(&Expr, &DataType) -> Expr| {
        Some(operands.iter().zip(&kinds).map(|(operand, kind)| change(operand, kind)).collect())
    };
    if kinds.iter().all(is_span) && kinds.iter().any(|kind| matches!(kind, DataType::Interval(_))) {
        return with(&|operand, _| Expr::ScalarFunction(ScalarFunction::new_udf(function(), vec![operand.clone()])));
    }
    let is_zoned = |kind: &DataType| matches!(kind, DataType::Timestamp(_, Some(zone)) if zone.as_ref() != "UTC");
    if kinds.iter().any(is_zoned) && kinds.contains(&DataType::Date32) {
        // A time without a zone is one of the other side's zone.
        return with(&|operand, kind| match kind {
            DataType::Date32 => cast(operand.clone(), DataType::Timestamp(TimeUnit::Microsecond, None)),
            _ => operand.clone(),
        });
    }
    if kinds.contains(&DataType::Boolean) && operands.iter().any(|operand| boolean(operand).is_some()) {
        return with(&|operand, _| boolean(operand).map_or_else(|| operand.clone(), lit));
    }
    as_doubles(operands, &kinds)
}

/// The truth value of a text.
fn boolean(operand: &Expr) -> Option<bool> {
    let Expr::Literal(value, _) = operand else { return None };
    match value.try_as_str()??.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "on" => Some(true),
        "false" | "f" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Decimals as doubles, if there are doubles beside them whose value is not known to fit.
fn as_doubles(operands: &[&Expr], kinds: &[DataType]) -> Option<Vec<Expr>> {
    let is_decimal = |kind: &DataType| matches!(kind, DataType::Decimal128(..) | DataType::Decimal256(..));
    let mut doubles = operands.iter().zip(kinds).filter(|(_, kind)| kind.is_floating());
    if !kinds.iter().any(is_decimal) || !doubles.any(|(operand, _)| !is_short(operand)) {
        return None;
    }
    let operand = |(operand, kind): (&&Expr, &DataType)| match is_decimal(kind) {
        true => cast((*operand).clone(), DataType::Float64),
        false => (*operand).clone(),
    };
    Some(operands.iter().zip(kinds).map(operand).collect())
}

/// Whether a literal fits a DECIMAL(30, 15), so that statistics of a decimal column can be used.
fn is_short(operand: &Expr) -> bool {
    match operand {
        Expr::Literal(ScalarValue::Float64(Some(value)), _) => *value == 0.0 || (SMALL..LARGE).contains(&value.abs()),
        _ => false,
    }
}

/// The function that gives an interval its length.
pub fn function() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::from(Length { signature: Signature::any(1, Volatility::Immutable) }))
}

/// Nanoseconds of an interval or a duration.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Length {
    signature: Signature,
}

impl ScalarUDFImpl for Length {
    fn name(&self) -> &'static str {
        "interval_length"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Decimal128(PRECISION, 0))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [array] = arrays.as_slice() else { return exec_err!("{} takes one argument", self.name()) };
        let lengths: Decimal128Array = match array.data_type() {
            DataType::Duration(unit) => {
                let size = match unit {
                    TimeUnit::Second => 1_000_000_000,
                    TimeUnit::Millisecond => 1_000_000,
                    TimeUnit::Microsecond => 1000,
                    TimeUnit::Nanosecond => 1,
                };
                let counts = cast_array(array, &DataType::Int64)?;
                counts
                    .as_primitive::<Int64Type>()
                    .iter()
                    .map(|count| count.map(|count| i128::from(count) * size))
                    .collect()
            }
            _ => {
                let intervals = cast_array(array, &DataType::Interval(IntervalUnit::MonthDayNano))?;
                let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
                let length = |interval: IntervalMonthDayNano| {
                    let days = i128::from(interval.months) * 30 + i128::from(interval.days);
                    days * NANOSECONDS_OF_DAY + i128::from(interval.nanoseconds)
                };
                intervals.iter().map(|interval| interval.map(length)).collect()
            }
        };
        Ok(ColumnarValue::Array(Arc::new(lengths.with_precision_and_scale(PRECISION, 0)?) as ArrayRef))
    }
}
