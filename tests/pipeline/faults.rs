//! Fault tolerance of ingest, tested with real processes and a real Kafka: kills, takeovers, full disks and gaps.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::stream::Stream;
use crate::common::{Place, Running, eventually, files, kafka};

/// A number from the environment: `.ci/full` uses larger numbers than `.ci/run`.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A random number that differs between runs and is printed to reproduce failures.
fn chance(what: &str, below: u64) -> u64 {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos();
    let number = u64::from(nanos / 1000) % below;
    eprintln!("{what}: {number}");
    number
}

#[test]
fn killed_again_and_again_it_stores_every_record_once() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "killed");
    let (kills, mut n) = (setting("TERCILE_TEST_KILLS", 5), 0);
    let each = setting("TERCILE_TEST_RECORDS", 1_000_000) / kills;
    let mut quickest = Duration::MAX;
    for _ in 0..kills {
        stream.fill(n, each, "4");
        n += each;
        let before = stream.parquet();
        let start = Instant::now();
        let worker = stream.ingest(&["--batch-rows", "3000"]);
        eventually("a first file", || stream.parquet() > before);
        quickest = quickest.min(start.elapsed());
        std::thread::sleep(Duration::from_millis(chance("milliseconds until the kill", 700)));
        worker.signal("-KILL");
    }
    // The minimum, because of other load on the machine: waiting for a group or a session would delay every start.
    assert!(quickest < Duration::from_secs(2), "the first file after a restart took {quickest:?} at best");
    stream.exact_after_kills(n);
}

/// Death at every step of publishing: strace is attached to a thread and kills the process when it enters the first of these
/// system calls.
#[test]
fn death_at_each_step_of_publishing_loses_nothing() {
    let Some(servers) = kafka() else { return };
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: strace is not here");
        return;
    }
    let stream = Stream::new(&servers, "steps");
    stream.fill(0, 5_000, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    let mut n = 5_000;
    // One thread opens the new file, writes it and syncs it. The other thread requests the topic id from the broker (which
    // writes to a pipe), lists the directory, links the file, syncs the directory, overwrites the mark and removes the
    // temporary name.
    for (name, calls) in [
        ("write-0", "openat"),
        ("write-0", "write"),
        ("write-0", "fsync"),
        ("publish-0", "write"),
        ("publish-0", "openat"),
        ("publish-0", "link,linkat"),
        ("publish-0", "fsync"),
        ("publish-0", "pwrite64"),
        ("publish-0", "unlink,unlinkat"),
    ] {
        let mut worker = stream.ingest(&["--batch-age", "1"]);
        let tasks = format!("/proc/{}/task", worker.child.id());
        let named = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let mut thread = None;
        eventually(name, || {
            let mut all = std::fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path());
            thread = all.find(named);
            thread.is_some()
        });
        let log = stream.place.path("strace.log");
        let mut strace = Command::new("strace")
            .args(["-p", thread.unwrap().file_name().unwrap().to_str().unwrap(), "-o", log.to_str().unwrap()])
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:signal=SIGKILL:when=1")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(strace.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        stream.fill(n, 1_000, "1");
        n += 1_000;
        assert_eq!(worker.wait().code(), None, "{calls} of {name} was never reached");
        strace.wait().unwrap();
        eprintln!("{}", std::fs::read_to_string(&log).unwrap().lines().rev().nth(1).unwrap_or("nothing"));
        stream.exact_after_kills(n);
    }
}

#[test]
fn a_failing_fsync_and_a_full_disk_are_waited_out() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "full");
    stream.fill(0, 3_000, "1");
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok() {
        // The first syncs belong to the store's own small files.
        let output = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=10+100"])
            .arg(env!("CARGO_BIN_EXE_tercile"))
            .args(stream.args(&["ingest", "--until-end"]))
            .current_dir(stream.place.dir.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stream.exact(3_000);
    }
    // A disk of 2 MB, if this machine allows mounting one.
    let small = stream.place.path("small");
    std::fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=2m", "none", small.to_str().unwrap()];
    if !Command::new("mount").args(mount).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: no small disk can be mounted here");
        return;
    }
    stream.place.ok(&["sql", "--store", "small/store", "-c", "SELECT 1"]);
    // Almost full: one page each for the source and the start, for the marks of both, and one more.
    let ballast = small.join("ballast");
    assert!(std::fs::write(&ballast, vec![7; 3_000_000]).is_err());
    let full = std::fs::metadata(&ballast).unwrap().len();
    std::fs::File::options().write(true).open(&ballast).unwrap().set_len(full - 5 * 4096).unwrap();
    let worker = stream.ingest(&["--store", "small/store", "--batch-age", "1"]);
    worker.said("trying again until it works");
    assert_eq!(files(&small.join("store/records")).iter().filter(|f| f.extension().is_some()).count(), 0);
    std::fs::remove_file(ballast).unwrap();
    worker.said("the store takes records again");
    assert_eq!(worker.interrupt().code, Some(0));
    let stored =
        stream.place.ok(&["sql", "--store", "small/store", "--format", "csv", "-c", "SELECT count(*) FROM records"]);
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    assert_eq!(stored.lines().nth(1), Some("3000"));
}

