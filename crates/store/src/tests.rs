//! Randomized tests of the whole store.

use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::log::tests::records_at;
use super::*;

/// A worker: its next file name, the next record to read, and its batch.
struct Worker {
    log: Log,
    expected: i64,
    read: usize,
    held: Vec<i64>,
}

impl Worker {
    fn recovered(log: Log, topic: &[i64]) -> Self {
        let expected = log.next().unwrap().unwrap();
        Self { log, expected, read: topic.partition_point(|&o| o < expected), held: Vec::new() }
    }
}

/// Workers that read, publish, die, are suspended and take over each other's partition, with compaction and deletion in
/// between, in any order: the store is always a prefix of the topic, each record of it once, except for expired ones. `stores`
/// are the same store as seen by three processes.
fn walk(seed: u64, stores: &[Store; 3]) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut chance = |below: u64| (rng.next_u64() % below) as usize;
    stores[0].claim("products", "id", 1).unwrap();
    // A topic with gaps in its offsets.
    let mut offset = 5;
    let topic: Vec<i64> = (0..60)
        .map(|_| {
            offset += 1 + [0, 0, 0, 2][chance(4)];
            offset
        })
        .collect();
    let logs = stores.each_ref().map(|store| store.log("products", 0));
    logs[0].begin(5).unwrap();
    let mut workers = logs.clone().map(|log| Worker::recovered(log, &topic));
    let mut expired = None;
    for _ in 0..150 {
        let worker = &mut workers[chance(3)];
        match chance(10) {
            // It reads on.
            0..5 => {
                let more = (1 + chance(6)).min(topic.len() - worker.read);
                worker.held.extend(&topic[worker.read..worker.read + more]);
                worker.read += more;
            }
            // It publishes its batch, or finds that it was overtaken and reads again.
            5..8 => {
                let held = std::mem::take(&mut worker.held);
                let Some(next) = held.last().map(|last| last + 1) else { continue };
                match worker.log.publish(&records_at(&held), worker.expected, next).unwrap() {
                    Published::File(file) => worker.expected = file.next,
                    Published::Taken => *worker = Worker::recovered(worker.log.clone(), &topic),
                }
            }
            // It dies, and another worker takes over.
            8 => *worker = Worker::recovered(worker.log.clone(), &topic),
            _ => {
                let (target, grace) = (1 << [10, 13, 20][chance(3)], Duration::ZERO);
                // In half of the runs nothing expires.
                let bytes = (seed % 2 == 1 && chance(3) == 0).then(|| 1 << (10 + chance(5)));
                let keep = RetentionPolicy { age: None, bytes };
                worker.log.compact(&Policy { target, grace, eager: chance(2) == 0, keep }).unwrap();
            }
        }
        let before = std::mem::replace(&mut expired, logs[0].expired().unwrap());
        assert!(before <= expired, "seed {seed}: what expired came back");
        for log in &logs {
            let files = log.verify().unwrap();
            let stored: u64 = files.iter().map(|file| file.rows).sum();
            let next = log.next().unwrap().unwrap();
            let prefix = topic.partition_point(|&o| o < next);
            let gone = topic.partition_point(|&o| Some(o) < expired);
            assert_eq!(stored, (prefix - gone) as u64, "seed {seed}");
        }
    }
}

#[test]
fn the_store_is_always_a_prefix_of_the_topic() {
    for seed in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        walk(seed, &[store.clone(), store.clone(), store]);
    }
}

/// The same with requests that fail before or after they take effect, and lagging lists.
#[cfg(feature = "object-stores")]
mod on_a_flaky_object_store {
    use std::sync::Arc;
    use std::time::Instant;

    use parquet::arrow::ArrowWriter;

    use super::super::file_name::Name;
    use super::super::objects::flaky::Flaky;
    use super::super::write::properties;
    use super::*;

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
        let Place::Objects(objects) = &log.store.place else { panic!("on a disk") };
        for offset in offsets {
            let records = records_at(&[offset]);
            let properties = properties(&log.span(offset, offset + 1), 1, &records);
            let mut writer = ArrowWriter::try_new(Vec::new(), records.schema(), Some(properties)).unwrap();
            writer.write(&records).unwrap();
            let bytes = writer.into_inner().unwrap();
            objects.replace_if(bytes, &log.path(Name::small(offset)), None).unwrap();
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
        let Place::Objects(objects) = &log.store.place else { panic!("on a disk") };
        let other = objects.read(&log.path(Name::small(1498))).unwrap();
        let (_, version) = objects.read_version(&changed).unwrap().unwrap();
        objects.replace_if(other, &changed, Some(version)).unwrap();
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
        log.write_index().unwrap();
        let slow = store(&shaky);
        timed("20 ms a request, cold", &slow);
        timed("20 ms a request, warm", &slow);
        timed("no latency, cold", &store(&shaky.quick()));
    }
}
