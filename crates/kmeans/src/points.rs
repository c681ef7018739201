//! Points: the rows of Arrow columns with their scale, imputed values and optional weights.
//!
//! Input: columns of the same length and their scale. Output: passes over them ([`Points::pass`]) that compute each
//! cluster's sums without copying columns. Only a tile with nulls and the last tile are assembled in a small buffer.

mod bounded_pass;
mod tile;

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::Float64Array;
use arrow_buffer::NullBuffer;
use fearless_simd::Level;

use self::tile::{Scratch, tiles};
use super::kernel::{self, Frame, Nearest};
use super::totals::Totals;
use crate::column::Column;
use crate::column_buffer::done_with;
use crate::features::Scale;
use crate::features::moments::Compensated;
use crate::features::{power_under, scaling};
use crate::parallel::{CHUNK, by_chunk};

/// Rows to be clustered.
#[derive(Clone)]
pub struct Points<'a> {
    columns: Vec<Feature<'a>>,
    weights: Option<Cow<'a, [f64]>>,
    rows: usize,
    origin: Vec<f64>,
    inverse: Vec<f64>,
    level: Level,
}

#[derive(Clone)]
struct Feature<'a> {
    values: Cow<'a, [f64]>,
    valid: Option<&'a NullBuffer>,
    /// Value of a null.
    fill: f64,
    /// A power of two by which the values are multiplied, so that sums neither overflow nor underflow.
    unit: f64,
    varies: bool,
    /// The mean, in original units.
    mean: f64,
    /// A power of two near the deviation in original units.
    size: f64,
    log: Log,
}

/// Whether a feature is on a logarithmic scale. The column's own unit is that of the logarithms then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    No,
    /// The values are original ones: their logarithms are taken where they are read.
    Taken,
    /// The values are logarithms.
    Given,
}

impl Feature<'_> {
    /// A stored value in the column's own unit.
    fn own(&self, value: f64) -> f64 {
        if self.log == Log::Taken { scaling::log(value) } else { value }
    }

    /// An original value in the column's own unit.
    fn of_original(&self, value: f64) -> f64 {
        if self.log == Log::No { value * self.unit } else { scaling::log(value) }
    }

    /// A value in the column's own unit in original units.
    fn original(&self, value: f64) -> f64 {
        if self.log == Log::No { value / self.unit } else { scaling::exp(value) }
    }
}

impl<'a> Points<'a> {
    /// Borrows columns of the same length. Nulls count as the scale's mean. A column is copied only if its deviation is
    /// below 1e-270 or above 1e270.
    pub fn new(scale: &Scale, columns: &'a [Float64Array]) -> Self {
        Self::of(scale, columns.iter().map(Column::from).collect())
    }

    /// Points over columns of Arrow or ndarray.
    pub fn of(scale: &Scale, columns: Vec<Column<'a>>) -> Self {
        let mut points = Self {
            columns: Vec::with_capacity(columns.len()),
            weights: None,
            rows: columns.first().map_or(0, Column::len),
            origin: Vec::with_capacity(columns.len()),
            inverse: Vec::with_capacity(columns.len()),
            level: Level::new(),
        };
        for (f, Column { values, valid }) in columns.into_iter().enumerate() {
            let std = power_under(scale.std[f]);
            let log = if scale.is_log(f) { Log::Taken } else { Log::No };
            // Sums may overflow or underflow for extreme deviations. Only then the column is copied, in a unit of its own.
            let fits = scale.std[f] == 0.0 || log == Log::Taken || (1e-270..1e270).contains(&std);
            let unit = if fits { 1.0 } else { 1.0 / std };
            let values = if fits { values } else { values.iter().map(|value| value * unit).collect() };
            points.columns.push(Feature {
                values,
                valid,
                fill: scale.linear(f, scale.mean[f]) * unit,
                unit,
                varies: scale.std[f] != 0.0,
                mean: scale.mean[f],
                size: if scale.std[f] == 0.0 { 1.0 } else { std },
                log,
            });
            points.origin.push(scale.origin[f] * unit);
            points.inverse.push(scale.inverse[f] / unit);
        }
        points
    }

    /// Restricts the instruction set.
    #[cfg(test)]
    pub(super) fn on(self, level: Level) -> Self {
        Self { level, ..self }
    }

    /// Adds weights, one per row.
    pub fn with_weights(self, weights: Vec<f64>) -> Self {
        Self { weights: Some(Cow::Owned(weights)), ..self }
    }

