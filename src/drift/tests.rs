//! False alarms and detected changes of simulated streams. `TERCILE_TEST_WINDOWS` sets the number of windows without a change.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore as _, SeedableRng as _};
use serde_json::json;
use tercile_kmeans::{Limits, SEED, Settings};

use super::*;
use crate::fit;
use crate::model::SolverKind;

const WINDOW: usize = 5_000;

fn windows() -> usize {
    std::env::var("TERCILE_TEST_WINDOWS").ok().map_or(100, |windows| windows.parse().unwrap())
}

struct Random(Xoshiro256PlusPlus);

impl Random {
    fn new(seed: u64) -> Self {
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

/// The distributions of the features. `shift` is in standard deviations.
const KINDS: [&str; 5] = ["normal", "log_normal", "rating", "count", "binary"];

fn value(kind: &str, random: &mut Random, shift: f64) -> f64 {
    match kind {
        "normal" => random.normal() + shift,
        // e^N(0, 1) has the deviation sqrt((e - 1) e).
        "log_normal" => random.normal().exp() + shift * 2.161_2,
        "rating" => ((4.0 + 0.4 * (random.normal() + shift)).clamp(1.0, 5.0) * 10.0).round() / 10.0,
        // The sum of 16 coins, times 10: a deviation of 20 around 80.
        "count" => {
            let heads = (0..64).filter(|_| random.unit() < 0.5).count() as f64;
            (heads + 4.0 * shift).round()
        }
        // A share of 0.4: the deviation is 0.49.
        _ => f64::from(u8::from(random.unit() < 0.4 + shift * 0.49)),
    }
}

fn columns(rows: usize, random: &mut Random, shifts: [f64; 5]) -> Vec<Float64Array> {
    let column = |(kind, shift): (&&str, f64)| (0..rows).map(|_| value(kind, random, shift)).collect::<Vec<f64>>();
    let mut column = column;
    KINDS.iter().zip(shifts).map(|one| Float64Array::from(column(one))).collect()
}

/// A model of these rows, with its baseline.
fn model(columns: &[Float64Array]) -> Model {
    let features: Vec<String> = KINDS.map(str::to_owned).to_vec();
    let limits = Limits { iterations: 1_000, tolerance: 0.0 };
    let settings = Settings { k: 4, seed: SEED, starts: 4, limits, threads: 2 };
    let scaling = vec![Default::default(); features.len()];
    let job = fit::Job { features: features.clone(), scaling, settings, init: None, solver: SolverKind::Tercile };
    let report = fit::fit(columns, &job, &|_| {}).unwrap();
    let text = json!({
        "segmentation": "simulated", "slice": 3, "version": 1, "rows": report.rows, "rows_left_out": 0, "features": features,
        "mean": report.mean, "std": report.std, "k": 4, "seed": SEED, "inertia": report.inertia, "silhouette": null,
        "iterations": 1, "trained_at": "2026-01-01T00:00:00Z", "moved": null, "clusters": report.clusters,
        "receipt": {"topic": "t", "next_offsets": {}, "n": report.rows, "cut": null, "rows_hash": "", "sql_hash": "", "starts": 4,
                    "predecessor": null, "tercile": "", "method": 2},
    });
    let mut model = Model::parse(text.to_string().as_bytes()).unwrap();
    model.baseline = Some(Baseline::of(&model.features, columns, &model.predictor()));
    model
}

fn compared(model: &Model, columns: Vec<Float64Array>) -> Drift {
    let rows = columns[0].len() as u64;
    compare(model, model.baseline.as_ref().unwrap(), Of::Stream, &Arrived { rows, times: Vec::new(), columns })
}

#[test]
fn rows_of_the_same_distribution_raise_no_alarm() {
    for rows in [489, 20_000] {
        let (mut random, windows) = (Random::new(rows as u64), windows());
        let mut alarms = 0;
        // A model of few rows is off by chance; a hundred models share the windows.
        for _ in 0..windows.min(100) {
            let model = model(&columns(rows, &mut random, [0.0; 5]));
            for _ in 0..windows / windows.min(100) {
                let drift = compared(&model, columns(WINDOW, &mut random, [0.0; 5]));
                let enough = if rows < ENOUGH as usize { State::TooFew } else { State::Ok };
                alarms += u32::from(drift.state != enough);
                // The rules hold for fewer rows too.
                alarms += u32::from(
                    drift.features.iter().any(FeatureDrift::is_drifting)
                        || drift.clusters.iter().any(ClusterDrift::is_drifting),
                );
            }
        }
        println!("{alarms} alarms in {windows} windows of models of {rows} rows");
        assert!(alarms as usize <= windows / 1_000, "{alarms} alarms in {windows} windows of models of {rows} rows");
    }
}

#[test]
fn a_shift_by_half_a_deviation_is_found_in_the_right_feature() {
    let mut random = Random::new(1);
    let model = model(&columns(20_000, &mut random, [0.0; 5]));
    for (at, kind) in KINDS.iter().enumerate() {
        for (shift, direction) in [(0.5, Direction::Up), (-0.5, Direction::Down)] {
            let (mut found, mut right) = (0, 0);
            for _ in 0..100 {
                let mut shifts = [0.0; 5];
                shifts[at] = shift;
                let drift = compared(&model, columns(WINDOW, &mut random, shifts));
                found += u32::from(drift.state == State::Drifting);
                let most = (0..5).max_by(|&a, &b| drift.features[a].psi.total_cmp(&drift.features[b].psi));
                right += u32::from(most == Some(at) && drift.features[at].direction == direction);
            }
            assert!(found >= 99 && right == 100, "{kind} by {shift}: {found} found, {right} with the feature");
        }
    }
}

#[test]
fn missing_values_unseen_values_and_unlike_rows_are_told() {
    let mut random = Random::new(2);
    let trained = columns(20_000, &mut random, [0.0; 5]);
    let model = model(&trained);
    // A third of the ratings is missing.
    let mut rows = columns(WINDOW, &mut random, [0.0; 5]);
    rows[2] = rows[2].iter().enumerate().map(|(row, value)| value.filter(|_| row % 3 > 0)).collect();
    let drift = compared(&model, rows);
    let rating = &drift.features[2];
    assert!(rating.is_drifting() && rating.direction == Direction::Spread, "{rating:?}");
    assert!((rating.missing - 1.0 / 3.0).abs() < 1e-3 && rating.missing_before == 0.0);
    assert!(
        drift.words["en"].starts_with("rating is missing in 33 % of the rows, 0 % before"),
        "{}",
        drift.words["en"]
    );
    // Values that were never seen have a bin.
    let mut rows = columns(WINDOW, &mut random, [0.0; 5]);
    rows[4] = rows[4].iter().map(|value| value.map(|value| if value == 1.0 { 2.0 } else { value })).collect();
    let drift = compared(&model, rows);
    assert!(drift.features[4].is_drifting() && drift.features[4].direction == Direction::Up, "{:?}", drift.features[4]);
    // Six of a hundred rows are far from every centroid, but in the outer bins of their features anyway.
    let mut rows = columns(WINDOW, &mut random, [0.0; 5]);
    rows[0] = rows[0].iter().enumerate().map(|(row, v)| v.map(|v| if row % 16 == 0 { v * 50.0 } else { v })).collect();
    let drift = compared(&model, rows);
    assert!(drift.state == State::Drifting && drift.unlike > 0.05 && drift.unlike_before < 0.003, "{drift:?}");
    assert!(drift.words["en"].contains("are unlike those of the training"), "{}", drift.words["en"]);
    // Few rows, and none.
    let few = compared(&model, columns(499, &mut random, [3.0; 5]));
    assert_eq!((few.state, few.began), (State::TooFew, None));
    let none = compared(&model, columns(0, &mut random, [0.0; 5]));
    assert_eq!((none.state, none.read, none.unlike), (State::TooFew, 0, 0.0));
}

#[test]
fn the_start_is_that_of_the_first_period_that_differs() {
    let mut random = Random::new(3);
    let model = model(&columns(20_000, &mut random, [0.0; 5]));
    let (before, after) =
        (columns(6_000, &mut random, [0.0; 5]), columns(14_000, &mut random, [1.0, 0.0, 0.0, 0.0, 0.0]));
    let joined = before.iter().zip(&after).map(|(a, b)| a.iter().chain(b.iter()).collect::<Float64Array>()).collect();
    let times = (0..20_000).map(|row| Some(row * 1_000)).collect();
    let arrived = Arrived { rows: 20_000, times, columns: joined };
    let drift = compare(&model, model.baseline.as_ref().unwrap(), Of::Stream, &arrived);
    assert_eq!(drift.since.as_deref(), Some("1970-01-01T00:00:00.000Z"));
    assert_eq!(drift.began.as_deref(), Some("1970-01-01T01:40:00.000Z"));
    assert!(
        drift.words["en"].starts_with("normal is higher since 1970-01-01T01:40:00.000Z (PSI "),
        "{}",
        drift.words["en"]
    );
}
