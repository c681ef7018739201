//! `tercile sql`: sources of statements, output, errors and cancellation.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ended, Place, eventually};

use crate::common;

/// A store with the built-in sample.
fn sample() -> Place {
    let place = Place::new();
    let up = place.up(&[]);
    assert_eq!(up.interrupt().code, Some(0));
    place
}

fn with_stdin(place: &Place, args: &[&str], text: &str) -> Ended {
    let mut command = place.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn statements_come_from_files_a_flag_and_stdin() {
    let place = Place::new();
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT 1 AS a, 'x,y' AS b"]), "a,b\n1,\"x,y\"\n");
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT * FROM price_rating"]).lines().count(), 1);
    place.write("two.sql", "\u{feff}SELECT 1 AS a;\n\n-- and; more\n.format tsv\nSELECT 2 AS b, ';' AS c;\n");
    assert_eq!(place.ok(&["sql", "-f", "csv", "two.sql"]), "a\n1\nb\tc\n2\t;\n");
    place.write("sub/reads.sql", ".read 'two.sql'\nSELECT 3 AS d");
    assert_eq!(place.ok(&["sql", "-f", "csv", "sub/reads.sql"]), "a\n1\nb\tc\n2\t;\nd\n3\n");
    let ended = with_stdin(&place, &["sql", "-f", "csv"], "SELECT 4 AS e;\n.quit\nSELECT 5;");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "e\n4\n", ""));
    // As typed into the shell.
    let ended = with_stdin(&place, &["sql", "-f", "csv"], "SELECT 4 AS e;\nexit\nSELECT 5;");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "e\n4\n", ""));
    // A query that fails prints no header, and one without rows does.
    let failing = "SELECT CAST(a AS INT) AS b FROM (VALUES ('x')) AS t(a) WHERE length(a) > 0";
    let ended = place.run(&["sql", "-f", "csv", "-c", failing]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{}", ended.stderr);
    assert_eq!(place.ok(&["sql", "-f", "tsv", "-c", "SELECT 1 AS a, 2 AS b WHERE false"]), "a\tb\n");
    let hash = "SELECT sha256('a') AS h, '{\"k\": \"b\"}' ->> 'k' AS k, 'b' BETWEEN '{\"k\": \"a\"}' ->> 'k' AND 'c' AS within";
    let hash = place.ok(&["sql", "-f", "csv", "-c", hash]);
    assert_eq!(hash, "h,k,within\nca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb,b,true\n");
    assert_eq!(with_stdin(&place, &["sql", "two.sql", "-"], "SELECT 4 AS e").stdout.lines().last(), Some("4"));
    assert_eq!(with_stdin(&place, &["sql"], "").code, Some(0));
    let ddl = "CREATE TABLE t AS VALUES (1), (2); CREATE VIEW v AS SELECT sum(column1) AS s FROM t; SELECT s FROM v";
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", ddl]), "s\n3\n");
    place.write("loop.sql", ".read loop.sql");
    assert!(place.fails(1, &["sql", "loop.sql"]).contains("loop.sql: files read each other more than 16 deep"));
}

