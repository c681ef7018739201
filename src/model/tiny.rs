//! Rows that form tiny clusters of their own, and so decide the clusters of all.

use poem_openapi::Object;
use serde::{Deserialize, Serialize};

/// Rows that form tiny clusters of their own: at most two, or 0.2 % of the rows, of at least 100.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
#[oai(rename = "TinyClusters")]
pub struct Tiny {
    /// The rows of tiny clusters.
    pub rows: u64,
    /// The numbers of those clusters.
    pub clusters: Vec<u32>,
    /// The number of clusters with the greatest silhouette without these rows; null if there are too many rows to try.
    pub preferred: Option<u32>,
}

impl Tiny {
    /// One sentence. `rows`: all rows; `own`: the rows of tiny clusters.
    pub fn sentence(&self, rows: &str, own: &str) -> String {
        let clusters = match self.clusters.as_slice() {
            [cluster] => format!("a cluster of their own ({cluster})"),
            many => format!(
                "{} clusters of their own ({})",
                many.len(),
                many.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
            ),
        };
        let without = match self.preferred {
            Some(k) => format!("; without them the silhouette prefers {k}"),
            None => "; try without them".to_owned(),
        };
        format!("{own} of {rows} rows form {clusters}{without}")
    }
}
