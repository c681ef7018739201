//! A cluster on separate hosts, which are network namespaces connected by a bridge, whose links are cut: connections are not
//! closed, and the last messages may be lost.
//!
//! Requires Linux, root, `ip` (iproute2) and `nsenter` (util-linux); otherwise the tests are skipped.

#![cfg(all(feature = "distributed", target_os = "linux"))]

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{Place, Running, eventually, within};
use serde_json::Value;

use crate::common;

/// Time limit for the first model in a dev build.
const TRAINING: Duration = Duration::from_secs(240);

/// Hosts in a network of this process.
struct Network {
    /// Prefix of all names; names of links have at most 15 characters.
    name: String,
    subnet: String,
    hosts: Vec<String>,
}

impl Network {
    /// `None` without the permission to create one.
    fn new(hosts: &[&str]) -> Option<Self> {
        // An earlier network is removed in the background.
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let id = std::process::id() + (NETWORKS.fetch_add(1, Ordering::Relaxed) << 16);
        let (name, subnet) = (format!("t{:x}", id & 0xf_ffff), format!("10.{}.{}", 200 + id / 256 % 50, id % 256));
        let network = Self { name, subnet, hosts: hosts.iter().map(|host| (*host).to_owned()).collect() };
        let bridge = network.bridge();
        if !ip(&["link", "add", &bridge, "type", "bridge"]) {
            return None;
        }
        must(&["address", "add", &format!("{}.1/24", network.subnet), "dev", &bridge]);
        must(&["link", "set", &bridge, "up"]);
        for (i, host) in network.hosts.iter().enumerate() {
            let (space, link) = (network.space(host), network.link(host));
            must(&["netns", "add", &space]);
            must(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &space]);
            must(&["link", "set", &link, "master", &bridge, "up"]);
            let address = format!("{}/24", network.address(i));
            for args in [
                &["address", "add", &address, "dev", "eth0"][..],
                &["link", "set", "eth0", "up"],
                &["link", "set", "lo", "up"],
            ] {
                must(&[&["-n", &space], args].concat());
            }
        }
        Some(network)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.name)
    }

    fn space(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn link(&self, host: &str) -> String {
        format!("{}{host}", self.name)
    }

    fn address(&self, host: usize) -> String {
        format!("{}.{}", self.subnet, host + 2)
    }

    fn number(&self, host: &str) -> usize {
        self.hosts.iter().position(|known| known == host).unwrap()
    }

    /// Starts a command on a host.
    fn start(&self, place: &Place, host: &str, args: &[&str]) -> Running {
        let space = format!("--net=/run/netns/{}", self.space(host));
        place.start_by(&["nsenter", &space], args)
    }

    fn cut(&self, host: &str) {
        must(&["link", "set", &self.link(host), "down"]);
    }

    fn mend(&self, host: &str) {
        must(&["link", "set", &self.link(host), "up"]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            ip(&["netns", "delete", &self.space(host)]);
        }
        for host in &self.hosts {
            ip(&["link", "delete", &self.link(host)]);
        }
        ip(&["link", "delete", &self.bridge()]);
    }
}

