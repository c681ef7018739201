//! Tests with a real Apache Kafka, named by `TERCILE_TEST_KAFKA` (`.ci/kafka` starts one).

use std::time::{Duration, Instant, SystemTime};

use common::acl::{self, Operation, Resource};
use common::{Place, kafka};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::common;

/// An unused topic name.
pub(super) fn topic(what: &str) -> String {
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

/// Creates another topic.
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
    // A store that lost its newest file reports it. After following the advice, rows are read from the topic and not sent
    // again.
    let newest = common::files(&place.path("store/records")).into_iter().rfind(|f| f.extension().is_some()).unwrap();
    std::fs::remove_file(newest).unwrap();
    let error = place.fails(1, &[&["up", "--bind", "127.0.0.1:0"], &to[..]].concat());
    assert!(error.contains("the files end at offset 0") && error.contains("delete store/marks/0"), "{error}");
    std::fs::remove_file(place.path("store/marks/0")).unwrap();
    let up = place.up(&to);
    assert!(up.stderr().contains("all 2,000 rows of rows.csv were stored already"), "{}", up.stderr());
    up.interrupt();
    assert_eq!(place.records(), (2000, 2000));
    let up = place.up(&["--bootstrap-servers", &servers, "--topic", &topic]);
    assert_eq!(up.interrupt().code, Some(0), "nothing is replayed by default");
    assert_eq!(place.records(), (2000, 2000));
}

