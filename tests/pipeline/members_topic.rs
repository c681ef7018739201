//! `tercile members --to`: members as records of a topic, changes, tombstones, rejected records, and runs that were killed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use common::acl::{self, Operation, Resource};
use common::{Place, eventually, kafka};
use rdkafka::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::common;

const CUSTOMERS: &str = "-- k: 3
-- entity: customer_id
-- label.total.en: Small | Medium | Large

SELECT customer_id, CAST(count(*) AS DOUBLE) AS orders, sum(amount) AS total FROM orders GROUP BY customer_id";

/// A store with orders of 60 customers, and the models of versions 1 to 3.
fn place(customer: impl Fn(u32) -> String) -> Place {
    let place = Place::new();
    place.write("sql/00_records.sql", "CREATE TABLE records (customer_id TEXT, amount TEXT)");
    let orders =
        "SELECT _partition, _offset, _timestamp, customer_id, TRY_CAST(amount AS DOUBLE) AS amount FROM records";
    place.write("sql/10_orders.sql", orders);
    place.write("sql/30_customers.sql", CUSTOMERS);
    let order = |i: u32| {
        let amount = f64::from(i * 7919 % 1000) / 8.0 + if i % 60 < 9 { 5000.0 } else { 0.0 };
        json!({ "customer_id": customer(i % 60), "amount": amount }).to_string() + "\n"
    };
    place.write("orders.ndjson", (0..600).map(order).collect::<String>());
    let up = place.up(&["--data", "orders.ndjson"]).interrupt();
    assert_eq!(up.code, Some(0), "{}", up.stderr);
    place
}

/// Trains with another view, and returns the version that serves the whole stream.
fn train(place: &Place, sql: &str) -> u64 {
    place.write("sql/30_customers.sql", sql);
    place.ok(&["train", "--keep-members", "1"]);
    let slices = std::fs::read(place.path("store/models/customers/slices.json")).unwrap();
    serde_json::from_slice::<Value>(&slices).unwrap()["3"]["version"].as_u64().unwrap()
}

/// The view with the amounts of one customer multiplied, and without another one.
fn changed(rich: &str, gone: &str) -> String {
    let sum = format!("sum(amount) * CASE customer_id WHEN '{rich}' THEN 1000 ELSE 1 END");
    CUSTOMERS.replace("sum(amount)", &sum).replace("FROM orders", &format!("FROM orders WHERE customer_id <> '{gone}'"))
}

/// The members of a version by key, as the values of their records.
fn members(place: &Place, version: u64) -> BTreeMap<String, Value> {
    let lines = place.ok(&["members", "customers", "--as-of", &version.to_string(), "-f", "ndjson"]);
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let key = row["customer_id"].as_str().unwrap().to_owned();
        let value = json!({
            "segmentation": "customers", "key": { "customer_id": key }, "cluster": row["cluster"],
            "description": row["description"], "previous": row["previous"], "model": 3, "version": version,
            "distance": row["distance"],
        });
        (key, value)
    };
    lines.lines().map(row).collect()
}

