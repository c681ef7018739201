//! The user's files: each command reads the same table from the same rows, however they are written.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::FileWriter;
use parquet::arrow::ArrowWriter;
use serde_json::Value;

use crate::common::Place;

/// The rows of every file: text with the delimiters of other dialects, and two features.
const ROWS: [(&str, &str, &str); 8] = [
    ("Café au lait", "3.5", "4.1"),
    ("Crème", "12.25", "3.9"),
    ("Tea; green, hot | \"loose\"", "2.2", "4.95"),
    ("Piñata", "8.1", "4.5"),
    ("Müsli", "6.5", "2.75"),
    ("Juice", "5.1", "3.25"),
    ("Milk", "1.1", "4.15"),
    ("Coffee", "9.99", "4.7"),
];

/// The table as CSV with a delimiter, a decimal mark, line ends, and a suffix for each line.
fn csv(delimiter: char, decimal: &str, end: &str, suffix: &str) -> String {
    let quoted = |text: &str| match text.contains([delimiter, '"']) || (decimal == "," && text.contains(',')) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut text = format!("name{delimiter}discounted_price{delimiter}rating{suffix}{end}");
    for (name, price, rating) in ROWS {
        let (price, rating) = (price.replace('.', decimal), rating.replace('.', decimal));
        let (price, rating) = (quoted(&price), quoted(&rating));
        text += &format!("{}{delimiter}{price}{delimiter}{rating}{suffix}{end}", quoted(name));
    }
    text
}

fn objects(between: &str) -> String {
    let object = |(name, price, rating): &(&str, &str, &str)| {
        format!("{{\"name\":{},\"discounted_price\":{price},\"rating\":{rating}}}", Value::from(*name))
    };
    ROWS.iter().map(object).collect::<Vec<_>>().join(between)
}

fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}

