//! The check of `doctor` for the timestamps of stored records.

use std::collections::BTreeMap;

use tercile_store::times::{likely_unit, text};
use tercile_store::{self as store, DataFile, Snapshot, Timestamps};

use super::count;

/// Files whose range has an end that was most likely recorded in the same wrong unit.
#[derive(Default)]
struct Odd<'a> {
    files: u64,
    first: Option<(&'a DataFile, i64)>,
}

/// The time range of the records, or the files whose timestamps are most likely not milliseconds.
pub(super) fn check(snapshot: &Snapshot) -> Result<String, String> {
    let mut odd: BTreeMap<_, Odd<'_>> = BTreeMap::new();
    let (mut missing, mut range) = (0, None::<(i64, i64)>);
    for file in &snapshot.files {
        let Some(times) = Timestamps::of(file).map_err(|e| e.to_string())? else { continue };
        missing += times.missing;
        let Some((least, greatest)) = times.range else { continue };
        range = Some(range.map_or((least, greatest), |(low, high)| (least.min(low), greatest.max(high))));
        if let Some((millis, unit)) =
            [least, greatest].into_iter().find_map(|millis| Some((millis, likely_unit(millis)?)))
        {
            let found = odd.entry(unit).or_default();
            found.files += 1;
            found.first.get_or_insert((file, millis));
        }
    }
    let found = odd.values().filter_map(|odd| {
        let (file, millis) = odd.first?;
        Some(format!("{} like {}: {}", count(odd.files, "file"), file.path.display(), store::implausible(millis)))
    });
    let found: Vec<String> = found.collect();
    if !found.is_empty() {
        return Err(format!(
            "{}; correct the producer: slices follow these timestamps, and --keep-for never lets such records expire",
            found.join("; ")
        ));
    }
    let without = if missing > 0 { format!("; {} have none", count(missing, "record")) } else { String::new() };
    Ok(match range {
        Some((least, greatest)) => format!("{} to {}{without}", text(least), text(greatest)),
        None => format!("no record has one{without}"),
    })
}
