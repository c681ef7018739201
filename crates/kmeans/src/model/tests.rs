//! The linfa interface: agreement with the engine and with linfa-clustering, layouts, prediction, and errors.

use arrow_array::Float64Array;
use linfa::ParamGuard as _;
use linfa::traits::Predict as _;
use ndarray::{ArrayView1, ArrayView2, ShapeBuilder as _, array, s};
use rand_xoshiro::Xoshiro256Plus;
use rand_xoshiro::rand_core::SeedableRng as _;

use super::*;
use crate::tests::random;
use crate::{MAX_CLUSTERS, SEED, Settings};

/// Deterministic rows around `k` centres, `(n_rows, n_features)`.
fn rows(n: usize, features: usize, k: usize, spread: f64) -> Array2<f64> {
    let columns = random(n, features);
    Array2::from_shape_fn((n, features), |(row, feature)| {
        (row % k * (feature + 1) % k) as f64 * spread + columns[feature][row]
    })
}

fn fit(params: &KMeansParams, rows: ArrayView2<'_, f64>) -> KMeans {
    params.fit(&DatasetBase::from(rows)).unwrap()
}

#[test]
fn the_centroids_are_those_of_the_engine() {
    for (features, k) in [(1, 4), (2, 5), (3, 8)] {
        let column = |values: Vec<f64>| -> Float64Array {
            values.into_iter().enumerate().map(|(i, value)| (i % 101 != 7).then_some(value)).collect()
        };
        let columns: Vec<Float64Array> = random(3000, features).into_iter().map(column).collect();
        let names = vec![String::new(); features];
        let scale = Scale::measure(&names, &columns, 1).unwrap();
        let points = Points::new(&scale, &columns);
        for seed in [SEED, 7] {
            let model = KMeans::params(k).n_runs(12).seed(seed).standardise(true).fit_columns(&columns).unwrap();
            let limits = crate::Limits { iterations: 300, tolerance: 0.0 };
            let settings = Settings { k, seed, starts: 12, limits, threads: 2 };
            let engine = crate::fit(&points, &settings, Init::Drawn(None), &|_| {}).unwrap();
            assert_eq!(model.centroids(), engine.centroids, "{features} features, {k} clusters, seed {seed}");
            assert_eq!((model.inertia(), model.n_iterations()), (engine.inertia / 3000.0, engine.iterations));
            assert!(model.cluster_count().iter().zip(&engine.sizes).all(|(count, size)| *count == *size as f64));
            let labels: Vec<usize> = assign(&points, &engine.centroids, 1).into_iter().map(usize::from).collect();
            assert_eq!(model.predict_columns(&columns).unwrap().to_vec(), labels);
        }
    }
}

