//! Arithmetic of integers and decimals that fails on overflow, in every session and on a cluster.
//!
//! DataFusion's `+`, `-` and `*` of integers wrap around without a message, those of decimals give values with more digits than their
//! type, and it has no switch for that. An analyzer rule replaces
//! them by functions here, after types are coerced. Names of columns stay those of the operators.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, Datum};
use datafusion::arrow::compute::kernels::numeric;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef};
use datafusion::arrow::error::ArrowError;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable as _, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};
use datafusion::optimizer::analyzer::AnalyzerRule;
use datafusion::physical_expr_common::datum::apply;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

/// Makes the arithmetic of a session checked.
pub fn register(ctx: &SessionContext) {
    functions().for_each(|function| ctx.register_udf(ScalarUDF::clone(&function)));
    ctx.add_analyzer_rule(Arc::new(Checked));
}

/// The functions, for sessions and processes that execute plans of other sessions.
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    Operation::ALL.into_iter().map(Operation::function)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Subtract,
    Multiply,
    /// Of decimals only: the engine simplifies `x % 1` to 0, which is right for integers.
    Remainder,
}

impl Operation {
    const ALL: [Self; 4] = [Self::Add, Self::Subtract, Self::Multiply, Self::Remainder];

    fn of(operator: Operator) -> Option<Self> {
        match operator {
            Operator::Plus => Some(Self::Add),
            Operator::Minus => Some(Self::Subtract),
            Operator::Multiply => Some(Self::Multiply),
            Operator::Modulo => Some(Self::Remainder),
            _ => None,
        }
    }

    fn operator(self) -> Operator {
        match self {
            Self::Add => Operator::Plus,
            Self::Subtract => Operator::Minus,
            Self::Multiply => Operator::Multiply,
            Self::Remainder => Operator::Modulo,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Add => "checked_add",
            Self::Subtract => "checked_subtract",
            Self::Multiply => "checked_multiply",
            Self::Remainder => "checked_remainder",
        }
    }

    fn function(self) -> Arc<ScalarUDF> {
        let signature = Signature::any(2, Volatility::Immutable);
        Arc::new(ScalarUDF::from(Arithmetic { operation: self, signature }))
    }

    fn compute(self, left: &dyn Datum, right: &dyn Datum) -> std::result::Result<ArrayRef, ArrowError> {
        let computed = match self {
            Self::Add => numeric::add(left, right),
            Self::Subtract => numeric::sub(left, right),
            Self::Multiply => numeric::mul(left, right),
            Self::Remainder => numeric::rem(left, right),
        }?;
        if let DataType::Decimal128(precision, _) = computed.data_type() {
            let decimals = computed.as_primitive::<Decimal128Type>();
            decimals
                .validate_decimal_precision(*precision)
                .map_err(|_| ArrowError::ArithmeticOverflow(String::new()))?;
        }
        Ok(computed)
    }
}

/// One of the functions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Arithmetic {
    operation: Operation,
    signature: Signature,
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        self.operation.name()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let [left, right] = args else { return plan_err!("{} takes two arguments", self.name()) };
        Ok(format!("{} {} {}", left.schema_name(), self.operation.operator(), right.schema_name()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        match kinds {
            [left, right] if left == right && left.is_integer() => Ok(left.clone()),
            [left @ DataType::Decimal128(..), right @ DataType::Decimal128(..)] => {
                BinaryTypeCoercer::new(left, &self.operation.operator(), right).get_result_type()
            }
            _ => plan_err!("{} takes two integers of one type or two decimals", self.name()),
        }
    }

    /// As of the operators: NULL only from NULL.
    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let kinds: Vec<DataType> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&kinds)?, nullable)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = &*args.args else { return exec_err!("{} takes two arguments", self.name()) };
        match apply(left, right, |left, right| self.operation.compute(left, right)) {
            Err(DataFusionError::ArrowError(error, backtrace)) => match *error {
                ArrowError::ArithmeticOverflow(why) => {
                    let kind = Kind(args.return_field.data_type());
                    if matches!(kind.0, DataType::Decimal128(..)) {
                        let operator = self.operation.operator();
                        return exec_err!("a result of {operator} does not fit {kind}; CAST a value to DOUBLE");
                    }
                    let values = why.strip_prefix("Overflow happened on: ").unwrap_or(&why);
                    exec_err!("{values} does not fit {kind}; CAST a value to DOUBLE or to DECIMAL(38, 0)")
                }
                other => Err(DataFusionError::ArrowError(Box::new(other), backtrace)),
            },
            computed => computed,
        }
    }
}

/// A type of whole numbers or decimals with its name in SQL.
pub struct Kind<'a>(pub &'a DataType);

