//! Several topics in one store: each record once, in a partition whose number tells the topic, through kills, groups, topics that
//! grow, are made anew or lose records; and topics that do not belong together.

use std::time::Duration;

use common::{Place, Running, eventually, kafka};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::topic_partition_list::Offset;

use super::kafka::{admin, producer, topic};
use crate::common;

/// The records of each topic, and those of each partition of the store.
const BY_TOPIC: &str = "SELECT t.topic, count(*) AS n, count(DISTINCT product_id) AS ids, min(r._partition) AS first, \
                        max(r._partition) AS last FROM records r JOIN topics() t USING (_partition) GROUP BY 1 ORDER BY 1";

fn by_topic(place: &Place) -> String {
    place.ok(&["sql", "-f", "csv", "-c", BY_TOPIC])
}

/// An embedded broker with these topics, and rows in each.
fn embedded(place: &Place, topics: &[&str], rows: u32) -> (Running, String) {
    let flags: Vec<&str> = topics.iter().flat_map(|topic| ["--topic", topic]).collect();
    let mut broker = place.start(&[&["broker", "--partitions", "2"][..], &flags].concat());
    let address = broker.line_with("");
    for topic in topics {
        let rows: String = (0..rows)
            .map(|i| {
                let (price, rating) = (100 + i * 37 % 900, 1 + i % 5);
                format!("{{\"product_id\":\"{topic}-{i}\",\"discounted_price\":\"{price}\",\"rating\":\"{rating}\"}}\n")
            })
            .collect();
        place.write("rows.ndjson", rows);
        place.ok(&["produce", "rows.ndjson", "--key", "product_id", "--topic", topic, "--bootstrap-servers", &address]);
    }
    (broker, address)
}

#[test]
fn topics_that_agree_are_one_stream() {
    let place = Place::new();
    let (broker, address) = embedded(&place, &["orders", "returns", "visits"], 300);
    let ingest = |topics: &str| {
        place.ok(&["ingest", "--until-end", "--bootstrap-servers", &address, "--topic", topics, "--batch-rows", "50"])
    };
    ingest("returns, orders");
    assert_eq!(by_topic(&place), "topic,n,ids,first,last\norders,300,300,0,2\nreturns,300,300,1,3\n");
    assert_eq!(
        place.ok(&["sql", "-f", "csv", "-c", "SELECT * FROM topics() ORDER BY 1"]),
        "_partition,topic,partition\n0,orders,0\n1,returns,0\n2,orders,1\n3,returns,1\n"
    );
    // The order of the names has no meaning, and nothing is stored twice.
    ingest("orders,returns");
    assert_eq!(place.records(), (600, 600));
    place.ok(&["train"]);
    place.ok(&["verify", "price_rating"]);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!(by_topic(&place).lines().count(), 3);
    let doctor = |topics: &str| {
        let flags = ["--bind", "127.0.0.1:0", "--bootstrap-servers", &address, "--topic", topics];
        place.run(&[&["doctor"][..], &flags].concat()).stdout
    };
    let said = doctor("orders,returns");
    assert!(said.contains("the topic orders,returns has 4 partitions, and can be read"), "{said}");
    assert!(said.contains("goes on where the store ends; 0 records to read"), "{said}");
    // Other topics are another source.
    for other in ["orders", "orders,returns,visits", "orders,visits"] {
        let args = ["ingest", "--until-end", "--bootstrap-servers", &address, "--topic", other];
        let error = place.fails(3, &args);
        assert!(error.contains("is fed from topic orders,returns"), "{error}");
        assert!(doctor(other).contains("is fed from topic orders,returns"));
    }
    // A pattern finds topics when the store begins; later ones are named, and not read.
    let pattern = |pattern: &str, store: &str| {
        let args = ["ingest", "--until-end", "--bootstrap-servers", &address, "--topic", pattern, "--store", store];
        place.run(&args)
    };
    let first = pattern("^(orders|visits)$", "found");
    assert!(first.code == Some(0) && first.stderr.contains("reading orders,visits (4 partitions)"), "{}", first.stderr);
    let wider = pattern("^.*s$", "found");
    assert!(wider.stderr.contains("not read: returns"), "{}", wider.stderr);
    assert!(pattern("^o", "found").stderr.contains("visits does not match ^o"));
    assert!(pattern("^shoes", "other").stderr.contains("no topic at"));
    // `up` reads them too.
    let up = place.up(&["--bootstrap-servers", &address, "--topic", "orders,visits", "--store", "up"]);
    eventually("the records of both", || up.get("/api/status").json()["records"] == 600);
    assert_eq!(up.interrupt().code, Some(0));
    for (args, words) in [
        (&["up", "--topic", "a,b"][..], "need --bootstrap-servers"),
        (
            &["up", "--topic", "a,b", "--bootstrap-servers", &address, "--data", "rows.ndjson"],
            "--data is sent to one topic",
        ),
        (
            &["up", "--topic", "a,b", "--bootstrap-servers", &address, "--enrich-to", "c"],
            "--enrich-to is for one topic",
        ),
        (&["ingest", "--topic", "a,a", "--bootstrap-servers", &address], "the topic a is named twice"),
        (&["ingest", "--topic", "a,,b", "--bootstrap-servers", &address], "a topic's name has"),
        (&["ingest", "--topic", "^(", "--bootstrap-servers", &address], "expected a regular expression"),
        (&["produce", "rows.ndjson", "--topic", "a,b", "--bootstrap-servers", &address], "expected one topic"),
    ] {
        let error = place.fails(2, args);
        assert!(error.contains(words), "{args:?}: {error}");
    }
    let missing =
        place.fails(1, &["ingest", "--topic", "orders,shoes", "--bootstrap-servers", &address, "--store", "new"]);
    assert!(missing.contains("the topic shoes does not exist"), "{missing}");
    assert!(!place.path("new/source.json").exists());
    broker.interrupt();
}

