//! Functions of DuckDB, PostgreSQL and MySQL that have another name here.
//!
//! Input: the name of a function that does not exist. Output: what does the same.

/// Pairs of a name and its equivalent. A test runs each equivalent.
const EQUIVALENTS: &[(&str, &str)] = &[
    ("strptime", "to_timestamp(text, '%d/%m/%Y')"),
    ("str_to_date", "to_date(text, '%d/%m/%Y')"),
    ("strftime", "to_char(time, '%Y-%m')"),
    ("dayname", "to_char(time, '%A')"),
    ("monthname", "to_char(time, '%B')"),
    ("year", "date_part('year', time)"),
    ("month", "date_part('month', time)"),
    ("day", "date_part('day', time)"),
    ("hour", "date_part('hour', time)"),
    ("dayofweek", "date_part('dow', time)"),
    ("week", "date_part('week', time)"),
    ("quarter", "date_part('quarter', time)"),
    ("epoch", "date_part('epoch', time)"),
    ("epoch_ms", "date_part('epoch', time) * 1000"),
    ("date_diff", "date_part('day', time - time)"),
    ("datediff", "date_part('day', time - time)"),
    ("date_add", "time + INTERVAL '1 day'"),
    ("dateadd", "time + INTERVAL '1 day'"),
    ("regexp_extract", "regexp_match(text, '([0-9]+)')[1]"),
    ("regexp_matches", "regexp_like(text, '[0-9]+')"),
    ("regexp_full_match", "regexp_like(text, '^[0-9]+$')"),
    ("list", "array_agg(value)"),
    ("list_agg", "string_agg(text, ', ')"),
    ("listagg", "string_agg(text, ', ')"),
    ("group_concat", "string_agg(text, ', ')"),
    ("first", "first_value(value ORDER BY time)"),
    ("last", "last_value(value ORDER BY time)"),
    ("arg_max", "last_value(text ORDER BY value)"),
    ("max_by", "last_value(text ORDER BY value)"),
    ("arg_min", "first_value(text ORDER BY value)"),
    ("min_by", "first_value(text ORDER BY value)"),
    ("percentile_disc", "percentile_cont(value, 0.5)"),
    ("quantile", "percentile_cont(value, 0.5)"),
    ("iif", "CASE WHEN value > 1 THEN text ELSE '' END"),
    ("if", "CASE WHEN value > 1 THEN text ELSE '' END"),
    ("len", "length(text)"),
    ("format", "concat(text, value)"),
];

/// The equivalent of a function.
pub fn equivalent(function: &str) -> Option<&'static str> {
    EQUIVALENTS.iter().find(|(name, _)| name.eq_ignore_ascii_case(function)).map(|(_, equivalent)| *equivalent)
}

#[cfg(test)]
mod tests {
    use datafusion::execution::FunctionRegistry as _;
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn equivalents_run_and_the_others_do_not_exist() {
        let ctx = SessionContext::new();
        for (name, equivalent) in EQUIVALENTS {
            let sql = format!(
                "SELECT {equivalent} FROM (SELECT TIMESTAMP '2024-05-06T07:08:09' AS time, 2 AS value, '06/05/2024' AS text)"
            );
            let answered = ctx.sql(&sql).await.unwrap_or_else(|e| panic!("{name}: {e}")).collect().await;
            assert!(answered.is_ok(), "{name}: {answered:?}");
            assert!(ctx.udf(name).is_err() && ctx.udaf(name).is_err(), "{name} exists");
        }
    }
}
