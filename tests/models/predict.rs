//! `tercile predict`: same answers as the API, in every row format.

use std::io::Write as _;
use std::process::Stdio;

use common::Place;
use serde_json::{Value, json};

use crate::common;

/// A trained store, and the API's answers for these rows of price and rating.
fn trained(rows: &str) -> (Place, Vec<Value>) {
    let place = Place::new();
    let up = place.up(&[]);
    let answers = up.post("/api/segments/price_rating/predict", rows).json();
    assert_eq!(up.interrupt().code, Some(0));
    (place, answers.as_array().unwrap().clone())
}

const ROWS: &str = r#"[{"discounted_price": 300, "rating": 4.5}, {"discounted_price": 1e5, "rating": 1}, {"discounted_price": 12.50, "rating": 3.9}]"#;

#[test]
fn every_format_gives_the_answers_of_the_api() {
    let (place, answers) = trained(ROWS);
    let cluster = |i: usize| answers[i]["cluster"].as_u64().unwrap();
    let words = |i: usize| answers[i]["description"].as_str().unwrap().to_owned();
    let distance = |i: usize| answers[i]["distance"].as_f64().unwrap();

    // Fields keep their text and order; added fields replace those of an earlier answer.
    let csv = "name,discounted_price,rating,description,cluster,distance\n\"a, \"\"b\"\"\",300,4.5,x,9,1\n₹,1e5,1,x,9,1\nc,12.50,3.9,x,9,1\n";
    place.write("rows.csv", csv);
    let out = place.ok(&["predict", "price_rating", "rows.csv"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "name,discounted_price,rating,cluster,description,distance");
    for (i, row) in ["\"a, \"\"b\"\"\",300,4.5", "₹,1e5,1", "c,12.50,3.9"].iter().enumerate() {
        assert_eq!(lines[i + 1], format!("{row},{},\"{}\",{}", cluster(i), words(i), distance(i)));
    }

    let ndjson = "{\"x\":{\"y\":[1]},\"rating\":4.5,\"discounted_price\":300}\n{\"discounted_price\":1e5,\"rating\":1}\n\n{\"discounted_price\":12.50,\"rating\":3.9,\"cluster\":7,\"distance\":1,\"description\":\"x\"}\n";
    place.write("rows.ndjson", ndjson);
    let out = place.ok(&["predict", "price_rating", "rows.ndjson"]);
    let expected: String = [
        r#"{"x":{"y":[1]},"rating":4.5,"discounted_price":300"#,
        r#"{"discounted_price":1e5,"rating":1"#,
        r#"{"discounted_price":12.50,"rating":3.9"#,
    ]
    .iter()
    .enumerate()
    .map(|(i, row)| {
        format!("{row},\"cluster\":{},\"description\":\"{}\",\"distance\":{}}}\n", cluster(i), words(i), distance(i))
    })
    .collect();
    assert_eq!(out, expected);

    place.write("rows.json", ROWS);
    let out: Value = serde_json::from_str(&place.ok(&["predict", "price_rating", "rows.json"])).unwrap();
    for (i, row) in out.as_array().unwrap().iter().enumerate() {
        assert_eq!((row["cluster"].as_u64(), row["distance"].as_f64()), (Some(cluster(i)), Some(distance(i))));
    }

    // Another format has the types that `sql --table` finds, and back in CSV only the spelling of numbers has changed.
    let typed = place.ok(&["predict", "price_rating", "rows.csv"]).replace("300,4.5", "300.0,4.5");
    let typed = typed.replace("1e5,1,", "100000.0,1.0,").replace("12.50", "12.5");
    for between in ["rows.parquet", "rows.arrow", "rows2.ndjson"] {
        place.ok(&["predict", "price_rating", "rows.csv", "-o", between]);
        assert_eq!(place.ok(&["predict", "price_rating", between, "--format", "csv"]), typed, "{between}");
    }
    assert!(
        std::fs::read_to_string(place.path("rows2.ndjson"))
            .unwrap()
            .contains("\"discounted_price\":300.0,\"rating\":4.5,")
    );
    // Fields of JSON become columns; of a pipe, too.
    let columns = place.ok(&["predict", "price_rating", "rows.ndjson", "--format", "csv"]);
    let lines: Vec<&str> = columns.lines().collect();
    assert_eq!(lines[0], "x,rating,discounted_price,cluster,description,distance");
    assert!(lines[1].starts_with("\"{\"\"y\"\":[1]}\",4.5,300.0,") && lines[3].starts_with(",3.9,12.5,"), "{columns}");
    let mut piped = place.command(&["predict", "price_rating", "-", "--format", "csv"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(ndjson.as_bytes()).unwrap();
    assert_eq!(piped.wait_with_output().unwrap().stdout, columns.as_bytes());
    // Fields named like the added ones stay, if no row is an earlier prediction.
    place.write("own.ndjson", "{\"discounted_price\":300,\"rating\":4.5,\"cluster\":\"gold\"}\n{\"discounted_price\":300,\"rating\":4.5,\"description\":\"late\",\"distance\":5.2}\n");
    let own = place.ok(&["predict", "price_rating", "own.ndjson", "--format", "csv"]);
    assert!(
        own.starts_with("discounted_price,rating,cluster,description,distance,cluster_2,description_2,distance_2\n"),
        "{own}"
    );
    assert!(own.contains("\n300,4.5,gold,,,") && own.contains("\n300,4.5,,late,5.2,"), "{own}");
    // Nested columns are JSON in CSV.
    let nested = "SELECT 300 AS discounted_price, 4.5 AS rating, named_struct('a', 1) AS s, [1, 2] AS l";
    place.ok(&["sql", "-o", "nested.parquet", "-c", nested]);
    let text = place.ok(&["predict", "price_rating", "nested.parquet", "--format", "csv"]);
    assert!(text.contains("\n300,4.5,\"{\"\"a\"\":1}\",\"[1,2]\","), "{text}");
    let indonesian = place.ok(&["predict", "price_rating", "rows.csv", "--lang", "id", "--model", "1"]);
    assert!(indonesian.contains("Harga"), "{indonesian}");
    assert_eq!(
        place.ok(&["predict", "price_rating", "rows.csv", "--format", "json", "--input-format", "csv"]).lines().count(),
        3
    );
}

#[test]
fn what_does_not_fit_is_named_by_line_and_field() {
    let (place, _) = trained(ROWS);
    for (rows, said) in [
        (
            "discounted_price,rating\n1,2\n3,\n",
            "rows, line 3: rating must be a number, is empty; correct it, or give --missing skip",
        ),
        ("discounted_price,rating\n1,₹2\n", "rows, line 2: rating must be a number, is \"₹2\""),
        ("discounted_price,rating\n1,nan\n", "line 2: rating must be a finite number"),
        ("discounted_price\n1\n", "no column rating"),
        ("discounted_price,rating\n1,2,3\n", "line 2: expected 2 fields as in the header, found 3"),
        ("[{\"discounted_price\":1,\"rating\":2},{\"discounted_price\":1}]", "rows, row 1: rating is missing; "),
        ("{\"discounted_price\":1,\"rating\":\"2\"}", "line 1: rating must be a number, is a string"),
        ("{\"discounted_price\":1,\"rating\":2,\"rating\":2}", "rows: line 1: rating stands twice"),
        ("{\"discounted_price\":1,\"rating\":1e400}", "line 1: rating is too large for a number"),
        ("[{\"discounted_price\":1,\"rating\":2}", "row 1: the array does not end"),
        ("[3]", "row 0: expected a JSON object, found 3"),
        ("{\"discounted_price\":1e300,\"rating\":2}", "line 1: discounted_price is too far from every cluster"),
        ("PAR1", "cannot read the rows"),
    ] {
        place.write("rows", rows);
        let error = place.fails(1, &["predict", "price_rating", "rows"]);
        assert!(error.contains(said), "{rows}: {error}");
    }
    // Line numbers are those of the file, whatever its line ends and quotes.
    for rows in ["discounted_price,rating\r\n1,2\r\n3,\r\n", "\u{feff}discounted_price,rating\n\n\"1\",3\n,4\n"] {
        place.write("rows", rows);
        let error = place.fails(1, &["predict", "price_rating", "rows"]);
        let line = rows.lines().position(|line| line.starts_with(',') || line.ends_with(',')).unwrap() + 1;
        assert!(error.contains(&format!("rows, line {line}: ")), "{rows:?}: {error}");
    }
    let error = place.fails(1, &["predict", "nothing", "rows"]);
    assert!(error.contains("has no model of \"nothing\", it has discount, price_rating, rating_count"), "{error}");
    assert_eq!(place.run(&["predict", "price_rating", "--model", "4"]).code, Some(2));
    place.write("empty.csv", "discounted_price,rating\n");
    assert_eq!(place.ok(&["predict", "price_rating", "empty.csv", "--format", "json"]), "[]\n");
}

#[test]
fn missing_values_are_refused_skipped_or_imputed_and_counted() {
    let (place, answers) = trained(ROWS);
    let cells = |i: usize| {
        format!(
            "{},\"{}\",{}",
            answers[i]["cluster"],
            answers[i]["description"].as_str().unwrap(),
            answers[i]["distance"]
        )
    };
    place.write("rows.csv", "id,discounted_price,rating,imputed\n1,300,4.5,x\n2,,4.1,x\n3,1e5,1,x\n4,₹99,nan,x\n");
    let predict = |more: &[&str]| place.run(&[&["predict", "price_rating", "rows.csv"], more].concat());
    let refused = predict(&["-o", "out.csv"]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("rows.csv, line 3: discounted_price must be a number, is empty"),
        "{}",
        refused.stderr
    );

    // Skipped rows keep their position and have no cluster.
    let skipped = predict(&["--missing", "skip"]);
    let expected = [
        "id,discounted_price,rating,imputed,cluster,description,distance".to_owned(),
        format!("1,300,4.5,x,{}", cells(0)),
        "2,,4.1,x,,,".to_owned(),
        format!("3,1e5,1,x,{}", cells(1)),
        "4,₹99,nan,x,,,".to_owned(),
    ];
    assert_eq!(
        (skipped.code, skipped.stdout.lines().collect::<Vec<_>>()),
        (Some(0), expected.iter().map(String::as_str).collect())
    );
    for said in [
        "rows.csv: discounted_price was missing in 2 of 4 rows (1 of them no number, such as `₹99` in line 5)",
        "rows.csv: rating was missing in 1 of 4 rows\n",
        "rows.csv: 2 of 4 rows have no cluster\n",
    ] {
        assert!(skipped.stderr.contains(said), "{said}: {}", skipped.stderr);
    }
    let json = predict(&["--missing", "skip", "--format", "ndjson"]).stdout;
    let line: Value = serde_json::from_str(json.lines().nth(1).unwrap()).unwrap();
    assert_eq!(line["id"], 2);
    for field in ["cluster", "description", "distance"] {
        assert!(line.as_object().unwrap()[field].is_null(), "{line}");
    }

    // Imputed rows get the cluster of a row at the mean, and are marked.
    let imputed = predict(&["--missing", "impute"]);
    let model: Value = serde_json::from_str(&place.ok(&["model", "show", "price_rating", "--format", "json"])).unwrap();
    let (price, rating) = (&model["mean"][0], &model["mean"][1]);
    place.write("mean.csv", format!("discounted_price,rating\n{price},4.1\n{price},{rating}\n"));
    let mean = place.ok(&["predict", "price_rating", "mean.csv"]);
    let of =
        |line: usize, skip: usize| mean.lines().nth(line).unwrap().splitn(skip + 1, ',').last().unwrap().to_owned();
    let expected = [
        "id,discounted_price,rating,imputed,cluster,description,distance,imputed_2".to_owned(),
        format!("1,300,4.5,x,{},", cells(0)),
        format!("2,,4.1,x,{},discounted_price", of(1, 2)),
        format!("3,1e5,1,x,{},", cells(1)),
        format!("4,₹99,nan,x,{},\"discounted_price,rating\"", of(2, 2)),
    ];
    assert_eq!(imputed.stdout.lines().collect::<Vec<_>>(), expected);
    let said = "rating was missing in 1 of 4 rows and took the model's mean\n";
    assert!(imputed.stderr.contains(said), "{}", imputed.stderr);
    let json = predict(&["--missing", "impute", "--format", "json"]).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        [&json[0]["imputed_2"], &json[3]["imputed_2"]],
        [&serde_json::json!([]), &serde_json::json!(["discounted_price", "rating"])]
    );

    // The same in every format.
    place.write("rows.ndjson", "{\"discounted_price\":300,\"rating\":4.5}\n\n{\"rating\":4.1}\n{\"discounted_price\":\"₹99\",\"rating\":null}\n");
    let error = place.fails(1, &["predict", "price_rating", "rows.ndjson"]);
    assert!(error.contains("rows.ndjson, line 3: discounted_price is missing; correct it"), "{error}");
    for (choice, file) in
        [("skip", "skip.parquet"), ("impute", "impute.parquet"), ("skip", "skip.arrow"), ("impute", "impute.arrow")]
    {
        let args = ["predict", "price_rating", "rows.ndjson", "--missing", choice, "-o", file];
        let ended = place.run(&args);
        let example = "discounted_price was missing in 2 of 3 rows";
        assert!(
            ended.code == Some(0)
                && ended.stderr.contains(example)
                && ended.stderr.contains("such as `\"₹99\"` in line 4"),
            "{}",
            ended.stderr
        );
        let back = place.ok(&["predict", "price_rating", file, "--missing", choice, "--format", "csv"]);
        let clusters: Vec<bool> = back.lines().skip(1).map(|line| line.contains(",,")).collect();
        assert_eq!(back.lines().count(), 4, "{back}");
        assert_eq!(clusters[2], choice == "skip" || back.contains(",,"), "{back}");
    }

    // Tabs, recognised by the file name and by the first line.
    let tabs = "id\tdiscounted_price\trating\n1\t300\t4.5\n\"a\tb\"\t\t4\n";
    place.write("tabs.tsv", tabs);
    place.write("tabs.txt", tabs);
    let error = place.fails(1, &["predict", "price_rating", "tabs.tsv"]);
    assert!(error.contains("tabs.tsv, line 3: discounted_price must be a number, is empty"), "{error}");
    let expected = format!(
        "id\tdiscounted_price\trating\tcluster\tdescription\tdistance\n1\t300\t4.5\t{}\n\"a\tb\"\t\t4\t\t\t\n",
        cells(0).replace("\",", "\t").replace(",\"", "\t")
    );
    for file in ["tabs.tsv", "tabs.txt"] {
        assert_eq!(place.ok(&["predict", "price_rating", file, "--missing", "skip"]), expected, "{file}");
    }

    // Without rows, the columns are still written.
    place.write("none.csv", "id,discounted_price,rating\n");
    let header = "id,discounted_price,rating,cluster,description,distance\n";
    assert_eq!(place.ok(&["predict", "price_rating", "none.csv"]), header);
    place.write("none.ndjson", "");
    place.write("none.json", "[]");
    assert_eq!(place.ok(&["predict", "price_rating", "none.ndjson"]), "");
    assert_eq!(place.ok(&["predict", "price_rating", "none.json"]), "[]\n");
    for file in ["none.parquet", "none.arrow"] {
        place.ok(&["predict", "price_rating", "none.csv", "-o", file]);
        assert_eq!(place.ok(&["predict", "price_rating", file, "--format", "csv"]), header, "{file}");
        assert_eq!(place.ok(&["predict", "price_rating", file, "--format", "json"]), "[]\n", "{file}");
    }
    place.ok(&["predict", "price_rating", "none.ndjson", "--input-format", "ndjson", "-o", "objects.csv"]);
    let objects = std::fs::read_to_string(place.path("objects.csv")).unwrap();
    assert_eq!(objects, "discounted_price,rating,cluster,description,distance\n");
    place.write("wrong.csv", "id,price\n");
    assert!(place.fails(1, &["predict", "price_rating", "wrong.csv"]).contains("no column discounted_price"));
}

/// Columns of the rows that have the names of added ones stay, and the added ones are numbered.
#[test]
fn columns_of_the_rows_are_kept() {
    let place = Place::new();
    let rows =
        "id,distance,fare,cluster,description\n0,0.65,3.85,C0,text 0\n1,5.20,12.71,C1,text 1\n2,20.1,50.2,C2,text 2\n";
    place.write("trips.csv", rows);
    place.ok(&["fit", "trips.csv", "--features", "distance,fare", "--k", "3", "--model", "m.json", "-o", "rows.csv"]);
    let header = "id,distance,fare,cluster,description,cluster_2,description_2,distance_2";
    let text = std::fs::read_to_string(place.path("rows.csv")).unwrap();
    assert_eq!(text.lines().next().unwrap(), format!("{header},imputed"));
    assert!(text.lines().nth(1).unwrap().starts_with("0,0.65,3.85,C0,text 0,"), "{text}");
    place.ok(&["predict", "m.json", "trips.csv", "-o", "trips.csv"]);
    let once = std::fs::read_to_string(place.path("trips.csv")).unwrap();
    assert_eq!(once.lines().next(), Some(header));
    for (line, row) in once.lines().zip(rows.lines()).skip(1) {
        assert!(line.starts_with(&format!("{row},")), "{line}");
    }
    // Objects are numbered one by one.
    place.write(
        "trips.ndjson",
        "{\"distance\":0.65,\"fare\":3.85,\"cluster\":\"C0\"}\n{\"fare\":12.71,\"distance\":5.2}\n",
    );
    let objects = place.ok(&["predict", "m.json", "trips.ndjson"]);
    let objects: Vec<Value> = objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&objects[0]["cluster"], &objects[0]["distance"]), (&json!("C0"), &json!(0.65)));
    assert!(
        objects[0]["cluster_2"].is_u64() && objects[0]["distance_2"].is_f64() && objects[0]["description"].is_string()
    );
    assert!(
        objects[1]["cluster"].is_u64() && objects[1]["distance"] == json!(5.2) && objects[1]["distance_2"].is_f64()
    );
    // An answer is answered anew.
    place.write("plain.csv", "id,a\n1,1\n2,2\n3,9\n");
    place.ok(&["fit", "plain.csv", "--features", "a", "--k", "2", "--model", "a.json"]);
    for again in [false, true] {
        let ended = place.run(&["predict", "a.json", "plain.csv", "-o", "plain.csv"]);
        assert_eq!((ended.code, ended.stderr.contains("of an earlier prediction were replaced")), (Some(0), again));
        let text = std::fs::read_to_string(place.path("plain.csv")).unwrap();
        assert!(text.starts_with("id,a,cluster,description,distance\n"), "{text}");
    }
    place.write("typo.ndjson", "{\"b\":1}\n{\"b\":2}\n");
    for policy in ["impute", "skip"] {
        let error = place.fails(1, &["predict", "a.json", "typo.ndjson", "--missing", policy]);
        assert!(error.contains("no row has the field a, which the model needs"), "{error}");
    }
    place.write("rows.json", "[{\"a\":1},{\"a\":2},{\"a\":9}]");
    for flag in ["--output", "--model"] {
        let error = place.fails(2, &["fit", "rows.json", "--features", "a", "--k", "2", flag, "./rows.json"]);
        assert!(error.contains(&format!("{flag} would replace the rows of rows.json")), "{error}");
    }
    place.write("own.csv", "a,reason,cluster,description,distance\n1,mine,0,x,1\n");
    let ended = place.run(&["predict", "a.json", "own.csv"]);
    assert!(ended.stderr.contains("cluster, description, distance, reason of an earlier"), "{}", ended.stderr);
}

/// Rows with a decimal comma are written with it, and can be read again.
#[test]
fn rows_of_fit_have_the_dialect_of_the_file() {
    let place = Place::new();
    place.write("de.csv", "Code;Preis;Bewertung\n1;10,28;1,38\n2;47,21;5,3\n3;199,22;2,92\n");
    place.ok(&["fit", "de.csv", "--features", "Preis,Bewertung", "--k", "3", "--model", "m.json", "-o", "rows.csv"]);
    let rows = std::fs::read_to_string(place.path("rows.csv")).unwrap();
    assert!(rows.starts_with("Code;Preis;Bewertung;cluster;description;distance;imputed\n1;10,28;1,38;"), "{rows}");
    let again = place.ok(&["predict", "m.json", "rows.csv"]);
    assert!(again.starts_with("Code;Preis;Bewertung;cluster;description;distance"), "{again}");
}
