//! `tercile init`: writes initial SQL files for a topic or a file.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tercile_kafka::broker::{Bound, Consumer, Event, Item, Reading, Start};

use super::staged_file::StagedFile;
use super::{Done, blocking, count};
use crate::config::{InputArgs, MaybeKafkaArgs};
use crate::files::{Rows, Source};
use crate::printable::printable;
use crate::sql::infer::{Inference, view_name};

/// Number of sampled records that determine the files.
const RECORDS: usize = 1_000;
/// Limit of the consumer queue in bytes.
const QUEUE_BYTES: usize = 1 << 22;

/// Write first SQL files for records of another kind
///
/// Looks at the first 1,000 records of a CSV or NDJSON file, or of a topic, and writes 00_records.sql, which declares their
/// fields, 10_….sql, which types them, and 20_slices.sql. Edit them, and add a segmentation. Nothing is overwritten.
#[derive(Args)]
pub struct Init {
    /// A file; or a topic, with --bootstrap-servers
    #[arg(value_name = "TOPIC|FILE")]
    from: String,
    /// The directory to write to
    #[arg(long, env = "TERCILE_SQL", value_name = "DIR", default_value = "sql")]
    sql: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    kafka: MaybeKafkaArgs,
}

impl Init {
    pub async fn run(self) -> anyhow::Result<Done> {
        let (from, sql) = (self.from.clone(), self.sql.clone());
        let sketch = blocking(move || self.look()).await?;
        if sketch.is_empty() {
            anyhow::bail!(
                "{from}: found no field in {}, {} of them unreadable; expected JSON objects, or a CSV with a header line",
                count(sketch.records as u64, "record"),
                sketch.unreadable
            );
        }
        let files = sketch.files(&from);
        // All files or none: a directory with half of them would not run.
        if let Some((name, _)) = files.iter().find(|(name, _)| sql.join(name).exists()) {
            anyhow::bail!("{} is there already; choose another --sql DIR", sql.join(name).display());
        }
        fs::create_dir_all(&sql).with_context(|| format!("cannot make {}", sql.display()))?;
        write_new(&sql, &files)?;
        let view = view_name(&from);
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "looked at {} of {}: {}",
            count(sketch.records as u64, "record"),
            printable(&from),
            count(sketch.len() as u64, "field")
        )?;
        for (name, _) in &files {
            writeln!(out, "wrote {}", sql.join(name).display())?;
        }
        for (name, why) in sketch.left_in_extra() {
            writeln!(out, "field \"{name}\" stays in _extra: {why}")?;
        }
        let numbers = sketch.numbers();
        let features = if numbers.is_empty() { "your numbers".to_owned() } else { numbers.join(", ") };
        writeln!(
            out,
            "next: see `tercile sql -c 'SELECT * FROM {view}'`; then write {}/30_….sql with a first line `-- k: 3`, a blank\n\
             line, and SELECT _partition, _offset, _timestamp, _slice, and features FROM slices. Features can be: {features}",
            sql.display()
        )?;
        Ok(Done::Well)
    }

    /// Infers the fields from the first records.
    fn look(&self) -> anyhow::Result<Inference> {
        let source = Source::named(Path::new(&self.from))?;
        if !matches!(&source, Source::File(path) if !path.exists()) {
            let mut sketch = Inference::default();
            let (mut rows, mut json) = (Rows::open(&source, &self.input.options())?, String::new());
            rows.report();
            while sketch.records < RECORDS && rows.next_row(&mut json)?.is_some() {
                sketch.see(json.as_bytes());
            }
            return Ok(sketch);
        }
        let Some(cluster) = self.kafka.cluster()? else {
            anyhow::bail!("there is no file {}; if it is a topic, add --bootstrap-servers", self.from);
        };
        let topic = cluster.topic(&self.from)?;
        let partitions: Vec<i32> = (0..topic.partitions).collect();
        let lows = cluster.offsets(&topic.name, &partitions, Bound::Earliest)?;
        let start = |(partition, offset)| Start { partition, next: offset, offset, base: 0 };
        let starts: Vec<Start> = lows.into_iter().map(start).collect();
        let reading = Reading { embedded: false, queue_bytes: QUEUE_BYTES, refresh: Duration::from_secs(300) };
        let consumer = Consumer::assign(&cluster, &topic.name, &starts, reading)?;
        let queues: Result<Vec<_>, _> = starts.iter().map(|start| consumer.queue(*start)).collect();
        let queues = queues?;
        let mut sketch = Inference::default();
        let (mut ended, mut heard) = (vec![false; queues.len()], Instant::now());
        while sketch.records < RECORDS && ended.contains(&false) && heard.elapsed() < self.kafka.client.timeout {
            match consumer.poll(Duration::ZERO) {
                Some(Event::Fatal(why)) => anyhow::bail!("cannot read the topic {}: {why}", topic.name),
                Some(Event::Refused(error)) => return Err(error.into()),
                _ => {}
            }
            for (queue, ended) in queues.iter().zip(&mut ended) {
                let mut items = Vec::new();
                queue.take(&mut items, Duration::from_millis(20));
                for item in items {
                    match item {
                        Item::Message(message) => sketch.see(message.record().payload.unwrap_or_default()),
                        Item::End(_) => *ended = true,
                        Item::Refused(code) => return Err(consumer.refused(code).into()),
                        _ => continue,
                    }
                    heard = Instant::now();
                }
            }
        }
        if sketch.records < RECORDS && ended.contains(&false) {
            let why = consumer.failure().map_or_else(String::new, |why| format!(": {why}"));
            let silent = format!("{} gave no more of the topic {} in time{why}", cluster.servers, topic.name);
            if sketch.records == 0 {
                anyhow::bail!("{silent}");
            }
            tracing::warn!("{silent}; going on with {}", count(sketch.records as u64, "record"));
        }
        Ok(sketch)
    }
}

/// Writes all files into a directory, or none. Existing files are never changed.
fn write_new(dir: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    let cannot = |path: &Path, e: io::Error| anyhow::anyhow!("cannot write {}: {e}", path.display());
    let mut staged = Vec::new();
    for (name, text) in files {
        let path = dir.join(name);
        let file = StagedFile::create_in(dir).map_err(|e| cannot(&path, e))?;
        file.file().write_all(text.as_bytes()).map_err(|e| cannot(&path, e))?;
        staged.push((path, file));
    }
    let mut written: Vec<PathBuf> = Vec::new();
    for (path, file) in staged {
        if let Err(e) = file.publish_new(&path) {
            for path in &written {
                let _ = fs::remove_file(path);
            }
            return Err(cannot(&path, e));
        }
        written.push(path);
    }
    Ok(())
}
