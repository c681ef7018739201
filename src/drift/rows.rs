//! The rows that are compared with the training's.
//!
//! Input: the store, the SQL files, and a model. Output: the features of at most [`MOST`] rows. Records that arrived after the training
//! are read alone, if the SQL files can be applied to records one by one; otherwise the view is evaluated on the complete stream.
//! Of many records, runs of 64 offsets at equal distances are read, so that each file contributes.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, Float64Array, Int64Array, RecordBatch, UInt32Array, new_null_array,
};
use datafusion::arrow::compute::{cast, concat};
use datafusion::arrow::datatypes::{DataType, Float64Type, Int64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::prelude::SessionContext;
use futures::StreamExt as _;
use tercile_kmeans::column_buffer::evenly;
use tercile_store::{self as store, Snapshot, Store};

use super::{Arrived, Drift, Of, compare};
use crate::engine::row_by_row::{NotRowByRow, RowPlan};
use crate::engine::{self, Limits, UpTo};
use crate::model::Model;
use crate::model::baseline::{Baseline, MOST};
use crate::sql::{Files, RECORDS, Segmentation, quote};
use crate::train::view_query;

/// Offsets in a row that are read.
const RUN: u64 = 64;

/// Why rows cannot be compared with a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(
        "version {version} of {name} has no baseline, because an earlier tercile trained it; the next training of new records makes one"
    )]
    NoBaseline { name: String, version: u64 },
    #[error(
        "the SQL of {name} has changed since version {version} was trained; tercile train makes a model of the current files, and tercile models promote lets it serve if it waits"
    )]
    Sql { name: String, version: u64 },
    #[error(
        "the store is fed from the topic {found}, and version {version} of {name} was trained on {wanted}; choose its --store"
    )]
    Topic { name: String, version: u64, found: String, wanted: String },
    #[error("there is no slice before slice 1 to compare with; ask for slice 2 or 3")]
    FirstSlice,
    #[error("cannot put rows together: {0}")]
    Arrow(#[from] ArrowError),
}

/// What the rows are read from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub store: &'a Store,
    pub files: &'a Files,
    pub segmentation: &'a Segmentation,
    /// Bytes of memory for queries that sort; `None`: without a limit.
    pub memory: Option<usize>,
}