    /// Other points on the same scale: one column per feature, in the units of [`Points::value`], and their weights.
    pub(super) fn weighted<'b>(&self, columns: &'b [Vec<f64>], weights: &'b [f64]) -> Points<'b> {
        let column = |(column, values): (&Feature<'_>, &'b Vec<f64>)| Feature {
            values: Cow::Borrowed(values),
            valid: None,
            fill: column.fill,
            unit: column.unit,
            varies: column.varies,
            mean: column.mean,
            size: column.size,
            log: if column.log == Log::No { Log::No } else { Log::Given },
        };
        Points {
            columns: self.columns.iter().zip(columns).map(column).collect(),
            weights: Some(Cow::Borrowed(weights)),
            rows: weights.len(),
            origin: self.origin.clone(),
            inverse: self.inverse.clone(),
            level: self.level,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.columns.len()
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// Origin of a feature's sums, in the column's own unit.
    pub(super) fn origin(&self, feature: usize) -> f64 {
        self.origin[feature]
    }

    /// Whether a feature's deviation is not 0.
    pub(super) fn varies(&self, feature: usize) -> bool {
        self.columns[feature].varies
    }

    pub(super) fn weighs(&self) -> bool {
        self.weights.is_some()
    }

    pub(super) fn weight(&self, row: usize) -> f64 {
        self.weights.as_ref().map_or(1.0, |weights| weights[row])
    }

    /// A row's value in the column's own unit; the mean for a null.
    pub(super) fn value(&self, feature: usize, row: usize) -> f64 {
        let column = &self.columns[feature];
        if column.valid.is_some_and(|valid| valid.is_null(row)) { column.fill } else { column.own(column.values[row]) }
    }

    /// A row's value in original units; the mean for a null.
    pub(super) fn original_value(&self, feature: usize, row: usize) -> f64 {
        let column = &self.columns[feature];
        match column.log {
            Log::No | Log::Given => self.original(feature, self.value(feature, row)),
            Log::Taken if column.valid.is_some_and(|valid| valid.is_null(row)) => column.mean,
            Log::Taken => column.values[row],
        }
    }

    /// A power of two near the deviation of a feature in original units, by which differences are divided so that squares neither
    /// overflow nor underflow.
    pub(super) fn size(&self, feature: usize) -> f64 {
        self.columns[feature].size
    }

    /// Whether a feature is on a logarithmic scale.
    pub(super) fn is_log(&self, feature: usize) -> bool {
        self.columns[feature].log != Log::No
    }

    /// Standardises a value in the column's own unit.
    pub(super) fn standardise(&self, feature: usize, value: f64) -> f64 {
        (value - self.origin[feature]) * self.inverse[feature]
    }

    /// Converts a value in the column's own unit to original units.
    pub(super) fn original(&self, feature: usize, value: f64) -> f64 {
        self.columns[feature].original(value)
    }

    /// Converts a standardised difference to original units; of a logarithmic scale, to a difference of logarithms.
    pub(super) fn length(&self, feature: usize, standardised: f64) -> f64 {
        standardised / self.inverse[feature] / self.columns[feature].unit
    }

    /// Converts a standardised value to original units.
    pub fn restore(&self, feature: usize, standardised: f64) -> f64 {
        self.original(feature, self.origin[feature] + standardised / self.inverse[feature])
    }

    /// Standardises centroids in original units (row-major), with the same arithmetic as prediction.
    pub(super) fn standardised(&self, centroids: &[f64]) -> Vec<f64> {
        let features = self.features();
        let place =
            |(i, &value): (usize, &f64)| self.standardise(i % features, self.columns[i % features].of_original(value));
        centroids.iter().enumerate().map(place).collect()
    }

    /// Mean of each cluster, in original units; an empty cluster keeps its centroid.
    pub(super) fn means(&self, totals: &Totals, before: &[f64]) -> Vec<f64> {
        let features = self.features();
        let mean = |(i, &before): (usize, &f64)| {
            let (cluster, feature) = (i / features, i % features);
            let weight = totals.weights[cluster];
            let off = totals.sums[i] / weight;
            if weight > 0.0 { self.original(feature, self.origin[feature] + off) } else { before }
        };
        before.iter().enumerate().map(mean).collect()
    }

    /// [`Totals::saved`], with the centroids in original units.
    pub(super) fn saved(&self, totals: &Totals, centroids: &[f64]) -> f64 {
        totals.saved(&self.standardised(centroids), &self.inverse)
    }

    /// One pass over all rows. Centroids are in original units.
    pub(super) fn pass(&self, centroids: &[f64], threads: usize) -> Totals {
        let (features, k) = (self.features(), centroids.len() / self.features());
        let centroids = self.standardised(centroids);
        let frame = Frame { origin: &self.origin, inverse: &self.inverse, centroids: &centroids, k };
        let chunks = by_chunk(self.rows, threads, |rows| self.add_up(rows, &frame));
        totals(features, k, chunks)
    }

    /// Sums over a chunk.
    fn add_up(&self, rows: Range<usize>, frame: &Frame<'_>) -> Vec<f64> {
        let mut sums = kernel::Sums::new(self.level, frame.k, self.features());
        let (mut nearest, mut scratch) = (None, Scratch::default());
        for tile in tiles(rows.clone()) {
            self.tile(tile, &mut scratch, |tile| kernel::sweep(self.level, tile, frame, &mut nearest, &mut sums));
        }
        self.done_with(rows);
        sums.fold()
    }

    /// Calls `tell` for each tile of these rows with its first row, the cluster of each row and its squared distance.
    /// Centroids are standardised.
    pub(super) fn each_nearest(
        &self,
        rows: Range<usize>,
        centroids: &[f64],
        mut tell: impl FnMut(usize, &[f64], &[f64]),
    ) {
        let k = centroids.len() / self.features();
        let frame = Frame { origin: &self.origin, inverse: &self.inverse, centroids, k };
        let (mut nearest, mut scratch) = (Nearest::new(), Scratch::default());
        for rows in tiles(rows.clone()) {
            self.tile(rows.clone(), &mut scratch, |tile| kernel::find_nearest(self.level, tile, &frame, &mut nearest));
            let n = rows.len();
            tell(rows.start, &nearest.labels.as_flattened()[..n], &nearest.squared.as_flattened()[..n]);
        }
        self.done_with(rows);
    }

    /// Calls `show` with the values of the first feature of these rows, in parts, each with its first row.
    pub(super) fn each_value(&self, rows: Range<usize>, mut show: impl FnMut(usize, &[f64])) {
        let mut scratch = Scratch::default();
        for rows in tiles(rows.clone()) {
            self.tile(rows.clone(), &mut scratch, |tile| {
                show(rows.start, &tile.columns[0].as_flattened()[..rows.len()]);
            });
        }
        self.done_with(rows);
    }

    /// The values of some rows, in the units of [`Points::value`]. `rows` must be ascending.
    pub(super) fn values(&self, feature: usize, rows: &[u32]) -> Vec<f64> {
        let near = |a: &u32, b: &u32| *a as usize / CHUNK == *b as usize / CHUNK;
        let mut values = Vec::with_capacity(rows.len());
        for rows in rows.chunk_by(near) {
            values.extend(rows.iter().map(|&row| self.value(feature, row as usize)));
            self.done_with(rows[0] as usize..rows[rows.len() - 1] as usize + 1);
        }
        values
    }

    /// The same in original units.
    pub(super) fn original_values(&self, feature: usize, rows: &[u32]) -> Vec<f64> {
        let near = |a: &u32, b: &u32| *a as usize / CHUNK == *b as usize / CHUNK;
        let mut values = Vec::with_capacity(rows.len());
        for rows in rows.chunk_by(near) {
            values.extend(rows.iter().map(|&row| self.original_value(feature, row as usize)));
            self.done_with(rows[0] as usize..rows[rows.len() - 1] as usize + 1);
        }
        values
    }

    /// Declares that these rows are not read again soon ([`done_with`]).
    fn done_with(&self, rows: Range<usize>) {
        for column in &self.columns {
            done_with(&column.values[rows.clone()]);
        }
    }
}

/// Compensated sums over all chunks.
fn totals(features: usize, k: usize, chunks: Vec<Vec<f64>>) -> Totals {
    let mut all = vec![Compensated::default(); k * features + k + 1];
    for chunk in chunks {
        all.iter_mut().zip(chunk).for_each(|(sum, part)| sum.add(part));
    }
    let mut sums: Vec<f64> = all.into_iter().map(Compensated::total).collect();
    let inertia = sums.pop().unwrap_or(0.0);
    let weights = sums.split_off(k * features);
    Totals { sums, weights, inertia }
}
