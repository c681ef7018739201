//! `tercile enrich`: records of a topic to another topic with their segments: what is sent, what is rejected, and preview.

use std::collections::BTreeMap;
use std::time::Duration;

use common::acl::{self, Operation, Resource};
use common::{Place, eventually, kafka};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::kafka::{admin, as_user, producer, setting, topic};
use crate::common;

/// A record of an output topic.
pub(super) struct Sent {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub timestamp: Option<i64>,
    pub headers: Vec<(String, String)>,
}

impl Sent {
    pub fn json(&self) -> Value {
        serde_json::from_slice(self.value.as_ref().unwrap()).unwrap()
    }

    fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The place of the record that it was made from.
    pub fn source(&self) -> (i32, i64) {
        let source = self.header("tercile-source");
        let mut parts = source.last().unwrap().rsplit('/').map(|part| part.parse::<i64>());
        let offset = parts.next().unwrap().unwrap();
        (i32::try_from(parts.next().unwrap().unwrap()).unwrap(), offset)
    }
}

/// All records of a topic that a reader of committed records sees.
pub(super) fn committed(servers: &str, topic: &str) -> Vec<Sent> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "test-reader")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, i32::try_from(partition).unwrap(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut sent, mut ended) = (Vec::new(), 0);
    while ended < partitions {
        match consumer.poll(Duration::from_secs(20)).unwrap() {
            Ok(message) => {
                let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
                let text = |header: Header<'_, &[u8]>| {
                    (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
                };
                sent.push(Sent {
                    partition: message.partition(),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    timestamp: message.timestamp().to_millis(),
                    headers: headers.map(text).collect(),
                });
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            // A broker that was away; librdkafka connects again.
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut,
            )) => {}
            Err(error) => panic!("{error}"),
        }
    }
    sent
}

/// Rows of about 190 bytes.
fn small_rows(records: usize) -> String {
    let row = |i: usize| {
        json!({
            "product_id": i.to_string(), "discounted_price": format!("₹{}", i * 7919 % 9999), "rating": format!("4.{}", i % 10),
            "rating_count": (i * 31 % 77_777).to_string(), "discount_percentage": format!("{}%", i % 120),
            "product_name": format!("a thing of no importance, number {i} of many"),
        })
        .to_string()
            + "\n"
    };
    (0..records).map(row).collect()
}

/// A store with models, trained on a topic with this number of records, those of `rows.ndjson`.
pub(super) fn trained(servers: &str, records: usize, partitions: i32) -> (Place, String) {
    let (place, topic) = (Place::new(), topic("raw"));
    place.write("rows.ndjson", small_rows(records));
    let to = ["--bootstrap-servers", servers, "--topic", &topic];
    place.ok(&[&["produce", "rows.ndjson", "--partitions", &partitions.to_string()][..], &to].concat());
    place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    place.ok(&["train"]);
    (place, topic)
}

/// The segments of the stored records by partition and offset, as `segment()` and `segment_name()` give them.
pub(super) fn stored_segments(place: &Place) -> BTreeMap<(i32, i64), Value> {
    let mut found: BTreeMap<(i32, i64), Value> = BTreeMap::new();
    for (name, features) in [
        ("price_rating", "discounted_price, rating"),
        ("rating_count", "rating, rating_count"),
        ("discount", "discount_percentage"),
    ] {
        let sql = format!(
            "SELECT _partition AS p, _offset AS o, segment('{name}', {features}) AS c, segment_name('{name}', {features}) AS n FROM {name}"
        );
        for line in place.ok(&["sql", "-f", "ndjson", "-c", &sql]).lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let at = (i32::try_from(row["p"].as_i64().unwrap()).unwrap(), row["o"].as_i64().unwrap());
            found.entry(at).or_insert_with(|| json!({}))[name] = json!([row["c"], row["n"]]);
        }
    }
    found
}

