//! How a topic of a real Kafka becomes records: where reading begins, keys, event times.

use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::producer::{BaseRecord, Producer as _};

use super::kafka::{admin, producer, topic};
use crate::common::{self, Place, eventually, kafka};

/// `--from` decides where a new store begins, and only then.
#[tokio::test]
async fn a_new_store_begins_where_from_says() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("from"));
    let admin = admin(&servers);
    let new = NewTopic::new(&topic, 3, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    // One record a minute in two partitions, the third is empty: 2024-05-01T10:00:00Z and later.
    let (producer, began) = (producer(&servers), 1_714_557_600_000_i64);
    let send = |partition: i32, minute: i64| {
        let payload = format!("{{\"product_id\":\"{partition}-{minute}\"}}");
        let record = BaseRecord::<(), str>::to(&topic).payload(&payload).partition(partition);
        producer.send(record.timestamp(began + minute * 60_000)).map_err(|(e, _)| e).unwrap();
    };
    for minute in 0..10 {
        send(0, minute);
        send(1, minute + 5);
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let to = ["--bootstrap-servers", &servers, "--topic", &topic, "--until-end", "--store"];
    let ingest = |store: &str, from: &str| {
        let ended = place.run(&[&["ingest", "--from", from][..], &to, &[store]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    };
    let records =
        |store: &str| place.ok(&["sql", "--store", store, "-f", "csv", "-c", "SELECT count(*) AS n FROM records"]);
    let start = |store: &str| {
        let start = |partition| place.path(&format!("{store}/records/{topic}/{partition}/_start"));
        [0, 1, 2].map(|partition| std::fs::read_to_string(start(partition)).unwrap())
    };
    for (store, from, n, starts) in [
        ("all", "earliest", 20, ["0", "0", "0"]),
        // 12:07 in that zone is minute 7: three records of partition 0, eight of partition 1.
        ("seven", "2024-05-01T12:07:00+02:00", 11, ["7", "2", "0"]),
        ("half", "2024-05-01 10:07:30", 9, ["8", "3", "0"]),
        ("past", "1969-01-01", 20, ["0", "0", "0"]),
        ("future", "2124-05-01", 0, ["10", "10", "0"]),
        ("end", "latest", 0, ["10", "10", "0"]),
    ] {
        let said = ingest(store, from);
        assert!(!said.contains("is not used"), "{said}");
        assert_eq!((records(store), start(store)), (format!("n\n{n}\n"), starts.map(str::to_owned)), "{from}");
    }
    // Records that arrive later are read by all; where a store has begun, `--from` is not used.
    send(0, 60);
    producer.flush(Duration::from_secs(30)).unwrap();
    for (store, n) in [("end", 1), ("seven", 12)] {
        let said = ingest(store, "earliest");
        assert!(said.contains("has begun: reading goes on where it ends, and --from is not used"), "{said}");
        assert_eq!(records(store), format!("n\n{n}\n"));
    }
    // A store that was begun at the end has no gap, and is complete for `doctor`.
    let doctor = place.run(&[
        "doctor",
        "--store",
        "end",
        "--bootstrap-servers",
        &servers,
        "--topic",
        &topic,
        "--bind",
        "127.0.0.1:0",
    ]);
    assert!(doctor.stdout.contains("goes on where the store ends; 0 records to read"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("an unbroken chain"), "{}", doctor.stdout);
    // A partition that is added later is read from its first record, also if the store has no records yet.
    ingest("new", "latest");
    admin.create_partitions([&NewPartitions::new(&topic, 4)], &AdminOptions::new()).await.unwrap();
    eventually("the fourth partition", || {
        let metadata = producer.client().fetch_metadata(Some(&topic), Duration::from_secs(5)).unwrap();
        metadata.topics()[0].partitions().len() == 4
    });
    send(3, 61);
    producer.flush(Duration::from_secs(30)).unwrap();
    ingest("new", "latest");
    assert_eq!(records("new"), "n\n1\n");

    for wrong in ["yesterday", "01/05/2024", ""] {
        let error = place.fails(2, &[&["ingest", "--from", wrong][..], &to, &["wrong"]].concat());
        assert!(error.contains("a time such as 2024-05-01T10:00:00+02:00"), "{error}");
    }
    let error = place.fails(2, &["up", "--from", "latest"]);
    assert_eq!(error, "error: --from is for a topic of a Kafka; add --bootstrap-servers, or leave it out");
    // Members of a group: the one that starts first decides for all partitions.
    let group = ["--bootstrap-servers", &servers, "--topic", &topic, "--group", &topic, "--store", "group"];
    let first = place.start(&[&["ingest", "--from", "latest"][..], &group].concat());
    eventually("the start of each partition", || {
        common::files(&place.path("group/records")).iter().filter(|file| file.ends_with("_start")).count() == 4
    });
    let second =
        place.start_command(place.command(&[&["ingest", "--from", "earliest"][..], &group].concat()), "second");
    second.said("--from is not used");
    assert_eq!((second.interrupt().code, first.interrupt().code), (Some(0), Some(0)));
    assert_eq!(records("group"), "n\n0\n");
    // `up` begins at the end, too.
    let up = place.up(&["--bootstrap-servers", &servers, "--topic", &topic, "--store", "up", "--from", "latest"]);
    send(0, 62);
    producer.flush(Duration::from_secs(30)).unwrap();
    eventually("the new record", || records("up") == "n\n1\n");
    assert_eq!(up.interrupt().code, Some(0));
}
