//! The dashboard in a real browser: contents, live updates, and error states.
//!
//! Requires Chromium (browser/mod.rs). If `TERCILE_AXE` names the file `axe.min.js` of axe-core, accessibility is checked too.

use std::time::Duration;

use browser::Browser;
use common::{Place, Running};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

use crate::browser;
use crate::common;

/// Widths of a phone, a tablet and a desktop screen.
const WIDTHS: [u32; 3] = [360, 900, 1440];

/// Opens the dashboard of a server and waits for its contents.
pub fn open(browser: &mut Browser, server: &Running) {
    browser.open(&format!("{}/dashboard", server.address));
    browser.until("document.querySelector('#clusters .cluster, #planes .empty')");
}

/// Scrolls to the report on k, which is computed when it becomes visible, and waits for it.
fn report(browser: &mut Browser) {
    let look = "document.querySelector('#k-card').scrollIntoView({behavior: 'instant'})";
    browser.until(&format!("({look}, document.querySelectorAll('#k-charts svg').length === 3)"));
}

/// All violations that axe-core rates serious or critical.
pub fn barriers(browser: &mut Browser) -> Vec<String> {
    let Some(axe) = std::env::var_os("TERCILE_AXE") else {
        eprintln!("skipped: TERCILE_AXE names no axe.min.js");
        return Vec::new();
    };
    if browser.run("typeof axe") == "undefined" {
        let script = std::fs::read_to_string(&axe).unwrap_or_else(|e| panic!("{}: {e}", axe.display()));
        browser.run(&format!("{script}; 0"));
    }
    let found = browser.run(
        "axe.run({resultTypes: ['violations']}).then((found) => found.violations
           .filter((one) => ['serious', 'critical'].includes(one.impact))
           .map((one) => `${one.id}: ${one.nodes.map((node) => node.html + ' ' + node.failureSummary).join('; ')}`))",
    );
    found.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// A formatted number without its separators.
fn digits(text: &str) -> u64 {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("{text}"))
}

/// Sends raw messages, valid or not.
fn send(server: &Running, messages: &[&[u8]]) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", server.broker()).create().unwrap();
    for message in messages {
        producer.send(BaseRecord::<(), [u8]>::to("products").payload(message)).map_err(|(e, _)| e).unwrap();
    }
    producer.flush(Duration::from_secs(10)).unwrap();
}

#[test]
fn its_files_come_with_a_policy_and_once() {
    let place = Place::new();
    let mut server = place.start(&["serve", "--bind", "127.0.0.1:0"]);
    server.address = server.said("serving ").split_once(" at ").unwrap().1.split(',').next().unwrap().to_owned();
    let ask = |path: &str, known: &str| {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("{}{path}", server.address)).header("if-none-match", known).call().unwrap()
    };
    for (path, kind) in
        [("/dashboard", "text/html"), ("/dashboard/", "text/html"), ("/dashboard/main.js", "text/javascript")]
    {
        let answer = ask(path, "");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert!(answer.status() == 200 && header("content-type").starts_with(kind), "{path}");
        let policy = header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; script-src 'self'; ") && !policy.contains("unsafe"),
            "{policy}"
        );
        assert_eq!(ask(path, &header("etag")).status(), 304, "{path}");
    }
    assert_eq!(ask("/dashboard/../Cargo.toml", "").status(), 404);
    assert_eq!(ask("/dashboard/nothing.js", "").status(), 404);
}

