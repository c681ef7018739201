//! `tercile ingest`

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::{Done, Stop, Terminal, count, thousands};
use crate::broker::Group;
use crate::config::{BatchArgs, KafkaArgs, RollArgs, SqlArgs, StoreArgs, TopicArgs, seconds};
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
    /// Share the topic with the other workers of this group [default: read all of it alone]
    #[arg(long, env = "TERCILE_GROUP", value_name = "NAME", conflicts_with = "until_end")]
    group: Option<String>,
    /// This worker's name in the group, which makes it static: it comes back to its partitions without a rebalance
    #[arg(long, env = "TERCILE_INSTANCE_ID", value_name = "NAME", requires = "group")]
    instance_id: Option<String>,
    /// Seconds without a sign of life after which the others of the group take a worker's partitions
    #[arg(long, env = "TERCILE_SESSION_TIMEOUT", value_name = "SECONDS", default_value = "45", value_parser = seconds)]
    session_timeout: Duration,
    /// Where records were gone before they could be read, go on after them
    #[arg(long, env = "TERCILE_ACCEPT_GAP", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    accept_gap: bool,
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
    #[command(flatten)]
    roll: RollArgs,
}

impl Ingest {
    pub async fn run(self, terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        let fields = self.sql.load()?.fields;
        let cluster = self.kafka.cluster()?;
        let store = self.store.open()?;
        let name = self.topic.topic.clone();
        let asked = cluster.clone();
        let described = stop.unless(super::blocking(move || Ok(asked.topic(&name)?)));
        let Some(topic) = described.await? else { return Ok(Done::Well) };
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
            group: self.group.map(|name| Group {
                name,
                instance: self.instance_id,
                session_timeout: self.session_timeout,
            }),
            accept_gap: self.accept_gap,
            roll: self.roll.policy(false),
            embedded: false,
            backlog: None,
        };
        let control = Arc::new(Control::default());
        let running = spawn(job, &control)?;
        let watching = tokio::spawn(watch(terminal.clone(), Arc::clone(&control)));
        let mut running = std::pin::pin!(running);
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = stop.wished() => {
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
        let lag: i64 = progress.lags().values().sum();
        let file = progress.last_file();
        let file = file
            .as_deref()
            .and_then(|path| path.file_stem())
            .map_or_else(String::new, |stem| format!(", last file {}", stem.to_string_lossy().trim_start_matches('0')));
        bar.set_message(format!(
            "{} records, {} stored, {}/s, {:.1} MB/s, {} behind{file}",
            thousands(now.0),
            thousands(progress.stored.load(Ordering::Relaxed)),
            thousands((now.0 - before.0) * 2),
            (now.1 - before.1) as f64 * 2e-6,
            thousands(lag.unsigned_abs()),
        ));
        bar.tick();
        before = now;
    }
}
