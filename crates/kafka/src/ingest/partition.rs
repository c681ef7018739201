//! A partition worker: turns one partition's messages into files.
//!
//! It has three threads. One takes messages from the partition's queue, decodes and batches them; the next writes batches as
//! Parquet; the last publishes the files in order. The supervisor controls them through [`State`].

mod retry;
mod timestamps;

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use tercile_store::batch::{Batch, Limits, Ready};
use tercile_store::record::WithoutFields;
use tercile_store::{Log, Prepared, Published};

use super::control::FlushEvent;
use super::{Error, Report, Shared};
use crate::broker::{CHUNK, Item, Message, Queue, Start, Trouble, place};

/// Maximum wait for a message before the state is checked.
const PATIENCE: Duration = Duration::from_millis(500);

/// Maximum age of the first batch after another process was faster: its records have already waited once.
const AGE_AFTER_OVERTAKEN: Duration = Duration::from_secs(1);

/// Maximum time that a revocation waits for a file that is being written.
const WRITING: Duration = Duration::from_secs(2);

/// An item passed from one thread of a worker to the next.
enum Output<T> {
    /// A batch, whose last record was read before this moment.
    File(T, Instant),
    Flush(Sender<FlushEvent>),
}

/// A written batch, with its numbers of records without fields.
struct File {
    prepared: Prepared,
    without_fields: WithoutFields,
}

/// A partition worker, as the supervisor holds it.
pub(super) struct PartitionWorker<'c> {
    start: Start,
    queue: Queue<'c>,
    state: State,
    /// Records from this offset on are ignored.
    end: Option<i64>,
    /// Whether this worker replaces one that another process overtook.
    overtaken: bool,
    /// Held while messages are taken.
    taking: Mutex<()>,
    flushes: Mutex<Vec<Sender<FlushEvent>>>,
}

#[derive(Default)]
struct State {
    /// The position after the last batched record.
    position: AtomicI64,
    /// Whether the partition's end at that time was reached.
    at_end: AtomicBool,
    /// Take no more messages, write the current batch.
    finish: AtomicBool,
    /// Take no more messages, drop the current batch: the partition was revoked.
    revoked: AtomicBool,
    /// Whether a file is being written.
    writing: AtomicBool,
    /// Whether the broker has answered for this partition.
    answered: AtomicBool,
    /// Whether a timestamp that is probably not in milliseconds was reported.
    odd_timestamp: AtomicBool,
}

