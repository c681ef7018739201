//! Bulk prediction: reads rows in several formats, assigns clusters, and writes the rows with their clusters.
//!
//! Input: bytes of CSV, TSV, JSON, NDJSON, Arrow or Parquet, and a model. Output: the rows in one of these formats, with
//! `cluster`, `description` and `distance`, or the API's prediction objects. One block of rows is in memory at a time, so
//! memory is bounded independently of the number of rows. Empty input gives a table without rows, columns included.

mod arrow;
mod explain;
mod json;
mod lines;
mod raw_lines;
mod read;
mod write;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, Float64Array, RecordBatch, StringArray};
use datafusion::arrow::buffer::NullBuffer;
pub use explain::{Explainer, Opinion, TooFar};
pub use json::number;
pub use lines::Lines;
pub use read::Reader;
pub use write::{Answers, Writer, as_objects};

pub use crate::file_format::Format;
use crate::missing::{Gaps, Missing, Place, Value};

/// Maximum rows of a block of JSON objects.
const ROWS: usize = 8192;
/// Approximate bytes of text per block.
const BYTES: usize = 4 * 1024 * 1024;
use crate::model::fitted::FittedModel;
use crate::model::{Cluster, Model, Predictor};

/// Columns that are added. A row or table that has all three, none of them as a feature, is an earlier prediction: they are replaced.
/// Otherwise columns of these names belong to the rows and stay, and the added ones are numbered: `description_2`.
pub const ADDED: [&str; 3] = ["cluster", "description", "distance"];
/// Column that is added when missing values are imputed: the names of a row's imputed features.
pub const IMPUTED: &str = "imputed";

/// Column that is added when raw records are scored: why a record has no cluster.
pub const REASON: &str = "reason";

/// Whether columns for which `has` is true are those of an earlier prediction, whose added columns are replaced.
pub fn is_answer(features: &[String], has: impl Fn(&str) -> bool) -> bool {
    ADDED.iter().all(|name| has(name) && !features.iter().any(|feature| feature == name))
}

/// Whether a column of an earlier prediction is one of the added ones.
pub fn is_added(name: &str) -> bool {
    ADDED.contains(&name) || [IMPUTED, REASON].contains(&name)
}

/// The name of an added column beside the columns for which `has` is true: numbered if the name is taken.
fn added_name(name: &'static str, has: impl Fn(&str) -> bool) -> Cow<'static, str> {
    if !has(name) {
        return name.into();
    }
    let numbered = (2_u64..).map(|n| format!("{name}_{n}")).find(|numbered| !has(numbered));
    numbered.map_or(name.into(), Cow::Owned)
}

/// Limits on input rows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: u64,
    /// Fields of an object or columns of a table.
    pub fields: usize,
    /// Nesting levels of objects and arrays, including the row's own.
    pub depth: usize,
    /// Bytes of contiguous data: a row, an Arrow record batch, or all dictionaries of an Arrow stream.
    pub piece: usize,
}

impl Limits {
    /// No limits, for the user's own files.
    pub const NONE: Self = Self { rows: u64::MAX, fields: usize::MAX, depth: usize::MAX, piece: usize::MAX };
}

/// Part of a row that is kept beside its features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The whole row, unchanged.
    Row,
    /// The fields that are not features.
    Other,
}

/// Position of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Row number, counted from 0.
    pub row: u64,
    /// Line of the row's start, counted from 1, in formats whose rows are lines.
    pub line: Option<u64>,
}

