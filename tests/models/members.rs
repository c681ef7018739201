//! The members of models of entities: files, look-ups on the command line and in SQL, comparison, retention, damage.

use std::collections::BTreeMap;
use std::path::Path;

use common::Place;
use serde_json::Value;

use super::entities::{CUSTOMERS, customers, model, orders, place};
use crate::common;

/// Members as rows of CSV by key.
fn members(place: &Place, args: &[&str]) -> BTreeMap<String, Vec<String>> {
    let csv = place.ok(&[&["members", "customers", "-f", "csv"], args].concat());
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("customer_id,orders,total,cluster,description,distance,previous"));
    lines
        .map(|line| (line.split(',').next().unwrap().to_owned(), line.split(',').map(str::to_owned).collect()))
        .collect()
}

/// The same orders again, with other amounts.
fn more(place: &Place) {
    let row = |(i, (customer, amount)): (usize, (String, f64))| {
        serde_json::json!({ "customer_id": if customer.is_empty() { "new".to_owned() } else { customer }, "amount": amount * 3.0 + i as f64 }).to_string() + "\n"
    };
    place.write("more.ndjson", orders().into_iter().enumerate().map(row).collect::<String>());
    let up = place.up(&["--data", "more.ndjson", "--append"]).interrupt();
    assert_eq!(up.code, Some(0), "{}", up.stderr);
}

#[test]
fn each_version_has_its_members() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    let mut before: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for slice in 1..=3 {
        let expected = customers(slice * 100);
        let model = model(&place, "customers", slice as u64);
        let found = members(&place, &["--slice", &slice.to_string()]);
        assert!(found.keys().eq(expected.keys()), "slice {slice}");
        let mut sizes = vec![0; 3];
        for (key, (orders, total)) in expected {
            let row = &found[&key];
            assert_eq!((row[1].parse::<f64>().unwrap(), row[2].parse::<f64>().unwrap()), (orders, total), "{key}");
            let cluster: usize = row[3].parse().unwrap();
            sizes[cluster] += 1;
            // The distance in standardised units, from the model's own figures.
            let at = |name: &str, i: usize, value: f64| {
                let centroid = model["clusters"][cluster]["centroid"][name].as_f64().unwrap();
                ((value - centroid) / model["std"][i].as_f64().unwrap()).powi(2)
            };
            let distance = (at("orders", 0, orders) + at("total", 1, total)).sqrt();
            let shown: f64 = row[row.len() - 2].parse().unwrap();
            assert!((shown - distance).abs() < 1e-9, "{key}: {shown}, {distance}");
            // The model of the slice before is the predecessor.
            let previous = before.get(&key).map_or("", |row| row[3].as_str());
            assert_eq!(row[row.len() - 1], previous, "{key} of slice {slice}");
        }
        let clusters = model["clusters"].as_array().unwrap();
        assert!(clusters.iter().map(|cluster| cluster["size"].as_u64().unwrap()).eq(sizes), "slice {slice}");
        before = found;
    }
    let key = before.keys().nth(5).unwrap().clone();
    let one = members(&place, &[&key]);
    assert_eq!((one.len(), &one[&key]), (1, &before[&key]));
    let of_cluster = members(&place, &["--cluster", "1"]);
    assert!(of_cluster.iter().eq(before.iter().filter(|(_, row)| row[3] == "1")));
    let older = members(&place, &["--as-of", "1"]);
    assert_eq!(older.len(), customers(100).len());

    let ended = place.run(&["members", "customers", &key, "SECRET", "-f", "csv"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (Some(1), 2));
    assert!(
        ended.stderr.contains("1 of 2 keys are no members of customers@3@3: number ")
            && !ended.stderr.contains("SECRET")
    );
    assert!(place.fails(1, &["members", "customers", "--cluster", "3"]).contains("its clusters are 0 to 2"));
    assert!(place.fails(1, &["members", "nothing"]).contains("there is no model of nothing"));
    assert!(place.fails(1, &["members", "customers", "--as-of", "2", "--slice", "3"]).contains("is of slice 2, not 3"));
    place.ok(&["members", "customers", "-o", "all.parquet"]);
    let counted = "SELECT count(*) FROM t WHERE cluster = 1";
    let counted = place.ok(&["sql", "--table", "t=all.parquet", "-f", "csv", "-c", counted]);
    assert_eq!(counted.lines().nth(1), Some(of_cluster.len().to_string().as_str()));

    // In SQL.
    let sql = "SELECT count(*) FROM members('customers') WHERE cluster = 1 AND description <> ''";
    assert_eq!(place.number(sql), of_cluster.len() as i64);
    assert_eq!(place.number("SELECT count(*) FROM members('customers@1')"), older.len() as i64);
    let joined = "SELECT count(*) FROM members('customers') AS now JOIN members('customers@3@3') USING (customer_id)";
    assert_eq!(place.number(joined), before.len() as i64);
    let columns = place.ok(&["sql", "-f", "csv", "-c", "SELECT * FROM members('customers') LIMIT 1"]);
    assert_eq!(columns.lines().next(), Some("customer_id,orders,total,cluster,description,distance,previous"));
    for (sql, said) in [
        ("SELECT * FROM members('nothing')", "there is no model of nothing"),
        ("SELECT * FROM members(1)", "takes the name of a model"),
        ("SELECT * FROM members('customers@4')", "customers@4"),
    ] {
        let error = place.fails(1, &["sql", "-c", sql]);
        assert!(error.contains(said), "{sql}: {error}");
    }
    place.write("sql/31_loop.sql", "SELECT * FROM members('customers')");
    let error = place.fails(1, &["train"]);
    assert!(error.contains("no models are in reach here"), "{error}");
}

