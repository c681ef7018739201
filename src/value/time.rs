//! Whether a text is a time.
//!
//! Accepted are dates with an optional time of day and zone: `2024-05-01`, `2024/5/1`, `20240501`, `1 May 2024`, `May 1,
//! 2024`, `Wed, 01 May 2024 10:00:00 +0000`, `01.05.2024 10:00`, `2024-05-01T10:00:00.5+05:30`, `2024-05-01 10:00 AM`.
//! Dates like `01/05/2024` need an [`Order`]. Years are 1 to 9999.

use chrono::{NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Weekday};

use super::{is_blank, trimmed};

/// The order of day and month in dates that end with the year.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    DayFirst,
    MonthFirst,
}

impl Order {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::DayFirst => "dmy",
            Self::MonthFirst => "mdy",
        }
    }

    /// The order with this name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::DayFirst, Self::MonthFirst].into_iter().find(|order| order.name() == name)
    }
}

/// The unit of a number that counts from 1970-01-01 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// How times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// As dates, with this order of day and month.
    Date(Option<Order>),
    /// As numbers.
    Since1970(Unit),
}

impl Form {
    /// The form with this name in SQL.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "s" => Self::Since1970(Unit::Seconds),
            "ms" => Self::Since1970(Unit::Milliseconds),
            "us" => Self::Since1970(Unit::Microseconds),
            "ns" => Self::Since1970(Unit::Nanoseconds),
            order => Self::Date(Some(Order::of_name(order)?)),
        })
    }

    /// The microseconds since 1970 (UTC) of a text; `None` if it is no time in this form.
    pub fn time(self, text: &str) -> Option<i64> {
        match self {
            Self::Date(order) => time(text, order),
            Self::Since1970(unit) => since_1970(trimmed(text), unit),
        }
    }
}

/// The microseconds of a number since 1970. Years are 1 to 9999, as in dates.
fn since_1970(text: &str, unit: Unit) -> Option<i64> {
    let micros = match (text.parse::<i64>(), unit) {
        (Ok(whole), Unit::Seconds) => whole.checked_mul(1_000_000)?,
        (Ok(whole), Unit::Milliseconds) => whole.checked_mul(1_000)?,
        (Ok(whole), Unit::Microseconds) => whole,
        (Ok(whole), Unit::Nanoseconds) => whole.div_euclid(1_000),
        (Err(_), unit) => {
            // A fraction, as in Python's time.time(), or an exponent.
            let number = text.parse::<f64>().ok().filter(|_| text.ends_with(|c: char| c.is_ascii_digit()))?;
            let scale = match unit {
                Unit::Seconds => 1e6,
                Unit::Milliseconds => 1e3,
                Unit::Microseconds => 1.0,
                Unit::Nanoseconds => 1e-3,
            };
            (number * scale).round() as i64
        }
    };
    (-62_135_596_800_000_000..253_402_300_800_000_000).contains(&micros).then_some(micros)
}

/// The microseconds since 1970 (UTC) of a text; a time without a zone is taken as UTC. `None` if the text is not a
/// valid time, or if it needs an order and none is given.
pub fn time(text: &str, order: Option<Order>) -> Option<i64> {
    let text = trimmed(text);
    if text.len() > 64 || !text.is_ascii() && !text.chars().all(|c| c.is_ascii() || is_blank(c)) {
        return None;
    }
    // Numbers and words are far more frequent than times.
    if text.len() < 8 || !text.bytes().any(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (date, rest) = date(without_weekday(text), order)?;
    let moment = time_of_day(rest, date)?;
    Some(moment.and_utc().timestamp_micros())
}

/// Whether a text consists of eight digits that are a date of 1900 to 2099, such as `20240501`.
pub fn is_compact_date(text: &str) -> bool {
    let text = trimmed(text);
    text.len() == 8 && matches!(text.get(..2), Some("19" | "20")) && time(text, None).is_some()
}

/// The leading digits as a number, if there are `least` to `most` of them, and the rest.
fn digits(text: &str, least: usize, most: usize) -> Option<(u32, &str)> {
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    if !(least..=most).contains(&length) {
        return None;
    }
    Some((text[..length].parse().ok()?, &text[length..]))
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_alphabetic).count())
}

