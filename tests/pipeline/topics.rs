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

/// The partition that the Java clients choose for a key (murmur2), written from their source.
fn java_partition(key: &[u8], partitions: u32) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let length = u32::try_from(key.len()).unwrap();
    let mut h = 0x9747_b28c ^ length;
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    for (i, byte) in rest.iter().enumerate() {
        h ^= u32::from(*byte) << (8 * i);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^= h >> 15;
    (h & 0x7fff_ffff) % partitions
}

/// `--key`: the text of a field, in the partition that a Java client chooses; rows without a value have no key.
#[test]
fn rows_are_keyed_by_a_field() {
    // Values of Kafka's own test (UtilsTest).
    for (key, hash) in [("21", -973_932_308_i32), ("foobar", -790_332_482), ("abc", 479_470_107)] {
        assert_eq!(java_partition(key.as_bytes(), 1 << 31), hash.cast_unsigned() & 0x7fff_ffff, "{key}");
    }
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("keys"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    let rows: String =
        (0..300).map(|i| format!("{{\"product_id\":\"p{}\",\"rating\":{}.50}}\n", i % 40, i % 7)).collect();
    place.write("rows.ndjson", rows + "{\"product_id\":null}\n{\"rating\":1}\n{\"product_id\":\"\"}\n");
    place.write("rows.csv", "product_id,rating\nc1,4\n,5\n");
    let produce = |args: &[&str]| place.run(&[&["produce"][..], args, &to].concat());
    // Nothing is sent, and no topic is made, if no row has the field.
    for (file, names) in [("rows.ndjson", "product_id, rating"), ("rows.csv", "product_id, rating")] {
        let error = place.fails(1, &[&["produce", file, "--key", "Product_id"][..], &to].concat());
        let words = "no row has a value in the field Product_id, which --key names; the fields are";
        assert_eq!(error, format!("error: {file}: {words} {names}"));
    }
    let ended = produce(&["rows.ndjson", "--key", "product_id", "--partitions", "6"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("sent 303 rows"), "{}", ended.stderr);
    assert!(ended.stderr.contains("3 rows are without a key: no value in the field product_id"), "{}", ended.stderr);
    let ended = produce(&["rows.csv", "--key", "product_id"]);
    assert!(ended.stderr.contains("1 row is without a key"), "{}", ended.stderr);
    // Numbers are keys as they are written.
    assert_eq!(produce(&["rows.ndjson", "--key", "rating"]).code, Some(0));
    place.ok(&[&["ingest", "--until-end"][..], &to].concat());
    let keys = "SELECT DISTINCT key_text(_key) AS k, _partition FROM records WHERE _key IS NOT NULL ORDER BY k";
    let csv = place.ok(&["sql", "-f", "csv", "-c", keys]);
    let found: Vec<(&str, u32)> =
        csv.lines().skip(1).map(|line| line.split_once(',').unwrap()).map(|(k, p)| (k, p.parse().unwrap())).collect();
    assert_eq!(found.len(), 40 + 1 + 7 + 1, "one partition for each key: {csv}");
    for (key, partition) in &found {
        assert_eq!(java_partition(key.as_bytes(), 6), *partition, "{key}");
    }
    assert!(found.iter().any(|(key, _)| *key == "3.50"));
    let keyless = place.number("SELECT count(*) FROM records WHERE _key IS NULL");
    assert_eq!(keyless, 3 + 1 + 2, "three and one, and of --key rating two");
    // A pipe cannot be read twice: its first row must have the field.
    let piped = |field: &str| {
        let command = place.command(&[&["produce", "-", "--key", field][..], &to].concat());
        let mut child =
            { command }.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let rows = b"{\"product_id\":\"piped\"}\n{\"rating\":1}\n";
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), rows).unwrap();
        let ended = child.wait_with_output().unwrap();
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (code, said) = piped("id");
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("line 1: expected the field id, which --key names; the fields are product_id; no row was"),
        "{said}"
    );
    let (code, said) = piped("product_id");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("1 row is without a key"), "{said}");
}