#[test]
fn every_format_holds_the_same_rows() {
    let place = sample();
    let query = "SELECT _offset, product_name, rating FROM products WHERE _offset < 3 ORDER BY _offset";
    let get = |format: &str| place.ok(&["sql", "--format", format, "-c", query]);
    let mut csv = csv::Reader::from_reader(get("csv").into_bytes().leak() as &[u8]);
    let rows: Vec<csv::StringRecord> = csv.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3);
    let tsv = get("tsv");
    let json: serde_json::Value = serde_json::from_str(&get("json")).unwrap();
    let ndjson = get("ndjson");
    let (markdown, table) = (get("markdown"), get("table"));
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(json[i]["product_name"], row[1]);
        assert_eq!(json[i]["rating"].as_f64().unwrap(), row[2].parse::<f64>().unwrap());
        let line: serde_json::Value = serde_json::from_str(ndjson.lines().nth(i).unwrap()).unwrap();
        assert_eq!(line, json[i]);
        assert!(tsv.lines().nth(i + 1).unwrap().ends_with(&format!("\t{}", &row[2])));
        assert!(markdown.lines().nth(i + 2).unwrap().ends_with(&format!("| {} |", &row[2])), "{markdown}");
        assert!(table.lines().nth(i + 3).unwrap().contains(&row[2]), "{table}");
    }
    for format in ["parquet", "arrow"] {
        let file = format!("rows.{format}");
        assert_eq!(place.ok(&["sql", "-f", format, "-o", &file, "-c", query]), "");
        let bytes = std::fs::read(place.path(&file)).unwrap();
        let written = place.command(&["sql", "-f", format, "-c", query]).output().unwrap().stdout;
        assert_eq!(bytes, written, "the same to a file and to a pipe");
    }
    let back = "SELECT _offset, product_name, rating FROM back";
    assert_eq!(place.ok(&["sql", "-f", "csv", "--table", "back=rows.parquet", "-c", back]), get("csv"));
    // An empty result still has columns.
    let none = |format: &str| place.ok(&["sql", "-f", format, "-c", "SELECT rating FROM products WHERE false"]);
    assert_eq!([none("csv"), none("json"), none("ndjson")], ["rating\n", "[]\n", ""]);
    // To a pipe, all rows are written.
    assert_eq!(place.ok(&["sql", "-c", "SELECT * FROM products"]).lines().count(), 1465 + 4);
    assert_eq!(place.ok(&["sql", "--max-rows", "5", "-c", "SELECT * FROM products"]).lines().count(), 5 + 4);
    let error = place.fails(1, &["sql", "-f", "arrow", "-o", "x", "-c", "SELECT 1; SELECT 2"]);
    assert!(error.contains("arrow holds one result"), "{error}");
}

#[test]
fn odd_values_survive() {
    let place = Place::new();
    let query = "SELECT '₹ 1,099 電話 🦀' AS text, CAST(NULL AS INT) AS none, -0.0 AS zero, 1e308 AS huge,
                 CAST('NaN' AS DOUBLE) AS nan, 9223372036854775807 AS big, E'a\\tb\\n' AS control, [1, NULL] AS list";
    let csv = place.ok(&["sql", "-f", "csv", "-c", query]);
    assert!(csv.contains("₹ 1,099 電話 🦀\",,-0.0,1e308,NaN,9223372036854775807"), "{csv}");
    let json: serde_json::Value = serde_json::from_str(&place.ok(&["sql", "-f", "ndjson", "-c", query])).unwrap();
    assert_eq!(json["text"], "₹ 1,099 電話 🦀");
    assert_eq!(json["none"], serde_json::Value::Null);
    assert_eq!(json["nan"], serde_json::Value::Null);
    assert_eq!(json["big"], 9_223_372_036_854_775_807_i64);
    assert_eq!(json["zero"].as_f64().unwrap().to_bits(), (-0.0_f64).to_bits());
    let table = place.ok(&["sql", "-c", query]);
    assert_eq!(table.lines().count(), 5, "a value does not break its line: {table}");
}

#[test]
fn any_file_is_a_table() {
    let place = Place::new();
    place.write("dir 1/a*b.csv", "id,n\nx,1\ny,2.5\n");
    place.write("a.tsv", "id\tn\nx\t\"1\n2\"\n");
    place.write("a.ndjson", "{\"id\":\"x\",\"deep\":{\"n\":1}}\n{\"id\":\"y\"}\n");
    let rows = |table: &str, sql: &str| place.ok(&["sql", "-f", "csv", "--table", table, "-c", sql]);
    assert_eq!(rows("c=dir 1/a*b.csv", "SELECT sum(n) AS n FROM c"), "n\n3.5\n");
    assert_eq!(rows("T=a.tsv", "SELECT length(n) AS n FROM \"T\""), "n\n3\n");
    assert_eq!(rows("j=a.ndjson", "SELECT deep FROM j"), "deep\n\"{\"\"n\"\":1}\"\n\"\"\n");
    let wrong = |table: &str| place.fails(1, &["sql", "--table", table, "-c", "SELECT 1"]);
    assert!(wrong("a=nowhere.csv").contains("--table a: cannot read nowhere.csv: No such file"));
    assert!(wrong("products=a.tsv").contains("there is a table or view products already"));
    place.write("a.txt", "");
    assert!(wrong("a=a.txt").contains("a.txt: expected a header line with the columns' names, the file is empty"));
    assert_eq!(place.run(&["sql", "--table", "a", "-c", "SELECT 1"]).code, Some(2));
}

