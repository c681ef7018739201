//! Tests of a store on an object store with requests that fail before or after they take effect, and lagging lists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parquet::arrow::ArrowWriter;

use super::flaky::Flaky;
use crate::backend::Access;
use crate::file_name::Name;
use crate::log::tests::records_at;
use crate::tests::walk;
use crate::write::properties;
use crate::*;

/// A store as seen by a new process.
fn store(shaky: &Flaky) -> Store {
    Store::over("s3://test/a/store", Arc::new(shaky.clone())).unwrap()
}

fn stores(seed: u64) -> [Store; 3] {
    let shaky = Flaky::new(seed);
    [(); 3].map(|()| store(&shaky))
}

#[test]
fn the_store_is_always_a_prefix_of_the_topic() {
    for seed in 0..20 {
        walk(seed, &stores(seed));
    }
}

#[test]
fn concurrent_changes_of_a_file_are_not_lost() {
    let stores = stores(7);
    stores[0].claim("products", EMBEDDED, 1).unwrap();
    std::thread::scope(|scope| {
        for (i, store) in stores.iter().enumerate() {
            scope.spawn(move || {
                for j in 0..5 {
                    let name = format!("{i}-{j}");
                    store.add_file(&Replayed { hash: name.clone(), name, ..Replayed::default() }).unwrap();
                }
            });
        }
    });
    let mut names: Vec<String> = stores[1].source().unwrap().unwrap().files.into_iter().map(|f| f.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 15);
}

#[test]
fn a_file_changed_under_its_name_is_read_again() {
    let [one, other, _] = stores(1);
    one.claim("products", "id", 1).unwrap();
    let [log, reader] = [&one, &other].map(|store| store.log("products", 0));
    log.begin(0).unwrap();
    for next in [5, 9] {
        let start = log.next().unwrap().unwrap();
        assert!(matches!(log.publish(&records_at(&[start]), start, next).unwrap(), Published::File(_)));
    }
    while reader.files().unwrap().len() < 2 {}
    // The newest file is moved aside, and its range is read again.
    let newest = reader.files().unwrap().pop().unwrap();
    one.place.delete(&newest.path).unwrap();
    let again = one.log("products", 0);
    // Once no list lags.
    let published = || matches!(again.publish(&records_at(&[5, 6, 7]), 5, 12).unwrap(), Published::File(_));
    assert!((0..5).any(|_| published()));
    let ends = || reader.files().unwrap().last().map(|file| file.next);
    assert!((0..5).any(|_| ends() == Some(12)));
}

/// Puts one file per record for these offsets.
fn fill(log: &Log, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        let records = records_at(&[offset]);
        let properties = properties(&log.span(offset, offset + 1), 1, &records);
        let mut writer = ArrowWriter::try_new(Vec::new(), records.schema(), Some(properties)).unwrap();
        writer.write(&records).unwrap();
        let bytes = writer.into_inner().unwrap();
        assert!(log.store.place.publish(&bytes, &log.path(Name::small(offset))).unwrap().is_some());
    }
}

#[test]
fn a_new_process_reads_the_index_and_only_newer_footers() {
    let shaky = Flaky::slow(Duration::ZERO, 1);
    let writer = store(&shaky);
    writer.claim("products", "id", 1).unwrap();
    let log = writer.log("products", 0);
    log.begin(0).unwrap();
    fill(&log, 0..1500);
    assert_eq!(writer.snapshot().unwrap().files.len(), 1500);
    // Nothing is worth compacting, but the index is outdated.
    let idle = Policy { target: 1, grace: Duration::from_secs(3600), eager: false, ..Policy::default() };
    assert_eq!(log.compact(&idle).unwrap(), Rolled::default());
    fill(&log, 1500..1510);
    let asked = shaky.gets();
    let reader = store(&shaky);
    let snapshot = reader.snapshot().unwrap();
    assert_eq!((snapshot.files.len(), snapshot.rows()), (1510, 1510));
    let cold = shaky.gets() - asked;
    assert!(cold < 30, "{cold} requests");
    assert_eq!(snapshot.files, writer.snapshot().unwrap().files);
    // A file that changed under its name must not match the index.
    let changed = log.path(Name::small(1499));
    let objects = &log.store.place;
    let other = objects.read(&log.path(Name::small(1498))).unwrap();
    let (_, revision) = objects.read_revision(&changed).unwrap();
    assert!(objects.replace(&other, &changed, &revision, Access::Shared).unwrap());
    let error = store(&shaky).snapshot().unwrap_err().to_string();
    assert!(error.contains("1499.parquet is damaged: its footer says 1498 to 1499"), "{error}");
}

/// Measures the start of a process on a large store, and the next snapshot.
#[test]
#[ignore = "takes minutes, and only measures"]
fn measured_at_100_000_files() {
    let shaky = Flaky::slow(Duration::from_millis(20), 1);
    let quick = store(&shaky.quick());
    quick.claim("products", "id", 1).unwrap();
    let log = quick.log("products", 0);
    log.begin(0).unwrap();
    fill(&log, 0..100_000);
    let timed = |what: &str, store: &Store| {
        let began = Instant::now();
        assert_eq!(store.snapshot().unwrap().rows(), 100_000);
        eprintln!("{what}: {:?}", began.elapsed());
    };
    timed("20 ms a request, cold, without an index", &store(&shaky));
    quick.snapshot().unwrap();
    quick.log_cache.write_index(&log).unwrap();
    let slow = store(&shaky);
    timed("20 ms a request, cold", &slow);
    timed("20 ms a request, warm", &slow);
    timed("no latency, cold", &store(&shaky.quick()));
}
