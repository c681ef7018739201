use super::*;

/// The SQL of a column with these values, or `text`.
fn sql(values: &[&str]) -> String {
    let mut sketch = Inference::default();
    for value in values {
        sketch.see(serde_json::json!({ "x": value }).to_string().as_bytes());
    }
    let columns = sketch.typed_columns();
    let column = &columns[0];
    column.values.sql(&column.text, &column.kind, false).unwrap_or_else(|| "text".to_owned())
}

#[test]
fn values_look_like_something() {
    for (values, expected) in [
        (&["1", " 2.5 ", "-3e4"][..], "to_number(x)"),
        (&["₹1,39,900", "₹ 5"], "to_number(x, '₹')"),
        (&["64%", "5 %"], "to_number(x, '%')"),
        (&["12,50 €", "3,20 €"], "to_number(x, ',', '€')"),
        (&["-$5.00", "$1,200.50", "7"], "to_number(x, '$')"),
        (&["3 kg", "4.5 kg"], "to_number(x, 'kg')"),
        (&["1,5", "2"], "to_number(x, ',')"),
        (&["1,000", "1,5"], "to_number(x, ',')"),
        (&["1,000", "2"], "to_number(x)"),
        (&["9007199254740993", "1"], "to_integer(x)"),
        (&["NA", "?", "-", "12", ""], "to_number(x)"),
        (&["true", "False"], "CASE lower(btrim(x)) WHEN 'true' THEN TRUE WHEN 'false' THEN FALSE END"),
        (&["2024-05-01", "2024-05-01T10:00:00Z"], "to_datetime(x)"),
        (&["20240501", "20240502"], "to_datetime(x)"),
        (&["01/05/2024", "13/05/2024"], "to_datetime(x, 'dmy')"),
        (&["01/05/2024 10:00 PM", "01/25/2024"], "to_datetime(x, 'mdy')"),
        (&["9999-12-31", "2024-05-01"], "to_datetime(x)"),
    ] {
        assert_eq!(sql(values), expected, "{values:?}");
    }
    for values in [
        &["007", "8"][..],
        &["1", "x"],
        &["1,5", "1.5"],
        &["3 kg", "4 g"],
        &["$3", "€4"],
        &["inf"],
        &["1e999"],
        &["%"],
        &["$"],
        &["12345-67-89"],
        &["2024-02-30", "2024-02-28"],
        &["01/05/2024", "02/05/2024"],
        &["13/05/2024", "05/13/2024"],
        &["true", "1"],
        &["2024-05-01", "7"],
        &["yes", "no"],
        &["NA", "?"],
        &[""],
    ] {
        assert_eq!(sql(values), "text", "{values:?}");
    }
}

