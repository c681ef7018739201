//! The command line alone: help, exit codes, error messages, generated rows, SQL and doctor.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::Place;

use crate::common;

#[test]
fn without_arguments_it_helps() {
    let ended = Place::new().run(&[]);
    assert_eq!(ended.code, Some(0));
    for command in [
        "up",
        "produce",
        "ingest",
        "sql",
        "train",
        "fit",
        "suggest-k",
        "models",
        "verify",
        "serve",
        "broker",
        "generate",
        "openapi",
        "doctor",
    ] {
        assert!(ended.stdout.contains(&format!("\n  {command} ")), "{command}: {}", ended.stdout);
    }
}

#[test]
fn bad_usage_is_2() {
    let place = Place::new();
    for args in [
        &["frobnicate"][..],
        &["up", "--nope"],
        &["sql", "x.sql", "-c", "SELECT 1"],
        &["ingest"],
        &["generate", "x"],
        &["up", "--topic", "a/b"],
    ] {
        assert_eq!(place.run(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn the_sample_is_what_generate_makes() {
    let place = Place::new();
    let shipped = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/data/products.csv")).unwrap();
    assert!(place.run(&["generate", "1465"]).stdout.as_bytes() == shipped, "data/products.csv is not generate 1465");
    assert_ne!(place.ok(&["generate", "5", "--seed", "1"]), place.ok(&["generate", "5", "--seed", "2"]));
    place.ok(&["generate", "3", "--output", "rows.csv"]);
    assert_eq!(std::fs::read_to_string(place.path("rows.csv")).unwrap(), place.ok(&["generate", "3"]));
}

#[test]
fn all_formats_of_generate_hold_the_same_rows() {
    let place = Place::new();
    let csv = place.ok(&["generate", "50"]);
    let ndjson = place.ok(&["generate", "50", "--format", "ndjson"]);
    place.ok(&["generate", "50", "--format", "parquet", "-o", "rows.parquet"]);
    assert!(std::fs::read(place.path("rows.parquet")).unwrap().starts_with(b"PAR1"));
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().unwrap().clone();
    let mut rows = 0;
    for (record, line) in reader.records().zip(ndjson.lines()) {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        for (name, value) in header.iter().zip(record.unwrap().iter()) {
            assert_eq!(json[name], value);
        }
        rows += 1;
    }
    assert_eq!(rows, 50);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let mut child =
        place.command(&["generate", "100000"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_job_that_is_cut_off_says_by_what() {
    let place = Place::new();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut running = place.start(&["generate", "1000000000", "-o", "/dev/null"]);
        std::thread::sleep(Duration::from_millis(300));
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code));
    }
}

#[test]
fn a_file_with_a_fault_is_named_with_its_line() {
    let place = Place::new();
    let cases = [
        ("empty.csv", &b""[..], "empty.csv: expected a header line"),
        ("none.csv", b"B07,4.2,3\nB08,1,2\n", "none.csv, line 1: expected a header line"),
        ("few.csv", b"product_id,rating\na,1\nb\n", "few.csv, line 3: expected 2 fields as in the header, found 1"),
        ("zero.csv", b"product_id,rating\na,\x00\x00\n", "zero.csv: it has bytes that are zero, so it is no text"),
        (
            "other.csv",
            b"alpha,beta\n1,2\n",
            "other.csv, line 1: expected a header line with some of the fields product_id",
        ),
        ("bare.csv", b"product_id,rating\n", "bare.csv: expected rows after the header, found none"),
        ("open.csv", b"product_id,rating\na,\"4\nb,3\n", "open.csv, line 2: the quote that opens here is never closed"),
        ("array.json", b"[{\"rating\":1},2]", "array.json, line 1: expected a JSON object, found something else"),
        (
            "broken.ndjson",
            b"{\"rating\":1}\n{\"rating\":}\n",
            "broken.ndjson, line 2: expected a JSON object, found an error",
        ),
    ];
    for (name, content, expected) in cases {
        place.write(name, content);
        let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", name]);
        assert!(error.contains(expected), "{error}");
    }
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", "nowhere.csv"]);
    assert!(error.contains("cannot read nowhere.csv"), "{error}");
}

#[test]
fn an_unreachable_broker_is_one_line_in_time() {
    let place = Place::new();
    place.write("a.csv", "product_id\nx\n");
    let servers = ["--bootstrap-servers", "127.0.0.1:1", "--timeout", "1"];
    for command in [&["ingest"][..], &["up", "--bind", "127.0.0.1:0"], &["produce", "a.csv"]] {
        let start = Instant::now();
        let ended = place.run(&[command, &servers].concat());
        assert_eq!(ended.code, Some(1), "{command:?}: {}", ended.stderr);
        assert!(start.elapsed() < Duration::from_secs(8), "{command:?}");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{}", ended.stderr);
        assert!(lines[0].contains("no answer from a broker at 127.0.0.1:1 within 1s"), "{}", lines[0]);
    }
}

#[test]
fn what_stands_in_the_way_is_named() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for command in ["up", "serve"] {
        let error = place.fails(1, &[command, "--bind", &address]);
        assert!(error.contains(&address) && error.contains("--bind"), "{error}");
    }
    place.write("file", "");
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--store", "file/store"]);
    assert!(error.contains("cannot make the store's directory file/store"), "{error}");
    let error = place.fails(1, &["train", "--sql", "nowhere"]);
    assert!(error.contains("cannot read the SQL files in nowhere"), "{error}");
}

#[test]
fn a_store_that_is_named_exists() {
    let place = Place::new();
    for command in [
        &["sql", "-c", "SELECT count(*) FROM products"] as &[&str],
        &["sql", "-c", "SELECT count(*) FROM records"],
        &["predict", "price_rating"],
        &["models"],
        &["models", "price_rating"],
        &["models", "diff", "price_rating@1@1", "price_rating@1@2"],
        &["model", "show", "price_rating"],
        &["members", "customers"],
        &["verify", "price_rating"],
        &["plot", "price_rating"],
        &["files"],
    ] {
        let error = place.fails(1, &[command, &["--store", "typo"]].concat());
        assert!(error.contains("there is no store at typo; check --store"), "{command:?}: {error}");
        assert!(!place.path("typo").exists(), "{command:?}");
    }
    assert_eq!(place.ok(&["sql", "--store", "typo", "-f", "csv", "-c", "SELECT 1 AS a"]), "a\n1\n");
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT count(*) AS n FROM products"]), "n\n0\n");
    assert_eq!(place.ok(&["files"]), "");
}

#[test]
fn an_up_that_fails_leaves_no_store() {
    let place = Place::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for failing in [
        &["--data", "nowhere.csv", "--bind", "127.0.0.1:0"] as &[&str],
        &["--bind", &address],
        &["--bootstrap-servers", "127.0.0.1:1", "--bind", "127.0.0.1:0"],
    ] {
        place.fails(1, &[&["up"], failing].concat());
        assert!(!place.path("store").exists(), "{failing:?}");
    }
    place.write("store/mine.txt", "");
    place.fails(1, &["up", "--data", "nowhere.csv", "--bind", "127.0.0.1:0"]);
    assert!(place.path("store/mine.txt").exists());
}

#[test]
fn models_of_other_sql_files_are_named() {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let serve = place.serve(&[]);
    assert!(!serve.stderr().contains("warning"), "{}", serve.stderr());
    drop(serve);
    for file in ["00_records.sql", "10_products.sql", "20_slices.sql"] {
        let shipped = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(file);
        place.write(&format!("other/{file}"), std::fs::read(shipped).unwrap());
    }
    let columns = "_partition, _offset, _timestamp, _slice, actual_price";
    place.write("other/33_prices.sql", format!("-- k: 3\n\nSELECT {columns} FROM slices"));
    let serve = place.serve(&["--sql", "other"]);
    let said = serve.stderr();
    assert!(
        said.contains("the models of discount, price_rating, rating_count in store are not served")
            && said.contains("the SQL files in other declare prices")
            && said.contains("tercile train --sql other"),
        "{said}"
    );
}

#[test]
fn commands_are_found_by_what_people_type() {
    let place = Place::new();
    assert!(place.ok(&["help", "predict"]).contains("--missing"));
    assert!(place.ok(&["help", "models", "rollback"]).contains("rollback"));
    assert!(place.ok(&["help"]).contains("suggest-k"));
    let error = place.fails(1, &["sql", "SELECT 1"]);
    assert!(error.contains("to run SQL text, write tercile sql -c 'SELECT 1'"), "{error}");
    let error = place.fails(1, &["sql", "select"]);
    assert!(error.contains("write tercile sql -c 'SELECT …'"), "{error}");
    place.write("my rows.parquet", "");
    for file in ["my rows.parquet", "nowhere.csv"] {
        let error = place.fails(1, &["sql", file]);
        assert!(error.contains("has rows and no SQL; to query it, run tercile sql --table "), "{error}");
    }
    assert!(place.fails(1, &["sql", "my rows.parquet"]).contains("--table my_rows='my rows.parquet' -c"));
    for wrong in ["localhost", "5000", "localhost:99999"] {
        let error = place.fails(2, &["serve", "--bind", wrong]);
        assert!(error.contains("--bind <ADDRESS>") && error.contains("expected a"), "{error}");
    }
}

#[test]
fn training_on_nothing_says_so() {
    let place = Place::new();
    let error = place.fails(1, &["train", "--store", "typo"]);
    assert!(error.contains("there is no store at typo"), "{error}");
    assert!(!place.path("typo").exists());
    std::fs::create_dir(place.path("store")).unwrap();
    let ended = place.run(&["train"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no new model: price_rating of slice 1: no rows to train on"), "{}", ended.stderr);
}

#[test]
fn the_doctor_names_each_check_and_what_to_do() {
    let place = Place::new();
    let ended = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert_eq!(ended.code, Some(1));
    let lines: Vec<Vec<&str>> = ended.stdout.lines().skip(1).map(|l| l.split_whitespace().take(2).collect()).collect();
    let expected = [
        ["ok", "setting"],
        ["ok", "broker"],
        ["MEND", "store"],
        ["MEND", "timestamps"],
        ["ok", "sql"],
        ["ok", "port"],
        ["MEND", "models"],
    ];
    assert_eq!(lines, expected, "{}", ended.stdout);
    assert!(!place.path("store").exists(), "a check makes nothing");
    let ended = place.run(&["doctor", "--bootstrap-servers", "127.0.0.1:1", "--timeout", "1", "--sql", "nowhere"]);
    assert!(ended.stdout.contains("MEND  broker"), "{}", ended.stdout);
    assert!(ended.stdout.contains("MEND  sql"), "{}", ended.stdout);
}

#[test]
fn the_openapi_document_is_the_committed_one() {
    let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json")).unwrap();
    let printed = Place::new().ok(&["openapi"]);
    assert!(printed == committed, "openapi/openapi.json is old: cargo run -- openapi > openapi/openapi.json");
}

#[test]
fn settings_come_from_the_environment_too() {
    let place = Place::new();
    let output = place.command(&["generate", "1"]).env("TERCILE_SEED", "7").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), place.ok(&["generate", "1", "--seed", "7"]));
    let output = place.command(&["train"]).env("TERCILE_LOG_FORMAT", "json").output().unwrap();
    for line in String::from_utf8(output.stderr).unwrap().lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(json["message"].is_string() && json["level"].is_string(), "{line}");
    }
}

#[test]
fn produce_reads_stdin_and_refuses_what_the_embedded_broker_cannot_hold() {
    let place = Place::new();
    let mut broker = place.start(&["broker", "--topic", "things"]);
    let address = broker.line_with("");
    let to = ["--bootstrap-servers", &address, "--topic"];
    let mut child = place
        .command(&[&["produce", "-"][..], &to, &["things"]].concat())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{\"a\":1}\n{\"a\":2}\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("sent 2 rows"));

    let error = place.fails(1, &[&["produce", "-"][..], &to, &["others"]].concat());
    assert!(error.contains("expected a header line") || error.contains("cannot make the topic others"), "{error}");
    place.write("a.ndjson", "{}\n");
    let error = place.fails(1, &[&["produce", "a.ndjson"][..], &to, &["others"]].concat());
    assert!(error.contains("cannot make the topic others") && error.contains("makes no others"), "{error}");
    // Just below the broker's limit, but above it with the protocol overhead.
    place.write("large.ndjson", format!("{{}}\n{{\"a\":\"{}\"}}\n", "x".repeat((5 << 20) - 40)));
    let error = place.fails(1, &[&["produce", "large.ndjson"][..], &to, &["things"]].concat());
    assert!(error.contains("line 2") && error.contains("embedded broker"), "{error}");
    let ended = broker.interrupt();
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains("5 MiB"), "{}", ended.stderr);
}

#[test]
fn a_store_url_is_read_strictly() {
    let place = Place::new();
    for (store, says) in [
        ("s3:/bucket/x", "two slashes"),
        ("file:/dir", "two slashes"),
        ("s3://bucket/a b%20c#d", "%23"),
        ("s3://bucket/shop?x=1", "%3F"),
        ("file:///tmp/lo#c", "%23"),
        ("s3://bucket/../x", "\"..\""),
        ("http://bucket/x", "not known"),
    ] {
        for command in [&["sql", "-c", "SELECT 1"][..], &["doctor"], &["train"]] {
            let ended = place.run(&[command, &["--store", store]].concat());
            assert_eq!(ended.code, Some(2), "{store}: {}", ended.stderr);
            assert!(ended.stderr.contains(says) && !ended.stderr.contains("panicked"), "{store}: {}", ended.stderr);
        }
    }
    // A directory is accepted in any notation, and its name may contain characters that are reserved in URLs.
    let dir = place.path("a b#c");
    std::fs::create_dir(&dir).unwrap();
    let url = format!("file://{}", dir.to_str().unwrap().replace(' ', "%20").replace('#', "%23"));
    let ended = place.run(&["sql", "--store", &url, "-c", "SELECT count(*) AS n FROM records", "-f", "csv"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "n\n0\n"), "{}", ended.stderr);
    std::fs::remove_dir(&dir).unwrap();
    let error = place.fails(1, &["sql", "--store", &url, "-c", "SELECT count(*) AS n FROM records"]);
    assert!(error.contains("there is no store at") && error.contains("a b#c"), "{error}");
}

/// SECURITY.md explains the advisories about quick-xml for exactly those versions that are built, as long as they are affected.
#[test]
fn known_advisories_are_explained_for_the_versions_of_the_lock_file() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let (lock, security) = (read("Cargo.lock"), read("SECURITY.md"));
    let locked = lock.split("name = \"quick-xml\"\nversion = \"0.").skip(1);
    let minor = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u32>().unwrap();
    let mut affected: Vec<u32> = locked.map(minor).filter(|minor| *minor < 41).collect();
    let rows = security.lines().filter_map(|line| line.split_once("| quick-xml 0."));
    let mut explained: Vec<u32> = rows.map(|(_, row)| minor(row)).collect();
    affected.sort_unstable();
    explained.sort_unstable();
    assert_eq!(explained, affected);
    // The explanation of those in the HTTP framework.
    assert!(!read("openapi/openapi.json").contains("/xml\""), "no body of the API is XML");
}

#[test]
fn kafka_settings_cannot_load_code_without_consent() {
    let place = Place::new();
    std::fs::write(place.path("client.properties"), "plugin.library.paths=/tmp/evil.so\n").unwrap();
    let produce = |more: &[&str]| {
        let base = ["produce", "-", "--bootstrap-servers", "127.0.0.1:1", "--timeout", "1"];
        place.run(&[&base[..], more].concat())
    };
    for more in [
        &["-X", "plugin.library.paths=/tmp/evil.so"][..],
        &["-X", "ssl.engine.location=/tmp/evil.so"],
        &["-X", "ssl.providers=evil"],
        &["-X", "sasl.kerberos.kinit.cmd=touch pwned"],
        &["--kafka-config", "client.properties"],
    ] {
        let ended = produce(more);
        assert_eq!(ended.code, Some(1), "{more:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--allow-plugins") && !ended.stderr.contains("evil.so"), "{}", ended.stderr);
    }
    let allowed = produce(&["-X", "ssl.providers=default", "--allow-plugins"]);
    assert!(!allowed.stderr.contains("--allow-plugins"), "{}", allowed.stderr);
}

