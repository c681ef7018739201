//! What feeds a store: marks of another store, a topic that was deleted or lost records, forged headers, and two writers after
//! the lock was deleted. Each behaves as its row in docs/operations.md says.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use super::damaged_store::{Fed, ROWS};
use crate::common::stream::Stream;
use crate::common::{Place, Running, eventually, files, kafka};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn producer(broker: &str) -> BaseProducer {
    ClientConfig::new().set("bootstrap.servers", broker).create().unwrap()
}

/// Parquet files below a directory, oldest first within a partition.
fn parquet(dir: &Path) -> Vec<PathBuf> {
    files(dir).into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "parquet")).collect()
}

/// `marks/source.json` of another store: writers refuse, readers work.
#[test]
fn marks_of_another_store_are_refused_by_writers() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    let (source, copy) = (store.join("source.json"), store.join("marks/source.json"));
    let right = fs::read_to_string(&copy).unwrap();
    let id = json(&source)["id"].as_str().unwrap().to_owned();
    let other_id = if id.starts_with('A') { id.replacen('A', "B", 1) } else { format!("A{}", &id[1..]) };
    for wrong in [right.replace("\"products\"", "\"orders\""), right.replace(&id, &other_id)] {
        assert_ne!(wrong, right);
        fs::write(&copy, wrong).unwrap();
        let doctor = fed.doctor();
        assert_eq!(doctor.code, Some(1));
        assert!(fed.store_faults(&doctor).contains("marks/source.json"), "{}", doctor.stdout);
        let words = "one of them is from another store: bring the right one back, and delete the other";
        assert!(fed.ingest("store", 1).stderr.contains(words));
        let said = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--bootstrap-servers", &fed.address]);
        assert!(said.contains("store/source.json") && said.contains(words), "{said}");
        assert_eq!(fed.records("store"), (ROWS, ROWS));
        place.ok(&["files"]);
        place.ok(&["compact"]);
        let serve = place.serve(&[]);
        assert_eq!(serve.get("/health/live").status, 200);
        assert_eq!(serve.interrupt().code, Some(0));
        // The advice: the wrong one is deleted.
        fs::remove_file(&copy).unwrap();
        fed.ingest("store", 0);
        assert_eq!(fs::read_to_string(&copy).unwrap(), right);
        assert_eq!(fed.faults(), "");
    }
}

/// `_expired` lost or damaged: the mark has the same offset, so expired records do not come back.
#[test]
fn a_lost_note_of_expired_records_is_written_again() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    // The files of expired records remain for the grace period, so only `_expired` and the mark exclude them.
    let mut left = ROWS;
    let expired = store.join("records/products/0/_expired");
    // Records of the other partition may expire first.
    eventually("the oldest records to expire", || {
        place.ok(&["compact", "--keep-for", "1s", "--grace", "1d", "--roll-bytes", "1"]);
        left = fed.records("store").0;
        left < ROWS && expired.exists()
    });
    assert!(left > 0);
    let (start, whole) = (store.join("records/products/0/_start"), fs::read(&expired).unwrap());
    let damages: [(&Path, Option<&[u8]>); 4] =
        [(&expired, None), (&expired, Some(&whole[..whole.len() / 2])), (&expired, Some(b"")), (&start, None)];
    for (path, content) in damages {
        match content {
            Some(content) => fs::write(path, content).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let name = path.file_name().unwrap().to_str().unwrap();
        let faults = fed.faults();
        assert!(faults.contains(name), "{name}, {content:?}: {faults}");
        assert_eq!(fed.doctor().code, Some(1));
        assert_eq!(fed.records("store"), (left, left), "{name}, {content:?}");
        place.ok(&["files"]);
        place.ok(&["compact", "--roll-bytes", "1"]);
        fed.ingest("store", 0);
        assert_eq!(fed.records("store"), (left, left), "{name}, {content:?}");
        assert_eq!(fed.faults(), "", "{name}, {content:?}");
        assert!(fs::metadata(path).unwrap().len() > 0);
    }
}

fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers).create().unwrap()
}

