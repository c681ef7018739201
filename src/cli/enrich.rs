//! `tercile enrich`: sends the records of a topic to another topic, each with its segments.

use std::ffi::CString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use tercile_kafka::broker::{Bound, Cluster, Group, Topic, batch_limit};

use super::{Done, Stop, Terminal, Usage, blocking, count, thousands};
use crate::config::{self, KafkaArgs, SqlArgs, StoreArgs, language, seconds};
use crate::enrich::control::Progress;
use crate::enrich::models::{Choice, ModelSource};
use crate::enrich::preview::Preview;
use crate::enrich::record::Field;
use crate::enrich::{self, Control, Job, Target};
use crate::log::PROGRESS;
use crate::model_cache::ModelCache;

/// Interval between progress lines in a JSON log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Default groups are named after the topic that they write, so that workers of the same output share their input.
const GROUP: &str = "tercile-enrich-";

/// Send the records of a topic to another topic, each with its segments
///
/// Each record of --topic is cleaned by the SQL files and scored with the models of the store, as in tercile predict --raw. It goes to
/// --to with its key, its timestamp, its headers and a field `segments`; its other bytes stay as they are. On a Kafka records and
/// positions are committed in transactions: a reader of committed records sees each input record once, whatever fails. Several workers
/// with the same --group share the input. Runs until Ctrl-C; with --until-end, to the end of the topic as it was at the start.
#[derive(Args)]
pub struct Enrich {
    /// Topic of raw records
    #[arg(long, env = "TERCILE_TOPIC", value_name = "NAME", default_value = "products", value_parser = config::topic)]
    topic: String,
    /// Print this number of enriched records to stdout and stop, without a group, and without sending or committing anything
    #[arg(long, env = "TERCILE_LIMIT", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Address at which Prometheus metrics are served, under /metrics [default: none]
    #[arg(long, env = "TERCILE_METRICS", value_name = "ADDRESS", value_parser = crate::config::address)]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    kafka: KafkaArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
}

/// Where enriched records go, and what they get.
#[derive(Args)]
pub(super) struct Options {
    /// Topic that gets the enriched records; it is created if it does not exist
    #[arg(long, env = "TERCILE_TO", value_name = "TOPIC", value_parser = config::topic, required_unless_present = "limit")]
    to: Option<String>,
    /// Number of partitions of a topic that is created [default: as many as the topic of raw records has]
    #[arg(long, env = "TERCILE_PARTITIONS", value_name = "N", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: Option<i32>,
    /// Segmentations to score with, separated by commas [default: all that single records determine]
    #[arg(long, env = "TERCILE_SEGMENTATIONS", value_name = "NAMES", value_delimiter = ',')]
    segmentations: Vec<String>,
    /// Name of the added field; that of the reasons has _reason appended
    #[arg(long, env = "TERCILE_FIELD", value_name = "NAME", default_value = "segments",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    field: String,
    /// Topic for records that cannot be enriched: no JSON object, the field is there already, too large with it [default: they go to
    /// --to as they are]
    #[arg(long, env = "TERCILE_DEAD_LETTERS", value_name = "TOPIC", value_parser = config::topic)]
    dead_letters: Option<String>,
    /// Delivery guarantee; an embedded broker has no transactions, and at-least-once is all that it can do
    #[arg(long, env = "TERCILE_DELIVERY", value_name = "GUARANTEE", default_value = "exactly-once")]
    delivery: Delivery,
    /// Consumer group whose workers share the input, and whose positions decide where reading goes on
    /// [default: tercile-enrich- and the name of --to]
    #[arg(long, env = "TERCILE_GROUP", value_name = "NAME")]
    group: Option<String>,
    /// Static member id of this worker in the group; a restart keeps its partitions without a rebalance, and a second process with
    /// this id ends the first, which exits with 6
    #[arg(long, env = "TERCILE_INSTANCE_ID", value_name = "NAME")]
    instance_id: Option<String>,
    /// Session timeout of the group in seconds: without heartbeats for that long, a worker loses its partitions [default: 45]
    #[arg(long, env = "TERCILE_SESSION_TIMEOUT", value_name = "SECONDS", value_parser = seconds)]
    session_timeout: Option<Duration>,
    /// Where reading begins in partitions without a position of the group: earliest, latest, or a time such as
    /// 2024-05-01T10:00:00+02:00
    #[arg(long, env = "TERCILE_FROM", value_name = "WHERE", default_value = "earliest", value_parser = super::ingest::from)]
    from: Bound,
    /// Continue after a gap: records that were deleted from the topic before they could be read
    #[arg(long, env = "TERCILE_ACCEPT_GAP", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    accept_gap: bool,
    /// Stop at the end of the topic as it was at the start
    #[arg(long, env = "TERCILE_UNTIL_END", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    until_end: bool,
    /// Do not wait for models that are missing: the segment is null, with the reason
    #[arg(long, env = "TERCILE_NO_WAIT", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    no_wait: bool,
    /// Language of the descriptions
    #[arg(long, env = "TERCILE_LANG", value_name = "LANGUAGE", default_value = "en", value_parser = language)]
    lang: String,
}

