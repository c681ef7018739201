//! `tercile ingest`: reads a topic into the store.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tercile_kafka::broker::{Bound, Group};
use tercile_kafka::ingest::{self, Control, Job, Progress, Summary};
use tercile_store::record::Json;

use super::notify::Notifying;
use super::{Done, Stop, Terminal, Usage, count, source_topics, thousands};
use crate::api;
use crate::config::{BatchArgs, IngestNotifyArgs, KafkaArgs, RollArgs, SourceArgs, SqlArgs, StoreArgs, seconds};
use crate::log::PROGRESS;
use crate::notify::{Notifier, watch as checks};

/// Time that a stop waits for an ingest that has not read anything yet.
const STOP_GRACE: Duration = Duration::from_millis(500);
/// Interval between progress lines in a JSON log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Read a topic into the store
///
/// Resumes where the store ends and runs until Ctrl-C; with --until-end, to the end of the topic as it was at the start. Each
/// record is stored exactly once. Records that are not JSON objects are stored with their bytes and the reason.
#[derive(Args)]
pub struct Ingest {
    /// Stop at the end of the topic as it was at the start
    #[arg(long, env = "TERCILE_UNTIL_END", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    until_end: bool,
    /// Consumer group that shares the topic among its workers [default: none, this worker reads all partitions]
    #[arg(long, env = "TERCILE_GROUP", value_name = "NAME", conflicts_with = "until_end")]
    group: Option<String>,
    /// Static member id of this worker in the group; a restart keeps its partitions without a rebalance
    #[arg(long, env = "TERCILE_INSTANCE_ID", value_name = "NAME", requires = "group")]
    instance_id: Option<String>,
    /// Session timeout of the group in seconds: without heartbeats for that long, a worker loses its partitions [default: 45]
    #[arg(long, env = "TERCILE_SESSION_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    session_timeout: Option<Duration>,
    /// Maximum number of seconds between two polls before a worker loses its partitions [default: 300]
    #[arg(long, env = "TERCILE_MAX_POLL_INTERVAL", value_name = "SECONDS", value_parser = seconds)]
    max_poll_interval: Option<Duration>,
    /// Where a store without records begins to read: earliest, latest, or a time such as 2024-05-01T10:00:00+02:00 (UTC where no
    /// zone is given), compared with the timestamps of Kafka [default: earliest]
    #[arg(long, env = "TERCILE_FROM", value_name = "WHERE", value_parser = from)]
    from: Option<Bound>,
    /// Continue after a gap: records that were deleted from the topic before they could be read
    #[arg(long, env = "TERCILE_ACCEPT_GAP", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    accept_gap: bool,
    /// Address at which Prometheus metrics are served, under /metrics [default: none]
    #[arg(long, env = "TERCILE_METRICS", value_name = "ADDRESS", value_parser = crate::config::address)]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    topic: SourceArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    roll: RollArgs,
    #[command(flatten)]
    notify: IngestNotifyArgs,
}

/// The listener of `--metrics`.
pub(super) async fn listen_for_metrics(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    let cannot = || format!("cannot listen at {address} for metrics; choose another --metrics");
    let listener = tokio::net::TcpListener::bind(address).await.with_context(cannot)?;
    tracing::info!("metrics at http://{}/metrics", listener.local_addr()?);
    Ok(listener)
}

impl Ingest {
    pub async fn run(self, terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        let twice = [
            ("session.timeout.ms", "--session-timeout", self.session_timeout),
            ("max.poll.interval.ms", "--max-poll-interval", self.max_poll_interval),
        ];
        for (key, flag, given) in twice {
            if given.is_some() && self.kafka.client.settings.iter().any(|(known, _)| known == key) {
                return Err(Usage(format!("{flag} and -X {key} say the same; leave one out")).into());
            }
        }
        let files = self.sql.load()?;
        let event_time = files.event_time();
        let cluster = self.kafka.cluster()?;
        let store = self.store.open()?;
        let (named, asked, into, fields) = (self.topic.clone(), cluster.clone(), store.clone(), files.fields.clone());
        let described = stop.unless(super::blocking(move || source_topics::find(&named, &asked, &into, &fields)));
        let Some(topic) = described.await? else { return Ok(Done::Well) };
        store.claim(&topic.name, &topic.id, topic.partitions)?;
        tracing::info!(
            "reading {} ({}) at {} into {}",
            topic.name,
            count(topic.numbers.len() as u64, "partition"),
            cluster.servers,
            store.root().display()
        );
        let job = Job {
            cluster,
            topic: topic.name,
            partitions: topic.numbers,
            store,
            decoder: Arc::new(Json),
            fields: files.fields,
            event_time,
            limits: self.batch.limits(),
            memory: self.batch.memory_limit,
            until_end: self.until_end,
            group: self.group.map(|name| Group {
                name,
                instance: self.instance_id,
                session_timeout: self.session_timeout,
                max_poll_interval: self.max_poll_interval,
            }),
            from: self.from,
            accept_gap: self.accept_gap,
            roll: self.roll.policy(false),
            upkeep: self.batch.upkeep,
            embedded: false,
            backlog: None,
        };
        let control = Arc::new(Control::default());
        let notifier = self.notify.notify.start(&job.store)?;
        if let Some(address) = self.metrics {
            let listener = listen_for_metrics(address).await?;
            let others = notifier.as_ref().map(Notifier::collectors).unwrap_or_default();
            tokio::spawn(api::ingest_metrics::serve(listener, Arc::clone(&control), others));
        }
        let watched = checks::Ingest { control: Arc::clone(&control), lag_limit: self.notify.lag_limit() };
        let notifying = notifier.map(|notifier| Notifying::start(notifier, Some(watched)));
        let running = spawn(job, &control)?;
        let watching = tokio::spawn(watch(terminal.clone(), Arc::clone(&control)));
        let (mut running, mut by_itself) = (std::pin::pin!(running), true);
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = stop.wished() => {
                by_itself = false;
                control.stop();
                ended(running, &control).await
            }
        };
        watching.abort();
        terminal.bars.clear()?;
        if let Some(notifying) = notifying {
            notifying.end(Some(&ended).filter(|ended| by_itself || ended.is_err())).await;
        }
        let summary = ended?;
        report(&summary);
        Ok(if summary.gaps.is_empty() { Done::Well } else { Done::With(4) })
    }
}

