//! Escapes text from records, files and file names for output to a terminal, a log line or a SQL comment, and words of a
//! command line for a shell.

use std::borrow::Cow;

/// Whether a character moves the cursor, ends a line, or reorders surrounding text: control characters (C0, DEL, C1), line and
/// paragraph separators, and the invisible characters of the Unicode Bidirectional Algorithm (UAX #9, section 2).
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with each unsafe character in Rust escape notation, such as `\n` or `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_unsafe(c) { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

/// Bytes as lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A share of 1 as a percentage: `12 %`, `0.3 %`, `0.02 %`.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent == 0.0 || percent >= 9.95 => format!("{percent:.0} %"),
        _ if percent >= 0.095 => format!("{percent:.1} %"),
        _ => format!("{percent:.2} %"),
    }
}

/// A word of a command line, quoted for a POSIX shell if necessary.
pub fn shell_word(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_alphanumeric() || "_-./:,=@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    // Double quotes are easier to read around SQL with strings.
    if text.contains('\'') && !text.contains(['"', '$', '`', '\\', '!']) {
        return Cow::Owned(format!("\"{text}\""));
    }
    Cow::Owned(format!("'{}'", text.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_word_that_was_meant() {
        for word in
            ["a.csv", "our file.csv", "it's", "", "$HOME", "a\"b", "SELECT * FROM \"user\"", "naïve", "~", "a\\b"]
        {
            let said = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), word);
        }
        assert_eq!(shell_word("shop/a-1.csv"), "shop/a-1.csv");
    }

    #[test]
    fn nothing_reaches_the_terminal_but_glyphs() {
        assert_eq!(printable("a\n\u{1b}[31mb"), "a\\n\\u{1b}[31mb");
        assert_eq!(printable("\u{202e}txt.exe\u{9b}2J\u{7f}"), "\\u{202e}txt.exe\\u{9b}2J\\u{7f}");
        for plain in ["", "a b", "電話 ₹ é", "👩‍👩‍👧", "שלום"] {
            assert!(matches!(printable(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
    }
}
