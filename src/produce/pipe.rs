//! Reads the rows of a pipe on a separate thread.
//!
//! A read from a pipe blocks until its writer writes, and a blocked sender would not react to the broker or to a
//! signal. Therefore a reader thread fills a bounded channel, and the sender takes the rows that are available.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;

use super::{Feed, IDLE, Next, Rest};
use crate::files::{self, Options, Rows, Source};

/// Capacity of the channel in rows.
const WAITING: usize = 256;

/// A row and the line where it starts.
struct Line {
    json: String,
    number: u64,
}

/// The rows of a pipe.
pub struct Pipe {
    name: PathBuf,
    rows: Receiver<Result<Line, files::Error>>,
    position: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    stopped: bool,
}

impl Pipe {
    /// Starts the reader thread. An error in the first bytes is returned with the first row.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn open(source: Source, options: Options) -> std::io::Result<Self> {
        let (sender, rows) = sync_channel(WAITING);
        let (position, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let name = source.name();
        let (read, ended) = (Arc::clone(&position), Arc::clone(&stop));
        thread::Builder::new().name("pipe".to_owned()).spawn(move || {
            if let Err(error) = read_all((&source, &options), &sender, &read, &ended) {
                // The receiver is gone when sending has ended.
                let _ = sender.send(Err(error));
            }
        })?;
        Ok(Self { name, rows, position, stop, stopped: false })
    }
}

fn read_all(
    (source, options): (&Source, &Options),
    sender: &SyncSender<Result<Line, files::Error>>,
    position: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), files::Error> {
    let mut rows = Rows::open(source, options)?;
    rows.report();
    let mut json = String::new();
    while !stop.load(Ordering::SeqCst) {
        let Some(number) = rows.next_row(&mut json)? else { break };
        position.store(rows.position(), Ordering::Relaxed);
        if sender.send(Ok(Line { json: std::mem::take(&mut json), number })).is_err() {
            break;
        }
    }
    Ok(())
}

impl Feed for Pipe {
    fn next(&mut self, json: &mut String) -> Result<Next, files::Error> {
        match self.rows.recv_timeout(IDLE) {
            Ok(line) => {
                let line = line?;
                *json = line.json;
                Ok(Next::Row(line.number))
            }
            // The reader thread may block on the pipe forever. Rows that it has not read stay in the pipe.
            Err(RecvTimeoutError::Timeout) if !self.stopped => Ok(Next::Idle),
            Err(_) => Ok(Next::End),
        }
    }

    fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    fn name(&self) -> PathBuf {
        self.name.clone()
    }

    fn stop(&mut self) -> Rest {
        self.stop.store(true, Ordering::SeqCst);
        self.stopped = true;
        Rest::Read
    }
}
