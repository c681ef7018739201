//! SQL over HTTP: answers, problems, and the isolation of the sandbox process.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Place, Running, eventually, files};
use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::datatypes::Int64Type;
use datafusion::arrow::ipc::reader::StreamReader;
use serde_json::{Value, json};

use crate::common;

/// Time limit of a statement in most of these tests, and the tolerance for answers on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(4);
const SLACK: Duration = Duration::from_secs(4);

const STATEMENTS: &str = include_str!("../hostile.ndjson");
const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 9000000000000)";

/// An HTTP response.
struct Reply {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
    took: Duration,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn kind(&self) -> &str {
        self.headers.get("content-type").map_or("", String::as_str)
    }

    /// The rows of the response.
    fn rows(&self) -> Value {
        assert_eq!((self.status, self.kind()), (200, "application/json"), "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks the format of a problem and returns it.
    fn problem(&self, status: u16) -> Value {
        assert_eq!((self.status, self.kind()), (status, "application/problem+json"), "{}", self.text());
        let problem: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], status);
        let detail = problem["detail"].as_str().unwrap();
        assert!(!detail.is_empty() && detail.len() < 4100 && !detail.contains('\n'), "{detail}");
        for leak in ["/src/", "panicked", ".rs", "TableScan", "Exec:", "/tmp/."] {
            assert!(!detail.contains(leak), "{detail}");
        }
        problem
    }
}

fn send(server: &Running, body: &str, headers: &[(&str, &str)]) -> Reply {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into();
    let mut request = agent.post(&format!("{}/api/sql", server.address)).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let began = Instant::now();
    let mut response = request.send(body).unwrap();
    let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap().to_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
    Reply { status, headers, body, took: began.elapsed() }
}

fn ask(server: &Running, sql: &str) -> Reply {
    send(server, &json!({"sql": sql}).to_string(), &[])
}

/// `up` with SQL enabled.
fn up(place: &Place) -> Running {
    let seconds = TIMEOUT.as_secs().to_string();
    place.up(&["--enable-sql", "--sql-timeout", &seconds, "--sql-concurrency", "4"])
}

/// `serve` on the existing store.
fn serve(place: &Place, args: &[&str]) -> Running {
    let mut all = vec!["serve", "--bind", "127.0.0.1:0"];
    all.extend(args);
    let mut running = place.start(&all);
    running.address = running.said("serving store at ").split(',').next().unwrap().to_owned();
    running
}