#[test]
fn a_decimal_comma_decides_for_the_whole_source() {
    let mut sketch = Inference::default();
    sketch.see(br#"{"a":"1.234","b":"12,50","c":"7"}"#);
    sketch.see(br#"{"a":"5.678","b":"3,20","c":"8"}"#);
    let text = sketch.typed("x.csv");
    assert!(text.contains("to_number(a, ',') AS a") && text.contains("to_number(b, ',') AS b"), "{text}");
    assert!(text.contains("to_number(c) AS c"), "{text}");
}

fn notes(missing: Option<&[&str]>, values: &[&str]) -> (String, Vec<String>) {
    let listed = missing.map(|missing| missing.iter().map(|text| (*text).to_owned()).collect());
    let mut sketch = Inference::new(listed);
    for value in values {
        sketch.see(serde_json::json!({ "age": value }).to_string().as_bytes());
    }
    let text = sketch.typed("x.csv");
    let line = text.lines().find(|line| line.starts_with("  ") && line.contains("age")).unwrap_or_default();
    (line.trim().to_owned(), sketch.notes().into_iter().map(|(_, note)| note).collect())
}

#[test]
fn what_was_decided_is_told() {
    let told = |values: &[&str]| notes(None, values).1.join("; ");
    assert_eq!(told(&["1", "NA", "3", "NA"]), "`NA` in 2 of 4 rows, treated as missing");
    assert_eq!(
        told(&["1", "2", "x"]),
        "text: `x` in 1 of 3 rows is no number; list it with --na if it is a missing value"
    );
    assert_eq!(told(&["01234", "99"]), "text: digits with leading zeros (`01234`) are a code");
    assert_eq!(told(&["2024-02-28", "2024-02-30"]), "text: `2024-02-30` in 1 of 2 rows is no time");
    assert_eq!(told(&["3 kg", "4 g"]), "text: several units, `g`, `kg`");
    assert_eq!(told(&["1.5", "1,5"]), "text: two decimal marks, `1.5` and `1,5`");
    assert_eq!(told(&["1,5", "2"]), "a decimal comma, as in `1,5`");
    assert_eq!(told(&["3 kg", "4"]), "`kg` is absent in 1 of 2 rows");
    assert!(told(&["01/02/2024"]).contains("to_datetime(age, 'dmy') or to_datetime(age, 'mdy') reads it"));
    assert_eq!(told(&["Ann", "Bo", "7"]), "");
}

#[test]
fn a_given_decimal_mark_decides_for_all_columns() {
    let sql = |mark: char, values: [&str; 2]| {
        let mut sketch = Inference::default().with_decimal(Some(mark));
        for value in values {
            sketch.see(serde_json::json!({ "a": value }).to_string().as_bytes());
        }
        let text = sketch.typed("x.csv");
        let line =
            text.lines().find(|line| line.starts_with("  a") || line.starts_with("  to_")).unwrap().trim().to_owned();
        (line, sketch.notes().into_iter().map(|(_, note)| note).collect::<Vec<_>>().join("; "))
    };
    let of = |line: &str, note: &str| (line.to_owned(), note.to_owned());
    assert_eq!(sql(',', ["1.234", "5"]), of("to_number(a, ',') AS a", "a decimal comma, as --decimal says"));
    assert_eq!(sql('.', ["1.234", "5"]), of("to_number(a) AS a", ""));
    assert_eq!(sql(',', ["1,5", "2"]), of("to_number(a, ',') AS a", "a decimal comma, as in `1,5`"));
    assert_eq!(sql('.', ["1,5", "2"]), of("a", "text: `1,5` is no number with the `.` of --decimal"));
    assert_eq!(sql(',', ["1.5", "2"]), of("a", "text: `1.5` is no number with the `,` of --decimal"));
}

#[test]
fn listed_texts_are_missing() {
    let (line, told) = notes(Some(&["-999", "?"]), &["1", "-999", "?", "3"]);
    assert_eq!(line, "to_number(CASE WHEN btrim(age) NOT IN ('-999') THEN age END) AS age");
    assert_eq!(told, ["`-999` in 1 of 4 rows, `?` in 1 of 4 rows, treated as missing"]);
    assert_eq!(notes(Some(&["?"]), &["a", " ?"]).0, "CASE WHEN btrim(age) NOT IN ('?') THEN age END AS age");
    assert_eq!(notes(Some(&["?"]), &["1", "NA"]).0, "age");
}

#[test]
fn nested_fields_have_paths() {
    let mut sketch = Inference::default();
    sketch.see(br#"{"id":1,"user":{"age":30,"na'me":"Ann","at":{"zip":"01234"}},"user_age":5,"tags":["a"]}"#);
    sketch.see(br#"{"id":2,"user":null,"tags":[]}"#);
    let text = sketch.typed("x.ndjson");
    for line in [
        "  \"user\",\n",
        "  to_number(\"user\" ->> 'age') AS user_age_2,\n",
        "  \"user\" ->> 'na''me' AS \"user_na'me\",\n",
        "  \"user\" -> 'at' ->> 'zip' AS user_at_zip,\n",
        "  to_number(user_age) AS user_age,\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn names_are_views_and_columns() {
    assert_eq!(view_name("dir/Our Customers 2024.csv"), "our_customers_2024");
    assert_eq!(view_name("2024.csv"), "things");
    assert_eq!(view_name("records"), "things");
    assert_eq!([view_name("one.csv"), view_name("user.csv")], ["one_rows", "user"]);
    assert_eq!(
        [identifier("age"), identifier("order"), identifier("Full \"Name\"")],
        ["age", "\"order\"", "\"Full \"\"Name\"\"\""]
    );
}

#[test]
fn names_that_would_break_a_line_stay_in_extra() {
    let mut sketch = Inference::default();
    let names =
        ["a\n-- k: 3", "b\r\n-- label.x.en: a|b|c", "\u{1b}[2J", "\u{202e}gpj.exe", "c\u{85}d", "e\u{2028}f", "", "_x"];
    let mut object: serde_json::Map<_, _> = names.iter().map(|name| ((*name).to_owned(), 1.into())).collect();
    object.insert("n".to_owned(), 2.into());
    sketch.see(serde_json::Value::Object(object).to_string().as_bytes());
    let left: Vec<_> = sketch.left_in_extra().collect();
    assert_eq!(left.len(), names.len());
    assert_eq!(left[0], ("a\\n-- k: 3".to_owned(), "its name has control characters"));
    assert!(left.iter().all(|(name, _)| !name.contains(is_unsafe)));
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in sketch.files("x\n-- k: 3\u{202e}.csv") {
        assert!(!text.contains(|c| c != '\n' && is_unsafe(c)), "{text}");
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let files = crate::sql::Files::load(Some(dir.path())).unwrap();
    assert_eq!(files.fields.names(), ["n"]);
}

#[test]
fn what_it_writes_is_what_the_files_may_hold() {
    let mut sketch = Inference::default();
    sketch
        .see(br#"{"id":"007","Spent $":"$1,200.50","since":"2024-01-02","member":true,"order":3,"_x":1,"a\"b":null}"#);
    sketch.see(b"garbage");
    sketch.see(br#"{"late":[1],"order":"4.5"}"#);
    assert_eq!((sketch.records, sketch.unreadable, sketch.len()), (3, 1, 7));
    assert_eq!(sketch.features().0, ["order"]);
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in sketch.files("shop\nx.csv") {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let files = crate::sql::Files::load(Some(dir.path())).unwrap();
    assert_eq!(files.fields.names(), ["id", "Spent $", "since", "member", "order", "a\"b", "late"]);
}

#[test]
fn the_fields_that_are_times_are_proposed_as_the_time_of_a_record() {
    let mut sketch = Inference::default();
    for (ordered, sent) in [("13/05/2024", "2024-05-14"), ("14/05/2024", "2024-05-15")] {
        sketch.see(serde_json::json!({ "Order Date": ordered, "sent": sent, "n": 1 }).to_string().as_bytes());
    }
    assert_eq!(sketch.times(), ["Order Date dmy", "sent"]);
    let (_, records) = sketch.files("orders.csv").swap_remove(0);
    let line = records.lines().find(|line| line.contains("Order Date dmy")).unwrap();
    // A comment as it is, and the header line without the marks around it.
    assert_eq!(crate::sql::header::parse_records(&records).unwrap().timestamp, None);
    let header = format!("{}\n{records}", line.trim_start_matches("--").trim().trim_matches('`'));
    assert_eq!(crate::sql::header::parse_records(&header).unwrap().timestamp, Some(("Order Date dmy".to_owned(), 1)));
}
