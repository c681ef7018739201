//! `tercile doctor`: checks the configuration file, broker, topic, store, SQL files, port, models and keys, and reports each finding.

mod enriched;
mod notifications;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use clap::Args;
use tercile_kafka::broker::{Bound, Embedded, Gap, Topics};
use tercile_kafka::ingest;
use tercile_store::record::WithoutFields;
use tercile_store::{DataFile, EMBEDDED, Examined, Snapshot, Store};
use tokio::net::TcpListener;

use super::alive::alive;
use super::config_file::{self, Origin};
use super::{Done, count, table, thousands, timestamps};
use crate::api;
use crate::config::{self, BindArgs, MaybeKafkaArgs, SourceArgs, SqlArgs, StoreArgs};
use crate::model::check;
use crate::model_cache::ModelCache;
use crate::{engine, hints};

/// Check broker, store, SQL files, port, models and keys, and print remedies
///
/// Also prints each setting that is not at its default and its origin: command line, environment, or a line of tercile.toml, whose
/// values are checked for all commands. Exits with 1 if a check fails.
#[derive(Args)]
pub struct Doctor {
    /// Read every file of records and members and compare its bytes with its checksums
    #[arg(long, env = "TERCILE_DEEP", value_parser = clap::builder::FalseyValueParser::new(),
          action = clap::ArgAction::SetTrue)]
    deep: bool,
    /// Check the group of tercile enrich or up --enrich-to that writes this topic, too
    #[arg(long, env = "TERCILE_ENRICH_TO", value_name = "TOPIC", value_parser = config::topic)]
    enrich_to: Option<String>,
    #[command(flatten)]
    kafka: MaybeKafkaArgs,
    #[command(flatten)]
    topic: SourceArgs,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    sql: SqlArgs,
    #[command(flatten)]
    bind: BindArgs,
}

/// The reasons of unreadable records, as an argument of `tercile sql -c`.
const LIST: &str = "\"SELECT _error, count(*) FROM records WHERE _error IS NOT NULL GROUP BY 1\"";

/// The result of a check: the state found, or the problem and its remedy.
type Finding = Result<String, String>;

/// Checks that the broker answers and that this user may read the topic.
fn broker(kafka: &MaybeKafkaArgs, topic: &SourceArgs, store: &StoreArgs) -> Finding {
    let name = &topic.topic;
    let Some(cluster) = kafka.cluster().map_err(|e| e.to_string())? else {
        if topic.is_several() {
            return Err(
                "several topics need --bootstrap-servers; the embedded broker of tercile up has one topic".to_owned()
            );
        }
        let broker = Embedded::start(name, topic.partitions).map_err(|e| e.to_string())?;
        broker.cluster(kafka.client.broker_timeout).topic(name).map_err(|e| e.to_string())?;
        return Ok("no --bootstrap-servers given; the embedded broker starts and answers".to_owned());
    };
    let store = Store::at(&store.store).map_err(|e| e.to_string())?;
    let name = topic.resolve(&cluster, &store).map_err(|e| format!("{e:#}"))?;
    // Each topic has rights of its own.
    for name in Topics::new(&name).names() {
        let found = cluster.topic(name).map_err(|e| e.to_string())?;
        cluster.try_reading(&found).map_err(|e| e.to_string())?;
    }
    let found = cluster.topic(&name).map_err(|e| e.to_string())?;
    let partitions = count(found.numbers.len() as u64, "partition");
    Ok(format!("{} answers; the topic {name} has {partitions}, and can be read", cluster.servers))
}

/// Checks that the topic is the one that feeds the store and still has the next offsets.
fn fed(kafka: &MaybeKafkaArgs, topic: &SourceArgs, store: &StoreArgs) -> anyhow::Result<String> {
    let Some(cluster) = kafka.cluster()? else { return Ok("no --bootstrap-servers given".to_owned()) };
    let store = Store::at(&store.store)?;
    let topic = cluster.topic(&topic.resolve(&cluster, &store)?)?;
    store.check_fed_by(&topic.name, &topic.id)?;
    let mut nexts = BTreeMap::new();
    for log in store.logs()? {
        nexts.extend(
            log.next()?.filter(|_| topic.numbers.contains(&log.partition())).map(|next| (log.partition(), next)),
        );
    }
    let partitions: Vec<i32> = nexts.keys().copied().collect();
    let (lows, ends) = match partitions.is_empty() {
        true => Default::default(),
        false => (
            cluster.offsets(&topic.name, &partitions, Bound::Earliest)?,
            cluster.offsets(&topic.name, &partitions, Bound::Latest)?,
        ),
    };
    let mut behind = 0;
    for (partition, next) in nexts {
        if let Some(&end) = ends.get(&partition) {
            if end < next {
                return Err(ingest::ahead_of_topic(&store, &topic.name, (partition, next, end)).into());
            }
            behind += (end - next).unsigned_abs();
        }
        if let Some(&low) = lows.get(&partition).filter(|low| next < **low) {
            let gap = Gap { topic: topic.name, partition, expected: next, found: low };
            anyhow::bail!("{gap}; tercile ingest --accept-gap goes on after them");
        }
    }
    Ok(format!("the topic {} goes on where the store ends; {} to read", topic.name, count(behind, "record")))
}

