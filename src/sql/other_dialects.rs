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
    ("date_diff", "CAST(time AS DATE) - CAST(time AS DATE)"),
    ("datediff", "CAST(time AS DATE) - CAST(time AS DATE)"),
    ("date_add", "time + INTERVAL '1 day'"),
    ("dateadd", "time + INTERVAL '1 day'"),
    ("regexp_extract", "regexp_match(text, '([0-9]+)')[1]"),
    ("regexp_matches", "regexp_like(text, '[0-9]+')"),
    ("regexp_full_match", "regexp_like(text, '^[0-9]+$')"),
    ("regexp_substr", "regexp_match(text, '([0-9]+)')[1]"),
    ("regexp_split_to_array", "string_to_array(text, ',')"),
    ("string_split", "string_to_array(text, ',')"),
    ("str_split", "string_to_array(text, ',')"),
    ("split", "string_to_array(text, ',')"),
    ("splitpart", "split_part(text, ',', 1)"),
    ("prefix", "starts_with(text, 'a')"),
    ("suffix", "ends_with(text, 'a')"),
    ("startswith", "starts_with(text, 'a')"),
    ("endswith", "ends_with(text, 'a')"),
    ("charindex", "strpos(text, 'a')"),
    ("locate", "strpos(text, 'a')"),
    ("lcase", "lower(text)"),
    ("ucase", "upper(text)"),
    ("title", "initcap(text)"),
    ("strlen", "octet_length(text)"),
    ("char", "chr(65)"),
    ("unicode", "ascii(text)"),
    ("hex", "encode(text, 'hex')"),
    ("base64", "encode(text, 'base64')"),
    ("printf", "concat(text, value)"),
    ("to_varchar", "CAST(value AS TEXT)"),
    ("to_string", "CAST(value AS TEXT)"),
    ("typeof", "arrow_typeof(value)"),
    ("pg_typeof", "arrow_typeof(value)"),
    ("gen_random_uuid", "uuid()"),
    ("mod", "value % 2"),
    ("div", "value / 2"),
    ("sign", "signum(value)"),
    ("truncate", "trunc(value)"),
    ("age", "time - time"),
    ("time_bucket", "date_bin(INTERVAL '1 day', time)"),
    ("last_day", "date_trunc('month', time) + INTERVAL '1 month' - INTERVAL '1 day'"),
    ("add_months", "time + INTERVAL '1 month'"),
    ("date_sub", "time - INTERVAL '1 day'"),
    ("weekday", "date_part('dow', time)"),
    ("dayofmonth", "date_part('day', time)"),
    ("dayofyear", "date_part('doy', time)"),
    ("weekofyear", "date_part('week', time)"),
    ("minute", "date_part('minute', time)"),
    ("second", "date_part('second', time)"),
    ("getdate", "now()"),
    ("sysdate", "now()"),
    ("json_extract", "json_get(text, 'a')"),
    ("json_extract_string", "json_get_str(text, 'a')"),
    ("json_extract_path_text", "json_get_str(text, 'a')"),
    ("json_array_length", "json_length(text)"),
    ("jsonb_array_length", "json_length(text)"),
    ("json_array_elements", "unnest(json_get_array(text))"),
    ("jsonb_array_elements", "unnest(json_get_array(text))"),
    ("json_each", "unnest(json_object_keys(text))"),
    ("jsonb_object_keys", "unnest(json_object_keys(text))"),
    ("jsonb_extract_path_text", "json_get_str(text, 'a')"),
    ("jsonb_extract_path", "json_get_json(text, 'a')"),
    ("json_exists", "json_contains(text, 'a')"),
    ("json_value", "json_get_str(text, 'a')"),
    ("list_value", "[value, value]"),
    ("struct_pack", "named_struct('a', value)"),
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
    ("percentile_disc", "array_element(array_agg(value ORDER BY value), CAST(ceil(0.5 * count(value)) AS BIGINT))"),
    ("quantile_disc", "array_element(array_agg(value ORDER BY value), CAST(ceil(0.5 * count(value)) AS BIGINT))"),
    ("percentile", "percentile_cont(value, 0.5)"),
    ("approx_quantile", "approx_percentile_cont(value, 0.5)"),
    ("mode", "(SELECT value FROM t GROUP BY value ORDER BY count(*) DESC, value LIMIT 1)"),
    ("countif", "count(*) FILTER (WHERE value > 1)"),
    ("count_if", "count(*) FILTER (WHERE value > 1)"),
    ("sumif", "sum(value) FILTER (WHERE value > 1)"),
    ("sum_if", "sum(value) FILTER (WHERE value > 1)"),
    ("variance", "var_samp(value)"),
    ("stddev_sample", "stddev_samp(value)"),
    ("approx_count_distinct", "approx_distinct(value)"),
    ("histogram", "count(*) with GROUP BY value"),
    ("group_array", "array_agg(value)"),
    ("collect_list", "array_agg(value)"),
    ("collect_set", "array_agg(DISTINCT value)"),
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
        let mut ctx = SessionContext::new();
        datafusion_functions_json::register_all(&mut ctx).unwrap();
        for (name, equivalent) in EQUIVALENTS {
            let (equivalent, grouped) = equivalent.split_once(" with ").unwrap_or((equivalent, ""));
            let sql = format!(
                "WITH t AS (SELECT TIMESTAMP '2024-05-06T07:08:09' AS time, 2 AS value, '06/05/2024' AS text)
                 SELECT {equivalent} FROM t {grouped}"
            );
            let answered = ctx.sql(&sql).await.unwrap_or_else(|e| panic!("{name}: {e}")).collect().await;
            assert!(answered.is_ok(), "{name}: {answered:?}");
            assert!(ctx.udf(name).is_err() && ctx.udaf(name).is_err(), "{name} exists");
        }
    }
}