/// Keys of members that differ in cluster or description, or that only the second list has.
fn different(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<String> {
    let state = |value: &Value| (value["cluster"].clone(), value["description"].clone());
    let differs = |(key, value): &(&String, &Value)| before.get(*key).map(state) != Some(state(value));
    after.iter().filter(differs).map(|(key, _)| key.clone()).collect()
}

struct Target {
    servers: String,
    name: String,
    /// Offsets up to which records were read.
    read: BTreeMap<i32, i64>,
    /// The last value of each key.
    state: BTreeMap<String, Value>,
}

impl Target {
    fn new(servers: &str) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let name = format!("segments-{}-{}", std::process::id(), now.as_nanos());
        Self { servers: servers.to_owned(), name, read: BTreeMap::new(), state: BTreeMap::new() }
    }

    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["members", "customers", "--to", &self.name, "--bootstrap-servers", &self.servers], more].concat()
    }

    /// Sends, and returns stderr.
    fn send(&self, place: &Place, more: &[&str]) -> String {
        let ended = place.run(&self.args(more));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    }

    /// The records that were added: keys and values.
    fn news(&mut self) -> Vec<(String, Option<Value>)> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.servers)
            .set("group.id", "none")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let patience = Duration::from_secs(10);
        let metadata = consumer.fetch_metadata(Some(&self.name), patience).unwrap();
        let (mut list, mut left) = (TopicPartitionList::new(), 0);
        for partition in metadata.topics()[0].partitions() {
            let from = *self.read.entry(partition.id()).or_default();
            list.add_partition_offset(&self.name, partition.id(), Offset::Offset(from)).unwrap();
            left += consumer.fetch_watermarks(&self.name, partition.id(), patience).unwrap().1 - from;
        }
        consumer.assign(&list).unwrap();
        let mut news = Vec::new();
        while left > 0 {
            let message = consumer.poll(patience).expect("a record").unwrap();
            let key = String::from_utf8(message.key().unwrap().to_vec()).unwrap();
            let value: Option<Value> = message.payload().map(|value| serde_json::from_slice(value).unwrap());
            match &value {
                Some(value) => drop(self.state.insert(key.clone(), value.clone())),
                None => assert!(self.state.remove(&key).is_some(), "{key} was there"),
            }
            self.read.insert(message.partition(), message.offset() + 1);
            news.push((key, value));
            left -= 1;
        }
        news.sort_by(|(a, _), (b, _)| a.cmp(b));
        news
    }

    /// Keys and states of what the topic has, without versions.
    fn has(&self, members: &BTreeMap<String, Value>) {
        assert!(self.state.keys().eq(members.keys()));
        for (key, value) in members {
            let sent = &self.state[key];
            assert_eq!((&sent["cluster"], &sent["description"]), (&value["cluster"], &value["description"]), "{key}");
        }
    }
}

fn published(place: &Place) -> Value {
    serde_json::from_slice(&std::fs::read(place.path("store/models/customers/published.json")).unwrap()).unwrap()
}

#[test]
fn members_go_to_a_topic_and_later_only_what_changed() {
    let Some(servers) = kafka() else { return };
    let (place, mut target) = (place(|i| format!("C{i:03}")), Target::new(&servers));
    let first = members(&place, 3);
    let said = target.send(&place, &["--only-changes", "--partitions", "2"]);
    for words in [
        "with 2 partitions; it keeps the last record of each key".to_owned(),
        "nothing was sent to segments-".to_owned(),
        format!("sent 60 of 60 members of customers@3@3 and 0 tombstones to {}, all acknowledged", target.name),
    ] {
        assert!(said.contains(&words), "{words}: {said}");
    }
    let news = target.news();
    assert!(news.iter().map(|(key, value)| (key, value.as_ref().unwrap())).eq(first.iter()), "{news:?}");
    let sent = published(&place)["targets"][0].clone();
    assert_eq!((&sent["topic"], &sent["slice"], &sent["version"]), (&json!(target.name), &json!(3), &json!(3)));

    let said = target.send(&place, &["--only-changes"]);
    assert!(said.contains("sent 0 of 60 members") && said.contains("compared with version 3"), "{said}");
    assert_eq!(target.news(), []);

    // One customer is in another cluster, and so are some neighbours perhaps; one is gone.
    let version = train(&place, &changed("C030", "C031"));
    assert_eq!(version, 6);
    let second = members(&place, 6);
    let expected = different(&first, &second);
    assert!(!expected.is_empty() && expected.len() < 60, "{expected:?}");
    target.send(&place, &["--only-changes"]);
    let news = target.news();
    let (gone, sent): (Vec<_>, Vec<_>) = news.into_iter().partition(|(_, value)| value.is_none());
    assert_eq!(gone, [("C031".to_owned(), None)]);
    assert!(sent.iter().map(|(key, _)| key).eq(&expected), "{sent:?}");
    assert!(sent.iter().all(|(key, value)| value.as_ref() == second.get(key)));
    target.has(&second);

    // The version that was sent keeps its members, and others that do not serve lose theirs.
    for i in 0..2 {
        train(&place, &changed("C030", "C031").replace("GROUP", &format!("AND amount > -{i} GROUP")));
    }
    let kept = |version: u64| place.path(&format!("store/models/customers/{version}.members.parquet")).exists();
    assert_eq!((kept(3), kept(6), kept(9)), (false, true, false));

    // Without the flag, all are sent again; a customer that came back is sent, too.
    let version = train(&place, CUSTOMERS);
    let said = target.send(&place, &[]);
    assert!(said.contains("sent 60 of 60 members") && !said.contains("compared"), "{said}");
    assert_eq!(target.news().len(), 60);
    target.has(&members(&place, version));

    // Another k: the numbers of clusters mean something else.
    let version = train(&place, &CUSTOMERS.replace("k: 3", "k: 2").replace("Small | Medium | Large", "Small | Large"));
    let said = target.send(&place, &["--only-changes"]);
    assert!(said.contains("does not continue the clusters of version") && said.contains("sent 60 of 60"), "{said}");
    target.news();
    target.has(&members(&place, version));
    assert_eq!(published(&place)["targets"][0]["version"], version);

    // Another topic knows nothing of this one.
    let mut other = Target::new(&servers);
    assert!(other.send(&place, &["--only-changes", "--lang", "id"]).contains("sent 60 of 60"));
    other.news();
    assert_eq!(published(&place)["targets"].as_array().unwrap().len(), 2);
}

