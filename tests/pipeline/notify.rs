//! Notifications: events of trainings, drift, ingest and store at receivers that work, fail, hang, redirect or come late.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::receiver::{Message, Receiver, Reply, free_address, listens};
use common::{Place, eventually, files, kafka, within};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use ring::hmac;
use serde_json::{Value, json};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring as provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::kafka::topic;
use crate::common;

/// A store with models of the sample.
fn trained() -> Place {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    place
}

/// The shipped SQL files with another price_rating, of which a training makes new models.
fn edit(place: &Place) {
    for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&file).unwrap();
        let edited = text.replace("FROM slices", "FROM slices WHERE rating > 4");
        place.write(&format!("sql/{name}"), if name.starts_with("30_") { edited } else { text });
    }
}

/// The files of the messages that no receiver took.
fn messages(place: &Place) -> Vec<PathBuf> {
    let dir = place.path("store/notifications");
    files(&dir).into_iter().filter(|file| !file.starts_with(dir.join("episodes"))).collect()
}

fn queued(place: &Place) -> usize {
    messages(place).len()
}

/// The id in the file of a message.
fn id(message: &Path) -> String {
    let text = std::fs::read(message).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["id"].as_str().unwrap().to_owned()
}

fn ids(messages: &[Message]) -> BTreeSet<String> {
    messages.iter().map(Message::id).collect()
}

