//! `fit` on arbitrary files: output, accepted and rejected input; also the samples that `fit` and a training report.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use common::Place;
use datafusion::arrow::array::{ArrayRef, Float64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::Value;

use crate::common;

/// Three blobs with two features and some missing values.
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
    let field = |v: &Option<f64>| v.map_or(String::new(), |v| v.to_string());
    let lines = a.iter().zip(b).map(|(a, b)| format!("x,{},{}\n", field(b), field(a)));
    place.write(name, format!("name,b,a\n{}", lines.collect::<String>()));
}

fn json(place: &Place, args: &[&str]) -> Value {
    let mut all = vec!["fit", "--json", "--features", "a,b"];
    all.extend(args);
    serde_json::from_str(&place.ok(&all)).unwrap()
}

/// The deterministic part of a report.
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
    assert_eq!(expected["imputed"], serde_json::json!({"a": 722, "b": 722}));
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
    // Without missing values: rows at a mean would form their own clusters.
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
    for word in [
        "3,000 rows of rows.csv",
        "Low a, Low b",
        "inertia",
        "(all 3,000 rows)",
        "a was missing in 31 of 3,000 rows and took the mean",
        "s to fit",
    ] {
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
    place.write("none.csv", "a,b\n");
    place.write("empty.csv", "a,b\n,1\n,2\n");
    let cases: [(&[&str], &str); 14] = [
        (&["none.csv", "--features", "a"], "none.csv has no rows to cluster"),
        (&["empty.csv", "--features", "a,b"], "cannot cluster empty.csv: the feature a is missing in every row"),
        (&["no.csv", "--features", "a"], "cannot read no.csv: No such file"),
        (&["broken.parquet", "--features", "a"], "cannot read broken.parquet as Parquet: "),
        (&["rows.csv", "--features", "a,c"], "rows.csv has no column c; it has name, b, a"),
        (&["rows.csv", "--features", "name"], "rows.csv, line 2: the column name holds `x`, which is no number"),
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
    // Without missing values: rows at a mean would form their own clusters.
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

#[test]
fn text_is_refused_with_a_suggestion_that_works() {
    let place = Place::new();
    let number = |i: usize| format!("{},{:03}", i % 7 + 1, i * 37 % 1000);
    let rows: String = (0..60).map(|i| format!("i{i},{}.5,\"{}\",{}\n", i % 5, number(i), i % 2 == 0)).collect();
    place.write("shop 1.csv", format!("item,stars,reviews,flag\n{rows}"));
    for command in ["fit", "suggest-k"] {
        for (feature, line, text) in [("reviews", 2, "1,000"), ("flag", 2, "true")] {
            let features = format!("stars,{feature}");
            let error = place.fails(1, &[command, "shop 1.csv", "--features", &features]);
            let place_and_text =
                format!("shop 1.csv, line {line}: the column {feature} holds `{text}`, which is no number; ");
            assert!(error.contains(&place_and_text), "{error}");
            assert!(error.contains("or give --missing impute") && error.contains("--missing skip"), "{error}");
            // The suggested command, run by a shell.
            let clean = error.split("clean it with `tercile").nth(1).unwrap().split('`').next().unwrap();
            let script = format!("'{}' {clean} > clean.csv", env!("CARGO_BIN_EXE_tercile"));
            let mut shell = std::process::Command::new("sh");
            let status = shell.args(["-c", &script]).current_dir(place.dir.path()).status();
            assert!(status.unwrap().success(), "{script}");
            place.ok(&[command, "clean.csv", "--features", &features]);
        }
    }
    // Text that no rule converts to a number.
    place.write("na.csv", "a,b\n1,2\n3,n/a\n");
    let error = place.fails(1, &["fit", "na.csv", "--features", "b"]);
    assert!(error.contains("na.csv, line 3: the column b holds `n/a`, which is no number; correct it, or"), "{error}");
}

#[test]
fn what_is_missing_is_imputed_skipped_or_refused_and_counted() {
    let place = Place::new();
    let cell = |i: usize| match i {
        3 | 17 | 30 => String::new(),
        40 => "n/a".to_owned(),
        _ => (i % 3 * 100 + i % 7).to_string(),
    };
    let rows: String = (0..60).map(|i| format!("{},{}\n", cell(i), i % 3 * 10 + i % 5)).collect();
    place.write("rows.csv", format!("a,b\n{rows}"));
    let fails = |choice: &str| place.fails(1, &["fit", "rows.csv", "--features", "a,b", "--missing", choice]);
    assert!(fails("refuse").contains("rows.csv, line 5: the column a is empty; fill it in, or give --missing impute"));

    let imputed = json(&place, &["rows.csv", "--missing", "impute"]);
    assert_eq!((&imputed["rows"], &imputed["rows_left_out"]), (&60.into(), &0.into()));
    assert_eq!(imputed["imputed"], serde_json::json!({"a": 4, "b": 0}));
    let example = serde_json::json!({"a": {"values": 1, "example": {"text": "n/a", "line": 42}}});
    assert_eq!(imputed["not_numbers"], example);
    let skipped = json(&place, &["rows.csv", "--missing", "skip"]);
    assert_eq!((&skipped["rows"], &skipped["rows_left_out"]), (&56.into(), &4.into()));
    assert_eq!((&skipped["imputed"], &skipped["not_numbers"]), (&serde_json::json!({"a": 0, "b": 0}), &example));
    // The remaining rows alone give the same clusters.
    let kept: String = (0..60)
        .filter(|i| ![3, 17, 30, 40].contains(i))
        .map(|i| format!("{},{}\n", cell(i), i % 3 * 10 + i % 5))
        .collect();
    place.write("kept.csv", format!("a,b\n{kept}"));
    let alone = json(&place, &["kept.csv"]);
    assert_eq!((&alone["clusters"], &alone["receipt"]), (&skipped["clusters"], &skipped["receipt"]));

    let said = "a was missing in 4 of 60 rows and took the mean (1 of them no number, such as `n/a` in line 42)\n";
    let left_out = "a is missing in 4 of the file's 60 rows (1 of them no number, such as `n/a` in line 42)\n4 rows were left out\n";
    for command in [&["fit"][..], &["fit", "--k", "2..3"], &["suggest-k", "--max-k", "3"]] {
        for (choice, said) in [("impute", said), ("skip", left_out)] {
            let args = [command, &["rows.csv", "--features", "a,b", "--missing", choice]].concat();
            let table = place.ok(&args);
            assert!(table.contains(said), "{args:?}: {table}");
        }
        let args = [command, &["rows.csv", "--features", "a,b", "--missing", "skip", "--json"]].concat();
        let found: Value = serde_json::from_str(&place.ok(&args)).unwrap();
        assert_eq!(
            (&found["rows"], &found["rows_left_out"], &found["imputed"]["a"]),
            (&56.into(), &4.into(), &0.into()),
            "{args:?}"
        );
    }
    place.write("text.csv", "a,flag\n1,yes\n2,no\n3,\n");
    let error = place.fails(1, &["fit", "text.csv", "--features", "a,flag", "--missing", "impute", "--k", "2"]);
    assert!(
        error.contains(
            "the column flag of text.csv holds no number in any of 3 rows: 2 hold text, such as `yes` in line 2"
        ),
        "{error}"
    );
    let error = place.fails(1, &["fit", "text.csv", "--features", "a,flag", "--missing", "skip"]);
    assert!(
        error.contains("no row of text.csv has a number in each of a, flag, so --missing skip leaves none"),
        "{error}"
    );
}

#[test]
fn rare_clusters_are_in_every_sample_and_samples_say_so() {
    let place = Place::new();
    let mut rows = String::from("spent,visits\n");
    for i in 0..12_000_u64 {
        let (mut spent, mut visits) = (i * 7919 % 1009, i * 104_729 % 53);
        // Rare rows that no uniform sample of 5,000 contains: three big spenders and three constant visitors.
        match i {
            8_003 | 9_001 | 10_003 => spent = 900_000 + i,
            8_501 | 9_503 | 11_003 => visits = 90_000 + i,
            _ => {}
        }
        rows.push_str(&format!("{spent},{visits}\n"));
    }
    place.write("rows.csv", rows);
    let slices = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/20_slices.sql")).unwrap();
    place.write("sql/20_slices.sql", slices);
    place.write("sql/00_records.sql", "CREATE TABLE records (spent TEXT, visits TEXT);\n");
    place.write(
        "sql/10_products.sql",
        "SELECT _partition, _offset, _timestamp, CAST(spent AS DOUBLE) AS spent, CAST(visits AS DOUBLE) AS visits FROM records\n",
    );
    place.write(
        "sql/30_whales.sql",
        "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, spent, visits FROM slices\n",
    );
    let server = place.up(&["--data", "rows.csv", "--sql", "sql"]);
    let model = server.get("/api/segments/whales/models/3").json();
    let sizes: Vec<u64> = model["clusters"].as_array().unwrap().iter().map(|c| c["size"].as_u64().unwrap()).collect();
    assert_eq!(
        {
            let mut sorted = sizes.clone();
            sorted.sort_unstable();
            sorted
        },
        [3, 3, 11_994],
        "{model}"
    );
    assert!(model["silhouette"].as_f64().is_some_and(|score| score > 0.9), "{}", model["silhouette"]);
    let sample = server.get("/api/segments/whales/points").json();
    assert_eq!(sample["sampled_from"], 12_000);
    let points = sample["points"].as_array().unwrap();
    for (cluster, size) in sizes.iter().enumerate() {
        let there = points.iter().filter(|point| point["cluster"] == cluster).count() as u64;
        assert_eq!(there.min(50), (*size).min(50), "cluster {cluster}");
    }
    assert!(points.windows(2).all(|pair| pair[0]["offset"].as_u64() < pair[1]["offset"].as_u64()));
    // The report on the number of clusters also suggests three.
    let report = server.get("/api/segments/whales/k-report").json();
    assert_eq!((&report["sampled_from"], &report["rows"]), (&12_000.into(), &points.len().into()));
    let three = &report["candidates"][1];
    let close = |a: &Value, b: &Value| {
        let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
        (a - b).abs() <= 0.02 * a.abs()
    };
    assert!(close(&three["inertia"], &model["inertia"]), "{three} {}", model["inertia"]);
    assert!(close(&three["silhouette"], &model["silhouette"]), "{three} {}", model["silhouette"]);
    assert_eq!(server.interrupt().code, Some(0));
    let table = place.ok(&["train", "--sql", "sql"]);
    assert!(table.contains("a silhouette of more than 5,000 rows is that of a weighted sample"), "{table}");
    let fitted = place.ok(&["fit", "rows.csv", "--features", "spent,visits"]);
    assert!(fitted.contains("(a weighted sample of 5,"), "{fitted}");
    let suggested = place.ok(&["suggest-k", "rows.csv", "--features", "spent,visits", "--max-k", "4"]);
    assert!(suggested.contains("silhouette and stability are those of samples of up to 5,"), "{suggested}");
}

#[test]
fn rows_and_models_are_written_and_used() {
    let place = Place::new();
    write_csv(&place, "rows.csv", &rows(600));
    let fit = ["fit", "rows.csv", "--features", "a,b", "--k", "3"];
    place.ok(&[&fit, &["--output", "labels.csv", "--model", "m.json"] as &[&str]].concat());
    let labels = std::fs::read_to_string(place.path("labels.csv")).unwrap();
    assert!(labels.starts_with("name,b,a,cluster,description,distance,imputed\n"), "{labels:.80}");
    assert_eq!(labels.lines().count(), 601);
    // The sizes are those of the report, and predict gives the same rows.
    let report: Value = serde_json::from_str(&std::fs::read_to_string(place.path("m.json")).unwrap()).unwrap();
    let mut reader = csv::Reader::from_reader(labels.as_bytes());
    let clusters: Vec<u64> = reader.records().map(|row| row.unwrap()[3].parse().unwrap()).collect();
    for cluster in report["clusters"].as_array().unwrap() {
        let size = clusters.iter().filter(|found| Some(**found) == cluster["cluster"].as_u64()).count() as u64;
        assert_eq!(Some(size), cluster["size"].as_u64(), "{cluster}");
    }
    assert_eq!(place.ok(&["predict", "m.json", "rows.csv", "--missing", "impute"]), labels);
    place.ok(&[&fit, &["--missing", "skip", "-o", "labels.parquet"] as &[&str]].concat());
    let count = "SELECT count(*) AS n, count(cluster) < 600 AS some FROM t";
    assert_eq!(place.ok(&["sql", "--table", "t=labels.parquet", "-f", "csv", "-c", count]), "n,some\n600,true\n");
    // In place, and from a pipe.
    place.ok(&[&fit, &["-o", "rows.csv"] as &[&str]].concat());
    assert_eq!(std::fs::read_to_string(place.path("rows.csv")).unwrap(), labels);

    place.write("no.json", "{}");
    assert!(place.fails(1, &["predict", "no.json", "rows.csv"]).contains("no.json is no model"));
    assert!(place.fails(1, &["predict", "nowhere.json", "rows.csv"]).contains("cannot read nowhere.json"));
    let damaged = serde_json::to_string(&report).unwrap().replacen("\"cluster\":1", "\"cluster\":7", 1);
    place.write("damaged.json", damaged);
    assert!(place.fails(1, &["predict", "damaged.json", "rows.csv"]).contains("damaged.json is no complete model"));
    assert!(
        place.fails(2, &["predict", "m.json", "rows.csv", "--as-of", "3"]).contains("--as-of is for a segmentation")
    );
    assert!(place.fails(1, &["predict", "m.json", "rows.csv", "--lang", "de"]).contains("no names in the language de"));
    let range = ["fit", "rows.csv", "--features", "a,b", "--k", "2..3", "-o", "labels.csv"];
    assert!(place.fails(2, &range).contains("takes one number of clusters"));
}
