//! Rows of a file to a topic, in the order of the file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::broker::embedded::Backlog;
use crate::broker::{self, Acknowledged, Producer};
use crate::rows::{self, Rows};

/// What stopped the sending.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{source} ({sent} rows before it were sent)")]
    Rows { source: rows::Error, sent: u64 },
    #[error("{source} ({sent} rows before it were acknowledged)")]
    Broker { source: broker::Error, sent: u64 },
}

/// A replay marks each row, leaves out those that the store has already, and never runs far ahead of the reader.
pub struct Replay<'a> {
    /// SHA-256 of the file.
    pub hash: &'a str,
    /// The rows of the file that are stored already.
    pub stored: &'a RowSet,
    /// Where to wait for the reader, if the broker is an embedded one.
    pub backlog: Option<&'a Backlog>,
}

/// How to send.
#[derive(Default)]
pub struct Options<'a> {
    /// Rows a second; as fast as it goes if not given.
    pub rate: Option<f64>,
    pub replay: Option<Replay<'a>>,
}

/// Sends all rows, waits for every acknowledgement, and says what was acknowledged. `stop` ends it early, `tick` hears
/// the rows sent and the bytes read now and then.
pub fn send(
    mut producer: Producer,
    rows: &mut Rows,
    options: &Options<'_>,
    stop: &AtomicBool,
    mut tick: impl FnMut(u64, u64),
) -> Result<Acknowledged, Error> {
    let start = Instant::now();
    let mut json = String::new();
    let mut sent = 0_u64;
    let mut row = 0_u64;
    loop {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Some(line) = rows.next_row(&mut json).map_err(|source| Error::Rows { source, sent })? else { break };
        let number = row;
        row += 1;
        let mut mark = None;
        if let Some(replay) = &options.replay {
            if replay.stored.contains(number) {
                continue;
            }
            if let Some(backlog) = replay.backlog
                && !backlog.enter(json.len())
            {
                break;
            }
            mark = Some((replay.hash, number));
        }
        if let Some(rate) = options.rate {
            pace(start, sent, rate, stop, &producer);
        }
        if let Err(source) = producer.send(json.as_bytes(), line, mark) {
            return Err(Error::Broker { source, sent: producer.acknowledged().records });
        }
        sent += 1;
        if sent.is_multiple_of(256) {
            tick(sent, rows.position());
        }
    }
    tick(sent, rows.position());
    producer.finish().map_err(|source| Error::Broker { source, sent })
}

/// Waits until row `sent` is due.
fn pace(start: Instant, sent: u64, rate: f64, stop: &AtomicBool, producer: &Producer) {
    let due = start + Duration::from_secs_f64(sent as f64 / rate);
    while !stop.load(Ordering::Relaxed) {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        producer.poll();
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// A set of row numbers, one bit each.
#[derive(Debug, Default)]
pub struct RowSet {
    words: Vec<u64>,
    len: u64,
}

impl RowSet {
    /// Adds a row; `false` if it was there.
    pub fn insert(&mut self, row: u64) -> bool {
        let (word, bit) = ((row / 64) as usize, 1 << (row % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let fresh = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u64::from(fresh);
        fresh
    }

    pub fn contains(&self, row: u64) -> bool {
        self.words.get((row / 64) as usize).is_some_and(|word| word & (1 << (row % 64)) != 0)
    }

    /// How many rows it holds.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_set_holds_what_was_put_in() {
        let mut set = RowSet::default();
        assert!(set.is_empty());
        for row in [0, 63, 64, 1000] {
            assert!(set.insert(row));
            assert!(!set.insert(row));
        }
        assert_eq!(set.len(), 4);
        assert!([0, 63, 64, 1000].iter().all(|&row| set.contains(row)));
        assert!([1, 62, 65, 999, 1001, u64::MAX].iter().all(|&row| !set.contains(row)));
    }
}
