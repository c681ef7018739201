//! `tercile sql`: what users of DuckDB and PostgreSQL try first, and errors in words of SQL.

use common::Place;

use crate::common;

fn answer(place: &Place, sql: &str) -> String {
    place.ok(&["sql", "-f", "csv", "-c", sql])
}

#[test]
fn statements_of_other_databases_run() {
    let place = Place::new();
    for (sql, expected) in [
        ("-- a comment first\nSELECT 1 AS a", "a\n1\n"),
        ("--\nSELECT 1 AS a -- last", "a\n1\n"),
        ("FROM range(5) WHERE value > 2 ORDER BY value", "value\n3\n4\n"),
        ("FROM range(3) ORDER BY value DESC LIMIT 1", "value\n2\n"),
        ("WITH t AS (FROM range(5) WHERE value > 3) FROM t", "value\n4\n"),
        ("CREATE VIEW v AS FROM range(2) WHERE value > 0; FROM v", "value\n1\n"),
        ("SELECT * EXCEPT (value) FROM (SELECT 1 AS a, 2 AS value)", "a\n1\n"),
        ("SELECT to_char(TIMESTAMP '2024-05-06T07:08:09', 'YYYY-MM-DD HH24:MI') AS a", "a\n2024-05-06 07:08\n"),
        ("SELECT to_date('06/05/2024', 'DD/MM/YYYY') AS a", "a\n2024-05-06\n"),
        ("SELECT md5('a') AS a", "a\n0cc175b9c0f1b6a831c399e269772661\n"),
        (
            "SET TIME ZONE 'Europe/Berlin'; SELECT arrow_typeof(now()) AS a",
            "a\n\"Timestamp(ns, \"\"Europe/Berlin\"\")\"\n",
        ),
        // Columns that occur twice.
        ("SELECT *, value FROM range(1)", "value,value_2\n0,0\n"),
        ("SELECT *, value + 1 AS value, 7 AS b FROM range(1) ORDER BY b", "value,value_2,b\n0,1,7\n"),
        ("SELECT * FROM range(1) AS a, range(1) AS b", "value,value_2\n0,0\n"),
        ("SELECT DISTINCT value, value FROM range(1)", "value,value_2\n0,0\n"),
        ("SELECT DISTINCT value + 1 FROM range(1)", "value + 1\n1\n"),
    ] {
        assert_eq!(answer(&place, sql), expected, "{sql}");
    }
    let json = place.ok(&["sql", "-f", "ndjson", "-c", "SELECT * FROM range(1) AS a, range(1) AS b"]);
    assert_eq!(json, "{\"value\":0,\"value_2\":0}\n");
    answer(&place, "COPY (SELECT *, value FROM range(1)) TO 'twice.csv'");
    assert_eq!(std::fs::read_to_string(place.path("twice.csv")).unwrap(), "value,value_2\n0,0\n");
    let text = ["sql", "-f", "csv", "--param", "zip:text=12", "-c", "SELECT $zip AS zip, arrow_typeof($zip) AS type"];
    assert_eq!(place.ok(&text), "zip,type\n12,Utf8\n");
}

