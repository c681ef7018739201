//! The rows of a training, counted by what a serving model knows of them.
//!
//! Input: a serving model, a new one, and the features of rows. Output: how many rows are new, change their cluster, or are unlike
//! those of the serving model ([`Counts`]), for the guard rules (promotion.rs).

use std::collections::BTreeMap;
use std::ops::{AddAssign, Range};

use datafusion::arrow::array::Float64Array;
use tercile_kmeans::parallel::CHUNK;

use crate::model::baseline::nearest;
use crate::model::{Model, ModelRegistry, Predictor};

/// The number of rows of a new model, compared with the serving one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub rows: u64,
    /// Rows that both models were trained on.
    pub common: u64,
    /// Those of them that change their cluster.
    pub moved: u64,
    /// Rows that the serving model was not trained on.
    pub new: u64,
    /// Rows beyond the 0.999 quantile of the distances in their cluster of the serving model.
    pub unlike: u64,
    /// Those of them that are new.
    pub new_unlike: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.common += other.common;
        self.moved += other.moved;
        self.new += other.new;
        self.unlike += other.unlike;
        self.new_unlike += other.new_unlike;
    }
}

impl FromIterator<Counts> for Counts {
    fn from_iter<I: IntoIterator<Item = Counts>>(all: I) -> Self {
        let mut sum = Self::default();
        all.into_iter().for_each(|one| sum += one);
        sum
    }
}

/// A serving model and a new one.
pub(super) struct Versus<'a> {
    pub registry: &'a ModelRegistry,
    pub serving: &'a Model,
    /// By partition: the offset after the last record that the serving model knows.
    ends: BTreeMap<i32, i64>,
    /// The last record of its slice.
    cut: Option<(Option<i64>, i32, i64)>,
    old: Predictor,
    new: Predictor,
    /// By cluster of the serving model: the distance beyond which a row is unlike its rows.
    pub limits: Option<Vec<f64>>,
}

impl<'a> Versus<'a> {
    pub fn new(registry: &'a ModelRegistry, serving: &'a Model, new: &Model) -> Self {
        let receipt = &serving.receipt;
        Self {
            registry,
            serving,
            // Offsets of another topic say nothing.
            ends: if receipt.topic == new.receipt.topic { receipt.ends() } else { BTreeMap::new() },
            cut: receipt.cut.as_ref().map(|cut| (cut.timestamp, cut.partition, cut.offset)),
            old: serving.predictor(),
            new: new.predictor(),
            limits: serving.baseline.as_ref().map(|baseline| baseline.limits()),
        }
    }

    /// Whether the serving model was trained on the slice that has this record. Records without a timestamp come first.
    pub fn knows(&self, timestamp: Option<i64>, partition: i32, offset: i64) -> bool {
        let known = self.ends.get(&partition).is_some_and(|end| offset < *end);
        known && self.cut.is_some_and(|cut| (timestamp, partition, offset) <= cut)
    }

    /// Counts rows given by their features. `before` returns the cluster of a row in the serving model, given the row's index and the
    /// nearest cluster; `None` for a new row.
    pub fn count(&self, features: &[Float64Array], before: impl Fn(usize, u32) -> Option<u32>) -> Counts {
        let rows = features.first().map_or(0, Float64Array::len);
        let mut counts = Counts::default();
        // The rows are filled in and standardised per chunk.
        for start in (0..rows).step_by(CHUNK) {
            let chunk: Range<usize> = start..rows.min(start + CHUNK);
            let features: Vec<Float64Array> = features.iter().map(|one| one.slice(start, chunk.len())).collect();
            let (old, distances) = nearest(&self.old, &features);
            let (new, _) = nearest(&self.new, &features);
            counts += chunk
                .zip(old.into_iter().zip(distances).zip(new))
                .map(|(row, ((old, distance), new))| {
                    let beyond = |limits: &Vec<f64>| limits.get(old as usize).is_some_and(|limit| distance > *limit);
                    let unlike = u64::from(self.limits.as_ref().is_some_and(beyond));
                    match before(row, old) {
                        Some(before) => {
                            Counts { rows: 1, common: 1, moved: u64::from(before != new), unlike, ..Counts::default() }
                        }
                        None => Counts { rows: 1, new: 1, unlike, new_unlike: unlike, ..Counts::default() },
                    }
                })
                .collect();
        }
        counts
    }
}
