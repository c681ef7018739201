//! Settings shared by several commands, each with a flag and an environment variable.

mod guard;
mod input;
mod kafka;
mod notify;
mod topic;
mod training;

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::TypedValueParser as _;
pub use guard::GuardArgs;
pub use input::{InputArgs, KeyArgs};
pub use kafka::{KafkaArgs, MaybeKafkaArgs, TargetKafkaArgs};
pub use notify::{IngestNotifyArgs, NotifyArgs};
use tercile_store::batch::Limits;
use tercile_store::{self as store, Policy, RetentionPolicy, Store};
pub use topic::{SourceArgs, TopicArgs, topic};
pub use training::{DriftArgs, MembersArgs, PromoteArgs, SolverArgs, TrainingArgs};

use crate::api::Bodies;
use crate::api::budget::Budget;
use crate::api::sandbox::{self, Sandbox};
use crate::engine::cluster::{self, Engine};
use crate::sql;
use crate::sql::language::canonical;

/// The store of commands without `--store`.
const DEFAULT_STORE: &str = "store";

/// Where the store is.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    #[cfg_attr(not(feature = "object-stores"), doc = "The store's directory")]
    #[cfg_attr(
        feature = "object-stores",
        doc = "The store: a directory, or s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"
    )]
    #[arg(long, env = "TERCILE_STORE", value_name = "DIR", default_value = DEFAULT_STORE,
          value_parser = clap::builder::PathBufValueParser::new().try_map(place))]
    pub store: PathBuf,
}

impl StoreArgs {
    /// Opens the store and creates it if it does not exist.
    pub fn open(&self) -> Result<Store, store::Error> {
        Store::open(&self.store)
    }

    /// Opens the store without creating it, because a mistyped name must not create a store. The default store may be missing: it has
    /// no records yet.
    ///
    /// # Errors
    /// If a store that was named does not exist, or the store cannot be opened.
    pub fn look(&self) -> anyhow::Result<Store> {
        let store = Store::at(&self.store)?;
        self.expect(&store)?;
        Ok(store)
    }

    /// Checks that the store exists.
    ///
    /// # Errors
    /// If it was named and does not exist.
    pub fn expect(&self, store: &Store) -> anyhow::Result<()> {
        if store.exists()? {
            return Ok(());
        }
        let shown = self.store.display();
        anyhow::ensure!(
            self.store == Path::new(DEFAULT_STORE),
            "there is no store at {shown}; check --store, or make it with tercile up or tercile ingest"
        );
        tracing::warn!("there is no store at {shown}: it has no records");
        Ok(())
    }
}

/// A path that every part of the program can use: queries address files by URL, and URLs are text.
fn readable_path(path: PathBuf) -> Result<PathBuf, String> {
    let whole = match store::scheme(&path) {
        Some(_) => path.clone(),
        None => std::path::absolute(&path).map_err(|e| e.to_string())?,
    };
    match whole.to_str() {
        None => Err("expected a path in UTF-8: queries could not read files below it".to_owned()),
        Some(text) if text.contains(char::is_control) => Err(
            "expected a path without line breaks and other control characters: queries could not read files below it"
                .to_owned(),
        ),
        Some(_) => Ok(path),
    }
}

/// A directory, or a URL with a supported scheme, in its canonical form.
fn place(root: PathBuf) -> Result<PathBuf, String> {
    let root = readable_path(store::location::canonical(&root)?)?;
    match store::Place::check(&root) {
        Ok(()) => Ok(root),
        Err(store::Error::Url { why, .. }) => Err(why),
        Err(error) => Err(error.to_string()),
    }
}

/// Where the SQL files are.
#[derive(Debug, Clone, Args)]
pub struct SqlArgs {
    /// Directory of SQL files [default: sql if it exists, else the files built into the binary]
    #[arg(long, env = "TERCILE_SQL", value_name = "DIR",
          value_parser = clap::builder::PathBufValueParser::new().try_map(readable_path))]
    pub sql: Option<PathBuf>,
}

impl SqlArgs {
    pub fn dir(&self) -> Option<&Path> {
        self.sql.as_deref()
    }

    pub fn load(&self) -> Result<sql::Files, sql::Error> {
        sql::Files::load(self.dir())
    }
}