#[test]
fn a_store_is_found_by_any_path() {
    let place = sample();
    std::fs::create_dir(place.path("sub")).unwrap();
    std::fs::rename(place.path("store"), place.path("a 100% #store?")).unwrap();
    std::os::unix::fs::symlink(place.path("a 100% #store?"), place.path("link")).unwrap();
    let absolute = place.path("sub/../a 100% #store?");
    for path in ["a 100% #store?", "./sub/../a 100% #store?", "sub/../link", absolute.to_str().unwrap()] {
        let count = place.ok(&["sql", "--store", path, "-f", "csv", "-c", "SELECT count(rating) > 0 FROM records"]);
        assert_eq!(count.lines().last(), Some("true"), "{path}");
    }
}

#[test]
fn parameters_are_values() {
    let place = Place::new();
    let bound = |value: &str| {
        let param = format!("x={value}");
        place.ok(&["sql", "-f", "csv", "--param", &param, "-c", "SELECT $x AS x, arrow_typeof($x) AS type"])
    };
    assert_eq!(bound("1"), "x,type\n1,Int64\n");
    assert_eq!(bound("1.5"), "x,type\n1.5,Float64\n");
    assert_eq!(bound("'; DROP TABLE records --"), "x,type\n'; DROP TABLE records --,Utf8\n");
    place.write("p.sql", ".param x=7\nSELECT\n  $x + $y AS sum");
    assert_eq!(place.ok(&["sql", "-f", "csv", "--param", "y=1", "p.sql"]), "sum\n8\n");
    let error = place.fails(1, &["sql", "p.sql"]);
    assert!(error.contains("p.sql, line 3, column 8: the parameter $y is not given; add --param y=VALUE"), "{error}");
    assert_eq!(place.run(&["sql", "--param", "x", "-c", "SELECT 1"]).code, Some(2));
}

#[test]
fn faults_name_file_line_and_column_and_show_the_line() {
    let place = Place::new();
    std::fs::create_dir(place.path("store")).unwrap();
    let deep = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("SELECT 1{}", " + 1".repeat(2_000));
    let cases = [
        (
            "SELECT 1;\nSELECT product_id,\n  ratin FROM products",
            "line 3, column 3: there is no column ratin; did you mean rating?",
        ),
        ("SELECT * FROM product", "line 1, column 15: there is no table or view product; did you mean products?"),
        ("SELECT\n  roundd(1)", "line 2, column 3: there is no function roundd; did you mean round?"),
        ("SELEC 1", "line 1, column 1: Expected: an SQL statement, found: SELEC"),
        ("SELECT 1 +", "line 1, column 11: Expected: an expression, found: EOF"),
        ("SELECT 'a", "line 1, column 8: Unterminated string literal"),
        ("SELECT sum(product_id) FROM products", "line 1, column 8: there is no sum(Utf8)"),
        ("SELECT '₹', nope FROM products", "line 1, column 13: there is no column nope"),
        ("SELECT CAST('a' AS INT)", "Cannot cast string 'a' to value of Int32 type"),
        (".formt csv", "line 1, column 1: there is no command .formt; did you mean .format?"),
        (".format xml", "there is no format xml; there are table, csv"),
        (".read", ".read takes FILE"),
        (".schema product", "there is no table or view product; did you mean products?"),
        (&deep, "line 1, column 56: the expression is nested too deep: 48 levels are allowed"),
        (&long, "the expression is too long: 400 operators in a row are allowed"),
    ];
    for (text, expected) in cases {
        place.write("bad.sql", text);
        let began = Instant::now();
        let ended = place.run(&["sql", "bad.sql"]);
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.starts_with("error: bad.sql") || !expected.starts_with("line"), "{}", ended.stderr);
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
        if expected.starts_with("line") {
            let caret = ended.stderr.lines().last().unwrap();
            assert!(caret.trim_end().ends_with('^') && ended.stderr.lines().count() == 3, "{}", ended.stderr);
        }
        assert!(!ended.stderr.contains("bug"), "{}", ended.stderr);
    }
    assert!(place.fails(1, &["sql", "nowhere.sql"]).starts_with("error: cannot read nowhere.sql: No such file"));
    // In a JSON log it is one line.
    let ended = place.run(&["sql", "--log-format", "json", "-c", "SELEC 1"]);
    let json: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert!(json["message"].as_str().unwrap().contains("SELEC 1\n"));
}