/// Checks that each stored record was sent once, with the segments of the store.
pub(super) fn assert_once(place: &Place, sent: &[Sent], records: usize) {
    let mut by_source: BTreeMap<(i32, i64), &Sent> = BTreeMap::new();
    for one in sent {
        assert!(by_source.insert(one.source(), one).is_none(), "{:?} was sent twice", one.source());
    }
    assert_eq!(by_source.len(), records);
    let expected = stored_segments(place);
    for (at, one) in by_source {
        let segments = &one.json()["segments"];
        for name in ["price_rating", "rating_count", "discount"] {
            let found = match &segments[name] {
                Value::Null => json!([null, null]),
                segment => json!([segment["cluster"], segment["description"]]),
            };
            let stored =
                expected.get(&at).and_then(|all| all.get(name)).cloned().unwrap_or_else(|| json!([null, null]));
            assert_eq!(found, stored, "{name} of {at:?}: {segments}");
        }
    }
}

#[test]
fn each_record_is_sent_once_with_the_segments_of_the_store() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = trained(&servers, 20_000, 3);
    let output = format!("{topic}-enriched");
    let args = ["enrich", "--bootstrap-servers", &servers, "--topic", &topic, "--to", &output, "--until-end"];
    let ended = place.run(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("read 20,000 records: 20,000 enriched, 0 as they were"), "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("made the topic {output} with 3 partitions")), "{}", ended.stderr);
    let sent = committed(&servers, &output);
    assert_once(&place, &sent, 20_000);
    for one in &sent {
        assert_eq!(one.partition, one.source().0, "topics with as many partitions keep them");
        assert_eq!(one.header("tercile-model"), ["price_rating@3@3", "rating_count@3@3", "discount@3@3"]);
    }
    let doctor = |output: &str| {
        let flags =
            ["--bootstrap-servers", &servers, "--topic", &topic, "--bind", "127.0.0.1:0", "--enrich-to", output];
        place.run(&[&["doctor"][..], &flags].concat()).stdout
    };
    assert!(doctor(&output).contains(&format!("goes on in {topic}; 0 records to enrich")), "{}", doctor(&output));
    assert!(doctor(&format!("{output}-new")).contains("does not exist"));
    // The group goes on where it was.
    let ended = place.run(&args);
    assert!(ended.code == Some(0) && ended.stderr.contains("read 0 records"), "{}", ended.stderr);
    assert_eq!(committed(&servers, &output).len(), 20_000);
    // Another group begins anew, and only there.
    let ended = place.run(&[&args[..], &["--group", &format!("{output}-latest"), "--from", "latest"]].concat());
    assert!(ended.code == Some(0) && ended.stderr.contains("read 0 records"), "{}", ended.stderr);
}

/// Sends a record with headers to partition 0.
fn send(servers: &str, topic: &str, key: Option<&str>, value: Option<&[u8]>, timestamp: i64) {
    let producer = producer(servers);
    let headers = OwnedHeaders::new().insert(Header { key: "trace", value: Some("7") });
    let mut record = BaseRecord::<str, [u8]>::to(topic).partition(0).timestamp(timestamp).headers(headers);
    (record.key, record.payload) = (key, value);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
}

async fn make(servers: &str, topic: &str, settings: &[(&str, &str)]) {
    let mut new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    new.config.extend(settings);
    admin(servers).create_topics([&new], &AdminOptions::new()).await.unwrap();
    eventually("the topic", || {
        let admin = admin(servers);
        let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        metadata.topics()[0].partitions().iter().any(|partition| partition.leader() >= 0)
    });
}