/// What runs the queries.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Query engine: local, or the scheduler of a cluster, as in df://scheduler:50050 or, for more than 16 cores,
    /// df://scheduler:50050?parts=64
    #[arg(long, env = "TERCILE_ENGINE", value_name = "ENGINE", default_value = "local",
          hide = !cluster::ENABLED)]
    pub engine: Engine,
}

/// When a file of the store is written, whichever comes first, and what else an ingest does meanwhile.
#[derive(Debug, Clone, Args)]
pub struct BatchArgs {
    /// Maximum number of records in a file of the store
    #[arg(long, env = "TERCILE_BATCH_ROWS", value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub batch_rows: u32,
    /// Approximate number of bytes of records in a file of the store
    #[arg(long, env = "TERCILE_BATCH_BYTES", value_name = "BYTES", default_value_t = 67_108_864,
          value_parser = clap::value_parser!(u32).range(1..=1_073_741_824))]
    pub batch_bytes: u32,
    /// Maximum number of seconds until a record is stored
    #[arg(long, env = "TERCILE_BATCH_AGE", value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub batch_age: Duration,
    /// Memory limit for buffered records, as in 512MB or 2GiB, shared by all partitions. `up` reserves a quarter of it for HTTP
    /// requests and responses
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", default_value = "1GiB", value_parser = bytes)]
    pub memory_limit: usize,
    /// Interval in seconds between checks for small files to compact and for new partitions of the topic
    #[arg(long, env = "TERCILE_UPKEEP", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub upkeep: Duration,
}

impl BatchArgs {
    /// The memory of the API in a process that also does other work: a quarter of the limit, at least the API's
    /// minimum.
    pub fn http_memory(&self) -> usize {
        (self.memory_limit / 4).max(HTTP_MEMORY)
    }

    pub fn limits(&self) -> Limits {
        Limits { rows: self.batch_rows as usize, bytes: self.batch_bytes as usize, age: self.batch_age }
    }
}

/// How small files become large ones.
#[derive(Debug, Clone, Args)]
pub struct RollArgs {
    /// Target size in bytes of compacted files
    #[arg(long, env = "TERCILE_ROLL_BYTES", value_name = "BYTES", default_value_t = 134_217_728,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub roll_bytes: u64,
    /// Time for which files are kept after a larger one replaced them or their records expired: seconds, or as in 30m or 1d
    #[arg(long, env = "TERCILE_GRACE", value_name = "DURATION", default_value = "86400", value_parser = seconds_or_none)]
    pub grace: Duration,
    /// Maximum age of records, as in 90d or 12h; whole files expire, never the newest of a partition
    #[arg(long, env = "TERCILE_KEEP_FOR", value_name = "AGE", value_parser = age)]
    pub keep_for: Option<Duration>,
    /// Maximum size of a partition, as in 100GB; its oldest files expire
    #[arg(long, env = "TERCILE_KEEP_BYTES", value_name = "SIZE", value_parser = bytes)]
    pub keep_bytes: Option<usize>,
}

impl RollArgs {
    /// The compaction and retention policy. `eager` also compacts the newest run, however short it is.
    pub fn policy(&self, eager: bool) -> Policy {
        let keep = RetentionPolicy { age: self.keep_for, bytes: self.keep_bytes.map(|bytes| bytes as u64) };
        Policy { target: self.roll_bytes, grace: self.grace, eager, keep }
    }
}

/// A duration as [`seconds`] parses it, or zero: `0`, `0s`, `0d`.
pub fn seconds_or_none(text: &str) -> Result<Duration, String> {
    let (number, unit) = with_unit(text);
    let zero = number.parse() == Ok(0.0) && (unit.is_empty() || seconds_of(unit).is_some());
    if zero { Ok(Duration::ZERO) } else { seconds(text) }
}

/// A language tag, as in en or pt-BR.
pub fn language(text: &str) -> Result<String, String> {
    canonical(text).ok_or_else(|| "expected a language tag such as en or pt-BR".to_owned())
}

/// Where the API listens.
#[derive(Debug, Clone, Args)]
pub struct BindArgs {
    /// The address and port of the API, as in 127.0.0.1:5000 or localhost:5000
    #[arg(long, env = "TERCILE_BIND", value_name = "ADDRESS", default_value = "127.0.0.1:5000", value_parser = address)]
    pub bind: SocketAddr,
}