/// A replay with keys resumes like one without.
#[test]
fn a_replay_with_keys_is_stored_once() {
    let place = Place::new();
    place.write("rows.csv", place.ok(&["generate", "3000"]));
    let args = ["--data", "rows.csv", "--partitions", "3", "--key", "product_id"];
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--data", "rows.csv", "--key", "id"]);
    assert!(
        error.contains("no row has a value in the field id, which --key names; the fields are product_id,"),
        "{error}"
    );
    for _ in 0..2 {
        assert_eq!(place.up(&args).interrupt().code, Some(0));
        assert_eq!(place.records(), (3000, 3000));
    }
    assert_eq!(place.number("SELECT count(*) FROM records WHERE key_text(_key) = product_id"), 3000);
    let spread =
        "SELECT count(*) FROM (SELECT product_id FROM records GROUP BY 1 HAVING count(DISTINCT _partition) > 1)";
    assert_eq!(place.number(spread), 0);
}

/// `-- timestamp: field`: the field's time is `_timestamp`, for slices and retention; what has none keeps Kafka's timestamp, counted.
#[test]
fn the_time_of_a_record_is_that_of_a_field() {
    let place = Place::new();
    let declare = |header: &str| {
        place.write("shop/00_records.sql", format!("{header}\nCREATE TABLE records (id TEXT, at TEXT)"));
        place.write("shop/20_slices.sql", include_str!("../../sql/20_slices.sql").replace("products", "records"));
    };
    for (header, why) in [
        (
            "-- timestamp: when",
            "00_records.sql, line 1, column 1: timestamp names the field when, which is not declared; declared are id, at",
        ),
        ("-- timestamp: at hours", "expected dmy, mdy, s, ms, us or ns after the field at, found hours"),
        ("\n-- timestamp: at", "timestamp stands after a blank line"),
    ] {
        declare(header);
        let error = place.fails(1, &["sql", "--sql", "shop", "-c", "SELECT 1"]);
        assert!(error.contains(why), "{error}");
    }
    declare("-- timestamp: at dmy");
    // Event times fall while offsets rise. Three rows have none.
    let rows: String = (0..27).map(|day| format!("{day},{:02}/05/2024 10:00\n", 28 - day)).collect();
    place.write("rows.csv", format!("id,at\n{rows}x,\ny,soon\nz,1714557600\n"));
    let up = place.up(&["--data", "rows.csv", "--sql", "shop"]);
    let said = up.stderr();
    assert!(
        said.contains("offset 27: the field at, the timestamp by 00_records.sql, has no value; this record"),
        "{said}"
    );
    assert!(
        said.contains("offset 28: the field at, the timestamp by 00_records.sql, has \"soon\", which to_datetime"),
        "{said}"
    );
    assert!(said.contains("offset 29") && said.contains("-- timestamp: at ms, or s, us, ns"), "{said}");
    assert_eq!(said.matches("the timestamp by 00_records.sql").count(), 3, "once for each kind: {said}");
    assert!(up.get("/metrics").text.contains("tercile_records{state=\"without_event_time\"} 3"));
    let ended = up.interrupt();
    assert!(ended.stderr.contains("(0 unreadable, 3 with the timestamp of Kafka)"), "{}", ended.stderr);
    let csv = |sql: &str| place.ok(&["sql", "--sql", "shop", "-f", "csv", "-c", sql]);
    let wrong = "SELECT count(*) AS n FROM records WHERE _offset < 27 AND _timestamp <> to_datetime(at, 'dmy')";
    assert_eq!(csv(wrong), "n\n0\n");
    assert_eq!(csv("SELECT count(*) AS n FROM records WHERE _offset >= 27 AND _timestamp > '2026-01-01'"), "n\n3\n");
    // The first slice has the ten earliest events, whose offsets are the highest.
    let first = "SELECT min(_offset) AS low, max(_offset) AS high, count(*) AS n FROM slices WHERE _slice = 1";
    assert_eq!(csv(first), "low,high,n\n17,26,10\n");
    // Another form applies to new records alone.
    declare("-- timestamp: at ms");
    place.write("more.csv", "id,at\nnew,1714557600000\n");
    let up = place.up(&["--data", "more.csv", "--append", "--sql", "shop"]);
    assert!(!up.stderr().contains("the timestamp by 00_records.sql"), "{}", up.stderr());
    assert_eq!(up.interrupt().code, Some(0));
    assert_eq!(csv("SELECT _timestamp FROM records WHERE id = 'new'"), "_timestamp\n2024-05-01T10:00:00Z\n");
    assert_eq!(csv(wrong), "n\n0\n");
    // Retention follows event time: both files came just now, and the older one has three records of today.
    assert_eq!(common::files(&place.path("store/records")).iter().filter(|file| file.extension().is_some()).count(), 2);
    place.ok(&["compact", "--keep-for", "30d", "--grace", "0"]);
    assert_eq!(csv("SELECT count(*) AS n FROM records"), "n\n31\n");
    place.write("old.csv", "id,at\nold,1714557600000\n");
    let up = place.up(&["--data", "old.csv", "--store", "old", "--sql", "shop"]);
    up.interrupt();
    place.write("old2.csv", "id,at\nolder,1714557500000\n");
    place.up(&["--data", "old2.csv", "--append", "--store", "old", "--sql", "shop"]).interrupt();
    place.ok(&["compact", "--store", "old", "--keep-for", "30d", "--grace", "0"]);
    let left = place.ok(&["sql", "--store", "old", "--sql", "shop", "-f", "csv", "-c", "SELECT id FROM records"]);
    assert_eq!(left, "id\nolder\n", "never the newest file of a partition");
}