/// The default group of an output.
pub(super) fn group(to: &str) -> String {
    format!("{GROUP}{to}")
}

/// The delivery guarantee after a failure of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Delivery {
    /// Transactions: each record once for a reader of committed records
    ExactlyOnce,
    /// Acknowledgements: after a failure records may arrive twice
    AtLeastOnce,
}

impl Options {
    /// The defaults of the command line.
    pub(super) fn new(to: &str) -> Self {
        Self {
            to: Some(to.to_owned()),
            partitions: None,
            segmentations: Vec::new(),
            field: "segments".to_owned(),
            dead_letters: None,
            delivery: Delivery::ExactlyOnce,
            group: None,
            instance_id: None,
            session_timeout: None,
            from: Bound::Earliest,
            accept_gap: false,
            until_end: false,
            no_wait: false,
            lang: "en".to_owned(),
        }
    }

    /// A record that is sent to the topic that it came from would be enriched again and again.
    pub(super) fn check_topics(&self, topic: &str) -> Result<(), Usage> {
        let Self { to, dead_letters, .. } = self;
        for (flag, target) in [("--to", to), ("--dead-letters", dead_letters)] {
            if target.as_deref() == Some(topic) {
                return Err(Usage(format!(
                    "{flag} {topic} is the topic of raw records, which would be enriched again and again; name another"
                )));
            }
        }
        if let (Some(to), Some(dead)) = (to, dead_letters)
            && to == dead
        {
            return Err(Usage(format!(
                "--dead-letters {dead} is the topic of --to, which gets such records anyway; leave it out, or name another"
            )));
        }
        Ok(())
    }

    pub(super) fn choice(&self) -> Choice {
        let mut segmentations = Vec::new();
        for name in &self.segmentations {
            if !segmentations.contains(name) {
                segmentations.push(name.clone());
            }
        }
        Choice { segmentations, lang: self.lang.clone() }
    }

    /// Finds or makes the topics, and looks for loops.
    pub(super) async fn job(&self, cluster: Cluster, input: Topic, models: ModelSource) -> anyhow::Result<Job> {
        let to = self.to.as_deref().context("say --to")?;
        let output = self.target(&cluster, &input, to).await?;
        let dead_letters = match &self.dead_letters {
            Some(name) => Some(self.target(&cluster, &input, name).await?),
            None => None,
        };
        let group = self.group.clone().unwrap_or_else(|| group(to));
        let (asked, targets) = (cluster.clone(), [Some(&output), dead_letters.as_ref()]);
        let targets: Vec<Topic> = targets.into_iter().flatten().map(|target| target.topic.clone()).collect();
        let name = input.name.clone();
        blocking(move || check_loop(&asked, &name, &targets)).await?;
        let exactly_once = self.delivery == Delivery::ExactlyOnce && !input.embedded;
        if input.embedded && self.delivery == Delivery::ExactlyOnce {
            tracing::warn!(
                "{} is an embedded broker, which has no transactions: delivery is at-least-once, and after a failure records may \
                 arrive twice; a Kafka delivers exactly once",
                cluster.servers
            );
        }
        tracing::info!(
            "enriching {} ({}) to {to} at {}, {}, as a worker of the group {group}",
            input.name,
            count(u64::from(input.partitions.unsigned_abs()), "partition"),
            cluster.servers,
            if exactly_once { "exactly once" } else { "at least once" },
        );
        Ok(Job {
            cluster,
            input,
            output,
            dead_letters,
            group: Group {
                name: group,
                instance: self.instance_id.clone(),
                session_timeout: self.session_timeout,
                max_poll_interval: None,
            },
            from: self.from,
            until_end: self.until_end,
            accept_gap: self.accept_gap,
            exactly_once,
            no_wait: self.no_wait,
            field: Field::new(&self.field),
            models,
        })
    }

    /// The topic of this name, which is created if it does not exist.
    async fn target(&self, cluster: &Cluster, input: &Topic, name: &str) -> anyhow::Result<Target> {
        let partitions = self.partitions.unwrap_or(input.partitions);
        let (topic, made) = cluster.topic_or_create(name, partitions, &[]).await?;
        if made {
            tracing::info!(
                "made the topic {name} with {}",
                count(u64::from(topic.partitions.unsigned_abs()), "partition")
            );
        }
        let (asked, of) = (cluster.clone(), topic.clone());
        let limit = if topic.embedded { None } else { blocking(move || Ok(batch_limit(&asked, &of.name)?)).await? };
        Ok(Target { name: CString::new(name)?, topic, limit })
    }
}

