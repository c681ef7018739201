//! `tercile members NAME --to TOPIC`: sends members to a topic, one record per entity.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use datafusion::arrow::array::{Array as _, AsArray as _, RecordBatch};
use datafusion::arrow::datatypes::{Float64Type, UInt32Type};
use serde::{Serialize, Serializer};
use serde_json::Value;
use tercile_kafka::broker::{Acknowledged, Cluster, Error as BrokerError, Failure, Producer, Row, Topic};
use tercile_store::{Error as StoreError, Reason, Store};

use super::{open, title};
use crate::cli::{Done, Stop, Terminal, blocking, count, thousands};
use crate::config::{self, TargetKafkaArgs};
use crate::model::members::{self, COLUMNS, key_value};
use crate::model::published::{Sent, Target};
use crate::model::{Model, ModelRegistry};

/// Where to send members.
#[derive(Args)]
pub struct ToTopic {
    /// Send the members to this topic: the record's key is the entity's key, its value is JSON, and an entity that is gone is
    /// deleted by a tombstone
    #[arg(long, env = "TERCILE_TO", value_name = "TOPIC", value_parser = config::topic,
          conflicts_with_all = ["keys", "cluster", "format", "output"])]
    pub to: Option<String>,
    /// With --to: only entities whose cluster or description is another one than in the version that was sent last, new
    /// entities, and those that are gone
    #[arg(long, env = "TERCILE_ONLY_CHANGES", requires = "to")]
    only_changes: bool,
    /// With --to: number of partitions of a topic that is created
    #[arg(long, env = "TERCILE_PARTITIONS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    #[command(flatten)]
    kafka: TargetKafkaArgs,
}

/// A created topic keeps the last record of each key.
const SETTINGS: [(&str, &str); 1] = [("cleanup.policy", "compact")];

/// Records between two updates of the progress bar.
const TICK: u64 = 256;

impl ToTopic {
    pub async fn run(self, of: (Store, Model, String), terminal: &Terminal, mut stop: Stop) -> anyhow::Result<Done> {
        let (store, model, lang) = of;
        let Some((cluster, topic)) = stop.unless(self.prepare()).await? else {
            return Ok(Done::With(stop.exit_code()));
        };
        let bar = terminal.rows(Some(model.rows), Duration::ZERO);
        let (drawn, halt) = (bar.clone(), Arc::new(AtomicBool::new(false)));
        let (halted, start) = (Arc::clone(&halt), Instant::now());
        let job = Job { store, sent: Sent::now(&model, &lang), model, topic, only_changes: self.only_changes };
        let mut sending = std::pin::pin!(blocking(move || {
            let tick = |members: u64| {
                drawn.set_position(members);
                drawn.set_message(format!("{} members", thousands(members)));
            };
            let outcome = job.run(&cluster, &halted, tick)?;
            Ok((outcome, job))
        }));
        let ended = tokio::select! {
            ended = &mut sending => ended,
            () = stop.wished() => {
                halt.store(true, Ordering::SeqCst);
                sending.await
            }
        };
        bar.finish_and_clear();
        let (outcome, job) = ended?;
        match halt.load(Ordering::SeqCst) && !outcome.complete {
            true => {
                tracing::warn!("stopped: {}; the next run sends again", outcome.acknowledged(&job.topic.name));
                Ok(Done::With(stop.exit_code()))
            }
            false => {
                outcome.report(&job, start.elapsed().as_secs_f64());
                Ok(Done::Well)
            }
        }
    }

    async fn prepare(&self) -> anyhow::Result<(Cluster, Topic)> {
        let cluster = self.kafka.cluster()?;
        let name = self.to.as_deref().unwrap_or_default();
        let (topic, made) = cluster.topic_or_create(name, self.partitions, &SETTINGS).await?;
        if made {
            let partitions = count(u64::from(topic.partitions.unsigned_abs()), "partition");
            tracing::info!("made the topic {} with {partitions}; it keeps the last record of each key", topic.name);
        }
        Ok((cluster, topic))
    }
}

