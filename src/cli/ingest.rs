//! `tercile ingest`

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Done, Terminal, count, thousands};
use crate::config::{BatchArgs, KafkaArgs, SqlArgs, StoreArgs, TopicArgs};
use crate::ingest::{self, Control, Job, Summary};

/// Read a topic into the store
///
/// Goes on where the store ends, and runs until Ctrl-C, or with --until-end to the end of the topic as it was at start.
/// Each record is stored once; what can't be read as a JSON object is stored with its bytes and the reason.
#[derive(Args)]
pub struct Ingest {
    /// Stop at the end of the topic as it was at start
    #[arg(long, env = "TERCILE_UNTIL_END", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    until_end: bool,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    topic: TopicArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
    #[command(flatten)]
    batch: BatchArgs,
}

impl Ingest {
    pub async fn run(self, terminal: &Terminal) -> anyhow::Result<Done> {
        let fields = self.sql.load()?.fields;
        let cluster = self.kafka.cluster();
        let store = self.store.open()?;
        let name = self.topic.topic.clone();
        let asked = cluster.clone();
        let topic = super::blocking(move || Ok(asked.topic(&name)?)).await?;
        let source = store.claim(&topic.name, &topic.id, topic.partitions)?;
        tracing::info!(
            "reading {} ({}) at {} into {}",
            topic.name,
            count(u64::from(source.partitions.unsigned_abs()), "partition"),
            cluster.servers,
            store.root().display()
        );
        let job = Job {
            cluster,
            topic: topic.name,
            partitions: topic.partitions,
            store,
            fields,
            limits: self.batch.limits(),
            until_end: self.until_end,
            embedded: None,
        };
        let control = Arc::new(Control::default());
        let running = spawn(job, &control)?;
        let watching = tokio::spawn(watch(terminal.clone(), Arc::clone(&control)));
        let mut running = std::pin::pin!(running);
        let ended = tokio::select! {
            ended = &mut running => ended,
            stopped = super::stop_signal() => {
                stopped?;
                control.stop();
                running.await
            }
        };
        watching.abort();
        terminal.bars.clear()?;
        let summary = ended?;
        report(&summary);
        Ok(if summary.gaps.is_empty() { Done::Well } else { Done::With(4) })
    }
}

/// Starts an ingest on a thread of its own.
pub(super) fn spawn(
    job: Job,
    control: &Arc<Control>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<Summary>> + use<>> {
    let control = Arc::clone(control);
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("ingest".to_owned())
        .spawn(move || {
            let _ = done.send(ingest::run(&job, &control));
        })
        .context("cannot start the ingest thread")?;
    Ok(async move { Ok(ended.await.context("the ingest thread ended without a word")??) })
}

pub(super) fn report(summary: &Summary) {
    tracing::info!(
        received = summary.received,
        stored = summary.stored,
        unreadable = summary.unreadable,
        files = summary.files,
        "received {}, stored {} in {} ({} unreadable)",
        count(summary.received, "record"),
        thousands(summary.stored),
        count(summary.files, "file"),
        thousands(summary.unreadable),
    );
    for gap in &summary.gaps {
        tracing::error!("{gap}");
    }
}

async fn watch(terminal: Terminal, control: Arc<Control>) {
    let bar = terminal.bar(None);
    let progress = &control.progress;
    let mut before = (0, 0);
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = (progress.received.load(Ordering::Relaxed), progress.received_bytes.load(Ordering::Relaxed));
        bar.set_message(format!(
            "{} records, {} stored, {}/s, {:.1} MB/s",
            thousands(now.0),
            thousands(progress.stored.load(Ordering::Relaxed)),
            thousands((now.0 - before.0) * 2),
            (now.1 - before.1) as f64 * 2e-6,
        ));
        bar.tick();
        before = now;
    }
}
