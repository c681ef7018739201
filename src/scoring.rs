//! Segments of raw records: the SQL files clean a record as they clean stored ones, then a model assigns its cluster.
//!
//! Input: blocks of raw records ([`crate::bulk::Reader::raw`]) and a [`Scorer`]. Output: the same blocks with features and
//! clusters, and for each record without a cluster the reason. The API, the command line and the stream use this path.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use datafusion::arrow::array::{
    Array as _, ArrayRef, AsArray as _, Float64Array, RecordBatch, UInt32Array, new_null_array,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::datatypes::{Field, Int64Type, SchemaRef, UInt32Type};
use tercile_store::Snapshot;
use tercile_store::batch::{Batch, Record};
use tercile_store::json_text::object_of;
use tercile_store::record::{Fields, decode, decode_only};

use crate::bulk::{Block, Carried, Error, Found, Keep, Scorer, TooFar, as_objects, is_added, is_answer};
use crate::engine;
use crate::engine::row_by_row::{Kept, NotRowByRow, RowPlan};
use crate::files;
use crate::sql::{Files, Segmentation};

/// The column with the undeclared fields of a record.
const EXTRA: &str = "_extra";

/// Applies the SQL files of one segmentation to raw records.
#[derive(Debug)]
pub struct RecordScorer {
    plan: RowPlan,
    /// The declared fields that the SQL reads; all of them if it reads `_extra`, which has the others.
    fields: Fields,
    reads_extra: bool,
    /// The segmentation, for reasons.
    name: String,
}

impl RecordScorer {
    /// Prepares the SQL files of a segmentation.
    ///
    /// # Errors
    /// [`NotRowByRow`] if a record alone does not determine its features.
    pub async fn new(files: &Files, segmentation: &Segmentation) -> Result<Self, NotRowByRow> {
        let Segmentation { name, entity, features, .. } = segmentation;
        if !entity.is_empty() {
            let entity = entity.join(", ");
            return Err(NotRowByRow::Plan(format!(
                "{name} is a segmentation of entities ({entity}), and a record is not an entity; look the entity up with \
                 /api/segments/{name}/members or tercile members"
            )));
        }
        let plan = RowPlan::new(files, name, features).await?;
        let reads = plan.reads();
        let reads_extra = reads.contains(&EXTRA);
        let wanted = |field: &&String| reads_extra || reads.contains(&field.as_str());
        let fields = Fields::new(files.fields.names().iter().filter(wanted).cloned().collect());
        Ok(Self { plan, fields, reads_extra, name: name.clone() })
    }

    /// Prepares the SQL files of the segmentation with this name.
    ///
    /// # Errors
    /// If the SQL files do not plan, if none of them is this segmentation, or as [`Self::new`].
    pub async fn of(files: &Files, name: &str) -> anyhow::Result<(Self, Segmentation)> {
        // The columns of the views do not depend on records.
        let ctx = engine::open(&Snapshot::default(), files).await?;
        let found = engine::each_segmentation(&ctx, files).await.named(name)?;
        let found = found.with_context(|| format!("no SQL file is the segmentation {name}; check --sql"))?;
        let scorer = Self::new(files, &found).await.with_context(|| format!("{name} cannot score records"))?;
        Ok((scorer, found))
    }

    /// The declared fields of a record that the SQL reads; `None` if it reads undeclared fields too.
    pub fn fields(&self) -> Option<Vec<&str>> {
        (!self.reads_extra).then(|| self.fields.names().iter().map(String::as_str).collect())
    }

    /// Features and clusters of the raw records of a block. `keep` tells whether the records come back with the answers, and `limit`
    /// bounds the bytes of columns as text.
    ///
    /// # Errors
    /// If the records cannot be read as text.
    pub fn score(&self, block: Block, scorer: &Scorer, (keep, limit): (Keep, usize)) -> Result<(Block, Found), Error> {
        let texts;
        let records = match &block.carried {
            Carried::Objects(objects) => objects,
            Carried::Columns(batch) => {
                texts = as_objects(batch, limit)?;
                &texts
            }
        };
        let mut reasons: Vec<Option<String>> = vec![None; records.len()];
        for (row, fault) in &block.faults {
            reasons[*row] = Some(fault.clone());
        }
        let batch = self.decoded(records, &mut reasons)?;
        let (features, found) = self.answers(batch, scorer, reasons);
        let carried = match block.carried {
            Carried::Objects(objects) if keep == Keep::Row => {
                Carried::Objects(objects.iter().map(|text| kept_fields(text)).collect())
            }
            Carried::Objects(objects) => Carried::Objects(vec![String::new(); objects.len()]),
            columns => columns,
        };
        Ok((Block { features, carried, ..block }, found))
    }

    /// The columns of records that the SQL reads.
    pub fn reads(&self) -> Vec<&str> {
        self.plan.reads()
    }

    /// The columns of the batches that [`Self::answers`] takes: those of the store, and the place of each record.
    pub fn schema(&self) -> &SchemaRef {
        self.plan.schema()
    }

