//! Dates, times and intervals as in PostgreSQL, where the engine differs.
//!
//! - `date + interval` is a TIMESTAMP. The engine gives a DATE, which drops the hours of the interval.
//! - `date - date` is a number of days.
//! - `interval * number` for whole numbers. The engine has no such operation.
//! - `to_timestamp(seconds) AT TIME ZONE 'Europe/Oslo'` keeps the instant. The engine's `to_timestamp` has no zone, and so its time in UTC
//!   would be read as local time. A text is read as local time, because it usually is one.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray as _, IntervalMonthDayNanoArray};
use datafusion::arrow::datatypes::{
    DataType, Int64Type, IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, TimeUnit,
};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, exec_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::sqlparser::ast::BinaryOperator;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable as _, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast,
};

/// Replaces operations while a statement is planned, so that their types are known from the start.
#[derive(Debug)]
pub struct DatePlanner;

impl ExprPlanner for DatePlanner {
    fn plan_binary_op(&self, mut expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        use BinaryOperator::{Minus, Multiply, Plus};

        if !matches!(expr.op, Plus | Minus | Multiply) {
            return Ok(PlannerResult::Original(expr));
        }
        // An operand without a type, such as a parameter, is left to the engine.
        let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(expr));
        };
        let interval = |kind: &DataType| matches!(kind, DataType::Interval(_));
        let date = |kind: &DataType| matches!(kind, DataType::Date32 | DataType::Date64);
        // Microseconds have the range of a DATE, nanoseconds end in 2262.
        let time = |date| cast(date, DataType::Timestamp(TimeUnit::Microsecond, None));
        match expr.op {
            Plus | Minus if date(&left) && interval(&right) => expr.left = time(expr.left),
            Plus if interval(&left) && date(&right) => expr.right = time(expr.right),
            // The engine's difference has one type when it is planned and another one in filters of Parquet.
            Minus if left == DataType::Date32 && right == DataType::Date32 => {
                let days = |date| cast(cast(date, DataType::Int32), DataType::Int64);
                (expr.left, expr.right) = (days(expr.left), days(expr.right));
            }
            Multiply if interval(&left) && right.is_integer() => {
                return Ok(PlannerResult::Planned(times(expr.left, expr.right)));
            }
            Multiply if left.is_integer() && interval(&right) => {
                return Ok(PlannerResult::Planned(times(expr.right, expr.left)));
            }
            _ => {}
        }
        Ok(PlannerResult::Original(expr))
    }
}

fn times(interval: Expr, number: Expr) -> Expr {
    let args = vec![cast(interval, DataType::Interval(IntervalUnit::MonthDayNano)), cast(number, DataType::Int64)];
    Expr::ScalarFunction(ScalarFunction::new_udf(function(), args))
}

/// The function behind `interval * number`.
pub fn function() -> Arc<ScalarUDF> {
    let kinds = vec![DataType::Interval(IntervalUnit::MonthDayNano), DataType::Int64];
    Arc::new(ScalarUDF::from(MultiplyInterval { signature: Signature::exact(kinds, Volatility::Immutable) }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct MultiplyInterval {
    signature: Signature,
}

impl ScalarUDFImpl for MultiplyInterval {
    fn name(&self) -> &'static str {
        "multiply_interval"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Interval(IntervalUnit::MonthDayNano))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [intervals, numbers] = arrays.as_slice() else { return exec_err!("interval * number takes two operands") };
        let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
        let product: Result<IntervalMonthDayNanoArray> = intervals
            .iter()
            .zip(numbers.as_primitive::<Int64Type>())
            .map(|(interval, number)| {
                interval.zip(number).map(|(interval, number)| multiply(interval, number)).transpose()
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(product?) as ArrayRef))
    }
}

fn multiply(interval: IntervalMonthDayNano, number: i64) -> Result<IntervalMonthDayNano> {
    let part = |value: i32| i32::try_from(i64::from(value).checked_mul(number)?).ok();
    let product = || {
        Some(IntervalMonthDayNano {
            months: part(interval.months)?,
            days: part(interval.days)?,
            nanoseconds: interval.nanoseconds.checked_mul(number)?,
        })
    };
    match product() {
        Some(product) => Ok(product),
        None => exec_err!(
            "an interval is out of range: it has at most 2147483647 months, 2147483647 days, and 292 years in nanoseconds"
        ),
    }
}

/// Gives numbers since 1970 the zone in which they count before AT TIME ZONE, which is a cast, gives them another one.
#[derive(Debug)]
pub struct KeepInstant;

impl FunctionRewrite for KeepInstant {
    fn name(&self) -> &'static str {
        "keep_instant"
    }

    fn rewrite(&self, mut expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        if let Expr::Cast(zoned) = &mut expr
            && let DataType::Timestamp(_, Some(_)) = zoned.field.data_type()
            && let Expr::ScalarFunction(call) = zoned.expr.as_ref()
            && call.name().starts_with("to_timestamp")
            && let Some(first) = call.args.first()
            && first.get_type(schema)?.is_numeric()
            && let DataType::Timestamp(unit, None) = zoned.expr.get_type(schema)?
        {
            let utc = DataType::Timestamp(unit, Some("UTC".into()));
            *zoned.expr = cast(std::mem::take(zoned.expr.as_mut()), utc);
            return Ok(Transformed::yes(expr));
        }
        Ok(Transformed::no(expr))
    }
}