fn ymd(year: u32, month: u32, day: u32) -> Option<NaiveDate> {
    (year > 0).then(|| NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, day)).flatten()
}

/// The text after a day of the week, if it begins with one: `Wed, 1 May 2024`.
fn without_weekday(text: &str) -> &str {
    let (name, rest) = word(text);
    match (name.parse::<Weekday>(), rest.strip_prefix(',').unwrap_or(rest).strip_prefix(' ')) {
        (Ok(_), Some(rest)) => rest,
        _ => text,
    }
}

/// A month by its English name or its first three letters.
fn month(name: &str) -> Option<u32> {
    const NAMES: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let name = name.to_ascii_lowercase();
    let found =
        NAMES.iter().position(|full| name == *full || name == full[..3] || (name == "sept" && *full == "september"));
    found.and_then(|index| u32::try_from(index + 1).ok())
}

/// The date at the start of a text, and the rest.
fn date(text: &str, order: Option<Order>) -> Option<(NaiveDate, &str)> {
    if text.starts_with(|c: char| c.is_ascii_alphabetic()) {
        // May 1, 2024
        let (name, rest) = word(text);
        let month = month(name)?;
        let (day, rest) = digits(rest.strip_prefix(' ')?, 1, 2)?;
        let (year, rest) = digits(rest.strip_prefix(',').unwrap_or(rest).strip_prefix(' ')?, 4, 4)?;
        return Some((ymd(year, month, day)?, rest));
    }
    let length = text.bytes().take_while(u8::is_ascii_digit).count();
    let (first, rest) = digits(text, 1, 8)?;
    if length == 8 {
        // 20240501, 20240501T100000
        return Some((ymd(first / 10_000, first / 100 % 100, first % 100)?, rest));
    }
    let separator = rest.chars().next()?;
    if length == 4 {
        // 2024-05-01
        let (month, rest) = digits(rest.strip_prefix(['-', '/', '.'])?, 1, 2)?;
        let (day, rest) = digits(rest.strip_prefix(separator)?, 1, 2)?;
        return Some((ymd(first, month, day)?, rest));
    }
    if length > 2 {
        return None;
    }
    let rest = rest.strip_prefix(['-', '/', '.', ' '])?;
    if rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
        // 1 May 2024, 01-May-2024
        let (name, rest) = word(rest);
        let month = month(name)?;
        let (year, rest) = digits(rest.strip_prefix(separator)?, 4, 4)?;
        return Some((ymd(year, month, first)?, rest));
    }
    if separator == ' ' {
        return None;
    }
    let (second, rest) = digits(rest, 1, 2)?;
    let (year, rest) = digits(rest.strip_prefix(separator)?, 4, 4)?;
    // With points the day is first in every country that writes them.
    let order = if separator == '.' { Order::DayFirst } else { order? };
    match order {
        Order::DayFirst => Some((ymd(year, second, first)?, rest)),
        Order::MonthFirst => Some((ymd(year, first, second)?, rest)),
    }
}

