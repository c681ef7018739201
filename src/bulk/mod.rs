//! Many rows to clusters: tables and streams in the formats people have, and the same rows again, each with its cluster.
//!
//! Input: bytes of CSV, TSV, JSON, NDJSON, Arrow or Parquet, and a model. Output: the rows in one of these formats, with
//! `cluster`, `description` and `distance`, or what the API answers for each. A block of rows is in memory at a time,
//! however many there are. No rows are a table without rows: its columns go out all the same.

mod arrow;
mod explain;
mod json;
mod lines;
mod read;
mod split;
mod spool;
mod write;

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{Array as _, ArrayRef, Float64Array, RecordBatch, StringArray};
use datafusion::arrow::buffer::NullBuffer;
pub use explain::{Explainer, Opinion, TooFar};
pub use json::number;
pub use lines::Lines;
pub use read::Reader;
pub use spool::unnamed_file;
pub use write::{Answers, Writer};

use crate::missing::{Missing, Place};
use crate::model::{self, Model, Predictor};

/// The columns that are added; those of the same names that come with the rows give way.
pub const ADDED: [&str; 3] = ["cluster", "description", "distance"];
/// The column that is added where the mean takes the place of missing values: the names of the features that took it.
pub const IMPUTED: &str = "imputed";

/// Whether a column of this name is replaced by one that is added.
fn gives_way(name: &str, missing: Missing) -> bool {
    ADDED.contains(&name) || (missing == Missing::Impute && name == IMPUTED)
}

/// How rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Csv,
    /// Separated by tabs, else as CSV.
    Tsv,
    Json,
    Ndjson,
    /// Arrow's streaming format
    Arrow,
    /// Arrow's file format, which is Feather version 2
    Feather,
    Parquet,
}

/// What rows may be at most.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub rows: u64,
    /// Fields of an object, columns of a table.
    pub fields: usize,
    /// Levels of objects and arrays in each other, the row's own among them.
    pub depth: usize,
    /// Bytes of what must be held in one piece: a row, a batch of Arrow's, all its dictionaries.
    pub piece: usize,
}

impl Limits {
    /// For those who bring their own files.
    pub const NONE: Self = Self { rows: u64::MAX, fields: usize::MAX, depth: usize::MAX, piece: usize::MAX };
}

/// What is kept of a row beside its features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All of it, as it came.
    Row,
    /// The fields that are no features.
    Other,
}

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Counted from 0.
    pub row: u64,
    /// The line it begins at, from 1, in a format whose rows are lines.
    pub line: Option<u64>,
}

impl At {
    /// As people find it in their file.
    pub fn place(self) -> Place {
        self.line.map_or(Place::Row(self.row), Place::Line)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place().fmt(f)
    }
}

/// Accounts for the memory that a reader takes, and may refuse it.
pub trait Meter: Send + Sync {
    /// Notes bytes that are held until more is read after their rows were given.
    ///
    /// # Errors
    ///
    /// [`std::io::ErrorKind::OutOfMemory`]
    fn holds(&self, bytes: usize) -> std::io::Result<()>;

    /// Notes bytes that are held until the stream ends.
    ///
    /// # Errors
    ///
    /// [`std::io::ErrorKind::OutOfMemory`]
    fn keeps(&self, bytes: usize) -> std::io::Result<()>;
}

/// For those who bring their own files.
struct Unmetered;

impl Meter for Unmetered {
    fn holds(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }

    fn keeps(&self, _: usize) -> std::io::Result<()> {
        Ok(())
    }
}

/// Why rows could not be read, clustered or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A feature that is missing or no finite number, where that is refused.
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

/// Some rows, on their way.
#[derive(Debug)]
pub struct Block {
    /// A column for each feature, in the model's order and units; only finite numbers, and null where a gap is allowed.
    pub features: Vec<Float64Array>,
    /// What else came with the rows.
    pub carried: Carried,
    /// The number of its first row.
    pub first: u64,
    /// The line of each row, where rows are lines.
    pub lines: Vec<u64>,
}

impl Block {
    pub fn rows(&self) -> usize {
        match &self.carried {
            Carried::Columns(batch) => batch.num_rows(),
            Carried::Objects(objects) => objects.len(),
        }
    }

    /// Where one of its rows is.
    pub fn at(&self, row: usize) -> At {
        At { row: self.first + row as u64, line: self.lines.get(row).copied() }
    }
}

/// The rows as they came.
#[derive(Debug)]
pub enum Carried {
    Columns(RecordBatch),
    /// A JSON object each, or of it what is kept, its values verbatim; empty where nothing is.
    Objects(Vec<String>),
}

/// The clusters of a block's rows.
#[derive(Debug, Default)]
pub struct Found {
    pub clusters: Vec<u32>,
    /// To the centroid, in standardised units.
    pub distances: Vec<f64>,
    /// Null where a row has no cluster because a feature is missing; `None` where all have one.
    pub present: Option<NullBuffer>,
}

impl Found {
    /// The cluster of a row and the distance, if it has one.
    fn of(&self, row: usize) -> Option<(u32, f64)> {
        let present = self.present.as_ref().is_none_or(|present| present.is_valid(row));
        present.then(|| (self.clusters[row], self.distances[row]))
    }
}

/// A model that answers for many rows.
pub struct Scorer {
    pub features: Vec<String>,
    pub descriptions: Vec<String>,
    /// The descriptions as Arrow has them.
    words: ArrayRef,
    pub predictor: Predictor,
    /// Of each feature.
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

    /// What becomes of rows in which a feature is null.
    #[must_use]
    pub fn with_missing(self, missing: Missing) -> Self {
        Self { missing, ..self }
    }

    /// The cluster of each row.
    pub fn score(&self, block: &Block) -> Result<Found, Error> {
        let filled: Vec<Option<Vec<f64>>> = block.features.iter().zip(&self.mean).map(filled).collect();
        let columns: Vec<&[f64]> = filled
            .iter()
            .zip(&block.features)
            .map(|(filled, column)| filled.as_deref().unwrap_or(column.values()))
            .collect();
        let (clusters, distances) = self.predictor.predict_columns(&columns);
        let nulls = block.features.iter().fold(None, |all, column| NullBuffer::union(all.as_ref(), column.nulls()));
        let present = nulls.filter(|_| self.missing != Missing::Impute);
        let found = Found { clusters, distances, present };
        let far = |row: &usize| found.of(*row).is_some_and(|(_, distance)| !model::tells(distance));
        if found.distances.iter().any(|&distance| !model::tells(distance))
            && let Some(row) = (0..found.distances.len()).find(far)
        {
            let values: Vec<f64> = columns.iter().map(|column| column[row]).collect();
            let field = self.features[self.predictor.farthest(&values)].clone();
            return Err(Error::Field { at: block.at(row), field, what: TOO_FAR.to_owned() });
        }
        Ok(found)
    }

    /// The features of a row that took the mean.
    fn imputed<'a>(&'a self, block: &'a Block, row: usize) -> impl Iterator<Item = &'a str> {
        let gaps = self.features.iter().zip(&block.features).filter(move |(_, column)| column.is_null(row));
        gaps.map(|(name, _)| name.as_str())
    }
}

/// A column's values with the mean in place of nulls; `None` where it has none.
fn filled((column, mean): (&Float64Array, &f64)) -> Option<Vec<f64>> {
    (column.null_count() > 0).then(|| column.iter().map(|value| value.unwrap_or(*mean)).collect())
}

/// So far out, at 2^52 deviations and beyond, doubles can't tell which cluster is nearer.
pub const TOO_FAR: &str = "is too far from every cluster to tell them apart";
