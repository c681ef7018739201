//! A lane: one partition on its way from messages to files.
//!
//! Two threads. One decodes and batches, the other publishes the partition's files, one after the other.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use super::{Error, Report, Shared};
use crate::batch::{Batch, Ready};
use crate::broker::{Message, Start};
use crate::record;
use crate::store::{self, DataFile, Log, Published};

/// Bytes of messages that may wait in front of one lane.
const LANE_BYTES: usize = 8 * 1024 * 1024;
/// Messages that are handed over at once, at most, and how many such chunks may wait in front of one lane.
pub(super) const CHUNK_MESSAGES: usize = 256;
const LANE_CHUNKS: usize = 32;
/// Bytes of messages that are handed over at once, more or less.
pub(super) const CHUNK_BYTES: usize = 1024 * 1024;

pub(super) enum Input<'c> {
    Messages(Vec<Message<'c>>),
    Flush(Sender<()>),
}

/// What the decoding thread of a lane hands to the publishing one.
enum Output {
    File(Ready),
    Flush(Sender<()>),
}

/// The reading thread's end of a lane.
pub(super) struct Lane<'c> {
    pub(super) input: SyncSender<Input<'c>>,
    /// The position after the last record read.
    pub(super) position: i64,
    /// What comes from here on is left for another time.
    pub(super) end: Option<i64>,
    /// What is not handed over yet, and its bytes.
    pub(super) chunk: Vec<Message<'c>>,
    pub(super) chunk_bytes: usize,
    /// Bytes of messages that the lane has not taken yet.
    waiting: Arc<AtomicUsize>,
    /// Set when the partition was taken away: what is unwritten is dropped.
    pub(super) revoked: Arc<AtomicBool>,
}

impl<'c> Lane<'c> {
    /// Starts both threads of a lane.
    pub(super) fn open<'scope>(
        scope: &'scope Scope<'scope, 'c>,
        shared: &'c Shared<'c>,
        start: Start,
    ) -> Result<Self, Error> {
        let (input, messages) = sync_channel(LANE_CHUNKS);
        // No batch waits between the two threads: one is built while one is written.
        let (output, ready) = sync_channel(0);
        let (waiting, revoked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let spawn = |name: &str| thread::Builder::new().name(format!("{name}-{}", start.partition));
        let failed = |source| Error::Thread { partition: start.partition, source };
        let (taken, gone) = (Arc::clone(&waiting), Arc::clone(&revoked));
        spawn("decode")
            .spawn_scoped(scope, move || decode(shared, start, &messages, &output, &taken, &gone))
            .map_err(failed)?;
        let gone = Arc::clone(&revoked);
        spawn("publish").spawn_scoped(scope, move || publish(shared, start, &ready, &gone)).map_err(failed)?;
        let (chunk, chunk_bytes) = (Vec::new(), 0);
        Ok(Self { input, position: start.offset, end: None, chunk, chunk_bytes, waiting, revoked })
    }

    /// Hands the chunk over, which may take a while: the broker's queue fills up behind us, and fetching stops by itself.
    pub(super) fn hand_over(&mut self, shared: &Shared<'c>) {
        if self.chunk.is_empty() {
            return;
        }
        let (chunk, bytes) = (std::mem::take(&mut self.chunk), std::mem::take(&mut self.chunk_bytes));
        while self.waiting.load(Ordering::Relaxed) > LANE_BYTES && !shared.abandon.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        let progress = &shared.control.progress;
        progress.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        progress.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.waiting.fetch_add(bytes, Ordering::Relaxed);
        // A lane that is gone has reported why.
        let _ = self.input.send(Input::Messages(chunk));
    }
}