#[test]
fn the_inertia_is_never_worse_than_that_of_linfa_clustering() {
    for (features, k, spread, far) in
        [(1, 3, 0.5, 0.0), (2, 6, 0.3, 0.0), (3, 5, 0.7, 1e6), (2, 3, 9.0, -50.0), (4, 9, 0.0, 0.0)]
    {
        let rows = rows(800, features, k, spread) + far;
        let rng = Xoshiro256Plus::seed_from_u64(SEED);
        let theirs = linfa_clustering::KMeans::params_with_rng(k, rng)
            .n_runs(10)
            .tolerance(1e-9)
            .fit(&DatasetBase::from(rows.view()))
            .unwrap();
        let model = fit(&KMeans::params(k), rows.view());
        let distance = |row: ArrayView1<'_, f64>| {
            let squared = |centroid: ArrayView1<'_, f64>| (&row - &centroid).mapv(|apart| apart * apart).sum();
            theirs.centroids().rows().into_iter().map(squared).fold(f64::INFINITY, f64::min)
        };
        let linfa = rows.rows().into_iter().map(distance).sum::<f64>() / 800.0;
        assert!(model.inertia() <= linfa * (1.0 + 1e-12), "{features} {k}: {} {linfa}", model.inertia());
        if spread > 1.0 {
            assert!((model.inertia() / linfa - 1.0).abs() < 1e-6 && (theirs.inertia() / linfa - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn layouts_of_the_matrix_make_no_difference() {
    let rows = rows(500, 3, 4, 2.0);
    let mut columns = Array2::zeros(rows.raw_dim().f());
    columns.assign(&rows);
    let mut gaps = Array2::from_elem((1000, 5), f64::NAN);
    gaps.slice_mut(s![..;2, 1..4]).assign(&rows);
    let views = [rows.view(), columns.view(), gaps.slice(s![..;2, 1..4])];
    assert!(columns.column(1).to_slice().is_some() && rows.column(1).to_slice().is_none());
    let params = KMeans::params(4).n_runs(5);
    let models = views.map(|view| fit(&params, view));
    assert!(models.iter().all(|model| *model == models[0]));
    let clusters = views.map(|view| models[0].predict(&view));
    assert!(clusters.iter().all(|found| *found == clusters[0]));
    let by_column: Vec<ArrayView1<'_, f64>> = rows.columns().into_iter().collect();
    assert_eq!(params.fit_columns(&by_column).unwrap(), models[0]);
    assert_eq!(models[0].predict_columns(&by_column).unwrap(), clusters[0]);
}

#[test]
fn rows_are_predicted_as_in_the_fit() {
    for standardise in [false, true] {
        let rows = rows(2000, 2, 3, 0.7);
        let model = fit(&KMeans::params(3).standardise(standardise), rows.view());
        let clusters = model.predict(&rows);
        let mut counts = Array1::<f64>::zeros(3);
        clusters.iter().for_each(|&cluster| counts[cluster] += 1.0);
        assert_eq!(counts, model.cluster_count());
        assert!((0..2000).step_by(97).all(|row| model.predict(&rows.row(row)) == clusters[row]));
        let dataset = model.predict(DatasetBase::from(rows.clone()));
        assert_eq!(dataset.targets(), clusters);
        let distances = model.transform(&rows);
        assert!((distances.mean().unwrap() / model.inertia() - 1.0).abs() < 1e-12);
        let plain =
            |row: usize| (&rows.row(row) - &model.centroids().row(clusters[row])).mapv(|apart| apart * apart).sum();
        assert_eq!((0..2000).all(|row| (distances[row] - plain(row)).abs() < 1e-12), !standardise);
    }
}

#[test]
fn extreme_units_change_nothing() {
    let rows = rows(1000, 2, 4, 0.9);
    let model = fit(&KMeans::params(4), rows.view());
    for exponent in [-900, -3, 500, 1020] {
        let unit = 2_f64.powi(exponent);
        let scaled = fit(&KMeans::params(4), (&rows * unit).view());
        assert_eq!(scaled.centroids(), model.centroids() * unit, "{exponent}");
        assert_eq!(scaled.cluster_count(), model.cluster_count());
    }
}

#[test]
fn tolerance_does_not_depend_on_the_unit() {
    let rows = rows(4000, 2, 7, 0.0);
    let start = rows.slice(s![..7, ..]).to_owned();
    let passes = |unit: f64, tolerance: f64| {
        let params = KMeans::params(7).init_method(KMeansInit::Precomputed(&start * unit)).tolerance(tolerance);
        fit(&params, (&rows * unit).view()).n_iterations()
    };
    assert!(passes(1.0, 1e-3) < passes(1.0, 0.0));
    assert!([0.01, 1e5].into_iter().all(|unit| passes(unit, 1e-3) == passes(1.0, 1e-3)));
}

#[test]
fn invalid_parameters_are_refused_by_name() {
    let refused = |params: KMeansParams| {
        let error = params.check_ref().unwrap_err();
        assert_eq!(params.clone().check().unwrap_err().to_string(), error.to_string());
        let fitted = params.fit(&DatasetBase::from(array![[0.0], [1.0]])).unwrap_err();
        assert_eq!(fitted.to_string(), format!("invalid hyperparameter: {error}"));
        error.to_string()
    };
    let params = || KMeans::params(2);
    assert_eq!(refused(KMeans::params(0)), "n_clusters must be from 1 to 256, and is 0");
    assert!(refused(KMeans::params(MAX_CLUSTERS + 1)).starts_with("n_clusters"));
    assert!(refused(params().n_runs(0)).starts_with("n_runs"));
    for tolerance in [-1e-9, f64::NAN, f64::INFINITY] {
        assert!(refused(params().tolerance(tolerance)).starts_with("tolerance"));
    }
    assert!(refused(params().max_n_iterations(0)).starts_with("max_n_iterations"));
    assert!(refused(params().n_threads(0)).starts_with("n_threads"));
    for centroids in [array![[0.0]], array![[0.0], [f64::NAN]]] {
        assert!(refused(params().init_method(KMeansInit::Precomputed(centroids))).starts_with("init_method"));
    }
    let valid = params().tolerance(0.0).n_runs(3).seed(9).check().unwrap();
    assert_eq!((valid.n_clusters(), valid.n_runs(), valid.tolerance(), valid.seed()), (2, 3, 0.0, 9));
}

#[test]
fn rows_that_cannot_be_fitted_are_refused() {
    let refused = |columns: &[Float64Array]| KMeans::params(3).fit_columns(columns).unwrap_err();
    let column = |values: &[f64]| Float64Array::from(values.to_vec());
    assert!(matches!(refused(&[]), KMeansError::NoRows));
    assert!(matches!(refused(&[column(&[])]), KMeansError::NoRows));
    assert!(matches!(refused(&vec![column(&[1.0, 2.0, 3.0]); 33]), KMeansError::TooManyFeatures(33)));
    let lengths = refused(&[column(&[1.0, 2.0]), column(&[1.0])]);
    assert!(matches!(lengths, KMeansError::Lengths { column: 1, found: 1, rows: 2 }));
    let odd = refused(&[column(&[1.0, 2.0, 3.0]), column(&[1.0, f64::NAN, 3.0])]);
    assert_eq!(odd.to_string(), "the feature 1 holds NaN in row 1, which is no finite number");
    assert!(matches!(refused(&[column(&[1.0, 2.0, 2.0])]), KMeansError::Fit(Error::TooFew { k: 3, distinct: 2 })));
    let init = KMeans::params(2).init_method(KMeansInit::Precomputed(Array2::zeros((2, 5))));
    let features = init.fit_columns(&[column(&[1.0, 2.0])]).unwrap_err();
    assert!(matches!(features, KMeansError::Features { centroids: 5, rows: 1 }));
    let model = KMeans::params(1).fit_columns(&[column(&[1.0, 2.0])]).unwrap();
    assert_eq!((model.centroids()[[0, 0]], model.inertia()), (1.5, 0.25));
    let other = model.predict_columns(&[column(&[1.0]), column(&[2.0])]).unwrap_err();
    assert!(matches!(other, KMeansError::Features { centroids: 1, rows: 2 }));
    assert_eq!(model.predict(&Array2::<f64>::zeros((0, 1))).len(), 0);
}