/// A variable exported by `.ci/kafka`.
pub(super) fn setting(name: &str) -> String {
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

pub(super) fn producer(servers: &str) -> BaseProducer {
    ClientConfig::new().set("bootstrap.servers", servers).create().unwrap()
}

pub(super) fn admin(servers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", servers).create().unwrap()
}

/// Creates a topic with one partition.
async fn make(admin: &AdminClient<DefaultClientContext>, topic: &str) {
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
}

/// Every kind of unreadable message, one in a hundred: each is stored with its bytes and a reason.
#[tokio::test]
async fn every_message_that_cannot_be_read_is_accounted_for() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("unreadable"));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let kinds: [(Option<&[u8]>, &str); 8] = [
        (None, "tombstone"),
        (Some(b""), "empty"),
        (Some(b"{\"product_id\":\"\xff\"}"), "bad UTF-8 at byte 15"),
        (Some(b"[{}]"), "not a JSON object but an array"),
        (Some(b"42"), "not a JSON object but a number"),
        (Some(b"{\"product_id\":1"), "not JSON"),
        (Some(b"\xef\xbb\xbf{}"), "not JSON"),
        (Some(deep.as_bytes()), "nested deeper than 127"),
    ];
    make(&admin(&servers), &topic).await;
    let producer = producer(&servers);
    let (n, mut unreadable) = (20_000, 0);
    for i in 0..n {
        let good = format!("{{\"product_id\":\"{i}\"}}");
        let payload = if i % 100 == 7 { kinds[i / 100 % kinds.len()].0 } else { Some(good.as_bytes()) };
        unreadable += usize::from(i % 100 == 7);
        let mut record = BaseRecord::<str, [u8]>::to(&topic).key("k");
        record.payload = payload;
        while let Err((_, again)) = producer.send(record) {
            producer.poll(Duration::from_millis(10));
            record = again;
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let ended = place.run(&["ingest", "--until-end", "--bootstrap-servers", &servers, "--topic", &topic]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let words = "received 20,000 records, stored 20,000 in 1 file (175 unreadable, 25 tombstones)";
    assert!(ended.stderr.contains(words), "{}", ended.stderr);
    assert_eq!(place.records(), (20_000, 20_000));
    assert_eq!(place.number("SELECT count(DISTINCT product_id) FROM records"), i64::try_from(n - unreadable).unwrap());
    for (payload, reason) in kinds {
        let hex: String = payload.unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect();
        let same = if payload.is_none() { "_raw IS NULL".to_owned() } else { format!("encode(_raw, 'hex') = '{hex}'") };
        let sql = format!("SELECT count(*) FROM records WHERE starts_with(_error, '{reason}') AND {same}");
        assert_eq!(place.number(&sql), 25, "{reason}");
    }
    let ended = place.run(&["reprocess"]);
    assert!(ended.stderr.contains("read 0 records that could not be read before, in 0 new files; 175 still can't be"));
}

/// Sends one record to each of these partitions.
fn send_to(servers: &str, topic: &str, partitions: std::ops::Range<i32>) {
    let producer = producer(servers);
    for partition in partitions {
        let payload = format!("{{\"product_id\":\"{partition}\"}}");
        let record = BaseRecord::<(), str>::to(topic).partition(partition).payload(&payload);
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

#[tokio::test]
async fn partitions_that_are_added_are_read_too() {
    let Some(servers) = kafka() else { return };
    let admin = admin(&servers);
    for group in [None, Some("grown")] {
        let (place, topic) = (Place::new(), topic("grown"));
        make(&admin, &topic).await;
        send_to(&servers, &topic, 0..1);
        let mut args = vec!["ingest", "--upkeep", "0.5", "--batch-age", "0.2", "--bootstrap-servers", &servers];
        args.extend(["--topic", &topic]);
        args.extend(group.into_iter().flat_map(|name| ["--group", name]));
        let worker = place.start(&args);
        common::eventually("the first record", || place.records() == (1, 1));
        admin.create_partitions([&NewPartitions::new(&topic, 3)], &AdminOptions::new()).await.unwrap();
        common::eventually("the new partitions", || {
            let metadata = admin.inner().fetch_metadata(Some(&topic), Duration::from_secs(10)).unwrap();
            metadata.topics()[0].partitions().iter().filter(|p| p.leader() >= 0).count() == 3
        });
        send_to(&servers, &topic, 0..3);
        common::eventually("their records", || place.records() == (4, 4));
        assert_eq!(worker.interrupt().code, Some(0));
        assert_eq!(place.number("SELECT count(DISTINCT _partition) FROM records"), 3);
    }
}

#[test]
fn an_ingest_alone_tells_metrics_and_json_logs_how_far_it_is() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("told"));
    place.write("rows.csv", place.ok(&["generate", "3000"]));
    place.ok(&["produce", "rows.csv", "--bootstrap-servers", &servers, "--topic", &topic]);
    let mut worker = place.start(&[
        "ingest",
        "--bootstrap-servers",
        &servers,
        "--topic",
        &topic,
        "--batch-age",
        "0.2",
        "--metrics",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    let said = worker.said("metrics at ");
    worker.address = said.split("/metrics").next().unwrap().to_owned();
    common::eventually("all of it in the metrics", || {
        let text = worker.get("/metrics").text;
        ["tercile_records{state=\"stored\"} 3000", "tercile_ingest_lag{partition=\"0\"} 0", "tercile_ingest_files 1"]
            .iter()
            .all(|line| text.contains(line))
    });
    assert_eq!(worker.get("/health/live").status, 200);
    let mut line = serde_json::Value::Null;
    common::eventually("a line of progress", || {
        let lines = worker.stderr();
        let found = lines.lines().find(|line| line.contains("\"message\":\"progress\""));
        line = found.map(|line| serde_json::from_str(line).unwrap()).unwrap_or_default();
        !line.is_null()
    });
    assert_eq!(
        (&line["stored"], &line["lag"], &line["last_file"]),
        (&3000.into(), &0.into(), &format!("{:020}", 0).into())
    );
    assert_eq!(worker.interrupt().code, Some(0));
}

/// The arguments of a user who needs ACLs.
pub(super) fn as_user(servers: &str) -> Vec<String> {
    let mut args = vec!["--bootstrap-servers".to_owned(), servers.to_owned(), "--timeout".to_owned(), "5".to_owned()];
    let (user, password) = (setting("USER"), setting("PASSWORD"));
    for setting in ["security.protocol=SASL_PLAINTEXT", "sasl.mechanism=SCRAM-SHA-256"] {
        args.extend(["-X".to_owned(), setting.to_owned()]);
    }
    args.extend([
        "-X".to_owned(),
        format!("sasl.username={user}"),
        "-X".to_owned(),
        format!("sasl.password={password}"),
    ]);
    args
}

/// The message of a command that must fail with exit code 1 within this number of seconds.
fn refused(place: &Place, seconds: u64, args: &[&str]) -> String {
    let began = Instant::now();
    let error = place.fails(1, args);
    assert!(began.elapsed() < Duration::from_secs(seconds), "{args:?} took {:?}: {error}", began.elapsed());
    error
}

#[tokio::test]
async fn a_broker_that_refuses_is_quoted_and_ends_the_command() {
    let Some(servers) = kafka() else { return };
    let place = Place::new();
    place.write("rows.csv", "product_id\na\nb\n");
    let admin = admin(&servers);
    let (open, unread, unwritten, group) = (topic("open"), topic("unread"), topic("unwritten"), topic("group"));
    for name in [&open, &unread, &unwritten] {
        make(&admin, name).await;
        send_to(&servers, name, 0..1);
    }
    let describe = Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE;
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_TOPIC, &unread, describe, &setting("USER"));
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_TOPIC, &unwritten, describe, &setting("USER"));
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_GROUP, &group, Operation::RD_KAFKA_ACL_OPERATION_READ, "other");
    let user = as_user(&setting("SASL"));
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let ask = |args: &[&str], topic: &str| refused(&place, 9, &[args, &["--topic", topic], &user].concat());

    let error = ask(&["ingest", "--group", &group], &open);
    assert!(error.contains(&format!("cannot join the group {group} at ")), "{error}");
    assert!(error.contains("Broker: Group authorization failed; the user needs Read on the group"), "{error}");
    let alone: [&[&str]; 4] = [
        &["ingest", "--store", "b"],
        &["ingest", "--store", "b", "--until-end"],
        &["ingest", "--store", "b", "--group", "free"],
        &["init", &unread],
    ];
    for args in alone {
        let error = if args[0] == "init" { refused(&place, 9, &[args, &user].concat()) } else { ask(args, &unread) };
        assert!(error.contains(&format!("cannot read the topic {unread} at ")), "{error}");
        assert!(error.contains("Broker: Topic authorization failed; the user needs Describe and Read"), "{error}");
    }
    let error = ask(&["up", "--bind", "127.0.0.1:0", "--store", "up"], &unread);
    assert!(error.contains("Broker: Topic authorization failed"), "{error}");
    let ended = place.run(&[&["doctor", "--topic", &unread][..], &user].concat());
    assert!(ended.code == Some(1) && ended.stdout.contains("Broker: Topic authorization failed"), "{}", ended.stdout);
    let error = ask(&["produce", "rows.csv"], &unwritten);
    assert!(error.contains("rows.csv, line 2: cannot write to the topic"), "{error}");
    assert!(error.contains("Broker: Topic authorization failed"), "{error}");
    assert!(error.ends_with("no row was acknowledged"), "{error}");

    // A single worker's committed offsets are only informative: a denied commit is a warning.
    acl::allow(
        &servers,
        Resource::RD_KAFKA_RESOURCE_GROUP,
        "tercile",
        Operation::RD_KAFKA_ACL_OPERATION_READ,
        "ANONYMOUS",
    );
    let worker =
        place.start(&[&["ingest", "--store", "alone", "--batch-age", "0.2", "--topic", &open][..], &user].concat());
    worker.said("takes no positions of the group tercile: Broker: Group authorization failed");
    let stored = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "parquet");
    common::eventually("its record", || common::files(&place.path("alone/records")).iter().any(stored));
    let ended = worker.interrupt();
    assert!(ended.code == Some(0) && ended.stderr.contains("stored 1 in 1 file"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("takes no positions").count(), 1, "{}", ended.stderr);
}

#[test]
fn what_a_group_cannot_agree_on_is_told_at_once() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), made(&servers));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    for timeout in [&["-X", "session.timeout.ms=1"][..], &["--session-timeout", "1"]] {
        let error = refused(&place, 9, &[&["ingest", "--group", "short"], timeout, &to].concat());
        assert!(
            error.contains("cannot join the group short at ") && error.contains("Invalid session timeout"),
            "{error}"
        );
        assert!(error.contains("group.min.session.timeout.ms"), "{error}");
    }
    let group = format!("{topic}-range");
    let other: rdkafka::consumer::BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &servers)
        .set("group.id", &group)
        .set("partition.assignment.strategy", "range")
        .create()
        .unwrap();
    other.subscribe(&[&topic]).unwrap();
    common::eventually("the other member", || {
        let _ = other.poll(Duration::from_millis(100));
        other.assignment().unwrap().count() > 0
    });
    let error = refused(&place, 9, &[&["ingest", "--group", &group][..], &to].concat());
    assert!(error.contains("Broker: Inconsistent group protocol"), "{error}");
    let error = place.fails(1, &[&["ingest", "-X", "partition.assignment.strategy=range"][..], &to].concat());
    assert!(error.contains("partition.assignment.strategy is tercile's own"), "{error}");
}

