//! Streams bodies between connections and worker threads in bounded memory.
//!
//! Input: a request body as it arrives, and a response as it is written. Output: the former as a blocking reader, the latter as
//! a stream. Many clients send their whole request before they read: while a body still arrives, unread response bytes are
//! spooled to an unnamed file, which prevents a deadlock between the two directions.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use poem::Body;
use tokio::sync::{Notify, mpsc};

use super::memory_charge::MemoryCharge;
use crate::bulk::Error;
use crate::spool::unnamed_file;

/// Capacity of the channel of body chunks.
const CHUNKS: usize = 8;
/// Bytes of the first piece of a response: an error up to there still becomes a status.
const FIRST: usize = 1024 * 1024;
/// Bytes of each later piece.
const PIECE: usize = 256 * 1024;
/// Maximum response bytes waiting in memory.
const ROOM: usize = 4 * 1024 * 1024;

/// Error of a body that is too long.
pub fn too_long(limit: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("the body may have {limit} bytes at most"))
}

/// Blocking reader of an arriving body. `left` is the number of bytes that may still arrive, of `limit` in total.
pub fn incoming<S, B>(mut body: S, mut left: u64, limit: u64, answer: &Shared) -> impl Read + Send + use<S, B>
where
    S: Stream<Item = io::Result<B>> + Send + Unpin + 'static,
    B: AsRef<[u8]> + Send + 'static,
{
    let (sender, chunks) = mpsc::channel(CHUNKS);
    let answer = answer.clone();
    answer.0.arriving.store(true, Ordering::SeqCst);
    tokio::spawn(async move {
        while let Some(chunk) = body.next().await {
            let length = chunk.as_ref().map_or(0, |chunk| chunk.as_ref().len() as u64);
            let chunk = if length > left { Err(too_long(limit)) } else { chunk };
            left = left.saturating_sub(length);
            let failed = chunk.is_err();
            // The reader stops after an error, its own or this one.
            if sender.send(chunk).await.is_err() || failed {
                break;
            }
        }
        answer.0.arriving.store(false, Ordering::SeqCst);
        answer.0.room.notify_all();
    });
    Incoming { chunks, chunk: None, at: 0 }
}

struct Incoming<B> {
    chunks: mpsc::Receiver<io::Result<B>>,
    chunk: Option<B>,
    at: usize,
}

impl<B: AsRef<[u8]>> Read for Incoming<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(chunk) = &self.chunk {
                let rest = &chunk.as_ref()[self.at..];
                if !rest.is_empty() {
                    let n = rest.len().min(buffer.len());
                    buffer[..n].copy_from_slice(&rest[..n]);
                    self.at += n;
                    return Ok(n);
                }
            }
            match self.chunks.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (Some(chunk?), 0),
                None => return Ok(0),
            }
        }
    }
}

/// Response between the writing thread and the connection.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    pipe: Mutex<Pipe>,
    readable: Notify,
    room: Condvar,
    /// Whether the request body is still arriving.
    arriving: AtomicBool,
    /// Memory of both directions, held until the last piece of the response is released.
    charge: Arc<MemoryCharge>,
}

#[derive(Default)]
struct Pipe {
    ready: VecDeque<Vec<u8>>,
    /// Total bytes of `ready`.
    held: usize,
    /// Bytes that follow `ready`.
    spool: Option<Spool>,
    end: Option<Result<(), Error>>,
    /// Whether the reader is gone.
    gone: bool,
}

struct Spool {
    file: Arc<std::fs::File>,
    read: u64,
    written: u64,
}

impl Shared {
    pub fn new(charge: &Arc<MemoryCharge>) -> Self {
        Self(Arc::new(Inner {
            pipe: Mutex::default(),
            readable: Notify::new(),
            room: Condvar::new(),
            arriving: AtomicBool::new(false),
            charge: Arc::clone(charge),
        }))
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.0.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first piece.
    ///
    /// # Errors
    /// The error that occurred before it.
    pub async fn begun(&self) -> Result<(), Error> {
        loop {
            {
                let mut pipe = self.pipe();
                if matches!(pipe.end, Some(Err(_)))
                    && let Some(Err(error)) = pipe.end.take()
                {
                    return Err(error);
                }
                if pipe.end.is_some() || !pipe.ready.is_empty() || pipe.spool.is_some() {
                    return Ok(());
                }
            }
            self.0.readable.notified().await;
        }
    }

    /// The response body: in one piece if it is complete already, else a stream that is aborted on error.
    pub fn body(self) -> Body {
        {
            let mut pipe = self.pipe();
            if matches!(pipe.end, Some(Ok(()))) && pipe.spool.is_none() {
                return Body::from(pipe.ready.drain(..).collect::<Vec<_>>().concat());
            }
        }
        let reading = Reading(self);
        Body::from_bytes_stream(futures::stream::unfold(reading, |reading| async {
            let piece = reading.next().await?;
            let charge = Arc::clone(&reading.0.0.charge);
            Some((piece.map(|bytes| Bytes::from_owner(Piece { bytes, _charge: charge })), reading))
        }))
    }
}

/// Bytes of a response that the connection may hold for a while.
struct Piece {
    bytes: Vec<u8>,
    _charge: Arc<MemoryCharge>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The connection's end. Dropping it stops the writer.
struct Reading(Shared);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.pipe().gone = true;
        self.0.0.room.notify_all();
    }
}