#[test]
fn rows_come_as_they_are_asked_for() {
    let place = Place::new();
    let server = up(&place);
    let sql = "SELECT rating, count(*) AS n FROM products WHERE rating >= $least GROUP BY rating ORDER BY rating";
    let body = json!({"sql": sql, "params": {"least": 4.5}}).to_string();
    let rows = send(&server, &body, &[]).rows();
    assert!(rows[0]["rating"] == 4.5 && rows[0]["n"].as_i64().unwrap() > 0, "{rows}");
    for accept in ["*/*", "application/json", "text/html, */*;q=0.1"] {
        assert_eq!(send(&server, &body, &[("accept", accept)]).rows(), rows, "{accept}");
    }
    // The result equals that of the command line.
    let csv = send(&server, &body, &[("accept", "text/csv")]);
    assert_eq!((csv.status, csv.kind()), (200, "text/csv; charset=utf-8"));
    assert_eq!(csv.text(), place.ok(&["sql", "-f", "csv", "--param", "least=4.5", "-c", sql]));
    let arrow = send(&server, &body, &[("accept", "application/vnd.apache.arrow.stream")]);
    assert_eq!((arrow.status, arrow.kind()), (200, "application/vnd.apache.arrow.stream"));
    let batches: Vec<_> = StreamReader::try_new(arrow.body.as_slice(), None).unwrap().map(Result::unwrap).collect();
    let n: i64 = batches.iter().flat_map(|batch| batch["n"].as_primitive::<Int64Type>().iter().flatten()).sum();
    assert_eq!(n, rows.as_array().unwrap().iter().map(|row| row["n"].as_i64().unwrap()).sum::<i64>());
    let refused = send(&server, &body, &[("accept", "text/html")]).problem(406);
    assert!(refused["detail"].as_str().unwrap().contains("text/csv"), "{refused}");

    assert_eq!(ask(&server, "SELECT count(*) AS n FROM products").rows(), json!([{"n": 1465}]));
    assert_eq!(ask(&server, "SELECT rating FROM products LIMIT 0").rows(), json!([]));
    let body = json!({"sql": "SELECT $a AS a, $b AS b, $c AS c, $d AS d",
                      "params": {"a": "'; DROP VIEW products --", "b": null, "c": true, "d": 9007199254740993_i64}});
    let expected = json!([{"a": "'; DROP VIEW products --", "b": null, "c": true, "d": 9007199254740993_i64}]);
    assert_eq!(send(&server, &body.to_string(), &[]).rows(), expected);
    assert_eq!(ask(&server, "SELECT segment_name('discount', 90) AS x").rows(), json!([{"x": "High Discount"}]));
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    let place = Place::new();
    let server = up(&place);
    for (body, status) in [
        ("", 400),
        ("nope", 400),
        ("{\"sql\": \"SELECT 1\"", 400),
        ("[]", 422),
        ("{}", 422),
        ("{\"sql\": 1}", 422),
        ("{\"sql\": \"SELECT 1\", \"sql\": \"SELECT 2\"}", 422),
        ("{\"sql\": \"SELECT 1\", \"format\": \"csv\"}", 422),
        ("{\"sql\": \"SELECT $x\", \"params\": {\"x\": [1]}}", 422),
        ("{\"sql\": \"SELECT 1\", \"params\": {\"x\": 1}}", 422),
    ] {
        send(&server, body, &[]).problem(status);
    }
    let long = json!({"sql": format!("SELECT '{}'", "x".repeat(300_000))}).to_string();
    send(&server, &long, &[]).problem(413);
    assert_eq!(server.post_as("/api/sql", "text/plain", b"SELECT 1").status, 415);
    assert_eq!(server.post("/api/sql?limit=1", "{}").status, 422);

    let chain = format!("SELECT 1{}", " + 1".repeat(2_000));
    let nested = format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000));
    for (sql, expected, place) in [
        ("SELECT ratin\nFROM products", "there is no column ratin; did you mean rating?", Some((1, 8))),
        ("SELECT 1\nFROM product", "there is no table or view product; did you mean products?", Some((2, 6))),
        ("SELECT rating + 'x' FROM products", "there is no Float64 + Utf8; make numbers of texts", Some((1, 8))),
        ("SELECT abs('x')", "abs", None),
        ("SELECT 1, $least", "the parameter $least is not given; add \"least\" to \"params\"", Some((1, 11))),
        ("SELECT 1;\nSELECT 2", "one statement is allowed, and there are 2", Some((2, 1))),
        (" DROP VIEW products", "only a query is answered here", Some((1, 2))),
        ("SELECT * FROM 'missing.csv'", "there is no table or view missing.csv", None),
        ("SELECT count(*) FROM generate_series(9e9)", "must be an INTEGER", None),
        (&chain, "400 operators", Some((1, 1610))),
        (&nested, "48 levels", Some((1, 56))),
    ] {
        let problem = ask(&server, sql).problem(422);
        assert!(problem["detail"].as_str().unwrap().contains(expected), "{sql}: {problem}");
        if let Some((line, column)) = place {
            assert_eq!((&problem["line"], &problem["column"]), (&json!(line), &json!(column)), "{problem}");
        }
    }
}

#[test]
fn what_takes_too_much_is_stopped() {
    let place = Place::new();
    let server = up(&place);
    let join = "SELECT count(*) FROM products a, products b, products c, products d, products e";
    for (sql, expected) in [
        (ENDLESS, "4 s, which is what --sql-timeout allows"),
        (join, "allow"),
        ("SELECT repeat('x', 1000000000)", "256 MB that --sql-memory allows"),
        ("SELECT array_agg(value) FROM generate_series(1, 900000000)", "--sql-"),
        ("SELECT * FROM generate_series(1, 9000000000)", "10 MB, which is what --sql-bytes allows; add a LIMIT"),
        ("SELECT repeat('x', 11000000) AS x", "add a LIMIT"),
    ] {
        let reply = ask(&server, sql);
        assert!(reply.took < TIMEOUT + SLACK, "{sql}: {:?}", reply.took);
        let problem = reply.problem(422);
        assert!(problem["detail"].as_str().unwrap().contains(expected), "{sql}: {problem}");
    }
    let fits = ask(&server, "SELECT repeat('x', 9000000) AS x").rows();
    assert_eq!(fits[0]["x"].as_str().unwrap().len(), 9_000_000);
}

