//! Added and removed fields: `00_records.sql` changes while the store has older files.

use common::Place;

use crate::common;

fn shipped(place: &Place, dir: &str, change: impl Fn(String) -> String) {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = if name == "00_records.sql" { change(text) } else { text };
        place.write(&format!("{dir}/{name}"), text);
    }
}

/// Twelve valid records with an undeclared weight.
fn rows(first: usize, weight: &str) -> String {
    let row = |i: usize| {
        format!(
            "{{\"product_id\":\"P{i}\",\"discounted_price\":\"{}\",\"actual_price\":\"900\",\"discount_percentage\":\"{}%\",\
             \"rating\":\"{}\",\"rating_count\":\"{}\",\"img_link\":\"img {i}\",\"weight\":{weight}}}\n",
            100 + i * 7,
            10 + i,
            3.0 + i as f64 / 20.0,
            50 * i + 1
        )
    };
    (first..first + 12).map(row).collect()
}

#[test]
fn fields_come_and_go() {
    let place = Place::new();
    place.write("before.ndjson", rows(0, "1.50"));
    place.write("after.ndjson", rows(12, "\"heavy\""));
    let changed = |text: String| {
        let text = text.replace("  img_link            TEXT,\n", "  weight TEXT,\n");
        assert!(text.contains("weight"));
        text
    };
    shipped(&place, "changed", changed);
    assert_eq!(place.up(&["--data", "before.ndjson"]).interrupt().code, Some(0));
    let ask = |sql: &str, what: &str| {
        let args: &[&str] = if sql.is_empty() { &[] } else { &["--sql", sql] };
        let answer = place.ok(&[&["sql", "-f", "csv", "-c", what], args].concat());
        answer.lines().skip(1).collect::<Vec<_>>().join("|")
    };
    let both = "SELECT weight, _extra FROM records WHERE product_id IN ('P3', 'P15') ORDER BY _offset";
    assert_eq!(ask("changed", both), "1.50,\"{\"\"img_link\"\":\"\"img 3\"\"}\"");

    // New records have the field, and so do older ones.
    assert_eq!(place.up(&["--sql", "changed", "--append", "--data", "after.ndjson"]).interrupt().code, Some(0));
    let both_now = "1.50,\"{\"\"img_link\"\":\"\"img 3\"\"}\"|heavy,\"{\"\"img_link\"\":\"\"img 15\"\"}\"";
    assert_eq!(ask("changed", both), both_now);
    assert_eq!(
        ask("changed", "SELECT count(*), count(weight), sum(TRY_CAST(weight AS DOUBLE)) FROM records"),
        "24,24,18.0"
    );
    assert_eq!(ask("changed", "SELECT max(place) FROM slice_cuts()"), "24");
    let doctor = place.run(&["doctor", "--sql", "changed"]).stdout;
    assert!(doctor.contains("weight came later and is read from _extra of older files"), "{doctor}");
    assert!(doctor.contains("img_link is declared no more and shows in _extra"), "{doctor}");

    // With the old fields, the conversion is reversed.
    let back = "SELECT img_link, _extra FROM records WHERE product_id IN ('P3', 'P15') ORDER BY _offset";
    assert_eq!(ask("", back), "img 3,\"{\"\"weight\"\":1.50}\"|img 15,\"{\"\"weight\"\":\"\"heavy\"\"}\"");
    let views = "SELECT (SELECT count(*) FROM products) = 24 AND (SELECT count(*) FROM price_rating) = 24";
    for sql in ["", "changed"] {
        assert_eq!(ask(sql, views), "true", "{sql}");
    }
    // Compaction does not merge files written with different fields.
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!(ask("changed", both), both_now);
}