    /// Features and clusters of records in the columns of [`Self::schema`]. `reasons` has an entry per record; those
    /// that are set are records that are not in the batch.
    pub fn answers(
        &self,
        batch: Option<RecordBatch>,
        scorer: &Scorer,
        mut reasons: Vec<Option<String>>,
    ) -> (Vec<Float64Array>, Found) {
        let features = self.features(batch, scorer, &mut reasons);
        let mut found = scorer.nearest(&features);
        while let Some((row, TooFar { feature, why })) = scorer.first_too_far(&features, &found) {
            reasons[row] = Some(format!("{} {why}", scorer.features[feature]));
            found.present = Some(present(&reasons));
        }
        found.present = Some(present(&reasons));
        found.reasons = Some(reasons);
        (features, found)
    }

    /// The readable records in the columns of the store. Those that cannot be read get a reason.
    fn decoded(&self, records: &[String], reasons: &mut [Option<String>]) -> Result<Option<RecordBatch>, Error> {
        let read = |error: &dyn Display| Error::Read(error.to_string());
        let mut batch = Batch::new(0, &self.fields);
        let now = Instant::now();
        for (row, (text, reason)) in records.iter().zip(reasons).enumerate() {
            if reason.is_some() {
                continue;
            }
            let payload = Some(text.as_bytes());
            let decoded = match self.reads_extra {
                true => decode(payload, &self.fields),
                false => decode_only(payload, &self.fields),
            };
            match decoded {
                Err(unreadable) => *reason = Some(unreadable.to_string()),
                decoded => {
                    let record = Record { offset: row as i64, timestamp: None, key: None, payload: None };
                    batch.push(&record, std::iter::empty(), &decoded, now);
                }
            }
        }
        let Some(ready) = batch.take().map_err(|error| read(&error))? else { return Ok(None) };
        let rows = ready.records.num_rows();
        let offsets = ready.records.column_by_name("_offset").map(|offsets| offsets.as_primitive::<Int64Type>());
        let rows_of_batch = offsets.into_iter().flat_map(|offsets| offsets.values()).map(|row| *row as u32);
        let rows_of_batch: UInt32Array = rows_of_batch.collect();
        // Records that are not on a topic have no place there.
        let schema = self.plan.schema();
        let (_, stored) = schema.fields().split_last().ok_or_else(|| read(&"the records have no columns"))?;
        let column = |field: &Arc<Field>| match ready.records.column_by_name(field.name()) {
            Some(column) if !matches!(field.name().as_str(), "_partition" | "_offset") => ArrayRef::clone(column),
            _ => new_null_array(field.data_type(), rows),
        };
        let mut columns: Vec<ArrayRef> = stored.iter().map(column).collect();
        columns.push(Arc::new(rows_of_batch));
        RecordBatch::try_new(Arc::clone(schema), columns).map(Some).map_err(|error| read(&error))
    }

    /// The features of all records; NULL for a record that has a reason.
    fn features(
        &self,
        batch: Option<RecordBatch>,
        scorer: &Scorer,
        reasons: &mut [Option<String>],
    ) -> Vec<Float64Array> {
        let mut values = vec![vec![f64::NAN; reasons.len()]; scorer.features.len()];
        let mut kept = vec![false; reasons.len()];
        if let Some(batch) = batch {
            let mut take = |found: Kept| {
                for (place, row) in found.rows.values().iter().enumerate() {
                    let row = *row as usize;
                    kept[row] = true;
                    for (values, column) in values.iter_mut().zip(&found.features) {
                        if column.is_valid(place) {
                            values[row] = column.value(place);
                        }
                    }
                }
            };
            match self.plan.apply(batch.clone()) {
                Ok(found) => take(found),
                // An expression fails for some records; the others have their answers.
                Err(_) => {
                    let rows = batch.column(batch.num_columns() - 1).as_primitive::<UInt32Type>().values();
                    for (place, row) in rows.iter().enumerate() {
                        match self.plan.apply(batch.slice(place, 1)) {
                            Ok(found) => take(found),
                            Err(why) => reasons[*row as usize] = Some(why),
                        }
                    }
                }
            }
        }
        for (row, reason) in reasons.iter_mut().enumerate().filter(|(_, reason)| reason.is_none()) {
            let missing = values.iter().position(|values| !values[row].is_finite());
            *reason = match missing {
                _ if !kept[row] => Some(format!("left out by the SQL of {}", self.name)),
                Some(feature) => Some(format!("{} is missing", scorer.features[feature])),
                None => None,
            };
        }
        let nulls = present(reasons);
        values.into_iter().map(|values| Float64Array::new(values.into(), Some(nulls.clone()))).collect()
    }
}

/// The rows without a reason.
fn present(reasons: &[Option<String>]) -> NullBuffer {
    reasons.iter().map(Option::is_none).collect()
}

/// The fields of a record, without the added ones if it is an answer; none if it is not an object.
fn kept_fields(record: &str) -> String {
    let Ok(fields) = files::fields(record) else { return "{}".to_owned() };
    let answer = is_answer(&[], |name| fields.iter().any(|(key, _)| key == name));
    object_of(fields.into_iter().filter(|(name, _)| !(answer && is_added(name))).collect())
}