#[test]
fn it_is_off_unless_turned_on_and_answers_so_many_at_a_time() {
    let place = Place::new();
    place.up(&[]).interrupt();
    let off = serve(&place, &[]);
    let problem = ask(&off, "SELECT 1").problem(403);
    assert!(problem["detail"].as_str().unwrap().contains("--enable-sql"), "{problem}");
    drop(off);

    let server = serve(&place, &["--enable-sql", "--sql-timeout", "60", "--sql-concurrency", "1"]);
    let begin = || {
        let body = json!({"sql": ENDLESS}).to_string();
        let mut client = TcpStream::connect(server.address.strip_prefix("http://").unwrap()).unwrap();
        let head = format!(
            "POST /api/sql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        write!(client, "{head}\r\n\r\n{body}").unwrap();
        eventually("a process for the statement", || children(server.child.id()) == 1);
        client
    };
    let client = begin();
    let reply = ask(&server, "SELECT 1");
    assert_eq!(reply.headers["retry-after"], "1");
    assert!(reply.problem(503)["detail"].as_str().unwrap().contains("--sql-concurrency"), "{}", reply.text());
    // The client disconnects.
    drop(client);
    eventually("the end of a statement whose client is gone", || children(server.child.id()) == 0);
    assert_eq!(ask(&server, "SELECT 1 AS x").rows(), json!([{"x": 1}]));

    // The server is killed.
    let _client = begin();
    let orphan = children_of(server.child.id());
    server.signal("-KILL");
    eventually("the end of a statement whose server is gone", || {
        orphan.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    });
}

#[test]
fn hostile_statements_harm_nothing() {
    let place = Place::new();
    let server = up(&place);
    let pid = server.child.id();
    place.write("secret.csv", "word\nUNSEEN-MARKER\n");
    let before = files(place.dir.path());
    let statements: Vec<Value> = STATEMENTS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(statements.len() >= 200);
    ask(&server, "SELECT 1").rows();
    let memory = resident(pid);
    let (next, done, predictions) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let slowest = std::thread::scope(|scope| {
        let predicting = scope.spawn(|| {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::SeqCst) {
                let began = Instant::now();
                let row = r#"[{"discounted_price":300,"rating":4.5}]"#;
                assert_eq!(server.post("/api/cluster_products_by_price_rating", row).status, 200);
                slowest = slowest.max(began.elapsed());
                predictions.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest
        });
        let work = || {
            while let Some(statement) = statements.get(next.fetch_add(1, Ordering::SeqCst)) {
                let (kind, sql) = statement.as_object().unwrap().iter().next().unwrap();
                let reply = ask(&server, sql.as_str().unwrap());
                assert!(reply.took < TIMEOUT + SLACK, "{sql}: {:?}", reply.took);
                if kind == "harmless" {
                    reply.rows();
                } else {
                    reply.problem(422);
                }
                let here = place.dir.path().to_str().unwrap();
                for leak in ["UNSEEN-MARKER", "root:x:", here, here.trim_start_matches('/')] {
                    assert!(!reply.text().contains(leak), "{sql}: {}", reply.text());
                }
            }
        };
        let working: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        let worked: Vec<_> = working.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::SeqCst);
        let slowest = predicting.join().unwrap();
        for work in worked {
            work.unwrap();
        }
        slowest
    });
    let grown = resident(pid).saturating_sub(memory);
    eprintln!(
        "{} statements, {} predictions meanwhile, the slowest in {slowest:?}; {} kB more memory",
        statements.len(),
        predictions.load(Ordering::SeqCst),
        grown
    );
    assert!(slowest < Duration::from_secs(3), "a prediction took {slowest:?}");
    assert!(grown < 64 * 1024, "{grown} kB more than before");
    eventually("the end of every statement", || children(pid) == 0);
    assert_eq!(ask(&server, "SELECT count(*) AS n FROM products").rows(), json!([{"n": 1465}]));
    assert_eq!(files(place.dir.path()), before);
    // The server process is still the same and shuts down gracefully.
    assert_eq!(server.interrupt().code, Some(0));
}

