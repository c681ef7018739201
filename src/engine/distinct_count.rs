//! The aggregate `count`, with `count(DISTINCT …)` of many groups in one hash table.
//!
//! DataFusion counts distinct texts with one hash table per group, of 10 KB at least: a million groups need 10 GB. Its rewrite to
//! two nested GROUP BYs adds up sums that were rounded before, so sessions with exact sums do without it (exact_aggregates.rs).
//! Here the pairs of group and value are the keys of DataFusion's own table of a GROUP BY. Everything else, and distinct integers,
//! go to DataFusion's implementation. The states of both are the same lists.

use std::mem::size_of;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt64Array};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::{filter, is_not_null, take};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature, StatisticsArgs,
};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::prelude::SessionContext;

/// Replaces `count` in a session.
pub fn register(ctx: &SessionContext) {
    ctx.register_udaf(AggregateUDF::from(Count(count_udaf())));
}

/// DataFusion's `count` with another implementation for the distinct values of groups.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Count(Arc<AggregateUDF>);

impl Count {
    /// The type of the values, if they are counted here.
    fn distinct(&self, args: &AccumulatorArgs<'_>) -> Option<DataType> {
        let [field] = args.expr_fields else { return None };
        let kind = field.data_type();
        (args.is_distinct && !matches!(kind, DataType::Dictionary(..)) && !kind.is_integer()).then(|| kind.clone())
    }
}

impl AggregateUDFImpl for Count {
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

    fn is_nullable(&self) -> bool {
        self.0.is_nullable()
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.0.accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.0.create_sliding_accumulator(args)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.distinct(&args).is_some() || self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        match self.distinct(&args) {
            Some(kind) => Ok(Box::new(Distinct::new(kind)?)),
            None => self.0.create_groups_accumulator(args),
        }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn default_value(&self, kind: &DataType) -> Result<ScalarValue> {
        self.0.default_value(kind)
    }

    fn value_from_stats(&self, args: &StatisticsArgs<'_>) -> Option<ScalarValue> {
        self.0.value_from_stats(args)
    }

    fn set_monotonicity(&self, kind: &DataType) -> SetMonotonicity {
        self.0.inner().set_monotonicity(kind)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }
}

/// The numbers of distinct values of many groups.
struct Distinct {
    kind: DataType,
    /// Pairs of group and value. None has the value NULL.
    pairs: Box<dyn GroupValues>,
    /// By group: its number of pairs.
    counts: Vec<i64>,
    /// The places of the last batch in `pairs`.
    places: Vec<usize>,
}

fn foreign() -> DataFusionError {
    DataFusionError::Internal("a distinct count of something else".to_owned())
}

impl Distinct {
    fn new(kind: DataType) -> Result<Self> {
        let fields = vec![Field::new("group", DataType::UInt64, false), Field::new("value", kind.clone(), true)];
        let pairs = new_group_values(Arc::new(Schema::new(fields)), &GroupOrdering::None)?;
        Ok(Self { kind, pairs, counts: Vec::new(), places: Vec::new() })
    }

    /// Adds values without NULLs.
    fn add(&mut self, groups: UInt64Array, values: ArrayRef) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        let before = self.pairs.len();
        let groups = Arc::new(groups);
        self.pairs.intern(&[Arc::clone(&groups) as ArrayRef, values], &mut self.places)?;
        let mut fresh = vec![true; self.pairs.len() - before];
        for (&place, &group) in self.places.iter().zip(groups.values()) {
            // A new pair may occur more than once in the batch.
            if let Some(fresh) = place.checked_sub(before).and_then(|new| fresh.get_mut(new))
                && std::mem::take(fresh)
            {
                *self.counts.get_mut(group as usize).ok_or_else(foreign)? += 1;
            }
        }
        Ok(())
    }

    /// Removes the groups that are emitted. Returns their counts, and the pairs of all groups before that.
    fn take(&mut self, emit_to: EmitTo) -> Result<(Vec<i64>, UInt64Array, ArrayRef)> {
        let counts = emit_to.take_needed(&mut self.counts);
        let mut pairs = self.pairs.emit(EmitTo::All)?.into_iter();
        self.pairs.clear_shrink(0);
        let (Some(groups), Some(values)) = (pairs.next(), pairs.next()) else { return Err(foreign()) };
        let groups = groups.as_primitive_opt::<UInt64Type>().ok_or_else(foreign)?.clone();
        if !self.counts.is_empty() {
            let first = counts.len() as u64;
            let rest: BooleanArray = groups.values().iter().map(|group| Some(*group >= first)).collect();
            let rest_groups = filter(&groups, &rest)?;
            let rest_groups = rest_groups.as_primitive_opt::<UInt64Type>().ok_or_else(foreign)?;
            self.counts.fill(0);
            self.add(rest_groups.unary(|group| group - first), filter(&values, &rest)?)?;
        }
        Ok((counts, groups, values))
    }