/// An address with a port. A name is looked up; IPv4 is preferred, because most clients try it.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let wrong = || format!("expected an address and a port, as in 127.0.0.1:5000 or localhost:5000, not {text}");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| format!("expected a port from 0 to 65535, not {port}"))?;
    if host.is_empty() || host.contains(':') {
        return Err(wrong());
    }
    let found = (host, port).to_socket_addrs().map_err(|e| format!("cannot look up {host}: {e}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let preferred = found.iter().find(|address| address.is_ipv4()).or(found.first());
    preferred.copied().ok_or_else(|| format!("{host} has no address"))
}

/// What bodies of rows may be at most.
#[derive(Debug, Clone, Args)]
pub struct BodyArgs {
    /// Maximum size of a request body of rows, as in 64MiB; never more than 64MiB if it is not streamed
    #[arg(long, env = "TERCILE_MAX_BODY_BYTES", value_name = "SIZE", default_value = "1GiB", value_parser = bytes)]
    pub max_body_bytes: usize,
    /// Maximum number of rows in a request body; never more than 100,000 if it is not streamed
    #[arg(long, env = "TERCILE_MAX_BODY_ROWS", value_name = "N", default_value_t = 10_000_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub max_body_rows: u64,
    /// Maximum number of fields in a row
    #[arg(long, env = "TERCILE_MAX_BODY_FIELDS", value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_body_fields: u32,
    /// Maximum nesting depth of a row, including the row itself
    #[arg(long, env = "TERCILE_MAX_BODY_DEPTH", value_name = "N", default_value_t = 127,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_body_depth: u32,
    /// Maximum number of request bodies that are streamed at the same time
    #[arg(long, env = "TERCILE_BULK_CONCURRENCY", value_name = "N", default_value_t = 16,
          value_parser = clap::value_parser!(u16).range(1..=400))]
    pub bulk_concurrency: u16,
}

impl BodyArgs {
    pub fn bodies(&self) -> Bodies {
        let (fields, depth) = (self.max_body_fields as usize, self.max_body_depth as usize);
        Bodies::new(self.max_body_bytes as u64, self.max_body_rows, fields, depth, self.bulk_concurrency.into())
    }
}

/// The memory of the API, for commands that have no other use for it.
#[derive(Debug, Clone, Args)]
pub struct HttpMemoryArgs {
    /// Memory limit for all open requests and responses, as in 512MB or 2GiB; beyond it requests are answered with 503
    #[arg(long, env = "TERCILE_MEMORY_LIMIT", value_name = "SIZE", default_value = "512MiB", value_parser = http_memory)]
    pub memory_limit: usize,
}

impl HttpMemoryArgs {
    pub fn budget(&self) -> Budget {
        Budget::new(self.memory_limit)
    }
}

/// Minimum memory of the API. With less, almost no request body could be streamed.
const HTTP_MEMORY: usize = 16_000_000;

fn http_memory(text: &str) -> Result<usize, String> {
    let bytes = bytes(text)?;
    if bytes < HTTP_MEMORY { Err("expected a size of 16MB or more".to_owned()) } else { Ok(bytes) }
}

/// SQL over HTTP, and what it may use.
#[derive(Debug, Clone, Args)]
pub struct HttpSqlArgs {
    /// Enable POST /api/sql: read-only SQL over the views; each statement runs in its own process
    #[arg(long, env = "TERCILE_ENABLE_SQL", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    pub enable_sql: bool,
    /// Timeout of such a statement in seconds
    #[arg(long, env = "TERCILE_SQL_TIMEOUT", value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub sql_timeout: Duration,
    /// Memory limit of its process, as in 256MB or 1GiB
    #[arg(long, env = "TERCILE_SQL_MEMORY", value_name = "SIZE", default_value = "256MB", value_parser = process_memory)]
    pub sql_memory: usize,
    /// Maximum size of its result, as in 10MB
    #[arg(long, env = "TERCILE_SQL_BYTES", value_name = "SIZE", default_value = "10MB", value_parser = bytes)]
    pub sql_bytes: usize,
    /// Maximum number of such statements at the same time
    #[arg(long, env = "TERCILE_SQL_CONCURRENCY", value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub sql_concurrency: u16,
}