#[test]
fn a_broker_that_cannot_be_reached_is_named_with_the_reason() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), made(&servers));
    place.write("rows.csv", "product_id\na\n");
    place.ok(&["ingest", "--until-end", "--store", "old", "--bootstrap-servers", &servers, "--topic", &topic]);
    let astray = ["--bootstrap-servers", &setting("ASTRAY"), "--timeout", "3", "--topic", &topic];
    let commands: [&[&str]; 6] = [
        &["ingest"],
        &["ingest", "--store", "old"],
        &["ingest", "--group", "g"],
        &["produce", "rows.csv"],
        &["up", "--bind", "127.0.0.1:0", "--store", "up"],
        &["init", &topic, "--sql", "new"],
    ];
    for command in commands {
        let to = if command[0] == "init" { &astray[..4] } else { &astray };
        let error = refused(&place, 7, &[command, to].concat());
        assert!(error.contains("within 3s: the cluster advertises a broker as kafka.invalid:"), "{error}");
        assert!(error.contains("Failed to resolve") && error.contains("check advertised.listeners"), "{error}");
    }
    let protocol = |to: &str, protocol: &str, hint: &str| {
        let protocol = format!("security.protocol={protocol}");
        let error = refused(&place, 6, &["ingest", "--bootstrap-servers", to, "--timeout", "2", "-X", &protocol]);
        assert!(error.contains(hint), "{error}");
    };
    protocol(&servers, "ssl", "may not speak TLS");
    protocol(&setting("SSL"), "plaintext", "may expect another security.protocol");
    protocol(&setting("SASL"), "plaintext", "may expect another security.protocol");
    let user = as_user(&setting("SASL"));
    let user: Vec<&str> = user.iter().map(String::as_str).collect();
    let wrong = ["-X", "sasl.password=wrong"];
    let error = refused(&place, 5, &[&["produce", "rows.csv"], &user[..], &wrong].concat());
    assert!(error.contains("Authentication failed"), "{error}");
}

