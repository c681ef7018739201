//! Compares results with scikit-learn on many kinds of datasets: never worse than its best of 1,000 restarts (or of ten
//! restarts for many rows with rare groups and heavy tails), and equal from equal initial centroids. tests/truth/make.py
//! generated the reference results; the datasets are generated here again, bit for bit.

use datafusion::arrow::array::{Array as _, Float64Array};
use ndarray::Array2;
use serde::Deserialize;
use tercile::fit::{self, Job, Report};
use tercile::model::SolverKind;
use tercile_kmeans::{Limits, Settings, starts_for};

#[derive(Deserialize)]
struct Truth {
    datasets: Vec<Dataset>,
    large: Vec<Large>,
}

/// A dataset with many rows.
#[derive(Deserialize)]
struct Large {
    name: String,
    rows: u64,
    features: u64,
    k: usize,
    /// Inertia of the best of ten restarts.
    best: f64,
}

#[derive(Deserialize)]
struct Dataset {
    name: String,
    rows: u64,
    features: u64,
    k: usize,
    /// Inertia when starting from the first k rows.
    given: f64,
    /// Inertia of the best of 1,000 restarts.
    best: f64,
}

fn truth() -> Truth {
    serde_json::from_str(include_str!("../truth/scikit-learn.json")).unwrap()
}

/// A number between 0 and 1 from three counters (SplitMix64).
fn u(dataset: u64, row: u64, feature: u64) -> f64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let z = dataset.wrapping_mul(STEP).wrapping_add(row * 64 + feature).wrapping_add(STEP);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

fn value(d: u64, i: u64, f: u64) -> Option<f64> {
    let hill = || u(d, i, f) + u(d, i, f + 32) + u(d, i, f + 40) + u(d, i, f + 48);
    let whole = |n: u64| n as f64;
    Some(match d {
        0 => whole(i % 3) * 3.0 + hill(),
        1 => whole(i * (f + 1) % 5) * 0.8 + hill(),
        4 | 5 => u(d, i, f) / (1.0 - u(d, i, f)),
        6 => (u(d, i, f) * (7.0 - 2.0 * whole(f))).trunc(),
        7 => (hill() * 24.0).trunc(),
        8 if f == 0 => 7.25,
        9 if i % 400 == 399 => 1e4 * (1.0 + whole(f)),
        8 | 9 => hill(),
        12 => whole(i % 2) * 1.5 + hill(),
        13 => whole((i % 6) * (f + 1) % 7) + hill(),
        14 => whole((i % 4) * (f + 1) % 5) + u(d, i, f),
        15 => u(d, i, 0) * (1.0 + whole(f)) + 0.1 * u(d, i, f + 1),
        16 => {
            let t = 4.0 * u(d, i, 0) - 2.0;
            if f == 0 { (1.0 - t * t) / (1.0 + t * t) } else { 2.0 * t / (1.0 + t * t) }
        }
        17 => 1e9 + u(d, i, f),
        18 => u(d, i, f) * if f == 0 { 1e-6 } else { 1e6 },
        19 => whole(i * (f * 3 + 1) % 20) + hill(),
        20 if (i + f) % 10 == 4 => return None,
        20 => whole(i % 3) + hill(),
        _ => u(d, i, f),
    })
}

fn columns(d: usize, dataset: &Dataset) -> Vec<Float64Array> {
    let column = |f| (0..dataset.rows).map(|i| value(d as u64, i, f)).collect();
    (0..dataset.features).map(column).collect()
}

/// The formula of LARGE in make.py, with the same order of operations.
fn large_value(d: u64, i: u64, f: u64) -> f64 {
    let hill = || u(d, i, f) + u(d, i, f + 32) + u(d, i, f + 40) + u(d, i, f + 48);
    let wide = || ((i % 4) >> (f % 2)) as f64 % 2.0 * 10.0 + hill();
    let tail = || u(d, i, f) / (1.0 - u(d, i, f));
    // The last matching entry.
    let far = |places: &[(u64, f64)], value: f64| {
        places.iter().rev().find(|(every, _)| i % every == every / 2).map_or(value, |(_, at)| *at)
    };
    let whole = |n: u64| n as f64;
    match d - 100 {
        0 => {
            let at = |g: u64, x: f64, y: f64| if f == 0 { x } else { y } + u(d, i, f + 8 + g);
            let places = [(60_001, at(0, 300.0, 0.0)), (20_011, at(1, 0.0, 300.0)), (4_001, at(2, -300.0, -300.0))];
            far(&places, wide())
        }
        1 => {
            let at = |at: f64| at * (1.0 - 2.0 * whole(f)) + at * 0.01 * u(d, i, f + 8);
            far(&[(3_001, at(100.0)), (20_011, at(10_000.0)), (90_001, at(1_000_000.0))], wide())
        }
        2 => {
            let near = 40.0 * (whole(f) + 1.0) + u(d, i, f + 8);
            far(&[(6_007, near), (45_007, 1e6 * (u(d, i, f + 9) - 0.5))], hill())
        }
        3 | 4 => tail(),
        5 => tail() * tail(),
        6 => far(&[(30_011, (u(d, i, f + 8) * 90.0).floor())], (u(d, i, f) * 2.0).floor()),
        7 => far(&[(50_021, 400.0)], whole(i / 50_000) * 9.0) + hill(),
        _ => far(&[(600_011, 900.0 - 100.0 * whole(f))], wide()),
    }
}

