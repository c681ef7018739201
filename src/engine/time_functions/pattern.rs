//! Patterns of times.
//!
//! Input: a pattern of chrono (`%d.%m.%Y`) or of PostgreSQL (`DD.MM.YYYY`). Output: a pattern of chrono, or the reason why there is
//! none. A text with a `%` is a pattern of chrono.

use std::borrow::Cow;

/// Patterns of PostgreSQL with the equivalent of chrono, the longest first. PostgreSQL pads names to nine characters, and changes their
/// case: those have an equivalent only with FM, and in this spelling.
const PATTERNS: [(&str, &str); 31] = [
    ("FMMonth", "%B"),
    ("FMDay", "%A"),
    ("FMHH24", "%-H"),
    ("FMHH12", "%-I"),
    ("FMDDD", "%-j"),
    ("FMDD", "%-d"),
    ("FMMM", "%-m"),
    ("FMHH", "%-I"),
    ("FMMI", "%-M"),
    ("FMSS", "%-S"),
    ("YYYY", "%Y"),
    ("IYYY", "%G"),
    ("HH24", "%H"),
    ("HH12", "%I"),
    ("DDD", "%j"),
    ("Mon", "%b"),
    ("Dy", "%a"),
    ("YY", "%y"),
    ("MM", "%m"),
    ("DD", "%d"),
    ("HH", "%I"),
    ("MI", "%M"),
    ("SS", "%S"),
    ("MS", "%3f"),
    ("US", "%6f"),
    ("IW", "%V"),
    ("ID", "%u"),
    ("AM", "%p"),
    ("PM", "%p"),
    ("am", "%P"),
    ("pm", "%P"),
];

/// A pattern of chrono. `output` is false for patterns that read a text, where names are not padded.
pub fn translate(text: &str, output: bool) -> Result<Cow<'_, str>, String> {
    if text.contains('%') || !text.contains(|c: char| c.is_ascii_alphabetic()) {
        return Ok(Cow::Borrowed(text));
    }
    let mut translated = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let names = [("Month", "%B"), ("Day", "%A")];
        let name = names.iter().filter(|_| !output);
        if let Some((pattern, chrono)) =
            PATTERNS.iter().chain(name).find(|(pattern, chrono)| starts(rest, pattern, chrono))
        {
            translated.push_str(chrono);
            rest = &rest[pattern.len()..];
        } else if next == 'T' && rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
            // As in YYYY-MM-DDTHH24:MI:SS.
            translated.push('T');
            rest = &rest[1..];
        } else if next == '"' {
            // PostgreSQL copies quoted text.
            let (quoted, after) = rest[1..].split_once('"').unwrap_or((&rest[1..], ""));
            translated.push_str(quoted);
            rest = after;
        } else if next.is_ascii_alphabetic() {
            let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            return Err(format!(
                "the pattern {word} has no equivalent here; write a pattern such as '%Y-%m-%d %H:%M:%S', with %B and %b for names of \
                 months, and %A and %a for names of days"
            ));
        } else {
            translated.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    Ok(Cow::Owned(translated))
}

/// Whether a text starts with a pattern. The case of numbers does not matter in PostgreSQL, that of names and of am and pm does.
fn starts(text: &str, pattern: &str, chrono: &str) -> bool {
    let Some(start) = text.get(..pattern.len()) else { return false };
    if pattern == "Mon" && text.starts_with("Month") {
        return false;
    }
    let exact = matches!(chrono, "%B" | "%A" | "%b" | "%a" | "%p" | "%P");
    if exact { start == pattern } else { start.eq_ignore_ascii_case(pattern) }
}

#[cfg(test)]
mod tests {
    use super::translate;

    #[test]
    fn patterns_of_postgresql_become_those_of_chrono() {
        for (text, chrono) in [
            ("YYYY-MM-DD", "%Y-%m-%d"),
            ("yyyy-mm-dd hh24:mi:ss.ms", "%Y-%m-%d %H:%M:%S.%3f"),
            ("YYYY-MM-DD\"T\"HH24:MI:SS", "%Y-%m-%dT%H:%M:%S"),
            ("YYYY-MM-DDTHH24:MI", "%Y-%m-%dT%H:%M"),
            ("DD Mon YY, HH12:MI am", "%d %b %y, %I:%M %P"),
            ("FMDay, FMDD. FMMonth", "%A, %-d. %B"),
            ("IYYY-IW-ID DDD", "%G-%V-%u %j"),
            ("%Y at HH", "%Y at HH"),
            ("--", "--"),
            ("", ""),
            ("YYYY年", "%Y年"),
        ] {
            assert_eq!(translate(text, true).as_deref(), Ok(chrono), "{text}");
        }
        for text in ["Month", "MONTH", "Day", "hello", "Q", "YYYY TZ", "mon"] {
            assert!(translate(text, true).is_err(), "{text}");
        }
        assert_eq!(translate("DD Month YYYY", false).as_deref(), Ok("%d %B %Y"));
    }
}