#[test]
fn workers_of_a_group_come_and_go_under_load() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "group");
    let group = ["--group", &stream.topic, "--batch-age", "1", "--batch-rows", "500", "--session-timeout", "6"];
    stream.fill(0, 1, "4");
    let n = 150_000;
    let filler = "x".repeat(150);
    let rows: String = (1..n).map(|i| format!("{{\"product_id\":\"{i}\",\"product_name\":\"{filler}\"}}\n")).collect();
    stream.place.write("load.ndjson", rows);
    let mut load = stream.place.start(&stream.args(&["produce", "load.ndjson", "--rate", "2000"]));
    let produced = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let produced = Arc::clone(&produced);
        move || {
            let code = load.wait_for(Duration::from_secs(600)).code();
            produced.store(true, Ordering::SeqCst);
            code
        }
    });
    let mut workers: Vec<Running> = (0..3).map(|_| stream.ingest(&group)).collect();
    eventually("a first file", || stream.parquet() > 0);
    // The longest time without a stored record: remaining workers continue while others join and leave. Time during which the
    // broker or the disk does not respond does not count, nor does what follows the last record: on a busy machine the rounds below
    // take longer than the load.
    let (records, over) = (stream.place.path("store/records"), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(Mutex::new(Instant::now()));
    let asking = std::thread::spawn({
        let (over, answered, topic) = (Arc::clone(&over), Arc::clone(&answered), stream.topic.clone());
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        let probe = std::fs::File::create(stream.place.path("probe")).unwrap();
        move || {
            while !over.load(Ordering::SeqCst) {
                (&probe).write_all(b"probe").unwrap();
                probe.sync_all().unwrap();
                if client.fetch_metadata(Some(&topic), Duration::from_secs(5)).is_ok() {
                    *answered.lock().unwrap() = Instant::now();
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let stalls = std::thread::spawn({
        let (over, produced) = (Arc::clone(&over), Arc::clone(&produced));
        move || {
            let (mut last, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
            while !over.load(Ordering::SeqCst) {
                let now = files(&records).len();
                let silent = answered.lock().unwrap().elapsed() > Duration::from_millis(700);
                if now != last || silent || produced.load(Ordering::SeqCst) {
                    (last, since) = (now, Instant::now());
                }
                longest = longest.max(since.elapsed());
                std::thread::sleep(Duration::from_millis(50));
            }
            longest
        }
    });
    for round in 0..setting("TERCILE_TEST_LEAVES", 30) {
        std::thread::sleep(Duration::from_millis(1500));
        let leaving = workers.remove(round as usize % workers.len());
        assert_eq!(leaving.interrupt().code, Some(0));
        workers.push(stream.ingest(&group));
    }
    over.store(true, Ordering::SeqCst);
    let longest = stalls.join().unwrap();
    asking.join().unwrap();
    eprintln!("longest time without a new file: {longest:?}");
    assert!(longest < Duration::from_secs(5), "nothing was stored for {longest:?}");
    assert_eq!(load.join().unwrap(), Some(0));
    // The remaining workers continue to the end.
    let start = Instant::now();
    while stream.place.records().0 != n {
        assert!(start.elapsed() < Duration::from_secs(180), "the last record did not come");
        std::thread::sleep(Duration::from_millis(500));
    }
    for worker in workers {
        assert_eq!(worker.interrupt().code, Some(0));
    }
    stream.exact(n as u64);
}

#[test]
fn who_holds_nothing_leaves_with_a_word() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "idle");
    stream.fill(0, 10, "1");
    let group = ["--group", &stream.topic, "--session-timeout", "60"];
    let reader = stream.ingest(&group);
    reader.said("reading partition 0");
    let began = Instant::now();
    // Once as a member, and once while it may still be joining.
    for pause in [true, false, false, true] {
        let idle = stream.ingest(&group);
        if pause {
            idle.said("reading no partitions");
        } else {
            // Before this line it may not handle signals yet.
            idle.said(&format!("reading {} ", stream.topic));
            std::thread::sleep(Duration::from_millis(chance("milliseconds until it leaves", 900)));
        }
        assert_eq!(idle.interrupt().code, Some(0));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "the group waited for a member that was gone");
    assert_eq!(reader.interrupt().code, Some(0));
}

#[test]
fn a_sleeper_publishes_nothing_when_it_wakes() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "sleeper");
    stream.fill(0, 5_000, "2");
    let group = ["--group", &stream.topic, "--session-timeout", "6", "--batch-age", "20"];
    // The worker is stopped after it has read everything and written nothing.
    let sleeper = stream.ingest(&group);
    sleeper.said("reading partitions");
    std::thread::sleep(Duration::from_secs(2));
    sleeper.signal("-STOP");
    let other = stream.ingest(&["--group", &stream.topic, "--session-timeout", "6", "--batch-age", "1"]);
    eventually("the takeover", || stream.place.records().0 == 5_000);
    let files_then = stream.parquet();
    sleeper.signal("-CONT");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(stream.parquet(), files_then, "{}", sleeper.stderr());
    stream.fill(5_000, 5_000, "2");
    eventually("the rest", || stream.place.records().0 == 10_000);
    assert_eq!(sleeper.interrupt().code, Some(0));
    assert_eq!(other.interrupt().code, Some(0));
    stream.exact(10_000);
}

/// The worker is stopped while its topic is deleted, recreated, and filled beyond its position.
#[test]
fn records_of_a_topic_made_again_are_not_stored() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "again");
    stream.fill(0, 1_000, "1");
    let mut worker = stream.ingest(&["--batch-age", "1"]);
    eventually("the first records", || stream.place.records().0 == 1_000);
    worker.signal("-STOP");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let deleted = admin.delete_topics(&[&stream.topic], &AdminOptions::new());
    tokio::runtime::Runtime::new().unwrap().block_on(deleted).unwrap()[0].as_ref().unwrap();
    // Kafka removes a topic name shortly after it confirms the deletion.
    std::thread::sleep(Duration::from_secs(1));
    stream.fill(5_000, 3_000, "1");
    worker.signal("-CONT");
    assert_eq!(worker.wait().code(), Some(3), "{}", worker.stderr());
    assert_eq!(stream.place.records(), (1_000, 1_000));
}