fn ip(args: &[&str]) -> bool {
    let status = Command::new("ip").args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn must(args: &[&str]) {
    assert!(ip(args), "ip {}", args.join(" "));
}

/// A scheduler and two executors, each on its own host.
struct Cluster {
    network: Network,
    address: String,
    _scheduler: Running,
    _executors: [Running; 2],
}

impl Cluster {
    fn start(place: &Place) -> Option<Self> {
        let network = Network::new(&["s", "a", "b"]);
        let Some(network) = network else {
            eprintln!("skipped: no right to make network namespaces, or no ip");
            return None;
        };
        let bind = |host: &str, port| format!("{}:{port}", network.address(network.number(host)));
        let mut scheduler = network.start(place, "s", &["scheduler", "--bind", &bind("s", 50050)]);
        let address = format!("df://{}", scheduler.line_with("df://"));
        let executors = ["a", "b"].map(|host| {
            let args = ["executor", "--scheduler", &address, "--bind", &bind(host, 0), "--threads", "1"];
            let mut executor = network.start(place, host, &args);
            executor.line_with("10.");
            executor
        });
        let cluster = Self { network, address, _scheduler: scheduler, _executors: executors };
        cluster.wait_for(2);
        Some(cluster)
    }

    /// Waits until the scheduler knows this number of executors.
    fn wait_for(&self, executors: usize) {
        let ready = format!("{}/readyz", self.address.replace("df://", "http://"));
        let said = format!("{executors} executors");
        eventually(&said, || {
            let answer = ureq::get(&ready).call();
            answer.is_ok_and(|mut answer| answer.body_mut().read_to_string().is_ok_and(|text| text.contains(&said)))
        });
    }
}

/// A store with many records, and a training on the cluster that has written its first model.
fn place() -> Place {
    let place = Place::new();
    place.ok(&["generate", "200000", "--format", "ndjson", "--output", "rows.ndjson"]);
    place.up(&["--data", "rows.ndjson", "--store", "store"]).interrupt();
    place
}

fn forget_models(place: &Place) {
    std::fs::remove_dir_all(place.path("store/models")).unwrap();
}

fn train(place: &Place, cluster: &Cluster) -> Running {
    let training = place.start(&["train", "--store", "store", "--engine", &cluster.address, "--json"]);
    within(TRAINING, "the first model", || place.path("store/models/price_rating/1.json").exists());
    training
}

/// Centroids of all models, rounded: sums on a cluster depend on the order of their terms.
fn centroids(models: &str) -> Vec<String> {
    let models: Value = serde_json::from_str(models).unwrap();
    let clusters =
        models.as_array().unwrap().iter().flat_map(|outcome| outcome["model"]["clusters"].as_array().unwrap());
    clusters.map(|c| format!("{} {:?}", c["size"], rounded(&c["centroid"]))).collect()
}

fn rounded(centroid: &Value) -> Vec<String> {
    centroid.as_object().unwrap().values().map(|value| format!("{:.6e}", value.as_f64().unwrap())).collect()
}

#[test]
fn an_executor_that_is_cut_off_costs_time_and_nothing_else() {
    let place = place();
    let Some(cluster) = Cluster::start(&place) else { return };
    forget_models(&place);
    let undisturbed = place.ok(&["train", "--store", "store", "--engine", &cluster.address, "--json"]);
    forget_models(&place);
    let mut training = train(&place, &cluster);
    cluster.network.cut("a");
    let cut = Instant::now();
    while training.child.try_wait().unwrap().is_none() {
        assert!(cut.elapsed() < 2 * TRAINING, "it still waits: {}", training.stderr());
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("the training went on for {:.1} s after the cut", cut.elapsed().as_secs_f64());
    assert!(training.wait().success(), "{}", training.stderr());
    let there = place.ok(&["train", "--store", "store", "--json"]);
    assert_eq!(centroids(&there), centroids(&undisturbed));
    // After reconnecting, the cluster works again.
    cluster.network.mend("a");
    cluster.wait_for(2);
    let rows = place.ok(&[
        "sql",
        "--store",
        "store",
        "--engine",
        &cluster.address,
        "--format",
        "csv",
        "-c",
        "SELECT count(*) FROM records",
    ]);
    assert!(rows.contains("200000"), "{rows}");
}

#[test]
fn with_the_links_of_all_executors_or_of_the_scheduler_cut_a_training_ends_in_time() {
    let place = place();
    let Some(cluster) = Cluster::start(&place) else { return };
    for links in [&["a", "b"][..], &["s"]] {
        forget_models(&place);
        let mut training = train(&place, &cluster);
        links.iter().for_each(|host| cluster.network.cut(host));
        let cut = Instant::now();
        while training.child.try_wait().unwrap().is_none() {
            assert!(cut.elapsed() < Duration::from_secs(40), "{links:?}: it still waits: {}", training.stderr());
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("{links:?}: it ended after {:.1} s", cut.elapsed().as_secs_f64());
        assert_eq!(training.wait().code(), Some(1));
        let said = training.stderr();
        assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
        assert_eq!(std::fs::read_dir(place.path("store/tmp")).unwrap().count(), 0, "nothing stays in tmp/");
        links.iter().for_each(|host| cluster.network.mend(host));
        cluster.wait_for(2);
    }
    // The same cluster can train again afterwards.
    place.ok(&["train", "--store", "store", "--engine", &cluster.address]);
}