#[test]
fn a_view_that_does_not_plan_fails_what_reads_it_and_nothing_else() {
    let place = Place::new();
    place.write("sql/00_records.sql", "CREATE TABLE records (a TEXT)");
    place.write("sql/10_things.sql", "-- Things.\n\nSELECT b\nFROM records");
    place.write("sql/20_more.sql", "SELECT * FROM things");
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT count(*) AS n FROM records"]), "n\n0\n");
    for view in ["things", "more"] {
        let error = place.fails(1, &["sql", "-c", &format!("SELECT * FROM {view}")]);
        assert!(error.contains("sql/10_things.sql, line 3, column 8: there is no column b; there are"), "{error}");
    }
    std::fs::create_dir(place.path("store")).unwrap();
    let error = place.fails(1, &["train"]);
    assert!(error.contains("sql/10_things.sql, line 3, column 8: there is no column b"), "{error}");
}

#[test]
fn what_an_edited_file_would_change_is_shown() {
    let place = sample();
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/10_products.sql")).unwrap();
    let edited = shipped
        .replace("FROM numbers\n", "FROM numbers WHERE _offset > 9\n")
        .replace("THEN actual_price END AS actual_price", "THEN -actual_price END AS asked");
    place.write("new/10_products.sql", edited);
    let shown = place.ok(&["sql", "--diff", "new/10_products.sql"]);
    assert!(shown.contains("products: new/10_products.sql against built-in 10_products.sql"), "{shown}");
    assert!(shown.contains("rows: 1465 before, 1455 after; 10 lost, 0 new"), "{shown}");
    assert!(shown.contains("new column: asked (Float64)\nlost column: actual_price (Float64)"), "{shown}");
    assert!(shown.contains("│ price_rating │ 1465 → 1455 │"), "{shown}");
    // A saved file is compared with the built-in file.
    std::fs::create_dir(place.path("sql")).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, place.path("sql").join(path.file_name().unwrap())).unwrap();
    }
    place.write("sql/32_discount.sql", "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, rating FROM slices");
    let shown = place.ok(&["sql", "--diff", "sql/32_discount.sql"]);
    assert!(shown.contains("discount: sql/32_discount.sql against built-in 32_discount.sql"), "{shown}");
    assert!(shown.contains("features: discount_percentage → rating"), "{shown}");
    assert!(place.fails(1, &["sql", "--diff", "new/nope.sql"]).contains("cannot read new/nope.sql"));
    place.write("new/33_mine.sql", "SELECT * FROM products");
    assert!(place.fails(1, &["sql", "--diff", "new/33_mine.sql"]).contains("there is no view mine yet"));
    place.write("new/10_products.sql", "SELECT nope FROM records");
    assert!(place.fails(1, &["sql", "--diff", "new/10_products.sql"]).contains("line 1, column 8: there is no column"));
}

