//! Properties of a fit for any rows.

use arrow_array::Float64Array;
use ndarray::Array2;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;

use super::hamerly::Bounds;
use super::*;
use crate::features::{Matrix, Scale, levels};

/// Columns and their scale.
pub(super) fn table(columns: Vec<Vec<f64>>) -> (Scale, Vec<Float64Array>) {
    nullable(columns.into_iter().map(|column| column.into_iter().map(Some).collect()).collect())
}

fn nullable(columns: Vec<Vec<Option<f64>>>) -> (Scale, Vec<Float64Array>) {
    let columns: Vec<Float64Array> = columns.into_iter().map(Float64Array::from).collect();
    let names: Vec<String> = (0..columns.len()).map(|i| format!("f{i}")).collect();
    (Scale::measure(&names, &columns, 1).unwrap(), columns)
}

/// Columns with the identity scale.
pub(super) fn as_it_is(columns: Vec<Vec<f64>>) -> (Scale, Vec<Float64Array>) {
    let scale = Scale::new(vec![0.0; columns.len()], vec![1.0; columns.len()]);
    (scale, columns.into_iter().map(Float64Array::from).collect())
}

/// Deterministic uniform numbers in [0, 1).
pub(super) fn random(rows: usize, features: usize) -> Vec<Vec<f64>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(rows as u64 + 7);
    (0..features).map(|_| (0..rows).map(|_| kmeans_plus_plus::unit(&mut rng)).collect()).collect()
}

pub(super) fn limits(tolerance: f64) -> Limits {
    Limits { iterations: 300, tolerance }
}

fn settings(k: usize, starts: usize) -> Settings {
    Settings { k, seed: 42, starts, limits: limits(0.0), threads: 2 }
}

fn found(points: &Points<'_>, settings: &Settings) -> Fit {
    fit(points, settings, Init::Drawn(None), &|_| {}).unwrap()
}

/// Three blobs; row i belongs to blob i modulo 3.
fn blobs(rows: usize, features: usize) -> Vec<Vec<f64>> {
    let place = |column: Vec<f64>| column.iter().enumerate().map(|(i, v)| (i % 3) as f64 * 10.0 + v).collect();
    random(rows, features).into_iter().map(place).collect()
}

#[test]
fn blobs_are_found_whatever_the_number_of_features() {
    for features in [1, 2, 3, 4, 5, 8, 9, 17, 32] {
        let (scale, columns) = table(blobs(300, features));
        let points = Points::new(&scale, &columns);
        let fit = found(&points, &settings(3, 10));
        assert_eq!(fit.sizes, [100; 3], "{features} features");
        let labels = assign(&points, &fit.centroids, 1);
        assert!((0..300).all(|row| labels[row] == labels[row % 3]));
    }
}

#[test]
fn no_thread_instruction_set_or_special_case_changes_a_bit() {
    let missing =
        |column: Vec<f64>| column.into_iter().enumerate().map(|(i, v)| (i % 1013 != 5).then_some(v)).collect();
    for (features, k) in [(1, 3), (2, 3), (2, 8), (3, 5), (4, 3), (5, 3), (9, 10)] {
        let (scale, columns) = nullable(random(70_001, features).into_iter().map(missing).collect());
        let points = Points::new(&scale, &columns);
        let centroids: Vec<f64> = (0..k * features).map(|i| (i * 7 % 11) as f64 / 11.0).collect();
        let expected = points.pass(&centroids, 1);
        let weights = vec![1.0; points.rows()];
        let copied: Vec<Vec<f64>> =
            (0..features).map(|f| (0..points.rows()).map(|row| points.value(f, row)).collect()).collect();
        for level in levels() {
            for threads in [1, 3] {
                assert_eq!(points.clone().on(level).pass(&centroids, threads), expected, "{features} {k} {level:?}");
            }
            assert_eq!(points.weighted(&copied, &weights).on(level).pass(&centroids, 2), expected);
        }
        // Plain computation of the nearest centroids and of the sums.
        let standardised = points.standardised(&centroids);
        let at = Array2::from_shape_vec((k, features), standardised).unwrap();
        let mut sizes = vec![0.0; k];
        let mut inertia = 0.0;
        let labels = assign(&points, &Array2::from_shape_vec((k, features), centroids).unwrap(), 2);
        for (row, label) in labels.iter().enumerate() {
            let place: Vec<f64> = (0..features).map(|f| points.standardise(f, points.value(f, row))).collect();
            let (cluster, squared) = nearest(&place, &at);
            assert_eq!(usize::from(*label), cluster);
            sizes[cluster] += 1.0;
            inertia += squared;
        }
        assert_eq!(sizes, expected.weights);
        assert!((inertia / expected.inertia - 1.0).abs() < 1e-12);
    }
}

