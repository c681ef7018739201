//! The SQL functions that every session has, beside DataFusion's own: `to_number`, `to_integer`, `to_datetime`, those of JSON, `md5`, `sha256`, and
//! those of times that replace DataFusion's (`time_functions`). Also the operations of dates and intervals (`date_planner`), and of values of `u -> 'field'` (`json_values`).
//!
//! Input: a text, and constants that say how it is written. Output: its value by the rules of the module `value`, or NULL.
//! The JSON functions and operators (`->`, `->>`, `json_get…`) are those of `datafusion-functions-json`. All depend only
//! on their arguments, so that they can run in any process of a cluster.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, Decimal128Array, Float64Array, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::{can_cast_types, cast};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use datafusion::common::{exec_err, plan_err};
use datafusion::error::Result;
use datafusion::execution::FunctionRegistry;
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

use super::{comparisons, date_planner, json_values, text_hashes, time_functions};
use crate::value::number::Format;
use crate::value::time::Form;

/// Precision of the results of `to_integer`.
const PRECISION: u8 = 38;

/// Registers all functions, and the operators of JSON.
pub fn register(ctx: &SessionContext) -> Result<()> {
    let state = ctx.state_ref();
    register_with(&mut *state.write())?;
    ctx.add_analyzer_rule(Arc::new(json_values::Coerced));
    Ok(())
}

/// The same in the session of a scheduler.
pub fn register_with(registry: &mut dyn FunctionRegistry) -> Result<()> {
    datafusion_functions_json::register_all(registry)?;
    registry.register_expr_planner(Arc::new(date_planner::DatePlanner))?;
    registry.register_function_rewrite(Arc::new(date_planner::KeepInstant))?;
    registry.register_function_rewrite(Arc::new(json_values::Rewrite))?;
    registry.register_function_rewrite(Arc::new(comparisons::Lossless))?;
    for function in own_functions() {
        registry.register_udf(function)?;
    }
    Ok(())
}

/// All functions, for a process that only executes plans.
#[cfg(feature = "distributed")]
pub fn functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    use datafusion_functions_json::udfs;

    let json = [
        udfs::json_as_text_udf(),
        udfs::json_contains_udf(),
        udfs::json_from_scalar_udf(),
        udfs::json_get_udf(),
        udfs::json_get_array_udf(),
        udfs::json_get_bool_udf(),
        udfs::json_get_float_udf(),
        udfs::json_get_int_udf(),
        udfs::json_get_json_udf(),
        udfs::json_get_str_udf(),
        udfs::json_length_udf(),
        udfs::json_object_keys_udf(),
        udfs::json_union_to_text_udf(),
    ];
    json.into_iter().chain(own_functions())
}

fn own_functions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    conversions()
        .chain(time_functions::functions())
        .chain(text_hashes::functions())
        .chain(std::iter::once(date_planner::function()))
        .chain(json_values::functions())
        .chain(std::iter::once(comparisons::function()))
}

fn conversions() -> impl Iterator<Item = Arc<ScalarUDF>> {
    [Target::Number, Target::Integer, Target::Time].into_iter().map(|target| {
        let signature = Signature::variadic_any(Volatility::Immutable);
        Arc::new(ScalarUDF::from(Conversion { target, signature }))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Target {
    Number,
    Integer,
    Time,
}

/// A function from text to values. Arguments: the text; constants.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Conversion {
    target: Target,
    signature: Signature,
}

/// The constants of a call.
#[derive(Default)]
struct Options {
    format: Format,
    form: Option<Form>,
}

impl Conversion {
    /// The constants after the text.
    fn options<'s>(&self, constants: impl Iterator<Item = Option<&'s ScalarValue>>) -> Result<Options> {
        let (mut options, mut marks) = (Options::default(), 0);
        for constant in constants {
            let Some(text) = constant.and_then(|constant| constant.try_as_str().flatten()) else {
                return plan_err!("{}: the arguments after the text must be constant texts", self.name());
            };
            match (self.target, text) {
                (Target::Time, text) => match (Form::of_name(text), options.form) {
                    (Some(form), None) => options.form = Some(form),
                    _ => {
                        return plan_err!(
                            "{}: expected 'dmy' (day first), 'mdy' (month first), or the unit of numbers since 1970 ('s', 'ms', 'us', \
                             'ns') after the text, once; found '{text}'",
                            self.name()
                        );
                    }
                },
                (_, "." | ",") if marks == 0 => {
                    options.format.mark = if text == "," { ',' } else { '.' };
                    marks += 1;
                }
                (_, unit) if options.format.unit.is_none() && is_unit(unit) => {
                    options.format.unit = Some(unit.to_owned());
                }
                _ => {
                    return plan_err!(
                        "{}: expected a decimal mark, '.' or ',', and a unit without digits, each at most once; found \
                         '{text}'",
                        self.name()
                    );
                }
            }
        }
        Ok(options)
    }
}

/// A unit has no digit and no blank at its ends, where the text has none either.
fn is_unit(text: &str) -> bool {
    !matches!(text, "" | "." | ",")
        && text == crate::value::trimmed(text)
        && !text.contains(|c: char| c.is_ascii_digit())
}

impl ScalarUDFImpl for Conversion {
    fn name(&self) -> &'static str {
        match self.target {
            Target::Number => "to_number",
            Target::Integer => "to_integer",
            Target::Time => "to_datetime",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.target {
            Target::Number => DataType::Float64,
            Target::Integer => DataType::Decimal128(PRECISION, 0),
            Target::Time => DataType::Timestamp(TimeUnit::Microsecond, None),
        })
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        let Some(text) = args.arg_fields.first() else {
            return plan_err!("{}: expected a text", self.name());
        };
        // A cast of JSON's union would keep the strings and lose the numbers.
        if matches!(text.data_type(), DataType::Union(..)) || !can_cast_types(text.data_type(), &DataType::Utf8) {
            return plan_err!(
                "{}: expected a text, and the argument is none; of JSON, ->> gives a text and -> does not",
                self.name()
            );
        }
        self.options(args.scalar_arguments.iter().skip(1).copied())?;
        Ok(Arc::new(Field::new(self.name(), self.return_type(&[])?, true)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [text, constants @ ..] = args.args.as_slice() else {
            return exec_err!("{}: expected a text", self.name());
        };
        let constants = constants.iter().map(|constant| match constant {
            ColumnarValue::Scalar(constant) => Some(constant),
            ColumnarValue::Array(_) => None,
        });
        let Options { format, form } = self.options(constants)?;
        let form = form.unwrap_or(Form::Date(None));
        let texts = cast(&text.to_array(args.number_rows)?, &DataType::Utf8)?;
        let texts = texts.as_string::<i32>().iter();
        let array: ArrayRef = match self.target {
            Target::Number => Arc::new(texts.map(|text| format.number(text?)).collect::<Float64Array>()),
            Target::Integer => {
                let whole = texts.map(|text| format.integer(text?)).collect::<Decimal128Array>();
                Arc::new(whole.with_precision_and_scale(PRECISION, 0)?)
            }
            Target::Time => Arc::new(texts.map(|text| form.time(text?)).collect::<TimestampMicrosecondArray>()),
        };
        debug_assert_eq!(array.len(), args.number_rows);
        match text {
            ColumnarValue::Scalar(_) if array.len() == 1 => {
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
            }
            _ => Ok(ColumnarValue::Array(array)),
        }
    }
}
