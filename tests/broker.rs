//! The embedded broker under load: what it cannot hold is never sent by us, and never lost in silence.

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use common::Place;
use tercile::batch::Limits;
use tercile::broker::embedded::{Backlog, PARTITION_LIMIT, UNREAD_LIMIT};
use tercile::broker::{Embedded, Producer};
use tercile::ingest::{self, Control, Job};
use tercile::produce::{self, Options, Replay, RowSet};
use tercile::rows::{Rows, Source};
use tercile::sql::Files;
use tercile::store::{EMBEDDED, Policy, Store};

#[test]
fn a_replay_never_has_more_unread_than_its_limit() {
    let place = Place::new();
    // Five times what the broker keeps.
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
        partitions: 1,
        store: store.clone(),
        fields: Files::shipped().unwrap().fields,
        limits: Limits { rows: 1000, bytes: 64 << 20, age: Duration::from_secs(5) },
        memory: 1 << 30,
        upkeep: Duration::from_secs(30),
        until_end: false,
        group: None,
        accept_gap: false,
        roll: Policy { target: 1 << 27, grace: Duration::from_secs(86_400), eager: false, ..Policy::default() },
        embedded: true,
        backlog: Some(Arc::clone(&backlog)),
    };
    let ingesting = {
        let control = Arc::clone(&control);
        std::thread::spawn(move || ingest::run(&job, &control))
    };
    let replay = Replay { hash: "abc", stored: &RowSet::default(), backlog: Some(&backlog) };
    let options = Options { rate: None, replay: Some(replay) };
    let mut rows = Rows::open(&source).unwrap();
    let producer = Producer::new(&cluster, "products").unwrap();
    let sent = produce::send(producer, &mut rows, &options, &AtomicBool::new(false), |_, _| {}).unwrap();
    assert_eq!(sent.records, 8000);
    common::eventually("the last record read", || backlog.is_empty());
    control.stop();
    let summary = ingesting.join().unwrap().unwrap();
    assert_eq!((summary.stored, summary.gaps.len()), (8000, 0));
    assert!(backlog.peak() > UNREAD_LIMIT / 2, "{} never came near the limit: this proves nothing", backlog.peak());
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

    // Another broker of that name has made another topic, whatever its offsets.
    broker.signal("-INT");
    broker.wait();
    let mut other = place.start(&["broker"]);
    let address = other.line_with("");
    let error = place.fails(3, &["ingest", "--until-end", "--bootstrap-servers", &address]);
    assert!(error.contains("is fed from topic products (id "), "{error}");
}
