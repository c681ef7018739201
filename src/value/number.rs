//! Whether a text is a number.
//!
//! Accepted are digits with an optional sign, decimal mark and exponent; groups of three digits (or, with a decimal
//! point, the Indian groups of `1,39,900`) separated by the other mark, blanks or apostrophes; and one unit before or
//! after them, such as `€`, `%` or `kg`, which must be named. Digits with a leading zero (`007`) are a code.

use super::{is_blank, trimmed};

/// The number of decimal digits that always fit into a DECIMAL(38, 0).
const MOST_DIGITS: usize = 38;

/// How the numbers of a column are written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Format {
    /// `.` or `,`.
    pub mark: char,
    /// The text before or after the number. A number without it is accepted, another unit is not.
    pub unit: Option<String>,
}

impl Default for Format {
    fn default() -> Self {
        Self { mark: '.', unit: None }
    }
}

impl Format {
    /// The arguments of `to_number` and `to_integer` after the text, each preceded by a comma.
    pub fn arguments(&self) -> String {
        let mark = if self.mark == ',' { ", ','" } else { "" };
        let unit = self.unit.as_ref().map(|unit| format!(", '{}'", unit.replace('\'', "''")));
        format!("{mark}{}", unit.unwrap_or_default())
    }

    /// The value of a text; `None` if it is not a finite number in this format.
    pub fn number(&self, text: &str) -> Option<f64> {
        self.plain(text)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// The value of a whole number of at most 38 digits; `None` for other texts.
    pub fn integer(&self, text: &str) -> Option<i128> {
        let plain = self.plain(text)?;
        let digits = plain.trim_start_matches('-');
        let whole = digits.len() <= MOST_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole { plain.parse().ok() } else { None }
    }

    /// The number in the notation of programming languages: `-1234.5`.
    fn plain(&self, text: &str) -> Option<String> {
        let mut rest = trimmed(text);
        let mut negative = sign(&mut rest);
        if let Some(unit) = &self.unit {
            if let Some(after) = rest.strip_prefix(unit.as_str()) {
                rest = after.trim_start_matches(is_blank);
                if negative.is_none() {
                    negative = sign(&mut rest);
                }
            } else if let Some(before) = rest.strip_suffix(unit.as_str()) {
                rest = before.trim_end_matches(is_blank);
            }
        }
        let (rest, exponent) = match rest.find(['e', 'E']) {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        let (whole, decimals) = match rest.split_once(self.mark) {
            Some((whole, decimals)) => (whole, Some(decimals)),
            None => (rest, None),
        };
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !decimals.is_none_or(is_digits) {
            return None;
        }
        let digits = if is_digits(whole) {
            whole.to_owned()
        } else {
            // 1,234e5 is not a notation.
            if exponent.is_some() {
                return None;
            }
            self.ungrouped(whole)?
        };
        if digits.is_empty() && decimals.is_none_or(str::is_empty) || digits.len() > 1 && digits.starts_with('0') {
            return None;
        }
        let mut plain = if negative == Some(true) { "-".to_owned() } else { String::new() };
        plain.push_str(&digits);
        if let Some(decimals) = decimals {
            plain.push('.');
            plain.push_str(decimals);
        }
        if let Some(exponent) = exponent {
            let power = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            if power.is_empty() || !is_digits(power) {
                return None;
            }
            plain.push('e');
            plain.push_str(exponent);
        }
        Some(plain)
    }

    /// The digits without separators, if those group them.
    fn ungrouped(&self, whole: &str) -> Option<String> {
        let separator = whole.chars().find(|c| !c.is_ascii_digit())?;
        let other = if self.mark == '.' { ',' } else { '.' };
        if separator != other && separator != '\'' && separator != '\u{2019}' && !is_blank(separator) {
            return None;
        }
        let groups: Vec<&str> = whole.split(separator).collect();
        let (first, rest) = groups.split_first()?;
        let (last, middle) = rest.split_last()?;
        let digits = |group: &str, lengths: std::ops::RangeInclusive<usize>| {
            lengths.contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_digit())
        };
        let shortest = if separator == ',' { 2 } else { 3 };
        let fine =
            digits(first, 1..=3) && middle.iter().all(|group| digits(group, shortest..=3)) && digits(last, 3..=3);
        fine.then(|| groups.concat())
    }
}

/// Removes a sign; `Some(true)` for a minus.
fn sign(rest: &mut &str) -> Option<bool> {
    let first = rest.chars().next()?;
    let negative = match first {
        '-' | '\u{2212}' => true,
        '+' => false,
        _ => return None,
    };
    *rest = &rest[first.len_utf8()..];
    Some(negative)
}

/// Units that stand directly after a number. After a blank any word can be a unit.
const UNITS: [&str; 46] = [
    "%", "‰", "kg", "g", "mg", "lb", "lbs", "oz", "t", "km", "m", "cm", "mm", "mi", "ft", "in", "yd", "l", "ml", "cl",
    "cc", "bhp", "hp", "kw", "kwh", "w", "v", "kmpl", "mpg", "mph", "kmh", "km/h", "s", "ms", "min", "h", "kb", "mb",
    "gb", "tb", "hz", "khz", "mhz", "ghz", "sqft", "m²",
];
/// Currency codes and abbreviations that stand before or after a number.
const CURRENCIES: [&str; 25] = [
    "usd", "eur", "gbp", "jpy", "inr", "chf", "cad", "aud", "cny", "idr", "brl", "sek", "nok", "dkk", "pln", "rp",
    "rs", "rs.", "rp.", "kr", "kr.", "zł", "kč", "ft", "rm",
];
/// Maximum length of a unit in characters.
const LONGEST_UNIT: usize = 12;

fn is_currency_sign(c: char) -> bool {
    matches!(c, '$' | '¢'..='¥' | '\u{58f}' | '\u{60b}' | '\u{9f2}' | '\u{9f3}' | '\u{e3f}' | '\u{20a0}'..='\u{20c1}' | '\u{fdfc}')
}

/// The text around a number that may be its unit; `None` if there is none.
pub fn unit_of(text: &str) -> Option<&str> {
    let text = trimmed(text).trim_start_matches(['-', '+', '\u{2212}']);
    let first = text.find(|c: char| c.is_ascii_digit())?;
    let last = text.rfind(|c: char| c.is_ascii_digit())?;
    let before = text[..first].trim_end_matches(['.', ',', '-', '+', '\u{2212}']).trim_end_matches(is_blank);
    // `Rs.500`: the point belongs to the abbreviation.
    let before = if CURRENCIES.contains(&text[..first].to_lowercase().as_str()) { &text[..first] } else { before };
    let behind = &text[last + 1..];
    let after = behind.trim_start_matches(['.', ',']).trim_start_matches(is_blank);
    let money = |unit: &str| {
        unit.chars().count() <= 4 && unit.contains(is_currency_sign) && !unit.contains(|c: char| c.is_ascii_digit())
            || CURRENCIES.contains(&unit.to_lowercase().as_str())
    };
    let fits = match (before.is_empty(), after.is_empty()) {
        (false, true) => return money(before).then_some(before),
        (true, false) if money(after) || after.contains('°') => true,
        (true, false) if UNITS.contains(&after.to_lowercase().as_str()) => true,
        (true, false) => {
            let word = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '²' | '³' | 'µ' | '%' | '-');
            let half_day = matches!(after.to_lowercase().as_str(), "am" | "pm" | "a.m." | "p.m.");
            behind.starts_with(is_blank)
                && after.starts_with(char::is_alphabetic)
                && after.chars().count() <= LONGEST_UNIT
                && after.chars().all(word)
                && !half_day
        }
        _ => false,
    };
    fits.then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(mark: char, unit: &str) -> Format {
        Format { mark, unit: Some(unit.to_owned()).filter(|unit| !unit.is_empty()) }
    }

