//! The table function `topics()`: the topic of each partition number.
//!
//! Input: the snapshot of a session. Output: rows of `_partition`, `topic`, and `partition`, the partition's number in its topic.
//! In a store of one topic the two numbers are equal.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{MemTable, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::error::{DataFusionError, Result};
use tercile_kafka::broker::Topics;
use tercile_store::Snapshot;

/// The name of the table function.
pub const NAME: &str = "topics";

#[derive(Debug)]
pub struct TopicsFunction(Arc<MemTable>);

impl TopicsFunction {
    /// The partitions of a snapshot.
    ///
    /// # Errors
    /// If Arrow cannot build the table.
    pub fn of(snapshot: &Snapshot) -> Result<Self> {
        let topics = Topics::new(&snapshot.topic);
        let numbers: Vec<i32> = snapshot.next_offsets().into_keys().collect();
        let places = || numbers.iter().map(|number| topics.place(*number));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(numbers.clone())),
            Arc::new(places().map(|(topic, _)| Some(topic)).collect::<StringArray>()),
            Arc::new(places().map(|(_, partition)| partition).collect::<Int32Array>()),
        ];
        let schema = Arc::new(Schema::new(vec![
            Field::new("_partition", DataType::Int32, false),
            Field::new("topic", DataType::Utf8, false),
            Field::new("partition", DataType::Int32, false),
        ]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(Self(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
    }
}

impl TableFunctionImpl for TopicsFunction {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> Result<Arc<dyn TableProvider>> {
        if !args.exprs().is_empty() {
            return Err(DataFusionError::Plan(format!("'{NAME}' takes no arguments")));
        }
        Ok(Arc::clone(&self.0) as Arc<dyn TableProvider>)
    }
}
