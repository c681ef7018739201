//! The user's files: each command reads the same table from the same rows, however they are written.

use std::io::Write as _;
use std::process::{Command, Stdio};

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