/// A topic that was deleted and created again, with more records than the store has.
#[tokio::test]
async fn a_topic_that_was_created_again_is_another_topic() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "deleted");
    stream.fill(0, 100, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    admin(&servers).delete_topics(&[&stream.topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    // Kafka confirms a deletion before the name is free.
    stream.place.write("new.ndjson", "{\"product_id\":\"new\"}\n".repeat(300));
    eventually("the topic to be created again", || {
        let produce = ["produce", "new.ndjson", "--partitions", "1"];
        stream.place.run(&stream.args(&produce)).code == Some(0)
    });
    let bound = ["up", "--bind", "127.0.0.1:0"];
    for command in [&["ingest"][..], &["ingest", "--until-end"], &["ingest", "--group", &stream.topic], &bound] {
        let said = stream.place.fails(3, &stream.args(command));
        assert!(said.contains("is fed from topic") && said.contains("--store"), "{command:?}: {said}");
    }
    let doctor = stream.place.run(&stream.args(&["doctor", "--bind", "127.0.0.1:0"]));
    assert!(doctor.code == Some(1) && doctor.stdout.contains("is fed from topic"), "{}", doctor.stdout);
    assert_eq!(stream.place.records(), (100, 100));
    // The advice: another store.
    stream.place.ok(&stream.args(&["ingest", "--until-end", "--store", "other"]));
    let csv = stream.place.ok(&["sql", "--store", "other", "-f", "csv", "-c", "SELECT count(*) FROM records"]);
    assert_eq!(csv.lines().nth(1), Some("300"));
}

/// Records that the topic lost before they were read: `up` stops like `ingest`, and continues after `ingest --accept-gap`.
#[tokio::test]
async fn a_gap_ends_up_as_well_until_it_is_accepted() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "gap");
    stream.fill(0, 100, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    stream.fill(100, 100, "1");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&stream.topic, 0, Offset::Offset(150)).unwrap();
    admin(&servers).delete_records(&list, &AdminOptions::new()).await.unwrap();
    let up = stream.args(&["up", "--bind", "127.0.0.1:0"]);
    for command in [stream.args(&["ingest"]), stream.args(&["ingest", "--until-end"]), up] {
        let ended = stream.place.run(&command);
        assert_eq!(ended.code, Some(4), "{command:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("offset 100 to 149 were gone"), "{command:?}: {}", ended.stderr);
    }
    assert_eq!(stream.place.records(), (100, 100));
    stream.place.ok(&stream.args(&["ingest", "--until-end", "--accept-gap"]));
    stream.exact(150);
    let up = stream.place.up(&stream.args(&[]));
    assert_eq!(up.interrupt().code, Some(0));
}

/// Another producer claims to have sent a row of the file that `up` replays.
#[test]
fn forged_headers_make_a_replay_skip_the_row_that_they_name() {
    let place = Place::new();
    place.ok(&["generate", "50", "--output", "rows.csv"]);
    // The forger has to know the hash of the file.
    assert_eq!(place.up(&["--data", "rows.csv", "--store", "first"]).interrupt().code, Some(0));
    let hash = json(&place.path("first/source.json"))["files"][0]["hash"].as_str().unwrap().to_owned();
    let mut broker = place.start(&["broker", "--topic", "products"]);
    let address = broker.line_with("");
    let forger = producer(&address);
    for (hash, row, payload) in [(&*hash, "17", "forged"), (&"0".repeat(hash.len()), "18", "harmless")] {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "tercile-file", value: Some(hash) })
            .insert(Header { key: "tercile-row", value: Some(row) });
        let payload = format!("{{\"product_id\":\"{payload}\"}}");
        let record = BaseRecord::<(), str>::to("products").payload(&payload).headers(headers);
        forger.send(record).map_err(|(e, _)| e).unwrap();
    }
    forger.flush(Duration::from_secs(30)).unwrap();
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &address]);
    let up = place.up(&["--data", "rows.csv", "--bootstrap-servers", &address]);
    assert!(up.stderr().contains("1 row of rows.csv were stored already"), "{}", up.stderr());
    assert_eq!(up.interrupt().code, Some(0));
    assert_eq!(place.records(), (51, 51), "49 rows and two foreign records");
    assert_eq!(place.number("SELECT count(DISTINCT product_id) FROM records WHERE product_id <> 'forged'"), 50);
}