#[test]
fn events_of_trainings_are_sent_and_signed() {
    let place = Place::new();
    let (one, other) = (Receiver::well(), Receiver::well());
    let secret = "a secret of the receiver";
    place.write("secret", format!("{secret}\n"));
    let up = place.up(&["--notify", &one.url(), "--notify", &other.url(), "--notify-secret-file", "secret"]);
    eventually("the end of the training at both", || {
        one.of("training.done").len() + other.of("training.done").len() == 2
    });
    let promoted = one.of("model.promoted");
    assert_eq!((promoted.len(), ids(&promoted).len()), (9, 9), "each slice of three segmentations");
    for message in one.taken() {
        let body = message.json();
        assert_eq!((message.path.as_str(), message.headers["content-type"].as_str()), ("/hook", "application/json"));
        assert_eq!((&body["id"], &body["event"]), (&json!(message.id()), &json!(message.event())));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let digits: String =
            hmac::sign(&key, &message.body).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(message.headers["tercile-signature"], format!("sha256={digits}"));
    }
    let first =
        promoted.iter().find(|one| one.json()["segmentation"] == "discount" && one.json()["slice"] == 3).unwrap();
    assert_eq!(first.json()["details"], json!({"version": 3, "before": null, "by": "training"}));
    let done = one.of("training.done")[0].json();
    assert_eq!((&done["state"], &done["segmentation"]), (&json!("firing"), &json!(null)));
    assert_eq!(done["details"]["models"].as_array().unwrap().len(), 9);
    assert!(
        done["words"]["en"].as_str().unwrap().ends_with("9 new models, 0 candidates, 0 slices without a new model"),
        "{done}"
    );

    // Changes of what serves, and metrics.
    assert_eq!(up.post("/api/train", "").status, 202);
    eventually("the second training", || one.of("training.done").len() == 2);
    assert_eq!(one.of("model.promoted").len(), 9, "the same records, the same models");
    eventually("nothing is pending", || up.get("/metrics").text.contains("\ntercile_notifications_pending 0\n"));
    let metrics = up.get("/metrics").text;
    for line in [
        "tercile_notifications_total{event=\"model.promoted\",result=\"sent\"} 18",
        "tercile_notifications_total{event=\"drift\",result=\"dropped\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    eventually("nothing is left", || queued(&place) == 0);
    assert_eq!(up.interrupt().code, Some(0));
    // Nothing of the secret or of the URLs is in the store.
    for file in files(&place.path("store")) {
        let bytes = std::fs::read(&file).unwrap();
        let has = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(!has(secret) && !has(&one.address.to_string()), "{}", file.display());
    }

    // A command waits for its own messages. Alertmanager gets alerts.
    let alerts = Receiver::well();
    let url = format!("http://{}", alerts.address);
    place.ok(&["train", "--notify", &url, "--notify-format", "alertmanager"]);
    let done = alerts.of("training.done");
    assert_eq!((done.len(), done[0].path.as_str()), (1, "/api/v2/alerts"));
    let alert = &done[0].json()[0];
    assert_eq!(
        alert["labels"],
        json!({"alertname": "tercile.training.done", "event": "training.done", "severity": "info"})
    );
    assert!(alert["annotations"]["summary"].as_str().unwrap().contains("0 new models"), "{alert}");
    assert_eq!(queued(&place), 0);
}

/// The files of two messages that a killed server left, oldest first.
fn two_unsent(place: &Place, url: &str) -> (PathBuf, PathBuf) {
    let mut serve = place.serve(&["--notify", url]);
    for job in 1..=2 {
        assert_eq!(serve.post("/api/train", "").status, 202);
        eventually("its end", || serve.get(&format!("/api/train/{job}")).json()["state"] == "done");
    }
    eventually("two messages in the queue", || queued(place) == 2);
    serve.signal("-KILL");
    serve.wait();
    let mut left = messages(place);
    left.sort();
    assert_eq!(left.len(), 2);
    (left.remove(0), left.remove(0))
}

#[test]
fn messages_survive_a_kill_and_a_receiver_that_fails_half_of_the_time() {
    let place = trained();
    // The receiver does not exist yet.
    let address = free_address();
    let url = format!("http://{address}/hook");
    two_unsent(&place, &url);

    assert!(!listens(address));
    let receiver = Receiver::at(address, None, |n| match n % 4 {
        0 => Reply::Status(500),
        2 => Reply::Close,
        _ => Reply::Status(200),
    });
    let serve = place.serve(&["--notify", &url]);
    eventually("the messages", || receiver.taken().len() >= 2 && queued(&place) == 0);
    let taken = receiver.taken();
    assert_eq!((taken.len(), ids(&taken).len()), (2, 2));
    assert_eq!(receiver.of("training.done").len(), 2);
    let log = serve.stderr();
    assert!(log.contains("did not take the notification") && log.contains("takes notifications again"), "{log}");
}

#[test]
fn two_servers_on_one_store_send_each_message_once() {
    let place = trained();
    let receiver = Receiver::new(|n| if n % 2 == 0 { Reply::Status(503) } else { Reply::Status(200) });
    let (one, other) = (place.serve(&["--notify", &receiver.url()]), place.serve(&["--notify", &receiver.url()]));
    for serve in [&one, &other] {
        assert_eq!(serve.post("/api/train", "").status, 202);
        eventually("its end", || serve.get("/api/train/1").json()["state"] == "done");
    }
    eventually("both", || receiver.of("training.done").len() >= 2 && queued(&place) == 0);
    let taken = receiver.taken();
    assert_eq!((taken.len(), ids(&taken).len()), (2, 2));
    // The other one takes over.
    drop(one);
    assert_eq!(other.post("/api/train", "").status, 202);
    eventually("the third", || receiver.taken().len() == 3);
}

#[test]
fn a_receiver_that_hangs_or_redirects_delays_nothing() {
    let place = trained();
    let elsewhere = Receiver::well();
    let target = elsewhere.url();
    let (hangs, redirects, fails) = (
        Receiver::new(|_| Reply::Hang),
        Receiver::new(move |_| Reply::Redirect(target.clone())),
        Receiver::new(|_| Reply::Status(500)),
    );
    let urls: Vec<String> = [&hangs, &redirects, &fails].iter().map(|receiver| receiver.url()).collect();
    let serve = place.serve(&["--notify", &urls.join(",")]);
    assert_eq!(serve.post("/api/train", "").status, 202);
    eventually("all were asked", || [&hangs, &redirects, &fails].iter().all(|receiver| receiver.asked() > 0));
    let start = Instant::now();
    for _ in 0..200 {
        let answer =
            serve.post("/api/cluster_products_by_price_rating", r#"[{"discounted_price": 300, "rating": 4.5}]"#);
        assert_eq!(answer.status, 200);
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    eventually("a retry", || fails.asked() >= 3 && redirects.asked() >= 2);
    assert_eq!((elsewhere.asked(), queued(&place)), (0, 3));
    assert!(serve.stderr().contains("redirects are not followed"), "{}", serve.stderr());
    fails.now(|_| Reply::Status(202));
    eventually("it works again", || fails.taken().len() == 1 && queued(&place) == 2);
    let start = Instant::now();
    assert_eq!(serve.interrupt().code, Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_lost_file_of_the_store_is_told_and_so_is_its_return() {
    let place = trained();
    let receiver = Receiver::well();
    let args = ["--notify", &receiver.url()];
    let serve = place.serve(&args);
    let lost = files(&place.path("store/records")).into_iter().find(|file| file.extension().is_some()).unwrap();
    let aside = place.path("lost.parquet");
    std::fs::rename(&lost, &aside).unwrap();
    eventually("the loss", || receiver.of("store.error").len() == 1);
    drop(serve);
    // A restart does not tell it again.
    let serve = place.serve(&args);
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(receiver.of("store.error").len(), 1);
    std::fs::rename(&aside, &lost).unwrap();
    eventually("the return", || receiver.of("store.error").len() == 2);
    let told = receiver.of("store.error");
    assert_eq!((told[0].state().as_str(), told[1].state().as_str()), ("firing", "resolved"));
    assert_eq!(told[0].id(), told[1].id());
    assert!(told[0].json()["words"]["en"].as_str().unwrap().contains("are missing"), "{}", told[0].json());
    drop(serve);
}

#[test]
fn a_candidate_is_told_and_so_is_the_decision() {
    let place = trained();
    edit(&place);
    let receiver = Receiver::well();
    let url = receiver.url();
    for _ in 0..2 {
        place.ok(&["train", "--promote", "manual", "--notify", &url]);
        let held = receiver.of("model.held_back");
        assert_eq!((held.len(), ids(&held).len()), (3, 3), "each slice once, however often it is trained");
        assert!(receiver.of("model.promoted").is_empty());
    }
    let of_slice = |slice: u8| {
        let held = receiver.of("model.held_back").into_iter();
        held.filter(|one| one.json()["slice"] == slice).collect::<Vec<Message>>()
    };
    let body = of_slice(3)[0].json();
    assert_eq!((&body["segmentation"], &body["details"]["version"]), (&json!("price_rating"), &json!(6)));
    assert!(
        body["words"]["en"].as_str().unwrap().starts_with("version 6 of price_rating does not serve slice 3 yet: ")
    );

    let serve = place.serve(&["--notify", &url]);
    assert_eq!(serve.post("/api/segments/price_rating/candidates/3/promote", "").status, 200);
    assert_eq!(serve.post("/api/segments/price_rating/candidates/2/reject", "").status, 200);
    eventually("both decisions", || of_slice(3).len() == 2 && of_slice(2).len() == 2);
    for slice in [2, 3] {
        let told = of_slice(slice);
        assert_eq!((told[1].state(), told[0].id()), ("resolved".to_owned(), told[1].id()));
    }
    eventually("the promotion", || receiver.of("model.promoted").len() == 1);
    let promoted = receiver.of("model.promoted")[0].json();
    assert_eq!(promoted["details"], json!({"version": 6, "before": 3, "by": "promotion"}));
}

#[test]
fn decisions_on_the_command_line_are_told() {
    let place = trained();
    edit(&place);
    let receiver = Receiver::well();
    let url = receiver.url();
    place.ok(&["train", "--promote", "manual", "--notify", &url]);
    let doctor = place.run(&["doctor"]).stdout;
    assert!(doctor.contains("3 candidates wait for promote or reject, see tercile models candidates"), "{doctor}");
    assert!(!doctor.contains("notifications"), "{doctor}");
    place.ok(&["models", "promote", "price_rating@3", "--notify", &url]);
    place.ok(&["models", "reject", "price_rating@2", "--notify", &url]);
    let ended: Vec<(Value, Value)> = receiver
        .of("model.held_back")
        .iter()
        .filter(|one| one.state() == "resolved")
        .map(|one| (one.json()["slice"].clone(), one.json()["words"]["en"].clone()))
        .collect();
    assert_eq!(ended, [(json!(3), json!("it was promoted")), (json!(2), json!("it was rejected"))]);
    for (command, version) in [("rollback", "3"), ("pin", "6"), ("pin", "6"), ("unpin", "6")] {
        place.ok(&["models", command, "price_rating", version, "--notify", &url]);
    }
    let promoted: Vec<Value> = receiver.of("model.promoted").iter().map(|one| one.json()["details"].clone()).collect();
    // Pinning the version that already serves sends no event.
    assert_eq!(
        promoted,
        [
            json!({"version": 6, "before": 3, "by": "promotion"}),
            json!({"version": 3, "before": 6, "by": "rollback"}),
            json!({"version": 6, "before": 3, "by": "pin"}),
        ]
    );
    // A change that fails is no event, and one whose receiver is gone is made.
    place.fails(1, &["models", "promote", "price_rating@3", "--notify", &url]);
    let gone = format!("http://{}/hook", free_address());
    let made = place.run(&["models", "rollback", "price_rating", "3", "--notify", &gone]);
    assert_eq!(made.code, Some(0));
    assert!(made.stderr.contains("1 notification not taken within 10 s"), "{}", made.stderr);
    assert!(place.run(&["doctor"]).stdout.contains("1 notification not taken by a receiver, the oldest since "));
    assert_eq!(receiver.of("model.promoted").len(), 3);
}

#[test]
fn a_message_that_nobody_takes_within_a_day_is_dropped() {
    let place = trained();
    let address = free_address();
    let url = format!("http://{address}/hook");
    let (first, second) = two_unsent(&place, &url);
    let age = |file: &Path, hours: i64| {
        let name = file.file_name().unwrap().to_str().unwrap();
        let (made, rest) = name.split_once('-').unwrap();
        let older = made.parse::<i64>().unwrap() - hours * 3_600_000;
        std::fs::rename(file, file.with_file_name(format!("{older:013}-{rest}"))).unwrap();
    };
    let sent = id(&second);
    let since = serde_json::from_slice::<Value>(&std::fs::read(&first).unwrap()).unwrap()["since"].clone();
    age(&first, 25);
    age(&second, 23);
    let doctor = place.run(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(
        doctor.stdout.contains("MEND  notifications  2 notifications not taken by a receiver"),
        "{}",
        doctor.stdout
    );
    let receiver = Receiver::at(address, None, |_| Reply::Status(200));
    let serve = place.serve(&["--notify", &url]);
    eventually("an empty queue", || queued(&place) == 0);
    let taken = receiver.taken();
    assert_eq!(ids(&taken).into_iter().collect::<Vec<_>>(), [sent]);
    let metrics = serve.get("/metrics").text;
    for (result, n) in [("dropped", 1), ("sent", 1)] {
        let line = format!("tercile_notifications_total{{event=\"training.done\",result=\"{result}\"}} {n}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let log = serve.stderr();
    let dropped = format!("the notification training.done of {} is dropped: ", since.as_str().unwrap());
    assert!(log.contains(&dropped), "{log}");
}

#[test]
fn a_test_message_says_the_result_of_each_receiver() {
    let place = Place::new();
    let (well, fails) = (Receiver::well(), Receiver::new(|_| Reply::Status(404)));
    let gone = format!("http://{}/token-of-the-receiver", free_address());
    let ended = place.run(&["notify", "--test", "--notify", &well.url(), "--notify", &fails.url(), "--notify", &gone]);
    assert_eq!(ended.code, Some(1));
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].starts_with(&format!("ok    http://{}/…  status 204 in ", well.address)), "{}", ended.stdout);
    assert!(lines[1].starts_with(&format!("FAIL  http://{}/…  it answered 404", fails.address)), "{}", ended.stdout);
    assert!(lines[2].contains("cannot reach it"), "{}", ended.stdout);
    assert!(!(ended.stdout + &ended.stderr).contains("token-of-the-receiver"));
    assert_eq!(well.taken()[0].event(), "test");
    assert!(!place.path("store").exists());
    // The configuration file names them, too.
    place.write("tercile.toml", format!("notify = [\"{}\"]\n", well.url()));
    place.ok(&["notify", "--test"]);
    let wrong = place.run(&["notify", "--test", "--notify", "hooks.example"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    let error = place.fails(1, &["notify", "--test", "--notify-secret-file", "none"]);
    assert!(error.contains("cannot read the secret none") && error.contains("--notify-secret-file"), "{error}");
}

#[test]
fn certificates_are_checked_with_the_roots_of_the_system() {
    let mut place = Place::new();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let receiver = Receiver::at("127.0.0.1:0".parse().unwrap(), Some(Arc::new(config)), |_| Reply::Status(200));
    let url = format!("https://localhost:{}/hook", receiver.address.port());
    let args = ["notify", "--test", "--notify", &url];
    let unknown = place.run(&args);
    assert_eq!((unknown.code, receiver.taken().len()), (Some(1), 0), "{}", unknown.stdout);
    assert!(unknown.stdout.contains("cannot reach it"), "{}", unknown.stdout);
    let roots = place.write("roots.pem", cert.pem());
    place.settings.push(("SSL_CERT_FILE".to_owned(), roots.display().to_string()));
    place.ok(&args);
    assert_eq!(receiver.taken().len(), 1);
}

/// Rows of products; each tenth price is multiplied.
fn rows(from: usize, to: usize, times: usize) -> String {
    let row = |i: usize| {
        let times = if i.is_multiple_of(10) { times } else { 1 };
        let row = json!({
            "product_id": i.to_string(), "discounted_price": format!("₹{}", (i * 7919 % 9973 + 1) * times),
            "rating": format!("{}.{}", 3 + i * 13 % 2, i * 31 % 10), "rating_count": (i * 5471 % 1013).to_string(),
            "discount_percentage": format!("{}%", i * 37 % 97),
        });
        row.to_string() + "\n"
    };
    (from..to).map(row).collect()
}

#[test]
fn a_faulty_feed_is_told_from_the_topic_to_a_webhook() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("feed"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    let produce = |rows: &str| {
        place.write("rows.ndjson", rows);
        place.ok(&[&["produce", "rows.ndjson", "--partitions", "2"][..], &to].concat());
    };
    produce(&rows(0, 5_000, 1));
    let receiver = Receiver::new(|n| if n % 2 == 0 { Reply::Status(500) } else { Reply::Status(200) });
    let more = ["--notify", &receiver.url(), "--drift-interval", "1", "--batch-age", "1", "--retrain-every", "1d"];
    let all = [&to[..], &more].concat();
    let up = place.up(&all);
    eventually("the training", || receiver.of("training.done").len() == 1);
    produce(&rows(5_000, 8_000, 1));
    std::thread::sleep(Duration::from_secs(4));
    assert!(receiver.of("drift").is_empty(), "the same distribution");

    produce(&rows(8_000, 11_000, 1));
    // Prices in paise and more: a tenth of what arrives.
    let sent = Instant::now();
    produce(&rows(11_000, 40_000, 1_000));
    within(Duration::from_secs(60), "the drift", || !receiver.of("drift").is_empty());
    eprintln!("measured: {:?} from the topic to the webhook", receiver.of("drift")[0].at - sent);
    let of_prices = || {
        let drifts = receiver.of("drift").into_iter();
        drifts.filter(|one| one.json()["segmentation"] == "price_rating").collect::<Vec<Message>>()
    };
    let drift = of_prices()[0].json();
    assert_eq!((&drift["state"], &drift["slice"]), (&json!("firing"), &json!(3)));
    let words = drift["words"]["en"].as_str().unwrap();
    assert!(words.contains("discounted_price") && words.contains("unlike those of the training"), "{words}");
    assert_eq!((&drift["details"]["state"], &drift["details"]["version"]), (&json!("drifting"), &json!(3)));
    assert!(place.run(&["drift", "price_rating", "--fail"]).code == Some(5));

    // A kill and a restart tell nothing twice; a new model ends it.
    up.signal("-KILL");
    drop(up);
    let up = place.up(&all);
    std::thread::sleep(Duration::from_secs(4));
    let begun: Vec<Message> = of_prices().into_iter().filter(|one| one.state() == "firing").collect();
    assert_eq!(begun.len(), 1);
    // The restart trained on all records.
    eventually("its end", || of_prices().iter().any(|one| one.state() == "resolved"));
    let ended = of_prices().pop().unwrap();
    assert_eq!(ended.id(), begun[0].id());
    assert!(ended.json()["words"]["en"].as_str().unwrap().starts_with("version "), "{}", ended.json());
    // A rollback is told, too.
    assert_eq!(up.post("/api/segments/price_rating/rollback/3", "").status, 200);
    let by_rollback = |message: &Message| message.json()["details"]["by"] == "rollback";
    eventually("the rollback", || receiver.of("model.promoted").iter().any(by_rollback));
    let rollback = receiver.of("model.promoted").into_iter().find(by_rollback).unwrap().json();
    assert_eq!((&rollback["slice"], &rollback["details"]["version"]), (&json!(3), &json!(3)));
    let mut events: BTreeMap<String, usize> = BTreeMap::new();
    for message in receiver.taken() {
        *events.entry(format!("{} {}", message.event(), message.id())).or_default() += 1;
    }
    assert!(events.values().all(|times| *times <= 2), "{events:?}");
    drop(up);
}

#[test]
fn unreadable_records_are_told_when_an_ingest_ends() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("unreadable"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    place.write("rows.ndjson", rows(0, 500, 1));
    place.ok(&[&["produce", "rows.ndjson"][..], &to].concat());
    let receiver = Receiver::well();
    let url = receiver.url();
    let ingest = [&["ingest", "--until-end", "--notify", &url][..], &to].concat();
    place.ok(&ingest);
    assert!(receiver.taken().is_empty());
    send_garbage(&servers, &topic);
    place.ok(&ingest);
    let told = receiver.of("ingest.unreadable");
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].json()["details"], json!({"unreadable": 3, "stored": 3}));
    // Readable records end it.
    place.write("rows.ndjson", rows(500, 900, 1));
    place.ok(&[&["produce", "rows.ndjson"][..], &to].concat());
    place.ok(&ingest);
    let told = receiver.of("ingest.unreadable");
    assert_eq!((told.len(), told[1].state()), (2, "resolved".to_owned()));
    assert_eq!(told[0].id(), told[1].id());
}

/// Deletes the records of partition 0 before this offset.
fn delete_records(servers: &str, topic: &str, before: i64) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    let admin: AdminClient<DefaultClientContext> =
        rdkafka::ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(topic, 0, rdkafka::Offset::Offset(before)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
}

fn send_garbage(servers: &str, topic: &str) {
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    let producer: BaseProducer = rdkafka::ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    for garbage in ["no json", "{\"half\":", "[1]"] {
        producer.send(BaseRecord::<(), str>::to(topic).payload(garbage)).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_gap_is_told_and_its_end_too() {
    let Some(servers) = kafka() else { return };
    let (place, topic) = (Place::new(), topic("gap"));
    let to = ["--bootstrap-servers", &servers, "--topic", &topic];
    let produce = |from: usize| {
        place.write("rows.ndjson", rows(from, from + 100, 1));
        place.ok(&[&["produce", "rows.ndjson"][..], &to].concat());
    };
    let receiver = Receiver::well();
    let url = receiver.url();
    let ingest = [&["ingest", "--until-end", "--notify", &url][..], &to].concat();
    produce(0);
    place.ok(&ingest);
    produce(100);
    delete_records(&servers, &topic, 150);
    for _ in 0..2 {
        assert_eq!(place.run(&ingest).code, Some(4));
        let told = receiver.of("ingest.gap");
        assert_eq!(told.len(), 1, "a second run tells nothing new");
        let details: Value = told[0].json()["details"].clone();
        assert_eq!(
            (&details["partition"], &details["expected"], &details["found"]),
            (&json!(0), &json!(100), &json!(150))
        );
        assert_eq!(details["lost"], 50);
    }
    place.ok(&[&ingest[..], &["--accept-gap"]].concat());
    let told = receiver.of("ingest.gap");
    assert_eq!((told.len(), told[1].state()), (2, "resolved".to_owned()));
    assert_eq!(told[0].id(), told[1].id());
}
