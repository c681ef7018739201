//! The check of the queues of notifications.

use chrono::{DateTime, Duration, Utc};
use tercile_store::{Store, times};

use super::Finding;
use crate::cli::count;
use crate::notify::{self, Waiting};

/// Age from which a message is not just between two attempts, which are five minutes apart at most.
const LATE: Duration = Duration::minutes(10);

/// Reports what receivers have not taken; `None` if nothing waits.
pub fn check(store: &Store) -> Option<Finding> {
    match notify::waiting(store) {
        Ok(waiting) => waiting.map(|waiting| found(&waiting, times::now())),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn found(Waiting { messages, oldest }: &Waiting, now: DateTime<Utc>) -> Finding {
    let since = DateTime::from_timestamp_millis(*oldest).unwrap_or(now);
    let words = format!(
        "{} not taken by a receiver, the oldest since {}",
        count(*messages as u64, "notification"),
        since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
    );
    if now - since < LATE {
        return Ok(words);
    }
    Err(format!(
        "{words}; tercile notify --test tries the receiver, and up, serve and ingest with the same --notify send what waits, for a \
         day"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_longer_than_a_retry_is_a_fault() {
        let at = |millis| DateTime::from_timestamp_millis(millis).unwrap();
        let waiting = Waiting { messages: 2, oldest: 1_000 };
        let words = "2 notifications not taken by a receiver, the oldest since 1970-01-01T00:00:01Z";
        assert_eq!(found(&waiting, at(600_999)), Ok(words.to_owned()));
        assert!(found(&waiting, at(601_000)).unwrap_err().starts_with(&format!("{words}; tercile notify --test ")));
    }
}