    /// Lists of these lengths, one per group or row.
    fn lists(&self, lengths: impl IntoIterator<Item = usize>, values: ArrayRef) -> Result<Vec<ArrayRef>> {
        let item = Arc::new(Field::new_list_field(self.kind.clone(), true));
        Ok(vec![Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(lengths), values, None)?)])
    }
}

/// The rows that have a value and pass a filter; `None` if all do.
fn counted(values: &ArrayRef, passes: Option<&BooleanArray>) -> Result<Option<BooleanArray>> {
    if values.logical_null_count() == 0 && passes.is_none() {
        return Ok(None);
    }
    let valid = is_not_null(values)?;
    let passes = |row| passes.is_none_or(|passes| passes.is_valid(row) && passes.value(row));
    Ok(Some((0..values.len()).map(|row| Some(valid.value(row) && passes(row))).collect()))
}

impl GroupsAccumulator for Distinct {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        passes: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        let [values] = values else { return Err(foreign()) };
        self.counts.resize(total_num_groups, 0);
        let groups = UInt64Array::from_iter_values(group_indices.iter().map(|group| *group as u64));
        match counted(values, passes)? {
            None => self.add(groups, Arc::clone(values)),
            Some(rows) => {
                let groups = filter(&groups, &rows)?;
                let groups = groups.as_primitive_opt::<UInt64Type>().ok_or_else(foreign)?;
                self.add(groups.clone(), filter(values, &rows)?)
            }
        }
    }

    fn merge_batch(&mut self, state: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        let [lists] = state else { return Err(foreign()) };
        let lists = lists.as_list_opt::<i32>().ok_or_else(foreign)?;
        let offsets = lists.value_offsets();
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
        let values = lists.values().slice(first as usize, (last - first) as usize);
        let groups: Vec<usize> = group_indices
            .iter()
            .zip(offsets.windows(2))
            .flat_map(|(&group, ends)| std::iter::repeat_n(group, (ends[1] - ends[0]) as usize))
            .collect();
        self.update_batch(&[values], &groups, None, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (counts, ..) = self.take(emit_to)?;
        Ok(Arc::new(Int64Array::from(counts)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (counts, groups, values) = self.take(emit_to)?;
        let lengths: Vec<usize> = counts.iter().map(|count| *count as usize).collect();
        // A counting sort of the pairs by their groups.
        let mut next: Vec<usize> = OffsetBuffer::<i32>::from_lengths(lengths.iter().copied())
            .iter()
            .take(lengths.len())
            .map(|offset| *offset as usize)
            .collect();
        let mut order = vec![0_u64; lengths.iter().sum()];
        for (pair, &group) in groups.values().iter().enumerate() {
            // Groups that are not emitted have no place.
            if let Some(place) = next.get_mut(group as usize) {
                *order.get_mut(*place).ok_or_else(foreign)? = pair as u64;
                *place += 1;
            }
        }
        self.lists(lengths, take(&values, &UInt64Array::from(order), None)?)
    }

    fn convert_to_state(&self, values: &[ArrayRef], passes: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let [values] = values else { return Err(foreign()) };
        match counted(values, passes)? {
            None => self.lists(std::iter::repeat_n(1, values.len()), Arc::clone(values)),
            Some(rows) => {
                let lengths = rows.values().iter().map(usize::from);
                self.lists(lengths, filter(values, &rows)?)
            }
        }
    }

    fn size(&self) -> usize {
        size_of::<Self>()
            + self.pairs.size()
            + self.counts.capacity() * size_of::<i64>()
            + self.places.capacity() * size_of::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Float64Array, RecordBatch, StringArray};
    use datafusion::arrow::util::pretty::pretty_format_batches;
    use datafusion::datasource::MemTable;
    use datafusion::prelude::SessionConfig;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;
    use crate::engine::exact_aggregates;

    /// Texts and doubles with repetitions and NULLs.
    fn rows(groups: u64) -> Vec<RecordBatch> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        let batch = |_| {
            let mut column = |most: u64| -> Vec<Option<u64>> {
                (0..500).map(|_| Some(rng.next_u64() % most).filter(|n| n % 11 != 7)).collect()
            };
            let (group, text, double) = (column(groups), column(90), column(40));
            let group: Int64Array = group.into_iter().map(|group| group.map(|group| group as i64)).collect();
            let text: StringArray = text.into_iter().map(|n| n.map(|n| format!("value {n} of some length"))).collect();
            let double: Float64Array = double.into_iter().map(|n| n.map(|n| n as f64 / 4.0)).collect();
            RecordBatch::try_from_iter_with_nullable([
                ("g", Arc::new(group) as ArrayRef, true),
                ("t", Arc::new(text), true),
                ("d", Arc::new(double), true),
            ])
            .unwrap()
        };
        (0..40).map(batch).collect()
    }

    async fn answer(rows: &[RecordBatch], partitions: usize, own: bool, sql: &str) -> String {
        let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(128);
        let ctx = SessionContext::new_with_config(config);
        if own {
            register(&ctx);
            exact_aggregates::register(&ctx);
        }
        let parts = rows.chunks(rows.len().div_ceil(partitions)).map(<[RecordBatch]>::to_vec).collect();
        ctx.register_table("t", Arc::new(MemTable::try_new(rows[0].schema(), parts).unwrap())).unwrap();
        let answered = ctx.sql(sql).await.unwrap().collect().await.unwrap();
        pretty_format_batches(&answered).unwrap().to_string()
    }

    /// DataFusion's own implementation is the reference.
    #[tokio::test]
    async fn distinct_values_are_counted_as_before() {
        for groups in [3, 700, 9_000] {
            let rows = rows(groups);
            for sql in [
                "SELECT g, count(DISTINCT t) AS a, count(DISTINCT d) AS b, count(DISTINCT g) AS c, count(*) AS n, count(t) AS m,
                    count(DISTINCT t) FILTER (WHERE d > 3) AS f, count(DISTINCT arrow_cast(t, 'Utf8View')) AS v,
                    count(DISTINCT d > 3) AS z, count(DISTINCT CAST(d + 1 AS DECIMAL(9, 2))) AS e, count(DISTINCT [t]) AS l
                 FROM t GROUP BY g ORDER BY g",
                // The input is sorted by the group, so that groups are emitted before the end.
                "SELECT g, count(DISTINCT t) AS a FROM (SELECT * FROM t ORDER BY g) GROUP BY g ORDER BY g",
                "SELECT count(DISTINCT t) AS a, count(DISTINCT d) FILTER (WHERE false) AS b FROM t",
                "SELECT DISTINCT g, count(t) OVER (PARTITION BY g) AS a FROM t ORDER BY g",
            ] {
                let right = answer(&rows, 1, false, sql).await;
                for partitions in [1, 3] {
                    assert_eq!(answer(&rows, partitions, true, sql).await, right, "{groups} {partitions} {sql}");
                }
            }
        }
    }

    #[test]
    fn groups_are_emitted_in_parts() {
        let mut distinct = Distinct::new(DataType::Utf8).unwrap();
        let values: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("a"), Some("c")]));
        distinct.update_batch(&[values], &[0, 1, 1, 2, 2, 2], None, 4).unwrap();
        let state = distinct.state(EmitTo::First(2)).unwrap();
        let lists = state[0].as_list::<i32>();
        assert_eq!((lists.value_length(0), lists.value_length(1)), (1, 1));
        let more: ArrayRef = Arc::new(StringArray::from(vec!["c", "d", "e"]));
        distinct.update_batch(&[more], &[0, 0, 1], None, 2).unwrap();
        // The emitted state comes back, as it does after a spill.
        distinct.merge_batch(&state, &[1, 0], 2).unwrap();
        let counts = distinct.evaluate(EmitTo::All).unwrap();
        // Group 0 has a, c, d and again b; group 1 has e and a.
        assert_eq!(counts.as_primitive::<datafusion::arrow::datatypes::Int64Type>().values(), &[4, 2]);
        assert_eq!((distinct.pairs.len(), distinct.counts.len()), (0, 0));
    }

    /// A table per group would need 10 KB for each.
    #[test]
    fn groups_cost_little_memory() {
        let mut distinct = Distinct::new(DataType::Utf8).unwrap();
        let groups: Vec<usize> = (0..100_000).collect();
        let values: ArrayRef = Arc::new(groups.iter().map(|n| Some(format!("O{n:09}"))).collect::<StringArray>());
        distinct.update_batch(&[values], &groups, None, groups.len()).unwrap();
        assert!(distinct.size() < 100_000 * 100, "{}", distinct.size());
    }
}
