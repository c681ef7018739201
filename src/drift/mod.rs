//! Drift: whether later rows have the distribution of the rows that a model was trained on.
//!
//! Input: a model with its [`Baseline`], and later rows ([`rows`], or the rows of requests). Output: a [`Drift`] report with the
//! features and clusters that changed, and a sentence. A row counts as unlike the training's if it is farther from its centroid than
//! 999 of 1,000 rows of its cluster were.

pub mod asked;
pub mod rows;
mod statistics;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;

use datafusion::arrow::array::{Array as _, Float64Array};
use poem_openapi::{Enum, Object};
use serde::Serialize;

use self::statistics::{p_value, p_value_of_share, stability_index};
use crate::model::Model;
use crate::model::baseline::{self, Baseline, FeatureBaseline};

/// Rows that are needed on either side.
pub const ENOUGH: u64 = 500;
/// Population stability index from which a feature drifts.
const INDEX: f64 = 0.2;
/// Difference of a cluster's share from which it drifts.
const SHARE: f64 = 0.1;
/// Share of unlike rows, above that of the training, from which the model drifts.
const UNLIKE: f64 = 0.05;
/// Each also needs a p-value below this one.
const P_VALUE: f64 = 1e-4;
/// A feature whose mean rank is off by more than this has moved up or down; otherwise its spread has changed.
const MOVED: f64 = 0.05;
/// Maximum number of periods in which the start of a drift is looked for.
const PERIODS: usize = 20;

/// The rows that are compared with the training's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Enum, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase", rename = "DriftOf")]
pub enum Of {
    /// Records that arrived after the training.
    Stream,
    /// Rows of requests for predictions to this process, since it loaded the model.
    #[value(skip)]
    Api,
    /// The rows that a slice has beyond the slice before, compared with the model of the slice before.
    Thirds,
}

/// The result of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Enum)]
#[oai(rename = "DriftState")]
pub enum State {
    #[serde(rename = "ok")]
    #[oai(rename = "ok")]
    Ok,
    /// A feature, the share of a cluster or the share of unlike rows differs beyond its limit.
    #[serde(rename = "drifting")]
    #[oai(rename = "drifting")]
    Drifting,
    /// Fewer than 500 rows on one side.
    #[serde(rename = "too few")]
    #[oai(rename = "too few")]
    TooFew,
}

/// The change of a feature that drifts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Enum)]
#[serde(rename_all = "lowercase")]
#[oai(rename_all = "lowercase")]
pub enum Direction {
    Up,
    Down,
    /// It varies more or less than before, or is missing more or less often, around the same middle.
    Spread,
    /// It does not drift.
    None,
}

/// Later rows compared with those that a model was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Object)]
pub struct Drift {
    pub segmentation: String,
    /// The slice of the model.
    pub model: u8,
    pub version: u64,
    pub of: Of,
    /// Time of the first row that was compared, RFC 3339, UTC; null where no row has one.
    pub since: Option<String>,
    /// Rows that arrived: records, entities, or rows of requests.
    pub rows: u64,
    /// Rows that were compared: those of at most 100,000 evenly spaced ones that the SQL keeps.
    pub read: u64,
    pub state: State,
    /// In the order of the model's features.
    pub features: Vec<FeatureDrift>,
    pub clusters: Vec<ClusterDrift>,
    /// Share of the rows that are farther from their centroids than 999 of 1,000 rows of the training.
    pub unlike: f64,
    /// The same of the training's rows.
    pub unlike_before: f64,
    /// When the drift began, RFC 3339, UTC: the start of the first of up to 20 periods since when the rows differ. Not given without
    /// drift, and where rows have no times.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[oai(skip_serializing_if_is_none)]
    pub began: Option<String>,
    /// What changed, in a sentence, by language: `en`.
    pub words: BTreeMap<String, String>,
}

/// One feature.
#[derive(Debug, Clone, PartialEq, Serialize, Object)]
pub struct FeatureDrift {
    pub name: String,
    /// Population stability index over the bins of the model's baseline, including the one for missing values. Drift from 0.2.
    pub psi: f64,
    /// Of the chi-square test on the same bins.
    pub p_value: f64,
    /// Share of the rows in which it is missing.
    pub missing: f64,
    pub missing_before: f64,
    pub direction: Direction,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Object)]
pub struct ClusterDrift {
    pub cluster: u32,
    /// Its description in English.
    pub description: String,
    /// Share of the rows.
    pub share: f64,
    pub share_before: f64,
    pub p_value: f64,
}

impl Drift {
    /// Whether the figures are so far below their limits that a drift has ended.
    pub fn has_ended(&self) -> bool {
        self.features.iter().all(|one| one.psi < INDEX / 2.0)
            && self.clusters.iter().all(|one| (one.share - one.share_before).abs() < SHARE / 2.0)
            && self.unlike - self.unlike_before < UNLIKE / 2.0
    }
}

impl FeatureDrift {
    /// Whether it differs beyond the limit.
    pub fn is_drifting(&self) -> bool {
        self.psi >= INDEX && self.p_value < P_VALUE
    }
}

impl ClusterDrift {
    /// Whether its share differs beyond the limit.
    pub fn is_drifting(&self) -> bool {
        (self.share - self.share_before).abs() >= SHARE && self.p_value < P_VALUE
    }
}

