//! Output files named by the user: every such flag, on success, on failure, when killed, on a full disk, and with the input as
//! output.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, eventually};
use tercile::cli::output_flags;

use crate::common;

/// The previous content of the file.
const PRECIOUS: &str = "what took a year to gather\n";

/// The test of one flag. The arguments do not contain the flag itself.
struct Case {
    command: &'static str,
    flag: &'static str,
    /// A file name with a suitable extension.
    name: &'static str,
    ok: &'static [&'static str],
    /// True if stdout without the flag equals the file's content.
    same_as_stdout: bool,
    /// Arguments that fail after the output was opened.
    fails: &'static [&'static str],
    /// Arguments that run until killed, and whether they write while running rather than at the end.
    endless: Option<(&'static [&'static str], bool)>,
    /// Arguments that read the file `rows` or `rows.csv`, which is also the output.
    in_place: Option<(&'static str, &'static [&'static str])>,
    /// Arguments that write more than a megabyte, if the command can.
    large: &'static [&'static str],
}

const CASES: [Case; 9] = [
    Case {
        command: "sql",
        flag: "--output",
        name: "out.csv",
        ok: &["sql", "-f", "csv", "-c", "SELECT value FROM generate_series(1, 50000)"],
        same_as_stdout: true,
        fails: &["sql", "-c", "SELECT value, 1 / (value - 90000) AS x FROM generate_series(1, 100000)"],
        endless: Some((&["sql", "-c", "SELECT value FROM generate_series(1, 100000000000)"], true)),
        in_place: Some(("rows.csv", &["sql", "--table", "r=rows.csv", "-c", "SELECT * FROM r"])),
        large: &["sql", "-c", "SELECT value FROM generate_series(1, 1000000)"],
    },
    Case {
        command: "predict",
        flag: "--output",
        name: "out.csv",
        ok: &["predict", "price_rating", "rows.csv"],
        same_as_stdout: true,
        fails: &["predict", "price_rating", "bad.csv"],
        endless: Some((&["predict", "price_rating", "endless"], true)),
        in_place: Some(("rows.csv", &["predict", "price_rating", "rows.csv"])),
        large: &["predict", "price_rating", "rows.csv"],
    },
    Case {
        command: "generate",
        flag: "--output",
        name: "out.csv",
        ok: &["generate", "1000"],
        same_as_stdout: true,
        // Only the disk can make it fail.
        fails: &["generate", "none"],
        endless: Some((&["generate", "1000000000"], true)),
        in_place: None,
        large: &["generate", "10000"],
    },
    Case {
        command: "plot",
        flag: "--out",
        name: "out.svg",
        ok: &["plot", "price_rating"],
        same_as_stdout: true,
        fails: &["plot", "price_rating", "--axes", "nothing"],
        // It ends immediately.
        endless: None,
        in_place: None,
        large: &["plot", "price_rating"],
    },
    Case {
        command: "members",
        flag: "--output",
        name: "out.csv",
        ok: &["members", "latest", "-f", "csv"],
        same_as_stdout: true,
        fails: &["members", "latest", "--cluster", "9"],
        // They end immediately.
        endless: None,
        in_place: None,
        large: &["members", "latest", "-f", "csv"],
    },
    Case {
        command: "members diff",
        flag: "--output",
        name: "out.csv",
        ok: &["members", "diff", "latest", "1", "3", "-f", "csv"],
        same_as_stdout: true,
        fails: &["members", "diff", "latest", "1", "99"],
        endless: None,
        in_place: None,
        large: &["members", "diff", "latest", "1", "3", "-f", "csv"],
    },
    Case {
        command: "fit",
        flag: "--output",
        name: "out.json",
        ok: &["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "1"],
        same_as_stdout: false,
        fails: &["fit", "rows.csv", "--features", "nothing"],
        endless: Some((&["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "4000000000"], false)),
        in_place: Some(("rows", &["fit", "rows", "--features", "discounted_price,rating", "--n-init", "1"])),
        large: &["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "1"],
    },
    Case {
        command: "fit",
        flag: "--model",
        name: "out.json",
        ok: &["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "1"],
        same_as_stdout: false,
        fails: &["fit", "rows.csv", "--features", "nothing"],
        endless: Some((&["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "4000000000"], false)),
        in_place: Some(("rows", &["fit", "rows", "--features", "discounted_price,rating", "--n-init", "1"])),
        large: &["fit", "rows.csv", "--features", "discounted_price,rating", "--n-init", "1"],
    },
    Case {
        command: "suggest-k",
        flag: "--svg",
        name: "out.svg",
        ok: &["suggest-k", "rows.csv", "--features", "rating", "--max-k", "3", "--n-init", "1"],
        same_as_stdout: false,
        fails: &["suggest-k", "rows.csv", "--features", "nothing"],
        endless: Some((
            &["suggest-k", "rows.csv", "--features", "discounted_price,rating", "--n-init", "4000000000"],
            false,
        )),
        in_place: Some(("rows", &["suggest-k", "rows", "--features", "rating", "--max-k", "3", "--n-init", "1"])),
        large: &["suggest-k", "rows.csv", "--features", "rating", "--max-k", "3", "--n-init", "1"],
    },
];

/// A trained store and rows to read; its subdirectory `work` is empty.
fn place() -> Place {
    let place = Place::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-method-1");
    for file in common::files(&fixture) {
        place.write(&format!("store/{}", file.strip_prefix(&fixture).unwrap().display()), fs::read(&file).unwrap());
    }
    let rows: String = (0..2_000).map(|i| format!("{},{}\n", 100 + i % 977, 1 + i % 5)).collect();
    let rows = format!("discounted_price,rating\n{rows}");
    place.write("bad.csv", format!("{rows}oops,4\n"));
    place.write("rows.csv", &rows);
    place.write("rows", &rows);
    // A segmentation of entities, for the commands on members.
    let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
    for file in ["00_records.sql", "10_products.sql"] {
        place.write(&format!("of-entities/{file}"), fs::read(Path::new(sql).join(file)).unwrap());
    }
    let latest =
        "-- k: 2\n-- entity: id\n\nSELECT _partition * 1000000 + _offset AS id, discounted_price FROM products";
    place.write(
        "of-entities/30_latest.sql",
        latest.replace("_partition * 1000000 + _offset", "CAST(_partition AS BIGINT) * 1000000 + _offset"),
    );
    place.ok(&["train", "--sql", "of-entities"]);
    fs::create_dir(place.path("work")).unwrap();
    place
}

fn with<'a>(args: &[&'a str], flag: &'a str, file: &'a str) -> Vec<&'a str> {
    [args, &[flag, file]].concat()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn every_output_flag_of_the_command_line_is_exercised_here() {
    let mut defined: Vec<(String, String)> = output_flags().into_iter().map(|flag| (flag.command, flag.flag)).collect();
    let mut here: Vec<(String, String)> =
        CASES.iter().map(|case| (case.command.to_owned(), case.flag.to_owned())).collect();
    defined.sort();
    here.sort();
    assert_eq!(defined, here, "a flag that names a file to write needs a Case");
}

#[test]
fn a_success_writes_the_file_and_a_failure_leaves_it() {
    let place = place();
    for case in &CASES {
        let out = format!("work/{}", case.name);
        for existing in [false, true] {
            if existing {
                fs::write(place.path(&out), PRECIOUS).unwrap();
                fs::set_permissions(place.path(&out), fs::Permissions::from_mode(0o604)).unwrap();
            }
            let said = place.ok(&with(case.ok, case.flag, &out));
            let written = fs::read_to_string(place.path(&out)).unwrap();
            assert!(!written.is_empty() && !written.contains(PRECIOUS), "{}", case.command);
            let mode = fs::metadata(place.path(&out)).unwrap().permissions().mode() & 0o777;
            if case.same_as_stdout {
                assert_eq!(said, "");
                assert!(written == place.ok(case.ok), "{}: not what stdout gets", case.command);
            }
            assert!(!existing || mode == 0o604, "{}: {mode:o}", case.command);
        }
        fs::write(place.path(&out), PRECIOUS).unwrap();
        let ended = place.run(&with(case.fails, case.flag, &out));
        assert!(matches!(ended.code, Some(1 | 2)), "{}: {}", case.command, ended.stderr);
        assert_eq!(fs::read_to_string(place.path(&out)).unwrap(), PRECIOUS, "{}", case.command);
        assert_eq!(names(&place.path("work")), [case.name], "{}: nothing else is left", case.command);
        fs::remove_file(place.path(&out)).unwrap();
        let ended = place.run(&with(case.fails, case.flag, &out));
        assert!(matches!(ended.code, Some(1 | 2)), "{}: {}", case.command, ended.stderr);
        assert_eq!(names(&place.path("work")), Vec::<String>::new(), "{}: no half of a file", case.command);

        let error = place.fails(1, &with(case.ok, case.flag, "work/no/such/place.any"));
        assert!(error.contains("there is no directory work/no/such; make it first"), "{error}");
        let error = place.fails(1, &with(case.ok, case.flag, "work"));
        assert!(error.contains("cannot write work: it is a directory"), "{error}");
        let error = place.fails(2, &with(case.ok, case.flag, "work/x.xlsx"));
        assert!(error.contains("x.xlsx is a name for xlsx"), "{error}");
        assert_eq!(names(&place.path("work")), Vec::<String>::new(), "{}", case.command);
    }
}

#[test]
fn an_input_may_be_the_output() {
    let place = place();
    let rows = fs::read_to_string(place.path("rows.csv")).unwrap();
    for case in &CASES {
        let Some((file, args)) = case.in_place else { continue };
        let elsewhere = format!("work/{}", case.name);
        place.ok(&with(args, case.flag, &elsewhere));
        fs::write(place.path(file), &rows).unwrap();
        place.ok(&with(args, case.flag, file));
        let (inside, apart) =
            (fs::read_to_string(place.path(file)).unwrap(), fs::read_to_string(place.path(&elsewhere)).unwrap());
        // Times and the file name differ.
        if case.command == "fit" {
            let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["clusters"].clone();
            assert_eq!(json(&inside), json(&apart));
        } else {
            assert!(inside == apart, "{}: as with another output", case.command);
        }
        if case.command == "predict" {
            assert_eq!(inside.lines().count(), 2_001, "all rows are there");
        }
        fs::write(place.path(file), &rows).unwrap();
        fs::remove_file(place.path(&elsewhere)).unwrap();
    }
}

#[test]
fn digits_with_leading_zeros_survive_in_place() {
    let place = Place::new();
    let zip = "zip,n\n01234,1\n00501,2\n";
    place.write("s.csv", zip);
    place.ok(&["sql", "--table", "s=s.csv", "-f", "csv", "-o", "s.csv", "-c", "SELECT * FROM s"]);
    assert_eq!(fs::read_to_string(place.path("s.csv")).unwrap(), zip);
    // The first zero may be far down, in quotes, or after a minus; numbers stay numbers.
    let late: String = (0..30_000).map(|i| format!("{},{i},{},0.5\n", 10_000 + i, i * 2)).collect();
    place.write("late.tsv", format!("zip,id,m,x\n{late}\"00000\",7,-03,0.25\n").replace(',', "\t"));
    let types = "SELECT arrow_typeof(zip) AS a, arrow_typeof(id) AS b, arrow_typeof(m) AS c, arrow_typeof(x) AS d, \
                 count(*) AS n, min(zip) AS least, min(m) AS minus FROM t GROUP BY 1, 2, 3, 4";
    let said = place.ok(&["sql", "--table", "t=late.tsv", "-f", "csv", "-c", types]);
    assert!(said.lines().nth(1).unwrap().ends_with("Int64,Utf8,Float64,30001,00000,-03"), "{said}");
}

/// True if a process has a staged file open in a directory, with content if `written`.
fn stages(process: u32, dir: &Path, written: bool) -> bool {
    let staged = |entry: fs::DirEntry| {
        let to = fs::read_link(entry.path()).ok()?;
        let name = to.file_name()?.to_str()?;
        let staged = to.starts_with(dir) && (name.starts_with('#') || name.starts_with(".tercile-"));
        Some(staged && (!written || fs::metadata(entry.path()).ok()?.len() > 0))
    };
    let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    open.filter_map(staged).any(|found| found)
}

#[test]
fn a_signal_leaves_the_file() {
    let place = place();
    assert!(Command::new("mkfifo").arg(place.path("endless")).status().unwrap().success());
    let work = place.path("work").canonicalize().unwrap();
    for case in &CASES {
        let Some((args, writes)) = case.endless else { continue };
        let out = format!("work/{}", case.name);
        for (signal, code) in [("-INT", Some(130)), ("-TERM", Some(143)), ("-HUP", Some(129)), ("-KILL", None)] {
            fs::write(place.path(&out), PRECIOUS).unwrap();
            let mut running = place.start(&with(args, case.flag, &out));
            // An endless stream of rows.
            let pipe = (case.command == "predict").then(|| {
                let path = place.path("endless");
                std::thread::spawn(move || {
                    let Ok(mut pipe) = fs::File::options().write(true).open(path) else { return };
                    let _ = pipe.write_all(b"discounted_price,rating\n");
                    while pipe.write_all(b"100,4\n200,3\n300,5\n400,2\n".repeat(1000).as_slice()).is_ok() {}
                })
            });
            let process = running.child.id();
            eventually("the staged file", || stages(process, &work, writes));
            if cfg!(target_os = "linux") {
                assert_eq!(fs::read_to_string(place.path(&out)).unwrap(), PRECIOUS, "{} while it runs", case.command);
            }
            running.signal(signal);
            let ended = running.wait();
            assert!(code.is_none() || ended.code() == code, "{} {signal}: {ended:?}", case.command);
            assert_eq!(fs::read_to_string(place.path(&out)).unwrap(), PRECIOUS, "{} {signal}", case.command);
            assert_eq!(names(&work), [case.name], "{} {signal}: nothing else is left", case.command);
            if let Some(pipe) = pipe {
                pipe.join().unwrap();
            }
        }
        fs::remove_file(place.path(&out)).unwrap();
    }
}

#[test]
fn a_statement_that_takes_too_long_leaves_the_file() {
    let place = Place::new();
    place.write("keep.csv", PRECIOUS);
    let endless = "SELECT value FROM generate_series(1, 100000000000)";
    let error = place.fails(1, &["sql", "--timeout", "0.5", "-o", "keep.csv", "-c", endless]);
    assert!(error.contains("--timeout"), "{error}");
    // The previous statement is rolled back too: the file contains all results or none.
    let error = place.fails(1, &["sql", "-o", "keep.csv", "-c", "SELECT 1 AS a; SELECT nope"]);
    assert!(error.contains("there is no column nope"), "{error}");
    place.fails(1, &["sql", "-f", "parquet", "-o", "keep.parquet", "-c", "SELECT 1 AS a; SELECT 2 AS b"]);
    assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), PRECIOUS);
    assert_eq!(place.run(&["sql", "-o", "keep.csv", "-c", "CREATE VIEW v AS SELECT 1"]).code, Some(0));
    assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), PRECIOUS, "no rows, no file");
    assert_eq!(names(place.dir.path()), ["keep.csv"]);
}

#[test]
fn a_full_disk_leaves_the_file() {
    let place = place();
    let small = place.path("small");
    fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=1m", "none", small.to_str().unwrap()];
    if !Command::new("mount").args(mount).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no small disk can be mounted here");
        return;
    }
    for case in &CASES {
        let out = format!("small/{}", case.name);
        fs::write(place.path(&out), PRECIOUS).unwrap();
    }
    let all = names(&small);
    // Not even the smallest result fits, and special files can still be written.
    let ballast = small.join("ballast");
    assert!(fs::write(&ballast, vec![7; 2_000_000]).is_err());
    let failed: Vec<(&Case, common::Ended)> = CASES
        .iter()
        .map(|case| (case, place.run(&with(case.large, case.flag, &format!("small/{}", case.name)))))
        .collect();
    fs::remove_file(ballast).unwrap();
    let left = names(&small);
    let texts: Vec<String> = all.iter().map(|name| fs::read_to_string(small.join(name)).unwrap()).collect();
    let written = place.run(&["generate", "10", "--output", "small/out.csv"]);
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    for (case, ended) in failed {
        assert_eq!(ended.code, Some(1), "{}: {}", case.command, ended.stderr);
        let said =
            format!("cannot write small/{}: No space left on device (os error 28); nothing was changed", case.name);
        assert!(ended.stderr.contains(&said) && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    }
    assert_eq!(left, all, "nothing else is left");
    assert!(texts.iter().all(|text| text == PRECIOUS));
    assert_eq!(written.code, Some(0), "{}", written.stderr);
}

#[test]
fn links_are_followed_and_special_files_written_directly() {
    let place = Place::new();
    let expected = place.ok(&["generate", "3"]);
    fs::create_dir(place.path("real")).unwrap();
    place.write("real/file.csv", PRECIOUS);
    std::os::unix::fs::symlink("real/file.csv", place.path("link.csv")).unwrap();
    place.ok(&["generate", "3", "-o", "link.csv"]);
    assert!(fs::symlink_metadata(place.path("link.csv")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(place.path("real/file.csv")).unwrap(), expected);
    assert_eq!(place.ok(&["generate", "3", "-o", "/dev/null"]), "");
    for stdout in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        assert_eq!(place.ok(&["generate", "3", "-o", stdout]), expected, "{stdout}");
        // If it leads to a file, content written by others is kept.
        let script = format!("(echo before; $0 generate 3 -o {stdout}; echo after) > both.txt");
        let shell = ["-c", script.as_str(), env!("CARGO_BIN_EXE_tercile")];
        assert!(Command::new("sh").args(shell).current_dir(place.dir.path()).status().unwrap().success());
        assert_eq!(
            fs::read_to_string(place.path("both.txt")).unwrap(),
            format!("before\n{expected}after\n"),
            "{stdout}"
        );
    }
    let script = "$0 generate 3 -o >(cat > through.csv) && $0 sql -f csv -o >(cat > sql.csv) -c 'SELECT 1 AS a'";
    let bash =
        Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_tercile")]).current_dir(place.dir.path()).status();
    if bash.is_ok_and(|status| status.success()) {
        let read = |name: &str| fs::read_to_string(place.path(name)).unwrap_or_default();
        eventually("what went through process substitution", || {
            read("through.csv") == expected && read("sql.csv") == "a\n1\n"
        });
    }
    assert!(Command::new("mkfifo").arg(place.path("fifo")).status().unwrap().success());
    let fifo = place.path("fifo");
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        fs::File::open(fifo).unwrap().read_to_string(&mut text).map(|_| text)
    });
    place.ok(&["generate", "3", "-o", "fifo"]);
    assert_eq!(reader.join().unwrap().unwrap(), expected);
    let error = place.fails(1, &["generate", "3", "-o", "/dev/full"]);
    assert!(error.contains("cannot write /dev/full: No space left on device"), "{error}");
    let mut left = names(place.dir.path());
    left.retain(|name| !["through.csv", "sql.csv"].contains(&name.as_str()));
    assert_eq!(left, ["both.txt", "fifo", "link.csv", "real"]);
}

#[test]
fn an_ending_selects_the_format() {
    let place = place();
    let begins = |name: &str| fs::read(place.path(name)).unwrap()[..4].to_vec();
    let rows = ["-c", "SELECT 1 AS a, 'x' AS b"];
    for (name, start) in [
        ("t.csv", "a,b\n"),
        ("t.TSV", "a\tb\n"),
        ("t.json", "[{\"a"),
        ("t.ndjson", "{\"a\""),
        ("t.jsonl", "{\"a\""),
        ("t.md", "| a "),
        ("t.parquet", "PAR1"),
        ("t.feather", "ARRO"),
        ("t.txt", "┌"),
        ("t", "┌"),
    ] {
        place.ok(&[&["sql"], &rows[..], &["-o", name]].concat());
        assert!(begins(name).starts_with(&start.as_bytes()[..start.len().min(4)]), "{name}: {:?}", begins(name));
    }
    place.ok(&[&["sql"], &rows[..], &["-o", "t.arrow"]].concat());
    assert_eq!(begins("t.arrow"), [0xff; 4]);
    for (name, start) in [("g.ndjson", "{\"pr"), ("g.parquet", "PAR1"), ("g.csv", "prod"), ("g", "prod")] {
        place.ok(&["generate", "3", "-o", name]);
        assert_eq!(begins(name), start.as_bytes(), "{name}");
    }
    for (name, start) in [("p.ndjson", "{\"di"), ("p.parquet", "PAR1"), ("p.feather", "ARRO"), ("p", "disc")] {
        place.ok(&["predict", "price_rating", "rows.csv", "-o", name]);
        assert_eq!(begins(name), start.as_bytes(), "{name}");
    }
    let back = place.ok(&["predict", "price_rating", "p.feather", "--format", "csv"]);
    assert!(back == place.ok(&["predict", "price_rating", "rows.csv"]), "there and back");

    place.write("keep.csv", PRECIOUS);
    for (args, said) in [
        (
            &["sql", "-f", "parquet", "-o", "keep.csv", "-c", "SELECT 1"][..],
            "keep.csv is a name for csv, and the format is parquet",
        ),
        (
            &["predict", "price_rating", "rows.csv", "--format", "ndjson", "-o", "keep.csv"],
            "csv, and the format is ndjson",
        ),
        (&["generate", "3", "--format", "parquet", "-o", "keep.csv"], "csv, and the format is parquet"),
        (&["generate", "3", "--format", "csv", "-o", "keep.csv.gz"], "gzip, and the format is csv"),
        (&["generate", "3", "-o", "keep.md"], "markdown, which is not written here"),
        (&["fit", "rows.csv", "--features", "rating", "--output", "keep.md"], "markdown, "),
        (&["fit", "rows.csv", "--features", "rating", "--model", "keep.csv"], "csv, and json is written"),
        (&["plot", "price_rating", "-o", "keep.png"], "png, and svg is written"),
        (&["suggest-k", "rows.csv", "--features", "rating", "--svg", "keep.csv"], "csv, and svg is written"),
    ] {
        let error = place.fails(2, args);
        assert!(error.contains(said), "{error}");
    }
    // In a script it is an error of the statement.
    let error = place.fails(1, &["sql", "-f", "tsv", "-c", "SELECT 1;\n.output keep.csv"]);
    assert!(error.contains("line 2") && error.contains("csv, and the format is tsv"), "{error}");
    let error = place.fails(1, &["sql", "-c", ".output keep.csv\n.format tsv"]);
    assert!(error.contains("line 2") && error.contains("csv, and the format is tsv"), "{error}");
    assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), PRECIOUS);
    // Synonyms of the formats.
    place.ok(&["sql", "-f", "ndjson", "-o", "n.json", "-c", "SELECT 1 AS a"]);
    place.ok(&["sql", "-c", ".output a.csv\nSELECT 1 AS a;\n.output b.ndjson\nSELECT 2 AS b;\n.output\nSELECT 3 AS c"]);
    assert_eq!(fs::read_to_string(place.path("a.csv")).unwrap(), "a\n1\n");
    assert_eq!(fs::read_to_string(place.path("b.ndjson")).unwrap(), "{\"b\":2}\n");
}