#[test]
fn a_run_that_was_killed_is_made_good_by_the_next() {
    let Some(servers) = kafka() else { return };
    let (place, mut target) = (place(|i| format!("C{i:03}")), Target::new(&servers));
    target.send(&place, &[]);
    target.news();
    let first = members(&place, 3);

    // The records wait ten seconds for others; then the process is killed.
    train(&place, &changed("C030", "C031"));
    let killed = |more: &[&str]| {
        let mut running = place.start(&target.args(&[more, &["--only-changes"]].concat()));
        let begun = || published(&place)["targets"][0]["begun"].is_array();
        eventually("the sending begins", begun);
        running.signal("-KILL");
        running.wait();
    };
    killed(&["-X", "linger.ms=10000"]);
    let known = published(&place);
    assert_eq!((&known["targets"][0]["version"], &known["targets"][0]["begun"][0]["version"]), (&json!(3), &json!(6)));
    assert!(place.path("store/models/customers/3.members.parquet").exists());

    // Nobody knows which records of version 6 arrived: what it changed is sent, though version 9 is like version 3.
    let version = train(&place, CUSTOMERS);
    assert_eq!(version, 9);
    let (second, third) = (members(&place, 6), members(&place, 9));
    assert_eq!(different(&first, &third), Vec::<String>::new());
    let mut expected = different(&second, &third);
    expected.sort();
    assert!(expected.contains(&"C031".to_owned()) && expected.len() < 60, "{expected:?}");
    let said = target.send(&place, &["--only-changes"]);
    assert!(said.contains("compared with version 3"), "{said}");
    target.news();
    target.has(&third);
    for key in &expected {
        assert_eq!(target.state[key]["version"], 9, "{key} was sent again");
    }
    let known = published(&place);
    assert_eq!((&known["targets"][0]["version"], &known["targets"][0]["begun"]), (&json!(9), &Value::Null));

    // Two at once would not know of each other.
    train(&place, &changed("C030", "C031"));
    let mut running = place.start(&target.args(&["-X", "linger.ms=10000"]));
    eventually("the sending begins", || published(&place)["targets"][0]["begun"].is_array());
    let error = place.fails(1, &target.args(&[]));
    assert!(error.contains("another process sends the members of customers"), "{error}");
    running.signal("-KILL");
    running.wait();

    // A damaged list is told, and deletes nothing.
    place.write("store/models/customers/published.json", "{\"targets\": [{");
    let error = place.fails(1, &target.args(&[]));
    assert!(error.contains("published.json is damaged") && error.contains("move it away"), "{error}");
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert!(
        doctor.stdout.contains("the list of what was sent to topics store/models/customers/published.json is damaged")
    );
    train(&place, &changed("C030", "C032"));
    assert!(place.path("store/models/customers/9.members.parquet").exists());
}