#[tokio::test]
async fn records_that_cannot_be_enriched_are_sent_as_they_are_or_as_dead_letters() {
    let Some(servers) = kafka() else { return };
    let (place, _) = trained(&servers, 2000, 1);
    let (raw, now) = (topic("ugly"), 1_700_000_000_000);
    make(&servers, &raw, &[]).await;
    let long =
        format!("{{\"product_name\":\"{}\",\"discounted_price\":\"₹399\",\"rating\":\"4.2\"}}", "é,".repeat(500));
    let good = " {\"discounted_price\" : \"₹1,099\", \"rating\":4.20, \"x\":12345678901234567890, \"x\":1}\n";
    let records: [Option<&[u8]>; 9] = [
        Some(good.as_bytes()),
        None,
        Some(b""),
        Some(b"[1]"),
        Some(b"{\"a\":\"\xff\"}"),
        Some(b"{\"segments\":1}"),
        Some(b"{\"\\u0073egments_reason\":1}"),
        Some(b"{}"),
        Some(long.as_bytes()),
    ];
    for (i, record) in (0..).zip(records) {
        send(&servers, &raw, (i % 2 == 0).then_some("k"), record, now + i);
    }
    for dead in [false, true] {
        let (output, letters) = (format!("{raw}-{dead}"), format!("{raw}-letters"));
        make(&servers, &output, &[("max.message.bytes", "1700"), ("message.timestamp.type", "CreateTime")]).await;
        let mut args = vec!["enrich", "--bootstrap-servers", &servers, "--topic", &raw, "--to", &output, "--until-end"];
        if dead {
            args.extend(["--dead-letters", &letters]);
        }
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let words = match dead {
            false => "read 9 records: 2 enriched, 6 as they were, 0 as dead letters, 1 tombstone",
            true => "read 9 records: 2 enriched, 0 as they were, 6 as dead letters, 1 tombstone",
        };
        assert!(ended.stderr.contains(words), "{}", ended.stderr);
        let mut sent = committed(&servers, &output);
        if dead {
            assert_eq!(sent.len(), 3);
            sent.extend(committed(&servers, &letters));
        }
        sent.sort_by_key(Sent::source);
        assert_eq!(sent.len(), 9);
        for ((i, one), record) in (0..).zip(&sent).zip(records) {
            assert_eq!(one.timestamp, Some(now + i));
            assert_eq!(one.key.as_deref(), (i % 2 == 0).then_some(&b"k"[..]));
            assert_eq!(one.header("trace"), ["7"]);
            assert_eq!(one.header("tercile-source"), [format!("{raw}/0/{i}")]);
            let enriched = i == 0 || i == 7;
            assert_eq!(one.header("tercile-model").len(), if enriched { 3 } else { 0 });
            if !enriched {
                assert_eq!(one.value.as_deref(), record, "{i}");
            }
        }
        let reasons: Vec<_> = sent.iter().map(|one| one.header("tercile-reason").concat()).collect();
        assert_eq!(reasons[..3], ["", "", "empty: the message has a value of no bytes"]);
        assert_eq!(reasons[3], "not a JSON object but an array");
        assert_eq!(reasons[4], "bad UTF-8 at byte 6");
        assert_eq!(reasons[5], "the record already has the field segments");
        assert_eq!(reasons[6], "the record already has the field segments_reason");
        assert!(
            reasons[8].starts_with("with its segments the record has ") && reasons[8].ends_with("the topic takes 1700"),
            "{}",
            reasons[8]
        );
        let text = String::from_utf8(sent[0].value.clone().unwrap()).unwrap();
        assert!(text.starts_with(&good[..good.len() - 2]) && text.ends_with("}\n"), "{text}");
        let first = sent[0].json();
        assert_eq!(first["segments"]["discount"], Value::Null);
        assert_eq!(
            first["segments_reason"],
            json!({"discount": "discount_percentage is missing", "rating_count": "rating_count is missing"})
        );
        assert!(first["segments"]["price_rating"]["cluster"].is_u64(), "{first}");
        assert_eq!(first["segments"]["price_rating"]["version"], 3);
    }
}

