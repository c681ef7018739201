//! DataFusion's functions of times, with the patterns of PostgreSQL, and with errors where a time is out of range.
//!
//! Input: a function of DataFusion. Output: a function of the same name that delegates to it.
//!
//! - Patterns are those of chrono (`%Y-%m-%d`). DataFusion copies a pattern of PostgreSQL (`YYYY-MM-DD`) to the result, because it has
//!   no `%`. Here such a pattern is translated ([`pattern`]), or rejected if chrono has no equivalent.
//! - `to_timestamp` of a double beyond the year 2262 is the last time that fits, and `date_bin` of such a time is NULL. Here both are
//!   errors.

mod pattern;

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray};
use datafusion::arrow::compute::{cast, is_null, nullif};
use datafusion::arrow::datatypes::{DataType, FieldRef, Float64Type};
use datafusion::common::exec_err;
use datafusion::config::ConfigOptions;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions::datetime;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use datafusion::scalar::ScalarValue;

/// Seconds from 1970 to the last time that nanoseconds can express.
const LAST_SECOND: f64 = 9_223_372_036.0;

/// The functions.
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    // Sessions replace it by their own configuration.
    let config = ConfigOptions::default();
    [
        (datetime::to_char(), Check::Format),
        (datetime::to_date(), Check::Parse),
        (datetime::to_timestamp(&config), Check::Parse),
        (datetime::to_timestamp_seconds(&config), Check::Parse),
        (datetime::to_timestamp_millis(&config), Check::Parse),
        (datetime::to_timestamp_micros(&config), Check::Parse),
        (datetime::to_timestamp_nanos(&config), Check::Parse),
        (datetime::to_unixtime(), Check::Parse),
        (datetime::date_bin(), Check::Bin),
    ]
    .into_iter()
    .map(|(inner, check)| Arc::new(ScalarUDF::from(TimeFunction { inner, check })))
}

/// What is added to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Check {
    /// The second argument is a pattern.
    Format,
    /// All arguments after the first are patterns.
    Parse,
    /// A result is NULL only if an argument is.
    Bin,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeFunction {
    inner: Arc<ScalarUDF>,
    check: Check,
}

impl ScalarUDFImpl for TimeFunction {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, kinds: &[DataType]) -> Result<DataType> {
        self.inner.return_type(kinds)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = Arc::new(self.inner.inner().with_updated_config(config)?);
        Some(ScalarUDF::from(Self { inner, check: self.check }))
    }

    fn coerce_types(&self, kinds: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(kinds)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        self.inner.simplify(args, info)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner.preserves_lex_ordering(inputs)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.inner.evaluate_bounds(inputs)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match self.check {
            // A duration has no pattern.
            Check::Format if matches!(args.args.first().map(ColumnarValue::data_type), Some(DataType::Duration(_))) => {
            }
            Check::Format | Check::Parse => {
                for pattern in args.args.iter_mut().skip(1) {
                    *pattern = self.translated(pattern, self.check == Check::Format)?;
                }
            }
            Check::Bin => {}
        }
        if self.check == Check::Parse && self.name() == "to_timestamp" {
            in_range(args.args.first())?;
        }
        let patterns = match args.args.get(1) {
            Some(ColumnarValue::Array(patterns)) if self.check == Check::Format => Some(Arc::clone(patterns)),
            _ => None,
        };
        let given = (self.check == Check::Bin).then(|| args.args.clone());
        let rows = args.number_rows;
        let result = self.inner.invoke_with_args(args)?;
        if let Some(given) = given {
            no_new_nulls(&given, &result, rows)?;
        }
        match patterns.filter(|patterns| patterns.null_count() > 0) {
            // DataFusion repeats the text of the row before.
            Some(patterns) => Ok(ColumnarValue::Array(nullif(&result.to_array(rows)?, &is_null(&patterns)?)?)),
            None => Ok(result),
        }
    }
}

impl TimeFunction {
    /// A pattern, or a column of patterns, for chrono.
    fn translated(&self, given: &ColumnarValue, output: bool) -> Result<ColumnarValue> {
        let translate = |text: &str| {
            pattern::translate(text, output)
                .map(Cow::into_owned)
                .map_err(|why| DataFusionError::Execution(format!("{}: {why}", self.name())))
        };
        match given {
            ColumnarValue::Scalar(value) => match value.try_as_str().flatten() {
                Some(text) => Ok(ColumnarValue::Scalar(ScalarValue::Utf8(Some(translate(text)?)))),
                None => Ok(given.clone()),
            },
            ColumnarValue::Array(texts) if *texts.data_type() == DataType::Utf8 => {
                let texts = texts.as_string::<i32>().iter();
                let translated: Result<StringArray> = texts.map(|text| text.map(translate).transpose()).collect();
                Ok(ColumnarValue::Array(Arc::new(translated?)))
            }
            ColumnarValue::Array(_) => Ok(given.clone()),
        }
    }
}

