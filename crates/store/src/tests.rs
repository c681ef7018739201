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
pub fn walk(seed: u64, stores: &[Store; 3]) {
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
