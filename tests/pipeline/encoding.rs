//! A record encoding that exists only here: `name=value` pairs, separated by semicolons. An encoding is one implementation of `Decoder`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tercile_kafka::broker::{Embedded, Producer, Row};
use tercile_kafka::ingest::{self, Control, Job};
use tercile_store::batch::Limits;
use tercile_store::record::{Decoded, Decoder, Fields, Unreadable};
use tercile_store::{EMBEDDED, Policy, Store};

use crate::common::Place;

#[derive(Debug)]
struct Pairs;

impl Decoder for Pairs {
    fn decode<'a>(&self, payload: Option<&'a [u8]>, fields: &Fields) -> Result<Decoded<'a>, Unreadable> {
        let text = std::str::from_utf8(payload.ok_or(Unreadable::Tombstone)?);
        let text = text.map_err(|e| Unreadable::Utf8(e.valid_up_to()))?;
        let mut decoded = Decoded { values: vec![None; fields.names().len()], extra: "{}".into() };
        for pair in text.split(';') {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| Unreadable::Encoding(format!("no name=value pair: {pair}")))?;
            if let Some(place) = fields.names().iter().position(|known| known == name) {
                decoded.values[place] = Some(value.into());
            }
        }
        Ok(decoded)
    }
}

#[test]
fn a_topic_in_another_encoding_is_stored_and_its_unreadable_records_keep_the_reason() {
    let place = Place::new();
    let store = Store::open(&place.path("store")).unwrap();
    store.claim("products", EMBEDDED, 1).unwrap();
    let broker = Embedded::start("products", 1).unwrap();
    let cluster = broker.cluster(Duration::from_secs(10));
    let stop = AtomicBool::new(false);
    let mut producer = Producer::new(&cluster, "products").unwrap();
    for (line, payload) in ["rating=4.5;product_name=A", "garbage", "product_name=B"].into_iter().enumerate() {
        let row = Row { key: None, payload: Some(payload.as_bytes()), line: line as u64 + 1, replay: None };
        assert!(producer.send(row, &stop).unwrap());
    }
    assert!(producer.finish(&stop).1.is_none());
    let job = Job {
        cluster,
        topic: "products".into(),
        partitions: vec![0],
        store,
        decoder: Arc::new(Pairs),
        fields: Fields::new(vec!["product_name".into(), "rating".into()]),
        limits: Limits { rows: 1000, bytes: 1 << 20, age: Duration::from_secs(1) },
        memory: 64 << 20,
        upkeep: Duration::from_secs(30),
        until_end: true,
        group: None,
        event_time: None,
        from: None,
        accept_gap: false,
        roll: Policy { target: 1 << 27, grace: Duration::from_secs(86_400), eager: false, ..Policy::default() },
        embedded: true,
        backlog: None,
    };
    let summary = ingest::run(&job, &Control::default()).unwrap();
    assert_eq!((summary.stored, summary.unreadable), (3, 1));
    let rows =
        place.ok(&["sql", "-f", "csv", "-c", "SELECT product_name, rating, _error FROM records ORDER BY _offset"]);
    assert_eq!(rows, "product_name,rating,_error\nA,4.5,\n,,no name=value pair: garbage\nB,,\n");
}