fn run(dataset: &Dataset, columns: &[Float64Array], init: Option<Array2<f64>>, threads: usize) -> Report {
    fitted(dataset.k, columns, init, threads)
}

fn fitted(k: usize, columns: &[Float64Array], init: Option<Array2<f64>>, threads: usize) -> Report {
    let limits = Limits { iterations: 300, tolerance: 0.0 };
    let settings = Settings { k, seed: 42, starts: starts_for(columns[0].len()), limits, threads };
    let features = (0..columns.len()).map(|f| format!("f{f}")).collect();
    let scaling = vec![Default::default(); columns.len()];
    fit::fit(columns, &Job { features, scaling, settings, init, solver: SolverKind::Tercile }, &|_| {}).unwrap()
}

/// The inertia of a report's centroids and the sizes of their clusters, computed row by row.
fn by_hand(columns: &[Float64Array], report: &Report) -> (f64, Vec<u64>) {
    let mut sizes = vec![0; report.clusters.len()];
    let mut inertia = 0.0;
    for row in 0..columns[0].len() {
        let distance = |cluster: usize| {
            let squares = columns.iter().enumerate().map(|(f, column)| {
                let value = if column.is_null(row) { report.mean[f] } else { column.value(row) };
                let std = if report.std[f] == 0.0 { 1.0 } else { report.std[f] };
                let off = (value - report.clusters[cluster].centroid[&report.features[f]]) / std;
                off * off
            });
            squares.sum::<f64>()
        };
        let nearest = (0..sizes.len()).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap();
        sizes[nearest] += 1;
        inertia += distance(nearest);
    }
    (inertia, sizes)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1e-9)
}

#[test]
fn never_worse_than_the_best_of_a_thousand_starts() {
    for (d, dataset) in truth().datasets.iter().enumerate() {
        let columns = columns(d, dataset);
        let report = run(dataset, &columns, None, 2);
        assert!(
            report.inertia <= dataset.best * (1.0 + 1e-9) + 1e-12,
            "{}: {} {}",
            dataset.name,
            report.inertia,
            dataset.best
        );
        let (inertia, sizes) = by_hand(&columns, &report);
        assert!(close(inertia, report.inertia), "{}: {inertia} {}", dataset.name, report.inertia);
        assert_eq!(sizes, report.clusters.iter().map(|c| c.size).collect::<Vec<_>>(), "{}", dataset.name);
    }
}

#[test]
fn from_the_same_centroids_it_is_the_same() {
    for (d, dataset) in truth().datasets.iter().enumerate() {
        let columns = columns(d, dataset);
        let scale =
            tercile_kmeans::features::Scale::measure(&vec![String::new(); columns.len()][..], &columns, 1).unwrap();
        let first = |c: usize, f: usize| match columns[f].is_null(c) {
            true => scale.mean[f],
            false => columns[f].value(c),
        };
        let init = Array2::from_shape_fn((dataset.k, columns.len()), |(c, f)| first(c, f));
        let report = run(dataset, &columns, Some(init), 1);
        assert!(
            report.inertia <= dataset.given * 1.0001 + 1e-12,
            "{}: {} {}",
            dataset.name,
            report.inertia,
            dataset.given
        );
    }
}

#[test]
fn rare_rows_among_many_are_found() {
    for (d, Large { name, rows, features, k, best }) in truth().large.iter().enumerate() {
        let column = |f| (0..*rows).map(|i| Some(large_value(d as u64 + 100, i, f))).collect();
        let columns: Vec<Float64Array> = (0..*features).map(column).collect();
        let report = fitted(*k, &columns, None, 2);
        assert!(report.inertia <= best * (1.0 + 1e-9), "{name}: {} {best}", report.inertia);
        if *rows <= 200_000 {
            let (inertia, sizes) = by_hand(&columns, &report);
            assert!(close(inertia, report.inertia), "{name}: {inertia} {}", report.inertia);
            assert_eq!(sizes, report.clusters.iter().map(|cluster| cluster.size).collect::<Vec<_>>(), "{name}");
        }
        assert!(report.silhouette.is_some() && report.silhouette_rows < *rows, "{name}");
    }
}