/// One encoding that has all characters of the table in one byte.
fn cp1252(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// Names and contents of files with the same rows.
fn variants() -> Vec<(&'static str, Vec<u8>)> {
    let plain = csv(',', ".", "\n", "");
    let pretty = objects("\n").replace(",\"", ",\n  \"");
    vec![
        ("plain.csv", plain.clone().into()),
        ("windows.csv", format!("\u{feff}{}", csv(',', ".", "\r\n", "")).into()),
        ("european.csv", csv(';', ",", "\r\n", "").into()),
        ("decimal.csv", csv(',', ",", "\n", "").into()),
        ("tabs.tsv", csv('\t', ".", "\n", "").into()),
        ("tabs.txt", csv('\t', ".", "\n", "").into()),
        ("pipes.csv", csv('|', ".", "\n", "").into()),
        ("trailing.csv", csv(',', ".", "\n", ",").into()),
        ("titled.csv", format!("Sales of May\n\n{plain}").into()),
        ("excel.csv", format!("sep=;\r\n{}", csv(';', ",", "\r\n", "")).into()),
        ("latin.csv", cp1252(&plain)),
        ("latin.csv.gz", gzip(&cp1252(&csv(';', ",", "\n", "")))),
        ("utf16.csv", [vec![0xff, 0xfe], utf16(&plain, u16::to_le_bytes)].concat()),
        ("utf16be.csv", utf16(&plain, u16::to_be_bytes)),
        ("plain.csv.gz", gzip(plain.as_bytes())),
        ("plain.csv.zst", zstd::encode_all(plain.as_bytes(), 3).unwrap()),
        ("rows.ndjson", objects("\n").into()),
        ("rows.json", format!("[{}]", objects(",\n")).into()),
        ("concatenated.json", objects("").into()),
        ("pretty.json", pretty.into()),
        ("rows.ndjson.gz", gzip(objects("\n").as_bytes())),
    ]
}

#[test]
fn all_commands_read_the_same_table() {
    let place = Place::new();
    place.ok(&["generate", "300", "--seed", "7", "-o", "sample.csv"]);
    drop(place.up(&["--data", "sample.csv", "--store", "models"]).interrupt());
    place.write("sql/00_records.sql", "CREATE TABLE records (name TEXT, discounted_price TEXT, rating TEXT);\n");
    let features = ["--features", "discounted_price,rating"];
    let mut expected: Option<[String; 6]> = None;
    for (name, bytes) in variants() {
        place.write(name, bytes);
        let table = format!("t={name}");
        let select = "SELECT name, discounted_price, rating FROM t";
        let sql = place.ok(&["sql", "--store", "none", "--table", &table, "-f", "csv", "-c", select]);
        let json = |args: &[&str], fields: &[&str]| {
            let json: Value = serde_json::from_str(&place.ok(args)).unwrap();
            fields.iter().map(|field| json[*field].to_string()).collect::<Vec<_>>().join(" ")
        };
        let fit = json(&[&["fit", name, "--k", "2", "--json"], &features[..]].concat(), &["rows", "mean", "inertia"]);
        let suggest = [&["suggest-k", name, "--max-k", "3", "--json"], &features[..]].concat();
        let suggested = json(&suggest, &["rows", "candidates"]);
        let predicted = place.ok(&["predict", "price_rating", name, "--store", "models", "--format", "ndjson"]);
        let predicted = predicted.lines().map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            format!("{} {} {}\n", row["name"], row["cluster"], row["distance"])
        });
        let directory = format!("init-{name}");
        place.ok(&["init", name, "--sql", &directory]);
        let declared = std::fs::read_to_string(place.path(&directory).join("00_records.sql")).unwrap();
        let declared = declared.lines().filter(|line| !line.starts_with("--")).collect::<String>();
        let mut broker = place.start(&["broker"]);
        let servers = broker.line_with("");
        place.ok(&["produce", name, "--bootstrap-servers", &servers]);
        let store = format!("store-{name}");
        let stream = ["--store", &store, "--sql", "sql"];
        place.ok(&[&["ingest", "--until-end", "--bootstrap-servers", &servers], &stream[..]].concat());
        let raw = "SELECT name, replace(discounted_price, ',', '.') AS p, replace(rating, ',', '.') AS r FROM records ORDER BY _offset";
        let stored = place.ok(&["sql", "--store", &store, "--sql", "sql", "-f", "csv", "-c", raw]);
        let found = [sql, fit, suggested, predicted.collect(), declared, stored];
        match &expected {
            None => {
                assert_eq!(found[0].lines().count(), ROWS.len() + 1);
                assert!(found[0].contains("Café au lait,3.5,4.1\n"), "{}", found[0]);
                assert_eq!(found[5].lines().count(), ROWS.len() + 1);
                expected = Some(found);
            }
            Some(expected) => assert_eq!(&found, expected, "{name}"),
        }
    }
}