impl At {
    /// Position for messages: the line if known, else the row.
    pub fn place(self) -> Place {
        self.line.map_or(Place::Row(self.row), Place::Line)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

/// Accounts for the memory of a reader and may refuse it.
pub trait Meter: Send + Sync {
    /// Records bytes that are held until the next read after their rows were returned.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::OutOfMemory`] if the memory is refused.
    fn holds(&self, bytes: usize) -> std::io::Result<()>;

    /// Records bytes that are held until the stream ends.
    ///
    /// # Errors
    /// [`std::io::ErrorKind::OutOfMemory`] if the memory is refused.
    fn keeps(&self, bytes: usize) -> std::io::Result<()>;
}

/// A meter without limit, for the user's own files.
struct Unmetered;

impl Meter for Unmetered {
    fn holds(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn keeps(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }
}

/// Error of reading, scoring or writing rows.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A feature is missing or not a finite number, and the policy refuses that.
    #[error("{at}: {field} {what}")]
    Gap { at: At, field: String, what: String },
    #[error("{at}: {field} {what}")]
    Field { at: At, field: String, what: String },
    #[error("{at}: {what}")]
    Row { at: At, what: String },
    #[error("{at}: {what}")]
    Syntax { at: At, what: String },
    #[error("the column {field} {what}")]
    Column { field: String, what: String },
    #[error("the rows have no column {0}, which the model wants; they have {1}")]
    Missing(String, String),
    #[error("{0}")]
    TooMuch(String),
    #[error("cannot read the rows: {0}")]
    Read(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("cannot write the rows: {0}")]
    Write(String),
}

/// Block of rows.
#[derive(Debug, Default)]
pub struct Block {
    /// One column per feature, in the model's order and units; finite values, or null for accepted gaps.
    pub features: Vec<Float64Array>,
    /// The other content of the rows.
    pub carried: Carried,
    /// Row number of the first row.
    pub first: u64,
    /// Line of each row, in formats whose rows are lines; else empty.
    pub lines: Vec<u64>,
    /// Whether this or an earlier row was an earlier prediction ([`is_answer`]), without whose added fields the rows are.
    pub has_answers: bool,
    /// Of raw records: the rows whose bytes are no text, and why.
    pub faults: Vec<(usize, String)>,
}

impl Block {
    pub fn rows(&self) -> usize {
        match &self.carried {
            Carried::Columns(batch) => batch.num_rows(),
            Carried::Objects(objects) => objects.len(),
        }
    }

    /// Position of a row of the block.
    pub fn at(&self, row: usize) -> At {
        At { row: self.first + row as u64, line: self.lines.get(row).copied() }
    }
}

/// Content of the rows beside their features, as received.
#[derive(Debug)]
pub enum Carried {
    Columns(RecordBatch),
    /// One JSON object per row with the kept fields, values verbatim; empty if none are kept.
    Objects(Vec<String>),
}

impl Default for Carried {
    fn default() -> Self {
        Self::Objects(Vec::new())
    }
}

/// Predictions for the rows of a block.
#[derive(Debug, Default)]
pub struct Found {
    pub clusters: Vec<u32>,
    /// Distances to the centroids, in standardised units.
    pub distances: Vec<f64>,
    /// Validity: null for a row without a cluster because a feature is missing; `None` if all rows have one.
    pub present: Option<NullBuffer>,
    /// Of raw records: why a row has no cluster.
    pub reasons: Option<Vec<Option<String>>>,
}

impl Found {
    /// The clusters of the rows that have one.
    pub fn assigned(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.clusters.len()).filter_map(|row| self.of(row)).map(|(cluster, _)| cluster)
    }

    /// Cluster and distance of a row, if it has a cluster.
    pub fn of(&self, row: usize) -> Option<(u32, f64)> {
        let present = self.present.as_ref().is_none_or(|present| present.is_valid(row));
        present.then(|| (self.clusters[row], self.distances[row]))
    }
}

/// Predicts with one model for many rows.
pub struct Scorer {
    pub features: Vec<String>,
    pub descriptions: Vec<String>,
    /// The descriptions as an Arrow array.
    words: ArrayRef,
    pub predictor: Predictor,
    /// Mean by feature, for imputation.
    mean: Vec<f64>,
    missing: Missing,
}

impl Scorer {
    pub fn new(model: &Model, language: &str) -> Self {
        let descriptions: Vec<String> = model.descriptions(language).into_iter().map(str::to_owned).collect();
        let words = Arc::new(StringArray::from(descriptions.clone()));
        let (features, mean, predictor) = (model.features.clone(), model.mean.clone(), model.predictor());
        Self { features, descriptions, words, predictor, mean, missing: Missing::Refuse }
    }

    /// Predicts with a model of a file.
    pub fn fitted(model: &FittedModel, language: &str) -> Self {
        let description =
            |cluster: &Cluster| cluster.descriptions.get(language).unwrap_or(&cluster.description).clone();
        let descriptions: Vec<String> = model.clusters.iter().map(description).collect();
        let words = Arc::new(StringArray::from(descriptions.clone()));
        let (features, mean, predictor) = (model.features.clone(), model.mean.clone(), model.predictor());
        Self { features, descriptions, words, predictor, mean, missing: Missing::Refuse }
    }

    /// Sets the policy for rows in which a feature is null.
    #[must_use]
    pub fn with_missing(self, missing: Missing) -> Self {
        Self { missing, ..self }
    }

    /// Assigns each row to a cluster.
    ///
    /// # Errors
    /// If a row is too far from every cluster ([`TooFar`]).
    pub fn score(&self, block: &Block) -> Result<Found, Error> {
        let found = self.nearest(&block.features);
        match self.first_too_far(&block.features, &found) {
            Some((row, TooFar { feature, why })) => {
                let field = self.features[feature].clone();
                Err(Error::Field { at: block.at(row), field, what: why.to_owned() })
            }
            None => Ok(found),
        }
    }

