//! Rows of a pipe, as they come.
//!
//! A read from a pipe blocks until its writer says something, and a sender that blocks hears neither the broker nor a signal. So a
//! thread of its own reads, and the sender takes what it has.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;

use super::{Feed, IDLE, Next, Rest};
use crate::rows::{self, Rows, Source};

/// Rows that were read and wait for the sender, at most.
const WAITING: usize = 256;

/// A row and the line that it begins in.
struct Line {
    json: String,
    number: u64,
}

/// The rows of a pipe.
pub struct Pipe {
    name: PathBuf,
    rows: Receiver<Result<Line, rows::Error>>,
    position: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    stopped: bool,
}

impl Pipe {
    /// Starts to read. A fault in the first bytes is told with the first row.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub fn open(source: Source) -> std::io::Result<Self> {
        let (sender, rows) = sync_channel(WAITING);
        let (position, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let name = source.name();
        let (read, ended) = (Arc::clone(&position), Arc::clone(&stop));
        thread::Builder::new().name("pipe".to_owned()).spawn(move || {
            if let Err(error) = read_all(&source, &sender, &read, &ended) {
                // Nobody listens where the sending is over.
                let _ = sender.send(Err(error));
            }
        })?;
        Ok(Self { name, rows, position, stop, stopped: false })
    }
}

fn read_all(
    source: &Source,
    sender: &SyncSender<Result<Line, rows::Error>>,
    position: &AtomicU64,
    stop: &AtomicBool,
) -> Result<(), rows::Error> {
    let mut rows = Rows::open(source)?;
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
    fn next(&mut self, json: &mut String) -> Result<Next, rows::Error> {
        match self.rows.recv_timeout(IDLE) {
            Ok(line) => {
                let line = line?;
                *json = line.json;
                Ok(Next::Row(line.number))
            }
            // The reading thread may wait for the pipe for ever: what it has not read is not ours.
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
