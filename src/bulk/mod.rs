//! Many rows to clusters: tables and streams in the formats people have, and the same rows again, each with its cluster.
//!
//! Input: bytes of CSV, JSON, NDJSON, Arrow or Parquet, and a model. Output: the rows in one of these formats, with
//! `cluster`, `description` and `distance`, or what the API answers for each. A block of rows is in memory at a time,
//! however many there are.

mod arrow;
mod explain;
mod json;
mod lines;
mod read;
mod split;
mod spool;
mod write;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};

use crate::model::{self, Model, Predictor};

pub use explain::{Explainer, Opinion, TooFar};
pub use json::number;
pub use lines::Lines;
pub use read::Reader;
pub use spool::unnamed_file;
pub use write::{Answers, Writer};

/// The columns that are added; those of the same names that come with the rows give way.
pub const ADDED: [&str; 3] = ["cluster", "description", "distance"];

/// How rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Csv,
    Json,
    Ndjson,
    /// Arrow's streaming format.
    Arrow,
    Parquet,
}

impl Format {
    /// As a file's name says; `None` if it says nothing.
    pub fn of(path: &Path) -> Option<Self> {
        Some(match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "json" => Self::Json,
            "ndjson" | "jsonl" => Self::Ndjson,
            "arrow" | "arrows" => Self::Arrow,
            "parquet" => Self::Parquet,
            _ => return None,
        })
    }
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

/// Why rows could not be read, clustered or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("row {row}: {field} {what}")]
    Field { row: u64, field: String, what: String },
    #[error("row {row}: {what}")]
    Row { row: u64, what: String },
    #[error("row {row}: {what}")]
    Syntax { row: u64, what: String },
    #[error("the column {field} {what}")]
    Column { field: String, what: String },
    #[error("the rows have no column {0}, which the model wants; they have {1}")]
    Missing(String, String),
    #[error("expected at least one row, there is none")]
    Empty,
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
    /// A column for each feature, in the model's order and units; no nulls, only finite numbers.
    pub features: Vec<Float64Array>,
    /// What else came with the rows.
    pub carried: Carried,
}

impl Block {
    pub fn rows(&self) -> usize {
        match &self.carried {
            Carried::Columns(batch) => batch.num_rows(),
            Carried::Objects(objects) => objects.len(),
        }
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
}

/// A model that answers for many rows.
pub struct Scorer {
    pub features: Vec<String>,
    pub descriptions: Vec<String>,
    /// The descriptions as Arrow has them.
    words: ArrayRef,
    pub predictor: Predictor,
}

impl Scorer {
    pub fn new(model: &Model, language: &str) -> Self {
        let descriptions: Vec<String> = model.descriptions(language).into_iter().map(str::to_owned).collect();
        let words = Arc::new(StringArray::from(descriptions.clone()));
        Self { features: model.features.clone(), descriptions, words, predictor: model.predictor() }
    }

    /// The cluster of each row; `first` is the number of the block's first row, for errors.
    pub fn score(&self, block: &Block, first: u64) -> Result<Found, Error> {
        let columns: Vec<&[f64]> = block.features.iter().map(|column| &column.values()[..]).collect();
        let (clusters, distances) = self.predictor.predict_columns(&columns);
        if let Some(row) = distances.iter().position(|&distance| !model::tells(distance)) {
            let values: Vec<f64> = columns.iter().map(|column| column[row]).collect();
            let field = self.features[self.predictor.farthest(&values)].clone();
            return Err(Error::Field { row: first + row as u64, field, what: TOO_FAR.to_owned() });
        }
        Ok(Found { clusters, distances })
    }
}

/// So far out, at 2^52 deviations and beyond, doubles can't tell which cluster is nearer.
pub const TOO_FAR: &str = "is too far from every cluster to tell them apart";
