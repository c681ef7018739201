//! A topic that loses its end while processes read it: a real Kafka is stopped, its files are replaced by a backup, and it is
//! started again. Each test runs a Kafka of its own.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::common::{Place, Running, eventually, kafka, within};

/// Kafka's start takes seconds, more on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A Kafka that can be stopped and started with the same files and addresses.
struct OwnKafka {
    dir: PathBuf,
    /// The broker's command line.
    command: Vec<std::ffi::OsString>,
    pid: u32,
    server: String,
    /// After the first restart.
    child: Option<Child>,
}

impl OwnKafka {
    fn start(place: &Place) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/kafka");
        let started = Command::new(script).args(["start", "--dir"]).arg(place.path("kafka")).output().unwrap();
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let variables = String::from_utf8(started.stdout).unwrap();
        let value = |name: &str| {
            let line = variables.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap().to_owned()
        };
        let pid = value("TERCILE_TEST_KAFKA_PID").parse().unwrap();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let command = command.split(|byte| *byte == 0).filter(|arg| !arg.is_empty());
        Self {
            dir: fs::canonicalize(place.path("kafka")).unwrap(),
            command: command.map(|arg| std::ffi::OsStr::from_bytes(arg).to_owned()).collect(),
            pid,
            server: value("TERCILE_TEST_KAFKA"),
            child: None,
        }
    }

    fn stop(&mut self) {
        assert!(Command::new("kill").arg(self.pid.to_string()).status().unwrap().success());
        match self.child.take() {
            Some(mut child) => drop(child.wait().unwrap()),
            None => within(START, "the broker to end", || !Path::new(&format!("/proc/{}", self.pid)).exists()),
        }
    }

    /// Starts the broker again, and waits until it leads this topic.
    fn start_again(&mut self, topic: &str) {
        let log = fs::File::options().append(true).open(self.dir.join("kafka.log")).unwrap();
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).current_dir(&self.dir).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.pid = child.id();
        self.child = Some(child);
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.server).create().unwrap();
        within(START, "the broker to answer", || client.fetch_watermarks(topic, 0, Duration::from_secs(2)).is_ok());
    }

    /// Copies the broker's files, or puts a copy back.
    fn copy(&self, from: &str, to: &str) {
        let _ = fs::remove_dir_all(self.dir.join(to));
        let copied = Command::new("cp").arg("-r").arg(self.dir.join(from)).arg(self.dir.join(to)).status().unwrap();
        assert!(copied.success());
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

#[test]
fn a_topic_that_is_restored_from_a_backup_while_it_is_read_ends_every_reader() {
    if kafka().is_none() {
        return;
    }
    let place = Place::new();
    let mut broker = OwnKafka::start(&place);
    let server = broker.server.clone();
    let to = ["--bootstrap-servers", &server];
    let produce = |first: u64, n: u64| {
        let rows: String = (first..first + n).map(|i| format!("{{\"product_id\":\"{i}\"}}\n")).collect();
        place.write("rows.ndjson", rows);
        place.ok(&[&["produce", "rows.ndjson", "--partitions", "2"], &to[..]].concat());
    };
    produce(0, 400);
    broker.stop();
    broker.copy("data", "backup");
    broker.start_again("products");
    produce(400, 600);
    let quick = ["--upkeep", "0.5", "--batch-age", "0.2"];
    let start = |store: &str, args: &[&str]| {
        place.start_command(place.command(&[args, &["--store", store], &to, &quick].concat()), store)
    };
    let mut readers: Vec<(&str, Running)> = vec![
        ("alone", start("alone", &["ingest"])),
        ("group", start("group", &["ingest", "--group", "workers"])),
        ("accepting", start("accepting", &["ingest", "--accept-gap"])),
        ("up", start("up", &["up", "--bind", "127.0.0.1:0"])),
    ];
    let records = |store: &str| {
        let sql = "SELECT count(DISTINCT product_id) FROM records";
        let csv = place.run(&["sql", "--store", store, "-f", "csv", "-c", sql]).stdout;
        csv.lines().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    for (store, _) in &readers {
        eventually("all records", || records(store) == 1_000);
    }
    broker.stop();
    broker.copy("backup", "data");
    let began = Instant::now();
    broker.start_again("products");
    for (store, reader) in &mut readers {
        let code = reader.wait().code();
        let said = reader.stderr();
        assert_eq!(code, Some(3), "{store}: {said}");
        assert!(said.contains("is ahead of its topic") && said.contains("--store"), "{store}: {said}");
        assert_eq!(records(store), 1_000, "{store}");
    }
    eprintln!("all have ended {:.1?} after the broker's start", began.elapsed());
    // The advice: this topic goes into another store, and the old one stays as it is.
    produce(2_000, 50);
    place.fails(3, &[&["ingest", "--until-end", "--store", "alone"], &to[..]].concat());
    place.ok(&[&["ingest", "--until-end", "--store", "other"], &to[..]].concat());
    assert_eq!((records("other"), records("alone")), (450, 1_000));
}