/// Tombstones are counted by themselves.
#[test]
fn tombstones_have_their_own_counter() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("tombstones"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    place.write("rows.ndjson", "{\"product_id\":\"a\"}\n{\"product_id\":\"b\"}\n");
    place.ok(&[&["produce", "rows.ndjson", "--key", "product_id"][..], &to].concat());
    let producer = producer(&servers);
    for payload in [None, Some("garbage"), None] {
        let mut record = BaseRecord::<str, str>::to(&topic).key("a");
        record.payload = payload;
        producer.send(record).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let ended = place.run(&[&["ingest", "--until-end"][..], &to].concat());
    assert!(ended.stderr.contains("stored 5 in 1 file (1 unreadable, 2 tombstones)"), "{}", ended.stderr);
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]).stdout;
    let list = "`tercile sql -c \"SELECT _error, count(*) FROM records WHERE _error IS NOT NULL GROUP BY 1\"`";
    assert!(
        doctor.contains(&format!("; 1 unreadable, {list} lists the reasons; 2 tombstones (messages without a value)")),
        "{doctor}"
    );
    let reprocess = place.run(&["reprocess"]).stderr;
    assert!(reprocess.contains("; 1 still can't be"), "{reprocess}");
    let up = place.up(&to);
    let status = up.get("/api/status").json();
    assert_eq!((&status["unreadable"], &status["tombstones"]), (&1.into(), &2.into()));
    assert_eq!(up.get("/api/unreadable").json().as_array().unwrap().len(), 1);
    producer.send(BaseRecord::<str, str>::to(&topic).key("b")).map_err(|(e, _)| e).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();
    eventually("the tombstone", || up.get("/metrics").text.contains("tercile_records{state=\"tombstone\"} 1"));
    assert!(up.get("/metrics").text.contains("tercile_records{state=\"unreadable\"} 0"));
    assert_eq!(up.interrupt().code, Some(0));
}