/// The versions to compare and the target topic.
struct Job {
    store: Store,
    model: Model,
    sent: Sent,
    topic: Topic,
    only_changes: bool,
}

/// A version and its members.
type Found = (Model, members::Members);

/// Counts of the records sent.
#[derive(Default)]
struct Outcome {
    acknowledged: u64,
    unknown: u64,
    tombstones: u64,
    /// True if all records were sent and acknowledged.
    complete: bool,
    /// The version that was compared with.
    since: Option<u64>,
}

impl Job {
    fn run(&self, cluster: &Cluster, halt: &AtomicBool, tick: impl FnMut(u64)) -> anyhow::Result<Outcome> {
        let registry = ModelRegistry::new(&self.store, &self.model.segmentation);
        let name = &self.model.segmentation;
        let Some(_lock) = registry.lock_published()? else {
            bail!("another process sends the members of {name} to a topic; try again when it has ended");
        };
        // Checks access before anything is noted.
        let producer = Producer::new(cluster, &self.topic.name)?.counting_rejected();
        let (mut published, read) = registry.published()?;
        let target = published.target(&self.topic.cluster, &self.topic.name, &self.topic.id);
        let before = self.before(&registry, target)?;
        target.begin(&self.sent);
        let begun = target.begun.clone();
        registry.put_published(&published, &read)?;

        let (mut outcome, acknowledged, failure) = self.send(producer, before, halt, tick)?;
        outcome.acknowledged = acknowledged.records;
        outcome.unknown = acknowledged.unknown;
        let note = |change: &dyn Fn(&mut Target)| -> Result<(), StoreError> {
            let (mut published, read) = registry.published()?;
            change(published.target(&self.topic.cluster, &self.topic.name, &self.topic.id));
            registry.put_published(&published, &read)
        };
        if let Some(failure) = failure {
            let was_noted = match &failure.error {
                BrokerError::Refused { .. } if acknowledged.records + acknowledged.unknown == 0 => {
                    note(&|target| target.withdraw(&self.sent))
                }
                _ if failure.others_arrived => note(&|target| target.partly(&self.sent, &begun)),
                _ => Ok(()),
            };
            if let Err(error) = was_noted {
                tracing::warn!("{error}");
            }
            return Err(self.failed(&failure, &outcome));
        }
        if outcome.complete {
            note(&|target| target.end(self.sent.clone(), &begun))?;
        }
        Ok(outcome)
    }

    fn failed(&self, failure: &Failure, outcome: &Outcome) -> anyhow::Error {
        let (topic, error) = (&self.topic.name, &failure.error);
        let acknowledged = outcome.acknowledged(topic);
        match failure.others_arrived {
            true => anyhow::anyhow!(
                "{} of {} rejected, the first is number {}: {error}; {acknowledged}; the next run sends again",
                count(failure.refused, "record"),
                if failure.refused == 1 { format!("{topic} was") } else { format!("{topic} were") },
                failure.line
            ),
            false => anyhow::anyhow!("record {}: {error}; {acknowledged}; the next run sends again", failure.line),
        }
    }

    /// The state of each entity in the topic, according to the versions that were sent to it.
    fn before(&self, registry: &ModelRegistry, target: &Target) -> anyhow::Result<Before> {
        let mut before = Before { since: target.sent.as_ref().map(|sent| sent.version), ..Before::default() };
        let mut comparable = self.only_changes && target.sent.is_some();
        if self.only_changes && !comparable {
            tracing::info!("nothing was sent to {} before: all members are sent", self.topic.name);
        }
        for sent in target.all() {
            let (model, members) = match self.version(registry, sent)? {
                Ok(found) => found,
                Err(reason) => {
                    tracing::warn!(
                        "the members of version {} of {}, which was sent to {}, are {reason}: all members are sent, and no \
                         tombstones of those of its entities that are gone",
                        sent.version,
                        self.model.segmentation,
                        self.topic.name
                    );
                    comparable = false;
                    continue;
                }
            };
            if comparable && !registry.same_lineage(&model, &self.model)? {
                let (new, old) = (title(&self.model), sent.version);
                tracing::info!("{new} does not continue the clusters of version {old}: all members are sent");
                comparable = false;
            }
            let known = model.descriptions(&sent.lang);
            let descriptions: Vec<u32> = known.iter().map(|text| before.number(text)).collect();
            let keys = model.entity.len();
            before.versions += 1;
            for batch in members.read(0)? {
                let batch = batch?;
                let clusters = members::clusters(&batch).context("members without a cluster")?;
                for row in 0..batch.num_rows() {
                    let cluster = clusters.value(row);
                    let description = descriptions.get(cluster as usize).copied().unwrap_or_default();
                    before.add(key(&batch, row, keys)?.1, (cluster, description));
                }
            }
        }
        before.comparable = comparable;
        Ok(before)
    }