#[test]
fn two_writers_on_one_partition_make_one_chain() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "writers");
    stream.fill(0, 40_000, "1");
    let args = ["--batch-rows", "700", "--batch-age", "1"];
    let workers = [stream.ingest(&args), stream.ingest(&args)];
    eventually("all records", || stream.place.records().0 == 40_000);
    let said: String = workers.iter().map(|worker| worker.stderr()).collect();
    assert!(said.contains("another process stores partition 0"), "they never met: {said}");
    for worker in workers {
        assert_eq!(worker.interrupt().code, Some(0));
    }
    stream.exact(40_000);
}

#[test]
fn readers_writers_and_compaction_at_once_see_each_record_once() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "rolled");
    stream.fill(0, 30_000, "1");
    let worker = stream.ingest(&["--batch-rows", "200", "--batch-age", "1"]);
    let mut last = 0;
    let start = Instant::now();
    while last < 30_000 {
        assert!(start.elapsed() < Duration::from_secs(60));
        stream.place.ok(&["compact", "--grace", "0"]);
        let mut killed = stream.place.start(&["compact", "--grace", "0"]);
        std::thread::sleep(Duration::from_millis(chance("milliseconds until the kill", 40)));
        killed.signal("-KILL");
        killed.wait();
        let (all, different) = stream.place.records();
        assert_eq!(all, different);
        assert!(all >= last, "{all} after {last}");
        last = all;
    }
    assert_eq!(worker.interrupt().code, Some(0));
    stream.place.ok(&["compact", "--grace", "0"]);
    stream.place.ok(&["compact", "--grace", "0"]);
    assert_eq!(stream.parquet(), 1);
    let listed = stream.place.ok(&["files"]);
    assert_eq!(listed.lines().count(), 1);
    assert!(listed.trim().ends_with("00000000000000000000-00000000000000030000.parquet"), "{listed}");
    stream.exact_after_kills(30_000);
}

#[test]
fn kafkas_committed_offsets_are_only_advice() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "commits");
    for (round, offset) in [0, 700, 1_000_000].into_iter().enumerate() {
        stream.fill(1000 * round as u64, 1000, "1");
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &servers).set("group.id", "tercile").create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&stream.topic, 0, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
        stream.exact(1000 * (round as u64 + 1));
    }
}

#[tokio::test]
async fn retention_that_passed_our_position_halts_or_is_accepted() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "retention");
    stream.fill(0, 100, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    stream.fill(100, 100, "1");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&stream.topic, 0, Offset::Offset(150)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    let ended = stream.place.run(&stream.args(&["ingest", "--until-end"]));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("partition 0 of") && ended.stderr.contains("offset 100 to 149"), "{}", ended.stderr);
    assert_eq!(stream.place.records(), (100, 100));
    let ended = stream.place.run(&stream.args(&["ingest", "--until-end", "--accept-gap"]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("going on after them"), "{}", ended.stderr);
    stream.exact(150);
}

