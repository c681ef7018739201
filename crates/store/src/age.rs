//! The age of a file's records by their timestamps, and plausibility of the system clock.
//!
//! Retention deletes, so an unknown age is never old: a record without a timestamp, or with an implausible one
//! ([`crate::times::is_plausible`]), keeps its file.

use std::time::{Duration, SystemTime};

use parquet::file::metadata::ParquetMetaDataReader;

use super::Error;
use super::footer::{Bounds, DataFile};
use crate::times::{self, likely_unit};

/// 2026-01-01, in milliseconds since 1970. Every build is newer, so a clock before this is wrong.
const BUILT_AFTER: i64 = 1_767_225_600_000;
/// Tolerated difference between a producer's clock and the clock of this machine, if the producer's is ahead.
const AHEAD: Duration = Duration::from_secs(86_400);

/// Statistics of the timestamps in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// Number of records without a timestamp.
    pub missing: u64,
    /// Minimum and maximum, in milliseconds since 1970; `None` if no record has a timestamp.
    pub range: Option<(i64, i64)>,
}

impl Timestamps {
    /// Statistics of a file; reads its footer unless it was read before. `None` if the footer has no statistics.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of(file: &DataFile) -> Result<Option<Self>, Error> {
        if let Some(bounds) = &file.bounds {
            return Ok(Some(Self { missing: bounds.timeless, range: bounds.times }));
        }
        let parsed = ParquetMetaDataReader::new().parse_and_finish(&file.open()?);
        let metadata = parsed.map_err(|e| Error::Damaged { path: file.path.clone(), why: e.to_string() })?;
        let groups: Option<Vec<Bounds>> = metadata.row_groups().iter().map(Bounds::of_group).collect();
        Ok(groups.map(|groups| {
            groups.into_iter().fold(Self::default(), |sum, group| {
                let wider = |(low, high): (i64, i64)| {
                    sum.range.map_or((low, high), |(least, greatest)| (low.min(least), high.max(greatest)))
                };
                Self { missing: sum.missing + group.timeless, range: group.times.map(wider).or(sum.range) }
            })
        }))
    }

    /// The maximum timestamp, if every record has a plausible one; else the reason why the age of the records is unknown.
    fn newest(&self) -> Result<i64, String> {
        match self.range {
            _ if self.missing > 0 => Err(format!("{} of its records have no timestamp", self.missing)),
            Some((least, greatest)) => match [least, greatest].into_iter().find(|&millis| !times::is_plausible(millis))
            {
                None => Ok(greatest),
                Some(millis) => Err(implausible(millis)),
            },
            None => Err("its records have no timestamps".to_owned()),
        }
    }
}

/// Description of a wrong timestamp: `the timestamp 1764292800 is 1970-01-21T10:04:52.800Z, and most likely counts seconds`.
pub fn implausible(millis: i64) -> String {
    let likely =
        likely_unit(millis).map_or_else(String::new, |unit| format!(", and most likely counts {}", unit.name()));
    format!("the timestamp {millis} is {} in milliseconds{likely}", times::text(millis))
}

/// The number of files, from the oldest on, that hold only records older than `age`. If an unknown age ends the count, also the
/// reason.
pub(super) fn older_than(files: &[DataFile], age: Duration) -> Result<(usize, Option<String>), Error> {
    let now = times::millis(SystemTime::now());
    if let Some(why) = wrong_clock(files, now)? {
        return Ok((0, Some(why)));
    }
    let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    for (old, file) in files.iter().enumerate() {
        let newest = match Timestamps::of(file)? {
            Some(timestamps) => timestamps.newest(),
            None => Err("its statistics say nothing of timestamps".to_owned()),
        };
        match newest {
            Ok(newest) if now.saturating_sub(newest) > age => {}
            Ok(_) => return Ok((old, None)),
            Err(why) => {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                return Ok((old, Some(format!("the age of {name} is not known: {why}"))));
            }
        }
    }
    Ok((files.len(), None))
}

/// Why the clock is wrong, if it is: it is before this build, or before stored records.
fn wrong_clock(files: &[DataFile], now: i64) -> Result<Option<String>, Error> {
    if now < BUILT_AFTER {
        return Ok(Some(format!("the clock of this machine says {}, which is before this build", times::text(now))));
    }
    let mut newest = None;
    for (i, file) in files.iter().enumerate() {
        // Most footers were read already; of the others the last is enough.
        if file.bounds.is_none() && i + 1 < files.len() {
            continue;
        }
        let range = Timestamps::of(file)?.and_then(|timestamps| timestamps.range);
        newest = newest.max(range.map(|(_, greatest)| greatest).filter(|&millis| times::is_plausible(millis)));
    }
    let ahead = i64::try_from(AHEAD.as_millis()).unwrap_or(i64::MAX);
    Ok(newest.filter(|&newest| newest > now.saturating_add(ahead)).map(|newest| {
        format!(
            "the clock of this machine says {}, and the newest record is of {}: one of them is wrong",
            times::text(now),
            times::text(newest)
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn file(missing: u64, range: Option<(i64, i64)>) -> DataFile {
        let bounds = Some(Bounds { timeless: missing, times: range, offsets: (0, 0) });
        DataFile { bounds, path: "7.parquet".into(), ..DataFile::default() }
    }

    fn ago(days: i64) -> i64 {
        times::millis(SystemTime::now()) - days * DAY
    }

    fn old(files: &[DataFile]) -> (usize, String) {
        let (old, why) = older_than(files, Duration::from_secs(7 * 86_400)).unwrap();
        (old, why.unwrap_or_default())
    }

    #[test]
    fn records_of_unknown_age_are_not_old() {
        let (ancient, recent) = (file(0, Some((ago(100), ago(99)))), file(0, Some((ago(100), ago(1)))));
        assert_eq!(old(&[ancient.clone(), ancient.clone(), recent.clone()]), (2, String::new()));
        let seconds = ago(50) / 1000;
        let unknown = [
            (file(3, Some((ago(100), ago(99)))), "3 of its records have no timestamp"),
            (file(3, None), "no timestamp"),
            (file(0, Some((seconds, ago(99)))), "most likely counts seconds"),
            (file(0, Some((ago(99), ago(99) * 1_000_000))), "most likely counts nanoseconds"),
            (file(0, Some((0, ago(99)))), "the timestamp 0 is 1970-01-01T00:00:00Z in milliseconds"),
            (file(0, Some((-1, -1))), "the timestamp -1 is 1969-12-31T23:59:59.999Z"),
            (file(0, Some((i64::MIN, i64::MAX))), "the timestamp -9223372036854775808 is "),
        ];
        for (unknown, why) in unknown {
            let (old, said) = old(&[ancient.clone(), unknown, ancient.clone(), recent.clone()]);
            assert!(
                old == 1 && said.starts_with("the age of 7.parquet is not known: ") && said.contains(why),
                "{said}"
            );
        }
    }

    #[test]
    fn no_records_are_old_if_the_clock_is_before_them() {
        let files =
            [file(0, Some((ago(100), ago(99)))), file(0, Some((ago(99), ago(-3)))), file(0, Some((ago(1), ago(1))))];
        let (none, why) = old(&files);
        assert!(none == 0 && why.contains("one of them is wrong"), "{why}");
        assert_eq!(old(&[files[0].clone(), file(0, Some((ago(1), ago(0) + DAY / 2)))]), (1, String::new()));
        let before = wrong_clock(&files, -DAY).unwrap().unwrap();
        assert_eq!(before, "the clock of this machine says 1969-12-31T00:00:00Z, which is before this build");
    }
}
