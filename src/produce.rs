//! Sends the rows of a file or of a pipe to a topic, in order.

mod key;
mod pipe;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use key::Key;
pub use pipe::Pipe;
use tercile_kafka::broker::embedded::Backlog;
use tercile_kafka::broker::{self, Acknowledged, Producer, Row};
use tercile_store::row_set::RowSet;

use crate::files::{self, Rows};

/// Maximum time of one wait for a pipe.
const IDLE: Duration = Duration::from_millis(100);

/// The reason why sending stopped, with the rows acknowledged until then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or is malformed.
    #[error("{source}; {}", Progress(acknowledged, None))]
    Rows { source: files::Error, acknowledged: Box<Acknowledged> },
    /// A row was not delivered.
    #[error("{path}, line {line}: {source}; {}", Progress(acknowledged, Some(*line)), path = path.display())]
    Row { path: PathBuf, line: u64, source: Box<broker::Error>, acknowledged: Box<Acknowledged> },
}

impl Error {
    /// The rows acknowledged before the error.
    pub fn acknowledged(&self) -> &Acknowledged {
        match self {
            Self::Rows { acknowledged, .. } | Self::Row { acknowledged, .. } => acknowledged,
        }
    }
}

/// Formats `200 rows were acknowledged, up to line 200`. The second field is the line of the row that failed.
struct Progress<'a>(&'a Acknowledged, Option<u64>);

impl fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Acknowledged { records, last_line, unknown, .. } = self.0;
        match records {
            0 => write!(f, "no row was acknowledged")?,
            1 => write!(f, "1 row was acknowledged, line {last_line}")?,
            _ => write!(f, "{records} rows were acknowledged, the last is line {last_line}")?,
        }
        if self.1.is_some_and(|failed| *last_line > failed) {
            write!(f, " (rows behind the one that failed are among them)")?;
        }
        if *unknown > 0 {
            write!(f, "; {unknown} more were sent without an answer, and may have arrived")?;
        }
        Ok(())
    }
}

/// A source of rows.
pub trait Feed {
    /// Replaces the content of `json` by the next row.
    ///
    /// # Errors
    /// If the row is malformed or the input cannot be read.
    fn next(&mut self, json: &mut String) -> Result<Next, files::Error>;

    /// Bytes read so far.
    fn position(&self) -> u64;

    /// The name used in error messages.
    fn name(&self) -> PathBuf;

    /// Stops reading input. Rows that were already read are still returned.
    fn stop(&mut self) -> Rest;
}

/// The next item of a [`Feed`].
pub enum Next {
    /// A row, with the line where it starts.
    Row(u64),
    /// No row is available yet.
    Idle,
    End,
}

/// The remainder of a [`Feed`] that was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Rows that were read from a pipe and cannot be read again.
    Read,
    /// Nothing, or only rows that can be read again.
    Nothing,
}

impl Feed for Rows {
    fn next(&mut self, json: &mut String) -> Result<Next, files::Error> {
        Ok(self.next_row(json)?.map_or(Next::End, Next::Row))
    }

    fn position(&self) -> u64 {
        Rows::position(self)
    }

    fn name(&self) -> PathBuf {
        self.path().to_owned()
    }

    fn stop(&mut self) -> Rest {
        Rest::Nothing
    }
}

/// Settings of a replay: it marks each row, skips the rows that the store already contains and never runs far ahead
/// of the consumer.
pub struct Replay<'a> {
    /// SHA-256 of the file.
    pub hash: &'a str,
    /// The rows of the file that are already stored.
    pub stored: &'a RowSet,
    /// Back-pressure of the embedded broker, if it is used.
    pub backlog: Option<&'a Backlog>,
}

/// Options of [`send`].
#[derive(Default)]
pub struct Options<'a> {
    /// Rows per second; unlimited if `None`.
    pub rate: Option<f64>,
    /// The field whose text is the key; `None` for records without a key.
    pub key: Option<&'a Key>,
    pub replay: Option<Replay<'a>>,
}

