//! `tercile broker`: runs the embedded broker alone.

use std::io::Write as _;

use clap::Args;
use tercile_kafka::broker::Embedded;
use tercile_kafka::broker::embedded::PARTITION_LIMIT;

use super::{Done, Stop};
use crate::config::TopicArgs;

/// Run the embedded broker alone, for tests
///
/// It implements Kafka's protocol on a free loopback port; its address is the first line on stdout. It keeps at most 5 MiB of
/// records per partition in memory and drops the oldest beyond that. It has only the topic that it was started with. For
/// anything else, run Apache Kafka.
#[derive(Args)]
pub struct Broker {
    #[command(flatten)]
    topic: TopicArgs,
}

impl Broker {
    pub async fn run(self, mut stop: Stop) -> anyhow::Result<Done> {
        let broker = Embedded::start(&self.topic.topic, self.topic.partitions)?;
        let mut out = std::io::stdout();
        writeln!(out, "{}", broker.address())?;
        out.flush()?;
        tracing::info!(
            "the topic {} has {}; each keeps its newest {} MiB and forgets what is older, read or not",
            self.topic.topic,
            super::count(u64::from(self.topic.partitions.unsigned_abs()), "partition"),
            PARTITION_LIMIT >> 20,
        );
        tracing::info!("Ctrl-C stops it, and everything in it is gone");
        stop.wished().await;
        Ok(Done::Well)
    }
}