#[test]
fn pipes_directories_and_patterns_are_files_too() {
    let place = Place::new();
    place.write("d/1.csv", "a,b\n1,10\n2,20");
    place.write("d/2.csv", "a,b\r\n3,30\r\n");
    place.write("d/.hidden.csv", "x\n");
    place.write("d/notes.txt", "no table");
    place.write("whole.csv", "a,b\n1,10\n2,20\n3,30\n");
    let sum = |file: &str| {
        let table = format!("t={file}");
        let sql = "SELECT sum(a) AS a, sum(b) AS b, count(*) AS n FROM t, (SELECT count(*) FROM t)";
        place.ok(&["sql", "--store", "none", "--table", &table, "-f", "csv", "-c", sql])
    };
    let fit = |file: &str| {
        let printed = place.ok(&["fit", file, "--features", "a,b", "--k", "3", "--json"]);
        serde_json::from_str::<Value>(&printed).unwrap()["mean"].to_string()
    };
    for file in ["whole.csv", "d", "d/*.csv", "./d/[12].csv"] {
        assert_eq!(sum(file), "a,b,n\n6,60,3\n", "{file}");
        assert_eq!(fit(file), fit("whole.csv"), "{file}");
    }
    let piped = |args: &[&str]| {
        let mut child = place.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a;b\n1,5;10\n2,5;20\n3;30\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let sql = ["sql", "--store", "none", "--table", "t=-", "-f", "csv", "-c", "SELECT sum(a) AS a, sum(b) AS b FROM t"];
    assert_eq!(piped(&sql), "a,b\n7.0,60\n");
    assert!(piped(&["fit", "-", "--features", "a,b", "--k", "3"]).starts_with("3 rows"));
    let mut shell = Command::new("bash");
    let line = format!("{} fit <(cat whole.csv) --features a --k 2 --json", env!("CARGO_BIN_EXE_tercile"));
    let output = shell.current_dir(place.path("")).args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What is not read is told, once.
    std::fs::create_dir(place.path("d/older")).unwrap();
    let said = place.run(&["fit", "d", "--features", "a,b", "--k", "2"]).stderr;
    assert!(said.contains("d: 2 files read, 3 files skipped: .hidden.csv, notes.txt, older/"), "{said}");
    place.write("e/1.csv", "a,b\n1,10\n2,20\n");
    let said = place.run(&["fit", "e", "--features", "a,b", "--k", "2"]).stderr;
    assert!(!said.contains("skipped"), "{said}");
    let said = place.run(&["init", "d", "--sql", "d-sql"]).stderr;
    assert_eq!(said.matches("files skipped").count(), 1, "{said}");
    place.write("d/3.csv", "b,a\n30,3\n");
    let error = place.fails(1, &["fit", "d", "--features", "a"]);
    assert!(error.contains("d/3.csv: its columns or its dialect differ from those of d/1.csv"), "{error}");
    let error = place.fails(1, &["fit", "x*.csv", "--features", "a"]);
    assert!(error.contains("x*.csv: no file matches this pattern"), "{error}");
}

#[test]
fn flags_replace_detection_and_ambiguity_is_an_error() {
    let place = Place::new();
    let table = |file: &str, more: &[&str]| {
        let table = format!("t={file}");
        let args =
            [&["sql", "--store", "none", "--table", &table, "-f", "csv", "-c", "SELECT * FROM t"], more].concat();
        place.run(&args)
    };
    let rows = |file: &str, more: &[&str]| {
        let ended = table(file, more);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    place.write("both.csv", "a;b,c\n1;2,3\n");
    let error = table("both.csv", &[]);
    assert_eq!(error.code, Some(1));
    assert!(error.stderr.contains("comma-separated or semicolon-separated; give --delimiter"), "{}", error.stderr);
    assert_eq!(rows("both.csv", &["--delimiter", ","]), "a;b,c\n1;2,3\n");
    assert_eq!(rows("both.csv", &["--delimiter", ";", "--decimal", ","]), "a,\"b,c\"\n1,2.3\n");
    place.write("values.csv", "7,2.5\n8,3.5\n");
    assert!(table("values.csv", &[]).stderr.contains("found 7, a number; give --header no"));
    assert_eq!(rows("values.csv", &["--header", "no"]), "column_1,column_2\n7,2.5\n8,3.5\n");
    assert_eq!(rows("values.csv", &["--header", "yes"]), "7,2.5\n8,3.5\n");
    place.write("skipped.csv", "one,line\nanother,line\na,b\n1,2\n");
    assert_eq!(rows("skipped.csv", &["--skip", "2"]), "a,b\n1,2\n");
    place.write("cyrillic.csv", b"a,b\n\xcf\xf0\xe8\xe2\xe5\xf2,1\n");
    assert_eq!(rows("cyrillic.csv", &["--encoding", "cp1251"]), "a,b\nПривет,1\n");
    let reported = table("skipped.csv", &["--skip", "2"]).stderr;
    assert!(
        reported.contains("skipped.csv: comma-separated, UTF-8, 2 lines before the header, 2 columns"),
        "{reported}"
    );
    // Bytes that are not UTF-8, far behind the first lines.
    let mut late = "name,n\n".to_owned() + &"plain,1\n".repeat(40_000);
    late += "Caf";
    place.write("late.csv", [late.as_bytes(), b"\xe9,2\n"].concat());
    let table =
        ["sql", "--store", "none", "--table", "t=late.csv", "-f", "csv", "-c", "SELECT name FROM t WHERE n = 2"];
    assert_eq!(place.ok(&table), "name\nCafé\n");
}

#[test]
fn values_keep_their_text_unless_a_type_keeps_them_exactly() {
    let place = Place::new();
    let text = "zip,id,n,mixed,day,flag,price\n01234,10152345678901234567,1,1,2024-05-01,true,1.5\n\
                00501,10152345678901234568,,a,2024-02-30,FALSE,2\n";
    place.write("t.csv", text);
    let rows = place.ok(&["sql", "--store", "none", "--table", "t=t.csv", "-f", "csv", "-c", "SELECT * FROM t"]);
    let expected = text.replace("FALSE", "false").replace(",2\n", ",2.0\n");
    assert_eq!(rows, expected);
    let kinds = "SELECT arrow_typeof(zip) AS zip, arrow_typeof(id) AS id, arrow_typeof(n) AS n, arrow_typeof(day) AS day FROM t LIMIT 1";
    let kinds = place.ok(&["sql", "--store", "none", "--table", "t=t.csv", "-f", "csv", "-c", kinds]);
    assert_eq!(kinds, "zip,id,n,day\nUtf8,\"Decimal128(38, 0)\",Int64,Utf8\n");
    place.write("t.ndjson", "{\"v\":9007199254740993,\"o\":{\"a\":[1]}}\n{\"v\":\"x\",\"o\":null}\n");
    let rows = place.ok(&["sql", "--store", "none", "--table", "t=t.ndjson", "-f", "csv", "-c", "SELECT * FROM t"]);
    assert_eq!(rows, "v,o\n9007199254740993,\"{\"\"a\"\":[1]}\"\nx,\n");
}

/// The answer of `predict` is written like its input, and what cannot be is told.
#[test]
fn predictions_are_written_like_their_input() {
    let place = Place::new();
    place.ok(&["generate", "300", "--seed", "7", "-o", "sample.csv"]);
    drop(place.up(&["--data", "sample.csv"]).interrupt());
    let predict = |args: &[&str]| {
        let ended = place.run(&[&["predict", "price_rating"], args].concat());
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        (ended.stdout, ended.stderr)
    };
    place.write("german.csv", cp1252(&csv(';', ",", "\r\n", "")));
    let (rows, said) = predict(&["german.csv"]);
    assert!(rows.starts_with("name;discounted_price;rating;cluster;description;distance\n"), "{rows}");
    assert!(rows.contains("Café au lait;3,5;4,1;"), "{rows}");
    assert!(rows.contains("\"Tea; green, hot | \"\"loose\"\"\";2,2;4,95;"), "{rows}");
    let distance = rows.lines().nth(1).unwrap().rsplit(';').next().unwrap();
    assert!(distance.contains(',') && distance.replace(',', ".").parse::<f64>().is_ok(), "{distance}");
    assert!(said.contains("german.csv: the answer is semicolon-separated, UTF-8, decimal comma"), "{said}");
    // In place, and read again as it was read first.
    predict(&["german.csv", "-o", "german.csv"]);
    assert_eq!(std::fs::read_to_string(place.path("german.csv")).unwrap(), rows);
    let (again, said) = predict(&["german.csv"]);
    assert_eq!(again, rows);
    assert!(!said.contains("the answer is"), "{said}");
    // Tabs, whatever the file is called; another format, if it is named.
    place.write("tabs.csv", csv('\t', ".", "\n", ""));
    predict(&["tabs.csv", "-o", "out.csv"]);
    assert!(
        std::fs::read_to_string(place.path("out.csv")).unwrap().starts_with("name\tdiscounted_price\trating\tcluster")
    );
    for args in [&["german.csv", "-o", "out.tsv"][..], &["german.csv", "--format", "tsv"]] {
        let (stdout, said) = predict(args);
        let out = if args[1] == "-o" { std::fs::read_to_string(place.path("out.tsv")).unwrap() } else { stdout };
        assert!(out.starts_with("name\tdiscounted_price\t") && out.contains("\t3,5\t4,1\t"), "{out}");
        assert!(said.contains("the answer is tab-separated, UTF-8, decimal comma"), "{said}");
    }
    let (rows, said) = predict(&["tabs.csv", "--format", "csv"]);
    assert!(rows.starts_with("name,discounted_price,rating,cluster"), "{rows}");
    assert!(said.contains("the answer is comma-separated, UTF-8"), "{said}");
    place.write("titled.csv.gz", gzip(format!("Sales of May\n\n{}", csv('|', ".", "\n", "")).as_bytes()));
    let (rows, said) = predict(&["titled.csv.gz"]);
    assert!(rows.starts_with("name|discounted_price|rating|cluster"), "{rows}");
    assert!(said.contains("pipe-separated, UTF-8, without the lines before the header, not compressed"), "{said}");
}

/// `--decimal` decides for `init`, and the SQL that it writes reads the same numbers.
#[test]
fn init_takes_the_decimal_mark_that_is_given() {
    let place = Place::new();
    place.write("t.csv", "id;weight\na;1.234\nb;5.678\nc;2.500\n");
    for (mark, call, sum) in [(",", "to_number(weight, ',')", "9412"), (".", "to_number(weight)", "9")] {
        let sql = format!("sql{mark}");
        let said = place.ok(&["init", "t.csv", "--sql", &sql, "--decimal", mark]);
        let view = std::fs::read_to_string(place.path(&sql).join("10_t.sql")).unwrap();
        assert!(view.contains(&format!("{call} AS weight")), "{view}");
        assert!(said.contains("--decimal ") && said.contains("Features can be: weight"), "{said}");
        let store = format!("store{mark}");
        drop(place.up(&["--data", "t.csv", "--decimal", mark, "--sql", &sql, "--store", &store]).interrupt());
        let query = "SELECT CAST(sum(weight) AS BIGINT) AS n FROM t";
        assert_eq!(
            place.ok(&["sql", "--sql", &sql, "--store", &store, "-f", "csv", "-c", query]),
            format!("n\n{sum}\n")
        );
    }
    place.write("mixed.csv", "id;weight\na;1,5\nb;2\n");
    let said = place.ok(&["init", "mixed.csv", "--sql", "mixed", "--decimal", "."]);
    assert!(said.contains("`weight`: text: `1,5` is no number with the `.` of --decimal"), "{said}");
}

/// Command lines in error messages run as printed, with the flags of the command that failed.
#[test]
fn command_lines_in_errors_run_as_printed() {
    let place = Place::new();
    let run = |line: &str| {
        let bin = std::path::Path::new(env!("CARGO_BIN_EXE_tercile")).parent().unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let output =
            Command::new("sh").args(["-c", line]).current_dir(place.path("")).env("PATH", path).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    // A column of text: the line that cleans it has the dialect of the command.
    place.write("our file.csv", "a#b\n1,024#1\n2,048#2\n");
    place.write("other file.csv", "a#b\nx#€ 1.234,50\ny#€ 2,5\n");
    for (file, column, expected) in [("our file.csv", "a", "a,b\n1024.0,"), ("other file.csv", "b", ",1234.5\n")] {
        let error = place.fails(1, &["fit", file, "--delimiter", "#", "--features", column]);
        let line = error.split('`').rev().nth(1).unwrap_or_else(|| panic!("{error}"));
        let cleaned = run(line);
        assert!(cleaned.contains(expected), "{line}: {cleaned}");
    }
    // Parquet is converted for `produce` and `up`.
    run("tercile sql -c \"SELECT 1 AS product_id\" -o rows.parquet --store none");
    let error = place.fails(1, &["up", "--data", "rows.parquet"]);
    run(error.split('`').nth(1).unwrap());
    assert_eq!(std::fs::read_to_string(place.path("rows.ndjson")).unwrap(), "{\"product_id\":1}\n");
    // A model that is not there, and another store.
    place.ok(&["generate", "300", "-o", "sample.csv"]);
    drop(place.up(&["--data", "sample.csv", "--store", "our store"]).interrupt());
    std::fs::remove_dir_all(place.path("our store/models")).unwrap();
    let doctor = place.run(&["doctor", "--store", "our store", "--bind", "127.0.0.1:0"]);
    let line = doctor.stdout.split("run tercile train").nth(1).unwrap_or_else(|| panic!("{}", doctor.stdout));
    run(&format!("tercile train{}", line.lines().next().unwrap()));
    place.write("text.sql/00_records.sql", "CREATE TABLE records (product_id TEXT, discounted_price TEXT)");
    place.write("text.sql/20_slices.sql", "SELECT *, 1 AS _slice FROM records");
    let view = "-- k: 2\n\nSELECT _partition, _offset, _timestamp, _slice, discounted_price FROM slices";
    place.write("text.sql/30_price.sql", view);
    let error = place.fails(1, &["train", "--store", "our store", "--sql", "text.sql"]);
    let number = error.split("select ").nth(1).and_then(|rest| rest.split(", which is NULL").next()).unwrap();
    let sql = format!("SELECT count({number}) AS n FROM records");
    let counted = place.ok(&["sql", "--store", "our store", "--sql", "text.sql", "-f", "csv", "-c", &sql]);
    assert_eq!(counted, "n\n300\n", "{error}");
    // Several topics: the message names the way.
    for topic in ["orders-*", "orders-?", "orders|returns"] {
        let error = place.fails(2, &["up", "--bootstrap-servers", "127.0.0.1:1", "--topic", topic]);
        assert!(error.contains("a pattern that begins with ^"), "{error}");
    }
}

/// Of a damaged UTF-8 file no character becomes another one.
#[test]
fn a_cut_or_damaged_file_in_utf8_is_not_read_in_another_encoding() {
    let place = Place::new();
    let rows = |file: &str, more: &[&str]| {
        let table = format!("t={file}");
        place.run(
            &[&["sql", "--table", &table, "-f", "csv", "-c", "SELECT name, count(*) AS n FROM t GROUP BY 1"], more]
                .concat(),
        )
    };
    let whole = "name,n\n".to_owned() + &"plainü,1\n".repeat(50);
    for (file, bytes, line) in [
        ("cut.csv", whole.trim_end_matches(",1\n").as_bytes().split_last().unwrap().1.to_vec(), 51),
        ("damaged.csv", [whole.as_bytes(), b"M\xfcller,2\n"].concat(), 52),
        (
            "late.csv",
            ["name,n\n".to_owned().as_bytes(), "plainü,1\n".repeat(40_000).as_bytes(), b"M\xfcller,2\n"].concat(),
            40_002,
        ),
    ] {
        place.write(file, bytes);
        let ended = rows(file, &[]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{file}: {}", ended.stderr);
        assert!(ended.stderr.contains(&format!("line {line}")) && ended.stderr.contains("UTF-8"), "{}", ended.stderr);
    }
    // The encoding that is given is used.
    assert!(rows("damaged.csv", &["--encoding", "cp1252"]).stdout.contains("Müller"));
}

/// A unit beside a number does not hide its decimal comma, and a sign alone is no number.
#[test]
fn units_and_dashes_are_read_alike_everywhere() {
    let place = Place::new();
    place.write(
        "eur.csv",
        "Artikel;Preis;Menge\nA;138,61 €;1.234\nB;9,50 €;2.500\nC;20,00 €;7.125\nD;1.050,00 €;4.000\n",
    );
    let read = |sql: &str| place.ok(&["sql", "--table", "t=eur.csv", "-f", "csv", "-c", sql]);
    assert_eq!(read("SELECT sum(\"Menge\") AS n FROM t"), "n\n14859\n");
    assert!(place.ok(&["init", "eur.csv", "--sql", "eur"]).contains("a decimal comma"));
    place.write("dash.csv", "p,q\n1.5,1\n-,2\n2.5,3\n");
    let dash = |sql: &str| place.ok(&["sql", "--table", "t=dash.csv", "-f", "csv", "-c", sql]);
    assert_eq!(dash("SELECT * FROM t"), "p,q\n1.5,1\n-,2\n2.5,3\n");
    assert_eq!(dash("SELECT sum(to_number(p)) AS s FROM t"), "s\n4.0\n");
}

/// Whole numbers beyond 64 bits stay exact, and what does not fit is an error.
#[test]
fn wide_numbers_are_exact() {
    let place = Place::new();
    let run = |sql: &str| place.run(&["sql", "-f", "csv", "-c", sql]);
    let digits = "12345678901234567890123456789";
    assert_eq!(run(&format!("SELECT {digits} AS n, -{digits} AS m")).stdout, format!("n,m\n{digits},-{digits}\n"));
    assert_eq!(run("SELECT 99999999999999999999 + 1 AS n").stdout, "n\n100000000000000000000\n");
    assert_eq!(run("SELECT 18446744073709551615 AS n, 1e30 AS m").stdout, "n,m\n18446744073709551615,1e30\n");
    let nines = "9".repeat(38);
    let error = run(&format!("SELECT {nines} + 1"));
    assert_eq!(error.code, Some(1));
    assert!(error.stderr.contains("does not fit DECIMAL(38, 0)"), "{}", error.stderr);
    let error = run("SELECT 10 ^ 2");
    assert!(error.stderr.contains("line 1, column 11: ^ is a power in some dialects"), "{}", error.stderr);
}

/// Values of `->` are JSON text in every format, and NULL where there is none.
#[test]
fn json_values_are_text_in_every_format() {
    let place = Place::new();
    place.write("t.ndjson", "{\"u\":{\"n\":{\"z\":1},\"s\":\"x\"}}\n{\"u\":{\"n\":null}}\n");
    let query = "SELECT u -> 'n' AS a, u -> 's' AS s FROM t";
    let read = |format: &str| place.ok(&["sql", "--table", "t=t.ndjson", "-f", format, "-c", query]);
    assert_eq!(read("csv"), "a,s\n\"{\"\"z\"\":1}\",\"\"\"x\"\"\"\n,\n");
    assert_eq!(read("ndjson"), "{\"a\":\"{\\\"z\\\":1}\",\"s\":\"\\\"x\\\"\"}\n{\"a\":null,\"s\":null}\n");
    for file in ["out.parquet", "out.arrow"] {
        place.ok(&["sql", "--table", "t=t.ndjson", "-o", file, "-c", query]);
        let table = format!("o={file}");
        assert_eq!(place.ok(&["sql", "--table", &table, "-f", "csv", "-c", "SELECT * FROM o"]), read("csv"), "{file}");
    }
    place.ok(&["sql", "--table", "t=t.ndjson", "-c", &format!("COPY ({query}) TO 'copy.csv'")]);
    assert!(std::fs::read_to_string(place.path("copy.csv")).unwrap().starts_with("a,s\n\"{"));
    let error = place.fails(1, &["sql", "--table", "t=t.ndjson", "-c", "SELECT json_get(u, 'n') + 1 FROM t"]);
    assert!(error.contains("there is no arithmetic with JSON; write json_get_int"), "{error}");
    let error = place.fails(1, &["sql", "--table", "t=t.ndjson", "-c", "SELECT count(*) FROM t GROUP BY 1"]);
    assert!(error.contains("GROUP BY and WHERE take no aggregates") && !error.contains("AggregateUDF"), "{error}");
}

/// Phone numbers are text although they have the form of numbers, and a JSON file holds one result.
#[test]
fn phone_numbers_keep_their_plus_and_json_holds_one_result() {
    let place = Place::new();
    place.write("phone.csv", "id,phone,change\n1,+4917012345,+5\n2,+4930123456,-3\n");
    let query = "SELECT phone, sum(change) OVER () AS s FROM t WHERE id = 1";
    let read = place.ok(&["sql", "--table", "t=phone.csv", "-f", "csv", "-c", query]);
    assert_eq!(read, "phone,s\n+4917012345,5\n");
    let error = place.fails(1, &["sql", "-o", "two.json", "-c", "SELECT 1 AS a; SELECT 2 AS b"]);
    assert!(error.contains("json holds one result, and there are more"), "{error}");
    assert!(!place.path("two.json").exists());
    place.write("frame.parquet", "PAR1");
    let error = place.fails(1, &["init", "frame.parquet", "--sql", "new"]);
    assert!(!error.contains("--sql new"), "{error}");
}

/// Of two columns with one name, a reader by name would find one.
#[test]
fn two_columns_of_one_name_in_parquet_or_arrow_are_an_error() {
    let place = Place::new();
    let column = |values: [i64; 3]| Arc::new(Int64Array::from_iter_values(values)) as ArrayRef;
    let fields = ["x", "y", "x"].map(|name| Field::new(name, DataType::Int64, false));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let columns = vec![column([1, 2, 3]), column([4, 5, 6]), column([7, 8, 9])];
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let create = |name: &str| std::fs::File::create(place.path(name)).unwrap();
    let mut writer = ArrowWriter::try_new(create("twice.parquet"), Arc::clone(&schema), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    let mut writer = FileWriter::try_new(create("twice.arrow"), &schema).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    for file in ["twice.parquet", "twice.arrow"] {
        let error = place.fails(1, &["sql", "--table", &format!("t={file}"), "-c", "SELECT * FROM t"]);
        assert!(error.contains("two columns have the name x"), "{error}");
        let error = place.fails(1, &["fit", file, "--features", "x,y", "--k", "2"]);
        assert!(error.contains("more than one column is named x; give them different names"), "{error}");
        // The other column is found.
        place.ok(&["fit", file, "--features", "y", "--k", "2"]);
    }
}

/// Comments before the header are no header.
#[test]
fn comments_before_the_header_are_left_out() {
    let place = Place::new();
    let rows = |text: &str| {
        place.write("t.csv", text);
        place.ok(&["sql", "--table", "t=t.csv", "-f", "csv", "-c", "SELECT * FROM t"])
    };
    assert_eq!(rows("# Sales, May 2026\n# from the shop, all of it, in euro\na,b\n1,2\n3,4\n"), "a,b\n1,2\n3,4\n");
    assert_eq!(rows("#id,name\n1,x\n2,y\n"), "#id,name\n1,x\n2,y\n");
    assert_eq!(rows("#tag,lang\n#fun,en\n#sun,de\nother,fr\n"), "#tag,lang\n#fun,en\n#sun,de\nother,fr\n");
    place.write("t.csv", "#1,x\n#2,y\n3,z\n");
    let all =
        place.ok(&["sql", "--header", "no", "--table", "t=t.csv", "-f", "csv", "-c", "SELECT count(*) AS n FROM t"]);
    assert_eq!(all, "n\n3\n");
}

/// A header of few bytes on a pipe is no reason to read its rows otherwise than those of a file.
#[test]
fn a_pipe_is_read_like_a_file_however_short_its_header_is() {
    let place = Place::new();
    place.write("train.csv", "a,b\n1,2\n2,3\n10,20\n11,22\n");
    place.ok(&["fit", "train.csv", "--features", "a,b", "--k", "2", "--model", "m.json"]);
    for text in ["a;b\n1.234;2\n2.345;3\n1.234,5;2\n", "a;b\n1,5;2\n", "# c\na,b\n1,2\n"] {
        place.write("rows.csv", text);
        let mut piped = place.command(&["predict", "m.json"]);
        let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        piped.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let answer = piped.wait_with_output().unwrap().stdout;
        assert_eq!(String::from_utf8(answer).unwrap(), place.ok(&["predict", "m.json", "rows.csv"]), "{text}");
    }
}

/// A number whose whole part no double has stays text.
#[test]
fn decimals_keep_their_whole_part() {
    let place = Place::new();
    let text = "amount,large,e\n12345678901234567.89,12345678901234568.0,1.2345678901234567e18\n1.50,1.5,2.0\n";
    place.write("t.csv", text);
    let read = place.ok(&[
        "sql",
        "--table",
        "t=t.csv",
        "-f",
        "csv",
        "-c",
        "SELECT amount, arrow_typeof(large) AS l, arrow_typeof(e) AS e FROM t",
    ]);
    assert_eq!(read, "amount,l,e\n12345678901234567.89,Float64,Float64\n1.50,Float64,Float64\n");
}

/// Paths of JSON work in conditions, and `||` takes the value of a JSON operator.
#[test]
fn paths_and_concatenation_of_json_are_those_of_postgresql() {
    let place = Place::new();
    place.write("t.ndjson", "{\"id\":1,\"j\":{\"o\":{\"z\":1},\"l\":[5,6],\"s\":\"x\"}}\n");
    let read = |sql: &str| {
        place.ok(&["sql", "--table", "t=t.ndjson", "-f", "csv", "-c", &format!("SELECT {sql} AS v FROM t")])
    };
    for (sql, value) in [
        ("j #>> '{o,z}' = '1'", "true"),
        ("j #>> '{o,z}' IS NOT NULL", "true"),
        ("j #> '{o,z}' IS NULL", "false"),
        ("j #>> '{l,1}' IN ('6')", "true"),
        ("j ->> 's' || 'y' || 'z'", "xyz"),
        ("j ->> 's' || 'y' = 'xy'", "true"),
        ("j ->> 's' ~ '^x$'", "true"),
    ] {
        assert_eq!(read(sql), format!("v\n{value}\n"), "{sql}");
    }
    let error = place.fails(1, &["sql", "-c", "SELECT 'abc' SIMILAR TO 'a%'"]);
    assert!(error.contains("SIMILAR TO is not supported; write LIKE"), "{error}");
}