/// Sends numbered records to the embedded broker of an `up`.
fn send(broker: &str, numbers: std::ops::Range<usize>) {
    let producer = producer(broker);
    for number in numbers {
        let payload = format!("{{\"product_id\":\"{number}\"}}");
        producer.send(BaseRecord::<(), str>::to("products").payload(&payload)).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

/// `up.lock` is deleted: a second `up` runs beside the first one, and each record of either broker is stored once.
#[test]
fn two_ups_after_the_lock_was_deleted_store_each_record_once() {
    let place = Place::new();
    place.ok(&["generate", "200", "--output", "rows.csv"]);
    let args = ["up", "--bind", "127.0.0.1:0", "--data", "rows.csv", "--batch-age", "0.3", "--retrain-every", "3600"];
    let mut ups = Vec::new();
    for name in ["first", "second"] {
        let mut up = place.start_command(place.command(&args), name);
        up.line_with("ready at ");
        let broker = up.broker();
        ups.push((up, broker));
        if name == "first" {
            let said = place.fails(1, &args);
            assert!(said.contains("another tercile feeds the store"), "{said}");
            fs::remove_file(place.path("store/up.lock")).unwrap();
        }
    }
    assert!(ups[1].0.stderr().contains("all 200 rows of rows.csv were stored already"), "{}", ups[1].0.stderr());
    let mut sent = 0;
    for round in 0..10 {
        for (_, broker) in &ups {
            send(broker, sent..sent + 20);
            sent += 20;
        }
        // Both hold unpublished records at the same time, so one overtakes the other.
        eventually("new files", || parquet(&place.path("store/records")).len() > round + 1);
    }
    let all = i64::try_from(200 + sent).unwrap();
    eventually("all records", || place.records().0 >= all);
    let warned = |up: &Running| up.stderr().contains("another `tercile up` runs on this store: end one of the two");
    assert!(ups.iter().any(|(up, _)| warned(up)), "they never met");
    for (up, _) in ups {
        let ended = up.interrupt();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(place.records(), (all, all));
    let own =
        "SELECT count(DISTINCT product_id) FROM records WHERE _headers IS NULL OR _headers NOT LIKE '%tercile-file%'";
    assert_eq!(place.number(own), i64::try_from(sent).unwrap());
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]).stdout;
    assert!(doctor.contains("an unbroken chain"), "{doctor}");
}

/// An older file of records is lost: `up` continues to store records, and readers report the loss.
#[test]
fn up_goes_on_storing_where_an_older_file_is_lost() {
    let fed = Fed::new();
    let (place, store) = (&fed.place, fed.copy());
    let oldest = parquet(&store.join("records/products/0")).remove(0);
    let bytes = fs::read(&oldest).unwrap();
    fs::remove_file(&oldest).unwrap();
    let bound = ["up", "--bind", "127.0.0.1:0", "--bootstrap-servers", &fed.address];
    let up = place.start(&[&bound[..], &["--batch-age", "0.2"]].concat());
    up.said("the first training failed: ");
    let before = parquet(&store).len();
    let new = producer(&fed.address);
    new.send(BaseRecord::<(), str>::to("products").payload("{\"product_id\":\"new\"}")).map_err(|(e, _)| e).unwrap();
    new.flush(Duration::from_secs(30)).unwrap();
    eventually("a new file", || parquet(&store).len() > before);
    assert_eq!(up.interrupt().code, Some(0));
    let said = place.fails(1, &["sql", "-c", "SELECT count(*) FROM records"]);
    assert!(said.contains("records/products/0 are missing"), "{said}");
    let said = place.fails(1, &[&bound[..], &["--data", "rows.csv"]].concat());
    assert!(said.contains("records/products/0 are missing"), "{said}");
    // The advice: the file comes from a copy.
    fs::write(&oldest, bytes).unwrap();
    assert_eq!(fed.records("store"), (ROWS + 1, ROWS + 1));
    assert_eq!(fed.faults(), "");
}
