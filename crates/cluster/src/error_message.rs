//! Errors of a cluster in one plain line.
//!
//! Input: what Ballista says: words about jobs and stages, and then often the debug text of errors within errors. Output: the
//! messages in it, which are its texts in quotes, outermost first.

use std::iter::Peekable;
use std::str::Chars;

/// What stands before a reason and tells only where in the cluster it arose.
const BEFORE: [&str; 6] = [
    "Execution error: ",
    "Internal error: ",
    "Job failed due to stage ",
    "Task failed due to runtime execution error: ",
    "Error planning job ",
    "Job ",
];

/// The messages in a text of Ballista's.
pub(super) fn plain(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = text.as_str();
    while let Some(prefix) = BEFORE.iter().find(|prefix| rest.starts_with(*prefix)) {
        let after = &rest[prefix.len()..];
        // After these comes a number, and then what counts.
        let numbered = matches!(*prefix, "Job " | "Job failed due to stage " | "Error planning job ");
        rest = match after.split_once(": ").filter(|_| numbered) {
            Some((_, after)) => after,
            None if numbered => break,
            None => after,
        };
    }
    let mut found = Found::default();
    let mut chars = rest.chars().peekable();
    // A text that was cut out of another one may close more than it opens.
    match value(&mut chars, &mut found).filter(|()| chars.all(|c| c == ')')) {
        Some(()) if !found.texts.is_empty() => found.texts.join(": "),
        Some(()) if !found.name.is_empty() && (rest.contains('(') || !rest.contains(' ')) => words(&found.name),
        _ => rest.to_owned(),
    }
}

/// What a debug text holds.
#[derive(Default)]
struct Found {
    texts: Vec<String>,
    /// The last name, which is the innermost one.
    name: String,
}

/// Reads the debug text of one value. `None`: it is none.
fn value(chars: &mut Peekable<Chars<'_>>, found: &mut Found) -> Option<()> {
    match chars.peek()? {
        '"' => {
            let text = quoted(chars)?;
            if !text.is_empty() && !found.texts.contains(&text) {
                found.texts.push(text);
            }
            return Some(());
        }
        '\'' => {
            chars.next();
            chars.find(|c| *c == '\'')?;
            return Some(());
        }
        '[' | '{' => {}
        _ => {
            let mut name = String::new();
            while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '.' | '-')) {
                name.push(c);
            }
            if name.is_empty() {
                return None;
            }
            if !matches!(name.as_str(), "Some" | "None") {
                found.name = name;
            }
        }
    }
    chars.next_if(|c| *c == ' ');
    let end = match chars.peek() {
        Some('(') => ')',
        Some('{') => '}',
        Some('[') => ']',
        _ => return Some(()),
    };
    chars.next();
    loop {
        while chars.next_if(|c| matches!(c, ' ' | ',')).is_some() {}
        if chars.next_if(|c| *c == end).is_some() {
            return Some(());
        }
        // A field's name ends with a colon, and its value follows.
        value(chars, found)?;
    }
}

/// Reads a text in quotes as Rust writes it.
fn quoted(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    chars.next();
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                'n' | 't' | 'r' => text.push(' '),
                'u' => {
                    chars.next_if(|c| *c == '{')?;
                    let mut code = String::new();
                    while let Some(c) = chars.next_if(|c| *c != '}') {
                        code.push(c);
                    }
                    chars.next();
                    text.push(u32::from_str_radix(&code, 16).ok().and_then(char::from_u32)?);
                }
                c => text.push(c),
            },
            c => text.push(c),
        }
    }
}

/// `DivideByZero` as `divide by zero`.
fn words(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.extend(c.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_within_errors_become_one_line() {
        let task = "Execution error: Job 6b0a-41 failed: Job failed due to stage 1 failed: Task failed due to runtime \
                    execution error: DataFusionError(Shared(";
        for (rest, wanted) in [
            (
                r#"External(ArrowError(CastError("Cannot cast string 'a (b) \"c\"' to value of Int32 type")))))"#,
                "Cannot cast string 'a (b) \"c\"' to value of Int32 type",
            ),
            ("External(ArrowError(DivideByZero))))", "divide by zero"),
            (
                r#"ObjectStore(NotFound { path: "/a/b", source: Os { code: 2, kind: NotFound, message: "No such file" } })))"#,
                "/a/b: No such file",
            ),
            (r#"ArrowError(DivideByZero, Some("")), [])))"#, "divide by zero"),
        ] {
            assert_eq!(plain(&format!("{task}{rest}")), wanted);
        }
        let status =
            "Status { code: 'The service is currently unavailable', message: \"tcp connect error\", source: None }";
        assert_eq!(plain(status), "tcp connect error");
        for unchanged in ["the query was cancelled", "no executor (of a) is there", "", "a: \"b\" and c"] {
            assert_eq!(plain(unchanged), unchanged);
        }
    }
}
