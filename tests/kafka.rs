//! Against a real Apache Kafka, which `TERCILE_TEST_KAFKA` names (`.ci/kafka` starts one).

mod common;

use std::time::{Duration, SystemTime};

use common::{Place, kafka};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

/// A topic name that nobody has used.
fn topic(what: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    format!("{what}-{}-{}", std::process::id(), now.as_nanos())
}

#[test]
fn a_file_goes_through_kafka_into_the_store_once() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("file"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    let error = place.fails(1, &[&["ingest"][..], &to].concat());
    assert!(error.contains(&format!("the topic {topic} does not exist")), "{error}");
    place.write("rows.csv", place.ok(&["generate", "5000"]));
    let ended = place.run(&[&["produce", "rows.csv", "--partitions", "3"][..], &to].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("with 3 partitions") && ended.stderr.contains("sent 5,000 rows"), "{}", ended.stderr);
    for received in ["received 5,000 records", "received 0 records"] {
        let ended = place.run(&[&["ingest", "--until-end", "--batch-rows", "700"][..], &to].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains(received), "{}", ended.stderr);
        assert_eq!(place.records(), (5000, 5000));
    }
    assert_eq!(place.number("SELECT count(DISTINCT product_id) FROM records"), 5000);
    let other = made(&servers);
    let error = place.fails(3, &["ingest", "--until-end", "--bootstrap-servers", &servers, "--topic", &other]);
    assert!(error.contains("is fed from topic"), "{error}");
}

/// Another topic that exists.
fn made(servers: &str) -> String {
    let (place, topic) = (Place::new(), topic("other"));
    place.write("a.csv", "product_id\nx\n");
    place.ok(&["produce", "a.csv", "--bootstrap-servers", servers, "--topic", &topic]);
    topic
}

#[test]
fn up_reads_a_real_kafka_and_replays_a_file_into_it_once() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("up"));
    place.write("rows.csv", place.ok(&["generate", "2000"]));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic, "--data", "rows.csv"];
    let up = place.up(&to);
    assert_eq!(up.get("/api/segments/discount/models/3").json()["receipt"]["n"], 2000);
    assert_eq!(up.interrupt().code, Some(0));
    // A store that lost its newest file: the topic still holds the rows, and they are not sent again.
    let newest = common::files(&place.path("store/records")).into_iter().rfind(|f| f.extension().is_some()).unwrap();
    std::fs::remove_file(newest).unwrap();
    let up = place.up(&to);
    assert!(up.stderr().contains("all 2,000 rows of rows.csv are in the store already"), "{}", up.stderr());
    up.interrupt();
    assert_eq!(place.records(), (2000, 2000));
    let up = place.up(&["--bootstrap-servers", &servers, "--topic", &topic]);
    assert_eq!(up.interrupt().code, Some(0), "nothing is replayed by default");
    assert_eq!(place.records(), (2000, 2000));
}

/// A setting of `.ci/kafka`.
fn setting(name: &str) -> String {
    std::env::var(format!("TERCILE_TEST_KAFKA_{name}")).unwrap()
}

#[test]
fn tls_and_sasl_work_and_secrets_stay_secret() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("secure"));
    place.write("rows.csv", "product_id\na\nb\n");
    let (user, password) = (setting("USER"), setting("PASSWORD"));
    let ca = format!("ssl.ca.location={}", setting("CA"));
    let sasl = |mechanism: &str| {
        format!(
            "security.protocol=SASL_PLAINTEXT\nsasl.mechanism={mechanism}\nsasl.username={user}\nsasl.password={password}\n"
        )
    };
    place.write("scram.properties", sasl("SCRAM-SHA-256"));
    place.write("plain.properties", sasl("PLAIN"));
    let scram = ["--bootstrap-servers", &setting("SASL"), "--kafka-config", "scram.properties", "--topic", &topic];
    let plain = ["--bootstrap-servers", &setting("SASL"), "--kafka-config", "plain.properties", "--topic", &topic];
    let ssl = ["--bootstrap-servers", &setting("SSL"), "-X", "security.protocol=ssl", "-X", &ca, "--topic", &topic];
    for to in [&scram[..], &plain, &ssl] {
        place.ok(&[&["produce", "rows.csv"], to].concat());
        place.ok(&[&["ingest", "--until-end"], to].concat());
    }
    place.ok(&["ingest", "--until-end", "--bootstrap-servers", &servers, "--topic", &topic]);
    assert_eq!(place.records(), (6, 6));

    let wrong = [&["ingest", "-X", "sasl.password=hush-hush", "--timeout", "4", "-v"][..], &scram].concat();
    let ended = place.run(&wrong);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.to_lowercase().contains("authentication"), "{}", ended.stderr);
    for secret in ["hush-hush", &password] {
        assert!(!ended.stderr.contains(secret), "{}", ended.stderr);
    }
    let untrusted = ["ingest", "--bootstrap-servers", &setting("SSL"), "-X", "security.protocol=ssl", "--timeout", "4"];
    let error = place.fails(1, &untrusted);
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = place.fails(1, &["ingest", "--bootstrap-servers", &servers, "-X", "sasl.password.x=hush-hush"]);
    assert_eq!(error, "error: the Kafka setting sasl.password.x is unknown to librdkafka");
    let error = place.fails(1, &["ingest", "--bootstrap-servers", &servers, "-X", "security.protocol=hush-hush"]);
    assert_eq!(error, "error: the Kafka setting security.protocol has a value that librdkafka does not take");
}

#[test]
fn a_row_over_5_mib_is_stored_and_an_aborted_transaction_is_not() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("large"));
    place
        .write("large.ndjson", format!("{{\"product_id\":\"a\"}}\n{{\"product_name\":\"{}\"}}\n", "x".repeat(6 << 20)));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    place.ok(&[&["produce", "large.ndjson"][..], &to].concat());
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &servers).set("transactional.id", &topic).create().unwrap();
    let patience = Duration::from_secs(30);
    producer.init_transactions(patience).unwrap();
    for (id, commit) in [("aborted", false), ("committed", true)] {
        producer.begin_transaction().unwrap();
        let payload = format!("{{\"product_id\":\"{id}\"}}");
        producer.send(BaseRecord::<(), str>::to(&topic).payload(&payload)).map_err(|(e, _)| e).unwrap();
        producer.flush(patience).unwrap();
        if commit {
            producer.commit_transaction(patience).unwrap();
        } else {
            producer.abort_transaction(patience).unwrap();
        }
    }
    let ended = place.run(&[&["ingest", "--until-end"][..], &to].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let csv = place.ok(&[
        "sql",
        "--format",
        "csv",
        "-c",
        "SELECT _offset, product_id, length(product_name) AS n FROM records ORDER BY _offset",
    ]);
    assert_eq!(csv, "_offset,product_id,n\n0,a,\n1,,6291456\n4,committed,\n");
}
