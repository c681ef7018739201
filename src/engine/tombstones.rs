//! The SQL functions `is_tombstone(_error)` and `key_text(_key)`, for streams whose keys are deleted by messages without a value.
//!
//! The optimizer replaces both by expressions of DataFusion, so that the processes of a cluster need not know them.

use std::sync::Arc;

use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::{CastOptions, cast, cast_with_options};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit, try_cast,
};
use tercile_store::record::{TOMBSTONE_REASONS, is_tombstone};

/// Both functions.
pub fn functions() -> [ScalarUDF; 2] {
    [
        ScalarUDF::from(IsTombstone { signature: Signature::string(1, Volatility::Immutable) }),
        ScalarUDF::from(KeyText { signature: Signature::exact(vec![DataType::Binary], Volatility::Immutable) }),
    ]
}

/// True if a record's `_error` tells that its message has no value; false for other errors and for readable records.
#[derive(Debug, PartialEq, Eq, Hash)]
struct IsTombstone {
    signature: Signature,
}

impl ScalarUDFImpl for IsTombstone {
    fn name(&self) -> &str {
        "is_tombstone"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn simplify(&self, mut arguments: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let error =
            arguments.pop().ok_or_else(|| DataFusionError::Internal("is_tombstone without _error".to_owned()))?;
        let [now, before] = TOMBSTONE_REASONS.map(|reason| error.clone().like(lit(format!("{reason}%"))));
        Ok(ExprSimplifyResult::Simplified(now.or(before).is_true()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let errors = args.args[0].to_array(args.number_rows)?;
        let errors = cast(&errors, &DataType::Utf8)?;
        let is = |error: Option<&str>| Some(error.is_some_and(is_tombstone));
        let found: BooleanArray = errors.as_string::<i32>().iter().map(is).collect();
        Ok(ColumnarValue::Array(Arc::new(found)))
    }
}

/// The key of a Kafka message as text; NULL if it is none, or not UTF-8.
#[derive(Debug, PartialEq, Eq, Hash)]
struct KeyText {
    signature: Signature,
}

impl ScalarUDFImpl for KeyText {
    fn name(&self) -> &str {
        "key_text"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn simplify(&self, mut arguments: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        let key = arguments.pop().ok_or_else(|| DataFusionError::Internal("key_text without _key".to_owned()))?;
        Ok(ExprSimplifyResult::Simplified(try_cast(key, DataType::Utf8)))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let keys = args.args[0].to_array(args.number_rows)?;
        let text = cast_with_options(&keys, &DataType::Utf8, &CastOptions { safe: true, ..CastOptions::default() })?;
        Ok(ColumnarValue::Array(text))
    }
}
