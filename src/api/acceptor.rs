//! Connections on their way in: plain or TLS, counted, watched, and taken to the last one when the server stops.
//!
//! Input: a listener. Output: streams that tell clients.rs what happens on them.

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

/// How long to wait when there is no descriptor or no memory for one more connection.
const EXHAUSTED: Duration = Duration::from_millis(50);
/// How long those who had begun to connect when the server closes may take to have done so: the third packet of a handshake
/// comes a round trip after the second.
const HANDSHAKES: Duration = Duration::from_millis(200);

/// How far the gate is on its way from open to closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Open,
    /// Nobody may begin to connect.
    Closing,
    /// Everybody who had connected has been let in.
    Closed,
}

/// Where connections come from.
enum Source {
    Open(TcpListener),
    /// The server stops: those who had begun to connect are waited for.
    Closing(TcpListener, Instant),
    /// What stands in the kernel's queue is still taken.
    Draining(StdListener),
    Closed,
}

/// Accepts connections until it is told to stop.
pub struct Acceptor {
    source: Source,
    clients: Connections,
    /// Whether a handshake comes first.
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

    /// The next connection that there is room for.
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
            // Answers are written whole: waiting for more would only delay them.
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
                // Nobody new is waiting, and nobody can come any more.
                Source::Draining(_) | Source::Closed => {
                    self.phase.send_replace(Phase::Closed);
                    Source::Closed
                }
            };
        }
    }
}

/// Done when the server begins to stop.
pub async fn closing(phase: &watch::Sender<Phase>) {
    drop(phase.subscribe().wait_for(|phase| *phase != Phase::Open).await);
}

/// Lets the kernel drop packets that would begin a connection. Whoever connects between the last look at the queue and the
/// closing of the socket would be reset with the request already sent; so nobody new may come before it closes. Who tries
/// again a second later is refused, and knows that nothing of the request was read.
#[cfg(target_os = "linux")]
fn ignore_newcomers(listener: &TcpListener) {
    // The filter sees packets from their TCP header on: byte 13 has the flags, of which SYN without ACK opens.
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 0x12),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0x02),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program and its steps live through the call, which copies them; the length is that of the program.
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

/// A connection that was accepted and nobody has read from.
pub struct Arrived {
    // Before the socket: what is closed must not be known any more.
    entry: Entry,
    pub stream: TcpStream,
    address: SocketAddr,
}

/// The place of a connection among all that are open, until this is dropped.
struct Entry {
    clients: Connections,
    connection: Arc<Connection>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.clients.remove(&self.connection);
    }
}

/// Where one of the servers gets its connections from: those that door.rs sends it.
pub struct Inbox {
    pub arrivals: mpsc::UnboundedReceiver<Arrived>,
    pub local: LocalAddr,
    pub tls: Option<Arc<Tls>>,
    /// Bytes that may come before a request is there.
    pub head_bytes: usize,
}

impl Inbox {
    /// Has the runtime that this is called in wait for the socket from now on.
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
            // The door is shut.
            None => std::future::pending().await,
        }
    }
}

/// What the bytes go through. A handshake goes on where the stream is first read, so that no other connection waits for it.
enum Io {
    Plain(TcpStream),
    Shaking(Box<tokio_rustls::Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
    Failed,
}

/// A connection that tells what happens on it.
pub struct Watched {
    // Before the socket: what is closed must not be known any more.
    entry: Entry,
    io: Io,
    head: usize,
}

/// Both kinds of stream as one.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl Watched {
    /// The stream behind the handshake.
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
        let read = match ready!(self.ready(cx)) {
            Ok(stream) => ready!(stream.poll_read(cx, buffer)),
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
            // Asked once, before the handshake: both kinds of stream are.
            Io::Shaking(_) => true,
            Io::Failed => false,
        }
    }
}