#[test]
fn json_values_keep_all_numbers_in_comparisons_and_casts() {
    let place = Place::new();
    let values = [r#"1"#, r#"2.5"#, r#"2"#, r#""a""#, r#"null"#, r#""2""#, r#"true"#, r#"9007199254740993"#];
    let lines: String = values.iter().map(|value| format!("{{\"u\":{{\"f\":{value}}}}}\n")).collect();
    place.write("t.ndjson", lines);
    // Both forms: the field itself, and a column of a subquery, whose document the engine does not see.
    for from in ["(SELECT u, u -> 'f' AS x FROM t)", "t"] {
        let x = if from == "t" { "u -> 'f'" } else { "x" };
        for (condition, expected) in [
            ("$x > 1.5", "2.5 2 2 9007199254740993"),
            ("1.5 < $x", "2.5 2 2 9007199254740993"),
            ("$x < 2.5", "1 2 2"),
            ("$x > 1", "2.5 2 2 9007199254740993"),
            ("$x = 2", "2 2"),
            ("$x <> 2", "1 2.5 9007199254740993"),
            ("$x = 9007199254740992", ""),
            ("$x IN (1, 2)", "1 2 2"),
            ("$x NOT IN (1, 2.5)", "2 2 9007199254740993"),
            ("$x BETWEEN 1 AND 2.4", "1 2 2"),
            ("$x NOT BETWEEN 1 AND 2.4", "2.5 9007199254740993"),
            ("$x IS DISTINCT FROM 2", "1 2.5 a null true 9007199254740993"),
            ("$x = 'a'", "a"),
            ("$x <> 'a'", "1 2.5 2 2 true 9007199254740993"),
            ("$x LIKE 'a%' OR $x ~ '^2.'", "2.5 a"),
            ("$x IN ('a', 'b')", "a"),
            ("$x IS TRUE", "true"),
            ("CASE $x WHEN 2 THEN true WHEN 2.5 THEN true ELSE false END", "2.5 2 2"),
            ("CAST($x AS DOUBLE) > 1.5", "2.5 2 2 9007199254740993"),
            ("CAST($x AS INT) = 2", "2 2"),
            ("CAST($x AS SMALLINT) < 3", "1 2 2"),
            ("CAST($x AS DECIMAL(20,1)) < 2.6", "1 2.5 2 2"),
            ("CAST($x AS TEXT) = 'true'", "true"),
            ("length($x) = 3", "2.5"),
        ] {
            let condition = condition.replace("$x", x);
            let sql = format!("SELECT coalesce(u ->> 'f', 'null') AS f FROM {from} WHERE {condition}");
            let ended = place.run(&["sql", "--table", "t=t.ndjson", "-f", "csv", "-c", &sql]);
            let found: Vec<&str> = ended.stdout.lines().skip(1).collect();
            assert_eq!(found.join(" "), expected, "{condition}: {}", ended.stderr);
        }
    }
    let join = "SELECT count(*) AS n FROM t a JOIN t b ON a.u -> 'f' = b.u -> 'f'";
    // 2 and "2" differ, null equals nothing.
    assert_eq!(place.ok(&["sql", "--table", "t=t.ndjson", "-f", "csv", "-c", join]), "n\n7\n");
    let join = "SELECT v FROM t JOIN range(3) AS r(v) ON (u -> 'f') = v ORDER BY v";
    assert_eq!(place.ok(&["sql", "--table", "t=t.ndjson", "-f", "csv", "-c", join]), "v\n1\n2\n2\n");
}

#[test]
fn times_zones_and_intervals_are_as_in_postgresql() {
    let place = Place::new();
    place.write("t.csv", "d,n,s,local\n2024-01-31,3,1704189600,2024-07-01 10:00:00\n");
    for (expression, expected) in [
        ("TIMESTAMPTZ '2024-01-02T10:00:00Z' AT TIME ZONE 'Europe/Oslo'", "2024-01-02T11:00:00+01:00"),
        ("CAST('2024-01-02T10:00:00Z' AS TIMESTAMPTZ) AT TIME ZONE 'Europe/Oslo'", "2024-01-02T11:00:00+01:00"),
        ("now() AT TIME ZONE 'UTC' = now() AT TIME ZONE 'Europe/Oslo'", "true"),
        ("current_timestamp AT TIME ZONE 'Asia/Tokyo' = now() AT TIME ZONE 'UTC'", "true"),
        ("to_timestamp(s) AT TIME ZONE 'Asia/Tokyo'", "2024-01-02T19:00:00+09:00"),
        ("to_timestamp_millis(s * 1000) AT TIME ZONE 'Asia/Tokyo'", "2024-01-02T19:00:00+09:00"),
        ("local::timestamp AT TIME ZONE 'Europe/Oslo'", "2024-07-01T10:00:00+02:00"),
        ("d::date + INTERVAL '36 hours'", "2024-02-01T12:00:00"),
        ("INTERVAL '1 month' + d::date", "2024-02-29T00:00:00"),
        ("DATE '9999-12-31' - INTERVAL '1 hour'", "9999-12-30T23:00:00"),
        ("d::date + 1", "2024-02-01"),
        ("d::date + INTERVAL '1 day' * n", "2024-02-03T00:00:00"),
        ("d::date - n * INTERVAL '90 minutes'", "2024-01-30T19:30:00"),
        ("DATE '2024-01-01' + INTERVAL '1 day' = DATE '2024-01-02'", "true"),
    ] {
        let sql = format!("SELECT {expression} AS x FROM t");
        let found = place.ok(&["sql", "--table", "t=t.csv", "-f", "csv", "-c", &sql]);
        assert_eq!(found, format!("x\n{expected}\n"), "{expression}");
    }
}

/// Operands of different types are compared without a loss.
#[test]
fn comparisons_lose_nothing() {
    let place = Place::new();
    place.write(
        "k.ndjson",
        "{\"u\":{\"a\":10}}\n{\"u\":{\"a\":2.5}}\n{\"u\":{\"a\":\"x\"}}\n{\"u\":{\"a\":9}}\n{\"u\":{}}\n",
    );
    place.write("flag.csv", "id,active\n1,true\n2,false\n");
    place.write("a.csv", "v\n1\n2\n");
    let copy =
        "COPY (SELECT DATE '2024-01-01' AS d, DATE '2024-02-15' AS e, CAST(2.25 AS DECIMAL(10,2)) AS n) TO 'd.parquet'";
    place.ok(&["sql", "-c", copy]);
    let tables = ["k=k.ndjson", "flag=flag.csv", "a=a.csv", "d=d.parquet"].map(|table| format!("--table={table}"));
    let run = |query: &str| {
        let arguments = tables.iter().map(String::as_str).chain(["-f", "csv", "-c", query]);
        place.run(&[&["sql"][..], &arguments.collect::<Vec<_>>()].concat())
    };
    for (query, expected) in [
        ("SELECT TIMESTAMP '2024-01-10' - TIMESTAMP '2024-01-01' > INTERVAL '1 day'", "true"),
        ("SELECT INTERVAL '25 hours' > INTERVAL '1 day'", "true"),
        ("SELECT INTERVAL '1 day' IN (INTERVAL '24 hours')", "true"),
        ("SELECT INTERVAL '60 days' BETWEEN INTERVAL '1 month' AND INTERVAL '2 months'", "true"),
        ("SELECT now() - TIMESTAMP '2024-01-01' < INTERVAL '30 days'", "false"),
        ("SELECT CAST(1e-20 AS DOUBLE) = x FROM (VALUES (CAST(0 AS DECIMAL(20,2)))) t(x)", "false"),
        ("SELECT x > CAST(1 AS DECIMAL(10,2)) FROM (VALUES (1e15)) t(x)", "true"),
        ("SELECT coalesce(x, CAST(1 AS DECIMAL(10,2))) = 1e16 FROM (VALUES (1e16)) t(x)", "true"),
        ("SELECT CASE WHEN x > 1 THEN x ELSE CAST(1 AS DECIMAL(10,2)) END = 1e16 FROM (VALUES (1e16)) t(x)", "true"),
        ("SELECT CAST(1.5 AS DECIMAL(10,2)) > 1.4", "true"),
        ("SELECT n % 1 FROM (SELECT CAST(2.25 AS DECIMAL(10,2)) AS n)", "0.25"),
        ("SELECT coalesce(n, 0) % 1 FROM d", "0.25"),
        ("SELECT e - d FROM d WHERE e - d > 30", "45"),
        ("SELECT (TIMESTAMPTZ '2024-01-01T22:00:00Z' AT TIME ZONE 'Asia/Kolkata') >= DATE '2024-01-02'", "true"),
        ("SELECT id FROM flag WHERE active = 'true'", "1"),
        ("SELECT 1_000_000", "1000000"),
        ("SELECT u -> 'a' AS a FROM k ORDER BY a", "2.5 9 10 \"\"\"x\"\"\" "),
        ("SELECT u ->> 'a' AS a FROM k ORDER BY u -> 'a' DESC LIMIT 3", " x 10"),
        ("SELECT u ->> 'a' AS a FROM k ORDER BY u -> 'a' DESC NULLS LAST LIMIT 2", "x 10"),
    ] {
        let ended = run(query);
        let rows: Vec<&str> = ended.stdout.lines().skip(1).map(|row| if row == "\"\"" { "" } else { row }).collect();
        assert_eq!(rows.join(" "), expected, "{query}: {}", ended.stderr);
    }
    for (query, expected) in [
        ("SELECT v FROM a EXCEPT ALL SELECT v FROM a", "EXCEPT ALL and INTERSECT ALL are not supported"),
        ("SELECT v FROM a RIGHT JOIN a AS b USING (v)", "RIGHT and FULL joins with USING or NATURAL would lose keys"),
        ("SELECT v FROM a WHERE v NOT IN (SELECT v FROM a) OR v > 1", "NOT IN (SELECT …) can stand in WHERE by itself"),
        ("SELECT now() AT TIME ZONE 'PST'", "there is no such time zone"),
        ("SELECT INTERVAL '1 hour' * 1.5", "an interval can be multiplied by whole numbers only"),
        ("SELECT TIMESTAMP '2024-01-01 10:30'", "a TIMESTAMP has seconds"),
        (
            "SELECT TIMESTAMP '2024-03-31 02:30:00' AT TIME ZONE 'Europe/Berlin'",
            "a local time does not exist in the zone",
        ),
        ("SELECT count(v), count(v::text) FROM a", "two expressions differ by a cast only"),
        ("SELECT 1 / (v - 1) FROM a", "write a / nullif(b, 0)"),
    ] {
        let ended = run(query);
        assert!(ended.code == Some(1) && ended.stderr.contains(expected), "{query}: {}", ended.stderr);
    }
    assert_eq!(run("SELECT v FROM a WHERE v NOT IN (SELECT v FROM a WHERE v = 1) AND v > 0").stdout, "v\n2\n");
}

/// A condition keeps rows away from what fails for them.
#[test]
fn conditions_guard_the_terms_after_them() {
    let place = Place::new();
    place.write("t.csv", "a,s\n10,abc\n0,12\n4,3\n,25\n");
    for (condition, expected) in [
        ("a <> 0 AND 10 / a > 1", "4"),
        ("a <> 0 AND a > 1 AND 10 % a = 2", "4"),
        ("CASE WHEN a <> 0 THEN 10 / a > 1 ELSE false END", "4"),
        ("CASE WHEN a = 0 THEN NULL WHEN a = 10 THEN true ELSE 10 / a > 1 END", "10 4"),
        ("s <> 'abc' AND CAST(s AS INT) > 5", "0 "),
        ("s <> 'abc' AND s::int > 5 AND a IS NOT NULL", "0"),
        ("CASE WHEN s = 'abc' THEN false ELSE s::int > 20 END", ""),
    ] {
        let sql = format!("SELECT a FROM t WHERE {condition}");
        let ended = place.run(&["sql", "--table", "t=t.csv", "-f", "csv", "-c", &sql]);
        let rows: Vec<&str> = ended.stdout.lines().skip(1).map(|row| row.trim_matches('"')).collect();
        assert_eq!((rows.join(" ").as_str(), ended.code), (expected, Some(0)), "{condition}: {}", ended.stderr);
    }
    let error = place.fails(1, &["sql", "--table", "t=t.csv", "-c", "SELECT a FROM t WHERE 10 / a > 1 AND a <> 0"]);
    assert!(error.contains("Divide by zero"), "{error}");
}

#[test]
fn errors_are_in_words_of_sql_with_their_place() {
    let place = Place::new();
    place.write("t.csv", "rating,name\n4.5,a\n4.2|,b\n");
    for (sql, expected) in [
        ("SELECT 1;\nSELECT 1 / 0", "line 2, column 1: Divide by zero"),
        (
            "SELECT 1;\nSELECT CAST(concat('a', value) AS INT) FROM range(3)",
            "line 2, column 1: Cannot cast string 'a0'",
        ),
        ("SELECT 1,\n  CAST('abc' AS INT)", "line 2, column 8: Cannot cast string 'abc'"),
        ("SELECT 1; /* open\nSELECT 2;", "line 1, column 11: the comment that begins here has no end"),
        ("/* open", "line 1, column 1: the comment that begins here has no end"),
        (
            "SELECT * FROM t\nWHERE rating > 4",
            "line 2, column 7: 'rating' is text, and '4.5' is no whole number; write TRY_CAST(rating AS DOUBLE)",
        ),
        ("SELECT * FROM t WHERE rating BETWEEN 4 AND 5", "'rating' is text"),
        ("SELECT rating + 1 FROM t", "make numbers of texts with to_number(…) or CAST"),
        ("SELECT *\nFROM t PIVOT (sum(rating) FOR name IN ('a'))", "line 2, column 8: PIVOT is not supported; write"),
        ("SELECT * FROM t UNPIVOT (v FOR n IN (rating, name))", "line 1, column 17: UNPIVOT is not supported; write"),
        ("SELECT * FROM t TABLESAMPLE BERNOULLI (10)", "line 1, column 17: samples are not supported; write"),
        ("SELECT value COLLATE \"de\" FROM range(3)", "line 1, column 14: COLLATE is not supported"),
        ("SELECT TOP 3 * FROM t", "line 1, column 8: TOP is not supported; write LIMIT"),
        ("SELECT * FROM t FOR UPDATE", "line 1, column 21: rows cannot be locked"),
        ("SELECT * FROM (SELECT * FROM t FOR SHARE) AS s", "line 1, column 36: rows cannot be locked"),
        ("FROM t FETCH FIRST 2 ROWS ONLY", "line 1, column 8: FETCH is not supported; write LIMIT"),
        ("SELECT * FROM range(3) AS t, LATERAL (SELECT t.value) AS x", "line 1, column 30: a subquery refers to"),
        ("SET TIME ZONE LOCAL", "SET TIME ZONE takes a constant"),
        ("BEGIN", "line 1, column 1: there are no transactions here"),
        ("SELECT {'a': 1} + 1", "name a field of the struct"),
        ("SELECT [1, 2] + 1", "name an element of the list"),
        ("SELECT TIMESTAMP '9999-12-31'", "9999-12-31 00:00:00 is out of range: a TIMESTAMP counts nanoseconds"),
        ("SELECT to_timestamp(253402300799.0)", "is out of range: a TIMESTAMP counts nanoseconds"),
        ("SELECT date_bin(INTERVAL '1 day', to_timestamp_seconds(253402300799))", "a time is out of range"),
        ("SELECT TIMESTAMP '2024-01-01' + INTERVAL '1000 years'", "a time is out of range"),
        ("SELECT DATE '9999-12-31' + INTERVAL '1000000 years'", "a time is out of range"),
        (
            "SELECT to_char(now(), 'Month')",
            "to_char: the pattern Month has no equivalent here; write a pattern such as",
        ),
        ("SELECT mode(value) FROM range(3)", "there is no function mode; write (SELECT value FROM t GROUP BY value"),
        (
            "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY value) FROM range(3)",
            "write array_element(array_agg(value ORDER BY value), ",
        ),
        ("SELECT width_bucket(1, 1, 2, 3)", "there is no function width_bucket"),
        ("SELECT sum(name -> 'f') FROM t", "sum does not take JSON, which u -> 'field' is; write u ->> 'field'"),
        ("SELECT greatest(1, name -> 'f') FROM t", "a value of u -> 'field' is compared or combined with another type"),
        ("SELECT max(name -> 'f') FROM t", "this does not take JSON, which u -> 'field' is"),
        ("SELECT 1 IN (SELECT rating FROM t)", "stand in WHERE and HAVING only"),
        ("PREPARE a AS SELECT 1", "there are no prepared statements here; write $name"),
        ("SELECT 7 // 2", "line 1, column 10: there is no operator for whole division"),
        ("SELECT name::json FROM t", "there is no type JSON"),
        ("SELECT to_date('x')", "a text is no date"),
        ("SELECT CAST('2024-13-01' AS DATE)", "to_date(text, '%d/%m/%Y')"),
        ("CREATE TABLE x (a INT PRIMARY KEY)", "a table has no constraints here"),
        ("SELECT now() AT TIME ZONE name FROM t", "AT TIME ZONE takes a constant"),
        ("SELECT INTERVAL '1 year' * 99999999999", "an interval is out of range"),
    ] {
        let ended = place.run(&["sql", "--table", "t=t.csv", "-c", sql]);
        assert_eq!(ended.code, Some(1), "{sql}");
        let error = ended.stderr;
        assert!(error.starts_with("error: line ") && error.contains(expected), "{sql}: {error}");
        for internal in ["Span(", "Ident", "Some(", "{ ", "OuterReference", "LogicalPlan", "Overflow"] {
            assert!(!error.lines().next().unwrap().contains(internal), "{sql}: {error}");
        }
    }
}