/// The moment on this day; the text is what follows the date.
fn time_of_day(text: &str, date: NaiveDate) -> Option<NaiveDateTime> {
    if text.is_empty() {
        return Some(date.and_time(NaiveTime::MIN));
    }
    let compact = text.starts_with('T')
        && text.len() > 3
        && text.as_bytes()[1..].iter().take_while(|b| b.is_ascii_digit()).count() >= 4;
    let text = match text.strip_prefix(['T', 't']) {
        Some(text) => text,
        None => {
            let text = text.strip_prefix(',').unwrap_or(text);
            let bare = text.trim_start_matches(is_blank);
            if bare.len() == text.len() {
                // A zone may follow a date directly: 2024-05-01Z, 2024-05-01+02:00.
                return zoned(text, date.and_time(NaiveTime::MIN));
            }
            bare
        }
    };
    let (hour, minute, second, rest) = if compact {
        let length = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = digits(text, 4, 6)?;
        match length {
            4 => (number / 100, number % 100, 0, rest),
            6 => (number / 10_000, number / 100 % 100, number % 100, rest),
            _ => return None,
        }
    } else {
        let (hour, rest) = digits(text, 1, 2)?;
        let (minute, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
        match rest.strip_prefix(':') {
            Some(rest) => {
                let (second, rest) = digits(rest, 2, 2)?;
                (hour, minute, second, rest)
            }
            None => (hour, minute, 0, rest),
        }
    };
    let (micros, rest) = match rest.strip_prefix(['.', ',']) {
        Some(rest) => {
            let length = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=9).contains(&length) {
                return None;
            }
            let six: String = rest[..length].chars().chain("000000".chars()).take(6).collect();
            (six.parse().ok()?, &rest[length..])
        }
        None => (0, rest),
    };
    let (half, after) = word(rest.trim_start_matches(is_blank));
    let (hour, rest) = match half.to_ascii_lowercase().as_str() {
        "am" | "pm" if !(1..=12).contains(&hour) => return None,
        "am" => (hour % 12, after),
        "pm" => (hour % 12 + 12, after),
        _ => (hour, rest),
    };
    let time = NaiveTime::from_hms_micro_opt(hour, minute, second, micros)?;
    zoned(rest, date.and_time(time))
}