impl Enrich {
    pub async fn run(self, terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        self.options.check_topics(&self.topic)?;
        let cluster = self.kafka.cluster()?;
        let name = self.topic.clone();
        let asked = cluster.clone();
        let described = stop.unless(blocking(move || Ok(asked.topic(&name)?)));
        let Some(input) = described.await? else { return Ok(Done::Well) };
        let cache = ModelCache::start(&self.store.look()?, self.sql.dir()).await?;
        tokio::spawn(Arc::clone(&cache).watch());
        let models = ModelSource::new(cache, self.options.choice());
        let control = Arc::new(Control::new()?);
        if let Some(limit) = self.limit {
            let (from, field) = (self.options.from, Field::new(&self.options.field));
            let preview = Preview { cluster, input, from, limit, field, models };
            return self.preview(preview, &control, stop).await;
        }
        let Some(job) = stop.unless(self.options.job(cluster, input, models)).await? else { return Ok(Done::Well) };
        if let Some(address) = self.metrics {
            let listener = super::ingest::listen_for_metrics(address).await?;
            tokio::spawn(enrich::metrics::serve(listener, Arc::clone(&control)));
        }
        let began = Instant::now();
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
        report(&control.progress, began.elapsed().as_secs_f64());
        ended?;
        Ok(Done::Well)
    }

    async fn preview(&self, preview: Preview, control: &Arc<Control>, mut stop: Stop) -> anyhow::Result<Done> {
        let halted = Arc::clone(control);
        let mut showing = std::pin::pin!(blocking(move || {
            let mut out = std::io::stdout().lock();
            preview.run(&mut out, &halted.stop)
        }));
        tokio::select! {
            ended = &mut showing => ended.map(|()| Done::Well),
            () = stop.wished() => {
                control.stop();
                showing.await?;
                Ok(Done::With(stop.exit_code()))
            }
        }
    }
}

/// Fails if another enrichment reads one of the targets and writes the input, as its group tells. Loops of other groups are found by
/// the headers of their records.
fn check_loop(cluster: &Cluster, input: &str, targets: &[Topic]) -> anyhow::Result<()> {
    let group = format!("{GROUP}{input}");
    for target in targets {
        let partitions: Vec<i32> = (0..target.partitions).collect();
        let read = match cluster.committed(&group, &target.name, &partitions) {
            Ok(read) => !read.is_empty(),
            Err(error) if error.is_unstable() => true,
            Err(error) => {
                tracing::debug!(%error, "cannot look for loops");
                false
            }
        };
        if read {
            bail!(
                "the group {group} reads {} and writes {input}: the topics would form a loop; choose another --to, or delete that group \
                 if it is not used any more",
                target.name
            );
        }
    }
    Ok(())
}

/// Starts an enrichment on its own thread.
pub(super) fn spawn(
    job: Job,
    control: &Arc<Control>,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let control = Arc::clone(control);
    let (done, ended) = tokio::sync::oneshot::channel();
    let run = move || {
        let _ = done.send(enrich::worker::run(&job, &control));
    };
    std::thread::Builder::new()
        .name("enrich".to_owned())
        .stack_size(super::STACK)
        .spawn(run)
        .context("cannot start the enrich thread")?;
    Ok(async move { ended.await.context("the enrich thread ended without a word")? })
}

/// Logs an event with the counters of an enrichment as fields.
macro_rules! counted {
    (($level:ident, $progress:expr $(, target: $target:expr)?), $($rest:tt)*) => {{
        let n = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let progress: &Progress = $progress;
        tracing::$level!(
            $(target: $target,)?
            read = n(&progress.read),
            enriched = n(&progress.enriched),
            unchanged = n(&progress.unchanged),
            dead_letters = n(&progress.dead_letters),
            tombstones = n(&progress.tombstones),
            batches = n(&progress.batches),
            aborted = n(&progress.aborted),
            $($rest)*
        );
    }};
}

pub(super) fn report(progress: &Progress, seconds: f64) {
    let n = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let read = n(&progress.read);
    counted!(
        (info, progress),
        "read {}: {} enriched, {} as they were, {} as dead letters{}, in {} ({} a second)",
        count(read, "record"),
        thousands(n(&progress.enriched)),
        thousands(n(&progress.unchanged)),
        thousands(n(&progress.dead_letters)),
        super::ingest::tombstones(n(&progress.tombstones)),
        count(n(&progress.batches), "transaction"),
        thousands((read as f64 / seconds.max(1e-9)) as u64),
    );
}

/// Shows progress: one updated line if stderr is a terminal, one line every ten seconds in JSON logs.
async fn watch(terminal: Terminal, control: Arc<Control>) {
    let bar = terminal.bar(None);
    let progress = &control.progress;
    let (mut drawn, mut logged) = ((Instant::now(), 0), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let read = progress.read.load(Ordering::Relaxed);
        let lags = progress.lags();
        let behind = lags.values().sum::<i64>();
        let rate = (read - drawn.1) as f64 / drawn.0.elapsed().as_secs_f64();
        drawn = (Instant::now(), read);
        if logged.elapsed() >= LOG_INTERVAL {
            logged = Instant::now();
            counted!(
                (debug, progress, target: PROGRESS),
                records_per_second = rate,
                lag = behind,
                lags = ?lags,
                "progress"
            );
        }
        let (enriched, behind) = (progress.enriched.load(Ordering::Relaxed), behind.unsigned_abs());
        bar.set_message(format!(
            "{} records, {} enriched, {}/s, {} behind",
            thousands(read),
            thousands(enriched),
            thousands(rate as u64),
            thousands(behind)
        ));
        bar.tick();
    }
}