#[test]
fn versions_are_compared_by_their_members() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    more(&place);
    let (old, new) = (members(&place, &["--as-of", "3"]), members(&place, &["--as-of", "6"]));
    let ended = place.run(&["members", "diff", "customers", "3", "6", "-f", "csv"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let mut lines = ended.stdout.lines();
    assert_eq!(lines.next(), Some("customer_id,from,from_description,to,to_description"));
    let mut different = BTreeMap::new();
    for key in old.keys().chain(new.keys()) {
        let cluster = |of: &BTreeMap<String, Vec<String>>| of.get(key).map_or(String::new(), |row| row[3].clone());
        let pair = (cluster(&old), cluster(&new));
        if pair.0 != pair.1 {
            different.insert(key.clone(), pair);
        }
    }
    let found: BTreeMap<String, (String, String)> = lines
        .map(|line| {
            let line = line.replace(", ", " and ");
            let cells: Vec<&str> = line.split(',').collect();
            (cells[0].to_owned(), (cells[1].to_owned(), cells[3].to_owned()))
        })
        .collect();
    assert_eq!(found, different);
    assert!(found.contains_key("new") && ended.stderr.contains("1 came, 0 left"), "{}", ended.stderr);
    // `previous` is the cluster in the version that served the slice before.
    for (key, row) in &new {
        assert_eq!(row.last().unwrap(), old.get(key).map_or("", |row| row[3].as_str()), "{key}");
    }
    place.write(
        "sql/31_other.sql",
        CUSTOMERS
            .replace("-- k: 3\n", "")
            .replace("-- entity: customer_id\n", "")
            .replace("-- label.total.en: Small | Medium | Large\n", ""),
    );
    assert!(place.fails(1, &["members", "diff", "customers", "1", "99"]).contains("has no version 99"));
}

#[test]
fn old_members_are_deleted_and_those_that_serve_are_not() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    let there = || -> Vec<u64> {
        (1..40).filter(|v| place.path(&format!("store/models/customers/{v}.members.parquet")).exists()).collect()
    };
    place.ok(&["models", "pin", "customers", "2"]);
    for i in 0..4 {
        place.write("sql/30_customers.sql", CUSTOMERS.replace("sum(amount)", &format!("sum(amount) + {i}")));
        place.ok(&["train", "--keep-members", "2"]);
    }
    // Versions 1 to 3 and four times three more; 2 is pinned.
    assert_eq!(there(), [2, 10, 11, 12, 13, 14, 15]);
    assert!(place.path("store/models/customers/1.json").exists());
    let error = place.fails(1, &["members", "customers", "--as-of", "4"]);
    assert!(error.contains("the members of customers@1@4 are deleted") && error.contains("--keep-members"), "{error}");
    assert_eq!(members(&place, &["--slice", "2"]).len(), customers(200).len());
    // What serves keeps its members, whatever the number.
    place.write("sql/30_customers.sql", CUSTOMERS.replace("sum(amount)", "sum(amount) + 9"));
    place.ok(&["train", "--keep-members", "0"]);
    assert_eq!(there(), [2, 16, 18]);
    assert!(place.ok(&["doctor"]).is_empty() || place.run(&["doctor"]).code == Some(0));
    place.ok(&["verify", "customers@1"]);
}

