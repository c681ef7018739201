//! The aggregate `sum` of integers and decimals, which fails if the sum does not fit its type.
//!
//! DataFusion's wraps around without a message. Sums are kept in 128 bits, so that the order of values does not matter: values that
//! cancel each other out are no overflow. Other types go to DataFusion's own implementation.

use std::mem::size_of;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, Decimal128Array, Int64Array, PrimitiveArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use datafusion::common::{ScalarValue, exec_datafusion_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};
use datafusion::prelude::SessionContext;

use super::checked_arithmetic::Kind;

/// Digits of a state. A sum of 2^60 values has 37 at most.
const PRECISION: u8 = 38;

/// Replaces `sum` in a session.
pub fn register(ctx: &SessionContext) {
    ctx.register_udaf(AggregateUDF::clone(&sum()));
}

/// The function, which has the name of DataFusion's.
pub fn sum() -> Arc<AggregateUDF> {
    Arc::new(AggregateUDF::from(Sum(sum_udaf())))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum(Arc<AggregateUDF>);

/// The type of the sum, if it is computed here. Smaller integers are coerced to these types. A sum of decimals has ten digits more than
/// the values, as of DataFusion.
fn exact(argument: Option<&FieldRef>, is_distinct: bool) -> Option<DataType> {
    match argument?.data_type() {
        _ if is_distinct => None,
        kind @ (DataType::Int64 | DataType::UInt64) => Some(kind.clone()),
        DataType::Decimal128(precision, scale) => Some(DataType::Decimal128((precision + 10).min(PRECISION), *scale)),
        _ => None,
    }
}

/// The digits behind the point of a sum.
fn scale_of(kind: &DataType) -> i8 {
    if let DataType::Decimal128(_, scale) = kind { *scale } else { 0 }
}

/// The sum with another value.
fn plus(sum: Option<i128>, value: i128, kind: &DataType) -> Result<i128> {
    let sum = sum.unwrap_or_default().checked_add(value);
    sum.ok_or_else(|| too_wide(kind))
}

fn too_wide(kind: &DataType) -> DataFusionError {
    exec_datafusion_err!("a sum does not fit {}; CAST the values to DOUBLE", Kind(kind))
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn aliases(&self) -> &[String] {
        self.0.aliases()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.0.return_type(arguments)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match exact(args.expr_fields.first(), args.is_distinct) {
            Some(kind) => Ok(Box::new(One { kind, sum: None, values: 0 })),
            None => self.0.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match exact(args.expr_fields.first(), args.is_distinct) {
            Some(_) => self.accumulator(args),
            None => self.0.create_sliding_accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        match exact(args.input_fields.first(), args.is_distinct) {
            Some(kind) => {
                let kind = DataType::Decimal128(PRECISION, scale_of(&kind));
                Ok(vec![Arc::new(Field::new(format!("{}[sum]", args.name), kind, true))])
            }
            None => self.0.state_fields(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        exact(args.expr_fields.first(), args.is_distinct).is_some() || self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match exact(args.expr_fields.first(), args.is_distinct) {
            Some(kind) => Ok(Box::new(Groups { kind, sums: Vec::new() })),
            None => self.0.create_groups_accumulator(args),
        }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn set_monotonicity(&self, kind: &DataType) -> SetMonotonicity {
        self.0.inner().set_monotonicity(kind)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

fn foreign() -> DataFusionError {
    DataFusionError::Internal("a checked sum of something else".to_owned())
}

/// Calls `add` with the row and value of each element of an argument or of a state that is not NULL.
fn for_each(array: &dyn Array, mut add: impl FnMut(usize, i128) -> Result<()>) -> Result<()> {
    fn each<T: ArrowPrimitiveType>(
        values: &PrimitiveArray<T>,
        add: &mut impl FnMut(usize, i128) -> Result<()>,
    ) -> Result<()>
    where
        T::Native: Into<i128>,
    {
        let mut all = values.values().iter().enumerate();
        match values.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => all.try_for_each(|(row, value)| add(row, (*value).into())),
            Some(nulls) => {
                all.filter(|(row, _)| nulls.is_valid(*row)).try_for_each(|(row, value)| add(row, (*value).into()))
            }
        }
    }
    if let Some(values) = array.as_primitive_opt::<Int64Type>() {
        each(values, &mut add)
    } else if let Some(values) = array.as_primitive_opt::<UInt64Type>() {
        each(values, &mut add)
    } else {
        each(array.as_primitive_opt::<Decimal128Type>().ok_or_else(foreign)?, &mut add)
    }
}

/// The sums as an array of the result's type.
fn results(kind: &DataType, sums: Vec<Option<i128>>) -> Result<ArrayRef> {
    let too_large = |sum: i128| {
        let kind = Kind(kind);
        exec_datafusion_err!("the sum {sum} does not fit {kind}; CAST the values to DOUBLE or to DECIMAL(38, 0)")
    };
    if let DataType::Decimal128(precision, scale) = kind {
        let sums = Decimal128Array::from(sums).with_precision_and_scale(*precision, *scale)?;
        sums.validate_decimal_precision(*precision).map_err(|_| too_wide(kind))?;
        return Ok(Arc::new(sums));
    }
    if *kind == DataType::UInt64 {
        let narrow = |sum: i128| u64::try_from(sum).map_err(|_| too_large(sum));
        let sums: Vec<Option<u64>> = sums.into_iter().map(|sum| sum.map(narrow).transpose()).collect::<Result<_>>()?;
        return Ok(Arc::new(UInt64Array::from(sums)));
    }
    let narrow = |sum: i128| i64::try_from(sum).map_err(|_| too_large(sum));
    let sums: Vec<Option<i64>> = sums.into_iter().map(|sum| sum.map(narrow).transpose()).collect::<Result<_>>()?;
    Ok(Arc::new(Int64Array::from(sums)))
}

fn states(sums: Vec<Option<i128>>, scale: i8) -> Result<Vec<ArrayRef>> {
    Ok(vec![Arc::new(Decimal128Array::from(sums).with_precision_and_scale(PRECISION, scale)?)])
}

/// One sum.
#[derive(Debug)]
struct One {
    kind: DataType,
    sum: Option<i128>,
    /// The values that are summed up: a window of NULLs has no sum.
    values: u64,
}

impl Accumulator for One {
    fn update_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        for_each(arrays.first().ok_or_else(foreign)?, |_, value| {
            self.sum = Some(plus(self.sum, value, &self.kind)?);
            self.values += 1;
            Ok(())
        })
    }

    fn retract_batch(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        for_each(arrays.first().ok_or_else(foreign)?, |_, value| {
            self.values -= 1;
            self.sum =
                self.sum.filter(|_| self.values > 0).map(|sum| plus(Some(sum), -value, &self.kind)).transpose()?;
            Ok(())
        })
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&results(&self.kind, vec![self.sum])?, 0)
    }

    fn size(&self) -> usize {
        size_of::<Self>()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal128(self.sum, PRECISION, scale_of(&self.kind))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

/// The sums of many groups.
struct Groups {
    kind: DataType,
    sums: Vec<Option<i128>>,
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        arrays: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.sums.resize(total_num_groups, None);
        let passes = |row| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        for_each(arrays.first().ok_or_else(foreign)?, |row, value| {
            // The engine passes one group per row, below the total.
            if let Some(sum) = group_indices.get(row).and_then(|group| self.sums.get_mut(*group))
                && passes(row)
            {
                *sum = Some(plus(*sum, value, &self.kind)?);
            }
            Ok(())
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.update_batch(states, group_indices, None, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        results(&self.kind, emit_to.take_needed(&mut self.sums))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        states(emit_to.take_needed(&mut self.sums), scale_of(&self.kind))
    }

    fn convert_to_state(&self, arrays: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let passes = |row| filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
        let values = arrays.first().ok_or_else(foreign)?;
        let mut sums = vec![None; values.len()];
        for_each(values, |row, value| {
            if let Some(sum) = sums.get_mut(row).filter(|_| passes(row)) {
                *sum = Some(value);
            }
            Ok(())
        })?;
        states(sums, scale_of(&self.kind))
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<Option<i128>>()
    }
}
