//! The embedded broker under load: tercile never sends more than the broker can keep, and no loss is silent. Also pipes,
//! shutdown, and timestamps of any kind, as far as they need no other broker.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::Place;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tercile::files::{self, Rows, Source};
use tercile::produce::{self, Options, Replay};
use tercile::sql::Files;
use tercile_kafka::broker::embedded::{Backlog, PARTITION_LIMIT, UNREAD_LIMIT};
use tercile_kafka::broker::{Embedded, Producer};
use tercile_kafka::ingest::{self, Control, Job};
use tercile_store::batch::Limits;
use tercile_store::record::Json;
use tercile_store::row_set::RowSet;
use tercile_store::{EMBEDDED, Policy, Store};

use crate::common;

#[test]
fn a_replay_never_has_more_unread_than_its_limit() {
    let place = Place::new();
    // Five times the broker's capacity.
    let csv = place.ok(&["generate", "8000"]);
    assert!(csv.len() > 4 * PARTITION_LIMIT);
    let source = Source::File(place.write("rows.csv", csv));
    let store = Store::open(&place.path("store")).unwrap();
    store.claim("products", EMBEDDED, 1).unwrap();
    let broker = Embedded::start("products", 1).unwrap();
    let cluster = broker.cluster(Duration::from_secs(10));
    let backlog = Arc::new(Backlog::default());
    let control = Arc::new(Control::default());
    let job = Job {
        cluster: cluster.clone(),
        topic: "products".into(),
        partitions: vec![0],
        store: store.clone(),
        decoder: Arc::new(Json),
        fields: Files::shipped().unwrap().fields,
        limits: Limits { rows: 1000, bytes: 64 << 20, age: Duration::from_secs(5) },
        memory: 1 << 30,
        upkeep: Duration::from_secs(30),
        until_end: false,
        group: None,
        event_time: None,
        from: None,
        accept_gap: false,
        roll: Policy { target: 1 << 27, grace: Duration::from_secs(86_400), eager: false, ..Policy::default() },
        embedded: true,
        backlog: Some(Arc::clone(&backlog)),
    };
    let sending = {
        let (cluster, backlog) = (cluster.clone(), Arc::clone(&backlog));
        std::thread::spawn(move || {
            let replay = Replay { hash: "abc", stored: &RowSet::default(), backlog: Some(&backlog) };
            let options = Options { rate: None, key: None, replay: Some(replay) };
            let mut rows = Rows::open(&source, &files::Options::default()).unwrap();
            let producer = Producer::new(&cluster, "products").unwrap();
            produce::send(producer, &mut rows, &options, &AtomicBool::new(false), |_, _| {}).unwrap()
        })
    };
    // The reader starts when the sender waits for it, so that the limit is reached on a machine of any speed.
    common::eventually("the limit reached", || backlog.peak() > UNREAD_LIMIT - 10_000);
    let ingesting = {
        let control = Arc::clone(&control);
        std::thread::spawn(move || ingest::run(&job, &control))
    };
    let sent = sending.join().unwrap();
    assert_eq!(sent.records, 8000);
    common::eventually("the last record read", || backlog.is_empty());
    control.stop();
    let summary = ingesting.join().unwrap().unwrap();
    assert_eq!((summary.stored, summary.gaps.len()), (8000, 0));
    assert!(backlog.peak() <= UNREAD_LIMIT, "{}", backlog.peak());
    assert_eq!(store.snapshot().unwrap().rows(), 8000);
}

#[test]
fn records_that_were_gone_before_they_could_be_read_are_a_named_gap() {
    let place = Place::new();
    let mut broker = place.start(&["broker"]);
    let address = broker.line_with("");
    let servers = ["--bootstrap-servers", &address];
    let produce = |rows: &str| {
        place.write("rows.csv", place.ok(&["generate", rows]));
        place.run(&[&["produce", "rows.csv"][..], &servers].concat())
    };
    let ingest = || place.run(&[&["ingest", "--until-end"][..], &servers].concat());

    assert_eq!(produce("10").code, Some(0));
    let ended = ingest();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("received 10 records, stored 10 in 1 file (0 unreadable)"), "{}", ended.stderr);

    let ended = produce("4000");
    assert!(ended.stderr.contains("it forgets all but the newest 5 MiB"), "{}", ended.stderr);
    let ended = ingest();
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("partition 0 of products: the records from offset 10 to "), "{}", ended.stderr);
    assert_eq!(place.records(), (10, 10), "nothing is stored past a gap");

    // Another broker with the same topic name has another topic, whatever its offsets.
    broker.signal("-INT");
    broker.wait();
    let mut other = place.start(&["broker"]);
    let address = other.line_with("");
    let error = place.fails(3, &["ingest", "--until-end", "--bootstrap-servers", &address]);
    assert!(error.contains("is fed from topic products (id "), "{error}");
}

