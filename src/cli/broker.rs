//! `tercile broker`: runs the embedded broker alone.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;
use tercile_kafka::broker::Embedded;
use tercile_kafka::broker::embedded::PARTITION_LIMIT;

use super::{Done, Stop};
use crate::config;

/// Run the embedded broker alone, for tests
///
/// It implements Kafka's protocol on a free loopback port; its address is the first line on stdout. It keeps at most 5 MiB of
/// records per partition in memory and drops the oldest beyond that. It has only the topics that it was started with. For
/// anything else, run Apache Kafka.
#[derive(Args)]
pub struct Broker {
    /// Name of a topic; may be repeated
    #[arg(long, env = "TERCILE_TOPIC", value_name = "NAME", default_value = "products", value_parser = config::topic)]
    topic: Vec<String>,
    /// Number of partitions of each topic
    #[arg(long, env = "TERCILE_PARTITIONS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
}

impl Broker {
    pub async fn run(self, mut stop: Stop) -> anyhow::Result<Done> {
        let (first, others) = self.topic.split_first().context("name a topic with --topic")?;
        let broker = Embedded::start(first, self.partitions)?;
        for (i, topic) in others.iter().enumerate() {
            // A topic that is named twice is one topic.
            if topic != first && !others[..i].contains(topic) {
                broker.add(topic, self.partitions)?;
            }
        }
        let mut out = std::io::stdout();
        writeln!(out, "{}", broker.address())?;
        out.flush()?;
        let partitions = super::count(u64::from(self.partitions.unsigned_abs()), "partition");
        let topics = match others.is_empty() {
            true => format!("the topic {first} has {partitions}"),
            false => format!("the topics {} have {partitions} each", self.topic.join(", ")),
        };
        let mebibytes = PARTITION_LIMIT >> 20;
        tracing::info!("{topics}; each keeps its newest {mebibytes} MiB and forgets what is older, read or not");
        tracing::info!("Ctrl-C stops it, and everything in it is gone");
        stop.wished().await;
        Ok(Done::Well)
    }
}
