//! Statements and trainings that never yield end at their deadline and at signals, together with their temporary files.
//!
//! A join without an equality computes for hours within one poll, so no timer and no signal handler of its runtime runs.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, eventually, files, within};

use crate::common;

/// Commands that read SQL files or run SQL, and the kind of test for each. `None`: the command only plans the views.
const COMMANDS: [(&str, Option<&str>); 12] = [
    ("sql", Some("statements")),
    ("train", Some("trainings")),
    ("verify", Some("trainings")),
    ("drift", Some("trainings")),
    ("up", Some("servers")),
    ("serve", Some("servers")),
    ("ingest", None),
    ("doctor", None),
    ("predict", None),
    ("enrich", None),
    ("reprocess", None),
    ("init", None),
];

/// Statements with a steady stream of rows, with late rows, without rows, with a sort, and with growing state.
const ENDLESS: [&str; 6] = [
    "SELECT count(*) FROM range(100000) a JOIN range(1000000) b ON a.value < b.value",
    "SELECT count(*) FROM range(100000) a JOIN range(1000000) b ON a.value * b.value = -1",
    "SELECT sum(a.value * b.value % 7) FROM range(10000000) a CROSS JOIN range(10000000) b",
    "SELECT count(*) FROM generate_series(1, 1000000000000) a WHERE value % 2 = 0",
    "SELECT a.value FROM range(100000) a JOIN range(1000000) b ON a.value * b.value = -1 ORDER BY a.value + b.value",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
];

/// Maximum time from a deadline or signal to the end of the process. Other tests use the same processors.
const PROMPTLY: Duration = Duration::from_secs(2);

/// A store with records and models.
fn with_store() -> Place {
    let place = Place::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-method-1"), &place.path("store"));
    place
}

fn copy(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&path, target).unwrap();
    }
}

/// SQL files with a segmentation that computes forever.
fn with_endless_view(place: &Place) {
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql"), &place.path("sql"));
    for shipped in ["30_price_rating", "31_rating_count", "32_discount"] {
        std::fs::remove_file(place.path(&format!("sql/{shipped}.sql"))).unwrap();
    }
    place.write(
        "sql/30_price_rating.sql",
        "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, CAST(b.value AS DOUBLE) AS discounted_price, rating
         FROM slices CROSS JOIN range(100000) a JOIN range(1000000) b ON a.value * b.value = -1",
    );
}

#[test]
fn every_command_that_takes_sql_files_is_tried_here() {
    let place = Place::new();
    let help = place.ok(&["--help"]);
    let commands = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let named = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut found: Vec<&str> = named.filter_map(|line| line.split_whitespace().next()).collect();
    found.retain(|command| *command != "help" && place.ok(&[command, "--help"]).contains("--sql <"));
    for command in found {
        assert!(COMMANDS.iter().any(|(known, _)| *known == command), "{command} is in no test of cancellation");
    }
}

#[test]
fn a_statement_that_never_yields_ends_at_its_deadline() {
    let place = Place::new();
    for query in ENDLESS {
        let began = Instant::now();
        let error = place.fails(1, &["sql", "--timeout", "1", "-c", query]);
        assert!(error.contains("line 1, column 1: stopped after 1s, which is what --timeout allows"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1) + PROMPTLY, "{query}: {:?}", began.elapsed());
    }
    // In a file of statements, the rows of the first statement are printed.
    place.write("two.sql", format!("SELECT 1 AS one;\n{};", ENDLESS[1]));
    let ended = place.run(&["--log-format", "json", "sql", "-f", "csv", "--timeout", "1", "two.sql"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), "one\n1\n"));
    let line: serde_json::Value = serde_json::from_str(ended.stderr.trim()).unwrap();
    assert_eq!(line["level"], "ERROR");
    assert!(line["message"].as_str().unwrap().starts_with("two.sql, line 2, column 1: stopped after 1s"), "{line}");
}

#[test]
fn a_statement_that_never_yields_ends_at_a_signal() {
    let place = Place::new();
    for query in ENDLESS {
        for (signal, code, name) in [("-INT", 130, "SIGINT"), ("-TERM", 143, "SIGTERM"), ("-HUP", 129, "SIGHUP")] {
            let mut running = place.start(&["sql", "-c", query]);
            std::thread::sleep(Duration::from_millis(500));
            let began = Instant::now();
            running.signal(signal);
            assert_eq!(running.wait().code(), Some(code), "{query}");
            assert!(began.elapsed() < PROMPTLY, "{query}: {:?}", began.elapsed());
            assert_eq!(running.stderr(), format!("error: stopped by {name}\n"), "{query}");
        }
    }
}

