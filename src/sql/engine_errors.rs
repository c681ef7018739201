//! Errors of the engine that users cannot understand, in plain words.
//!
//! Input: the engine's message without its prefixes. Output: a sentence that says what is wrong and what to write instead, without the
//! engine's internal representation of a plan.

/// What times fit into the engine's usual type, and what to do about others.
const FAR_TIMES: &str = "a TIMESTAMP counts nanoseconds and reaches from 1677-09-21 to 2262-04-11 only; for other times write \
     CAST(… AS DATE), to_datetime(…), or arrow_cast(…, 'Timestamp(us)')";

/// The sentence for a message, if it needs one.
pub fn sentence(message: &str) -> Option<String> {
    if message.starts_with("Overflow converting ")
        || message.contains("dates that can be represented as nanoseconds")
        || message.contains("converted value exceeds the representable i64 range")
        || message.contains("Timestamp out of range")
        || message.starts_with("Timestamp ") && message.contains(" out of range")
        || message.contains("Date arithmetic overflow")
    {
        let value = message.strip_prefix("Overflow converting ").and_then(|rest| rest.split_once(" to Nanosecond"));
        return Some(match value {
            Some((value, _)) => format!("{value} is out of range: {FAR_TIMES}"),
            None => format!("a time is out of range: {FAR_TIMES}"),
        });
    }
    if message.contains("OuterReferenceColumn(")
        || message.contains("does not support logical expression ScalarSubquery")
    {
        return Some(
            "a subquery refers to a column of the query around it in a way that cannot be run; write it as a JOIN, or with a window \
             function"
                .to_owned(),
        );
    }
    if message.contains("Cannot access field at argument ") && message.contains("Utf8") {
        return Some(
            "a text has no fields; of a JSON text write u ->> 'field', or u -> 'object' -> 'field'".to_owned(),
        );
    }
    // The type of `u -> 'field'`.
    if message.contains("Union(Sparse") && !message.starts_with("Cannot coerce arithmetic expression ") {
        const INSTEAD: &str = "write u ->> 'field' for its text, CAST(u ->> 'field' AS DOUBLE) for a number";
        let call = message.split_once("argument types '").map_or(message, |(_, call)| call);
        let name: String = call.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        return Some(match message.contains("argument types '") {
            true => format!("{name} does not take JSON, which u -> 'field' is; {INSTEAD}"),
            false => format!("this does not take JSON, which u -> 'field' is; {INSTEAD}"),
        });
    }
    if message.contains("does not support logical expression InSubquery")
        || message.contains("does not support logical expression Exists")
    {
        return Some("IN (SELECT …) and EXISTS stand in WHERE and HAVING only; elsewhere write a LEFT JOIN, or count(*) in a subquery".to_owned());
    }
    if message.starts_with("Divide by zero") {
        return Some("Divide by zero: write a / nullif(b, 0), which is NULL there, or b <> 0 AND before it".to_owned());
    }
    if message.contains("Cannot cast timezone to different timezone") {
        return Some(
            "a local time does not exist in the zone, or exists twice, because clocks changed; write it with its difference, as in \
             CAST('2024-10-27T02:30:00+02:00' AS TIMESTAMP)"
                .to_owned(),
        );
    }
    if message.starts_with("Error parsing timestamp from") && message.contains("error parsing time") {
        return Some(format!(
            "{message}; a TIMESTAMP has seconds, as in '2024-01-01 10:30:00'; to_datetime(text) reads other forms"
        ));
    }
    if message.starts_with("Invalid interval arithmetic operation")
        || message.contains("result type for temporal operation Interval")
    {
        return Some(
            "an interval can be multiplied by whole numbers only; write INTERVAL '30 minutes' * 3 for 1.5 hours"
                .to_owned(),
        );
    }
    if let Some((_, name)) = message.split_once("Schema contains duplicate unqualified field name ") {
        return Some(format!(
            "two expressions differ by a cast only, which the engine cannot tell apart ({name}); make the cast a column of a subquery"
        ));
    }
    if message.starts_with("Unable to cast to Date32 for converting") {
        return Some(
            "a text is no date, or a date is out of range; to_date(text, '%d/%m/%Y') reads other formats".to_owned(),
        );
    }
    if message.starts_with("unnest() can only be applied to") {
        return Some(
            "unnest takes a list; of a JSON text write unnest(json_get_array(u)), of a text with commas unnest(string_to_array(u, ','))".to_owned(),
        );
    }
    if message.starts_with("Insert into not implemented")
        || message.contains("operation on table '") && message.contains("not supported for")
    {
        return Some(
            "rows of files and of the store cannot be changed here; write the changed rows to a new file with -o or COPY (SELECT …) TO".to_owned(),
        );
    }
    if message.contains("does not support logical expression AggregateFunction") {
        return Some(
            "an aggregate function stands where each row has a value of its own; GROUP BY and WHERE take no aggregates, not by their \
             number in the SELECT either; HAVING takes them"
                .to_owned(),
        );
    }
    for prefix in ["Unsupported ast node in sqltorel: ", "Unsupported ast node ", "SET variant not implemented yet: "] {
        if let Some(rest) = message.strip_prefix(prefix) {
            let node: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            return Some(format!("{node} is not supported"));
        }
    }
    if let Some(rest) = message.strip_prefix("Unsupported logical plan: ") {
        let statement = rest.rsplit('(').next().unwrap_or(rest).trim_end_matches(')');
        return Some(format!("the statement is not supported ({statement})"));
    }
    if let Some(rest) = message.strip_prefix("Cannot coerce arithmetic expression ")
        && let Some((operation, _)) = rest.split_once(" to valid types")
    {
        if operation.contains("Union(") {
            return Some("there is no arithmetic with JSON; write json_get_int(…), json_get_float(…), or CAST(… ->> … AS DOUBLE)".to_owned());
        }
        let hint = match operation {
            text if text.contains("Utf8") => "; make numbers of texts with to_number(…) or CAST(… AS DOUBLE)",
            text if text.contains("Struct(") => "; name a field of the struct, as in s['a']",
            text if text.contains("List(") => "; name an element of the list, as in l[1], or unnest(l)",
            _ => "",
        };
        return Some(format!("there is no {operation}{hint}"));
    }
    without_debug(message)
}

