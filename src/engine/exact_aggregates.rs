//! The aggregates `sum` and `avg` with exact sums of doubles, under their usual names.
//!
//! DataFusion's add doubles in the order in which rows arrive, which depends on the number of partitions and on timing.
//! Sessions that evaluate views of entities use these instead. Integers are checked (checked_sum.rs); other types go to
//! DataFusion's own implementation.

use std::mem::size_of;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Float64Array, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::average::avg_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use datafusion::prelude::SessionContext;

use super::checked_sum;
use super::exact_sum::ExactSum;

/// An optimizer rule that adds up sums which were rounded before.
const ADDS_ROUNDED_SUMS: &str = "single_distinct_aggregation_to_group_by";

/// Makes the sums of doubles in all queries of a session exact.
pub fn register(ctx: &SessionContext) {
    ctx.register_udaf(AggregateUDF::from(Exact { quotient: false, inner: checked_sum::sum() }));
    ctx.register_udaf(AggregateUDF::from(Exact { quotient: true, inner: avg_udaf() }));
    ctx.remove_optimizer_rule(ADDS_ROUNDED_SUMS);
}

/// `sum`, or with `quotient` `avg`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    quotient: bool,
    inner: Arc<AggregateUDF>,
}

/// True if this implementation applies.
fn is_exact(argument: Option<&FieldRef>, is_distinct: bool) -> bool {
    !is_distinct && argument.is_some_and(|field| *field.data_type() == DataType::Float64)
}

impl AggregateUDFImpl for Exact {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_exact(args.expr_fields.first(), args.is_distinct) {
            true => Ok(Box::new(One { quotient: self.quotient, sum: ExactSum::default(), count: 0 })),
            false => self.inner.accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match is_exact(args.expr_fields.first(), args.is_distinct) {
            true => self.accumulator(args),
            false => self.inner.create_sliding_accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        if !is_exact(args.input_fields.first(), args.is_distinct) {
            return self.inner.state_fields(args);
        }
        let field = |name: &str, kind| Arc::new(Field::new(format!("{}[{name}]", args.name), kind, false));
        Ok(vec![field("count", DataType::UInt64), field("exact_sum", DataType::Binary)])
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        is_exact(args.expr_fields.first(), args.is_distinct) || self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match is_exact(args.expr_fields.first(), args.is_distinct) {
            true => Ok(Box::new(Groups { quotient: self.quotient, sums: Vec::new(), counts: Vec::new(), heap: 0 })),
            false => self.inner.create_groups_accumulator(args),
        }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }
}

/// The result of some values; NULL if there are none.
fn result(quotient: bool, sum: &ExactSum, count: u64) -> Option<f64> {
    (count > 0).then(|| if quotient { sum.quotient(count) } else { sum.sum() })
}

fn doubles(values: &[ArrayRef]) -> Result<&Float64Array> {
    values.first().and_then(|values| values.as_primitive_opt::<Float64Type>()).ok_or_else(foreign)
}

fn foreign() -> DataFusionError {
    DataFusionError::Internal("an exact sum of something else".to_owned())
}

/// The counts and sums of a state.
fn states(state: &[ArrayRef]) -> Result<impl Iterator<Item = Result<(u64, ExactSum)>> + '_> {
    let [counts, sums] = state else { return Err(foreign()) };
    let counts = counts.as_primitive_opt::<UInt64Type>().ok_or_else(foreign)?;
    let sums = sums.as_binary_opt::<i32>().ok_or_else(foreign)?;
    let read = |row| Ok((counts.value(row), ExactSum::read(sums.value(row)).ok_or_else(foreign)?));
    Ok((0..counts.len()).map(read))
}

/// One sum.
#[derive(Debug)]
struct One {
    quotient: bool,
    sum: ExactSum,
    count: u64,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in doubles(values)?.iter().flatten() {
            self.sum.add(value);
            self.count += 1;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in doubles(values)?.iter().flatten() {
            self.sum.subtract(value);
            self.count -= 1;
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(result(self.quotient, &self.sum, self.count)))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.sum.heap_size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut bytes = Vec::new();
        self.sum.write(&mut bytes);
        Ok(vec![ScalarValue::UInt64(Some(self.count)), ScalarValue::Binary(Some(bytes))])
    }

