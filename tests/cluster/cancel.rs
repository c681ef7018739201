//! Queries on a cluster that are cancelled: the executors are free again soon, and files are as they were.

use std::time::{Duration, Instant};

use common::cluster::cluster;
use common::{Place, Running, eventually, within};

use crate::common;

/// Rows of the table that is joined with itself.
const ROWS: &str = "200000";
/// Joins of many results, of none, without an equality, and one whose rows are all counted in one poll.
const ENDLESS: [&str; 5] = [
    "SELECT a.product_id, b.product_id FROM t a JOIN t b ON a.rating = b.rating",
    "SELECT count(*) FROM t a JOIN t b ON a.rating = b.rating JOIN t c ON c.rating = b.rating",
    "SELECT count(*) FROM t a JOIN t b ON a.rating = b.rating AND length(concat(a.about_product, b.img_link)) < 0",
    "SELECT count(*) FROM t a JOIN t b ON length(concat(a.product_id, b.product_name)) < 0",
    "SELECT sum(length(a.product_id) * length(b.product_name) % 7) FROM t a CROSS JOIN t b",
];
/// Reads all rows.
const COUNT: &str = "SELECT count(*) AS n FROM t WHERE coalesce(length(about_product), 0) >= 0";
/// How long executors may be busy after a query was cancelled. The next query takes its usual time, too.
const FREE: Duration = Duration::from_secs(5);

/// Arguments that run SQL on a cluster.
fn sql<'a>(address: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&["sql", "--engine", address, "--table", "t=rows.parquet", "--format", "csv"], rest].concat()
}

/// A place with rows and a cluster.
fn start() -> (Place, Running, String, [Running; 2]) {
    let place = Place::new();
    place.ok(&["generate", ROWS, "--output", "rows.parquet"]);
    let (scheduler, address, executors) = cluster(&place);
    (place, scheduler, address, executors)
}

/// Counts the rows, which takes a part of a second where executors are free.
fn count(place: &Place, address: &str) -> Duration {
    let began = Instant::now();
    assert_eq!(place.ok(&sql(address, &["-c", COUNT])), format!("n\n{ROWS}\n"));
    began.elapsed()
}

/// Starts a query and waits until the scheduler has accepted so many.
fn begin(place: &Place, scheduler: &Running, rest: &[&str], address: &str, accepted: usize) -> Running {
    let running = place.start(&sql(address, rest));
    eventually("the query", || scheduler.stderr().matches(": accepted").count() == accepted);
    // Its tasks are at their joins by then.
    std::thread::sleep(Duration::from_secs(2));
    running
}

#[test]
fn executors_are_free_again_after_a_query_was_cancelled_timed_out_or_killed() {
    let (place, scheduler, address, _executors) = start();
    let usual = count(&place, &address);
    let mut accepted = 1;
    for (query, end) in ENDLESS.iter().zip(["-INT", "-KILL", "-TERM", "--timeout", "-KILL"]) {
        accepted += 1;
        match end {
            "--timeout" => {
                let ended = place.run(&sql(&address, &["--timeout", "3", "-c", query]));
                assert!(ended.code == Some(1) && ended.stderr.contains("stopped after 3s"), "{}", ended.stderr);
            }
            signal => {
                let mut running = begin(&place, &scheduler, &["-c", query], &address, accepted);
                running.signal(signal);
                running.wait();
            }
        }
        let ended = Instant::now();
        count(&place, &address);
        accepted += 1;
        let free = ended.elapsed();
        let again = count(&place, &address);
        accepted += 1;
        eprintln!("{end} {query}: free after {free:.1?}; the next query took {again:.1?}, usually {usual:.1?}");
        assert!(free < usual + FREE, "{end} {query}: {free:?}, usually {usual:?}\n{}", scheduler.stderr());
        assert!(again < usual + FREE, "{end} {query}: {again:?}, usually {usual:?}");
    }
    let said = scheduler.stderr();
    assert_eq!(said.matches("cancelled after").count(), ENDLESS.len(), "{said}");
    assert!(said.contains(": finished after") && said.contains("joined, for 1 tasks at a time"), "{said}");
}

