//! Runs the commands of `docs/another-shop.md` in order, and tests `tercile init`.

use std::io::Write as _;
use std::process::Stdio;

use common::Place;

use crate::common;

/// The fenced blocks of a page with a mark `<!-- … -->` on the previous line: mark and content, in order.
pub fn blocks(page: &str) -> Vec<(String, String)> {
    let lines: Vec<&str> = page.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(mark) = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        assert!(lines[i + 1].starts_with("```"), "line {}", i + 2);
        let content: Vec<&str> = lines[i + 2..].iter().take_while(|line| **line != "```").copied().collect();
        found.push((mark.to_owned(), content.join("\n") + "\n"));
    }
    found
}

/// Splits a command into words like a shell, including single quotes.
pub fn words(command: &str) -> Vec<String> {
    command
        .trim()
        .split('\'')
        .enumerate()
        .flat_map(|(i, part)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

#[test]
fn the_page_is_true() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/another-shop.md")).unwrap();
    let place = Place::new();
    let mut served = None;
    let mut said = Vec::new();
    for (mark, content) in blocks(&page) {
        if let Some(file) = mark.strip_prefix("file: ") {
            place.write(file, content);
        } else if mark == "run" {
            let words = words(&content);
            let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
            said.push(place.ok(&args));
        } else {
            let up = page.lines().find_map(|line| line.strip_prefix("tercile up ")).unwrap();
            let running = served.get_or_insert_with(|| place.up(&up.split_whitespace().collect::<Vec<_>>()));
            let words = words(&content);
            let body = &words[words.iter().position(|word| word == "-d").unwrap() + 1];
            let answer = running.post("/api/segments/loyalty/predict", body).json();
            assert_eq!(answer[0]["description"], "Big Spender, Devoted");
            assert_eq!(answer[1]["description"], "Small Spender, Rare");
        }
    }
    assert_eq!(said.len(), 3);
    assert!(said[0].contains("wrote shop/10_customers.sql") && said[0].contains("visits, spent"), "{}", said[0]);
    assert!(said[1].contains("│ true       │ 15 │"), "{}", said[1]);
    assert!(said[2].contains("rows: 30 before, 30 after; 0 lost, 0 new"), "{}", said[2]);
    let typed = "SELECT arrow_typeof(joined) AS j, arrow_typeof(\"Customer ID\") AS c, count(visits) AS n FROM customers GROUP BY 1, 2";
    let typed = place.ok(&["sql", "--sql", "shop", "--store", "shop-store", "-f", "csv", "-c", typed]);
    assert!(typed.contains("Timestamp") && typed.contains("Utf8,29"), "{typed}");
}

#[test]
fn init_looks_at_topics_and_overwrites_nothing() {
    let place = Place::new();
    let mut broker = place.start(&["broker", "--topic", "sensors", "--partitions", "2"]);
    let address = broker.line_with("");
    let to = ["--bootstrap-servers", &address];
    let produce = [&["produce", "-", "--topic", "sensors"][..], &to].concat();
    let mut child = place.command(&produce).stdin(Stdio::piped()).spawn().unwrap();
    let lines: String = (0..50).map(|i| format!("{{\"sensor\":\"s{i}\",\"celsius\":{}.5}}\n", i % 9)).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let init = [&["init", "sensors", "--sql", "mine"][..], &to].concat();
    let said = place.ok(&init);
    assert!(
        said.contains("looked at 50 records of sensors: 2 fields") && said.contains("Features can be: celsius"),
        "{said}"
    );
    assert_eq!(place.ok(&["sql", "--sql", "mine", "-f", "csv", "-c", "SELECT celsius FROM sensors"]), "celsius\n");
    assert!(place.fails(1, &init).contains("mine/00_records.sql is there already; choose another --sql DIR"));
    let error = place.fails(1, &["init", "nowhere.csv"]);
    assert!(error.contains("there is no file nowhere.csv; if it is a topic, add --bootstrap-servers"), "{error}");
    place.write("odd.ndjson", "{}\n{\"_a\":1}\n");
    assert!(place.fails(1, &["init", "odd.ndjson", "--sql", "odd"]).contains("found no field in 2 records"));
    assert!(!place.path("odd").exists());
}