impl Source<'_> {
    /// Compares the rows that arrived after a model was trained with those of its training.
    ///
    /// # Errors
    /// If the model is of another topic or of other SQL, if the records cannot be read, and [`Error::NoBaseline`] for a model of an
    /// earlier build.
    pub async fn stream(&self, model: &Model) -> Result<Drift, Error> {
        let baseline = baseline(model)?;
        Ok(compare(model, baseline, Of::Stream, &self.arrived(model).await?))
    }

    /// Compares the rows that a slice has beyond the slice before with those that the model of the slice before was trained on.
    ///
    /// # Errors
    /// As [`Self::stream`]; [`Error::FirstSlice`] for slice 1.
    pub async fn thirds(&self, before: &Model, slice: &Model) -> Result<Drift, Error> {
        let baseline = baseline(before)?;
        Ok(compare(before, baseline, Of::Thirds, &self.beyond_slice_before(slice).await?))
    }

    /// The rows that arrived after a model was trained; of entities, all of them as they are now.
    ///
    /// # Errors
    /// If the model is of another topic or of other SQL, or if the records cannot be read.
    async fn arrived(&self, model: &Model) -> Result<Arrived, Error> {
        let snapshot = self.store.snapshot()?;
        self.check(model, &snapshot)?;
        if !self.segmentation.entity.is_empty() {
            return self.entities(&snapshot, crate::slices::SLICES).await;
        }
        let ends = model.receipt.ends();
        let end = |partition: i32| ends.get(&partition).copied().unwrap_or(0);
        let new = Snapshot {
            topic: snapshot.topic.clone(),
            files: snapshot.files.iter().filter(|file| file.next > end(file.partition)).cloned().collect(),
        };
        if new.files.is_empty() {
            return Ok(self.nothing());
        }
        let partitions: std::collections::BTreeSet<i32> = new.files.iter().map(|file| file.partition).collect();
        let conditions: Vec<String> = partitions
            .iter()
            .map(|&partition| format!("(_partition = {partition} AND _offset >= {})", end(partition)))
            .collect();
        let after = conditions.join(" OR ");
        let rows = self.count(&new, &end, &after).await?;
        match RowPlan::new(self.files, &self.segmentation.name, &self.segmentation.features).await {
            Ok(plan) => self.one_by_one(&new, &plan, (rows, &after)).await,
            Err(NotRowByRow::Plan(why)) => {
                Err(engine::Error::View { file: self.segmentation.file.clone(), why }.into())
            }
            Err(NotRowByRow::Node(_)) => self.of_view(&snapshot, rows, &after).await,
        }
    }

    /// The rows that a slice has beyond the slice before, of the records that the models were trained on; of entities, those of the
    /// slice. `model` is the model of the slice.
    ///
    /// # Errors
    /// As [`Self::arrived`]; [`Error::FirstSlice`] for slice 1.
    async fn beyond_slice_before(&self, model: &Model) -> Result<Arrived, Error> {
        if model.slice == 1 {
            return Err(Error::FirstSlice);
        }
        let ends = model.receipt.ends();
        let then = self.store.snapshot_until(&ends)?;
        self.check(model, &then.snapshot)?;
        if !self.segmentation.entity.is_empty() {
            return self.entities(&then.snapshot, model.slice).await;
        }
        let mut found = self.of_view(&then.snapshot, 0, &format!("_slice = {}", model.slice)).await?;
        found.rows = found.rows.max(found.read() as u64);
        Ok(found)
    }

    fn check(&self, model: &Model, snapshot: &Snapshot) -> Result<(), Error> {
        let (name, version) = (model.segmentation.clone(), model.version);
        if self.segmentation.sql_hash != model.receipt.sql_hash {
            return Err(Error::Sql { name, version });
        }
        if !snapshot.topic.is_empty() && snapshot.topic != model.receipt.topic {
            let (found, wanted) = (snapshot.topic.clone(), model.receipt.topic.clone());
            return Err(Error::Topic { name, version, found, wanted });
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        Limits { memory: self.memory, ..Limits::default() }
    }

    fn nothing(&self) -> Arrived {
        let columns = self.segmentation.features.iter().map(|_| Float64Array::from(Vec::<f64>::new())).collect();
        Arrived { columns, ..Arrived::default() }
    }

    /// The number of records that arrived: of files that reach back before them, those are counted.
    async fn count(&self, new: &Snapshot, end: &impl Fn(i32) -> i64, after: &str) -> Result<u64, Error> {
        let (whole, mixed): (Vec<_>, Vec<_>) =
            new.files.iter().cloned().partition(|file| file.start >= end(file.partition));
        let mut rows = whole.iter().map(|file| file.rows).sum();
        if !mixed.is_empty() {
            let mixed = Snapshot { topic: new.topic.clone(), files: mixed };
            let ctx = engine::open_without_views(&mixed, self.files, self.limits())?;
            let found = engine::collect(&ctx, &format!("SELECT count(*) FROM {RECORDS} WHERE {after}")).await?;
            rows += found.column(0).as_primitive::<Int64Type>().value(0) as u64;
        }
        Ok(rows)
    }

    /// Applies the SQL files to the new records alone.
    async fn one_by_one(&self, new: &Snapshot, plan: &RowPlan, (rows, after): (u64, &str)) -> Result<Arrived, Error> {
        let view = |why: String| engine::Error::View { file: self.segmentation.file.clone(), why };
        let ctx = engine::open_without_views(new, self.files, self.limits())?;
        engine::filter_while_reading(&ctx);
        let partitions = new.files.iter().map(|file| file.partition).collect::<std::collections::BTreeSet<i32>>().len();
        // Each partition may have one run more than its share.
        let most = (MOST as u64).saturating_sub(RUN * partitions as u64).max(RUN);
        let every = rows.div_ceil(most);
        let sampled = if every > 1 { format!(" AND (_offset / {RUN}) % {every} = 0") } else { String::new() };
        let mut reads: Vec<&str> = plan.reads();
        if !reads.contains(&"_timestamp") {
            reads.push("_timestamp");
        }
        let columns: Vec<String> = reads.iter().map(|name| quote(name)).collect();
        let sql = format!("SELECT {} FROM {RECORDS} WHERE ({after}){sampled}", columns.join(", "));
        let mut batches = engine::stream(&ctx, &sql).await?;
        let mut found = Growing::new(self.segmentation.features.len());
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|e| engine::Error::Query(engine::explain(&e)))?;
            if batch.num_rows() == 0 {
                continue;
            }
            let times = milliseconds(&batch)?;
            let kept = plan.apply(for_plan(plan, &batch)?).map_err(view)?;
            let places = kept.rows.values().iter().map(|row| *row as usize);
            found.times.extend(places.map(|row| times.is_valid(row).then(|| times.value(row))));
            found.columns.iter_mut().zip(kept.features).for_each(|(all, one)| all.push(Arc::new(one)));
        }
        found.finish(rows)
    }

    /// Evaluates the view on the complete stream, and keeps the rows for which a condition holds.
    async fn of_view(&self, snapshot: &Snapshot, rows: u64, condition: &str) -> Result<Arrived, Error> {
        let ctx = engine::open_within(snapshot, self.files, self.limits()).await?;
        let sql = format!(
            "SELECT milliseconds AS _at, * FROM ({}) WHERE {condition} ORDER BY _at NULLS FIRST, _partition, _offset",
            view_query(self.segmentation)
        );
        let mut found = Growing::new(self.segmentation.features.len());
        self.spaced(&ctx, &sql, &mut found, true).await?;
        let seen = found.seen as u64;
        found.finish(if rows == 0 { seen } else { rows })
    }

    /// The entities at the end of a slice.
    async fn entities(&self, snapshot: &Snapshot, slice: u8) -> Result<Arrived, Error> {
        let whole = engine::open_without_views(snapshot, self.files, self.limits())?;
        let cuts = Arc::new(engine::cuts(&whole).await?);
        let limits = Limits { up_to: Some(UpTo { cuts, slice }), ..self.limits() };
        let ctx = engine::open_within(snapshot, self.files, limits).await?;
        let keys: Vec<String> = self.segmentation.entity.iter().map(|name| quote(name)).collect();
        let features: Vec<String> =
            self.segmentation.features.iter().map(|name| format!("CAST({} AS DOUBLE)", quote(name))).collect();
        let sql = format!(
            "SELECT {} FROM {} WHERE {} ORDER BY {}",
            features.join(", "),
            quote(&self.segmentation.name),
            keys.iter().map(|key| format!("{key} IS NOT NULL")).collect::<Vec<_>>().join(" AND "),
            keys.join(", ")
        );
        let mut found = Growing::new(self.segmentation.features.len());
        self.spaced(&ctx, &sql, &mut found, false).await?;
        let rows = found.seen as u64;
        found.finish(rows)
    }

    /// Reads the rows of a query: all of them, or every second, fourth and so on, so that at most [`MOST`] remain.
    async fn spaced(&self, ctx: &SessionContext, sql: &str, found: &mut Growing, timed: bool) -> Result<(), Error> {
        let mut batches = engine::stream(ctx, sql).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch
                .map_err(|e| engine::Error::View { file: self.segmentation.file.clone(), why: engine::explain(&e) })?;
            let first = (found.step - found.seen % found.step) % found.step;
            let places: UInt32Array = (first..batch.num_rows()).step_by(found.step).map(|row| row as u32).collect();
            found.seen += batch.num_rows();
            let taken = datafusion::arrow::compute::take_record_batch(&batch, &places)?;
            if timed {
                let times = taken.column(0).as_primitive::<Int64Type>();
                found.times.extend(times);
            }
            let features = &taken.columns()[batch.num_columns() - found.columns.len()..];
            found.columns.iter_mut().zip(features).for_each(|(all, one)| all.push(Arc::clone(one)));
            found.kept += taken.num_rows();
            if found.kept > MOST {
                found.thin_out()?;
            }
        }
        Ok(())
    }
}

