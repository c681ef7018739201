//! Samples of models: `models/<segmentation>/<version>.sample.parquet`.

use std::path::{Path, PathBuf};

use datafusion::arrow::array::{AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, Int32Type, Int64Type, UInt32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use tercile_store::{Error, Reason, write_with_checksums};

use super::super::{Kind, Model, Predictor};
use super::ModelRegistry;

impl ModelRegistry {
    /// At most 5,000 of a model's rows with their clusters.
    pub fn sample(&self, version: u64) -> Result<RecordBatch, Error> {
        let path = self.sample_file(version);
        let damaged = |why: String| Kind::Sample.fault(&path, Reason::Damaged, why);
        let file = self.store.place().open(&path).map_err(Kind::Sample.unread(&path))?;
        Kind::Sample.verify(&path, &file)?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(e.to_string()))?;
        let schema = reader.schema().clone();
        let batches: Result<Vec<_>, _> = reader.build().map_err(|e| damaged(e.to_string()))?.collect();
        let batches = batches.map_err(|e| damaged(e.to_string()))?;
        datafusion::arrow::compute::concat_batches(&schema, &batches).map_err(|e| damaged(e.to_string()))
    }

    pub(super) fn sample_file(&self, version: u64) -> PathBuf {
        self.dir.join(format!("{version}.sample.parquet"))
    }

    /// The sample of a model, with all columns checked.
    ///
    /// # Errors
    /// [`Error::File`] if the file is missing, damaged, unreadable, or belongs to another model.
    pub fn sample_of(&self, model: &Model) -> Result<RecordBatch, Error> {
        let sample = self.sample(model.version)?;
        let path = self.sample_file(model.version);
        check_sample(&sample, model).map_err(|(reason, why)| Kind::Sample.fault(&path, reason, why))?;
        Ok(sample)
    }

    /// Writes a sample; false if the version is taken.
    pub(super) fn put_sample(&self, sample: &RecordBatch, path: &Path) -> Result<bool, Error> {
        let scratch = self.store.scratch();
        let written = write_with_checksums(&scratch, sample, WriterProperties::default());
        written.map_err(|source| Error::Parquet { path: path.to_owned(), source })?;
        Ok(self.store.link(&scratch, path)?.is_some())
    }
}

impl Model {
    /// The number of the model's rows that each row of its sample represents: the size of its cluster divided by the number of
    /// the cluster's rows in the sample. `None` if the sample contains all rows or has no cluster column of this model.
    pub fn sample_weights(&self, sample: &RecordBatch) -> Option<Vec<f64>> {
        if sample.num_rows() as u64 == self.rows {
            return None;
        }
        let labels = sample.column_by_name("cluster")?.as_primitive_opt::<UInt32Type>()?.values();
        let mut drawn = vec![0.0; self.clusters.len()];
        for &label in labels {
            *drawn.get_mut(label as usize)? += 1.0;
        }
        Some(labels.iter().map(|&label| self.clusters[label as usize].size as f64 / drawn[label as usize]).collect())
    }
}

/// Minimum share of a sample's rows whose stored cluster equals the model's. Rows on a border may be rounded to either side.
const SAMPLE_AGREES: f64 = 0.99;

/// Checks that a sample belongs to a model: its columns, and its clusters against the model's predictions.
fn check_sample(sample: &RecordBatch, model: &Model) -> Result<(), (Reason, String)> {
    let lacks = |name: &str| (Reason::Damaged, format!("it lacks the column {name}"));
    let column = |name: &str| sample.column_by_name(name);
    let key = |name: &str| column(name).ok_or_else(|| lacks(name));
    if model.entity.is_empty() {
        key("_partition")?.as_primitive_opt::<Int32Type>().ok_or_else(|| lacks("_partition"))?;
        key("_offset")?.as_primitive_opt::<Int64Type>().ok_or_else(|| lacks("_offset"))?;
    }
    let clusters = key("cluster")?.as_primitive_opt::<UInt32Type>().ok_or_else(|| lacks("cluster"))?;
    let mut columns = Vec::new();
    for feature in &model.features {
        let column = column(feature).and_then(|column| column.as_primitive_opt::<Float64Type>());
        let foreign = || (Reason::Misnamed, format!("it lacks the feature {feature}, so it is that of another model"));
        columns.push(column.ok_or_else(foreign)?.values().as_ref());
    }
    let predictor: Predictor = model.predictor();
    let (found, _) = predictor.predict_columns(&columns);
    let agree = found.iter().zip(clusters.values()).filter(|(found, stored)| found == stored).count();
    if sample.num_rows() == 0 || sample.num_rows() as u64 > model.rows {
        return Err((Reason::Misnamed, format!("it has {} rows of {}", sample.num_rows(), model.rows)));
    }
    if (agree as f64) < SAMPLE_AGREES * sample.num_rows() as f64 {
        let of = sample.num_rows();
        return Err((Reason::Misnamed, format!("only {agree} of its {of} rows are in this model's clusters")));
    }
    Ok(())
}
