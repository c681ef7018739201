//! A store whose files of members are lost or cut, and what was sent to a topic before that.

use super::damaged_store::How::{Cut, Deleted, Emptied};
use super::damaged_store::{Fed, ROWS, damage};

/// A segmentation of entities, without those of a condition.
fn write_view(fed: &Fed, condition: &str) {
    fed.place.write("sql/00_records.sql", "CREATE TABLE records (product_id TEXT, rating TEXT, discounted_price TEXT)");
    let view = format!(
        "-- k: 2\n-- entity: product_id\n\nSELECT product_id, avg(to_number(rating)) AS rating, \
         sum(to_number(discounted_price, '₹')) AS price FROM records WHERE _error IS NULL{condition} GROUP BY product_id"
    );
    fed.place.write("sql/30_ratings.sql", view);
}

/// The members of a segmentation of entities: lost or cut, nothing else stops, every message names the next step, and a
/// training makes them again.
#[test]
fn a_lost_file_of_members_is_told_and_made_again() {
    let fed = Fed::new();
    let place = &fed.place;
    write_view(&fed, "");
    place.ok(&["train", "--store", "whole"]);
    let file = "models/ratings/3.members.parquet";
    for (how, told, status) in [(Deleted, "is missing", 410), (Cut, "is damaged", 503), (Emptied, "is damaged", 503)] {
        damage(&fed.copy().join(file), how);
        let doctor = fed.doctor();
        let line =
            doctor.stdout.lines().find(|line| line.contains(file)).unwrap_or_else(|| panic!("{}", doctor.stdout));
        assert!(doctor.code == Some(1) && line.starts_with("MEND") && line.contains(told), "{how:?}: {line}");
        assert!(line.contains("tercile train"), "{how:?}: {line}");
        for command in [&["members", "ratings"][..], &["sql", "-c", "SELECT count(*) FROM members('ratings')"]] {
            let error = place.fails(1, command);
            assert!(error.contains("members") && error.contains("tercile train"), "{how:?}: {error}");
        }
        let serve = place.serve(&[]);
        let one = serve.get("/api/segments/ratings/members/B0");
        let list = serve.get("/api/segments/ratings/clusters/0/members");
        let several = serve.post("/api/segments/ratings/members", "[\"B0\"]");
        for answer in [one, list, several] {
            assert_eq!((answer.status, answer.content_type.as_str()), (status, "application/problem+json"), "{how:?}");
            assert!(answer.text.contains("tercile train") || answer.text.contains("tercile doctor"), "{}", answer.text);
            assert!(!answer.text.contains(".parquet"), "{}", answer.text);
        }
        let row = r#"[{"rating": 4.1, "price": 300}]"#;
        assert_eq!(serve.post("/api/segments/ratings/predict", row).status, 200, "{how:?}");
        assert_eq!(serve.get("/api/segments/ratings/clusters/0/members?model=2").status, 200, "{how:?}");
        drop(serve);
        fed.ingest("store", 0);
        assert_eq!(fed.records("store"), (ROWS, ROWS), "{how:?}");
        place.ok(&["train"]);
        assert_eq!(place.number("SELECT count(*) FROM members('ratings')"), ROWS, "{how:?}");
    }
}

/// The members that were sent last, or the list of what was sent, are lost or damaged: all members are sent, and no entity is
/// deleted from the topic.
#[test]
fn members_that_were_sent_and_are_lost_are_sent_again_without_tombstones() {
    let fed = Fed::new();
    let place = &fed.place;
    let mut broker = place.start_command(place.command(&["broker", "--topic", "segments"]), "segments");
    let address = broker.line_with("");
    let send = |store: &str| {
        let args = ["members", "ratings", "--to", "segments", "--only-changes", "--bootstrap-servers", &address];
        let ended = place.run(&[&args[..], &["--store", store]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stderr
    };
    write_view(&fed, "");
    place.ok(&["train", "--store", "whole"]);
    assert!(send("whole").contains("sent 1,000 of 1,000 members of ratings@3@3 and 0 tombstones"));
    // The next version has one entity fewer.
    let gone = place.ok(&["sql", "--store", "whole", "-f", "csv", "-c", "SELECT min(product_id) FROM records"]);
    write_view(&fed, &format!(" AND product_id <> '{}'", gone.lines().nth(1).unwrap()));
    place.ok(&["train", "--store", "whole"]);
    let (members, list) = ("models/ratings/3.members.parquet", "models/ratings/published.json");
    for (file, how, reason) in [
        (members, Deleted, "are missing: all members are sent, and no tombstones"),
        (members, Cut, "are damaged: all members are sent, and no tombstones"),
        (members, Emptied, "are damaged: all members are sent, and no tombstones"),
        ("models/ratings/3.json", Cut, "are damaged: all members are sent, and no tombstones"),
        (list, Deleted, "nothing was sent to segments before: all members are sent"),
    ] {
        damage(&fed.copy().join(file), how);
        // The list is as if nothing had been sent: only its loss cannot be noticed.
        let doctor = fed.doctor();
        assert_eq!(doctor.stdout.contains(file), file != list, "{}", doctor.stdout);
        let said = send("store");
        assert!(said.contains(reason), "{file} {how:?}: {said}");
        assert!(said.contains("sent 999 of 999 members of ratings@3@6 and 0 tombstones"), "{file} {how:?}: {said}");
        // From then on that version is the one to compare with.
        assert!(send("store").contains("sent 0 of 999 members"), "{file} {how:?}");
    }
    fed.copy();
    let said = send("store");
    assert!(said.contains(" and 1 tombstone to segments"), "{said}");
}