/// Sends all rows, waits for every acknowledgement and returns the acknowledged rows. `stop` ends the sending early;
/// rows that were already read from a pipe are still sent. `tick` receives the rows sent and the bytes read from time
/// to time.
///
/// # Errors
/// If a row is malformed or was not delivered. The error contains the rows that were acknowledged.
pub fn send(
    mut producer: Producer,
    feed: &mut impl Feed,
    options: &Options<'_>,
    stop: &AtomicBool,
    tick: impl FnMut(u64, u64),
) -> Result<Acknowledged, Error> {
    let ended = feed_all(&mut producer, feed, options, stop, tick);
    let (acknowledged, failure) = producer.finish(stop);
    let row = |line, source: broker::Error, acknowledged: Acknowledged| Error::Row {
        path: feed.name(),
        line,
        source: Box::new(source),
        acknowledged: Box::new(acknowledged),
    };
    match (failure, ended) {
        (Some(failure), _) => Err(row(failure.line, failure.error, acknowledged)),
        (None, Err(Fault::Rows(source))) => Err(Error::Rows { source, acknowledged: Box::new(acknowledged) }),
        (None, Err(Fault::Row { line, source })) => Err(row(line, source, acknowledged)),
        (None, Ok(())) => Ok(acknowledged),
    }
}

/// The reason why the rows end early.
enum Fault {
    Rows(files::Error),
    Row { line: u64, source: broker::Error },
}

fn feed_all(
    producer: &mut Producer,
    feed: &mut impl Feed,
    options: &Options<'_>,
    stop: &AtomicBool,
    mut tick: impl FnMut(u64, u64),
) -> Result<(), Fault> {
    let start = Instant::now();
    let mut json = String::new();
    let mut sent = 0_u64;
    let mut row = 0_u64;
    let mut rest = None;
    loop {
        if stop.load(Ordering::Relaxed) && *rest.get_or_insert_with(|| feed.stop()) == Rest::Nothing {
            break;
        }
        let line = match feed.next(&mut json).map_err(Fault::Rows)? {
            Next::Row(line) => line,
            Next::Idle => {
                producer.poll(Duration::ZERO);
                tick(sent, feed.position());
                if producer.has_failed() {
                    break;
                }
                continue;
            }
            Next::End => break,
        };
        let number = row;
        row += 1;
        if let Some(key) = options.key
            && number == 0
        {
            key.admit_first(&json, line).map_err(|fault| Fault::Rows(fault.at(&feed.name())))?;
        }
        let mut mark = None;
        let skipped = options.replay.as_ref().is_some_and(|replay| replay.stored.contains(number));
        if skipped {
            continue;
        }
        let key = options.key.and_then(|key| key.of(&json));
        if let Some(replay) = &options.replay {
            if let Some(backlog) = replay.backlog
                && !backlog.enter(json.len() + key.as_ref().map_or(0, String::len))
            {
                break;
            }
            mark = Some((replay.hash, number));
        }
        if let Some(rate) = options.rate
            && !pace(start, sent, rate, stop, producer)
        {
            break;
        }
        let record =
            Row { key: key.as_ref().map(String::as_bytes), payload: Some(json.as_bytes()), line, replay: mark };
        if !producer.send(record, stop).map_err(|source| Fault::Row { line, source })? {
            break;
        }
        sent += 1;
        if sent.is_multiple_of(256) {
            tick(sent, feed.position());
        }
    }
    tick(sent, feed.position());
    Ok(())
}

/// Waits until row `sent` is due; `false` if another row failed meanwhile.
fn pace(start: Instant, sent: u64, rate: f64, stop: &AtomicBool, producer: &mut Producer) -> bool {
    let wait = Duration::try_from_secs_f64(sent as f64 / rate).unwrap_or(Duration::MAX);
    while !stop.load(Ordering::Relaxed) {
        let left = wait.saturating_sub(start.elapsed());
        if left.is_zero() {
            break;
        }
        producer.poll(Duration::ZERO);
        if producer.has_failed() {
            return false;
        }
        std::thread::sleep(left.min(IDLE));
    }
    true
}