/// Checks the file of API keys.
fn keys(store: &Store) -> Finding {
    match api::keys::check(store)? {
        0 => Ok("no keys".to_owned()),
        keys => Ok(count(keys as u64, "key")),
    }
}

impl Doctor {
    pub async fn run(self) -> anyhow::Result<Done> {
        let mut findings: Vec<(&str, Finding)> = Vec::new();
        findings.extend(config_file::checked().map(|checked| ("config", checked.clone())));
        findings.extend(
            config_file::origins()
                .iter()
                .map(|Origin { setting, origin }| ("setting", Ok(format!("{setting} ({origin})")))),
        );
        findings.push(("broker", self.broker_in_background().await));
        if self.kafka.is_given().unwrap_or(true) {
            findings.push(("topic", self.fed_in_background().await));
        }
        if let Some(to) = &self.enrich_to {
            findings.push(("enrich", self.enriched_in_background(to).await));
        }
        findings.extend([
            ("store", self.stored()),
            ("timestamps", self.timestamps()),
            ("sql", self.files().await),
            ("port", self.port().await),
        ]);
        findings.extend(self.models().await.into_iter().map(|finding| ("models", finding)));
        // That there is no store is said once.
        if let Ok(store) = self.open() {
            findings.push(("keys", keys(&store)));
            findings.extend(notifications::check(&store).map(|finding| ("notifications", finding)));
        }
        let healthy = findings.iter().all(|(_, finding)| finding.is_ok());
        let rows = findings.iter().flat_map(|(what, finding)| {
            let (state, words) = match finding {
                Ok(words) => ("ok", words),
                Err(words) => ("MEND", words),
            };
            // One line per fault.
            let complete = |words| hints::complete(words).into_owned();
            words.lines().map(move |words| vec![state.to_owned(), (*what).to_owned(), complete(words)])
        });
        let rows: Vec<Vec<String>> = rows.collect();
        std::io::stdout().write_all(table::render(&["", "check", "finding"], &rows).as_bytes())?;
        Ok(if healthy { Done::Well } else { Done::With(1) })
    }