#[test]
fn loops_and_unsuitable_segmentations_are_rejected() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = trained(&servers, 1000, 1);
    let to = ["enrich", "--bootstrap-servers", &servers, "--topic", &raw, "--until-end"];
    let error = place.fails(2, &[&to[..], &["--to", &raw]].concat());
    assert!(error.contains("would be enriched again and again"), "{error}");
    let error = place.fails(2, &[&to[..], &["--to", "x", "--dead-letters", &raw]].concat());
    assert!(error.contains("--dead-letters"), "{error}");
    let output = format!("{raw}-out");
    place.ok(&[&to[..], &["--to", &output]].concat());
    // Known by the name of the group.
    let back = ["enrich", "--bootstrap-servers", &servers, "--topic", &output, "--until-end"];
    let error = place.fails(1, &[&back[..], &["--to", &raw]].concat());
    assert!(error.contains("the topics would form a loop"), "{error}");
    // A longer loop, with groups of any name: known by the headers of the first record that has come around.
    let (third, other) = (format!("{raw}-third"), ["--group", "my-own", "--field", "other"]);
    place.ok(&[&back[..], &["--to", &third], &other].concat());
    let around = ["enrich", "--bootstrap-servers", &servers, "--topic", &third, "--until-end", "--field", "third"];
    let error = place.fails(1, &[&around[..], &["--to", &output, "--group", "again"]].concat());
    assert!(error.contains("the topics form a loop"), "{error}");
    let error = place.fails(1, &[&to[..], &["--to", "x", "--segmentations", "discount,nonsense"]].concat());
    assert!(error.contains("no SQL file is the segmentation nonsense"), "{error}");

    // A segmentation that needs more than the record.
    for (name, text) in [
        ("00_records.sql", "CREATE TABLE records (product_id TEXT, rating TEXT)"),
        (
            "30_rated.sql",
            "-- k: 2\n\nSELECT _partition, _offset, _timestamp, 1 AS _slice, to_number(rating) AS rating FROM records",
        ),
        (
            "31_sorted.sql",
            "-- k: 2\n\nSELECT _partition, _offset, _timestamp, 1 AS _slice, row_number() OVER () * 1.0 AS n FROM records",
        ),
    ] {
        place.write(&format!("other/{name}"), text);
    }
    let named = [&to[..], &["--to", "x", "--sql", "other", "--segmentations", "sorted"]].concat();
    let error = place.fails(1, &named);
    assert!(error.contains("sorted cannot score records") && error.contains("OVER"), "{error}");
    let ended = place.run(&[&to[..], &["--to", &format!("{raw}-some"), "--sql", "other", "--no-wait"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("sorted is left out").count(), 1, "{}", ended.stderr);
    let sent = committed(&servers, &format!("{raw}-some"));
    assert_eq!(sent.len(), 1000);
    assert_eq!(sent[0].json()["segments"], json!({"rated": null}));
    assert_eq!(sent[0].json()["segments_reason"], json!({"rated": "it is not trained yet; run tercile train"}));
}

#[test]
fn a_preview_sends_and_commits_nothing() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = trained(&servers, 1000, 2);
    let args = ["enrich", "--bootstrap-servers", &servers, "--topic", &raw, "--limit", "10"];
    let shown = place.ok(&args);
    assert_eq!(shown.lines().count(), 10);
    for line in shown.lines() {
        let json: Value = serde_json::from_str(line).unwrap();
        assert!(json["segments"]["price_rating"].is_object() && json["product_id"].is_string(), "{line}");
    }
    let ended = place.run(
        &[&args[..5], &["--limit", "5000", "--segmentations", "discount", "--field", "is", "--lang", "id"]].concat(),
    );
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(0), 1000), "{}", ended.stderr);
    assert!(ended.stdout.contains(",\"is\":{\"discount\":{\"cluster\":"), "{}", ended.stdout);
    assert!(ended.stdout.contains("Diskon "), "{}", ended.stdout);
    let ended = place.run(&args[..5]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--to <TOPIC>"), "{}", ended.stderr);
}

#[test]
fn a_worker_waits_for_models_and_takes_new_ones_between_transactions() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = (Place::new(), topic("waits"));
    place.write("rows.csv", place.ok(&["generate", "1000"]));
    let to = ["--bootstrap-servers", &servers, "--topic", &raw];
    place.ok(&[&["produce", "rows.csv"][..], &to].concat());
    let output = format!("{raw}-out");
    let worker = place.start(&[&["enrich", "--to", &output, "--metrics", "127.0.0.1:0"][..], &to].concat());
    worker.said("waiting for models: price_rating: it is not trained yet");
    place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    place.ok(&["train"]);
    eventually("all records", || committed(&servers, &output).len() == 1000);
    place.write("more.csv", place.ok(&["generate", "1000", "--seed", "9"]));
    place.ok(&[&["produce", "more.csv"][..], &to].concat());
    eventually("more records", || committed(&servers, &output).len() == 2000);
    place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    place.ok(&["train"]);
    worker.said("scoring with price_rating@3@6");
    place.ok(&[&["produce", "rows.csv"][..], &to].concat());
    eventually("the rest", || committed(&servers, &output).len() == 3000);
    let mut worker = worker;
    worker.address = worker.said("metrics at ").split("/metrics").next().unwrap().to_owned();
    let metrics = worker.get("/metrics").text;
    assert!(metrics.contains("tercile_enrich_records{state=\"enriched\"} 3000"), "{metrics}");
    assert!(metrics.contains("tercile_enrich_latency_seconds_count 3000"), "{metrics}");
    let ended = worker.interrupt();
    assert!(ended.code == Some(0) && ended.stderr.contains("read 3,000 records: 3,000 enriched"), "{}", ended.stderr);
    // A record without a feature has no segment.
    let sent = committed(&servers, &output);
    let versions = |sent: &[Sent]| -> std::collections::BTreeSet<Option<u64>> {
        let version = |one: &Sent| one.json()["segments"]["price_rating"]["version"].as_u64();
        sent.iter().map(version).filter(Option::is_some).collect()
    };
    assert_eq!(versions(&sent[..2000]), [Some(3)].into());
    assert_eq!(versions(&sent[2000..]), [Some(6)].into());
}

