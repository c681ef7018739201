//! The rules that decide whether a text is a number or a time.
//!
//! Input: a text from a record. Output: its value, or `None`. `init` infers the types of columns with these rules, and
//! the SQL functions `to_number`, `to_integer` and `to_datetime` (`engine/conversions.rs`) call the same code, so that a
//! view reads what `init` has seen.

pub mod number;
pub mod time;

/// Whether a character is invisible around or within a number: white space of any width, zero-width characters, and
/// marks of the writing direction.
pub fn is_blank(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2060}' | '\u{feff}')
}

/// The text without blanks around it.
pub fn trimmed(text: &str) -> &str {
    text.trim_matches(is_blank)
}
