//! Stores on an object store: the complete pipeline, concurrent workers and servers, and faults of networks and stores.
//! Requires an S3-compatible server: `vars=$(.ci/s3 start) && eval "$vars"`.

#![cfg(feature = "object-stores")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Place, Running, eventually};
use proxy::{Act, Plan, Proxy};

use crate::common;
use crate::proxy;

/// A separate bucket on the server TERCILE_TEST_S3.
struct Bucket {
    server: String,
    store: String,
}

impl Bucket {
    fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Ok(server) = std::env::var("TERCILE_TEST_S3") else {
            eprintln!("skipped: TERCILE_TEST_S3 names no S3-compatible server; .ci/s3 starts one");
            return None;
        };
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ureq::put(&format!("{server}/{name}")).send_empty().unwrap();
        Some(Self { server, store: format!("s3://{name}/a/store") })
    }

    /// A machine: a directory for commands that use this store.
    fn machine(&self) -> Place {
        self.machine_through(&self.server)
    }

    fn machine_through(&self, url: &str) -> Place {
        let mut place = Place::new();
        let settings = [
            ("TERCILE_STORE", self.store.as_str()),
            ("AWS_ENDPOINT_URL", url),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_REGION", "us-east-1"),
        ];
        place.settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        place
    }
}

/// A broker with a topic of small records: the embedded broker keeps only 5 MiB.
fn topic(place: &Place, rows: u32) -> (Running, String) {
    let mut broker = place.start(&["broker"]);
    let address = broker.line_with("");
    let mut csv = "product_id,discounted_price,discount_percentage,rating,rating_count\n".to_owned();
    for i in 0..rows {
        let (price, discount, rating, count) = (100 + i * 37 % 900, i % 90, 10 + i * 7 % 41, i * 13 % 5000);
        csv += &format!("{i},{price},{discount}%,{}.{},{count}\n", rating / 10, rating % 10);
    }
    place.write("rows.csv", csv);
    place.ok(&["produce", "rows.csv", "--bootstrap-servers", &address]);
    (broker, address)
}

const INGEST: [&str; 6] = ["ingest", "--until-end", "--batch-rows", "50", "--batch-age", "0.2"];

fn ingest<'a>(address: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&INGEST[..], &["--bootstrap-servers", address], more].concat()
}

/// Checks that each record is stored once, in one unbroken chain.
fn holds(place: &Place, rows: i64) {
    assert_eq!(place.records(), (rows, rows));
    let doctor = place.run(&["doctor"]).stdout;
    assert!(doctor.contains("an unbroken chain"), "{doctor}");
}

#[test]
fn the_whole_job_runs_on_an_object_store() {
    let Some(bucket) = Bucket::new() else { return };
    let place = bucket.machine();
    let up = place.up(&[]);
    let asked = r#"[{"discounted_price": 300, "rating": 4.5}]"#;
    assert_eq!(up.post("/api/cluster_products_by_price_rating", asked).status, 200);
    assert_eq!(up.get("/api/status").json()["records"], 1465);
    // A second worker is rejected while the first one continues.
    let refused = place.fails(1, &["up", "--bind", "127.0.0.1:0"]);
    assert!(refused.contains("another tercile feeds the store s3://"), "{refused}");
    up.interrupt();
    // The lease was released, and nothing is stored twice.
    place.up(&[]).interrupt();
    holds(&place, 1465);
    assert!(place.ok(&["files"]).starts_with("s3://"));
    assert!(place.ok(&["sql", "-c", "SELECT place FROM slice_cuts()"]).contains("978"));

    for model in ["price_rating@1", "price_rating", "discount@2"] {
        place.ok(&["verify", model]);
    }
    let csv = place.write("rows.csv", "discounted_price,rating\n300,4.5\n");
    assert!(place.ok(&["predict", "price_rating", csv.to_str().unwrap()]).contains("Low Price, High Rating"));
    place.ok(&["keys", "create", "shop", "--scope", "read"]);
    assert!(place.ok(&["keys", "list"]).contains("shop"));
    let sql = place.fails(1, &["serve", "--enable-sql", "--bind", "127.0.0.1:0"]);
    assert!(sql.contains("needs a store in a directory"), "{sql}");
}