    #[test]
    fn numbers_in_many_notations() {
        let table: &[(char, &str, &str, Option<f64>)] = &[
            ('.', "", "1", Some(1.0)),
            ('.', "", " -2.50 ", Some(-2.5)),
            ('.', "", "+3e4", Some(3e4)),
            ('.', "", "3E-4", Some(3e-4)),
            ('.', "", ".5", Some(0.5)),
            ('.', "", "5.", Some(5.0)),
            ('.', "", "\u{2212}7", Some(-7.0)),
            ('.', "", "1,234", Some(1234.0)),
            ('.', "", "1,39,900.5", Some(139_900.5)),
            ('.', "", "1\u{a0}200", Some(1200.0)),
            ('.', "", "1\u{202f}200\u{202f}000,5", None),
            (',', "", "1\u{202f}200\u{202f}000,5", Some(1_200_000.5)),
            ('.', "", "15 000", Some(15_000.0)),
            ('.', "", "1'200.50", Some(1200.5)),
            (',', "", "1.234,5", Some(1234.5)),
            (',', "", "1,5", Some(1.5)),
            (',', "", "1.5", None),
            ('.', "", "1,5", None),
            ('.', "", "1,2345", None),
            ('.', "", "1,234,56", None),
            ('.', "", "1,234 567", None),
            ('.', "", "1 2", None),
            ('.', "", "12 34", None),
            (',', "€", "12,50\u{a0}€", Some(12.5)),
            ('.', "€", "€ 12.50", Some(12.5)),
            ('.', "$", "-$5.00", Some(-5.0)),
            ('.', "$", "$-5.00", Some(-5.0)),
            ('.', "$", "-$-5", None),
            ('.', "$", "5", Some(5.0)),
            ('.', "$", "€5", None),
            ('.', "", "$5", None),
            ('.', "%", "64 %", Some(64.0)),
            ('.', "kg", "3 kg", Some(3.0)),
            ('.', "kg", "3 g", None),
            ('.', "kg", "kg", None),
            ('.', "", "007", None),
            ('.', "", "0,123", None),
            ('.', "", "00.5", None),
            ('.', "", "0", Some(0.0)),
            ('.', "", "--5", None),
            ('.', "", "- 5", None),
            ('.', "", "1e999", None),
            ('.', "", "1e", None),
            ('.', "", "1e5.0", None),
            ('.', "", "1,234e5", None),
            ('.', "", "nan", None),
            ('.', "", "inf", None),
            ('.', "", "0x10", None),
            ('.', "", "1_000", None),
            ('.', "", "1.2.3", None),
            ('.', "", "", None),
            ('.', "", ".", None),
            ('.', "", "-", None),
            ('.', "", "NA", None),
            ('.', "", "?", None),
        ];
        for (mark, unit, text, number) in table {
            assert_eq!(format(*mark, unit).number(text), *number, "{text:?} with {mark} {unit}");
        }
    }

