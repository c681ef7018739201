//! The type of a column, from all of its values.
//!
//! A type is chosen only if it keeps every value: numbers with leading zeros are codes and stay text, whole numbers stay exact
//! whatever their size, and a column with values of several types, or with an invalid date, is text. An empty value fits all
//! types.

use chrono::{NaiveDate, Utc};
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Text,
    Boolean,
    /// 64 bits, signed.
    Integer,
    /// Whole numbers of up to 38 digits.
    WideInteger,
    Double,
    Date,
    /// Microseconds, or nanoseconds; in UTC if the values have a zone.
    Timestamp {
        nanoseconds: bool,
        zone: bool,
    },
}

/// What was seen in a column.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    text: bool,
    boolean: bool,
    integer: bool,
    /// A whole number beyond 64 bits.
    wide: bool,
    /// A whole number that no double represents.
    inexact: bool,
    double: bool,
    date: bool,
    time: bool,
    /// A time with a zone, and one without.
    zoned: bool,
    local: bool,
    /// A fraction of a second with more than six digits.
    fine: bool,
    /// A time that 64 bits of nanoseconds do not reach.
    far: bool,
}

/// Digits of the widest whole number.
const DIGITS: usize = 38;

impl Seen {
    /// Adds a value that is known to be text.
    pub fn add_text(&mut self) {
        self.text = true;
    }

    /// Adds a value by its text; its decimal mark is a point.
    pub fn add(&mut self, text: &str) {
        let text = text.trim();
        match text.as_bytes() {
            [] => {}
            _ if self.text => {}
            [b'0'..=b'9' | b'+' | b'-' | b'.', ..] => self.add_number_or_time(text),
            _ if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") => self.boolean = true,
            _ => self.text = true,
        }
    }

    fn add_number_or_time(&mut self, text: &str) {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let digits = unsigned.bytes().take_while(u8::is_ascii_digit).count();
        let code = digits > 1 && unsigned.starts_with('0');
        // A sign alone stands for nothing in tables of accounts, and is no number.
        if unsigned.is_empty() {
            self.text = true;
            return;
        }
        if digits == unsigned.len() {
            if code || text.starts_with('+') && digits >= 8 {
                self.text = true;
                return;
            }
            self.integer = true;
            self.wide |= text.parse::<i64>().is_err();
            self.text |= digits > DIGITS;
            // Every whole number up to 2^53 is a double.
            self.inexact |= digits > 15;
            return;
        }
        let is_number = |c: u8| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'+' | b'-');
        if unsigned.bytes().all(is_number)
            && let Some(number) = text.parse::<f64>().ok().filter(|number| number.is_finite())
        {
            if code {
                self.text = true;
            } else {
                self.double = true;
                // Above 2^53 a double may not have the number's whole part.
                let exponent = unsigned.contains(['e', 'E']);
                self.inexact |=
                    digits > 15 && !exponent && format!("{:.0}", number.abs().trunc()) != unsigned[..digits];
            }
            return;
        }
        self.add_time(text);
    }

    fn add_time(&mut self, text: &str) {
        let Some(date) = text.get(..10).filter(|date| NaiveDate::parse_from_str(date, "%Y-%m-%d").is_ok()) else {
            self.text = true;
            return;
        };
        if date.len() == text.len() {
            self.date = true;
            return;
        }
        let Ok(time) = string_to_datetime(&Utc, text) else {
            self.text = true;
            return;
        };
        self.time = true;
        let clock = &text[10..];
        let zone = clock.ends_with(['Z', 'z']) || clock.contains(['+', '-']) || clock.ends_with("UTC");
        self.zoned |= zone;
        self.local |= !zone;
        let fraction = clock.split_once('.').map_or("", |(_, rest)| rest);
        self.fine |= fraction.bytes().take_while(u8::is_ascii_digit).count() > 6;
        self.far |= time.timestamp_nanos_opt().is_none();
    }

    /// The type that keeps all values.
    pub fn column_type(&self) -> Type {
        let number = self.integer || self.double;
        let moment = self.date || self.time;
        let kinds = usize::from(self.boolean) + usize::from(number) + usize::from(moment);
        if self.text || kinds != 1 {
            return Type::Text;
        }
        if self.boolean {
            return Type::Boolean;
        }
        if number {
            return match (self.double, self.wide) {
                (false, false) => Type::Integer,
                (false, true) => Type::WideInteger,
                (true, _) if self.inexact => Type::Text,
                (true, _) => Type::Double,
            };
        }
        match (self.time, self.zoned && (self.local || self.date), self.fine && self.far) {
            (false, ..) => Type::Date,
            (true, true, _) | (true, _, true) => Type::Text,
            (true, false, false) => Type::Timestamp { nanoseconds: self.fine, zone: self.zoned },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_keeps_every_value() {
        let of = |values: &[&str]| {
            let mut seen = Seen::default();
            values.iter().for_each(|value| seen.add(value));
            seen.column_type()
        };
        let time = |nanoseconds, zone| Type::Timestamp { nanoseconds, zone };
        for (values, expected) in [
            (&["1", "", "-20"][..], Type::Integer),
            (&["1", "9223372036854775808"], Type::WideInteger),
            (&["12345678901234567890123"], Type::WideInteger),
            (&["1", "2.5", "1e3"], Type::Double),
            (&["9007199254740993", "2.5"], Type::Text),
            (&["01234", "5"], Type::Text),
            (&["00.5"], Type::Text),
            (&["0.5", "0"], Type::Double),
            (&["1", "a"], Type::Text),
            (&["NA", "1"], Type::Text),
            (&["1e999"], Type::Text),
            (&["true", "False"], Type::Boolean),
            (&["true", "1"], Type::Text),
            (&["2024-05-01", "9999-12-31"], Type::Date),
            (&["2024-05-01", "2024-02-30"], Type::Text),
            (&["2024-05-01", "2024-05-01 10:00:00"], time(false, false)),
            (&["2024-05-01T10:00:00Z", "2024-05-01T10:00:00+05:30"], time(false, true)),
            (&["2024-05-01T10:00:00Z", "2024-05-01T10:00:00"], Type::Text),
            (&["2024-05-01T10:00:00.123456789"], time(true, false)),
            (&["2024-05-01T10:00:00.123456789", "9999-01-01 00:00:00"], Type::Text),
            (&["9999-01-01 00:00:00"], time(false, false)),
            (&["", " "], Type::Text),
            (&["1,5"], Type::Text),
            (&["1-2"], Type::Text),
            (&["1.5", "-"], Type::Text),
            (&["+", "1"], Type::Text),
        ] {
            assert_eq!(of(values), expected, "{values:?}");
        }
    }
}