#[test]
fn models_are_those_of_a_directory_to_the_bit() {
    let Some(bucket) = Bucket::new() else { return };
    let (far, near) = (bucket.machine(), Place::new());
    let (broker, address) = topic(&far, 1200);
    far.ok(&ingest(&address, &[]));
    near.ok(&ingest(&address, &[]));
    broker.interrupt();
    let models = |place: &Place| {
        let models: serde_json::Value = serde_json::from_str(&place.ok(&["train", "--json"])).unwrap();
        let mut text = models.to_string();
        // Only times and durations differ.
        for field in ["\"trained_at\":", "\"seconds\":", "\"sql\":", "\"train\":"] {
            text = cut_after(&text, field);
        }
        text
    };
    assert_eq!(models(&far), models(&near));
}

/// Members: the same as on a disk, found, listed, sent to a topic, kept as long as they are needed, and missed when they are lost.
#[test]
fn members_are_those_of_a_directory() {
    let Some(bucket) = Bucket::new() else { return };
    let place = bucket.machine();
    let (_broker, address) = topic(&place, 400);
    place.write("sql/00_records.sql", "CREATE TABLE records (product_id TEXT, discounted_price TEXT, rating TEXT)");
    let view = |times: u32| {
        format!(
            "-- k: 3\n-- entity: product_id\n\nSELECT product_id, {times} * sum(to_number(discounted_price)) AS price, \
             avg(to_number(rating)) AS rating FROM records GROUP BY product_id"
        )
    };
    place.write("sql/30_ratings.sql", view(1));
    for store in [&[][..], &["--store", "disk"]] {
        place.ok(&ingest(&address, store));
        place.ok(&[&["train"][..], store].concat());
    }
    let listed = |store: &[&str]| place.ok(&[&["members", "ratings", "-f", "csv"][..], store].concat());
    let members = listed(&[]);
    assert_eq!(members.lines().count(), 401);
    assert_eq!(members, listed(&["--store", "disk"]));
    assert_eq!(place.number("SELECT count(*) FROM members('ratings@1')"), 134);

    let serve = place.serve(&[]);
    let one = serve.get("/api/segments/ratings/members/17").json();
    let row = members.lines().find(|line| line.starts_with("17,")).unwrap();
    let cluster = one["cluster"].to_string();
    assert!(row.split(',').any(|cell| cell == cluster), "{row}: {one}");
    let list = |cluster: u32| {
        let path = format!("/api/segments/ratings/clusters/{cluster}/members");
        serve.call("GET", &path, &[("accept", "text/csv")]).text.lines().count() - 1
    };
    assert_eq!((0..3).map(list).sum::<usize>(), 400);

    // To a topic: all, then nothing, then what changed, though only one version is kept for each slice.
    let mut to = place.start(&["broker", "--topic", "segments"]);
    let to_address = to.line_with("");
    let send = || {
        let args = ["members", "ratings", "--to", "segments", "--only-changes", "--bootstrap-servers", &to_address];
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    };
    assert!(send().contains("sent 400 of 400 members of ratings@3@3"));
    assert!(send().contains("sent 0 of 400 members"));
    for times in 2..4 {
        place.write("sql/30_ratings.sql", view(times));
        place.ok(&["train", "--keep-members", "1"]);
    }
    assert!(place.fails(1, &["members", "ratings", "--as-of", "6"]).contains("are deleted"));
    place.ok(&["members", "ratings", "--as-of", "3"]);
    let said = send();
    assert!(said.contains("members of ratings@3@9") && said.contains("compared with version 3"), "{said}");

    // A lost object.
    let lost = format!("{}/models/ratings/9.members.parquet", bucket.store.strip_prefix("s3://").unwrap());
    // The server asks for a signature, and does not verify it.
    let signature =
        "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    ureq::delete(&format!("{}/{lost}", bucket.server)).header("Authorization", signature).call().unwrap();
    let serve = place.serve(&[]);
    assert_eq!(serve.get("/api/segments/ratings/members/17").status, 410);
    assert_eq!(serve.get("/api/segments/ratings/members/17?model=2").status, 200);
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert!(doctor.code == Some(1) && doctor.stdout.contains("9.members.parquet is missing"), "{}", doctor.stdout);
}

/// Removes the plain values after a field name.
fn cut_after(text: &str, field: &str) -> String {
    let mut parts = text.split(field);
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |all, part| all + &part[part.find([',', '}']).unwrap_or(0)..])
}