/// A position in a topic: a word, or a time by the rules of `to_datetime`.
pub(super) fn from(text: &str) -> Result<Bound, String> {
    match text {
        "earliest" => Ok(Bound::Earliest),
        "latest" => Ok(Bound::Latest),
        // Kafka takes negative times for words.
        time => crate::value::time::time(time, None)
            .map(|micros| Bound::At(micros.div_euclid(1_000).max(0)))
            .ok_or_else(|| "expected earliest, latest, or a time such as 2024-05-01T10:00:00+02:00".to_owned()),
    }
}

/// Starts an ingest on its own thread.
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

/// Waits for an ingest that was told to stop. An ingest that has not read anything yet has nothing to store and may
/// wait for a broker that does not answer; it is abandoned after [`STOP_GRACE`].
pub(super) async fn ended(
    running: impl Future<Output = anyhow::Result<Summary>>,
    control: &Control,
) -> anyhow::Result<Summary> {
    let mut running = std::pin::pin!(running);
    loop {
        match tokio::time::timeout(STOP_GRACE, &mut running).await {
            Ok(ended) => return ended,
            Err(_) if control.is_reading() => {}
            Err(_) => return Ok(control.progress.summary(Vec::new())),
        }
    }
}

/// `, 3 tombstones`; nothing if there are none.
pub(super) fn tombstones(tombstones: u64) -> String {
    if tombstones == 0 { String::new() } else { format!(", {}", count(tombstones, "tombstone")) }
}

/// `, 3 with the timestamp of Kafka`; nothing if there are none.
fn kafka_timestamps(records: u64) -> String {
    if records == 0 { String::new() } else { format!(", {} with the timestamp of Kafka", thousands(records)) }
}

pub(super) fn report(summary: &Summary) {
    tracing::info!(
        received = summary.received,
        stored = summary.stored,
        unreadable = summary.unreadable,
        tombstones = summary.tombstones,
        without_event_time = summary.without_event_time,
        files = summary.files,
        "received {}, stored {} in {} ({} unreadable{}{})",
        count(summary.received, "record"),
        thousands(summary.stored),
        count(summary.files, "file"),
        thousands(summary.unreadable),
        tombstones(summary.tombstones),
        kafka_timestamps(summary.without_event_time),
    );
    for gap in &summary.gaps {
        tracing::error!("{gap}");
    }
}

/// Shows progress: one updated line if stderr is a terminal, one line every ten seconds in JSON logs.
async fn watch(terminal: Terminal, control: Arc<Control>) {
    let bar = terminal.bar(None);
    let progress = &control.progress;
    let mut drawn = Rate::new();
    let mut logged = Rate::new();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let lags = progress.lags();
        let file = progress.last_file();
        let file = file.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
        let stored = progress.stored.load(Ordering::Relaxed);
        if logged.since.elapsed() >= LOG_INTERVAL {
            let (records_per_second, bytes_per_second) = logged.next(progress);
            tracing::debug!(
                target: PROGRESS,
                received = logged.records,
                stored,
                unreadable = progress.unreadable.load(Ordering::Relaxed),
                tombstones = progress.tombstones.load(Ordering::Relaxed),
                without_event_time = progress.without_event_time.load(Ordering::Relaxed),
                records_per_second,
                bytes_per_second,
                lag = lags.values().sum::<i64>(),
                lags = ?lags,
                last_file = file,
                "progress"
            );
        }
        let (records, bytes) = drawn.next(progress);
        let file = file.map_or_else(String::new, |stem| format!(", last file {}", stem.trim_start_matches('0')));
        bar.set_message(format!(
            "{} records, {} stored, {}/s, {:.1} MB/s, {} behind{file}",
            thousands(drawn.records),
            thousands(stored),
            thousands(records as u64),
            bytes * 1e-6,
            thousands(lags.values().sum::<i64>().unsigned_abs()),
        ));
        bar.tick();
    }
}

/// Records and bytes per second since the last call.
struct Rate {
    since: Instant,
    records: u64,
    bytes: u64,
}

impl Rate {
    fn new() -> Self {
        Self { since: Instant::now(), records: 0, bytes: 0 }
    }

    fn next(&mut self, progress: &Progress) -> (f64, f64) {
        let (records, bytes) =
            (progress.received.load(Ordering::Relaxed), progress.received_bytes.load(Ordering::Relaxed));
        let seconds = self.since.elapsed().as_secs_f64();
        let rates = ((records - self.records) as f64 / seconds, (bytes - self.bytes) as f64 / seconds);
        *self = Self { since: Instant::now(), records, bytes };
        rates
    }
}