#[test]
fn the_page_shows_what_the_api_answers() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let server = place.up(&[]);
    browser.resize(1440, 900);
    open(&mut browser, &server);
    browser.until("document.querySelectorAll('.plane canvas').length === 3");

    let status = server.get("/api/status").json();
    assert_eq!(digits(&browser.text("h1")), status["records"].as_u64().unwrap());
    assert_eq!(digits(&browser.text("#fact-files")), status["files"].as_u64().unwrap());
    assert_eq!((browser.text("#fact-models"), browser.text("#fact-lag")), ("9".into(), "0".into()));
    let models = server.get("/api/segments/price_rating/models").json();
    for (slice, model) in models.as_array().unwrap().iter().enumerate() {
        let shown = browser.text(&format!("[data-slice='{}'] .rows", slice + 1));
        let expected = format!("{} · version {}", model["rows"], model["version"]);
        assert_eq!(shown.replace(',', ""), expected.replace(" ·", " rows ·"));
        let silhouette: f64 =
            browser.text(&format!("[data-slice='{}'] .big", slice + 1)).split(' ').next().unwrap().parse().unwrap();
        assert!((silhouette - model["silhouette"].as_f64().unwrap()).abs() < 5e-4);
    }
    for cluster in models[2]["clusters"].as_array().unwrap() {
        let card = format!("#cluster-{}", cluster["cluster"]);
        assert_eq!(browser.text(&format!("{card} .what")), cluster["description"]);
        let size = browser.text(&format!("{card} .share"));
        assert_eq!(digits(size.split('·').next().unwrap()), cluster["size"].as_u64().unwrap());
        // Three quartiles for each of the two features.
        let typical = browser.text(&format!("{card} .centre"));
        let rating: Vec<String> =
            cluster["typical"]["rating"].as_array().unwrap().iter().map(Value::to_string).collect();
        let rating: Vec<&str> = rating.iter().map(|value| value.trim_end_matches(".0")).collect();
        assert!(
            typical.matches(" – ").count() == 4 && typical.contains(&format!("{} (mean ", rating.join(" – "))),
            "{typical}"
        );
    }
    assert!(browser.text("#clusters-key").contains("quartiles"));
    let changes = |model: &Value| model["words_changed"].as_array().unwrap().len();
    let changes: usize = models.as_array().unwrap().iter().map(changes).sum();
    assert_eq!(browser.run("document.querySelectorAll('#words-changed li').length"), json!(changes));
    assert_eq!(browser.run("document.querySelector('#words-changed').hidden"), json!(changes == 0));
    // Moved records, from the matrix that the training stored.
    let moved = models[1]["moved"].as_array().unwrap().iter().enumerate();
    let moved =
        moved.flat_map(|(from, row)| row.as_array().unwrap().iter().enumerate().filter(move |(to, _)| *to != from));
    let moved: u64 = moved.map(|(_, n)| n.as_u64().unwrap()).sum();
    assert!(browser.text("#changed-lead").contains(&format!("to the first two, {moved} of ")));
    // The points are drawn: the canvas contains several colours.
    let colours = "(() => { const c = document.querySelector('.plane canvas');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const seen = new Set();
        for (let i = 0; i < d.length; i += 4) if (d[i + 3] > 120) seen.add(`${d[i] >> 5},${d[i + 1] >> 5},${d[i + 2] >> 5}`);
        return seen.size; })()";
    assert!(browser.run(colours).as_u64().unwrap() >= 3);

    // The report is computed when it becomes visible.
    report(&mut browser);
    let report = server.get("/api/segments/price_rating/k-report").json();
    let picked = |name: &str| format!("picks {} · the model has 3", report["suggestion"][name]);
    let picks = ["elbow", "silhouette", "stability"].map(picked);
    let shown = browser.run("[...document.querySelectorAll('#k-charts .said')].map((one) => one.textContent)");
    assert_eq!(shown, json!(picks));
    // The number of clusters of the model is marked in each curve.
    assert_eq!(browser.run("document.querySelectorAll('#k-charts .current').length"), json!(3));
    browser.run("scrollTo({top: 0, behavior: 'instant'})");

    // A segmentation with one feature has a histogram with its cuts.
    browser.click("[data-name=discount]");
    browser.until("document.querySelectorAll('.cut').length === 6");
    browser.screenshot("histogram");
    browser.click("[data-name=price_rating]");
    browser.until("document.querySelectorAll('.centroid').length === 9");

    // The page loads nothing from other hosts, and little in total.
    let loaded = browser.run("performance.getEntriesByType('resource').filter((one) => !one.name.includes('/api/events')).map((one) => [one.name, one.transferSize])");
    let (mut bytes, mut names) = (0, Vec::new());
    for one in loaded.as_array().unwrap() {
        bytes += one[1].as_u64().unwrap();
        names.push(one[0].as_str().unwrap().to_owned());
    }
    assert!(names.iter().all(|name| name.starts_with(&server.address)), "{names:?}");
    assert!(bytes < 1_500_000, "{bytes}");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn languages_themes_widths_and_screen_readers() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let server = place.up(&[]);
    for width in WIDTHS {
        browser.resize(width, 900);
        open(&mut browser, &server);
        report(&mut browser);
        browser.run("scrollTo({top: 0, behavior: 'instant'})");
        for theme in ["light", "dark"] {
            if browser.run("document.documentElement.dataset.theme") != theme {
                browser.click("#theme");
            }
            assert_eq!(browser.run("document.documentElement.dataset.theme"), theme);
            assert_eq!(browser.run("document.documentElement.scrollWidth <= innerWidth"), true, "{width}");
            assert_eq!(barriers(&mut browser), Vec::<String>::new(), "{width} {theme}");
            browser.screenshot(&format!("{theme}-{width}"));
        }
    }
    assert_eq!(browser.text("#segments-title"), "Segments");
    browser.click("[data-language=id]");
    assert_eq!(
        (browser.text("#segments-title"), browser.run("document.documentElement.lang")),
        ("Segmen".into(), json!("id"))
    );
    let named = server.get("/api/segments/price_rating/models/3").json()["clusters"][0]["descriptions"]["id"].clone();
    assert_eq!(browser.text("#cluster-0 .what"), named);
    let english =
        browser.run("[...document.querySelectorAll('[data-t]')].filter((one) => !one.textContent.trim()).length");
    assert_eq!(english, 0);
    browser.screenshot("indonesian");
    // The selection is kept.
    open(&mut browser, &server);
    assert_eq!(browser.text("#segments-title"), "Segmen");
    assert_eq!(browser.run("document.documentElement.dataset.theme"), "dark");
    // Keyboard use: the first tab stop skips the header, and a plot can be zoomed.
    let tab = json!({"type": "keyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
    browser.call("Input.dispatchKeyEvent", tab);
    assert_eq!(browser.run("document.activeElement.className"), "skip");
    let dots = "document.querySelector('.plane .centroid circle').getAttribute('cx')";
    let before = browser.run(dots);
    browser.run("document.querySelector('.plane svg[role=img]').focus()");
    browser.call("Input.dispatchKeyEvent", json!({"type": "keyDown", "key": "+", "text": "+"}));
    browser.until(&format!("{dots} !== {before}"));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn a_prediction_marks_its_point_and_explains_itself() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let server = place.up(&[]);
    browser.resize(1440, 900);
    open(&mut browser, &server);
    browser.until("document.querySelector('[name=rating]')");
    browser.fill("[name=discounted_price]", "300");
    browser.fill("[name=rating]", "4,5");
    browser.click("#try button[type=submit]");
    browser.until("document.querySelector('.verdict')");
    let asked = r#"[{"discounted_price": 300, "rating": 4.5}]"#;
    let answer = server.post("/api/segments/price_rating/predict", asked).json()[0].clone();
    assert_eq!(browser.text(".verdict span:last-child"), answer["description"]);
    assert_eq!(browser.text(".verdict .number"), answer["cluster"].to_string());
    assert_eq!(browser.run("document.querySelectorAll('.probe').length"), 3);
    // Explanations: the distance to each centroid, and the segments in the other slices.
    let explained = &server.post("/api/segments/price_rating/predict?explain=true", asked).json()[0]["explanation"];
    let shown =
        "[...document.querySelector('.measures').querySelectorAll('.value')].map((one) => Number(one.textContent))";
    let shown = browser.run(shown);
    for (shown, distance) in shown.as_array().unwrap().iter().zip(explained["distances"].as_array().unwrap()) {
        assert!((shown.as_f64().unwrap() / distance.as_f64().unwrap() - 1.0).abs() < 0.01, "{shown} {distance}");
    }
    assert_eq!(shown.as_array().unwrap().len(), 3);
    let second = explained["slices"][1]["description"].as_str().unwrap();
    assert!(browser.text("#try-answer").contains(&format!("First two thirds: {second}")));
    // The displayed command sends the same request.
    let command = browser.text("#try pre").replacen("curl ", "curl -sS ", 1);
    let output = std::process::Command::new("sh").args(["-c", &command]).output().unwrap();
    let same: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {command}"));
    assert_eq!(same[0]["cluster"], answer["cluster"]);
    assert_eq!(barriers(&mut browser), Vec::<String>::new());
    browser.screenshot("prediction");

    browser.fill("[name=rating]", "good");
    browser.click("#try button[type=submit]");
    browser.until("document.querySelector('#try .wrong')");
    assert_eq!(browser.text("#try .wrong"), "rating must be a number.");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn news_are_shown_as_they_come_and_a_lost_server_is_no_secret() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let server = place.up(&["--batch-age", "0.2"]);
    browser.resize(1440, 900);
    open(&mut browser, &server);
    let before = digits(&browser.text("h1"));
    send(&server, &[br#"{"product_id": "new", "rating": "4.0"}"#, b"\xff<b>no JSON</b>"]);
    browser
        .until(&format!("document.querySelector('h1').textContent.replaceAll(',', '').startsWith('{} ')", before + 2));
    assert_eq!(browser.text("#fact-unreadable"), "1");
    browser.until("document.querySelector('#unreadable td')");
    let line = browser.text("#unreadable tbody tr");
    let list = server.get("/api/unreadable").json();
    let reason = list[0]["reason"].as_str().unwrap();
    assert!(line.contains(reason) && line.contains("<b>no JSON</b>") && line.contains("offset 1,466"), "{line}");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    browser.screenshot("unreadable");

    let address = server.address.strip_prefix("http://").unwrap().to_owned();
    let begun = std::time::Instant::now();
    assert_eq!(server.interrupt().code, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "an open page held up the end: {:?}", begun.elapsed());
    browser.until("document.querySelector('#connection').dataset.state === 'lost'");
    let said = browser.text("#connection");
    assert!(said.starts_with("Connection lost, last data ") && said.ends_with("; trying again"), "{said}");
    browser.screenshot("lost");
    let mut again = place.start(&["serve", "--bind", &address]);
    browser.until("document.querySelector('#connection').dataset.state === 'live'");
    assert_eq!(browser.text("#note-lag"), "no ingest in this process");
    again.signal("-INT");
    assert_eq!(again.wait().code(), Some(0));
}

#[test]
fn where_keys_are_needed_it_asks_for_one_and_forgets_it() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let key = place.ok(&["keys", "create", "page", "--scope", "read"]).trim().to_owned();
    let server = place.up(&["--require-keys"]);
    browser.resize(1440, 900);
    browser.open(&format!("{}/dashboard", server.address));
    browser.until("document.querySelector('#key[open]')");
    assert_eq!(barriers(&mut browser), Vec::<String>::new());
    browser.screenshot("key");
    browser.fill("#key-input", "wrong");
    browser.click("#key-form button");
    browser.until("document.querySelector('#key-why').textContent.startsWith('That key was not accepted')");
    browser.fill("#key-input", &key);
    browser.click("#key-form button");
    browser.until("document.querySelectorAll('.plane canvas').length === 3");
    // The setting survives a reload and is not sent elsewhere.
    open(&mut browser, &server);
    browser.until("document.querySelectorAll('.plane canvas').length === 3");
    assert_eq!(browser.run("sessionStorage.getItem('tercile-key')"), key.as_str());
    assert_eq!(browser.run("JSON.stringify({...localStorage}).includes(sessionStorage.getItem('tercile-key')) || document.cookie !== ''"), false);
    browser.complaints.retain(|complaint| !complaint.contains("401"));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn what_is_missing_or_odd_is_said_in_words() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    let serve = |args: &[&str]| {
        let mut all = vec!["serve", "--bind", "127.0.0.1:0"];
        all.extend(args);
        let mut server = place.start(&all);
        server.address = server.said("serving ").split_once(" at ").unwrap().1.split(',').next().unwrap().to_owned();
        server
    };
    browser.resize(900, 900);
    let empty = serve(&["--store", "empty"]);
    open(&mut browser, &empty);
    assert!(browser.text("#segments").contains("No models yet"));
    assert_eq!(browser.text("h1"), "0 records");
    assert_eq!(barriers(&mut browser), Vec::<String>::new());
    browser.screenshot("empty");

    // A browser whose clock is hours behind.
    let wrong = "const now = Date.now; Date.now = () => now() - 7_200_000;";
    let script = browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": wrong}));
    open(&mut browser, &empty);
    browser.until("document.querySelector('.notice')");
    assert!(browser.text(".notice").contains("120 minutes apart"));
    browser.call("Page.removeScriptToEvaluateOnNewDocument", json!({"identifier": script["identifier"]}));

    // Twelve features whose names look like markup, and a segmentation that could not be trained.
    let features: Vec<String> =
        (0..12).map(|i| format!("rating * {} AS \"<img src=x onerror=alert({i})>\"", i + 1)).collect();
    let select =
        |what: &str| format!("-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, {what} FROM slices\n");
    for file in ["00_records.sql", "10_products.sql", "20_slices.sql"] {
        let shipped = std::fs::read(format!("{}/sql/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        place.write(&format!("sql/{file}"), shipped);
    }
    place.write("sql/30_many.sql", select(&features.join(", ")));
    place.write("sql/31_none.sql", select("CAST(NULL AS DOUBLE) AS nothing"));
    let odd = place.up(&["--sql", "sql"]);
    open(&mut browser, &odd);
    browser.until("document.querySelectorAll('.plane canvas').length === 3");
    assert_eq!(browser.run("document.querySelectorAll('#axis-0 option').length"), 12);
    // Missing ratings are counted below the plot, where they are drawn hollow.
    let missing = browser.text(".plane[data-slice=\"3\"] .missing");
    assert!(missing.contains("was missing in 3 of 1,465 rows and took the mean (hollow)"), "{missing}");
    assert!(browser.text("#axes").contains("<img src=x onerror=alert(0)>"));
    assert_eq!(browser.run("document.querySelectorAll('main img').length"), 0);
    assert_eq!(browser.run("document.querySelectorAll('#try input').length"), 12);
    // The pair of features that the user selects.
    browser.run("const pick = document.querySelector('#axis-0'); pick.selectedIndex = 5; pick.dispatchEvent(new Event('change', {bubbles: true}))");
    browser.until("document.querySelector('.plane svg text:nth-last-of-type(2)').textContent.includes('alert(5)')");
    assert!(browser.text("#notices").contains("No model: none of slice 1: "));
    browser.click("[data-name=none]");
    browser.until("document.querySelector('#segments').textContent.includes('No model could be made')");
    browser.screenshot("refused");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[test]
fn words_that_changed_and_new_segments_are_marked() {
    let Some(mut browser) = Browser::start() else { return };
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    let path = place.path("store/models/price_rating/3.json");
    let mut model: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let english = json!({"from": "Mid Price", "to": "Low Price"});
    let indonesian = json!({"from": "Harga Sedang", "to": "Harga Rendah"});
    model["words_changed"] = json!([
        {"cluster": 1, "feature": "discounted_price", "from": "Mid Price", "to": "Low Price",
         "languages": {"en": english, "id": indonesian}},
        {"cluster": 0, "from": "Old, words", "to": "New, words", "languages": {"en": {"from": "Old, words", "to": "New, words"}}},
    ]);
    model["clusters"][2]["new"] = json!(true);
    std::fs::write(&path, model.to_string()).unwrap();
    let server = place.serve(&[]);
    browser.resize(1440, 900);
    open(&mut browser, &server);
    browser.until("document.querySelectorAll('#words-changed li').length === 2");
    let said = browser.text("#words-changed li");
    assert!(said.contains("discounted price was “Mid Price”, is “Low Price”."), "{said}");
    assert!(browser.text("#words-changed").contains("description was “Old, words”, is “New, words”."));
    assert!(browser.text("#cluster-2 .share").ends_with("· new") && !browser.text("#cluster-1 .share").contains("new"));
    assert_eq!(barriers(&mut browser), Vec::<String>::new());
    browser.screenshot("words-changed");
    browser.click("[data-language=id]");
    assert!(browser.text("#words-changed li").contains("dulu “Harga Sedang”, kini “Harga Rendah”."));
}
