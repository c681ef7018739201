//! Accepts plain and TLS connections, registers them, and drains the kernel's queue at graceful shutdown.
//!
//! Input: a listener. Output: streams that report their activity to connections.rs.

#![allow(unsafe_code, reason = "a socket option of Linux (a packet filter) has no safe wrapper; part of a read buffer")]

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use poem::Addr;
use poem::http::uri::Scheme;
use poem::listener;
use poem::web::{LocalAddr, RemoteAddr};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::connections::{Connection, Connections, Timeouts};
use super::tls::Tls;

/// Backoff after `accept` failed for lack of descriptors or memory.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// Time at shutdown for handshakes already in progress: the third packet of a TCP handshake arrives one round trip after the
/// second.
const HANDSHAKES: Duration = Duration::from_millis(200);

/// Bytes that all connections together may read at once while they are few, and those of one connection: at least what a request
/// head needs. The protocol's read buffer grows to twice the size of the reads, and up to 417 KB without this limit: of a thousand
/// clients that send large bodies that is more memory than the bodies of those that are admitted.
const READS: usize = 2 * 1024 * 1024;
const LEAST_READ: usize = 8 * 1024;
const MOST_READ: usize = 128 * 1024;

/// Phase of the acceptor during shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// New handshakes are ignored.
    Closing,
    /// All established connections have been accepted.
    Closed,
}

/// Source of connections in each phase.
enum Source {
    Open(TcpListener),
    /// Shutdown has begun; waits for handshakes in progress since this instant.
    Closing(TcpListener, Instant),
    /// Accepts the connections left in the kernel's queue.
    Draining(StdListener),
    Closed,
}

/// Accepts connections until shutdown.
pub struct Acceptor {
    source: Source,
    clients: Connections,
    /// Whether connections start with a TLS handshake.
    tls: bool,
    patience: Timeouts,
    phase: Arc<watch::Sender<Phase>>,
}

impl Acceptor {
    pub fn new(
        listener: TcpListener,
        clients: Connections,
        tls: bool,
        patience: Timeouts,
        phase: Arc<watch::Sender<Phase>>,
    ) -> Self {
        Self { source: Source::Open(listener), clients, tls, patience, phase }
    }

    /// Next connection that was admitted.
    pub async fn accept(&mut self) -> Arrived {
        loop {
            let (stream, address) = match self.next().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!("a connection could not be accepted: {error}");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            };
            let Some(connection) = self.clients.add(&stream, address, self.tls, &self.patience) else { continue };
            let entry = Entry { clients: self.clients.clone(), connection };
            // Responses are written whole, so that Nagle's algorithm would only delay them.
            let _ = stream.set_nodelay(true);
            return Arrived { entry, stream, address };
        }
    }

    async fn next(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        loop {
            match &self.source {
                Source::Open(listener) => tokio::select! {
                    accepted = listener.accept() => return accepted,
                    _ = closing(&self.phase) => {}
                },
                Source::Closing(listener, since) => tokio::select! {
                    accepted = listener.accept() => return accepted,
                    () = tokio::time::sleep_until(*since + HANDSHAKES) => {}
                },
                Source::Draining(listener) => match listener.accept() {
                    Ok((stream, address)) => {
                        stream.set_nonblocking(true)?;
                        return Ok((TcpStream::from_std(stream)?, address));
                    }
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    Err(_) => {}
                },
                Source::Closed => std::future::pending().await,
            }
            self.source = match std::mem::replace(&mut self.source, Source::Closed) {
                Source::Open(listener) => {
                    ignore_newcomers(&listener);
                    Source::Closing(listener, Instant::now())
                }
                Source::Closing(listener, _) => Source::Draining(listener.into_std()?),
                // The queue is empty, and no new connection can arrive.
                Source::Draining(_) | Source::Closed => {
                    self.phase.send_replace(Phase::Closed);
                    Source::Closed
                }
            };
        }
    }
}

/// Resolves when shutdown begins.
pub async fn closing(phase: &watch::Sender<Phase>) {
    drop(phase.subscribe().wait_for(|phase| *phase != Phase::Open).await);
}

/// Makes the kernel drop packets that open a connection. A client that connects between the last check of the queue and the
/// closing of the socket would be reset with its request already sent; therefore new connections are prevented before the
/// socket closes. A client that retries after a second is refused and knows that nothing of its request was read.
#[cfg(target_os = "linux")]
fn ignore_newcomers(listener: &TcpListener) {
    // The filter sees packets from the TCP header on: byte 13 holds the flags, and SYN without ACK opens a connection.
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0x02),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its instructions outlive the call, which copies them; the length is that of the program.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if done != 0 {
        tracing::debug!("newcomers are not held off while the server stops: {}", io::Error::last_os_error());
    }
}