#[tokio::test]
async fn records_that_are_rejected_are_counted() {
    let Some(servers) = kafka() else { return };
    let mut seed = 1_u64;
    let mut letters = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'a' + (seed >> 33) as u8 % 26)
    };
    let long: String = (0..6000).map(|_| letters()).collect();
    let key = move |i: u32| if i == 20 || i == 40 { format!("C{i}{long}") } else { format!("C{i:03}") };
    let (place, mut target) = (place(key), Target::new(&servers));
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let new = NewTopic::new(&target.name, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    let error = place.fails(1, &target.args(&[]));
    for words in ["2 records", "were rejected", "Message size too large", "58 records acknowledged", "sends again"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    assert!(!error.contains("Cjlz") && error.len() < 500, "no key: {error}");
    assert_eq!(target.news().len(), 58);
    let known = published(&place);
    assert_eq!(
        (&known["targets"][0]["version"], &known["targets"][0]["begun"][0]["version"]),
        (&Value::Null, &json!(3))
    );

    // However often that happens, the members of one version are kept for it.
    train(&place, &changed("C030", "C031"));
    place.fails(1, &target.args(&["--only-changes"]));
    let begun = published(&place)["targets"][0]["begun"].clone();
    assert_eq!((begun.as_array().unwrap().len(), &begun[0]["version"]), (1, &json!(6)));

    // A user who may not write: nothing arrived, so nothing is noted.
    let denied = Target::new(&servers);
    let new = NewTopic::new(&denied.name, 1, TopicReplication::Fixed(1));
    admin.create_topics([&new], &AdminOptions::new()).await.unwrap();
    let setting = |name: &str| std::env::var(format!("TERCILE_TEST_KAFKA_{name}")).unwrap();
    let describe = Operation::RD_KAFKA_ACL_OPERATION_DESCRIBE;
    acl::allow(&servers, Resource::RD_KAFKA_RESOURCE_TOPIC, &denied.name, describe, &setting("USER"));
    let settings = [
        "security.protocol=SASL_PLAINTEXT".to_owned(),
        "sasl.mechanism=SCRAM-SHA-256".to_owned(),
        format!("sasl.username={}", setting("USER")),
        format!("sasl.password={}", setting("PASSWORD")),
    ];
    let sasl = setting("SASL");
    let mut args = vec!["members", "customers", "--to", &denied.name, "--bootstrap-servers", &sasl];
    settings.iter().for_each(|setting| args.extend(["-X", setting]));
    let error = place.fails(1, &args);
    assert!(error.contains("Topic authorization failed"), "{error}");
    assert_eq!(published(&place)["targets"][1]["begun"], Value::Null);
}

#[test]
fn without_a_kafka_of_its_own_the_embedded_broker_takes_members() {
    let place = place(|i| format!("C{i:03}"));
    place.write(
        "sql/31_pairs.sql",
        CUSTOMERS
            .replace("entity: customer_id", "entity: customer_id, n")
            .replace("SELECT customer_id,", "SELECT customer_id, count(*) + length(customer_id) AS n,"),
    );
    place.ok(&["train"]);
    let mut broker = place.start(&["broker", "--topic", "segments"]);
    let servers = broker.line_with("127.0.0.1");
    let args = |name: &'static str| ["members", name, "--to", "segments", "--bootstrap-servers"];
    for name in ["customers", "pairs"] {
        let ended = place.run(&[&args(name)[..], &[&servers]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("sent 60 of 60 members"), "{}", ended.stderr);
    }
    let mut target = Target { name: "segments".to_owned(), ..Target::new(&servers) };
    let news = target.news();
    assert_eq!(news.len(), 120);
    let (key, value) = &news[0];
    assert_eq!((key.as_str(), value.as_ref().unwrap()["segmentation"].as_str()), ("C000", Some("customers")));
    let (key, value) = news.iter().find(|(key, _)| key.starts_with('[')).unwrap();
    assert_eq!(key, r#"["C000",14]"#);
    assert_eq!(value.as_ref().unwrap()["key"], json!({ "customer_id": "C000", "n": 14 }));

    for (code, args, said) in [
        (2, vec!["members", "customers", "C000", "--to", "segments"], "cannot be used with"),
        (2, vec!["members", "customers", "--only-changes"], "--to <TOPIC>"),
        (1, vec!["members", "customers", "--to", "segments"], "--bootstrap-servers"),
        (
            1,
            vec!["members", "nothing", "--to", "segments", "--bootstrap-servers", &servers],
            "there is no model of nothing",
        ),
        (1, vec!["members", "customers", "--to", "other", "--bootstrap-servers", &servers], "makes no others"),
    ] {
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(said), "{args:?}: {}", ended.stderr);
    }
}