#[test]
fn the_segments_of_an_edited_segmentation_are_shown_before_they_exist() {
    let place = sample();
    let shipped = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/30_price_rating.sql")).unwrap();
    let files = || common::files(&place.path("store"));
    let stored = files();
    let of = |edited: &str| {
        place.write("new/30_price_rating.sql", edited);
        place.ok(&["sql", "--diff", "new/30_price_rating.sql"])
    };
    // A comment changes nothing.
    let same = of(&format!("{shipped}\n-- the end\n"));
    assert!(same.contains("\n0 of 1,4"), "{same}");
    assert!(same.contains("records in another cluster (0.0 %)") && !same.contains("k: "), "{same}");
    // Other words, for the same clusters.
    let words = of(&shipped.replacen("Low Price", "Cheap", 1));
    assert!(words.contains("labels changed: discounted_price (en)"), "{words}");
    assert!(words.contains("Low Price, Low Rating → Cheap, Low Rating"), "{words}");
    // Another k: the clusters and their numbers are new.
    let more = of(&shipped.replacen("-- k: 3", "-- k: 4", 1));
    assert!(more.contains("k: 3 → 4") && more.contains("none → "), "{more}");
    assert!(more.contains("by cluster before and after; the numbers are new:"), "{more}");
    // Dear products alone.
    let dear = of(&shipped.replacen("FROM slices", "FROM slices WHERE discounted_price > 1000", 1));
    assert!(dear.contains("in another cluster (") && !dear.contains("(0.0 %)"), "{dear}");
    // What cannot be clustered has its reason.
    let none = of(&shipped.replacen("FROM slices", "FROM slices WHERE _offset = 3", 1));
    assert!(none.contains("no model after: 3 clusters need at least 3 different rows"), "{none}");
    let report = of(&shipped
        .replacen("-- k: 3\n", "", 1)
        .lines()
        .filter(|line| !line.starts_with("-- label."))
        .collect::<Vec<_>>()
        .join("\n"));
    assert!(report.contains("price_rating is no segmentation any more"), "{report}");
    assert_eq!(files(), stored, "nothing is stored");
}

/// Joins a million rows five ways; never finishes and must be cancelled.
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000) a, generate_series(1, 1000) b,
  generate_series(1, 1000) c, generate_series(1, 1000) d, generate_series(1, 1000) e";

#[test]
fn what_has_no_end_is_ended() {
    let place = Place::new();
    for query in [ENDLESS, "SELECT count(*) FROM generate_series(1, 9000000000)"] {
        let began = Instant::now();
        let error = place.fails(1, &["sql", "--timeout", "0.5", "-c", query]);
        assert!(error.contains("stopped after 500ms, which is what --timeout allows"), "{error}");
        let running = place.start(&["sql", "-c", query]);
        std::thread::sleep(Duration::from_millis(700));
        assert_eq!(running.interrupt().code, Some(130));
        assert!(began.elapsed() < Duration::from_secs(10), "{query}");
    }
    let distinct = "SELECT count(*) FROM (SELECT DISTINCT value FROM generate_series(1, 2000000))";
    let error = place.fails(1, &["sql", "--memory-limit", "2MB", "-c", distinct]);
    assert!(error.contains("the query needs more memory than --memory-limit allows"), "{error}");
    // A sort spills instead.
    let sort = "SELECT count(*) AS n FROM (SELECT value, row_number() OVER (ORDER BY value % 7, value) AS place
                FROM generate_series(1, 1000000))";
    assert_eq!(place.ok(&["sql", "-f", "csv", "--memory-limit", "20MB", "-c", sort]), "n\n1000000\n");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    for format in ["table", "csv", "json", "ndjson", "markdown", "arrow", "parquet"] {
        let query = "SELECT * FROM generate_series(1, 30000000)";
        let mut command = place.command(&["sql", "-f", format, "-c", query]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 4];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{format}");
    }
}

