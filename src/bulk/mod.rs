//! Many rows to clusters: tables and streams in the formats people have, and the same rows again, each with its cluster.
//!
//! Input: bytes of CSV, JSON, NDJSON, Arrow or Parquet, and a model. Output: the rows in one of these formats, with
//! `cluster`, `description` and `distance`. A block of rows is in memory at a time, however many there are.

mod json;
mod read;
mod split;
mod write;

use std::path::Path;

use datafusion::arrow::array::RecordBatch;

use crate::model::{Model, Predictor};

pub use json::number;
pub use read::Reader;
pub use write::Writer;

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

/// Why rows could not be read, clustered or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("row {row}: {field} {what}")]
    Field { row: u64, field: String, what: String },
    #[error("row {row}: {what}")]
    Row { row: u64, what: String },
    #[error("the rows have no column {0}, which the model wants; they have {1}")]
    Missing(String, String),
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
    /// Features, row after row, in the model's order and units.
    pub values: Vec<f64>,
    /// What else came with the rows.
    pub carried: Carried,
}

/// The rows as they came.
#[derive(Debug)]
pub enum Carried {
    Columns(RecordBatch),
    /// A JSON object each, its values verbatim, without the columns that are added.
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
    predictor: Predictor,
}

impl Scorer {
    pub fn new(model: &Model, language: &str) -> Self {
        let words = |cluster: &crate::model::Cluster| {
            cluster.descriptions.get(language).unwrap_or(&cluster.description).clone()
        };
        let descriptions = model.clusters.iter().map(words).collect();
        Self { features: model.features.clone(), descriptions, predictor: model.predictor() }
    }

    /// The cluster of each row; `first` is the number of the block's first row, for errors.
    pub fn score(&self, block: &Block, first: u64) -> Result<Found, Error> {
        let mut found = Found::default();
        let mut scratch = vec![0.0; self.features.len()];
        for (i, row) in block.values.chunks_exact(self.features.len()).enumerate() {
            scratch.copy_from_slice(row);
            let (cluster, distance) = self.predictor.predict(&mut scratch);
            if !distance.is_finite() {
                // Squares left the range of a double, so no cluster is nearer than another; the largest standardised
                // value is the one to blame.
                let worst = (0..scratch.len()).max_by(|&a, &b| scratch[a].abs().total_cmp(&scratch[b].abs()));
                return Err(Error::Field {
                    row: first + i as u64,
                    field: self.features[worst.unwrap_or(0)].clone(),
                    what: "is too far from every cluster to tell them apart".to_owned(),
                });
            }
            found.clusters.push(cluster as u32);
            found.distances.push(distance);
        }
        Ok(found)
    }
}