#[test]
fn a_query_that_waits_for_another_says_so() {
    let (place, scheduler, address, _executors) = start();
    let mut first = begin(&place, &scheduler, &["-c", ENDLESS[1]], &address, 1);
    // Until the first query holds all slots with tasks that do not end, another one may run between its tasks.
    let (mut second, said) = (1..=10)
        .find_map(|_| {
            let mut second = place.start_command(place.command(&sql(&address, &["-c", COUNT])), "second");
            let mut said = None;
            within(Duration::from_secs(180), "a warning or the end", || {
                said = second.stderr().lines().find(|line| line.starts_with("warning: ")).map(str::to_owned);
                said.is_some() || second.child.try_wait().unwrap().is_some()
            });
            said.map(|said| (second, said))
        })
        .expect("a query that waits");
    assert!(said.contains("1 other query, which was accepted") && said.contains("start more executors"), "{said}");
    first.signal("-INT");
    assert_eq!(first.wait().code(), Some(130));
    assert!(second.wait().success(), "{}", second.stderr());
}

#[test]
fn a_file_is_as_it_was_until_a_copy_or_an_output_is_complete() {
    let (place, scheduler, address, _executors) = start();
    let (target, left) = (place.path("out/good.parquet"), || std::fs::read_dir(place.path("out")).unwrap().count());
    place.write("out/good.parquet", "good");
    let copy = format!("COPY ({}) TO 'out/good.parquet'", ENDLESS[0].replace(", b.product_id", ", b.rating"));
    let ways: [&[&str]; 2] = [&["-c", &copy], &["-f", "parquet", "-o", "out/good.parquet", "-c", ENDLESS[0]]];
    for (rest, signal) in ways.iter().zip(["-INT", "-TERM"]) {
        let before = scheduler.stderr().matches(": accepted").count();
        let arguments: Vec<&str> =
            sql(&address, rest).into_iter().filter(|text| !matches!(*text, "--format" | "csv")).collect();
        let mut running = place.start(&arguments);
        eventually("the query", || scheduler.stderr().matches(": accepted").count() > before);
        std::thread::sleep(Duration::from_secs(2));
        running.signal(signal);
        running.wait();
        assert_eq!(std::fs::read(&target).unwrap(), b"good");
        within(Duration::from_secs(10), "the end of what executors wrote", || left() == 1);
    }
    for rows in ["SELECT product_id FROM t LIMIT 10", "SELECT product_id FROM t WHERE product_id IS NULL"] {
        place.ok(&sql(&address, &["-c", &format!("COPY ({rows}) TO 'out/good.parquet'")]));
        let written =
            place.ok(&["sql", "--table", "w=out/good.parquet", "-f", "csv", "-c", "SELECT count(*) AS n FROM w"]);
        assert_eq!(written, if rows.contains("LIMIT") { "n\n10\n" } else { "n\n0\n" });
        assert_eq!(left(), 1);
    }
}

#[test]
fn an_executor_that_waits_for_its_scheduler_stops_at_the_first_signal() {
    let place = Place::new();
    for signal in ["-INT", "-TERM"] {
        let mut executor = place.start(&["executor", "--scheduler", "df://127.0.0.1:9", "--bind", "127.0.0.1:0"]);
        executor.said("waiting for the scheduler df://127.0.0.1:9");
        let asked = Instant::now();
        executor.signal(signal);
        assert_eq!(executor.wait().code(), Some(0), "{}", executor.stderr());
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
        assert!(!executor.stderr().contains("joined"), "{}", executor.stderr());
    }
}

#[test]
fn an_executor_that_was_there_first_joins_soon() {
    let place = Place::new();
    let mut scheduler = place.start(&["scheduler", "--bind", "127.0.0.1:0"]);
    let address = format!("df://{}", scheduler.line_with("df://"));
    scheduler.signal("-KILL");
    scheduler.wait();
    let executor = place.start(&["executor", "--scheduler", &address]);
    executor.said("waiting for the scheduler");
    let began = Instant::now();
    let _scheduler = place.start(&["scheduler", "--bind", address.trim_start_matches("df://")]);
    executor.said("joined the scheduler");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn errors_of_a_cluster_are_one_plain_line() {
    let (place, _scheduler, address, _executors) = start();
    let cannot = place.fails(1, &sql(&address, &["-c", "SELECT CAST(product_name AS INT) FROM t"]));
    assert!(cannot.contains("Cannot cast string"), "{cannot}");
    let limited = place.fails(2, &sql(&address, &["--memory-limit", "64MB", "-c", COUNT]));
    assert!(limited.contains("give it to tercile executor"), "{limited}");
    for said in [cannot, limited] {
        for debug in ["Error {", "Some(", "ArrowError(", "DataFusionError", "Job ", "Status {", "\\\""] {
            assert!(!said.contains(debug), "{said}");
        }
    }
}