    /// A version that was sent before, or why it cannot be compared with: its model or its members are missing or damaged.
    fn version(&self, registry: &ModelRegistry, sent: &Sent) -> Result<Result<Found, Reason>, StoreError> {
        let read = || -> Result<Option<Found>, StoreError> {
            let Some(model) = registry.version(sent.version)? else { return Ok(None) };
            Ok(registry.members(&model)?.map(|members| (model, members)))
        };
        match read() {
            Ok(found) => Ok(found.ok_or(Reason::Missing)),
            Err(StoreError::File(fault)) if fault.reason != Reason::Unreadable => Ok(Err(fault.reason)),
            Err(error) => Err(error),
        }
    }

    /// Sends members, then tombstones.
    fn send(
        &self,
        mut producer: Producer,
        mut before: Before,
        halt: &AtomicBool,
        mut tick: impl FnMut(u64),
    ) -> anyhow::Result<(Outcome, Acknowledged, Option<Failure>)> {
        let members = open(&self.store, &self.model)?;
        let keys = self.model.entity.len();
        let descriptions = self.model.descriptions(&self.sent.lang);
        let numbers: Vec<u32> = descriptions.iter().map(|text| before.number(text)).collect();
        let (mut done, mut sent, mut goes_on) = (0, 0, true);
        let mut value = Vec::new();
        'members: for batch in members.read(0)? {
            let batch = batch?;
            let columns = Columns::of(&batch).context("members without a cluster")?;
            for row in 0..batch.num_rows() {
                done += 1;
                if done % TICK == 0 {
                    tick(done);
                }
                let cluster = columns.clusters.value(row);
                let (values, bytes) = key(&batch, row, keys)?;
                let description = numbers.get(cluster as usize).copied().unwrap_or_default();
                if before.take(&bytes, (cluster, description)) {
                    continue;
                }
                value.clear();
                let record = Record {
                    segmentation: &self.model.segmentation,
                    key: Key { names: &self.model.entity, values: &values },
                    cluster,
                    description: descriptions.get(cluster as usize).copied().unwrap_or_default(),
                    previous: columns.previous.is_valid(row).then(|| columns.previous.value(row)),
                    model: self.model.slice,
                    version: self.model.version,
                    distance: columns.distances.value(row),
                };
                serde_json::to_writer(&mut value, &record)?;
                sent += 1;
                goes_on =
                    producer.send(Row { key: Some(&bytes), payload: Some(&value), line: sent, replay: None }, halt)?;
                if !goes_on || halt.load(Ordering::Relaxed) {
                    goes_on = false;
                    break 'members;
                }
            }
        }
        let mut tombstones = 0;
        for gone in before.states.keys() {
            if !goes_on || halt.load(Ordering::Relaxed) {
                goes_on = false;
                break;
            }
            (sent, tombstones) = (sent + 1, tombstones + 1);
            goes_on = producer.send(Row { key: Some(gone), payload: None, line: sent, replay: None }, halt)?;
        }
        tick(done);
        let (acknowledged, failure) = producer.finish(halt);
        let complete = goes_on && failure.is_none() && acknowledged.records == sent;
        let since = before.since.filter(|_| before.comparable);
        Ok((Outcome { tombstones, complete, since, ..Outcome::default() }, acknowledged, failure))
    }
}