#[test]
fn a_message_of_64_mib_needs_little_more_than_itself() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "huge");
    stream.fill(0, 1, "1");
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &servers).set("message.max.bytes", "90000000").create().unwrap();
    let payload = format!("{{\"product_id\":\"1\",\"product_name\":\"{}\"}}", "x".repeat(64 << 20));
    producer.send(BaseRecord::<(), str>::to(&stream.topic).payload(&payload)).map_err(|(e, _)| e).unwrap();
    producer.flush(Duration::from_secs(60)).unwrap();
    let worker = stream.ingest(&["--batch-age", "1"]);
    eventually("the message", || stream.place.records().0 == 2);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 450_000, "{peak} kB at the peak");
    assert_eq!(worker.interrupt().code, Some(0));
}

#[test]
fn sigterm_under_load_is_quick() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "sigterm");
    stream.fill(0, 200_000, "2");
    let mut worker = stream.ingest(&["--batch-rows", "5000"]);
    eventually("some files", || stream.parquet() > 3);
    let start = Instant::now();
    worker.signal("-TERM");
    assert_eq!(worker.wait().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    stream.exact(200_000);
}

/// A broker that disappears and returns, and a leader change, simulated with the mock cluster.
#[test]
fn an_absent_broker_is_one_line_and_its_return_another() {
    let place = Place::new();
    let cluster = MockCluster::new(2).unwrap();
    cluster.create_topic("products", 1, 2).unwrap();
    cluster.partition_leader("products", 0, Some(1)).unwrap();
    let servers = cluster.bootstrap_servers();
    let send = |n: usize| {
        let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
        for _ in 0..n {
            producer.send(BaseRecord::<(), str>::to("products").payload("{}")).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    send(10);
    let worker = place.start(&["ingest", "--bootstrap-servers", &servers, "--batch-age", "1"]);
    eventually("the first records", || place.path("store/source.json").exists() && place.records().0 == 10);
    for broker in [1, 2] {
        cluster.broker_down(broker).unwrap();
    }
    worker.said("no broker answers at");
    std::thread::sleep(Duration::from_secs(setting("TERCILE_TEST_DOWN", 5)));
    for broker in [1, 2] {
        cluster.broker_up(broker).unwrap();
    }
    cluster.partition_leader("products", 0, Some(2)).unwrap();
    send(10);
    worker.said("is back");
    eventually("the rest", || place.records() == (20, 20));
    let stderr = worker.stderr();
    assert_eq!(stderr.matches("no broker answers").count(), 1, "{stderr}");
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert_eq!(worker.interrupt().code, Some(0));
}

#[test]
fn a_damaged_newest_file_is_found_and_read_again() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "damaged");
    stream.fill(0, 2_000, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end", "--batch-rows", "700"]));
    let newest = files(&stream.place.path("store/records")).into_iter().rfind(|f| f.extension().is_some()).unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    let doctor = stream.place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert_eq!(doctor.code, Some(1));
    assert!(doctor.stdout.contains("is damaged"), "{}", doctor.stdout);
    let ended = stream.place.run(&stream.args(&["ingest", "--until-end"]));
    assert!(ended.stderr.contains("set aside as"), "{}", ended.stderr);
    stream.exact(2_000);
}

#[test]
fn a_steady_stream_leaves_memory_and_descriptors_flat() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "steady");
    let (seconds, rate) = (setting("TERCILE_TEST_STEADY_SECONDS", 120), 1000);
    stream.fill(0, 1, "2");
    let filler = "x".repeat(150);
    let rows: String =
        (1..seconds * rate).map(|i| format!("{{\"product_id\":\"{i}\",\"product_name\":\"{filler}\"}}\n")).collect();
    stream.place.write("steady.ndjson", rows);
    let mut load = stream.place.start(&stream.args(&["produce", "steady.ndjson", "--rate", "1000"]));
    let worker = stream.ingest(&["--batch-age", "0.5", "--grace", "10"]);
    let measure = || {
        let proc = format!("/proc/{}", worker.child.id());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        (resident, std::fs::read_dir(format!("{proc}/fd")).unwrap().count())
    };
    // After the first compaction, buffers have their final size.
    std::thread::sleep(Duration::from_secs(seconds / 2));
    let before = measure();
    while load.child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(load.wait().code(), Some(0));
    let after = measure();
    eprintln!("resident kB and descriptors: {before:?}, then {after:?}");
    assert!(after.0 < before.0 + 16_384, "{before:?}, then {after:?}");
    assert!(after.1 <= before.1 + 4, "{before:?}, then {after:?}");
    assert_eq!(worker.interrupt().code, Some(0));
    stream.exact(seconds * rate);
    let counting = stream.place.ok(&["files"]).lines().count();
    assert!(counting < 200, "small files are rolled: {counting} are left");
}