impl HttpSqlArgs {
    /// The sandbox that runs SQL statements, if `--enable-sql` is set.
    pub fn confined(&self, store: &Store, sql: &SqlArgs) -> Result<Option<Sandbox>, String> {
        if self.enable_sql && !store.place().is_disk() {
            // The sandbox process has no network access.
            return Err("--enable-sql needs a store in a directory; leave it away, or serve a copy".to_owned());
        }
        let limits = sandbox::Limits {
            timeout: self.sql_timeout,
            memory: self.sql_memory,
            bytes: self.sql_bytes,
            concurrency: self.sql_concurrency.into(),
        };
        Ok(self.enable_sql.then(|| Sandbox::new(store.root(), sql.dir(), limits)))
    }
}

/// A process with less memory than this could not start.
fn process_memory(text: &str) -> Result<usize, String> {
    let bytes = bytes(text)?;
    if bytes < 64_000_000 { Err("expected a size of 64MB or more".to_owned()) } else { Ok(bytes) }
}

/// A duration: seconds, as in `90` or `0.5`, or a number with a unit, as in `250ms`, `45s`, `30m`, `12h` or `90d`.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "expected seconds, or a number with a unit: 250ms, 45s, 30m, 12h, 90d".to_owned();
    let (number, unit) = with_unit(text);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = number * if unit.is_empty() { 1.0 } else { seconds_of(unit).ok_or_else(wrong)? };
    if !(0.001..=86_400.0 * 365.0).contains(&seconds) {
        return Err("expected a duration from 0.001 seconds to a year".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// An age, as in `90d`, `12h`, `30m` or `45s`. The unit is mandatory, because expired records cannot be restored.
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || "expected an age such as 90d, 12h, 30m or 45s".to_owned();
    let (number, unit) = with_unit(text);
    let unit = seconds_of(unit).filter(|&seconds| seconds >= 1.0).ok_or_else(wrong)? as u64;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).filter(|&seconds| seconds > 0).map(Duration::from_secs).ok_or_else(wrong)
}

fn with_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| c.is_ascii_alphabetic() || !c.is_ascii()).unwrap_or(text.len()))
}

/// Number of seconds in a unit of time.
fn seconds_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    })
}

/// A size in bytes, as in `512MB`, `2GiB` or `1000000`.
pub fn bytes(text: &str) -> Result<usize, String> {
    let wrong = || "expected a size such as 512MB or 2GiB".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit;
    if !(1e6..=1e15).contains(&bytes) {
        return Err("expected a size of 1MB or more".to_owned());
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{address, age, bytes, seconds, seconds_or_none};

    #[test]
    fn addresses_may_be_names() {
        assert_eq!(address("127.0.0.1:5000"), Ok(([127, 0, 0, 1], 5000).into()));
        assert_eq!(address("localhost:5000"), Ok(([127, 0, 0, 1], 5000).into()));
        assert_eq!(address("[::1]:80").map(|address| address.port()), Ok(80));
        for wrong in ["5000", "localhost", ":5000", "localhost:99999", "localhost:", "a:b:1", "no such host:1"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!([bytes("512MB"), bytes("2GiB"), bytes("1.5 gb")], [Ok(512_000_000), Ok(2 << 30), Ok(1_500_000_000)]);
        assert_eq!(bytes("1000000"), Ok(1_000_000));
        for wrong in ["", "MB", "12", "-1GB", "1XB", "1.2.3GB", "1e9"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_seconds_or_have_units() {
        let read = |text| seconds(text).map(|duration| duration.as_secs_f64()).ok();
        let expected = [Some(90.0), Some(0.5), Some(0.25), Some(45.0), Some(1800.0), Some(43_200.0), Some(7_776_000.0)];
        assert_eq!(["90", "0.5", "250ms", "45s", "30m", "12h", "90d"].map(read), expected);
        for wrong in ["", "s", "0", "0s", "-1", "1w", "1 s", "1s2", "400d", "nan", "inf", "1e3", "90é", "é"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(["0", "0s", "0d", "0.0"].map(seconds_or_none), [const { Ok(Duration::ZERO) }; 4]);
        assert_eq!(seconds_or_none("2m"), Ok(Duration::from_secs(120)));
        assert!(seconds_or_none("0w").is_err() && seconds_or_none("").is_err());
    }

    #[test]
    fn ages_have_units() {
        let seconds = |n| Ok(Duration::from_secs(n));
        assert_eq!(["90d", "12h", "30m", "45s"].map(age), [7_776_000, 43_200, 1800, 45].map(seconds));
        for wrong in ["", "d", "0d", "90", "-1d", "1.5d", "1w", "90é", "18446744073709551615d"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