/// The baseline of a model.
pub(super) fn baseline(model: &Model) -> Result<&Baseline, Error> {
    let missing = || Error::NoBaseline { name: model.segmentation.clone(), version: model.version };
    model.baseline.as_ref().ok_or_else(missing)
}

/// Columns that grow.
struct Growing {
    times: Vec<Option<i64>>,
    columns: Vec<Vec<ArrayRef>>,
    /// Rows that were kept, and those that were seen, of which every `step`-th is kept.
    kept: usize,
    seen: usize,
    step: usize,
}

impl Growing {
    fn new(features: usize) -> Self {
        Self { times: Vec::new(), columns: vec![Vec::new(); features], kept: 0, seen: 0, step: 1 }
    }

    /// Keeps every second row.
    fn thin_out(&mut self) -> Result<(), Error> {
        while self.kept > MOST {
            let places: UInt32Array = (0..self.kept as u32).step_by(2).collect();
            for parts in &mut self.columns {
                let whole = joined(parts)?;
                *parts = vec![datafusion::arrow::compute::take(&whole, &places, None)?];
            }
            let mut row = 0;
            self.times.retain(|_| {
                row += 1;
                row % 2 == 1
            });
            self.kept = places.len();
            self.step *= 2;
        }
        Ok(())
    }