#[test]
fn init_writes_all_its_files_or_none() {
    let place = Place::new();
    place.write("rows.csv", "a,b\n1,2\n");
    place.write("sql/20_slices.sql", PRECIOUS);
    let error = place.fails(1, &["init", "rows.csv"]);
    assert!(error.contains("sql/20_slices.sql is there already"), "{error}");
    assert_eq!(names(&place.path("sql")), ["20_slices.sql"]);
    assert_eq!(fs::read_to_string(place.path("sql/20_slices.sql")).unwrap(), PRECIOUS);
    place.ok(&["init", "rows.csv", "--sql", "other"]);
    assert_eq!(names(&place.path("other")).len(), 3);
}

/// The real shell in a pseudo-terminal created by `script`: the file contains all successful statements immediately.
#[test]
fn a_shell_keeps_what_succeeded() {
    if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no `script` to make a terminal with");
        return;
    }
    let place = Place::new();
    place.write("work/out.csv", PRECIOUS);
    let shell = format!("{} sql --store none", env!("CARGO_BIN_EXE_tercile"));
    let mut command = Command::new("script");
    command.args(["-qefc", &shell, "typescript"]).current_dir(place.dir.path());
    command.env("XDG_STATE_HOME", place.path("state")).env("TERM", "xterm").env("NO_COLOR", "1");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    let screen = || String::from_utf8_lossy(&fs::read(place.path("typescript")).unwrap_or_default()).into_owned();
    let out = || fs::read_to_string(place.path("work/out.csv")).unwrap();
    let mut enter = |text: &str| {
        let before = screen().matches("tercile> ").count();
        keys.write_all(text.as_bytes()).unwrap();
        keys.write_all(b"\r").unwrap();
        // The prompt is redrawn while a line is edited.
        eventually(&format!("the prompt after {text}"), || screen()[..].matches("tercile> ").count() > before);
        std::thread::sleep(std::time::Duration::from_millis(300));
    };
    eventually("the prompt", || screen().contains("tercile> "));
    enter(".output work/out.csv");
    assert_eq!(out(), PRECIOUS, "nothing was written yet");
    enter("SELECT nope;");
    assert_eq!(out(), PRECIOUS);
    enter("SELECT 1 AS a;");
    eventually("the first result", || out() == "a\n1\n");
    // This statement fails after 100,000 rows.
    enter("SELECT value, 1 / (value - 150000) AS x FROM generate_series(1, 200000);");
    eventually("its error", || screen().to_lowercase().contains("divide by zero"));
    assert_eq!(out(), "a\n1\n");
    enter("SELECT 2 AS b;");
    eventually("the second result", || out() == "a\n1\nb\n2\n");
    assert_eq!(names(&place.path("work")), ["out.csv"]);
    enter(".output");
    enter("SELECT 'shown' AS c;");
    eventually("a result on the screen", || screen().contains("│ shown │"));
    keys.write_all(b".quit\r").unwrap();
    drop(keys);
    child.wait().unwrap();
    assert_eq!(out(), "a\n1\nb\n2\n");
    assert_eq!(names(&place.path("work")), ["out.csv"]);
}