#[test]
fn init_writes_files_that_load_whatever_the_fields_are_called() {
    let place = Place::new();
    let rows = "{\"a\\n-- k: 3\": 1, \"\\u001b[2Jb\": 2, \"\\u202egpj\": 3, \"price\": 4}\n".repeat(5);
    std::fs::write(place.path("hostile.ndjson"), rows).unwrap();
    let ended = place.run(&["init", "hostile.ndjson", "--sql", "written"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!ended.stdout.contains(['\u{1b}', '\u{202e}']), "{:?}", ended.stdout);
    assert_eq!(ended.stdout.matches("stays in _extra").count(), 3, "{}", ended.stdout);
    let names = place.ok(&["sql", "--sql", "written", "-f", "csv", "-c", "SELECT price FROM hostile LIMIT 1"]);
    assert_eq!(names, "price\n");
}

/// The command of docs/store.md for DuckDB, run by DuckDB itself, while small files are replaced by large ones and expire.
#[test]
fn duckdb_counts_each_record_once_while_files_are_compacted() {
    let Some(duckdb) = std::env::var_os("TERCILE_DUCKDB").map(std::path::PathBuf::from) else {
        eprintln!("skipped: TERCILE_DUCKDB names no duckdb program");
        return;
    };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/store.md")).unwrap();
    let block = page.split("<!-- ci: duckdb -->\n```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let place = Place::new();
    std::os::unix::fs::symlink(root.join("docs"), place.path("docs")).unwrap();
    let number = |command: &str| -> i64 {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", &command.replacen("duckdb ", "\"$DUCKDB\" -csv ", 1)]).env("DUCKDB", &duckdb);
        let output = shell.current_dir(place.dir.path()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let number = said.lines().last().and_then(|line| line.parse().ok());
        number.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)))
    };
    let exact = || number(block);
    let plain = || number("duckdb -c \"SELECT count(*) FROM 'store/records/*/*/*.parquet'\"");

    let mut broker = place.start(&["broker", "--topic", "things", "--partitions", "2"]);
    let address = broker.line_with("");
    let to = ["--bootstrap-servers", &address, "--topic", "things"];
    let mut stored = 0;
    for round in 0..3 {
        let rows: String = (0..400).map(|i| format!("{{\"product_id\":\"{round}-{i}\"}}\n")).collect();
        place.write("rows.ndjson", rows);
        place.ok(&[&["produce", "rows.ndjson"][..], &to].concat());
        place.ok(&[&["ingest", "--until-end", "--batch-rows", "20"][..], &to].concat());
        stored += 400;
        assert_eq!((exact(), place.number("SELECT count(*) FROM records")), (stored, stored));
        // Compaction replaces small files by large ones, and larger ones in the next round.
        let mut compact = place.start(&["compact"]);
        while compact.child.try_wait().unwrap().is_none() {
            assert_eq!(exact(), stored, "while files are compacted");
        }
        assert_eq!(exact(), stored);
        assert!(plain() > stored, "the small files are still there");
    }
    std::thread::sleep(Duration::from_millis(1100));
    place.ok(&["compact", "--keep-for", "1s"]);
    let kept = place.number("SELECT count(*) FROM records");
    assert_eq!(exact(), kept);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!((exact(), plain()), (kept, kept));
    assert_eq!(broker.interrupt().code, Some(0));
}
