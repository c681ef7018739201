//! A store whose files of members are lost or cut.

use super::damaged_store::How::{Cut, Deleted, Emptied};
use super::damaged_store::{Fed, ROWS, damage};

/// The members of a segmentation of entities: lost or cut, nothing else stops, every message names the next step, and a
/// training makes them again.
#[test]
fn a_lost_file_of_members_is_told_and_made_again() {
    let fed = Fed::new();
    let place = &fed.place;
    place.write("sql/00_records.sql", "CREATE TABLE records (product_id TEXT, rating TEXT, discounted_price TEXT)");
    place.write(
        "sql/30_ratings.sql",
        "-- k: 2\n-- entity: product_id\n\nSELECT product_id, avg(to_number(rating)) AS rating, \
         sum(to_number(discounted_price, '₹')) AS price FROM records WHERE _error IS NULL GROUP BY product_id",
    );
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