impl fmt::Display for Kind<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            DataType::Int8 => out.write_str("TINYINT"),
            DataType::Int16 => out.write_str("SMALLINT"),
            DataType::Int32 => out.write_str("INT"),
            DataType::Int64 => out.write_str("BIGINT"),
            DataType::UInt8 => out.write_str("TINYINT UNSIGNED"),
            DataType::UInt16 => out.write_str("SMALLINT UNSIGNED"),
            DataType::UInt32 => out.write_str("INT UNSIGNED"),
            DataType::UInt64 => out.write_str("BIGINT UNSIGNED"),
            DataType::Decimal128(precision, scale) => write!(out, "DECIMAL({precision}, {scale})"),
            other => write!(out, "{other}"),
        }
    }
}

/// The rule that replaces the operators.
#[derive(Debug)]
struct Checked;

impl AnalyzerRule for Checked {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(replaced).map(|plan| plan.data)
    }
}

fn is_decimal(kind: &DataType) -> bool {
    matches!(kind, DataType::Decimal128(..))
}

fn replaced(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let mut schema = merge_schema(&plan.inputs());
    if let LogicalPlan::TableScan(scan) = &plan {
        schema.merge(&datafusion::common::DFSchema::try_from_qualified_schema(
            scan.table_name.clone(),
            &scan.source.schema(),
        )?);
    }
    let names = NamePreserver::new(&plan);
    plan.map_expressions(|expr| {
        let name = names.save(&expr);
        let expr = expr.transform_up(|expr| {
            let (operation, left, right) = match expr {
                Expr::BinaryExpr(BinaryExpr { left, op, right }) => match Operation::of(op) {
                    Some(operation) => (operation, left, right),
                    None => return Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op, right }))),
                },
                // A literal is negative without an operation.
                Expr::Negative(inner) => match inner.get_type(&schema) {
                    Ok(kind) if kind.is_signed_integer() => {
                        let zero = ScalarValue::new_zero(&kind)?;
                        (Operation::Subtract, Box::new(lit(zero)), inner)
                    }
                    _ => return Ok(Transformed::no(Expr::Negative(inner))),
                },
                other => return Ok(Transformed::no(other)),
            };
            // References to outer queries have their types in themselves.
            let kinds = (left.get_type(&schema), right.get_type(&schema));
            match kinds {
                (Ok(one), Ok(other))
                    if (one == other && one.is_integer() && operation != Operation::Remainder)
                        || (is_decimal(&one) && is_decimal(&other)) =>
                {
                    let call = ScalarFunction::new_udf(operation.function(), vec![*left, *right]);
                    Ok(Transformed::yes(Expr::ScalarFunction(call)))
                }
                _ => {
                    let operator = operation.operator();
                    Ok(Transformed::no(Expr::BinaryExpr(BinaryExpr { left, op: operator, right })))
                }
            }
        })?;
        Ok(expr.update_data(|expr| name.restore(expr)))
    })?
    .map_data(LogicalPlan::recompute_schema)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::prelude::SessionConfig;

    use super::*;
    use crate::engine::checked_sum;

    async fn answer(sql: &str, partitions: usize, checked: bool) -> std::result::Result<String, String> {
        let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(3);
        let ctx = SessionContext::new_with_config(config);
        if checked {
            register(&ctx);
            checked_sum::register(&ctx);
        }
        let table = "CREATE TABLE t AS SELECT *, CAST(i AS INT) AS s, CAST(i + 20 AS BIGINT UNSIGNED) AS u FROM (VALUES
            (1, 1.5, 'a'), (2, 2.5, 'b'), (NULL, 0.5, 'a'), (-7, NULL, 'b'), (9, 4.0, 'a'), (3, 1.0, 'c'), (4, 2.0, 'c')) AS v(i, d, g)";
        ctx.sql(table).await.unwrap().collect().await.unwrap();
        let plain = |error: DataFusionError| error.strip_backtrace();
        let answered = ctx.sql(sql).await.map_err(plain)?.collect().await.map_err(plain)?;
        Ok(pretty_format_batches(&answered).unwrap().to_string())
    }

    #[tokio::test]
    async fn overflow_is_an_error() {
        let most = i64::MAX;
        let nines = format!("CAST('{}' AS DECIMAL(38, 0))", "9".repeat(38));
        for (sql, why) in [
            (format!("SELECT {most} + 1"), "9223372036854775807 + 1 does not fit BIGINT; CAST"),
            ("SELECT 10000000000 * 10000000000".to_owned(), "does not fit BIGINT"),
            (format!("SELECT -{most} - i FROM t"), "does not fit BIGINT"),
            (format!("SELECT -(i - i - {most} - 1) FROM t"), "does not fit BIGINT"),
            ("SELECT u - CAST(30 AS BIGINT UNSIGNED) FROM t".to_owned(), "does not fit BIGINT UNSIGNED"),
            ("SELECT s * CAST(2000000000 AS INT) FROM t".to_owned(), "does not fit INT;"),
            (format!("SELECT g FROM t WHERE i + {most} > 0"), "does not fit BIGINT"),
            (
                format!("SELECT g FROM t WHERE EXISTS (SELECT 1 FROM t AS o WHERE o.i = t.i AND o.i * {most} > 0)"),
                "does not fit",
            ),
            (format!("SELECT max(i * {most}) FROM t GROUP BY g"), "does not fit BIGINT"),
            (
                format!("SELECT sum(i) FROM (SELECT {most} AS i UNION ALL SELECT 1)"),
                "the sum 9223372036854775808 does not fit BIGINT",
            ),
            (format!("SELECT g, sum(i) FROM (SELECT g, {most} - 5 AS i FROM t) GROUP BY g"), "does not fit BIGINT"),
            (
                format!("SELECT sum(i) OVER (ORDER BY g ROWS 1 PRECEDING) FROM (SELECT g, {most} AS i FROM t)"),
                "does not fit BIGINT",
            ),
            (format!("SELECT {nines} + 1"), "a result of + does not fit DECIMAL(38, 0)"),
            (format!("SELECT {nines} - CAST(-1 AS DECIMAL(1, 0))"), "a result of - does not fit DECIMAL(38, 0)"),
            (
                format!("SELECT sum(x) FROM (SELECT {nines} AS x UNION ALL SELECT CAST(1 AS DECIMAL(38, 0)))"),
                "a sum does not fit DECIMAL(38, 0)",
            ),
            (
                format!("SELECT g, sum(x) FROM (SELECT g, {nines} AS x FROM t) GROUP BY g"),
                "a sum does not fit DECIMAL(38, 0)",
            ),
        ] {
            for partitions in [1, 3] {
                let answered = answer(&sql, partitions, true).await;
                assert!(answered.as_ref().is_err_and(|error| error.contains(why)), "{sql}: {answered:?}");
            }
        }
    }

    /// Values, types, NULLs and names are those of DataFusion.
    #[tokio::test]
    async fn everything_else_is_as_before() {
        for sql in [
            "SELECT i + 1, i - s, i * 2 AS x, -i, d + 1, d * i, -d, i / 2, i % 2, s + s, u * u FROM t",
            "SELECT g, sum(i), sum(s), sum(u), sum(d), sum(i + 1), sum(DISTINCT i), sum(i) FILTER (WHERE i > 1), count(i + 1) FROM t GROUP BY g ORDER BY g",
            "SELECT sum(i), sum(i) FILTER (WHERE false), sum(u) FROM t",
            "SELECT i, sum(i) OVER (ORDER BY i ROWS 1 PRECEDING) AS a, sum(i) OVER (PARTITION BY g) AS b FROM t ORDER BY i",
            "SELECT sum(x) FROM (SELECT 9223372036854775807 AS x UNION ALL SELECT 1 UNION ALL SELECT -1)",
            "SELECT i + 1 AS j FROM t WHERE i * 2 > 4 ORDER BY i + 1 LIMIT 1 + 1",
            "SELECT g, (SELECT max(o.i + 1) FROM t AS o WHERE o.g = t.g) AS m FROM t ORDER BY g, m",
            "SELECT i * 2, count(*) FROM t GROUP BY i * 2 HAVING sum(i) + 1 > 0 ORDER BY i * 2",
            "SELECT DATE '2020-01-31' + INTERVAL '1 month' AS d, TIMESTAMP '2020-01-02' - TIMESTAMP '2020-01-01' AS e, 1.5 * 2 AS f",
            "SELECT x + y, x - y, x * y, x + i, arrow_typeof(x + y), arrow_typeof(x * y) FROM (SELECT i, CAST(d AS DECIMAL(10, 2)) AS x,
             CAST(i AS DECIMAL(12, 3)) AS y FROM t) ORDER BY i",
            "SELECT g, sum(x), arrow_typeof(sum(x)) FROM (SELECT g, CAST(d AS DECIMAL(10, 2)) AS x FROM t) GROUP BY g ORDER BY g",
            "SELECT i, sum(x) OVER (ORDER BY i ROWS 1 PRECEDING) AS a FROM (SELECT i, CAST(d AS DECIMAL(10, 2)) AS x FROM t) ORDER BY i",
            "SELECT arrow_typeof(i + 1), arrow_typeof(s + s), arrow_typeof(s + 1), arrow_typeof(u + u), arrow_typeof(sum(s)) FROM t GROUP BY 1, 2, 3, 4",
        ] {
            let right = answer(sql, 1, false).await.unwrap();
            for partitions in [1, 3] {
                assert_eq!(answer(sql, partitions, true).await.as_ref(), Ok(&right), "{sql}");
            }
        }
    }
}
