//! Receipts: what a model was trained on, and how.

use std::collections::BTreeMap;

use poem_openapi::{Enum, Object};
use serde::{Deserialize, Serialize};

use super::Model;

/// The version of the training method. It is increased whenever the same rows can produce a different model: seeding,
/// passes, cluster numbers, descriptions, samples, or the treatment of missing values. Receipts name it.
///
/// 1: up to the first release. 2: restarts on a coreset that retains rare rows; descriptions by effect size.
pub const METHOD: u32 = 2;

/// The method of models whose receipts do not contain one.
fn first_method() -> u32 {
    1
}
/// What a model was trained on. Equal receipts, predecessor and method mean the same model to the bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Object)]
pub struct Receipt {
    pub topic: String,
    /// Partition to the offset after its last record.
    pub next_offsets: BTreeMap<String, i64>,
    /// Records in the whole stream then.
    pub n: u64,
    /// The last record of the slice; null where the stream was empty.
    pub cut: Option<Cut>,
    /// SHA-256 of the rows trained on, in slice order.
    pub rows_hash: String,
    /// SHA-256 of the SQL that decides those rows.
    pub sql_hash: String,
    /// How many starts were tried.
    pub starts: u64,
    /// The model whose cluster numbers were kept.
    pub predecessor: Option<Predecessor>,
    /// The model that served this slice before, if its features or k are others: nothing continues, and every cluster is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub replaced: Option<Predecessor>,
    /// The version of tercile.
    pub tercile: String,
    /// The version of the training method; only models of one method can be compared field by field. 1 where a model file
    /// does not name it.
    #[serde(default = "first_method")]
    pub method: u32,
    /// Which implementation of KMeans trained it; `tercile` where it is not given.
    #[serde(default, skip_serializing_if = "SolverKind::is_tercile")]
    #[oai(default, skip_serializing_if = "SolverKind::is_tercile")]
    pub solver: SolverKind,
}

/// An implementation of KMeans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, Enum, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase", rename = "Solver")]
pub enum SolverKind {
    /// The built-in one.
    #[default]
    Tercile,
    /// linfa-clustering, unmodified, as a reference.
    Linfa,
}

impl SolverKind {
    fn is_tercile(&self) -> bool {
        *self == Self::Tercile
    }
}

impl Receipt {
    /// The offset after the last record, by partition number.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        let number = |(partition, &next): (&String, &i64)| Some((partition.parse().ok()?, next));
        self.next_offsets.iter().filter_map(number).collect()
    }

    /// True if a new training would give the same model, apart from cluster numbers kept from the predecessor.
    pub fn same_but_predecessor(&self, other: &Self) -> bool {
        let alone = |receipt: &Self| Self { predecessor: None, replaced: None, ..receipt.clone() };
        alone(self) == alone(other)
    }

    /// True if both models have the same records, SQL, tercile version, method and solver. Their slices may differ.
    pub fn same_stream(&self, other: &Self) -> bool {
        let of = |receipt: &'_ Self| (receipt.n, receipt.topic.clone(), receipt.next_offsets.clone());
        let by = |receipt: &'_ Self| (receipt.tercile.clone(), receipt.method, receipt.solver);
        of(self) == of(other) && self.sql_hash == other.sql_hash && by(self) == by(other)
    }
}

/// A record's place in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
pub struct Cut {
    /// Milliseconds since 1970, UTC.
    pub timestamp: Option<i64>,
    pub partition: i32,
    pub offset: i64,
}

/// The model whose cluster numbers were kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Object)]
pub struct Predecessor {
    pub slice: u8,
    pub version: u64,
}

impl Predecessor {
    pub fn of(model: &Model) -> Self {
        Self { slice: model.slice, version: model.version }
    }
}