    /// The nearest cluster of each row. A NULL is replaced by the mean; such a row has a cluster only if missing values are imputed.
    pub fn nearest(&self, features: &[Float64Array]) -> Found {
        let filled: Vec<Option<Vec<f64>>> = features.iter().zip(&self.mean).map(filled).collect();
        let (clusters, distances) = self.predictor.predict_columns(&columns(&filled, features));
        let nulls = features.iter().fold(None, |all, column| NullBuffer::union(all.as_ref(), column.nulls()));
        let present = nulls.filter(|_| self.missing != Missing::Impute);
        Found { clusters, distances, present, reasons: None }
    }

    /// The first row that is too far from every cluster.
    pub fn first_too_far(&self, features: &[Float64Array], found: &Found) -> Option<(usize, TooFar)> {
        if found.distances.iter().all(|&distance| self.predictor.tells(distance)) {
            return None;
        }
        let far = |row: &usize| found.of(*row).is_some_and(|(_, distance)| !self.predictor.tells(distance));
        let row = (0..found.distances.len()).find(far)?;
        let filled: Vec<Option<Vec<f64>>> = features.iter().zip(&self.mean).map(filled).collect();
        let values: Vec<f64> = columns(&filled, features).iter().map(|column| column[row]).collect();
        Some((row, TooFar::of(&self.predictor, &values)))
    }

    /// Names of a row's imputed features.
    fn imputed<'a>(&'a self, block: &'a Block, row: usize) -> impl Iterator<Item = &'a str> {
        let gaps = self.features.iter().zip(&block.features).filter(move |(_, column)| column.is_null(row));
        gaps.map(|(name, _)| name.as_str())
    }
}

/// The values of each column, those with nulls replaced.
fn columns<'a>(filled: &'a [Option<Vec<f64>>], features: &'a [Float64Array]) -> Vec<&'a [f64]> {
    filled.iter().zip(features).map(|(filled, column)| filled.as_deref().unwrap_or(column.values())).collect()
}

/// Values of a column with nulls replaced by the mean; `None` if there are no nulls.
fn filled((column, mean): (&Float64Array, &f64)) -> Option<Vec<f64>> {
    (column.null_count() > 0).then(|| column.iter().map(|value| value.unwrap_or(*mean)).collect())
}

/// Features to read, limits, and the policy for gaps.
pub struct Wanted {
    pub features: Vec<String>,
    pub keep: Keep,
    pub limits: Limits,
    pub missing: Missing,
    /// Gaps by feature.
    pub gaps: Vec<Gaps>,
    /// Objects without a field of the feature's name, by feature.
    pub absent: Vec<u64>,
    /// The decimal mark of numbers in text.
    pub decimal: char,
    /// Whether the rows are raw records, which are not parsed here.
    pub raw: bool,
    /// Columns and fields of earlier predictions ([`is_answer`]) that are replaced.
    pub replaced: BTreeSet<&'static str>,
}

impl Wanted {
    /// Rows with these features; gaps are refused. `decimal` is the decimal mark of numbers in text.
    fn new(features: &[String], (limits, keep): (Limits, Keep), decimal: char) -> Self {
        let (gaps, absent) = (vec![Gaps::default(); features.len()], vec![0; features.len()]);
        let (features, missing) = (features.to_vec(), Missing::Refuse);
        Self { features, keep, limits, missing, gaps, absent, decimal, raw: false, replaced: BTreeSet::new() }
    }

    /// Whether a row or table with the names for which `has` is true is an earlier prediction, whose added columns are noted.
    pub fn note_answer(&mut self, has: impl Fn(&str) -> bool) -> bool {
        let is_answer = is_answer(&self.features, &has);
        if is_answer {
            self.replaced.extend(ADDED.into_iter().chain([IMPUTED, REASON]).filter(|name| has(name)));
        }
        is_answer
    }

    /// Counts a gap and returns the NaN that represents it in a column.
    ///
    /// # Errors
    /// If gaps are refused; `what` is the reason in the message.
    pub fn gap(&mut self, feature: usize, value: Value<'_>, at: At, what: &str) -> Result<f64, Error> {
        if self.missing == Missing::Refuse {
            return Err(Error::Gap { at, field: self.features[feature].clone(), what: what.to_owned() });
        }
        match value {
            Value::Invalid(text) => self.gaps[feature].add_invalid(text, at.place()),
            Value::Missing | Value::Number(_) => self.gaps[feature].missing += 1,
        }
        Ok(f64::NAN)
    }
}
