//! Models after training: held to their receipts, listed, compared, rolled back, asked as of an older version.

mod common;

use common::{Place, files};

/// The sample, trained; then a thousand records more, trained again: versions 1 to 3, and 4 to 6.
fn trained_twice() -> Place {
    let place = Place::new();
    assert_eq!(place.up(&[]).interrupt().code, Some(0));
    place.ok(&["generate", "1000", "--seed", "9", "-o", "more.csv"]);
    assert_eq!(place.up(&["--data", "more.csv", "--append"]).interrupt().code, Some(0));
    place
}

fn shipped_sql(place: &Place) {
    for file in files(concat!(env!("CARGO_MANIFEST_DIR"), "/sql").as_ref()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        place.write(&format!("sql/{name}"), std::fs::read(&file).unwrap());
    }
}

/// Writes a copy of a model's file whose value after this text is changed. As text: a JSON value would round.
fn changed(place: &Place, path: &str, after: &str, change: impl Fn(&str) -> String) {
    let text = std::fs::read_to_string(place.path(path)).unwrap();
    let start = text.find(after).unwrap_or_else(|| panic!("{after}: {text}")) + after.len();
    let end = start + text[start..].find([',', '\n']).unwrap();
    place.write("changed.json", format!("{}{}{}", &text[..start], change(&text[start..end]), &text[end..]));
}

#[test]
fn a_model_is_what_its_receipt_says_or_what_differs_is_named() {
    let place = trained_twice();
    let all =
        ["price_rating", "price_rating@2", "price_rating@3@3", "price_rating@2@5", "rating_count@1@4", "discount@2@2"];
    for model in all {
        let said = place.ok(&["verify", model]);
        assert!(said.starts_with(model) && said.contains("is what its receipt says, to the bit"), "{said}");
    }
    // Rolled into one file, the records of the older models end in the middle of it.
    place.ok(&["compact", "--grace", "0"]);
    place.ok(&["compact", "--grace", "0"]);
    assert_eq!(files(&place.path("store/records")).len(), 2, "one file, and where it starts");
    for model in all {
        place.ok(&["verify", model]);
    }
    assert_eq!(files(&place.path("store/tmp")).len(), 0);

    let path = "store/models/discount/3.json";
    assert!(place.ok(&["verify", path]).starts_with("discount@3@3 "));
    let ulp = |text: &str| f64::from_bits(text.parse::<f64>().unwrap().to_bits() + 1).to_string();
    let to = |value: &'static str| move |_: &str| value.to_owned();
    let cases: [(&str, &dyn Fn(&str) -> String, &str); 6] = [
        ("\"discount_percentage\": ", &ulp, "the centroid of cluster 0 differs"),
        ("\"inertia\": ", &ulp, "inertia differs"),
        ("\"size\": ", &to("7"), "the size of cluster 0 differs: 7 in the model"),
        ("\"seed\": ", &to("7"), "it was trained with the seed 7"),
        ("\"rows_hash\": ", &to("\"0\""), "the rows are others than it was trained on"),
        ("\"next_offsets\": {\n      \"0\": ", &to("1400"), "the store holds 1400 of the 1465 records"),
    ];
    for (after, change, said) in cases {
        changed(&place, path, after, change);
        let error = place.fails(1, &["verify", "changed.json"]);
        assert!(error.contains("cannot verify discount@3@3: ") && error.contains(said), "{said}: {error}");
    }

    shipped_sql(&place);
    assert!(place.ok(&["verify", "discount"]).starts_with("discount@3@6 "));
    place.write("sql/32_discount.sql", "-- k: 3\n\nSELECT _partition, _offset, _timestamp, _slice, rating FROM slices");
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("the SQL changed since: the files of discount hash to "), "{error}");
    std::fs::remove_file(place.path("sql/32_discount.sql")).unwrap();
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("there is no SQL file of the segmentation discount any more"), "{error}");
    for (name, said) in [
        ("discount@3@2", "version 2 of discount is of slice 2; say discount@2@2"),
        ("discount@3@99", "discount has no version 99"),
        ("nothing", "there is no model of nothing"),
        ("nothing.json", "cannot read nothing.json"),
    ] {
        let error = place.fails(1, &["verify", name]);
        assert!(error.contains(said), "{name}: {error}");
    }
}

#[test]
fn a_model_whose_records_are_gone_is_not_vouched_for() {
    let place = Place::new();
    assert_eq!(place.up(&["--batch-rows", "500"]).interrupt().code, Some(0));
    place.ok(&["verify", "discount"]);
    let newest =
        files(&place.path("store/records")).into_iter().rfind(|path| path.ends_with("00000000000000001000.parquet"));
    std::fs::remove_file(newest.unwrap()).unwrap();
    let error = place.fails(1, &["verify", "discount"]);
    assert!(error.contains("records are gone: the store holds 1000 of the 1465 records"), "{error}");
}
