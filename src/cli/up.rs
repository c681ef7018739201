//! `tercile up`: runs the complete pipeline: broker, ingest, training and API.

mod enriching;
mod replayed_file;
mod training_log;

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use enriching::{EnrichArgs, Enriching};
use replayed_file::File;
use tercile_kafka::broker::embedded::Backlog;
use tercile_kafka::broker::{Acknowledged, Bound, Cluster, Embedded, Producer, Topic};
use tercile_kafka::ingest::{Control, Job};
use tercile_store::record::Json;
use tercile_store::{EMBEDDED, Source, Store};
use training_log::TrainingLog;

use super::notify::Notifying;
use super::{Done, Stop, Terminal, Usage, count, ingest, serve, source_topics, thousands};
use crate::api::{self, State, budget::Budget, example_request};
use crate::config::{
    BatchArgs, BindArgs, BodyArgs, DriftArgs, GuardArgs, HttpSqlArgs, IngestNotifyArgs, InputArgs, KeyArgs,
    MaybeKafkaArgs, RollArgs, SourceArgs, SqlArgs, StoreArgs, TrainingArgs, seconds,
};
use crate::files::Rows;
use crate::model_cache::ModelCache;
use crate::notify::watch;
use crate::printable::shell_word;
use crate::produce::{self, Options, Replay};
use crate::sql::Files;

/// Run the complete pipeline: broker, replay, ingest, training, API
///
/// Starts an embedded broker (or reads from --bootstrap-servers), replays a file into it, stores the records, trains models,
/// and serves predictions. Continues to consume, and trains again as the store grows, until Ctrl-C. A second run on the same
/// store resumes where the first stopped, and stores no record twice.
#[derive(Args)]
pub struct Up {
    /// A CSV or JSON file to replay, a directory or a quoted pattern of files, or - for stdin [default: the shipped sample, with the embedded broker and a store of its own]
    #[arg(long, env = "TERCILE_DATA", value_name = "FILE")]
    data: Option<PathBuf>,
    /// Replay another file into a store that was fed from one; of a file that has grown, only its new rows are sent
    #[arg(long, env = "TERCILE_APPEND", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    append: bool,
    /// Where a store without records begins to read a topic of --bootstrap-servers: earliest, latest, or a time such as
    /// 2024-05-01T10:00:00+02:00 (UTC where no zone is given), compared with the timestamps of Kafka [default: earliest]
    #[arg(long, env = "TERCILE_FROM", value_name = "WHERE", value_parser = ingest::from)]
    from: Option<Bound>,
    /// Minimum number of seconds between two trainings
    #[arg(long, env = "TERCILE_RETRAIN_EVERY", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    retrain_every: Duration,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    bind: BindArgs,
    #[command(flatten)]
    guard: GuardArgs,
    #[command(flatten)]
    http_sql: HttpSqlArgs,
    #[command(flatten)]
    bodies: BodyArgs,
    #[command(flatten)]
    kafka: MaybeKafkaArgs,
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
    training: TrainingArgs,
    #[command(flatten)]
    drift: DriftArgs,
    #[command(flatten)]
    notify: IngestNotifyArgs,
    #[command(flatten)]
    enrich: EnrichArgs,
}

/// Backoff between attempts at the first training: initial and maximum delay.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(60);

/// The Kafka cluster that `up` reads from. An embedded broker lives as long as this value.
struct Stream {
    cluster: Cluster,
    source: Source,
    partitions: Vec<i32>,
    /// Back-pressure for the replay, if the broker is embedded (in this or another process).
    backlog: Option<Arc<Backlog>>,
    embedded: Option<Embedded>,
}

impl Up {
    pub async fn run(self, terminal: &Terminal, stop: Stop) -> anyhow::Result<Done> {
        if self.from.is_some() && !self.kafka.is_given()? {
            return Err(
                Usage("--from is for a topic of a Kafka; add --bootstrap-servers, or leave it out".to_owned()).into()
            );
        }
        self.enrich.check(&self.kafka, &self.topic)?;
        let files = self.sql.load()?;
        let is_new = !Store::at(&self.store.store)?.exists()?;
        let store = self.store.open()?;
        let ended = self.pipeline(files, store.clone(), terminal, stop).await;
        if is_new && ended.is_err() {
            store.remove_if_empty();
        }
        ended
    }

