//! Views of entities, evaluated per slice, compared with a slow reference on random streams.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{Array as _, AsArray as _};
use datafusion::arrow::datatypes::{Float64Type, Int64Type};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use tercile::engine::{self, Limits, UpTo};
use tercile::sql::Files;
use tercile_store::batch::{Batch, Record};
use tercile_store::record;
use tercile_store::{Published, Store};

/// A record: time, partition, offset, customer and amount; no fields if it is unreadable.
type Row = (Option<i64>, i32, i64, Option<(String, f64)>);

/// What is known of a customer: number of records, bits of the sum, bits of the latest amount, milliseconds before the end.
type Known = (i64, u64, u64, Option<i64>);

const VIEW: &str = "-- k: 2
-- entity: customer

SELECT customer, count(*) AS n, sum(amount) AS total,
  last_value(amount ORDER BY _timestamp NULLS FIRST, _partition, _offset) AS latest,
  CAST(slice_end() AS BIGINT) - CAST(max(_timestamp) AS BIGINT) AS before
FROM records_of_customers GROUP BY customer";

fn write(store: &Store, files: &Files, rng: &mut Xoshiro256PlusPlus) -> Vec<Row> {
    let mut below = |n: u64| rng.next_u64() % n;
    let partitions = 1 + below(3) as i32;
    store.claim("t", "id", partitions).unwrap();
    let mut all = Vec::new();
    for partition in 0..partitions {
        let log = store.log("t", partition);
        let (mut offset, mut start) = (below(3) as i64, 0);
        log.begin(0).unwrap();
        for _ in 0..below(4) {
            let mut batch = Batch::new(partition, &files.fields);
            for _ in 0..1 + below(30) {
                // Equal and late timestamps, and none at all.
                let timestamp = (below(8) > 0).then(|| below(40) as i64 - 20);
                let fields = (below(6) > 0).then(|| {
                    let amount = (below(1 << 40) as f64 - 3e11) * 10f64.powi(below(16) as i32);
                    (format!("c{}", below(9)), amount)
                });
                let payload = match &fields {
                    Some((customer, amount)) => {
                        serde_json::json!({ "customer": customer, "amount": amount.to_string() }).to_string()
                    }
                    None => "garbage".to_owned(),
                };
                let record = Record { offset, timestamp, key: None, payload: Some(payload.as_bytes()) };
                let decoded = record::decode(Some(payload.as_bytes()), &files.fields);
                batch.push(&record, std::iter::empty(), &decoded, Instant::now());
                all.push((timestamp, partition, offset, fields));
                offset += 1 + below(2) as i64;
            }
            let ready = batch.take().unwrap().unwrap();
            assert!(matches!(log.publish(&ready.records, start, ready.next).unwrap(), Published::File(_)));
            start = ready.next;
        }
    }
    all.sort_by_key(|row| (row.0, row.1, row.2));
    all
}

/// Adds doubles one by one with all their bits, as integers of 128 bits: amounts are integers below 10^28.
fn exact(amounts: &[f64]) -> f64 {
    amounts.iter().map(|amount| *amount as i128).sum::<i128>() as f64
}

fn reference(rows: &[Row]) -> BTreeMap<String, Known> {
    let end = rows.last().and_then(|row| row.0);
    let mut amounts: BTreeMap<String, (Vec<f64>, Option<i64>)> = BTreeMap::new();
    for (timestamp, _, _, fields) in rows {
        let Some((customer, amount)) = fields else { continue };
        let known = amounts.entry(customer.clone()).or_default();
        known.0.push(*amount);
        known.1 = known.1.max(*timestamp);
    }
    let known = |(customer, (amounts, latest)): (String, (Vec<f64>, Option<i64>))| {
        let last = amounts.last().unwrap().to_bits();
        (
            customer,
            (amounts.len() as i64, exact(&amounts).to_bits(), last, end.zip(latest).map(|(end, latest)| end - latest)),
        )
    };
    amounts.into_iter().map(known).collect()
}

async fn evaluated(store: &Store, files: &Files, up_to: UpTo, partitions: usize) -> BTreeMap<String, Known> {
    let limits = Limits { up_to: Some(up_to), ..Limits::default() };
    let ctx = engine::open_within(&store.snapshot().unwrap(), files, limits).await.unwrap();
    engine::collect(&ctx, &format!("SET datafusion.execution.target_partitions = {partitions}")).await.unwrap();
    engine::collect(&ctx, "SET datafusion.execution.batch_size = 7").await.unwrap();
    let batch = engine::collect(
        &ctx,
        "SELECT arrow_cast(customer, 'Utf8') AS customer, n, total, latest, before FROM customers",
    )
    .await
    .unwrap();
    let (long, double) = (
        |i: usize| batch.column(i).as_primitive::<Int64Type>(),
        |i: usize| batch.column(i).as_primitive::<Float64Type>(),
    );
    let row = |row: usize| {
        let bits = |i: usize| double(i).value(row).to_bits();
        let before = long(4).is_valid(row).then(|| long(4).value(row));
        (batch.column(0).as_string::<i32>().value(row).to_owned(), (long(1).value(row), bits(2), bits(3), before))
    };
    (0..batch.num_rows()).map(row).collect()
}

