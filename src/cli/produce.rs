//! `tercile produce`: sends the rows of a file or of a pipe to a topic.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use tercile_kafka::broker::embedded::PARTITION_LIMIT;
use tercile_kafka::broker::{Acknowledged, Cluster, Producer};

use super::{Done, Stop, Terminal, count, thousands};
use crate::config::{InputArgs, KafkaArgs, KeyArgs, TopicArgs};
use crate::files::{self, Options as Dialects, Rows, Source};
use crate::produce::{self, Key, Options, Pipe};

/// Send a CSV or JSON file to a topic, one JSON object per row
///
/// Values are sent unchanged. A file is checked completely before its first row is sent; rows of a pipe are sent as they arrive.
/// Every row is acknowledged by all replicas, or the error names the first row that was not. After Ctrl-C the rows that were
/// read are sent, and the number of acknowledged rows is printed.
#[derive(Args)]
pub struct Produce {
    /// The file, a directory, or a quoted pattern of files; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Maximum rows per second [default: no limit]
    #[arg(long, env = "TERCILE_RATE", value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    topic: TopicArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "expected a number of rows a second above 0".to_owned())
}

impl Produce {
    pub async fn run(self, terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        let Some((source, key, total, cluster, topic)) = stop.unless(self.prepare()).await? else {
            return Ok(Done::With(stop.exit_code()));
        };
        let bar = terminal.bar(source.size());
        let start = Instant::now();
        let (name, drawn) = (source.name(), bar.clone());
        let (halt, rate, dialects) = (Arc::new(AtomicBool::new(false)), self.rate, self.input.options());
        let (halted, sent_key) = (Arc::clone(&halt), key.clone());
        let sending = super::blocking(move || {
            let tick = |rows: u64, bytes: u64| {
                drawn.set_position(bytes);
                drawn.set_message(format!("{} rows", thousands(rows)));
            };
            let options = Options { rate, key: sent_key.as_deref(), replay: None };
            send(&cluster, &topic, (source, &dialects), &options, &halted, tick)
        });
        let mut sending = std::pin::pin!(sending);
        let acknowledged = tokio::select! {
            ended = &mut sending => ended,
            () = stop.wished() => {
                halt.store(true, Ordering::SeqCst);
                sending.await
            }
        };
        bar.finish_and_clear();
        let Acknowledged { records: sent, unknown, .. } = acknowledged?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(keyless) = key.and_then(|key| key.keyless()) {
            tracing::warn!("{}: {keyless}", name.display());
        }
        if halt.load(Ordering::SeqCst) {
            tracing::warn!(
                rows = sent,
                unknown,
                "stopped: {} of {} were acknowledged by {}{}",
                count(sent, "row"),
                name.display(),
                self.topic.topic,
                if unknown > 0 { format!(", {} more may have arrived", thousands(unknown)) } else { String::new() }
            );
            return Ok(Done::With(stop.exit_code()));
        }
        if let Some(total) = total.filter(|total| *total != sent) {
            anyhow::bail!("{} had {total} rows when it was read first, and {sent} were sent", name.display());
        }
        tracing::info!(
            rows = sent,
            seconds,
            "sent {} of {} to {}, all acknowledged, in {seconds:.2} s ({} a second)",
            count(sent, "row"),
            name.display(),
            self.topic.topic,
            thousands((sent as f64 / seconds.max(1e-9)) as u64),
        );
        Ok(Done::Well)
    }

    /// Checks the file and finds or creates the topic. Returns the source, the key, the number of rows if counted, the
    /// cluster and the topic.
    async fn prepare(&self) -> anyhow::Result<(Source, Option<Arc<Key>>, Option<u64>, Cluster, String)> {
        let source = Source::named(&self.file)?;
        // Data from a pipe can be read only once.
        let total = if source.is_pipe() {
            None
        } else {
            let (source, dialects) = (source.clone(), self.input.options());
            Some(super::blocking(move || Ok(files::check(&source, &dialects)?)).await?.rows)
        };
        if total == Some(0) {
            anyhow::bail!("{}: expected rows, found none", source.name().display());
        }
        let (asked, given, dialects) = (source.clone(), self.key.clone(), self.input.options());
        let key = super::blocking(move || Ok(given.of(&asked, &dialects)?)).await?.map(Arc::new);
        let cluster = self.kafka.cluster()?;
        let (topic, made) = cluster.topic_or_create(&self.topic.topic, self.topic.partitions, &[]).await?;
        if made {
            let partitions = count(u64::from(topic.partitions.unsigned_abs()), "partition");
            tracing::info!("made the topic {} with {partitions}", topic.name);
        }
        if topic.embedded && source.size().is_some_and(|bytes| bytes > PARTITION_LIMIT as u64) {
            tracing::warn!(
                "{} is an embedded broker: it forgets all but the newest {} MiB of a partition, read or not",
                cluster.servers,
                PARTITION_LIMIT >> 20
            );
        }
        Ok((source, key, total, cluster, topic.name))
    }
}

/// Sends the rows of a source. Blocks until each row is acknowledged or has failed.
fn send(
    cluster: &Cluster,
    topic: &str,
    (source, dialects): (Source, &Dialects),
    options: &Options<'_>,
    halt: &AtomicBool,
    tick: impl FnMut(u64, u64),
) -> anyhow::Result<Acknowledged> {
    let producer = Producer::new(cluster, topic)?;
    Ok(if source.is_pipe() {
        let name = source.name();
        let mut pipe = Pipe::open(source, dialects.clone())
            .with_context(|| format!("cannot start the thread that reads {}", name.display()))?;
        produce::send(producer, &mut pipe, options, halt, tick)?
    } else {
        let mut rows = Rows::open(&source, dialects)?;
        rows.report();
        produce::send(producer, &mut rows, options, halt, tick)?
    })
}
