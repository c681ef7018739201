//! Members on the dashboard, in a real browser: look-up by key, those that moved, and keys that must not be seen.

use browser::Browser;
use common::Place;
use serde_json::json;

use super::dashboard::{barriers, open};
use crate::browser;
use crate::common;

/// A key of generated orders anywhere in the page.
const A_KEY: &str = "/C0\\d{6}/.test(document.documentElement.outerHTML)";

/// The arguments of an `up` with generated orders, segmented by customer and by product.
fn orders(place: &Place) -> Vec<String> {
    place.ok(&["generate", "orders", "4000", "-o", "orders.csv"]);
    let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/orders");
    ["--data", "orders.csv", "--topic", "orders", "--sql", sql].map(str::to_owned).into()
}

#[test]
fn members_are_looked_up_and_those_that_moved_are_listed() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let args = orders(&place);
    let server = place.up(&args.iter().map(String::as_str).collect::<Vec<_>>());
    browser.resize(1440, 900);
    open(&mut browser, &server);
    browser.click("[data-name=rfm]");
    browser.until(
        "document.querySelector('#member-form input') && document.querySelectorAll('.plane canvas').length === 3",
    );
    // The page speaks of members, and has no key until it is asked for one.
    assert!(browser.text("#segments-lead").contains("a member, one for each customer id"));
    for section in ["#segments", "#changed", "#members", "#try"] {
        let text = browser.text(section).to_lowercase();
        assert!(!text.contains("record") && !text.contains("undefined"), "{section}: {text}");
    }
    assert!(browser.text("[data-slice='3'] .rows").contains(" members · version "));
    assert_eq!(browser.run(A_KEY), false);

    let look_up = |browser: &mut Browser, key: &str| {
        browser.fill("#member-form input", key);
        browser.click("#member-form button");
        browser.until(&format!("document.querySelector('#member-answer h3')?.textContent === '{key}'"));
        browser
            .run("[...document.querySelectorAll('#member-answer tbody tr')].map((row) => row.children[1].textContent)")
    };
    let shown = look_up(&mut browser, "C0000000");
    let expected: Vec<String> = (1..=3)
        .map(|slice| server.get(&format!("/api/segments/rfm/members/C0000000?model={slice}")).json())
        .map(|member| format!("{}{}", member["cluster"], member["description"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, json!(expected));
    assert_eq!(look_up(&mut browser, "nobody"), json!(vec!["not a member then"; 3]));

    // Those that moved, page by page.
    let mut expected: Vec<String> = Vec::new();
    for cluster in 0..4 {
        let page = server.get(&format!("/api/segments/rfm/clusters/{cluster}/members?moved=true&limit=10000")).json();
        expected.extend(page["members"].as_array().unwrap().iter().map(|one| one["key"]["customer_id"].to_string()));
    }
    expected.sort();
    browser.click("#moved-form button");
    browser.until("document.querySelector('#moved-list tbody td')");
    let rows = "document.querySelectorAll('#moved-list tbody tr').length";
    for _ in 0..100 {
        if browser.run("document.querySelector('#moved-list button') === null") == true {
            break;
        }
        let before = browser.run(rows);
        browser.click("#moved-list button");
        browser.until(&format!("{rows} > {before}"));
    }
    let listed = browser.run("[...document.querySelectorAll('#moved-list tbody tr')].map((row) => JSON.stringify(row.children[0].textContent))");
    let mut listed: Vec<String> =
        listed.as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned()).collect();
    listed.sort();
    assert!(!expected.is_empty());
    assert_eq!(listed, expected);
    look_up(&mut browser, "C0000000");
    assert_eq!(barriers(&mut browser), Vec::<String>::new());
    browser.screenshot("members");

    // Another segmentation, and a language, have no key of this one; a segmentation of records has no members.
    browser.click("[data-name=turnover]");
    browser.until("document.querySelector('#member-form input')?.name === 'product_id'");
    assert_eq!(browser.run(A_KEY), false);
    browser.click("[data-language=id]");
    browser.until("document.querySelector('#members-title').textContent === 'Anggota'");
    assert!(browser.text("#segments-lead").contains("satu untuk setiap product id"));
    browser.resize(360, 900);
    assert_eq!(browser.run("document.documentElement.scrollWidth <= innerWidth"), true);
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn keys_of_members_are_shown_to_those_who_may_see_them() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let args = orders(&place);
    let key = |scope: &str| place.ok(&["keys", "create", scope, "--scope", scope]).trim().to_owned();
    let (reader, member) = (key("read"), key("members"));
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.push("--require-keys");
    let server = place.up(&args);
    browser.resize(1440, 900);
    for (key, may) in [(reader, false), (member, true)] {
        browser.open(&format!("{}/dashboard", server.address));
        browser.run(&format!("sessionStorage.setItem('tercile-key', '{key}')"));
        open(&mut browser, &server);
        browser.click("[data-name=rfm]");
        browser.until("document.querySelector('#member-form input')");
        browser.fill("#member-form input", "C0000000");
        browser.click("#member-form button");
        browser.click("#moved-form button");
        match may {
            true => browser.until("document.querySelector('#moved-list tbody td')"),
            false => {
                browser.until("document.querySelectorAll('#members .wrong').length === 2");
                assert!(browser.text("#member-answer").contains("does not have the scope “members”"));
                assert_eq!(barriers(&mut browser), Vec::<String>::new());
            }
        }
        assert_eq!(browser.run(A_KEY), may);
    }
    browser.complaints.retain(|complaint| !complaint.contains("401") && !complaint.contains("403"));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