#[test]
fn a_process_has_no_descriptor_of_the_server_and_needs_few() {
    let place = Place::new();
    // The embedded broker listens on sockets that a C library opened.
    let server = up(&place);
    let body = json!({"sql": ENDLESS}).to_string();
    let mut client = TcpStream::connect(server.address.strip_prefix("http://").unwrap()).unwrap();
    let head = "POST /api/sql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length:";
    write!(client, "{head} {}\r\n\r\n{body}", body.len()).unwrap();
    eventually("a process for the statement", || children(server.child.id()) == 1);
    let child = children_of(server.child.id())[0];
    let threads = || std::fs::read_dir(format!("/proc/{child}/task")).map_or(0, Iterator::count);
    eventually("its threads", || threads() > 1);
    let mut open: Vec<(String, String)> = Vec::new();
    for descriptor in std::fs::read_dir(format!("/proc/{child}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(descriptor.path()).map(|path| path.display().to_string()).unwrap_or_default();
        open.push((descriptor.file_name().to_string_lossy().into_owned(), target));
    }
    let store = place.path("store").display().to_string();
    for (descriptor, target) in &open {
        let ours = matches!(descriptor.as_str(), "0" | "1" | "2") && target.starts_with("pipe:");
        // Descriptors that the process opened itself.
        let own = target.starts_with(&store) || target.contains("landlock") || target.contains("event");
        assert!(ours || own, "descriptor {descriptor} is {target}: {open:?}");
    }
    drop(client);
    server.interrupt();

    // It also works with a low descriptor limit.
    let few = ["sh", "-c", "ulimit -n 200; exec \"$0\" \"$@\""];
    let mut server = place.start_by(&few, &["serve", "--bind", "127.0.0.1:0", "--enable-sql"]);
    server.address = server.said("serving store at ").split(',').next().unwrap().to_owned();
    assert_eq!(ask(&server, "SELECT count(*) AS n FROM products").rows(), json!([{"n": 1465}]));
}

#[test]
fn landlock_is_entered_before_there_are_threads() {
    let place = Place::new();
    place.write("store/nothing", "");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=landlock_restrict_self,clone,clone3", "-o", "traced"]);
    command.args([env!("CARGO_BIN_EXE_tercile"), "confined-sql"]).env_clear().current_dir(place.dir.path());
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        eprintln!("skipped: there is no strace");
        return;
    };
    let order = json!({"store": "store", "sql": null, "statement": "SELECT 1", "params": {}, "form": "json",
                       "memory": 256_000_000, "bytes": 1_000_000, "seconds": 60});
    let mut stdin = child.stdin.take().unwrap();
    let _ = writeln!(stdin, "{order}");
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    let traced = std::fs::read_to_string(place.path("traced")).unwrap_or_default();
    if !traced.contains("landlock_restrict_self") || traced.contains("ENOSYS") || traced.contains("EOPNOTSUPP") {
        eprintln!("skipped: no strace, or no Landlock: {traced}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let (before, after) = traced.split_once("landlock_restrict_self").unwrap();
    assert!(!before.contains("clone"), "{traced}");
    assert!(after.contains("clone"), "and then there are: {traced}");
}

#[test]
fn only_the_store_is_opened() {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: there is no strace");
        return;
    }
    let place = Place::new();
    place.up(&[]).interrupt();
    place.write("secret.csv", "word\nUNSEEN-MARKER\n");
    for statement in [
        "SELECT count(*) AS n FROM products",
        "SELECT segment('../../secret', 1)",
        "SELECT segment('discount', 1)",
        "SELECT * FROM 'secret.csv'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "COPY products TO 'stolen.csv'",
        "SELECT * FROM products a, products b ORDER BY a.product_name LIMIT 2000000",
    ] {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=read,open,openat,openat2,creat,connect,execve", "-o", "traced"]);
        command.args([env!("CARGO_BIN_EXE_tercile"), "confined-sql"]).env_clear().current_dir(place.dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let order = json!({"store": "store", "sql": null, "statement": statement, "params": {}, "form": "json",
                           "memory": 256_000_000, "bytes": 1_000_000, "seconds": 60});
        // The process ends when its stdin is closed, so stdin stays open.
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{order}").unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.stdout.is_empty() && !told.contains("\"statement\"") {
            eprintln!("skipped: strace can't trace here: {told}");
            return;
        }
        let traced = std::fs::read_to_string(place.path("traced")).unwrap();
        let (_, after) = traced.split_once("read(0, \"{").expect("the order was read");
        let mut opened = 0;
        // strace splits a call that another thread's call interrupts: `<... read resumed>`.
        for line in after.lines().filter(|line| !line.contains("read(") && !line.contains("read resumed")) {
            for wrong in ["execve(", "connect(", "passwd", "secret", "stolen", "O_WRONLY", "O_RDWR", "O_CREAT"] {
                assert!(!line.contains(wrong), "{statement}: {line}");
            }
            let Some(path) = line.split('"').nth(1).filter(|_| !line.contains(" = -1 ")) else { continue };
            let root = place.dir.path().join("store");
            let stored = path.starts_with("store") || path.starts_with(root.to_str().unwrap());
            // Files that libraries read by themselves: memory size, processor count and code.
            let system = path.starts_with("/sys/fs/cgroup") || path.ends_with(".so.1") || path.ends_with(".so.6");
            let known = ["/proc/sys/vm/overcommit_memory", "/proc/self/cgroup", "/proc/self/maps", "/etc/ld.so.cache"];
            let system = system || known.contains(&path);
            assert!(stored || system, "{statement}: {line}");
            opened += usize::from(stored);
        }
        if statement.contains("count(*)") {
            assert!(opened > 0, "{traced}");
        }
    }
}

/// Resident memory of a process in kB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn children(pid: u32) -> usize {
    children_of(pid).len()
}

fn children_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(child) = entry.file_name().to_string_lossy().parse() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent == Some(pid) {
            found.push(child);
        }
    }
    found
}