    /// The check blocks its thread, and a blocked task does not react to signals.
    async fn broker_in_background(&self) -> Finding {
        let (kafka, topic, store) = (self.kafka.clone(), self.topic.clone(), self.store.clone());
        tokio::task::spawn_blocking(move || broker(&kafka, &topic, &store)).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// See [`Doctor::broker_in_background`].
    async fn fed_in_background(&self) -> Finding {
        let (kafka, topic, store) = (self.kafka.clone(), self.topic.clone(), self.store.clone());
        let asked = tokio::task::spawn_blocking(move || fed(&kafka, &topic, &store).map_err(|e| format!("{e:#}")));
        asked.await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// See [`Doctor::broker_in_background`].
    async fn enriched_in_background(&self, to: &str) -> Finding {
        let (kafka, topic, store, to) = (self.kafka.clone(), self.topic.clone(), self.store.clone(), to.to_owned());
        let check = move || enriched::check(&kafka, &topic, &store, &to).map_err(|e| format!("{e:#}"));
        tokio::task::spawn_blocking(check).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    fn stored(&self) -> Finding {
        let store = self.open()?;
        let hint = if store.place().is_disk() { "; check its owner and the disk" } else { "" };
        store.probe().map_err(|e| format!("cannot write into it: {e}{hint}"))?;
        let shown = store.root().display();
        let Some(examined) = store.examine(self.deep).map_err(|e| e.to_string())? else {
            return Ok(format!("{shown} is empty and can be written"));
        };
        let Examined { source, snapshot, mut faults, compared, without_checksums } = examined;
        if faults.is_empty() {
            // A snapshot may find faults that the examination does not look for.
            faults.extend(store.snapshot().err().map(|e| e.to_string()));
        }
        if !faults.is_empty() {
            return Err(faults.join("\n"));
        }
        let broker = if source.id == EMBEDDED { "the embedded broker's topic" } else { "the topic" };
        let (records, files) = (count(snapshot.rows(), "record"), count(snapshot.files.len() as u64, "file"));
        let drift = self.drift(&snapshot);
        let counted = snapshot.files.iter().map(DataFile::without_fields).sum::<Result<WithoutFields, _>>();
        let WithoutFields { unreadable, tombstones } = counted.map_err(|e| e.to_string())?;
        let mut without_fields = String::new();
        if unreadable > 0 {
            without_fields +=
                &format!("; {} unreadable, `tercile sql -c {LIST}` lists the reasons", thousands(unreadable));
        }
        if tombstones > 0 {
            without_fields += &format!("; {} (messages without a value)", count(tombstones, "tombstone"));
        }
        let mut deep = String::new();
        if self.deep {
            deep = format!("; {} as their checksums say", count(compared, "file"));
            if without_checksums > 0 {
                deep += &format!("; {} of an earlier build: no checksum", count(without_checksums, "file"));
            }
        }
        Ok(format!(
            "{shown} holds {records} in {files}, an unbroken chain, fed from {broker} {}{without_fields}{drift}{deep}",
            source.topic
        ))
    }

    /// Checks that the timestamps of the stored records are plausible as milliseconds.
    fn timestamps(&self) -> Finding {
        timestamps::check(&self.open()?.snapshot().map_err(|e| e.to_string())?)
    }

    /// The differences between the fields of the stored files and the declared fields; empty if there are none.
    fn drift(&self, snapshot: &Snapshot) -> String {
        // Unreadable SQL files are reported by another check.
        let Ok(sql) = self.sql.load() else { return String::new() };
        let others: Vec<_> = snapshot.files.iter().filter(|file| *file.fields != sql.fields).collect();
        let names = |of: &dyn Fn(&DataFile) -> Vec<String>| {
            let names: BTreeSet<String> = others.iter().flat_map(|file| of(file)).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let added = names(&|file| file.fields.missing(&sql.fields));
        let gone = names(&|file| sql.fields.missing(&file.fields));
        let mut words = String::new();
        if !added.is_empty() {
            words += &format!("; {added} came later and is read from _extra of older files");
        }
        if !gone.is_empty() {
            words += &format!("; {gone} is declared no more and shows in _extra");
        }
        words
    }

    /// Opens the store only if it exists, because a check must not create anything.
    fn open(&self) -> Result<Store, String> {
        let path = &self.store.store;
        let store = Store::at(path).map_err(|e| e.to_string())?;
        if !store.exists().map_err(|e| e.to_string())? {
            return Err(format!("{} is not there; up and ingest make it", path.display()));
        }
        Ok(store)
    }

    async fn files(&self) -> Finding {
        let files = self.sql.load().map_err(|e| e.to_string())?;
        let ctx = engine::open(&Snapshot::default(), &files).await.map_err(|e| e.to_string())?;
        let segmentations = engine::segmentations(&ctx, &files).await.map_err(|e| e.to_string())?;
        let names: Vec<&str> = segmentations.iter().map(|s| s.name.as_str()).collect();
        if names.is_empty() {
            return Err("no view is a segmentation; give one a header line `-- k: 3`".to_owned());
        }
        Ok(format!("{} run; segmentations: {}", count(files.views().len() as u64, "view"), names.join(", ")))
    }

    async fn port(&self) -> Finding {
        let address = self.bind.bind;
        match TcpListener::bind(address).await {
            Ok(_) => Ok(format!("{address} is free")),
            Err(_) if alive(address).await => Ok(format!("a tercile serves at {address}")),
            Err(error) => Err(format!("{address}: {error}; stop what listens there, or choose another --bind")),
        }
    }

    /// Reads every model file, serving or not. Returns one finding per unusable file.
    async fn models(&self) -> Vec<Finding> {
        let faults = self.open().and_then(|store| check::faults(&store, self.deep).map_err(|e| e.to_string()));
        match faults {
            Ok(faults) if !faults.is_empty() => faults.iter().map(|fault| Err(fault.to_string())).collect(),
            Ok(_) => vec![self.serving().await],
            Err(error) => vec![Err(error)],
        }
    }

    async fn serving(&self) -> Finding {
        let store = self.open()?;
        let live = ModelCache::start(&store, self.sql.dir()).await.map_err(|e| format!("{e:#}"))?;
        let models = live.now();
        let (mut serving, mut candidates) = (0, 0);
        for served in &models.segmentations {
            let name = &served.segmentation.name;
            for slot in &served.slots {
                candidates += u64::from(slot.candidate.is_some());
                match (&slot.serving, &slot.refused) {
                    (_, Some(why)) => return Err(format!("the last training refused {why}")),
                    (None, None) => {
                        return Err(format!("{name} of slice {} is not trained; run tercile train", slot.slice));
                    }
                    (Some(_), None) => serving += 1,
                }
            }
        }
        let waiting = match candidates {
            0 => String::new(),
            1 => "; a candidate waits for promote or reject, see tercile models candidates".to_owned(),
            more => format!("; {more} candidates wait for promote or reject, see tercile models candidates"),
        };
        Ok(format!("{} can serve{waiting}", count(serving, "model")))
    }
}
