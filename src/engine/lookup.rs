//! A join of records with a table that is unique on its key, as a lookup: each record keeps its place.
//!
//! Input: a table, and expressions for the key on both sides. Output: a batch of records with the table's columns. A NULL in a key is
//! equal to nothing, as in DataFusion's joins.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use datafusion::arrow::compute::{cast, filter_record_batch, take};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

type Keys = Vec<Arc<dyn PhysicalExpr>>;

/// The result of a join.
pub(super) struct Shape {
    /// The columns of the left side, then those of the right side.
    pub schema: SchemaRef,
    /// Whether records are the right side.
    pub right: bool,
    /// Whether records without a match are left out; otherwise the table's columns are NULL.
    pub inner: bool,
}

/// A table by its key.
pub(super) struct Lookup {
    shape: Shape,
    /// The key of a record.
    keys: Keys,
    /// The types of the key, as the table has them.
    converter: RowConverter,
    types: Vec<DataType>,
    rows: HashMap<Box<[u8]>, u32>,
    columns: Vec<ArrayRef>,
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("keys", &self.keys).field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

impl Lookup {
    /// Indexes a table. `keys` are the key of a record and the key of a row of the table.
    ///
    /// # Errors
    /// Inner: the key that occurs twice, as text. Outer: if the key of the table cannot be evaluated.
    pub fn new(table: &RecordBatch, keys: (Keys, Keys), shape: Shape) -> Result<std::result::Result<Self, String>> {
        let values = evaluated(&keys.1, table)?;
        let types: Vec<_> = values.iter().map(|column| column.data_type().clone()).collect();
        let converter = RowConverter::new(types.iter().cloned().map(SortField::new).collect())?;
        let converted = converter.convert_columns(&values)?;
        let mut rows = HashMap::with_capacity(table.num_rows());
        for row in (0..table.num_rows()).filter(|row| values.iter().all(|column| column.is_valid(*row))) {
            if rows.insert(Box::from(converted.row(row).as_ref()), row as u32).is_some() {
                let text = |column: &ArrayRef| {
                    Ok(ArrayFormatter::try_new(column, &FormatOptions::default())?.value(row).to_string())
                };
                return Ok(Err(values.iter().map(text).collect::<Result<Vec<String>>>()?.join(", ")));
            }
        }
        let columns = table.columns().to_vec();
        Ok(Ok(Self { shape, keys: keys.0, converter, types, rows, columns }))
    }

    /// The records with the columns of the table.
    pub fn joined(&self, records: &RecordBatch) -> Result<RecordBatch> {
        let mut keys = evaluated(&self.keys, records)?;
        for (key, kind) in keys.iter_mut().zip(&self.types).filter(|(key, kind)| key.data_type() != *kind) {
            *key = cast(key, kind)?;
        }
        let converted: Rows = self.converter.convert_columns(&keys)?;
        let place = |row: usize| {
            let known = keys.iter().all(|key| key.is_valid(row));
            known.then(|| self.rows.get(converted.row(row).as_ref()).copied()).flatten()
        };
        let mut places: UInt32Array = (0..records.num_rows()).map(place).collect();
        let mut records = records.clone();
        if self.shape.inner && places.null_count() > 0 {
            let matched: BooleanArray = places.iter().map(|place| Some(place.is_some())).collect();
            records = filter_record_batch(&records, &matched)?;
            places = places.iter().flatten().collect();
        }
        let found = self.columns.iter().map(|column| take(column, &places, None));
        let found = found.collect::<std::result::Result<Vec<ArrayRef>, _>>()?;
        let own = records.columns().iter().cloned();
        let columns =
            if self.shape.right { found.into_iter().chain(own).collect() } else { own.chain(found).collect() };
        Ok(RecordBatch::try_new(Arc::clone(&self.shape.schema), columns)?)
    }
}

fn evaluated(keys: &Keys, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    keys.iter().map(|key| key.evaluate(batch)?.into_array(batch.num_rows())).collect()
}