#[cfg(not(target_os = "linux"))]
fn ignore_newcomers(_: &TcpListener) {}

/// Accepted connection from which nothing has been read.
pub struct Arrived {
    // Declared before the socket to be dropped first: a closed connection must not stay registered.
    entry: Entry,
    pub stream: TcpStream,
    address: SocketAddr,
}

/// Registration of an open connection, removed on drop.
struct Entry {
    clients: Connections,
    connection: Arc<Connection>,
}

impl Entry {
    /// Maximum bytes of the next read into a buffer with `room`.
    fn most_read(&self, room: usize) -> usize {
        if room <= LEAST_READ {
            return room;
        }
        (READS / self.clients.count().max(1)).clamp(LEAST_READ, MOST_READ)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.remove(&self.connection);
    }
}

/// Receives the connections that `probe_listener.rs` routes to one of the servers.
pub struct Inbox {
    pub arrivals: mpsc::UnboundedReceiver<Arrived>,
    pub local: LocalAddr,
    pub tls: Option<Arc<Tls>>,
    /// Maximum bytes before a complete request head.
    pub head_bytes: usize,
}

impl Inbox {
    /// Registers the socket with the current runtime.
    fn take_over(&self, arrived: Arrived) -> io::Result<(Watched, LocalAddr, RemoteAddr, Scheme)> {
        let Arrived { entry, stream, address } = arrived;
        let stream = TcpStream::from_std(stream.into_std()?)?;
        let (io, scheme) = match &self.tls {
            Some(tls) => (Io::Shaking(Box::new(tls.accept(stream))), Scheme::HTTPS),
            None => (Io::Plain(stream), Scheme::HTTP),
        };
        let watched = Watched { entry, io, head: self.head_bytes };
        Ok((watched, self.local.clone(), RemoteAddr(Addr::SocketAddr(address)), scheme))
    }
}

impl listener::Acceptor for Inbox {
    type Io = Watched;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![self.local.clone()]
    }

    async fn accept(&mut self) -> io::Result<(Watched, LocalAddr, RemoteAddr, Scheme)> {
        match self.arrivals.recv().await {
            Some(arrived) => self.take_over(arrived),
            // The sender is gone: no more connections.
            None => std::future::pending().await,
        }
    }
}

/// Transport of a connection. The TLS handshake is performed on first read, so that it does not block other connections.
enum Io {
    Plain(TcpStream),
    Shaking(Box<tokio_rustls::Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

/// Stream that reports its activity to its [`Connection`].
pub struct Watched {
    // Declared before the socket to be dropped first: a closed connection must not stay registered.
    entry: Entry,
    io: Io,
    head: usize,
}

/// Object-safe union of both stream types.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Watched {
    /// The stream after the handshake.
    fn ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Both>>> {
        if let Io::Shaking(shaking) = &mut self.io {
            match ready!(Pin::new(shaking.as_mut()).poll(cx)) {
                Ok(stream) => {
                    self.entry.connection.shaken();
                    self.io = Io::Tls(Box::new(stream));
                }
                Err(error) => {
                    self.io = Io::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.io {
            Io::Plain(stream) => Ok(Pin::new(stream)),
            Io::Tls(stream) => Ok(Pin::new(stream.as_mut())),
            Io::Shaking(_) | Io::Failed => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.entry.connection.wrote(match &written {
            Poll::Ready(written) => Some(*written.as_ref().unwrap_or(&0)),
            Poll::Pending => None,
        });
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (filled, room) = (buffer.filled().len(), buffer.remaining());
        let most = self.entry.most_read(room);
        let read = match ready!(self.ready(cx)) {
            Ok(stream) => {
                let mut part = buffer.take(most);
                let read = ready!(stream.poll_read(cx, &mut part));
                let bytes = part.filled().len();
                // SAFETY: `part` is the start of the buffer's unfilled part, and the stream has initialised what it filled.
                unsafe { buffer.assume_init(bytes) };
                buffer.advance(bytes);
                read
            }
            Err(error) => Err(error),
        };
        let bytes = &buffer.filled()[filled..];
        if read.is_err() || (room > 0 && bytes.is_empty()) {
            self.entry.connection.ended();
        } else if !self.entry.connection.heard(bytes, self.head) {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.ready(cx))?.poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.ready(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.ready(cx))?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.ready(cx))?.poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
            // Queried once, before the handshake; both stream types support it.
            Io::Shaking(_) => true,
            Io::Failed => false,
        }
    }
}
