//! The built-in slices, computed by counting, equal a window function over all records.

use std::path::Path;
use std::time::Instant;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use tercile::engine;
use tercile::sql::Files;
use tercile_store::batch::{Batch, Record};
use tercile_store::record;
use tercile_store::{Published, Store};

use crate::common;

/// The built-in files, with `20_slices.sql` replaced by a window function.
fn with_plain_window(dir: &Path) -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(root.join("sql")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::copy(root.join("tests/sql/20_slices.sql"), dir.join("20_slices.sql")).unwrap();
    Files::load(Some(dir)).unwrap()
}

async fn slices(store: &Store, files: &Files) -> String {
    let ctx = engine::open(&store.snapshot().unwrap(), files).await.unwrap();
    let sql = "SELECT _partition, _offset, _timestamp, rating, _slice FROM slices ORDER BY _partition, _offset";
    let batch = engine::collect(&ctx, sql).await.unwrap();
    datafusion::arrow::util::pretty::pretty_format_batches(&[batch]).unwrap().to_string()
}

#[tokio::test]
async fn counting_and_sorting_give_the_same_slices() {
    let window = tempfile::tempdir().unwrap();
    let (shipped, window) = (Files::shipped().unwrap(), with_plain_window(window.path()));
    for seed in 0..20 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |n: u64| rng.next_u64() % n;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let partitions = 1 + below(3) as i32;
        store.claim("t", "id", partitions).unwrap();
        for partition in 0..partitions {
            let log = store.log("t", partition);
            let (mut offset, mut start) = (below(3) as i64, 0);
            log.begin(0).unwrap();
            for _ in 0..below(4) {
                let mut batch = Batch::new(partition, &shipped.fields);
                for _ in 0..1 + below(30) {
                    // Some records are unreadable; they count too.
                    let payload: &[u8] = if below(5) == 0 { b"garbage" } else { b"{\"rating\":\"4.2\"}" };
                    let timestamp = (below(6) > 0).then(|| below(40) as i64 - 20);
                    let record = Record { offset, timestamp, key: None, payload: Some(payload) };
                    let decoded = record::decode(Some(payload), &shipped.fields);
                    batch.push(&record, std::iter::empty(), &decoded, Instant::now());
                    offset += 1 + below(2) as i64;
                }
                let ready = batch.take().unwrap().unwrap();
                assert!(matches!(log.publish(&ready.records, start, ready.next).unwrap(), Published::File(_)));
                start = ready.next;
            }
        }
        assert_eq!(slices(&store, &shipped).await, slices(&store, &window).await, "seed {seed}");
    }
}

#[test]
fn slice_cuts_can_be_looked_at() {
    let place = common::Place::new();
    assert_eq!(place.ok(&["sql", "-f", "csv", "-c", "SELECT slice, place FROM slice_cuts()"]), "slice,place\n");
    assert_eq!(place.up(&["--partitions", "3"]).interrupt().code, Some(0));
    assert_eq!(
        place.ok(&["sql", "-f", "csv", "-c", "SELECT slice, place FROM slice_cuts()"]),
        "slice,place\n1,489\n2,978\n3,1465\n"
    );
    let counted =
        place.ok(&["sql", "-f", "csv", "-c", "SELECT _slice, count(*) AS n FROM slices GROUP BY 1 ORDER BY 1"]);
    assert_eq!(counted, "_slice,n\n1,489\n2,489\n3,487\n");
    let error = place.fails(1, &["sql", "-c", "SELECT * FROM slice_cuts(1)"]);
    assert!(error.contains("slice_cuts") && error.contains("takes no arguments"), "{error}");
}