    fn merge_batch(&mut self, state: &[ArrayRef]) -> Result<()> {
        for part in states(state)? {
            let (count, sum) = part?;
            self.count += count;
            self.sum.merge(&sum);
        }
        Ok(())
    }
}

/// The sums of many groups.
struct Groups {
    quotient: bool,
    sums: Vec<ExactSum>,
    counts: Vec<u64>,
    /// Bytes of the sums on the heap.
    heap: usize,
}

impl Groups {
    fn resize(&mut self, groups: usize) {
        self.sums.resize_with(groups, ExactSum::default);
        self.counts.resize(groups, 0);
    }

    fn change(&mut self, group: usize, count: u64, change: impl FnOnce(&mut ExactSum)) {
        let sum = &mut self.sums[group];
        let before = sum.heap_size();
        change(sum);
        self.heap = self.heap + sum.heap_size() - before;
        self.counts[group] += count;
    }

    fn take(&mut self, emit_to: EmitTo) -> (Vec<ExactSum>, Vec<u64>) {
        let (sums, counts) = (emit_to.take_needed(&mut self.sums), emit_to.take_needed(&mut self.counts));
        self.heap -= sums.iter().map(ExactSum::heap_size).sum::<usize>();
        (sums, counts)
    }
}

fn state(sums: &[ExactSum], counts: Vec<u64>) -> Vec<ArrayRef> {
    let mut all = BinaryBuilder::with_capacity(sums.len(), sums.len() * 40);
    let mut bytes = Vec::new();
    for sum in sums {
        bytes.clear();
        sum.write(&mut bytes);
        all.append_value(&bytes);
    }
    vec![Arc::new(UInt64Array::from(counts)), Arc::new(all.finish())]
}