impl Reading {
    async fn next(&self) -> Option<io::Result<Vec<u8>>> {
        loop {
            let spooled = {
                let mut pipe = self.0.pipe();
                if let Some(piece) = pipe.ready.pop_front() {
                    pipe.held -= piece.len();
                    self.0.0.room.notify_all();
                    return Some(Ok(piece));
                }
                let spooled = pipe.spool.as_ref().filter(|spool| spool.read < spool.written);
                let spooled = spooled.map(|spool| (Arc::clone(&spool.file), spool.read, spool.written));
                if spooled.is_none() {
                    match &pipe.end {
                        Some(Ok(())) => return None,
                        Some(Err(error)) => {
                            tracing::warn!("an answer that had begun was broken off: {error}");
                            // The server closes the connection, or resets the HTTP/2 stream.
                            return Some(Err(io::Error::other(error.to_string())));
                        }
                        None => {}
                    }
                }
                spooled
            };
            match spooled {
                Some((file, from, to)) => return Some(self.unspool(file, from, to).await),
                None => self.0.0.readable.notified().await,
            }
        }
    }

    async fn unspool(&self, file: Arc<std::fs::File>, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; PIECE.min((to - from) as usize)];
        let read = tokio::task::spawn_blocking(move || file.read_exact_at(&mut piece, from).map(|()| piece));
        let piece = read.await.map_err(io::Error::other)??;
        if let Some(spool) = &mut self.0.pipe().spool {
            spool.read += piece.len() as u64;
            // Frees the disk space of bytes already read.
            if spool.read == spool.written {
                spool.file.set_len(0)?;
                (spool.read, spool.written) = (0, 0);
            }
        }
        self.0.0.room.notify_all();
        Ok(piece)
    }
}

/// The writer's end. Dropping it without [`Outgoing::end`] aborts the response.
pub struct Outgoing {
    shared: Shared,
    piece: Vec<u8>,
    size: usize,
}

impl Outgoing {
    pub fn new(shared: &Shared) -> Self {
        Self { shared: shared.clone(), piece: Vec::new(), size: FIRST }
    }

    /// Ends the response. After an error, bytes not yet handed over are discarded.
    pub fn end(mut self, result: Result<(), Error>) {
        if let Err(error) = result.and_then(|()| Ok(self.push(true)?)) {
            self.piece.clear();
            self.shared.pipe().end = Some(Err(error));
        }
        // Only written bytes and buffers for reading the spool file remain.
        let waiting = self.shared.pipe().held + FIRST;
        self.shared.0.charge.ends(waiting);
    }

    /// The last piece is published together with the end: a reader that saw only one of them would mistake a complete response
    /// for a partial one.
    fn push(&mut self, last: bool) -> io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        self.size = PIECE;
        let inner = Arc::clone(&self.shared.0);
        let mut pipe = inner.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if pipe.gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let spooled = pipe.spool.as_ref().is_some_and(|spool| spool.read < spool.written);
            if !spooled && pipe.held < ROOM {
                pipe.held += piece.len();
                if !piece.is_empty() {
                    pipe.ready.push_back(piece);
                }
                break;
            }
            if inner.arriving.load(Ordering::SeqCst) {
                pipe.spool(&piece)?;
                break;
            }
            pipe = inner.room.wait(pipe).unwrap_or_else(PoisonError::into_inner);
        }
        if last {
            pipe.end = Some(Ok(()));
        }
        drop(pipe);
        inner.readable.notify_one();
        Ok(())
    }
}

impl Pipe {
    fn spool(&mut self, piece: &[u8]) -> io::Result<()> {
        let spool = match &mut self.spool {
            Some(spool) => spool,
            none => none.insert(Spool { file: Arc::new(unnamed_file()?), read: 0, written: 0 }),
        };
        spool.file.write_all_at(piece, spool.written)?;
        spool.written += piece.len() as u64;
        Ok(())
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= self.size {
            self.push(false)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        let cut = || Err(Error::Write("the server cut the answer off".to_owned()));
        self.shared.pipe().end.get_or_insert_with(cut);
        self.shared.0.readable.notify_one();
    }
}