#[test]
fn two_workers_on_one_partition_make_one_unbroken_chain() {
    let Some(bucket) = Bucket::new() else { return };
    let (one, other) = (bucket.machine(), bucket.machine());
    let (broker, address) = topic(&one, 3000);
    let workers = [one.start(&ingest(&address, &[])), other.start(&ingest(&address, &[]))];
    for mut worker in workers {
        assert!(worker.wait().success(), "{}", worker.stderr());
    }
    broker.interrupt();
    holds(&one, 3000);
    // Small files are compacted there too, and replaced files are deleted.
    let files = |place: &Place| place.ok(&["files"]).lines().count();
    assert!(files(&one) > 20);
    one.ok(&["compact", "--grace", "0"]);
    assert_eq!(files(&one), 1);
    one.ok(&["compact", "--grace", "0"]);
    holds(&other, 3000);
}

/// Most puts of records fail in some way; other requests fail occasionally.
fn faults(method: &str, path: &str, count: usize) -> Act {
    let records = method == "PUT" && path.contains("/records/");
    match (count % 7, records) {
        (0, true) | (5, false) => Act::Busy,
        (1, true) => Act::CutRequest,
        (3, true) => Act::CutAnswer,
        (4, _) => Act::Late(Duration::from_millis(300)),
        _ => Act::Pass,
    }
}

fn stale(method: &str, path: &str, count: usize) -> Act {
    if method == "GET" && path.contains("list-type") && !count.is_multiple_of(3) {
        return Act::Stale(Duration::from_millis(300));
    }
    Act::Pass
}

/// Two workers, one of them behind a proxy.
fn through(plan: Plan) -> Option<Proxy> {
    let bucket = Bucket::new()?;
    let proxy = Proxy::start(&bucket.server, plan);
    let (one, other) = (bucket.machine_through(&proxy.url), bucket.machine_through(&proxy.url));
    let (broker, address) = topic(&one, 1500);
    let began = Instant::now();
    let workers = [one.start(&ingest(&address, &[])), other.start(&ingest(&address, &[]))];
    for mut worker in workers {
        assert!(worker.wait().success(), "{}", worker.stderr());
    }
    eprintln!("1,500 records in {:?}", began.elapsed());
    broker.interrupt();
    holds(&bucket.machine(), 1500);
    Some(proxy)
}

#[test]
fn slow_and_broken_connections_and_5xx_are_tried_again_and_the_store_is_exact() {
    let Some(proxy) = through(faults) else { return };
    for wanted in [Act::Busy, Act::CutRequest, Act::CutAnswer] {
        assert!(proxy.count(|act| act == wanted) > 0, "{wanted:?} never came");
    }
}

#[test]
fn lists_that_lag_hide_nothing() {
    let Some(proxy) = through(stale) else { return };
    assert!(proxy.count(|act| matches!(act, Act::Stale(_))) > 10);
}

