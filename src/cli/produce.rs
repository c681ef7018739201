//! `tercile produce`

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use clap::Args;

use super::{Done, Terminal, count, thousands};
use crate::broker::Producer;
use crate::broker::embedded::PARTITION_LIMIT;
use crate::config::{KafkaArgs, TopicArgs};
use crate::produce::{self, Options};
use crate::rows::{self, Rows, Source};

/// Send a CSV or NDJSON file to a topic, one JSON object per row
///
/// Values go as they are. A file is read to its end first, and nothing of it is sent if there is a fault in it. Every
/// row is acknowledged by all replicas, or named.
#[derive(Args)]
pub struct Produce {
    /// The file; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Rows a second [default: as fast as it goes]
    #[arg(long, env = "TERCILE_RATE", value_name = "N", value_parser = rate)]
    rate: Option<f64>,
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
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        let source = if self.file == Path::new("-") { Source::Stdin } else { Source::File(self.file) };
        // What comes through a pipe is gone once read.
        let file = if source == Source::Stdin {
            None
        } else {
            let source = source.clone();
            Some(super::blocking(move || Ok(rows::check(&source)?)).await?)
        };
        if file.as_ref().is_some_and(|file| file.rows == 0) {
            anyhow::bail!("{}: expected rows, found none", source.name().display());
        }
        let cluster = self.kafka.cluster()?;
        let (topic, made) = cluster.topic_or_create(&self.topic.topic, self.topic.partitions).await?;
        if made {
            let partitions = count(u64::from(topic.partitions.unsigned_abs()), "partition");
            tracing::info!("made the topic {} with {partitions}", topic.name);
        }
        if source.size().is_some_and(|bytes| bytes > PARTITION_LIMIT as u64) && cluster.is_embedded()? {
            tracing::warn!(
                "{} is an embedded broker: it forgets all but the newest {} MiB of a partition, read or not",
                cluster.servers,
                PARTITION_LIMIT >> 20
            );
        }
        let bar = terminal.bar(source.size());
        let total = file.map(|file| file.rows);
        let rate = self.rate;
        let start = Instant::now();
        let (name, drawn) = (source.name(), bar.clone());
        let acknowledged = super::blocking(move || {
            let mut rows = Rows::open(&source)?;
            let producer = Producer::new(&cluster, &topic.name)?;
            let options = Options { rate, replay: None };
            let tick = |rows: u64, bytes: u64| {
                drawn.set_position(bytes);
                drawn.set_message(format!("{} rows", thousands(rows)));
            };
            Ok(produce::send(producer, &mut rows, &options, &AtomicBool::new(false), tick)?)
        })
        .await;
        bar.finish_and_clear();
        let sent = acknowledged?.records;
        if let Some(total) = total.filter(|total| *total != sent) {
            anyhow::bail!("{} had {total} rows when it was read first, and {sent} were sent", name.display());
        }
        let seconds = start.elapsed().as_secs_f64();
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
}