/// The moment in UTC; the text is a zone or empty.
fn zoned(text: &str, local: NaiveDateTime) -> Option<NaiveDateTime> {
    let text = text.trim_matches(is_blank);
    let utc = |text: &str| matches!(text, "" | "Z" | "z" | "UTC" | "GMT" | "UT");
    if utc(text) {
        return Some(local);
    }
    let text = text.strip_prefix("UTC").or_else(|| text.strip_prefix("GMT")).unwrap_or(text);
    let east = match text.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let (hours, rest) = match digits(&text[1..], 4, 4) {
        Some((number, rest)) => (i64::from(number / 100) * 60 + i64::from(number % 100), rest),
        None => {
            let (hours, rest) = digits(&text[1..], 2, 2)?;
            match rest.strip_prefix(':') {
                Some(rest) => {
                    let (minutes, rest) = digits(rest, 2, 2)?;
                    (i64::from(hours) * 60 + i64::from(minutes), rest)
                }
                None => (i64::from(hours) * 60, rest),
            }
        }
    };
    // 2024-05-01 10:00:00 +0000 UTC, as Go prints it.
    let named = rest.trim_start_matches(is_blank);
    let fine = hours <= 18 * 60 && (named.is_empty() || utc(named) && rest.len() > named.len());
    if !fine {
        return None;
    }
    local.checked_sub_signed(TimeDelta::minutes(east * hours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, order: Option<Order>) -> Option<String> {
        let micros = time(text, order)?;
        Some(chrono::DateTime::from_timestamp_micros(micros)?.naive_utc().to_string())
    }

    #[test]
    fn numbers_since_1970_have_a_unit() {
        let at = |text: &str, unit: &str| Form::of_name(unit).unwrap().time(text);
        let ten = Some(1_714_557_600_000_000);
        for (text, unit) in [
            ("1714557600", "s"),
            ("1714557600.0", "s"),
            (" 1714557600000 ", "ms"),
            ("1.7145576e12", "ms"),
            ("1714557600000000", "us"),
            ("1714557600000000999", "ns"),
        ] {
            assert_eq!(at(text, unit), ten, "{text} {unit}");
        }
        assert_eq!(at("1714557600.123456", "s"), Some(1_714_557_600_123_456));
        assert_eq!(at("-1", "s"), Some(-1_000_000));
        for text in ["", "x", "NaN", "inf", "1,5", "9223372036854775807", "1e300", "2024-05-01"] {
            assert_eq!(at(text, "ms"), None, "{text}");
        }
        assert_eq!(at("01/05/2024", "dmy"), at("05/01/2024", "mdy"));
        assert_eq!(Form::of_name("hours"), None);
    }

    #[test]
    fn times_in_many_notations() {
        for (text, read_as) in [
            ("2024-05-01", "2024-05-01 00:00:00"),
            ("2024/5/1", "2024-05-01 00:00:00"),
            ("20240501", "2024-05-01 00:00:00"),
            ("20141013T000000", "2014-10-13 00:00:00"),
            ("01.05.2024 10:00", "2024-05-01 10:00:00"),
            ("1 May 2024", "2024-05-01 00:00:00"),
            ("01-MAY-2024", "2024-05-01 00:00:00"),
            ("May 1, 2024", "2024-05-01 00:00:00"),
            ("September 25, 2021", "2021-09-25 00:00:00"),
            ("Wed, 01 May 2024 10:00:00 +0200", "2024-05-01 08:00:00"),
            (" 2024-05-01 10:00 ", "2024-05-01 10:00:00"),
            ("2024-05-01T10:00:00Z", "2024-05-01 10:00:00"),
            ("2024-05-01 10:00:00 UTC", "2024-05-01 10:00:00"),
            ("2024-05-01 10:00:00 +0000 UTC", "2024-05-01 10:00:00"),
            ("2024-05-01T10:00:00+05:30", "2024-05-01 04:30:00"),
            ("2024-05-01T10:00:00-0800", "2024-05-01 18:00:00"),
            ("2024-05-01T10:00:00.123456789Z", "2024-05-01 10:00:00.123456"),
            ("2024-05-01T10:00:00,5", "2024-05-01 10:00:00.500"),
            ("2024-05-01 10:00 AM", "2024-05-01 10:00:00"),
            ("2024-05-01 12:05:06 pm", "2024-05-01 12:05:06"),
            ("2024-05-01 12:05AM", "2024-05-01 00:05:00"),
            ("9999-12-31", "9999-12-31 00:00:00"),
            ("0001-01-01", "0001-01-01 00:00:00"),
            ("2024-02-29", "2024-02-29 00:00:00"),
        ] {
            assert_eq!(read(text, None).as_deref(), Some(read_as), "{text}");
        }
        for text in [
            "2023-02-29",
            "2024-13-01",
            "2024-05-01 25:00",
            "2024-05-01 13:00 PM",
            "2024-05-01 10",
            "2024-05-01x",
            "2024-05-01 10:00:00 CEST",
            "2024-5",
            "2024",
            "10:00",
            "12345-67-89",
            "2024-05/01",
            "0000-01-01",
            "1.2.3",
            "2024-05-01 10:00:61",
            "01/05/2024",
            "05-01-2024",
            "32.01.2024",
            "Foo 1, 2024",
            "Wed, Wed, 1 May 2024",
            "",
            "١٢٣٤-٠٥-٠١",
            "2024-05-01T",
            "2024-05-01 ,",
            "2024-05-01 10:00:00.+02:00",
            "2024-05-01 10:00 +99:00",
        ] {
            assert_eq!(read(text, None), None, "{text}");
        }
    }

    #[test]
    fn the_order_decides_which_number_is_the_day() {
        let (day, month) = (Some(Order::DayFirst), Some(Order::MonthFirst));
        assert_eq!(read("01/05/2024", day).unwrap(), "2024-05-01 00:00:00");
        assert_eq!(read("01/05/2024", month).unwrap(), "2024-01-05 00:00:00");
        assert_eq!(read("12/1/2010 8:26", month).unwrap(), "2010-12-01 08:26:00");
        assert_eq!(read("13/05/2024", month), None);
        assert_eq!(read("05/13/2024", day), None);
        assert_eq!(read("2024-05-01", day), read("2024-05-01", None));
    }

    #[test]
    fn eight_digits_of_this_time_are_a_date() {
        assert!(is_compact_date("20240501") && !is_compact_date("20241301") && !is_compact_date("12345678"));
        assert!(!is_compact_date("20240501T10"));
    }
}