impl Outcome {
    fn acknowledged(&self, topic: &str) -> String {
        let more = match self.unknown {
            0 => String::new(),
            unknown => format!(", {} more may have arrived", thousands(unknown)),
        };
        format!("{} acknowledged by {topic}{more}", count(self.acknowledged, "record"))
    }

    fn report(&self, job: &Job, seconds: f64) {
        let (members, topic) = (title(&job.model), &job.topic.name);
        let since = match self.since {
            Some(version) => format!("; compared with version {version}"),
            None => String::new(),
        };
        tracing::info!(
            records = self.acknowledged,
            tombstones = self.tombstones,
            seconds,
            "sent {} of {} of {members} and {} to {topic}, all acknowledged, in {seconds:.2} s ({} a second){since}",
            thousands(self.acknowledged - self.tombstones),
            count(job.model.rows, "member"),
            count(self.tombstones, "tombstone"),
            thousands((self.acknowledged as f64 / seconds.max(1e-9)) as u64),
        );
    }
}

/// Cluster and number of the description.
type State = (u32, u32);

/// The state of entities in a topic.
#[derive(Default)]
struct Before {
    /// By Kafka key: the state in the first version that has the entity, and how many versions have it in that state.
    states: HashMap<Box<[u8]>, (State, u32)>,
    versions: u32,
    /// The version that was sent last.
    since: Option<u64>,
    /// Whether entities whose state did not change are left out.
    comparable: bool,
    descriptions: Vec<String>,
}

impl Before {
    fn number(&mut self, description: &str) -> u32 {
        let known = self.descriptions.iter().position(|known| known == description);
        known.unwrap_or_else(|| {
            self.descriptions.push(description.to_owned());
            self.descriptions.len() - 1
        }) as u32
    }

    fn add(&mut self, key: Box<[u8]>, state: State) {
        let (known, versions) = self.states.entry(key).or_insert((state, 0));
        if *known == state {
            *versions += 1;
        }
    }

    /// Removes an entity; true if it need not be sent, because all versions have it in this state.
    fn take(&mut self, key: &[u8], state: State) -> bool {
        let known = self.states.remove(key);
        self.comparable && known == Some((state, self.versions))
    }
}

/// The columns of a batch of members after the features.
struct Columns<'a> {
    clusters: &'a datafusion::arrow::array::UInt32Array,
    distances: &'a datafusion::arrow::array::Float64Array,
    previous: &'a datafusion::arrow::array::UInt32Array,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Option<Self> {
        let [_, distance, previous] = COLUMNS;
        Some(Self {
            clusters: members::clusters(batch)?,
            distances: batch.column_by_name(distance)?.as_primitive_opt::<Float64Type>()?,
            previous: batch.column_by_name(previous)?.as_primitive_opt::<UInt32Type>()?,
        })
    }
}

/// The values of a key, and the key of its record: the text of its value, or a JSON array of several.
fn key(batch: &RecordBatch, row: usize, keys: usize) -> anyhow::Result<(Vec<Value>, Box<[u8]>)> {
    let values = batch.columns()[..keys].iter().map(|column| key_value(column, row));
    let values: Vec<Value> = values.collect::<Option<_>>().context("a member without a key")?;
    let bytes = match &values[..] {
        [Value::String(text)] => text.clone().into_bytes(),
        [one] => one.to_string().into_bytes(),
        several => serde_json::to_vec(several)?,
    };
    Ok((values, bytes.into()))
}

/// The value of a record.
#[derive(Serialize)]
struct Record<'a> {
    segmentation: &'a str,
    key: Key<'a>,
    cluster: u32,
    description: &'a str,
    previous: Option<u32>,
    model: u8,
    version: u64,
    distance: f64,
}

struct Key<'a> {
    names: &'a [String],
    values: &'a [Value],
}

impl Serialize for Key<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.names.iter().zip(self.values))
    }
}