/// The real shell in a pseudo-terminal created by `script`.
#[test]
fn the_shell_lives_through_what_people_type() {
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no `script` to make a terminal with");
        return;
    }
    let place = Place::new();
    place.write("my rows.csv", "n\n1\n2\n");
    let mut command = Command::new("script");
    // `script` may fail at the end for its own reasons, so the shell prints the exit code to the screen. The trap keeps Ctrl-C
    // from ending the outer shell.
    let shell = format!("trap : INT; {} sql --store none; echo \"left with $?\"", env!("CARGO_BIN_EXE_tercile"));
    command
        .args(["-qefc", &shell, "typescript"])
        .current_dir(place.dir.path())
        .env("XDG_STATE_HOME", place.path("state"));
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let screen = || String::from_utf8_lossy(&std::fs::read(place.path("typescript")).unwrap_or_default()).into_owned();
    let mut seen = 0;
    let mut type_and_see = |text: &str, expected: &str| {
        keys.write_all(text.as_bytes()).unwrap();
        keys.flush().unwrap();
        eventually(&format!("{expected:?} after {text:?} in {}", screen()), || {
            let now = screen();
            let found = now.get(seen..).and_then(|new| new.find(expected));
            seen += found.map_or(0, |at| at + expected.len());
            found.is_some()
        });
    };
    type_and_see("", "tercile> ");
    for (text, expected) in [
        ("SELECT 40\r+ 2 AS answer;\r", "│     42 │"),
        ("SELECT nope;\r", "there is no column nope"),
        (".tables\r", "price_rating"),
        (".form\t ndjson\r", "ndjson"),
        ("SELECT 'it''s' AS x;\r", "{\"x\":\"it's\"}"),
        ("half a thought\u{3}", ""),
        ("SELECT\r", "...> "),
        ("1\u{3}", ""),
        // Lines that arrive at once, as from a terminal without bracketed paste.
        ("SELECT 11 AS a;\rSELECT 12 AS b;\rSELECT 13 AS c;\r", "{\"a\":11}"),
        ("SELECT 7 AS seven;\r", "{\"seven\":7}"),
        (".add 'my rows.csv'\r", "my_rows"),
        ("SELECT sum(n) AS n FROM my_rows;\r", "{\"n\":3}"),
        ("\\d my_rows\r", "Int64"),
        ("help\r", ".add FILE [NAME]"),
    ] {
        type_and_see(text, expected);
        if text.contains("AS c;") {
            type_and_see("", "{\"b\":12}");
            type_and_see("", "{\"c\":13}");
        }
        if text != "SELECT\r" {
            type_and_see("", "tercile> ");
        }
    }
    type_and_see(&format!("{};\r", ENDLESS.replace('\n', " ")), "SELECT");
    std::thread::sleep(Duration::from_millis(3000));
    type_and_see("", "rows");
    type_and_see("\u{3}", "cancelled");
    type_and_see("", "tercile> ");
    type_and_see("SELECT 'alive' AS y;\r", "{\"y\":\"alive\"}");
    type_and_see("exit\r", "left with 0");
    drop(keys);
    child.wait().unwrap();
    let history = std::fs::read_to_string(place.path("state/tercile/sql_history")).unwrap();
    assert!(history.contains("SELECT 40\\n+ 2 AS answer;"), "{history}");
}

