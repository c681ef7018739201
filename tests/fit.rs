//! `fit` on files from anywhere: what it prints, what it takes, what it refuses and how.

mod common;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use common::Place;
use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

/// Three blobs of two features, some values missing.
fn rows(n: usize) -> (Vec<Option<f64>>, Vec<Option<f64>>) {
    let blob = |i: usize, f: usize| (i % 3 * 100) as f64 + ((i * 7919 + f * 104_729) % 1000) as f64 / 50.0;
    let some = |f: usize| (0..n).map(move |i| (i % 97 != 11 + f).then(|| blob(i, f))).collect();
    (some(0), some(1))
}

fn write_parquet(path: &Path, (a, b): &(Vec<Option<f64>>, Vec<Option<f64>>), group: usize) {
    let columns = [("a", a), ("b", b)].map(|(name, v)| (name, Arc::new(Float64Array::from(v.clone())) as ArrayRef));
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn write_csv(place: &Place, name: &str, (a, b): &(Vec<Option<f64>>, Vec<Option<f64>>)) {
    let field = |v: &Option<f64>| v.map_or("n/a".to_owned(), |v| v.to_string());
    let lines = a.iter().zip(b).map(|(a, b)| format!("x,{},{}\n", field(b), field(a)));
    place.write(name, format!("name,b,a\n{}", lines.collect::<String>()));
}

fn json(place: &Place, args: &[&str]) -> Value {
    let mut all = vec!["fit", "--json", "--features", "a,b"];
    all.extend(args);
    serde_json::from_str(&place.ok(&all)).unwrap()
}

/// All that follows from the rows and the settings.
fn answer(mut report: Value) -> Value {
    for volatile in ["file", "trained_at", "seconds"] {
        assert!(report.as_object_mut().unwrap().remove(volatile).is_some(), "{volatile}");
    }
    report
}

#[test]
fn format_row_groups_and_threads_change_no_bit() {
    let place = Place::new();
    let rows = rows(70_000);
    write_parquet(&place.path("one.parquet"), &rows, 70_000);
    write_parquet(&place.path("many.parquet"), &rows, 1013);
    write_csv(&place, "rows.csv", &rows);
    let expected = answer(json(&place, &["one.parquet"]));
    let same = [
        &["many.parquet"][..],
        &["rows.csv"],
        &["one.parquet", "--threads", "1"],
        &["many.parquet", "--threads", "7"],
        &["many.parquet", "--memory-limit", "1MB"],
        &["rows.csv", "--memory-limit", "1MB"],
    ];
    for args in same {
        assert_eq!(answer(json(&place, args)), expected, "{args:?}");
    }
    let sizes: u64 = expected["clusters"].as_array().unwrap().iter().map(|c| c["size"].as_u64().unwrap()).sum();
    assert_eq!((sizes, &expected["rows"]), (70_000, &Value::from(70_000)));
    assert_eq!(expected["missing"], serde_json::json!([722, 722]));
    assert!(expected["silhouette"].as_f64().unwrap() > 0.8 && expected["silhouette_rows"] == 5000);
    assert!(expected["davies_bouldin"].as_f64().unwrap() < 0.3, "{}", expected["davies_bouldin"]);
    assert!(expected["calinski_harabasz"].as_f64().unwrap() > 1e5);
    assert_eq!(expected["clusters"][0]["description"], "Low a, Low b");
    let receipt = &expected["receipt"];
    assert_eq!((&receipt["n"], &receipt["starts"], &receipt["max_iter"]), (&70_000.into(), &28.into(), &300.into()));
    assert_eq!(receipt["rows_hash"].as_str().unwrap().len(), 64);
    let fewer = answer(json(&place, &["one.parquet", "--seed", "7", "--n-init", "3", "--tol", "0.5"]));
    assert_eq!(fewer["receipt"]["rows_hash"], receipt["rows_hash"], "the same rows");
    let told = [&fewer["receipt"]["seed"], &fewer["receipt"]["starts"], &fewer["receipt"]["tol"]];
    assert_eq!(told, [&Value::from(7), &Value::from(3), &Value::from(0.5)]);
}

#[test]
fn a_range_of_k_is_the_same_as_several_fits() {
    let place = Place::new();
    // None missing: the rows that stand at a mean would be clusters of their own.
    let (mut a, mut b) = rows(3000);
    (a, b) = a.into_iter().zip(b).filter(|(a, b)| a.is_some() && b.is_some()).unzip();
    write_csv(&place, "rows.csv", &(a, b));
    let several = json(&place, &["rows.csv", "--k", "2..5", "--output", "several.json"]);
    let fits = several["fits"].as_array().unwrap();
    assert_eq!((fits.len(), &several["best"]), (4, &3.into()));
    for (fit, k) in fits.iter().zip(["2", "3", "4", "5"]) {
        assert_eq!(answer(fit.clone()), answer(json(&place, &["rows.csv", "--k", k])), "{k}");
    }
    let written: Value = serde_json::from_slice(&std::fs::read(place.path("several.json")).unwrap()).unwrap();
    assert_eq!(written, several);
    let table = place.ok(&["fit", "rows.csv", "--features", "a,b", "--k", "2..5"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 6, "{table}");
    assert!(lines[1].starts_with("k ") && lines[3].starts_with("3 "), "{table}");
    let marked: Vec<&&str> = lines.iter().filter(|line| line.ends_with("best by silhouette")).collect();
    assert_eq!(marked, [&lines[3]], "{table}");
}

#[test]
fn given_centroids_tolerance_and_passes_are_obeyed() {
    let place = Place::new();
    write_csv(&place, "rows.csv", &rows(3000));
    place.write("init.json", "[[0, 0], [1, 1], [2, 2]]");
    let run = |more: &[&str]| {
        let mut args = vec!["rows.csv", "--init", "init.json"];
        args.extend(more);
        json(&place, &args)
    };
    let whole = run(&[]);
    let once = run(&["--max-iter", "1"]);
    assert_eq!((&once["iterations"], &whole["k"], &whole["starts"]), (&1.into(), &3.into(), &0.into()));
    assert!(once["inertia"].as_f64() > whole["inertia"].as_f64());
    assert!(run(&["--tol", "0.5"])["iterations"].as_u64() < whole["iterations"].as_u64());
    let theirs = json(&place, &["rows.csv", "--solver", "linfa", "--n-init", "3"]);
    let ours = json(&place, &["rows.csv", "--output", "model.json"]);
    let ratio = theirs["inertia"].as_f64().unwrap() / ours["inertia"].as_f64().unwrap();
    assert!((0.999_999..1.001).contains(&ratio), "{ratio}");
    let written: Value = serde_json::from_slice(&std::fs::read(place.path("model.json")).unwrap()).unwrap();
    assert_eq!(written, ours);
    let words = place.ok(&["fit", "rows.csv", "--features", "a,b"]);
    for word in
        ["3,000 rows of rows.csv", "Low a, Low b", "inertia", "(all 3,000 rows)", "31 of a are missing", "s to fit"]
    {
        assert!(words.contains(word), "{word}: {words}");
    }
}

#[test]
fn what_cannot_be_clustered_is_refused_in_one_line() {
    let place = Place::new();
    write_csv(&place, "rows.csv", &rows(30));
    place.write("init.json", "[[1, 2], [3]]");
    place.write("two.json", "[[1, 2], [3, 4]]");
    place.write("broken.parquet", "PAR1 and no more");
    let cases: [(&[&str], &str); 12] = [
        (&["no.csv", "--features", "a"], "cannot read no.csv: No such file"),
        (&["broken.parquet", "--features", "a"], "cannot read broken.parquet as Parquet: "),
        (&["rows.csv", "--features", "a,c"], "rows.csv has no column c; it has name, b, a"),
        (&["rows.csv", "--features", "name"], "cannot cluster rows.csv: the feature name is missing in every row"),
        (&["rows.csv", "--features", "a,a"], "--features names a twice"),
        (&["rows.csv", "--features", "a", "--k", "65"], "--k must be from 1 to 64, found 65"),
        (
            &["rows.csv", "--features", "a", "--k", "31"],
            "31 clusters need at least 31 different rows, there are 30; ask for fewer",
        ),
        (&["rows.csv", "--features", "a,b", "--init", "init.json"], "expected a JSON array of arrays of 2 numbers"),
        (
            &["rows.csv", "--features", "a,b", "--init", "two.json", "--k", "3"],
            "--init holds 2 centroids, and --k says 3",
        ),
        (&["rows.csv", "--features", "a,b", "--init", "two.json", "--k", "2..3"], "and --k says 2..3; leave --k out"),
        (
            &["rows.csv", "--features", "a", "--k", "5..3"],
            "--k must go from a smaller to a greater number, from 1 to 64",
        ),
        (
            &["rows.csv", "--features", "a", "--k", "31..33"],
            "31 clusters need at least 31 different rows, there are 30",
        ),
    ];
    for (args, expected) in cases {
        let mut all = vec!["fit"];
        all.extend(args);
        let error = place.fails(1, &all);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
    for args in [
        &["fit", "rows.csv"][..],
        &["fit", "rows.csv", "--features", "a", "--tol", "-1"],
        &["fit", "rows.csv", "--features", "a", "--k", "2.."],
    ] {
        assert_eq!(place.run(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn three_blobs_are_suggested_as_three_and_drawn() {
    let place = Place::new();
    // None missing: the rows that stand at a mean would be clusters of their own.
    let (mut a, mut b) = rows(3000);
    (a, b) = a.into_iter().zip(b).filter(|(a, b)| a.is_some() && b.is_some()).unzip();
    write_csv(&place, "rows.csv", &(a, b));
    let suggest = ["suggest-k", "rows.csv", "--features", "a,b", "--max-k", "5"];
    let words = place.ok(&[&suggest[..], &["--svg", "k.svg"]].concat());
    assert!(words.ends_with("3 clusters: elbow, silhouette and stability agree\n"), "{words}");
    let svg = std::fs::read_to_string(place.path("k.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.matches("<circle ").count() == 12, "{svg}");
    let found: Value = serde_json::from_str(&place.ok(&[&suggest[..], &["--json"]].concat())).unwrap();
    assert_eq!((&found["suggestion"]["recommended"], &found["suggestion"]["agree"]), (&3.into(), &3.into()));
    assert_eq!(found["candidates"].as_array().unwrap().len(), 4);
    let error = place.fails(1, &["suggest-k", "rows.csv", "--features", "a,b", "--min-k", "9", "--max-k", "4"]);
    assert!(error.contains("--min-k 9 is more than --max-k 4"), "{error}");
}