#[test]
fn the_result_is_a_fixed_point() {
    for features in 1..4 {
        let (scale, columns) = table(random(3000, features));
        let points = Points::new(&scale, &columns);
        let fit = found(&points, &settings(5, 20));
        let labels = assign(&points, &fit.centroids, 2);
        for cluster in 0..5 {
            let rows: Vec<usize> = (0..3000).filter(|&row| usize::from(labels[row]) == cluster).collect();
            assert_eq!(rows.len() as u64, fit.sizes[cluster]);
            for (feature, column) in columns.iter().enumerate() {
                let mean = rows.iter().map(|&row| column.value(row)).sum::<f64>() / rows.len() as f64;
                assert!((fit.centroids[[cluster, feature]] - mean).abs() < 1e-12);
            }
        }
        let again = super::fit(&points, &settings(5, 20), Init::Given(&fit.centroids), &|_| {}).unwrap();
        assert_eq!((again.iterations, again.centroids, again.inertia), (1, fit.centroids, fit.inertia));
    }
}

#[test]
fn threads_change_no_bit_of_an_answer() {
    for rows in [1000, 70_000] {
        let (scale, columns) = table(random(rows, 2));
        let points = Points::new(&scale, &columns);
        let first = found(&points, &settings(4, 12));
        for threads in [1, 5] {
            assert_eq!(found(&points, &Settings { threads, ..settings(4, 12) }), first);
        }
    }
}

#[test]
fn the_order_of_rows_changes_nothing_but_rounding() {
    let columns = random(2000, 2);
    let turned: Vec<Vec<f64>> =
        columns.iter().map(|column| (0..2000).map(|row| column[row * 777 % 2000]).collect()).collect();
    let sorted = |columns| {
        let (scale, columns) = table(columns);
        let fit = found(&Points::new(&scale, &columns), &settings(6, 50));
        let mut rows: Vec<Vec<f64>> = fit.centroids.rows().into_iter().map(|row| row.to_vec()).collect();
        rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
        (fit.inertia, rows.concat())
    };
    let ((a, from), (b, to)) = (sorted(columns), sorted(turned));
    assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
    assert!(from.iter().zip(&to).all(|(x, y)| (x - y).abs() < 1e-9));
}

#[test]
fn a_power_of_two_changes_nothing() {
    for exponent in [-1000, -20, 3, 900, 1020] {
        let unit = 2_f64.powi(exponent);
        let mut columns = random(3000, 2);
        let (scale, plain) = table(columns.clone());
        let expected = found(&Points::new(&scale, &plain), &settings(4, 20));
        columns[1].iter_mut().for_each(|value| *value *= unit);
        let (scale, columns) = table(columns);
        let scaled = found(&Points::new(&scale, &columns), &settings(4, 20));
        assert_eq!((scaled.inertia, &scaled.sizes), (expected.inertia, &expected.sizes), "{exponent}");
        assert!((0..4).all(|c| scaled.centroids[[c, 1]] == expected.centroids[[c, 1]] * unit));
    }
}

#[test]
fn round_numbers_have_round_means() {
    let prices: Vec<f64> = (0..999).map(|i| [399.0, 1099.0, 0.25][i % 3]).collect();
    let (scale, columns) = table(vec![prices, vec![4.5; 999]]);
    let fit = found(&Points::new(&scale, &columns), &settings(3, 10));
    let mut rows: Vec<Vec<f64>> = fit.centroids.rows().into_iter().map(|row| row.to_vec()).collect();
    rows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    assert_eq!((rows, fit.inertia), (vec![vec![0.25, 4.5], vec![399.0, 4.5], vec![1099.0, 4.5]], 0.0));
}

/// Rows around k centres with some missing values.
fn scattered(rows: usize, features: usize, k: usize, spread: f64) -> (Scale, Vec<Float64Array>) {
    let place = |(i, v): (usize, &f64)| (i * 13 % k) as f64 * spread + v;
    let column = |v: Vec<f64>| -> Vec<Option<f64>> {
        v.iter().enumerate().map(place).enumerate().map(|(i, v)| (i % 1013 != 5).then_some(v)).collect()
    };
    nullable(random(rows, features).into_iter().map(column).collect())
}

fn first_rows(points: &Points<'_>, k: usize) -> Vec<f64> {
    (0..k).flat_map(|c| (0..points.features()).map(move |f| points.value(f, c * 7))).collect()
}