    async fn pipeline(self, files: Files, store: Store, terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        let guard = self.guard.guard(self.bind.bind, &store)?;
        let _only_one = store.lock()?;
        let prepared = stop.unless(async {
            let live = ModelCache::start(&store, self.sql.dir()).await?;
            let listener = serve::listen(self.bind.bind)?;
            let file = self.file(&store, files.fields.names()).await?;
            let stream = self.stream(&store).await?;
            if let Some(file) = &file {
                self.admit(&store, &stream.source, file).await?;
            }
            let enriching = self.enrich.prepare(&stream.cluster, &self.topic.topic, &live).await?;
            Ok((live, listener, file, stream, enriching))
        });
        let Some((live, listener, file, stream, enriching)) = prepared.await? else { return Ok(Done::Well) };

        let address = listener.local_addr()?;
        let control = Arc::new(Control::default());
        let job = Job {
            cluster: stream.cluster.clone(),
            topic: stream.source.topic.clone(),
            partitions: stream.partitions.clone(),
            store: store.clone(),
            decoder: Arc::new(Json),
            fields: files.fields.clone(),
            event_time: files.event_time(),
            limits: self.batch.limits(),
            memory: self.batch.memory_limit.saturating_sub(self.batch.http_memory()).max(1),
            until_end: false,
            group: None,
            from: self.from,
            accept_gap: false,
            roll: self.roll.policy(false),
            upkeep: self.batch.upkeep,
            embedded: stream.embedded.is_some(),
            backlog: stream.backlog.clone(),
        };
        let ingesting = ingest::spawn(job, &control)?;
        let sql = self.http_sql.confined(&store, &self.sql).map_err(anyhow::Error::msg)?;
        let (bodies, budget) = (self.bodies.bodies(), Budget::new(self.batch.http_memory()));
        let mut state = State::new(&store, live, Some(Arc::clone(&control)), true, sql, bodies, budget)?;
        state.trainer.options = self.training.options();
        state.drift_interval = self.drift.interval();
        let notifier = self.notify.notify.start(&store)?;
        let watched = watch::Ingest { control: Arc::clone(&control), lag_limit: self.notify.lag_limit() };
        let notifying = notifier.map(|notifier| Notifying::start(notifier, Some(watched)));
        if let Some(notifying) = &notifying {
            state.notify(&notifying.notifier)?;
        }
        let trainings = Arc::new(TrainingLog::default());
        state.trainer.subscribers.add(trainings.clone());
        if let Some(enriching) = &enriching {
            enriching.register(&state)?;
        }
        let mut enriching = enriching.map(Enriching::start).transpose()?;
        let state = Arc::new(state);
        let (stop_serving, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(api::serve(listener, Arc::clone(&state), guard, async {
            let _ = stopped.await;
        }));

        let cut = Arc::new(AtomicBool::new(false));
        let work = self.work(&store, &stream, file, (&state, &trainings), &control, &cut, terminal, address);
        let (mut ingesting, mut serving) = (std::pin::pin!(ingesting), std::pin::pin!(serving));
        let (mut ingested, mut served) = (None, None);
        let ended = tokio::select! {
            ended = work => ended,
            () = stop.wished() => Ok(()),
            // All partitions halted or the ingest failed: no more records will arrive, and the summary or error
            // states the reason.
            summary = &mut ingesting => { ingested = Some(summary); Ok(()) }
            ended = &mut serving => { served = Some(ended); Ok(()) }
            ended = Enriching::ended(&mut enriching) => ended,
        };
        tracing::info!("stopping: storing what is left");
        cut.store(true, Ordering::SeqCst);
        if let Some(backlog) = &stream.backlog {
            backlog.close();
        }
        control.stop();
        let enriched = Enriching::stop(enriching).await;
        let _ = stop_serving.send(());
        let by_itself = ingested.is_some();
        // After any failure, the records read so far are stored first.
        let summary = match ingested {
            Some(summary) => summary,
            None => ingest::ended(ingesting, &control).await,
        };
        if let Ok(summary) = &summary {
            ingest::report(summary);
        }
        let served = match served {
            Some(served) => served,
            None => serving.await,
        };
        if let Some(notifying) = notifying {
            notifying.end(Some(&summary).filter(|summary| by_itself || summary.is_err())).await;
        }
        ended?;
        enriched?;
        served??;
        Ok(if summary?.gaps.is_empty() { Done::Well } else { Done::With(4) })
    }

    async fn stream(&self, store: &Store) -> anyhow::Result<Stream> {
        let topic = &self.topic.topic;
        if let Some(cluster) = self.kafka.cluster()? {
            let (found, made) = match self.topic.is_several() {
                false => cluster.topic_or_create(topic, self.topic.partitions, &[]).await?,
                true => (self.several(&cluster, store).await?, false),
            };
            let topic = &found.name;
            let source = store.claim(topic, &found.id, found.partitions)?;
            let partitions = count(found.numbers.len() as u64, "partition");
            let made = if made { ", made just now" } else { "" };
            tracing::info!("broker at {}, topic {topic} with {partitions}{made}", cluster.servers);
            let backlog = found.embedded.then(Arc::default);
            return Ok(Stream { cluster, source, partitions: found.numbers, backlog, embedded: None });
        }
        if self.topic.is_several() {
            return Err(Usage(
                "several topics need --bootstrap-servers: the embedded broker gets one topic".to_owned(),
            )
            .into());
        }
        let source = store.claim(topic, EMBEDDED, self.topic.partitions)?;
        let embedded = Embedded::start(topic, source.partitions)?;
        let cluster = embedded.cluster(self.kafka.client.broker_timeout);
        tracing::info!("embedded broker at {}, topic {topic}", cluster.servers);
        let (partitions, backlog) = ((0..source.partitions).collect(), Some(Arc::default()));
        Ok(Stream { cluster, source, partitions, backlog, embedded: Some(embedded) })
    }

    /// Several topics that exist.
    async fn several(&self, cluster: &Cluster, store: &Store) -> anyhow::Result<Topic> {
        let (named, asked, into, fields) =
            (self.topic.clone(), cluster.clone(), store.clone(), self.sql.load()?.fields);
        super::blocking(move || source_topics::find(&named, &asked, &into, &fields)).await
    }

    /// The work of `up` until a shutdown is requested.
    #[allow(clippy::too_many_arguments, reason = "called once, by the one who owns all of these")]
    async fn work(
        &self,
        store: &Store,
        stream: &Stream,
        file: Option<File>,
        (state, trainings): (&Arc<State>, &TrainingLog),
        control: &Arc<Control>,
        cut: &Arc<AtomicBool>,
        terminal: &Terminal,
        address: std::net::SocketAddr,
    ) -> anyhow::Result<()> {
        if stream.embedded.is_none() {
            // Records sent by an earlier run may still be in the topic; they count as sent.
            caught_up(control).await;
            flush(control).await;
        }
        if let Some(file) = file {
            self.replay(store, stream, file, control, cut, terminal).await?;
            flush(control).await;
        }
        // The training reports lost or damaged files of the store; ingest continues.
        if let Ok(snapshot) = store.snapshot() {
            tracing::info!("{} in the store {}; training", count(snapshot.rows(), "record"), store.root().display());
        }
        // The example below and the first request to score need a plan, which is made while another process trains.
        let models = state.live.now();
        let plan = async {
            if let Some(served) = models.segmentations.first() {
                let _ = served.record_scorer().await;
            }
        };
        tokio::join!(Self::first_training(state), plan);
        state.warming.store(false, Ordering::SeqCst);
        if let Err(error) = self.greet(address, store, &state.live).await {
            // A closed stdout is not a reason to stop.
            tracing::debug!("{error:#}");
        }
        let written = || control.progress.files.load(Ordering::Relaxed);
        let (mut trained, mut looked, mut seen) = (Instant::now(), Instant::now(), written());
        let (mut told, mut failed) = (String::new(), 0);
        loop {
            tokio::time::sleep(Duration::from_millis(250)).await;
            // Another process may feed the same store, so the store is checked periodically even if this process
            // wrote nothing.
            let due = written() != seen || looked.elapsed() >= self.retrain_every;
            if trained.elapsed() < self.retrain_every || !due {
                continue;
            }
            (looked, seen) = (Instant::now(), written());
            let asked = store.clone();
            let now = match super::blocking(move || Ok(asked.snapshot()?.rows())).await {
                Ok(now) => now,
                Err(error) => {
                    let why = format!("{error:#}");
                    if told != why {
                        tracing::warn!(
                            "{why}; ingest continues, and models are trained again once the store can be read"
                        );
                        told = why;
                    }
                    continue;
                }
            };
            told.clear();
            let known = trainings.records().max(failed);
            if now <= known || (now - known) * 10 < known {
                continue;
            }
            if let Err(error) = state.trainer.train(None).await {
                tracing::warn!("the training failed, the models stay as they were: {error:#}");
                failed = now;
            }
            trained = Instant::now();
        }
    }

    /// Trains until it succeeds, with backoff. A failure (a full disk, for example) does not stop the process: ingest
    /// continues, and models of an earlier run serve.
    async fn first_training(state: &State) {
        let mut backoff = FIRST_BACKOFF;
        while let Err(error) = state.trainer.train(None).await {
            let models = state.live.now();
            let older = models.segmentations.iter().flat_map(|served| &served.slots).any(|slot| slot.serving.is_some());
            let meanwhile =
                if older { "older models serve meanwhile" } else { "there are no models to serve meanwhile" };
            // From now on readiness reports the actual state.
            state.warming.store(false, Ordering::SeqCst);
            tracing::error!(
                "the first training failed: {error:#}; it is tried again in {} s, and {meanwhile}",
                backoff.as_secs()
            );
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn replay(
        &self,
        store: &Store,
        stream: &Stream,
        file: File,
        control: &Control,
        cut: &Arc<AtomicBool>,
        terminal: &Terminal,
    ) -> anyhow::Result<()> {
        let File { source, checked, key } = file;
        let stored = self.stored_rows(store, &checked).await?;
        let name = source.name().display().to_string();
        if stored.len() >= checked.rows {
            tracing::info!("all {} of {name} were stored already", count(checked.rows, "row"));
            return Ok(());
        }
        if !stored.is_empty() {
            tracing::info!("{} of {name} were stored already, going on after them", count(stored.len(), "row"));
        }
        let bar = terminal.bar(source.size());
        let (cluster, topic, cut) = (stream.cluster.clone(), self.topic.topic.clone(), Arc::clone(cut));
        let (backlog, drawn) = (stream.backlog.clone(), bar.clone());
        let (start, options) = (Instant::now(), self.input.options());
        let sent: Acknowledged = super::blocking(move || {
            let mut rows = Rows::open(&source, &options)?;
            let producer = Producer::new(&cluster, &topic)?;
            let replay = Replay { hash: &checked.hash, stored: &stored, backlog: backlog.as_deref() };
            let tick = |rows: u64, bytes: u64| {
                drawn.set_position(bytes);
                drawn.set_message(format!("{} rows", thousands(rows)));
            };
            let sent = produce::send(
                producer,
                &mut rows,
                &Options { rate: None, key: key.as_ref(), replay: Some(replay) },
                &cut,
                tick,
            )?;
            if let Some(keyless) = key.and_then(|key| key.keyless()) {
                tracing::warn!("{}: {keyless}", rows.path().display());
            }
            if let Some(backlog) = backlog {
                tracing::debug!(peak = backlog.peak(), "the most bytes that stood unread in the broker");
            }
            Ok(sent)
        })
        .await?;
        // An embedded broker starts at offset 0 each time; its backlog is empty when the last row was read.
        let missing = || match &stream.backlog {
            Some(backlog) => !backlog.is_empty(),
            None => {
                let at = control.progress.positions();
                sent.next.iter().any(|(partition, next)| at.get(partition).is_none_or(|at| at < next))
            }
        };
        while missing() {
            if let Some(gap) = control.progress.gaps().into_iter().next() {
                return Err(tercile_kafka::broker::Error::Gap(gap).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(
            rows = sent.records,
            seconds,
            "sent {} of {name}, {} a second",
            count(sent.records, "record"),
            thousands((sent.records as f64 / seconds.max(1e-9)) as u64)
        );
        Ok(())
    }

    /// Prints the next steps for the user.
    async fn greet(&self, address: std::net::SocketAddr, store: &Store, live: &ModelCache) -> anyhow::Result<()> {
        let models = live.now();
        let raw = example_request::raw(&models, store).await;
        let mut out = std::io::stdout();
        let scheme = self.guard.scheme();
        writeln!(out, "ready at {scheme}://{address}")?;
        writeln!(out, "docs  at {scheme}://{address}/docs")?;
        writeln!(out, "look  at {scheme}://{address}/dashboard")?;
        for (word, request) in [("try", example_request::of(&models)), ("raw", raw)] {
            let Some(request) = request else { continue };
            let key = if self.guard.asks_for_keys(self.bind.bind) { " -H \"X-API-Key: $KEY\"" } else { "" };
            let body = shell_word(&request.body).into_owned();
            writeln!(
                out,
                "{word}: curl{key} -H 'Content-Type: application/json' -d {body} {scheme}://{address}{}",
                request.path
            )?;
        }
        out.flush().context("cannot write to stdout")
    }
}

async fn caught_up(control: &Control) {
    while !control.progress.caught_up.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until all records read so far are stored.
async fn flush(control: &Control) {
    loop {
        let flush = control.flush();
        if tokio::task::spawn_blocking(move || flush.wait()).await.unwrap_or(true) {
            return;
        }
    }
}