#[tokio::test]
async fn many_partitions_are_asked_about_at_once() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("many"));
    let new = NewTopic::new(&topic, 300, TopicReplication::Fixed(1));
    admin(&servers).create_topics([&new], &AdminOptions::new()).await.unwrap();
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    common::eventually("the topic", || place.run(&[&["ingest", "--until-end"][..], &to].concat()).code == Some(0));
    // The best of three, because of other load on the machine.
    let times = (0..3).map(|_| {
        let began = Instant::now();
        place.ok(&[&["ingest", "--until-end"][..], &to].concat());
        began.elapsed()
    });
    let best = times.min().unwrap();
    assert!(best < Duration::from_secs(2), "{best:?}");
    let worker = place.start(&[&["ingest"][..], &to].concat());
    worker.said("reading many");
    let began = Instant::now();
    assert_eq!(worker.interrupt().code, Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_row_that_failed_is_named_and_those_before_it_are_counted() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("small"));
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    admin(&servers).create_topics([&new], &AdminOptions::new()).await.unwrap();
    // Incompressible letters.
    let mut seed = 1_u64;
    let mut letters = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + (seed >> 33) as u8 % 26)
    };
    let large: String = (0..6000).map(|_| letters()).collect();
    let rows: String =
        (0..300).map(|i| format!("{{\"i\":{i},\"t\":\"{}\"}}\n", if i == 200 { &*large } else { "x" })).collect();
    place.write("rows.ndjson", rows);
    let error = place.fails(1, &["produce", "rows.ndjson", "--bootstrap-servers", &servers, "--topic", &topic]);
    assert!(error.contains("rows.ndjson, line 201: cannot write to the topic"), "{error}");
    assert!(
        error.contains("Message size too large (the row has 6016 bytes, its max.message.bytes is 2000)"),
        "{error}"
    );
    assert!(error.ends_with("200 rows were acknowledged, the last is line 200"), "{error}");
    let ended = place.run(&["ingest", "--until-end", "--bootstrap-servers", &servers, "--topic", &topic]);
    assert!(ended.stderr.contains("received 200 records"), "{}", ended.stderr);
}