#[test]
fn damaged_members_are_reported_and_made_again() {
    let whole = place(&[
        ("30_customers.sql", CUSTOMERS),
        (
            "31_others.sql",
            &CUSTOMERS.replace("k: 3", "k: 2").replace("-- label.total.en: Small | Medium | Large\n", ""),
        ),
    ]);
    let file = "store/models/customers/3.members.parquet";
    let bytes = std::fs::read(whole.path(file)).unwrap();
    let foreign = std::fs::read(whole.path("store/models/customers/1.members.parquet")).unwrap();
    let damages: [(&str, Option<&[u8]>); 4] = [
        ("missing", None),
        ("damaged", Some(&[])),
        ("damaged", Some(&bytes[..bytes.len() / 2])),
        ("misnamed", Some(&foreign)),
    ];
    for (reason, content) in damages {
        let place = Place::new();
        copy(&whole.path("store"), &place.path("store"));
        copy(&whole.path("sql"), &place.path("sql"));
        match content {
            None => std::fs::remove_file(place.path(file)).unwrap(),
            Some(bytes) => std::fs::write(place.path(file), bytes).unwrap(),
        }
        let serve = place.serve(&[]);
        assert_eq!(serve.post("/api/segments/customers/predict", r#"[{"orders":1,"total":10}]"#).status, 200);
        let status = serve.get("/api/segments/customers/members/C001").status;
        assert_eq!(status, if reason == "missing" { 410 } else { 503 }, "{reason}");
        assert_eq!(serve.get("/api/segments/customers/members/C000?model=1").status, 200);
        drop(serve);
        let doctor = place.run(&["doctor"]);
        assert_eq!(doctor.code, Some(1), "{reason}: {}", doctor.stdout);
        assert!(doctor.stdout.contains(&format!("the file of members {file} is {reason}")), "{}", doctor.stdout);
        let trained = place.run(&["train"]);
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        assert_eq!(members(&place, &[]).len(), customers(300).len());
        let slices: Value =
            serde_json::from_slice(&std::fs::read(place.path("store/models/customers/slices.json")).unwrap()).unwrap();
        assert_eq!((&slices["3"]["version"], &slices["2"]["version"]), (&4.into(), &2.into()), "{reason}");
    }
}

/// One bit of a file of members or of a sample changes: `doctor --deep` names the file, and no command returns other values.
#[test]
fn a_bit_that_changed_is_told() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    let doctor = || place.run(&["doctor", "--deep", "--bind", "127.0.0.1:0"]);
    assert_eq!(doctor().code, Some(0), "{}", doctor().stdout);
    let commands = [&["members", "customers", "-f", "csv"][..], &["members", "customers", "C001"]];
    let whole = commands.map(|command| place.ok(command));
    let (flips, mut refused) = (24, 0);
    for (name, kind) in [("3.members.parquet", "the file of members"), ("3.sample.parquet", "the sample")] {
        let file = format!("store/models/customers/{name}");
        let bytes = std::fs::read(place.path(&file)).unwrap();
        for i in 0..flips {
            let bit = bytes.len() * 8 / flips * i + i;
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(place.path(&file), flipped).unwrap();
            let ended = doctor();
            let words = format!("{kind} {file} is damaged");
            assert!(ended.code == Some(1) && ended.stdout.contains(&words), "bit {bit}: {}", ended.stdout);
            // Not every command reads every byte.
            for (command, whole) in commands.iter().zip(&whole) {
                let ended = place.run(command);
                match ended.code {
                    Some(0) => assert_eq!(ended.stdout, *whole, "bit {bit}"),
                    _ => assert!(ended.stderr.contains(&words), "bit {bit}: {}", ended.stderr),
                }
                refused += usize::from(ended.code == Some(1));
            }
        }
        std::fs::write(place.path(&file), bytes).unwrap();
    }
    assert!(refused >= flips, "{refused}");
    assert_eq!(doctor().code, Some(0));
}

/// Trainings that are killed as soon as a file appears: a scratch file, members, or a model.
#[test]
fn a_training_that_is_killed_while_it_writes_members_never_mixes_versions() {
    let place = place(&[("30_customers.sql", CUSTOMERS)]);
    let running = place.serve(&[]);
    let kills: u64 = std::env::var("TERCILE_TEST_MEMBER_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(9);
    let expected = customers(300);
    let dir = place.path("store/models/customers");
    let names = || -> Vec<String> {
        let entries = std::fs::read_dir(&dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let version = |name: &String, ending: &str| name.strip_suffix(ending)?.parse::<u64>().ok();
    // What each version adds to the totals.
    let mut added: BTreeMap<u64, u64> = (1..=3).map(|version| (version, 0)).collect();
    let check = |added: &BTreeMap<u64, u64>| -> u64 {
        let slices: Value = serde_json::from_slice(&std::fs::read(dir.join("slices.json")).unwrap()).unwrap();
        let serving = slices["3"]["version"].as_u64().unwrap();
        let of_model = model(&place, "customers", serving);
        let mut sizes = vec![0_u64; 3];
        let found = members(&place, &[]);
        assert!(found.keys().eq(expected.keys()), "version {serving}");
        for (key, row) in &found {
            let total: f64 = row[2].parse().unwrap();
            assert!(
                (total - expected[key].1 - added[&serving] as f64).abs() < 1e-6,
                "{key} of version {serving}: {total}"
            );
            sizes[row[3].parse::<usize>().unwrap()] += 1;
        }
        assert!(of_model["clusters"].as_array().unwrap().iter().map(|one| one["size"].as_u64().unwrap()).eq(sizes));
        // A server answers with one version, the one that serves or the one before.
        let answer = running.get("/api/segments/customers/members/C001").json();
        let (version, total) = (answer["version"].as_u64().unwrap(), answer["features"]["total"].as_f64().unwrap());
        assert!((total - expected["C001"].1 - added[&version] as f64).abs() < 1e-6, "{answer}");
        serving
    };
    let mut caught = [0; 3];
    for round in 1..=kills {
        place.write("sql/30_customers.sql", CUSTOMERS.replace("sum(amount)", &format!("sum(amount) + {round}")));
        let last = names().iter().filter_map(|name| version(name, ".json")).max().unwrap();
        let stage = (round % 3) as usize;
        let reached = || match stage {
            0 => !common::files(&place.path("store/tmp")).is_empty(),
            1 => names().iter().any(|name| version(name, ".members.parquet").is_some_and(|found| found > last)),
            _ => names().iter().any(|name| version(name, ".json").is_some_and(|found| found > last)),
        };
        for left in common::files(&place.path("store/tmp")) {
            std::fs::remove_file(left).unwrap();
        }
        let mut command = place.command(&["train", "-q"]);
        let mut child = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        while child.try_wait().unwrap().is_none() {
            if reached() {
                child.kill().unwrap();
                caught[stage] += 1;
                break;
            }
        }
        child.wait().unwrap();
        for name in names() {
            // A version that has any file takes its number.
            for ending in [".json", ".members.parquet", ".sample.parquet"] {
                if let Some(found) = version(&name, ending).filter(|found| *found > last) {
                    added.entry(found).or_insert(round);
                }
            }
        }
        check(&added);
    }
    println!("killed at a scratch file, members, a model: {caught:?}");
    assert!(kills < 3 || caught.iter().all(|times| *times > 0), "{caught:?}");
    place.write("sql/30_customers.sql", CUSTOMERS.replace("sum(amount)", "sum(amount) + 1000"));
    place.ok(&["train"]);
    let newest = names().iter().filter_map(|name| version(name, ".json")).max().unwrap();
    added.extend((newest - 2..=newest).map(|version| (version, 1000)));
    assert_eq!(check(&added), newest);
    let doctor = place.run(&["doctor", "--bind", "127.0.0.1:0"]);
    assert!(!doctor.stdout.contains("members"), "{}", doctor.stdout);
}

fn copy(from: &Path, to: &Path) {
    for path in common::files(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&path, target).unwrap();
    }
}