/// Reads from an embedded broker until a message arrives.
fn first_message(servers: &str) -> BaseConsumer {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", "watcher")
        .set("fetch.wait.max.ms", "10")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset("products", 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    consumer
}

#[test]
fn rows_of_a_pipe_are_sent_as_they_come_and_a_signal_says_how_many_went() {
    for (signal, code) in [("-INT", Some(130)), ("-TERM", Some(143)), ("", Some(0))] {
        let place = Place::new();
        let mut broker = place.start(&["broker"]);
        let address = broker.line_with("");
        let consumer = first_message(&address);
        let mut command = place.command(&["produce", "-", "--bootstrap-servers", &address]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        for i in 0..3 {
            // The first message includes the time to connect.
            let patience = Duration::from_secs(if i == 0 { 20 } else { 1 });
            writeln!(pipe, "{{\"product_id\":\"{i}\"}}").unwrap();
            let began = Instant::now();
            let payload = loop {
                assert!(began.elapsed() < patience, "row {i} did not come");
                if let Some(message) = consumer.poll(Duration::from_millis(20)) {
                    break message.unwrap().payload().map(<[u8]>::to_vec);
                }
            };
            assert_eq!(payload.unwrap(), format!("{{\"product_id\":\"{i}\"}}").into_bytes());
        }
        if signal.is_empty() {
            drop(pipe);
        } else {
            // An incomplete line is not a row.
            write!(pipe, "{{\"product_id\"").unwrap();
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        }
        let began = Instant::now();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "{said}");
        assert_eq!(output.status.code(), code, "{said}");
        let expected =
            if signal.is_empty() { "sent 3 rows of stdin" } else { "stopped: 3 rows of stdin were acknowledged" };
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_bad_row_of_a_pipe_tells_what_was_acknowledged_before_it() {
    let place = Place::new();
    let mut broker = place.start(&["broker"]);
    let address = broker.line_with("");
    let rows = "{\"a\":1}\n{\"a\":2}\n{\"a\":\n{\"a\":4}\n";
    let mut command = place.command(&["produce", "-", "--bootstrap-servers", &address]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rows.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("stdin, line 3: expected a JSON object, but the object does not end on its line"), "{said}");
    assert!(said.contains("2 rows were acknowledged, the last is line 2"), "{said}");
    place.write("large.ndjson", format!("{{\"a\":1}}\n{{\"a\":\"{}\"}}\n", "x".repeat(PARTITION_LIMIT)));
    let error = place.fails(1, &["produce", "large.ndjson", "--bootstrap-servers", &address]);
    assert!(
        error.contains("large.ndjson, line 2: a row of ") && error.ends_with("1 row was acknowledged, line 1"),
        "{error}"
    );
}

#[test]
fn a_stop_is_heard_while_no_broker_answers() {
    let place = Place::new();
    place.write("rows.csv", "product_id\na\n");
    // One port without a listener, and one that accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = ["127.0.0.1:1".to_owned(), silent.local_addr().unwrap().to_string()];
    for address in &addresses {
        let to = ["--bootstrap-servers", address, "--timeout", "60"];
        let commands: [(&[&str], i32); 5] = [
            (&["ingest"], 0),
            (&["ingest", "--group", "g"], 0),
            (&["up", "--bind", "127.0.0.1:0"], 0),
            (&["produce", "rows.csv"], 130),
            (&["doctor"], 130),
        ];
        for (command, code) in commands {
            let running = place.start(&[command, &to].concat());
            std::thread::sleep(Duration::from_millis(1500));
            let began = Instant::now();
            let ended = running.interrupt();
            assert_eq!(ended.code, Some(code), "{command:?}: {}", ended.stderr);
            assert!(began.elapsed() < Duration::from_secs(2), "{command:?} took {:?}", began.elapsed());
        }
    }
}

#[test]
fn a_broker_that_goes_is_one_warning_with_the_reason() {
    let place = Place::new();
    let mut broker = place.start(&["broker"]);
    let address = broker.line_with("");
    place.write("rows.csv", "product_id\na\n");
    place.ok(&["produce", "rows.csv", "--bootstrap-servers", &address]);
    let worker = place.start(&["ingest", "--batch-age", "0.2", "--upkeep", "0.5", "--bootstrap-servers", &address]);
    common::eventually("the record", || place.path("store/records/products/0").exists());
    common::eventually("the record", || place.records() == (1, 1));
    broker.signal("-KILL");
    worker.said("no broker answers at ");
    std::thread::sleep(Duration::from_secs(4));
    let ended = worker.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let warnings: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("; check --bootstrap-servers and that the broker runs; trying again"), "{warnings:?}");
}

/// Sends records that differ only in their timestamps.
fn send_at(servers: &str, timestamps: &[i64]) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    for millis in timestamps {
        let record = BaseRecord::<(), str>::to("products").payload("{\"product_id\":\"a\"}").timestamp(*millis);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(20)).unwrap();
}

#[test]
fn timestamps_of_any_unit_are_told_kept_and_printed() {
    let now = tercile_store::times::millis(std::time::SystemTime::now());
    let day = 86_400_000;
    for (unit, factor) in [("seconds", 0), ("microseconds", 1000), ("nanoseconds", 1_000_000)] {
        let place = Place::new();
        let mut broker = place.start(&["broker"]);
        let address = broker.line_with("");
        let scaled = |millis: i64| if factor == 0 { millis / 1000 } else { millis * factor };
        let times: Vec<i64> = (0..20).map(|i| scaled(now - 100 * day + i)).collect();
        send_at(&address, &times);
        let ingest = ["ingest", "--until-end", "--batch-rows", "5", "--bootstrap-servers", &address];
        let ended = place.run(&ingest);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let words = format!("partition 0 of products, offset 0: the timestamp {} is ", times[0]);
        assert!(ended.stderr.contains(&words), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("most likely counts {unit}")), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("most likely counts").count(), 1, "{}", ended.stderr);

        let ended = place.run(&["compact", "--keep-for", "90d", "--grace", "0"]);
        assert!(ended.code == Some(0) && ended.stderr.contains("let 0 records expire"), "{}", ended.stderr);
        assert!(ended.stderr.contains("--keep-for lets no more records of "), "{}", ended.stderr);
        assert_eq!(place.records(), (20, 20));
        let doctor = place.run(&["doctor", "--bootstrap-servers", &address, "--bind", "127.0.0.1:0"]);
        let row = doctor.stdout.lines().find(|line| line.contains(" timestamps ")).unwrap();
        assert!(row.starts_with("MEND") && row.contains(&format!("most likely counts {unit}")), "{}", doctor.stdout);

        let sql = "SELECT _timestamp, min(_timestamp) OVER () AS least, named_struct('t', _timestamp) AS inner_time, \
                   CAST('NaN' AS DOUBLE) AS nan, 9223372036854775807 AS big FROM records ORDER BY _offset LIMIT 1";
        let text = tercile_store::times::text(times[0]);
        for format in ["json", "ndjson"] {
            let printed: serde_json::Value =
                serde_json::from_str(&place.ok(&["sql", "-f", format, "-c", sql])).unwrap();
            let row = if format == "json" { &printed[0] } else { &printed };
            assert_eq!(row["_timestamp"], text.as_str(), "{printed}");
            assert_eq!(row["inner_time"]["t"], text.as_str(), "{printed}");
            assert!(row["nan"].is_null() && row["big"] == i64::MAX, "{printed}");
        }
        for format in ["table", "csv", "tsv", "markdown"] {
            let printed = place.ok(&["sql", "-f", format, "-c", "SELECT _timestamp FROM records ORDER BY _offset"]);
            assert!(printed.contains(&text) && !printed.contains("ERROR"), "{printed}");
        }
    }
}

