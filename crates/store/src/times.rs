//! Timestamps of records, as set by producers: detection of wrong units, and formatting.
//!
//! Kafka's timestamps are milliseconds since 1970. By default brokers accept timestamps in seconds, microseconds or
//! nanoseconds, whose records then lie in January 1970 or far in the future. Such values are stored unchanged and reported.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
/// 2000-01-01, in milliseconds since 1970; older than Kafka and its records.
const EARLIEST: i64 = 946_684_800_000;
/// 2100-01-01.
const LATEST: i64 = 4_102_444_800_000;

/// The probable unit of a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Seconds since 1970.
    Seconds,
    /// Microseconds since 1970.
    Microseconds,
    /// Nanoseconds since 1970.
    Nanoseconds,
}

impl Unit {
    /// The unit's name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        }
    }
}

/// The unit in which a timestamp that is not plausible in milliseconds lies between the years 2000 and 2100.
pub fn likely_unit(millis: i64) -> Option<Unit> {
    let within = |per_milli: i64| (EARLIEST * per_milli..LATEST.saturating_mul(per_milli)).contains(&millis);
    if (EARLIEST / 1000..LATEST / 1000).contains(&millis) {
        Some(Unit::Seconds)
    } else if within(1000) {
        Some(Unit::Microseconds)
    } else if within(1_000_000) {
        Some(Unit::Nanoseconds)
    } else {
        None
    }
}

/// Whether a timestamp in milliseconds is plausible: between the years 2000 and 2100.
pub fn is_plausible(millis: i64) -> bool {
    (EARLIEST..LATEST).contains(&millis)
}

/// The current time. Unlike `Utc::now` it does not panic if the clock is before 1970.
pub fn now() -> DateTime<Utc> {
    SystemTime::now().into()
}

/// Milliseconds since 1970; negative for earlier times.
pub fn millis(time: SystemTime) -> i64 {
    let whole = |since: Duration| i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

/// A time in milliseconds since 1970 in RFC 3339 format; after the year 9999 and before the year 0 in ISO 8601 format with a
/// sign.
pub fn text(millis: i64) -> String {
    format!("{}Z", civil(i128::from(millis), 3))
}

/// `2026-11-28T04:05:06.007`: `value` counts units of 10^-`decimals` seconds since 1970.
pub fn civil(value: i128, decimals: u32) -> String {
    let scale = 10_i128.pow(decimals);
    let (seconds, fraction) = (value.div_euclid(scale), value.rem_euclid(scale));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut text = format!("{}T{:02}:{:02}:{:02}", date(days), second / 3600, second / 60 % 60, second % 60);
    if fraction > 0 {
        text += &format!(".{fraction:0width$}", width = decimals as usize);
    }
    text
}

/// The date in the proleptic Gregorian calendar this number of days after 1970-01-01. After Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms" (civil_from_days): years begin in March, so that the leap day is the last one.
pub fn date(days: i128) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    if (0..=9999).contains(&year) {
        format!("{year:04}-{month:02}-{day:02}")
    } else {
        format!("{year:+05}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_detected_by_magnitude() {
        let seconds = 1_795_839_435_i64;
        assert_eq!(likely_unit(seconds), Some(Unit::Seconds));
        assert_eq!(likely_unit(seconds * 1000), None);
        assert_eq!(likely_unit(seconds * 1_000_000), Some(Unit::Microseconds));
        assert_eq!(likely_unit(seconds * 1_000_000_000), Some(Unit::Nanoseconds));
        for other in [i64::MIN, -1, 0, 1, 86_400_000, 500_000_000_000, 9_000_000_000_000, i64::MAX] {
            assert_eq!(likely_unit(other), None, "{other}");
        }
        assert!(is_plausible(seconds * 1000));
        assert!([i64::MIN, -1, 0, seconds, seconds * 1_000_000, i64::MAX].iter().all(|&millis| !is_plausible(millis)));
    }

    #[test]
    fn times_are_formatted_as_by_chrono() {
        for millis in [
            0,
            1,
            -1,
            951_782_400_000,
            1_795_839_435_123,
            -62_167_219_200_001,
            253_402_300_800_000,
            i64::from(i32::MIN),
        ] {
            let chrono = DateTime::from_timestamp_millis(millis).unwrap();
            let expected = chrono.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
            assert_eq!(text(millis), expected, "{millis}");
        }
        assert_eq!(text(1_764_292_800_000_000_000), "+55910183-03-10T13:20:00Z");
        assert_eq!(text(i64::MAX), "+292278994-08-17T07:12:55.807Z");
        assert_eq!(text(i64::MIN), "-292275055-05-16T16:47:04.192Z");
        assert_eq!(millis(SystemTime::UNIX_EPOCH - Duration::from_secs(2)), -2000);
    }
}
