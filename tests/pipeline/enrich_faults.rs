//! `tercile enrich` under faults: workers that are killed, stopped, fenced or joined, topics that are created again or have lost
//! records, and a broker that is away. A reader of committed records sees each input record once.

use std::time::{Duration, Instant};

use common::{Place, Running, eventually, kafka, within};
use rdkafka::admin::AdminOptions;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer as _};

use super::enrich::{assert_once, committed, trained};
use super::kafka::{admin, topic};
use crate::common;

/// Number of kills; `.ci/full` sets more.
fn kills() -> u64 {
    std::env::var("TERCILE_TEST_ENRICH_KILLS").ok().map_or(10, |kills| kills.parse().unwrap())
}

/// Pseudo-random numbers, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The arguments of a worker.
fn worker<'a>(servers: &'a str, topic: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["enrich", "--bootstrap-servers", servers, "--topic", topic, "--to", output, "--session-timeout", "6"]
}

/// Runs a worker to the end of the topic.
fn finish(place: &Place, args: &[&str]) {
    let ended = place.run(&[args, &["--until-end"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

/// A line that a worker logs at a step of a transaction.
const STEPS: [&str; 4] =
    ["transaction: begun", "transaction: produced", "transaction: positions sent", "transaction: committed"];

/// Kills a worker as soon as it has logged a text, or a while later.
fn kill_at(running: &mut Running, text: &str, later: Duration) {
    within(Duration::from_secs(40), text, || running.stderr().contains(text));
    std::thread::sleep(later);
    running.signal("-KILL");
    running.wait();
}

#[test]
fn workers_that_are_killed_at_any_step_send_each_record_once() {
    let Some(servers) = kafka() else { return };
    let rows = 5_000;
    let (place, topic) = trained(&servers, rows, 4);
    let output = format!("{topic}-out");
    let args = [&worker(&servers, &topic, &output)[..], &["--instance-id", "one", "-v"]].concat();
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    let mut random = Random(17);
    for kill in 0..kills() {
        place.ok(&[&["produce", "rows.ndjson"][..], &to].concat());
        // A worker of the same id aborts what the one before has left, and goes on from there.
        let mut running = place.start(&args);
        let step = STEPS[usize::try_from(kill).unwrap() % STEPS.len()];
        kill_at(&mut running, step, Duration::from_millis(random.below(3) * random.below(40)));
    }
    finish(&place, &args);
    place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    let records = rows * usize::try_from(1 + kills()).unwrap();
    assert_once(&place, &committed(&servers, &output), records);
}

#[test]
fn workers_that_come_and_go_send_each_record_once() {
    let Some(servers) = kafka() else { return };
    let records = 40_000;
    let (place, topic) = trained(&servers, records, 4);
    let output = format!("{topic}-out");
    let args = worker(&servers, &topic, &output);
    let mut random = Random(5);
    let mut workers: Vec<Running> = Vec::new();
    for round in 0..6 {
        let other = Place::new();
        let store = place.path("store");
        let args = [&args[..], &["--store", store.to_str().unwrap()]].concat();
        workers.push(other.start(&args));
        std::thread::sleep(Duration::from_millis(500 + random.below(1500)));
        let at = usize::try_from(random.below(workers.len() as u64)).unwrap();
        let mut gone = workers.swap_remove(at);
        if round % 2 == 0 {
            gone.signal("-KILL");
            gone.wait();
        } else {
            let ended = gone.interrupt();
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        }
    }
    workers.clear();
    finish(&place, &args);
    assert_once(&place, &committed(&servers, &output), records);
}

#[test]
fn a_worker_that_was_stopped_beyond_its_session_sends_nothing_twice() {
    let Some(servers) = kafka() else { return };
    let records = 30_000;
    let (place, topic) = trained(&servers, records, 2);
    let output = format!("{topic}-out");
    let args = worker(&servers, &topic, &output);
    let first = place.start(&args);
    first.said("reading partitions 0, 1");
    first.signal("-STOP");
    let other = Place::new();
    let store = place.path("store");
    let second = other.start(&[&args[..], &["--store", store.to_str().unwrap()]].concat());
    within(Duration::from_secs(90), "all records", || committed(&servers, &output).len() >= records);
    first.signal("-CONT");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(second.interrupt().code, Some(0));
    let ended = first.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    finish(&place, &args);
    assert_once(&place, &committed(&servers, &output), records);
}

#[test]
fn a_second_process_with_the_same_instance_id_ends_the_first() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = trained(&servers, 1000, 1);
    let output = format!("{topic}-out");
    let args = [&worker(&servers, &topic, &output)[..], &["--instance-id", "same"]].concat();
    let mut first = place.start(&args);
    eventually("its records", || {
        first.stderr().contains("made the topic") && committed(&servers, &output).len() == 1000
    });
    let other = Place::new();
    let store = place.path("store");
    let second = other.start(&[&args[..], &["--store", store.to_str().unwrap()]].concat());
    assert_eq!(first.wait().code(), Some(6), "{}", first.stderr());
    assert!(first.stderr().contains("another worker has the same --instance-id"), "{}", first.stderr());
    second.said("reading partition 0");
    place.ok(&["produce", "rows.ndjson", "--bootstrap-servers", &servers, "--topic", &topic]);
    eventually("more records", || committed(&servers, &output).len() == 2000);
    assert_eq!(second.interrupt().code, Some(0));
}

#[tokio::test]
async fn a_topic_that_is_another_one_or_has_lost_records_ends_the_command() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = trained(&servers, 1000, 1);
    let admin = admin(&servers);
    let produce = ["produce", "rows.ndjson", "--bootstrap-servers", &servers, "--topic", &raw];
    // Records deleted before they were read: only those of a group that had a position.
    let output = topic("gap");
    let args = worker(&servers, &raw, &output);
    finish(&place, &args);
    place.ok(&produce);
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(&raw, 0, rdkafka::Offset::Offset(1500)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    let error = place.fails(4, &[&args[..], &["--until-end"]].concat());
    assert!(
        error.contains("the records from offset 1000 to 1499 were gone") && error.contains("--accept-gap"),
        "{error}"
    );
    finish(&place, &[&args[..], &["--accept-gap"]].concat());
    assert_eq!(committed(&servers, &output).len(), 1500);

    // A running worker, and one that is started later, find out that the topic was created again.
    let running = place.start(&args);
    running.said("reading partition 0");
    admin.delete_topics(&[&raw], &AdminOptions::new()).await.unwrap();
    eventually("another topic", || place.run(&produce).code == Some(0));
    let mut running = running;
    let code = running.wait().code();
    assert_eq!(code, Some(3), "{}", running.stderr());
    // Kafka has deleted the positions with the topic. Where it has not, as after a restored backup, the id beside them tells.
    let group = format!("{raw}-other");
    let reader: rdkafka::consumer::BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &servers).set("group.id", &group).create().unwrap();
    let mut position = rdkafka::TopicPartitionList::new();
    position.add_partition_offset(&raw, 0, rdkafka::Offset::Offset(10)).unwrap();
    position.find_partition(&raw, 0).unwrap().set_metadata("another-id");
    eventually("an empty group", || reader.commit(&position, CommitMode::Sync).is_ok());
    let error = place.fails(3, &[&args[..], &["--until-end", "--group", &group]].concat());
    assert!(error.contains("it had the id another-id") && error.contains("give another --group"), "{error}");
    position.find_partition(&raw, 0).unwrap().set_metadata("");
    position.set_partition_offset(&raw, 0, rdkafka::Offset::Offset(100_000)).unwrap();
    eventually("an empty group", || reader.commit(&position, CommitMode::Sync).is_ok());
    let error = place.fails(3, &[&args[..], &["--until-end", "--group", &group]].concat());
    assert!(error.contains("partition 0 ends before offset 100000"), "{error}");
    finish(&place, &[&args[..], &["--group", &format!("{raw}-anew")]].concat());
    assert_eq!(committed(&servers, &output).len(), 2500);
}

/// A Kafka process that is stopped for a while, as if the network were cut.
#[test]
fn a_broker_that_is_away_for_30_seconds_is_waited_for() {
    let Some(servers) = kafka() else { return };
    // Other tests use the same broker: it is stopped only if this is the only test, as in .ci/full.
    let Some(pid) =
        std::env::var("TERCILE_TEST_BROKER_AWAY").ok().and_then(|_| std::env::var("TERCILE_TEST_KAFKA_PID").ok())
    else {
        eprintln!("skipped: TERCILE_TEST_BROKER_AWAY is not set");
        return;
    };
    let records = 40_000;
    let (place, topic) = trained(&servers, records, 2);
    let output = format!("{topic}-out");
    let args = worker(&servers, &topic, &output);
    let running = place.start(&args);
    running.said("reading partitions 0, 1");
    let signal = |signal: &str| {
        assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(30));
    signal("-CONT");
    assert!(began.elapsed() >= Duration::from_secs(30));
    within(Duration::from_secs(120), "all records", || committed(&servers, &output).len() >= records);
    let ended = running.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    finish(&place, &args);
    assert_once(&place, &committed(&servers, &output), records);
}

/// The coordinators of the transactions and of the group move to another broker and back while a worker sends records.
#[test]
fn coordinators_that_move_to_another_broker_lose_and_repeat_nothing() {
    let Some(servers) = kafka() else { return };
    // It starts a second broker and takes a minute: in .ci/full only.
    if std::env::var_os("TERCILE_TEST_COORDINATORS").is_none() {
        eprintln!("skipped: TERCILE_TEST_COORDINATORS is not set");
        return;
    }
    let kafka = |args: &[&str]| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/kafka");
        assert!(std::process::Command::new(script).args(args).status().unwrap().success(), "{args:?}");
    };
    kafka(&["join"]);
    let rows = 2_000;
    let (place, topic) = trained(&servers, rows, 2);
    let output = format!("{topic}-out");
    let args = worker(&servers, &topic, &output);
    let produce = ["produce", "rows.ndjson", "--bootstrap-servers", &servers, "--topic", &topic];
    let mut sent = rows;
    let running = place.start(&args);
    eventually("the first records", || {
        running.stderr().contains("made the topic") && committed(&servers, &output).len() == sent
    });
    for node in ["2", "1"] {
        for moved in ["__transaction_state", "__consumer_offsets"] {
            std::thread::scope(|scope| {
                let moving = scope.spawn(|| kafka(&["move", moved, node]));
                while !moving.is_finished() {
                    place.ok(&produce);
                    sent += rows;
                }
            });
            place.ok(&produce);
            sent += rows;
            within(Duration::from_secs(60), moved, || committed(&servers, &output).len() >= sent);
        }
    }
    let ended = running.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    finish(&place, &args);
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &servers, "--topic", &topic]);
    assert_once(&place, &committed(&servers, &output), sent);
}