/// Whether the planner found no join for a subquery that refers to the query around it.
pub fn is_correlated(message: &str) -> bool {
    message.contains("OuterReferenceColumn(") || message.contains("does not support logical expression ScalarSubquery")
}

/// The message up to the first value in the engine's debug format, if there is one.
fn without_debug(message: &str) -> Option<String> {
    const MARKS: [&str; 8] =
        ["Span(", "Location(", "Ident {", "Some(", "relation: ", "Expr(", "ScalarValue(", "ObjectName("];
    if !MARKS.iter().any(|mark| message.contains(mark)) {
        return None;
    }
    let mut start = 0;
    for word in message.split_inclusive(' ') {
        let name: String = word.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let rest = &message[start + name.len()..];
        let value = name.starts_with(char::is_uppercase) && (rest.starts_with('(') || rest.starts_with(" { "));
        if value {
            let before = message[..start].trim_end_matches([' ', ':', ',']);
            return Some(if before.is_empty() {
                format!("{name} is not supported here")
            } else {
                format!("{before} {name}")
            });
        }
        start += word.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_internal_representation_is_left() {
        for (message, shown) in [
            (
                "Unsupported ast node Pivot { table: Table { name: ObjectName([]) } } in create_relation",
                "Pivot is not supported",
            ),
            ("Unsupported logical plan: Statement(TransactionEnd)", "the statement is not supported (TransactionEnd)"),
            ("It is wrong: Foo(Some(1))", "It is wrong Foo"),
            ("It is wrong with Column { relation: None, name: \"a\" }", "It is wrong with Column"),
            (
                "Cannot coerce arithmetic expression Utf8 + Int64 to valid types",
                "there is no Utf8 + Int64; make numbers of texts with to_number(…) or CAST(… AS DOUBLE)",
            ),
        ] {
            assert_eq!(sentence(message).as_deref(), Some(shown), "{message}");
        }
        assert_eq!(sentence("Int overflow"), None);
        assert!(sentence("Compute error: Timestamp out of range").unwrap().contains("2262"));
    }
}