    #[test]
    fn whole_numbers_are_exact() {
        let integer = |text: &str| Format::default().integer(text);
        assert_eq!(integer("9007199254740993"), Some(9_007_199_254_740_993));
        assert_eq!(integer("-12,345"), Some(-12_345));
        assert_eq!(integer(&"9".repeat(38)), "9".repeat(38).parse().ok());
        for text in ["9".repeat(39), "1.0".to_owned(), "1e3".to_owned(), "007".to_owned(), "x".to_owned()] {
            assert_eq!(integer(&text), None, "{text}");
        }
    }

    #[test]
    fn units_are_recognised() {
        for (text, unit) in [
            ("₹1,099", "₹"),
            ("-$5.00", "$"),
            ("$-5", "$"),
            ("US$ 7", "US$"),
            ("Rs. 500", "Rs."),
            ("Rs.500", "Rs."),
            ("12,50 €", "€"),
            ("64%", "%"),
            ("998 CC", "CC"),
            ("19.67 kmpl", "kmpl"),
            ("3kg", "kg"),
            ("21 °C", "°C"),
            ("36 months", "months"),
            ("5. kg", "kg"),
        ] {
            assert_eq!(unit_of(text), Some(unit), "{text}");
        }
        for text in
            ["5", "P1", "Item 1", "1st", "12B", "10:00 AM", "10 AM", "kg", "", "A1B", "2024-05-01", "5 High Street 7"]
        {
            assert_eq!(unit_of(text), None, "{text}");
        }
    }
}