#[test]
fn a_clock_that_cannot_be_right_lets_nothing_expire() {
    let place = Place::new();
    let mut broker = place.start(&["broker"]);
    let address = broker.line_with("");
    let now = tercile_store::times::millis(std::time::SystemTime::now());
    send_at(&address, &(0..20).map(|i| now - (100 - i) * 86_400_000).collect::<Vec<_>>());
    place.ok(&["ingest", "--until-end", "--batch-rows", "5", "--bootstrap-servers", &address]);
    // Overrides the C library's clock: in 1969 or 30 years ago.
    let shim = "#include <time.h>\n#include <stdlib.h>\n#include <sys/syscall.h>\n#include <unistd.h>\n\
        int clock_gettime(clockid_t id, struct timespec *t) {\n\
        long r = syscall(SYS_clock_gettime, id, t);\n\
        if (id == CLOCK_REALTIME) t->tv_sec = atol(getenv(\"FAKE_SECONDS\"));\n\
        return (int)r; }\n";
    place.write("clock.c", shim);
    let library = place.path("clock.so");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(place.path("clock.c")).status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no C compiler");
        return;
    }
    let library = library.to_str().unwrap().to_owned();
    let compact = ["compact", "--keep-for", "1d", "--grace", "0", "--roll-bytes", "1"];
    for (seconds, words) in [("-86400", "which is before this build"), ("1769000000", "one of them is wrong")] {
        let mut command = place.command(&compact);
        let output = command.env("LD_PRELOAD", &library).env("FAKE_SECONDS", seconds).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(words) && said.contains("let 0 records expire"), "{said}");
        assert_eq!(said.matches("--keep-for lets no more").count(), 1, "{said}");
    }
    assert_eq!(place.records(), (20, 20));
    let output = place.command(&["doctor"]).env("LD_PRELOAD", &library).env("FAKE_SECONDS", "-5").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && said.starts_with("error: the clock of this machine says 1969-12-31T"),
        "{said}"
    );
    let ended = place.run(&compact);
    assert!(ended.stderr.contains("let 15 records expire"), "the newest file stays: {}", ended.stderr);
}