#[test]
fn copy_writes_the_whole_file_or_leaves_it() {
    let place = Place::new();
    place.write("rows.csv", "a,b\n1,2\n3,4\n");
    place.write("keep.csv", PRECIOUS);
    fs::set_permissions(place.path("keep.csv"), fs::Permissions::from_mode(0o640)).unwrap();
    let copy = |query: &str, to: &str| format!("COPY ({query}) TO '{to}'");
    for query in ["SELECT nope", "SELECT 1 / (value - 90000) AS x FROM generate_series(1, 100000)"] {
        place.fails(1, &["sql", "-c", &copy(query, "keep.csv")]);
        assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), PRECIOUS, "{query}");
    }
    let endless = copy("SELECT value FROM generate_series(1, 100000000000)", "keep.csv");
    place.fails(1, &["sql", "--timeout", "0.5", "-c", &endless]);
    let mut running = place.start(&["sql", "-c", &endless]);
    eventually("a hidden file", || names(place.dir.path()).iter().any(|name| name.starts_with(".tercile-")));
    running.signal("-INT");
    running.wait();
    fs::remove_file(place.path("stderr-sql")).unwrap();
    assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), PRECIOUS);
    let error = place.fails(1, &["sql", "-c", &copy("SELECT 1", "no/where.csv")]);
    assert!(error.contains("there is no directory no; make it first"), "{error}");
    let error = place
        .fails(1, &["sql", "-c", "COPY (SELECT 1) TO '/dev/null' STORED AS CSV OPTIONS ('single_file_output' 'true')"]);
    assert!(error.contains("cannot COPY to /dev/null: it is no regular file"), "{error}");
    assert_eq!(names(place.dir.path()), ["keep.csv", "rows.csv"], "nothing else is left");

    place.ok(&["sql", "--table", "t=rows.csv", "-c", &copy("SELECT * FROM t", "rows.csv")]);
    assert_eq!(fs::read_to_string(place.path("rows.csv")).unwrap(), "a,b\n1,2\n3,4\n");
    place.ok(&["sql", "-c", &copy("SELECT 7 AS a", "keep.csv")]);
    assert_eq!(fs::read_to_string(place.path("keep.csv")).unwrap(), "a\n7\n");
    assert_eq!(fs::metadata(place.path("keep.csv")).unwrap().permissions().mode() & 0o777, 0o640);
    place.ok(&["sql", "-c", &copy("SELECT 7 AS a", "new.parquet")]);
    assert!(fs::read(place.path("new.parquet")).unwrap().starts_with(b"PAR1"));
    let url = format!("file://{}", place.path("url.csv").display());
    place.ok(&["sql", "-c", &copy("SELECT 7 AS a", &url)]);
    assert_eq!(fs::read_to_string(place.path("url.csv")).unwrap(), "a\n7\n");
    assert_eq!(names(place.dir.path()), ["keep.csv", "new.parquet", "rows.csv", "url.csv"]);
}