/// Rows to compare.
#[derive(Debug, Clone, Default)]
pub struct Arrived {
    /// Rows that arrived.
    pub rows: u64,
    /// Milliseconds since 1970, of each row that is compared; empty where rows have no times. Ascending, with rows without a time
    /// first.
    pub times: Vec<Option<i64>>,
    /// The features of the rows that are compared, in original units; NULL where one is missing.
    pub columns: Vec<Float64Array>,
}

impl Arrived {
    fn read(&self) -> usize {
        self.columns.first().map_or(0, Float64Array::len)
    }
}

/// Compares rows with the baseline of a model.
pub fn compare(model: &Model, baseline: &Baseline, of: Of, arrived: &Arrived) -> Drift {
    let read = arrived.read();
    let (labels, distances) = baseline::nearest(&model.predictor(), &arrived.columns);
    let features: Vec<FeatureDrift> =
        baseline.features.iter().zip(&arrived.columns).map(|(before, now)| feature(before, now)).collect();
    let clusters = clusters(model, baseline, &labels);
    let unlike = labels.iter().zip(&distances).filter(|(label, distance)| baseline.is_unlike(**label, **distance));
    let (unlike, read) = (unlike.count() as u64, read as u64);
    let (share, share_before) = (part(unlike, read), part(baseline.unlike, baseline.rows));
    let strange =
        share - share_before >= UNLIKE && p_value_of_share((baseline.unlike, baseline.rows), (unlike, read)) < P_VALUE;
    let drifting =
        strange || features.iter().any(FeatureDrift::is_drifting) || clusters.iter().any(ClusterDrift::is_drifting);
    let state = match () {
        () if read < ENOUGH || baseline.rows < ENOUGH => State::TooFew,
        () if drifting => State::Drifting,
        () => State::Ok,
    };
    let began = if state == State::Drifting { began(baseline, &features, arrived) } else { None };
    let time = |millis: i64| {
        let time = chrono::DateTime::from_timestamp_millis(millis)?;
        Some(time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
    };
    let mut drift = Drift {
        segmentation: model.segmentation.clone(),
        model: model.slice,
        version: model.version,
        of,
        since: arrived.times.iter().flatten().next().copied().and_then(time),
        rows: arrived.rows,
        read,
        state,
        features,
        clusters,
        unlike: share,
        unlike_before: share_before,
        began: began.and_then(time),
        words: BTreeMap::new(),
    };
    drift.words.insert("en".to_owned(), words::sentence(&drift, model, baseline, strange));
    drift
}

fn feature(before: &FeatureBaseline, now: &Float64Array) -> FeatureDrift {
    let (counts, missing) = before.count(now);
    let bins = |counts: &[u64], missing| counts.iter().copied().chain([missing]).collect::<Vec<u64>>();
    let (before_bins, now_bins) = (bins(&before.counts, before.missing), bins(&counts, missing));
    let rows_before: u64 = before_bins.iter().sum();
    let mut found = FeatureDrift {
        name: before.name.clone(),
        psi: stability_index(&before_bins, &now_bins),
        p_value: p_value(&before_bins, &now_bins),
        missing: part(missing, now.len() as u64),
        missing_before: part(before.missing, rows_before),
        direction: Direction::None,
    };
    if found.is_drifting() {
        let present = (now.len() - now.null_count()).max(1) as f64;
        // The chance that a later value is greater than one of the training, as in the Mann-Whitney test: outliers do not matter.
        let rank = now.iter().flatten().map(|value| before.rank(value)).sum::<f64>() / present;
        found.direction = match rank - 0.5 {
            off if off > MOVED && now.null_count() < now.len() => Direction::Up,
            off if off < -MOVED && now.null_count() < now.len() => Direction::Down,
            _ => Direction::Spread,
        };
    }
    found
}

fn clusters(model: &Model, baseline: &Baseline, labels: &[u32]) -> Vec<ClusterDrift> {
    let mut counts = vec![0_u64; model.clusters.len()];
    labels.iter().for_each(|label| counts[*label as usize] += 1);
    let (all, all_before) = (labels.len() as u64, baseline.rows);
    let one = |((cluster, count), before): ((&crate::model::Cluster, u64), &u64)| ClusterDrift {
        cluster: cluster.cluster,
        description: cluster.description.clone(),
        share: part(count, all),
        share_before: part(*before, all_before),
        p_value: p_value_of_share((*before, all_before), (count, all)),
    };
    model.clusters.iter().zip(counts).zip(&baseline.clusters).map(one).collect()
}

/// The start of the drift of the feature that drifts most, in milliseconds since 1970: of the first of the last periods in a row that
/// differ from the training each by itself.
fn began(baseline: &Baseline, features: &[FeatureDrift], arrived: &Arrived) -> Option<i64> {
    let rows = arrived.times.len();
    let periods = (rows / ENOUGH as usize).clamp(1, PERIODS);
    let worst = (0..features.len())
        .filter(|&at| features[at].is_drifting())
        .max_by(|&a, &b| features[a].psi.total_cmp(&features[b].psi))?;
    let start = |period: usize| period * rows / periods;
    let drifts = |period: usize| {
        let (from, to) = (start(period), start(period + 1));
        feature(&baseline.features[worst], &arrived.columns[worst].slice(from, to - from)).is_drifting()
    };
    let last = (0..periods).rev().find(|&period| drifts(period))?;
    let first = (0..=last).rev().take_while(|&period| drifts(period)).last()?;
    arrived.times[start(first)..].iter().flatten().next().copied()
}

fn part(of: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { of as f64 / all as f64 }
}