/// True if a row passes a filter.
fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.resize(total_num_groups);
        let values = doubles(values)?;
        for (row, &group) in group_indices.iter().enumerate() {
            if values.is_valid(row) && passes(filter, row) {
                self.change(group, 1, |sum| sum.add(values.value(row)));
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = self.take(emit_to);
        let results = sums.iter().zip(counts).map(|(sum, count)| result(self.quotient, sum, count));
        Ok(Arc::new(results.collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = self.take(emit_to);
        Ok(state(&sums, counts))
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.resize(total_num_groups);
        for (part, &group) in states(values)?.zip(group_indices) {
            let (count, part) = part?;
            self.change(group, count, |sum| sum.merge(&part));
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = doubles(values)?;
        let (mut sums, mut counts) = (vec![ExactSum::default(); values.len()], vec![0; values.len()]);
        for row in (0..values.len()).filter(|&row| values.is_valid(row) && passes(filter, row)) {
            sums[row].add(values.value(row));
            counts[row] = 1;
        }
        Ok(state(&sums, counts))
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<ExactSum>() + self.counts.capacity() * size_of::<u64>() + self.heap
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use datafusion::arrow::array::{Int64Array, RecordBatch};
    use datafusion::arrow::datatypes::{Int64Type, Schema};
    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionConfig;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    const ROWS: usize = 60_000;
    const GROUPS: u64 = 5_000;

    /// Doubles of many magnitudes, in batches.
    fn rows() -> Vec<RecordBatch> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
        let fields =
            [("g", DataType::Int64), ("x", DataType::Float64)].map(|(name, kind)| Field::new(name, kind, true));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        (0..ROWS / 1000)
            .map(|_| {
                let groups: Int64Array = (0..1000).map(|_| Some((rng.next_u64() % GROUPS) as i64)).collect();
                let value = |rng: &mut Xoshiro256PlusPlus| {
                    let value = (rng.next_u64() as f64 - 9e18) * 10f64.powi(rng.next_u32() as i32 % 20);
                    (!rng.next_u32().is_multiple_of(50)).then_some(value)
                };
                let values: Float64Array = (0..1000).map(|_| value(&mut rng)).collect();
                RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(groups), Arc::new(values)]).unwrap()
            })
            .collect()
    }

    async fn answer(
        rows: &[RecordBatch],
        partitions: usize,
        exact: bool,
        sql: &str,
    ) -> BTreeMap<i64, Vec<Option<u64>>> {
        let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(512);
        let ctx = SessionContext::new_with_config(config);
        if exact {
            register(&ctx);
        }
        let parts = rows.chunks(rows.len().div_ceil(partitions)).map(<[RecordBatch]>::to_vec).collect();
        ctx.register_table("t", Arc::new(MemTable::try_new(rows[0].schema(), parts).unwrap())).unwrap();
        let mut all = BTreeMap::new();
        for batch in ctx.sql(sql).await.unwrap().collect().await.unwrap() {
            let keys = batch.column(0).as_primitive::<Int64Type>();
            let column = |i: usize| batch.column(i).as_primitive::<Float64Type>();
            for row in 0..batch.num_rows() {
                let of = |i: usize| column(i).is_valid(row).then(|| column(i).value(row).to_bits());
                all.insert(keys.value(row), (1..batch.num_columns()).map(of).collect());
            }
        }
        all
    }

    #[tokio::test]
    async fn sums_and_averages_are_the_same_bits_at_any_number_of_partitions() {
        let rows = rows();
        let mut reference: BTreeMap<i64, (ExactSum, u64)> = BTreeMap::new();
        for batch in &rows {
            for (group, value) in
                batch.column(0).as_primitive::<Int64Type>().values().iter().zip(doubles(&batch.columns()[1..]).unwrap())
            {
                let (sum, count) = reference.entry(*group).or_default();
                value.iter().for_each(|value| sum.add(*value));
                *count += u64::from(value.is_some());
            }
        }
        let reference: BTreeMap<i64, Vec<Option<u64>>> = reference
            .into_iter()
            .map(|(group, (sum, count))| {
                let bits = |quotient| result(quotient, &sum, count).map(f64::to_bits);
                (group, vec![bits(false), bits(true)])
            })
            .collect();
        let grouped = "SELECT g, sum(x), mean(x) FROM t GROUP BY g";
        let whole = "SELECT 1, sum(x), avg(x), sum(x) FILTER (WHERE g < 7), avg(x) FILTER (WHERE false) FROM t";
        let window = "SELECT max(g), sum(s), avg(s) FROM (SELECT g, sum(x) OVER (PARTITION BY g ORDER BY x ROWS 3 PRECEDING) AS s FROM t)";
        let distinct = "SELECT g % 7, sum(x), CAST(count(DISTINCT g) AS DOUBLE) FROM t GROUP BY 1";
        let mut first = None;
        for partitions in [1, 2, 3, 8, 17] {
            assert_eq!(answer(&rows, partitions, true, grouped).await, reference, "{partitions}");
            let mut these = Vec::new();
            for sql in [whole, window, distinct] {
                these.push(answer(&rows, partitions, true, sql).await);
            }
            assert_eq!(*first.get_or_insert_with(|| these.clone()), these, "{partitions}");
        }
        // DataFusion's own differ, which is why these exist.
        assert_ne!(answer(&rows, 8, false, grouped).await, reference);
    }

    #[tokio::test]
    async fn other_types_are_added_as_ever() {
        let sql = "SELECT sum(i) AS i, avg(CAST(i AS DECIMAL(10, 2))) AS d, sum(i + CAST(0.5 AS FLOAT)) AS f, sum(DISTINCT i) AS n FROM (VALUES (1), (2), (2)) AS v(i)";
        let mut answers = Vec::new();
        for exact in [false, true] {
            let ctx = SessionContext::new();
            if exact {
                register(&ctx);
            }
            answers.push(ctx.sql(sql).await.unwrap().collect().await.unwrap());
        }
        assert_eq!(answers[0], answers[1]);
    }
}
