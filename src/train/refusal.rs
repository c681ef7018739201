//! Reasons why a slice gets no new model.

use datafusion::arrow::error::ArrowError;
use tercile_kmeans::{self as kmeans, features};

use crate::engine;
use crate::sql::{Segmentation, quote};

/// The reason why one slice of one segmentation has no new model.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("no rows to train on")]
    NoRows,
    #[error(
        "the record at offset {offset} of partition {partition} comes twice; a segmentation gives each record once"
    )]
    Twice { partition: i32, offset: i64 },
    #[error("{error}{next}", error = .0, next = remedy(.0))]
    Features(#[from] features::Error),
    /// A feature cannot be scaled as the header of its SQL file says.
    #[error("{file}, line {line}: {why}")]
    Scaling { file: String, line: usize, why: String },
    #[error(transparent)]
    KMeans(#[from] kmeans::Error),
    #[error("{0}")]
    Arrow(#[from] ArrowError),
    #[error(
        "linfa needs its {rows} rows in memory, in {needed} bytes, and may have {memory}; raise --memory-limit, or leave out --solver"
    )]
    LinfaMemory { rows: usize, needed: usize, memory: usize },
    /// The view could not be evaluated for this slice.
    #[error("{0}")]
    View(String),
    #[error("the entity {key} occurs {count} times in the view{others}; a segmentation of entities gives each once, so group by its key", others = more(.others))]
    EntityTwice { key: String, count: u64, others: u64 },
    #[error("the members of version {0} are deleted")]
    NoMembers(u64),
    /// The members of the predecessor cannot be read.
    #[error(transparent)]
    Store(#[from] tercile_store::Error),
    /// Not a refusal of these rows: the training cannot continue.
    #[error(transparent)]
    Engine(#[from] engine::Error),
}

fn more(others: &u64) -> String {
    if *others == 0 { String::new() } else { format!(", and {others} more occur more than once") }
}

impl Refusal {
    /// The same without the key of an entity, if it contains one.
    pub fn without_key(&self) -> Option<String> {
        match self {
            Self::EntityTwice { count, others, .. } => Some(
                Self::EntityTwice {
                    key: "(its key is shown by tercile train)".to_owned(),
                    count: *count,
                    others: *others,
                }
                .to_string(),
            ),
            _ => None,
        }
    }
}

impl Refusal {
    /// The same, with the line of the header that scales the feature, if it is the reason.
    pub fn in_header(self, of: &Segmentation) -> Self {
        use features::Error::{NoDeviation, NoLogarithm, NoRange};
        let Self::Features(NoLogarithm { feature, .. } | NoRange { feature, .. } | NoDeviation { feature }) = &self
        else {
            return self;
        };
        let line = of.features.iter().position(|name| name == feature).and_then(|i| of.scaling_lines[i]);
        match line {
            Some(line) => Self::Scaling { file: of.file.clone(), line, why: self.to_string() },
            None => self,
        }
    }
}

/// The next step after an error of the feature columns, in terms of the SQL file; empty where the error states it.
fn remedy(error: &features::Error) -> String {
    let feature = match error {
        features::Error::NotFinite { feature, .. } => feature,
        features::Error::NoLogarithm { .. } => {
            return "; leave such rows out in the SQL file, or choose robust".to_owned();
        }
        features::Error::NoRange { .. } => return "; choose log, or leave the line out".to_owned(),
        _ => return String::new(),
    };
    let column = quote(feature);
    format!(
        "; make it NULL in the SQL file, as in CASE WHEN abs({column}) < CAST('Infinity' AS DOUBLE) THEN {column} END: a NULL \
         takes the mean and is counted"
    )
}
