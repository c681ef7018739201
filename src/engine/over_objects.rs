//! Tests of queries on an object store that injects faults.

#![allow(clippy::unwrap_used, reason = "a test ends with a panic")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::arrow::array::AsArray as _;
use datafusion::arrow::datatypes::Int64Type;
use tercile_store::batch::{Batch, Record};
use tercile_store::flaky::Flaky;
use tercile_store::record::{Fields, decode};
use tercile_store::{Published, Snapshot, Store};

use crate::engine;

/// A store with `files` files of one record each, which has these other fields.
fn store(flaky: &Flaky, files: i64, more: &str) -> Store {
    let store = Store::over("s3://test/a/store", Arc::new(flaky.clone())).unwrap();
    store.claim("products", "id", 1).unwrap();
    let log = store.log("products", 0);
    log.begin(0).unwrap();
    let fields = Fields::new(vec!["rating".to_owned()]);
    for offset in 0..files {
        let payload = format!("{{\"rating\": 4{more}}}");
        let payload = Some(payload.as_bytes());
        let record = Record { offset, timestamp: Some(1_700_000_000_000), key: None, payload };
        let mut batch = Batch::new(0, &fields);
        batch.push(&record, std::iter::empty(), &decode(payload, &fields), Instant::now());
        let ready = batch.take().unwrap().unwrap();
        assert!(matches!(log.publish(&ready.records, offset, ready.next).unwrap(), Published::File(_)));
    }
    store
}

#[test]
fn neither_slices_nor_a_plan_nor_small_files_cost_a_request() {
    let flaky = Flaky::slow(Duration::ZERO, 1);
    let snapshot: Snapshot = store(&flaky, 150, "").snapshot().unwrap();
    let asked = flaky.gets();
    let places: Vec<u64> =
        crate::slices::cuts(&snapshot, &crate::slices::Thirds).unwrap().iter().map(|cut| cut.place).collect();
    assert_eq!(places, [50, 100, 150]);
    let files = crate::sql::Files::load(None).unwrap();
    let planned = async {
        let ctx = engine::open(&snapshot, &files).await?;
        engine::collect(&ctx, "EXPLAIN SELECT sum(rating) FROM slices GROUP BY _slice").await?;
        // The request for the footer of a small file brought all of it.
        engine::collect(&ctx, "SELECT sum(_offset) FROM records").await
    };
    tokio::runtime::Runtime::new().unwrap().block_on(planned).unwrap();
    assert_eq!(flaky.gets(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_over_a_file_that_is_gone_fails() {
    // So large that the end of the file, which is read with its footer, is not all of it.
    let mut random = 1_u64;
    let mut digit = |_: u32| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + u8::try_from((random >> 33) % 90).unwrap())
    };
    let text: String = (0..200_000).map(&mut digit).filter(|c| !matches!(c, '"' | '\\')).collect();
    let store = store(&Flaky::slow(Duration::ZERO, 1), 3, &format!(", \"text\": \"{text}\""));
    let snapshot = store.snapshot().unwrap();
    let files = crate::sql::Files::load(None).unwrap();
    let sum = async || {
        let ctx = engine::open_without_views(&snapshot, &files, engine::Limits::default()).unwrap();
        let sum = engine::collect(&ctx, "SELECT sum(_offset) FROM records").await?;
        Ok::<_, engine::Error>(sum.column(0).as_primitive::<Int64Type>().value(0))
    };
    store.place().delete(&snapshot.files[1].path).unwrap();
    let error = sum().await.unwrap_err().to_string();
    assert!(error.contains("00001.parquet"), "{error}");
}