/// The decoding thread of a lane: messages to batches.
fn decode(
    shared: &Shared<'_>,
    start: Start,
    messages: &Receiver<Input<'_>>,
    output: &SyncSender<Output>,
    waiting: &AtomicUsize,
    revoked: &AtomicBool,
) {
    let Shared { job, .. } = shared;
    let mut batch = Batch::new(start.partition, &job.fields);
    // The publishing thread is gone where it does not take a batch: it has reported why.
    let publish = |batch: &mut Batch| match batch.take() {
        Ok(Some(ready)) => output.send(Output::File(ready)).is_ok(),
        Ok(None) => true,
        Err(source) => {
            shared.abandon.store(true, Ordering::SeqCst);
            let _ = shared.reports.send(Report::Failed(Error::Batch { partition: start.partition, source }));
            false
        }
    };
    loop {
        let patience = match batch.due_at(&job.limits) {
            Some(due) => due.saturating_duration_since(Instant::now()),
            None => Duration::from_secs(3600),
        };
        let going = match messages.recv_timeout(patience) {
            Ok(Input::Messages(chunk)) => chunk.into_iter().all(|message| {
                waiting.fetch_sub(message.size(), Ordering::Relaxed);
                let record = message.record();
                let decoded = record::decode(record.payload, &job.fields);
                let now = Instant::now();
                batch.push(&record, message.headers(), &decoded, now);
                !batch.due(&job.limits, now) || publish(&mut batch)
            }),
            Ok(Input::Flush(done)) => publish(&mut batch) && output.send(Output::Flush(done)).is_ok(),
            Err(RecvTimeoutError::Timeout) => publish(&mut batch),
            Err(RecvTimeoutError::Disconnected) => {
                if !shared.abandon.load(Ordering::SeqCst) && !revoked.load(Ordering::SeqCst) {
                    publish(&mut batch);
                }
                false
            }
        };
        if !going || shared.abandon.load(Ordering::SeqCst) || revoked.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// The publishing thread of a lane: batches to files.
fn publish(shared: &Shared<'_>, start: Start, ready: &Receiver<Output>, revoked: &AtomicBool) {
    let log = shared.job.store.log(&shared.job.topic, start.partition);
    let mut expected = start.next;
    for output in ready {
        if shared.abandon.load(Ordering::SeqCst) || revoked.load(Ordering::SeqCst) {
            return;
        }
        let report = match output {
            Output::Flush(done) => {
                let _ = done.send(());
                continue;
            }
            Output::File(ready) => match write(shared, &log, &ready, expected) {
                Ok(Written::File(file)) => {
                    expected = file.next;
                    continue;
                }
                Ok(Written::Overtaken) => Report::Overtaken(start.partition),
                Err(error) => Report::Failed(error),
            },
        };
        // Whatever happened to a partition that was taken away, it is somebody else's now.
        if !revoked.load(Ordering::SeqCst) {
            shared.abandon.store(true, Ordering::SeqCst);
            let _ = shared.reports.send(report);
        }
        return;
    }
}

enum Written {
    File(DataFile),
    Overtaken,
}

/// Publishes a batch, then commits. A disk that refuses is tried again until there is room or somebody
/// says stop: the records wait here, and the broker keeps them too.
fn write(shared: &Shared<'_>, log: &Log, ready: &Ready, expected: i64) -> Result<Written, Error> {
    let mut told = false;
    let published = loop {
        match log.publish(&ready.records, expected, ready.next) {
            Ok(published) => break published,
            Err(error @ (store::Error::Io { .. } | store::Error::Parquet { .. })) if !shared.control.stopping() => {
                if !told {
                    tracing::warn!("{error}; trying again until it works");
                    told = true;
                }
                thread::sleep(Duration::from_secs(1));
            }
            Err(error) => return Err(error.into()),
        }
    };
    if told {
        tracing::info!("the store takes records again");
    }
    match published {
        Published::Taken => Ok(Written::Overtaken),
        Published::File(file) => {
            let progress = &shared.control.progress;
            progress.stored.fetch_add(file.rows, Ordering::Relaxed);
            progress.unreadable.fetch_add(ready.unreadable as u64, Ordering::Relaxed);
            progress.files.fetch_add(1, Ordering::Relaxed);
            *progress.last_file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file.path.clone());
            tracing::debug!(path = %file.path.display(), rows = file.rows, "stored");
            shared.consumer.commit(file.partition, file.next);
            Ok(Written::File(file))
        }
    }
}