impl<'c> PartitionWorker<'c> {
    /// Starts the threads of a worker.
    pub(super) fn open<'scope>(
        scope: &'scope Scope<'scope, 'c>,
        shared: &'c Shared<'c>,
        start: Start,
        end: Option<i64>,
        overtaken: bool,
    ) -> Result<Arc<Self>, Error> {
        let state = State { position: AtomicI64::new(start.offset), ..State::default() };
        let queue = shared.consumer.queue(start)?;
        let worker =
            Arc::new(Self { start, queue, state, end, overtaken, taking: Mutex::default(), flushes: Mutex::default() });
        // No batch waits between the threads: one is built while one is written and one published.
        let (output, ready) = sync_channel(0);
        let (file, written) = sync_channel(0);
        let spawn = |name: &str| thread::Builder::new().name(format!("{name}-{}", start.partition));
        let failed = |source| Error::Thread { partition: start.partition, source };
        let own = Arc::clone(&worker);
        spawn("decode").spawn_scoped(scope, move || own.decode(shared, &output)).map_err(failed)?;
        let own = Arc::clone(&worker);
        spawn("write").spawn_scoped(scope, move || own.write(shared, &ready, &file)).map_err(failed)?;
        let own = Arc::clone(&worker);
        spawn("publish").spawn_scoped(scope, move || own.publish(shared, &written)).map_err(failed)?;
        Ok(worker)
    }

    pub(super) fn position(&self) -> i64 {
        self.state.position.load(Ordering::SeqCst)
    }

    pub(super) fn at_end(&self) -> bool {
        self.state.at_end.load(Ordering::SeqCst)
    }

    /// Whether the broker has answered for this partition.
    pub(super) fn has_answered(&self) -> bool {
        self.state.answered.load(Ordering::Relaxed)
    }

    /// Requests that all records batched so far are stored now.
    pub(super) fn flush(&self, done: Sender<FlushEvent>) {
        self.flushes.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        self.queue.wake();
    }

    /// Makes the worker write its batch and end.
    pub(super) fn finish(&self) {
        self.state.finish.store(true, Ordering::SeqCst);
        self.queue.wake();
    }

    /// Makes the worker drop its batch and end. After this returns, it takes no more messages, which belong to the next worker
    /// of the partition. Waits for a while for a file that is being written, so that the next owner finds the end of the log;
    /// if the file takes longer, the next owner finds its file name taken.
    pub(super) fn revoke(&self) {
        self.state.revoked.store(true, Ordering::SeqCst);
        self.queue.wake();
        drop(self.taking.lock());
        let patience = Instant::now() + WRITING;
        while self.state.writing.load(Ordering::SeqCst) && Instant::now() < patience {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Difference between offsets of the store and of the broker.
    pub(super) fn base(&self) -> i64 {
        self.start.base
    }

    /// Whether the worker drops its batches: the partition was revoked, or another process was faster.
    pub(super) fn revoked(&self) -> bool {
        self.state.revoked.load(Ordering::SeqCst)
    }

    fn dropped(&self, shared: &Shared<'_>) -> bool {
        self.revoked() || shared.abandon.load(Ordering::SeqCst)
    }

    /// Takes available messages, waiting until `due` at most.
    fn take(&self, shared: &Shared<'_>, items: &mut Vec<Item<'c>>, due: Option<Instant>) {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.dropped(shared) {
            return;
        }
        let asked = self.state.finish.load(Ordering::SeqCst)
            || !self.flushes.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let patience = match due {
            _ if asked => Duration::ZERO,
            Some(due) => due.saturating_duration_since(Instant::now()).min(PATIENCE),
            None => PATIENCE,
        };
        self.queue.take(items, patience);
    }

    /// The decoding thread: messages to batches.
    fn decode(&self, shared: &Shared<'_>, output: &SyncSender<Output<Ready>>) {
        let Shared { job, control, .. } = shared;
        let partition = self.start.partition;
        let mut batch = Batch::new(partition, &job.fields);
        let mut items = Vec::with_capacity(CHUNK);
        let mut first = self.overtaken;
        loop {
            let finishing = self.state.finish.load(Ordering::SeqCst);
            let mut limits = shared.limits();
            if first {
                limits.age = limits.age.min(AGE_AFTER_OVERTAKEN);
            }
            if !finishing {
                self.take(shared, &mut items, batch.due_at(&limits));
            }
            let (mut received, mut bytes) = (0, 0);
            let now = Instant::now();
            for item in items.drain(..) {
                if !matches!(item, Item::Refused(_) | Item::Trouble(_)) {
                    self.state.answered.store(true, Ordering::Relaxed);
                    shared.heard.store(true, Ordering::Relaxed);
                }
                match item {
                    // A pause during a read delivers the same messages again.
                    Item::Message(message) if message.offset() < self.position() => {}
                    Item::Message(message) => {
                        self.state.at_end.store(false, Ordering::SeqCst);
                        if self.end.is_none_or(|end| message.offset() < end) {
                            received += 1;
                            bytes += message.size() as u64;
                            self.add(shared, &mut batch, &message, now);
                            if batch.due(&limits, now) {
                                first = false;
                                if !self.hand_on(shared, &mut batch, output) {
                                    return;
                                }
                            }
                        }
                        self.state.position.store(message.offset() + 1, Ordering::SeqCst);
                    }
                    Item::End(position) => {
                        // Transaction markers may lie between the last record and the end.
                        self.state.position.fetch_max(position, Ordering::SeqCst);
                        self.state.at_end.store(true, Ordering::SeqCst);
                    }
                    Item::OutOfRange => shared.report(Report::OutOfRange(partition)),
                    Item::Broken(why) => {
                        shared.abandon(Report::Again(format!("{}: {why}", place(&job.topic, partition))));
                        return;
                    }
                    Item::Refused(code) => {
                        self.fail(shared, Report::Failed(shared.consumer.refused(code).into()));
                        return;
                    }
                    // The other partitions report the same cause.
                    Item::Trouble(Trouble { cause, message }) if shared.told.is_new(&cause) => {
                        tracing::warn!(partition, "{}: {message}; trying again", place(&job.topic, partition));
                    }
                    Item::Trouble(_) => {}
                }
            }
            control.progress.received.fetch_add(received, Ordering::Relaxed);
            control.progress.received_bytes.fetch_add(bytes, Ordering::Relaxed);
            let asked = std::mem::take(&mut *self.flushes.lock().unwrap_or_else(PoisonError::into_inner));
            if self.dropped(shared) {
                return;
            }
            let due = finishing || !asked.is_empty() || batch.due(&limits, now);
            first &= !due;
            if due && !self.hand_on(shared, &mut batch, output) {
                return;
            }
            // The send fails only if a later thread has ended, which has then reported the reason.
            if finishing || asked.into_iter().any(|done| output.send(Output::Flush(done)).is_err()) {
                return;
            }
        }
    }

    fn add(&self, shared: &Shared<'_>, batch: &mut Batch, message: &Message<'_>, now: Instant) {
        let mut record = message.record();
        let decoded = shared.job.decoder.decode(record.payload, &shared.job.fields);
        // A record without fields has no event time, and is counted as unreadable.
        let event_time = shared.job.event_time.as_ref().zip(decoded.as_ref().ok());
        match event_time.map(|(event_time, decoded)| event_time.of(decoded)) {
            Some(Ok(millis)) => record.timestamp = Some(millis),
            fallen_back => {
                if let (Some((event_time, _)), Some(Err(why))) = (event_time, fallen_back) {
                    self.fall_back(shared, record.offset, &event_time.name, &why);
                }
                self.check_timestamp(shared, record.offset, record.timestamp);
            }
        }
        batch.push(&record, message.headers(), &decoded, now);
        if let Some(backlog) = &shared.job.backlog
            && message.is_replayed()
            && shared.own.is_first_read(self.start.partition, record.offset - self.start.base)
        {
            backlog.leave(message.size());
        }
    }

    /// Passes a batch to the writing thread. While this blocks, the queue fills up and librdkafka stops fetching
    /// (back-pressure). `false` if the receiver is gone.
    fn hand_on(&self, shared: &Shared<'_>, batch: &mut Batch, output: &SyncSender<Output<Ready>>) -> bool {
        match batch.take() {
            Ok(Some(ready)) => output.send(Output::File(ready, Instant::now())).is_ok(),
            Ok(None) => true,
            Err(source) => {
                shared.abandon(Report::Failed(Error::Batch { partition: self.start.partition, source }));
                false
            }
        }
    }

    /// The writing thread: batches to unnamed files, each starting at the end of the one before.
    fn write(&self, shared: &Shared<'_>, ready: &Receiver<Output<Ready>>, output: &SyncSender<Output<File>>) {
        let log = shared.job.store.log(&shared.job.topic, self.start.partition);
        let mut start = self.start.next;
        for given in ready {
            let written = match given {
                Output::Flush(done) => Output::Flush(done),
                Output::File(ready, read) => {
                    match self.until_it_works(shared, || log.prepare(&ready.records, start, ready.next)) {
                        Ok(Some(prepared)) => {
                            start = ready.next;
                            Output::File(File { prepared, without_fields: ready.without_fields }, read)
                        }
                        Ok(None) => return,
                        Err(error) => return self.fail(shared, Report::Failed(error)),
                    }
                }
            };
            if self.dropped(shared) || output.send(written).is_err() {
                return;
            }
        }
    }

    /// The publishing thread: gives files their names.
    fn publish(&self, shared: &Shared<'_>, written: &Receiver<Output<File>>) {
        let log = shared.job.store.log(&shared.job.topic, self.start.partition);
        for output in written {
            // In this order, either this thread sees the revocation, or the revoking thread sees the write.
            self.state.writing.store(true, Ordering::SeqCst);
            let going = !self.dropped(shared) && self.put(shared, &log, output);
            self.state.writing.store(false, Ordering::SeqCst);
            if !going {
                break;
            }
        }
        log.note_end();
    }

    /// Publishes a file; `false` if the worker cannot continue.
    fn put(&self, shared: &Shared<'_>, log: &Log, output: Output<File>) -> bool {
        match output {
            Output::Flush(done) => {
                let _ = done.send(FlushEvent::Stored);
                return true;
            }
            Output::File(file, read) => match self.name(shared, log, &file, read) {
                Ok(Named::Well) => return true,
                Ok(Named::Overtaken) => self.drop_overtaken(shared),
                Ok(Named::Dropped) => {}
                Err(error) => self.fail(shared, Report::Failed(error)),
            },
        }
        false
    }

    /// Drops the worker's batches and requests that the partition is read again from the end of its log. Other partitions are not
    /// affected.
    fn drop_overtaken(&self, shared: &Shared<'_>) {
        if !self.state.revoked.swap(true, Ordering::SeqCst) {
            self.queue.wake();
            shared.report(Report::Overtaken(self.start.partition));
        }
    }

    /// Reports the end of the worker, unless the partition was revoked: then it belongs to another worker.
    fn fail(&self, shared: &Shared<'_>, report: Report) {
        if !self.revoked() {
            shared.abandon(report);
        }
    }

    /// Publishes a file, then commits.
    fn name(&self, shared: &Shared<'_>, log: &Log, file: &File, read: Instant) -> Result<Named, Error> {
        shared.identity.confirm(shared.job, read)?;
        let published = self.until_it_works(shared, || log.publish_prepared(&file.prepared))?;
        let Some(published) = published else { return Ok(Named::Dropped) };
        match published {
            Published::Taken => Ok(Named::Overtaken),
            Published::File(stored) => {
                let progress = &shared.control.progress;
                progress.stored.fetch_add(stored.rows, Ordering::Relaxed);
                progress.unreadable.fetch_add(file.without_fields.unreadable, Ordering::Relaxed);
                progress.tombstones.fetch_add(file.without_fields.tombstones, Ordering::Relaxed);
                progress.files.fetch_add(1, Ordering::Relaxed);
                progress.wrote(&stored.path);
                shared.own.set_stored(stored.partition, stored.next - self.start.base);
                tracing::debug!(path = %stored.path.display(), rows = stored.rows, "stored");
                // Without a reachable broker, a pending commit would delay the shutdown.
                if !shared.control.stopping() || shared.heard.load(Ordering::Relaxed) {
                    shared.consumer.commit(stored.partition, stored.next);
                }
                Ok(Named::Well)
            }
        }
    }
}

/// Outcome of publishing a file.
enum Named {
    Well,
    Overtaken,
    /// The partition was revoked meanwhile.
    Dropped,
}

/// A batch's limits with this number of workers sharing the memory budget. One batch is built while one is written, as text and
/// as Parquet, and one published, which may be in memory, so each gets an eighth of its worker's share.
pub(super) fn share(limits: &Limits, memory: usize, workers: usize) -> Limits {
    Limits { bytes: limits.bytes.min(memory / 8 / workers.max(1)).max(1), ..*limits }
}
