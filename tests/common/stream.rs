//! A topic in a real Kafka, and a store for it.

use std::path::PathBuf;
use std::time::SystemTime;

use super::{Place, Running, files};

/// A topic in a real Kafka, and a store for it.
pub struct Stream {
    pub place: Place,
    pub servers: String,
    pub topic: String,
}

impl Stream {
    pub fn new(servers: &str, what: &str) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let topic = format!("{what}-{}-{}", std::process::id(), now.as_nanos());
        Self { place: Place::new(), servers: servers.to_owned(), topic }
    }

    /// `n` records of about 200 bytes in `partitions`, numbered from `first`.
    pub fn fill(&self, first: u64, n: u64, partitions: &str) {
        let filler = "x".repeat(150);
        let rows: String =
            (first..first + n).map(|i| format!("{{\"product_id\":\"{i}\",\"product_name\":\"{filler}\"}}\n")).collect();
        self.place.write("rows.ndjson", rows);
        self.place.ok(&self.args(&["produce", "rows.ndjson", "--partitions", partitions]));
    }

    pub fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--bootstrap-servers", &self.servers, "--topic", &self.topic]].concat()
    }

    pub fn ingest(&self, more: &[&str]) -> Running {
        self.place.start(&self.args(&[&["ingest"], more].concat()))
    }

    /// Reads the remaining records and checks that every record is stored once, in an unbroken chain.
    pub fn exact(&self, n: u64) {
        self.place.ok(&self.args(&["ingest", "--until-end"]));
        let n = i64::try_from(n).unwrap();
        assert_eq!(self.place.records(), (n, n));
        assert_eq!(self.place.number("SELECT count(DISTINCT product_id) FROM records"), n);
        let doctor = self.place.run(&["doctor", "--bind", "127.0.0.1:0"]).stdout;
        assert!(doctor.contains("an unbroken chain"), "{doctor}");
        assert_eq!(files(&self.place.path("store/tmp")), Vec::<PathBuf>::new(), "nothing is left behind");
    }

    pub fn parquet(&self) -> usize {
        files(&self.place.path("store/records")).iter().filter(|f| f.extension().is_some()).count()
    }

    /// Like `exact`, but ignores temporary files left by kills.
    pub fn exact_after_kills(&self, n: u64) {
        for left in files(&self.place.path("store/tmp")) {
            std::fs::remove_file(left).unwrap();
        }
        self.exact(n);
    }
}