#[test]
fn topics_with_different_fields_are_refused() {
    let place = Place::new();
    let (broker, address) = embedded(&place, &["orders", "visits"], 20);
    let mut other = place.start(&["broker", "--topic", "orders", "--topic", "visits"]);
    let disagreeing = other.line_with("");
    for (topic, row) in
        [("orders", "{\"product_id\":\"1\",\"rating\":\"4\"}"), ("visits", "{\"product_id\":\"1\",\"page\":\"/\"}")]
    {
        place.write("rows.ndjson", format!("{row}\n").repeat(10));
        place.ok(&["produce", "rows.ndjson", "--topic", topic, "--bootstrap-servers", &disagreeing]);
    }
    let ingest = ["ingest", "--until-end", "--topic", "orders,visits", "--bootstrap-servers"];
    let error = place.fails(1, &[&ingest[..], &[&disagreeing]].concat());
    assert!(
        error.contains("orders and visits have different fields: rating is in 10 of the first 10 records of orders"),
        "{error}"
    );
    assert!(!place.path("store/source.json").exists(), "nothing was begun");
    place.ok(&[&ingest[..], &[&address]].concat());
    assert_eq!(place.records(), (40, 40));
    other.interrupt();
    broker.interrupt();
}

/// Sends numbered records to a partition.
fn send(producer: &rdkafka::producer::BaseProducer, topic: &str, partition: i32, numbers: std::ops::Range<u32>) {
    for i in numbers {
        let payload = format!("{{\"product_id\":\"{topic}-{partition}-{i}\",\"rating\":\"4\"}}");
        producer
            .send(BaseRecord::<(), str>::to(topic).payload(&payload).partition(partition))
            .map_err(|(e, _)| e)
            .unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
}

#[tokio::test]
async fn each_record_is_stored_once_through_kills_growth_and_groups() {
    let Some(servers) = kafka() else { return };
    let (place, a, b) = (Place::new(), topic("several-a"), topic("several-b"));
    let (admin, producer) = (admin(&servers), producer(&servers));
    for (name, partitions) in [(&a, 3), (&b, 1)] {
        let new = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        admin.create_topics([&new], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    }
    let both = format!("{a},{b}");
    let flags = [
        "--bootstrap-servers",
        &servers,
        "--topic",
        &both,
        "--batch-rows",
        "200",
        "--batch-age",
        "0.1",
        "--upkeep",
        "1",
    ];
    let ingest = |more: &[&str]| place.start(&[&["ingest"], &flags[..], more].concat());
    let stored = || place.number("SELECT count(*) FROM records");
    for partition in 0..3 {
        send(&producer, &a, partition, 0..2000);
    }
    send(&producer, &b, 0, 0..2000);
    // Killed again and again, alone and in a group.
    for round in 0..6_u32 {
        let group: &[&str] = if round % 2 == 0 { &[] } else { &["--group", &a, "--session-timeout", "6"] };
        let worker = ingest(group);
        let before = stored();
        send(&producer, &b, 0, 2000 + round * 500..2500 + round * 500);
        eventually("some more records", || stored() > before);
        worker.signal("-KILL");
    }
    // The second topic grows while two members of a group share the partitions.
    let members = [ingest(&["--group", &b]), ingest(&["--group", &b])];
    admin.create_partitions([&NewPartitions::new(&b, 2)], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    eventually("the new partition", || {
        let metadata = producer.client().fetch_metadata(Some(&b), Duration::from_secs(5)).unwrap();
        metadata.topics()[0].partitions().len() == 2
    });
    send(&producer, &b, 1, 0..1000);
    eventually("all records", || stored() == 12_000);
    for member in members {
        assert_eq!(member.interrupt().code, Some(0));
    }
    assert_eq!(place.records(), (12_000, 12_000));
    assert_eq!(by_topic(&place), format!("topic,n,ids,first,last\n{a},6000,6000,0,4\n{b},6000,6000,1,3\n"));
    let mut end = ingest(&["--until-end"]);
    assert!(end.wait().success(), "{}", end.stderr());
    assert_eq!(place.records(), (12_000, 12_000));
    // Records that the broker no longer has are a gap in that topic alone.
    send(&producer, &b, 1, 1000..1100);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&b, 1, Offset::Offset(1050)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    send(&producer, &a, 2, 2000..2010);
    let mut halted = ingest(&["--until-end"]);
    assert_eq!(halted.wait().code(), Some(4), "{}", halted.stderr());
    assert_eq!(stored(), 12_010);
    let mut accepted = ingest(&["--until-end", "--accept-gap"]);
    assert!(accepted.wait().success(), "{}", accepted.stderr());
    assert_eq!(stored(), 12_060);
    // A topic that is made anew is another one.
    admin.delete_topics(&[&b], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    eventually("the end of the topic", || {
        let metadata = producer.client().fetch_metadata(None, Duration::from_secs(5)).unwrap();
        !metadata.topics().iter().any(|topic| topic.name() == b)
    });
    let missing = place.fails(1, &[&["ingest", "--until-end"], &flags[..]].concat());
    assert!(missing.contains(&format!("the topic {b} does not exist")), "{missing}");
    let new = NewTopic::new(&b, 2, TopicReplication::Fixed(1));
    // Kafka confirms a deletion before the name is free.
    while admin.create_topics([&new], &AdminOptions::new()).await.unwrap()[0].is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = place.fails(3, &[&["ingest", "--until-end"], &flags[..]].concat());
    assert!(error.contains("is fed from topic"), "{error}");
    assert_eq!(stored(), 12_060);
}