/// Late events, equal and missing timestamps, unreadable records, several partitions: each slice knows its own records, and
/// the same bits come out at any number of partitions.
#[tokio::test]
async fn a_slice_knows_what_was_known_then() {
    let dir = tempfile::tempdir().unwrap();
    let write_sql = |name: &str, sql: &str| std::fs::write(dir.path().join(name), sql).unwrap();
    write_sql("00_records.sql", "CREATE TABLE records (customer TEXT, amount TEXT)");
    write_sql(
        "10_records_of_customers.sql",
        "SELECT _partition, _offset, _timestamp, customer, CAST(amount AS DOUBLE) AS amount FROM records WHERE _error IS NULL",
    );
    write_sql("30_customers.sql", VIEW);
    let files = Files::load(Some(dir.path())).unwrap();
    for seed in 0..25 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let store_dir = tempfile::tempdir().unwrap();
        let store = Store::open(store_dir.path()).unwrap();
        let rows = write(&store, &files, &mut rng);
        let whole = engine::open(&store.snapshot().unwrap(), &files).await.unwrap();
        let cuts = Arc::new(engine::cuts(&whole).await.unwrap());
        for slice in 1..=3 {
            let n = rows.len();
            let expected = reference(&rows[..n.min(usize::from(slice) * n.div_ceil(3))]);
            let partitions = [1, 2, 3, 8, 17][(seed as usize + usize::from(slice)) % 5];
            for partitions in [1, partitions] {
                let found = evaluated(&store, &files, UpTo { cuts: Arc::clone(&cuts), slice }, partitions).await;
                assert_eq!(found, expected, "seed {seed}, slice {slice}, {partitions} partitions");
            }
        }
    }
}

/// The query of `docs/entities.md` for the latest state of each key, with late records, deletions and keys of any bytes.
#[tokio::test]
async fn the_latest_state_of_each_key_has_deletions_applied() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/entities.md")).unwrap();
    let blocks = super::another_shop::blocks(&page);
    let (_, sql) = blocks.iter().find(|(mark, _)| mark == "file: latest.sql").unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("00_records.sql"), "CREATE TABLE records (spent TEXT)").unwrap();
    std::fs::write(dir.path().join("30_latest.sql"), format!("-- k: 1\n-- entity: customer_id\n\n{sql}")).unwrap();
    let files = Files::load(Some(dir.path())).unwrap();
    for seed in 0..20 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = |n: u64| rng.next_u64() % n;
        let store_dir = tempfile::tempdir().unwrap();
        let store = Store::open(store_dir.path()).unwrap();
        store.claim("t", "id", 2).unwrap();
        let mut all = Vec::new();
        for partition in 0..2 {
            let log = store.log("t", partition);
            log.begin(0).unwrap();
            let mut batch = Batch::new(partition, &files.fields);
            for offset in 0..40 {
                let timestamp = (below(8) > 0).then(|| below(30) as i64);
                let key = format!("k{}", below(12));
                let value = match below(4) {
                    0 => None,
                    1 => Some("garbage".to_owned()),
                    _ => Some(serde_json::json!({ "spent": offset.to_string() }).to_string()),
                };
                let payload = value.as_deref().map(str::as_bytes);
                let record = Record { offset, timestamp, key: Some(key.as_bytes()), payload };
                let decoded = record::decode(payload, &files.fields);
                batch.push(&record, std::iter::empty(), &decoded, Instant::now());
                all.push((timestamp, partition, offset, key, value));
            }
            let ready = batch.take().unwrap().unwrap();
            assert!(matches!(log.publish(&ready.records, 0, ready.next).unwrap(), Published::File(_)));
        }
        all.sort();
        let mut expected: BTreeMap<String, f64> = BTreeMap::new();
        for (_, _, offset, key, value) in all {
            match value.as_deref() {
                None => drop(expected.remove(&key)),
                // What cannot be read changes nothing.
                Some("garbage") => {}
                Some(_) => drop(expected.insert(key, offset as f64)),
            }
        }
        let ctx = engine::open(&store.snapshot().unwrap(), &files).await.unwrap();
        assert_eq!(engine::segmentations(&ctx, &files).await.unwrap()[0].warnings, Vec::<String>::new());
        let batch = engine::collect(&ctx, "SELECT * FROM latest").await.unwrap();
        let keys =
            datafusion::arrow::compute::cast(batch.column(0), &datafusion::arrow::datatypes::DataType::Utf8).unwrap();
        let spent = batch.column(1).as_primitive::<Float64Type>();
        let found: BTreeMap<String, f64> = (0..batch.num_rows())
            .map(|row| (keys.as_string::<i32>().value(row).to_owned(), spent.value(row)))
            .collect();
        assert_eq!(found, expected, "seed {seed}");
        let told = "SELECT is_tombstone('a tombstone: x') AND is_tombstone('tombstone: x') AND NOT is_tombstone('bad') AND NOT is_tombstone(NULL) AS told, key_text(decode('ff', 'hex')) IS NULL AS none";
        let told = engine::collect(&ctx, told).await.unwrap();
        assert!(told.column(0).as_boolean().value(0) && told.column(1).as_boolean().value(0));
    }
}
