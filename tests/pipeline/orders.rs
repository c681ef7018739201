//! Runs the commands of `docs/orders.md` in order.

use std::path::Path;

use common::Place;

use super::another_shop::{blocks, words};
use crate::common;

#[test]
fn the_page_leads_from_a_topic_to_a_campaign_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/orders.md")).unwrap();
    let place = Place::new();
    for file in common::files(&root.join("examples/orders")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        place.write(&format!("examples/orders/{name}"), std::fs::read(&file).unwrap());
    }
    let (mut broker, mut address, mut said) = (None, String::new(), Vec::new());
    for (mark, content) in blocks(&page) {
        if let Some(file) = mark.strip_prefix("file: ") {
            place.write(file, content);
            continue;
        }
        let words = words(&content.replace("localhost:9092", &address));
        let args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        if mark == "start" {
            address = broker.insert(place.start(&args)).line_with("");
        } else {
            said.push(place.ok(&args));
        }
    }
    assert_eq!(said.len(), 9);
    let csv = std::fs::read_to_string(place.path("orders.csv")).unwrap();
    assert_eq!(csv.lines().count(), 5_001);
    assert!(page.contains(csv.lines().next().unwrap()) && page.contains(csv.lines().nth(1).unwrap()), "{csv:.200}");
    let trained = &said[3];
    for model in ["rfm", "turnover"] {
        let of = |line: &&str| line.split_whitespace().take(2).eq([model, "3"]);
        assert!(trained.lines().any(|line| of(&line)), "{trained}");
    }
    let campaign = std::fs::read_to_string(place.path("campaign.csv")).unwrap();
    assert!(campaign.starts_with("customer_id,description,spent,days,previous\n"), "{campaign:.200}");
    assert!(campaign.lines().count() > 5, "{campaign}");
    let segment = std::fs::read_to_string(place.path("segment.csv")).unwrap();
    assert!(segment.lines().skip(1).all(|line| line.starts_with('C') && line.contains(",0,")), "{segment:.200}");
    assert!(said[8].contains("C0000000"), "{}", said[8]);
    for name in ["rfm@1", "rfm@2", "rfm@3", "turnover"] {
        place.ok(&["verify", name, "--store", "orders-store", "--sql", "examples/orders"]);
    }
}