/// Rejects doubles that are no time of nanoseconds. NaN is none either.
fn in_range(given: Option<&ColumnarValue>) -> Result<()> {
    let Some(given) = given.filter(|given| given.data_type().is_floating()) else { return Ok(()) };
    let seconds = match given {
        ColumnarValue::Scalar(value) => value.to_array()?,
        ColumnarValue::Array(values) => Arc::clone(values),
    };
    let seconds = cast(&seconds, &DataType::Float64)?;
    match seconds
        .as_primitive::<Float64Type>()
        .iter()
        .flatten()
        .find(|second| second.is_nan() || second.abs() > LAST_SECOND)
    {
        Some(second) => exec_err!("Overflow converting {second} seconds to Nanosecond"),
        None => Ok(()),
    }
}

fn no_new_nulls(given: &[ColumnarValue], result: &ColumnarValue, rows: usize) -> Result<()> {
    let nulls = |value: &ColumnarValue| -> Result<ArrayRef> { value.to_array(rows) };
    let result = nulls(result)?;
    if result.null_count() == 0 {
        return Ok(());
    }
    let given: Vec<ArrayRef> = given.iter().map(nulls).collect::<Result<_>>()?;
    match (0..result.len()).find(|row| result.is_null(*row) && given.iter().all(|values| values.is_valid(*row))) {
        Some(_) => exec_err!("Timestamp out of range"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn answer(sql: &str) -> Result<String, String> {
        let ctx = SessionContext::new();
        functions().for_each(|function| ctx.register_udf(function.as_ref().clone()));
        let shown = async {
            let batches = ctx.sql(sql).await?.collect().await?;
            let column = cast(batches[0].column(0), &DataType::Utf8)?;
            let column = column.as_string::<i32>();
            Ok::<_, DataFusionError>(
                column.iter().map(|text| text.unwrap_or("NULL").to_owned()).collect::<Vec<_>>().join("|"),
            )
        };
        shown.await.map_err(|e| e.strip_backtrace())
    }

    #[tokio::test]
    async fn patterns_are_those_of_chrono_or_of_postgresql() {
        const TIME: &str = "TIMESTAMP '2024-05-06T07:08:09.123456'";
        for (sql, expected) in [
            (format!("SELECT to_char({TIME}, 'YYYY-MM-DD')"), "2024-05-06"),
            (format!("SELECT date_format({TIME}, 'YYYY-MM-DD')"), "2024-05-06"),
            (format!("SELECT to_char({TIME}, '%d/%m/%Y')"), "06/05/2024"),
            (format!("SELECT to_char({TIME}, p) FROM (VALUES ('YYYY'), ('%Y'), (NULL)) AS t(p)"), "2024|2024|NULL"),
            ("SELECT to_char(DATE '2024-05-06', 'Mon DD')".to_owned(), "May 06"),
            ("SELECT to_date('06/05/2024', 'DD/MM/YYYY')".to_owned(), "2024-05-06"),
            ("SELECT to_timestamp('2024-05-06 07:08', 'YYYY-MM-DD HH24:MI')".to_owned(), "2024-05-06T07:08:00"),
            ("SELECT to_timestamp_millis('06.05.24', 'DD.MM.YY', '%d.%m.%y %H')".to_owned(), "2024-05-06T00:00:00"),
            ("SELECT to_char(now() - now(), 'pretty') IS NOT NULL".to_owned(), "true"),
        ] {
            assert_eq!(answer(&sql).await.as_deref(), Ok(expected), "{sql}");
        }
        let wrong = answer(&format!("SELECT to_char({TIME}, 'MONTH')")).await.unwrap_err();
        assert!(wrong.contains("to_char: the pattern MONTH has no equivalent here"), "{wrong}");
    }

    #[tokio::test]
    async fn times_out_of_range_are_errors() {
        for sql in [
            "SELECT to_timestamp(253402300799.0)",
            "SELECT to_timestamp(a) FROM (VALUES (1.5e0), (-1e18)) AS t(a)",
            "SELECT to_timestamp(CAST('NaN' AS DOUBLE))",
            "SELECT date_bin(INTERVAL '1 day', to_timestamp_seconds(253402300799))",
            "SELECT date_bin(INTERVAL '1 day', to_timestamp_seconds(a)) FROM (VALUES (1), (253402300799)) AS t(a)",
        ] {
            assert!(answer(sql).await.is_err(), "{sql}");
        }
        for (sql, expected) in [
            ("SELECT to_timestamp(1.5)", "1970-01-01T00:00:01.500"),
            ("SELECT date_bin(INTERVAL '1 day', CAST(NULL AS TIMESTAMP))", "NULL"),
            ("SELECT date_bin(INTERVAL '1 day', TIMESTAMP '2024-05-06T07:08:09')", "2024-05-06T00:00:00"),
        ] {
            assert_eq!(answer(sql).await.as_deref(), Ok(expected), "{sql}");
        }
    }
}