#[test]
fn segments_inside_sql_are_those_of_the_models() {
    let place = sample();
    let number = |sql: &str| place.ok(&["sql", "-f", "csv", "-c", sql]).lines().nth(1).unwrap().to_owned();
    for (name, features) in [
        ("price_rating", "discounted_price, rating"),
        ("rating_count", "rating, rating_count"),
        ("discount", "discount_percentage"),
    ] {
        for slice in 1..=3 {
            let model = place.ok(&["model", "show", &format!("{name}@{slice}"), "--format", "json"]);
            let model: serde_json::Value = serde_json::from_str(&model).unwrap();
            let known: Vec<String> = features.split(", ").map(|feature| format!("{feature} IS NOT NULL")).collect();
            let counted =
                number(&format!("SELECT count(*) FROM {name} WHERE _slice <= {slice} AND {}", known.join(" AND ")));
            let mut sum = 0;
            for cluster in model["clusters"].as_array().unwrap() {
                // The same number of rows as in training, except rows that lack a feature, and the same name.
                let (of, words) = (&cluster["cluster"], cluster["description"].as_str().unwrap());
                let sql = format!(
                    "SELECT count(*) AS n FROM {name} WHERE _slice <= {slice}
                     AND segment('{name}@{slice}', {features}) = {of} AND segment_name('{name}@{slice}', {features}) = '{words}'"
                );
                let n: u64 = number(&sql).parse().unwrap();
                sum += n;
                let size = cluster["size"].as_u64().unwrap();
                let imputed: u64 = model["imputed"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
                assert!(n <= size && size <= n + imputed, "{sql}: {n} of {size}, {imputed} imputed");
            }
            assert_eq!(sum.to_string(), counted, "{name}@{slice}");
            // The plain SQL gives the same result for every row.
            let plain = place.ok(&["model", "show", &format!("{name}@{slice}"), "--format", "sql"]);
            let sql = format!(
                "CREATE VIEW input AS SELECT * FROM {name};
                 SELECT count(*) AS n FROM ({plain}) WHERE (cluster IS DISTINCT FROM segment('{name}@{slice}', {features}))
                   OR (description IS DISTINCT FROM segment_name('{name}@{slice}', {features}))"
            );
            assert_eq!(number(&sql), "0", "{name}@{slice}");
        }
    }
    // A row with a missing feature has no segment, nor has a value with equal distances to all clusters.
    for nothing in [
        "segment('discount', NULL)",
        "segment_name('discount', NULL)",
        "segment('price_rating', 300, NULL)",
        "segment('discount', 1e300)",
    ] {
        assert_eq!(number(&format!("SELECT {nothing} IS NULL AS x")), "true", "{nothing}");
    }
    for (name, rows) in
        [("discount", "(NULL), (1e300), (20.0)"), ("price_rating", "(300, NULL), (NULL, 4.0), (300, 4.0)")]
    {
        let columns = if name == "discount" { "discount_percentage" } else { "discounted_price, rating" };
        let plain = place.ok(&["model", "show", name, "--format", "sql"]);
        let sql = format!(
            "CREATE VIEW input AS SELECT * FROM (VALUES {rows}) AS t({columns});
             SELECT count(*) AS n FROM ({plain}) WHERE cluster IS NULL AND description IS NULL"
        );
        assert_eq!(number(&sql), "2", "{name}");
    }
    assert!(
        place.ok(&["model", "show", "discount"]).starts_with("discount of slice 3, version 3\ncluster  description")
    );
    let wrong = |sql: &str| place.fails(1, &["sql", "-c", sql]);
    assert!(
        wrong("SELECT segment('discount', 1, 2)")
            .contains("discount takes 1 features (discount_percentage), and was given 2")
    );
    assert!(wrong("SELECT segment('nope', 1)").contains("there is no model of nope; run tercile train"));
    assert!(wrong("SELECT segment('../models', 1)").contains("there is no segmentation ../models"));
    assert!(wrong("SELECT segment('discount@4', 1)").contains("@1, @2 or @3"));
    assert!(wrong("SELECT segment('discount', 'x')").contains("takes features that are numbers, not Utf8"));
    assert!(wrong("SELECT segment('discount')").contains("takes a model's name and its features"));
    assert!(wrong("SELECT segment(product_id, rating) FROM products").contains("the same for all rows"));
    assert!(wrong("SELECT segment('discount', CAST('NaN' AS DOUBLE))").contains("no finite number"));
    assert!(place.fails(1, &["model", "show", "nope"]).contains("there is no model of nope"));
}

/// A statement at the nesting limit runs and does not overflow the stack.
#[test]
fn what_is_not_refused_as_too_deep_runs() {
    let place = Place::new();
    let ctes: String = (1..190).map(|i| format!(", a{i} AS (SELECT x + 1 + 1 + 1 + 1 AS x FROM a{})", i - 1)).collect();
    let cases = [
        (format!("SELECT 1{} AS x", " + 1".repeat(400)), "401"),
        (format!("SELECT {}true AS x", "NOT ".repeat(400)), "true"),
        (format!("SELECT 1{} AS x", "::INT".repeat(400)), "1"),
        (format!("SELECT {}1{} AS x", "abs(".repeat(48), ")".repeat(48)), "1"),
        (format!("SELECT count(*) AS x FROM (SELECT 1{})", " UNION ALL SELECT 1".repeat(190)), "191"),
        (format!("WITH a0 AS (SELECT 1 AS x){ctes} SELECT x FROM a189"), "757"),
    ];
    for (text, expected) in cases {
        place.write("deep.sql", &text);
        assert_eq!(place.ok(&["sql", "-f", "csv", "deep.sql"]), format!("x\n{expected}\n"), "{text:.60}");
    }
}