    fn finish(self, rows: u64) -> Result<Arrived, Error> {
        let mut columns = Vec::new();
        for parts in &self.columns {
            columns.push(joined(parts)?.as_primitive::<Float64Type>().clone());
        }
        let mut order: Vec<u32> = (0..self.times.len() as u32).collect();
        // Partitions and files are read side by side.
        order.sort_by_key(|row| self.times[*row as usize]);
        let read = columns.first().map_or(0, Float64Array::len);
        if order.len() == read && read > MOST {
            order = evenly(read, MOST).into_iter().map(|at| order[at as usize]).collect();
        }
        let mut times = Vec::new();
        if order.len() == read.min(MOST) {
            times = order.iter().map(|row| self.times[*row as usize]).collect();
            let places = UInt32Array::from(order);
            for column in &mut columns {
                *column = datafusion::arrow::compute::take(column, &places, None)?.as_primitive().clone();
            }
        }
        Ok(Arrived { rows, times, columns })
    }
}

fn joined(parts: &[ArrayRef]) -> Result<ArrayRef, ArrowError> {
    if parts.is_empty() {
        return Ok(Arc::new(Float64Array::from(Vec::<f64>::new())));
    }
    concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())
}

/// The times of records.
fn milliseconds(batch: &RecordBatch) -> Result<Int64Array, ArrowError> {
    let missing = || ArrowError::SchemaError("records without _timestamp".to_owned());
    let times = batch.column_by_name("_timestamp").ok_or_else(missing)?;
    Ok(cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// Records in the columns that a plan takes.
fn for_plan(plan: &RowPlan, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let rows = batch.num_rows();
    let schema = plan.schema();
    let (place, stored) = match schema.fields().split_last() {
        Some((place, stored)) => (place, stored),
        None => return Err(ArrowError::SchemaError("records without columns".to_owned())),
    };
    let mut columns = Vec::with_capacity(stored.len() + 1);
    for field in stored {
        columns.push(match batch.column_by_name(field.name()) {
            Some(column) => cast(column, field.data_type())?,
            None => new_null_array(field.data_type(), rows),
        });
    }
    let places: ArrayRef = Arc::new((0..rows as u32).map(Some).collect::<UInt32Array>());
    columns.push(cast(&places, place.data_type())?);
    RecordBatch::try_new(Arc::clone(schema), columns)
}
