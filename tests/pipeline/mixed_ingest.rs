//! An `ingest` without `--group` beside a group, and halted partitions: real processes that are killed, on a real Kafka.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::common::stream::Stream;
use crate::common::{Running, eventually, files, kafka};

/// Warning of a worker about a partition that another process stores, too.
const OVERTAKEN: &str = "another process stores partition";

/// The newest file of each partition.
fn newest(stream: &Stream) -> BTreeMap<PathBuf, PathBuf> {
    let parquet = files(&stream.place.path("store/records")).into_iter().filter(|file| file.extension().is_some());
    parquet.map(|file| (file.parent().unwrap().to_owned(), file)).collect()
}

#[test]
fn a_group_stores_every_partition_soon_after_a_lone_ingest_was_killed() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "beside");
    stream.fill(0, 100, "3");
    let n = 60_000;
    let rows: String = (100..n).map(|i| format!("{{\"product_id\":\"{i}\"}}\n")).collect();
    stream.place.write("load.ndjson", rows);
    let mut load = stream.place.start(&stream.args(&["produce", "load.ndjson", "--rate", "600"]));
    // The session timeout has its default: no process may wait for it.
    let group = ["--group", &stream.topic, "-v"];
    let start = |name: &str, args: &[&str]| {
        stream.place.start_command(stream.place.command(&stream.args(&[&["ingest"], args].concat())), name)
    };
    let workers: Vec<Running> = ["one", "two"].map(|name| start(name, &group)).into();
    eventually("both to read", || {
        let reading = |worker: &Running| worker.stderr().lines().any(|line| line.contains("reading partition"));
        workers.iter().all(reading) && newest(&stream).len() == 3
    });
    let warned = || workers.iter().map(|worker| worker.stderr().matches(OVERTAKEN).count()).sum::<usize>();
    for round in 0..2 {
        let lone = stream.ingest(&["--batch-age", "0.2"]);
        eventually("the workers to be overtaken", || {
            let overtaken = |worker: &Running| worker.stderr().matches("stored partition").count();
            warned() == 3 && workers.iter().map(overtaken).sum::<usize>() >= 3 * (round + 1)
        });
        let joined = || workers.iter().map(|w| w.stderr().matches("reading no partitions").count()).sum::<usize>();
        let joined_before = joined();
        lone.signal("-KILL");
        let (killed, before) = (Instant::now(), newest(&stream));
        drop(lone);
        eventually("a new file in each partition", || {
            newest(&stream).iter().all(|(partition, file)| before[partition] != *file)
        });
        let took = killed.elapsed();
        eprintln!("after {took:?} each partition was stored further");
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(joined(), joined_before, "the group rebalanced");
        assert_eq!(warned(), 3, "one warning for each partition");
    }
    load.signal("-INT");
    load.wait();
    let said = load.stderr();
    for worker in workers {
        assert_eq!(worker.interrupt().code, Some(0));
    }
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    let (all, different) = stream.place.records();
    assert_eq!(all, different, "{said}");
    assert_eq!(stream.place.number("SELECT count(DISTINCT product_id) FROM records"), all);
    stream.exact_after_kills(u64::try_from(all).unwrap());
}

/// A gap in the only partition of a group member: the member reports it once and continues after an ingest without the group has
/// passed it.
#[tokio::test]
async fn a_worker_whose_only_partition_halted_goes_on_once_it_is_free() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "halted");
    stream.fill(0, 100, "1");
    stream.place.ok(&stream.args(&["ingest", "--until-end"]));
    stream.fill(100, 100, "1");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&stream.topic, 0, Offset::Offset(150)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    let args = stream.args(&["ingest", "--group", &stream.topic, "--batch-age", "0.2"]);
    let worker = stream.place.start_command(stream.place.command(&args), "grouped");
    let reason = worker.said("the records from offset 100 to 149 were gone before they could be read; ");
    let another = reason.split_once("halts; it goes on by itself once another `tercile ingest ").map(|(_, rest)| rest);
    assert!(
        another.is_some_and(|rest| rest.contains(&stream.topic) && rest.contains("` with --accept-gap")),
        "{reason}"
    );
    let ended = stream.place.run(&stream.args(&["ingest", "--until-end", "--accept-gap"]));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    worker.said("goes on at offset 200: another process stored records behind the gap");
    stream.fill(200, 100, "1");
    eventually("the rest, by the worker", || stream.place.records() == (250, 250));
    let ended = worker.interrupt();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("halts").count(), 1, "{}", ended.stderr);
    stream.exact(250);
}

/// A session begins anew while the disk refuses: that is waited out, as it is when a file is written.
#[tokio::test]
async fn a_topic_that_grows_while_the_store_cannot_be_read_is_waited_for() {
    let Some(servers) = kafka() else { return };
    let stream = Stream::new(&servers, "grows");
    stream.fill(0, 100, "1");
    let worker = stream.ingest(&["--batch-age", "0.2", "--upkeep", "1"]);
    eventually("the first records", || stream.parquet() > 0);
    // The directory of the partition that is to come is a file.
    let partition = stream.place.path("store/records").join(&stream.topic).join("1");
    std::fs::write(&partition, "").unwrap();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &servers).create().unwrap();
    let grown = admin.create_partitions([&NewPartitions::new(&stream.topic, 2)], &AdminOptions::new()).await.unwrap();
    assert!(grown[0].is_ok(), "{grown:?}");
    worker.said("reading again from where the store ends");
    std::fs::remove_file(&partition).unwrap();
    stream.fill(100, 100, "2");
    eventually("all records", || stream.place.records() == (200, 200));
    assert_eq!(worker.interrupt().code, Some(0));
    stream.exact(200);
}
