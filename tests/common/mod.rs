//! Shared code of the black-box tests: runs the real binary in a temporary directory and talks to it.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod acl;
pub mod cluster;
pub mod http2;
pub mod receiver;
pub mod stream;
pub mod wire;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A directory for commands, isolated from the environment's settings.
pub struct Place {
    pub dir: TempDir,
    /// Environment variables of its commands.
    pub settings: Vec<(String, String)>,
}

/// The result of a command.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), settings: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Copies a directory of `tests/fixtures`.
    pub fn copy_fixture(&self, fixture: &str, name: &str) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        for file in files(&from) {
            let to = self.path(name).join(file.strip_prefix(&from).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&file, &to).unwrap();
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tercile"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TERCILE_")) {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ended {
        let output = self.command(args).output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that must succeed, and returns its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        ended.stdout
    }

    /// Runs a command that must fail with this code, and returns its one-line error.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}{}", ended.stdout, ended.stderr);
        let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{args:?}: {}", ended.stderr);
        errors[0].to_owned()
    }

    /// Starts a command that runs until it is stopped.
    pub fn start(&self, args: &[&str]) -> Running {
        self.start_with(self.command(args), args[0])
    }

    /// The same, started by another program.
    pub fn start_by(&self, starter: &[&str], args: &[&str]) -> Running {
        let ours = self.command(args);
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).arg(ours.get_program()).args(ours.get_args());
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        for (name, value) in ours.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.start_with(command, args[0])
    }

    /// Starts a command prepared by the caller.
    pub fn start_command(&self, command: Command, name: &str) -> Running {
        self.start_with(command, name)
    }

    fn start_with(&self, mut command: Command, name: &str) -> Running {
        let log = self.path(&format!("stderr-{name}"));
        // SIGHUP may be ignored in the test process, as under `nohup`, and children would inherit that.
        let heard = || {
            // SAFETY: between fork and exec only this async-signal-safe function is called.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
            Ok(())
        };
        // SAFETY: as above.
        unsafe { command.pre_exec(heard) };
        let mut child = command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Running { child, stdout, log, address: String::new() }
    }

    /// Starts `up` on a free port and waits until it is ready.
    pub fn up(&self, args: &[&str]) -> Running {
        let mut all = vec!["up", "--bind", "127.0.0.1:0"];
        all.extend(args);
        let mut running = self.start(&all);
        running.address = running.line_with("ready at ");
        running
    }

    /// Starts `serve` on a free port and waits until it listens.
    pub fn serve(&self, args: &[&str]) -> Running {
        let mut all = vec!["serve", "--bind", "127.0.0.1:0"];
        all.extend(args);
        let mut running = self.start(&all);
        let said = running.said("documented at ");
        running.address = said.split("/docs").next().unwrap().to_owned();
        running
    }

    /// A single number queried from the store.
    pub fn number(&self, sql: &str) -> i64 {
        let csv = self.ok(&["sql", "--format", "csv", "-c", sql]);
        csv.lines().nth(1).unwrap_or_else(|| panic!("{csv}")).parse().unwrap()
    }

    /// The number of records and of distinct offsets, from one snapshot.
    pub fn records(&self) -> (i64, i64) {
        let sql = "SELECT count(*) AS a, (SELECT count(*) FROM (SELECT DISTINCT _partition, _offset FROM records)) AS b FROM records";
        let csv = self.ok(&["sql", "--format", "csv", "-c", sql]);
        let (all, different) = csv.lines().nth(1).and_then(|line| line.split_once(',')).unwrap();
        (all.parse().unwrap(), different.parse().unwrap())
    }
}

/// A process that is stopped on drop.
pub struct Running {
    pub child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    log: PathBuf,
    /// `http://…` of an `up` or `serve`.
    pub address: String,
}

impl Running {
    /// Waits for a line on stdout with this prefix and returns the rest of the line.
    pub fn line_with(&mut self, start: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "it ended before saying {start:?}: {}", self.stderr());
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    /// The stderr output so far.
    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for a text on stderr and returns the rest of the line.
    pub fn said(&self, start: &str) -> String {
        let mut rest = None;
        eventually(&format!("{start:?} on stderr"), || {
            rest = self.stderr().lines().find_map(|line| Some(line.split_once(start)?.1.to_owned()));
            rest.is_some()
        });
        rest.unwrap()
    }

    /// The address of an `up`'s embedded broker.
    pub fn broker(&self) -> String {
        self.said("embedded broker at ").split(',').next().unwrap().to_owned()
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(Duration::from_secs(60))
    }

    /// Waits for the end, with a timeout.
    pub fn wait_for(&mut self, patience: Duration) -> ExitStatus {
        let mut status = None;
        within(patience, "its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Sends SIGINT and waits for the end.
    pub fn interrupt(mut self) -> Ended {
        self.signal("-INT");
        let code = self.wait().code();
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).unwrap();
        Ended { code, stdout, stderr: self.stderr() }
    }

    pub fn get(&self, path: &str) -> Answer {
        let url = format!("{}{path}", self.address);
        answer(agent().get(&url).call().unwrap())
    }

    pub fn post(&self, path: &str, body: &str) -> Answer {
        self.post_as(path, "application/json", body.as_bytes())
    }

    pub fn post_as(&self, path: &str, content_type: &str, body: &[u8]) -> Answer {
        self.ask(path, &[("content-type", content_type)], body)
    }

    /// A POST with these headers.
    pub fn ask(&self, path: &str, headers: &[(&str, &str)], body: impl ureq::AsSendBody) -> Answer {
        answer(self.begin(path, headers, body))
    }

    /// A POST whose response body is not read yet.
    pub fn begin(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl ureq::AsSendBody,
    ) -> ureq::http::Response<ureq::Body> {
        let request = agent().post(format!("{}{path}", self.address));
        headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send(body).unwrap()
    }

    /// A GET, or another request without a body, with these headers.
    pub fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.address));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        answer(agent().run(request.body(()).unwrap()).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP response.
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub location: Option<String>,
    pub headers: ureq::http::HeaderMap,
    pub bytes: Vec<u8>,
    /// The body, if it is text.
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (content_type, location) = (header("content-type").unwrap_or_default(), header("location"));
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let bytes = response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap_or_default();
    Answer { status, content_type, location, headers, bytes, text }
}

/// Waits until a condition holds.
pub fn eventually(what: &str, happened: impl FnMut() -> bool) {
    within(Duration::from_secs(60), what, happened);
}

/// The same with a timeout.
pub fn within(patience: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < patience, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The real dataset, if available.
pub fn amazon() -> Option<PathBuf> {
    let path = std::env::var_os("TERCILE_AMAZON_CSV").map(PathBuf::from).filter(|path| path.is_file());
    if path.is_none() {
        eprintln!("skipped: TERCILE_AMAZON_CSV names no file");
    }
    path
}

/// A real Kafka, if available.
pub fn kafka() -> Option<String> {
    let servers = std::env::var("TERCILE_TEST_KAFKA").ok().filter(|servers| !servers.is_empty());
    if servers.is_none() {
        eprintln!("skipped: TERCILE_TEST_KAFKA names no Kafka");
    }
    servers
}

/// Files below a directory, sorted by name.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