#[test]
fn passes_with_bounds_equal_plain_passes() {
    for (features, k) in [(2, 9), (3, 20), (5, 3), (8, 16), (9, 4), (32, 2)] {
        // More than one chunk only once, because it is slow.
        let rows = if k == 16 { 70_003 } else { 6003 };
        for spread in [1.0, 30.0] {
            let (scale, columns) = scattered(rows, features, k, spread);
            let mut found = Vec::new();
            for level in levels() {
                let points = Points::new(&scale, &columns).on(level);
                let mut bounds = Bounds::new(rows, features, k);
                let mut centroids = first_rows(&points, k);
                for pass in 0..12 {
                    // One jump, as after an empty cluster is moved.
                    if pass == 8 {
                        centroids[0] += 3.0;
                    }
                    let totals = points.pass(&centroids, 2);
                    let kept = points.pass_after(&centroids, 1 + pass % 2, &mut bounds);
                    assert_eq!(bounds.kept(), pass > 0);
                    assert_eq!(kept.weights, totals.weights, "{features} {k} {rows} {pass}");
                    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()));
                    assert!(kept.sums.iter().zip(&totals.sums).all(|(a, b)| near(*a, *b)), "{kept:?} {totals:?}");
                    assert!(near(kept.inertia, totals.inertia), "{} {}", kept.inertia, totals.inertia);
                    centroids = points.means(&totals, &centroids);
                    found.push(kept);
                }
            }
            let (one, others) = found.split_at(12);
            assert!(others.chunks(12).all(|other| other == one), "instructions make no difference");
        }
    }
}

#[test]
fn the_result_equals_that_of_plain_passes_to_the_bit() {
    for (rows, features, k) in [(40_003, 2, 3), (140_000, 3, 8), (30_000, 6, 5), (20_000, 2, 12)] {
        let (scale, columns) = scattered(rows, features, k, 0.4);
        let points = Points::new(&scale, &columns);
        let mut bounds = Bounds::new(rows, features, k);
        let (mut centroids, mut passes, mut kept) = (first_rows(&points, k), 0, 0);
        let totals = loop {
            let totals = points.pass(&centroids, 2);
            points.pass_after(&centroids, 2, &mut bounds);
            kept += usize::from(bounds.kept());
            passes += 1;
            let next = points.means(&totals, &centroids);
            if next == centroids {
                break totals;
            }
            centroids = next;
        };
        assert!(kept > 3, "{kept} of {passes} passes left something out");
        let ended = lloyd::run(&points, first_rows(&points, k), limits(0.0), 2, &|_| {});
        assert_eq!((ended.centroids, ended.iterations), (centroids, passes), "{rows} {features} {k}");
        assert_eq!((ended.weights, ended.inertia), (totals.weights, totals.inertia));
    }
}

#[test]
fn fewer_distinct_rows_than_clusters_are_refused() {
    for features in 1..3 {
        let (scale, columns) = table(vec![vec![1.0, 1.0, 5.0, 5.0, 9.0, 9.0]; features]);
        let points = Points::new(&scale, &columns);
        assert_eq!(found(&points, &settings(3, 10)).inertia, 0.0);
        let error = fit(&points, &settings(4, 10), Init::Drawn(None), &|_| {}).unwrap_err();
        assert_eq!(error.to_string(), "4 clusters need at least 4 different rows, there are 3");
    }
}

#[test]
fn small_data_gets_many_restarts() {
    assert_eq!([1, 1465, 10_000, 10_000_000].map(starts_for), [1000, 1000, 200, 10]);
}

#[test]
fn the_contingency_table_counts_rows() {
    let (scale, columns) = table(vec![vec![0.0, 1.0, 2.0, 10.0]]);
    let points = Points::new(&scale, &columns);
    let at = |values: Vec<f64>| Array2::from_shape_vec((values.len(), 1), values).unwrap();
    let moved = cross((&points, &at(vec![0.0, 10.0])), (&points, &at(vec![0.0, 2.0, 10.0])), 1);
    assert_eq!(moved, [[2, 1, 0], [0, 0, 1]]);
}

#[test]
fn linfa_finds_the_same_optimum() {
    for features in [1, 2, 4] {
        let (scale, columns) = table(blobs(3000, features));
        let points = Points::new(&scale, &columns);
        let settings = settings(3, 5);
        let ours = found(&points, &settings);
        let matrix = Matrix::build(&scale, &columns).unwrap();
        let theirs = linfa_solver::fit(matrix.view(), None, &settings).unwrap();
        let restored = Array2::from_shape_fn(theirs.dim(), |(c, f)| points.restore(f, theirs[[c, f]]));
        let polished = fit(&points, &settings, Init::Given(&restored), &|_| {}).unwrap();
        assert!((polished.inertia / ours.inertia - 1.0).abs() < 1e-12);
        let mut sizes = polished.sizes.clone();
        sizes.sort_unstable();
        assert_eq!(sizes, ours.sizes);
    }
}