#[test]
fn an_embedded_broker_delivers_at_least_once() {
    let place = Place::new();
    place.write("rows.csv", place.ok(&["generate", "500"]));
    let mut broker = place.start(&["broker", "--topic", "products", "--topic", "enriched"]);
    let servers = broker.line_with("");
    let to = ["--bootstrap-servers", &servers];
    place.ok(&[&["produce", "rows.csv"][..], &to].concat());
    let ended = place.run(&[&["enrich", "--to", "enriched", "--until-end", "--no-wait"][..], &to].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("has no transactions: delivery is at-least-once"), "{}", ended.stderr);
    assert!(ended.stderr.contains("read 500 records: 500 enriched"), "{}", ended.stderr);
    assert_eq!(committed(&servers, "enriched").len(), 500);
}

#[test]
fn up_enriches_the_topic_that_it_stores() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = (Place::new(), topic("up"));
    let error = place.fails(2, &["up", "--enrich-to", "x"]);
    assert!(error.contains("add --bootstrap-servers"), "{error}");
    place.write("rows.ndjson", small_rows(1000));
    let output = format!("{raw}-out");
    let to = ["--bootstrap-servers", &servers, "--topic", &raw];
    let error = place.fails(2, &[&["up", "--enrich-to", &raw][..], &to].concat());
    assert!(error.contains("would be enriched again and again"), "{error}");
    let up = place.up(&[&to[..], &["--data", "rows.ndjson", "--enrich-to", &output]].concat());
    eventually("all records", || committed(&servers, &output).len() == 1000);
    eventually("the metrics", || {
        let metrics = up.get("/metrics").text;
        metrics.contains("tercile_enrich_records{state=\"enriched\"} 1000")
            && metrics.contains("tercile_records{state=\"stored\"} 1000")
    });
    let ended = up.interrupt();
    assert!(ended.code == Some(0) && ended.stderr.contains("read 1,000 records: 1,000 enriched"), "{}", ended.stderr);
    assert_once(&place, &committed(&servers, &output), 1000);
}

#[tokio::test]
async fn a_broker_that_refuses_is_quoted_and_ends_the_command() {
    let Some(servers) = kafka() else { return };
    let (place, raw) = trained(&servers, 1000, 1);
    let (unwritten, group, written) = (topic("unwritten"), topic("group"), topic("written"));
    for name in [&unwritten, &written] {
        make(&servers, name, &[]).await;
    }
    let (describe, read) = (Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE, Operation::RD_KAFKA_ACL_OPERATION_READ);
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_TOPIC, &unwritten, describe, &setting("USER"));
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_GROUP, &group, read, "other");
    let id = format!("{written}-mine-0");
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID, &id, describe, "other");
    let user = as_user(&setting("SASL"));
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let refused = |args: &[&str], reason: &str| {
        let error = place.fails(1, &[&["enrich", "--topic", &raw, "--until-end"][..], &user, args].concat());
        assert!(error.contains(reason), "{error}");
    };
    refused(&["--to", &unwritten], "Broker: Topic authorization failed");
    refused(&["--to", &written, "--group", &group], "Broker: Group authorization failed; the user needs Read");
    refused(&["--to", &written, "--group", &format!("{written}-mine")], "Transactional Id authorization failed");
    place.ok(&[&["enrich", "--topic", &raw, "--until-end", "--to", &written][..], &user].concat());
    assert_eq!(committed(&servers, &written).len(), 1000);
}