#[test]
fn a_statement_that_is_cut_off_leaves_no_files() {
    let mut place = Place::new();
    std::fs::create_dir(place.path("temporary")).unwrap();
    place.settings.push(("TMPDIR".to_owned(), place.path("temporary").display().to_string()));
    place.write("keep.csv", "what,was\nthere,before\n");
    // A sort that spills, below a join that never ends.
    let spills = "SELECT count(*) FROM (SELECT value FROM range(4000000) ORDER BY value % 7, value) a
                  JOIN range(1000000) b ON a.value * b.value = -1";
    let args = ["sql", "--memory-limit", "30MB", "-f", "csv", "-c", spills];
    for end in ["-INT", "-TERM"] {
        let mut running = place.start(&args);
        within(Duration::from_secs(60), "a spill file", || !files(&place.path("temporary")).is_empty());
        running.signal(end);
        running.wait();
        assert_eq!(files(&place.path("temporary")), Vec::<std::path::PathBuf>::new());
        assert_eq!(std::fs::read_dir(place.path("temporary")).unwrap().count(), 0);
    }
}

#[test]
fn a_training_that_never_yields_ends_at_its_deadline_and_at_signals() {
    let place = with_store();
    with_endless_view(&place);
    let before = files(&place.path("store/models"));
    let began = Instant::now();
    let error = place.fails(1, &["train", "--timeout", "1"]);
    assert_eq!(error, "error: the training was stopped after 1s, which is what --timeout allows");
    assert!(began.elapsed() < Duration::from_secs(1) + PROMPTLY, "{:?}", began.elapsed());
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut running = place.start(&["train"]);
        std::thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        running.signal(signal);
        assert_eq!(running.wait().code(), Some(code));
        assert!(began.elapsed() < PROMPTLY, "{:?}", began.elapsed());
    }
    // The training lock is free, and nothing was written.
    let left: Vec<_> =
        files(&place.path("store/models")).into_iter().filter(|path| !path.ends_with("train.lock")).collect();
    assert_eq!(left, before);
    assert_eq!(files(&place.path("store/tmp")), Vec::<std::path::PathBuf>::new());

    // The model has the hash of other SQL; with the hash of these files, verify trains again.
    let hash = place.fails(1, &["verify", "price_rating"]);
    let hash = hash.split("hash to ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let path = place.path("store/models/price_rating/3.json");
    let mut model: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    model["receipt"]["sql_hash"] = hash.into();
    std::fs::write(&path, model.to_string()).unwrap();
    let began = Instant::now();
    let error = place.fails(1, &["verify", "--timeout", "1", "price_rating"]);
    assert!(error.contains("the verification was stopped after 1s, which is what --timeout allows"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1) + PROMPTLY, "{:?}", began.elapsed());
    // The thirds are compared by the view, too; the model of slice 2 gets a baseline.
    let path = place.path("store/models/price_rating/2.json");
    let mut model: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let feature = |name: &str| serde_json::json!({"name": name, "values": [], "counts": [model["rows"]], "missing": 0});
    let sizes: Vec<_> = model["clusters"].as_array().unwrap().iter().map(|cluster| cluster["size"].clone()).collect();
    model["baseline"] = serde_json::json!({
        "rows": model["rows"], "features": [feature("discounted_price"), feature("rating")], "clusters": sizes,
        "distances": [[], [], []], "unlike": 0,
    });
    std::fs::write(&path, model.to_string()).unwrap();
    let began = Instant::now();
    let error = place.fails(1, &["drift", "--of", "thirds", "--timeout", "1", "price_rating"]);
    assert!(error.contains("the comparison was stopped after 1s, which is what --timeout allows"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(1) + PROMPTLY, "{:?}", began.elapsed());
    let mut running = place.start(&["verify", "price_rating"]);
    std::thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    running.signal("-TERM");
    assert_eq!(running.wait().code(), Some(143));
    assert!(began.elapsed() < PROMPTLY, "{:?}", began.elapsed());
}

/// Number of child processes of a process.
fn children(process: u32) -> usize {
    let output =
        Command::new("ps").args(["--no-headers", "-o", "pid", "--ppid", &process.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().count()
}

#[test]
fn servers_serve_and_stop_while_a_training_never_yields() {
    let place = with_store();
    with_endless_view(&place);
    let row = r#"[{"discounted_price": 300, "rating": 4.5}]"#;

    let mut serve = place.serve(&["--train-timeout", "2"]);
    let started = serve.post("/api/train", "");
    assert_eq!(started.status, 202);
    let job = started.location.unwrap();
    eventually("the training's process", || children(serve.child.id()) == 1);
    assert_eq!(serve.post("/api/cluster_products_by_price_rating", row).status, 200);
    eventually("the end of the training", || serve.get(&job).json()["state"] == "failed");
    let told = serve.get(&job).json()["error"].as_str().unwrap().to_owned();
    assert_eq!(told, "the training was stopped after 2s, which is what --train-timeout allows");
    eventually("the end of its process", || children(serve.child.id()) == 0);
    // A running training does not delay the shutdown of the server.
    serve.post("/api/train", "");
    eventually("the training's process", || children(serve.child.id()) == 1);
    let worker = Command::new("pgrep").args(["-P", &serve.child.id().to_string()]).output().unwrap();
    let worker = String::from_utf8(worker.stdout).unwrap().trim().to_owned();
    let began = Instant::now();
    serve.signal("-TERM");
    assert_eq!(serve.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPTLY + Duration::from_secs(1), "{:?}", began.elapsed());
    eventually("the end of the training", || !Path::new("/proc").join(&worker).exists());

    // Models of an earlier run serve while `up` tries to train, and its shutdown is not delayed either.
    let mut up = place.start(&["up", "--bind", "127.0.0.1:0", "--train-timeout", "1"]);
    up.said("the first training failed: the training was stopped after 1s, which is what --train-timeout allows; it is tried again in 1 s, and older models serve");
    eventually("another attempt", || up.stderr().contains("it is tried again in 2 s"));
    let began = Instant::now();
    up.signal("-TERM");
    assert_eq!(up.wait().code(), Some(0));
    assert!(began.elapsed() < PROMPTLY + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
fn a_training_ends_with_the_server_that_was_killed() {
    let place = with_store();
    with_endless_view(&place);
    let mut serve = place.serve(&[]);
    serve.post("/api/train", "");
    eventually("the training's process", || children(serve.child.id()) == 1);
    let worker = Command::new("pgrep").args(["-P", &serve.child.id().to_string()]).output().unwrap();
    let worker = String::from_utf8(worker.stdout).unwrap().trim().to_owned();
    serve.signal("-KILL");
    serve.wait();
    eventually("the end of the training", || !Path::new("/proc").join(&worker).exists());
}

/// A shell in a pseudo-terminal created by `script`.
struct Shell {
    place: Place,
    child: std::process::Child,
    keys: Option<std::process::ChildStdin>,
    seen: usize,
}

impl Shell {
    /// `None` if `script` is not installed.
    fn start(args: &str) -> Option<Self> {
        if !Command::new("script").arg("--version").output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: there is no `script` to make a terminal with");
            return None;
        }
        let place = Place::new();
        let shell = format!(
            "trap : INT; {} sql --store none {args}; echo \"left with $?\"; stty -a",
            env!("CARGO_BIN_EXE_tercile")
        );
        let mut command = Command::new("script");
        command.args(["-qefc", &shell, "typescript"]).current_dir(place.dir.path());
        command.env("XDG_STATE_HOME", place.path("state")).env("TERM", "xterm").env("NO_COLOR", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let keys = child.stdin.take();
        let mut shell = Self { place, child, keys, seen: 0 };
        shell.type_and_see("", "tercile> ");
        Some(shell)
    }

    fn screen(&self) -> String {
        let bytes = std::fs::read(self.place.path("typescript")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn type_and_see(&mut self, text: &str, expected: &str) {
        self.keys.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        self.see(expected);
    }

    fn see(&mut self, expected: &str) {
        let mut seen = self.seen;
        eventually(&format!("{expected:?} in {}", self.screen()), || {
            let now = self.screen();
            let found = now.get(seen..).and_then(|new| new.find(expected));
            seen += found.map_or(0, |at| at + expected.len());
            found.is_some()
        });
        self.seen = seen;
    }

    /// The process ids of the shell and of its session.
    fn processes(&self) -> (String, String) {
        let of = |parent: &str| {
            let found = Command::new("pgrep").args(["-P", parent]).output().unwrap();
            String::from_utf8(found.stdout).unwrap().trim().to_owned()
        };
        let shell = Command::new("pgrep").args(["-P", &self.child.id().to_string()]).output().unwrap();
        let shell = of(String::from_utf8(shell.stdout).unwrap().trim());
        let session = of(&shell);
        (shell, session)
    }
}

#[test]
fn in_a_shell_only_the_statement_ends() {
    let Some(mut shell) = Shell::start("--timeout 3") else { return };
    shell.type_and_see("CREATE VIEW v AS SELECT 7 AS seven;\r", " s)");
    shell.type_and_see(".format ndjson\r", "");
    // There is no sign of readiness, and early input may be lost.
    std::thread::sleep(Duration::from_secs(2));
    for query in [ENDLESS[0], ENDLESS[1], ENDLESS[4]] {
        // Ctrl-C.
        shell.type_and_see(&format!("{query};\r"), "ELECT");
        std::thread::sleep(Duration::from_millis(1500));
        shell.type_and_see("\u{3}", "cancelled");
        // Definitions are kept, and worker threads are free.
        shell.type_and_see("SELECT seven FROM v;\r", "{\"seven\":7}");
        // The statement ends at its deadline.
        shell.type_and_see(&format!("{query};\r"), "stopped after 3s, which is what --timeout allows");
        shell.type_and_see("SELECT seven + 1 AS eight FROM v;\r", "{\"eight\":8}");
    }
    // A session that dies is replaced too.
    let (process, session) = shell.processes();
    assert!(Command::new("kill").args(["-KILL", &session]).status().unwrap().success());
    shell.type_and_see("SELECT 1;\r", "killed by signal 9");
    shell.type_and_see("SELECT seven + 2 AS nine FROM v;\r", "{\"nine\":9}");
    // SIGTERM ends the shell and its session and restores the terminal.
    let (_, session) = shell.processes();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    shell.see("stopped by SIGTERM");
    shell.see("left with 143");
    shell.see(" icanon");
    eventually("the end of the session", || !Path::new("/proc").join(&session).exists());
    drop(shell.keys.take());
    shell.child.wait().unwrap();
}