#[test]
fn a_store_that_answers_nothing_but_errors_is_named_within_bounds() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = Proxy::start(&bucket.server, |_, _, _| Act::Busy);
    let began = Instant::now();
    let error = bucket.machine_through(&proxy.url).fails(1, &["files"]);
    assert!(error.contains("s3://") && error.contains("source.json"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn every_server_notices_a_new_version_within_seconds_and_none_mixes() {
    let Some(bucket) = Bucket::new() else { return };
    let place = bucket.machine();
    let (broker, address) = topic(&place, 600);
    place.ok(&ingest(&address, &[]));
    place.ok(&["train"]);
    let (one, other) = (bucket.machine(), bucket.machine());
    let servers = [one.serve(&[]), other.serve(&[])];
    let rows = format!("[{}]", vec![r#"{"discounted_price": 300, "rating": 4.5}"#; 50].join(","));
    // The versions of all slices that a server answers from; each answer has one version.
    let versions = |server: &Running| -> Vec<u64> {
        (1..=3)
            .map(|slice| {
                let answer = server.post(&format!("/api/cluster_products_by_price_rating?model={slice}"), &rows).json();
                let versions: Vec<u64> =
                    answer.as_array().unwrap().iter().map(|row| row["version"].as_u64().unwrap()).collect();
                assert!(versions.iter().all(|version| *version == versions[0]), "{versions:?}");
                versions[0]
            })
            .collect()
    };
    for server in &servers {
        assert_eq!(versions(server), [1, 2, 3]);
    }
    place.ok(&["produce", "rows.csv", "--bootstrap-servers", &address]);
    place.ok(&ingest(&address, &[]));
    place.ok(&["train"]);
    let trained = Instant::now();
    for server in &servers {
        eventually("a server notices", || versions(server) == [4, 5, 6]);
    }
    // A server looks every five seconds.
    assert!(trained.elapsed() < Duration::from_secs(8), "{:?}", trained.elapsed());
    broker.interrupt();
}

/// Requests cost money and time: what has not changed is not requested again.
#[test]
fn what_has_not_changed_costs_few_requests() {
    let Some(bucket) = Bucket::new() else { return };
    bucket.machine().up(&[]).interrupt();
    let proxy = Proxy::start(&bucket.server, |_, _, _| Act::Pass);
    let place = bucket.machine_through(&proxy.url);
    let requests = |work: &dyn Fn()| {
        let before = proxy.count(|_| true);
        work();
        let done: Vec<String> = proxy.done.lock().unwrap()[before..].iter().map(|(_, text)| text.clone()).collect();
        // A lease is renewed as often as the machine is slow.
        let renewed = done.iter().filter(|text| text.starts_with("PUT ") && text.ends_with(".lock")).count();
        (done.len() - renewed, done)
    };
    let (trained, done) = requests(&|| drop(place.ok(&["train"])));
    assert!(trained <= 28, "{trained}: {done:#?}");
    let serve = place.serve(&["--drift-interval", "0"]);
    let status = || assert_eq!(serve.get("/api/status").status, 200);
    status();
    // The first status counts the records; the time stamps of a list have a resolution of a second.
    std::thread::sleep(Duration::from_secs(6));
    let (answered, done) = requests(&status);
    assert!(answered <= 3, "{answered}: {done:#?}");
    let (idle, done) = requests(&|| std::thread::sleep(Duration::from_secs(20)));
    assert!(idle <= 5, "{idle} in 20 s: {done:#?}");
}

#[test]
fn what_a_killed_one_held_is_taken_over_and_one_that_was_asleep_stops() {
    let Some(bucket) = Bucket::new() else { return };
    let (one, other, third) = (bucket.machine(), bucket.machine(), bucket.machine());
    let mut killed = one.up(&[]);
    killed.signal("-KILL");
    killed.wait();
    let began = Instant::now();
    let mut asleep = other.up(&[]);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    asleep.signal("-STOP");
    let awake = third.up(&[]);
    // It resumes with records that only its own broker has: none of them may be stored beside the other broker's records.
    asleep.signal("-CONT");
    one.write("more.csv", "product_id,discounted_price,rating\n1,300,4.5\n");
    one.ok(&["produce", "more.csv", "--bootstrap-servers", &asleep.broker()]);
    assert_eq!(asleep.wait().code(), Some(1));
    assert!(asleep.stderr().contains("another tercile feeds the store s3://"), "{}", asleep.stderr());
    awake.interrupt();
    holds(&one, 1465);
}

#[test]
fn a_service_that_knows_no_conditional_puts_is_refused() {
    let Some(bucket) = Bucket::new() else { return };
    let proxy = Proxy::start(&bucket.server, |_, _, _| Act::Unconditional);
    let error = bucket.machine_through(&proxy.url).fails(1, &["up", "--bind", "127.0.0.1:0"]);
    assert!(error.contains("begin a store at s3://") && error.contains("ignores If-None-Match"), "{error}");
}

#[test]
fn keys_that_are_made_on_many_machines_at_once_are_all_there() {
    let Some(bucket) = Bucket::new() else { return };
    let machines: Vec<Place> = (0..4).map(|_| bucket.machine()).collect();
    std::thread::scope(|scope| {
        for (i, machine) in machines.iter().enumerate() {
            scope.spawn(move || machine.ok(&["keys", "create", &format!("shop-{i}"), "--scope", "read"]));
        }
    });
    let keys = machines[0].ok(&["keys", "list"]);
    assert!((0..4).all(|i| keys.contains(&format!("shop-{i}"))), "{keys}");
}

#[test]
fn what_names_no_bucket_is_refused_in_one_line() {
    let Some(bucket) = Bucket::new() else { return };
    let place = bucket.machine();
    for url in ["s3://", "s3:///a/store"] {
        let error = place.fails(2, &["files", "--store", url]);
        assert!(error.contains("the URL names no bucket; expected s3://bucket/prefix"), "{error}");
    }
    let error = place.fails(1, &["up", "--bind", "127.0.0.1:0", "--store", "s3://no-such-bucket/a"]);
    assert!(error.contains("s3://no-such-bucket/a") && error.contains("create the bucket"), "{error}");
    // Commands that only read must not take it for an empty store.
    for command in [&["sql", "-c", "SELECT count(*) FROM products"][..], &["train"], &["verify", "price_rating"]] {
        let error = place.fails(1, &[command, &["--store", "s3://no-such-bucket/a"]].concat());
        assert!(error.contains("NoSuchBucket") && error.contains("create the bucket"), "{error}");
    }
}
